"""The training run: a new adapter, batches of similar length, and the log of its losses."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pandas as pd
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from utils.models.families import LensModel
from utils.runs import DEV_LOG, TRAIN_LOG, write_table
from utils.training.carried import CarriedBatches, EpochEnds
from utils.training.checkpoints import full_disk_in_one_line, last_whole_checkpoint, save_adapter, seal
from utils.training.cpu import fuse_lora, return_free_memory, trim_between_layers
from utils.training.loss import install_chunked_loss
from utils.training.recipe import RECIPE, Recipe
from utils.training.texts import NOT_IN_THE_LOSS, TrainingText


def with_new_adapter(
    model: LensModel,
    rank: int,
    alpha: int,
    dropout: float,
    name: str,
    seed: int,
    targets: Sequence[str] | None = None,
) -> PeftModel:
    """A new LoRA adapter (Hu et al. 2022) in the family's attention and MLP; B is zero, so it changes nothing yet.

    name: the base model as the user named it, kept in the adapter's configuration. targets: some of the family's linear
    maps, None for all. Raises ValueError for another one.
    """
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=lora_targets(model, targets),
    )
    setattr(model.causal_lm, "name_or_path", name)  # noqa: B010 (it's no submodule)
    if model.device.type == "cpu" and model.dtype == torch.bfloat16:
        # PyTorch's own kernel is slower, there and back, and its gradients are farther from those in float32.
        cast(PreTrainedModel, model.causal_lm).set_attn_implementation("eager")
    install_chunked_loss(model)
    adapted = get_peft_model(model.causal_lm, config)
    fuse_lora(adapted)
    trim_between_layers(model.layers)
    return adapted


def lora_targets(model: LensModel, names: Sequence[str] | None) -> list[str]:
    """Those of the family's linear maps that are named, or all of them. Raises ValueError for another name."""
    choices = model.family.lora_targets
    for name in names or ():
        if name not in choices:
            raise ValueError(
                f"--lora_targets {name}: {model.config.model_type} has no such map; choose from {', '.join(choices)}"
            )
    return list(names or choices)


class Finetuning(Trainer):
    """transformers' Trainer, which stops at a loss that is no number, and counts tokens and examples.

    recipe: what the Trainer has no argument for: the mean of the loss, and accumulations that carry over.
    """

    def __init__(self, *args, texts: list[TrainingText], recipe: Recipe = RECIPE, **kwargs):
        super().__init__(*args, **kwargs)
        self.texts, self.recipe = texts, recipe
        self.n_tokens, self.n_examples, self.logged_at = 0, 0, time.perf_counter()
        if recipe.loss_mean == "batches":
            # Without it the Trainer counts the tokens of a step, and its batches' losses are sums divided by them.
            self.model_accepts_loss_kwargs = False
        if recipe.carry_over:
            has_dev = self.eval_dataset is not None
            self.add_callback(EpochEnds(recipe, len(texts), self.args.world_size, has_dev))

    def _order_of_epoch(self, epoch: int) -> list[int]:
        """Batches of similar length, as the paper's; the order depends on seed and epoch, not on the processes."""
        args = self.args
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        generator = torch.Generator().manual_seed(1_000_003 * args.seed + epoch)
        return get_length_grouped_indices([len(text.ids) for text in self.texts], step, generator=generator)

    def _get_train_sampler(self, train_dataset=None):
        return _OrderOfEpoch(len(self.texts), lambda: self._order_of_epoch(round(self.state.epoch or 0)))

    def get_train_dataloader(self):
        if not self.recipe.carry_over:
            return super().get_train_dataloader()
        args, dataset = self.args, self.train_dataset
        assert dataset is not None
        batches = CarriedBatches(
            self.recipe, len(self.texts), self._order_of_epoch, args.process_index, args.world_size
        )
        # Each process takes its own batches already, so accelerate, which would deal them out by size, is left out.
        return DataLoader(dataset, batch_sampler=batches, collate_fn=self.data_collator)

    def compute_loss(self, *args, **kwargs):
        result = super().compute_loss(*args, **kwargs)
        return_free_memory()  # the backward pass needs the most
        return result

    def training_step(self, model, inputs, num_items_in_batch=None):
        rows = inputs.pop("rows").tolist()
        on_cpu = self.args.device.type == "cpu" and self.args.world_size == 1
        parts = one_by_one(inputs, self.recipe.loss_mean) if on_cpu else [inputs]
        loss = torch.stack(
            [super(Finetuning, self).training_step(model, part, num_items_in_batch) for part in parts]
        ).sum()
        if not torch.isfinite(loss):
            ids = ", ".join(self.texts[row].example.id for row in rows)
            raise ValueError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, in the examples {ids}; the last "
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
        metrics = {**(output.metrics or {}), "eval_loss": total / n_tokens}
        return output._replace(metrics=metrics)

    def prediction_step(self, model, inputs, *args, **kwargs):
        loss, *others = super().prediction_step(model, inputs, *args, **kwargs)
        assert loss is not None  # there are labels
        n_tokens = (inputs["labels"][:, 1:] != NOT_IN_THE_LOSS).sum()
        self.dev_sums += torch.stack([loss.float() * n_tokens, n_tokens.float()])
        return (loss, *others)

    def _save(self, output_dir=None, state_dict=None):
        """The adapter alone."""
        if self.args.should_save:
            adapted = self.accelerator.unwrap_model(self.model)
            save_adapter(adapted, Path(str(output_dir or self.args.output_dir)), state_dict)

    def _save_checkpoint(self, model, trial):
        with full_disk_in_one_line(Path(str(self.args.output_dir))):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process writes the state of its own random numbers
        if self.args.should_save:
            seal(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")

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


def one_by_one(batch: dict[str, torch.Tensor], loss_mean: str) -> list[dict[str, torch.Tensor]]:
    """The texts of a batch as batches of one without padding, whose losses add up to the batch's.

    On a CPU a text alone keeps all cores busy, and what its backward pass holds is a fourth of a batch's. The mean over
    a batch's tokens needs their number; where the mean is over a step's, the Trainer knows it.
    """
    n_in_loss = (batch["labels"][:, 1:] != NOT_IN_THE_LOSS).sum()
    parts = []
    for row, n_tokens in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        part = {name: values[row : row + 1, :n_tokens] for name, values in batch.items()}
        parts.append(part | ({"num_items_in_batch": n_in_loss} if loss_mean == "batches" else {}))
    return parts


class _OrderOfEpoch(Sampler):
    def __init__(self, n_texts: int, order: Callable[[], list[int]]):
        self.n_texts, self.order = n_texts, order

    def __len__(self) -> int:
        return self.n_texts

    def __iter__(self):
        return iter(self.order())


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
    """The latest whole checkpoint."""
    return last_whole_checkpoint(folder)


def numbered(texts: list, start: int = 0) -> list[dict[str, int]]:
    """What the Trainer draws from: the collator's number of each text."""
    return [{"row": start + i} for i in range(len(texts))]


def training_arguments(
    recipe: Recipe, folder: Path, model: LensModel, has_dev: bool = False, report_to: Sequence[str] = ()
) -> TrainingArguments:
    """transformers' own arguments for a recipe, with checkpoints in `folder`."""
    on_cpu = model.device.type == "cpu"
    each_epoch = "no" if recipe.carry_over else "epoch"  # there `EpochEnds` says when an epoch ends
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1 if recipe.carry_over else recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulate,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=recipe.max_grad_norm,
        weight_decay=recipe.weight_decay,
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=recipe.autocast == "bfloat16" or (recipe.autocast == "auto" and model.dtype == torch.bfloat16),
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        save_strategy=each_epoch,
        eval_strategy=each_epoch if has_dev else "no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=list(report_to) or "none",
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        seed=recipe.seed,
    )


def training_dtype(dtype: str, device: str = "auto") -> str:
    """The dtype of a name: `auto` is bfloat16 where there is a GPU that has it, float32 elsewhere."""
    if dtype != "auto":
        return dtype
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return "bfloat16" if on_gpu and torch.cuda.is_bf16_supported() else "float32"


def pad_token(tokenizer) -> int:
    """The token that fills a batch's short texts; the end token where the tokenizer has no pad token."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
