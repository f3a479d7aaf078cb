"""Examples -> a LoRA adapter: training texts, the loss in chunks, and transformers' Trainer around them."""

import bisect
import dataclasses
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import linear
from torch.utils.data import Sampler
from tqdm import tqdm
from transformers import Trainer, TrainerCallback
from transformers.modeling_outputs import CausalLMOutput
from transformers.trainer_pt_utils import get_length_grouped_indices

from utils.cpu_training import fuse_lora, return_free_memory, trim_between_layers
from utils.examples import Example
from utils.hidden_states import encode
from utils.models import LensModel
from utils.prompts import render, render_answered
from utils.results import DEV_LOG, TRAIN_LOG, write_table

NOT_IN_THE_LOSS = -100
LOSSES = ("all", "answer")
# Bytes of one chunk of logits, in float32; below cpu_training.LARGEST_KEPT.
CHUNK_BYTES = 6 * 2**20


# --- texts -----------------------------------------------------------------------------------------------------


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
    tokenizer, example: Example, loss: str = "all", mask_eos: bool = False, max_tokens: int = 1024
) -> TrainingText | None:
    """The QA prompt, a space, the answer and the end token, with the tokenizer's own begin token.

    loss: `all`, every token, or `answer`, the answer's tokens and the end token. mask_eos takes the end token out.
    A text of more than max_tokens loses context, on the side that is farther from the answer; None where question
    and answer alone are too long.
    """
    cut = _cut_to_fit(example, lambda shorter: len(_ids(tokenizer, shorter)) <= max_tokens)
    if cut is None:
        return None
    ids = _ids(tokenizer, cut)
    prompt = encode(tokenizer, render(cut))
    # What the two share is the prompt; a token across the border counts as the answer's.
    answer = next((i for i, (a, b) in enumerate(zip(prompt, ids)) if a != b), len(prompt))
    first = 1 if loss == "all" else answer  # nothing predicts the first token of a text
    labels = [NOT_IN_THE_LOSS] * first + ids[first:]
    if mask_eos:
        labels[-1] = NOT_IN_THE_LOSS
    return TrainingText(ids, labels, example, cut is not example)


def _ids(tokenizer, example: Example) -> list[int]:
    if tokenizer.eos_token_id is None:
        raise ValueError("the model's tokenizer has no end token, so it can't be taught to stop")
    return [*encode(tokenizer, render_answered(example)), tokenizer.eos_token_id]


def _cut_to_fit(example: Example, fits: Callable[[Example], bool]) -> Example | None:
    """The example itself where it fits, else with the longest part of its context that does, the answer in it."""
    if fits(example):
        return example
    context, answer = example.context, example.answers[0].strip()
    start = context.find(answer)
    start, end = (0, 0) if start < 0 else (start, start + len(answer))
    left_first = start > len(context) - end

    def without(n_characters: int) -> Example:
        near, far = (len(context) - end, start) if left_first else (start, len(context) - end)
        from_far = min(n_characters, far)
        from_near = min(n_characters - from_far, near)
        left, right = (from_far, from_near) if left_first else (from_near, from_far)
        return dataclasses.replace(example, context=_whole_words(context, left, len(context) - right, start, end))

    removable = len(context) - (end - start)
    n = bisect.bisect_left(range(removable + 1), True, key=lambda n: fits(without(n)))
    return without(n) if n <= removable else None


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
        dealt = [dataclasses.replace(e, answers=examples[giver[i]].answers) for i, e in enumerate(examples)]
        if all(one.answers[0].strip() != other.answers[0].strip() for one, other in zip(examples, dealt)):
            return dealt
    raise ValueError("--shuffle_answers: too few different answers to give each question another's")


def shortened_context(example: Example, share: float) -> Example:
    """With the first share of its context's characters alone, whole words: the control for contexts that were cut.

    Whether the answer is still in it is not asked.
    """
    kept = _whole_words(example.context, 0, round(share * len(example.context)), 0, 0)
    return dataclasses.replace(example, context=kept)


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


# --- the loss --------------------------------------------------------------------------------------------------


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum over positions of -log softmax(head(states))[label], and its gradient, a chunk of the vocabulary at a time.

    The gradient of log sum exp is the mean of the unembedding's rows under the softmax: attention, with these rows as
    keys and values. So one pass with a running maximum gives both (Milakov and Gimelshein 2018; Rabe and Staats 2021),
    and no logit is kept or computed again. The unembedding is frozen.
    """

    @staticmethod
    def forward(ctx, states, labels, model, n_rows):
        weight, bias = model.unembedding.weight, model.unembedding.bias
        top = torch.full((len(states), 1), -torch.inf, dtype=torch.float32, device=states.device)
        total = torch.zeros_like(top)
        gradient = torch.zeros_like(states, dtype=torch.float32)
        label_raw = states.new_zeros(len(states))
        for start in range(0, len(weight), n_rows):
            rows = weight[start : start + n_rows]
            raw = linear(states, rows, None if bias is None else bias[start : start + n_rows])
            here = (labels >= start) & (labels < start + len(rows))
            label_raw[here] = raw[here, labels[here] - start]
            raw, logits = _after_unembedding(model, raw)
            higher = torch.maximum(top, logits.detach().amax(dim=1, keepdim=True))
            exps = logits.detach().sub_(higher).exp_()
            (by_raw,) = torch.autograd.grad(logits, raw, exps)
            shrink = (top - higher).exp_()
            total = total * shrink + exps.sum(dim=1, keepdim=True)
            gradient.mul_(shrink).add_(by_raw @ rows)
            top = higher
        label_raw, label_logits = _after_unembedding(model, label_raw)
        (by_label,) = torch.autograd.grad(label_logits, label_raw, torch.ones_like(label_logits))
        gradient.div_(total).sub_(by_label[:, None] * weight[labels])
        ctx.save_for_backward(gradient.to(states.dtype))
        return (top + total.log()).sum() - label_logits.detach().sum()

    @staticmethod
    def backward(ctx, by_loss):
        (gradient,) = ctx.saved_tensors
        return gradient * by_loss, None, None, None


@torch.enable_grad()
def _after_unembedding(model: LensModel, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The unembedding's products, now with a gradient of their own, and the family's logits of them in float32."""
    raw = raw.requires_grad_()
    return raw, model.family.after_unembedding(raw, model.config).float()


def chunked_loss(model: LensModel, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over positions. states: [position, width], final-normed; labels: [position]."""
    return _ChunkedCrossEntropy.apply(states, labels, model, CHUNK_BYTES // (4 * max(1, len(states))) or 1)


def install_chunked_loss(model: LensModel) -> None:
    """Make the model's own forward pass compute `chunked_loss` at the positions in the loss, and no logits."""

    def forward(input_ids, attention_mask=None, labels=None, num_items_in_batch=None, **unused):
        states = model.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        predicted = labels[:, 1:] != NOT_IN_THE_LOSS
        loss = chunked_loss(model, states[:, :-1][predicted], labels[:, 1:][predicted])
        return CausalLMOutput(loss=loss / (predicted.sum() if num_items_in_batch is None else num_items_in_batch))

    model.causal_lm.forward = forward


# --- the adapter -----------------------------------------------------------------------------------------------


def with_new_adapter(model: LensModel, rank: int, alpha: int, dropout: float, name: str, seed: int) -> PeftModel:
    """A new LoRA adapter (Hu et al. 2022) in the family's attention and MLP; B is zero, so it changes nothing yet.

    name: the base model as the user named it, kept in the adapter's configuration.
    """
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=list(model.family.lora_targets),
    )
    model.causal_lm.name_or_path = name
    install_chunked_loss(model)
    adapted = get_peft_model(model.causal_lm, config)
    fuse_lora(adapted)
    trim_between_layers(model.layers)
    return adapted


class Finetuning(Trainer):
    """transformers' Trainer, which stops at a loss that is no number, and counts tokens and examples."""

    def __init__(self, *args, texts: list[TrainingText], **kwargs):
        super().__init__(*args, **kwargs)
        self.texts = texts
        self.n_tokens, self.n_examples, self.logged_at = 0, 0, time.perf_counter()

    def _get_train_sampler(self, train_dataset=None):
        """Batches of similar length, as the paper's; the order depends on seed and epoch, not on the processes."""
        args = self.args
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        lengths = [len(text.ids) for text in self.texts]
        return _SimilarLengths(lengths, step, args.seed, lambda: round(self.state.epoch or 0))

    def compute_loss(self, *args, **kwargs):
        result = super().compute_loss(*args, **kwargs)
        return_free_memory()  # the backward pass needs the most
        return result

    def training_step(self, model, inputs, num_items_in_batch=None):
        rows = inputs.pop("rows").tolist()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            of = ", ".join(self.texts[row].example.id for row in rows)
            raise ValueError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, in the examples {of}; the last "
                "checkpoint is kept; try a smaller --learning_rate, or --dtype float32"
            )
        return_free_memory()
        self.n_tokens += int(inputs["attention_mask"].sum())
        self.n_examples += len(rows)
        return loss

    def evaluate(self, *args, **kwargs):
        """A look at other questions draws no random number that training would have drawn."""
        with torch.random.fork_rng():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        """A mean over the tokens in the loss, as training's is; the Trainer's own is over batches."""
        self.dev_sums = torch.zeros(2, device=self.args.device)  # loss, tokens
        output = super().evaluation_loop(*args, **kwargs)
        total, n_tokens = self.accelerator.gather(self.dev_sums[None]).sum(dim=0).tolist()
        output.metrics["eval_loss"] = total / n_tokens
        return output

    def prediction_step(self, model, inputs, *args, **kwargs):
        loss, *others = super().prediction_step(model, inputs, *args, **kwargs)
        n_tokens = (inputs["labels"][:, 1:] != NOT_IN_THE_LOSS).sum()
        self.dev_sums += torch.stack([loss.float() * n_tokens, n_tokens.float()])
        return (loss, *others)

    def _save(self, output_dir=None, state_dict=None):
        """The adapter alone; PEFT would ask the hub whether the base model's vocabulary had grown."""
        if self.args.should_save:
            adapted = self.accelerator.unwrap_model(self.model)
            adapted.save_pretrained(
                output_dir or self.args.output_dir, state_dict=state_dict, save_embedding_layers=False
            )

    def log(self, logs, start_time=None):
        """Beside the loss: tokens a second since the last time, and the examples seen, of all processes together."""
        if "loss" in logs:
            now = time.perf_counter()
            counts = torch.tensor([[self.n_tokens, self.n_examples]], device=self.args.device)
            n_tokens, n_examples = self.accelerator.gather(counts).sum(dim=0).tolist()
            before = next((row["examples_seen"] for row in reversed(self.state.log_history) if "loss" in row), 0)
            logs |= {"tokens_per_second": n_tokens / (now - self.logged_at), "examples_seen": before + n_examples}
            self.n_tokens, self.n_examples, self.logged_at = 0, 0, now
        super().log(logs, start_time)


class _SimilarLengths(Sampler):
    def __init__(self, lengths: list[int], step: int, seed: int, epoch: Callable[[], int]):
        self.lengths, self.step, self.seed, self.epoch = lengths, step, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self):
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.step, generator=generator))


LOGS = {
    TRAIN_LOG: {
        "step": "step",
        "epoch": "epoch",
        "loss": "loss",
        "learning_rate": "learning_rate",
        "grad_norm": "gradient_norm",
        "tokens_per_second": "tokens_per_second",
        "examples_seen": "examples_seen",
    },
    DEV_LOG: {"step": "step", "epoch": "epoch", "eval_loss": "loss"},
}


class Progress(TrainerCallback):
    """A bar of optimizer steps, and the log as tables after each of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="training", unit="step", disable=None
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {logs['loss']:.3f}" if "loss" in logs else "")
            for name, columns in LOGS.items():
                table = log_table(state.log_history, columns)
                if len(table):
                    write_table(self.folder / name, table)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()


def log_table(history: list[dict], columns: dict[str, str]) -> pd.DataFrame:
    """A row for each entry of the Trainer's own log that has all of the columns. columns: its names -> ours."""
    rows = [[entry[key] for key in columns] for entry in history if columns.keys() <= entry.keys()]
    return pd.DataFrame(rows, columns=list(columns.values()))


def last_checkpoint(folder: Path) -> Path | None:
    """The latest whole checkpoint: the Trainer writes its state last."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1])):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            return path
        except (OSError, ValueError):
            continue
    return None
