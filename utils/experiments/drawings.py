"""The figures of an experiment, and the curves that they draw."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from utils.answers.predictions import PREDICTIONS, contexts, outcome, right_answers
from utils.experiments.presets import EXPERIMENT
from utils.experiments.suppression import F1
from utils.experiments.tables import last_changes
from utils.figures.style import IN, INTO, TRANSLATED
from utils.figures.tuning import draw_changes, draw_epochs, draw_gains, draw_outcomes, draw_transfer
from utils.lens.probe_runs import PROBABILITIES
from utils.runs import METRICS
from utils.uncertainty import Z_95, standard_error


def layer_curves(folder: Path, experiment: dict, name: str, dataset: str) -> pd.DataFrame | None:
    """language_probs.csv of the base (epoch 0) and of a tuned model's epochs; None where no epoch is there."""
    runs = {0: folder / "probes" / f"base-{dataset}"}
    runs |= {epoch: folder / "probes" / f"{name}-epoch-{epoch}-{dataset}" for epoch in experiment["probed_epochs"]}
    there = {epoch: run for epoch, run in runs.items() if (run / METRICS).exists()}
    if 0 not in there or len(there) < 2:
        return None
    tables = [
        pd.read_csv(run / PROBABILITIES, keep_default_na=False, na_values={"share_low": "", "share_high": ""}).assign(
            epoch=epoch
        )
        for epoch, run in there.items()
    ]
    return pd.concat(tables, ignore_index=True)


def outcome_curves(folder: Path, experiment: dict, name: str, dataset: str) -> pd.DataFrame | None:
    """Layer curves of the base and of a tuned model's last probed epoch, apart for each outcome of the answers.

    prompt_lang, outcome, model (base or tuned), then language_probs.csv's columns; outcomes with one context alone are
    left out, since nothing can be said of their error. None where a run is missing.
    """
    probes = {
        "base": folder / "probes" / f"base-{dataset}",
        "tuned": folder / "probes" / f"{name}-epoch-{max(experiment['probed_epochs'])}-{dataset}",
    }
    answers = {"base": folder / "answers" / f"base-{dataset}", "tuned": folder / "answers" / f"{name}-{dataset}"}
    if not all((run / METRICS).exists() for run in (*probes.values(), *answers.values())):
        return None
    right = {model: right_answers(run / PREDICTIONS) for model, run in answers.items()}
    context_of = contexts(answers["base"] / PREDICTIONS)
    prompts = pd.read_csv(probes["base"] / "prompts.csv", dtype={"id": str})
    keys = list(zip(prompts["prompt_lang"], prompts["id"]))
    prompts["outcome"] = [
        outcome(right["base"][key], right["tuned"][key]) if all(key in of for of in right.values()) else None
        for key in keys
    ]
    prompts["context"] = [context_of.get(key) for key in keys]
    shares = {model: np.load(run / "influence.npy", allow_pickle=False) for model, run in probes.items()}
    whole = pd.read_csv(probes["base"] / PROBABILITIES, keep_default_na=False)
    tables = []
    for (lang, of_outcome), rows in prompts.dropna(subset="outcome").groupby(["prompt_lang", "outcome"], sort=False):
        if rows["context"].nunique() < 2:
            continue
        # layer by layer; of a part of the prompts, it isn't known how many tokens a share rests on
        cells = whole.loc[whole["prompt_lang"] == lang, ["prompt_lang", "layer", "channel", "null_share"]]
        for model, values in shares.items():
            chosen = values[rows.index]  # [prompt, layer, channel]
            share = chosen.mean(axis=0, dtype=np.float64).ravel()
            margin = Z_95 * standard_error(chosen, rows["context"].tolist()).ravel()
            table = cells.assign(
                outcome=of_outcome,
                model=model,
                share=share,
                share_low=np.clip(share - margin, 0, 1),
                share_high=np.clip(share + margin, 0, 1),
                tokens=np.nan,
                n=len(rows),
            )
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else None


def draw_all(folder: Path) -> list[Path]:
    """Every figure of a reported experiment that there are tables for; returns the PNGs, relative to the folder."""
    experiment = json.loads((folder / EXPERIMENT).read_text(encoding="utf-8"))
    table, falls = (pd.read_csv(folder / name) for name in ("transfer.csv", "suppression.csv"))
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    paths = []
    if len(falls):
        paths.append(draw_gains(falls, figures / "gains", Path(experiment["model"]).name))
    for dataset, of_set in table[table["score"] == F1].groupby("dataset", sort=False):
        paths.append(
            draw_transfer(of_set, figures / f"transfer_{dataset}", f"{Path(experiment['model']).name} on {dataset}")
        )
    for name in experiment["training"]:
        for dataset in experiment["probes"]:
            about = f"{Path(experiment['model']).name} tuned on {name}, {dataset}"
            of_set = f"{name}_{dataset}"
            if (curves := layer_curves(folder, experiment, name, dataset)) is not None:
                says = INTO if dataset in TRANSLATED else IN
                paths += draw_epochs(curves, figures / f"epochs_{of_set}", about, says)
            if (outcomes := outcome_curves(folder, experiment, name, dataset)) is not None:
                paths += draw_outcomes(outcomes, figures / f"outcomes_{of_set}", about)
            if (changes := last_changes(folder, experiment, name, dataset)) is not None:
                paths += draw_changes(changes, figures / f"changes_{of_set}", about)
    return [path.relative_to(folder) for path in paths]
