"""An experiment's commands, in an order in which each finds what it needs."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.data.examples import Example, load_examples
from utils.experiments.presets import BASE, Experiment, Preset, TrainingSet, is_finished, split_of
from utils.lens.published import EPOCH_OF_STEP, N_PROMPTS
from utils.training.recipe import RECIPE, Recipe


@dataclass(frozen=True)
class Command:
    """One command: its step, what it makes, the folder that says whether it is finished, and those it needs.

    kind: train, answer or probe, and how many examples; None where a command costs next to nothing. training: what the
    model is tuned on, or BASE; None for a comparison.
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
    training: str | None = None

    @property
    def finished(self) -> bool:
        return is_finished(self.folder)

    @property
    def line(self) -> str:
        return shlex.join(["python", *self.argv])


def missing_of(planned: list[Command], failures: list[dict]) -> list[dict]:
    """What the report must do without: step, name and training of each command that is not finished, and the reason.

    A comparison of runs that are not there has that for a reason, whichever they are: they are named themselves.
    """
    reasons = {failure["command"]: failure["reason"] for failure in failures}
    reasons |= {
        command.line: "a run of it is not there"
        for command in planned
        if command.step == "compare" and not all(map(is_finished, command.needs))
    }
    return [
        {
            "step": command.step,
            "name": command.name,
            "training": command.training,
            "reason": reasons.get(command.line, "not begun, or stopped"),
        }
        for command in planned
        if not command.finished or command.line in reasons
    ]


def plan_commands(preset: Preset, folder: Path) -> list[Command]:
    """Every command, in an order in which each finds what it needs: the base, then one training set after another.

    Raises ValueError where data is missing.
    """
    experiment = Experiment.of(preset, folder)
    questions, prompts = questions_of(preset), prompts_of(preset)
    commands = [*answer_commands(experiment, BASE, questions), *probe_commands(experiment, BASE, 0, None, prompts)]
    for name, training_set in preset.training.items():
        examples = load_examples(training_set.dataset, [training_set.lang], training_set.split)
        commands.append(training_command(preset, training_set, name, experiment.adapter(name), examples, preset.flags))
        tuned = answer_commands(experiment, name, questions)
        for epoch in preset.epochs_probed(training_set):
            checkpoint = experiment.checkpoint(name, epoch * steps_an_epoch(len(examples)))
            tuned += probe_commands(experiment, name, epoch, checkpoint, prompts)
        for command in tuned:
            base = command.folder.with_name(f"{BASE}-{command.dataset}")
            commands += [command, comparison(base, command.folder, experiment.changes(command.folder))]
    commands += comparisons_beside_nulls(experiment)
    for name, against in experiment.pairs:
        for dataset in experiment.evaluation:
            before, after = (experiment.answers(one, dataset) for one in (against, name))
            commands.append(comparison(before, after, experiment.changes_of_pair(name, against, dataset)))
    return commands


def training_command(
    preset: Preset,
    training_set: TrainingSet,
    name: str,
    adapter: Path,
    examples: list[Example],
    flags: Sequence[str] = (),
) -> Command:
    argv = ["QAtraining.py", "--model", preset.model, "--dataset", training_set.dataset]
    argv += ["--langs", training_set.lang, "--split", training_set.split]
    argv += [*training_set.flags, *flags, "--epochs", str(preset.epochs), "--output_dir", str(adapter)]
    return Command("train", name, argv, adapter, (), "train", tuple(examples), preset.epochs, training=name)


# Of the training set behind the published curves we know that it is German and has 103 examples; we take the set that
# NLLB translated, as the small preset does. The German prompts come from a file that has another order.
PUBLISHED_TRAINING = TrainingSet("xquad_in", "de", "en2de_nllb_train", flags=("--recipe", "paper"))
PUBLISHED_PROMPTS = {"xquad_in": ("or", "en"), "xquad": ("de",)}


def published_commands(
    preset: Preset, folder: Path, lora_targets: Sequence[str] | None = None
) -> tuple[list[Command], dict[int, list[Path]]]:
    """(the commands, the base's probes first; optimizer step -> folders of its probes).

    lora_targets: in place of the recipe's. Raises ValueError where the training would not stand at the published steps.
    """
    training_set = PUBLISHED_TRAINING
    examples = load_examples(training_set.dataset, [training_set.lang], training_set.split)
    ends = Recipe(carry_over=True, epochs=preset.epochs).epoch_ends(len(examples))
    if absent := sorted(set(EPOCH_OF_STEP) - {0, *ends}):
        raise ValueError(
            f"{training_set.split}: {len(examples)} examples have no checkpoint at the published step {absent[0]}; "
            "the authors' set has 103"
        )
    adapter = folder / "adapter"
    flags = ("--lora_targets", *lora_targets) if lora_targets else ()
    train = training_command(preset, training_set, "German", adapter, examples, flags)
    probes: list[Command] = []
    runs: dict[int, list[Path]] = {}
    for step, epoch in EPOCH_OF_STEP.items():
        checkpoint = adapter / "checkpoints" / f"checkpoint-{step}"
        for dataset, langs in PUBLISHED_PROMPTS.items():
            out = folder / "probes" / f"step-{step}-{dataset}"
            argv = ["probe_logit_lens.py", "--model", preset.model, *(["--adapter", str(checkpoint)] if step else [])]
            argv += ["--dataset", dataset, "--langs", *langs, "--shuffle", "--limit", str(N_PROMPTS)]
            argv += ["--token_languages", "langid-hard", "--grid", "0", "--output_dir", str(out)]
            needs = (adapter,) if step else ()
            prompts = tuple(load_examples(dataset, list(langs), "test", N_PROMPTS))
            name = f"step {step}, epoch {epoch}, on {dataset}"
            probes.append(Command("probes", name, argv, out, needs, "probe", prompts))
            runs.setdefault(step, []).append(out)
    n_base = len(runs[0])
    return [*probes[:n_base], train, *probes[n_base:]], runs


def steps_an_epoch(n_examples: int) -> int:
    """Optimizer steps: an epoch's last one may be of fewer texts."""
    n_batches = -(-n_examples // RECIPE.batch_size)
    return -(-n_batches // RECIPE.accumulate)


def questions_of(preset: Preset) -> dict:
    """data set -> (languages, --limit or None, the questions)."""
    found = {}
    for dataset, langs in preset.evaluation.items():
        limit = whole_contexts(dataset, load_examples(dataset, list(langs), "test"), preset.n_questions)
        found[dataset] = (langs, limit, tuple(load_examples(dataset, list(langs), "test", limit)))
    return found


def prompts_of(preset: Preset) -> dict:
    """data set -> (languages, --limit, the prompts' examples)."""
    return {
        dataset: (
            langs,
            preset.n_prompts,
            tuple(load_examples(dataset, list(langs), split_of(dataset), preset.n_prompts)),
        )
        for dataset, langs in preset.probes.items()
    }


def answer_commands(experiment: Experiment, name: str, questions: dict) -> list[Command]:
    """A model's answers, a command a data set."""
    adapters = () if name == BASE else (experiment.adapter(name),)
    outs = {dataset: experiment.answers(name, dataset) for dataset in questions}
    return _commands_of("answers", "QAinference.py", "answer", experiment.model, name, name, adapters, questions, outs)


def probe_commands(
    experiment: Experiment, name: str, epoch: int, checkpoint: Path | None, prompts: dict
) -> list[Command]:
    """A model's probes after an epoch, a command a data set; at epoch 0, of the base."""
    adapters = (checkpoint, experiment.adapter(name)) if checkpoint else ()
    title = f"{name}-epoch-{epoch}" if epoch else name
    outs = {dataset: experiment.probe(name, epoch, dataset) for dataset in prompts}
    return _commands_of(
        "probes", "probe_logit_lens.py", "probe", experiment.model, name, title, adapters, prompts, outs
    )


def _commands_of(step, script, kind, model, training, title, adapters, examples_of_set, outs) -> list[Command]:
    """adapters: the folder to load and the training run that it is part of; () for the base."""
    commands = []
    for dataset, (langs, limit, examples) in examples_of_set.items():
        argv = [script, "--model", model, *(["--adapter", str(adapters[0])] if adapters else [])]
        argv += ["--dataset", dataset, "--split", split_of(dataset), "--langs", *langs]
        # Dozens of probes are compared by their tables; a grid would cost more than each of them.
        argv += ["--grid", "0"] if kind == "probe" else []
        argv += [*(["--limit", str(limit)] if limit else []), "--output_dir", str(outs[dataset])]
        of_set = {"kind": kind, "examples": examples, "dataset": dataset, "training": training}
        commands.append(Command(step, f"{title} on {dataset}", argv, outs[dataset], adapters[-1:], **of_set))
    return commands


def comparison(before: Path, after: Path, out: Path, nulls: Sequence[Path] = ()) -> Command:
    argv = ["compare_runs.py", str(before), str(after), *(["--null", *map(str, nulls)] if nulls else [])]
    return Command("compare", out.name, [*argv, "--output_dir", str(out)], out, (before, after, *nulls))


def comparisons_beside_nulls(experiment: Experiment) -> list[Command]:
    """What each tuned model's answers, and its probe after the last epoch, change beyond the null runs' changes."""

    def answers(name: str, dataset: str) -> Path:
        return experiment.answers(name, dataset)

    def last_probe(name: str, dataset: str) -> Path:
        return experiment.probe(name, 0 if name == BASE else experiment.last_epoch, dataset)

    return [
        comparison(
            run(BASE, dataset),
            run(name, dataset),
            experiment.changes_beside_nulls(run(name, dataset)),
            [run(null, dataset) for null in nulls],
        )
        for name in experiment.training
        if (nulls := experiment.nulls_of(name))
        for run, datasets in ((answers, experiment.evaluation), (last_probe, experiment.probes))
        for dataset in datasets
    ]


def whole_contexts(dataset: str, examples: list[Example], n: int | None) -> int | None:
    """The least limit of at least n questions a language that splits no context; None for all.

    Raises ValueError where the languages have not the same questions in the same order.
    """
    of_lang: dict[str, list[Example]] = {}
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
            if all(
                questions[k].context not in {example.context for example in questions[:k]}
                for questions in of_lang.values()
            )
        ),
        None,
    )
