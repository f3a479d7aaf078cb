"""Fits the Jacobian lens: how the last layer's states move with those of each layer, on average.

Gurnee et al. 2026, "Verbalizable representations form a global workspace in language models", as their reference
implementation estimates it: at the positions of a text but the first SKIPPED and the last one,

    J_l = mean over texts and source positions t of  sum over target positions t' >= t of  d h_L,t' / d h_l,t
"""

import contextlib
import inspect
from collections.abc import Iterator

import torch
from transformers.cache_utils import Cache, DynamicLayer

from utils.models.families import LensModel

# The first positions are where attention goes that has nowhere to go; their states are unlike all others.
SKIPPED = 16
# Rows of the Jacobians that one backward pass computes: each is a copy of the text.
ROWS_AT_ONCE = {"cpu": 32, "cuda": 64}


def text_jacobians(model: LensModel, ids: list[int], skipped: int = SKIPPED, rows: int | None = None) -> torch.Tensor:
    """J_l of one text, of l = 0 to L - 1: [layer, width, width], row i the gradient of coordinate i of h_L.

    One backward pass gives a row of the Jacobians of all layers: its cotangent is one coordinate at every target
    position. `rows` of them are computed at once, by as many copies of the text in a batch. What lies before the
    source positions doesn't depend on them, so it is read once and without a graph.
    Raises ValueError for a text of no more than skipped + 1 tokens.
    """
    if len(ids) <= skipped + 1:
        raise ValueError(f"a text of {len(ids)} tokens: a Jacobian needs more than {skipped + 1}")
    rows = rows or ROWS_AT_ONCE.get(model.device.type, ROWS_AT_ONCE["cpu"])
    with _frozen(model), torch.inference_mode(False):
        states = _states_with_graph(model, ids[:skipped], ids[skipped:-1], rows)  # [copy, position, width] each
        below, last = states[:-1], states[-1]
        width = last.shape[-1]
        jacobians = torch.zeros(len(below), width, width, dtype=last.dtype, device=last.device)
        copies = torch.arange(rows, device=last.device)
        for start in range(0, width, rows):
            n = min(rows, width - start)
            cotangent = torch.zeros_like(last)
            cotangent[copies[:n], :, start + copies[:n]] = 1
            gradients = torch.autograd.grad(last, below, cotangent, retain_graph=start + rows < width)
            for jacobian, gradient in zip(jacobians, gradients):
                jacobian[start : start + n] = gradient[:n].mean(dim=1)
    return jacobians


def _states_with_graph(model: LensModel, before: list[int], ids: list[int], copies: int) -> list[torch.Tensor]:
    """What enters each layer and the final norm at `ids`, which follow `before`: [copy, position, width] each."""
    cache = Cache(layer_class_to_replicate=DynamicLayer)
    batch = torch.tensor([before + ids] * copies, device=model.device)
    start = len(before)
    states: list[torch.Tensor] = []

    def keep(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        if not states:  # what enters the first layer: the graph begins here
            hidden = hidden.detach().requires_grad_()
        states.append(hidden)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    with torch.no_grad():
        if before:
            _read_on(model, cache, batch, 0, start)
    modules = (*model.layers, model.final_norm)
    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    try:
        with torch.enable_grad():
            _read_on(model, cache, batch, start, batch.shape[1])
    finally:
        for handle in handles:
            handle.remove()
    return states


def _read_on(model: LensModel, cache: Cache, ids: torch.Tensor, start: int, end: int) -> None:
    options = {}
    if "position_ids" in inspect.signature(model.decoder.forward).parameters:  # BLOOM's counts the mask by itself
        options["position_ids"] = torch.arange(start, end, device=ids.device)[None].expand(len(ids), -1)
    mask = torch.ones(len(ids), end, dtype=torch.long, device=ids.device)
    model.decoder(input_ids=ids[:, start:end], attention_mask=mask, past_key_values=cache, use_cache=True, **options)


@contextlib.contextmanager
def _frozen(model: LensModel) -> Iterator[None]:
    """No gradient of a parameter is asked for, so none is kept track of."""
    trainable = [parameter for parameter in model.causal_lm.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
