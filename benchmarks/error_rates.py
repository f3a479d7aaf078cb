"""How often do the intervals, tests and verdicts of this project err, and what effects do they find? By simulation.

    python benchmarks/error_rates.py
    python benchmarks/error_rates.py --scale 0.1 --only coverage

Prints the tables of docs/statistics.md; --scale makes fewer draws or more. Questions are grouped in contexts of 1 to 9;
scores are zero but for a share of questions that differs by context (beta), and then 1 or a part of it, as F1 is.
Everything is measured through the functions that the scripts call.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from utils.experiments.claims import (
    NOT_SUPPORTED,
    SUPPORTED,
    Cell,
    all_of,
    any_of,
    judged,
    overall,
    sides,
)
from utils.experiments.suppression import interfering_channels
from utils.uncertainty import (
    FALSE_DISCOVERY_RATE,
    against_null,
    benjamini_hochberg,
    channel_p,
    fewest_discoveries,
    jackknife_error,
    least_p,
    mean_interval,
    odds_ratio,
    rank_correlation,
    sign_flip_p,
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
    """Share of 95% intervals that hold the true mean, and the level of sign flips for it, at 5%."""
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
                rejected.append(sign_flip_p(part, contexts, int(rng.integers(1 << 30))) <= 0.05)
            rows.append((name, n_contexts, np.mean(held), np.mean(rejected), np.size(held), np.size(rejected)))
    columns = ["what", "contexts", "coverage of 95% intervals", "level of sign flips at .05", "intervals", "tests"]
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


def runs(rng, n_runs: int, n_contexts: int, run_sd: float, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """([run, context, cell] of changes from one base, labels): each run moves all contexts, and each context alike."""
    of_run = run_sd * rng.normal(size=(n_runs, 1, cells))
    shared = 0.5 * rng.normal(size=(1, n_contexts, cells))
    return of_run + shared + rng.normal(size=(n_runs, n_contexts, cells)), np.arange(n_contexts)


def null_runs(scale: float, rng: np.random.Generator) -> pd.DataFrame:
    """Runs that differ by chance: how often is one found to differ, by contexts alone and beside K null runs?

    run_sd: how much runs differ, in standard errors of a change over 60 contexts. Power: of a change of four of the
    standard deviations that runs have, their sampling error among it.
    """
    rows = []
    n_contexts, cells = 60, max(200, int(2000 * scale))
    error = np.sqrt(1.25 / n_contexts)
    for run_sd in (0, 1, 3):
        for n in (3, 5, 10):
            changes, contexts = runs(rng, n + 1, n_contexts, run_sd * error, cells)
            low, high = mean_interval(changes[0], contexts)
            means, errors = changes.mean(axis=1), np.stack([jackknife_error(one, contexts) for one in changes])
            beside = against_null(means[0], errors[0], means[1:], errors[1:])["p"]
            effect = 4 * error * np.sqrt(1 + run_sd**2)
            found = against_null(means[0] + effect, errors[0], means[1:], errors[1:])["p"]
            rows.append((run_sd, n, np.mean((low > 0) | (high < 0)), np.mean(beside <= 0.05), np.mean(found <= 0.05)))
    columns = [
        "runs differ by, standard errors",
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

# An experiment: contexts, training sets, languages asked. The presets small and paper, those claims' cells.
EXPERIMENTS = {"small": dict(contexts=22, sets=4, langs=5), "paper": dict(contexts=240, sets=24, langs=24)}


def p_of_scores(rng, n_contexts: int, shape: tuple, before: float, after: float, double: bool = False):
    """(changes, their p) of so many cells of F1, or of after - 2 before; cells share contexts and nothing else."""
    from scipy.stats import beta

    contexts, cells = contexts_of(rng, n_contexts), int(np.prod(shape))
    rank = rng.random((n_contexts, cells))
    ends = [beta.ppf(rank, p * CONCENTRATION, (1 - p) * CONCENTRATION)[contexts] for p in (before, after)]
    one, other = (f1(rng, chance, cells) for chance in ends)
    change = other - (2 if double else 1) * one
    return change.mean(axis=0).reshape(shape), sign_flip_p(change, contexts, int(rng.integers(1 << 30))).reshape(shape)


def claim_a(rng, contexts, sets, langs, effect):
    """Falls and gains are sure; the odds are not, which is where the claim hangs."""
    langs, cells = 2, []
    for _ in range(sets * langs):
        labels = contexts_of(rng, contexts)
        falls = rng.normal(size=contexts)[labels] + rng.normal(size=len(labels))
        right = rng.random(len(labels)) < 1 / (
            1 + np.exp(0.85 - effect * falls / np.sqrt(2) - rng.normal(size=contexts)[labels])
        )
        found = odds_ratio(falls, right, labels.tolist())
        more, less = sides(found["odds_ratio"] - 1, found["odds_p"])
        rise, fall, gain, loss = 0.9999, 1e-4, 1e-4, 0.9999
        cells.append(Cell("", "", all_of(fall, gain, more), any_of(rise, all_of(fall, loss), all_of(fall, less))))
    return cells, False


def claim_b(rng, contexts, sets, langs, effect):
    changes, p = p_of_scores(rng, contexts, (max(1, sets // 2 * 2 - sets // 4),), 0.1, 0.2 + effect, double=True)
    return [Cell("", "", *sides(*one)) for one in zip(changes, p)], True


def claim_c(rng, contexts, sets, langs, effect):
    """F1 doesn't change while more answers overgenerate, which is where the claim hangs."""
    n = max(1, sets // 2)
    changes, p = p_of_scores(rng, contexts, (n,), 0.4, 0.4 - effect)
    cells = []
    for change, of_change in zip(changes, p):
        rise, fall = sides(change, of_change)
        cells.append(Cell("", "", all_of(fall, 1e-4), any_of(rise, all_of(fall, 0.9999))))
    return cells, False


def claim_d(rng, contexts, sets, langs, effect):
    """effect: how much F1 falls in every language of every set."""
    n = max(1, sets // 3)
    changes, p = p_of_scores(rng, contexts, (n, langs - 1), 0.3, 0.3 - effect)
    cells = []
    for change, of_set in zip(changes, p):
        rises, falls = zip(*(sides(*one) for one in zip(change, of_set)))
        cells.append(Cell("", "", any_of(*falls), all_of(*rises)))
    return cells, True


def claim_e(rng, contexts, sets, langs, effect):
    """Spans and gains of the sets, with a rank correlation of about `effect`; five sets at least."""
    n = max(5, sets)
    spans = rng.normal(size=n)
    gains = effect * spans + np.sqrt(1 - effect**2) * rng.normal(size=n)
    return [Cell("", "", *sides(*rank_correlation(spans, gains, int(rng.integers(1 << 30)))))], False


# claim -> (how to draw its cells, effects of the power table, what the effect is)
CLAIMS: dict[str, tuple[Callable, tuple, str]] = {
    "a": (claim_a, (0.5, 1.0), "odds x1.6 and x2.7 a standard deviation"),
    "b": (claim_b, (0.1, 0.2), "F1 7.5 to 22.5 and to 30, where 15 is double"),
    "c": (claim_c, (0.1, 0.2), "F1 30 to 22.5 and to 15"),
    "d": (claim_d, (0.05, 0.1), "F1 22.5 to 18.8 and to 15 in every language"),
    "e": (claim_e, (0.5, 0.9), "correlation of .5 and .9"),
}


def verdicts(scale: float, rng: np.random.Generator) -> pd.DataFrame:
    """Experiments of the presets' sizes: how often is any cell of a claim, or the claim, wrongly decided at no effect,
    and how often is the claim supported at two effects?
    """
    rows = []
    for letter, (draw, effects, meaning) in CLAIMS.items():
        for size, numbers in EXPERIMENTS.items():
            n = max(8, int({"small": 200, "paper": 24 if letter in "ad" else 100}[size] * scale))
            any_cell, claim = 0, 0
            for _ in range(n):
                cells, one_is_enough = draw(rng, **numbers, effect=0)
                found = judged(cells)
                any_cell += any(verdict in (SUPPORTED, NOT_SUPPORTED) for _, _, verdict in found)
                claim += overall(found, one_is_enough) in (SUPPORTED, NOT_SUPPORTED)
            power = []
            for effect in effects:
                tried = max(4, n // 4)
                drawn = [draw(rng, **numbers, effect=effect) for _ in range(tried)]
                power.append(np.mean([overall(judged(cells), one) == SUPPORTED for cells, one in drawn]))
            rows.append((f"({letter})", size, any_cell / n, claim / n, n, *power, meaning))
    columns = ["claim", "experiment", "any cell wrongly decided", "claim wrongly decided", "experiments"]
    return pd.DataFrame(rows, columns=[*columns, "power, first effect", "power, second", "effects"])


TABLES: dict[str, Callable[[float, np.random.Generator], pd.DataFrame]] = {
    "coverage": coverage,
    "odds": odds,
    "null_runs": null_runs,
    "interfering": interfering,
    "discoveries": discoveries,
    "verdicts": verdicts,
}


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
    for name in args.only:
        started = time.perf_counter()
        table = TABLES[name](args.scale, np.random.default_rng(SEED))
        print(f"**{name}**\n\n{markdown(table)}\n\n{time.perf_counter() - started:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
