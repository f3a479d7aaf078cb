"""The interfering language, its fall, and what the fall has to do with the gain."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from utils.experiments.presets import Experiment
from utils.experiments.suppression import (
    COLUMNS,
    apart_from_nulls,
    beside_nulls,
    correlation,
    interfering_channels,
    suppression,
    upper_half,
)
from utils.uncertainty import against_null, odds_ratio

ODIA, ENGLISH, BENGALI, FRENCH = "ory_Orya", "eng_Latn", "ben_Beng", "fra_Latn"
CHANNELS = [ODIA, ENGLISH, BENGALI, FRENCH, "zxx"]
NULL = np.array([0.05, 0.2, 0.1, 0.1, 0.1])


def probs_of(n_prompts, **upper):
    """[prompt, layer, channel]: French has all of the lower half, and the upper half is as said."""
    probs = np.zeros((n_prompts, 5, len(CHANNELS)), np.float32)
    probs[:, :2, CHANNELS.index(FRENCH)] = 1
    for channel, mass in upper.items():
        probs[:, 2:, CHANNELS.index(channel)] = np.reshape(mass, (-1, 1))
    return probs


def test_the_upper_half_has_the_middle_layer_of_an_odd_number():
    probs = np.arange(5.0).reshape(1, 5, 1)
    assert upper_half(probs) == 3  # layers 2, 3 and 4
    assert upper_half(np.arange(4.0).reshape(1, 4, 1)) == 2.5


def table_of(probs, prompt_lang=ODIA, tokens=50.0):
    """language_probs.csv of probs: [prompt, layer, channel]."""
    n_layers = probs.shape[1]
    share = probs.mean(axis=0).ravel()
    table = {"prompt_lang": prompt_lang, "layer": np.repeat(range(n_layers), len(CHANNELS)), "share": share}
    return pd.DataFrame(table | {"channel": CHANNELS * n_layers, "null_share": [*NULL] * n_layers, "tokens": tokens})


def test_interfering_languages_are_no_prompts_own_and_peak_above_their_nulls():
    probs = probs_of(3, ory_Orya=0.3, eng_Latn=0.25, ben_Beng=0.2, zxx=0.25)
    assert interfering_channels(table_of(probs), table_of(probs), ODIA) == [
        BENGALI,
        ENGLISH,
    ]  # .10 and .05 above their nulls
    assert interfering_channels(table_of(probs, BENGALI), table_of(probs, BENGALI), BENGALI) == [ODIA, ENGLISH]
    probs[:, -1, CHANNELS.index(FRENCH)] = 0.9  # at the last layer alone
    table = table_of(probs)
    assert interfering_channels(table, table, ODIA) == [FRENCH, BENGALI]
    table.loc[table["channel"] == FRENCH, "tokens"] = 2.5  # which is a token or two, and no language
    assert interfering_channels(table, table, ODIA) == [BENGALI, ENGLISH]


# --- over questions ---------------------------------------------------------------------------------------------


def questions(n, slope, seed=0):
    """Falls, and answers that become right with odds that grow with them; ten contexts."""
    rng = np.random.default_rng(seed)
    falls = rng.normal(0.2, 0.1, n)
    right = rng.random(n) < 1 / (1 + np.exp(-slope * (falls - 0.2) / 0.1))
    return falls, right, [f"context {i % 10}" for i in range(n)]


def test_odds_ratio_is_that_of_another_implementation_fitted_without_each_context():
    import statsmodels.api as sm

    falls, right, contexts = questions(200, 0.5)
    found = odds_ratio(falls, right, contexts)
    design = sm.add_constant((falls - falls.mean()) / falls.std())

    def slope(kept):
        return sm.GLM(right[kept].astype(float), design[kept], family=sm.families.Binomial()).fit().params[1]

    names = np.array(contexts)
    whole = slope(np.ones(200, bool))
    without = np.array([slope(names != name) for name in sorted(set(contexts))])
    error = np.sqrt(9 / 10 * ((without - whole) ** 2).sum())
    ends = whole + np.array([-1, 1]) * student.ppf(0.975, 9) * error
    assert np.log([found["odds_ratio"], found["odds_low"], found["odds_high"]]) == pytest.approx(
        [whole, *ends], abs=1e-6
    )
    assert found["odds_p"] == pytest.approx(2 * student.sf(abs(whole) / error, 9))


def test_odds_of_unrelated_falls_hold_one_in_their_interval_nearly_always():
    found = [odds_ratio(*questions(120, 0, seed)) for seed in range(200)]
    assert sum(one["odds_p"] <= 0.05 for one in found) <= 19  # 10 +- 3 standard errors
    assert all((one["odds_p"] > 0.05) == (one["odds_low"] < 1 < one["odds_high"]) for one in found)


@pytest.mark.parametrize(
    "falls, right, contexts",
    [
        (np.arange(30.0), np.arange(30) < 9, list(range(30))),  # nine became right
        (np.arange(30.0), np.arange(30) < 21, list(range(30))),  # nine stayed wrong
        (np.arange(30.0), np.arange(30) < 15, list(range(30))),  # the fall tells them all apart
        (np.ones(30), np.arange(30) < 15, list(range(30))),
        (np.arange(30.0), np.arange(30) % 2 == 0, [i % 9 for i in range(30)]),  # nine contexts
        (np.array([]), np.array([], dtype=bool), []),
    ],
)
def test_no_odds_where_nothing_can_be_said(falls, right, contexts):
    assert np.isnan(list(odds_ratio(falls, right, contexts).values())).all()


# --- over training sets and languages ---------------------------------------------------------------------------


def models(falls, gains, langs=(ODIA, ENGLISH)):
    """falls, gains: [training set, language]."""
    return pd.DataFrame(
        [
            (f"set {i}", "xquad_in", lang, -fall, gain)
            for i, rows in enumerate(zip(falls, gains))
            for lang, fall, gain in zip(langs, *rows)
        ],
        columns="training dataset lang change gain".split(),
    )


def test_correlation_is_within_a_language():
    # English falls more and gains more than Odia, in every model alike: that alone is no correlation.
    falls = np.array([[0.1, 0.5]] * 6)
    assert np.isnan(correlation(models(falls, falls))[0])
    more = np.linspace(0, 0.05, 6)[:, None]
    r, p, n = correlation(models(falls + more, falls - more))
    assert (round(r, 6), n) == (-1, 6) and p == pytest.approx(2 / 720)  # this order of six sets, and its reverse


def test_null_runs_that_the_others_are_compared_with_make_no_correlation():
    unrelated = np.array([[0.3, 0.1], [0.1, 0.1], [0.3, 0.3], [0.1, 0.3], [0.2, 0.2]])
    table = models(unrelated[:, [0, 0]], unrelated[:, [1, 1]])
    null = models(np.full((1, 2), -5.0), np.full((1, 2), -5.0)).assign(training="null")
    both = pd.concat([table.assign(null_runs=3), null.assign(null_runs=0)], ignore_index=True)
    assert correlation(both)[0] > 0.9
    apart = apart_from_nulls(both, ["null"])
    assert correlation(apart)[0] == pytest.approx(0) and "null" not in set(apart["training"])
    alone = both.assign(null_runs=0)  # nothing is compared with it: a model like the others
    assert apart_from_nulls(alone, ["null"]).equals(alone)


def test_correlation_is_numpy_s_and_finds_nothing_in_unrelated_sets_more_often_than_it_says():
    rng = np.random.default_rng(1)
    falls = rng.normal(size=(8, 2))
    gains = falls + 0.3 * rng.normal(size=(8, 2))
    r, p, _ = correlation(models(falls, gains))
    expected = np.corrcoef((falls - falls.mean(axis=0)).ravel(), (gains - gains.mean(axis=0)).ravel())[0, 1]
    assert r == pytest.approx(expected) and p < 0.05
    r, p, n = correlation(models(falls[:4], gains[:4]))
    assert not np.isnan(r) and np.isnan(p) and n == 4
    found = [correlation(models(rng.normal(size=(5, 2)), rng.normal(size=(5, 2))))[1] <= 0.05 for _ in range(200)]
    assert sum(found) <= 19


# --- from run folders -------------------------------------------------------------------------------------------


def write_experiment(folder, before, after, right):
    """A base and a model tuned on `or`: Bengali in Odia prompts beside .3 of English; right: which become so."""
    n = len(before)
    for name, masses in (("base", before), ("or-epoch-2", after)):
        run = folder / "probes" / f"{name}-xquad_in"
        run.mkdir(parents=True)
        probs = probs_of(n, ben_Beng=masses, eng_Latn=0.3)
        np.save(run / "influence.npy", probs)
        pd.DataFrame({"row": range(n), "id": range(n), "prompt_lang": ODIA}).to_csv(run / "prompts.csv", index=False)
        table = table_of(probs).assign(share_low=np.nan, share_high=np.nan, n=n)
        table.to_csv(run / "language_probs.csv", index=False)
        (run / "metrics.json").write_text("{}")
    for name in ("base", "or"):
        run = folder / "answers" / f"{name}-xquad_in"
        run.mkdir(parents=True)
        rows = [
            {
                "lang": ODIA,
                "id": str(i),
                "context": f"c{i // 2}",
                "scores": {"multilingual_exact_match": float(name == "or" and right[i])},
            }
            for i in range(n - 1)  # the last prompt was not asked
        ]
        (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run / "metrics.json").write_text("{}")


def test_a_models_row(tmp_path):
    rng = np.random.default_rng(3)
    before, after = rng.uniform(0.5, 0.7, 41), rng.uniform(0.1, 0.6, 41)
    right = rng.random(41) < 0.5
    write_experiment(tmp_path, before, after, right)
    sets = {"or": (ODIA, "train"), "de": ("deu_Latn", "train")}
    experiment = Experiment(tmp_path, training=sets, probes={"xquad_in": [ODIA]}, probed_epochs=[1, 2])
    transfer = pd.DataFrame(
        [("or", "xquad_in", ODIA, "multilingual_f1", 0.1, 0.05, 0.15), ("or", "xquad_in", ODIA, "squad_f1", 9, 9, 9)],
        columns="training dataset lang score change low high".split(),
    )
    (row,) = suppression(experiment, transfer).itertuples()
    assert (row.training, row.lang, row.channels, row.n) == ("or", ODIA, f"{BENGALI} {ENGLISH}", 40)
    assert row.before == pytest.approx(0.3 + before[:40].mean(), abs=1e-6)
    assert row.change == pytest.approx((after - before)[:40].mean(), abs=1e-6) and row.low < row.change < row.high
    assert (row.gain, row.gain_low, row.gain_high) == (0.1, 0.05, 0.15)
    assert (row.newly_right, row.both_wrong) == (right[:40].sum(), (~right[:40]).sum())
    expected = odds_ratio((before - after)[:40], right[:40], [i // 2 for i in range(40)])
    assert [getattr(row, name) for name in expected] == pytest.approx(list(expected.values()), rel=1e-3)
    assert (row.null_runs, row.n_contexts) == (0, 20) and np.isnan(row.null_change)


def test_nothing_changed_is_exactly_nothing(tmp_path):
    before = np.linspace(0.3, 0.6, 41)
    write_experiment(tmp_path, before, before, np.zeros(41, bool))
    sets = {"or": (ODIA, "train")}
    experiment = Experiment(tmp_path, training=sets, probes={"xquad_in": [ODIA]}, probed_epochs=[2])
    empty = pd.DataFrame(columns="training dataset lang score change low high".split())
    (row,) = suppression(experiment, empty).itertuples()
    assert (row.change, row.low, row.high) == (0, 0, 0) and np.isnan(row.gain) and np.isnan(row.odds_ratio)


def test_interfering_languages_fall_as_often_as_they_rise_between_two_noisy_copies():
    """Chosen on the base they fall: what is high there by chance is not as high in the other one."""
    rng = np.random.default_rng(5)
    channels = [f"l{i:02}" for i in range(30)]
    falls = {"mean": 0, "base": 0}
    for _ in range(300):
        shares = rng.normal(0.03, 0.01, (2, 30))
        tables = [
            pd.DataFrame({"prompt_lang": ODIA, "layer": 0, "channel": channels, "share": share, "tokens": 50.0})
            for share in shares
        ]
        base, tuned = (table.assign(null_share=0.0) for table in tables)
        for rule, of_rule in (("mean", tuned), ("base", base)):
            chosen = [channels.index(code) for code in interfering_channels(base, of_rule, ODIA)]
            falls[rule] += (shares[1] - shares[0])[chosen].sum() < 0
    assert abs(falls["mean"] - 150) <= 3 * np.sqrt(300 / 4) and falls["base"] > 270


def null_table(**changes):
    """`suppression`'s columns of one language: a name and its change a row; 20 contexts' error is .01."""
    rows = [
        {"training": name, "dataset": "xquad_in", "lang": ODIA, "change": change} for name, change in changes.items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS).assign(low=-1.0, high=1.0, p=0.001)


def test_a_fall_is_compared_with_those_of_the_null_runs():
    table = null_table(tuned=-0.5, a=-0.2, b=-0.1, c=-0.15, d=-0.17)
    contexts = np.repeat(np.arange(20), 2).tolist()
    of_context = [np.repeat(np.random.default_rng(i).normal(size=20), 2) for i in range(5)]  # prompts of one are alike
    differences = [row + 0.5 * (own - own.mean()) for row, own in zip(table["change"], of_context)]
    found = beside_nulls(table, differences, [contexts] * 5, list("abcd")).set_index("training")
    expected = against_null(differences[0], np.stack(differences[1:]), contexts)
    row = found.loc["tuned"]
    assert (row["null_runs"], row["p"], row["low"]) == (4, pytest.approx(expected["p"]), pytest.approx(expected["low"]))
    assert row["null_change"] == pytest.approx(-0.155, abs=0.01) and (found.loc[list("abcd"), "null_runs"] == 3).all()
    few = beside_nulls(table, differences, [contexts] * 5, ["a", "b"])
    assert (few["null_runs"] == 0).all() and (few["p"] == 0.001).all() and few["null_change"].isna().all()
    with pytest.raises(ValueError, match="tuned and a: not the same prompts of xquad_in"):
        beside_nulls(table, differences, [contexts, contexts[1:], *[contexts] * 3], list("abcd"))
