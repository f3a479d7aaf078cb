"""Reads a finished probe: its table, its prompts, its arrays, each checked. Whoever reads a probe calls this module."""

import json
from pathlib import Path

import pandas as pd

from utils.runs import CONFIG

PROBABILITIES = "language_probs.csv"
COLUMNS = ("prompt_lang", "layer", "channel", "share", "share_low", "share_high", "null_share", "tokens", "n")
# A share that rests on fewer tokens than this is no language's.
FEWEST_TOKENS = 3


def read_probe_run(run_dir: Path) -> tuple[pd.DataFrame, dict]:
    """language_probs.csv and the run's arguments."""
    run_dir = Path(run_dir)
    require_files(run_dir, CONFIG, PROBABILITIES)
    table = pd.read_csv(run_dir / PROBABILITIES)
    if missing := [column for column in COLUMNS if column not in table]:
        raise ValueError(f"{run_dir / PROBABILITIES}: no column {', '.join(missing)}; it has {', '.join(table)}")
    if table.empty:
        raise ValueError(f"{run_dir / PROBABILITIES}: no rows")
    return table, json.loads((run_dir / CONFIG).read_text(encoding="utf-8"))["arguments"]


def require_files(run_dir: Path, *names: str) -> None:
    """Raises ValueError that names the folder and what is missing in it."""
    missing = [name for name in names if not (Path(run_dir) / name).is_file()]
    if missing:
        raise ValueError(f"{run_dir}: no finished run with figures: no {', no '.join(missing)} in it")


def channels_of(path):
    return list(dict.fromkeys(pd.read_csv(path / PROBABILITIES, usecols=["channel"], keep_default_na=False)["channel"]))
