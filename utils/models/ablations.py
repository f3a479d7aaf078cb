"""A language taken out of a model while it runs: a direction of the stream, neurons, or its part of the last logits.

Each function yields or returns a `LensModel` that is otherwise the model's own: whatever reads it (answers, lens,
losses) reads the changed model. Strength 0 leaves the model alone, bit for bit: there is no hook and no other head.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import torch

from utils.models.families import LensModel
from utils.models.interventions import NeuronMap, n_neurons

Change = Callable[[torch.Tensor], torch.Tensor]
# What is left of a token's probability where all of it would go: a loss of it must stay finite.
LEAST_KEPT = 1e-9


def project_out(
    states: torch.Tensor,
    unit: torch.Tensor,
    strength: float,
    instead: torch.Tensor | None = None,
    centre: float = 0.0,
) -> torch.Tensor:
    """h - s (h . u - c) u, at the length of h: [..., width] -> [..., width].

    unit: u, of length 1. centre: c, the component that strength 1 leaves, but for the length: none with 0 (directional
    ablation, Arditi et al. 2024, eq. 4), that of other texts' mean else (affine editing, Marshall, Scherlis and Belrose
    2024). instead: v, of length 1 and at a right angle to u, makes it h - s (h . u - c) v: as long a change in another
    direction. Computed in float32.
    """
    exact = states.float()
    along = exact @ unit - centre
    changed = exact - strength * along[..., None] * (unit if instead is None else instead)
    length, now = (torch.linalg.vector_norm(vectors, dim=-1, keepdim=True) for vectors in (exact, changed))
    return (changed * (length / now.clamp(min=torch.finfo(torch.float32).tiny))).to(states.dtype)


@contextmanager
def projected_out(
    model: LensModel,
    units: Mapping[int, np.ndarray],
    strength: float,
    instead: Mapping[int, np.ndarray] | None = None,
    scale: Mapping[int, float] | None = None,
    centres: Mapping[int, float] | None = None,
) -> Iterator[LensModel]:
    """While it is open, `project_out` at each layer that `units` names, at every token but the begin token.

    units, instead: layer -> [width]; layers as the lens counts them, 0 for what enters the first block. scale: layer ->
    what the strength is multiplied by there, where it isn't 1. centres: layer -> c, where it isn't 0.
    """
    on = {layer: _vector(model, unit) for layer, unit in units.items()}
    other = {layer: _vector(model, vector) for layer, vector in (instead or {}).items()}
    scale, centres = scale or {}, centres or {}
    changes = {
        layer: _projecting(unit, strength * scale.get(layer, 1), other.get(layer), centres.get(layer, 0.0))
        for layer, unit in on.items()
    }
    with _changed_states(model, changes if strength else {}):
        yield model


def _projecting(unit: torch.Tensor, strength: float, instead: torch.Tensor | None, centre: float) -> Change:
    def change(states: torch.Tensor) -> torch.Tensor:
        there = states.device
        return project_out(states, unit.to(there), strength, None if instead is None else instead.to(there), centre)

    return change


@contextmanager
def watched(
    model: LensModel, units: Mapping[int, np.ndarray], centres: Mapping[int, float]
) -> Iterator[dict[int, list[torch.Tensor]]]:
    """While it is open, |h . u - c| of each layer's states as they come there: layer -> one [prompt, position] a pass.

    What is opened later changes them after they are watched, so that a layer's ablation does not show in its own.
    """
    seen: dict[int, list[torch.Tensor]] = {layer: [] for layer in units}
    modules = (*model.layers, model.final_norm)

    def hook(unit: torch.Tensor, centre: float, found: list[torch.Tensor]):
        def watch(module, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            found.append((hidden.float() @ unit.to(hidden.device) - centre).abs().cpu())

        return watch

    with ExitStack() as stack:
        for layer, unit in units.items():
            watch = hook(_vector(model, unit), centres.get(layer, 0.0), seen[layer])
            stack.callback(modules[layer].register_forward_pre_hook(watch, with_kwargs=True).remove)
        yield seen


@contextmanager
def added(model: LensModel, vectors: Mapping[int, np.ndarray], strength: float) -> Iterator[LensModel]:
    """While it is open, h + s d at each layer that `vectors` names (layer -> d, [width]), but for the begin token."""
    on = {layer: _vector(model, vector) for layer, vector in vectors.items()}
    changes = {layer: _adding(strength * vector) for layer, vector in on.items()}
    with _changed_states(model, changes if strength else {}):
        yield model


def _adding(vector: torch.Tensor) -> Change:
    return lambda states: (states.float() + vector.to(states.device)).to(states.dtype)


def _vector(model: LensModel, vector: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(vector, dtype=np.float32)).to(model.device)


@contextmanager
def _changed_states(model: LensModel, changes: Mapping[int, Change]) -> Iterator[None]:
    """The stream at these layers is what `change` makes of it, where no begin token is read.

    No text can change what a begin token's states are, and in many models they are far longer than others (Sun et al.
    2024, massive activations) and what attention rests on (Xiao et al. 2024): a change there would be of no language.
    """

    def hook(change: Change, begins: list[torch.Tensor]):
        def changed(module, args, kwargs):
            if not begins:  # the lens norms states of its own, which are changed already
                return None
            hidden = args[0] if args else kwargs["hidden_states"]  # [prompt, position, width]
            new = torch.where(begins[0].to(hidden.device)[..., None], hidden, change(hidden))
            return ((new, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": new})

        return changed

    with ExitStack() as stack:
        begins = _begin_tokens(model, stack) if changes else []
        modules = (*model.layers, model.final_norm)
        for layer, change in changes.items():
            handle = modules[layer].register_forward_pre_hook(hook(change, begins), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _begin_tokens(model: LensModel, stack: ExitStack) -> list[torch.Tensor]:
    """A list that holds, during a forward pass of the decoder, which tokens are begin tokens, [prompt, position] of
    bool; outside of one it is empty.
    """
    begins: list[torch.Tensor] = []
    bos = -1 if model.tokenizer.bos_token_id is None else model.tokenizer.bos_token_id

    def look(module, args, kwargs):
        begins[:] = [(kwargs["input_ids"] if "input_ids" in kwargs else args[0]) == bos]

    stack.callback(model.decoder.register_forward_pre_hook(look, with_kwargs=True).remove)
    stack.callback(model.decoder.register_forward_hook(lambda module, args, output: begins.clear()).remove)
    return begins


@contextmanager
def moved_neurons(
    model: LensModel, maps: list[NeuronMap], neurons: np.ndarray, values: np.ndarray, strength: float
) -> Iterator[LensModel]:
    """While it is open, each neuron's output x is x + s (value - x) at every token but the begin token.

    neurons, values: [k]; strength 1 sets a neuron to its value. Raises ValueError for a neuron that is not there.
    """
    neurons, values = np.asarray(neurons, dtype=np.int64), np.asarray(values, dtype=np.float32)
    if len(neurons) and not (neurons.min() >= 0 and neurons.max() < n_neurons(maps)):
        raise ValueError(f"neuron {neurons.max()}: the model has {n_neurons(maps)}")
    with ExitStack() as stack:
        if strength and len(neurons):
            begins = _begin_tokens(model, stack)
            for one in maps:
                within = (neurons >= one.start) & (neurons < one.stop)
                if within.any():
                    move = _moving(model, neurons[within] - one.start, values[within], strength, begins)
                    stack.callback(one.module.register_forward_hook(move).remove)
        yield model


def _moving(model: LensModel, columns: np.ndarray, values: np.ndarray, strength: float, begins: list) -> Callable:
    at, to = torch.from_numpy(columns).to(model.device), torch.from_numpy(values).to(model.device)

    def move(module, args, output):
        index = at.to(output.device)
        # OPT's MLP reads all texts' tokens as one list: [prompt * position, neuron].
        reads = ~begins[0].to(output.device).reshape(*output.shape[:-1], 1)
        own = output[..., index]
        moved = own.float() + strength * reads * (to.to(output.device) - own.float())
        return output.index_copy(-1, index, moved.to(output.dtype))

    return move


def without_share(model: LensModel, share: np.ndarray, strength: float) -> LensModel:
    """The model whose next-token distribution has lost a language's part: p'(v) ~ p(v) max(1 - s share(v), LEAST_KEPT).

    share: [vocab], of each token the language's part of it, 0 to 1; ids past it keep what they have. The same on
    logits: z'(v) = z(v) + log max(1 - s share(v), LEAST_KEPT). All below the head is the model's own.
    """
    if not strength:
        return model
    kept = np.maximum(1 - strength * np.asarray(share, dtype=np.float64), LEAST_KEPT)
    taken = torch.from_numpy(np.log(kept).astype(np.float32)).to(model.device)
    after = model.family.after_unembedding

    def head(logits: torch.Tensor, config) -> torch.Tensor:
        full = after(logits, config)
        changed = full.float().clone()  # a sum in bfloat16 would round the logits that lose nothing, too
        changed[..., : len(taken)] += taken.to(full.device)
        return changed

    return replace(model, family=replace(model.family, after_unembedding=head))
