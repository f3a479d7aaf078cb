"""Scores against other hands' (torchmetrics, MLQA's rules), oracles at 1, encodings that must not matter, intervals."""

import json
import random
import re
import string
import sys
import unicodedata
from collections import Counter
from functools import cache, partial

import hypothesis
import numpy as np
import pytest
import regex
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from utils.answers.normalisation import ARTICLES, multilingual_normalised, squad_normalised
from utils.answers.scores import (
    MISSES,
    SCORES,
    beyond_gold,
    char_f1,
    char_f1_beyond_chance,
    exact_match,
    f1,
    is_span,
    miss,
    score,
    summary,
)
from utils.data.examples import DATASETS_DIR, Example, load_examples
from utils.languages import flores_names, language_code, script_of, short_code
from utils.uncertainty import mean_interval

SAMPLE_LANGUAGES = sorted(folder.name for folder in (DATASETS_DIR / "sample" / "qa").iterdir())
OFFICIAL = [
    (dataset, lang)
    for dataset, langs in {
        "xquad": "ar de en es hi ru th tr zh",
        "xquad_in": "bn en gu hi kn ml mr or pa ta te",
        "indicqa": "gu hi kn or",
    }.items()
    for lang in langs.split()
]
INDIC = ("Beng", "Deva", "Gujr", "Guru", "Knda", "Mlym", "Orya", "Sinh", "Taml", "Telu")
FULL_STOPS = dict(Arab="۔", Beng="।", Deva="।", Guru="।", Hans="。", Orya="।", Thai="๚")
ZEROS = dict(zip(("Arab", "Beng", "Gujr", "Guru", "Knda", "Mlym", "Orya", "Taml", "Telu", "Thai"), "٠০૦੦೦൦୦௦౦๐"))
SOME_LANGUAGES = ["eng_Latn", "ory_Orya", "tha_Thai", "zho_Hans"]

# What tells a careless normaliser from a careful one, with letters of any kind between.
PIECES = [*" .,।。%$'-_", "a", "the", "The", "É", "e\u0301", "\u0301", "\u0345", "\u200d", "\u00ad", "ß", "Σ", "ς", "İ"]
PIECES += [*"ଜ\u0b3fक\u093c\u094dก\u0e49水か\u3099א\u05b8", "7", "७", "२", "²"]
texts = st.lists(st.sampled_from(PIECES) | st.characters(), max_size=8).map("".join)
languages = st.sampled_from(["deu_Latn", "ell_Grek", "gla_Latn", "jpn_Jpan", "ydd_Hebr", *SOME_LANGUAGES])
quick = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def exact(prediction, answers, lang):
    return exact_match(prediction, answers, partial(multilingual_normalised, lang=lang))


def words_f1(prediction, answers, lang):
    return f1(prediction, answers, lambda text: multilingual_normalised(text, lang).split())


@pytest.fixture(scope="session")
def official(official_datasets):
    """Function from a data set, a language and a split to its examples, each file read once."""

    @cache
    def load(dataset: str, lang: str, split: str = "test") -> list[Example]:
        return load_examples(dataset, [lang], split, datasets_dir=official_datasets)

    return load


def answerable(examples: list[Example]) -> list[Example]:
    return [example for example in examples if example.answers]


def derived_predictions(examples: list[Example]) -> dict[str, list[str]]:
    """Kinds of prediction from what the data set says itself: right, nearly right, and wrong."""
    rng = random.Random(0)
    golds = [example.answers[0] for example in examples]
    spans = []
    for words in (example.context.split() for example in examples):
        start = rng.randrange(len(words))
        spans.append(" ".join(words[start : start + rng.randint(1, 6)]))
    return {
        "gold": golds,
        "truncated": [gold[: rng.randint(0, len(gold))] for gold in golds],
        "longer": [f"{gold} {span}" for gold, span in zip(golds, spans)],
        "span": spans,
        "shuffled": rng.sample(golds, len(golds)),
    }


# The two normalisations


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  cat, a DOG\tand an owl.", "cat dog and owl"),
        ("U.S.-based $5", "usbased 5"),
        ("ଜଳ।", "ଜଳ।"),  # it knows ASCII punctuation alone,
        ("१०० a", "१००"),  # ASCII digits alone, and English articles in every language
        ("The.", ""),
    ],
)
def test_squads_rules(text, expected):
    assert squad_normalised(text) == expected


@pytest.mark.parametrize(
    ("short", "text", "expected"),
    [
        ("en", "The cat, a DOG's ear.", "cat dogs ear"),
        ("en", "they use $5 + “x_y”", "they use 5 xy"),
        ("de", "Die Straße des Herrn", "strasse herrn"),
        ("vi", "Những con mèo", "con mèo"),
        ("fr", "L'eau de la mer", "leau de mer"),
        ("af", "'n Hond", "hond"),
        ("el", "Της Οδός", "οδόσ"),
        ("hi", "१०० अंश a।", "100 अंश a"),
        ("or", "୧୦୦ ଡିଗ୍ରୀ ସେଲସିୟସରେ।", "100 ଡିଗ୍ରୀ ସେଲସିୟସରେ"),
        ("ar", "«الماء» ٤٢؟", "الماء 42"),  # the article is part of its word, here and after a proclitic
        ("ar", "الكتاب والعالم خيال", "الكتاب والعالم خيال"),
        ("fa", "می\u200cشود", "میشود"),
        ("zh", "水在100°C沸腾。OK go", "水 在 100°c 沸 腾 ok go"),
        ("zh", "二〇〇八", "二 〇 〇 八"),
        ("ja", "水は ３ リットル", "水 は 3 リ ッ ト ル"),
        ("th", "น้ำ ๓ ลิตร", "น ้ ำ 3 ล ิ ต ร"),
        # what has nothing but articles, or nothing but punctuation, keeps them
        ("en", "The.", "the"),
        ("en", " % ", "%"),
        ("zh", "。", "。"),
        ("en", "\u200b \ufeff", ""),
        ("en", "", ""),
    ],
)
def test_the_multilingual_rules(short, text, expected):
    assert multilingual_normalised(text, language_code(short)) == expected


def test_articles_are_of_languages_of_the_map_and_mlqas_where_it_has_lists():
    assert set(ARTICLES) <= set(flores_names()) and list(ARTICLES) == sorted(ARTICLES)
    for lang, words in ARTICLES.items():
        assert len(set(words.split())) == len(words.split())
        if short_code(lang) in MLQA_ARTICLES:
            assert {*words.split()} == {*MLQA_ARTICLES[short_code(lang)]}


@pytest.mark.parametrize("lang", ARTICLES)
def test_an_article_goes_where_it_is_a_word(lang):
    for article in ARTICLES[lang].split():
        for written in (article, article.upper(), unicodedata.normalize("NFD", article)):
            assert multilingual_normalised(f"{written} §§7 {written}", lang) == "7"
            assert multilingual_normalised(f"ж{written} {written}ж7", lang).count(" ") == 1
        assert multilingual_normalised(article, lang) == multilingual_normalised(article.upper(), lang) != ""


def test_a_mark_is_part_of_its_word():
    assert re.search(r"\bא\b", "א\u05b8ב")  # this is what \b would do
    assert multilingual_normalised("א\u05b8ב", "ydd_Hebr") == "א\u05b8ב"
    assert multilingual_normalised("a\u0b3f b", "eng_Latn") == "a\u0b3f b"


@pytest.mark.parametrize("lang", ["eng_Latn", "ory_Orya", "zho_Hans"])
def test_every_code_point_is_normalised_once_and_for_all(lang):
    assigned = (chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs"))
    for character in assigned:
        once = multilingual_normalised(character, lang)
        assert multilingual_normalised(once, lang) == once, hex(ord(character))


@quick
@given(texts, languages)
def test_a_normalised_text_stays_as_it_is(text, lang):
    once = multilingual_normalised(text, lang)
    assert multilingual_normalised(once, lang) == once
    assert once == " ".join(once.split())


@quick
@given(texts, languages)
@hypothesis.example("α\u0345\u0301", "ell_Grek")  # an iota subscript is a mark that folds to a letter
def test_neither_case_nor_composition_nor_their_order_matters(text, lang):
    normalised = multilingual_normalised(text, lang)
    for change in (str.lower, lambda t: t):
        for form in ("NFC", "NFD"):
            assert multilingual_normalised(unicodedata.normalize(form, change(text)), lang) == normalised
            assert multilingual_normalised(change(unicodedata.normalize(form, text)), lang) == normalised


@quick
@given(texts, languages, st.sampled_from("\u200b\u200c\u200d\u200e\u2060\ufeff\u00ad\ufe0f"), st.integers(0, 8))
def test_an_invisible_character_changes_nothing(text, lang, invisible, place):
    changed = text[:place] + invisible + text[place:]
    assert multilingual_normalised(changed, lang) == multilingual_normalised(text, lang)


def letters_and_marks(text: str) -> list[str]:
    visible = regex.sub(r"\p{Default_Ignorable_Code_Point}", "", text)
    return regex.findall(r"[\p{L}\p{M}]", unicodedata.normalize("NFC", visible).casefold())


@pytest.mark.parametrize("word", ["ଶିକ୍ଷା", "हिन्दी", "தமிழ்", "বাংলা", "తెలుగు", "ಕನ್ನಡ", "മലയാളം", "ਪੰਜਾਬੀ", "ગુજરાતી"])
def test_an_indic_word_keeps_its_marks(word):
    for lang in ("ory_Orya", "eng_Latn", "zho_Hans"):
        assert multilingual_normalised(f"{word}।", lang) == word


def test_no_indic_context_loses_a_letter_or_a_mark():
    examples = [e for e in load_examples("sample_qa", SAMPLE_LANGUAGES) if script_of(e.lang) in INDIC]
    assert len({example.lang for example in examples}) >= 3
    for example in examples:
        assert letters_and_marks(multilingual_normalised(example.context, example.lang)) == letters_and_marks(
            example.context
        )


CHILLUS = dict(zip("ണനരലളകമയഴ", "ൺൻർൽൾൿൔൕൖ"))


@pytest.mark.parametrize(
    ("lang", "old", "new"),
    [
        *(("mal_Mlym", f"അവ{consonant}\u0d4d\u200d", f"അവ{chillu}") for consonant, chillu in CHILLUS.items()),
        ("mal_Mlym", "സ്കൂളുകള\u0d4d\u200d", "സ്കൂളുകൾ"),
        ("ben_Beng", "হঠাত\u09cd\u200d", "হঠাৎ"),
        ("asm_Beng", "সত\u09cd\u200d লোক", "সৎ লোক"),
    ],
)
def test_both_encodings_of_a_letter_are_one(lang, old, new):
    assert unicodedata.normalize("NFKC", old) != unicodedata.normalize("NFKC", new)
    assert multilingual_normalised(old, lang) == multilingual_normalised(new, lang) == new
    assert exact(old, [new], lang) == exact(new, [old], lang) == 1
    without = old.replace("\u200d", "")  # another text: `to him` is not `he`
    assert multilingual_normalised(without, lang) == without != new


def test_other_joiners_are_still_dropped():
    for text in ("ക\u0d4d\u200cഷ", "র\u200d\u09cdয", "क\u094d\u200dष", "പ\u0d4d\u200d"):
        bare = regex.sub(r"[\u200c\u200d]", "", text)
        assert multilingual_normalised(text, "mal_Mlym") == multilingual_normalised(bare, "mal_Mlym")


def test_how_many_official_texts_have_letters_of_two_encodings(official):
    """In Malayalam both are about: what the fold changes of XQuAD-IN's test split."""
    old = re.compile("[ണനരലളകമയഴ]\u0d4d\u200d|ত\u09cd\u200d")
    counts = {}
    for lang in ("ml", "bn"):
        examples = official("xquad_in", lang)
        texts_of = ([e.context for e in examples], [e.question for e in examples], [e.answers[0] for e in examples])
        changed = [sum(bool(old.search(text)) for text in texts) for texts in texts_of]
        new = [sum(bool(re.search("[ൺൻർൽൾൿൔൕൖৎ]", text)) for text in texts) for texts in texts_of]
        counts[lang] = changed, new
    assert counts["ml"] == ([20, 1, 2], [1190, 1041, 667])
    assert counts["bn"] == ([0, 0, 0], [239, 18, 8])


def test_mlqas_rule_for_the_arabic_article_breaks_words(official):
    """Why it is not ours: it takes two letters out of the middle of words, and leaves pieces (docs/numbers.md)."""
    golds = [multilingual_normalised(e.answers[0], e.lang) for e in official("xquad", "ar")]
    by_mlqa = [re.sub("ال", " ", gold) for gold in golds]
    assert sum(a != b for a, b in zip(golds, by_mlqa)) == 593
    assert sum(any(word.find("ال", 1) > 0 for word in gold.split()) for gold in golds) == 169
    assert sum(len(b.split()) > len(a.split()) for a, b in zip(golds, by_mlqa)) == 152


# What must not matter


def other_digits(text: str, lang: str) -> str:
    """ASCII digits in the language's script (Devanagari's where it has none), and all others in ASCII."""
    zero = ord(ZEROS.get(script_of(lang), "०"))
    return re.sub(r"\d", lambda d: chr(zero + int(d[0])) if d[0].isascii() else str(int(d[0])), text)


def without_punctuation_of(gold: str, text: str) -> str:
    own = {c for c in gold if unicodedata.category(c)[0] == "P" or c in string.punctuation}
    return "".join(c for c in text if c not in own)


def variations(gold: str, lang: str) -> dict[str, str]:
    # A joiner after a virama can be part of a letter (Malayalam's chillus).
    middle = next(i for i in range(len(gold) // 2, -1, -1) if i == 0 or unicodedata.combining(gold[i - 1]) != 9)
    return {
        "full stop": gold + FULL_STOPS.get(script_of(lang), "."),
        "decomposed": unicodedata.normalize("NFD", gold),
        "digits": other_digits(gold, lang),
        "joiner": gold[:middle] + "\u200d" + gold[middle:],
        "no punctuation": without_punctuation_of(gold, gold),
    }


def require_full_score_of_variations(examples: list[Example]) -> None:
    changed = Counter()
    for example in answerable(examples):
        for gold in example.answers:
            for name, varied in variations(gold, example.lang).items():
                assert exact(varied, [gold], example.lang) == 1, (name, gold)
                changed[name] += varied != gold
    assert changed["full stop"] and changed["digits"] and changed["joiner"]  # NFD leaves most of English alone


@pytest.mark.parametrize("lang", SAMPLE_LANGUAGES)
def test_variations_of_a_sample_answer_score_1(lang):
    require_full_score_of_variations(load_examples("sample_qa", [lang]))


@pytest.mark.parametrize(("dataset", "lang"), OFFICIAL)
def test_variations_of_an_official_answer_score_1(dataset, lang, official):
    require_full_score_of_variations(official(dataset, lang))


@quick
@given(texts, texts, languages)
def test_to_drop_the_golds_punctuation_never_lowers_a_score(prediction, gold, lang):
    assume(multilingual_normalised(f"{gold} ж", lang) != "ж")  # an answer of nothing else keeps its punctuation
    for text in (prediction, gold, gold + prediction):
        dropped = without_punctuation_of(gold, text)
        for measure in (exact, words_f1, char_f1):
            assert measure(dropped, [gold], lang) >= measure(text, [gold], lang)


# Other hands' scores

MLQA_ARTICLES = {
    "en": ["a", "an", "the"],
    "de": ["ein", "eine", "einen", "einem", "eines", "einer", "der", "die", "das", "den", "dem", "des"],
    "es": ["un", "una", "unos", "unas", "el", "la", "los", "las"],
    "vi": ["của", "là", "cái", "chiếc", "những"],
}


def mlqa_tokens(text: str, short: str) -> list[str]:
    """MLQA's rules for a language, from their description."""
    kept = [c for c in text.lower() if unicodedata.category(c)[0] != "P" and c not in string.punctuation]
    text = "".join(f" {c} " if short == "zh" and "\u4e00" <= c <= "\u9fa5" else c for c in kept)
    for article in MLQA_ARTICLES.get(short, []):
        text = re.sub(rf"\b{article}\b", " ", text)
    return text.split()


def mlqa_scores(prediction: str, gold: str, short: str) -> tuple[float, float]:
    said, right = mlqa_tokens(prediction, short), mlqa_tokens(gold, short)
    common = sum((Counter(said) & Counter(right)).values())
    precision, recall = common / max(len(said), 1), common / max(len(right), 1)
    return float(said == right), 2 * precision * recall / (precision + recall) if common else 0.0


def plainly_encoded(text: str) -> bool:
    """No invisible character, no digit but ASCII's, and the one way to write each letter."""
    odd = regex.search(r"\p{Default_Ignorable_Code_Point}|[^\D0-9]", text)
    return not odd and unicodedata.is_normalized("NFC", text)


@pytest.mark.parametrize(
    ("dataset", "lang", "split"),
    [
        ("xquad", "en", "test"),
        ("xquad", "de", "test"),
        ("xquad", "es", "test"),
        ("xquad", "hi", "test"),
        ("xquad", "zh", "test"),
        ("xquad_in", "hi", "test"),
        ("indicqa", "hi", "test"),
        ("xquad_in", "vi", "en2vi_nllb_train"),
    ],
)
def test_mlqas_rules_give_the_same(dataset, lang, split, official):
    examples = answerable(official(dataset, lang, split))[::3]
    compared = Counter()
    for kind, predictions in derived_predictions(examples).items():
        for prediction, example in zip(predictions, examples):
            [gold] = example.answers
            # no text of these sets is all articles or all punctuation, where ours is another rule
            if plainly_encoded(prediction) and plainly_encoded(gold) and mlqa_tokens(prediction, lang):
                expected_match, expected_f1 = mlqa_scores(prediction, gold, lang)
                assert exact(prediction, [gold], example.lang) == expected_match, (prediction, gold)
                assert words_f1(prediction, [gold], example.lang) == pytest.approx(expected_f1, abs=1e-12)
                compared[kind] += 1
    assert min(compared.values()) > 0.6 * len(examples)


@pytest.fixture
def float64():
    """torchmetrics computes in torch's default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("dataset", "lang"), OFFICIAL)
def test_torchmetrics_gives_the_same(dataset, lang, official, float64):
    from torchmetrics.functional.text import squad

    examples = answerable(official(dataset, lang))[::29]
    for kind, predictions in derived_predictions(examples).items():
        said = [{"id": e.id, "prediction_text": p} for e, p in zip(examples, predictions)]
        gold = [{"id": e.id, "answers": {"text": e.answers, "answer_start": [0]}} for e in examples]
        theirs = squad(said, gold)
        ours = [score(p, e.answers, e.context, e.lang, "und") for e, p in zip(examples, predictions)]
        for name in ("exact_match", "f1"):
            mean = np.mean([row[f"squad_{name}"] for row in ours])
            assert 100 * mean == pytest.approx(float(theirs[name]), abs=1e-9), kind


@quick
@given(texts, st.lists(texts.filter(str.strip), min_size=1, max_size=3))
def test_torchmetrics_gives_the_same_for_any_texts(prediction, answers):
    from torchmetrics.functional.text import squad

    theirs = squad(
        {"id": "1", "prediction_text": prediction}, {"id": "1", "answers": {"text": answers, "answer_start": []}}
    )
    ours = score(prediction, answers, "", "eng_Latn", "und")
    assert 100 * ours["squad_exact_match"] == float(theirs["exact_match"])
    assert 100 * ours["squad_f1"] == pytest.approx(float(theirs["f1"]), abs=1e-4)


# Oracles


def scored(example: Example, prediction: str, answer_language: str | None = None) -> dict:
    """A row of predictions.jsonl, as far as the scores go."""
    scores = score(prediction, example.answers, example.context, example.lang, answer_language or example.lang)
    return {
        "lang": example.lang,
        "context": example.context,
        "answers": example.answers,
        "scores": scores,
        "stopped_by": "newline",
        "new_tokens": 3,
    }


@pytest.mark.parametrize(("dataset", "lang"), OFFICIAL)
def test_an_oracle_scores_1_and_the_empty_answer_0(dataset, lang, official):
    examples = official(dataset, lang)
    no_answer = len(answerable(examples)) < len(examples)
    assert no_answer == (dataset == "indicqa")
    oracle = [scored(e, e.answers[0] if e.answers else "")["scores"] for e in examples]
    silent = [scored(e, "")["scores"] for e in examples]
    for metric in SCORES:
        assert all(row[metric] == 1 for row in oracle)
        assert [row[metric] for row in silent] == [float(not e.answers) for e in examples]
    assert {row["miss"] for row in oracle} == {None}
    assert {row["miss"] for row in silent} == ({"empty", None} if no_answer else {"empty"})


@pytest.mark.parametrize(("dataset", "lang"), OFFICIAL)
def test_shuffled_answers_score_about_0(dataset, lang, official):
    examples = answerable(official(dataset, lang))
    golds = [example.answers for example in examples]
    shuffled = [answers[0] for answers in random.Random(0).sample(golds, len(golds))]
    assert np.mean([exact(said, gold, examples[0].lang) for said, gold in zip(shuffled, golds)]) < 0.02
    assert np.mean([exact_match(said, gold, squad_normalised) for said, gold in zip(shuffled, golds)]) < 0.02
    assert (
        np.mean([f1(said, gold, lambda text: squad_normalised(text).split()) for said, gold in zip(shuffled, golds)])
        < 0.05
    )


# Exact match and F1


def test_the_best_gold_answer_counts():
    assert exact_match("Two", ["one", "two."], squad_normalised) == 1
    assert exact_match("three", ["one", "two."], squad_normalised) == 0
    assert f1("b c d", ["x", "c b", "b"], str.split) == pytest.approx(2 * 2 / 5)


def test_f1_counts_a_repeated_token_as_often_as_both_have_it():
    assert f1("b b b", ["b b c"], str.split) == pytest.approx(2 / 3)
    assert f1("b", ["c"], str.split) == 0


@pytest.mark.parametrize(("prediction", "expected"), [("", 1), (" ", 1), ("The.", 1), ("water", 0)])
def test_no_answer_is_the_right_one_to_an_unanswerable_question(prediction, expected):
    scores = score(prediction, [], "Water boils.", "eng_Latn", "und")
    assert {scores[metric] for metric in SCORES} == {expected}


def test_native_punctuation_alone_is_no_answer():
    scores = score("।", [], "ଜଳ ଫୁଟେ।", "ory_Orya", "und")
    assert scores["squad_exact_match"] == 0 and scores["miss"] == "punctuation_or_unicode"
    assert scores["multilingual_exact_match"] == scores["multilingual_f1"] == scores["char_f1"] == 1


def test_an_answer_of_punctuation_is_not_the_empty_one():
    for gold in ("%", "The"):
        assert exact("", [gold], "eng_Latn") == words_f1("", [gold], "eng_Latn") == char_f1("", [gold], "eng_Latn") == 0
        assert exact(gold, [gold], "eng_Latn") == words_f1(gold, [gold], "eng_Latn") == 1


def test_char_f1_counts_characters_without_spaces():
    assert char_f1("ab c", ["a bd"], "fin_Latn") == pytest.approx(2 * 2 / 6)
    assert char_f1("b c", ["bc"], "fin_Latn") == 1
    assert char_f1("水沸", ["水"], "zho_Hans") == pytest.approx(2 / 3)
    assert char_f1("x", ["ab", "xy"], "fin_Latn") == pytest.approx(2 / 3)


# What the data allow


def test_spans():
    context, normalised = "ଜଳ ୧୦୦ ଡିଗ୍ରୀରେ ଫୁଟେ।", partial(multilingual_normalised, lang="ory_Orya")
    assert is_span(["x", "ଡିଗ୍ରୀ"], context) is True  # a part of a word is a part of the context
    assert is_span(["100 ଡିଗ୍ରୀ"], context) is False
    assert is_span(["100 ଡିଗ୍ରୀ"], context, normalised) is True
    assert is_span([], context) is is_span([], context, normalised) is None


# What went wrong

CONTEXTS = {
    "en": "Water boils at 100 °C, and ice melts at 0 °C.",
    "or": "ବିଶୁଦ୍ଧ ଜଳ ୧୦୦ ଡିଗ୍ରୀ ସେଲସିୟସରେ ଫୁଟେ।",
    "zh": "水在一百度沸腾，冰在零度融化。",
    "th": "น้ำเดือดที่หนึ่งร้อยองศา",
    "ar": "يغلي الماء عند مئة درجة.",
}
MISSED = [
    ("en", "At 100 °C!", ["at 100 °C"], None, None),
    ("en", "the at 100 °C", ["at 100 °C"], None, None),
    ("or", "୧୦୦ ଡିଗ୍ରୀ।", ["୧୦୦ ଡିଗ୍ରୀ"], None, "punctuation_or_unicode"),
    ("or", "100 ଡିଗ୍ରୀ", ["୧୦୦ ଡିଗ୍ରୀ"], "und", "punctuation_or_unicode"),
    ("zh", "“一百度”", ["一百度"], None, "punctuation_or_unicode"),
    ("en", "", ["at 100 °C"], "und", "empty"),
    ("or", " ।", ["୧୦୦ ଡିଗ୍ରୀ"], "und", "empty"),
    ("en", "...the", ["at 100 °C"], "und", "empty"),
    ("en", "It boils at 100 °C", ["at 0 °C", "at 100 °C"], None, "overgeneration"),
    ("or", "ଜଳ ୧୦୦ ଡିଗ୍ରୀ ସେଲସିୟସରେ", ["100 ଡିଗ୍ରୀ"], None, "overgeneration"),
    ("zh", "在一百度沸腾", ["一百度"], None, "overgeneration"),
    ("zh", "答案是一百度", ["一百度"], "eng_Latn", "overgeneration"),  # before the language, and in no context
    ("or", "ଡିଗ୍ରୀ ସେଲସିୟସରେ", ["ସେଲସିୟସ"], None, "overgeneration"),  # a stem, whose word in the context goes on
    ("or", "୧୦୦୦", ["୧୦୦"], None, "not_in_context"),  # a whole word of the context, so its beginning is not it
    ("en", "100", ["at 100 °C"], None, "truncation"),
    ("th", "ร้อย", ["หนึ่งร้อยองศา"], "lao_Laoo", "truncation"),
    ("en", "water boils", ["at 100 °C"], None, "wrong_span"),
    ("en", "100 at", ["at 100 °C"], None, "not_in_context"),  # the right words in no one's order
    ("ar", "الماء", ["مئة درجة"], "pes_Arab", "wrong_span"),
    ("en", "bo", ["at 100 °C"], None, "not_in_context"),  # a part of a word of the context
    ("or", "boiling point", ["୧୦୦ ଡିଗ୍ରୀ"], "eng_Latn", "wrong_language_or_script"),
    ("zh", "boiling point", ["一百度"], "eng_Latn", "wrong_language_or_script"),
    ("or", "Celsius", ["୧୦୦ ଡିଗ୍ରୀ"], "und", "wrong_language_or_script"),  # whatever language a name is of
    ("or", "7", ["୧୦୦ ଡିଗ୍ରୀ"], "und", "not_in_context"),
    ("en", "in the morning", ["at 100 °C"], None, "not_in_context"),
    # unanswerable
    ("en", "", [], "und", None),
    ("or", "।", [], "und", "punctuation_or_unicode"),
    ("en", "at 100 °C", [], None, "wrong_span"),
    ("en", "am Abend", [], "deu_Latn", "wrong_language_or_script"),
    ("en", "in the morning", [], None, "not_in_context"),
]


@pytest.mark.parametrize(("short", "prediction", "answers", "answer_language", "expected"), MISSED)
def test_what_went_wrong(short, prediction, answers, answer_language, expected):
    lang = language_code(short)
    assert miss(prediction, answers, CONTEXTS[short], lang, answer_language or lang) == expected


def test_every_miss_has_its_example_here():
    assert {expected for *_, expected in MISSED} == {*MISSES, None}


@pytest.mark.parametrize(
    ("short", "prediction", "answers", "expected"),
    [
        ("en", "at 100 °C", ["at 100 °C"], (0, 0)),
        ("en", "100", ["at 100 °C"], (0, 0)),
        ("en", "The water, at 100 °C", ["at 100 °C"], (1, 5)),
        ("en", "It boils at 100 °C", ["100 °C", "at 100 °C"], (2, 7)),  # beyond the longer one
        ("zh", "在一百度。", ["一百度"], (1, 1)),
        ("en", "at 100 °C", [], (None, None)),
        ("en", "", [], (None, None)),
    ],
)
def test_the_length_beyond_the_gold_answer(short, prediction, answers, expected):
    assert beyond_gold(prediction, answers, language_code(short)) == expected


def test_all_scores_of_a_question():
    scores = score("The water boils at १००", ["at 100"], CONTEXTS["en"], "eng_Latn", "eng_Latn")
    assert scores == {
        "squad_exact_match": 0.0,
        "squad_f1": pytest.approx(2 / 6),
        "multilingual_exact_match": 0.0,
        "multilingual_f1": pytest.approx(4 / 6),
        "char_f1": pytest.approx(10 / 20),
        "miss": "overgeneration",
        "tokens_beyond_gold": 2,
        "characters_beyond_gold": 10,
        "answer_language": "eng_Latn",
    }
    json.dumps(scores, allow_nan=False)


# Summaries

WATER = Example("1", "xquad", "eng_Latn", CONTEXTS["en"], "When does it boil?", ["at 100 °C"])
ICE = Example("2", "xquad", "eng_Latn", "Ice is cold.", "What is cold?", ["the ice"])
NONE = Example("3", "indicqa", "eng_Latn", "Ice is cold.", "What is warm?", [])


def test_a_summary():
    rows = [scored(WATER, "at 100 °C"), scored(WATER, "Oh, at 100 °C"), scored(ICE, ""), scored(ICE, "Eis", "deu_Latn")]
    rows[0]["stopped_by"] = None
    summarised = summary(rows)
    assert summarised["n"] == 4 and summarised["n_contexts"] == 2
    for normalisation in ("squad", "multilingual"):
        assert summarised[normalisation]["exact_match"] == 0.25
        assert summarised[normalisation]["f1"] == pytest.approx((1 + 6 / 7) / 4)
        assert summarised[normalisation]["exact_match_interval"] == [None, None]  # of two contexts
    assert summarised["char_f1"] == pytest.approx((1 + 14 / 16 + 0 + 4 / 6) / 4)  # Eis and ice share two letters
    assert summarised["ceiling"] == {"raw": 0.5, "normalised": 1, "n": 4}  # "the ice" is not "Ice"
    nothing = dict.fromkeys(MISSES, 0.0)
    assert summarised["misses"] == nothing | {"overgeneration": 0.25, "empty": 0.25, "wrong_language_or_script": 0.25}
    assert list(summarised["misses"]) == list(MISSES)
    assert summarised["overgeneration"] == {"tokens": 0.25, "characters": 0.5}
    assert summarised["stopped_by"] == {"newline": 0.75}
    assert list(summarised["answer_languages"].items()) == [("eng_Latn", 0.75), ("deu_Latn", 0.25)]
    assert "has_answer" not in summarised and "no_answer" not in summarised
    assert summary(rows) == summarised


def test_a_summary_tells_the_unanswerable_apart():
    summarised = summary([scored(WATER, "at 100 °C"), scored(ICE, "cold"), scored(NONE, ""), scored(NONE, "ice")])
    assert summarised["squad"]["exact_match"] == 0.5 and summarised["ceiling"]["n"] == 2
    for kind in ("has_answer", "no_answer"):
        assert summarised[kind]["n"] == 2 and summarised[kind]["squad"]["exact_match"] == 0.5
    assert summarised["has_answer"]["n_contexts"] == 2
    assert summarised["no_answer"]["multilingual"]["f1_interval"] == [None, None]  # one context


def test_a_summary_of_unanswerable_questions_alone_is_json():
    summarised = summary([scored(NONE, "")])
    assert summarised["has_answer"] is None and summarised["no_answer"]["n"] == 1
    assert summarised["ceiling"] == {"raw": None, "normalised": None, "n": 0}
    assert summarised["overgeneration"] == {"tokens": None, "characters": None}
    json.dumps(summarised, allow_nan=False)


@pytest.mark.parametrize(("dataset", "lang"), OFFICIAL)
def test_the_ceiling_of_an_official_set(dataset, lang, official):
    examples = answerable(official(dataset, lang))
    raw = np.mean([is_span(e.answers, e.context) for e in examples])
    in_any_encoding = partial(multilingual_normalised, lang=examples[0].lang)
    assert raw <= np.mean([is_span(e.answers, e.context, in_any_encoding) for e in examples]) <= 1
    if dataset == "xquad_in" and lang != "en":
        assert 0.17 <= 1 - raw <= 0.3305
    else:
        assert raw > 0.97


@pytest.mark.parametrize(("dataset", "lang"), OFFICIAL)
def test_the_misses_are_what_exact_match_lacks(dataset, lang, official):
    examples = answerable(official(dataset, lang))[::29]
    kinds = derived_predictions(examples) | {"empty": [""] * len(examples)}
    rows = [scored(e, p) for predictions in kinds.values() for e, p in zip(examples, predictions)]
    rows += [scored(e, e.context[:20]) for e in official(dataset, lang) if not e.answers][:50]
    summarised = summary(rows)
    assert sum(summarised["misses"].values()) == pytest.approx(1 - summarised["squad"]["exact_match"], abs=1e-12)
    assert {name for name, share in summarised["misses"].items() if share} >= {"overgeneration", "truncation", "empty"}
    interval = mean_interval([r["scores"]["char_f1"] for r in rows], [r["context"] for r in rows])
    assert summarised["char_f1_interval"] == pytest.approx(list(interval), abs=1e-12)
    assert interval[0] < summarised["char_f1"] < interval[1]
    assert json.loads(json.dumps(summarised, allow_nan=False)) == summarised


def hindi_row(prediction, answer, context):
    return {
        "prediction": prediction,
        "answers": [answer],
        "context": context,
        "scores": {"char_f1": char_f1(prediction, [answer], "hin_Deva")},
    }


def test_letters_that_any_answer_has_are_chance():
    """Who writes the same Hindi word always has char F1, and none beyond chance; who knows the answers has it all."""
    golds = ["राम नदी", "पानी", "राजा", "मकान", "दीपक", "नमक", "किताब", "समय"]
    same = [hindi_row("राम", gold, str(i)) for i, gold in enumerate(golds)]
    knowing = [hindi_row(gold, gold, str(i)) for i, gold in enumerate(golds)]
    assert np.mean([row["scores"]["char_f1"] for row in same]) > 0.3
    assert abs(np.mean(char_f1_beyond_chance(same, "hin_Deva"))) < 0.05
    of_chance = [char_f1(golds[0], [golds[i]], "hin_Deva") for i in range(1, 6)]  # every one of 7 others, five of them
    assert char_f1_beyond_chance(knowing, "hin_Deva")[0] == pytest.approx(1 - np.mean(of_chance))


def test_other_questions_of_the_same_context_are_no_chance():
    rows = [hindi_row("राम", "राम", "one"), hindi_row("राम", "राम", "one"), hindi_row("x", "पानी", "two")]
    assert char_f1_beyond_chance(rows, "hin_Deva")[:2] == [1 - char_f1("राम", ["पानी"], "hin_Deva")] * 2
    assert char_f1_beyond_chance(rows[:2], "hin_Deva") == [1, 1]  # of one context alone nothing is taken off
