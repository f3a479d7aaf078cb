"""The paper's recipe, stated once: QAtraining.py's defaults, and what an experiment reckons with."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Recipe:
    """epochs over the texts; batch_size: texts at a time on a device; accumulate: batches to an optimizer step."""

    epochs: int = 10
    learning_rate: float = 2e-4
    batch_size: int = 4
    accumulate: int = 4
    max_grad_norm: float = 0.3
    weight_decay: float = 0.001
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


RECIPE = Recipe()
