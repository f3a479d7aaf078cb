"""Prompts -> hidden states: the residual stream before, between and after the layers, where it is asked for."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from utils.models.checks import require_finite
from utils.models.families import LensModel
from utils.outside import shown

# Tokens in a batch, padding counted. More is no faster on a CPU, and takes memory.
MAX_BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
CHARACTERS_AROUND = 20  # of a token that is refused, in the error's line


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt, and the positions that are read in it.

    Prompts of one `context` are read together; `key` alone decides what is drawn for an answer.
    """

    ids: list[int]
    positions: list[int]
    context: str = ""
    key: str = ""


def last_position(model: LensModel, text: str, context: str = "") -> Prompt:
    """The prompt with the tokenizer's own begin token, read at its last token: what comes next is the answer."""
    ids = encode(model.tokenizer, text)
    return Prompt(ids, [len(ids) - 1], context)


def answer_positions(model: LensModel, prompt: str, answered: str, context: str = "") -> Prompt:
    """The prompt with its answer, read where the answer's tokens are predicted: one position before each.

    The answer's tokens are those past the longest common beginning of the two texts' tokens, so that a token
    across the border counts as the answer's.
    """
    without, ids = encode(model.tokenizer, prompt), encode(model.tokenizer, answered)
    pairs = enumerate(zip(without, ids))
    first = next((i for i, (a, b) in pairs if a != b), min(len(without), len(ids)))
    return Prompt(ids, list(range(first - 1, len(ids) - 1)), context)


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of a prompt. Raises ValueError for a token that the model has no embedding of: an image's."""
    ids = tokenizer(text)["input_ids"]
    n_embedded = getattr(tokenizer, "n_embedded", None)
    if n_embedded is not None and (beyond := [id for id in ids if id >= n_embedded]):
        token = tokenizer.convert_ids_to_tokens(beyond[0])
        begin = max(text.find(token) - CHARACTERS_AROUND, 0)
        raise ValueError(
            f"a text holds the token {token!r} (id {beyond[0]}), which the model has no embedding of ({n_embedded} "
            f"rows): {shown(text[begin : begin + 2 * CHARACTERS_AROUND + len(token)])}; take it out of the text"
        )
    # A tokenizer may be set to close every text; a prompt is not at its end.
    closes = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token)
    return ids[:-1] if closes else ids


def hidden_states(model: LensModel, prompts: list[Prompt]) -> torch.Tensor:
    """The residual stream at each prompt's positions: [position, layer, width], prompts in order.

    layer 0 is what enters the first layer, layer L what enters the final norm; both as the model itself computes
    them, in its dtype. Nothing is kept of other positions, and the unembedding is not run.
    Raises ValueError, naming layer and dtype, for states that are not finite.
    """
    return recorded(model, prompts, lambda ids, mask: _read(model, ids, mask))


def _read(model: LensModel, ids: torch.Tensor, mask: torch.Tensor) -> None:
    model.decoder(input_ids=ids, attention_mask=mask, use_cache=False)


def recorded(model: LensModel, prompts: list[Prompt], read: Callable) -> torch.Tensor:
    """`hidden_states`, where `read(ids, mask)` is the forward pass over the padded prompts, [prompt, position]."""
    ids, mask = pad([prompt.ids for prompt in prompts], model.device)
    row = torch.tensor([i for i, prompt in enumerate(prompts) for _ in prompt.positions], device=model.device)
    column = torch.tensor([position for prompt in prompts for position in prompt.positions], device=model.device)
    with torch.inference_mode(), _recording(model, row, column) as states:
        read(ids, mask)
    assert len(states) == len(model.layers) + 1, f"{len(states)} states of {len(model.layers)} layers"
    states = torch.stack([state.to(model.device) for state in states], dim=1)  # [position, layer, width]
    require_finite(torch.isfinite(states).all(dim=2).all(dim=0), "hidden states", states.dtype)
    return states


def pad(id_lists: list[list[int]], device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, [prompt, position], padded on the right.

    A causal model's real tokens never see what is right of them, and their positions count from 0 in every
    family; so no pad can change a state that is read.
    """
    width = max(map(len, id_lists))
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in id_lists], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in id_lists], device=device)
    return ids, mask


@contextmanager
def _recording(model: LensModel, row: torch.Tensor, column: torch.Tensor):
    """A list that fills, during a forward pass, with [position, width] of what enters each layer and the norm."""
    states: list[torch.Tensor] = []

    def keep(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]  # [prompt, position, width]
        states.append(hidden[row.to(hidden.device), column.to(hidden.device)])

    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in (*model.layers, model.final_norm)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def batches(prompts: list[Prompt], batch_size: int | None, max_batch_tokens: int) -> list[list[int]]:
    """Indices of prompts, longest first, cut into batches of similar length.

    batch_size: prompts in a batch; None: as many as stay within max_batch_tokens, padding counted, at least one.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].ids), i))
    parts: list[list[int]] = []
    for i in order:
        fits = parts and (
            len(parts[-1]) < batch_size
            if batch_size
            else (len(parts[-1]) + 1) * len(prompts[parts[-1][0]].ids) <= max_batch_tokens
        )
        if fits:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts
