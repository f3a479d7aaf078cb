"""Intervals, tests, odds and false discoveries. Contexts are drawn, not questions: those of one are not independent.

docs/statistics.md has the error rates of all of these, by simulation.
"""

from collections.abc import Iterator
from itertools import permutations
from math import factorial

import numpy as np

# All 2^14 sign patterns of 14 contexts are tried; with more contexts, this many drawn ones.
N_FLIPS = 2**14
FALSE_DISCOVERY_RATE = 0.05
# With fewer contexts no interval holds its coverage for scores that are mostly zero, so there is none.
FEWEST_CONTEXTS = 10
# Fewer questions of either outcome can't carry a logistic regression on one variable (Peduzzi et al. 1996).
FEWEST_OF_AN_OUTCOME = 10
# With fewer training sets, no order of them is rare enough to be a finding: of 5, the rarest has p = 2/120.
FEWEST_SETS = 5
# Fewer runs don't say how much runs differ: the t quantile of two is 12.7.
FEWEST_NULLS = 3
N_PERMUTATIONS = 10_000
N_RESAMPLES = 10_000


def paired_changes(before: np.ndarray, after: np.ndarray, clusters: list, seed: int = 0) -> dict[str, np.ndarray]:
    """What changed from one run to the other, cell by cell: before, after, change, low, high, p, each [cell].

    before, after: [n, cell], row i of both of the same example; clusters: n labels of contexts. low and high are
    `mean_interval`'s of the change, p is `mean_p`'s.
    """
    before, after = (np.asarray(values, dtype=np.float64) for values in (before, after))
    differences = after - before
    low, high = mean_interval(differences, clusters)
    return {
        "before": before.mean(axis=0),
        "after": after.mean(axis=0),
        "change": differences.mean(axis=0),
        "low": low,
        "high": high,
        "p": mean_p(differences, clusters, seed),
    }


def mean_interval(values, clusters: list) -> np.ndarray:
    """(low, high): the 95% interval of the mean over axis 0; [2, ...]. NaN with fewer than FEWEST_CONTEXTS contexts.

    values: [n, ...]; clusters: n labels. Student's t of the clusters' jackknife error, made symmetric by Hall's cubic
    transformation, since scores and shares are skewed (Hall 1992, On the removal of skewness by transformation,
    eq. 2.2): with W the studentised mean of C clusters and a = skewness / sqrt(C),

        t = W + a W^2 / 3 + a^2 W^3 / 27 + a / 6,  so that  W = 3 / a (cbrt(1 + a (t - a / 6)) - 1)

    with C - 3 degrees of freedom, since three moments are estimated: with C - 1, ten contexts of changes that are
    mostly zero have a coverage of .91 to .93.
    """
    from scipy.special import stdtrit

    mean, error, a, n_clusters = _studentised(values, clusters)
    if n_clusters < FEWEST_CONTEXTS:
        return np.full((2, *mean.shape), np.nan)
    quantile = stdtrit(n_clusters - 3, 0.975)
    return np.stack([mean - _inverse_hall(t, a) * error for t in (quantile, -quantile)])


def hall_p(values, clusters: list) -> np.ndarray:
    """Two-sided p that the mean over axis 0 is zero, [...], by the t of `mean_interval`: at most .05 where its interval
    is without zero. NaN with fewer than FEWEST_CONTEXTS contexts. Without any spread p = 1 for a mean of zero, else 0.
    """
    from scipy.special import stdtr

    mean, error, a, n_clusters = _studentised(values, clusters)
    if n_clusters < FEWEST_CONTEXTS:
        return np.full(mean.shape, np.nan)
    w = mean / np.where(error > 0, error, 1)
    p = 2 * stdtr(n_clusters - 3, -np.abs(_hall(w, a)))
    return np.where(error > 0, p, mean == 0)


def _studentised(values, clusters: list) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(mean over axis 0, its jackknife error, a of Hall's transformation, each [...]; number of clusters)."""
    values = np.asarray(values, dtype=np.float64)
    sums, sizes = _cluster_sums(values, clusters)
    n_clusters = len(sizes)
    mean = sums.sum(axis=0) / sizes.sum()
    residuals = sums - mean * sizes
    variance = (residuals**2).mean(axis=0)
    # What is equal but for rounding has no skewness, and no error.
    spread = variance > (1e-12 * np.abs(sums).max(axis=0)) ** 2
    skewness = (residuals**3).mean(axis=0) / np.where(spread, variance, 1) ** 1.5
    a = np.where(spread, skewness, 0) / np.sqrt(n_clusters)
    return mean, np.where(spread, jackknife_error(values, clusters), 0), a, n_clusters


def _hall(w: np.ndarray, a: np.ndarray) -> np.ndarray:
    return w * (1 + a * w * (1 / 3 + a * w / 27)) + a / 6


def _inverse_hall(t: float, a: np.ndarray) -> np.ndarray:
    straight = np.abs(a) < 1e-6
    bent = np.where(straight, 1, a)
    return np.where(straight, t, 3 / bent * (np.cbrt(1 + bent * (t - bent / 6)) - 1))


def jackknife_error(values: np.ndarray, clusters: list) -> np.ndarray:
    """Standard error of the mean over axis 0 from the means without one cluster each: [...]; NaN with one cluster.

    SE^2 = (C - 1) / C * sum_c (mean without c - mean)^2: with few clusters of unequal size less often too small than
    `standard_error` (Bell and McCaffrey 2002, CR3).
    """
    sums, sizes = _cluster_sums(np.asarray(values, dtype=np.float64), clusters)
    n_clusters, n, total = len(sizes), sizes.sum(), sums.sum(axis=0)
    if n_clusters < 2:
        return np.full(total.shape, np.nan)
    without = (total - sums) / (n - sizes)
    return np.sqrt((n_clusters - 1) / n_clusters * ((without - total / n) ** 2).sum(axis=0))


def _cluster_sums(values: np.ndarray, clusters: list) -> tuple[np.ndarray, np.ndarray]:
    """(sum of each cluster's values, [cluster, ...]; its size, of as many dimensions)."""
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((cluster.max() + 1, *values.shape[1:]))
    np.add.at(sums, cluster, values)
    return sums, np.bincount(cluster).reshape(-1, *[1] * (values.ndim - 1)).astype(np.float64)


def sign_flip_p(differences: np.ndarray, clusters: list, seed: int = 0) -> np.ndarray:
    """Two-sided p that the mean over axis 0 is zero, [...]; differences: [n, ...], clusters: n labels.

    If it made no difference which run is which, each context's differences could as well have the other sign
    (Fisher 1935; Winkler et al. 2014 for whole blocks). p is the share of sign patterns with as large a statistic,
    which is the studentised mean without its skewness (`mean_interval`): exact where differences are symmetric, and
    near the level where only their mean is zero (Janssen 1997 on studentised permutations). Of all patterns where
    there are at most N_FLIPS, which is exact, else of N_FLIPS drawn ones and the pattern that was seen, which keeps
    the level (Phipson and Smyth 2010). Without any difference p = 1.
    """
    return _flip(differences, clusters, seed)[0]


def mean_p(differences: np.ndarray, clusters: list, seed: int = 0) -> np.ndarray:
    """Two-sided p that the mean over axis 0 is zero, [...]: the larger of `sign_flip_p` and `hall_p`.

    Where most contexts are next to nothing and a few are not, sign flips alone reject twice as often as they should
    with 10 or 12 contexts; where almost all are nothing, Hall's t does. Both must agree, so that whatever has p <= .05
    has an interval without zero too. With few contexts there are sign flips alone.
    """
    return np.fmax(sign_flip_p(differences, clusters, seed), hall_p(differences, clusters))


def channel_p(differences: np.ndarray, clusters: list, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(p of each cell, [layer, channel]; p of each channel over its layers, [channel]), as `mean_p`.

    differences: [n, layer, channel]. The sign flips' statistic of a channel is the largest of its layers', and the
    patterns flip all layers together, so that p takes the number of layers and their dependence into account (Westfall
    and Young 1993); Hall's p of the layers are joined by Simes.
    """
    of_cells, of_channels = _flip(differences, clusters, seed)
    by_t = hall_p(differences, clusters)
    return np.fmax(of_cells, by_t), np.fmax(of_channels, simes(by_t))


def _flip(differences: np.ndarray, clusters: list, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(p, p of the largest statistic over axis 1 or of the only one); differences: [n, ...]."""
    differences = np.asarray(differences, dtype=np.float64)
    shape = differences.shape[1:]
    sums, sizes = _cluster_sums(differences.reshape(len(differences), -1), clusters)
    n_clusters = len(sizes)
    scale = np.sqrt((sums**2).sum(axis=0))
    sums = sums / np.where(scale > 0, scale, 1)  # the statistic has no scale
    seen = _statistics(np.ones((1, n_clusters)), sums)[0]
    # Sums of the same terms in another order differ by rounding: what is equal but for that is as far.
    least = seen * (1 - 1e-7) - 1e-12
    of_family = least.reshape(shape).max(axis=0)
    as_far, family_as_far = np.zeros(len(seen), dtype=np.int64), np.zeros(of_family.shape, dtype=np.int64)
    n_patterns = 0
    for signs in _sign_patterns(n_clusters, seed):
        found = _statistics(signs, sums)
        as_far += (found >= least).sum(axis=0)
        family_as_far += (found.reshape(len(signs), *shape).max(axis=1) >= of_family).sum(axis=0)
        n_patterns += len(signs)
    drawn = int(2**n_clusters > N_FLIPS)  # then the pattern that was seen counts too
    p, family = ((count + drawn) / (n_patterns + drawn) for count in (as_far.reshape(shape), family_as_far))
    return p, family


def _sign_patterns(n_clusters: int, seed: int) -> Iterator[np.ndarray]:
    """All patterns, or N_FLIPS drawn ones, in parts: [pattern, cluster] of -1 and 1."""
    if 2**n_clusters <= N_FLIPS:
        signs = 1 - 2 * ((np.arange(2**n_clusters)[:, None] >> np.arange(n_clusters)) & 1)
    else:
        signs = np.random.default_rng(seed).choice((-1, 1), size=(N_FLIPS, n_clusters))
    for part in np.array_split(signs, max(1, len(signs) // 128)):
        yield part.astype(np.float64)


def _statistics(signs: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """|Hall's t| of the mean of s x for each pattern s and cell, [pattern, cell]; sums x: [cluster, cell].

    Their squares add up to 1 in every cell, and s^2 = 1, so that with m the mean of s x over C clusters

        sum (s x - m)^2 = 1 - C m^2        sum (s x - m)^3 = sum s x^3 - m (3 - 2 C m^2)
    """
    n = len(sums)
    mean = signs @ sums / n
    of_mean = n * mean * mean
    square = 1 - of_mean
    agreed = square < 1e-12  # contexts that agree to the last digit are farther than any that don't
    square[agreed] = 1
    root = np.sqrt(square)
    a = (signs @ (sums * sums * sums) - mean * (3 - 2 * of_mean)) / (square * root)
    found = np.abs(_hall(mean / root * np.sqrt(n * (n - 1)), a))
    found[agreed] = np.inf
    return found


def least_p(n_contexts: int) -> float:
    """The least p that `sign_flip_p` can give, and so `mean_p`."""
    return 2 / 2**n_contexts if 2**n_contexts <= N_FLIPS else 1 / (N_FLIPS + 1)


def fewest_discoveries(n_contexts: int, n_tests: int) -> int:
    """How many of n_tests must have the least p before any of them has q <= FALSE_DISCOVERY_RATE."""
    return max(1, int(np.ceil(n_tests * least_p(n_contexts) / FALSE_DISCOVERY_RATE - 1e-9)))


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


def holm(p: np.ndarray) -> np.ndarray:
    """Adjusted p, [n] -> [n]: where those up to a level are findings, any is false at most so often (Holm 1979).

    The k-th smallest is the largest of (n - j + 1) p_j over j <= k. NaN is a cell that could not be tested: it takes
    no part.
    """
    p = np.asarray(p, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def simes(p: np.ndarray) -> np.ndarray:
    """p of a family from those of its members, [member, ...] -> [...]: the least of n p_k / k (Simes 1986)."""
    ranks = np.arange(1, len(p) + 1).reshape(-1, *[1] * (p.ndim - 1))
    return np.minimum(1, (np.sort(p, axis=0) * len(p) / ranks).min(axis=0))


def one_sided(change, p) -> tuple[np.ndarray, np.ndarray]:
    """(p that it is not above zero, p that it is not below) from a change and its two-sided p."""
    above = np.where(np.asarray(change) > 0, np.asarray(p) / 2, 1 - np.asarray(p) / 2)
    return above, 1 - above


def against_null(change: np.ndarray, nulls: np.ndarray, clusters: list, least_spread: float = 0) -> dict:
    """excess, low, high, p: a change beside those of runs that should do nothing, over runs and contexts.

    change: [n, ...], from A to B, of each prompt or question; nulls: [run, n, ...], from A to each null run, of the
    same ones; clusters: n labels. Runs and contexts are crossed: all runs read the same contexts, and null runs that
    are seeds of one training do alike in them. With i over runs and c over contexts,

        null_ic = mu + u_i + v_c + w_ic                B_c = mu + u_B + v_c + b_c + w_Bc

    b_c is what B does and the null runs do not, or they and not B; its mean is the excess. v_c, which all have, goes
    in d_c = B_c - mean_i null_ic. Two intervals, of which the wider counts, and the larger p:

        another null run     s^2 (1 + 1 / K), Student's t with K - 1 degrees of freedom
        runs and contexts    error(d)^2 + max(0, s^2 - omega^2) (1 + 1 / K), with Satterthwaite's, K - 1 to C - 1

    s^2 is the variance of the null runs' means, omega^2 the part of it that w has, error(d) a jackknife's over
    contexts. The first is a prediction interval (Higgins, Thompson and Spiegelhalter 2009, eq. 12): exact without b.
    It is not enough with it: three runs that get the same five questions right have no spread, and another run could
    still get a sixth. Satterthwaite's (1946): the second variance squared over error(d)^4 / (C - 1) +
    (s^2 (1 + 1 / K))^2 / (K - 1). Where nothing varies, p = 1 for no excess, else 0.
    least_spread: s is taken to be this at least: a few runs that all have next to nothing don't show how far another
    one can be from them. NaN for low, high and p with one cluster.

    Raises ValueError with fewer than FEWEST_NULLS runs.
    """
    from scipy.special import stdtr, stdtrit

    n, n_clusters = len(nulls), len(set(clusters))
    if n < FEWEST_NULLS:
        raise ValueError(f"{n} null runs: at least {FEWEST_NULLS} are needed to say how much runs differ")
    change, nulls = np.asarray(change, dtype=np.float64), np.asarray(nulls, dtype=np.float64)
    difference = change - nulls.mean(axis=0)
    excess, of_contexts = difference.mean(axis=0), jackknife_error(difference, clusters) ** 2
    of_null = np.mean([jackknife_error(null - nulls.mean(axis=0), clusters) ** 2 for null in nulls], axis=0)
    another = (1 + 1 / n) * np.maximum(nulls.mean(axis=1).var(axis=0, ddof=1), least_spread**2)
    both = of_contexts + np.maximum(0, another - (1 + 1 / n) * n / (n - 1) * of_null)
    parts = of_contexts**2 / max(1, n_clusters - 1) + another**2 / (n - 1)
    freedom = np.clip(both**2 / np.where(parts == 0, 1, parts), n - 1, max(n - 1, n_clusters - 1))
    width, p = np.zeros_like(excess), np.zeros_like(excess)
    certain = np.where(np.abs(excess) <= 1e-12, 0, np.copysign(np.inf, excess))
    for variance, degrees in ((another, n - 1), (both, freedom)):
        width = np.maximum(width, stdtrit(degrees, 0.975) * np.sqrt(variance))
        t = np.where(variance == 0, certain, excess / np.sqrt(np.where(variance == 0, 1, variance)))
        p = np.maximum(p, 2 * stdtr(degrees, -np.abs(t)))
    return {"excess": excess, "low": excess - width, "high": excess + width, "p": p}


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
    cluster bootstrap), as many as there are. With few contexts `mean_interval` covers better; this is for hundreds
    of sentences. NaN where there is one cluster only.
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
    return np.quantile(means, (0.025, 0.975), axis=0)


def rank_correlation(x: np.ndarray, y: np.ndarray, seed: int = 42) -> tuple[float, float]:
    """(Spearman's rho, its two-sided p); rho is NaN with fewer than three points or no spread, p with fewer than
    FEWEST_SETS points too. p is `permutation_p`'s.
    """
    from scipy.stats import rankdata

    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan, np.nan
    x, y = (ranks - ranks.mean() for ranks in (rankdata(x), rankdata(y)))
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    p = permutation_p(lambda orders: y[orders] @ x, len(x), seed) if len(x) >= FEWEST_SETS else np.nan
    return float(x @ y / scale), p


def permutation_p(statistic, n: int, seed: int = 42) -> float:
    """Two-sided p of a statistic of n things in an order: the share of orders with one as far from zero.

    statistic: [order, n] of indices -> [order]. All orders are tried where there are at most N_PERMUTATIONS, which is
    exact; else so many drawn ones and the order that was seen (Phipson and Smyth 2010).
    """
    if exact := factorial(n) <= N_PERMUTATIONS:
        orders = np.array(list(permutations(range(n))))
    else:
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (N_PERMUTATIONS, 1)), axis=1)
    seen = abs(float(statistic(np.arange(n)[None])[0]))
    as_far = int((np.abs(statistic(orders)) >= seen * (1 - 1e-9) - 1e-12).sum())
    return as_far / len(orders) if exact else (as_far + 1) / (len(orders) + 1)


def odds_ratio(falls: np.ndarray, newly_right: np.ndarray, clusters: list) -> dict[str, float]:
    """odds_ratio, odds_low, odds_high, odds_p: of becoming right, a standard deviation of the fall; 95%.

    falls: [question], newly_right: [question] of bool, clusters: n labels. Logistic; the slope's error is a jackknife
    over contexts (the fit without each of them), with Student's t. All NaN where there are too few contexts or
    questions of either outcome, no spread, or a fall that tells the outcomes apart, with or without some context.
    """
    from scipy.special import stdtr, stdtrit

    nothing = dict.fromkeys(("odds_ratio", "odds_low", "odds_high", "odds_p"), np.nan)
    fewest = min(newly_right.sum(), (~newly_right).sum()) if len(newly_right) else 0
    if fewest < FEWEST_OF_AN_OUTCOME or len(set(clusters)) < FEWEST_CONTEXTS or np.ptp(falls) == 0:
        return nothing
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    n_clusters = cluster.max() + 1
    weights = np.vstack([np.ones(len(falls)), np.arange(n_clusters)[:, None] != cluster])  # all; without each
    slopes = _logistic_slopes((falls - falls.mean()) / falls.std(), newly_right.astype(np.float64), weights)
    if np.isnan(slopes).any():
        return nothing
    slope, without = slopes[0], slopes[1:]
    error = np.sqrt((n_clusters - 1) / n_clusters * ((without - slope) ** 2).sum())
    width = stdtrit(n_clusters - 1, 0.975) * error
    ratio, low, high = np.exp([slope, slope - width, slope + width]).tolist()
    p = float(2 * stdtr(n_clusters - 1, -abs(slope) / error)) if error > 0 else np.nan
    return {"odds_ratio": ratio, "odds_low": low, "odds_high": high, "odds_p": p}


def _logistic_slopes(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Slope of the logistic regression of y on x for each row of weights, [fit, n] -> [fit].

    The first row's fit is where the others begin: without one context it is nearly the same. NaN where it does not
    converge: x tells the two outcomes apart, or doesn't vary.
    """
    first = _logistic(x, y, weights[:1], np.zeros((1, 2)))
    return _logistic(x, y, weights, np.repeat(first, len(weights), axis=0))[:, 1]


def _logistic(x: np.ndarray, y: np.ndarray, weights: np.ndarray, start: np.ndarray) -> np.ndarray:
    """(Intercept, slope) of each fit, [fit, 2], by Newton's method; NaN where it does not converge."""
    design = np.column_stack([np.ones(len(x)), x])
    found = start
    step = np.full_like(found, np.inf)
    for _ in range(30):
        fitted = 1 / (1 + np.exp(-np.clip(found @ design.T, -30, 30)))
        gradient = (weights * (y - fitted)) @ design
        spread = weights * fitted * (1 - fitted)
        one, both, two = spread.sum(axis=1), spread @ x, spread @ x**2
        determinant = one * two - both**2
        # A determinant of nothing: the fit has run off, or x is constant. The step is then NaN, and stays so.
        determinant[determinant < 1e-10 * one * two] = np.nan
        step = np.column_stack(
            [two * gradient[:, 0] - both * gradient[:, 1], one * gradient[:, 1] - both * gradient[:, 0]]
        )
        step /= determinant[:, None]
        found = found + step
        if not (np.abs(step) > 1e-8).any():
            break
    return np.where((np.abs(step) <= 1e-6).all(axis=1, keepdims=True), found, np.nan)
