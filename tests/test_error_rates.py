"""A small part of benchmarks/error_rates.py: the rates that docs/statistics.md states, with room for few draws."""

import numpy as np
import pytest
import torch

from benchmarks import error_rates
from benchmarks.noise_null import add_noise
from utils.experiments.claims import CANT_TELL, SUPPORTED
from utils.uncertainty import against_null, mean_interval, mean_p, sign_flip_p


@pytest.mark.parametrize("name", error_rates.SCORES)
@pytest.mark.parametrize("n_contexts, least, most", [(10, 0.92, 1), (20, 0.925, 0.975), (40, 0.925, 0.975)])
def test_intervals_hold_the_mean_of_skewed_scores(name, n_contexts, least, most):
    rng = np.random.default_rng(0)
    held = []
    for _ in range(10):
        contexts = error_rates.contexts_of(rng, n_contexts)
        values, mean = error_rates.differences(rng, name, contexts, 150)
        low, high = mean_interval(values, contexts)
        held.append((low <= mean) & (mean <= high))
    assert least <= np.mean(held) <= most


def test_sign_flips_keep_their_level_for_skewed_changes():
    rng = np.random.default_rng(1)
    rejected = []
    for _ in range(8):
        contexts = error_rates.contexts_of(rng, 12)
        values, mean = error_rates.differences(rng, "F1 from .04 to .11", contexts, 100)
        rejected.append(sign_flip_p(values - mean, contexts) <= 0.05)
    assert np.mean(rejected) <= 0.075  # of the plain mean it is .08


@pytest.mark.parametrize("n_contexts", [10, 12, 20])
def test_p_keeps_its_level_for_shares_that_are_mostly_nothing(n_contexts):
    """Sign flips alone reject in .1 with 10 contexts."""
    rng = np.random.default_rng(6)
    rejected = []
    for _ in range(15):
        contexts = error_rates.contexts_of(rng, n_contexts)
        values, mean = error_rates.differences(rng, "share of mean .17, very skewed", contexts, 100)
        rejected.append([p(values - mean, contexts) <= 0.05 for p in (mean_p, sign_flip_p)])
    both, flips = np.mean(rejected, axis=(0, 2))
    assert both <= 0.07 and both <= flips and (n_contexts > 10 or flips > 0.085)


@pytest.mark.parametrize("run_sd", [0, 1, 3])
@pytest.mark.parametrize("alike", [0, 1, 4])
def test_null_runs_keep_the_level(run_sd, alike):
    """However much runs differ, and null runs, as seeds of one training, do alike: beside four of three standard errors
    contexts alone find a run to differ in half of the cases."""
    rng = np.random.default_rng(2)
    changes, contexts = error_rates.runs(rng, 4, 20, run_sd * np.sqrt(1.25 / 20), 1500, alike)
    found = against_null(changes[0], changes[1:], contexts)
    held = (found["low"] <= 0) & (found["high"] >= 0)
    assert np.mean(found["p"] <= 0.05) <= 0.065
    assert held.tolist() == (found["p"] >= 0.05).tolist()
    low, high = mean_interval(changes[0], contexts)
    assert (np.mean((low > 0) | (high < 0)) > 0.3) == (run_sd == 3)


def test_null_runs_that_do_alike_find_a_change_that_all_contexts_have():
    rng = np.random.default_rng(7)
    changes, contexts = error_rates.runs(rng, 4, 20, 0, 500, alike=3)
    found = against_null(changes[0] + 4 * np.sqrt((9 + 1 + 1 / 3) / 20), changes[1:], contexts)
    assert np.mean(found["p"] <= 0.05) > 0.75


@pytest.mark.parametrize("letter, n", [("a", 40), ("b", 100), ("c", 60), ("d", 40)])
def test_a_verdict_is_seldom_wrong_in_any_cell(letter, n):
    rng = np.random.default_rng(8)
    wrong = sum(any(one != CANT_TELL for one in error_rates.found_of(letter, "small", rng)[0]) for _ in range(n))
    assert wrong <= 0.05 * n + 2.5 * np.sqrt(0.0475 * n)


@pytest.mark.parametrize("letter", ["a", "b", "c", "d"])
def test_a_large_effect_is_found(letter):
    rng = np.random.default_rng(4)
    effect = {"a": 2.0, "b": 0.4, "c": 0.3, "d": 0.2}[letter]
    assert [error_rates.found_of(letter, "small", rng, effect)[1] for _ in range(5)].count(SUPPORTED) >= 4


def test_translations_need_five_sets_and_the_paper_s_experiment_finds_a_strong_correlation():
    rng = np.random.default_rng(5)
    assert error_rates.found_of("e", "small", rng, 0.9) == ([CANT_TELL], CANT_TELL)
    cells, _ = error_rates.found_of("e", "paper", rng, 0.95)
    assert cells[0] == SUPPORTED and len(cells) > 1


def test_noise_is_of_each_matrix_s_own_size_and_decided_by_its_seed():
    def noisy(seed):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.LayerNorm(200))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        add_noise(model, 0.02, seed)
        return {name: value - before[name] for name, value in model.state_dict().items()}, before

    added, before = noisy(1)
    assert float(added["0.weight"].std()) == pytest.approx(0.02 * float(before["0.weight"].std()), rel=0.02)
    assert not added["0.bias"].any() and not added["1.weight"].any()
    assert torch.equal(noisy(1)[0]["0.weight"], added["0.weight"])
    assert not torch.equal(noisy(2)[0]["0.weight"], added["0.weight"])
