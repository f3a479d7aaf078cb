"""Paired changes, sign flips and false discovery rates against slow, obvious versions and what must hold of them."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import false_discovery_control, permutation_test

from utils.uncertainty import FALSE_DISCOVERY_RATE, N_FLIPS, benjamini_hochberg, paired_changes, sign_flip_p


def test_p_is_the_share_of_sign_patterns_as_far_from_zero():
    rng = np.random.default_rng(1)
    differences, contexts = rng.normal(0.4, 1, (11, 2)), list("aabbbcddeef")
    sums = {context: differences[[c == context for c in contexts]].sum(axis=0) for context in sorted(set(contexts))}
    seen = np.abs(sum(sums.values()))
    flipped = [
        np.abs(sum(sign * of_context for sign, of_context in zip(signs, sums.values())))
        for signs in product((1, -1), repeat=len(sums))
    ]
    expected = np.mean([one >= seen - 1e-12 for one in flipped], axis=0)
    assert sign_flip_p(differences, contexts) == pytest.approx(expected)


def test_p_is_scipys_where_every_example_has_a_context_of_its_own():
    differences = np.random.default_rng(2).normal(0.5, 1, (10, 1))
    result = permutation_test((differences[:, 0],), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(differences, list(range(10)))[0] == pytest.approx(result.pvalue)


def test_p_of_drawn_patterns_is_close_to_the_exact_one(monkeypatch):
    differences = np.random.default_rng(3).normal(0.4, 1, (12, 3))
    exact = sign_flip_p(differences, list(range(12)))
    monkeypatch.setattr("utils.uncertainty.N_FLIPS", 4000)  # fewer than 2^12
    drawn = sign_flip_p(differences, list(range(12)))
    assert (np.abs(drawn - exact) < 4 * np.sqrt(exact * (1 - exact) / 4000) + 1e-3).all()
    assert (drawn != exact).any()


def test_nothing_that_changed_is_no_discovery():
    values = np.random.default_rng(4).random((30, 5))
    changes = paired_changes(values, values, [i // 3 for i in range(30)])
    assert (changes["change"] == 0).all() and (changes["low"] == 0).all() and (changes["high"] == 0).all()
    assert (changes["p"] == 1).all() and (benjamini_hochberg(changes["p"]) == 1).all()


def test_a_change_is_the_mean_difference_inside_its_interval():
    rng = np.random.default_rng(5)
    before = rng.random((60, 4))
    after = before + np.array([0, 0.2, -0.1, 0.5]) + rng.normal(0, 0.05, (60, 4))
    changes = paired_changes(before, after, [i // 3 for i in range(60)])
    assert changes["change"] == pytest.approx((after - before).mean(axis=0))
    assert changes["change"] == pytest.approx(changes["after"] - changes["before"])
    assert (changes["low"] < changes["change"]).all() and (changes["change"] < changes["high"]).all()
    assert (changes["p"][1:] == 1 / (N_FLIPS + 1)).all() and changes["p"][0] > 0.01


def test_the_other_way_round_is_the_negative_of_it():
    rng = np.random.default_rng(6)
    one, other, contexts = rng.random((24, 3)), rng.random((24, 3)), [i // 2 for i in range(24)]
    there, back = paired_changes(one, other, contexts), paired_changes(other, one, contexts)
    assert there["change"] == pytest.approx(-back["change"])
    assert there["low"] == pytest.approx(-back["high"], abs=0.02) and there["p"] == pytest.approx(back["p"])


def test_contexts_that_move_as_one_are_one_observation():
    """Copies of a question bring no evidence."""
    differences = np.random.default_rng(7).normal(0.3, 1, (8, 1))
    once = sign_flip_p(differences, list(range(8)))
    copied = sign_flip_p(np.repeat(differences, 10, axis=0), [i // 10 for i in range(80)])
    assert copied == pytest.approx(once)


def test_one_context_can_show_nothing():
    assert sign_flip_p(np.ones((5, 1)), ["a"] * 5)[0] == 1


@pytest.mark.parametrize("n_contexts", [8, 40])
def test_two_draws_of_the_same_give_no_more_false_discoveries_than_stated(n_contexts):
    """Under the null of every cell, a set of cells has a false discovery in at most the stated share of trials."""
    rng, n_trials = np.random.default_rng(8), 200
    contexts = [i // 3 for i in range(3 * n_contexts)]
    hits, p = 0, []
    for trial in range(n_trials):
        of_context = np.repeat(rng.normal(0, 1, (n_contexts, 30)), 3, axis=0)
        differences = of_context + rng.normal(0, 1, of_context.shape)
        p.append(sign_flip_p(differences, contexts, seed=trial))
        hits += (benjamini_hochberg(p[-1]) <= FALSE_DISCOVERY_RATE).any()
    assert hits / n_trials <= FALSE_DISCOVERY_RATE + 3 * np.sqrt(0.05 * 0.95 / n_trials)
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize("p", [[0.01, 0.02, 0.03, 0.5], [0.5], [0.04, 0.04, 0.04], [1, 1, 0.2, 1e-5, 0.013, 0.013]])
def test_q_is_scipys(p):
    assert benjamini_hochberg(np.array(p)) == pytest.approx(false_discovery_control(p))
