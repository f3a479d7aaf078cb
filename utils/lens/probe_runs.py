"""Reads a finished probe: its table, its prompts, its arrays, each checked. Whoever reads a probe calls this module."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from utils.languages import CODE, short_code
from utils.outside import shown
from utils.runs import CONFIG, read_arrays, read_table

PROBABILITIES, PROMPTS = "language_probs.csv", "prompts.csv"
PER_PROMPT, INFLUENCE = "per_prompt.npy", "influence.npy"
PAGE = "page.html"
GRID, GRID_WORDS = "grid.npz", "grid.json"
GRID_TOKENS, GRID_CHANNELS = 10, 5  # a cell's likeliest tokens and largest shares that are kept
COLUMNS = ("prompt_lang", "layer", "channel", "share", "share_low", "share_high", "null_share", "tokens", "n")
NUMBERS = ("share", "share_low", "share_high", "null_share", "tokens", "prob", "floor", "stderr")
# A share that rests on fewer tokens than this is no language's.
FEWEST_TOKENS = 3
# What rounding may add to a share: those of a model in bfloat16 sum to no more than this above 1.
ROUNDING = 0.01
ROWS_AT_A_TIME = 256
LOGIT_LENS = "logit lens"


@dataclass(frozen=True)
class Grid:
    """Every position of a few prompts. top_ids, top_probs: [cell, layer, GRID_TOKENS], the likeliest first;
    channels (indices into channel_names), shares: [cell, layer, GRID_CHANNELS], the largest first.

    tokens: a token's id -> how it is shown. prompts: rows of id, prompt_lang, outcome (None where not known), text,
    token_ids, read (the positions that the tables are of), cells (one a position; prompts that begin alike share them).
    """

    top_ids: np.ndarray
    top_probs: np.ndarray
    channels: np.ndarray
    shares: np.ndarray
    channel_names: list[str]
    tokens: dict[int, str]
    prompts: list[dict]


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
        try:
            return dict(json.loads((self.path / CONFIG).read_text(encoding="utf-8"))["arguments"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{self.path / CONFIG}: not the configuration of a run") from None

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
        table = read_table(self.path / PROBABILITIES, keep_default_na=False, na_values=empty)
        if missing := [column for column in COLUMNS if column not in table]:
            raise ValueError(f"{self.path / PROBABILITIES}: no column {', '.join(missing)}; it has {', '.join(table)}")
        if table.empty:
            raise ValueError(f"{self.path / PROBABILITIES}: no rows")
        self._require_cells(table)
        return table

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """prompts.csv: row, id, prompt_lang, a row a prompt, in the order of the arrays."""
        require_files(self.path, PROMPTS)
        table = read_table(self.path / PROMPTS, dtype={"id": str}, keep_default_na=False)  # `NA` may be an id
        if missing := [column for column in ("row", "id", "prompt_lang") if column not in table]:
            raise ValueError(f"{self.path / PROMPTS}: no column {', '.join(missing)}; it has {', '.join(table)}")
        if list(table["row"]) != list(range(len(table))):
            raise ValueError(f"{self.path / PROMPTS}: row is not 0, 1, 2, ...")
        if (twice := table[table.duplicated(["prompt_lang", "id"])]).size:
            id, lang = twice.iloc[0][["id", "prompt_lang"]]
            raise ValueError(f"{self.path / PROMPTS}: id {id!r} in {lang} twice")
        return table

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

    @cached_property
    def grid(self) -> Grid | None:
        """What --grid kept; None where the probe kept none."""
        if not (self.path / GRID_WORDS).is_file():
            return None
        require_files(self.path, GRID)
        words, arrays = json.loads((self.path / GRID_WORDS).read_text(encoding="utf-8")), read_arrays(self.path / GRID)
        tokens = {int(id): text for id, text in words["tokens"].items()}
        grid = Grid(**arrays, channel_names=words["channels"], tokens=tokens, prompts=words["prompts"])
        n_cells = 1 + max((cell for row in grid.prompts for cell in row["cells"]), default=-1)
        n_layers = self.table["layer"].nunique()
        for name, array in arrays.items():
            if array.shape[:2] != (n_cells, n_layers):
                raise ValueError(
                    f"{self.path / GRID}: {name} is of {array.shape[:2]}, but {GRID_WORDS} and {PROBABILITIES} "
                    f"of {(n_cells, n_layers)}"
                )
        return grid

    def cells(self, lang: str) -> pd.DataFrame:
        """The table's rows of a prompt language, layer by layer, as the arrays' last two axes laid end to end."""
        return self.table[self.table["prompt_lang"] == lang]

    def _require_cells(self, table: pd.DataFrame) -> None:
        """Each language, layer and channel once; shares and probabilities between 0 and 1."""
        path, keys = self.path / PROBABILITIES, ["prompt_lang", "layer", "channel"]
        require_codes(table, path)
        if (twice := table[table.duplicated(keys)]).size:
            raise ValueError(f"{path}: a second row of {', '.join(map(str, twice.iloc[0][keys]))}")
        if len(table) != np.prod([table[key].nunique() for key in keys]):
            raise ValueError(f"{path}: rows are missing: not every language has every layer and channel")
        for name in ("share", "null_share", "prob"):
            if name not in table:
                continue
            if not pd.api.types.is_numeric_dtype(table[name]):
                raise ValueError(f"{path}: {name} is not a column of numbers")
            odd = table[~table[name].between(-ROUNDING, 1 + ROUNDING) & (table[name].notna() | (name == "share"))]
            if len(odd):
                cell = ", ".join(map(str, odd.iloc[0][keys]))
                raise ValueError(f"{path}: {name} is {odd.iloc[0][name]} for {cell}: allowed is 0 to 1")

    def _array(self, name: str) -> np.ndarray:
        require_files(self.path, name)
        try:
            array = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{self.path / name}: not an array of NumPy's ({error})") from None
        expected = (len(self.prompts), self.table["layer"].nunique(), len(self.channels))
        if array.shape != expected:
            raise ValueError(f"{self.path / name}: {array.shape}, but the tables are of {expected}")
        if array.dtype.kind != "f":
            raise ValueError(f"{self.path / name}: {array.dtype}, not floating point")
        for start in range(0, len(array), ROWS_AT_A_TIME):
            part = array[start : start + ROWS_AT_A_TIME]
            if not np.isfinite(part).all():
                raise ValueError(f"{self.path / name}: not finite in the rows from {start} on")
            if name == PER_PROMPT and not (part.min() >= -ROUNDING and part.max() <= 1 + ROUNDING):
                raise ValueError(f"{self.path / name}: {part.min()} to {part.max()} from row {start} on, not 0 to 1")
        return array


def require_codes(table: pd.DataFrame, path: Path) -> None:
    """Raises ValueError for a prompt_lang or a channel that is no code: figures have such names."""
    for column in ("prompt_lang", "channel"):
        for value in table[column].unique():
            if not CODE.fullmatch(str(value)):
                raise ValueError(f"{path}: {column} is {shown(value)}, not a code of a language")


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
