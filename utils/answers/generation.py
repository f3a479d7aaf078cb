"""Prompts -> answers: batches that read a shared beginning once, and stop where the answer does."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from utils.data.examples import Example
from utils.models.arithmetic import Way, all_logits, usual
from utils.models.checks import TOLERANCE, total_variation
from utils.models.families import LensModel
from utils.models.hidden_states import Prompt, pad
from utils.models.prefixes import ROOM, Read, alone, forward, joined, next_token, nothing_read, read_prompts

# The paper's sampling.
TEMPERATURE, TOP_K, TOP_P = 0.1, 50, 0.95
# More keys and values than this at a time bring a CPU nothing; a GPU takes a share of what is free.
CPU_CACHE_BYTES = 2 * 2**30
SHARE_OF_FREE_MEMORY = 0.25
# Rows that are written at once, where others take the place of those that end: more are no faster on a CPU. And how
# many times as many questions are written down together, so that the last rows of a batch are seldom alone.
AT_ONCE, BATCHES = 16, 4
# Tokens of a question's text, its answer counted, that memory is reckoned with: for its logits, and for its mask.
SHORT_TEXT, LONG_TEXT = 128, 1024


@dataclass(frozen=True)
class Generated:
    """What a model wrote: the text, its tokens with the one that ended it, and what that was.

    stopped_by: `line` (the answer's line is whole), `end` (the end token) or `length`.
    """

    text: str
    ids: tuple[int, ...]
    stopped_by: str

    @property
    def new_tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Question:
    """A question on its way: what is asked, the text that the model reads, and its tokens."""

    example: Example
    text: str
    prompt: Prompt


def first_line(text: str) -> str:
    """The answer in a generated text: its first line that is not blank, stripped."""
    return text.strip().split("\n")[0].strip()


def greedy(logits: torch.Tensor, draws: list[random.Random]) -> torch.Tensor:
    """The likeliest token of each row: [row, vocab] -> [row]."""
    return logits.argmax(dim=-1)


def paper(logits: torch.Tensor, draws: list[random.Random]) -> torch.Tensor:
    """A draw for each row: temperature 0.1, of the 50 likeliest those that make up 0.95. [row, vocab] -> [row].

    As transformers' warpers have it, a token is among them where those before it sum to less than TOP_P. One
    number of the row's own generator is looked up in the cumulative distribution (inversion), so that the draw
    depends neither on the order of the questions nor on their batch.
    """
    values, ids = logits.topk(min(TOP_K, logits.shape[-1]))  # [row, k], descending
    probs = torch.softmax(values.double() / TEMPERATURE, dim=-1)
    before = probs.cumsum(dim=-1) - probs
    cumulative = (probs * (before < TOP_P)).cumsum(dim=-1)
    uniform = torch.tensor([draw.random() for draw in draws], dtype=torch.float64, device=logits.device)
    place = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    return ids.gather(-1, place.clamp(max=ids.shape[-1] - 1)).squeeze(-1)


DECODINGS: dict[str, Callable] = {"greedy": greedy, "paper": paper}
# Of how many of the likeliest tokens each must have the logits, and how far below the likeliest's: at the paper's
# temperature, all those further down weigh less than a rounding of the sum, exp(-40).
CONSIDERED = {"greedy": (1, 0.0), "paper": (TOP_K, 40 * TEMPERATURE)}


def generate(
    model: LensModel,
    prompts: list[Prompt],
    decoding: str = "greedy",
    max_new_tokens: int = 100,
    seed: int = 42,
    shares: bool = True,
    lines: int = 1,
    way: Way | None = None,
    at_once: int | None = None,
) -> list[Generated]:
    """What the model writes after each prompt, in their order.

    at_once: how many are written at a time; rows that have ended make room for the next contexts. None: all.
    way: how prompts are read and logits made, `arithmetic.quick`'s or the usual one.

    A prompt's text ends with the token that completes its first line (or as many as `lines`, blank ones not counted),
    with the end token, or after max_new_tokens.
    A batch that does not fit into memory is halved. Raises ValueError where a single prompt doesn't fit, and for
    logits that are not finite.
    """
    try:
        return _generate(model, prompts, decoding, max_new_tokens, seed, shares, lines, way, at_once)
    except RuntimeError as error:  # torch.OutOfMemoryError is one; a CPU's has no class of its own
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
    if len(prompts) == 1:
        raise ValueError(f"a prompt of {len(prompts[0].ids)} tokens does not fit into the memory of {model.device}")
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    half = (len(prompts) + 1) // 2
    options = (decoding, max_new_tokens, seed, shares, lines, way, at_once)
    return [row for part in (prompts[:half], prompts[half:]) for row in generate(model, part, *options)]


@torch.inference_mode()
def _generate(model, prompts, decoding, max_new_tokens, seed, shares, lines, way, at_once) -> list[Generated]:
    way = way or usual(model)
    choose, considered = DECODINGS[decoding], CONSIDERED.get(decoding, (model.n_tokens, torch.inf))
    draws = [random.Random(f"{seed} {prompt.key}") for prompt in prompts]
    ids: list[list[int]] = [[] for _ in prompts]
    generated: dict[int, Generated] = {}
    waiting = _by_context(prompts, at_once)
    going: list[int] = []  # which prompt each row of `texts` is
    texts = nothing_read(0, model.device)
    while going or waiting:
        lasts = []
        if going:
            lasts.append(forward(model, texts, *pad([ids[i][-1:] for i in going], model.device))[:, -1])
        if coming := _coming(waiting, len(going), at_once):
            new, last = way.read(model, [prompts[i] for i in coming], shares)
            lasts.append(last)
            texts = joined([texts, new], None, ROOM) if going else new
            going += coming
        chosen = _chosen(choose, way.likeliest(torch.cat(lasts), *considered), [draws[i] for i in going])
        for i, id in zip(going, chosen):
            ids[i].append(id)
            if stopped_by := _stopped_by(model.tokenizer, _end_tokens(model), ids[i], max_new_tokens, lines):
                generated[i] = Generated(_text(model.tokenizer, ids[i]), tuple(ids[i]), stopped_by)
        for row in reversed(range(len(going))):
            if going[row] in generated:
                texts.drop(row)
                going[row] = going[-1]
                going.pop()
    return [generated[i] for i in range(len(prompts))]


def _by_context(prompts: list[Prompt], at_once: int | None) -> list[list[int]]:
    """Indices of prompts, those of one context together, in pieces of `at_once` at most; the first is the last."""
    if at_once is None:
        return [list(range(len(prompts)))]
    by_context: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_context.setdefault(prompt.context, []).append(i)
    pieces = [rows[start : start + at_once] for rows in by_context.values() for start in range(0, len(rows), at_once)]
    return pieces[::-1]


def _coming(waiting: list[list[int]], n_going: int, at_once: int | None) -> list[int]:
    """The prompts of the next contexts, as many as there is room for beside those that are going."""
    coming: list[int] = []
    while waiting and (at_once is None or n_going + len(coming) + len(waiting[-1]) <= at_once):
        coming += waiting.pop()
    return coming


def _chosen(choose: Callable, likeliest: tuple, draws: list[random.Random]) -> list[int]:
    logits, ids = likeliest
    columns = choose(logits, draws)
    return (columns if ids is None else ids.gather(1, columns[:, None])[:, 0]).tolist()


def _end_tokens(model: LensModel) -> set[int]:
    """The tokenizer's end token and those that the model's own generation settings name."""
    settings = getattr(model.causal_lm, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    return {model.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}


def _stopped_by(tokenizer, end_tokens: set[int], ids: list[int], max_new_tokens: int, lines: int) -> str | None:
    if ids[-1] in end_tokens:
        return "end"
    # The second look is at the whole text: blank lines do not end it.
    if "\n" in tokenizer.decode(ids[-1:]) and _whole_lines(_text(tokenizer, ids)) >= lines:
        return "line"
    return "length" if len(ids) == max_new_tokens else None


def _whole_lines(text: str) -> int:
    """Lines that end, blank ones not counted."""
    return sum(bool(line.strip()) for line in text.split("\n")[:-1])


def _text(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def question_batches(
    prompts: list[Prompt], batch_size: int | None, max_batch_tokens: int, max_new_tokens: int
) -> list[list[int]]:
    """Indices of prompts in batches of similar length, the longest first, those of one context side by side.

    batch_size: prompts in a batch; None: as many as stay within max_batch_tokens, padding and answers counted.
    """
    by_context: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_context.setdefault(prompt.context, []).append(i)
    longest_first = sorted(by_context.values(), key=lambda rows: -max(len(prompts[i].ids) for i in rows))
    parts: list[list[int]] = []
    width = 0
    for i in (i for rows in longest_first for i in rows):
        width = max(width, len(prompts[i].ids) + max_new_tokens)
        if parts and (len(parts[-1]) < batch_size if batch_size else (len(parts[-1]) + 1) * width <= max_batch_tokens):
            parts[-1].append(i)
        else:
            parts.append([i])
            width = len(prompts[i].ids) + max_new_tokens
    return parts


def batches_for(
    way: Way, model: LensModel, prompts: list[Prompt], max_new_tokens: int, max_tokens: int | None = None
) -> list[tuple[list[int], int | None]]:
    """(indices of prompts, how many of them are written at once) of each batch; max_tokens: `max_batch_tokens`."""
    max_tokens = max_tokens or max_batch_tokens(model)
    if not way.holds_stems:
        return [(batch, None) for batch in question_batches(prompts, None, max_tokens, max_new_tokens)]
    longest = max(len(prompt.ids) for prompt in prompts) + max_new_tokens
    at_once = min(max(max_tokens // longest, 1), AT_ONCE)
    return [(batch, at_once) for batch in question_batches(prompts, BATCHES * at_once, max_tokens, max_new_tokens)]


def max_batch_tokens(model: LensModel) -> int:
    """How many tokens, padding and answers counted, a batch may have in the memory at hand; measured on one token."""
    texts = nothing_read(1, model.device)
    with torch.inference_mode():
        forward(model, texts, *pad([[0]], model.device))
    bytes_per_token = sum(layer.keys.nbytes + layer.values.nbytes for layer in texts.layers) + _passing_bytes(model)
    if model.device.type == "cuda":
        free = SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(model.device)[0]
    else:
        free = min(SHARE_OF_FREE_MEMORY * psutil.virtual_memory().available, CPU_CACHE_BYTES)
    return int(free / bytes_per_token)


def _passing_bytes(model: LensModel) -> int:
    """Of a token, what is there while a layer reads it: states and the MLP's, its row of the mask, and its share of
    its text's logits. A small model's keys and values are little beside them.
    """
    width = next(model.final_norm.parameters()).shape[0]
    inner = getattr(model.config, "intermediate_size", None) or 4 * width
    states = (6 * width + 2 * inner) * model.dtype.itemsize
    logits = 3 * 4 * model.n_tokens // SHORT_TEXT  # float32, beside a softmax and a copy of them
    return states + 4 * LONG_TEXT + logits


@torch.inference_mode()
def self_check(model: LensModel, prompts: list[Prompt], shares: bool = True, read: Read = read_prompts) -> float:
    """How far, in total variation, the distributions of a batch's next two tokens are from each prompt's alone.

    Looks at the batch's longest and shortest prompt. Raises ValueError where they differ by more than rounding.
    """
    texts, last = read(model, prompts, shares)
    first, _ = all_logits(model, last)
    likeliest = first.argmax(dim=-1).tolist()
    second = forward(model, texts, *pad([[id] for id in likeliest], model.device))[:, -1]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    distance = 0.0
    for i in {order[0], order[-1]}:
        for in_batch, ids in ((last[i], prompts[i].ids), (second[i], [*prompts[i].ids, likeliest[i]])):
            apart = total_variation(next_token(model, in_batch), next_token(model, alone(model, ids)))
            distance = max(distance, apart)
    if not distance <= TOLERANCE[model.dtype]:
        raise ValueError(f"a prompt in a batch and alone differ: total variation {distance:.2g}; try --batch_size 1")
    return distance
