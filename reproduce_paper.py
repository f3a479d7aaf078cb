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
German), lays ours over theirs and prints how far they agree.
"""

import argparse
import dataclasses
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from utils import command_line, lens, reports, training
from utils.cpu_training import keep_freed_memory
from utils.examples import DATASETS, data_files, load_examples
from utils.figures import draw_overlay
from utils.generation import QuestionPrompt, generate
from utils.hidden_states import encode, hidden_states, last_position
from utils.languages import language_code
from utils.models import load_model, load_tokenizer
from utils.prompts import render
from utils.published import EPOCH_OF_STEP, N_PROMPTS, agreement, overlay
from utils.results import METRICS, PROJECT_DIR, RunDirectory, configuration, sha256_of_file, write_table
from utils.translations import quality

SCRIPT = "reproduce_paper.py"
STEPS = ("train", "answers", "probes", "compare", "report")
PUBLISHED_STEP = "published"
NEW_TOKENS = 100
N_CHANNELS = 208  # of the default matrix
N_MEASURED = 8  # questions that are answered together to say what an answer costs
# Steps of the recipe's batches of 4, 4 of them accumulated.
TEXTS_A_STEP, TEXTS_A_BATCH = 16, 4


@dataclass(frozen=True)
class TrainingSet:
    """What to tune on; a control has flags of its own and is `control_of` the set that has none."""

    dataset: str
    lang: str
    split: str = "train"
    control_of: str | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preset:
    """evaluation and probes: data set -> languages. n_questions: at least so many a language, whole contexts, the
    same in each; None: all. epochs: of the tuning, and those after which it is probed. flags: of every training.
    """

    model: str
    training: dict[str, TrainingSet]
    evaluation: dict[str, tuple[str, ...]]
    probes: dict[str, tuple[str, ...]]
    n_questions: int | None
    n_prompts: int
    epochs: int
    probed_epochs: tuple[int, ...]
    flags: tuple[str, ...] = ()


INDIC = ("as", "bn", "gu", "hi", "kn", "ml", "mr", "or", "pa", "ta", "te", "ur")


def translated(translator, *langs, source="en"):
    """The paper's training sets that a translator made."""
    names = {lang: f"{source}2{lang}_{translator}".removesuffix("_") for lang in langs}
    return {name: TrainingSet("xquad_in", lang, f"{name}_train") for lang, name in names.items()}


# Answers of other questions; an end token that is never learnt; contexts as short as the Russian set's are, whose
# translator left the end of most paragraphs out (507 characters on average where the English have 826).
CONTROLS = {
    "shuffled": ("--shuffle_answers",),
    "masked_end": ("--mask_eos",),
    "truncated": ("--keep_context", "0.6"),
}


def controls(name, *which):
    """Of XQuAD-IN's training set of a language: the same texts, but for one thing."""
    return {f"{name}_{control}": TrainingSet("xquad_in", name, "train", name, CONTROLS[control]) for control in which}


PRESETS = {
    "paper": Preset(
        model="bigscience/bloomz-7b1",
        training={lang: TrainingSet("xquad_in", lang) for lang in (*INDIC, "en")}
        | translated("nllb", "de", "el", "es", "et", "fi", "fr", "id", "ru", "sv", "th", "tr", "vi", "xh")
        | translated("", "de", "es", "et", "fi", "fr", "id", "sv", "xh")  # by Marian
        | translated("", "de", source="or")
        | translated("", "ms", source="en2de")
        | controls("or", *CONTROLS)
        | controls("en", *CONTROLS),
        evaluation={
            "xquad_in": (*INDIC, "en"),
            "xquad": ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh"),
        },
        probes={"xquad_in": ("or",), "xquad": ("de", "en"), "flores200": ("or", "de", "hi")},
        n_questions=None,
        n_prompts=150,
        epochs=10,
        probed_epochs=(2, 4, 6, 8, 10),
    ),
    "small": Preset(
        model="gemma-3-270m",
        training={"or": TrainingSet("xquad_in", "or")}
        | translated("nllb", "ru", "de")
        | {"en": TrainingSet("xquad_in", "en")}
        | controls("en", "masked_end", "shuffled", "truncated"),
        evaluation={"xquad_in": ("or", "hi", "te", "bn", "en")},
        probes={"xquad_in": ("or", "en")},
        n_questions=120,
        n_prompts=60,
        epochs=10,
        probed_epochs=(2, 6, 10),
        flags=("--dtype", "bfloat16", "--no-gradient_checkpointing"),  # twice as fast on a CPU
    ),
    "smoke": Preset(
        model="gemma-3-270m",
        training={"or": TrainingSet("sample_qa", "or"), "de": TrainingSet("sample_qa", "de")},
        evaluation={"sample_qa": ("or", "en")},
        probes={"sample_qa": ("or",)},
        n_questions=6,
        n_prompts=6,
        epochs=2,
        probed_epochs=(1, 2),
    ),
}


@dataclass(frozen=True)
class Command:
    """One command: its step, what it makes, the folder that says whether it is finished, and those it needs.

    kind: train, answer or probe, and how many examples; None where a command costs next to nothing.
    """

    step: str
    name: str
    argv: list[str]
    folder: Path
    needs: tuple[Path, ...] = ()
    kind: str | None = None
    examples: tuple = ()
    repeats: int = 1
    dataset: str | None = None

    @property
    def finished(self) -> bool:
        return (self.folder / METRICS).exists()

    @property
    def line(self) -> str:
        return shlex.join(["python", *self.argv])


def main(argv=None):
    return command_line.run(reproduce, parse_args(argv))


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", choices=PRESETS)
    parser.add_argument("--model", help="in place of the preset's")
    parser.add_argument(
        "--steps",
        nargs="+",
        default=list(STEPS),
        choices=(*STEPS, PUBLISHED_STEP),
        metavar="STEP",
        help=f"{' '.join(STEPS)}; or {PUBLISHED_STEP} alone",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands and what they cost; run none")
    parser.add_argument("--output_dir", type=Path, metavar="D")
    return parser.parse_args(argv)


def reproduce(args):
    if PUBLISHED_STEP in args.steps:
        return reproduce_published(args)
    preset = PRESETS[args.preset]
    preset = dataclasses.replace(preset, model=args.model or preset.model)
    folder = args.output_dir or PROJECT_DIR / "results" / f"reproduce-{args.preset}-{Path(preset.model).name}"
    planned = plan_commands(preset, folder)
    commands = [command for command in planned if command.step in args.steps]
    if args.dry_run:
        return print_costs(preset, commands)
    RunDirectory(folder, describe(args, preset))  # refuses the runs of another experiment
    failures = run_all(commands)
    if "report" in args.steps:
        missing = missing_of(planned, failures)
        print(f"report: {reports.write_report(folder, experiment_of(preset), quality_of(preset), missing)}")
    if failures:
        raise ValueError(f"{len(failures)} of {len(commands)} commands failed; the first: {failures[0]['command']}")


def reproduce_published(args):
    """Base first: a model of another size is refused before anything is trained."""
    if args.steps != [PUBLISHED_STEP]:
        raise ValueError(f"--steps {' '.join(args.steps)}: {PUBLISHED_STEP} has commands of its own; ask for it alone")
    preset = dataclasses.replace(PRESETS["paper"], model=args.model or PRESETS["paper"].model)
    folder = args.output_dir or PROJECT_DIR / "results" / f"published-{Path(preset.model).name}"
    commands, runs = published_commands(preset, folder)
    if args.dry_run:
        return print_costs(preset, commands)
    RunDirectory(folder, configuration(SCRIPT, argparse.Namespace(steps=args.steps, model=preset.model), {}))
    n_base = len(runs[0])
    failures = run_all(commands[:n_base])
    if not failures:
        overlay({0: runs[0]})
        failures = run_all(commands[n_base:])
    if failures:
        raise ValueError(f"{len(failures)} of {len(commands)} commands failed; the first: {failures[0]['command']}")
    table = overlay(runs)
    agreed = agreement(table)
    for name, rows in (("overlay.csv", table), ("agreement.csv", agreed)):
        write_table(folder / name, rows)
    figures = draw_overlay(table, folder / "figures", f"{Path(preset.model).name} tuned on 103 German examples")
    print(agreed.round(3).to_string(index=False))
    print(f"distance from the published curves, 0 to 1: {agreed['total_variation'].mean():.3f} on average")
    print(f"tables: {folder}", *figures, sep="\n")


def describe(args, preset):
    """The experiment's configuration: what was asked but for the steps, and the checksums of all data."""
    where = [(of.dataset, [of.lang], of.split) for of in preset.training.values()]
    for sets in (preset.evaluation, preset.probes):
        where += [(dataset, list(langs), split_of(dataset)) for dataset, langs in sets.items()]
    files = {path.name: sha256_of_file(path) for dataset, *which in where for path in data_files(dataset, *which)}
    inputs = {"data_sha256": files, "preset": dataclasses.asdict(preset)}
    return configuration(SCRIPT, argparse.Namespace(preset=args.preset, model=preset.model), inputs)


def experiment_of(preset):
    """What the report needs to know of a preset: languages as FLORES codes."""
    return {
        "model": preset.model,
        "training": {name: (language_code(of.lang), of.split) for name, of in preset.training.items()},
        "control_of": {name: of.control_of for name, of in preset.training.items() if of.control_of},
        "pairs": pairs_of(preset),
        "evaluation": {name: [language_code(lang) for lang in langs] for name, langs in preset.evaluation.items()},
        "probes": {name: [language_code(lang) for lang in langs] for name, langs in preset.probes.items()},
        "probed_epochs": list(preset.probed_epochs),
    }


def pairs_of(preset):
    """(name, the training set to compare it with): each control's own, and NLLB's translation beside Marian's."""
    marian = {name: name.replace("_nllb", "") for name in preset.training if "_nllb" in name}
    return [
        *((name, other) for name, other in marian.items() if other in preset.training),
        *((name, of.control_of) for name, of in preset.training.items() if of.control_of),
    ]


def quality_of(preset):
    """The quality of the training sets; a control is made of another one's texts."""
    return quality({name: (of.dataset, of.lang, of.split) for name, of in preset.training.items() if not of.control_of})


def missing_of(planned, failures):
    """What the report must do without: the step and name of each command that is not finished, and why."""
    reasons = {failure["command"]: failure["reason"] for failure in failures}
    return [
        {"step": command.step, "name": command.name, "reason": reasons.get(command.line, "not begun, or stopped")}
        for command in planned
        if not command.finished
    ]


# --- the plan --------------------------------------------------------------------------------------------------


def plan_commands(preset, folder):
    """Every command, in an order in which each finds what it needs: the base, then one training set after another.

    Raises ValueError where data is missing.
    """
    questions, prompts = questions_of(preset), prompts_of(preset)
    commands = [
        *answer_commands(preset, folder, "base", (), questions),
        *probe_commands(preset, folder, "base", (), prompts),
    ]
    for name, of in preset.training.items():
        examples = load_examples(of.dataset, [of.lang], of.split)
        adapter = folder / "adapters" / name
        argv = ["QAtraining.py", "--model", preset.model, "--dataset", of.dataset, "--langs", of.lang]
        argv += ["--split", of.split, *of.flags, *preset.flags, "--epochs", str(preset.epochs)]
        argv += ["--output_dir", str(adapter)]
        commands.append(Command("train", name, argv, adapter, (), "train", tuple(examples), preset.epochs))
        tuned = answer_commands(preset, folder, name, (adapter,), questions)
        n_steps = steps_an_epoch(len(examples))
        probed = [
            command
            for epoch in preset.probed_epochs
            for command in probe_commands(
                preset,
                folder,
                f"{name}-epoch-{epoch}",
                (adapter / "checkpoints" / f"checkpoint-{epoch * n_steps}", adapter),
                prompts,
            )
        ]
        for command in (*tuned, *probed):
            base = command.folder.with_name(f"base-{command.dataset}")
            commands += [
                command,
                comparison(base, command.folder, folder / "changes" / f"{command.step}-{command.folder.name}"),
            ]
    for name, other in pairs_of(preset):
        for dataset in preset.evaluation:
            before, after = (folder / "answers" / f"{one}-{dataset}" for one in (other, name))
            commands.append(comparison(before, after, folder / "changes" / f"pairs-{other}-{name}-{dataset}"))
    return commands


# The curves say no more of their training set than that it is German and has 103 examples; this one is the small
# preset's too. Their end token was not in the loss. Their German prompts have another file's order.
PUBLISHED_TRAINING = TrainingSet("xquad_in", "de", "en2de_nllb_train", flags=("--mask_eos",))
PUBLISHED_PROMPTS = {"xquad_in": ("or", "en"), "xquad": ("de",)}


def published_commands(preset, folder):
    """(the commands, the base's probes first; epoch -> folders of its probes)."""
    of = PUBLISHED_TRAINING
    examples = load_examples(of.dataset, [of.lang], of.split)
    adapter = folder / "adapter"
    argv = ["QAtraining.py", "--model", preset.model, "--dataset", of.dataset, "--langs", of.lang, "--split", of.split]
    argv += [*of.flags, "--epochs", str(preset.epochs), "--output_dir", str(adapter)]
    train = Command("train", "German", argv, adapter, (), "train", tuple(examples), preset.epochs)
    probes, runs = [], {}
    for epoch in EPOCH_OF_STEP.values():
        checkpoint = adapter / "checkpoints" / f"checkpoint-{epoch * steps_an_epoch(len(examples))}"
        for dataset, langs in PUBLISHED_PROMPTS.items():
            out = folder / "probes" / f"epoch-{epoch}-{dataset}"
            argv = ["probe_logit_lens.py", "--model", preset.model, *(["--adapter", str(checkpoint)] if epoch else [])]
            argv += ["--dataset", dataset, "--langs", *langs, "--shuffle", "--limit", str(N_PROMPTS)]
            argv += ["--token_languages", "langid-hard", "--output_dir", str(out)]
            needs = (adapter,) if epoch else ()
            prompts = tuple(load_examples(dataset, list(langs), "test", N_PROMPTS))
            probes.append(Command("probes", f"epoch {epoch} on {dataset}", argv, out, needs, "probe", prompts))
            runs.setdefault(epoch, []).append(out)
    n_base = len(runs[0])
    return [*probes[:n_base], train, *probes[n_base:]], runs


def steps_an_epoch(n_examples):
    """Optimizer steps: an epoch's last one may be of fewer texts."""
    n_batches = -(-n_examples // TEXTS_A_BATCH)
    return -(-n_batches // (TEXTS_A_STEP // TEXTS_A_BATCH))


def questions_of(preset):
    """data set -> (languages, --limit or None, the questions)."""
    found = {}
    for dataset, langs in preset.evaluation.items():
        limit = whole_contexts(dataset, load_examples(dataset, list(langs), "test"), preset.n_questions)
        found[dataset] = (langs, limit, tuple(load_examples(dataset, list(langs), "test", limit)))
    return found


def prompts_of(preset):
    """data set -> (languages, --limit, the prompts' examples)."""
    return {
        dataset: (
            langs,
            preset.n_prompts,
            tuple(load_examples(dataset, list(langs), split_of(dataset), preset.n_prompts)),
        )
        for dataset, langs in preset.probes.items()
    }


def split_of(dataset):
    """What is evaluated on: a set's last split, test or FLORES-200's devtest."""
    return DATASETS[dataset].splits[-1]


def answer_commands(preset, folder, name, adapter, examples):
    return commands_of("answers", "QAinference.py", "answer", preset, folder, name, adapter, examples)


def probe_commands(preset, folder, name, adapter, examples):
    return commands_of("probes", "probe_logit_lens.py", "probe", preset, folder, name, adapter, examples)


def commands_of(step, script, kind, preset, folder, name, adapter, examples_of_set):
    """A command a data set. adapter: the folder to load and the training run that it is part of; () for the base."""
    commands = []
    for dataset, (langs, limit, examples) in examples_of_set.items():
        out = folder / step / f"{name}-{dataset}"
        argv = [script, "--model", preset.model, *(["--adapter", str(adapter[0])] if adapter else [])]
        argv += ["--dataset", dataset, "--split", split_of(dataset), "--langs", *langs]
        argv += [*(["--limit", str(limit)] if limit else []), "--output_dir", str(out)]
        commands.append(Command(step, f"{name} on {dataset}", argv, out, adapter[-1:], kind, examples, dataset=dataset))
    return commands


def comparison(before, after, out):
    argv = ["compare_runs.py", str(before), str(after), "--output_dir", str(out)]
    return Command("compare", out.name, argv, out, (before, after))


def whole_contexts(dataset, examples, n):
    """The least limit of at least n questions a language that splits no context; None for all.

    Raises ValueError where the languages have not the same questions in the same order.
    """
    of_lang = {}
    for example in examples:
        of_lang.setdefault(example.lang, []).append(example)
    first, *others = of_lang.values()
    for other in others:
        if [example.id for example in other] != [example.id for example in first]:
            raise ValueError(f"{dataset}: {other[0].lang} has not the same questions as {first[0].lang}")
    if n is None or n >= len(first):
        return None
    return next(
        (
            k
            for k in range(n, len(first))
            if all(of[k].context not in {example.context for example in of[:k]} for of in of_lang.values())
        ),
        None,
    )


# --- running ---------------------------------------------------------------------------------------------------


def run_all(commands):
    """Run what is not finished; returns the command of each that failed, and the reason."""
    failures = []
    for number, command in enumerate(commands, 1):
        title = f"[{number}/{len(commands)}] {command.step}: {command.name}"
        if command.finished:
            print(f"{title}: finished before")
            continue
        if missing := [path for path in command.needs if not (path / METRICS).exists()]:
            reason = f"needs {missing[0].parent.name}/{missing[0].name}, which is not there"
            failures.append({"command": command.line, "reason": reason})
            print(f"{title}: {reason}")
            continue
        started = time.perf_counter()
        print(title, flush=True)
        # On a terminal the command shows its own bar; elsewhere its error line goes into the report.
        errors = None if sys.stderr.isatty() else subprocess.PIPE
        argv = [sys.executable, *command.argv]
        done = subprocess.run(argv, cwd=PROJECT_DIR, stdout=subprocess.DEVNULL, stderr=errors, text=True)
        if done.returncode == 130:
            raise KeyboardInterrupt
        if done.returncode or not command.finished:
            reason = ((done.stderr or "").strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            failures.append({"command": command.line, "reason": reason})
            print(f"{title}: failed: {reason}")
        else:
            print(f"{title}: {time.perf_counter() - started:.0f} s")
    return failures


# --- what it costs ---------------------------------------------------------------------------------------------


def print_costs(preset, commands):
    """Every command with its tokens and hours, the hours from a few examples on this machine."""
    try:
        tokenizer, why = load_tokenizer(preset.model), None
        seconds = measure(preset, commands)
    except ValueError as error:
        tokenizer, seconds, why = None, {}, str(error)
    to_run = 0.0
    for command in commands:
        tokens, hours = "-", "-"
        if command.kind and tokenizer:
            n_tokens = command.repeats * sum(len(encode(tokenizer, render(example))) for example in command.examples)
            spent = n_tokens * seconds[command.kind] / 3600
            to_run += 0 if command.finished else spent
            tokens, hours = f"{n_tokens:,}", f"{spent:.2f}"
        state = "finished" if command.finished else ""
        print(f"{command.step:8} {state:8} {tokens:>12} tokens {hours:>7} h  {command.line}")
    if why:
        print(f"hours and tokens are not known here: {why}")
    else:
        print(f"still to run: about {to_run:.1f} hours on this machine, by a few examples")


def measure(preset, commands):
    """Seconds a prompt token for each kind of command: training, answering (its new tokens included), probing."""
    keep_freed_memory()
    examples = next(command.examples for command in commands if command.kind in ("answer", "train"))[:N_MEASURED]
    example = examples[0]
    model = load_model(preset.model)
    position = last_position(model, render(example))
    prompts = [QuestionPrompt(encode(model.tokenizer, render(e)), e.context, e.id) for e in examples]
    matrix = torch.rand(model.n_tokens, N_CHANNELS, device=model.device)
    lens.read(model, [position], hidden_states(model, [position]), matrix)  # the first pass is slower
    seconds = {
        "probe": timed(lambda: lens.read(model, [position], hidden_states(model, [position]), matrix)),
        "answer": timed(lambda: generate(model, prompts, max_new_tokens=NEW_TOKENS)) / len(prompts),
        "train": timed(step_of_training(preset, example)),
    }
    return {kind: spent / len(position.ids) for kind, spent in seconds.items()}


def step_of_training(preset, example):
    """The forward and backward pass of one text, as the preset's flags have it."""
    dtype = preset.flags[preset.flags.index("--dtype") + 1] if "--dtype" in preset.flags else "auto"
    model = load_model(preset.model, None, dtype)
    adapted = training.with_new_adapter(model, 64, 16, 0.1, preset.model, 0).train()
    if "--no-gradient_checkpointing" not in preset.flags:
        adapted.enable_input_require_grads()
        adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = training.Collator([training.training_text(model.tokenizer, example)], 0)([{"row": 0}])
    batch = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "rows"}
    return lambda: adapted(**batch).loss.backward()


def timed(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
