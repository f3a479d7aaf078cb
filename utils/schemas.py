"""The forms of what is read from outside, and the one line that says where a file has another.

pydantic reads them: it names the field, what was found and what is allowed, of nested records too; msgspec, which is
faster, stops at the type. Strict: a number is no text, and `true` no number.
"""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from utils.outside import shown

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


class AnsweredRow(ScoredRow):
    """A line that can be compared with another run's of the same question."""

    context: str
    question: str
    answers: list[str]
    prediction: str


# A name of a module or a part of one; PEFT takes a text of its own for a regular expression, which may never end.
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$", max_length=200)]


class AdapterConfiguration(Record):
    """What we look at of PEFT's adapter_config.json before PEFT does: sizes that exist, names and no patterns."""

    peft_type: str
    base_model_name_or_path: str | None = None
    r: Annotated[int, Field(ge=1, le=8192)] = 8
    lora_alpha: Annotated[float, Field(allow_inf_nan=False)] = 8
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[ModuleName] | None = None
    exclude_modules: list[ModuleName] | None = None
    modules_to_save: list[ModuleName] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[ModuleName] | ModuleName | None = None
    rank_pattern: dict[ModuleName, Annotated[int, Field(ge=1, le=8192)]] | None = None
    alpha_pattern: dict[ModuleName, float] | None = None
    auto_mapping: dict | None = None


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
        raise ValueError(f"{place}: {field} is {shown(first['input'])}: {_allowed(first['msg'])}") from None


def _allowed(message: str) -> str:
    return message[:1].lower() + message[1:]
