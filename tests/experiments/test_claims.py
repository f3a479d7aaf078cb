"""The verdicts follow their rules, whatever the numbers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from utils.experiments.claims import (
    CANT_TELL,
    NOT_SUPPORTED,
    SUPPORTED,
    carried_by_better_translations,
    hurt_by_its_own_language,
    lifted_by_suppression,
    more_than_doubled,
    not_always_helped,
    overall,
)
from utils.experiments.presets import Experiment
from utils.uncertainty import rank_correlation

ODIA, HINDI, ENGLISH, RUSSIAN = "ory_Orya", "hin_Deva", "eng_Latn", "rus_Cyrl"
EXPERIMENT = Experiment(
    Path("nowhere"),
    training={
        "en2ru_nllb": (RUSSIAN, "en2ru_nllb_train"),
        "or": (ODIA, "train"),
        "en": (ENGLISH, "train"),
        "en2or": (ODIA, "en2or_train"),
    },
)


def table(*rows):
    """rows: training, language, before, low and high of the change, in the middle of which it lies."""
    return pd.DataFrame(
        [
            (name, "xquad_in", lang, "multilingual_f1", b, b + (lo + hi) / 2, (lo + hi) / 2, lo, hi)
            for name, lang, b, lo, hi in rows
        ],
        columns="training dataset lang score before after change low high".split(),
    )


def verdicts(found):
    return [verdict for _, _, verdict in found]


@pytest.mark.parametrize(
    "before, low, high, verdict",
    [
        (0.10, 0.11, 0.20, SUPPORTED),
        (0.10, 0.10, 0.20, CANT_TELL),  # exactly doubled is not more than doubled
        (0.10, 0.05, 0.20, CANT_TELL),
        (0.10, 0.02, 0.09, NOT_SUPPORTED),
        (0.10, -0.10, -0.05, NOT_SUPPORTED),
        (0.01, 0.05, 0.20, CANT_TELL),
        (0.10, float("nan"), float("nan"), CANT_TELL),
    ],
)
def test_more_than_doubled(before, low, high, verdict):
    assert verdicts(more_than_doubled(table(("en2ru_nllb", ODIA, before, low, high)), EXPERIMENT)) == [verdict]


def test_only_another_language_that_a_machine_translated_can_double_a_low_resource_one():
    rows = [("or", HINDI, 0.1, 0.2, 0.3), ("en", ODIA, 0.1, 0.2, 0.3), ("en2or", ODIA, 0.1, 0.2, 0.3)]
    assert more_than_doubled(table(*rows, ("en2ru_nllb", HINDI, 0.1, 0.2, 0.3)), EXPERIMENT) == []


@pytest.mark.parametrize(
    "low, high, before, after, verdict",
    [
        (-0.2, -0.1, 0.1, 0.3, SUPPORTED),
        (-0.2, -0.1, 0.3, 0.1, NOT_SUPPORTED),
        (0.1, 0.2, 0.1, 0.3, NOT_SUPPORTED),
        (-0.1, 0.1, 0.1, 0.3, CANT_TELL),
        (float("nan"), float("nan"), 0.1, 0.3, CANT_TELL),
    ],
)
def test_hurt_by_its_own_language(low, high, before, after, verdict):
    longer = pd.DataFrame(
        [("base", "xquad_in", ODIA, before), ("or", "xquad_in", ODIA, after)],
        columns="training dataset lang overgeneration".split(),
    )
    rows = table(("or", ODIA, 0.3, low, high), ("or", HINDI, 0.3, -0.2, -0.1))
    found = hurt_by_its_own_language(rows, longer, EXPERIMENT)
    assert verdicts(found) == [verdict] and found[0][0] == "or -> or"


@pytest.mark.parametrize(
    "changes, verdict",
    [
        ([(0.1, 0.2), (-0.2, -0.1)], SUPPORTED),
        ([(0.1, 0.2), (0.01, 0.1)], NOT_SUPPORTED),
        ([(0.1, 0.2), (-0.1, 0.1)], CANT_TELL),
    ],
)
def test_not_always_helped(changes, verdict):
    rows = [("en", lang, 0.3, low, high) for lang, (low, high) in zip((HINDI, ODIA), changes)]
    own = ("en", ENGLISH, 0.3, -0.3, -0.2)  # its own language says nothing
    low_resource = ("or", HINDI, 0.3, -0.3, -0.2)
    assert verdicts(not_always_helped(table(*rows, own, low_resource), EXPERIMENT)) == [verdict]


@pytest.mark.parametrize(
    "cells, usually, one_is_enough",
    [
        ([SUPPORTED, CANT_TELL], SUPPORTED, SUPPORTED),
        ([SUPPORTED, NOT_SUPPORTED], CANT_TELL, SUPPORTED),
        ([SUPPORTED, NOT_SUPPORTED, NOT_SUPPORTED], NOT_SUPPORTED, SUPPORTED),
        ([NOT_SUPPORTED, CANT_TELL, CANT_TELL], NOT_SUPPORTED, NOT_SUPPORTED),
        ([CANT_TELL], CANT_TELL, CANT_TELL),
        ([], CANT_TELL, CANT_TELL),
    ],
)
def test_overall(cells, usually, one_is_enough):
    found = [("somewhere", "something", verdict) for verdict in cells]
    assert (overall(found, False), overall(found, True)) == (usually, one_is_enough)


NAN = float("nan")
FALLS, RISES, EITHER = (-0.2, -0.1), (0.1, 0.2), (-0.1, 0.1)


@pytest.mark.parametrize(
    "change, gain, odds, verdict",
    [
        (FALLS, RISES, (1.1, 3), SUPPORTED),
        (FALLS, RISES, (0.5, 3), CANT_TELL),
        (FALLS, RISES, (NAN, NAN), CANT_TELL),
        (FALLS, EITHER, (1.1, 3), CANT_TELL),
        (FALLS, (NAN, NAN), (1.1, 3), CANT_TELL),
        (EITHER, RISES, (1.1, 3), CANT_TELL),
        (FALLS, RISES, (0.2, 0.9), NOT_SUPPORTED),
        (FALLS, FALLS, (1.1, 3), NOT_SUPPORTED),
        (RISES, RISES, (1.1, 3), NOT_SUPPORTED),
        ((NAN, NAN), RISES, (1.1, 3), CANT_TELL),
    ],
)
def test_lifted_by_suppression(change, gain, odds, verdict):
    row = {
        "training": "or",
        "lang": HINDI,
        "channels": f"{ENGLISH} {ODIA}",
        "before": 0.3,
        "after": 0.1,
        "newly_right": 5,
    }
    row |= {"change": sum(change) / 2, "low": change[0], "high": change[1], "both_wrong": 90}
    row |= {"gain": sum(gain) / 2, "gain_low": gain[0], "gain_high": gain[1]}
    row |= {"odds_ratio": sum(odds) / 2, "odds_low": odds[0], "odds_high": odds[1]}
    found = lifted_by_suppression(pd.DataFrame([row]))
    assert verdicts(found) == [verdict] and found[0][0] == "or -> hi" and "English + Odia 0.300 -> 0.100" in found[0][1]


def quality_of(**spans):
    return pd.DataFrame(
        [(name, RUSSIAN, share) for name, share in spans.items()], columns=["training", "lang", "spans"]
    )


def translations(gains):
    """Scores of training sets that gain so much in Hindi, and much more in their own Russian, which is no transfer."""
    return table(
        *((name, HINDI, 0.3, g - 0.1, g + 0.1) for name, g in gains.items()),
        *((name, RUSSIAN, 0.1, 0.8 - g, 0.9 - g) for name, g in gains.items()),
    )


@pytest.mark.parametrize("sign, verdict", [(1, SUPPORTED), (-1, NOT_SUPPORTED)])
def test_translations_in_order_of_their_quality(sign, verdict):
    names = [f"en2x{i}" for i in range(8)]
    quality = quality_of(**{name: 0.1 * i for i, name in enumerate(names)})
    scores = translations({name: 0.02 * sign * i for i, name in enumerate(names)})
    found = carried_by_better_translations(quality, scores, NO_PAIRS)
    assert verdicts(found) == [verdict] and found[0][0] == "all 8 sets" and f"{sign:+.2f} [" in found[0][1]


def test_few_translations_tell_nothing():
    names = ["en2x1", "en2x2", "en2x3", "en2x4"]
    quality = quality_of(**{name: 0.1 * i for i, name in enumerate(names)})
    found = carried_by_better_translations(quality, translations(dict(zip(names, (0, 0.1, 0.2, 0.3)))), NO_PAIRS)
    assert verdicts(found) == [CANT_TELL] and "fewer than 5 sets" in found[0][1]


NO_PAIRS = table().assign(against=[])


@pytest.mark.parametrize(
    "spans, changes, verdict",
    [
        ((0.6, 0.3), (RISES, EITHER), SUPPORTED),
        ((0.3, 0.6), (RISES, EITHER), NOT_SUPPORTED),
        ((0.3, 0.6), (FALLS, EITHER), SUPPORTED),
        ((0.6, 0.3), (RISES, FALLS), CANT_TELL),
        ((0.6, 0.3), (EITHER, EITHER), CANT_TELL),
        ((0.33, 0.3), (RISES, RISES), CANT_TELL),
    ],
)
def test_two_translations_of_the_same_texts(spans, changes, verdict):
    quality = quality_of(**dict(zip(("en2de_nllb", "en2de"), spans)))
    rows = [("en2de_nllb", lang, 0.3, *change) for lang, change in zip((HINDI, ODIA), changes)]
    pair = table(*rows).assign(against="en2de")
    control = table(("en_truncated", HINDI, 0.3, *RISES)).assign(against="en")  # no translation, so no row
    found = carried_by_better_translations(quality, table(), pd.concat([pair, control]))
    assert verdicts(found) == [verdict]


def test_rank_correlation_is_scipy_s_and_its_interval_holds_no_correlation_most_of_the_time():
    rng = np.random.default_rng(0)
    missed = 0
    for trial in range(40):
        x, y = rng.normal(size=(2, 30))
        rho, low, high = rank_correlation(x, y, trial)
        assert rho == pytest.approx(spearmanr(x, y).statistic) and low < rho < high
        missed += not low < 0 < high
    assert missed <= 8
    assert all(np.isnan(rank_correlation(np.ones(9), np.arange(9))))
