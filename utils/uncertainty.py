"""Intervals, tests, odds and false discoveries. Contexts are drawn, not questions: those of one are not independent."""

import numpy as np

# All 2^14 sign patterns of 14 contexts are tried; with more contexts, this many drawn ones.
N_FLIPS = 2**14
FALSE_DISCOVERY_RATE = 0.05
Z_95 = 1.96
N_RESAMPLES = 10_000
INTERVAL = (0.025, 0.975)
# Fewer questions of either outcome can't carry a logistic regression on one variable (Peduzzi et al. 1996).
FEWEST_OF_AN_OUTCOME = 10
# With fewer training sets, resampling them says nothing of other ones.
FEWEST_SETS = 5
N_SET_RESAMPLES = 1000


def paired_changes(before: np.ndarray, after: np.ndarray, clusters: list, seed: int = 0) -> dict[str, np.ndarray]:
    """What changed from one run to the other, cell by cell: before, after, change, low, high, p, each [cell].

    before, after: [n, cell], row i of both of the same example; clusters: n labels of contexts. low and high are
    `bootstrap_interval`'s of the mean change, p is `sign_flip_p`'s.
    """
    before, after = (np.asarray(values, dtype=np.float64) for values in (before, after))
    differences = after - before
    low, high = bootstrap_interval(differences, clusters, N_RESAMPLES, seed)
    return {
        "before": before.mean(axis=0),
        "after": after.mean(axis=0),
        "change": differences.mean(axis=0),
        "low": low,
        "high": high,
        "p": sign_flip_p(differences, clusters, seed),
    }


def sign_flip_p(differences: np.ndarray, clusters: list, seed: int = 0) -> np.ndarray:
    """Two-sided p that the mean over axis 0 is zero, [cell]; differences: [n, cell], clusters: n labels.

    If it made no difference which run is which, each context's differences could as well have the other sign
    (Fisher 1935; Winkler et al. 2014 for whole blocks). p is the share of sign patterns with a mean as far from zero:
    of all of them where there are at most N_FLIPS, which is exact, else of N_FLIPS drawn ones and the pattern that
    was seen, which keeps the level (Phipson and Smyth 2010). A cell without any difference has p = 1.
    """
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((cluster.max() + 1, differences.shape[1]))
    np.add.at(sums, cluster, differences)
    n_clusters = len(sums)
    if exact := 2**n_clusters <= N_FLIPS:
        signs = 1 - 2 * ((np.arange(2**n_clusters)[:, None] >> np.arange(n_clusters)) & 1)
    else:
        signs = np.random.default_rng(seed).choice((-1, 1), size=(N_FLIPS, n_clusters))
    seen = np.abs(sums.sum(axis=0))
    # Sums of the same terms in another order differ by rounding: what is equal but for that is as far.
    least = seen - 1e-9 * np.abs(sums).sum(axis=0)
    as_far = np.zeros(len(seen), dtype=np.int64)
    for part in np.array_split(signs.astype(np.float64), 16):
        as_far += (np.abs(part @ sums) >= least).sum(axis=0)
    return as_far / len(signs) if exact else (as_far + 1) / (len(signs) + 1)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """q of each p, [n] -> [n]: the smallest false discovery rate at which it is a discovery.

    (Benjamini and Hochberg 1995, their procedure as adjusted p: q of the k-th smallest is the least of n p_j / j over
    j >= k.)
    """
    order = np.argsort(p, kind="stable")
    adjusted = np.asarray(p, dtype=np.float64)[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum(1, np.minimum.accumulate(adjusted[::-1])[::-1])
    return q


def standard_error(values: np.ndarray, clusters: list) -> np.ndarray:
    """Cluster-robust standard error of the mean over axis 0.

    values: [n, ...]; clusters: n labels. Prompts that share a context are not independent draws, so their
    residuals are summed within a context before they are squared:

        SE^2 = C / (C - 1) / n^2 * sum_c (sum_{i in c} (x_i - mean))^2

    (Liang and Zeger 1986, for the mean; with every prompt in a cluster of its own it is s / sqrt(n)).
    NaN where there is one cluster only.
    """
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    n, n_clusters = len(values), int(cluster.max()) + 1
    if n_clusters < 2:
        return np.full(values.shape[1:], np.nan)
    residuals = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    sums = np.zeros((n_clusters, *values.shape[1:]))
    np.add.at(sums, cluster, residuals)
    return np.sqrt(n_clusters / (n_clusters - 1) * (sums**2).sum(axis=0)) / n


def bootstrap_interval(values, clusters: list, n_resamples: int = N_RESAMPLES, seed=0) -> np.ndarray:
    """(low, high): the 95% percentile interval of the mean over axis 0; [2] or [2, metric].

    values: [n] or [n, metric]; clusters: n labels; seed: a number or a numpy Generator. Questions that share a
    context are not independent draws, so whole contexts are drawn with replacement (Field and Welsh 2007, the
    cluster bootstrap), as many as there are. NaN where there is one cluster only.
    """
    values = np.asarray(values, dtype=np.float64)
    number = {label: i for i, label in enumerate(sorted(set(clusters)))}
    cluster, n_clusters = [number[label] for label in clusters], len(number)
    if n_clusters < 2:
        return np.full((2, *values.shape[1:]), np.nan)
    sums = np.zeros((n_clusters, *values.shape[1:]))
    np.add.at(sums, cluster, values)
    # How often each cluster is drawn: [resample, cluster].
    times = np.random.default_rng(seed).multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), n_resamples)
    means = ((times @ sums).T / (times @ np.bincount(cluster))).T
    return np.quantile(means, INTERVAL, axis=0)


def rank_correlation(x: np.ndarray, y: np.ndarray, seed: int = 42) -> tuple[float, float, float]:
    """(Spearman's rho, low, high): 95%, a bootstrap's over the points; NaN where there are too few, or no spread."""
    from scipy.stats import spearmanr

    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return (np.nan,) * 3
    rho = float(spearmanr(x, y).statistic)
    if len(x) < FEWEST_SETS:
        return rho, np.nan, np.nan
    draws = np.random.default_rng(seed).integers(len(x), size=(N_SET_RESAMPLES, len(x)))
    spread = [rows for rows in draws if np.ptp(x[rows]) > 0 and np.ptp(y[rows]) > 0]
    low, high = np.quantile([spearmanr(x[rows], y[rows]).statistic for rows in spread], (0.025, 0.975))
    return rho, float(low), float(high)


def odds_ratio(falls: np.ndarray, newly_right: np.ndarray, clusters: list) -> tuple[float, float, float]:
    """(odds ratio of becoming right a standard deviation of the fall, low, high): 95%, errors clustered by context.

    falls: [question], newly_right: [question] of bool, clusters: n labels. Three NaN where there are too few
    questions of either outcome, no spread, one context, or a fall that tells all of them apart.
    """
    from statsmodels.discrete.discrete_model import Logit
    from statsmodels.tools.sm_exceptions import PerfectSeparationError

    fewest = min(newly_right.sum(), (~newly_right).sum()) if len(newly_right) else 0
    if fewest < FEWEST_OF_AN_OUTCOME or len(set(clusters)) < 2 or np.ptp(falls) == 0:
        return (np.nan,) * 3
    design = np.column_stack([np.ones(len(falls)), (falls - falls.mean()) / falls.std()])
    _, groups = np.unique(np.asarray(clusters), return_inverse=True)
    try:
        fitted = Logit(newly_right.astype(float), design).fit(disp=0, cov_type="cluster", cov_kwds={"groups": groups})
    except (PerfectSeparationError, np.linalg.LinAlgError):
        return (np.nan,) * 3
    if not fitted.mle_retvals["converged"]:
        return (np.nan,) * 3
    ratio, low, high = np.exp([fitted.params[1], *fitted.conf_int()[1]]).tolist()
    return ratio, low, high
