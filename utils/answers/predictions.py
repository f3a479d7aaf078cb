"""The predictions of a run: one JSON line a question, appended as they are made, and read back."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from utils.data.examples import Example
from utils.languages import language_code
from utils.outside import lines_of, read_bytes
from utils.runs import write_atomically

PREDICTIONS = "predictions.jsonl"
Key = tuple[str, str]  # language and id: parallel sets have the same ids in every language
OUTCOMES = ("both_right", "newly_right", "newly_wrong", "both_wrong")


def read_predictions(path: Path, examples: list[Example]) -> tuple[dict[Key, dict], int | None]:
    """(the rows by language and id, the number of a broken last line or None).

    A row has the example's `id`, its `lang` (any spelling; it can be left out where all examples are of one
    language), and `prediction`, a text; it may have more. A last line that a kill cut short is left out.
    Raises ValueError, naming the line, for one that is no such row, whose example is not among `examples`, or
    that is a second one for its example.
    """
    content = read_bytes(path)
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    known = {(example.lang, example.id): example for example in examples}
    rows: dict[Key, dict] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode("utf-8"))
            as_line(row).encode("utf-8")  # JSON's escapes can name half a character
        except (ValueError, RecursionError):
            if number == len(lines) and not content.endswith(b"\n"):
                return rows, number
            raise ValueError(f"{path}:{number}: not JSON: {line.decode('utf-8', 'replace')[:80]!r}") from None
        key = _key(f"{path}:{number}", row, known)
        if key in rows:
            raise ValueError(f"{path}:{number}: a second prediction for id {key[1]!r} in {key[0]}")
        rows[key] = row
    return rows, None


def _key(place: str, row, known: dict[Key, Example]) -> Key:
    if not isinstance(row, dict) or not isinstance(row.get("prediction"), str) or "id" not in row:
        raise ValueError(f"{place}: not a prediction: it needs an id and a text `prediction`")
    if not isinstance(row.get("stopped_by"), str | None):
        raise ValueError(f"{place}: stopped_by is {row['stopped_by']!r}, not a text")
    langs = sorted({lang for lang, _ in known})
    if "lang" not in row and len(langs) > 1:
        raise ValueError(f"{place}: no lang, and the questions are in {', '.join(langs)}")
    try:
        lang = language_code(str(row["lang"])) if "lang" in row else langs[0]
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    key = (lang, str(row["id"]))
    if key not in known:
        raise ValueError(f"{place}: unknown id {row['id']!r} in {lang}: none of the {len(known)} questions asked")
    for field in ("dataset", "question", "context"):
        expected = getattr(known[key], field)
        if row.get(field, expected) != expected:
            raise ValueError(
                f"{place}: the {field} of id {row['id']!r} is {str(row[field])[:60]!r}, but {expected[:60]!r} in the "
                "data: choose the set with --dataset, --split and --langs"
            )
    return key


def read_scored(path: Path) -> dict[Key, dict]:
    """The rows of a finished run's predictions by language and id, in the file's order.

    Raises ValueError, naming the line, for one without `lang`, `id` and QAinference.py's `scores`, for a score that
    is not between 0 and 1, and for a second row of a question.
    """
    from utils.schemas import ScoredRow, require_form

    rows: dict[Key, dict] = {}
    for number, line in lines_of(path):
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"{place}: no scored prediction: not JSON") from None
        try:
            found = require_form(ScoredRow, row, place)
            key = (language_code(found.lang), str(found.id))
        except ValueError as error:
            raise ValueError(f"{error}; a scored prediction needs lang, id and scores") from None
        if key in rows:
            raise ValueError(f"{place}: a second prediction for id {key[1]!r} in {key[0]}")
        rows[key] = row
    return rows


def right_answers(path: Path) -> dict[Key, bool]:
    """Language and id of each scored prediction -> is it an exact match, of the multilingual normalisation?"""
    return {key: row["scores"]["multilingual_exact_match"] == 1 for key, row in read_scored(path).items()}


def right_answers_of(path: Path, examples: list[Example]) -> dict[Key, bool]:
    """`right_answers` of a file that must be of these examples. Raises ValueError, naming one that it is not of."""
    rows = read_scored(path)
    require_all(path, rows, examples, None)
    for example in examples:
        row = rows[example.lang, example.id]
        for field in ("dataset", "question", "context"):
            if row.get(field, value := getattr(example, field)) != value:
                raise ValueError(
                    f"{path}: the {field} of id {example.id!r} in {example.lang} is {str(row[field])[:60]!r}, but "
                    f"{value[:60]!r} in the data: these are the answers to other questions"
                )
    return {key: row["scores"]["multilingual_exact_match"] == 1 for key, row in rows.items()}


def contexts(path: Path) -> dict[Key, str]:
    """Language and id of each prediction of a finished run -> the context of its question."""
    return {key: row["context"] for key, row in read_scored(path).items()}


def rows_by_language(path: Path) -> dict[str, list[dict]]:
    """Language -> the rows of a finished run's predictions, in the file's order.

    Raises ValueError, as `read_scored` does, and for a row without its question, context, answers or prediction.
    """
    from utils.schemas import AnsweredRow, require_form

    rows: dict[str, list[dict]] = {}
    for (lang, id), row in read_scored(path).items():
        require_form(AnsweredRow, row, f"{path}: id {id!r} in {lang}")
        rows.setdefault(lang, []).append(row)
    return rows


def require_all(path: Path, rows: dict[Key, dict], examples: list[Example], broken: int | None) -> None:
    """Raises ValueError where a question has no prediction."""
    missing = [example for example in examples if (example.lang, example.id) not in rows]
    if missing:
        why = f" (line {broken}, the last, is broken)" if broken else ""
        raise ValueError(
            f"{path}: no prediction for id {missing[0].id!r} in {missing[0].lang}; "
            f"{len(missing)} of {len(examples)} questions have none{why}; --langs, --split and --limit choose them"
        )


def as_line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def append(path: Path, rows: Iterable[dict]) -> None:
    with Path(path).open("a", encoding="utf-8", newline="\n") as file:
        file.writelines(map(as_line, rows))
        file.flush()
        os.fsync(file.fileno())


def write_in_order(path: Path, rows: dict[Key, dict], examples: list[Example]) -> None:
    """The rows that there are, in the order of the examples."""
    keys = [(example.lang, example.id) for example in examples]
    text = "".join(as_line(rows[key]) for key in keys if key in rows)
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def outcome(before: bool, after: bool) -> str:
    """Which of OUTCOMES a question is in, by whether each run's answer is right."""
    if before:
        return "both_right" if after else "newly_wrong"
    return "newly_right" if after else "both_wrong"
