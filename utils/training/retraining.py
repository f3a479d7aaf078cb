"""Adapters trained on a set of texts without some of them: the truth about what these did."""

import shutil
from collections.abc import Collection
from pathlib import Path

import torch
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from utils.models.families import LensModel
from utils.training.recipe import Recipe
from utils.training.texts import Collator, TrainingText
from utils.training.trainer import (
    Finetuning,
    Progress,
    last_checkpoint,
    numbered,
    pad_token,
    training_arguments,
    with_new_adapter,
)

CHECKPOINTS = "checkpoints"


def is_trained(folder: Path) -> bool:
    """Is the adapter of `train_without` there? Its checkpoints go last."""
    return (folder / "adapter_model.safetensors").is_file() and not (folder / CHECKPOINTS).exists()


class WithoutSome(Finetuning):
    """A training on some of the texts, in the order that the training on all of them has.

    kept: the rows of the texts that stay, ascending; lengths: of all texts, in tokens. What changes from one
    left-out set to another is then what the left-out texts did, and less the luck of an order.
    """

    def __init__(self, *args, kept: list[int], lengths: list[int], **kwargs):
        self.place_of_row = {row: place for place, row in enumerate(kept)}
        self.lengths = lengths
        super().__init__(*args, **kwargs)

    def _order_of_epoch(self, epoch: int) -> list[int]:
        args = self.args
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        generator = torch.Generator().manual_seed(1_000_003 * args.seed + epoch)
        order = get_length_grouped_indices(self.lengths, step, generator=generator)
        return [self.place_of_row[row] for row in order if row in self.place_of_row]


def train_without(
    model: LensModel, name: str, texts: list[TrainingText], left_out: Collection[int], recipe: Recipe, folder: Path
) -> None:
    """Train a new adapter on the texts but those of the rows `left_out`, and save it in the folder, with its log.

    model: freshly loaded; it is changed. name: of the base model, for the adapter's configuration. What a stopped
    training has left in the folder is gone on from; its checkpoints go once the adapter is there. With nothing left
    out the adapter is QAtraining.py's. Raises ValueError where no text is left.
    """
    kept = [row for row in range(len(texts)) if row not in left_out]
    if not kept:
        raise ValueError("every training text is left out, so that nothing is left to train on")
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [texts[row] for row in kept]
    adapted = with_new_adapter(model, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout, name, recipe.seed)
    finetuning = WithoutSome(
        model=adapted,
        args=training_arguments(recipe, folder / CHECKPOINTS, model),
        train_dataset=numbered(chosen),
        data_collator=Collator(chosen, pad_token(model.tokenizer)),
        texts=chosen,
        recipe=recipe,
        callbacks=[Progress(folder)],
        kept=kept,
        lengths=[len(text.ids) for text in texts],
    )
    finetuning.remove_callback(PrinterCallback)
    checkpoint = last_checkpoint(folder / CHECKPOINTS)
    finetuning.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finetuning.save_model(str(folder))
    shutil.rmtree(folder / CHECKPOINTS)
