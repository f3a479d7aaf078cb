"""The numbers of a training, stated once: QAtraining.py's defaults, and those of --recipe paper and fast."""

from dataclasses import dataclass, fields
from typing import NamedTuple


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained.

    epochs: over the texts; batch_size: texts at a time on a device; accumulate: batches to an optimizer step.
    loss_mean: a step's loss is the mean over its tokens, or over its batches of each one's mean.
    carry_over: batches that an epoch leaves over go into the next epoch's first step; without it an epoch's last step
    has fewer batches. autocast: a dtype, none, or auto: bfloat16 where the model is in bfloat16.
    """

    epochs: int = 10
    learning_rate: float = 2e-4
    batch_size: int = 4
    accumulate: int = 4
    max_grad_norm: float = 0.3
    weight_decay: float = 0.001
    loss_mean: str = "tokens"
    carry_over: bool = False
    autocast: str = "auto"
    lora_rank: int = 64
    lora_alpha: int = 16
    lora_dropout: float = 0.1
    gradient_checkpointing: bool = True
    seed: int = 42

    @property
    def texts_a_step(self) -> int:
        return self.batch_size * self.accumulate

    @classmethod
    def of(cls, args) -> "Recipe":
        """The recipe that a command line asks for: its flags of the fields' names."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})

    def epoch_ends(self, n_texts: int, n_processes: int = 1) -> list[int]:
        """The optimizer steps after which each epoch's checkpoint is taken; the last one is that of the training.

        With carry_over there are epochs x (whole accumulations of an epoch) steps in all, as transformers 4.44 has it,
        so the training ends before its last epoch does. Raises ValueError where an epoch has fewer batches than an
        accumulation, for which that version has rules of its own.
        """
        n_batches, a_step = -(-n_texts // self.batch_size), self.accumulate * n_processes
        if not self.carry_over:
            n_steps = -(-n_batches // a_step)
            return [n_steps * epoch for epoch in range(1, self.epochs + 1)]
        if n_batches < a_step:
            raise ValueError(
                f"--carry_over: an epoch of {n_batches} batches of {self.batch_size} can't fill an accumulation of "
                f"{a_step}; choose a smaller --accumulate or --batch_size"
            )
        n_steps = n_batches // a_step * self.epochs
        return [min(n_batches * epoch // a_step, n_steps) for epoch in range(1, self.epochs + 1)]


RECIPE = Recipe()


class Choice(NamedTuple):
    """What --recipe paper has for a flag; ground: `read` in the authors' script, or `inferred`, and from what."""

    value: object
    ground: str
    why: str


# By the authors' training script, commit 5d56e52, and the libraries that it ran on.
PAPER = {
    "weight_decay": Choice(0.0, "read", "0.001 is set but never handed on, and the Trainer's own is 0"),
    "begin_text": Choice("<s>", "read", "a text begins with the characters <s>, which BLOOM reads as its begin token"),
    "mask_eos": Choice(True, "inferred", "the pad token is the end token (read); TRL's collator leaves padding out"),
    "truncation": Choice("end", "inferred", "max_seq_length is 1024 (read); TRL's tokenizer call cuts the end off"),
    "carry_over": Choice(
        True, "inferred", "transformers 4.44 does, and so stands at the published steps 13, 26, 39, 52 and 60"
    ),
    "loss_mean": Choice("batches", "inferred", "transformers before 4.46 does"),
    "dtype": Choice("float32", "inferred", "no dtype is given (read), and transformers before 5 then loads float32"),
    "autocast": Choice("bfloat16", "read", "bf16 is set"),
    "lora_targets": Choice(
        None, "read", "all four maps of a layer; but the published run is named _lora_qkv, the sibling script's "
        "_lora_all_modules, so perhaps query_key_value alone was tuned for it"
    ),
}  # fmt: skip
# Trainings that are made by the dozen, to see what leaving examples out does: ours, shorter.
FAST: dict[str, object] = {"epochs": 2, "max_tokens": 256, "gradient_checkpointing": False}
RECIPES: dict[str, dict[str, object]] = {
    "ours": {},
    "paper": {flag: choice.value for flag, choice in PAPER.items()},
    "fast": FAST,
}
