"""Two runs over the same examples: paired changes with intervals over contexts, sign-flip tests, false discoveries."""

import numpy as np

from utils.scores import N_RESAMPLES, bootstrap_interval

# All 2^14 sign patterns of 14 contexts are tried; with more contexts, this many drawn ones.
N_FLIPS = 2**14
FALSE_DISCOVERY_RATE = 0.05
OUTCOMES = ("both_right", "newly_right", "newly_wrong", "both_wrong")


def outcome(before: bool, after: bool) -> str:
    """Which of OUTCOMES a question is in, by whether each run's answer is right."""
    if before:
        return "both_right" if after else "newly_wrong"
    return "newly_right" if after else "both_wrong"


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
