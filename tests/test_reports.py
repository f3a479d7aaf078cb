"""The verdicts follow their rules, whatever the numbers; tables say what the runs do."""

import pandas as pd
import pytest

from utils.reports import (
    CANT_TELL,
    NOT_SUPPORTED,
    SUPPORTED,
    hurt_by_its_own_language,
    more_than_doubled,
    not_always_helped,
)
from utils.reports import _markdown as markdown

ODIA, HINDI, ENGLISH, RUSSIAN = "ory_Orya", "hin_Deva", "eng_Latn", "rus_Cyrl"
EXPERIMENT = {
    "model": "tiny",
    "training": {
        "en2ru_nllb": (RUSSIAN, "en2ru_nllb_train"),
        "or": (ODIA, "train"),
        "en": (ENGLISH, "train"),
        "en2or": (ODIA, "en2or_train"),
    },
}


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


def test_a_table_in_markdown():
    found = markdown(pd.DataFrame({"a": [1, 2], "b": ["x|y", "z"]}))
    assert found == "| a | b |\n| --- | --- |\n| 1 | x\\|y |\n| 2 | z |"
