"""The paper's claims as hypotheses: a verdict on each by rules that are fixed here, before any run.

Where there are null runs, what lifts must lift by more than they do: a tuning on answers of other questions may gain
as much. Each claim is tested in cells, and is wrongly supported or refuted in any of them in at most LEVEL of
experiments (Holm); docs/statistics.md has the rates of all five by simulation, and what effects they find.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from utils.answers.scores import OVERGENERATION
from utils.experiments.presets import Experiment
from utils.experiments.suppression import F1, language_names
from utils.experiments.tables import SCORED, spread_of_seeds
from utils.languages import short_code
from utils.uncertainty import FEWEST_SETS, holm, one_sided, rank_correlation

SUPPORTED, NOT_SUPPORTED, CANT_TELL = "supported", "not supported", "can't tell here"
# Doubling a score that is next to nothing is no finding.
LEAST_TO_DOUBLE = 0.02
# Two translations whose shares of answers that are spans are closer than this are equally good.
LEAST_BETTER = 0.05
HIGH_RESOURCE = ("eng_Latn", "deu_Latn", "rus_Cyrl", "spa_Latn", "fra_Latn")
LOW_RESOURCE = ("ory_Orya", "asm_Beng")
# The chance that any cell of a claim is wrongly for it, or wrongly against it, is at most half of this each.
LEVEL = 0.05
# Claims that something happens; the others say what usually does.
ONE_CELL_IS_ENOUGH = {"b", "d"}
Found = list[tuple[str, str, str]]  # where, what was measured, verdict


@dataclass(frozen=True)
class Cell:
    """Where a claim was tested, what was measured, and p of what is for the claim and of what is against it.

    NaN where it can't be tested. p_for is the p of the claim's opposite being true, one-sided, and so is p_against.
    """

    where: str
    measured: str
    p_for: float = np.nan
    p_against: float = np.nan


def judged(cells: list[Cell]) -> Found:
    """A verdict on each cell, by Holm over all of them: any is wrong in at most LEVEL of experiments."""
    sides = [holm(np.array([getattr(cell, side) for cell in cells])) <= LEVEL / 2 for side in ("p_for", "p_against")]
    return [
        (cell.where, cell.measured, CANT_TELL if is_for == is_against else SUPPORTED if is_for else NOT_SUPPORTED)
        for cell, is_for, is_against in zip(cells, *sides)
    ]


def overall(found: Found, one_is_enough: bool) -> str:
    """The verdict on a claim from those of its cells.

    one_is_enough: a claim that something happens is supported by one cell, and not supported where cells speak against
    it and none for it. A claim on what usually happens goes by which there are more of. Else can't tell.
    """
    counts = Counter(verdict for _, _, verdict in found)
    for_it, against = counts[SUPPORTED], counts[NOT_SUPPORTED]
    if for_it and (one_is_enough or for_it > against):
        return SUPPORTED
    return NOT_SUPPORTED if against > for_it else CANT_TELL


def any_of(*ps: float) -> float:
    """p of one of several things that would each be enough (Bonferroni); those that can't be tested count too."""
    tested = [p for p in ps if not np.isnan(p)]
    return min(1.0, len(ps) * min(tested)) if tested else np.nan


def all_of(*ps: float) -> float:
    """p of several things that must all be so: that of the least certain one; NaN where one can't be tested."""
    return float(np.max(ps))


def sides(change: float, p: float) -> tuple[float, float]:
    """(p that it rises, p that it falls), one-sided."""
    rises, falls = one_sided(np.float64(change), np.float64(p))
    return float(rises), float(falls)


def beyond_seeds(table: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """`tables.transfer`'s table, with p of 1 where what is tested is not larger than the spread of its set's seeds.

    Of p that is the change; of double_p, after - 2 before.
    """
    spread = spread_of_seeds(experiment, table, SCORED)
    within = table["change"].abs() <= spread
    undoubled = (table["after"] - 2 * table["before"]).abs() <= spread
    return table.assign(p=table["p"].mask(within, 1.0), double_p=table["double_p"].mask(undoubled, 1.0))


def falls_beyond_seeds(table: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """`suppression`'s table, with p of 1 where the interfering languages' change is not larger than the spread of its
    set's seeds, and gain_p of 1 where the gain is not."""
    keys = ["dataset", "lang"]
    change, gain = (
        table[value].abs() <= spread_of_seeds(experiment, table, keys, value) for value in ("change", "gain")
    )
    return table.assign(p=table["p"].mask(change, 1.0), gain_p=table["gain_p"].mask(gain, 1.0))


def cells_by_claim(experiment: Experiment, tables: dict[str, pd.DataFrame]) -> dict[str, list[Cell]]:
    """The cells of the claims a to e, from the tables of an experiment by their file's name.

    Controls and further seeds take no part; a change that is not larger than the spread of its set's seeds is none.
    """
    tested = tables | {
        "transfer.csv": beyond_seeds(tables["transfer.csv"], experiment),
        "suppression.csv": falls_beyond_seeds(tables["suppression.csv"], experiment),
    }
    others = experiment.control_of | experiment.repeat_of
    own = {name: table[~table["training"].isin(others)] for name, table in tested.items()}
    translated = [name for name, (_, split) in experiment.training.items() if "2" in split]
    quality, scores = own["quality.csv"], own["transfer.csv"]
    return {
        "a": lifted_by_suppression(own["suppression.csv"]),
        "b": more_than_doubled(scores, experiment),
        "c": hurt_by_its_own_language(scores, experiment),
        "d": not_always_helped(scores, experiment),
        "e": carried_by_better_translations(quality[quality["training"].isin(translated)], scores, own["pairs.csv"]),
    }


def lifted_by_suppression(table: pd.DataFrame) -> list[Cell]:
    """Of each tuned model and prompt language; table: `suppression`'s.

    For it: the interfering languages fall more than in null runs, F1 rises, more than in null runs, and the odds of
    becoming right rise with the fall. Against it: they rise, or fall where F1 falls, or where the odds do. Without null
    runs a fall is no evidence, since models with nothing but noise in their weights have one too.
    """
    cells = []
    for row in table.itertuples():
        rise, fall = sides(row.change if pd.isna(row.null_change) else row.change - row.null_change, row.p)
        gain, loss = sides(row.gain, row.gain_p)
        more, less = sides(row.odds_ratio - 1, row.odds_p)
        odds = (
            f"too few questions became right ({row.newly_right}) or stayed wrong ({row.both_wrong}) for odds"
            if pd.isna(row.odds_ratio)
            else f"odds x{row.odds_ratio:.2f} [{row.odds_low:.2f}, {row.odds_high:.2f}] a standard deviation"
        )
        measured = (
            f"{language_names(row.channels)} {row.before:.3f} -> {row.after:.3f} "
            f"({row.change:+.3f}{beside_nulls(row)}); F1 {points(row.gain, row.gain_low, row.gain_high)}"
            f"{_beyond_nulls(row.gain_beyond)}; {odds}"
        )
        where = f"{row.training} -> {short_code(row.lang)}"
        if row.null_runs:
            against = any_of(rise, all_of(fall, loss), all_of(fall, less))
            beyond, _ = sides(row.gain_beyond, row.gain_beyond_p)
            cells.append(Cell(where, measured, all_of(fall, gain, beyond, more), against))
        else:
            cells.append(Cell(where, f"{measured}; too few null runs"))
    return cells


def beside_nulls(row) -> str:
    """The interval of a change, or the null runs' and what it exceeds them by, of a row of `suppression`'s table."""
    interval = "" if pd.isna(row.low) else f" [{row.low:+.3f}, {row.high:+.3f}]"
    if not row.null_runs:
        return interval
    return f"; {row.change - row.null_change:+.3f}{interval} over {row.null_runs} null runs"


def more_than_doubled(table: pd.DataFrame, experiment: Experiment) -> list[Cell]:
    """Of each low-resource language for each machine-translated set of another language.

    Doubled where the change is more than the base's score: for it, after - 2 before is above zero, and where there are
    null runs the change more than theirs; against it, after - 2 before is below zero; all from the same questions, so
    that the base's error counts. Not tested where the base has less than
    LEAST_TO_DOUBLE.
    """
    cells = []
    for row in table[table["score"] == F1].itertuples():
        lang, split = experiment.training[row.training]
        if "2" not in split or row.lang not in LOW_RESOURCE or row.lang == lang:
            continue
        where = f"{row.training} -> {short_code(row.lang)}"
        p = row.double_p if row.before >= LEAST_TO_DOUBLE else np.nan
        doubled, undoubled = sides(row.after - 2 * row.before, p)
        if experiment.nulls_of(row.training):
            beyond, _ = sides(row.excess, row.excess_p)
            doubled = all_of(doubled, beyond)
        cells.append(Cell(where, _change(row), doubled, undoubled))
    return cells


def hurt_by_its_own_language(table: pd.DataFrame, experiment: Experiment) -> list[Cell]:
    """Of each model evaluated in the language that it was tuned on.

    For it: F1 falls and more answers overgenerate; against it: F1 rises, or falls and fewer do.
    """
    keys = ["training", "dataset", "lang"]
    over = table[table["score"] == OVERGENERATION].set_index(keys)
    cells = []
    for row in table[table["score"] == F1].itertuples():
        if row.lang != experiment.training[row.training][0]:
            continue
        rise, fall = sides(row.change, row.p)
        more = less = np.nan
        measured = _change(row)
        if (key := (row.training, row.dataset, row.lang)) in over.index:
            answers = over.loc[key]
            more, less = sides(answers["change"], answers["p"])
            measured += f"; overgenerated {100 * answers['before']:.1f}% -> {100 * answers['after']:.1f}%"
        where = f"{row.training} -> {short_code(row.lang)}"
        cells.append(Cell(where, measured, all_of(fall, more), any_of(rise, all_of(fall, less))))
    return cells


def not_always_helped(table: pd.DataFrame, experiment: Experiment) -> list[Cell]:
    """Of each high-resource training set, over the other languages.

    For it: F1 falls in one of them; against it: it rises in all.
    """
    cells = []
    of_f1 = table[table["score"] == F1]
    for name, rows in of_f1.groupby("training", sort=False):
        lang = experiment.training[name][0]
        rows = rows[rows["lang"] != lang]
        if lang not in HIGH_RESOURCE or rows.empty:
            continue
        tested = [sides(row.change, row.p) for row in rows.itertuples()]
        rises, falls = zip(*tested)
        measured = (
            f"F1 rose in {(rows['change'] > 0).sum()} and fell in {(rows['change'] < 0).sum()} of {len(rows)} "
            f"languages; the least certain rise has p {max(rises):.2g}, the surest fall {min(falls):.2g}, one-sided"
        )
        cells.append(Cell(name, measured, any_of(*falls), all_of(*rises)))
    return cells


def carried_by_better_translations(quality: pd.DataFrame, transfer: pd.DataFrame, pairs: pd.DataFrame) -> list[Cell]:
    """Of all machine-translated sets together, and of each two translations of the same texts into one language.

    quality: `translations.quality`'s, of the machine-translated sets alone; pairs: `tables.pairs`'s. Better: a
    larger share of answers that are spans. All: the rank correlation of that share with the mean change of F1 over
    the languages that a set is not in, its p of the orders of the sets. Two: the better one's F1 is higher in one of
    the languages, or lower; not tested where the shares are closer than LEAST_BETTER.
    """
    of_f1 = transfer[transfer["score"] == F1]
    spans = quality.set_index("training")["spans"]
    langs = quality.set_index("training")["lang"]
    gains = {
        name: rows.loc[rows["lang"] != langs[name], "change"].mean()
        for name, rows in of_f1.groupby("training", sort=False)
        if name in spans.index
    }
    cells = []
    if gains:
        names = list(gains)
        rho, p = rank_correlation(spans[names].to_numpy(), np.array([gains[name] for name in names]))
        tested = f", p {p:.2g}" if not np.isnan(p) else f": fewer than {FEWEST_SETS} sets"
        measured = f"rank correlation {rho:+.2f}{tested}" if not np.isnan(rho) else "too few sets"
        cells.append(Cell(f"all {len(names)} sets", measured, *sides(rho, p)))
    for (name, against), rows in pairs[pairs["score"] == F1].groupby(["training", "against"], sort=False):
        if not {name, against} <= set(spans.index):
            continue
        better = 1 if spans[name] > spans[against] else -1  # a pair's change is of the first one over the second
        higher, lower = zip(*(sides(better * row.change, row.p) for row in rows.itertuples()))
        first, second = (name, against) if better == 1 else (against, name)
        measured = (
            f"spans {spans[first]:.0%} and {spans[second]:.0%}; the better one's F1 is higher in "
            f"{(better * rows['change'] > 0).sum()} and lower in {(better * rows['change'] < 0).sum()} of {len(rows)} "
            f"languages; the surest has p {min(higher):.2g} and {min(lower):.2g}, one-sided"
        )
        where = f"{first} over {second}"
        if abs(spans[name] - spans[against]) < LEAST_BETTER:
            cells.append(Cell(where, measured))
        else:
            cells.append(Cell(where, measured, any_of(*higher), any_of(*lower)))
    return cells


def telling(cells: list[Cell]) -> Cell | None:
    """The cell that says most, for a claim or against it; None where there is none."""
    return min(cells, key=lambda cell: np.nan_to_num(np.fmin(cell.p_for, cell.p_against), nan=1.0), default=None)


def _change(row) -> str:
    change = f"{points(row.change, row.low, row.high)}{_beyond_nulls(row.excess)}"
    return f"F1 {100 * row.before:.1f} -> {100 * row.after:.1f} ({change})"


def _beyond_nulls(excess: float) -> str:
    return "" if pd.isna(excess) else f", {100 * excess:+.1f} beyond the null runs'"


def points(change: float, low: float, high: float) -> str:
    """A change in points, with its interval where there are contexts enough for one."""
    interval = "" if pd.isna(low) else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{100 * change:+.1f}{interval}"
