"""An experiment's commands, in an order in which each finds what it needs."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from utils.data.examples import load_examples
from utils.experiments.presets import TrainingSet, pairs_of, split_of
from utils.languages import language_code
from utils.lens.published import EPOCH_OF_STEP, N_PROMPTS
from utils.runs import METRICS
from utils.training.recipe import RECIPE

# Steps of the recipe's batches of 4, 4 of them accumulated.


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


def missing_of(planned, failures):
    """What the report must do without: the step and name of each command that is not finished, and why."""
    reasons = {failure["command"]: failure["reason"] for failure in failures}
    return [
        {"step": command.step, "name": command.name, "reason": reasons.get(command.line, "not begun, or stopped")}
        for command in planned
        if not command.finished
    ]


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
    n_batches = -(-n_examples // RECIPE.batch_size)
    return -(-n_batches // RECIPE.accumulate)


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
