"""The paper's claims as hypotheses: a verdict on each by rules that are fixed here, before any run."""

from collections import Counter

import numpy as np
import pandas as pd

from utils.experiments.presets import Experiment
from utils.experiments.suppression import F1, language_names
from utils.languages import short_code
from utils.uncertainty import FEWEST_SETS, rank_correlation

SUPPORTED, NOT_SUPPORTED, CANT_TELL = "supported", "not supported", "can't tell here"
# Doubling a score that is next to nothing is no finding.
LEAST_TO_DOUBLE = 0.02
# Two translations whose shares of answers that are spans are closer than this are equally good.
LEAST_BETTER = 0.05
HIGH_RESOURCE = ("eng_Latn", "deu_Latn", "rus_Cyrl", "spa_Latn", "fra_Latn")
LOW_RESOURCE = ("ory_Orya", "asm_Beng")
Found = list[tuple[str, str, str]]  # where, what was measured, verdict


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


def lifted_by_suppression(table: pd.DataFrame) -> Found:
    """Of each tuned model and prompt language; table: `suppression`'s.

    Supported if the interfering languages fell, F1 rose and the odds of becoming right rise with the fall, each with
    its whole interval; not supported if they rose, or if they fell and F1 fell, or the odds do,
    each with its whole interval; else can't tell.
    """
    found = []
    for row in table.itertuples():
        fell, rose = row.high < 0, row.low > 0
        if rose or (fell and (row.gain_high < 0 or row.odds_high < 1)):
            verdict = NOT_SUPPORTED
        else:
            verdict = SUPPORTED if fell and row.gain_low > 0 and row.odds_low > 1 else CANT_TELL
        odds = (
            f"too few questions became right ({row.newly_right}) or stayed wrong ({row.both_wrong}) for odds"
            if pd.isna(row.odds_ratio)
            else f"odds x{row.odds_ratio:.2f} [{row.odds_low:.2f}, {row.odds_high:.2f}] a standard deviation"
        )
        measured = (
            f"{language_names(row.channels)} {row.before:.3f} -> {row.after:.3f} "
            f"({row.change:+.3f} [{row.low:+.3f}, {row.high:+.3f}]); "
            f"F1 {points(row.gain, row.gain_low, row.gain_high)}; {odds}"
        )
        found.append((f"{row.training} -> {short_code(row.lang)}", measured, verdict))
    return found


def more_than_doubled(table: pd.DataFrame, experiment: Experiment) -> Found:
    """(where, measured, verdict) of each low-resource language for each machine-translated set of another language.

    Doubled where the change is more than the base's score: supported if the whole interval of the change is above
    it, not supported if the whole is below, else can't tell; nor where the base has less than LEAST_TO_DOUBLE.
    """
    found = []
    for row in table[table["score"] == F1].itertuples():
        lang, split = experiment.training[row.training]
        if "2" not in split or row.lang not in LOW_RESOURCE or row.lang == lang:
            continue
        if row.before < LEAST_TO_DOUBLE or pd.isna(row.low):
            verdict = CANT_TELL
        else:
            verdict = SUPPORTED if row.low > row.before else NOT_SUPPORTED if row.high < row.before else CANT_TELL
        found.append((f"{row.training} -> {short_code(row.lang)}", _change(row), verdict))
    return found


def hurt_by_its_own_language(table: pd.DataFrame, longer: pd.DataFrame, experiment: Experiment) -> Found:
    """(where, measured, verdict) for each model evaluated in the language that it was tuned on.

    Supported if F1 fell, the whole interval below zero, and more answers overgenerate than the base's; not supported
    if the whole interval is above zero, or F1 fell without that; else can't tell.
    """
    over = longer.set_index(["training", "dataset", "lang"])["overgeneration"]
    found = []
    for row in table[table["score"] == F1].itertuples():
        if row.lang != experiment.training[row.training][0]:
            continue
        before, after = over["base", row.dataset, row.lang], over[row.training, row.dataset, row.lang]
        if row.high < 0:
            verdict = SUPPORTED if after > before else NOT_SUPPORTED
        else:
            verdict = NOT_SUPPORTED if row.low > 0 else CANT_TELL
        measured = f"{_change(row)}; overgenerated {100 * before:.1f}% -> {100 * after:.1f}%"
        found.append((f"{row.training} -> {short_code(row.lang)}", measured, verdict))
    return found


def not_always_helped(table: pd.DataFrame, experiment: Experiment) -> Found:
    """(where, measured, verdict) for each high-resource training set, over the other languages.

    Supported if in some language the whole interval of the change is below zero, not supported if in every one it is
    above, else can't tell.
    """
    found = []
    of_f1 = table[table["score"] == F1]
    for name, rows in of_f1.groupby("training", sort=False):
        lang = experiment.training[name][0]
        rows = rows[rows["lang"] != lang]
        if lang not in HIGH_RESOURCE or rows.empty or rows["low"].isna().any():
            continue
        fell, rose = rows[rows["high"] < 0], rows[rows["low"] > 0]
        verdict = SUPPORTED if len(fell) else NOT_SUPPORTED if len(rose) == len(rows) else CANT_TELL
        measured = f"F1 rose in {len(rose)} and fell in {len(fell)} of {len(rows)} languages"
        found.append((name, measured, verdict))
    return found


def carried_by_better_translations(quality: pd.DataFrame, transfer: pd.DataFrame, pairs: pd.DataFrame) -> Found:
    """Of all machine-translated sets together, and of each two translations of the same texts into one language.

    quality: `translations.quality`'s, of the machine-translated sets alone; pairs: `tables.pairs`'s. Better: a
    larger share of answers that are spans. All: the rank correlation of that share with the mean change of F1 over
    the languages that a set is not in, its interval a bootstrap's over sets; supported if that is above zero, not if
    below. Two: supported if the better one's F1 is higher in more languages than lower, whole intervals; not
    supported if in fewer; else, and where the shares are closer than LEAST_BETTER, can't tell.
    """
    of_f1 = transfer[transfer["score"] == F1]
    spans = quality.set_index("training")["spans"]
    langs = quality.set_index("training")["lang"]
    gains = {
        name: rows.loc[rows["lang"] != langs[name], "change"].mean()
        for name, rows in of_f1.groupby("training", sort=False)
        if name in spans.index
    }
    found = []
    if gains:
        names = list(gains)
        r, low, high = rank_correlation(spans[names].to_numpy(), np.array([gains[name] for name in names]))
        verdict = SUPPORTED if low > 0 else NOT_SUPPORTED if high < 0 else CANT_TELL
        interval = f" [{low:+.2f}, {high:+.2f}]" if not np.isnan(low) else f": fewer than {FEWEST_SETS} sets"
        measured = f"rank correlation {r:+.2f}{interval}" if not np.isnan(r) else "too few sets"
        found.append((f"all {len(names)} sets", measured, verdict))
    for (name, against), rows in pairs[pairs["score"] == F1].groupby(["training", "against"], sort=False):
        if not {name, against} <= set(spans.index):
            continue
        better = 1 if spans[name] > spans[against] else -1  # a pair's change is of the first one over the second
        higher = int((better * rows["change"][(rows["low"] > 0) | (rows["high"] < 0)] > 0).sum())
        lower = int((better * rows["change"][(rows["low"] > 0) | (rows["high"] < 0)] < 0).sum())
        verdict = SUPPORTED if higher > lower else NOT_SUPPORTED if lower > higher else CANT_TELL
        if abs(spans[name] - spans[against]) < LEAST_BETTER:
            verdict = CANT_TELL
        first, second = (name, against) if better == 1 else (against, name)
        measured = (
            f"spans {spans[first]:.0%} and {spans[second]:.0%}; the better one's F1 is higher in {higher} and lower "
            f"in {lower} of {len(rows)} languages"
        )
        found.append((f"{first} over {second}", measured, verdict))
    return found


def _change(row) -> str:
    return f"F1 {100 * row.before:.1f} -> {100 * row.after:.1f} ({points(row.change, row.low, row.high)})"


def points(change: float, low: float, high: float) -> str:
    """A change in points, with its interval where there are contexts enough for one."""
    interval = "" if pd.isna(low) else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{100 * change:+.1f}{interval}"
