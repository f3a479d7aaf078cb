"""Runs the paper's experiments with the other scripts, one after the other, and reports what came out.

    python reproduce_paper.py --preset small --dry_run
    python reproduce_paper.py --preset small
    python reproduce_paper.py --preset paper
    python reproduce_paper.py --steps published

The model is tuned on each training set; base and tuned models answer the same questions in every language and are
probed at several epochs; each tuned run is compared with the base's, example by example. Everything lies in one
folder under results/, with REPORT.md on top. What is finished is not run again, what was stopped goes on, and what
fails is named and does not stop the rest. --dry_run prints every command with its tokens and hours. The step
`published`, which is asked for by name, makes the curves that the paper's authors published (bloomz-7b1, tuned on
German) with the recipe that the paper's authors had, lays ours over theirs and says how far they agree, and which parts
of that recipe are inferred.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils import command_line, processes
from utils.data.examples import data_files
from utils.experiments.plan import Command, missing_of, plan_commands, published_commands
from utils.experiments.presets import PRESETS, Experiment, Preset, split_of, with_nulls
from utils.runs import METRICS, PROJECT_DIR, RunDirectory, configuration, sha256_of_file, write_table

if TYPE_CHECKING:
    import pandas as pd

SCRIPT = "reproduce_paper.py"
STEPS = ("train", "answers", "probes", "compare", "report")
PUBLISHED_STEP = "published"


def main(argv: Sequence[str] | None = None) -> int:
    return command_line.run(reproduce, parse_args(argv))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", choices=PRESETS)
    parser.add_argument("--model", help="in place of the preset's")
    parser.add_argument(
        "--nulls", type=int, default=0, metavar="N", help="N more trainings, on shuffled answers, to compare falls with"
    )
    parser.add_argument(
        "--steps",
        nargs="+",
        default=list(STEPS),
        choices=(*STEPS, PUBLISHED_STEP),
        metavar="STEP",
        help=f"{' '.join(STEPS)}; or {PUBLISHED_STEP} alone",
    )
    parser.add_argument(
        "--lora_targets", nargs="+", metavar="NAME", help=f"of {PUBLISHED_STEP}'s training, in place of the recipe's"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands and what they cost; run none")
    parser.add_argument(
        "--join",
        type=Path,
        metavar="DIR",
        help="a report of the same experiment, from another machine: for the sets of which more has run there",
    )
    parser.add_argument("--output_dir", type=Path, metavar="D")
    return parser.parse_args(argv)


def reproduce(args: argparse.Namespace) -> None:
    from utils.experiments import report
    from utils.experiments.costs import print_costs
    from utils.experiments.elsewhere import Elsewhere

    if PUBLISHED_STEP in args.steps:
        return reproduce_published(args)
    if args.lora_targets:
        raise ValueError(f"--lora_targets is for --steps {PUBLISHED_STEP} alone")
    if args.join and "report" not in args.steps:
        raise ValueError(f"--join {args.join}: is for the report, and --steps has none")
    preset = PRESETS[args.preset]
    preset = with_nulls(dataclasses.replace(preset, model=args.model or preset.model), args.nulls)
    folder = args.output_dir or PROJECT_DIR / "results" / f"reproduce-{args.preset}-{Path(preset.model).name}"
    planned = plan_commands(preset, folder)
    commands = [command for command in planned if command.step in args.steps]
    if args.dry_run:
        return print_costs(preset, commands)
    description = describe(args, preset)
    elsewhere = Elsewhere.read(args.join, description) if args.join else None
    RunDirectory(folder, description)  # refuses the runs of another experiment
    failures = run_all(commands, folder)
    if "report" in args.steps:
        missing = missing_of(planned, failures)
        path = report.write_report(Experiment.of(preset, folder), quality_of(preset), missing, elsewhere)
        print(f"report: {path}")
    if failures:
        raise ValueError(f"{len(failures)} of {len(commands)} commands failed; the first: {failures[0]['command']}")


def reproduce_published(args: argparse.Namespace) -> None:
    """Base first: a model of another size is refused before anything is trained."""
    from utils.experiments.costs import print_costs
    from utils.experiments.published_report import write_published_report
    from utils.figures.tuning import draw_overlay
    from utils.lens.published import agreement, overlay
    from utils.models.loading import model_checksums

    if args.steps != [PUBLISHED_STEP]:
        raise ValueError(f"--steps {' '.join(args.steps)}: {PUBLISHED_STEP} has commands of its own; ask for it alone")
    preset = dataclasses.replace(PRESETS["paper"], model=args.model or PRESETS["paper"].model)
    name = "-".join(["published", Path(preset.model).name, *(args.lora_targets or [])])
    folder = args.output_dir or PROJECT_DIR / "results" / name
    commands, runs = published_commands(preset, folder, args.lora_targets)
    if args.dry_run:
        return print_costs(preset, commands)
    asked = argparse.Namespace(steps=args.steps, model=preset.model, lora_targets=args.lora_targets)
    RunDirectory(folder, configuration(SCRIPT, asked, {"model_sha256": model_checksums(preset.model)}))
    n_base = len(runs[0])
    failures = run_all(commands[:n_base], folder)
    if not failures:
        overlay({0: runs[0]})
        failures = run_all(commands[n_base:], folder)
    if failures:
        raise ValueError(f"{len(failures)} of {len(commands)} commands failed; the first: {failures[0]['command']}")
    table = overlay(runs)
    agreed = agreement(table)
    for name, rows in (("overlay.csv", table), ("agreement.csv", agreed)):
        write_table(folder / name, rows)
    figures = draw_overlay(table, folder / "figures", f"{Path(preset.model).name} tuned on 103 German examples")
    print(agreed.round(3).to_string(index=False))
    print(f"distance from the published curves, 0 to 1: {agreed['total_variation'].mean():.3f} on average")
    print(f"report: {write_published_report(folder, agreed, commands[n_base], figures, args.lora_targets)}")
    print(f"tables: {folder}", *figures, sep="\n")


def describe(args: argparse.Namespace, preset: Preset) -> dict:
    """The experiment's configuration: what was asked but for the steps, and the checksums of all data
    and of the model."""
    from utils.models.loading import model_checksums

    read = [
        (training_set.dataset, [training_set.lang], training_set.split) for training_set in preset.training.values()
    ]
    for sets in (preset.evaluation, preset.probes):
        read += [(dataset, list(langs), split_of(dataset)) for dataset, langs in sets.items()]
    paths = [path for dataset, langs, split in read for path in data_files(dataset, langs, split)]
    files = {path.name: sha256_of_file(path) for path in paths}
    checksums = {"data_sha256": files, "model_sha256": model_checksums(preset.model)}
    inputs = {**checksums, "preset": dataclasses.asdict(preset)}
    return configuration(SCRIPT, argparse.Namespace(preset=args.preset, model=preset.model), inputs)


def quality_of(preset: Preset) -> pd.DataFrame:
    """The quality of the training sets; a control, or another seed, is made of another one's texts."""
    from utils.experiments.translations import quality

    return quality(
        {
            name: (training_set.dataset, training_set.lang, training_set.split)
            for name, training_set in preset.training.items()
            if not training_set.control_of and not training_set.repeat_of
        }
    )


def run_all(commands: list[Command], folder: Path) -> list[dict]:
    """Run what is not finished; returns the command of each that failed, and the reason.

    Raises ValueError, before any report, for a folder that holds another command's finished run.
    """
    from utils.experiments.ledger import Ledger

    ledger = Ledger(folder)
    failures = []
    outdated: set[Path] = set()  # made of what has changed since, and not made anew: no report may take them
    for number, command in enumerate(commands, 1):
        title = f"[{number}/{len(commands)}] {command.step}: {command.name}"
        not_remade = [path for path in command.needs if path in outdated]
        if not not_remade and ledger.is_done(command):
            print(f"{title}: finished before")
            continue
        if missing := not_remade or [path for path in command.needs if not (path / METRICS).exists()]:
            reason = f"needs {missing[0].parent.name}/{missing[0].name}, which is not there"
            failures.append({"command": command.line, "reason": reason})
            print(f"{title}: {reason}")
            if not_remade and ledger.is_own(command):
                outdated.add(command.folder)
                (command.folder / METRICS).unlink(missing_ok=True)
            continue
        started = time.perf_counter()
        print(title, flush=True)
        stale = ledger.is_stale(command)
        failure = failure_of(command, anew=stale)
        if failure and command.finished:
            raise ValueError(f"{command.folder}: holds another run than {command.line}: {failure}; move it away")
        if failure:
            failures.append({"command": command.line, "reason": failure})
            print(f"{title}: failed: {failure}")
            if stale:
                outdated.add(command.folder)
        else:
            ledger.record(command)
            print(f"{title}: {time.perf_counter() - started:.0f} s")
    return failures


def failure_of(command: Command, anew: bool) -> str | None:
    """Run a command; why it failed, or None. anew: what it read has changed since its own run was finished."""
    if anew:
        (command.folder / METRICS).unlink(missing_ok=True)  # if this fails, no report may take what is there
    # On a terminal the command shows its own bar; elsewhere its error line goes into the report.
    errors = None if sys.stderr.isatty() else subprocess.PIPE
    argv = [sys.executable, *command.argv, *(["--overwrite"] if anew else [])]
    done = subprocess.run(
        argv,
        cwd=PROJECT_DIR,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        text=True,
        preexec_fn=processes.end_with_parent,
    )
    if done.returncode == command_line.INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode == command_line.TERMINATED:
        raise command_line.Terminated
    if done.returncode or not command.finished:
        return ((done.stderr or "").strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return None


if __name__ == "__main__":
    sys.exit(main())
