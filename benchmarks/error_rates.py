"""How often do the intervals, tests and verdicts of this project err, and what effects do they find? By simulation.

    python benchmarks/error_rates.py
    python benchmarks/error_rates.py --scale 0.1 --only coverage

Prints the tables of docs/statistics.md; --scale makes fewer draws or more. Questions are grouped in contexts of 1 to 9;
scores are zero but for a share of questions that differs by context (beta), and then 1 or a part of it, as F1 is.
Everything is measured through the functions that the scripts call.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd

from utils.answers.scores import OVERGENERATION
from utils.experiments.claims import (
    CANT_TELL,
    HIGH_RESOURCE,
    LOW_RESOURCE,
    ONE_CELL_IS_ENOUGH,
    SUPPORTED,
    cells_by_claim,
    judged,
    overall,
)
from utils.experiments.presets import PRESETS, Experiment
from utils.experiments.suppression import COLUMNS, F1, interfering_channels
from utils.experiments.tables import BESIDE_NULLS, SCORE_COLUMNS
from utils.uncertainty import (
    FALSE_DISCOVERY_RATE,
    against_null,
    benjamini_hochberg,
    channel_p,
    fewest_discoveries,
    least_p,
    mean_interval,
    mean_p,
    odds_ratio,
    paired_changes,
)

SEED = 1
N_CONTEXTS = (10, 12, 20, 40, 240)
# name -> (share of questions above zero before, and after), and how alike the questions of a context are
SCORES = {
    "F1 of .15": (None, 0.2),
    "F1 of .37": (None, 0.5),
    "F1 from .04 to .11": (0.05, 0.15),
    "F1 from .04 to .22": (0.05, 0.3),
    "F1 of .15, unchanged": (0.2, 0.2),
}
CONCENTRATION = 6  # of the beta over contexts: an intraclass correlation of 1/7
SHARES = {"share of mean .33, skewed": 0.5, "share of mean .17, very skewed": 0.2}


def contexts_of(rng: np.random.Generator, n_contexts: int, most: int = 9) -> np.ndarray:
    """Labels of contexts with 1 to `most` questions each."""
    return np.repeat(np.arange(n_contexts), rng.integers(1, most + 1, n_contexts))


def f1(rng: np.random.Generator, above_zero: np.ndarray, cells: int) -> np.ndarray:
    """[question, cell] of scores; above_zero: [question, cell], the chance of each to be above zero."""
    partial = np.where(rng.random(above_zero.shape) < 0.5, 1, rng.beta(2, 2, above_zero.shape))
    return (rng.random(above_zero.shape) < above_zero) * partial


def differences(rng: np.random.Generator, name: str, contexts: np.ndarray, cells: int) -> tuple[np.ndarray, float]:
    """([question, cell] of a score, a change of it or a share, its true mean) of a kind of SCORES or SHARES."""
    from scipy.stats import beta

    n_contexts = contexts.max() + 1
    if name in SHARES:
        a = SHARES[name]
        return rng.beta(a, 1, (n_contexts, cells))[contexts], a / (a + 1)
    before, after = SCORES[name]
    rank = rng.random((n_contexts, cells))  # a context that is easy before is so after
    chances = [
        None if p is None else beta.ppf(rank, p * CONCENTRATION, (1 - p) * CONCENTRATION) for p in (before, after)
    ]
    values = f1(rng, chances[1][contexts], cells)
    if before is None:
        return values, 0.75 * after
    return values - f1(rng, chances[0][contexts], cells), 0.75 * (after - before)


def coverage(scale: float, rng: np.random.Generator) -> pd.DataFrame:
    """Share of 95% intervals that hold the true mean, and the level of p for it, at 5%."""
    rows = []
    for name in (*SCORES, *SHARES):
        for n_contexts in N_CONTEXTS:
            sizes = (
                max(2, int(20 * scale)) if n_contexts < 200 else max(1, int(4 * scale))
            )  # draws of the contexts' sizes
            cells = 200 if n_contexts < 200 else 100
            held, rejected = [], []
            for _ in range(sizes):
                contexts = contexts_of(rng, n_contexts)
                values, mean = differences(rng, name, contexts, cells)
                low, high = mean_interval(values, contexts)
                held.append((low <= mean) & (mean <= high))
                part = values[:, : max(20, int(60 * min(scale, 1)))] - mean
                rejected.append(mean_p(part, contexts, int(rng.integers(1 << 30))) <= 0.05)
            rows.append((name, n_contexts, np.mean(held), np.mean(rejected), np.size(held), np.size(rejected)))
    columns = ["what", "contexts", "coverage of 95% intervals", "level of p at .05", "intervals", "tests"]
    return pd.DataFrame(rows, columns=columns)


def odds(scale: float, rng: np.random.Generator) -> pd.DataFrame:
    """Level of the odds ratio's test at 5% where falls and outcomes both differ by context and are unrelated."""
    rows = []
    for n_contexts in (10, 12, 20, 40):
        p = []
        for _ in range(max(20, int(600 * scale))):
            contexts = contexts_of(rng, n_contexts)
            falls = rng.normal(size=n_contexts)[contexts] + rng.normal(size=len(contexts))
            of_context = rng.normal(-0.85, 1, n_contexts)
            right = rng.random(len(contexts)) < 1 / (1 + np.exp(-of_context[contexts]))
            p.append(odds_ratio(falls, right, contexts.tolist())["odds_p"])
        tested = np.array(p)[~np.isnan(p)]
        rows.append((n_contexts, np.mean(tested <= 0.05), len(tested), len(p) - len(tested)))
    return pd.DataFrame(rows, columns=["contexts", "level at .05", "tests", "no test"])


def runs(
    rng, n_runs: int, n_contexts: int, run_sd: float, cells: int, alike: float = 0
) -> tuple[np.ndarray, np.ndarray]:
    """([run, context, cell] of changes from one base, labels): each run moves all contexts, and each context alike.

    alike: how much all runs but the first move a context together, in standard deviations of a run's own part there.
    """
    of_run = run_sd * rng.normal(size=(n_runs, 1, cells))
    shared = 0.5 * rng.normal(size=(1, n_contexts, cells))
    of_nulls = alike * rng.normal(size=(1, n_contexts, cells)) * (np.arange(n_runs) > 0).reshape(-1, 1, 1)
    return of_run + shared + of_nulls + rng.normal(size=(n_runs, n_contexts, cells)), np.arange(n_contexts)


def null_runs(scale: float, rng: np.random.Generator) -> pd.DataFrame:
    """Runs that differ by chance: how often is one found to differ, by contexts alone and beside K null runs?

    run_sd: how much runs differ, in standard errors of a change over 60 contexts; alike: `runs`. Power: of a change of
    four of the standard deviations that runs have, their sampling error among it.
    """
    rows = []
    n_contexts, cells = 60, max(200, int(2000 * scale))
    error = np.sqrt(1.25 / n_contexts)
    for run_sd, alike in ((0, 0), (1, 0), (3, 0), (0, 2), (1, 2), (3, 2)):
        for n in (3, 5, 10):
            changes, contexts = runs(rng, n + 1, n_contexts, run_sd * error, cells, alike)
            low, high = mean_interval(changes[0], contexts)
            beside = against_null(changes[0], changes[1:], contexts)["p"]
            effect = 4 * error * np.sqrt(1 + run_sd**2)
            found = against_null(changes[0] + effect, changes[1:], contexts)["p"]
            alone = np.mean((low > 0) | (high < 0))
            rows.append((run_sd, alike, n, alone, np.mean(beside <= 0.05), np.mean(found <= 0.05)))
    columns = [
        "runs differ by, standard errors",
        "null runs do alike",
        "null runs",
        "contexts alone",
        "beside null runs",
        "power, 4 deviations",
    ]
    return pd.DataFrame(rows, columns=columns)


def interfering(scale: float, rng: np.random.Generator) -> pd.DataFrame:
    """Two copies of a model that differ by noise: how often do the interfering languages fall or rise, by the rule?"""
    rows = []
    channels = [f"lang{i:02}" for i in range(30)]
    level = np.sort(rng.gamma(0.5, 0.03, 30))[::-1]
    for n_contexts in (10, 40):
        for noise in (0.0, 0.2, 0.5):
            found = {"the base": [], "the mean of both": []}
            for _ in range(max(20, int(150 * scale))):
                models = level * np.exp(rng.normal(0, noise, (2, 30)))  # what each copy reads
                of_context = (
                    models[:, None] * rng.gamma(1, 1, (1, n_contexts, 1)) * rng.gamma(2, 0.5, (2, n_contexts, 30))
                )
                tables = [
                    pd.DataFrame({"prompt_lang": "xx", "layer": 0, "channel": channels, "share": share, "tokens": 9.0})
                    for share in of_context.mean(axis=1)
                ]
                base, tuned = (table.assign(null_share=0.0) for table in tables)
                for rule, other in (("the base", base), ("the mean of both", tuned)):
                    chosen = [channels.index(code) for code in interfering_channels(base, other, "xx")]
                    low, high = mean_interval((of_context[1] - of_context[0])[:, chosen].sum(axis=1), range(n_contexts))
                    found[rule].append((high < 0, low > 0))
            for rule, both in found.items():
                rows.append((n_contexts, noise, rule, *np.mean(both, axis=0), len(both)))
    columns = ["contexts", "noise of a model", "chosen by", "falls, whole interval", "rises, whole interval", "pairs"]
    return pd.DataFrame(rows, columns=columns)


def discoveries(scale: float, rng: np.random.Generator) -> pd.DataFrame:
    """Nothing changed: in how many comparisons is any cell, or any channel over its layers, found? And what a channel
    that moves at 3 of 6 layers by a standard deviation of its contexts needs to be found in.
    """
    rows, n_layers, n_channels = [], 6, 20
    for n_contexts in (10, 12, 20, 60):
        hits, power = [], []
        n_trials = max(4, int(100 * scale))
        for trial in range(n_trials):
            values = rng.normal(size=(n_contexts, 1, n_channels)) + rng.normal(size=(n_contexts, n_layers, n_channels))
            for shift, out in ((0, hits), (1, power))[: 2 if trial < n_trials / 3 else 1]:
                moved = values.copy()
                moved[:, :3, 0] += shift * np.sqrt(2)
                cells, channel = channel_p(moved, list(range(n_contexts)), trial)
                q = benjamini_hochberg(cells.ravel()).reshape(cells.shape), benjamini_hochberg(channel)
                found = (q[0][:, 0], q[1][0]) if shift else q
                out.append([(one <= FALSE_DISCOVERY_RATE).any() for one in found])
        n_cells = n_layers * n_channels
        row = (n_contexts, least_p(n_contexts), fewest_discoveries(n_contexts, n_cells))
        row += (fewest_discoveries(n_contexts, n_channels), *np.mean(hits, axis=0), *np.mean(power, axis=0), len(hits))
        rows.append(row)
    columns = ["contexts", "least p", "cells needed", "channels needed"]
    columns += [
        "any cell, nothing changed",
        "any channel, nothing changed",
        "cells, one changed",
        "channel, one changed",
    ]
    return pd.DataFrame(rows, columns=[*columns, "comparisons"])


# --- the verdicts -----------------------------------------------------------------------------------------------

# The presets' experiments, by how many contexts a language has.
CONTEXTS = {"small": 22, "paper": 240}
EXPERIMENTS = {name: Experiment.of(PRESETS[name], Path()) for name in CONTEXTS}
SURE = 1e-4  # p of what holds without doubt
TABLES_OF_REPORT = {
    "transfer.csv": ["training", "dataset", *SCORE_COLUMNS, *BESIDE_NULLS],
    "suppression.csv": COLUMNS,
    "pairs.csv": ["training", "against", "dataset", *SCORE_COLUMNS],
    "quality.csv": ["training", "lang", "spans"],
}
Tables = dict[str, pd.DataFrame]


def asked(experiment: Experiment, sets: list[str]) -> list[tuple[str, str, str]]:
    """(training set, data set, language) of each cell of those sets."""
    return [(name, data, lang) for name in sets for data, langs in experiment.evaluation.items() for lang in langs]


def own_sets(experiment: Experiment) -> list[str]:
    return [name for name in experiment.training if name not in experiment.control_of | experiment.repeat_of]


def answered(rng, n_contexts: int, cells: list[tuple], before: float, after: dict[str, float]):
    """(contexts, scores of the base [question, cell], and of each cell's set): shares of questions above zero.

    All cells have the same contexts; cells of a language have the same answers of the base, and of hard and easy
    contexts, so that they depend on one another as they do in an experiment.
    """
    from scipy.stats import beta

    contexts, (names, *asked_of) = contexts_of(rng, n_contexts), zip(*cells)
    _, lang = np.unique([" ".join(one) for one in zip(*asked_of)], return_inverse=True)
    rank = rng.random((n_contexts, lang.max() + 1))
    chance_of = {p: beta.ppf(rank, p * CONCENTRATION, (1 - p) * CONCENTRATION) for p in {before, *after.values()}}
    base = f1(rng, chance_of[before][contexts], rank.shape[1])[:, lang]
    chances = np.column_stack([chance_of[after[name]][:, column] for name, column in zip(names, lang)])
    return contexts, base, f1(rng, chances[contexts], len(cells))


def transfer_of(rng, n_contexts: int, cells: list[tuple], before: float, after: dict[str, float]) -> pd.DataFrame:
    """A row a cell, as `tables.transfer`'s of F1; what it exceeds null runs by is sure."""
    contexts, base, tuned = answered(rng, n_contexts, cells, before, after)
    seed = int(rng.integers(1 << 30))
    table = pd.DataFrame(cells, columns=["training", "dataset", "lang"]).assign(score=F1)
    doubled = mean_p(tuned - 2 * base, contexts, seed)
    sure = {"null_runs": 3, "excess": 0.1, "excess_p": SURE}
    return table.assign(**paired_changes(base, tuned, contexts, seed), double_p=doubled, **sure)


def with_nothing_else(**tables) -> Tables:
    empty = {name: pd.DataFrame(columns=columns) for name, columns in TABLES_OF_REPORT.items()}
    return empty | {f"{name}.csv": table for name, table in tables.items()}


def draw_a(rng, experiment: Experiment, n_contexts: int, effect: float) -> Tables:
    """Falls and gains are sure; the odds are not, which is where the claim hangs."""
    rows = []
    for name in own_sets(experiment):
        for data, langs in experiment.probes.items():
            for lang in langs if data in experiment.evaluation else ():
                labels = contexts_of(rng, n_contexts)
                falls = rng.normal(size=n_contexts)[labels] + rng.normal(size=len(labels))
                of_context = rng.normal(size=n_contexts)[labels]
                right = rng.random(len(labels)) < 1 / (1 + np.exp(0.85 - effect * falls / np.sqrt(2) - of_context))
                odds = odds_ratio(falls, right, labels.tolist())
                rows.append({"training": name, "dataset": data, "lang": lang, **odds})
    table = pd.DataFrame(rows).reindex(columns=TABLES_OF_REPORT["suppression.csv"])
    sure = {"channels": "eng_Latn", "change": -0.1, "p": SURE, "gain": 0.1, "gain_p": SURE}
    sure |= {"gain_beyond": 0.1, "gain_beyond_p": SURE}
    return with_nothing_else(suppression=table.assign(**sure, null_runs=5, null_change=0.0))


def draw_b(rng, experiment: Experiment, n_contexts: int, effect: float) -> Tables:
    """Scores that are doubled exactly, and by `effect` more of the questions."""
    sets = [name for name in own_sets(experiment) if "2" in experiment.training[name][1]]
    cells = [cell for cell in asked(experiment, sets) if cell[2] in LOW_RESOURCE]
    return with_nothing_else(transfer=transfer_of(rng, n_contexts, cells, 0.1, dict.fromkeys(sets, 0.2 + effect)))


def draw_c(rng, experiment: Experiment, n_contexts: int, effect: float) -> Tables:
    """F1 doesn't change while more answers overgenerate, which is where the claim hangs."""
    sets = own_sets(experiment)
    cells = [cell for cell in asked(experiment, sets) if cell[2] == experiment.training[cell[0]][0]]
    of_f1 = transfer_of(rng, n_contexts, cells, 0.4, dict.fromkeys(sets, 0.4 - effect))
    over = of_f1.assign(score=OVERGENERATION, before=0.1, after=0.4, change=0.3, p=SURE)
    return with_nothing_else(transfer=pd.concat([of_f1, over], ignore_index=True))


def draw_d(rng, experiment: Experiment, n_contexts: int, effect: float) -> Tables:
    """effect: how many questions fewer are above zero in every language of every set."""
    sets = [name for name in own_sets(experiment) if experiment.training[name][0] in HIGH_RESOURCE]
    cells = asked(experiment, sets)
    return with_nothing_else(transfer=transfer_of(rng, n_contexts, cells, 0.3, dict.fromkeys(sets, 0.3 - effect)))


def draw_e(rng, experiment: Experiment, n_contexts: int, effect: float) -> Tables:
    """Spans and what sets do to F1, with a correlation of `effect`; at no effect a set's F1 is no other's, and has
    nothing to do with its spans. Two translations are as good as one another then, in their languages' cells."""
    sets = [name for name in own_sets(experiment) if "2" in experiment.training[name][1]]
    spans = rng.normal(size=len(sets))
    of_set = effect * spans + np.sqrt(1 - effect**2) * rng.normal(size=len(sets))
    after = {name: round(0.3 + 0.04 * float(np.clip(x, -2, 2)), 3) for name, x in zip(sets, of_set)}
    for name, against in experiment.pairs if effect == 0 else ():
        after |= {name: after[against]} if against in after and name in after else {}
    cells = asked(experiment, sets)
    contexts, base, tuned = answered(rng, n_contexts, cells, 0.3, after)
    keys = pd.DataFrame(cells, columns=["training", "dataset", "lang"]).assign(score=F1)
    transfer = keys.assign(change=(tuned - base).mean(axis=0)).reindex(columns=TABLES_OF_REPORT["transfer.csv"])
    pairs = [pd.DataFrame(columns=TABLES_OF_REPORT["pairs.csv"])]
    for name, against in experiment.pairs:
        if {name, against} <= set(sets):
            one, other = ((keys["training"] == which).to_numpy() for which in (name, against))
            paired = paired_changes(tuned[:, other], tuned[:, one], contexts, int(rng.integers(1 << 30)))
            pairs.append(keys[one].assign(against=against, change=paired["change"], p=paired["p"]))
    langs = [experiment.training[name][0] for name in sets]
    quality = pd.DataFrame({"training": sets, "lang": langs, "spans": 0.6 + 0.1 * spans})
    return with_nothing_else(transfer=transfer, quality=quality, pairs=pd.concat(pairs, ignore_index=True))


# claim -> (how to draw its tables, effects of the power table, what the effect is)
CLAIMS: dict[str, tuple[Callable, tuple, str]] = {
    "a": (draw_a, (0.5, 1.0), "odds x1.6 and x2.7 a standard deviation"),
    "b": (draw_b, (0.1, 0.2), "F1 7.5 to 22.5 and to 30, where 15 is double"),
    "c": (draw_c, (0.1, 0.2), "F1 30 to 22.5 and to 15"),
    "d": (draw_d, (0.05, 0.1), "F1 22.5 to 18.8 and to 15 in every language"),
    "e": (draw_e, (0.5, 0.9), "correlation of .5 and .9"),
}
# Experiments drawn for a rate.
N_EXPERIMENTS = {"small": 400, "paper": 200}


def found_of(letter: str, size: str, rng: np.random.Generator, effect: float = 0.0):
    """(each cell's verdict, the claim's) of one experiment."""
    tables = CLAIMS[letter][0](rng, EXPERIMENTS[size], CONTEXTS[size], effect)
    found = judged(cells_by_claim(EXPERIMENTS[size], tables)[letter])
    return [verdict for _, _, verdict in found], overall(found, letter in ONE_CELL_IS_ENOUGH)


def verdicts(scale: float, rng: np.random.Generator) -> pd.DataFrame:
    """Experiments of the presets' sizes: how often is any cell of a claim, or the claim, wrongly decided at no effect,
    and how often is the claim supported at two effects?
    """
    rows = []
    for letter, (_, effects, meaning) in CLAIMS.items():
        for size in EXPERIMENTS:
            n = max(8, int(N_EXPERIMENTS[size] * scale))
            of_nothing = [found_of(letter, size, rng) for _ in range(n)]
            any_cell = np.mean([any(verdict != CANT_TELL for verdict in cells) for cells, _ in of_nothing])
            claim = np.mean([verdict != CANT_TELL for _, verdict in of_nothing])
            power = [
                np.mean([found_of(letter, size, rng, effect)[1] == SUPPORTED for _ in range(max(4, n // 8))])
                for effect in effects
            ]
            rows.append((f"({letter})", size, len(of_nothing[0][0]), any_cell, claim, n, *power, meaning))
    columns = ["claim", "experiment", "cells", "any cell wrongly decided", "claim wrongly decided", "experiments"]
    return pd.DataFrame(rows, columns=[*columns, "power, first effect", "power, second", "effects"])


TABLES: dict[str, Callable[[float, np.random.Generator], pd.DataFrame]] = {
    "coverage": coverage,
    "odds": odds,
    "null_runs": null_runs,
    "interfering": interfering,
    "discoveries": discoveries,
    "verdicts": verdicts,
}


def table_and_seconds(name: str, scale: float) -> tuple[pd.DataFrame, float]:
    started = time.perf_counter()
    return TABLES[name](scale, np.random.default_rng(SEED)), time.perf_counter() - started


def markdown(table: pd.DataFrame) -> str:
    def shown(value) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    rows = [
        list(table),
        ["---"] * len(table.columns),
        *([shown(v) for v in row] for row in table.astype(object).to_numpy()),
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of draws")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    args = parser.parse_args()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(table_and_seconds, args.only, repeat(args.scale))
        for name, (table, seconds) in zip(args.only, made):
            print(f"**{name}**\n\n{markdown(table)}\n\n{seconds:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
