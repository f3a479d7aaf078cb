"""The verdicts follow their rules, whatever the numbers."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from utils.experiments.claims import (
    CANT_TELL,
    NOT_SUPPORTED,
    SUPPORTED,
    Cell,
    carried_by_better_translations,
    hurt_by_its_own_language,
    judged,
    lifted_by_suppression,
    more_than_doubled,
    not_always_helped,
    overall,
    telling,
)
from utils.experiments.presets import Experiment

NAN = float("nan")
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


SURE, UNSURE = 0.001, 0.2  # two-sided p


def table(*rows, score="multilingual_f1"):
    """rows: training, language, before, change, p, and perhaps p of after - 2 before."""
    columns = "training dataset lang score before after change low high p double_p".split()
    return pd.DataFrame(
        [
            (
                name,
                "xquad_in",
                lang,
                score,
                before,
                before + change,
                change,
                change - 0.1,
                change + 0.1,
                p,
                *(more or [NAN]),
            )
            for name, lang, before, change, p, *more in rows
        ],
        columns=columns,
    ).assign(excess=NAN, excess_p=NAN)


def verdicts(cells):
    return [verdict for _, _, verdict in judged(cells)]


@pytest.mark.parametrize(
    "before, change, double_p, verdict",
    [
        (0.10, 0.15, SURE, SUPPORTED),
        (0.10, 0.15, UNSURE, CANT_TELL),
        (0.10, 0.05, SURE, NOT_SUPPORTED),
        (0.10, -0.05, SURE, NOT_SUPPORTED),
        (0.01, 0.15, SURE, CANT_TELL),  # of next to nothing
        (0.10, 0.15, NAN, CANT_TELL),
    ],
)
def test_more_than_doubled(before, change, double_p, verdict):
    cells = more_than_doubled(table(("en2ru_nllb", ODIA, before, change, SURE, double_p)), EXPERIMENT)
    assert verdicts(cells) == [verdict]


@pytest.mark.parametrize(
    "excess, p, verdict",
    [(0.1, SURE, SUPPORTED), (0.1, UNSURE, CANT_TELL), (-0.1, SURE, CANT_TELL), (NAN, NAN, CANT_TELL)],
)
def test_what_a_tuning_on_other_answers_doubles_too_is_no_finding(excess, p, verdict):
    experiment = dataclasses.replace(EXPERIMENT, nulls=["or_null_1", "or_null_2", "or_null_3"])
    rows = table(("en2ru_nllb", ODIA, 0.1, 0.15, SURE, SURE)).assign(excess=excess, excess_p=p)
    (cell,) = more_than_doubled(rows, experiment)
    assert verdicts([cell]) == [verdict] and (excess != excess or f"{100 * excess:+.1f} beyond" in cell.measured)
    undoubled = table(("en2ru_nllb", ODIA, 0.1, 0.05, SURE, SURE)).assign(excess=excess, excess_p=p)
    assert verdicts(more_than_doubled(undoubled, experiment)) == [NOT_SUPPORTED]


def test_only_another_language_that_a_machine_translated_can_double_a_low_resource_one():
    rows = [("or", HINDI, 0.1, 0.3, SURE), ("en", ODIA, 0.1, 0.3, SURE), ("en2or", ODIA, 0.1, 0.3, SURE)]
    assert more_than_doubled(table(*rows, ("en2ru_nllb", HINDI, 0.1, 0.3, SURE)), EXPERIMENT) == []


@pytest.mark.parametrize(
    "change, p, over, over_p, verdict",
    [
        (-0.2, SURE, 0.2, SURE, SUPPORTED),
        (-0.2, SURE, 0.2, UNSURE, CANT_TELL),  # more overgeneration, which may be chance
        (-0.2, UNSURE, 0.2, SURE, CANT_TELL),
        (-0.2, SURE, -0.2, SURE, NOT_SUPPORTED),
        (0.2, SURE, 0.2, SURE, NOT_SUPPORTED),
        (0.2, SURE, NAN, NAN, NOT_SUPPORTED),
        (0.2, UNSURE, 0.2, SURE, CANT_TELL),
    ],
)
def test_hurt_by_its_own_language(change, p, over, over_p, verdict):
    rows = table(("or", ODIA, 0.3, change, p), ("or", HINDI, 0.3, -0.2, SURE))
    longer = table(("or", ODIA, 0.1, over, over_p), score="overgeneration") if over == over else table()
    cells = hurt_by_its_own_language(pd.concat([rows, longer]), EXPERIMENT)
    assert verdicts(cells) == [verdict] and cells[0].where == "or -> or"


@pytest.mark.parametrize(
    "changes, verdict",
    [
        ([(0.1, SURE), (-0.1, SURE)], SUPPORTED),
        ([(0.1, SURE), (0.1, SURE)], NOT_SUPPORTED),
        ([(0.1, SURE), (0.1, UNSURE)], CANT_TELL),
        ([(0.1, SURE), (-0.1, 0.04)], CANT_TELL),  # one of two languages at .02, where .0125 is asked for
        ([(0.1, SURE), (0.1, NAN)], CANT_TELL),
    ],
)
def test_not_always_helped(changes, verdict):
    rows = [("en", lang, 0.3, *change) for lang, change in zip((HINDI, ODIA), changes)]
    own = ("en", ENGLISH, 0.3, -0.3, SURE)  # its own language says nothing
    low_resource = ("or", HINDI, 0.3, -0.3, SURE)
    assert verdicts(not_always_helped(table(*rows, own, low_resource), EXPERIMENT)) == [verdict]


def test_cells_are_judged_together():
    """What one cell alone would be found for isn't enough where it is one of many."""
    cell = Cell("here", "something", p_for=0.02, p_against=0.98)
    assert verdicts([cell]) == [SUPPORTED] and verdicts([cell, Cell("there", "", 0.5, 0.5)]) == [CANT_TELL] * 2
    untested = Cell("there", "")
    assert verdicts([cell, untested]) == [SUPPORTED, CANT_TELL] and judged([]) == []


def test_the_cell_that_says_most_is_the_surest_of_either_side():
    sure, unsure, untested = Cell("a", "", 0.9, 0.01), Cell("b", "", 0.02, 0.98), Cell("c", "")
    assert telling([untested, unsure, sure]) is sure and telling([untested, unsure]) is unsure
    assert telling([untested]) is untested and telling([]) is None


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


@pytest.mark.parametrize(
    "change, gain, odds, verdict",
    [
        ((-0.1, SURE), (0.1, SURE), (2, SURE), SUPPORTED),
        ((-0.1, SURE), (0.1, SURE), (2, UNSURE), CANT_TELL),
        ((-0.1, SURE), (0.1, SURE), (NAN, NAN), CANT_TELL),
        ((-0.1, SURE), (0.1, UNSURE), (2, SURE), CANT_TELL),
        ((-0.1, UNSURE), (0.1, SURE), (2, SURE), CANT_TELL),
        ((-0.1, SURE), (0.1, SURE), (0.5, SURE), NOT_SUPPORTED),
        ((-0.1, SURE), (-0.1, SURE), (2, UNSURE), NOT_SUPPORTED),
        ((0.1, SURE), (0.1, SURE), (NAN, NAN), NOT_SUPPORTED),
        ((NAN, NAN), (0.1, SURE), (2, SURE), CANT_TELL),
    ],
)
def test_lifted_by_suppression(change, gain, odds, verdict):
    row = dict(
        training="or", lang=HINDI, channels=f"{ENGLISH} {ODIA}", before=0.3, after=0.1, newly_right=5, both_wrong=9
    )
    row |= dict(change=change[0] - 0.05, null_change=-0.05, low=-0.2, high=0.1, p=change[1], null_runs=5)
    row |= dict(gain=gain[0], gain_low=0.0, gain_high=0.1, gain_p=gain[1], gain_beyond=0.05, gain_beyond_p=SURE)
    row |= dict(odds_ratio=odds[0], odds_low=0.5, odds_high=2.0, odds_p=odds[1])
    (cell,) = lifted_by_suppression(pd.DataFrame([row]))
    assert verdicts([cell]) == [verdict]
    assert cell.where == "or -> hi" and "English + Odia 0.300 -> 0.100" in cell.measured
    assert "over 5 null runs" in cell.measured and "+5.0 beyond the null runs'" in cell.measured
    (as_nulls,) = lifted_by_suppression(pd.DataFrame([row | dict(gain_beyond_p=UNSURE)]))
    assert verdicts([as_nulls]) == [CANT_TELL if verdict == SUPPORTED else verdict]
    (alone,) = lifted_by_suppression(pd.DataFrame([row | dict(null_runs=0, null_change=NAN)]))
    assert verdicts([alone]) == [CANT_TELL] and "too few null runs" in alone.measured


def quality_of(**spans):
    return pd.DataFrame(
        [(name, RUSSIAN, share) for name, share in spans.items()], columns=["training", "lang", "spans"]
    )


def translations(gains):
    """Scores of training sets that gain so much in Hindi, and much more in their own Russian, which is no transfer."""
    return table(
        *((name, HINDI, 0.3, gain, SURE) for name, gain in gains.items()),
        *((name, RUSSIAN, 0.1, 0.8 - gain, SURE) for name, gain in gains.items()),
    )


@pytest.mark.parametrize("sign, verdict", [(1, SUPPORTED), (-1, NOT_SUPPORTED)])
def test_translations_in_order_of_their_quality(sign, verdict):
    names = [f"en2x{i}" for i in range(8)]
    quality = quality_of(**{name: 0.1 * i for i, name in enumerate(names)})
    scores = translations({name: 0.02 * sign * i for i, name in enumerate(names)})
    (cell,) = carried_by_better_translations(quality, scores, NO_PAIRS)
    assert verdicts([cell]) == [verdict] and cell.where == "all 8 sets" and f"{sign:+.2f}, p" in cell.measured


def test_few_translations_tell_nothing():
    names = ["en2x1", "en2x2", "en2x3", "en2x4"]
    quality = quality_of(**{name: 0.1 * i for i, name in enumerate(names)})
    (cell,) = carried_by_better_translations(quality, translations(dict(zip(names, (0, 0.1, 0.2, 0.3)))), NO_PAIRS)
    assert verdicts([cell]) == [CANT_TELL] and "fewer than 5 sets" in cell.measured


NO_PAIRS = table().assign(against=[])


@pytest.mark.parametrize(
    "spans, changes, verdict",
    [
        ((0.6, 0.3), [(0.1, SURE), (0.1, UNSURE)], SUPPORTED),
        ((0.3, 0.6), [(0.1, SURE), (0.1, UNSURE)], NOT_SUPPORTED),
        ((0.3, 0.6), [(-0.1, SURE), (0.1, UNSURE)], SUPPORTED),
        ((0.6, 0.3), [(0.1, SURE), (-0.1, SURE)], CANT_TELL),
        ((0.6, 0.3), [(0.1, UNSURE), (0.1, UNSURE)], CANT_TELL),
        ((0.33, 0.3), [(0.1, SURE), (0.1, SURE)], CANT_TELL),
    ],
)
def test_two_translations_of_the_same_texts(spans, changes, verdict):
    quality = quality_of(**dict(zip(("en2de_nllb", "en2de"), spans)))
    rows = [("en2de_nllb", lang, 0.3, *change) for lang, change in zip((HINDI, ODIA), changes)]
    pair = table(*rows).assign(against="en2de")
    control = table(("en_truncated", HINDI, 0.3, 0.1, SURE)).assign(against="en")  # no translation, so no row
    assert verdicts(carried_by_better_translations(quality, table(), pd.concat([pair, control]))) == [verdict]
