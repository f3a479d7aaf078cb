"""Answers against gold answers: exact match and F1, what went wrong where they miss, and intervals over contexts.

Two normalisations stand side by side: SQuAD's, which knows English alone, and one that knows every language's
punctuation, digits and articles.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np

from utils.answers.normalisation import content_of, multilingual_normalised, normaliser, squad_normalised
from utils.languages import in_own_script
from utils.uncertainty import mean_interval

CUT_F1, HOLDS_GOLD = "cut_f1", "holds_gold"  # of content, wherever an answer ends
CHAR_F1_BEYOND_CHANCE = "char_f1_beyond_chance"
N_OTHERS = 5  # questions of other contexts whose gold answers say what is chance
OVERGENERATION = "overgeneration"  # the gold answer with more around it
MISSES = (
    "punctuation_or_unicode",
    OVERGENERATION,
    "truncation",
    "wrong_span",
    "not_in_context",
    "wrong_language_or_script",
    "empty",
)
SCORES = ("squad_exact_match", "squad_f1", "multilingual_exact_match", "multilingual_f1", "char_f1")


def exact_match(prediction: str, answers: list[str], normalised: Callable[[str], str]) -> float:
    """1.0 where the prediction is one of the gold answers, once both are `normalised`; else 0.0.

    Unanswerable (no gold answers): 1.0 where nothing is left of the prediction (SQuAD v2.0, Rajpurkar et al. 2018).
    """
    return float(normalised(prediction) in [normalised(answer) for answer in answers or [""]])


def f1(prediction: str, answers: list[str], tokens: Callable[[str], list[str]]) -> float:
    """2 |common| / (|prediction| + |gold|) over multisets of tokens, for the gold answer where it is most; 0 to 1.

    Where either has no tokens, 1.0 if neither has (SQuAD v2.0); so it is for unanswerable questions.
    """
    said = Counter(tokens(prediction))
    return max(_overlap(said, Counter(tokens(answer))) for answer in answers or [""])


def _overlap(said: Counter, gold: Counter) -> float:
    total = said.total() + gold.total()
    return 2 * (said & gold).total() / total if total else 1.0


def char_f1(prediction: str, answers: list[str], lang: str) -> float:
    """F1 over the characters of the multilingual normalisation, spaces left out."""
    normalised = normaliser(answers, lang)
    return f1(prediction, answers, lambda text: list(normalised(text).replace(" ", "")))


def cut_f1(prediction: str, answers: list[str], lang: str, most_tokens: int | None = None) -> float:
    """F1 in the multilingual normalisation of the prediction's first tokens, as many as the gold answer has, or
    `most_tokens`: what stopping in time brings is in F1 and not in it. To an unanswerable question nothing is cut.
    """
    normalised = normaliser(answers, lang)
    said = normalised(prediction).split()
    golds = [normalised(answer).split() for answer in answers or [""]]
    return max(
        f1(" ".join(said[: (most_tokens or len(gold)) if answers else None]), [" ".join(gold)], str.split)
        for gold in golds
    )


def char_f1_beyond_chance(rows: list[dict], lang: str) -> list[float]:
    """Char F1 of each row less that of its prediction against the gold answers of other contexts; from -1 to 1.

    Any two texts of a language share letters, so that whoever begins to write its script gains char F1, whatever is
    written. rows: scored predictions of a language; of the other contexts' N_OTHERS are taken, evenly far from the row.
    Where all rows have one context, nothing is taken off.
    """
    found = []
    for i, row in enumerate(rows):
        others = [other["answers"] for other in (*rows[i + 1 :], *rows[:i]) if other["context"] != row["context"]]
        chosen = others[:: max(1, len(others) // N_OTHERS)][:N_OTHERS]
        chance = sum(char_f1(row["prediction"], answers, lang) for answers in chosen) / max(1, len(chosen))
        found.append(row["scores"]["char_f1"] - chance)
    return found


def is_span(answers: list[str], context: str, normalised: Callable[[str], str] = str) -> bool | None:
    """Is any gold answer a literal part of the context, once both are `normalised`? None if unanswerable."""
    return any(normalised(answer) in normalised(context) for answer in answers) if answers else None


def miss(prediction: str, answers: list[str], context: str, lang: str, answer_language: str) -> str | None:
    """The first of these that holds, in the tokens of the multilingual normalisation; None where SQuAD's rules match.

    punctuation_or_unicode: the multilingual rules match. empty: nothing but punctuation and articles.
    overgeneration: a gold answer with more around it. truncation: a part of a gold answer.
    wrong_span: another part of the context. wrong_language_or_script: `answer_language` (FLORES code; `und` where it
    can't be told) is not `lang`, or most letters are of a script that `lang` isn't written in.
    not_in_context: everything else. Unanswerable questions know the last three, and the first.
    """
    if exact_match(prediction, answers, squad_normalised):
        return None
    if exact_match(prediction, answers, normaliser(answers, lang)):
        return "punctuation_or_unicode"
    said, in_context, *golds = (multilingual_normalised(text, lang) for text in (prediction, context, *answers))
    if not content_of(prediction, lang):
        return "empty"
    if any(
        _is_run(gold, said) or (_ends_in_a_word(gold, in_context) and _ends_in_a_word(gold, said)) for gold in golds
    ):
        return OVERGENERATION
    if any(_is_run(said, gold) for gold in golds):
        return "truncation"
    if _is_run(said, in_context):
        return "wrong_span"
    foreign = answer_language not in ("und", lang) or not in_own_script(prediction, lang)
    return "wrong_language_or_script" if foreign else "not_in_context"


def _is_run(part: str, whole: str) -> bool:
    """Are the tokens of `part` a contiguous run of those of `whole`?"""
    return f" {part} " in f" {whole} "


def _ends_in_a_word(part: str, whole: str) -> bool:
    """Is `part` in `whole`, but as no run of tokens: does a word go on where it ends?

    Many gold answers of agglutinative languages are stems, whose word in the context carries a suffix.
    """
    return f" {part}" in f" {whole}" and not _is_run(part, whole)


def beyond_gold(prediction: str, answers: list[str], lang: str) -> tuple[int | None, int | None]:
    """How many (tokens, characters without spaces) a prediction has more than its longest gold answer; 0 if none.

    Of the multilingual normalisation. (None, None) if unanswerable.
    """
    if not answers:
        return None, None
    said, *golds = (multilingual_normalised(text, lang).split() for text in (prediction, *answers))
    tokens = len(said) - max(map(len, golds))
    characters = len("".join(said)) - max(len("".join(gold)) for gold in golds)
    return max(0, tokens), max(0, characters)


def score(prediction: str, answers: list[str], context: str, lang: str, answer_language: str) -> dict:
    """All scores of one question, flat and JSON-able: SCORES from 0 to 1, its miss, its length beyond the gold's.

    answers: empty if unanswerable; lang, answer_language: FLORES codes, as `miss` takes them.
    """
    multilingual = normaliser(answers, lang)
    tokens_beyond, characters_beyond = beyond_gold(prediction, answers, lang)
    return {
        "squad_exact_match": exact_match(prediction, answers, squad_normalised),
        "squad_f1": f1(prediction, answers, lambda text: squad_normalised(text).split()),
        "multilingual_exact_match": exact_match(prediction, answers, multilingual),
        "multilingual_f1": f1(prediction, answers, lambda text: multilingual(text).split()),
        "char_f1": char_f1(prediction, answers, lang),
        "miss": miss(prediction, answers, context, lang, answer_language),
        "tokens_beyond_gold": tokens_beyond,
        "characters_beyond_gold": characters_beyond,
        "answer_language": answer_language,
    }


def summary(rows: list[dict]) -> dict:
    """What `metrics.json` says of one language; JSON-able, null where a number has nothing to be computed from.

    rows: predictions with `context`, `answers`, `lang`, `stopped_by` (None if unknown) and `scores` (of `score`).
    Scores and shares are from 0 to 1, shares of all questions; intervals are of `mean_interval`, null where
    it gives none. ceiling: the
    share of the answerable questions, n, whose gold answer is a part of the context. overgeneration: the mean of
    `beyond_gold` over them. Where there are unanswerable questions, both kinds apart under has_answer, no_answer.
    """
    answerable = [row for row in rows if row["answers"]]
    unanswerable = [row for row in rows if not row["answers"]]
    misses = _shares([row["scores"]["miss"] for row in rows])
    summarised = {
        **_scores(rows),
        "ceiling": _ceiling(answerable),
        "misses": {name: misses.get(name, 0.0) for name in MISSES},
        "overgeneration": {
            unit: _mean([row["scores"][f"{unit}_beyond_gold"] for row in answerable])
            for unit in ("tokens", "characters")
        },
        "stopped_by": _shares([row.get("stopped_by") for row in rows]),
        "answer_languages": _shares([row["scores"]["answer_language"] for row in rows]),
    }
    if unanswerable:
        summarised["has_answer"] = _scores(answerable) if answerable else None
        summarised["no_answer"] = _scores(unanswerable)
    return summarised


def _scores(rows: list[dict]) -> dict:
    """n, n_contexts and the mean of each of SCORES with its interval, those of one normalisation together."""
    contexts = [row["context"] for row in rows]
    values = np.array([[row["scores"][metric] for metric in SCORES] for row in rows], dtype=np.float64)
    intervals = np.clip(mean_interval(values, contexts), 0, 1)
    summarised: dict = {"n": len(rows), "n_contexts": len(set(contexts)), "squad": {}, "multilingual": {}}
    for metric, mean, interval in zip(SCORES, values.mean(axis=0), intervals.T):
        normalisation, _, name = metric.partition("_")
        place, name = (summarised[normalisation], name) if normalisation in summarised else (summarised, metric)
        place[name] = float(mean)
        place[f"{name}_interval"] = [None if np.isnan(end) else float(end) for end in interval]
    return summarised


def _ceiling(answerable: list[dict]) -> dict:
    raw, normalised = [], []
    for row in answerable:
        raw.append(is_span(row["answers"], row["context"]))
        normalised.append(is_span(row["answers"], row["context"], partial(multilingual_normalised, lang=row["lang"])))
    return {"raw": _mean(raw), "normalised": _mean(normalised), "n": len(answerable)}


def _mean(values: list) -> float | None:
    return sum(values) / len(values) if values else None


def _shares(labels: list[str | None]) -> dict[str, float]:
    """Label -> its share of all, the largest first; None counts among all, and is no label."""
    counts = sorted(Counter(labels).items(), key=lambda pair: (-pair[1], str(pair[0])))
    return {label: count / len(labels) for label, count in counts if label is not None}
