"""P(language | token) from the words of a corpus: counts, what languages borrow, and the evidence of characters."""

from functools import cache
from pathlib import Path

import numpy as np
import regex
import scipy.sparse as sp
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from tqdm import tqdm

from utils.data.corpora import LONGEST_NGRAM, WORD_COUNTS, read_corpus, read_word_counts
from utils.languages import UNICODE_SCRIPTS, WRITTEN_WITHOUT_SPACES, script_of
from utils.processes import side_by_side
from utils.token_languages.pieces import (
    BATCH_OF_TEXTS,
    LETTER,
    Made,
    Piece,
    bag_of_tokens,
    bag_of_words,
    encode_all,
    even_over_scripts,
    normalised_rows,
    read_pieces,
    scripts_of_pieces,
    vocabulary_size,
)

# How many tokens of text the evidence of a token's characters weighs, against the counts of the token itself.
CHARACTER_WEIGHT = 30.0
# Naive Bayes over overlapping n-grams is far too sure of itself: its posterior is raised to this power, over at
# most so many languages.
CHARACTER_EXPONENT = 0.25
CHARACTER_LANGUAGES = 50
# Smaller entries are dropped before a row is normalised: sums of many are noise, and they'd fill the matrix.
SMALLEST_PROBABILITY = 2e-3
# A row has at most so many languages, or as many as have the token in their text.
MOST_LANGUAGES = 99
# A language that doesn't write a token's script only quotes it: at most this much of a row is on such languages.
MOST_QUOTED = 0.1
# Of the words of a language that its corpus lacks, many are in the corpus of another one of its script. A language
# borrows at most this much from another one, or two close ones would become the same.
MOST_BORROWED = 0.1
BORROWING_STEPS = 60
# A word that was seen once in a corpus comes with its document: what it counts for in text not seen (absolute
# discount of a count, in `borrowed`).
DISCOUNT = 2.0
# Languages closer than this (1 - Bhattacharyya coefficient of their tokens, average linkage) form a group: the
# Arabic vernaculars, Croatian and Bosnian, Danish and the Norwegians. Most of FLORES-200's languages stand alone.
GROUP_DISTANCE = 0.4


def count_tokens(tokenizer, corpus: dict[str, list[str]]) -> sp.csr_matrix:
    """[vocab, language]: how often each token occurs in each language's sentences."""
    size = vocabulary_size(tokenizer)
    columns = [
        sp.csr_matrix(bag_of_tokens(encode_all(tokenizer, sentences), size).sum(axis=0))
        for sentences in tqdm(corpus.values(), desc="tokenizing", unit="language", leave=False, disable=None)
    ]
    return sp.vstack(columns).T.tocsr()


def count_tokens_of_forms(
    tokenizer, word_counts: dict[str, dict[str, int]], pieces: list[Piece] | None = None
) -> sp.csr_matrix:
    """[vocab, language]: how often each token occurs in each language's words.

    The n-grams of a script written without spaces overlap, so there only an n-gram that is a token counts.
    """
    unspaced = {code for code in word_counts if script_of(code) in WRITTEN_WITHOUT_SPACES}
    row: dict[str, int] = {}  # form -> its number
    numbers = {
        code: np.array([row.setdefault(form, len(row)) for form in forms], np.int64)
        for code, forms in word_counts.items()
        if code not in unspaced
    }
    ngrams = {form for code in unspaced for form in word_counts[code]} - row.keys()
    texts = {piece.text for piece in pieces or read_pieces(tokenizer)}
    row |= {form: len(row) + i for i, form in enumerate(_perhaps_tokens(tokenizer, ngrams, texts))}
    # A tokenizer that puts a space before every text (Llama 2's) has to be given the word without its own.
    adds_space = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens[0].startswith("\u2581")
    bag = bag_of_words(tokenizer, [form.removeprefix(" ") for form in row] if adds_space else list(row))
    single = np.append(np.asarray(bag.sum(axis=1)).ravel() == 1, False)
    columns = []
    for code, forms in word_counts.items():
        if code in unspaced:
            found = np.array([row.get(form, -1) for form in forms], np.int64)
            numbers[code] = np.where(single[found], found, -1)
        there = numbers[code] >= 0
        counts = np.fromiter(forms.values(), np.float32)[there]
        columns.append(sp.csc_matrix((counts, numbers[code][there], [0, len(counts)]), shape=(len(row), 1)))
    return (bag.T @ sp.hstack(columns)).tocsr()


def _perhaps_tokens(tokenizer, ngrams: set[str], texts: set[str]) -> set[str]:
    """The n-grams that may be one token: those that the tokenizer's normalizer turns into the text of a piece.

    Encoding them all takes as long as all words do, and few are tokens.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    texts = {text.strip(" ") for text in texts}

    def normalised(ngram: str) -> str:
        text = normalizer.normalize_str(ngram) if normalizer else ngram
        return text.replace("\u2581", " ").strip(" ")

    return {ngram for ngram in ngrams if normalised(ngram) in texts}


def language_posterior(
    counts: sp.csr_matrix, pieces: list[Piece], languages: list[str]
) -> tuple[sp.csr_matrix, list[list[str]]]:
    """(P(language | token) under equal priors: [vocab, language], groups of close languages).

    A row of zeros is a token of which nothing is known. With C[v, l] the count of token v in language l,
    N_l = sum_v C[v, l], n the mean of N_l, and B `borrowed`:

        P(l | v) ~ n * sum_k B[l, k] C[v, k] / N_k  +  CHARACTER_WEIGHT * q(l | characters of v)

    that is Bayes' rule over smoothed P(v | l): what a language's text lacks is dealt out by what its neighbours
    write (deleted interpolation, Jelinek and Mercer 1980) and by the token's characters (`_character_posterior`).
    A token that the corpus lacks has its characters' word alone. Languages that don't write the token's script have
    at most MOST_QUOTED of a row. No row has more than MOST_LANGUAGES languages unless that many have the token in
    their text. Where that leaves nothing (a letter that no Latin-script language of the corpus writes), nothing is
    known.
    """
    text = np.array([piece.kind == "text" for piece in pieces])
    counts = _with_leading_spaces((sp.diags_array(text.astype(np.float32)) @ counts).tocsr(), pieces)
    totals = np.asarray(counts.sum(axis=0)).ravel()
    rates = (counts @ sp.diags_array((totals.mean() / np.maximum(totals, 1)).astype(np.float32))).tocsr()
    groups = language_groups(rates)
    smoothed = (rates @ sp.csr_matrix(borrowed(counts, languages).T)).tocsr()
    rows = np.flatnonzero(text)
    parts = []
    most = np.maximum(np.diff(rates.indptr), MOST_LANGUAGES)
    scripts = scripts_of_pieces(pieces)
    # [script, language]; the last row, which -1 names too, is of tokens without a script
    even = np.vstack([even_over_scripts(languages), np.zeros(len(languages), np.float32)])
    for block, from_characters in _character_posterior(rates, pieces, rows, even, scripts):
        posterior = normalised_rows(smoothed[block].toarray() + CHARACTER_WEIGHT * from_characters)
        posterior[posterior < SMALLEST_PROBABILITY] = 0
        posterior = _at_most(posterior, most[block])
        quotes = (even[scripts[block]] == 0) & (scripts[block] >= 0)[:, None]  # [token, language]
        parts.append(sp.csr_matrix(_with_few_quotations(posterior, quotes)))
    place = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, np.arange(len(rows)))), (len(pieces), len(rows)))
    names = [[languages[i] for i in np.flatnonzero(member)] for member in groups.T]
    return (place @ sp.vstack(parts)).tocsr(), [group for group in names if len(group) > 1]


def _at_most(rows: np.ndarray, most: np.ndarray) -> np.ndarray:
    """`rows`, [token, language], with at most so many entries each: the largest; of equal ones all or none."""
    rows = rows.copy()
    for i in np.flatnonzero((rows > 0).sum(axis=1) > most):
        rows[i, rows[i] <= np.sort(rows[i])[-1 - most[i]]] = 0
    return rows


def _with_few_quotations(rows: np.ndarray, quotes: np.ndarray) -> np.ndarray:
    """Normalised `rows`, [token, language], with at most MOST_QUOTED on languages that only quote the token.

    A token that is quoted alone has a row of zeros.
    """
    quoted = np.where(quotes, rows, 0).sum(axis=1)
    most = np.where(quotes, 0, rows).sum(axis=1) * MOST_QUOTED / (1 - MOST_QUOTED)
    scale = np.divide(most, quoted, out=np.ones_like(quoted), where=quoted > most)
    return normalised_rows(np.where(quotes, rows * scale[:, None], rows))


def _with_leading_spaces(counts: sp.csr_matrix, pieces: list[Piece]) -> sp.csr_matrix:
    """In a script written without spaces, a token with a leading space counts as the token without it."""
    id_of_text = {piece.text: id for id, piece in enumerate(pieces) if piece.kind == "text"}
    spaced = [
        (id, id_of_text[bare])
        for id, piece in enumerate(pieces)
        if piece.kind == "text" and (bare := _without_idle_space(piece.text)) != piece.text and bare in id_of_text
    ]
    if not spaced:
        return counts
    rows, columns = np.array(spaced).T
    copies = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), (len(pieces), len(pieces)))
    return (counts + copies @ counts).tocsr()


def _without_idle_space(text: str) -> str:
    """A token's text without the leading space that its script doesn't write, which so says nothing."""
    if text.startswith(" ") and (letter := LETTER.search(text)) and _written_without_spaces().match(letter[0]):
        return text.lstrip(" ")
    return text


@cache
def _written_without_spaces() -> regex.Pattern:
    scripts = {name for script in WRITTEN_WITHOUT_SPACES for name in UNICODE_SCRIPTS[script]}
    return regex.compile("[" + "".join(rf"\p{{Script={name}}}" for name in sorted(scripts)) + "]")


def borrowed(counts: sp.csr_matrix, languages: list[str]) -> np.ndarray:
    """B: [language, language], rows sum to 1: which languages' text explains the unseen text of each language.

    The weights of the mixture of languages of one script that makes a language's own tokens likeliest, by EM, where
    each count of the language itself is lowered by DISCOUNT, as if its token were in text not seen (leaving one
    out would be 1; words come in documents). No weight on another language is more than MOST_BORROWED.
    """
    counts = counts.tocsc()
    totals = np.maximum(np.asarray(counts.sum(axis=0)).ravel(), 1)
    frequencies = (counts @ sp.diags_array(1 / totals)).tocsr()
    scripts = [set(UNICODE_SCRIPTS.get(script_of(code), ())) for code in languages]
    anything = 1 / max(counts.shape[0], 1)  # what makes a token likely that no other language has

    def row_of(own: int) -> np.ndarray:
        ends = slice(*counts.indptr[own : own + 2])
        ids, seen = counts.indices[ends], counts.data[ends]
        kin = [own, *(k for k in range(len(languages)) if k != own and scripts[k] & scripts[own])]
        row = np.zeros(len(languages))
        if len(ids) and len(kin) > 1:
            components = np.column_stack([frequencies[ids][:, kin].toarray(), np.full(len(ids), anything)])
            components[:, 0] = np.maximum(seen - DISCOUNT, 0) / totals[own]
            row[kin[1:]] = np.minimum(_mixture(seen / totals[own], components)[1:-1], MOST_BORROWED)
            row *= min(1, 0.9 / max(row.sum(), 1e-12))
        row[own] = 1 - row.sum()
        return row

    return np.array(side_by_side(row_of, range(len(languages)), len(languages)), np.float32)


def _mixture(weights: np.ndarray, components: np.ndarray) -> np.ndarray:
    """The mixture of components that makes tokens likeliest, by EM. weights: [token]; components: [token, component].

    By torch on one thread: the threads of NumPy's BLAS wait for one another longer than such a step takes.
    """
    found = torch.full((components.shape[1],), 1 / components.shape[1], dtype=torch.float64)
    of_tokens, likely = torch.from_numpy(weights).double(), torch.from_numpy(components)
    for _ in range(BORROWING_STEPS):
        found *= likely.T @ (of_tokens / (likely @ found))
    return found.numpy()


def language_groups(rates: sp.csr_matrix) -> np.ndarray:
    """Membership of close languages: [language, group], 0 or 1. rates: [vocab, language], each column a language's.

    Average linkage on 1 - the Bhattacharyya coefficient of two languages' token distributions, cut at
    GROUP_DISTANCE.
    """
    totals = np.maximum(np.asarray(rates.sum(axis=0)).ravel(), 1e-12)
    roots = (rates @ sp.diags_array(1 / totals)).sqrt()
    distance = 1 - np.clip((roots.T @ roots).toarray(), 0, 1)
    np.fill_diagonal(distance, 0)
    group = fcluster(linkage(squareform(distance, checks=False), "average"), GROUP_DISTANCE, "distance")
    return (group[:, None] == np.unique(group)).astype(np.float32)


def _character_posterior(
    rates: sp.csr_matrix, pieces: list[Piece], rows: np.ndarray, even: np.ndarray, scripts: np.ndarray
):
    """Blocks of (token ids, q): q(l | v) [token, language] from the character n-grams (1 to 4) of the pieces.

    q is naive Bayes over the n-grams of v that occur in the corpus's tokens, its log-likelihood divided by
    the square root of their number, since overlapping n-grams are far from independent, and dampened by
    CHARACTER_EXPONENT; only the languages that write the most of v's characters are in the running, and of them the
    CHARACTER_LANGUAGES likeliest. Where no letter of v occurs in the corpus, q is even over the languages of its
    script (even: [script, language], scripts: [vocab]); where its script has none, q is zero.
    """
    incidence, lengths, is_letter = _ngrams_of_pieces(pieces, rows)
    ngram_rates = (incidence.T @ rates[rows]).tocsr()  # [ngram, language]
    known = np.flatnonzero(ngram_rates.getnnz(axis=1))
    incidence, lengths, is_letter = incidence[:, known], lengths[known], is_letter[known]
    ngram_rates = ngram_rates[known].toarray()
    log_likelihood = np.empty_like(ngram_rates)  # [ngram, language]
    for n in range(1, LONGEST_NGRAM + 1):
        of_length = ngram_rates[lengths == n] + 0.5
        log_likelihood[lengths == n] = np.log(of_length / of_length.sum(axis=0))
    characters = np.flatnonzero(lengths == 1)
    unused = (ngram_rates[characters] == 0).astype(np.float32)
    n_letters = np.asarray(incidence[:, is_letter].sum(axis=1)).ravel()  # of each token that the corpus has
    for start in range(0, len(rows), BATCH_OF_TEXTS):
        block = slice(start, start + BATCH_OF_TEXTS)
        n_known = np.maximum(np.asarray(incidence[block].sum(axis=1)), 1)
        scores = (incidence[block] @ log_likelihood) / np.sqrt(n_known)
        missing = incidence[block][:, characters] @ unused  # [token, language]: characters that l never writes
        scores[missing > missing.min(axis=1, keepdims=True)] = -np.inf
        if scores.shape[1] > CHARACTER_LANGUAGES:
            least = np.partition(scores, -CHARACTER_LANGUAGES, axis=1)[:, [-CHARACTER_LANGUAGES]]
            scores[scores < least] = -np.inf
        q = np.exp(CHARACTER_EXPONENT * (scores - scores.max(axis=1, keepdims=True)))
        q /= q.sum(axis=1, keepdims=True)
        unseen = n_letters[block] == 0
        q[unseen] = even[scripts[rows[block][unseen]]]
        yield rows[block], q.astype(np.float32)


def _ngrams_of_pieces(pieces: list[Piece], rows: np.ndarray) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    """(How often each piece has each n-gram, [token, ngram]; each one's length; is it a letter), of 1 to 4 characters.

    An n-gram's number is that of its first n - 1 characters and of its last one, numbered anew.
    """
    texts = [_without_idle_space(pieces[id].text) for id in rows]
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    alphabet, characters = np.unique(codes, return_inverse=True)
    lengths = np.array([len(text) for text in texts])
    token = np.repeat(np.arange(len(texts)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(token))  # characters to the end of its piece
    tokens, columns, counts = [token], [characters], [len(alphabet)]
    shorter = characters  # [character]: the number of the n-gram that begins there
    for n in range(2, LONGEST_NGRAM + 1):
        begins = np.flatnonzero(left >= n)
        found, number = np.unique(shorter[begins] * len(alphabet) + characters[begins + n - 1], return_inverse=True)
        tokens.append(token[begins])
        columns.append(number + sum(counts))
        counts.append(len(found))
        shorter = np.zeros_like(characters)
        shorter[begins] = number
    entries = (np.ones(sum(map(len, columns)), np.float32), (np.concatenate(tokens), np.concatenate(columns)))
    is_letter = np.zeros(sum(counts), bool)
    is_letter[: len(alphabet)] = [bool(LETTER.match(chr(code))) for code in alphabet]
    of_length = np.repeat(np.arange(1, LONGEST_NGRAM + 1), counts)
    return sp.csr_matrix(entries, shape=(len(texts), sum(counts))), of_length, is_letter


def corpus_settings() -> dict:
    """The constants that a matrix made from a corpus depends on."""
    return {
        "character_weight": CHARACTER_WEIGHT,
        "character_exponent": CHARACTER_EXPONENT,
        "character_languages": CHARACTER_LANGUAGES,
        "smallest_probability": SMALLEST_PROBABILITY,
        "most_languages": MOST_LANGUAGES,
        "most_quoted": MOST_QUOTED,
        "most_borrowed": MOST_BORROWED,
        "discount": DISCOUNT,
        "group_distance": GROUP_DISTANCE,
    }


def made_from_corpus(tokenizer, pieces: list[Piece], corpus: Path | None) -> Made:
    path = Path(corpus or WORD_COUNTS)
    sentences = read_corpus(path) if path.is_dir() else {}
    words = {} if path.is_dir() else read_word_counts(path)
    languages = list(sentences or words)
    if len(languages) < 2:
        raise ValueError(f"--corpus {path}: {len(languages)} language(s); telling them apart takes two or more")
    counts = count_tokens(tokenizer, sentences) if sentences else count_tokens_of_forms(tokenizer, words, pieces)
    posterior, groups = language_posterior(counts, pieces, languages)
    return Made(posterior, languages, groups, _with_leading_spaces(counts, pieces).getnnz(axis=1) > 0)
