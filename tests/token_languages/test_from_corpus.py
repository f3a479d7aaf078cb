"""Counts of tokens, and Bayes over them."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import regex
import scipy.sparse as sp

from tests.token_languages.tokenizers import LANGUAGES, byte_level, row, sentencepiece, token
from utils.data.corpora import count_forms
from utils.languages import UNICODE_SCRIPTS, script_of
from utils.token_languages import from_corpus, pieces
from utils.token_languages.from_corpus import count_tokens, count_tokens_of_forms, language_groups, language_posterior
from utils.token_languages.matrix import TokenLanguages
from utils.token_languages.pieces import (
    LETTER,
    Piece,
    read_pieces,
)


def test_tokens_are_counted_without_the_special_ones(tiny_tokenizer, sample):
    counts = count_tokens(tiny_tokenizer, sample)
    assert counts.shape == (len(tiny_tokenizer), len(sample))
    for column, sentences in enumerate(sample.values()):
        slow = Counter(id for s in sentences for id in tiny_tokenizer(s, add_special_tokens=False)["input_ids"])
        dense = counts[:, [column]].toarray().ravel()
        assert {id: int(dense[id]) for id in np.flatnonzero(dense)} == slow


@pytest.mark.parametrize("adds_space", [False, True])
def test_words_and_their_sentences_have_the_same_tokens(adds_space):
    # Nothing here but words after spaces; where the tokenizer (Llama 2's) puts one before every text, none is written.
    tokenizer = sentencepiece(" one", " two", " zwei", *"abcdefghijklmnopqrstuvwxyz ", adds_space=adds_space)
    start = "" if adds_space else " "
    corpus = {"eng_Latn": [start + "one two three", start + "two one four one"], "deu_Latn": [start + "zwei zwei one"]}
    word_counts = {code: count_forms(sentences, "Latn") for code, sentences in corpus.items()}
    expected = count_tokens(tokenizer, corpus).toarray()
    assert np.array_equal(count_tokens_of_forms(tokenizer, word_counts).toarray(), expected)
    assert expected[token(tokenizer, start + "one")].tolist() == [3, 1]


def test_only_whole_tokens_count_among_overlapping_ngrams():
    tokenizer = byte_level("我", "我们", "们我", "the")
    counts = count_tokens_of_forms(tokenizer, {"zho_Hans": count_forms(["我们我"], "Hans"), "eng_Latn": {"thee": 1}})
    dense = counts.toarray()
    found = {text: dense[token(tokenizer, text)].tolist() for text in ("我", "我们", "们我", "the", "e")}
    assert found == {"我": [2, 0], "我们": [1, 0], "们我": [1, 0], "the": [0, 0], "e": [0, 2]}
    assert dense[:, 0].sum() == 4  # the bytes of 们 don't count


def texts_as_pieces(*texts):
    return [Piece(text, "text", text, text.encode()) for text in texts]


def posterior_of(counts, texts, languages) -> np.ndarray:
    return language_posterior(sp.csr_matrix(np.array(counts, np.float32)), texts_as_pieces(*texts), languages)[
        0
    ].toarray()


@pytest.fixture
def by_counts(monkeypatch):
    """Neither evidence of characters nor of neighbours; groups as the cases below are reckoned with."""
    monkeypatch.setattr(from_corpus, "CHARACTER_WEIGHT", 1e-12)
    monkeypatch.setattr(from_corpus, "MOST_BORROWED", 0)
    monkeypatch.setattr(from_corpus, "GROUP_DISTANCE", 0.4)


@pytest.mark.parametrize("times", [1, 100])
def test_counts_by_hand(by_counts, times):
    # Of German's tokens 19/20 are `a`, of English's 1/20, however much there is of either: Bayes' rule as it stands.
    result = posterior_of([[19 * times, 1], [1 * times, 19]], ["a", "b"], ["deu_Latn", "eng_Latn"])
    assert result == pytest.approx(np.array([[0.95, 0.05], [0.05, 0.95]]), abs=1e-6)


def test_what_is_borrowed_by_hand(monkeypatch):
    # half of German's text is a word that English has too; Greek is of another script and lends nothing
    monkeypatch.setattr(from_corpus, "MOST_BORROWED", 0.25)
    counts = sp.csr_matrix(np.array([[50, 90, 0], [50, 0, 0], [0, 10, 0], [0, 0, 100]], np.float32))
    weights = from_corpus.borrowed(counts, ["deu_Latn", "eng_Latn", "ell_Grek"])
    assert weights.sum(axis=1) == pytest.approx(1)
    assert weights[2].tolist() == [0, 0, 1] and (weights[:2, 2] == 0).all()
    assert (weights[[0, 1], [1, 0]] <= 0.25).all()
    smoothed = posterior_of(counts.toarray(), ["a", "b", "c", "δ"], ["deu_Latn", "eng_Latn", "ell_Grek"])
    assert smoothed[2, 0] >= 0 and smoothed[3].tolist() == [0, 0, 1]


def test_a_token_that_a_language_lacks_makes_it_borrow():
    # a third of German's tokens are seen once, all of them English too: leaving them out, English explains them
    n = 30
    counts = np.zeros((n + 1, 2), np.float32)
    counts[0] = [60, 0]
    counts[1:] = [1, 3]
    lends = from_corpus.borrowed(sp.csr_matrix(counts), ["deu_Latn", "eng_Latn"])[0, 1]
    assert 0.05 < lends <= from_corpus.MOST_BORROWED
    counts[1:] = [1, 0]
    assert from_corpus.borrowed(sp.csr_matrix(counts), ["deu_Latn", "eng_Latn"])[0, 1] < 1e-6


def test_a_chain_of_close_languages_is_no_group(by_counts):
    # The last two are 0.11 apart and the first two 0.29, but the first is 0.49 from the two on average.
    groups = language_groups(sp.csr_matrix(np.array([[10, 5, 1], [0, 5, 9]], np.float32)))
    assert (groups @ groups.T).tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 1]]


def test_what_is_no_text_tells_nothing_of_how_much_text_there_is(by_counts):
    pieces = [*texts_as_pieces("a", "b"), Piece("!", "zxx", "!", b"!"), Piece("<0xC3>", "byte", "", b"\xc3")]
    counts = sp.csr_matrix(np.array([[19, 1], [1, 19], [500, 0], [0, 70]], np.float32))
    result = language_posterior(counts, pieces, ["deu_Latn", "eng_Latn"])[0].toarray()
    assert result == pytest.approx(np.array([[0.95, 0.05], [0.05, 0.95], [0, 0], [0, 0]]), abs=1e-6)


def test_smallest_probabilities_are_dropped(by_counts):
    result = posterior_of([[9999, 1, 100], [1, 9999, 9900]], ["a", "b"], ["deu_Latn", "eng_Latn", "fra_Latn"])
    assert result[0, 1] == 0 and result[1, 0] == 0 and (result[:, 2] > 0).all()


def slow_posterior(counts, pieces, languages) -> dict[int, list[float]]:
    """Token id -> P(language | token), from the docstrings alone: one token, one n-gram, one language at a time."""

    def ngrams(text):
        return [
            text[start:end] for start in range(len(text)) for end in range(start + 1, min(start + 4, len(text)) + 1)
        ]

    ids = [id for id, piece in enumerate(pieces) if piece.kind == "text"]
    totals = [sum(float(counts[v, column]) for v in ids) for column in range(len(languages))]
    mean_total = sum(totals) / len(totals)
    rate = {v: [mean_total * float(counts[v, c]) / totals[c] for c in range(len(languages))] for v in ids}

    gram_rate = defaultdict(lambda: [0.0] * len(languages))
    for v in ids:
        if any(rate[v]):
            for gram in ngrams(pieces[v].text):
                gram_rate[gram] = [old + new for old, new in zip(gram_rate[gram], rate[v])]
    sums = {n: [sum(r[c] + 0.5 for g, r in gram_rate.items() if len(g) == n) for c in range(len(languages))]
            for n in (1, 2, 3, 4)}  # fmt: skip

    def from_characters(text):
        known = [gram for gram in ngrams(text) if gram in gram_rate]
        if not any(LETTER.match(gram) for gram in known if len(gram) == 1):
            letter = LETTER.search(text)[0]
            scripts = [UNICODE_SCRIPTS[script_of(code)] for code in languages]
            belongs = [any(regex.match(rf"\p{{{s}}}", letter) for s in names) for names in scripts]
            return [b / max(sum(belongs), 1) for b in belongs]
        unused = [sum(gram_rate[g][c] == 0 for g in known if len(g) == 1) for c in range(len(languages))]
        score = [
            sum(math.log((gram_rate[g][c] + 0.5) / sums[len(g)][c]) for g in known) / math.sqrt(len(known))
            for c in range(len(languages))
        ]
        best = max(s for s, u in zip(score, unused) if u == min(unused))
        likelihood = [
            math.exp(from_corpus.CHARACTER_EXPONENT * (s - best)) if u == min(unused) else 0.0
            for s, u in zip(score, unused)
        ]
        return [value / sum(likelihood) for value in likelihood]

    lent = slow_borrowed([[float(counts[v, c]) for v in range(len(pieces))] for c in range(len(languages))], languages)
    result = {}
    for v in ids:
        smoothed = [sum(lent[c][k] * rate[v][k] for k in range(len(languages))) for c in range(len(languages))]
        p = [r + from_corpus.CHARACTER_WEIGHT * q for r, q in zip(smoothed, from_characters(pieces[v].text))]
        p = [value if value >= from_corpus.SMALLEST_PROBABILITY * sum(p) else 0.0 for value in p]
        writes = [writes_it(pieces[v].text, code) for code in languages]
        own = sum(value for value, at_home in zip(p, writes) if at_home)
        quoted = sum(p) - own
        if quoted > (own + quoted) * from_corpus.MOST_QUOTED:
            lowered = own * from_corpus.MOST_QUOTED / (1 - from_corpus.MOST_QUOTED) / quoted
            p = [value if at_home else value * lowered for value, at_home in zip(p, writes)]
        result[v] = [value / sum(p) if any(p) else 0.0 for value in p]
    return result


def writes_it(text, code) -> bool:
    """Whether a language is written in the script of the text's first letter that has one."""
    for letter in LETTER.findall(text):
        script = next((s for s in pieces.SCRIPTS if regex.match(rf"\p{{Script={s}}}", letter)), None)
        if script:
            return script in UNICODE_SCRIPTS[script_of(code)]
    return True


def slow_borrowed(counts, languages) -> list[list[float]]:
    """`borrowed` with loops: counts[language][token]."""
    totals = [sum(of_language) for of_language in counts]
    scripts = [set(UNICODE_SCRIPTS[script_of(code)]) for code in languages]
    weights = []
    for own in range(len(languages)):
        kin = [k for k in range(len(languages)) if scripts[k] & scripts[own]]
        ids = [v for v, count in enumerate(counts[own]) if count]
        likely = {
            (v, k): (max(counts[k][v] - from_corpus.DISCOUNT, 0) if k == own else counts[k][v]) / totals[k]
            for v in ids
            for k in kin
        }
        share = dict.fromkeys([*kin, "anything"], 1 / (len(kin) + 1))
        likely |= {(v, "anything"): 1 / len(counts[own]) for v in ids}
        for _ in range(from_corpus.BORROWING_STEPS):
            mixture = {v: sum(share[k] * likely[v, k] for k in share) for v in ids}
            share = {
                k: share[k] * sum(counts[own][v] / totals[own] * likely[v, k] / mixture[v] for v in ids) for k in share
            }
        row = [
            min(share[k], from_corpus.MOST_BORROWED) if k in kin and k != own else 0.0 for k in range(len(languages))
        ]
        row = [value * min(1, 0.9 / max(sum(row), 1e-12)) for value in row]
        row[own] = 1 - sum(row)
        weights.append(row)
    return weights


def slow_groups(distributions) -> list[list[int]]:
    """Average linkage: the two closest groups become one, until none are closer than the limit."""

    def distance(a, b):
        pairs = [(distributions[i], distributions[j]) for i in a for j in b]
        return sum(1 - sum(math.sqrt(x * y) for x, y in zip(*pair)) for pair in pairs) / len(pairs)

    groups = [[i] for i in range(len(distributions))]
    while len(groups) > 1:
        closest, a, b = min((distance(a, b), a, b) for k, a in enumerate(groups) for b in groups[:k])
        if closest > from_corpus.GROUP_DISTANCE:
            break
        groups = [*(group for group in groups if group not in (a, b)), a + b]
    return groups


def test_the_posterior_is_the_docstrings_formula(tiny_tokenizer, sample):
    pieces = read_pieces(tiny_tokenizer)
    # a piece of Malayalam and a full stop: test_a_mark_that_was_seen_is_no_letter_that_was_seen has the case
    script = regex.compile(r"\p{Latin}|\p{Devanagari}|\p{Oriya}|\p{Han}")
    pieces = [piece if script.search(piece.text) or piece.kind != "text" else Piece("", "special") for piece in pieces]
    counts = count_tokens(tiny_tokenizer, sample)
    result, groups = language_posterior(counts, pieces, LANGUAGES)
    result = result.toarray()
    columns = (counts.toarray() * (np.array([piece.kind for piece in pieces]) == "text")[:, None]).T
    slow = slow_groups([(column / column.sum()).tolist() for column in columns])
    assert sorted(sorted(LANGUAGES[i] for i in group) for group in slow if len(group) > 1) == sorted(groups)
    expected = slow_posterior(counts.toarray(), pieces, LANGUAGES)
    assert len(expected) > 500
    for id, values in expected.items():
        assert result[id] == pytest.approx(values, abs=1e-5), pieces[id]
    assert not result[[id for id in range(len(pieces)) if id not in expected]].any()


def test_a_token_that_the_corpus_lacks_goes_by_its_characters():
    texts = ["ab", "bc", "xy", "yz", "abc", "xyz"]
    counts = [[10, 0], [10, 0], [0, 10], [0, 10], [0, 0], [0, 0]]
    result = posterior_of(counts, texts, ["deu_Latn", "eng_Latn"])
    assert result[4, 0] > 0.7 and result[5, 1] > 0.7


def test_letters_never_seen_go_evenly_to_their_script(builder, corpus_folder):
    tokenizer = builder(*"abж中", " ж", "жж", "ж1")
    corpus = {"eng_Latn": ["a b a"], "rus_Cyrl": ["a b b"], "ukr_Cyrl": ["a"], "bul_Cyrl": ["b"]}
    matrix = TokenLanguages.build(tokenizer, corpus=corpus_folder(corpus))
    third = pytest.approx({code: 1 / 3 for code in ("rus_Cyrl", "ukr_Cyrl", "bul_Cyrl")})
    for text in ("ж", " ж", "жж", "ж1"):
        (id,) = [id for id, piece in enumerate(read_pieces(tokenizer)) if piece.text == text]
        assert row(matrix, id) == third, text
    assert row(matrix, token(tokenizer, "中")) == {"und": 1}  # no language is written in Han


def test_a_mark_that_was_seen_is_no_letter_that_was_seen():
    # `-` is English's alone here, which says nothing of the Cyrillic letter after it
    result = posterior_of([[8, 0], [2, 10], [0, 0]], ["a-b", "ab", "-ж"], ["eng_Latn", "rus_Cyrl"])
    assert result[2].tolist() == [0, 1]
    result = posterior_of([[8, 0], [2, 10], [0, 0]], ["a-b", "ab", "-ж"], ["eng_Latn", "deu_Latn"])
    assert result[2].tolist() == [0, 0]


def test_a_letter_that_was_seen_counts_after_a_space_that_was_not():
    result = posterior_of([[10, 0], [0, 10], [0, 0]], ["中", "丸", " 中"], ["zho_Hans", "jpn_Jpan"])
    assert result[2].tolist() == [1, 0]


def test_a_language_that_quotes_a_word_has_a_tenth_of_it():
    # " in" is written ten times more often in Thai text than in German, by mistake or in names
    result = posterior_of([[1, 100], [999, 0], [0, 900]], [" in", " der", "ที่"], ["deu_Latn", "tha_Thai"])
    assert result[0] == pytest.approx([0.9, 0.1], rel=1e-5)
    assert (result[1, 0], result[2, 1]) == (1, pytest.approx(1, abs=0.01))
    rows, quotes = np.array([[0.85, 0.15], [0.95, 0.05]], np.float32), np.array([[False, True]] * 2)
    assert from_corpus._with_few_quotations(rows, quotes) == pytest.approx(np.array([[0.9, 0.1], [0.95, 0.05]]))
    # a Cyrillic word that only these two have is no word of theirs
    assert not posterior_of([[9, 1], [90, 99]], [" им", " in"], ["deu_Latn", "tha_Thai"])[0].any()


def test_a_row_has_the_languages_that_have_the_token_or_at_most_99():
    rows = np.array([[5, 4, 3, 2, 1], [2, 2, 1, 1, 1], [1, 1, 1, 1, 1]], float)
    assert from_corpus._at_most(rows, np.array([5, 5, 5])).tolist() == rows.tolist()
    cut = from_corpus._at_most(rows, np.array([3, 2, 2])).tolist()
    assert cut == [[5, 4, 3, 0, 0], [2, 2, 0, 0, 0], [0, 0, 0, 0, 0]]  # of equal ones all or none


def test_an_idle_space_says_nothing():
    texts, languages = ["中", " 中", " the"], ["zho_Hans", "eng_Latn"]
    result = posterior_of([[10, 0], [0, 0], [0, 10]], texts, languages)
    assert result[1].tolist() == result[0].tolist() and result[0, 0] > 0.9
