"""Does what tuning suppresses inside a model explain what it gains? The fall of interfering languages, and F1."""

from pathlib import Path

import numpy as np
import pandas as pd

from utils.answers.predictions import PREDICTIONS, contexts, right_answers
from utils.experiments.presets import BASE, Experiment, is_finished
from utils.languages import OTHER_CHANNELS, language_name
from utils.lens.probe_runs import FEWEST_TOKENS, ProbeRun
from utils.uncertainty import (
    FEWEST_NULLS,
    FEWEST_SETS,
    against_null,
    odds_ratio,
    paired_changes,
    permutation_p,
)

F1 = "multilingual_f1"
COLUMNS = [
    *("training", "dataset", "lang", "channels", "before", "after", "change", "null_change", "null_runs"),
    *("low", "high", "p", "n", "n_contexts", "gain", "gain_low", "gain_high", "gain_p"),
    *("gain_beyond", "gain_beyond_p"),
    *("odds_ratio", "odds_low", "odds_high", "odds_p", "newly_right", "both_wrong"),
]
N_INTERFERING = 2  # English is one of them nearly always, and need not be the one that tuning lowers


def interfering_channels(base: pd.DataFrame, tuned: pd.DataFrame, prompt_lang: str) -> list[str]:
    """The N_INTERFERING languages, but the prompt's own, that peak highest above their nulls in the upper half.

    base, tuned: rows of both models' language_probs.csv; what peaks is the mean of the two. Chosen on the base alone,
    a language that is high there by chance falls in any other model; by the mean, falls and rises are as likely. The
    upper half: where the answer takes shape, and where single odd tokens no longer lead. By the peak, since a language
    may come at the last layers alone. A share that rests on fewer than FEWEST_TOKENS tokens is no language's.
    """
    keys, values = ["channel", "layer"], ["share", "null_share", "tokens"]
    of_lang = [model[model["prompt_lang"] == prompt_lang].set_index(keys)[values] for model in (base, tuned)]
    table = ((of_lang[0] + of_lang[1].reindex(of_lang[0].index)) / 2).reset_index()
    table = table[(table["channel"] != prompt_lang) & ~table["channel"].isin(OTHER_CHANNELS)]
    upper = table[(table["layer"] >= (table["layer"].max() + 1) // 2) & (table["tokens"] >= FEWEST_TOKENS)]
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
    upper half of the layers; gain: the change of F1 in that language, of all questions that were asked; gain_beyond:
    what it exceeds the null runs' by.
    null_change: the mean change of the experiment's null runs (`Experiment.nulls`: tuned on answers of other
    questions), each in the languages chosen for it by the same rule; low, high, p: of what the change exceeds that by
    (`against_null`). With fewer than FEWEST_NULLS of these, null_runs is 0, and low, high and p are of the change of
    these checkpoints alone. A null run's own row is beside the others.
    odds_ratio: how the odds of becoming right change where they fall by one standard deviation more, among
    the probed questions that the base gets wrong (`odds_ratio`).
    """
    gains = transfer[transfer["score"] == F1].set_index(["training", "dataset", "lang"])
    rows, differences, of_context = [], [], []
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
                differences.append((table["after"] - table["before"]).to_numpy())
                of_context.append(table["context"].tolist())
    return beside_nulls(pd.DataFrame(rows, columns=COLUMNS), differences, of_context, experiment.nulls)


_GAIN = (
    *(("", "change"), ("_low", "low"), ("_high", "high"), ("_p", "p")),
    *(("_beyond", "excess"), ("_beyond_p", "excess_p")),
)


def beside_nulls(
    table: pd.DataFrame, differences: list[np.ndarray], of_context: list[list], nulls: list[str]
) -> pd.DataFrame:
    """The table with each change beside those of the null runs in its data set and language; a null run's, beside
    those of the other ones.

    differences, of_context: of each row, [prompt] changes and the prompts' contexts. Raises ValueError where rows of a
    data set and language are of other prompts.
    """
    table = table.assign(null_runs=0)
    measured = table.copy()
    for i, row in enumerate(table.itertuples()):
        same = (table["dataset"] == row.dataset) & (table["lang"] == row.lang)
        of_nulls = np.flatnonzero(same & table["training"].isin(nulls) & (table["training"] != row.training))
        if len(of_nulls) < FEWEST_NULLS:
            continue
        for k in of_nulls:
            if of_context[k] != of_context[i]:
                other = table["training"].iloc[k]
                raise ValueError(f"{row.training} and {other}: not the same prompts of {row.dataset} in {row.lang}")
        of_runs = np.stack([differences[k] for k in of_nulls])
        found = against_null(differences[i], of_runs, of_context[i])
        values = (of_runs.mean(), len(of_nulls), *(float(found[end]) for end in ("low", "high", "p")))
        measured.loc[i, ["null_change", "null_runs", "low", "high", "p"]] = values
    return measured.astype({"null_runs": int, "null_change": float})


def _paired(base: Path, tuned: Path, answers: list[Path]):
    """(language, a row a prompt that was asked: channels, before, after, context, right_before, right_after)."""
    runs = [ProbeRun(path) for path in (base, tuned)]
    prompts, channels = runs[0].prompts, runs[0].channels
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
        interfering = interfering_channels(runs[0].table, runs[1].table, lang)
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
    kept = ("before", "after", "change", "low", "high", "p")
    wrong = table[~table["right_before"]]
    newly_right = wrong["right_after"].to_numpy(dtype=bool)
    ratio = odds_ratio((wrong["before"] - wrong["after"]).to_numpy(), newly_right, wrong["context"].tolist())
    return {
        "channels": table["channels"].iloc[0],
        **{key: float(changes[key][0]) for key in kept},
        "n": len(table),
        "n_contexts": table["context"].nunique(),
        **ratio,
        "newly_right": int(newly_right.sum()),
        "both_wrong": int((~newly_right).sum()),
    }


def apart_from_nulls(table: pd.DataFrame, nulls: list[str]) -> pd.DataFrame:
    """Without the null runs, where the other models are compared with them: what they change is the zero then.

    A null run has lost what the base could do as well as kept its languages inside, and so would make a correlation
    of fall and gain by itself.
    """
    return table[~table["training"].isin(nulls)] if table["null_runs"].max() else table


def correlation(table: pd.DataFrame, seed: int = 42) -> tuple[float, float, int]:
    """(r, p, n training sets) of the interfering languages' fall with the gain, over models and languages.

    table: `suppression`'s. Both are taken from their mean in each language, so that languages that differ in both
    are no finding. p: of the orders of the training sets, all languages of one together (`permutation_p`), where every
    set has the same languages; NaN with fewer than FEWEST_SETS; r is NaN too where nothing varies.
    """
    table = table.dropna(subset=["change", "gain"])
    r, n = _correlation(table), table["training"].nunique()
    sides = [
        table.pivot_table(index="training", columns=["dataset", "lang"], values=side).dropna(axis=1)
        for side in ("change", "gain")
    ]
    if n < FEWEST_SETS or np.isnan(r) or sides[0].empty:
        return r, np.nan, n
    fall, gain = (side.to_numpy() - side.to_numpy().mean(axis=0) for side in sides)  # [training set, language]
    p = permutation_p(lambda orders: np.einsum("ij,oij->o", fall, gain[orders]), n, seed)
    return r, p, n


def _correlation(table: pd.DataFrame) -> float:
    within = table.groupby(["dataset", "lang"])[["change", "gain"]].transform(lambda values: values - values.mean())
    fall, gain = -within["change"].to_numpy(), within["gain"].to_numpy()
    scale = np.sqrt((fall**2).sum() * (gain**2).sum())
    return float((fall * gain).sum() / scale) if scale > 1e-12 else np.nan
