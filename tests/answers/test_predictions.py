"""Predictions are read back as they were written, a kill's broken line but for it, and nothing else slips in."""

import dataclasses
import json

import pytest

from utils.answers.predictions import append, read_predictions, require_all, write_in_order
from utils.data.examples import load_examples


@pytest.fixture(scope="module")
def examples():
    """Two questions in Odia, then the same two in English."""
    return load_examples("sample_qa", ["or", "en"], limit=2)


def row_of(example, **changes) -> dict:
    """A whole row, as a run writes it; a field that is None is left out."""
    row = {**dataclasses.asdict(example), "prediction": example.answers[0], "new_tokens": 3} | changes
    return {field: value for field, value in row.items() if value is not None}


def as_lines(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")


@pytest.fixture
def write(tmp_path):
    """Puts rows, or bytes as they are, into a file."""

    def write_file(content):
        path = tmp_path / "p.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else as_lines(content))
        return path

    return write_file


def keys(examples):
    return [(example.lang, example.id) for example in examples]


# What is read


def test_rows_come_by_language_and_id_in_the_file_s_order(write, examples):
    rows = [row_of(example) for example in reversed(examples)]
    read, broken = read_predictions(write(rows), examples)
    assert broken is None
    assert list(read) == [(lang, id) for lang in ("eng_Latn", "ory_Orya") for id in ("water-2", "water-1")]
    assert list(read.values()) == rows  # with whatever else they hold


def test_an_id_a_language_and_a_prediction_are_enough(write, examples):
    rows = [{"id": e.id, "lang": e.lang, "prediction": f"{i}"} for i, e in enumerate(examples)]
    read, _ = read_predictions(write(rows), examples)
    assert [read[key]["prediction"] for key in keys(examples)] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("spelling", ["or", "ory", "Odia", "ory_Orya", "ORY_ORYA"])
def test_a_language_in_any_spelling(write, examples, spelling):
    read, _ = read_predictions(write([{"id": "water-1", "lang": spelling, "prediction": "x"}]), examples)
    assert list(read) == [("ory_Orya", "water-1")]


def test_the_language_can_be_left_out_where_one_is_asked(write, examples):
    read, _ = read_predictions(write([{"id": "water-2", "prediction": "x"}]), examples[2:])
    assert list(read) == [("eng_Latn", "water-2")]


def test_ids_can_be_numbers(write, examples):
    numbered = [dataclasses.replace(example, id=str(i)) for i, example in enumerate(examples)]
    path = write([row_of(example, id=int(example.id)) for example in numbered])
    assert list(read_predictions(path, numbered)[0]) == keys(numbered)


def test_an_empty_file_has_no_rows(write, examples):
    assert read_predictions(write(b""), examples) == ({}, None)


def test_an_empty_prediction_is_one(write, examples):
    read, _ = read_predictions(write([row_of(examples[0], prediction="")]), examples)
    assert read[keys(examples)[0]]["prediction"] == ""


def test_only_a_line_feed_ends_a_row(write, examples):
    odd = "one\u2028two\u0085three\r\nfour"
    rows = [row_of(examples[0], generated=odd), row_of(examples[1])]
    assert list(read_predictions(write(rows), examples)[0].values()) == rows
    read, broken = read_predictions(write(as_lines(rows).replace(b"\n", b"\r\n")), examples)  # Windows' line ends
    assert list(read.values()) == rows and broken is None


# A last line that a kill cut short


def test_a_last_line_cut_at_any_byte_is_left_out(write, examples):
    whole, last = as_lines([row_of(examples[1])]), as_lines([row_of(examples[0], context=None)])
    assert max(last) > 127  # characters of several bytes, which a cut goes through
    kept = [("ory_Orya", "water-2")]
    read, broken = read_predictions(write(whole), examples)
    assert (list(read), broken) == (kept, None)
    for n in range(1, len(last) - 1):
        read, broken = read_predictions(write(whole + last[:n]), examples)
        assert (list(read), broken) == (kept, 2), last[:n]


def test_a_whole_last_line_without_its_line_feed_counts(write, examples):
    rows = [row_of(example) for example in examples]
    read, broken = read_predictions(write(as_lines(rows).removesuffix(b"\n")), examples)
    assert list(read.values()) == rows and broken is None


def test_a_file_that_is_one_broken_line(write, examples):
    assert read_predictions(write(as_lines([row_of(examples[0])])[:40]), examples) == ({}, 1)


def test_a_broken_line_with_a_line_feed_is_no_kill_s(write, examples):
    path = write(as_lines([row_of(examples[0])]) + b'{"id": "water-2", "pred\n')
    with pytest.raises(ValueError, match=f"{path}:2: not JSON"):
        read_predictions(path, examples)


def test_a_whole_last_line_is_checked_even_without_its_line_feed(write, examples):
    path = write(b'{"id": "water-9", "lang": "or", "prediction": "x"}')
    with pytest.raises(ValueError, match=f"{path}:1: unknown id 'water-9'"):
        read_predictions(path, examples)


# What is no prediction of these questions


GOOD = {"id": "water-1", "lang": "or", "prediction": "x"}
BAD_LINES = {
    "not JSON": (b"nonsense", "not JSON: 'nonsense'"),
    "blank": (b"", "not JSON: ''"),
    "a broken line in the middle": (b'{"id": "water-2", "predic', "not JSON"),
    "a text": (b'"x"', "not a prediction"),
    "a list": (b"[]", "not a prediction"),
    "no prediction": ({"id": "water-2", "lang": "or"}, "not a prediction: it needs an id and a text `prediction`"),
    "a prediction that is a number": ({**GOOD, "prediction": 7}, "not a prediction"),
    "a prediction that is null": ({**GOOD, "prediction": None}, "not a prediction"),
    "no id": ({"lang": "or", "prediction": "x"}, "not a prediction"),
    "a list as what stopped it": ({**GOOD, "stopped_by": ["line"]}, "stopped_by is ['line'], not a text"),
    "unknown id": ({**GOOD, "id": "water-3"}, "unknown id 'water-3' in ory_Orya: none of the 4 questions asked"),
    "no language": ({"id": "water-2", "prediction": "x"}, "no lang, and the questions are in eng_Latn, ory_Orya"),
    "unknown language": ({**GOOD, "lang": "Klingon"}, "unknown language 'Klingon'"),
    "a language that is a number": ({**GOOD, "lang": 1}, "unknown language '1'"),
    "a language that is null": ({**GOOD, "lang": None}, "unknown language 'None'"),
    "no UTF-8": (b'{"id": "water-2", "lang": "or", "prediction": "caf\xe9"}', "not JSON"),
    "half a character": (b'{"id": "water-2", "lang": "or", "prediction": "\\ud83d"}', "not JSON"),
    "nested too deeply": (b"[" * 100_000, "not JSON: '[[["),
    "a language not asked": ({**GOOD, "lang": "de"}, "unknown id 'water-1' in deu_Latn"),
    "a second one": ({**GOOD, "lang": "Odia"}, "a second prediction for id 'water-1' in ory_Orya"),
    "another data set's": ({**GOOD, "id": "water-2", "dataset": "xquad"}, "the dataset of id 'water-2' is 'xquad'"),
    "another question": ({**GOOD, "id": "water-2", "question": "Why?"}, "the question of id 'water-2' is 'Why?'"),
    "another context": ({**GOOD, "id": "water-2", "context": "Ice."}, "the context of id 'water-2' is 'Ice.'"),
}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_line_is_named_with_its_file(write, examples, bad):
    line, reason = BAD_LINES[bad]
    line = line if isinstance(line, bytes) else as_lines([line]).removesuffix(b"\n")
    path = write(as_lines([GOOD]) + line + b"\n" + as_lines([{**GOOD, "lang": "en"}]))
    with pytest.raises(ValueError) as error:
        read_predictions(path, examples)
    assert str(error.value).startswith(f"{path}:2: ") and reason in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_file_that_is_not_there_is_named(tmp_path, examples):
    with pytest.raises(ValueError, match=f"{tmp_path / 'none.jsonl'}: No such file or directory"):
        read_predictions(tmp_path / "none.jsonl", examples)


# All of them


def test_every_question_needs_a_prediction(tmp_path, examples):
    path, rows = tmp_path / "p.jsonl", {key: {} for key in keys(examples)}
    require_all(path, rows, examples, None)
    for key in keys(examples)[1:3]:
        del rows[key]
    with pytest.raises(ValueError) as error:
        require_all(path, rows, examples, None)
    says = f"{path}: no prediction for id 'water-2' in ory_Orya; 2 of 4 questions have none"
    assert str(error.value).startswith(f"{says};") and "line" not in str(error.value)
    with pytest.raises(ValueError) as error:
        require_all(path, rows, examples, 3)
    assert str(error.value).startswith(f"{says} (line 3, the last, is broken);")


# What is written


def test_rows_are_appended(tmp_path, examples):
    path, rows = tmp_path / "p.jsonl", [row_of(example) for example in examples]
    append(path, rows[:1])
    append(path, rows[1:3])
    append(path, [])
    assert path.read_bytes() == as_lines(rows[:3])
    assert "ଜଳ".encode() in path.read_bytes()  # letters, not escapes of them


def test_rows_are_written_in_the_examples_order(tmp_path, write, examples):
    rows = [row_of(example) for example in examples]
    path = write([rows[3], rows[0], rows[2]])
    write_in_order(path, read_predictions(path, examples)[0], examples)
    assert path.read_bytes() == as_lines([rows[0], rows[2], rows[3]])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_is_written_is_read_back(tmp_path, examples):
    odd = ['"\\', "a\nb\r\u2028", "", "\x00 🙂 क\u200d"]
    rows = [row_of(example, prediction=text) for example, text in zip(examples, odd)]
    append(tmp_path / "p.jsonl", rows)
    assert list(read_predictions(tmp_path / "p.jsonl", examples)[0].values()) == rows
