"""The forms of what is read from outside, and the one line that says where a file has another.

pydantic reads them: it names the field, what was found and what is allowed, of nested records too; msgspec, which is
faster, stops at the type. Strict: a number is no text, and `true` no number.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

T = TypeVar("T")
_ADAPTERS: dict[Any, TypeAdapter] = {}
Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Record(BaseModel):
    """What has the fields that we use; others may stand beside them."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class Scores(Record):
    """utils.answers.scores.SCORES, of a question; outcomes go by the one that must be there."""

    multilingual_exact_match: Score
    squad_exact_match: Score | None = None
    squad_f1: Score | None = None
    multilingual_f1: Score | None = None
    char_f1: Score | None = None


class ScoredRow(Record):
    """A line of a finished run's predictions."""

    lang: str
    id: str | int
    scores: Scores


def require_form(form: type[T], content: Any, place: str) -> T:
    """`content` as `form` reads it. Raises ValueError: place, field, what was found, what is allowed."""
    try:
        if form not in _ADAPTERS:
            _ADAPTERS[form] = TypeAdapter(form)
        return _ADAPTERS[form].validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # A union's branches come after the field that has it.
        field = ".".join(part for part in map(str, first["loc"]) if part not in ("str", "int")) or "it"
        if first["type"] == "missing":
            raise ValueError(f"{place}: no {field}") from None
        raise ValueError(f"{place}: {field} is {_shown(first['input'])}: {_allowed(first['msg'])}") from None


def _allowed(message: str) -> str:
    return message[:1].lower() + message[1:]


def _shown(value) -> str:
    """A value in an error line: cut, on one line, without control characters."""
    text = ascii(value) if not isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    r"""(number, line) of a file of UTF-8, at \n alone: U+2028 and U+0085 are parts of a text.

    Raises ValueError for a file that can't be read, or whose bytes are not UTF-8.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start})") from None
    if text:
        yield from enumerate(text.removesuffix("\n").split("\n"), 1)
