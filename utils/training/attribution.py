"""What training examples did, summed over a context or a language; how well one way to say it predicts another.

Positive is helpful everywhere: with the unit in the training set, the measure of the query is higher.
"""

from collections.abc import Sequence

import numpy as np

from utils.uncertainty import jackknife_error, mean_interval, mean_p, permutation_p, rank_correlation

# With fewer units, leaving one out leaves no correlation to speak of.
FEWEST_UNITS = 4


def unit_sums(of_examples: np.ndarray, unit_of_example: Sequence[int], n_units: int) -> np.ndarray:
    """[example, query] -> [unit, query]: to leave several out does what leaving out each does, summed.

    The linear datamodel (Ilyas et al. 2022; Park et al. 2023).
    """
    sums = np.zeros((n_units, of_examples.shape[1]))
    np.add.at(sums, np.asarray(unit_of_example), of_examples)
    return sums


def datamodeling_score(predicted: np.ndarray, truth: np.ndarray, contexts: Sequence) -> dict:
    """The linear datamodeling score (Park et al. 2023) over units that were left out one at a time.

    predicted, truth: [unit, query]; contexts: of each query, a label. Of each query, Spearman's correlation over the
    units; their mean is `lds`. Queries whose truth or prediction is the same for all units have none, and are not
    counted in n_queries. low, high: 95%, of Student's t with the variance

        jackknife over the units + jackknife over the queries' contexts,

    since both are samples (for two-way data the sum is rather too large: Owen 2007, The pigeonhole bootstrap), with the
    smaller number less one as degrees of freedom; NaN with fewer than FEWEST_UNITS units or two contexts, and where
    some unit is all that differs. p: two-sided, of orders of the units that are the same for all queries.
    rho_of_means, p_of_means: Spearman's correlation of the units' means over the queries: which units helped them as
    a whole.
    """
    from scipy.stats import t as student

    by_query = _spearman(predicted, truth)
    defined = ~np.isnan(by_query)
    n_units, contexts = len(truth), [label for label, there in zip(contexts, defined) if there]
    nan = float("nan")
    found = {"lds": nan, "low": nan, "high": nan, "p": nan, "rho_of_means": nan, "p_of_means": nan}
    found |= {"n_units": n_units, "n_queries": int(defined.sum()), "n_contexts": len(set(contexts))}
    if not defined.any():
        return found
    predicted, truth, by_query = predicted[:, defined], truth[:, defined], by_query[defined]
    found["lds"] = lds = float(by_query.mean())
    found["rho_of_means"], found["p_of_means"] = rank_correlation(predicted.mean(axis=1), truth.mean(axis=1))
    found["p"] = _p_of_orders(predicted, truth)
    if n_units < FEWEST_UNITS or len(set(contexts)) < 2:
        return found
    rows = np.arange(n_units)
    without = np.array([_mean_of_defined(_spearman(predicted[rows != i], truth[rows != i])) for i in rows])
    of_units = (n_units - 1) / n_units * ((without - without.mean()) ** 2).sum()
    error = np.sqrt(of_units + jackknife_error(by_query, list(contexts)) ** 2)
    width = student.ppf(0.975, min(n_units, len(set(contexts))) - 1) * error
    low, high = np.clip([lds - width, lds + width], -1, 1)  # NaN stays
    return found | {"low": float(low), "high": float(high)}


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """[unit, query] -> ranks over the units, of mean 0 and length 1; NaN where all are the same."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=0) - (len(values) + 1) / 2
    lengths = np.sqrt((ranks**2).sum(axis=0))
    return ranks / np.where(lengths > 0, lengths, np.nan)


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Over axis 0, of each query: [unit, query] twice -> [query]; NaN where there is no spread."""
    return (_centred_ranks(x) * _centred_ranks(y)).sum(axis=0)


def _mean_of_defined(values: np.ndarray) -> float:
    """NaN where there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _p_of_orders(predicted: np.ndarray, truth: np.ndarray) -> float:
    products = _centred_ranks(predicted) @ _centred_ranks(truth).T  # of unit i's prediction with unit j's truth
    columns = np.arange(len(truth))
    return permutation_p(lambda orders: products[orders, columns].sum(axis=1), len(truth))


def reliability(truth: np.ndarray, contexts: Sequence) -> dict:
    """How well one half of the truth's seeds predicts the other: `datamodeling_score` of the halves' means.

    truth: [seed, unit, query], of two seeds at least. Where its interval is not above zero, the truth may be the luck
    of its seeds, and nothing can be judged by it.
    """
    return datamodeling_score(truth[0::2].mean(axis=0), truth[1::2].mean(axis=0), contexts)


def mean_effects(values: np.ndarray, contexts: Sequence) -> dict[str, np.ndarray]:
    """[unit, query] -> mean, low, high, p, each [unit], over the queries: 95%, clustered by the queries' contexts."""
    by_unit = np.asarray(values, dtype=np.float64).T  # [query, unit]
    low, high = mean_interval(by_unit, list(contexts))
    return {"mean": by_unit.mean(axis=0), "low": low, "high": high, "p": mean_p(by_unit, list(contexts))}
