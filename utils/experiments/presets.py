"""The experiments that can be run, and where the runs of one lie: names of folders are made here alone."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from utils import runs
from utils.data.examples import DATASETS
from utils.languages import language_code
from utils.outside import read_json
from utils.runs import write_json
from utils.uncertainty import FEWEST_NULLS

EXPERIMENT = "experiment.json"
BASE = "base"  # the name of the model that nothing has tuned


@dataclass(frozen=True)
class TrainingSet:
    """What to tune on; a control has flags of its own and is `control_of` the set that has none. A repeat is
    `repeat_of` the set, or the control, that is tuned with another seed."""

    dataset: str
    lang: str
    split: str = "train"
    control_of: str | None = None
    flags: tuple[str, ...] = ()
    repeat_of: str | None = None


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

    def epochs_probed(self, training_set: TrainingSet) -> tuple[int, ...]:
        """After which epochs a tuning is probed: another seed after the last of them, since what seeds differ by is
        looked at there alone."""
        return (max(self.probed_epochs),) if training_set.repeat_of else self.probed_epochs


INDIC = ("as", "bn", "gu", "hi", "kn", "ml", "mr", "or", "pa", "ta", "te", "ur")


def translated(translator, *langs, source="en"):
    """The paper's training sets that a translator made."""
    names = {lang: f"{source}2{lang}_{translator}".removesuffix("_") for lang in langs}
    return {name: TrainingSet("xquad_in", lang, f"{name}_train") for lang, name in names.items()}


SHUFFLED = "--shuffle_answers"
# Answers of other questions; an end token that is never learnt; contexts as short as the Russian set's are, whose
# translator left the end of most paragraphs out (507 characters on average where the English have 826).
CONTROLS = {
    "shuffled": (SHUFFLED,),
    "masked_end": ("--mask_eos",),
    "truncated": ("--keep_context", "0.6"),
}


def controls(name, *which):
    """Of XQuAD-IN's training set of a language: the same texts, but for one thing."""
    return {f"{name}_{control}": TrainingSet("xquad_in", name, "train", name, CONTROLS[control]) for control in which}


def repeated(training: dict[str, TrainingSet], seeds: dict[str, int]) -> dict[str, TrainingSet]:
    """With so many tunings of each named set in all, which differ by their seed alone; the first has the default."""
    repeats = {
        f"{name}_seed_{seed}": dataclasses.replace(
            training[name], repeat_of=name, flags=(*training[name].flags, "--seed", str(seed))
        )
        for name, n in seeds.items()
        for seed in range(1, n)
    }
    return training | repeats


SMALL_SETS = (
    {"or": TrainingSet("xquad_in", "or")}
    | translated("nllb", "ru", "de")
    | {"en": TrainingSet("xquad_in", "en")}
    | controls("en", "masked_end", "shuffled", "truncated")
)

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
        training=repeated(
            SMALL_SETS, dict.fromkeys(SMALL_SETS, 2) | dict.fromkeys(("or", "en2ru_nllb", "en_shuffled"), 3)
        ),
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


def with_nulls(preset: Preset, n: int) -> Preset:
    """With n trainings that should teach nothing: on the first set's texts with shuffled answers, n seeds."""
    name, first = next(iter(preset.training.items()))
    nulls = {
        f"{name}_null_{seed}": dataclasses.replace(first, control_of=name, flags=(SHUFFLED, "--seed", str(seed)))
        for seed in range(1, n + 1)
    }
    return dataclasses.replace(preset, training=preset.training | nulls)


def pairs_of(preset):
    """(name, the training set to compare it with): each control's own, and NLLB's translation beside Marian's."""
    marian = {name: name.replace("_nllb", "") for name in preset.training if "_nllb" in name}
    return [
        *((name, other) for name, other in marian.items() if other in preset.training),
        *(
            (name, training_set.control_of)
            for name, training_set in preset.training.items()
            if training_set.control_of and not training_set.repeat_of
        ),
    ]


def split_of(dataset):
    """What is evaluated on: a set's last split, test or FLORES-200's devtest."""
    return DATASETS[dataset].splits[-1]


@dataclass(frozen=True)
class Experiment:
    """A preset in its folder: what is compared, by FLORES codes, and where each run lies.

    training: name -> (language, split); control_of: name -> the set that it is a control of; repeat_of: name -> the set
    that it is another seed of; pairs: (name, the set to compare it with); nulls: names of those tuned on answers of
    other questions, which is what any tuning does; evaluation, probes: data set -> languages; probed_epochs: the base
    is epoch 0 of each.
    """

    folder: Path
    model: str = ""
    training: dict[str, tuple[str, str]] = field(default_factory=dict)
    control_of: dict[str, str] = field(default_factory=dict)
    repeat_of: dict[str, str] = field(default_factory=dict)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    nulls: list[str] = field(default_factory=list)
    evaluation: dict[str, list[str]] = field(default_factory=dict)
    probes: dict[str, list[str]] = field(default_factory=dict)
    probed_epochs: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, preset: Preset, folder: Path) -> "Experiment":
        return cls(
            folder=folder,
            model=preset.model,
            training={
                name: (language_code(training_set.lang), training_set.split)
                for name, training_set in preset.training.items()
            },
            control_of={
                name: training_set.control_of
                for name, training_set in preset.training.items()
                if training_set.control_of
            },
            repeat_of={
                name: training_set.repeat_of for name, training_set in preset.training.items() if training_set.repeat_of
            },
            pairs=pairs_of(preset),
            nulls=[name for name, training_set in preset.training.items() if SHUFFLED in training_set.flags],
            evaluation={name: [language_code(lang) for lang in langs] for name, langs in preset.evaluation.items()},
            probes={name: [language_code(lang) for lang in langs] for name, langs in preset.probes.items()},
            probed_epochs=list(preset.probed_epochs),
        )

    @classmethod
    def load(cls, folder: Path) -> "Experiment":
        """The experiment that was reported in a folder."""
        content, known = read_json(folder / EXPERIMENT), {field.name for field in dataclasses.fields(cls)}
        if not isinstance(content, dict) or not content.keys() <= known - {"folder"}:
            raise ValueError(f"{folder / EXPERIMENT}: not an experiment of reproduce_paper.py")
        return cls(folder, **content)

    def save(self) -> None:
        content = {name: value for name, value in dataclasses.asdict(self).items() if name != "folder"}
        write_json(self.folder / EXPERIMENT, content)

    @property
    def sets(self) -> list[str]:
        """What is tuned on, controls among them, each once: without further seeds."""
        return [name for name in self.training if name not in self.repeat_of]

    def seeds_of(self, name: str) -> list[str]:
        """The tunings of a set: its own, and its repeats."""
        return [name, *(repeat for repeat, original in self.repeat_of.items() if original == name)]

    @property
    def model_name(self) -> str:
        return Path(self.model).name

    @property
    def last_epoch(self) -> int:
        return max(self.probed_epochs)

    def adapter(self, name: str) -> Path:
        return self.folder / "adapters" / name

    def checkpoint(self, name: str, step: int) -> Path:
        return self.adapter(name) / "checkpoints" / f"checkpoint-{step}"

    def answers(self, name: str, dataset: str) -> Path:
        """The answers of a model: BASE, or the name of what it was tuned on."""
        return self.folder / "answers" / f"{name}-{dataset}"

    def probe(self, name: str, epoch: int, dataset: str) -> Path:
        """A model's probe after an epoch; the base's, whatever the name, at epoch 0."""
        model = f"{name}-epoch-{epoch}" if epoch else BASE
        return self.folder / "probes" / f"{model}-{dataset}"

    def changes(self, run: Path) -> Path:
        """The comparison of the base's run with one of a tuned model: its answers or its probe."""
        return self.folder / "changes" / f"{run.parent.name}-{run.name}"

    def changes_beside_nulls(self, run: Path) -> Path:
        """The same, compared with what the null runs change."""
        return self.folder / "changes" / f"{run.parent.name}-{run.name}-beside-nulls"

    def nulls_of(self, name: str) -> list[str]:
        """The null runs that a tuned model is compared with, itself never among them; none where they are too few."""
        others = [null for null in self.nulls if null != name]
        return others if len(others) >= FEWEST_NULLS else []

    def changes_of_pair(self, name: str, against: str, dataset: str) -> Path:
        """The comparison of two tuned models' answers."""
        return self.folder / "changes" / f"pairs-{against}-{name}-{dataset}"


def is_finished(run: Path) -> bool:
    """A finished run, whose files are as they were when it was finished."""
    return runs.is_finished(run)
