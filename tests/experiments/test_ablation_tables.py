"""Answers' form apart from their content; the tables; and a verdict that each control and each condition can refuse."""

import numpy as np
import pandas as pd
import pytest

from utils.experiments import ablation_tables as tables
from utils.experiments.ablation_tables import Condition, readings, verdict_table
from utils.uncertainty import paired_changes

CONTROLS = [*(f"random {draw}" for draw in range(1, 6)), "bystander", "target"]


def test_conditions_have_every_control_at_every_strength():
    found = tables.conditions("eng_Latn", "zho_Hans", ["ory_Orya", "hin_Deva"], [1.0, 0.5], 5, untuned=False)
    assert found[0] == Condition("base") and len(found) == 1 + 2 * (1 + 5 + 1 + 2)
    assert [one.control for one in found if one.strength == 0.5] == ["language", *CONTROLS, "target"]
    assert len({one.name for one in found}) == len(found) and found[2].name == "random-eng_Latn-1-0.5"
    assert [one.asks("hin_Deva") for one in found[-2:]] == [False, True]
    assert all(one.asks("x") == (one.role != "target") for one in found)
    assert tables.conditions("a", "b", ["c"], [1], 5, untuned=True)[1] == Condition("untuned")


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        (" Ganges\nQ: what", ["the Ganges"], {"exact_match": 1, "f1": 1, "cut_f1": 1, "best_line_f1": 1}),
        ("Ganges river of India\n", ["Ganges"], {"exact_match": 0, "f1": 0.4, "cut_f1": 1, "best_line_f1": 0.4}),
        ("river Ganges", ["Ganges"], {"f1": 2 / 3, "cut_f1": 0}),
        ("no idea\n\nGanges\n", ["Ganges"], {"f1": 0, "best_line_exact_match": 1, "best_line_f1": 1}),
        ("two words", ["one", "two words more"], {"f1": 0.8, "cut_f1": 0.8}),
        ("", ["Ganges"], {"f1": 0, "cut_f1": 0, "best_line_f1": 0}),
        ("anything said", [], {"exact_match": 0, "f1": 0, "cut_f1": 0}),
        ("", [], {"exact_match": 1, "f1": 1, "cut_f1": 1}),
    ],
)
def test_form_apart_from_content(text, gold, expected):
    found = readings(text, gold, "eng_Latn")
    assert set(found) == set(tables.SCORES)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_answers_are_cut_at_a_number_of_tokens():
    said = "Ganges river of India"
    by_number = [readings(said, ["Ganges river"], "eng_Latn", n)["cut_f1"] for n in (1, 2, 3, 9)]
    assert by_number == pytest.approx([2 / 3, 1, 0.8, 2 / 3])


def rows_of(scores, contexts=None):
    """Made-up answers: a row a question, all of SCORES the same."""
    return [
        {
            "context": str(contexts[i] if contexts else i),
            "scores": {**dict.fromkeys(tables.SCORES, score), "answer_language": "eng_Latn"},
            "stopped_by": "line",
            "answer_tokens": 3,
        }
        for i, score in enumerate(scores)
    ]


def test_changes_are_paired_by_question_and_compare_with_every_control():
    rng = np.random.default_rng(0)
    every = tables.conditions("eng_Latn", "zho_Hans", ["ory_Orya"], [0.5, 1], 5, untuned=True)
    scores = {one: rng.random(24) for one in every}
    contexts = [i // 2 for i in range(24)]
    answers = {one: {"ory_Orya": rows_of(scores[one], contexts)} for one in every}
    table = tables.change_table(answers)
    own = table[(table["role"] == "language") & (table["score"] == "f1")]
    assert list(own[own["strength"] == 1]["against"]) == ["base", *CONTROLS]
    assert set(table[table["role"] != "language"]["against"]) == {"base"} and set(table["n_contexts"]) == {12}
    row = own[(own["strength"] == 1) & (own["against"] == "random 3")].iloc[0]
    before = scores[Condition("random", "eng_Latn", 3, 1)]
    expected = paired_changes(before[:, None], scores[Condition("language", "eng_Latn", 0, 1)][:, None], contexts)
    assert {name: row[name] for name in expected} == pytest.approx({k: float(v[0]) for k, v in expected.items()})
    shown = tables.answer_table(answers)
    assert len(shown) == len(every) and shown["f1"].tolist() == pytest.approx([s.mean() for s in scores.values()])
    assert shown[shown["role"] == "language"]["in_ablated"].tolist() == [1, 1] and set(shown["in_own"]) == {0}


def test_perplexity_is_paired_by_sentence():
    rng = np.random.default_rng(0)
    base, after = rng.random(12) + 2, rng.random(12) + 2.5
    after[3] = np.nan
    found = tables.perplexity_table({Condition("base"): {"a": base}, Condition("language", "b", 0, 1): {"a": after}})
    row = found.iloc[1]
    known = np.isfinite(after)
    assert row["n"] == 11 and row["change"] == pytest.approx((after - base)[known].mean())
    assert row["perplexity"] == pytest.approx(np.exp(after[known].mean())) and row["low"] < row["change"] < row["high"]


# The rule, on made-up tables that pass it: each condition, taken alone, can refuse


def made_up(add_back=False):
    """(changes, perplexity) that pass: F1 and cut F1 move by .1 over the base and each control."""
    sign = -1 if add_back else 1
    rows = [
        {
            **{"role": "language", "ablated": "eng_Latn", "draw": 0, "strength": 1.0, "lang": "ory_Orya"},
            **{"score": score, "against": against, "before": 0.3, "after": 0.3 + sign * 0.1, "change": sign * 0.1},
            **{"low": sign * 0.1 - 0.05, "high": sign * 0.1 + 0.05, "p": 0.001, "n": 60, "n_contexts": 12},
        }
        for score in ("f1", "cut_f1")
        for against in ("base", *CONTROLS)
    ]
    if add_back:
        change = {"score": "f1", "against": "base", "change": -0.2, "low": -0.3, "high": -0.1}
        rows.append({**rows[0], "role": "untuned", "ablated": "", "strength": 0.0, **change})
    loss = {"role": "language", "strength": 1.0, "language": "ory_Orya", "change": 0.0, "low": -0.02, "high": 0.02}
    return pd.DataFrame(rows), pd.DataFrame([loss])


def verdict(changes, perplexity, add_back=False):
    (row,) = verdict_table(changes, perplexity, add_back).to_dict("records")
    return row["verdict"], row["because"]


def moved(changes, score, against, **values):
    changes = changes.copy()
    cell = (changes["role"] == "language") & (changes["score"] == score) & (changes["against"] == against)
    changes.loc[cell, list(values)] = list(values.values())
    return changes


@pytest.mark.parametrize("add_back", [False, True])
def test_the_rule_is_met_and_every_control_can_refuse_it(add_back):
    changes, perplexity = made_up(add_back)
    met = "adding back undoes" if add_back else "suppression lifts"
    of_form = "adding back undoes the form alone" if add_back else "lifts the form alone"
    assert verdict(changes, perplexity, add_back) == (met, "")
    no_more = {"low": -0.15, "high": 0.01} if add_back else {"low": -0.01, "high": 0.15}
    for control in CONTROLS:
        told, because = verdict(moved(changes, "f1", control, **no_more), perplexity, add_back)
        assert told == "not seen" and f"`{control}`" in because
        told, because = verdict(moved(changes, "cut_f1", control, **no_more), perplexity, add_back)
        assert told == of_form and "cut" in because
        without = changes[changes["against"] != control]
        with pytest.raises(ValueError, match="without all controls"):
            verdict(without, perplexity, add_back)
    told, because = verdict(moved(changes, "f1", "base", **no_more), perplexity, add_back)
    assert told == "not seen" and "base" in because
    assert verdict(moved(changes, "cut_f1", "base", **no_more), perplexity, add_back)[0] == of_form


@pytest.mark.parametrize("add_back", [False, True])
def test_perplexity_p_and_few_contexts_refuse(add_back):
    changes, perplexity = made_up(add_back)
    told, because = verdict(changes, perplexity.assign(high=np.log(1.06)), add_back)
    assert told == "not seen" and "perplexity may be 1.06 times" in because
    told, because = verdict(moved(changes, "f1", "random 2", p=0.06), perplexity, add_back)
    assert told == "not seen" and "0.06" in because
    nothing = {"low": np.nan, "high": np.nan}
    for against in ("base", "target"):
        assert verdict(moved(changes, "f1", against, **nothing), perplexity, add_back)[0] == "too few contexts"
    assert verdict(changes, perplexity.assign(high=np.nan), add_back)[0] == "too few contexts"
    assert verdict(changes, perplexity[perplexity["language"] == "none"], add_back)[0] == "too few contexts"


def test_the_other_side_has_a_name_of_its_own():
    changes, perplexity = made_up()
    lower = moved(changes, "f1", "base", change=-0.1, low=-0.2, high=-0.05)
    assert verdict(lower, perplexity)[0] == "suppression lowers"
    changes, perplexity = made_up(add_back=True)
    higher = moved(changes, "f1", "base", change=0.1, low=0.05, high=0.2)
    assert verdict(higher, perplexity, True)[0] == "adding back lifts"
    no_gain = changes.copy()
    no_gain.loc[no_gain["role"] == "untuned", "high"] = 0.01
    assert verdict(no_gain, perplexity, True)[0] == "no gain to undo"
    with pytest.raises(ValueError, match="without adapter"):
        verdict(changes[changes["role"] != "untuned"], perplexity, True)


def test_several_strengths_are_several_tries():
    changes, perplexity = made_up()
    changes["p"] = 0.03
    strengths = [0.5, 1.0]
    both = [pd.concat([table.assign(strength=s) for s in strengths]) for table in (changes, perplexity)]
    assert verdict(changes, perplexity)[0] == "suppression lifts"
    found = verdict_table(*both)
    assert found["p_adjusted"].tolist() == pytest.approx([0.06, 0.06]) and set(found["verdict"]) == {"not seen"}
    both[0].loc[both[0]["strength"] == 1, "p"] = 0.02
    found = verdict_table(*both)
    assert found["verdict"].tolist() == ["suppression lifts", "suppression lifts"]  # Holm: .04 and .04


def test_lens_table_keeps_what_is_there():
    shares = {Condition("base"): {"ory_Orya": np.array([[0.9, 1e-4], [0.2, 0.8]])}}
    found = tables.lens_table(shares, ["a", "b"], 1e-3)
    assert found[["layer", "channel", "share"]].values.tolist() == [[0, "a", 0.9], [1, "a", 0.2], [1, "b", 0.8]]
