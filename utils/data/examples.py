"""Data sets -> Example (question answering) and SentencePair (parallel sentences)."""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

from utils.languages import flores_names, language_code, short_code
from utils.outside import read_utf8, shown
from utils.runs import PROJECT_DIR

DATASETS_DIR = PROJECT_DIR / "datasets"
# A context of the official sets has 4,000 characters at most.
LONGEST_TEXT, LONGEST_ID = 100_000, 1000
HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON's escapes can name one, and no file can hold it


@dataclass(frozen=True)
class Example:
    """One question about one context. `answers` is empty where the data set says that there is none.

    answer_start: the character of the context at which the data set says that the first answer begins, which need not
    be so; None where it doesn't say.
    """

    id: str
    dataset: str
    lang: str
    context: str
    question: str
    answers: list[str]
    answer_start: int | None = dataclass_field(default=None, compare=False)


@dataclass(frozen=True)
class SentencePair:
    """The same sentence in two languages."""

    id: str
    dataset: str
    source_lang: str
    target_lang: str
    source: str
    target: str

    @property
    def lang(self) -> str:
        """The language of the side that a model is to write."""
        return self.target_lang


def fields_of(example: Example | SentencePair) -> dict[str, Any]:
    """What a row about an example says of it: its fields, but for the place of the answer."""
    return {name: value for name, value in asdict(example).items() if name != "answer_start"}


@dataclass(frozen=True)
class OwnText:
    """A prompt that a user wrote, in a language that nobody has said: `lang` is its label."""

    id: str
    dataset: str
    lang: str
    text: str


@dataclass(frozen=True)
class QuestionSet:
    """Where a question answering set's files lie; `pattern` with {lang} (ISO 639-1) and {split}."""

    pattern: str
    splits: tuple[str, ...]
    unanswerable: bool = False


@dataclass(frozen=True)
class ParallelSet:
    """Where a parallel set's files lie; `pattern` with {lang} (FLORES code) and {split}."""

    pattern: str
    splits: tuple[str, ...]


DATASETS: dict[str, QuestionSet | ParallelSet] = {
    "sample_qa": QuestionSet("sample/qa/{lang}/sample_qa_{lang}_{split}.json", ("train", "test")),
    "sample_parallel": ParallelSet("sample/parallel/{lang}.txt", ("test",)),
    "xquad": QuestionSet("xquad/xquad.{lang}.json", ("test",)),
    # The paper's translated training sets lie beside the three official splits, under names of their own
    # (xquad_en2ru_nllb_train.json), which serve as the name of the split.
    "xquad_in": QuestionSet("xquad_in/{lang}/xquad_{lang}_{split}.json", ("train", "dev", "test")),
    "indicqa": QuestionSet("indicqa/indicqa.{lang}.json", ("test",), unanswerable=True),
    "flores200": ParallelSet("flores200/{split}/{lang}.{split}", ("dev", "devtest")),
}
# The languages of a run that names none.
DEFAULT_LANGS = ("en", "hi", "or", "ru", "de", "zh")
# What takes a data set's place where the prompts are a user's own.
OWN_TEXTS = "text"


def own_texts(texts: list[str]) -> list[OwnText]:
    """text-1, text-2, ..., each a set of its own. Raises ValueError for one that is blank."""
    labels = [f"{OWN_TEXTS}-{number}" for number in range(1, len(texts) + 1)]
    if blank := [label for label, text in zip(labels, texts) if not text.strip()]:
        raise ValueError(f"--text: {blank[0]} is empty")
    return [OwnText(label, OWN_TEXTS, label, text) for label, text in zip(labels, texts)]


def default_split(dataset: str) -> str:
    """test where the set has one, else its first."""
    splits = DATASETS[dataset].splits
    return "test" if "test" in splits else splits[0]


def load_examples(
    dataset: str,
    langs: list[str],
    split: str = "test",
    limit: int | None = None,
    source_lang: str = "en",
    datasets_dir: Path = DATASETS_DIR,
) -> list[Any]:
    """The examples of a data set, language after language in the order of `langs`, each in the file's order.

    limit: at most so many a language. source_lang: the other side of a parallel set.
    Raises ValueError, naming the value, the file and the example, for whatever can't be used.
    """
    if dataset not in DATASETS:
        raise ValueError(f"unknown data set {dataset!r}: choose from {', '.join(DATASETS)}")
    codes = [language_code(lang) for lang in langs]
    repeated = sorted({code for code in codes if codes.count(code) > 1})
    if repeated:
        raise ValueError(f"language given twice: {', '.join(repeated)}")
    dataset_files = DATASETS[dataset]
    examples: list = []
    for code in codes:
        if isinstance(dataset_files, ParallelSet):
            source = language_code(source_lang)
            examples += _sentence_pairs(dataset, dataset_files, code, source, split, datasets_dir)[:limit]
        else:
            examples += _questions(dataset, dataset_files, code, split, datasets_dir)[:limit]
    return examples


def data_files(dataset: str, langs: list[str], split: str, source_lang: str = "en", datasets_dir=DATASETS_DIR):
    """The files that `load_examples` reads, in its order: their checksums go into a run's configuration."""
    dataset_files = DATASETS[dataset]
    codes = [language_code(lang) for lang in langs]
    if isinstance(dataset_files, ParallelSet):
        codes += [language_code(source_lang)]
    return [_file(dataset, dataset_files, code, split, Path(datasets_dir)) for code in codes]


def _file(dataset: str, dataset_files, code: str, split: str, datasets_dir: Path) -> Path:
    lang = code if isinstance(dataset_files, ParallelSet) else short_code(code)
    path = datasets_dir / dataset_files.pattern.format(lang=lang, split=split)
    extra = _translated_splits(path.parent, lang) if dataset == "xquad_in" else {}
    path = extra.get(split, path)
    if split not in (*dataset_files.splits, *extra):
        raise ValueError(
            f"unknown split {split!r} of {dataset} in {code}: choose from {', '.join((*dataset_files.splits, *extra))}"
        )
    if not path.is_file():
        have = ", ".join(_languages_present(dataset_files, split, datasets_dir)) or "no language"
        others = f"; {lang} has the splits {', '.join(extra)}" if extra else ""
        get = "" if dataset.startswith("sample") else f" (python get_datasets.py {dataset} brings the set)"
        raise ValueError(f"{path}: no such file; {dataset} {split} is here in {have}{others}{get}")
    return path


def _translated_splits(folder: Path, lang: str) -> dict[str, Path]:
    """The paper's training sets in a language's folder: name of the split -> file."""
    named = {path.stem.removeprefix("xquad_"): path for path in sorted(folder.glob("xquad_*_train.json"))}
    return {name: path for name, path in named.items() if name != f"{lang}_train"}


def splits_of(dataset: str, lang: str, datasets_dir: Path = DATASETS_DIR) -> list[str]:
    """The splits of a set of questions that are here in a language, the paper's translated ones among them."""
    dataset_files, lang = DATASETS[dataset], short_code(language_code(lang))
    paths = {
        split: Path(datasets_dir) / dataset_files.pattern.format(lang=lang, split=split)
        for split in dataset_files.splits
    }
    present = [split for split, path in paths.items() if path.is_file()]
    folder = Path(datasets_dir) / "xquad_in" / lang
    return [*present, *(_translated_splits(folder, lang) if dataset == "xquad_in" else ())]


def _languages_present(dataset_files, split: str, datasets_dir: Path) -> list[str]:
    candidates = flores_names() if isinstance(dataset_files, ParallelSet) else map(short_code, flores_names())
    return sorted(
        lang for lang in candidates if (datasets_dir / dataset_files.pattern.format(lang=lang, split=split)).is_file()
    )


def read_text(path: Path) -> str:
    """A whole UTF-8 file. Raises ValueError where it is missing, empty or not UTF-8."""
    text = read_utf8(path)
    if not text.strip():
        raise ValueError(f"{path}: empty file")
    return text


def read_sentences(path: Path) -> list[str]:
    """The lines of a file of one sentence a line. Raises ValueError for a blank line, naming it."""
    lines = read_text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise ValueError(f"{path}:{number}: empty line")
    return lines


def _sentence_pairs(dataset, dataset_files, target_lang, source_lang, split, datasets_dir) -> list[SentencePair]:
    if target_lang == source_lang:
        raise ValueError(f"--langs holds the source language {source_lang}: a sentence is not its own translation")
    target_file, source_file = (
        _file(dataset, dataset_files, code, split, Path(datasets_dir)) for code in (target_lang, source_lang)
    )
    targets, sources = read_sentences(target_file), read_sentences(source_file)
    if len(targets) != len(sources):
        raise ValueError(f"{target_file}: {len(targets)} lines, but {source_file} has {len(sources)}")
    return [
        SentencePair(f"{split}-{number}", dataset, source_lang, target_lang, source, target)
        for number, (source, target) in enumerate(zip(sources, targets), 1)
    ]


def _questions(dataset: str, dataset_files: QuestionSet, code: str, split: str, datasets_dir) -> list[Example]:
    path = _file(dataset, dataset_files, code, split, Path(datasets_dir))
    return read_questions(path, dataset, code, dataset_files.unanswerable)


def read_questions(path: Path, dataset: str, code: str, unanswerable: bool = False) -> list[Example]:
    """The examples of a file in SQuAD's or XQuAD-IN's schema, in its order, as of that data set and language.

    Raises ValueError, naming the file and the example, for whatever can't be used; `unanswerable` questions too.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"{path}: not JSON that can be read ({error})") from None
    except RecursionError:
        raise ValueError(f"{path}: not JSON that can be read (nested too deeply)") from None
    examples, seen = [], set()
    for place, row in _rows(path, content):
        example = _example(f"{path}: {place}", row, dataset, code, unanswerable)
        if example.id in seen:
            raise ValueError(f"{path}: {place}: duplicate id {example.id!r}")
        seen.add(example.id)
        examples.append(example)
    if not examples:
        raise ValueError(f"{path}: no examples in it")
    return examples


def _rows(path: Path, content) -> Iterator[tuple[str, dict]]:
    """(place, row with id, context, question, answers) of either schema; the place is for error lines."""
    if isinstance(content, dict) and isinstance(content.get("examples"), list):  # XQuAD-IN
        yield from ((f"example {number}", row) for number, row in enumerate(content["examples"], 1))
    elif isinstance(content, dict) and isinstance(content.get("data"), list):  # SQuAD v1.1
        yield from _squad_rows(path, content["data"])
    else:
        raise ValueError(f"{path}: wrong schema: neither SQuAD's list `data` nor XQuAD-IN's list `examples` at its top")


def _squad_rows(path: Path, articles: list) -> Iterator[tuple[str, dict]]:
    number = 0
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                for question in paragraph["qas"]:
                    yield f"example {number + 1}", {**question, "context": context}
                    number += 1
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: example {number + 1}: wrong schema ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _example(place: str, row, dataset: str, code: str, unanswerable: bool) -> Example:
    try:
        texts = [answer["text"] for answer in row["answers"]]
        id, context, question = row["id"], row["context"], row["question"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{place}: wrong schema ({_reason(error)})") from None
    fits = isinstance(id, (str, int)) and not isinstance(id, bool) and 0 < len(str(id)) <= LONGEST_ID
    if not fits or HALF_A_CHARACTER.search(str(id)):  # IndicQA's ids are numbers
        raise ValueError(f"{place}: wrong schema (id is {shown(id)})")
    for field, text in (("context", context), ("question", question), *(("answer", text) for text in texts)):
        if not isinstance(text, str):
            raise ValueError(f"{place} (id {id!r}): wrong schema ({field} is {shown(text)}, not a text)")
        if len(text) > LONGEST_TEXT:
            raise ValueError(f"{place} (id {id!r}): a {field} of {len(text):,} characters, more than {LONGEST_TEXT:,}")
        if HALF_A_CHARACTER.search(text):
            raise ValueError(f"{place} (id {id!r}): the {field} holds half a character: {shown(text)}")
        if not text.strip() and field != "answer":
            raise ValueError(f"{place} (id {id!r}): empty {field}")
    answers = [text for text in texts if text.strip()]
    if not answers and not unanswerable:
        raise ValueError(f"{place} (id {id!r}): no answer")
    return Example(str(id), dataset, code, context, question, answers, _answer_start(row["answers"]))


def _answer_start(answers: list[dict]) -> int | None:
    """The offset of the first answer that has text; XQuAD-IN's -1 and IndicQA's null say nothing."""
    start = next((answer.get("answer_start") for answer in answers if answer["text"].strip()), None)
    return start if isinstance(start, int) and start >= 0 else None


def shots_split(dataset: str, split: str) -> str:
    """The split that shots are taken from: train, or for a set without one the split that is asked."""
    return "train" if "train" in DATASETS[dataset].splits else split


def solved_examples(dataset: str, lang: str, split: str, seed: int, datasets_dir: Path = DATASETS_DIR) -> list[Example]:
    """The questions with an answer that shots are taken from, shuffled by the seed.

    They are shuffled from the order of their ids, so that parallel sets give the same questions in every language.
    """
    examples = load_examples(dataset, [lang], shots_split(dataset, split), datasets_dir=datasets_dir)
    pool = sorted((example for example in examples if example.answers), key=lambda example: example.id)
    random.Random(seed).shuffle(pool)
    return pool


def choose_shots(example: Example, pool: list[Example], k: int) -> list[Example]:
    """The first k of the pool whose contexts differ from one another's and from the example's own.

    Raises ValueError where the pool has fewer.
    """
    seen, shots = {example.context}, list[Example]()
    for shot in pool:
        if len(shots) == k:
            break
        if shot.context not in seen:
            seen.add(shot.context)
            shots.append(shot)
    if len(shots) < k:
        raise ValueError(
            f"--shots {k}: {example.dataset} in {example.lang} has solved examples of {len(shots)} contexts "
            f"other than that of {example.id}"
        )
    return shots


def of_every_nth_context(examples: list[Any], n: int) -> list[Any]:
    """All questions of the first context, of the one n further on, and so on: in the order of the data."""
    contexts = {context: i for i, context in enumerate(dict.fromkeys(example.context for example in examples))}
    return [example for example in examples if contexts[example.context] % n == 0]
