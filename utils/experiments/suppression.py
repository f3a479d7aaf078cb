"""Does what tuning suppresses inside a model explain what it gains? The fall of interfering languages, and F1."""

from pathlib import Path

import numpy as np
import pandas as pd

from utils.answers.predictions import PREDICTIONS, contexts, right_answers
from utils.experiments.presets import BASE, Experiment, is_finished
from utils.languages import OTHER_CHANNELS, language_name
from utils.lens.probe_runs import FEWEST_TOKENS, ProbeRun
from utils.uncertainty import FEWEST_SETS, N_SET_RESAMPLES, odds_ratio, paired_changes

F1 = "multilingual_f1"
COLUMNS = [
    *("training", "dataset", "lang", "channels", "before", "after", "change", "low", "high", "n"),
    *("gain", "gain_low", "gain_high", "odds_ratio", "odds_low", "odds_high", "newly_right", "both_wrong"),
]
N_INTERFERING = 2  # English is one of them nearly always, and need not be the one that tuning lowers


def interfering_channels(table: pd.DataFrame, prompt_lang: str) -> list[str]:
    """The N_INTERFERING languages that peak highest above their nulls in the base's upper half, but the prompt's own.

    table: rows of the base's language_probs.csv. The upper half: where the answer takes shape, and where single odd
    tokens no longer lead. By the peak, since a language may come at the last layers alone. A share that rests on
    fewer than FEWEST_TOKENS tokens is no language's.
    """
    table = table[(table["prompt_lang"] == prompt_lang) & (table["channel"] != prompt_lang)]
    table = table[~table["channel"].isin(OTHER_CHANNELS) & (table["tokens"] >= FEWEST_TOKENS)]
    upper = table[table["layer"] >= (table["layer"].max() + 1) // 2]
    above = (upper["share"] - upper["null_share"]).groupby(upper["channel"], sort=False).max()
    return above.sort_values(ascending=False, kind="stable").index[:N_INTERFERING].tolist()


def upper_half(probs: np.ndarray) -> np.ndarray:
    """Mean over the layers from the middle to the last: [prompt, layer, channel] -> [prompt, channel]."""
    return probs[:, probs.shape[1] // 2 :].mean(axis=1, dtype=np.float64)


def language_names(channels: str) -> str:
    """`eng_Latn ben_Beng` -> English + Bengali."""
    return " + ".join(map(language_name, channels.split()))


def suppression(experiment: Experiment, transfer: pd.DataFrame) -> pd.DataFrame:
    """A row a tuned model and prompt language: COLUMNS.

    channels: the interfering ones, with blanks between; before, after, change: their shares together, mean over the
    upper half of the layers, the change with its interval by resampling contexts; gain: the change of F1 in that
    language, of all questions that were asked.
    odds_ratio: how the odds of becoming right change where they fall by one standard deviation more, among
    the probed questions that the base gets wrong (logistic, errors clustered by context); NaN where fewer than
    FEWEST_OF_AN_OUTCOME became right, or stayed wrong.
    """
    gains = transfer[transfer["score"] == F1].set_index(["training", "dataset", "lang"])
    rows = []
    for name in experiment.training:
        for dataset in experiment.probes:
            base, tuned = (experiment.probe(name, epoch, dataset) for epoch in (0, experiment.last_epoch))
            answers = [experiment.answers(model, dataset) for model in (BASE, name)]
            if not all(map(is_finished, (base, tuned, *answers))):
                continue
            for lang, table in _paired(base, tuned, answers):
                gain = gains.loc[(name, dataset, lang)] if (name, dataset, lang) in gains.index else {}
                measured = {f"gain{end}": gain.get(key, np.nan) for end, key in _GAIN}
                rows.append({"training": name, "dataset": dataset, "lang": lang, **_of_pair(table), **measured})
    return pd.DataFrame(rows, columns=COLUMNS)


_GAIN = (("", "change"), ("_low", "low"), ("_high", "high"))


def _paired(base: Path, tuned: Path, answers: list[Path]):
    """(language, a row a prompt that was asked: channels, before, after, context, right_before, right_after)."""
    runs = [ProbeRun(path) for path in (base, tuned)]
    prompts, table, channels = runs[0].prompts, runs[0].table, runs[0].channels
    before, after = (run.influence for run in runs)
    context_of = contexts(answers[0] / PREDICTIONS)
    right = [right_answers(run / PREDICTIONS) for run in answers]
    answered = context_of.keys() & right[0].keys() & right[1].keys()
    for lang, of_lang in prompts.groupby("prompt_lang", sort=False):
        keys = [(lang, id) for id in of_lang["id"]]
        asked = [i for i, key in enumerate(keys) if key in answered]
        if not asked:
            continue
        rows = of_lang.index[asked]
        interfering = interfering_channels(table, lang)
        columns = [channels.index(code) for code in interfering]
        yield (
            lang,
            pd.DataFrame(
                {
                    "channels": " ".join(interfering),
                    "before": upper_half(before[rows])[:, columns].sum(axis=1),
                    "after": upper_half(after[rows])[:, columns].sum(axis=1),
                    "context": [context_of[keys[i]] for i in asked],
                    "right_before": [right[0][keys[i]] for i in asked],
                    "right_after": [right[1][keys[i]] for i in asked],
                }
            ),
        )


def _of_pair(table: pd.DataFrame) -> dict:
    before, after = (table[side].to_numpy()[:, None] for side in ("before", "after"))
    changes = paired_changes(before, after, table["context"].tolist())
    kept = ("before", "after", "change", "low", "high")
    wrong = table[~table["right_before"]]
    newly_right = wrong["right_after"].to_numpy(dtype=bool)
    ratio = odds_ratio((wrong["before"] - wrong["after"]).to_numpy(), newly_right, wrong["context"].tolist())
    return {
        "channels": table["channels"].iloc[0],
        **{key: float(changes[key][0]) for key in kept},
        "n": len(table),
        **dict(zip(("odds_ratio", "odds_low", "odds_high"), ratio)),
        "newly_right": int(newly_right.sum()),
        "both_wrong": int((~newly_right).sum()),
    }


def correlation(table: pd.DataFrame, seed: int = 42) -> tuple[float, float, float, int]:
    """(r, low, high, n training sets) of the interfering languages' fall with the gain, over models and languages.

    table: `suppression`'s. Both are taken from their mean in each language, so that languages that differ in both
    are no finding. The interval (95%) is a bootstrap's over training sets, all languages of one together; NaN with
    fewer than FEWEST_SETS; r is NaN too where nothing varies.
    """
    table = table.dropna(subset=["change", "gain"])
    sets = list(dict.fromkeys(table["training"]))
    r = _correlation(table)
    if len(sets) < FEWEST_SETS or np.isnan(r):
        return r, np.nan, np.nan, len(sets)
    of_set = {name: rows for name, rows in table.groupby("training", sort=False)}
    rng = np.random.default_rng(seed)
    drawn = [
        _correlation(pd.concat([of_set[sets[i]] for i in rng.integers(len(sets), size=len(sets))]))
        for _ in range(N_SET_RESAMPLES)
    ]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return r, float(low), float(high), len(sets)


def _correlation(table: pd.DataFrame) -> float:
    within = table.groupby(["dataset", "lang"])[["change", "gain"]].transform(lambda values: values - values.mean())
    fall, gain = -within["change"].to_numpy(), within["gain"].to_numpy()
    scale = np.sqrt((fall**2).sum() * (gain**2).sum())
    return float((fall * gain).sum() / scale) if scale > 1e-12 else np.nan
