"""Examples -> training texts: token ids, which of them are in the loss, and the controls that change a text."""

import bisect
import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from utils.data.examples import Example
from utils.data.prompts import render, render_answered
from utils.models.hidden_states import encode

NOT_IN_THE_LOSS = -100


@dataclass(frozen=True)
class TrainingText:
    """Token ids of a training text and, at each, the id that is to be predicted there or NOT_IN_THE_LOSS.

    labels[i] is ids[i]: a causal model's loss shifts them. was_cut: the context was shortened.
    """

    ids: list[int]
    labels: list[int]
    example: Example
    was_cut: bool


def training_text(
    tokenizer,
    example: Example,
    loss: str = "all",
    mask_eos: bool = False,
    max_tokens: int = 1024,
    truncation: str = "context",
    begin_text: str = "",
) -> TrainingText | None:
    """The QA prompt, a space, the answer and the end token, with the tokenizer's own begin token.

    loss: `all`, every token, or `answer`, the answer's tokens and the end token. mask_eos takes the end token out.
    begin_text: characters before the prompt, which the tokenizer reads as it will.
    truncation: a text of more than max_tokens loses context, on the side that is farther from the answer, or its end:
    the end token, the answer, the question. None where question and answer alone are too long, or nothing of what the
    loss is of is left.
    """
    shorter = example if truncation == "end" else _cut_to_fit(
        example, lambda shorter: len(_ids(tokenizer, shorter, begin_text)) <= max_tokens
    )  # fmt: skip
    if shorter is None:
        return None
    whole = _ids(tokenizer, shorter, begin_text)
    ids = whole[:max_tokens]
    prompt = encode(tokenizer, begin_text + render(shorter))
    # What the two share is the prompt; a token across the border counts as the answer's.
    answer = next((i for i, (a, b) in enumerate(zip(prompt, whole)) if a != b), len(prompt))
    first = 1 if loss == "all" else answer  # nothing predicts the first token of a text
    labels = [NOT_IN_THE_LOSS] * min(first, len(ids)) + ids[first:]
    if mask_eos and len(ids) == len(whole):
        labels[-1] = NOT_IN_THE_LOSS
    if all(label == NOT_IN_THE_LOSS for label in labels):
        return None
    return TrainingText(ids, labels, example, shorter is not example or len(ids) < len(whole))


def _ids(tokenizer, example: Example, begin_text: str) -> list[int]:
    if tokenizer.eos_token_id is None:
        raise ValueError("the model's tokenizer has no end token, so it can't be taught to stop")
    return [*encode(tokenizer, begin_text + render_answered(example)), tokenizer.eos_token_id]


def _cut_to_fit(example: Example, fits: Callable[[Example], bool]) -> Example | None:
    """The example itself where it fits, else with the longest part of its context that does, the answer in it."""
    if fits(example):
        return example
    context = example.context
    start, end = _place_of_answer(example)
    left_first = start > len(context) - end

    def without(n_characters: int) -> Example:
        near, far = (len(context) - end, start) if left_first else (start, len(context) - end)
        from_far = min(n_characters, far)
        from_near = min(n_characters - from_far, near)
        left, right = (from_far, from_near) if left_first else (from_near, from_far)
        kept = _whole_words(context, left, len(context) - right, start, end)
        return dataclasses.replace(example, context=kept, answer_start=None)

    removable = len(context) - (end - start)
    n = bisect.bisect_left(range(removable + 1), True, key=lambda n: fits(without(n)))
    return without(n) if n <= removable else None


def _place_of_answer(example: Example) -> tuple[int, int]:
    """Start and end of the gold answer in its context: where the data set says, where it is literally there.

    Elsewhere (most of IndicQA's offsets are off, XQuAD-IN has none) its first occurrence, which may be another one;
    (0, 0) where there is none.
    """
    context, gold = example.context, example.answers[0]
    answer = gold.strip()
    start = -1
    if example.answer_start is not None:
        start = example.answer_start + len(gold) - len(gold.lstrip())
    if start < 0 or not context.startswith(answer, start):
        start = context.find(answer)
    return (0, 0) if start < 0 else (start, start + len(answer))


def _whole_words(context: str, left: int, right: int, start: int, end: int) -> str:
    """context[left:right] without the words that it would cut in two; context[start:end] stays whole."""
    if left and not context[left - 1].isspace():
        left = next((i for i in range(left, start) if context[i].isspace()), left)
    if right < len(context) and not context[right].isspace():
        right = next((i for i in range(right, end, -1) if context[i - 1].isspace()), right)
    return context[left:right].strip()


def shuffled_answers(examples: list[Example], seed: int) -> list[Example]:
    """The same questions, each with the answer of another one: the control for what the answers teach.

    Raises ValueError where some answer can't be dealt to a question that had another.
    """
    order = list(range(len(examples)))
    rng = random.Random(seed)
    for _ in range(1000):
        rng.shuffle(order)
        # One cycle through all of them leaves no question its own answer; equal answers can still meet.
        giver = dict(zip(order, [*order[1:], order[0]]))
        dealt = [
            dataclasses.replace(e, answers=examples[giver[i]].answers, answer_start=None)
            for i, e in enumerate(examples)
        ]
        if all(one.answers[0].strip() != other.answers[0].strip() for one, other in zip(examples, dealt)):
            return dealt
    raise ValueError("--shuffle_answers: too few different answers to give each question another's")


def shortened_context(example: Example, share: float) -> Example:
    """With the first share of its context's characters alone, whole words: the control for contexts that were cut.

    Whether the answer is still in it is not asked.
    """
    kept = _whole_words(example.context, 0, round(share * len(example.context)), 0, 0)
    return dataclasses.replace(example, context=kept, answer_start=None)


@dataclass(frozen=True)
class Collator:
    """Rows of `texts` -> input_ids, attention_mask, labels [text, position], padded on the right, and rows [text].

    Padding never is in the loss.
    """

    texts: list[TrainingText]
    pad_token_id: int

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        chosen = [self.texts[item["row"]] for item in items]
        width = max(len(text.ids) for text in chosen)
        padded = {
            "input_ids": [text.ids + [self.pad_token_id] * (width - len(text.ids)) for text in chosen],
            "attention_mask": [[1] * len(text.ids) + [0] * (width - len(text.ids)) for text in chosen],
            "labels": [text.labels + [NOT_IN_THE_LOSS] * (width - len(text.labels)) for text in chosen],
            "rows": [item["row"] for item in items],
        }
        return {name: torch.tensor(rows) for name, rows in padded.items()}
