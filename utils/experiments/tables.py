"""The tables of an experiment, joined from its runs."""

import json

import pandas as pd

from utils.experiments.presets import BASE, Experiment, is_finished
from utils.runs import METRICS
from utils.uncertainty import FALSE_DISCOVERY_RATE

N_SHOWN = 5
SCORED = ["dataset", "lang", "score"]  # what a change of a score is of, beside the training set
SCORE_COLUMNS = "lang score before after change low high p double_low double_high double_p n n_contexts".split()

BESIDE_NULLS = "null_runs null_change excess excess_low excess_high excess_p".split()


def transfer(experiment: Experiment) -> pd.DataFrame:
    """training, dataset, then compare_runs.py's columns of scores: a row a training set, language and score.

    Then BESIDE_NULLS: how many null runs the change is compared with, their mean change, and what the change exceeds
    it by, with interval and p over runs and contexts; null_runs is 0, and the others NaN, where it is with none.
    """
    columns = ["training", "dataset", *SCORE_COLUMNS]
    tables = [pd.DataFrame(columns=[*columns, *BESIDE_NULLS])]
    for name in experiment.training:
        for dataset in experiment.evaluation:
            run = experiment.changes(experiment.answers(name, dataset))
            if is_finished(run):
                table = pd.read_csv(run / "scores.csv").assign(training=name, dataset=dataset)
                table = table.reindex(columns=columns)  # comparisons of an older version have fewer
                tables.append(table.merge(_beside_nulls(experiment, name, dataset), on=["lang", "score"], how="left"))
    table = _joined(tables)
    return table.assign(null_runs=table["null_runs"].fillna(0).astype(int))


def _beside_nulls(experiment: Experiment, name: str, dataset: str) -> pd.DataFrame:
    """lang, score, BESIDE_NULLS; no row where that comparison is not there."""
    run = experiment.changes_beside_nulls(experiment.answers(name, dataset))
    if not is_finished(run):
        return pd.DataFrame(columns=["lang", "score", *BESIDE_NULLS])
    of_excess = {"low": "excess_low", "high": "excess_high", "p": "excess_p"}
    table = pd.read_csv(run / "scores.csv").rename(columns=of_excess)
    return table.assign(null_runs=len(experiment.nulls_of(name)))[["lang", "score", *BESIDE_NULLS]]


def seeds(experiment: Experiment, table: pd.DataFrame, keys: list[str], value: str = "change") -> pd.DataFrame:
    """Of each set that was tuned with several seeds, by `keys`: n_seeds, and mean, lowest, highest, spread of `value`.

    table: a row a tuning and `keys`. spread: highest - lowest.
    """
    columns = ["training", *keys, "n_seeds", "mean", "lowest", "highest", "spread"]
    rows = []
    for name in experiment.sets:
        tunings = table[table["training"].isin(experiment.seeds_of(name))]
        for key, values in tunings.groupby(keys, sort=False)[value]:
            if len(values) > 1:
                ends = values.min(), values.max()
                rows.append((name, *key, len(values), values.mean(), *ends, ends[1] - ends[0]))
    return pd.DataFrame(rows, columns=columns)


def spread_of_seeds(experiment: Experiment, table: pd.DataFrame, keys: list[str], value: str = "change") -> pd.Series:
    """The spread of `value` over the seeds of each row's set, by the table's index; NaN where it was tuned once."""
    known = seeds(experiment, table, keys, value).set_index(["training", *keys])["spread"].to_dict()
    of_rows = zip(*(table[column] for column in ["training", *keys]))
    return pd.Series([known.get(key, float("nan")) for key in of_rows], index=table.index, dtype=float)


def pairs(experiment: Experiment) -> pd.DataFrame:
    """training, against, dataset, then compare_runs.py's columns: what one training set does over another."""
    columns = ["training", "against", "dataset", *SCORE_COLUMNS]
    tables = [pd.DataFrame(columns=columns)]
    for name, against in experiment.pairs:
        for dataset in experiment.evaluation:
            run = experiment.changes_of_pair(name, against, dataset)
            if is_finished(run):
                tables.append(pd.read_csv(run / "scores.csv").assign(training=name, against=against, dataset=dataset))
    return _joined(tables).reindex(columns=columns)  # comparisons of an older version have fewer


def lengths(experiment: Experiment) -> pd.DataFrame:
    """How long answers are: a row a model (`base` or a training set), data set and language.

    tokens_beyond_gold: mean; overgeneration: share of questions whose answer has the gold one and more;
    stopped_by_length: share of answers that were cut at the limit of new tokens.
    """
    columns = ["training", "dataset", "lang", "tokens_beyond_gold", "overgeneration", "stopped_by_length", "n"]
    rows = []
    for name in (BASE, *experiment.training):
        for dataset in experiment.evaluation:
            path = experiment.answers(name, dataset) / METRICS
            if not path.exists():
                continue
            for lang, summary in json.loads(path.read_text(encoding="utf-8"))["languages"].items():
                beyond, over = summary["overgeneration"]["tokens"], summary["misses"]["overgeneration"]
                stopped = summary["stopped_by"].get("length", 0.0)
                rows.append((name, dataset, lang, beyond, over, stopped, summary["n"]))
    return pd.DataFrame(rows, columns=columns)


def extremes(experiment: Experiment) -> pd.DataFrame:
    """The channels that fall and rise most from the base to each tuned model after the last probed epoch.

    Of the cells whose false discovery rate is at most 5%, each channel at the layer where it changes most: by `beyond`,
    its change, or what that exceeds the null runs' by; low and high are of that, and null_change is NaN where there are
    no null runs.
    """
    columns = ["training", "dataset", *"prompt_lang channel layer before after change null_change beyond".split()]
    columns += "low high q n n_contexts".split()
    tables = [pd.DataFrame(columns=columns)]
    for name in experiment.training:
        for dataset in experiment.probes:
            changes = last_changes(experiment, name, dataset)
            if changes is None:
                continue
            changes = changes.assign(beyond=changes["excess"] if "excess" in changes else changes["change"])
            found = changes[changes["q"] <= FALSE_DISCOVERY_RATE]
            for _, of_lang in found.groupby("prompt_lang", sort=False):
                for ascending in (True, False):
                    signed = of_lang[(of_lang["beyond"] < 0) == ascending].sort_values("beyond", ascending=ascending)
                    top = signed.drop_duplicates("channel").head(N_SHOWN)
                    tables.append(top.assign(training=name, dataset=dataset))
    return _joined(tables).reindex(columns=columns)  # comparisons of an older version have fewer


def last_changes(experiment: Experiment, name: str, dataset: str) -> pd.DataFrame | None:
    """changes.csv from the base to a tuned model after the last probed epoch, beside the null runs where that is there;
    None where neither is."""
    probe = experiment.probe(name, experiment.last_epoch, dataset)
    runs = (experiment.changes_beside_nulls(probe), experiment.changes(probe))
    run = next((run for run in runs if is_finished(run)), None)
    if run is None:
        return None
    # `nan` may be the name of a channel; an interval that isn't there is an empty cell.
    return pd.read_csv(run / "changes.csv", keep_default_na=False, na_values={"low": [""], "high": [""]})


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Tables under one another; the first has the columns and no row."""
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
