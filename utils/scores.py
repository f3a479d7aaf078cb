"""Answers against gold answers: exact match and F1, what went wrong where they miss, and intervals over contexts.

Two normalisations stand side by side: SQuAD's, which knows English alone, and one that knows every language's
punctuation, digits and articles.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache, lru_cache, partial

import numpy as np
import regex

from utils.languages import WRITTEN_WITHOUT_SPACES, in_own_script, script_of

# Articles that are words of their own, of the languages of FLORES-200 that have such. English, German, Spanish and
# Vietnamese are MLQA's lists. Punctuation is dropped before articles, as SQuAD and MLQA do, so an elided article
# (French l', Italian un') is part of its word by then and stays; Afrikaans 'n is a bare n, Scottish Gaelic a' an a.
ARTICLES = {
    "afr_Latn": "die n",
    "als_Latn": "një",
    "ast_Latn": "el la lo los les un una unos unes",
    "cat_Latn": "el la els les un una uns unes",
    "cym_Latn": "y yr",
    "dan_Latn": "en et den det de",
    "deu_Latn": "ein eine einen einem eines einer der die das den dem des",
    "ell_Grek": "ο η το οι τα του της των τον την τη τους τις ένας μία μια ένα έναν ενός μίας μιας",
    "eng_Latn": "a an the",
    "epo_Latn": "la",
    "fra_Latn": "le la les un une des",
    "gla_Latn": "an am a na nan nam",
    "gle_Latn": "an na",
    "glg_Latn": "o a os as un unha uns unhas",
    "hun_Latn": "a az egy",
    "ita_Latn": "il lo la i gli le un uno una",
    "mri_Latn": "te ngā he",
    "nld_Latn": "de het een",
    "nno_Latn": "ein ei eit den det dei",
    "nob_Latn": "en ei et den det de",
    "oci_Latn": "lo la los las un una",
    "pap_Latn": "e un",
    "plt_Latn": "ny",
    "por_Latn": "o a os as um uma uns umas",
    "ron_Latn": "un o unui unei unor niște",
    "spa_Latn": "un una unos unas el la los las",
    "srd_Latn": "su sa sos sas is unu una",
    "swe_Latn": "en ett den det de",
    "vie_Latn": "của là cái chiếc những",
    "ydd_Hebr": "דער די דאָס דאס דעם אַ אַן א אן",
}
INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")  # joiners, soft hyphens, marks of direction
PUNCTUATION = regex.compile(r"[\p{P}$+<=>^`|~]")
DROP_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Khmer}\p{Lao}\p{Myanmar}\p{Thai}\p{Tibetan}]")

MISSES = (
    "punctuation_or_unicode",
    "overgeneration",
    "truncation",
    "wrong_span",
    "not_in_context",
    "wrong_language_or_script",
    "empty",
)
SCORES = ("squad_exact_match", "squad_f1", "multilingual_exact_match", "multilingual_f1", "char_f1")
N_RESAMPLES = 10_000
INTERVAL = (0.025, 0.975)


def squad_normalised(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles, single spaces: SQuAD v1.1's and v2.0's rules.

    (Rajpurkar et al. 2016, their evaluation script.) Tokens are what `split` makes of it.
    """
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(DROP_ASCII_PUNCTUATION)).split())


def multilingual_normalised(text: str, lang: str) -> str:
    """MLQA's rules (Lewis et al. 2020) for every language and for every way to encode the same text.

    lang: FLORES code. In this order: invisible characters are dropped; letters of two cases and canonically
    equivalent sequences become one; digits become ASCII; punctuation of every script is deleted, not replaced by a
    space; the language's own articles are dropped. Tokens are what white space parts, and in a script written
    without spaces each code point of such a script: grapheme clusters change from one Unicode version to the next,
    and a wrong tone mark would cost its letter too. The tokens come back joined by a space.

    Where articles or punctuation are all that there is, they stay: the answer "%" is not the empty answer.
    """
    whole, words, content = _stages(text, lang)
    return content or words or whole


@lru_cache(maxsize=2**13)  # a context is read with each of its questions, an answer by each of the scores
def _stages(text: str, lang: str) -> tuple[str, str, str]:
    """The whole text; without punctuation; without articles too. Of each the tokens, joined by a space."""
    whole = _folded(text)
    # What stood on either side of a deleted character may now compose.
    words = unicodedata.normalize("NFC", PUNCTUATION.sub("", whole))
    content = _articles(lang).sub(" ", words)
    return tuple(" ".join(_tokens(stage, lang)) for stage in (whole, words, content))


def _folded(text: str) -> str:
    # Canonical caseless matching (Unicode 3.13, D145): folding one form of a letter must not miss the other's.
    decomposed = unicodedata.normalize("NFD", INVISIBLE.sub("", text))
    composed = unicodedata.normalize("NFC", decomposed.casefold())
    return re.sub(r"\d", lambda digit: str(unicodedata.decimal(digit[0])), composed)


@cache
def _articles(lang: str) -> regex.Pattern:
    # re's \b would see a word's end before a vowel sign or a point: to it a mark is no part of a word.
    words = "|".join(_folded(ARTICLES.get(lang, "")).split()) or "(?!)"  # (?!) is found nowhere
    return regex.compile(rf"(?<![\p{{L}}\p{{M}}\p{{N}}_])(?:{words})(?![\p{{L}}\p{{M}}\p{{N}}_])")


def _tokens(text: str, lang: str) -> list[str]:
    if script_of(lang) in WRITTEN_WITHOUT_SPACES:
        text = UNSPACED.sub(r" \g<0> ", text)
    return text.split()


def content_of(text: str, lang: str) -> str:
    """What is left without punctuation and articles, if anything."""
    return _stages(text, lang)[-1]


def normaliser(answers: list[str], lang: str) -> Callable[[str], str]:
    """The multilingual normalisation; to an unanswerable question, punctuation alone is no answer."""
    return partial(multilingual_normalised if answers else content_of, lang=lang)


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
    said, there, *golds = (multilingual_normalised(text, lang) for text in (prediction, context, *answers))
    if not content_of(prediction, lang):
        return "empty"
    if any(_is_run(gold, said) or (_ends_in_a_word(gold, there) and _ends_in_a_word(gold, said)) for gold in golds):
        return "overgeneration"
    if any(_is_run(said, gold) for gold in golds):
        return "truncation"
    if _is_run(said, there):
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


def bootstrap_interval(values, clusters: list, n_resamples: int = N_RESAMPLES, seed=0) -> np.ndarray:
    """(low, high): the 95% percentile interval of the mean over axis 0; [2] or [2, metric].

    values: [n] or [n, metric]; clusters: n labels; seed: a number or a numpy Generator. Questions that share a
    context are not independent draws, so whole contexts are drawn with replacement (Field and Welsh 2007, the
    cluster bootstrap), as many as there are. NaN where there is one cluster only.
    """
    values = np.asarray(values, dtype=np.float64)
    number = {label: i for i, label in enumerate(sorted(set(clusters)))}
    cluster, n_clusters = [number[label] for label in clusters], len(number)
    if n_clusters < 2:
        return np.full((2, *values.shape[1:]), np.nan)
    sums = np.zeros((n_clusters, *values.shape[1:]))
    np.add.at(sums, cluster, values)
    # How often each cluster is drawn: [resample, cluster].
    times = np.random.default_rng(seed).multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), n_resamples)
    means = ((times @ sums).T / (times @ np.bincount(cluster))).T
    return np.quantile(means, INTERVAL, axis=0)


def summary(rows: list[dict], seed=0) -> dict:
    """What `metrics.json` says of one language; JSON-able, null where a number has nothing to be computed from.

    rows: predictions with `context`, `answers`, `lang`, `stopped_by` (None if unknown) and `scores` (of `score`).
    Scores and shares are from 0 to 1, shares of all questions; intervals are of `bootstrap_interval`. ceiling: the
    share of the answerable questions, n, whose gold answer is a part of the context. overgeneration: the mean of
    `beyond_gold` over them. Where there are unanswerable questions, both kinds apart under has_answer, no_answer.
    """
    answerable = [row for row in rows if row["answers"]]
    unanswerable = [row for row in rows if not row["answers"]]
    misses = _shares([row["scores"]["miss"] for row in rows])
    summarised = {
        **_scores(rows, seed),
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
        summarised["has_answer"] = _scores(answerable, seed) if answerable else None
        summarised["no_answer"] = _scores(unanswerable, seed)
    return summarised


def _scores(rows: list[dict], seed) -> dict:
    """n, n_contexts and the mean of each of SCORES with its interval, those of one normalisation together."""
    contexts = [row["context"] for row in rows]
    values = np.array([[row["scores"][metric] for metric in SCORES] for row in rows], dtype=np.float64)
    intervals = bootstrap_interval(values, contexts, seed=seed)
    summarised = {"n": len(rows), "n_contexts": len(set(contexts)), "squad": {}, "multilingual": {}}
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
