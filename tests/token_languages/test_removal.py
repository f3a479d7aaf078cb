"""A language's part of a distribution, and random ones that take as much."""

import numpy as np
import pytest

from utils.token_languages.matrix import TokenLanguages
from utils.token_languages.removal import is_text, language_column, random_column, removed_mass


@pytest.fixture(scope="module")
def matrix(small_matrix, tiny_tokenizer):
    return TokenLanguages.load(small_matrix, tiny_tokenizer)


def test_a_language_s_column_is_the_matrix_s(matrix):
    column = language_column(matrix, "ory_Orya", 1500)
    dense = matrix.probs.toarray()
    assert np.allclose(column, dense[:1500, matrix.channels.index("ory_Orya")]) and column.shape == (1500,)
    text = is_text(matrix, 1500)
    assert np.array_equal(text, [row[: matrix.n_languages].sum() > 0.5 for row in dense[:1500]])
    with pytest.raises(ValueError, match="zul_Latn"):
        language_column(matrix, "zul_Latn", 1500)


def test_random_columns_take_as_much_from_other_text_tokens(matrix):
    rng = np.random.default_rng(0)
    n = matrix.probs.shape[0]
    probs = rng.dirichlet(np.full(n, 0.05))
    column, text = language_column(matrix, "hin_Deva", n), is_text(matrix, n)
    for strength in (0.5, 1, 4):
        wanted = removed_mass(probs, column, strength)
        slow = sum(p * min(1, strength * share) for p, share in zip(probs, column))
        assert wanted == pytest.approx(slow)
        drawn = [random_column(column, probs, text, strength, np.random.default_rng(seed)) for seed in (1, 1, 2)]
        assert removed_mass(probs, drawn[0], strength) == pytest.approx(wanted, rel=1e-6)
        assert not drawn[0][~text].any() and (drawn[0] >= 0).all() and (strength * drawn[0] <= 1 + 1e-12).all()
        assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])
        assert np.corrcoef(drawn[0][text], column[text])[0, 1] < 0.5
