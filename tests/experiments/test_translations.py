"""The quality of translated training sets, on made-up files and on the paper's."""

import json

import numpy as np
import pytest
from sacrebleu import corpus_chrf

from utils.data.examples import load_examples, splits_of
from utils.experiments.translations import chrf, quality, second_translation


@pytest.fixture
def sets(tmp_path):
    """English, and two German translations: the second lacks half of the context and one answer."""

    def write(lang, name, context, answers):
        path = tmp_path / "xquad_in" / lang / f"xquad_{name}_train.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"id": str(i), "context": context, "question": f"{lang} {i}?", "answers": [{"text": a, "answer_start": -1}]}
            for i, a in enumerate(answers)
        ]
        path.write_text(json.dumps({"examples": rows}), encoding="utf-8")

    write("en", "en", "ice floats on water", ["ice", "water"])
    write("de", "en2de", "Eis schwimmt auf Wasser", ["Eis", "Wasser"])
    write("de", "en2de_nllb", "Eis schwimmt", ["Eis", "Wasser"])
    return tmp_path


def test_quality(sets):
    asked = {"nllb": ("xquad_in", "de", "en2de_nllb_train"), "en": ("xquad_in", "en", "train")}
    table = quality(asked, sets).set_index("training")
    assert list(table["spans"]) == [0.5, 1.0] and list(table["n"]) == [2, 2]
    assert list(table["characters"]) == [12, 19] and table["of_english"].tolist() == [12 / 19, 1]
    assert list(table["second"]) == ["en2de_train", ""] and np.isnan(table.loc["en", "chrf"])
    # One context (shared by two questions, counted once), two questions, two answers.
    ours = ["Eis schwimmt", "de 0?", "Eis", "de 1?", "Wasser"]
    theirs = ["Eis schwimmt auf Wasser", "de 0?", "Eis", "de 1?", "Wasser"]
    assert table.loc["nllb", "chrf"] == pytest.approx(corpus_chrf(ours, [theirs]).score)


def test_a_set_is_its_own_best_translation(sets):
    examples = load_examples("xquad_in", ["de"], "en2de_train", datasets_dir=sets)
    assert chrf(examples, examples) == pytest.approx(100)
    with pytest.raises(ValueError, match="no second translation of example 0"):
        chrf(examples, [])


@pytest.mark.parametrize(
    "split, second",
    [("en2de_nllb_train", "en2de_train"), ("en2de_train", "en2de_nllb_train"), ("or2de_train", None), ("train", None)],
)
def test_the_second_translation(sets, split, second):
    assert second_translation("xquad_in", "de", split, sets) == second


def test_splits_that_are_here(sets):
    assert splits_of("xquad_in", "de", sets) == ["en2de_nllb_train", "en2de_train"]
    assert splits_of("xquad_in", "en", sets) == ["train"] and splits_of("xquad_in", "hi", sets) == []
    assert splits_of("sample_qa", "en") == ["train", "test"]


def test_the_paper_s_sets(official_datasets):
    asked = {"ru": ("xquad_in", "ru", "en2ru_nllb_train"), "or": ("xquad_in", "or", "train")}
    asked |= {"de": ("xquad_in", "de", "en2de_nllb_train"), "en": ("xquad_in", "en", "train")}
    table = quality(asked, official_datasets).set_index("training")
    assert table.loc["en", ["spans", "of_english"]].tolist() == [1, 1]
    for name, path in (("ru", "ru/xquad_en2ru_nllb_train.json"), ("or", "or/xquad_or_train.json")):
        rows = json.loads((official_datasets / "xquad_in" / path).read_text(encoding="utf-8"))["examples"]
        assert table.loc[name, "spans"] == sum(row["answers"][0]["text"] in row["context"] for row in rows) / 103
    assert table.loc["ru", "spans"] < 0.25 < 0.8 < table.loc["or", "spans"]
    assert table.loc["ru", "of_english"] < 0.65 < 0.95 < table.loc["or", "of_english"]
    assert 40 < table.loc["de", "chrf"] < 80 and np.isnan(table.loc["ru", "chrf"])
