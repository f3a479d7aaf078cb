"""How far a run here agrees with the authors' published curves, and what of its recipe is read and what inferred."""

from pathlib import Path

import pandas as pd

from utils.experiments.plan import Command
from utils.lens.published import EPOCH_OF_STEP
from utils.outside import markdown_code
from utils.runs import write_atomically
from utils.training.recipe import PAPER

# What no flag of the training says.
BESIDE_THE_FLAGS = [
    ("training set", "inferred", "German and 103 examples, by the run's name; which translation it was isn't said"),
    ("sizes", "read", "10 epochs, 2e-4, batches of 4, four to a step, gradient norm 0.3, LoRA 64, 16 and 0.1"),
    ("order of the texts", "unknown", "batches of similar length (read), dealt by a random state that can't be had"),
    ("order of the prompts", "inferred", "150 by one shuffle with their seed; the German file has another order"),
    ("the script itself", "inferred", "it is the published one's with a German file; the run may be older"),
]


def write_published_report(
    folder: Path, agreed: pd.DataFrame, train: Command, figures: list[Path], lora_targets: list[str] | None = None
) -> Path:
    """REPORT.md in folder. agreed: `agreement`'s table; train: the command of the training; lora_targets: if not the
    recipe's own.
    """
    agreed = agreed.assign(epoch=[EPOCH_OF_STEP[step] for step in agreed["step"]])
    recipe = [
        (f"`--{flag}`", _shown(lora_targets), "asked for here", choice.why)
        if flag == "lora_targets" and lora_targets
        else (f"`--{flag}`", _shown(choice.value), choice.ground, choice.why)
        for flag, choice in PAPER.items()
    ]
    parts = [
        "# The published curves, beside a run here",
        f"Distance from the published curves, 0 to 1: {agreed['total_variation'].mean():.3f} on average over layers, "
        "steps and prompt languages. `total_variation` is a mean over layers, `r_of_changes` the correlation of what "
        "changed since step 0.",
        _table(list(agreed.columns), agreed.round(3).itertuples(index=False)),
        *(f"![{path.stem}](figures/{path.name})" for path in figures),
        "## The recipe: what is read and what is inferred",
        markdown_code(train.line),
        "*Read* is what the authors' training script says (commit 5d56e52). *Inferred* is what it does by the "
        "libraries that it ran on, whose versions it doesn't name: transformers 4.41 to 4.45, by the arguments that "
        "it uses and by the numbers of the published steps.",
        _table(["flag", "value", "ground", "why"], recipe),
        _table(["beside the flags", "ground", "what"], BESIDE_THE_FLAGS),
    ]
    path = folder / "REPORT.md"
    write_atomically(path, lambda file: file.write(("\n\n".join(parts) + "\n").encode("utf-8")))
    return path


def _shown(value: object) -> str:
    if value is None:
        return "all"
    return markdown_code(" ".join(value) if isinstance(value, list) else str(value)).replace("|", "\\|")


def _table(header: list[str], rows) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
