"""The neurons of the MLPs: their outputs read, and some of them forced, in a forward pass otherwise the model's own.

A neuron is one output of one of the two linear maps of an MLP (Suau et al. 2022): of the map into its inner width,
before the activation function, and of the map back to the residual stream. All neurons of a model are numbered: layer
by layer, in each the first map's and then the second's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from utils.models.checks import require_finite
from utils.models.families import LensModel
from utils.models.hidden_states import Prompt, encode, pad


@dataclass(frozen=True)
class NeuronMap:
    """A linear map whose outputs are neurons `start` to `start + width - 1`.

    layer: 1 for the first block, as the lens counts: the state after a layer has its neurons in it. name: within the
    layer. Outputs of the map past `width` (phi3's `up`) are no neurons.
    """

    layer: int
    name: str
    module: torch.nn.Module
    start: int
    width: int

    @property
    def stop(self) -> int:
        return self.start + self.width


def neuron_maps(model: LensModel) -> list[NeuronMap]:
    """The two maps of each layer's MLP, as `FAMILIES` names them, in order."""
    maps, start = [], 0
    for layer, block in enumerate(model.layers, 1):
        for i, name in enumerate(model.family.mlp_maps):
            module = block.get_submodule(name)
            width = _width(module) // (2 if i == 0 and model.family.gate_is_first_half else 1)
            maps.append(NeuronMap(layer, name, module, start, width))
            start += width
    return maps


def _width(module: torch.nn.Module) -> int:
    """Outputs of a linear map: torch's, GPT-2's Conv1D, or PEFT's around one."""
    return int(getattr(module, "nf" if hasattr(module, "nf") else "out_features"))


def n_neurons(maps: list[NeuronMap]) -> int:
    return maps[-1].stop


def sentence_prompt(model: LensModel, text: str) -> Prompt:
    """A sentence whose positions are its own tokens: not the begin token, which no sentence can change."""
    ids = encode(model.tokenizer, text)
    first = 1 if len(ids) > 1 and ids[0] == model.tokenizer.bos_token_id else 0
    return Prompt(ids, list(range(first, len(ids))))


def run_decoder(model: LensModel, prompts: list[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """(what leaves the final norm [prompt, position, width], which positions count [prompt, position] of bool)."""
    ids, mask = pad([prompt.ids for prompt in prompts], model.device)
    counts = torch.zeros_like(mask, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        counts[row, prompt.positions] = True
    kept: list[torch.Tensor] = []
    handle = model.final_norm.register_forward_hook(lambda module, args, output: kept.append(output))
    try:
        with torch.inference_mode():
            model.decoder(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        handle.remove()
    return kept[-1].to(model.device), counts


def max_responses(model: LensModel, maps: list[NeuronMap], prompts: list[Prompt]) -> torch.Tensor:
    """Each neuron's highest output over the positions that count: [prompt, neuron], float32.

    Raises ValueError, naming layer and dtype, for outputs that are not finite.
    """
    n_rows = len(prompts)
    lowest = torch.full((n_rows, max(len(prompt.ids) for prompt in prompts)), -torch.inf)
    for row, prompt in enumerate(prompts):
        lowest[row, prompt.positions] = 0
    parts: dict[int, torch.Tensor] = {}

    def keep(number: int, outputs: torch.Tensor) -> None:
        shifted = outputs.view(n_rows, -1, outputs.shape[-1]) + lowest.to(outputs)[..., None]
        parts[number] = shifted.amax(dim=1).float().to(model.device)

    with _outputs(maps, keep):
        run_decoder(model, prompts)
    responses = torch.cat([parts[i] for i in range(len(maps))], dim=1)
    if not torch.isfinite(responses).all():
        finite = torch.stack([torch.isfinite(parts[i]).all() for i in range(len(maps))])
        require_finite(finite.view(-1, 2).all(dim=1), "outputs of the MLP", model.dtype)
    return responses


@contextmanager
def _outputs(maps: list[NeuronMap], keep: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """While it is open, `keep(map's number, its neurons' outputs [..., neuron])` is called in each forward pass."""
    handles = [
        one.module.register_forward_hook(
            lambda module, args, output, i=i, one=one: keep(i, output[..., : one.width])  # type: ignore[misc]
        )
        for i, one in enumerate(maps)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def forced(maps: list[NeuronMap], neurons: np.ndarray, values: np.ndarray) -> Iterator[None]:
    """While it is open, the neurons have these outputs at every position: neurons [k] of their numbers, values [k].

    A map none of whose neurons are forced has no hook, so that without any neuron the pass is the model's own, bit for
    bit. Raises ValueError for a neuron that the model does not have.
    """
    neurons, values = np.asarray(neurons, dtype=np.int64), np.asarray(values)
    if len(neurons) and not (neurons.min() >= 0 and neurons.max() < n_neurons(maps)):
        raise ValueError(f"neuron {neurons.max()}: the model has {n_neurons(maps)}")
    handles = []
    try:
        for one in maps:
            within = (neurons >= one.start) & (neurons < one.stop)
            if within.any():
                hook = _forcing(one.module, neurons[within] - one.start, values[within])
                handles.append(one.module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forcing(module: torch.nn.Module, outputs: np.ndarray, values: np.ndarray) -> Callable:
    weight = next(module.parameters())
    is_forced = torch.zeros(_width(module), dtype=torch.bool, device=weight.device)
    to = torch.zeros(_width(module), dtype=torch.float32, device=weight.device)
    is_forced[torch.from_numpy(outputs)] = True
    to[torch.from_numpy(outputs)] = torch.from_numpy(values.astype(np.float32)).to(weight.device)

    def force(module, args, output):
        return torch.where(is_forced, to.to(output.dtype), output)

    return force
