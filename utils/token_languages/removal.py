"""A language's part of each token, and of a next-token distribution: what the `logits` ablation takes away."""

import numpy as np

from utils.token_languages.matrix import TokenLanguages

# Weights are dealt out anew among so many text tokens of about the same probability.
BLOCK = 64
STEPS = 60  # of a bisection: its error is below float64's


def language_column(matrix: TokenLanguages, lang: str, n_tokens: int) -> np.ndarray:
    """P(language | token) of the matrix: [vocab], float64. Raises ValueError for a language that it does not have."""
    if lang not in matrix.languages:
        raise ValueError(f"{lang}: the token x language matrix has no such language; it has {len(matrix.languages)}")
    column = matrix.probs[:n_tokens, [matrix.channels.index(lang)]].toarray().ravel()
    return np.clip(column.astype(np.float64), 0, 1)


def is_text(matrix: TokenLanguages, n_tokens: int) -> np.ndarray:
    """Tokens that are some language's: [vocab] of bool; not digits, punctuation, control tokens."""
    return np.asarray(matrix.probs[:n_tokens, : matrix.n_languages].sum(axis=1)).ravel() > 0.5


def removed_mass(probs: np.ndarray, column: np.ndarray, strength: float) -> float:
    """What a distribution loses before it is scaled to 1 again: sum of p(v) min(1, s column(v)); probs: [vocab]."""
    return float(probs @ np.minimum(1, strength * column))


def random_column(
    column: np.ndarray, probs: np.ndarray, text: np.ndarray, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """Weights that take as much from `probs`, from other text tokens: [vocab].

    The column's weights are dealt out anew among text tokens that are about as likely (blocks of BLOCK in the order of
    their probability), and scaled so that the removed mass is the same; less only where it can't be had.
    """
    drawn = np.zeros_like(column)
    order = np.flatnonzero(text)[np.argsort(-probs[text], kind="stable")]
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        drawn[block] = rng.permutation(column[block])
    wanted = removed_mass(probs, column, strength)
    low, high = 0.0, 1.0
    while removed_mass(probs, high * drawn, strength) < wanted and high < 2**20:
        high *= 2
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if removed_mass(probs, middle * drawn, strength) < wanted else (low, middle)
    return np.minimum(high * drawn, 1 / strength)
