"""Reads a finished probe: its table, its prompts, its arrays, each checked. Whoever reads a probe calls this module."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from utils.languages import short_code
from utils.runs import CONFIG

PROBABILITIES, PROMPTS = "language_probs.csv", "prompts.csv"
PER_PROMPT, INFLUENCE = "per_prompt.npy", "influence.npy"
COLUMNS = ("prompt_lang", "layer", "channel", "share", "share_low", "share_high", "null_share", "tokens", "n")
NUMBERS = ("share", "share_low", "share_high", "null_share", "tokens", "prob", "floor", "stderr")
# A share that rests on fewer tokens than this is no language's.
FEWEST_TOKENS = 3
LOGIT_LENS = "logit lens"


@dataclass(frozen=True)
class ProbeRun:
    """The folder of a finished probe; each file is read when it is first asked for.

    Raises ValueError, naming the file, where one is missing or is not what a probe writes.
    """

    path: Path

    @cached_property
    def arguments(self) -> dict:
        """What the probe was asked."""
        require_files(self.path, CONFIG)
        return json.loads((self.path / CONFIG).read_text(encoding="utf-8"))["arguments"]

    @cached_property
    def lens(self) -> dict:
        """What the probe's configuration says of its lens; empty for the plain logit lens."""
        require_files(self.path, CONFIG)
        return json.loads((self.path / CONFIG).read_text(encoding="utf-8")).get("inputs", {}).get("lens") or {}

    @cached_property
    def table(self) -> pd.DataFrame:
        """language_probs.csv: COLUMNS and more, a row a prompt language, layer and channel, in this order."""
        require_files(self.path, PROBABILITIES)
        # `nan` and `NA` may be names of channels; a number that isn't there is an empty cell.
        empty = dict.fromkeys(NUMBERS, "")
        table = pd.read_csv(self.path / PROBABILITIES, keep_default_na=False, na_values=empty)
        if missing := [column for column in COLUMNS if column not in table]:
            raise ValueError(f"{self.path / PROBABILITIES}: no column {', '.join(missing)}; it has {', '.join(table)}")
        if table.empty:
            raise ValueError(f"{self.path / PROBABILITIES}: no rows")
        return table

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """prompts.csv: row, id, prompt_lang, a row a prompt, in the order of the arrays."""
        require_files(self.path, PROMPTS)
        return pd.read_csv(self.path / PROMPTS, dtype={"id": str})

    @cached_property
    def channels(self) -> list[str]:
        """The channels in the order of the arrays."""
        return list(dict.fromkeys(self.table["channel"]))

    @cached_property
    def per_prompt(self) -> np.ndarray:
        """Each prompt's own shares: [prompt, layer, channel], on the disk."""
        return self._array(PER_PROMPT)

    @cached_property
    def influence(self) -> np.ndarray:
        """What each prompt adds to its set's shares (`SetShares`): [prompt, layer, channel], on the disk."""
        return self._array(INFLUENCE)

    def cells(self, lang: str) -> pd.DataFrame:
        """The table's rows of a prompt language, layer by layer, as the arrays' last two axes laid end to end."""
        return self.table[self.table["prompt_lang"] == lang]

    def _array(self, name: str) -> np.ndarray:
        require_files(self.path, name)
        array = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        expected = (len(self.prompts), self.table["layer"].nunique(), len(self.channels))
        if array.shape != expected:
            raise ValueError(f"{self.path / name}: {array.shape}, but the tables are of {expected}")
        return array


def require_files(run_dir: Path, *names: str) -> None:
    """Raises ValueError that names the folder and what is missing in it."""
    missing = [name for name in names if not (Path(run_dir) / name).is_file()]
    if missing:
        raise ValueError(f"{run_dir}: no finished run with figures: no {', no '.join(missing)} in it")


def lens_name(about: dict) -> str:
    """A lens in a title, by what a run's configuration says of it."""
    if not about:
        return LOGIT_LENS
    kind = {"jacobian": "Jacobian"}.get(about["kind"], about["kind"])
    return f"{kind} lens fitted on {' '.join(map(short_code, about['langs']))}"
