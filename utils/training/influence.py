"""Gradients of LoRA's weights and their curvature by EK-FAC: what an example would change, without training again.

Influence functions (Koh and Liang 2017) with the Gauss-Newton matrix in place of the Hessian and EK-FAC (George et al.
2018) in place of that, after Grosse et al. 2023, Studying large language model generalization with influence functions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.nn.functional import cross_entropy

from utils.models.families import LensModel
from utils.runs import read_arrays, write_arrays
from utils.training.loss import chunked_loss
from utils.training.texts import NOT_IN_THE_LOSS, TrainingText

# Of the mean eigenvalue of a block (Grosse et al. 2023).
DAMPING = 0.1
# Positions whose labels are drawn at a time: of Gemma's vocabulary they are 67 MB of logits.
POSITIONS = 64
PARTS = ("inputs", "outputs", "values")  # of a `Curvature`, as it is saved
Gradient = list[torch.Tensor]  # of each block's weight, in the blocks' order: [out, in]


def lora_blocks(model: LensModel) -> dict[str, torch.nn.Linear]:
    """Name -> linear map of every LoRA factor (`A` of [rank, in], `B` of [out, rank]); they alone get gradients.

    The model must be one that `load_model` gave with an adapter: dropout is off, and no layer is fused. Raises
    ValueError where there is no LoRA factor, or a layer with another kind of one.
    """
    model.causal_lm.requires_grad_(False)
    blocks: dict[str, torch.nn.Linear] = {}
    for name, module in model.causal_lm.named_modules():
        if not hasattr(module, "lora_A") or not len(module.lora_A):
            continue
        if not isinstance(module, LoraLinear) or module.lora_variant or any(module.lora_bias.values()):
            raise ValueError(f"--adapter: {name} is no plain LoRA layer; only those have an influence here")
        for factor, maps in (("A", module.lora_A), ("B", module.lora_B)):
            (of_adapter,) = maps.values()
            assert isinstance(of_adapter, torch.nn.Linear)
            of_adapter.weight.requires_grad_(True)
            blocks[f"{name}.{factor}"] = of_adapter
    if not blocks:
        raise ValueError("--adapter: no LoRA layer in it, so that there is nothing to take gradients of")
    return blocks


def gradient(scalar: torch.Tensor, blocks: dict[str, torch.nn.Linear], again: bool = False) -> Gradient:
    """The scalar's gradient in every block. again: keep what another scalar of the same pass needs."""
    weights = [block.weight for block in blocks.values()]
    return list(torch.autograd.grad(scalar, weights, retain_graph=again))


def loss_gradient(model: LensModel, blocks: dict[str, torch.nn.Linear], text: TrainingText) -> Gradient:
    """The gradient of a training text's loss, summed over its tokens in the loss."""
    states, labels = _predicting_states(model, text)
    return gradient(chunked_loss(model, states, labels), blocks)


def sampled_gradient(
    model: LensModel, blocks: dict[str, torch.nn.Linear], text: TrainingText, generator: torch.Generator
) -> Gradient:
    """The same with labels that are drawn from the model's own distribution: its square has the Fisher matrix as mean.

    The true Fisher matrix, which is the Gauss-Newton matrix of a cross-entropy, and not the empirical one
    (Martens 2020; Grosse et al. 2023).
    """
    states, _ = _predicting_states(model, text)
    by_states = _gradient_of_drawn_labels(model, states.detach(), generator)
    return gradient((states * by_states).sum(), blocks)


def _predicting_states(model: LensModel, text: TrainingText) -> tuple[torch.Tensor, torch.Tensor]:
    """(final-normed states before each token in the loss, [position, width]; these tokens, [position])."""
    ids = torch.tensor([text.ids], device=model.device)
    labels = torch.tensor(text.labels, device=model.device)[1:]
    states = model.decoder(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    in_loss = labels != NOT_IN_THE_LOSS
    return states[in_loss], labels[in_loss]


def _gradient_of_drawn_labels(model: LensModel, states: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """d / d states of the summed cross-entropy of drawn labels: [position, width]."""
    found = []
    for part in states.split(POSITIONS):
        part = part.requires_grad_()
        with torch.enable_grad():
            logits = model.head(part)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            probs = torch.softmax(logits.detach(), dim=-1).cpu()
            labels = torch.multinomial(probs, 1, generator=generator).squeeze(1).to(logits.device)
            found += torch.autograd.grad(cross_entropy(logits, labels, reduction="sum"), part)
    return torch.cat(found)


@dataclass(frozen=True)
class Curvature:
    """EK-FAC's Fisher matrix of a block's weight W, summed over texts: (U_G x U_A) diag(values) (U_G x U_A)^T.

    inputs: eigenvectors of the covariance of what the block takes, [in, in], in columns; outputs: those of the
    gradients of what it gives, [out, out]; values: [out, in], the second moments of the texts' own gradients in these
    coordinates, sum over texts of (U_G^T dW U_A)^2 (George et al. 2018's correction).
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    values: torch.Tensor

    @property
    def damping(self) -> torch.Tensor:
        return DAMPING * self.values.mean()

    def inverse(self, block_gradient: torch.Tensor) -> torch.Tensor:
        """(F + damping)^-1 times a gradient: [out, in] -> [out, in]."""
        rotated = self.outputs.T @ block_gradient @ self.inputs
        return self.outputs @ (rotated / (self.values + self.damping)) @ self.inputs.T


def fit_curvature(
    model: LensModel,
    blocks: dict[str, torch.nn.Linear],
    texts: Sequence[TrainingText],
    seed: int,
    bar: Callable[[Iterable, str], Iterable] = lambda items, what: items,
) -> list[Curvature]:
    """Of each block, from labels drawn once for each text and pass. Two passes over the texts: bases, then values.

    Raises ValueError for a block whose gradients are all zero: a factor B is, in an adapter that was never trained.
    """
    bases = _eigenbases(model, blocks, texts, seed, bar)
    values = [torch.zeros_like(block.weight) for block in blocks.values()]
    for i, text in enumerate(bar(texts, "eigenvalues")):
        found = sampled_gradient(model, blocks, text, _generator(seed, 2 * i + 1))
        for total, by_weight, (inputs, outputs) in zip(values, found, bases):
            total.add_((outputs.T @ by_weight @ inputs).square_())
    for name, total in zip(blocks, values):
        if not torch.isfinite(total).all():
            raise ValueError(f"--adapter: the gradients of {name} are not finite")
        if not total.any():
            raise ValueError(f"--adapter: the gradients of {name} are all zero; was it trained?")
    return [Curvature(inputs, outputs, total) for (inputs, outputs), total in zip(bases, values)]


def _generator(seed: int, draw: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * seed + draw)


def _eigenbases(model, blocks, texts, seed, bar) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """K-FAC's: (eigenvectors of E[x x^T], of E[g g^T]) of each block, over the positions of all texts."""
    sums = [_zero_covariances(block) for block in blocks.values()]
    handles = [block.register_forward_hook(_adds_to(*both)) for block, both in zip(blocks.values(), sums)]
    try:
        for i, text in enumerate(bar(texts, "covariances")):
            sampled_gradient(model, blocks, text, _generator(seed, 2 * i))
    finally:
        for handle in handles:
            handle.remove()
    bases = []
    for place in bar(range(len(sums)), "eigenvectors"):
        inputs, outputs = sums[place]
        sums[place] = ()  # their memory is the eigenvectors'
        bases.append((torch.linalg.eigh(inputs).eigenvectors, torch.linalg.eigh(outputs).eigenvectors))
    return bases


def _zero_covariances(block: torch.nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    n_out, n_in = block.weight.shape
    return block.weight.new_zeros(n_in, n_in), block.weight.new_zeros(n_out, n_out)


def _adds_to(of_inputs: torch.Tensor, of_gradients: torch.Tensor) -> Callable:
    """A forward hook that adds x x^T of the inputs now, and g g^T of the outputs' gradients in the backward pass."""

    def add(total, rows):
        rows = rows.detach().reshape(-1, rows.shape[-1])
        total.addmm_(rows.T, rows)

    def hook(module, args, output):
        add(of_inputs, args[0])
        output.register_hook(lambda by_output: add(of_gradients, by_output))

    return hook


def influence_direction(measure: Gradient, curvatures: Sequence[Curvature] | None) -> Gradient:
    """What a text's loss gradient is multiplied with to give its influence on a measure of which more is better.

    A step of Newton's to the texts without z changes the measure M by dM^T F^-1 dL(z), so that M with z is higher by

        influence(z) = - dM^T (F + damping)^-1 dL(z),

    above zero where z helps, in the measure's own unit. Without curvatures F is left out, and each is of length 1:
    the product with a gradient of length 1 is the cosine.
    """
    if curvatures is None:
        return [-part for part in unit_length(measure)]
    return [-curvature.inverse(part) for curvature, part in zip(curvatures, measure)]


def unit_length(of_blocks: Gradient) -> Gradient:
    """Over all blocks together; a gradient of zero stays so."""
    length = torch.stack([part.square().sum() for part in of_blocks]).sum().sqrt()
    return [part / length if length > 0 else part for part in of_blocks]


class Directions:
    """Many `influence_direction`s, kept in half precision, each block's by a scale of its own.

    LoRA of rank 64 in a 270M model is 15 million numbers, and there is a direction for each query and measure.

    A product's rounding error is about 2^-11 / sqrt(number of weights) of the two vectors' lengths.
    """

    def __init__(self) -> None:
        self.halves: list[np.ndarray] = []  # of each direction, all blocks side by side: float16
        self.scales: list[np.ndarray] = []  # of each direction, [block]

    def add(self, direction: Gradient) -> None:
        largest = [float(part.abs().max()) or 1.0 for part in direction]
        halves = [(part / scale).cpu().flatten().to(torch.float16) for part, scale in zip(direction, largest)]
        self.halves.append(torch.cat(halves).numpy())
        self.scales.append(np.array(largest))

    def save(self, path: Path) -> None:
        write_arrays(path, halves=np.stack(self.halves), scales=np.stack(self.scales))

    def add_saved(self, path: Path) -> None:
        stored = read_arrays(path)
        self.halves += list(stored["halves"])
        self.scales += list(stored["scales"])

    def products(self, of_text: Gradient) -> np.ndarray:
        """Inner product of each direction with a gradient: [direction], float64."""
        found = np.zeros(len(self.halves))
        start = 0
        for block, part in enumerate(of_text):
            flat = part.detach().cpu().flatten()
            for i, (halves, scales) in enumerate(zip(self.halves, self.scales)):
                of_block = torch.from_numpy(halves[start : start + len(flat)]).to(flat.dtype)
                found[i] += scales[block] * float(of_block @ flat)
            start += len(flat)
        return found


def save_curvatures(folder: Path, curvatures: Sequence[Curvature]) -> None:
    """A file a block; the last one is written last, so that all are there where it is."""
    for number, one in enumerate(curvatures):
        arrays = {name: getattr(one, name).cpu().numpy() for name in PARTS}
        write_arrays(_curvature_file(folder, number), **arrays)


def saved_curvatures(folder: Path, blocks: dict[str, torch.nn.Linear]) -> list[Curvature] | None:
    """None where they are not all there."""
    paths = [_curvature_file(folder, number) for number in range(len(blocks))]
    if not all(path.is_file() for path in paths):
        return None
    found = []
    for path, block in zip(paths, blocks.values()):
        stored = read_arrays(path)
        parts = [torch.from_numpy(stored[name]).to(block.weight.device) for name in PARTS]
        found.append(Curvature(*parts))
    return found


def _curvature_file(folder: Path, number: int) -> Path:
    return folder / f"curvature-{number:04}.npz"
