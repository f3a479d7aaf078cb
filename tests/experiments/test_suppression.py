"""The interfering language, its fall, and what the fall has to do with the gain."""

import json

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from utils.experiments.presets import Experiment
from utils.experiments.suppression import correlation, interfering_channels, suppression, upper_half
from utils.uncertainty import odds_ratio

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
    assert interfering_channels(table_of(probs), ODIA) == [BENGALI, ENGLISH]  # .10 and .05 above their nulls
    assert interfering_channels(table_of(probs, BENGALI), BENGALI) == [ODIA, ENGLISH]
    probs[:, -1, CHANNELS.index(FRENCH)] = 0.9  # at the last layer alone
    table = table_of(probs)
    assert interfering_channels(table, ODIA) == [FRENCH, BENGALI]
    table.loc[table["channel"] == FRENCH, "tokens"] = 2.5  # which is a token or two, and no language
    assert interfering_channels(table, ODIA) == [BENGALI, ENGLISH]


# --- over questions ---------------------------------------------------------------------------------------------


def questions(n, slope, seed=0):
    """Falls, and answers that become right with odds that grow with them; ten contexts."""
    rng = np.random.default_rng(seed)
    falls = rng.normal(0.2, 0.1, n)
    right = rng.random(n) < 1 / (1 + np.exp(-slope * (falls - 0.2) / 0.1))
    return falls, right, [f"context {i % 10}" for i in range(n)]


def test_odds_ratio_is_that_of_another_implementation_and_of_a_slow_sandwich():
    falls, right, contexts = questions(200, 0.5)
    ratio, low, high = odds_ratio(falls, right, contexts)
    design = sm.add_constant((falls - falls.mean()) / falls.std())
    other = sm.GLM(right.astype(float), design, family=sm.families.Binomial()).fit()
    assert ratio == pytest.approx(np.exp(other.params[1]), rel=1e-6)
    # Liang and Zeger's sandwich by hand, with the small-sample factor C / (C - 1) * (n - 1) / (n - 2).
    fitted = 1 / (1 + np.exp(-design @ other.params))
    bread = np.linalg.inv(design.T @ (design * (fitted * (1 - fitted))[:, None]))
    scores = (right - fitted)[:, None] * design
    of_context = np.array([scores[np.array(contexts) == name].sum(axis=0) for name in sorted(set(contexts))])
    covariance = bread @ of_context.T @ of_context @ bread * 10 / 9 * 199 / 198
    width = 1.959964 * np.sqrt(covariance[1, 1])
    assert np.log([low, high]) == pytest.approx(other.params[1] + np.array([-width, width]), abs=1e-5)


def test_odds_of_unrelated_falls_hold_one_in_their_interval_nearly_always():
    missed = sum(not low < 1 < high for _, low, high in (odds_ratio(*questions(120, 0, seed)) for seed in range(60)))
    assert missed <= 10  # ten clusters are few for a sandwich: somewhat more than 5%


@pytest.mark.parametrize(
    "falls, right, contexts",
    [
        (np.arange(30.0), np.arange(30) < 9, list(range(30))),  # nine became right
        (np.arange(30.0), np.arange(30) < 21, list(range(30))),  # nine stayed wrong
        (np.arange(30.0), np.arange(30) < 15, list(range(30))),  # the fall tells them all apart
        (np.ones(30), np.arange(30) < 15, list(range(30))),
        (np.arange(30.0), np.arange(30) % 2 == 0, ["one"] * 30),
        (np.array([]), np.array([], dtype=bool), []),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_no_odds_where_nothing_can_be_said(falls, right, contexts):
    assert np.isnan(odds_ratio(falls, right, contexts)).all()


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
    r, low, high, n = correlation(models(falls + more, falls - more))
    assert (round(r, 6), n) == (-1, 6) and low == pytest.approx(-1) and high == pytest.approx(-1)


def test_correlation_is_numpy_s_and_its_interval_widens_with_noise():
    rng = np.random.default_rng(1)
    falls = rng.normal(size=(8, 2))
    gains = falls + rng.normal(size=(8, 2))
    r, low, high, _ = correlation(models(falls, gains))
    expected = np.corrcoef((falls - falls.mean(axis=0)).ravel(), (gains - gains.mean(axis=0)).ravel())[0, 1]
    assert r == pytest.approx(expected) and low < r < high < 1
    r, low, high, n = correlation(models(falls[:4], gains[:4]))
    assert not np.isnan(r) and np.isnan([low, high]).all() and n == 4


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
    assert (row.odds_ratio, row.odds_low, row.odds_high) == pytest.approx(expected, rel=1e-4)


def test_nothing_changed_is_exactly_nothing(tmp_path):
    before = np.linspace(0.3, 0.6, 41)
    write_experiment(tmp_path, before, before, np.zeros(41, bool))
    sets = {"or": (ODIA, "train")}
    experiment = Experiment(tmp_path, training=sets, probes={"xquad_in": [ODIA]}, probed_epochs=[2])
    empty = pd.DataFrame(columns="training dataset lang score change low high".split())
    (row,) = suppression(experiment, empty).itertuples()
    assert (row.change, row.low, row.high) == (0, 0, 0) and np.isnan(row.gain) and np.isnan(row.odds_ratio)
