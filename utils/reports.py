"""Finished runs of an experiment -> REPORT.md, its tables and figures; a verdict on each claim by fixed rules."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from utils.comparisons import FALSE_DISCOVERY_RATE, outcome
from utils.figures import PROBABILITIES, draw_epochs, draw_outcomes, draw_transfer
from utils.languages import language_name, short_code
from utils.predictions import PREDICTIONS, contexts, right_answers
from utils.results import METRICS, standard_error, write_atomically, write_table

F1, EM, SQUAD_F1 = "multilingual_f1", "multilingual_exact_match", "squad_f1"
SUPPORTED, NOT_SUPPORTED, CANT_TELL = "supported", "not supported", "can't tell here"
# Doubling a score that is next to nothing is no finding.
LEAST_TO_DOUBLE = 0.02
HIGH_RESOURCE = ("eng_Latn", "deu_Latn", "rus_Cyrl", "spa_Latn", "fra_Latn")
LOW_RESOURCE = ("ory_Orya", "asm_Beng")
N_SHOWN = 5


def write_report(folder: Path, experiment: dict, failures: list[dict]) -> Path:
    """REPORT.md, transfer.csv, lengths.csv, extremes.csv and figures/ in the experiment's folder, from what is there.

    experiment: model; training, name -> (language, split); evaluation and probes, data set -> languages;
    probed_epochs. failures: what did not run, with `name`, `command` and `reason`.
    """
    tables = {
        "transfer.csv": transfer(folder, experiment),
        "lengths.csv": lengths(folder, experiment),
        "extremes.csv": extremes(folder, experiment),
    }
    for name, table in tables.items():
        write_table(folder / name, table)
    figures = draw_all(folder, experiment, tables["transfer.csv"])
    text = "\n\n".join(
        part
        for part in (
            *_introduction(experiment),
            *_claims(experiment, tables),
            *_transfer(tables["transfer.csv"], figures),
            *_curves(figures),
            *_outcomes(figures),
            *_extremes(tables["extremes.csv"]),
            *_lengths(tables["lengths.csv"]),
            *_missing(failures),
        )
        if part
    )
    path = folder / "REPORT.md"
    write_atomically(path, lambda file: file.write((text + "\n").encode("utf-8")))
    return path


# --- tables ----------------------------------------------------------------------------------------------------


def transfer(folder: Path, experiment: dict) -> pd.DataFrame:
    """training, dataset, then compare_runs.py's columns of scores: a row a training set, language and score."""
    columns = ["training", "dataset", *"lang score before after change low high p n n_contexts".split()]
    tables = [pd.DataFrame(columns=columns)]
    for name in experiment["training"]:
        for dataset in experiment["evaluation"]:
            run = folder / "changes" / f"answers-{name}-{dataset}"
            if (run / METRICS).exists():
                tables.append(pd.read_csv(run / "scores.csv").assign(training=name, dataset=dataset))
    return _joined(tables)[columns]


def lengths(folder: Path, experiment: dict) -> pd.DataFrame:
    """How long answers are: a row a model (`base` or a training set), data set and language.

    tokens_beyond_gold: mean; overgeneration: share of questions whose answer has the gold one and more;
    stopped_by_length: share of answers that were cut at the limit of new tokens.
    """
    columns = ["training", "dataset", "lang", "tokens_beyond_gold", "overgeneration", "stopped_by_length", "n"]
    rows = []
    for name in ("base", *experiment["training"]):
        for dataset in experiment["evaluation"]:
            path = folder / "answers" / f"{name}-{dataset}" / METRICS
            if not path.exists():
                continue
            for lang, summary in json.loads(path.read_text(encoding="utf-8"))["languages"].items():
                beyond, over = summary["overgeneration"]["tokens"], summary["misses"]["overgeneration"]
                stopped = summary["stopped_by"].get("length", 0.0)
                rows.append((name, dataset, lang, beyond, over, stopped, summary["n"]))
    return pd.DataFrame(rows, columns=columns)


def extremes(folder: Path, experiment: dict) -> pd.DataFrame:
    """The channels that fall and rise most from the base to each tuned model after the last probed epoch.

    Of the cells whose false discovery rate is at most 5%, each channel at the layer where it changes most.
    """
    columns = ["training", "dataset", *"prompt_lang channel layer before after change low high q n".split()]
    tables = [pd.DataFrame(columns=columns)]
    epoch = max(experiment["probed_epochs"])
    for name in experiment["training"]:
        for dataset in experiment["probes"]:
            run = folder / "changes" / f"probes-{name}-epoch-{epoch}-{dataset}"
            if not (run / METRICS).exists():
                continue
            changes = pd.read_csv(run / "changes.csv", keep_default_na=False)
            found = changes[changes["q"] <= FALSE_DISCOVERY_RATE]
            for _, of_lang in found.groupby("prompt_lang", sort=False):
                for ascending in (True, False):
                    signed = of_lang[(of_lang["change"] < 0) == ascending].sort_values("change", ascending=ascending)
                    top = signed.drop_duplicates("channel").head(N_SHOWN)
                    tables.append(top.assign(training=name, dataset=dataset))
    return _joined(tables)[columns]


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Tables under one another; the first has the columns and no row."""
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def layer_curves(folder: Path, experiment: dict, name: str, dataset: str) -> pd.DataFrame | None:
    """language_probs.csv of the base (epoch 0) and of a tuned model's epochs; None where no epoch is there."""
    runs = {0: folder / "probes" / f"base-{dataset}"}
    runs |= {epoch: folder / "probes" / f"{name}-epoch-{epoch}-{dataset}" for epoch in experiment["probed_epochs"]}
    there = {epoch: run for epoch, run in runs.items() if (run / METRICS).exists()}
    if 0 not in there or len(there) < 2:
        return None
    tables = [
        pd.read_csv(run / PROBABILITIES, keep_default_na=False, na_values={"stderr": ""}).assign(epoch=epoch)
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
    probs = {model: np.load(run / "per_prompt.npy", allow_pickle=False) for model, run in probes.items()}
    whole = pd.read_csv(probes["base"] / PROBABILITIES, keep_default_na=False)
    tables = []
    for (lang, of_outcome), rows in prompts.dropna(subset="outcome").groupby(["prompt_lang", "outcome"], sort=False):
        if rows["context"].nunique() < 2:
            continue
        cells = whole.loc[whole["prompt_lang"] == lang, ["prompt_lang", "layer", "channel", "floor"]]  # layer by layer
        for model, values in probs.items():
            chosen = values[rows.index]  # [prompt, layer, channel]
            table = cells.assign(
                outcome=of_outcome,
                model=model,
                prob=chosen.mean(axis=0, dtype=np.float64).ravel(),
                stderr=standard_error(chosen, rows["context"].tolist()).ravel(),
                n=len(rows),
            )
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else None


def draw_all(folder: Path, experiment: dict, table: pd.DataFrame) -> list[Path]:
    """Every figure that there are tables for; returns the PNGs, relative to the folder."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    paths = []
    for dataset, of_set in table[table["score"] == F1].groupby("dataset", sort=False):
        paths.append(
            draw_transfer(of_set, figures / f"transfer_{dataset}", f"{Path(experiment['model']).name} on {dataset}")
        )
    for name in experiment["training"]:
        for dataset in experiment["probes"]:
            curves = layer_curves(folder, experiment, name, dataset)
            if curves is not None:
                about = f"{Path(experiment['model']).name} tuned on {name}, {dataset}"
                paths += draw_epochs(curves, figures / f"epochs_{name}_{dataset}", about)
                outcomes = outcome_curves(folder, experiment, name, dataset)
                paths += (
                    [] if outcomes is None else draw_outcomes(outcomes, figures / f"outcomes_{name}_{dataset}", about)
                )
    return [path.relative_to(folder) for path in paths]


# --- claims ----------------------------------------------------------------------------------------------------


def more_than_doubled(table: pd.DataFrame, experiment: dict) -> list[tuple[str, str, str]]:
    """(where, measured, verdict) of each low-resource language for each machine-translated set of another language.

    Doubled where the change is more than the base's score: supported if the whole interval of the change is above
    it, not supported if the whole is below, else can't tell; nor where the base has less than LEAST_TO_DOUBLE.
    """
    found = []
    for row in table[table["score"] == F1].itertuples():
        lang, split = experiment["training"][row.training]
        if "2" not in split or row.lang not in LOW_RESOURCE or row.lang == lang:
            continue
        if row.before < LEAST_TO_DOUBLE or pd.isna(row.low):
            verdict = CANT_TELL
        else:
            verdict = SUPPORTED if row.low > row.before else NOT_SUPPORTED if row.high < row.before else CANT_TELL
        found.append((f"{row.training} -> {short_code(row.lang)}", _change(row), verdict))
    return found


def hurt_by_its_own_language(table: pd.DataFrame, longer: pd.DataFrame, experiment: dict) -> list[tuple[str, str, str]]:
    """(where, measured, verdict) for each model evaluated in the language that it was tuned on.

    Supported if F1 fell, the whole interval below zero, and more answers overgenerate than the base's; not supported
    if the whole interval is above zero, or F1 fell without that; else can't tell.
    """
    over = longer.set_index(["training", "dataset", "lang"])["overgeneration"]
    found = []
    for row in table[table["score"] == F1].itertuples():
        if row.lang != experiment["training"][row.training][0]:
            continue
        before, after = over["base", row.dataset, row.lang], over[row.training, row.dataset, row.lang]
        if row.high < 0:
            verdict = SUPPORTED if after > before else NOT_SUPPORTED
        else:
            verdict = NOT_SUPPORTED if row.low > 0 else CANT_TELL
        measured = f"{_change(row)}; overgenerated {100 * before:.1f}% -> {100 * after:.1f}%"
        found.append((f"{row.training} -> {short_code(row.lang)}", measured, verdict))
    return found


def not_always_helped(table: pd.DataFrame, experiment: dict) -> list[tuple[str, str, str]]:
    """(where, measured, verdict) for each high-resource training set, over the other languages.

    Supported if in some language the whole interval of the change is below zero, not supported if in every one it is
    above, else can't tell.
    """
    found = []
    of_f1 = table[table["score"] == F1]
    for name, rows in of_f1.groupby("training", sort=False):
        lang = experiment["training"][name][0]
        rows = rows[rows["lang"] != lang]
        if lang not in HIGH_RESOURCE or rows.empty or rows["low"].isna().any():
            continue
        fell, rose = rows[rows["high"] < 0], rows[rows["low"] > 0]
        verdict = SUPPORTED if len(fell) else NOT_SUPPORTED if len(rose) == len(rows) else CANT_TELL
        measured = f"F1 rose in {len(rose)} and fell in {len(fell)} of {len(rows)} languages"
        found.append((name, measured, verdict))
    return found


def _change(row) -> str:
    return f"F1 {100 * row.before:.1f} -> {100 * row.after:.1f} ({_points(row)})"


def _points(row) -> str:
    """The change in points, with its interval where there are contexts enough for one."""
    interval = "" if pd.isna(row.low) else f" [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    return f"{100 * row.change:+.1f}{interval}"


# --- text ------------------------------------------------------------------------------------------------------


def _introduction(experiment):
    sets = ", ".join(f"`{name}`" for name in experiment["training"])
    yield f"# What tuning {Path(experiment['model']).name} on one language does to others"
    yield (
        f"Training sets: {sets}. Scores are in per cent; brackets hold 95% intervals of a bootstrap over contexts, and "
        "every change is paired by question. Nothing here is corrected for the number of cells but what says so."
    )


def _claims(experiment, tables):
    yield "## Claims, by rules that were fixed before the run"
    table = tables["transfer.csv"]
    claims = [
        (
            "About a hundred machine-translated examples of another language more than double a low-resource "
            "language's score.",
            "the change is smaller than the base's score",
            more_than_doubled(table, experiment),
        ),
        (
            "Tuning on the target language itself hurts, by overgeneration.",
            "F1 rises in that language, or falls without more overgeneration",
            hurt_by_its_own_language(table, tables["lengths.csv"], experiment),
        ),
        (
            "Tuning on a high-resource language doesn't always help.",
            "F1 rises in every other language",
            not_always_helped(table, experiment),
        ),
    ]
    for claim, refuted_by, found in claims:
        yield f"**{claim}** Refuted where {refuted_by}."
        rows = pd.DataFrame(found, columns=["training set -> language", "measured", "verdict"])
        yield _markdown(rows) if len(rows) else f"{CANT_TELL}: no such cell was run."


def _transfer(table, figures):
    yield "## Transfer: F1 after tuning, and its change"
    for score, title in ((F1, "multilingual F1"), (SQUAD_F1, "SQuAD F1"), (EM, "multilingual exact match")):
        of_score = table[table["score"] == score]
        if of_score.empty:
            continue
        cells = of_score.assign(
            cell=[f"{100 * row.after:.1f} ({_points(row)})" for row in of_score.itertuples()],
            column=[f"{short_code(row.lang)}, {row.dataset}" for row in of_score.itertuples()],
        )
        wide = cells.pivot(index="training", columns="column", values="cell").fillna("-")
        wide = wide.loc[list(dict.fromkeys(cells["training"])), list(dict.fromkeys(cells["column"]))]
        base = of_score.drop_duplicates(["dataset", "lang"])["before"]
        first = pd.DataFrame([[f"{100 * value:.1f}" for value in base]], index=["base"], columns=wide.columns)
        fewest, most = of_score["n"].min(), of_score["n"].max()
        yield f"{title}, n = {fewest if fewest == most else f'{fewest} to {most}'} a cell:"
        yield _markdown(pd.concat([first, wide]).rename_axis("training").reset_index())
    yield _pictures(figures, "transfer")


def _curves(figures):
    yield "## Which language each layer speaks, before tuning and after each probed epoch"
    yield _pictures(figures, "epochs") or "No probe was run."


def _outcomes(figures):
    pictures = _pictures(figures, "outcomes")
    if pictures:
        yield "## The same by outcome: which questions became right, or wrong, by exact match"
        yield pictures


def _extremes(table):
    yield f"## What falls and what rises inside (false discovery rate {FALSE_DISCOVERY_RATE:.0%})"
    if table.empty:
        yield "No channel at any layer."
        return
    rows = [
        (
            row.training,
            language_name(row.prompt_lang),
            row.channel,
            row.layer,
            f"{row.before:.3f} -> {row.after:.3f}",
            f"{row.change:+.3f} [{row.low:+.3f}, {row.high:+.3f}]",
        )
        for row in table.itertuples()
    ]
    yield _markdown(pd.DataFrame(rows, columns=["training", "prompts in", "channel", "layer", "mass", "change"]))


def _lengths(table):
    yield "## Lengths of answers"
    if table.empty:
        yield "No model has answered."
        return
    rows = [
        (
            row.training,
            short_code(row.lang),
            row.dataset,
            f"{row.tokens_beyond_gold:.1f}",
            f"{100 * row.overgeneration:.1f}",
            f"{100 * row.stopped_by_length:.1f}",
            row.n,
        )
        for row in table.itertuples()
    ]
    columns = ["training", "language", "set", "tokens beyond gold", "overgenerated, %", "cut by the limit, %", "n"]
    yield _markdown(pd.DataFrame(rows, columns=columns))


def _missing(failures):
    if failures:
        yield "## What did not run"
        yield _markdown(pd.DataFrame(failures)[["name", "reason"]])


def _pictures(figures, kind):
    return "\n\n".join(f"![{path.stem}]({path.as_posix()})" for path in figures if path.stem.startswith(kind))


def _markdown(table: pd.DataFrame) -> str:
    rows = [list(table), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
