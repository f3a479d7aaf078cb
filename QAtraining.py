"""Tune a model with LoRA on a hundred solved questions.

    python QAtraining.py
    python QAtraining.py --model gemma-3-270m --dataset xquad_in --langs or
    python QAtraining.py --recipe paper --lora_targets query_key_value
    accelerate launch --multi_gpu --num_processes 2 QAtraining.py --accumulate 2 --langs ru --split en2ru_nllb_train

The defaults are the paper's model, texts and sizes (bloomz-7b1, the 103 Odia examples of XQuAD-IN's train split), but
not its recipe in everything; --recipe paper is: docs/training.md says what differs, and why. Writes, in a folder
under results/, the adapter in PEFT's format, checkpoints/ of each epoch, train_log.csv, loss.png and metrics.json. A
run that was stopped goes on, from its last checkpoint, with the same command.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import command_line
from utils.answers.scores import is_span
from utils.command_line import (
    AUTOCASTS,
    DTYPES,
    LOSS_MEANS,
    LOSSES,
    QUANTIZATIONS,
    TRUNCATIONS,
    above_zero,
    dropout,
    not_negative,
    positive,
    rank,
    seed,
    share,
    zero_or_more,
)
from utils.data.examples import DATASETS, Example, QuestionSet, data_files, load_examples, read_questions
from utils.languages import language_code, short_code
from utils.runs import DEV_LOG, TRAIN_LOG, RunDirectory, configuration, default_output_dir, sha256_of_file
from utils.training.recipe import RECIPE, RECIPES, Recipe

if TYPE_CHECKING:
    import pandas as pd

    from utils.models.families import LensModel
    from utils.training.texts import TrainingText

QUESTION_SETS = [name for name, files in DATASETS.items() if isinstance(files, QuestionSet)]


def main(argv: Sequence[str] | None = None) -> int:
    return command_line.run(train, parse_args(argv))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's arguments; what --recipe names is the default of the flags that are not given beside it."""
    parser = make_parser()
    parser.set_defaults(**RECIPES[parser.parse_args(argv).recipe])
    return parser.parse_args(argv)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="bigscience/bloomz-7b1", help="a hub id, a folder, gemma-3-270m")
    model.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help="auto: bfloat16 where a GPU has it")
    model.add_argument(
        "--autocast", default=RECIPE.autocast, choices=AUTOCASTS, help="auto: bfloat16 where the model is in bfloat16"
    )
    model.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    model.add_argument("--quantization", default="none", choices=QUANTIZATIONS, help="of the base model; on a GPU")
    data = parser.add_argument_group("data")
    data.add_argument("--train_file", nargs="+", type=Path, metavar="FILE", help="in place of --dataset")
    data.add_argument("--dataset", default="xquad_in", choices=QUESTION_SETS)
    data.add_argument("--langs", nargs="+", default=["or"], metavar="LANG", help="several are mixed")
    data.add_argument("--split", default="train")
    data.add_argument("--limit", type=positive, metavar="N", help="the first N questions of each file")
    data.add_argument("--dev_file", type=Path, metavar="FILE", help="its loss is logged each epoch")
    data.add_argument("--max_tokens", type=positive, default=1024, metavar="N", help="longer texts lose something")
    data.add_argument("--truncation", default="context", choices=TRUNCATIONS, help="what that is: context, or the end")
    data.add_argument("--begin_text", default="", metavar="TEXT", help="characters before each text, as <s>")
    data.add_argument("--shuffle_answers", action="store_true", help="a control: each question gets another's answer")
    data.add_argument(
        "--keep_context", type=share, metavar="X", help="a control: of each context its first share alone"
    )
    loss = parser.add_argument_group("loss")
    loss.add_argument("--loss", default="all", choices=LOSSES, help="of the whole text, or of the answer")
    loss.add_argument(
        "--mask_eos",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="never learn to stop, as the paper's script had it",
    )
    loss.add_argument(
        "--loss_mean",
        default=RECIPE.loss_mean,
        choices=LOSS_MEANS,
        help="of a step: over its tokens, or over its batches of each one's own mean",
    )
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--recipe", default="ours", choices=RECIPES, help="defaults of the other flags; a flag that is given wins"
    )
    recipe.add_argument("--epochs", type=not_negative, default=RECIPE.epochs, metavar="N")
    recipe.add_argument("--learning_rate", type=above_zero, default=RECIPE.learning_rate, metavar="X")
    recipe.add_argument(
        "--batch_size", type=positive, default=RECIPE.batch_size, metavar="N", help="texts at a time on a device"
    )
    recipe.add_argument(
        "--accumulate", type=positive, default=RECIPE.accumulate, metavar="N", help="batches to an optimizer step"
    )
    recipe.add_argument(
        "--carry_over",
        action=argparse.BooleanOptionalAction,
        default=RECIPE.carry_over,
        help="batches that an epoch leaves over go into the next one's first step",
    )
    recipe.add_argument("--max_grad_norm", type=zero_or_more, default=RECIPE.max_grad_norm, metavar="X")
    recipe.add_argument("--weight_decay", type=zero_or_more, default=RECIPE.weight_decay, metavar="X")
    recipe.add_argument(
        "--lora_targets", nargs="+", metavar="NAME", help="linear maps to tune, as q_proj; without it all of a layer"
    )
    recipe.add_argument("--lora_rank", type=rank, default=RECIPE.lora_rank, metavar="N")
    recipe.add_argument("--lora_alpha", type=positive, default=RECIPE.lora_alpha, metavar="N")
    recipe.add_argument("--lora_dropout", type=dropout, default=RECIPE.lora_dropout, metavar="P")
    recipe.add_argument(
        "--gradient_checkpointing", action=argparse.BooleanOptionalAction, default=RECIPE.gradient_checkpointing
    )
    recipe.add_argument("--seed", type=seed, default=RECIPE.seed)
    parser.add_argument("--report_to", nargs="+", default=[], metavar="TRACKER", help="wandb, tensorboard ...")
    parser.add_argument("--resume", action="store_true", help="insist that there is a checkpoint to go on from")
    parser.add_argument("--output_dir", type=Path, metavar="D")
    parser.add_argument("--overwrite", action="store_true", help="remove the run that --output_dir holds")
    return parser


def train(args: argparse.Namespace) -> None:
    import torch
    from accelerate import PartialState

    from utils.models.loading import load_model
    from utils.training.cpu import keep_freed_memory
    from utils.training.trainer import lora_targets, training_dtype

    keep_freed_memory()
    # The first to ask decides whether several processes know of one another.
    PartialState(cpu=args.device == "cpu" or not torch.cuda.is_available())
    require_trackers(args.report_to)
    args.langs = [language_code(lang) for lang in args.langs]
    sources = examples_of_sources(args)
    with one_line_for_memory():
        with PartialState().main_process_first():  # the offline model is unpacked once
            model = load_model(
                args.model, None, training_dtype(args.dtype, args.device), args.device, args.quantization
            )
        texts, report = texts_of(args, model, sources)
        dev_texts = texts_of_file(args, model) if args.dev_file else []
        lora_targets(model, args.lora_targets)  # what they and the next line refuse is refused before there is a run
        Recipe.of(args).epoch_ends(len(texts), PartialState().num_processes)
        run = open_run(args, model, sources)
        if PartialState().is_main_process:
            print(report.to_string())
        if not run.finished:
            fit(args, run, model, texts, dev_texts)
            PartialState().wait_for_everyone()
            if PartialState().is_main_process:
                finish(run, report)
    if PartialState().is_main_process:
        report_loss(run)


def require_trackers(names: list[str]) -> None:
    """Raises ValueError for a tracker that transformers doesn't know, or whose library is not installed."""
    from transformers.integrations import get_available_reporting_integrations

    available = [*get_available_reporting_integrations(), "all", "none"]
    if absent := [name for name in names if name not in available]:
        raise ValueError(f"--report_to {absent[0]}: not installed, or no tracker; choose from {', '.join(available)}")


def examples_of_sources(args: argparse.Namespace) -> dict[str, list[Example]]:
    """Name of each source -> its examples, as the files have them."""
    if args.train_file:
        named = [(path.stem, read_questions(path, path.stem, "und")) for path in args.train_file]
    else:
        named = [
            (f"{args.dataset} {args.split} {short_code(lang)}", load_examples(args.dataset, [lang], args.split))
            for lang in args.langs
        ]
    sources = {name: examples[: args.limit] for name, examples in named}
    names = [name for name, _ in named]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two sources of the same name: {twice[0]}; give each once, or rename a file")
    for name, examples in sources.items():
        for example in examples:
            if len(example.answers) != 1:
                raise ValueError(
                    f"{name}: example {example.id} has {len(example.answers)} answers; training takes one each"
                )
    return sources


def texts_of(
    args: argparse.Namespace, model: LensModel, sources: dict[str, list[Example]]
) -> tuple[list[TrainingText], pd.DataFrame]:
    """(all training texts, a table that says what they are: a row a source)."""
    import numpy as np
    import pandas as pd

    from utils.training.texts import NOT_IN_THE_LOSS, shortened_context, shuffled_answers, training_text

    texts, rows = [], {}
    for name, examples in sources.items():
        if args.shuffle_answers:
            examples = shuffled_answers(examples, args.seed)
        if args.keep_context:
            examples = [shortened_context(example, args.keep_context) for example in examples]
        made = [training_text(model.tokenizer, example, **options_of_text(args)) for example in examples]
        kept = [text for text in made if text is not None]
        if not kept:
            raise ValueError(f"{name}: no example fits into --max_tokens {args.max_tokens}")
        lengths = [len(text.ids) for text in kept]
        rows[name] = {
            "n": len(kept),
            "contexts": len({text.example.context for text in kept}),
            "tokens": sum(lengths),
            "p50": int(np.median(lengths)),
            "p95": int(np.percentile(lengths, 95)),
            "max": max(lengths),
            "in the loss": sum(label != NOT_IN_THE_LOSS for text in kept for label in text.labels),
            "spans": f"{np.mean([is_span(text.example.answers, text.example.context) for text in kept]):.0%}",
            "cut": sum(text.was_cut for text in kept),
            "too long": len(made) - len(kept),
        }
        texts += kept
    return texts, pd.DataFrame(rows).T.rename_axis("source")


def options_of_text(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that `training_text` takes, by the names that it has for them."""
    names = ("loss", "mask_eos", "max_tokens", "truncation", "begin_text")
    return {name: getattr(args, name) for name in names}


def texts_of_file(args: argparse.Namespace, model: LensModel) -> list[TrainingText]:
    """--dev_file's texts, made as those of training are. Raises ValueError for one that is too long."""
    from utils.training.texts import training_text

    examples = read_questions(args.dev_file, args.dev_file.stem, "und")
    texts = []
    for example in examples:
        text = training_text(model.tokenizer, example, **options_of_text(args))
        if text is None:
            raise ValueError(
                f"--dev_file {args.dev_file}: example {example.id} does not fit into --max_tokens {args.max_tokens}"
            )
        texts.append(text)
    return texts


def open_run(args: argparse.Namespace, model: LensModel, sources: dict[str, list[Example]]) -> RunDirectory:
    from accelerate import PartialState

    from utils.models.loading import provenance
    from utils.training.trainer import last_checkpoint

    paths = args.train_file or data_files(args.dataset, args.langs, args.split)
    inputs = {
        "data_sha256": {path.name: sha256_of_file(path) for path in paths},
        "dev_sha256": args.dev_file and sha256_of_file(args.dev_file),
        "processes": PartialState().num_processes,
        **provenance(model, None),
    }
    settings = configuration("QAtraining.py", args, inputs)
    parts = [Path(args.model).name, *(name.replace(" ", "-") for name in list(sources)[:3])]
    path = args.output_dir or default_output_dir("adapter", args, *parts)
    with PartialState().main_process_first():
        is_first = PartialState().is_main_process
        run = RunDirectory(path, settings, args.overwrite and is_first, lock=is_first)
    if args.resume and not run.finished and last_checkpoint(run.path / "checkpoints") is None:
        raise ValueError(f"--resume: no whole checkpoint in {run.path / 'checkpoints'}")
    return run


def fit(
    args: argparse.Namespace,
    run: RunDirectory,
    model: LensModel,
    texts: list[TrainingText],
    dev_texts: list[TrainingText],
) -> None:
    """Train the adapter from where the run stands, and save it in the run's folder."""
    from transformers.trainer_callback import PrinterCallback

    from utils.training.checkpoints import save_adapter
    from utils.training.texts import Collator
    from utils.training.trainer import (
        Finetuning,
        Progress,
        last_checkpoint,
        numbered,
        pad_token,
        training_arguments,
        with_new_adapter,
    )

    adapted = with_new_adapter(
        model, args.lora_rank, args.lora_alpha, args.lora_dropout, args.model, args.seed, args.lora_targets
    )
    recipe = Recipe.of(args)
    if args.epochs:
        finetuning = Finetuning(
            model=adapted,
            args=training_arguments(recipe, run.path / "checkpoints", model, bool(args.dev_file), args.report_to),
            train_dataset=numbered(texts),
            eval_dataset=numbered(dev_texts, start=len(texts)) if dev_texts else None,
            data_collator=Collator([*texts, *dev_texts], pad_token(model.tokenizer)),
            texts=texts,
            recipe=recipe,
            callbacks=[Progress(run.path)],
        )
        finetuning.remove_callback(PrinterCallback)  # `Progress` says more with less
        checkpoint = last_checkpoint(run.path / "checkpoints")
        finetuning.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finetuning.save_model(str(run.path))
    else:
        save_adapter(adapted, run.path)


def finish(run: RunDirectory, report: pd.DataFrame) -> None:
    from utils.figures.tuning import draw_loss

    log, dev = (read_log(run, name) for name in (TRAIN_LOG, DEV_LOG))
    if log is not None:
        draw_loss(log, run.path / "loss.png", dev)
    run.finish({"steps": 0 if log is None else len(log), "sources": report.to_dict(orient="index")})


def read_log(run: RunDirectory, name: str) -> pd.DataFrame | None:
    """None where there were no steps, or no questions to evaluate on."""
    import pandas as pd

    return pd.read_csv(run.path / name) if (run.path / name).exists() else None


def report_loss(run: RunDirectory) -> None:
    import numpy as np

    log, dev = (read_log(run, name) for name in (TRAIN_LOG, DEV_LOG))
    if log is not None:
        first, last = log.groupby(np.ceil(log["epoch"]))["loss"].mean().iloc[[0, -1]]
        print(f"{len(log)} steps; mean loss {first:.3f} in the first epoch, {last:.3f} in the last", end="")
        print("" if dev is None else f"; on --dev_file {dev['loss'].iloc[0]:.3f} and {dev['loss'].iloc[-1]:.3f}")
        print(f"log: {run.path / TRAIN_LOG}")
    print(f"adapter: {run.path}")


@contextlib.contextmanager
def one_line_for_memory() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise ValueError(
            "the GPU's memory is full: choose a smaller --batch_size (and a larger --accumulate), "
            "--gradient_checkpointing, or --quantization 8bit or 4bit"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
