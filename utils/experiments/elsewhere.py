"""A report of the same experiment from another machine, or from before: what of it this one's report takes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from utils.experiments.presets import BASE, Experiment
from utils.languages import short_code
from utils.runs import differences, read_configuration, read_table

MISSING, PAIRS = "missing.csv", "pairs.csv"
OF_A_SET = ("epochs", "outcomes", "changes")  # kinds of figures
STEPS_OF_A_SET = ("train", "answers", "probes")


@dataclass(frozen=True)
class Elsewhere:
    """The report in `folder`: its tables and figures, as reproduce_paper.py wrote them.

    A training set's rows and figures all come from here or all from there, so that no row mixes two tunings; a pair's
    come from where the two were compared.
    """

    folder: Path

    @classmethod
    def read(cls, folder: Path, description: dict) -> "Elsewhere":
        """description: this experiment's configuration.

        Raises ValueError where the folder holds another preset's, model's or data's report, or none.
        """
        stored, asked = read_configuration(folder), json.loads(json.dumps(description))
        found = [text for part in ("arguments", "inputs") for text in differences(stored[part], asked[part])]
        if stored["script"] != asked["script"]:
            found.insert(0, f"script was {stored['script']!r}, is {asked['script']!r}")
        if found:
            raise ValueError(f"--join {folder}: of another experiment ({found[0]})")
        if not (folder / MISSING).exists():
            raise ValueError(f"--join {folder}: has no {MISSING}; make its report first, with this version")
        return cls(folder)

    def better_known(self, experiment: Experiment, missing: pd.DataFrame) -> list[str]:
        """The sets of which less is missing there than here. missing: `plan.missing_of`'s, of here.

        Training counts before answers, and these before probes: a set that is begun anew, probed and not yet asked, is
        no match for one that was asked, whatever probes that one lacks.
        """
        here, there = (_n_missing(table) for table in (missing, self.table(MISSING)))
        return [name for name in experiment.training if there(name) < here(name)]

    def joined(self, name: str, table: pd.DataFrame, experiment: Experiment, sets: list[str]) -> pd.DataFrame:
        """A table of the report with there's rows of `sets`, in the experiment's order.

        What is of no set, as a comparison that is missing, is missing where it is in both; a pair of sets is here's
        where it was compared here.
        """
        there = self.table(name).reindex(columns=list(table))
        if name == MISSING:
            both = table.merge(there[["step", "name"]], on=["step", "name"])
            of_none = both[~both["training"].isin(list(experiment.training))]
            here = pd.concat([of_none, _of_sets(table, [one for one in experiment.training if one not in sets])])
            return pd.concat([here, _of_sets(there, sets)], ignore_index=True)
        if name == PAIRS:
            known = set(zip(table["training"], table["against"]))
            taken = [pair not in known for pair in zip(there["training"], there["against"])]
            rows = [table, there[taken]]
        else:
            rows = [table[~table["training"].isin(sets)], _of_sets(there, sets)]
        order = {one: place for place, one in enumerate((BASE, *experiment.training))}
        whole = pd.concat([part for part in rows if len(part)] or rows[:1], ignore_index=True)
        return whole.sort_values("training", key=lambda column: column.map(order), kind="stable", ignore_index=True)

    def with_figures(self, figures: list[Path], experiment: Experiment, sets: list[str]) -> list[Path]:
        """The report's figures, relative to its folder, with copies of there's of `sets` in place of its own."""
        for path in list((experiment.folder / "figures").iterdir()):
            if _set_of(path, experiment) in sets:
                path.unlink()  # no figure of another tuning stays beside the copies, in another format
        copies = []
        for path in sorted((self.folder / "figures").iterdir()):
            if _set_of(path, experiment) in sets:
                shutil.copyfile(path, experiment.folder / "figures" / path.name)
                copies.append(Path("figures") / path.name)
        whole = [path for path in figures if _set_of(path, experiment) not in sets]
        whole += [path for path in copies if path.suffix == ".png"]
        places = ["", *experiment.training]
        langs = [short_code(lang) for of_set in experiment.probes.values() for lang in of_set]

        def place(path: Path) -> tuple[int, int]:
            lang = path.stem.rpartition("_")[2]
            return places.index(_set_of(path, experiment)), langs.index(lang) if lang in langs else 0

        return sorted(whole, key=place)

    def table(self, name: str) -> pd.DataFrame:
        # `nan` may be the name of a channel.
        return read_table(self.folder / name, keep_default_na=False, na_values=[""])


def _n_missing(table: pd.DataFrame) -> Callable[[str], tuple[int, ...]]:
    """Function from a set to how many of its commands are missing, step by step."""
    counts = table.value_counts(["training", "step"])
    return lambda name: tuple(counts.get((name, step), 0) for step in STEPS_OF_A_SET)


def _of_sets(table: pd.DataFrame, sets: list[str]) -> pd.DataFrame:
    return table[table["training"].isin(sets)]


def _set_of(figure: Path, experiment: Experiment) -> str:
    """The training set that a figure is of; none's is ""."""
    for name in experiment.training:
        for dataset in experiment.probes:
            if figure.name.startswith(tuple(f"{kind}_{name}_{dataset}" for kind in OF_A_SET)):
                return name
    return ""
