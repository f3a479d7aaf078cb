"""Mean states of translations -> how close they lie, and whether one finds the other: alignment and retrieval."""

from itertools import combinations, permutations

import numpy as np

from utils.uncertainty import paired_changes


def unit(states: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64; a row of zeros stays one."""
    states = np.asarray(states, dtype=np.float64)
    return states / np.maximum(np.linalg.norm(states, axis=-1, keepdims=True), 1e-300)


def cosine_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 - cosine of row i of both: [n, width], [n, width] -> [n]."""
    return 1 - (unit(one) * unit(other)).sum(axis=-1)


def found_first(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Is candidate i the nearest to query i by cosine? [n] of 0 and 1; of m equally near ones, 1/m of it.

    A model that gives every sentence the same state finds 1/n by this, and not all.
    """
    similarity = unit(queries) @ unit(candidates).T  # [query, candidate]
    highest = similarity.max(axis=1, keepdims=True)
    nearest = similarity >= highest - 1e-12
    return np.diagonal(nearest) / nearest.sum(axis=1)


def centred(states: dict[str, np.ndarray], means: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each language's mean state taken away from its sentences' states."""
    return {lang: states[lang] - means[lang] for lang in states}


def pairs_of(langs: list[str]) -> list[tuple[str, str]]:
    """Each two languages once, in the order of `langs`."""
    return list(combinations(langs, 2))


def distance_matrix(states: dict[str, np.ndarray]) -> np.ndarray:
    """Cosine distance of each sentence's translations: [sentence, pair], pairs as `pairs_of` gives them."""
    return np.stack([cosine_distances(states[a], states[b]) for a, b in pairs_of(list(states))], axis=1)


def retrieval_matrix(states: dict[str, np.ndarray]) -> np.ndarray:
    """Is the translation found first? [sentence, ordered pair (query, candidate)], as `permutations` gives them."""
    return np.stack([found_first(states[a], states[b]) for a, b in permutations(states, 2)], axis=1)


def paired_rows(before: np.ndarray, after: np.ndarray, pairs: list[tuple[str, str]], target: str) -> list[dict]:
    """What changed, pair by pair and in the mean over all pairs and over those with the target language.

    before, after: [sentence, pair]. Sentences are drawn, each with all its translations (`paired_changes`).
    """
    with_target = np.array([target in pair for pair in pairs])
    cells = [(query, other) for query, other in pairs] + [("all", "all")]
    columns = [before, before.mean(axis=1, keepdims=True)]
    others = [after, after.mean(axis=1, keepdims=True)]
    if with_target.any() and not with_target.all():
        cells.append(("all", target))
        columns.append(before[:, with_target].mean(axis=1, keepdims=True))
        others.append(after[:, with_target].mean(axis=1, keepdims=True))
    changes = paired_changes(np.hstack(columns), np.hstack(others), list(range(len(before))))
    return [
        {"language": cell[0], "other": cell[1], **{name: float(values[i]) for name, values in changes.items()}}
        for i, cell in enumerate(cells)
    ]
