"""Records of a model with and without forced neurons -> tables of what changed, and claims with their verdicts.

records: (condition, k) -> language -> arrays: `pooled` [sentence, width] and `losses` [sentence] in each, `centre`
[width] in the base's; `lens`, `written`, `told` and `texts` where they were asked for. Conditions: base, expert,
random.
"""

from itertools import permutations

import numpy as np
import pandas as pd

from utils.neurons.retrieval import centred, distance_matrix, paired_rows, pairs_of, retrieval_matrix
from utils.uncertainty import bootstrap_interval, paired_changes

Records = dict[tuple[str, int], dict[str, dict[str, np.ndarray]]]
BASE = ("base", 0)
CENTRED = ("centred", 0)
CHANGES = ["measure", "condition", "k", "against", "language", "other", "before", "after", "change", "low", "high", "p"]
CLAIM = ["claim", "k", "against", "before", "after", "change", "low", "high", "p", "verdict"]


def effect_tables(records: Records, langs: list[str], target: str) -> dict[str, pd.DataFrame]:
    """alignment.csv, retrieval.csv, changes.csv, perplexity.csv.

    `centred`: the base's states less each language's mean. Means come from the sentences that found the neurons, not
    from those that are compared here.
    """
    states = {key: {lang: of_lang[lang]["pooled"] for lang in langs} for key, of_lang in records.items()}
    base = records[BASE]
    states[CENTRED] = centred(states[BASE], {lang: base[lang]["centre"] for lang in langs})
    measures = {
        "distance": ({key: distance_matrix(of_key) for key, of_key in states.items()}, pairs_of(langs)),
        "retrieval": (
            {key: retrieval_matrix(of_key) for key, of_key in states.items()},
            list(permutations(langs, 2)),
        ),
    }
    names = {"distance": "alignment.csv", "retrieval": "retrieval.csv"}
    tables = {names[name]: _levels(matrices, pairs) for name, (matrices, pairs) in measures.items()}
    tables["changes.csv"] = _changes(measures, target)
    if any(len(of_lang["losses"]) for of_lang in base.values()):
        tables["perplexity.csv"] = _perplexities(records, langs)
    return tables


def _levels(matrices: dict, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """A row a condition and pair: the mean with its interval over sentences."""
    rows = []
    for (name, k), matrix in matrices.items():
        lows, highs = bootstrap_interval(matrix, list(range(len(matrix))))
        for (one, other), mean, low, high in zip(pairs, matrix.mean(axis=0), lows, highs):
            rows.append(
                {
                    "condition": name,
                    "k": k,
                    "language": one,
                    "other": other,
                    "mean": mean,
                    "low": low,
                    "high": high,
                    "n": len(matrix),
                }
            )
    return pd.DataFrame(rows)


def comparisons(keys: list[tuple[str, int]]) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """(condition, what it is compared with): all with the base; experts with random neurons and with centring too."""
    found = [(key, BASE) for key in keys if key != BASE]
    for name, k in keys:
        if name == "expert":
            found += [((name, k), ("random", k)), ((name, k), CENTRED)]
    return found


def _changes(measures: dict, target: str) -> pd.DataFrame:
    rows = []
    for measure, (matrices, pairs) in measures.items():
        for key, against in comparisons(list(matrices)):
            for row in paired_rows(matrices[against], matrices[key], pairs, target):
                rows.append({"measure": measure, "condition": key[0], "k": key[1], "against": against[0], **row})
    return pd.DataFrame(rows)[CHANGES]


def _perplexities(records: Records, langs: list[str]) -> pd.DataFrame:
    """A row a condition and language: the perplexity, and the change of the loss (nats a token) from the base's."""
    rows = []
    for (name, k), of_lang in records.items():
        for lang in langs:
            losses, base = of_lang[lang]["losses"], records[BASE][lang]["losses"]
            known = np.isfinite(losses) & np.isfinite(base)
            changes = paired_changes(base[known, None], losses[known, None], list(range(int(known.sum()))))
            rows.append(
                {
                    "condition": name,
                    "k": k,
                    "language": lang,
                    "perplexity": float(np.exp(losses[known].mean())),
                    "loss": float(losses[known].mean()),
                    **{field: float(changes[field][0]) for field in ("change", "low", "high", "p")},
                    "n": int(known.sum()),
                }
            )
    return pd.DataFrame(rows)


def share_table(records: Records, channels: list[str], least: float) -> pd.DataFrame:
    """The lens's shares by layer in each condition, where at least `least`: a row a language, layer and channel."""
    rows = []
    for (name, k), of_lang in records.items():
        for lang, arrays in of_lang.items():
            for layer, channel in np.argwhere(arrays["lens"] >= least) if "lens" in arrays else ():
                share = arrays["lens"][layer, channel]
                row = {"condition": name, "k": k, "prompt_lang": lang, "layer": layer}
                rows.append({**row, "channel": channels[channel], "share": share})
    return pd.DataFrame(rows)


def written_table(records: Records, channels: list[str], target: str) -> pd.DataFrame:
    """What was written: the target's share of all tokens, and how many continuations are told to be in it.

    told: the share of continuations, with its interval, and its change from the base's, over sentences.
    """
    rows = []
    for (name, k), of_lang in records.items():
        for lang, arrays in of_lang.items():
            if "told" not in arrays:
                continue
            told, base = arrays["told"], records[BASE][lang]["told"]
            low, high = bootstrap_interval(told, list(range(len(told))))
            changes = paired_changes(base[:, None], told[:, None], list(range(len(told))))
            rows.append(
                {
                    "condition": name,
                    "k": k,
                    "prompt_lang": lang,
                    "share": arrays["written"][channels.index(target)] if target in channels else np.nan,
                    "told": told.mean(),
                    "told_low": low,
                    "told_high": high,
                    **{field: float(changes[field][0]) for field in ("change", "low", "high", "p")},
                    "n": len(told),
                }
            )
    return pd.DataFrame(rows)


def text_table(records: Records) -> pd.DataFrame:
    rows = [
        {"condition": name, "k": k, "prompt_lang": lang, "sentence": i, "text": str(text)}
        for (name, k), of_lang in records.items()
        for lang, arrays in of_lang.items()
        for i, text in enumerate(arrays.get("texts", ()))
    ]
    return pd.DataFrame(rows)


# Claims. The rules were fixed before any run; docs/neurons.md has them in words.


def verdict_of(low: float, high: float, rises: bool) -> str:
    """holds: the whole interval is on the claimed side of zero; reversed: on the other; not seen: neither."""
    if not rises:
        low, high = -high, -low
    return "holds" if low > 0 else "reversed" if high < 0 else "not seen"


def steering_claims(records: Records, tables: dict[str, pd.DataFrame], target: str) -> pd.DataFrame:
    """Each claim for each k against each control: what was before and after, the change with its interval, verdict."""
    rows = []
    changes = tables["changes.csv"]
    of_all = changes[(changes["condition"] == "expert") & (changes["language"] == "all") & (changes["other"] == "all")]
    for row in of_all.to_dict("records"):
        claim = "alignment rises" if row["measure"] == "distance" else "retrieval rises"
        verdict = verdict_of(row["low"], row["high"], rises=row["measure"] == "retrieval")
        rows.append({**row, "claim": claim, "verdict": verdict})
    rows += _doubling(changes)
    for k in sorted({k for name, k in records if name == "expert"}):
        for against in (BASE, ("random", k)):
            expert, other = records["expert", k], records[against]
            others = [lang for lang in expert if lang != target]
            if "told" in expert[target]:
                before, after = (np.stack([side[lang]["told"] for lang in others], axis=1) for side in (other, expert))
                claim = "the target is written more, after openings in other languages"
                rows.append(_claim(claim, True, k, against, before.mean(axis=1), after.mean(axis=1)))
            if len(expert[target]["losses"]):
                on_target = [side[target]["losses"] for side in (other, expert)]
                rows.append(_claim("loss falls on the target's text", False, k, against, *on_target))
                costs = [
                    np.stack([side[lang]["losses"] for lang in others], 1).mean(axis=1) for side in (other, expert)
                ]
                rows.append(_claim("loss rises on other text", True, k, against, *costs))
    return pd.DataFrame(rows)[CLAIM]


def _claim(claim: str, rises: bool, k: int, against: tuple, before: np.ndarray, after: np.ndarray) -> dict:
    """before, after: [sentence]."""
    known = np.isfinite(before) & np.isfinite(after)
    changes = paired_changes(before[known, None], after[known, None], list(range(int(known.sum()))))
    row = {name: float(values[0]) for name, values in changes.items()}
    return {"claim": claim, "k": k, "against": against[0], **row, "verdict": verdict_of(row["low"], row["high"], rises)}


def _doubling(changes: pd.DataFrame) -> list[dict]:
    """Retrieval at most doubles: over ordered pairs, the median and the largest of after / before.

    before: 1, after: the median ratio, change: their difference; low and high: the smallest and the largest change of a
    pair, which is no interval. holds: no pair has more than twice what it had.
    """
    pairs = changes[
        (changes["measure"] == "retrieval") & (changes["against"] == "base") & (changes["language"] != "all")
    ]
    rows = []
    for k, table in pairs[(pairs["condition"] == "expert") & (pairs["before"] > 0)].groupby("k"):
        ratio = table["after"] / table["before"]
        row = {"before": 1.0, "after": ratio.median(), "change": ratio.median() - 1, "p": np.nan}
        row |= {"low": ratio.min() - 1, "high": ratio.max() - 1}
        verdict = "holds" if ratio.max() <= 2 else "fails"
        rows.append(
            {"claim": "retrieval at most doubles, pair by pair", "k": k, "against": "base", **row, "verdict": verdict}
        )
    return rows
