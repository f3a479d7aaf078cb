"""Paired changes, sign flips and false discovery rates against slow, obvious versions and what must hold of them."""

import math
import statistics
from itertools import permutations, product

import numpy as np
import pytest
from scipy.stats import false_discovery_control, spearmanr, ttest_ind
from scipy.stats import t as student

from utils.uncertainty import (
    FALSE_DISCOVERY_RATE,
    FEWEST_CONTEXTS,
    N_FLIPS,
    against_null,
    benjamini_hochberg,
    bootstrap_interval,
    channel_p,
    fewest_discoveries,
    hall_p,
    holm,
    jackknife_error,
    least_p,
    mean_interval,
    mean_p,
    one_sided,
    paired_changes,
    rank_correlation,
    sign_flip_p,
    simes,
    standard_error,
)


def slow_statistic(sums):
    """Hall's t of the mean of a list, term by term."""
    n, mean = len(sums), sum(sums) / len(sums)
    second, third = (sum((x - mean) ** k for x in sums) / n for k in (2, 3))
    w, skewness = mean / np.sqrt(second / (n - 1)), third / second**1.5
    return w + skewness * w**2 / 3 / n**0.5 + skewness**2 * w**3 / 27 / n + skewness / 6 / n**0.5


def slow_p(sums):
    seen = abs(slow_statistic(sums))
    flipped = [
        abs(slow_statistic([s * x for s, x in zip(signs, sums)])) for signs in product((1, -1), repeat=len(sums))
    ]
    return np.mean([one >= seen - 1e-9 for one in flipped]), flipped


def test_p_is_the_share_of_sign_patterns_as_far_from_zero():
    rng = np.random.default_rng(1)
    differences, contexts = rng.gamma(0.5, 1, (11, 2)) - 0.2, list("aabbbcddeef")
    sums = [[differences[[c == name for c in contexts], i].sum() for name in "abcdef"] for i in range(2)]
    assert sign_flip_p(differences, contexts) == pytest.approx([slow_p(of_cell)[0] for of_cell in sums])


def test_a_channel_s_p_is_that_of_its_largest_layer():
    differences = np.random.default_rng(2).normal(0.4, 1, (7, 3, 2))  # [context, layer, channel]
    p, of_channel = channel_p(differences, list(range(7)))
    for channel in range(2):
        of_layers = [slow_p(list(differences[:, layer, channel])) for layer in range(3)]
        largest = np.max([flipped for _, flipped in of_layers], axis=0)
        assert p[:, channel] == pytest.approx([one for one, _ in of_layers])
        assert of_channel[channel] == pytest.approx(np.mean(largest >= largest[0] - 1e-9))


def test_p_of_few_contexts_is_no_smaller_than_stated():
    agreed = np.linspace(1, 2, 12)[:, None]
    assert sign_flip_p(agreed[:6], list(range(6)))[0] == least_p(6) == 2 / 64
    assert sign_flip_p(np.repeat(agreed, 2, axis=0), list(range(24)))[0] == least_p(24)
    q = benjamini_hochberg(np.array([least_p(10)] * 155 + [1.0] * 3797))
    assert fewest_discoveries(10, 3952) == 155 and q[0] <= FALSE_DISCOVERY_RATE < least_p(10) * 3952 / 154


def test_p_of_drawn_patterns_is_close_to_the_exact_one(monkeypatch):
    differences = np.random.default_rng(3).normal(0.4, 1, (12, 3))
    exact = sign_flip_p(differences, list(range(12)))
    monkeypatch.setattr("utils.uncertainty.N_FLIPS", 4000)  # fewer than 2^12
    drawn = sign_flip_p(differences, list(range(12)))
    assert (np.abs(drawn - exact) <= 4 * np.sqrt(exact * (1 - exact) / 4000) + 1e-3).all()
    assert (drawn != exact).any()


def test_nothing_that_changed_is_no_discovery():
    values = np.random.default_rng(4).random((30, 5))
    changes = paired_changes(values, values, [i // 3 for i in range(30)])
    assert (changes["change"] == 0).all() and (changes["low"] == 0).all() and (changes["high"] == 0).all()
    assert np.isnan(paired_changes(values, values, [i // 4 for i in range(30)])["low"]).all()  # eight contexts
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
    one, other, contexts = rng.random((24, 3)), rng.random((24, 3)), [i // 2 for i in range(24)]  # twelve
    there, back = paired_changes(one, other, contexts), paired_changes(other, one, contexts)
    assert there["change"] == pytest.approx(-back["change"])
    assert there["low"] == pytest.approx(-back["high"]) and there["p"] == pytest.approx(back["p"])


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


# --- intervals -------------------------------------------------------------------------------------------------


def test_an_interval_is_the_t_of_the_jackknife_where_nothing_is_skewed():
    values = np.concatenate([np.arange(-6.0, 0), np.arange(1.0, 7)]) + 2.5
    low, high = mean_interval(values, list(range(12)))
    error = values.std(ddof=1) / np.sqrt(12)
    assert jackknife_error(values, list(range(12))) == pytest.approx(error)
    assert (low, high) == pytest.approx(2.5 + np.array([-1, 1]) * student.ppf(0.975, 9) * error)


def test_the_ends_of_an_interval_are_where_hall_s_t_is_student_s():
    values = np.random.default_rng(3).gamma(0.3, 1, 40)
    low, high = mean_interval(values, list(range(40)))
    n, quantile = 40, student.ppf(0.975, 37)
    for end, t in ((low, quantile), (high, -quantile)):
        moved = (values - end).tolist()
        mean, (second, third) = np.mean(moved), (np.mean((values - values.mean()) ** k) for k in (2, 3))
        w, a = mean / (values.std(ddof=1) / np.sqrt(n)), third / second**1.5 / np.sqrt(n)
        assert w + a * w**2 / 3 + a**2 * w**3 / 27 + a / 6 == pytest.approx(t)
    assert high - values.mean() > values.mean() - low  # the long tail is above


def test_the_jackknife_leaves_each_context_out():
    rng = np.random.default_rng(4)
    values, contexts = rng.random(30), rng.integers(0, 8, 30)
    without = np.array([values[contexts != c].mean() for c in range(8)])
    expected = np.sqrt(7 / 8 * ((without - values.mean()) ** 2).sum())
    assert jackknife_error(values, contexts) == pytest.approx(expected)
    assert jackknife_error(values, contexts) > standard_error(values, contexts)


def test_intervals_of_cells_are_those_of_each_and_contexts_that_agree_make_them_wide():
    rng = np.random.default_rng(5)
    contexts = np.repeat(np.arange(15), rng.integers(1, 9, 15))
    values = rng.normal(size=15)[contexts][:, None, None] + 0.1 * rng.normal(size=(len(contexts), 2, 3))
    found = mean_interval(values, contexts)
    assert found.shape == (2, 2, 3)
    assert found[:, 1, 2] == pytest.approx(mean_interval(values[:, 1, 2], contexts))
    single = mean_interval(values, np.arange(len(contexts)))
    assert ((found[1] - found[0]) > 1.5 * (single[1] - single[0])).all()


def test_p_of_hall_s_t_is_at_most_05_where_the_interval_is_without_zero():
    rng = np.random.default_rng(9)
    contexts = np.repeat(np.arange(12), rng.integers(1, 9, 12))
    values = rng.beta(0.2, 1, (12, 400))[contexts] - rng.random(400)
    p, (low, high) = hall_p(values, contexts), mean_interval(values, contexts)
    assert ((p <= 0.05) == ((low > 0) | (high < 0))).all() and 40 < (p <= 0.05).sum() < 360


def test_p_of_hall_s_t_is_student_s_of_the_statistic_term_by_term():
    values = np.random.default_rng(10).gamma(0.5, 1, 11) - 0.3
    w = values.mean() / (values.std(ddof=1) / np.sqrt(11))
    skewness = ((values - values.mean()) ** 3).mean() / values.std() ** 3
    t = w + skewness * w**2 / 3 / 11**0.5 + skewness**2 * w**3 / 27 / 11 + skewness / 6 / 11**0.5
    assert hall_p(values, list(range(11))) == pytest.approx(2 * student.sf(abs(t), 8))


def test_p_of_a_mean_is_the_larger_of_sign_flips_and_hall_s_t():
    rng = np.random.default_rng(11)
    differences, contexts = rng.beta(0.2, 1, (12, 4, 50)) - rng.random(50), list(range(12))
    flips, by_t = sign_flip_p(differences, contexts), hall_p(differences, contexts)
    assert (mean_p(differences, contexts) == np.maximum(flips, by_t)).all()
    assert (flips > by_t).any() and (by_t > flips).any()
    cells, channels = channel_p(differences, contexts)
    assert (cells == mean_p(differences, contexts)).all()
    assert (channels >= simes(by_t)).all() and (channels > simes(by_t)).any() and (channels == simes(by_t)).any()


def test_p_of_values_that_agree():
    agreed = np.column_stack([np.zeros(12), np.full(12, 0.3)])
    assert hall_p(agreed, list(range(12))).tolist() == [1, 0]
    assert mean_p(agreed, list(range(12))).tolist() == [1, least_p(12)]


def test_few_contexts_have_no_interval_and_sign_flips_alone():
    few = np.random.default_rng(12).normal(1, 1, (9, 3))
    assert np.isnan(mean_interval(few, list(range(9)))).all() and mean_interval(few, list(range(9))).shape == (2, 3)
    assert np.isnan(hall_p(few, list(range(9)))).all()
    assert (mean_p(few, list(range(9))) == sign_flip_p(few, list(range(9)))).all()
    assert not np.isnan(mean_interval(np.arange(10.0), list(range(FEWEST_CONTEXTS)))).any()


# --- many cells ------------------------------------------------------------------------------------------------


def test_holm_is_statsmodels_and_leaves_out_what_was_not_tested():
    from statsmodels.stats.multitest import multipletests

    p = np.array([0.01, 0.04, 0.03, 0.005, 0.5])
    expected = multipletests(p, method="holm")[1]
    assert holm(p) == pytest.approx(expected)
    found = holm(np.insert(p, 2, np.nan))
    assert np.isnan(found[2]) and np.delete(found, 2) == pytest.approx(expected)


def test_simes_is_the_least_false_discovery_rate_of_a_family():
    p = np.random.default_rng(6).random((7, 20))
    assert simes(p) == pytest.approx([benjamini_hochberg(of_family).min() for of_family in p.T])


def test_both_sides_of_a_p():
    above, below = one_sided(np.array([0.1, -0.1]), np.array([0.04, 0.04]))
    assert above == pytest.approx([0.02, 0.98]) and below == pytest.approx([0.98, 0.02])


def test_rank_correlation_is_scipy_s_and_p_is_exact():
    x, y = np.array([1.0, 2, 2, 3, 5]), np.array([2.0, 1, 4, 3, 9])
    rho, p = rank_correlation(x, y)
    everywhere = [abs(spearmanr(x, list(order)).statistic) for order in set(permutations(y))]
    assert rho == pytest.approx(spearmanr(x, y).statistic)
    assert p == pytest.approx(np.mean([one >= abs(rho) - 1e-9 for one in everywhere]))
    assert np.isnan(rank_correlation(np.ones(9), np.arange(9.0))).all() and np.isnan(rank_correlation(x[:4], y[:4])[1])
    rng = np.random.default_rng(7)
    many = [rank_correlation(*rng.normal(size=(2, 9)), seed)[1] for seed in range(60)]
    assert 0.3 < np.mean(many) < 0.7 and min(many) > 0


# --- null runs -------------------------------------------------------------------------------------------------


def runs_of(means: np.ndarray, n: int = 40) -> np.ndarray:
    """[run, n, cell] of [run, cell] means: each of the n prompts has its run's."""
    return np.repeat(means[:, None], n, axis=1)


def test_runs_that_differ_alike_in_all_contexts_are_two_samples():
    contexts, nulls = list(range(40)), np.random.default_rng(8).normal(size=(6, 3))
    found = against_null(np.full((40, 3), 1.5), runs_of(nulls), contexts)
    expected = [ttest_ind([1.5], nulls[:, i]).pvalue for i in range(3)]
    assert found["p"] == pytest.approx(expected)
    assert found["excess"] == pytest.approx(1.5 - nulls.mean(axis=0))
    assert ((found["low"] > 0) | (found["high"] < 0)).tolist() == (found["p"] < 0.05).tolist()
    own = np.random.default_rng(1).normal(scale=5, size=(40, 1))
    wider = against_null(1.5 + own - own.mean(), runs_of(nulls), contexts)
    assert (wider["p"] > found["p"]).all() and wider["excess"] == pytest.approx(found["excess"])
    with pytest.raises(ValueError, match="2 null runs: at least 3"):
        against_null(np.zeros((40, 3)), runs_of(nulls[:2]), contexts)


@pytest.mark.parametrize("run_sd, own_sd", [(0.0, 0.2), (0.3, 1.0), (2.0, 1.0), (0.2, 3.0)])
def test_the_variance_beside_null_runs_is_that_of_an_analysis_of_variance(run_sd, own_sd):
    """Contexts of one prompt: residual mean squares of runs by contexts in place of jackknives."""
    rng, n_runs, n_contexts = np.random.default_rng(5), 4, 12
    nulls = run_sd * rng.normal(size=(n_runs, 1)) + rng.normal(size=(n_runs, n_contexts)) + rng.normal(size=n_contexts)
    change = own_sd * rng.normal(size=n_contexts) + 1
    found = against_null(change[:, None], nulls[..., None], list(range(n_contexts)))
    residuals = nulls - nulls.mean(axis=1, keepdims=True) - nulls.mean(axis=0) + nulls.mean()
    of_residual = (residuals**2).sum() / ((n_runs - 1) * (n_contexts - 1)) / n_contexts
    of_runs = statistics.variance(nulls.mean(axis=1).tolist())
    of_contexts = statistics.variance((change - nulls.mean(axis=0)).tolist()) / n_contexts
    variance = of_contexts + 5 / 4 * max(0, of_runs - of_residual)
    freedom = variance**2 / (of_contexts**2 / 11 + (5 / 4 * of_runs) ** 2 / 3)
    widths = (
        student.ppf(0.975, 3) * math.sqrt(5 / 4 * of_runs),
        student.ppf(0.975, min(11, max(3, freedom))) * math.sqrt(variance),
    )
    assert (found["high"] - found["low"]) / 2 == pytest.approx(max(widths))


def test_runs_that_do_not_differ():
    none, contexts = np.zeros((3, 20, 2)), list(range(20))
    assert against_null(none[0], none, contexts)["p"].tolist() == [1, 1]
    assert against_null(none[0] + 0.1, none, contexts)["p"].tolist() == [0, 0]


def test_null_runs_that_happen_to_be_equal_do_not_make_one_question_a_finding():
    """Three runs get the same two of 60 questions right, and another one a third: an interval of nothing, and p = 0,
    would be of the runs alone."""
    contexts = np.repeat(np.arange(20), 3).tolist()
    nulls = np.zeros((3, 60, 1))
    nulls[:, [4, 30]] = 1
    change = nulls[0].copy()
    change[50] = 1
    found = against_null(change, nulls, contexts)
    assert found["excess"] == pytest.approx(1 / 60) and found["low"] < 0 < found["high"] and found["p"] > 0.3


def test_what_all_null_runs_do_in_a_context_is_no_measure_of_how_sure_another_run_s_change_is():
    """The error of the null runs' own changes is large: one context moves in all three, in no other model. It is no
    reason to believe that a run without it is known as well as they are among themselves."""
    rng = np.random.default_rng(3)
    contexts = list(range(20))
    nulls = 0.01 * rng.normal(size=(3, 20, 1))
    nulls[:, 7] += 6
    change = rng.normal(size=(20, 1))
    found = against_null(change, nulls, contexts)
    paired = (change - nulls.mean(axis=0))[:, 0]
    assert found["high"] - found["low"] >= 2 * 2.09 * paired.std(ddof=1) / np.sqrt(20) * 0.999


def test_runs_that_all_have_next_to_nothing_do_not_show_how_far_another_can_be():
    contexts, change = list(range(20)), np.tile([0.004, 0.5], (20, 1))
    nulls = runs_of(np.random.default_rng(9).normal(scale=1e-6, size=(4, 2)), 20)
    alone = against_null(change, nulls, contexts)
    found = against_null(change, nulls, contexts, least_spread=0.002)
    assert (alone["p"] < 1e-6).all() and found["p"][0] > 0.1 and found["p"][1] < 1e-5
    assert found["low"][0] < 0 < found["low"][1]
    # what runs differ by is more than that: nothing changes
    nulls = runs_of(np.random.default_rng(9).normal(scale=0.1, size=(4, 2)), 20)
    for name, values in against_null(change, nulls, contexts).items():
        assert against_null(change, nulls, contexts, 0.002)[name].tolist() == values.tolist()


def test_an_interval_is_that_of_the_means_of_drawn_contexts():
    rng = np.random.default_rng(0)
    values, clusters = unequal_clusters(rng, 30, effect=1.0)
    values += 3 * (np.bincount(clusters)[clusters] > 5)  # the size of a cluster says something of its values
    of_cluster = [values[clusters == c] for c in range(30)]
    means = [np.concatenate([of_cluster[c] for c in rng.integers(30, size=30)]).mean() for _ in range(10_000)]
    low, high = np.quantile(means, [0.025, 0.975])
    interval = bootstrap_interval(values, clusters)
    assert interval == pytest.approx([low, high], abs=0.04 * (high - low))


def test_one_context_has_no_bootstrap_interval():
    assert np.isnan(bootstrap_interval([0.0, 1.0], ["c", "c"])).all()
    assert np.isnan(bootstrap_interval(np.eye(3), ["c"] * 3)).all()
    assert bootstrap_interval(np.eye(3), ["c"] * 3).shape == (2, 3)


def unequal_clusters(rng, n_clusters: int, effect: float) -> tuple[np.ndarray, np.ndarray]:
    """Values [n] around 0 with a common effect in each cluster of 1 to 9, and the clusters' labels."""
    sizes = rng.integers(1, 10, n_clusters)
    clusters = np.repeat(np.arange(n_clusters), sizes)
    return effect * rng.normal(size=n_clusters)[clusters] + rng.normal(size=len(clusters)), clusters
