"""The figures of an experiment, and the curves that they draw."""

from pathlib import Path

import numpy as np
import pandas as pd

from utils.answers.predictions import PREDICTIONS, contexts, outcome, right_answers
from utils.experiments.presets import BASE, Experiment, is_finished
from utils.experiments.suppression import F1, apart_from_nulls
from utils.experiments.tables import BESIDE_NULLS, last_changes
from utils.figures.looks import IN, SAYS
from utils.figures.tuning import draw_changes, draw_epochs, draw_gains, draw_outcomes, draw_transfer
from utils.lens.probe_runs import ProbeRun
from utils.uncertainty import mean_interval


def layer_curves(experiment: Experiment, name: str, dataset: str) -> pd.DataFrame | None:
    """language_probs.csv of the base (epoch 0) and of a tuned model's epochs; None where no epoch is there."""
    runs = {epoch: experiment.probe(name, epoch, dataset) for epoch in (0, *experiment.probed_epochs)}
    finished = {epoch: run for epoch, run in runs.items() if is_finished(run)}
    if 0 not in finished or len(finished) < 2:
        return None
    tables = [ProbeRun(run).table.assign(epoch=epoch) for epoch, run in finished.items()]
    return pd.concat(tables, ignore_index=True)


def outcome_curves(experiment: Experiment, name: str, dataset: str) -> pd.DataFrame | None:
    """Layer curves of the base and of a tuned model's last probed epoch, apart for each outcome of the answers.

    prompt_lang, outcome, model (base or tuned), then language_probs.csv's columns; outcomes with one context alone are
    left out. None where a run is missing.
    """
    epochs = {"base": 0, "tuned": experiment.last_epoch}
    probes = {model: experiment.probe(name, epoch, dataset) for model, epoch in epochs.items()}
    answers = {"base": experiment.answers(BASE, dataset), "tuned": experiment.answers(name, dataset)}
    if not all(map(is_finished, (*probes.values(), *answers.values()))):
        return None
    right = {model: right_answers(run / PREDICTIONS) for model, run in answers.items()}
    context_of = contexts(answers["base"] / PREDICTIONS)
    runs = {model: ProbeRun(path) for model, path in probes.items()}
    prompts = runs["base"].prompts.copy()
    keys = list(zip(prompts["prompt_lang"], prompts["id"]))
    prompts["outcome"] = [
        outcome(right["base"][key], right["tuned"][key])
        if all(key in answered for answered in right.values())
        else None
        for key in keys
    ]
    prompts["context"] = [context_of.get(key) for key in keys]
    tables = []
    for (lang, of_outcome), rows in prompts.dropna(subset="outcome").groupby(["prompt_lang", "outcome"], sort=False):
        if rows["context"].nunique() < 2:
            continue
        # layer by layer; of a part of the prompts, it isn't known how many tokens a share rests on
        cells = runs["base"].cells(lang)[["prompt_lang", "layer", "channel", "null_share"]]
        for model, run in runs.items():
            chosen = run.influence[rows.index]  # [prompt, layer, channel]
            share = chosen.mean(axis=0, dtype=np.float64).ravel()
            low, high = np.clip(mean_interval(chosen, rows["context"].tolist()), 0, 1).reshape(2, -1)
            table = cells.assign(
                outcome=of_outcome,
                model=model,
                share=share,
                share_low=low,
                share_high=high,
                tokens=np.nan,
                n=len(rows),
                n_contexts=rows["context"].nunique(),
            )
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else None


def draw_all(folder: Path) -> list[Path]:
    """Every figure of a reported experiment that there are tables for; returns the PNGs, relative to the folder."""
    experiment = Experiment.load(folder)
    table, falls = (pd.read_csv(folder / name) for name in ("transfer.csv", "suppression.csv"))
    # a report of an older version compared no score with null runs
    table = table.reindex(columns=list(dict.fromkeys([*table, *BESIDE_NULLS]))).fillna({"null_runs": 0})
    table, falls = (rows[rows["training"].isin(experiment.sets)] for rows in (table, falls))  # seeds are in REPORT.md
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    paths = []
    if len(falls):
        falls = apart_from_nulls(falls, experiment.nulls)
        paths.append(draw_gains(falls, figures / "gains", experiment.model_name))
    for dataset, of_set in table[table["score"] == F1].groupby("dataset", sort=False):
        paths.append(draw_transfer(of_set, figures / f"transfer_{dataset}", f"{experiment.model_name} on {dataset}"))
    for name in experiment.sets:
        for dataset in experiment.probes:
            about = f"{experiment.model_name} tuned on {name}, {dataset}"
            of_set = f"{name}_{dataset}"
            if (curves := layer_curves(experiment, name, dataset)) is not None:
                says = SAYS.get(dataset, IN)
                paths += draw_epochs(curves, figures / f"epochs_{of_set}", about, says)
            if (outcomes := outcome_curves(experiment, name, dataset)) is not None:
                paths += draw_outcomes(outcomes, figures / f"outcomes_{of_set}", about)
            if (changes := last_changes(experiment, name, dataset)) is not None:
                nulls = len(experiment.nulls_of(name)) if "excess" in changes else 0
                dots = f"{about}, dots: beyond {nulls} null runs" if nulls else about
                paths += draw_changes(changes, figures / f"changes_{of_set}", dots)
    return [path.relative_to(folder) for path in paths]
