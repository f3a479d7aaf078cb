"""The project's own data, the official data, and everything that can be wrong with a data set's files."""

import dataclasses
import json
import os
import re
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest

from utils.data.examples import (
    DATASETS,
    DATASETS_DIR,
    LONGEST_TEXT,
    Example,
    SentencePair,
    choose_shots,
    data_files,
    default_split,
    load_examples,
    of_every_nth_context,
    read_questions,
    read_sentences,
    shots_split,
    solved_examples,
)
from utils.languages import short_code

QA_LANGS = ["ar", "bn", "de", "en", "hi", "or", "ru", "ta", "te", "th", "tr", "zh"]
WITHOUT_SPACES = ("th", "zh", "tha_Thai", "zho_Hans")
XQUAD_LANGS = ["ar", "de", "en", "es", "hi", "ru", "th", "tr", "zh"]


# The project's own data


def rows_of_sample(lang, split):
    path = DATASETS_DIR / f"sample/qa/{lang}/sample_qa_{lang}_{split}.json"
    return json.loads(path.read_text(encoding="utf-8"))["examples"]


def contexts(examples):
    return list(dict.fromkeys(example.context for example in examples))


def test_the_sample_questions_are_in_twelve_languages():
    assert sorted(path.name for path in (DATASETS_DIR / "sample/qa").iterdir()) == QA_LANGS


@pytest.mark.parametrize(("split", "per_context"), [("test", 3), ("train", 2)])
def test_the_sample_questions_are_parallel(split, per_context):
    english = load_examples("sample_qa", ["en"], split)
    assert len(english) == 6 * per_context
    assert len({example.id for example in english}) == len(english)
    for lang in QA_LANGS:
        examples = load_examples("sample_qa", [lang], split)
        assert [example.id for example in examples] == [example.id for example in english]
        # the same questions share a context in every language
        place = [contexts(examples).index(example.context) for example in examples]
        assert place == [number for number in range(6) for _ in range(per_context)]
        assert len({example.question for example in examples}) == len(examples)


@pytest.mark.parametrize("lang", QA_LANGS)
def test_the_sample_answers_are_short_literal_spans(lang):
    for split in ("train", "test"):
        for row in rows_of_sample(lang, split):
            assert row["lang"] == lang
            assert row["answers"], row["id"]
            for answer in row["answers"]:
                start = answer["answer_start"]
                assert row["context"][start : start + len(answer["text"])] == answer["text"], row["id"]
                assert 1 <= len(answer["text"].split()) <= 6, row["id"]
                assert answer["text"] == answer["text"].strip()


@pytest.mark.parametrize("lang", [lang for lang in QA_LANGS if lang not in WITHOUT_SPACES])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_sample_contexts_are_40_to_70_words_long(lang, split):
    lengths = [len(context.split()) for context in contexts(load_examples("sample_qa", [lang], split))]
    assert min(lengths) >= 40 and max(lengths) <= 70


@pytest.mark.parametrize("lang", QA_LANGS)
def test_the_sample_splits_share_nothing(lang):
    train, test = (load_examples("sample_qa", [lang], split) for split in ("train", "test"))
    assert not set(contexts(train)) & set(contexts(test))
    assert not {example.id for example in train} & {example.id for example in test}


def test_the_sample_data_is_nfc_text():
    files = [path for path in sorted((DATASETS_DIR / "sample").rglob("*")) if path.is_file()]
    assert len(files) == 2 * 12 + 30 + 12  # questions, sentences, frames
    for path in files:
        text = path.read_bytes().decode("utf-8")
        assert unicodedata.is_normalized("NFC", text), path
        assert text.endswith("\n") and "\r" not in text and "\ufeff" not in text, path
    for lang in QA_LANGS:  # what JSON's escapes may hide
        for row in rows_of_sample(lang, "train") + rows_of_sample(lang, "test"):
            texts = [row["context"], row["question"], *(answer["text"] for answer in row["answers"])]
            assert all(unicodedata.is_normalized("NFC", text) for text in texts), row["id"]


def test_the_sample_sentences():
    files = sorted((DATASETS_DIR / "sample/parallel").glob("*.txt"))
    assert len(files) == 30
    assert {"eng_Latn", "ory_Orya", "hin_Deva", "zho_Hans", "tha_Thai"} < {path.stem for path in files}
    for path in files:
        sentences = read_sentences(path)
        assert len(sentences) == len(set(sentences)) == 24, path
        if path.stem not in WITHOUT_SPACES:
            lengths = [len(sentence.split()) for sentence in sentences]
            assert min(lengths) >= 8 and max(lengths) <= 20, path


# Both schemas


def squad(*paragraphs):
    """SQuAD v1.1 of one article: paragraphs are (context, qas)."""
    return {"data": [{"title": "t", "paragraphs": [{"context": c, "qas": qas} for c, qas in paragraphs]}]}


def question(id="q1", question="Who?", answers=("Ada",), **more):
    return {"id": id, "question": question, "answers": [{"text": a, "answer_start": -1} for a in answers], **more}


def row(**fields):
    """An XQuAD-IN row; a field that is None is left out."""
    fields = {**question(), "context": "Ada wrote it.", "title": "", "lang": "en", **fields}
    return {key: value for key, value in fields.items() if value is not None}


@pytest.fixture
def write(tmp_path):
    """Puts a file of a data set under tmp_path, where the loader looks for it; texts and bytes as they are."""

    def write_file(dataset, lang, content, split="test"):
        path = tmp_path / DATASETS[dataset].pattern.format(lang=lang, split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content, ensure_ascii=False)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


def test_squad_schema(write, tmp_path):
    qas = [question("a", "Who?", ["Ada", "Ada L."]), question("b", "What?", ["it"])]
    write("xquad", "en", squad(("Ada wrote it.", qas), ("Two.", [question("c", "How many?", ["Two"])])))
    assert load_examples("xquad", ["en"], datasets_dir=tmp_path) == [
        Example("a", "xquad", "eng_Latn", "Ada wrote it.", "Who?", ["Ada", "Ada L."]),
        Example("b", "xquad", "eng_Latn", "Ada wrote it.", "What?", ["it"]),
        Example("c", "xquad", "eng_Latn", "Two.", "How many?", ["Two"]),
    ]


def test_xquad_in_schema(write, tmp_path):
    write("xquad_in", "or", {"canary": "c", "examples": [row(id="x", lang="or")]}, "dev")
    expected = [Example("x", "xquad_in", "ory_Orya", "Ada wrote it.", "Who?", ["Ada"])]
    assert load_examples("xquad_in", ["Odia"], "dev", datasets_dir=tmp_path) == expected


def test_indicqa_has_numbers_for_ids_and_questions_without_an_answer(write, tmp_path):
    qas = [question(0, "q", [" span"]), question(1, "q", [""]), question(2, "q", [])]
    qas[1]["answers"][0]["answer_start"] = None
    write("indicqa", "or", squad(("c", qas)))
    examples = load_examples("indicqa", ["or"], datasets_dir=tmp_path)
    assert [example.id for example in examples] == ["0", "1", "2"]
    assert [example.answers for example in examples] == [[" span"], [], []]


def test_an_empty_answer_beside_a_real_one_is_left_out(write, tmp_path):
    write("xquad", "en", squad(("c", [question(answers=["", "Ada", " "])])))
    assert load_examples("xquad", ["en"], datasets_dir=tmp_path)[0].answers == ["Ada"]


def test_texts_are_kept_as_they_are(write, tmp_path):
    text = " a\u0327\u200d\u00a0 \n"
    write("xquad", "en", squad((text, [question(question=text, answers=[text])])))
    example = load_examples("xquad", ["en"], datasets_dir=tmp_path)[0]
    assert (example.context, example.question, example.answers) == (text, text, [text])


def test_a_translated_set_goes_by_the_name_of_its_split_and_the_language_of_its_folder(write, tmp_path):
    examples = [row(lang="or"), row(id="q2", lang="or")]
    path = tmp_path / "xquad_in/de/xquad_or2de_train.json"
    write("xquad_in", "de", {"examples": [row(id="own")]}, "train")
    path.write_text(json.dumps({"examples": examples}), encoding="utf-8")
    loaded = load_examples("xquad_in", ["de"], "or2de_train", datasets_dir=tmp_path)
    assert [(example.id, example.lang) for example in loaded] == [("q1", "deu_Latn"), ("q2", "deu_Latn")]
    assert data_files("xquad_in", ["de"], "or2de_train", datasets_dir=tmp_path) == [path]
    assert [e.id for e in load_examples("xquad_in", ["de"], "train", datasets_dir=tmp_path)] == ["own"]


def test_languages_come_in_the_order_asked_each_cut_to_the_limit():
    examples = load_examples("sample_qa", ["or", "en", "zh"], "train", limit=5)
    assert [e.lang for e in examples] == ["ory_Orya"] * 5 + ["eng_Latn"] * 5 + ["zho_Hans"] * 5
    whole = load_examples("sample_qa", ["en"], "train")
    assert examples[5:10] == whole[:5]
    assert [e.id for e in whole] == [r["id"] for r in rows_of_sample("en", "train")]
    assert load_examples("sample_qa", ["en"], "train", limit=1000) == whole


# Sentence pairs


def test_sentence_pairs():
    pairs = load_examples("sample_parallel", ["or", "de"], limit=2)
    sentences = {c: read_sentences(DATASETS_DIR / f"sample/parallel/{c}.txt") for c in ("eng_Latn", "deu_Latn")}
    assert [(p.id, p.source_lang, p.target_lang, p.lang) for p in pairs] == [
        ("test-1", "eng_Latn", "ory_Orya", "ory_Orya"),
        ("test-2", "eng_Latn", "ory_Orya", "ory_Orya"),
        ("test-1", "eng_Latn", "deu_Latn", "deu_Latn"),
        ("test-2", "eng_Latn", "deu_Latn", "deu_Latn"),
    ]
    expected = [sentences["eng_Latn"][1], sentences["deu_Latn"][1]]
    assert [pairs[3].source, pairs[3].target] == expected


def test_the_source_language_is_chosen():
    pair = load_examples("sample_parallel", ["eng_Latn"], limit=1, source_lang="ory")[0]
    odia, english = (read_sentences(DATASETS_DIR / f"sample/parallel/{c}.txt")[0] for c in ("ory_Orya", "eng_Latn"))
    assert pair == SentencePair("test-1", "sample_parallel", "ory_Orya", "eng_Latn", odia, english)


def test_a_sentence_is_not_its_own_translation():
    with pytest.raises(ValueError, match="--langs holds the source language eng_Latn"):
        load_examples("sample_parallel", ["de", "en"])


def test_the_files_that_are_read():
    folder = DATASETS_DIR / "sample"
    files = data_files("sample_qa", ["en", "ory_Orya"], "train")
    assert files == [folder / f"qa/{lang}/sample_qa_{lang}_train.json" for lang in ("en", "or")]
    files = data_files("sample_parallel", ["de", "or"], "test", source_lang="fr")
    assert files == [folder / f"parallel/{code}.txt" for code in ("deu_Latn", "ory_Orya", "fra_Latn")]


# Shots


def shots_of(dataset, lang, k, seed=42, split="test", **where):
    """The ids of each question's shots, after a look at what they must be whatever they are."""
    pool = solved_examples(dataset, lang, split, seed, **where)
    ids = {}
    for example in load_examples(dataset, [lang], split, **where):
        shots = choose_shots(example, pool, k)
        assert len({example.context, *(shot.context for shot in shots)}) == k + 1
        assert all(shot.lang == example.lang and shot.answers for shot in shots)
        ids[example.id] = [shot.id for shot in shots]
    return ids


def test_shots_are_taken_from_train_where_the_set_has_it():
    assert shots_split("sample_qa", "test") == shots_split("xquad_in", "test") == "train"
    assert shots_split("sample_qa", "train") == shots_split("xquad_in", "en2ru_nllb_train") == "train"
    assert shots_split("xquad", "test") == shots_split("indicqa", "test") == "test"


@pytest.mark.parametrize("k", [0, 1, 6])
def test_shots_are_questions_of_the_train_split_about_k_contexts(k):
    train = {example.id for example in load_examples("sample_qa", ["en"], "train")}
    chosen = shots_of("sample_qa", "en", k)
    assert len(chosen) == 18
    assert set().union(*chosen.values()) <= train


def test_shots_of_the_split_that_is_asked_are_never_about_the_question_s_own_context():
    chosen = shots_of("sample_qa", "en", 5, split="train")
    assert len({tuple(ids) for ids in chosen.values()}) == 6  # others for each context


def test_the_first_shots_are_the_same_however_many_there_are():
    many, few = shots_of("sample_qa", "hi", 6), shots_of("sample_qa", "hi", 2)
    assert few == {id: ids[:2] for id, ids in many.items()}


def test_the_seed_alone_chooses_the_shots():
    chosen = [shots_of("sample_qa", "en", 3, seed) for seed in (1, 1, 2, 3)]
    assert chosen[0] == chosen[1]
    assert len({str(ids) for ids in chosen}) == 3


def test_parallel_sets_have_the_same_shots_in_every_language(write, tmp_path):
    assert all(shots_of("sample_qa", lang, 4) == shots_of("sample_qa", "en", 4) for lang in QA_LANGS)
    # even where a file has its rows in another order
    for lang in ("en", "hi"):
        rows = [row(id=f"q{i}", context=f"{lang} {i // 2}") for i in range(12)]
        write("xquad_in", lang, {"examples": rows if lang == "en" else rows[::-1]}, "train")
        write("xquad_in", lang, {"examples": rows[:2]})
    chosen = [shots_of("xquad_in", lang, 3, datasets_dir=tmp_path) for lang in ("en", "hi")]
    assert chosen[0] == chosen[1]


def test_questions_without_an_answer_are_no_shots(write, tmp_path):
    answers = [(), ("Ada",), (" ",), ("Ada",), ("Ada",)]
    write("indicqa", "or", squad(*((f"c{i}", [question(i, answers=texts)]) for i, texts in enumerate(answers))))
    chosen = shots_of("indicqa", "or", 2, datasets_dir=tmp_path)
    assert set(chosen) == set("01234") and set().union(*chosen.values()) == set("134")


def test_too_many_shots_are_refused_with_the_number_that_there_are():
    example = load_examples("sample_qa", ["or"])[0]
    pool = solved_examples("sample_qa", "or", "test", seed=0)
    assert len(choose_shots(example, pool, 6)) == 6
    says = "--shots 7: sample_qa in ory_Orya has solved examples of 6 contexts other than that of water-1"
    with pytest.raises(ValueError, match=f"^{says}$"):
        choose_shots(example, pool, 7)
    own = dataclasses.replace(example, context=pool[0].context)
    with pytest.raises(ValueError, match="--shots 6: .* of 5 contexts"):
        choose_shots(own, pool, 6)


def test_the_default_split_is_test_where_there_is_one():
    assert {name: default_split(name) for name in DATASETS} == dict.fromkeys(DATASETS, "test") | {"flores200": "dev"}


# Bad input: one line that names the file and the example


def refused(*args, **kwargs) -> str:
    with pytest.raises(ValueError) as error:
        load_examples(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message and len(message) < 2000
    return message


BAD_FILES = {
    "empty file": ("", "empty file"),
    "only white space": (" \n\n", "empty file"),
    "not JSON": ('{"data": [\n}', ":2: not JSON"),
    "cut off": (json.dumps(squad(("c", [question()])))[:-20], "not JSON"),
    "not UTF-8": (b'{"data": "\xff\xfe"}', "not UTF-8 (byte 10"),
    "UTF-16": ("{}".encode("utf-16"), "not UTF-8"),
    "a list": ([row()], "wrong schema"),
    "a text": ('"data"', "wrong schema"),
    "neither data nor examples": ({"rows": [row()]}, "wrong schema"),
    "data is no list": ({"data": {"paragraphs": []}}, "wrong schema"),
    "nothing in it": ({"data": []}, "no examples"),
    "nothing in its articles": ({"data": [{"paragraphs": []}]}, "no examples"),
}


@pytest.mark.parametrize("content", BAD_FILES)
def test_a_bad_file_is_named(write, tmp_path, content):
    content, reason = BAD_FILES[content]
    path = write("xquad", "en", content)
    message = refused("xquad", ["en"], datasets_dir=tmp_path)
    assert message.startswith(str(path)) and reason in message


BAD_ROWS = {
    "duplicate id": (row(id="ok"), "duplicate id 'ok'"),
    "no id": (row(id=None), "wrong schema (no 'id')"),
    "no context": (row(context=None), "wrong schema (no 'context')"),
    "no question": (row(question=None), "wrong schema (no 'question')"),
    "no answers": (row(answers=None), "wrong schema (no 'answers')"),
    "answer without text": (row(answers=[{"answer_start": 3}]), "wrong schema (no 'text')"),
    "answers is a text": (row(answers="Ada"), "wrong schema"),
    "answers is a number": (row(answers=3), "wrong schema"),
    "id is a list": (row(id=["q"]), "wrong schema (id is ['q'])"),
    "id is empty": (row(id=""), "wrong schema (id is '')"),
    "context is a number": (row(context=7), "wrong schema (context is 7"),
    "context is a list": (row(context=["c"]), "wrong schema (context is ['c']"),
    "question is a mapping": (row(question={}), "wrong schema (question is {}"),
    "answer is a number": (row(answers=[{"text": 100}]), "wrong schema (answer is 100"),
    "empty context": (row(context=""), "(id 'q1'): empty context"),
    "blank context": (row(context=" \n\t"), "(id 'q1'): empty context"),
    "empty question": (row(question=""), "(id 'q1'): empty question"),
    "no answer": (row(answers=[]), "(id 'q1'): no answer"),
    "empty answer": (row(answers=[{"text": ""}, {"text": " "}]), "(id 'q1'): no answer"),
}


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_bad_example_is_named_with_its_file(write, tmp_path, bad):
    bad, reason = BAD_ROWS[bad]
    path = write("xquad_in", "en", {"examples": [row(id="ok"), bad]})
    message = refused("xquad_in", ["en"], datasets_dir=tmp_path)
    assert message.startswith(f"{path}: example 2") and reason in message


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_bad_example_is_named_with_its_file_in_squad_s_schema(write, tmp_path, bad):
    bad, reason = BAD_ROWS[bad]
    paragraphs = []
    for example in (row(id="ok"), dict(bad)):
        context = {"context": example.pop("context")} if "context" in example else {}
        paragraphs.append({**context, "qas": [example]})
    path = write("xquad", "en", {"data": [{"paragraphs": paragraphs}]})
    message = refused("xquad", ["en"], datasets_dir=tmp_path)
    assert message.startswith(f"{path}: example 2") and reason in message


@pytest.mark.parametrize(
    ("dataset", "content"),
    [
        ("xquad_in", {"examples": ["text"]}),
        ("xquad_in", {"examples": [[1, 2]]}),
        ("xquad_in", {"examples": [None]}),
        ("xquad", {"data": ["text"]}),
        ("xquad", {"data": [{"title": "no paragraphs"}]}),
        ("xquad", {"data": [{"paragraphs": [{"context": "no qas"}]}]}),
        ("xquad", {"data": [{"paragraphs": [{"context": "c", "qas": ["text"]}]}]}),
        ("xquad", {"data": [{"paragraphs": None}]}),
    ],
)
def test_a_wrong_shape_is_named(write, tmp_path, dataset, content):
    path = write(dataset, "en", content)
    message = refused(dataset, ["en"], datasets_dir=tmp_path)
    assert message.startswith(f"{path}: example 1") and "wrong schema" in message


def test_ids_that_differ_only_in_type_are_duplicates(write, tmp_path):
    path = write("xquad", "en", squad(("c", [question(1), question("1")])))
    assert refused("xquad", ["en"], datasets_dir=tmp_path) == f"{path}: example 2: duplicate id '1'"


def test_an_id_with_a_line_break_still_makes_one_line(write, tmp_path):
    write("xquad", "en", squad(("c", [question("a\nb", question="")])))
    refused("xquad", ["en"], datasets_dir=tmp_path)


def test_a_missing_file_names_the_languages_that_are_here(write, tmp_path):
    for lang in ("hi", "en"):
        write("xquad", lang, squad(("c", [question()])))
    message = refused("xquad", ["el"], datasets_dir=tmp_path)
    assert message.startswith(f"{tmp_path / 'xquad/xquad.el.json'}: no such file")
    assert "xquad test is here in en, hi (python get_datasets.py xquad brings the set)" in message
    assert "is here in no language" in refused("indicqa", ["or"], datasets_dir=tmp_path)


def test_a_missing_sample_language_names_the_others():
    message = refused("sample_qa", ["en", "fr"])
    assert message.endswith(f"sample_qa test is here in {', '.join(QA_LANGS)}")  # and no download brings more


def test_a_missing_parallel_file_on_either_side(write, tmp_path):
    write("flores200", "deu_Latn", "Eins.\n", "dev")
    message = refused("flores200", ["de"], "dev", datasets_dir=tmp_path)
    assert message.startswith(str(tmp_path / "flores200/dev/eng_Latn.dev")) and "here in deu_Latn" in message
    message = refused("flores200", ["or"], "dev", source_lang="de", datasets_dir=tmp_path)
    assert message.startswith(str(tmp_path / "flores200/dev/ory_Orya.dev"))


def test_a_translated_set_that_another_language_has_names_those_here(tmp_path, write):
    write("xquad_in", "de", {"examples": [row()]}, "train")
    (tmp_path / "xquad_in/de/xquad_or2de_train.json").write_text(json.dumps({"examples": [row()]}))
    message = refused("xquad_in", ["de"], "en2de_train", datasets_dir=tmp_path)
    assert "unknown split 'en2de_train'" in message and "or2de_train" in message
    message = refused("xquad_in", ["de"], "test", datasets_dir=tmp_path)
    assert "no such file" in message and "de has the splits or2de_train" in message


def test_an_unknown_data_set_names_the_choices():
    assert refused("squad", ["en"]) == f"unknown data set 'squad': choose from {', '.join(DATASETS)}"


@pytest.mark.parametrize(
    ("dataset", "split", "choices"),
    [
        ("sample_qa", "dev", "train, test"),
        ("xquad", "train", "test"),
        ("xquad_in", "../../sample", "train, dev, test"),
        ("flores200", "test", "dev, devtest"),
        ("sample_parallel", "train", "test"),
    ],
)
def test_an_unknown_split_names_the_choices(dataset, split, choices, tmp_path):
    message = refused(dataset, ["de"], split, datasets_dir=tmp_path)
    assert f"unknown split {split!r} of {dataset}" in message and message.endswith(f"choose from {choices}")


def test_an_unknown_language_is_refused_before_any_file_is_read(tmp_path):
    assert "unknown language 'xx'" in refused("xquad", ["en", "xx"], datasets_dir=tmp_path)
    assert "unknown language 'xx'" in refused("sample_parallel", ["de"], source_lang="xx")


@pytest.mark.parametrize("langs", [["or", "or"], ["or", "en", "ory_Orya"], ["Odia", "ory"]])
def test_a_language_given_twice_under_any_spelling(langs):
    assert refused("sample_qa", langs) == "language given twice: ory_Orya"


def test_parallel_files_of_different_lengths_are_both_named(write, tmp_path):
    german = write("flores200", "deu_Latn", "Eins.\nZwei.\n", "dev")
    english = write("flores200", "eng_Latn", "One.\nTwo.\nThree.\n", "dev")
    message = refused("flores200", ["de"], "dev", datasets_dir=tmp_path)
    assert message == f"{german}: 2 lines, but {english} has 3"


@pytest.mark.parametrize("text", ["Eins.\n\nDrei.\n", "Eins.\n \t\nDrei.\n", "Eins.\n\u3000\nDrei.", "Eins.\n\n"])
def test_a_blank_line_is_named(write, tmp_path, text):
    path = write("flores200", "deu_Latn", text, "dev")
    write("flores200", "eng_Latn", "One.\nTwo.\nThree.\n", "dev")
    assert refused("flores200", ["de"], "dev", datasets_dir=tmp_path) == f"{path}:2: empty line"


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty file"), (b"\n", "empty file"), (b"\xe9\n", "not UTF-8")])
def test_bad_sentence_files(write, tmp_path, content, reason):
    write("flores200", "eng_Latn", "One.\n", "dev")
    path = write("flores200", "deu_Latn", content, "dev")
    message = refused("flores200", ["de"], "dev", datasets_dir=tmp_path)
    assert message.startswith(f"{path}: {reason}")


def test_only_line_feeds_end_a_sentence(tmp_path):
    path = tmp_path / "eng_Latn.txt"
    path.write_bytes("One\u2028still one.\nTwo\u0085still two.".encode())
    assert read_sentences(path) == ["One\u2028still one.", "Two\u0085still two."]


def test_windows_line_ends_are_not_part_of_a_sentence(tmp_path):
    path = tmp_path / "eng_Latn.txt"
    path.write_bytes(b"One.\r\nTwo.\r\n")
    assert read_sentences(path) == ["One.", "Two."]


# The official data


def test_xquad_is_1190_parallel_questions(official_datasets):
    english = [e.id for e in load_examples("xquad", ["en"], datasets_dir=official_datasets)]
    assert len(english) == 1190
    examples = load_examples("xquad", XQUAD_LANGS, datasets_dir=official_datasets)
    assert len(examples) == 9 * 1190
    assert [e.id for e in examples] == english * 9
    assert all(e.answers for e in examples)


def test_xquad_in(official_datasets):
    expected = {"train": 103, "dev": 111, "test": 1190}
    checked = 0
    for split, n in expected.items():
        for path in sorted(official_datasets.glob("xquad_in/*")):
            lang = path.name
            if not (path / f"xquad_{lang}_{split}.json").exists():
                continue
            examples = load_examples("xquad_in", [lang], split, datasets_dir=official_datasets)
            assert len(examples) == (110 if (lang, split) == ("te", "dev") else n), path
            assert {short_code(e.lang) for e in examples} == {lang}
            checked += 1
    assert checked >= 25


def test_xquad_in_and_xquad_have_the_same_ids(official_datasets):
    ids = {
        dataset: [{e.id for e in load_examples(dataset, [lang], datasets_dir=official_datasets)} for lang in langs]
        for dataset, langs in {"xquad": ["en"], "xquad_in": ["en", "or", "te"]}.items()
    }
    assert ids["xquad_in"] == ids["xquad"] * 3


def test_the_paper_s_translated_training_sets(official_datasets):
    german = load_examples("xquad_in", ["de"], "or2de_train", datasets_dir=official_datasets)
    file = official_datasets / "xquad_in/de/xquad_or2de_train.json"
    assert {r["lang"] for r in json.loads(file.read_text(encoding="utf-8"))["examples"]} == {"or"}
    assert {e.lang for e in german} == {"deu_Latn"} and len(german) == 103
    for path in sorted(official_datasets.glob("xquad_in/*/xquad_*2*_train.json")):
        split = re.fullmatch(r"xquad_(.*)", path.stem)[1]
        assert len(load_examples("xquad_in", [path.parent.name], split, datasets_dir=official_datasets)) == 103
    message = refused("xquad_in", ["ru"], datasets_dir=official_datasets)
    assert "ru has the splits en2ru_nllb_train" in message


def test_indicqa_says_which_questions_have_no_answer(official_datasets):
    examples = load_examples("indicqa", ["or"], datasets_dir=official_datasets)
    assert len(examples) == 1680
    assert sum(e.answers == [] for e in examples) == 401
    assert all(isinstance(e.id, str) for e in examples) and len({e.id for e in examples}) == 1680


def test_flores200_is_997_sentences_in_204_languages(official_datasets):
    files = sorted((official_datasets / "flores200/dev").iterdir())
    assert len(files) == 204
    for path in files:
        assert len(read_sentences(path)) == 997, path
    pair = load_examples("flores200", ["or"], "dev", limit=1, datasets_dir=official_datasets)[0]
    assert (pair.id, pair.target_lang) == ("dev-1", "ory_Orya")
    assert pair.source.startswith("On Monday, scientists from the Stanford University")
    assert isinstance(pair, SentencePair) and isinstance(official_datasets, Path)


def test_official_sets_without_train_give_shots_of_their_own(official_datasets):
    where = {"datasets_dir": official_datasets}
    english, chinese = (shots_of("xquad", lang, 4, **where) for lang in ("en", "zh"))
    assert english == chinese and len(english) == 1190
    odia = shots_of("indicqa", "or", 4, **where)
    assert len(odia) == 1680  # those without an answer are asked, and are nobody's shots


def test_official_sets_with_train_give_shots_of_it(official_datasets):
    train = load_examples("xquad_in", ["or"], "train", datasets_dir=official_datasets)
    chosen = shots_of("xquad_in", "or", 2, datasets_dir=official_datasets)
    assert set().union(*chosen.values()) <= {example.id for example in train}


def one_question(**fields):
    question = {"id": "q", "context": "c", "question": "?", "answers": [{"text": "c"}], **fields}
    return json.dumps({"examples": [question]})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (one_question(context="x" * (LONGEST_TEXT + 1)), "a context of 100,001 characters, more than 100,000"),
        (one_question(question="half \ud800"), "the question holds half a character"),
        (one_question(answers=[{"text": "\udfff"}]), "the answer holds half a character"),
        (one_question(id="\ud800"), "id is"),
        (one_question(id="x" * 1001), "id is"),
        (one_question(id=1.5), "id is 1.5"),
        ('{"examples": ' + "9" * 5000 + "}", "not JSON that can be read"),
    ],
)
def test_texts_that_no_data_set_has_are_refused(tmp_path, content, says):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=says) as error:
        read_questions(tmp_path / "a.json", "tests", "und")
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_a_pipe_is_no_data_file(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(ValueError, match="not a regular file"):
        read_questions(tmp_path / "a.json", "tests", "und")


def test_every_nth_context_comes_with_all_its_questions():
    examples = [SimpleNamespace(context=context, id=id) for id, context in enumerate("aabcbddea")]
    chosen = of_every_nth_context(examples, 2)
    assert [(example.context, example.id) for example in chosen] == [("a", 0), ("a", 1), ("c", 3), ("e", 7), ("a", 8)]
    assert of_every_nth_context(examples, 1) == examples
