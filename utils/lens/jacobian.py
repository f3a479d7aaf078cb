"""Fits the Jacobian lens: how the last layer's states move with those of each layer, on average.

Gurnee et al. 2026, "Verbalizable representations form a global workspace in language models", as their reference
implementation estimates it: at the positions of a text but the first SKIPPED and the last one,

    J_l = mean over texts and source positions t of  sum over target positions t' >= t of  d h_L,t' / d h_l,t
"""

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from utils.models.families import LensModel

# The first positions are where attention goes that has nowhere to go; their states are unlike all others.
SKIPPED = 16
# Jacobians of a text's feed-forward parts are kept where they take no more memory than this.
MOST_BYTES = 2 * 2**30
# Rows of the Jacobians that one backward pass computes: each is a copy of the text.
ROWS_AT_ONCE = {"cpu": 32, "cuda": 64}


def text_jacobians(model: LensModel, ids: list[int], skipped: int = SKIPPED, rows: int | None = None) -> torch.Tensor:
    """J_l of one text, of l = 0 to L - 1: [layer, width, width], row i the gradient of coordinate i of h_L.

    One backward pass gives a row of the Jacobians of all layers: its cotangent is one coordinate at every target
    position. `rows` of them are computed at once, by as many copies of the text in a batch. What lies before the
    source positions doesn't depend on them, so it is read once and without a graph. Where a layer's feed-forward part
    is of Llama's form, gradients go through it by its Jacobians, which are made once a text (`_linearised`).
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
    gated: list[Any] = [layer.mlp for layer in model.layers if _is_gated(layer)]
    if sum(part.down_proj.weight.itemsize * part.down_proj.out_features**2 for part in gated) * len(ids) > MOST_BYTES:
        gated = []
    modules = (*model.layers, model.final_norm)
    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    try:
        with torch.enable_grad(), _linearised(gated):
            _read_on(model, cache, batch, start, batch.shape[1])
    finally:
        for handle in handles:
            handle.remove()
    return states


def _is_gated(layer: torch.nn.Module) -> bool:
    """Has the layer a feed-forward part of Llama's form, of plain linear maps (no adapter's, none in few bits)?"""
    part: Any = getattr(layer, "mlp", None)
    maps = [getattr(part, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    return hasattr(part, "act_fn") and all(type(a_map) is torch.nn.Linear for a_map in maps)


@contextlib.contextmanager
def _linearised(parts: list[Any]) -> Iterator[None]:
    """Gradients go through these feed-forward parts by the Jacobian of each position, made once for all copies.

    d down(act(gate x) * up x) / dx = down (diag(act'(gate x) * up x) gate + diag(act(gate x)) up): one product of
    matrices a position, and one of [width, width] a row, where autograd needs three of [width, inner] a row.
    """
    for part in parts:
        part.forward = functools.partial(_through_jacobian, part)
    try:
        yield
    finally:
        for part in parts:
            del part.forward


def _through_jacobian(part, states: torch.Tensor) -> torch.Tensor:
    """The part's output, [copy, position, width]; its copies are all the same text."""
    with torch.no_grad():
        gate, up = part.gate_proj(states[0]), part.up_proj(states[0])  # [position, inner]
    with torch.enable_grad():
        gate.requires_grad_()
        (slope,) = torch.autograd.grad(part.act_fn(gate).sum(), gate)  # act is elementwise
    with torch.no_grad():
        activated = part.act_fn(gate)
        width = part.down_proj.out_features
        jacobians = states.new_empty(len(gate), width, states.shape[-1])  # [position, width, width]
        inner = torch.empty_like(part.up_proj.weight)
        for jacobian, by_gate, by_up in zip(jacobians, slope * up, activated):
            torch.mul(part.gate_proj.weight, by_gate[:, None], out=inner).addcmul_(part.up_proj.weight, by_up[:, None])
            torch.mm(part.down_proj.weight, inner, out=jacobian)
        output = part.down_proj(activated * up)
    return _Linearised.apply(states, output.expand_as(states), jacobians)


class _Linearised(torch.autograd.Function):
    """`output` of `states`, [copy, position, width]; jacobians: [position, width, width], rows of the output."""

    @staticmethod
    def forward(ctx, states, output, jacobians):
        ctx.jacobians = jacobians
        return output.clone()

    @staticmethod
    def backward(ctx, gradient):
        return (gradient.transpose(0, 1) @ ctx.jacobians).transpose(0, 1), None, None


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
