"""Alignment and retrieval against slow obvious versions, and what centring takes away."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from utils.neurons import retrieval, steering


def translations(n=30, width=8, offset=3.0, noise=0.3, seed=0):
    """Two languages that say the same, each with a constant of its own."""
    rng = np.random.default_rng(seed)
    meaning = rng.normal(size=(n, width))
    return {
        lang: (meaning + noise * rng.normal(size=(n, width)) + offset * rng.normal(size=width)).astype(np.float32)
        for lang in ("a", "b", "c")
    }


def test_distances_and_first_places_are_scipy_s():
    states = translations()
    distances = cdist(states["a"], states["b"], "cosine")
    assert retrieval.cosine_distances(states["a"], states["b"]) == pytest.approx(np.diagonal(distances), abs=1e-6)
    expected = distances.argmin(axis=1) == np.arange(len(distances))
    assert retrieval.found_first(states["a"], states["b"]).tolist() == expected.astype(float).tolist()
    assert retrieval.found_first(states["a"], states["a"]).mean() == 1
    assert retrieval.found_first(np.ones((10, 4)), np.ones((10, 4))) == pytest.approx(0.1)


def test_matrices_have_a_column_a_pair():
    states = translations()
    distances, found = retrieval.distance_matrix(states), retrieval.retrieval_matrix(states)
    assert distances.shape == (30, 3) and found.shape == (30, 6)
    assert distances[:, 1] == pytest.approx(retrieval.cosine_distances(states["a"], states["c"]))
    assert found[:, 2].tolist() == retrieval.found_first(states["b"], states["a"]).tolist()


def test_centring_takes_a_constant_away_and_nothing_else():
    states = translations(noise=0.0)
    means = {lang: of_lang.mean(axis=0) for lang, of_lang in states.items()}
    centred = retrieval.centred(states, means)
    assert retrieval.distance_matrix(states).mean() > 0.3
    assert retrieval.distance_matrix(centred) == pytest.approx(0, abs=1e-5)
    assert retrieval.retrieval_matrix(centred).mean() == 1


def test_paired_rows_hold_each_pair_all_of_them_and_those_of_the_target():
    rng = np.random.default_rng(1)
    before, pairs = rng.random((40, 3)), [("a", "b"), ("a", "c"), ("b", "c")]
    after = before - 0.2
    rows = {(row["language"], row["other"]): row for row in retrieval.paired_rows(before, after, pairs, "c")}
    assert list(rows) == [*pairs, ("all", "all"), ("all", "c")]
    assert rows["all", "c"]["before"] == pytest.approx(before[:, 1:].mean())
    assert all(row["change"] == pytest.approx(-0.2) and row["high"] < 0 for row in rows.values())


def records(shift: float):
    """A base with constants of its own; experts take some of them away, random neurons do nothing."""
    base = translations(n=30)
    means = {lang: of_lang.mean(axis=0) for lang, of_lang in base.items()}
    states = {("base", 0): base, ("expert", 5): {lang: s - shift * means[lang] for lang, s in base.items()}}
    states["random", 5] = base
    rng = np.random.default_rng(2)
    losses = {lang: 2 + rng.random(12) for lang in base}
    told = {key: (rng.random(12) < (0.9 if key[0] == "expert" else 0.1)).astype(float) for key in states}
    return {
        key: {
            lang: {"pooled": s, "losses": losses[lang] + (key[0] == "expert") * (lang != "a"), "told": told[key]}
            | {"written": np.array([0.5, 0.5]), "centre": means[lang].astype(np.float64)}
            for lang, s in of_key.items()
        }
        for key, of_key in states.items()
    }


def test_claims_tell_experts_from_both_controls():
    found = records(0.5)
    tables = steering.effect_tables(found, ["a", "b", "c"], "a")
    claims = steering.steering_claims(found, tables, "a").set_index(["claim", "against"])["verdict"]
    assert claims["alignment rises", "base"] == claims["alignment rises", "random"] == "holds"
    assert claims["alignment rises", "centred"] == "reversed"  # taking half of a constant away is less than all of it
    assert claims["the target is written more, after openings in other languages", "base"] == "holds"
    assert claims["loss falls on the target's text", "base"] == "not seen"
    assert claims["loss rises on other text", "random"] == "holds"
    nothing = records(0.0)
    tables = steering.effect_tables(nothing, ["a", "b", "c"], "a")
    claims = steering.steering_claims(nothing, tables, "a").set_index(["claim", "against"])["verdict"]
    assert claims["alignment rises", "base"] == claims["retrieval rises", "random"] == "not seen"
    assert claims["retrieval at most doubles, pair by pair", "base"] == "holds"


@pytest.mark.parametrize(
    ("low", "high", "rises", "verdict"),
    [
        (0.1, 0.2, True, "holds"),
        (0.1, 0.2, False, "reversed"),
        (-0.1, 0.2, True, "not seen"),
        (-0.2, -0.1, False, "holds"),
        (-0.2, -0.1, True, "reversed"),
        (float("nan"), float("nan"), True, "not seen"),
    ],
)
def test_verdicts(low, high, rises, verdict):
    assert steering.verdict_of(low, high, rises) == verdict
