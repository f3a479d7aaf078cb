"""How texts are made alike before they are compared: SQuAD's way for English, and one for every language."""

import re
import string
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache, partial

import regex

from utils.languages import WRITTEN_WITHOUT_SPACES, script_of

# Articles that are words of their own, of the languages of FLORES-200 that have such. English, German, Spanish and
# Vietnamese are MLQA's lists. Punctuation is dropped before articles, as SQuAD and MLQA do, so an elided article
# (French l', Italian un') is part of its word by then and stays; Afrikaans 'n is a bare n, Scottish Gaelic a' an a.
# Arabic's is written with its word, as Hebrew's is and the suffixes of Swedish are, and stays too: MLQA's rule for it
# puts a space in the place of its two letters wherever they stand in a text (docs/numbers.md).
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
# A dead consonant and a joiner -> the letter that Unicode 5.1 (Malayalam's chillus, three more in 9.0) and 4.1
# (Bengali's khanda ta) gave the same sign. Both encodings are about, and no normalisation form makes them one. Without
# the joiner the sequence is another text: the consonant with its virama to be seen, as at the end of Malayalam words.
JOINED_LETTERS = {
    f"{consonant}\u200d": letter
    for consonant, letter in {
        "\u0d23\u0d4d": "\u0d7a",
        "\u0d28\u0d4d": "\u0d7b",
        "\u0d30\u0d4d": "\u0d7c",
        "\u0d32\u0d4d": "\u0d7d",
        "\u0d33\u0d4d": "\u0d7e",
        "\u0d15\u0d4d": "\u0d7f",
        "\u0d2e\u0d4d": "\u0d54",
        "\u0d2f\u0d4d": "\u0d55",
        "\u0d34\u0d4d": "\u0d56",
        "\u09a4\u09cd": "\u09ce",
    }.items()
}
JOINED = re.compile("|".join(JOINED_LETTERS))
INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")  # joiners, soft hyphens, marks of direction
PUNCTUATION = regex.compile(r"[\p{P}$+<=>^`|~]")
DROP_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Khmer}\p{Lao}\p{Myanmar}\p{Thai}\p{Tibetan}]")


def squad_normalised(text: str) -> str:
    """Lower case, no ASCII punctuation, no English articles, single spaces: SQuAD v1.1's and v2.0's rules.

    (Rajpurkar et al. 2016, their evaluation script.) Tokens are what `split` makes of it.
    """
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(DROP_ASCII_PUNCTUATION)).split())


def multilingual_normalised(text: str, lang: str) -> str:
    """MLQA's rules (Lewis et al. 2020) for every language and for every way to encode the same text.

    lang: FLORES code. In this order: Malayalam's chillus and Bengali's khanda ta get their newer encoding; invisible
    characters are dropped; letters of two cases and canonically equivalent sequences become one; digits become ASCII;
    punctuation of every script is deleted, not replaced by a space; the language's own articles are dropped. Tokens are
    what white space parts, and in a script written without spaces each code point of such a script: grapheme clusters
    change from one Unicode version to the next, and a wrong tone mark would cost its letter too. The tokens come back
    joined by a space.

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
    first, second, third = (" ".join(_tokens(stage, lang)) for stage in (whole, words, content))
    return first, second, third


def _folded(text: str) -> str:
    # Canonical caseless matching (Unicode 3.13, D145): folding one form of a letter must not miss the other's.
    text = JOINED.sub(lambda sequence: JOINED_LETTERS[sequence[0]], text)  # before its joiner is dropped
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
