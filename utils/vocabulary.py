"""The token x language matrix: which languages does each token of a vocabulary belong to?

Row = token id, column = channel; every row is a probability distribution over the channels.
"""

import gzip
import hashlib
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import regex
import scipy.sparse as sp
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from tqdm import tqdm
from transformers.convert_slow_tokenizer import bytes_to_unicode

from utils.examples import DATASETS_DIR, read_sentences, read_text
from utils.languages import ISO_639_1, UNICODE_SCRIPTS, WRITTEN_WITHOUT_SPACES, language_code, script_of
from utils.results import PROJECT_DIR, read_arrays, sha256_of_file, write_arrays, write_atomically, write_json
from utils.shares import LARGEST_GAP, fit

WORD_COUNTS = DATASETS_DIR / "word_counts.tsv.gz"
NOT_LANGUAGES = ("special", "byte", "zxx", "und")

# Letters and the marks that belong to them; a variation selector or a keycap makes a picture, not a sound.
LETTER = regex.compile(r"[[\p{L}\p{Mn}\p{Mc}]--[\uFE00-\uFE0F]]", regex.V1)
LONGEST_NGRAM = 4
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
# How likely a token says nothing of the languages of its script, when shares are fitted: no corpus has it all.
SAYS_NOTHING = 0.15
# The form of a matrix's folder; another one's is refused.
VERSION = 2
PASSAGE = 20  # sentences
MIXTURES, LANGUAGES_OF_MIXTURE = 100, 3
TEXTS_AT_ONCE = 128
# A single sentence's largest share is clear long before its shares are exact.
GAP_OF_SENTENCES = 1e-2
# A short text's language is named where its probability is at least this.
SURE_OF_LANGUAGE = 0.8
WITH_SHORT_CODE = frozenset(ISO_639_1.values())
BATCH_OF_TEXTS = 8192

# langid 1.1.6 knows these by ISO 639-1 codes that FLORES-200 has no language for (`no` beside `nb`).
LANGID_ONLY = {
    "an": "arg_Latn",
    "br": "bre_Latn",
    "la": "lat_Latn",
    "no": "nor_Latn",
    "se": "sme_Latn",
    "vo": "vol_Latn",
    "wa": "wln_Latn",
}


# --- what a tokenizer's pieces are -------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A token of the vocabulary: kind is text, zxx, byte or special; text is what it stands for.

    text keeps the leading space; it is empty for byte and special. raw is the tokenizer's own spelling.
    """

    raw: str
    kind: str
    text: str = ""
    bytes: bytes = b""


def vocabulary_size(tokenizer) -> int:
    """Number of rows: `len(tokenizer)`, or one past the largest id where the ids have holes."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)


def read_pieces(tokenizer) -> list[Piece]:
    """Every id's Piece, from the tokenizer's raw pieces: [vocab]. Ids that stand for nothing are special.

    Reads byte-level vocabularies (GPT-2's alphabet: BLOOM, OPT, Qwen, ...) and those that write a space as
    U+2581 and a byte as <0xNN> (SentencePiece: Gemma, Llama 2, XGLM, ...). Raises ValueError for any other.
    """
    to_bytes = _piece_decoder(tokenizer)
    pieces = [Piece("", "special")] * vocabulary_size(tokenizer)
    for raw, id in tokenizer.get_vocab().items():
        pieces[id] = _piece(raw, to_bytes(raw))
    for id, added in tokenizer.added_tokens_decoder.items():
        # Added tokens are literal text, matched before the model's own pieces; those that look like markers
        # ([multimodal], <start_of_image>, <table>) are never written by a person in a language.
        marker = added.special or regex.fullmatch(r"\s*(<.*>|\[.*\])\s*", added.content)
        text = added.content.encode()
        pieces[id] = Piece(added.content, "special", bytes=text) if marker else _piece(added.content, text)
    return pieces


def _piece_decoder(tokenizer):
    """Function from a raw piece to the bytes that it stands for."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        raise ValueError(f"{type(tokenizer).__name__}: no fast tokenizer with a decoder, so its pieces can't be read")
    decoder = backend.decoder.__getstate__().decode()  # JSON
    if '"ByteLevel"' in decoder:
        to_byte = {character: byte for byte, character in bytes_to_unicode().items()}
        return lambda raw: bytes(to_byte[c] for c in raw) if all(c in to_byte for c in raw) else raw.encode()
    if "\u2581" in decoder:
        return _sentencepiece_bytes
    raise ValueError(f"{type(tokenizer).__name__}: pieces are neither byte-level nor SentencePiece's ({decoder})")


def _sentencepiece_bytes(raw: str) -> bytes:
    byte = regex.fullmatch(r"<0x([0-9A-F]{2})>", raw)
    return bytes([int(byte[1], 16)]) if byte else raw.replace("\u2581", " ").encode()


def _piece(raw: str, content: bytes) -> Piece:
    if regex.fullmatch(r"<0x[0-9A-F]{2}>", raw):  # a fallback byte, even where that byte alone is ASCII
        return Piece(raw, "byte", bytes=content)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return Piece(raw, "byte", bytes=content)
    return Piece(raw, "text" if LETTER.search(text) else "zxx", text, content)


def display_text(piece: Piece) -> str:
    """A token on one line of a table: a space is U+2423, bytes are <0xNN>, control and format characters escaped."""
    if piece.kind == "special":
        return piece.raw or "<no token>"
    if piece.kind == "byte":
        return "".join(f"<0x{byte:02X}>" for byte in piece.bytes)
    return "".join(_displayed_character(character) for character in piece.text)


def _displayed_character(character: str) -> str:
    if character == " ":
        return "\u2423"
    if character == "\\":
        return "\\\\"
    # C* is control, format, unassigned; Z* is every other space
    escape = unicodedata.category(character)[0] in "CZ"
    return character.encode("unicode_escape").decode() if escape else character


def tokenizer_checksum(tokenizer) -> str:
    """SHA-256 of the vocabulary: every piece with its id, in the order of the ids."""
    digest = hashlib.sha256()
    for raw, id in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        digest.update(f"{id}\t{raw}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


# --- the corpus ------------------------------------------------------------------------------------------------


def read_corpus(folder: Path) -> dict[str, list[str]]:
    """FLORES code -> sentences, from a folder with one file a language, named CODE.anything."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        try:
            code = language_code(path.name.split(".")[0])
        except ValueError as error:
            raise ValueError(f"{path}: a corpus has one file a language, named CODE.anything; {error}") from None
        if code in files:
            raise ValueError(f"{path}: a second file for {code}, beside {files[code].name}")
        files[code] = path
    if not files:
        raise ValueError(f"{folder}: no files in it; a corpus has one file a language, named CODE.anything")
    return {code: read_sentences(files[code]) for code in sorted(files)}


def corpus_checksum(path: Path) -> str:
    """SHA-256 of a word-count file, or of a corpus folder's file names and contents in order."""
    path = Path(path)
    if path.is_file():
        return sha256_of_file(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")):
        digest.update(f"{file.name}\t{sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


def count_forms(sentences: Iterable[str], script: str) -> Counter[str]:
    """How often each form occurs: words with their leading space, without the punctuation around them.

    For scripts written without spaces, character n-grams of 1 to 4 within what white space separates.
    """
    counts: Counter[str] = Counter()
    for chunk in (chunk for sentence in sentences for chunk in sentence.split()):
        if script in WRITTEN_WITHOUT_SPACES:
            counts.update(character_ngrams(chunk))
        elif word := _without_punctuation_around(chunk):
            counts[" " + word] += 1
    return counts


def character_ngrams(text: str) -> list[str]:
    return [text[i : i + n] for n in range(1, LONGEST_NGRAM + 1) for i in range(len(text) - n + 1)]


def _without_punctuation_around(chunk: str) -> str:
    start, end = 0, len(chunk)
    while start < end and unicodedata.category(chunk[start])[0] in "PS":
        start += 1
    while end > start and unicodedata.category(chunk[end - 1])[0] in "PS":
        end -= 1
    return chunk[start:end]


def write_word_counts(path: Path, corpus: dict[str, list[str]], least: int = 1) -> None:
    """A table language, form, count of the forms that occur at least `least` times. The same bytes every time."""
    text = io.StringIO(newline="\n")
    text.write("language\tform\tcount\n")
    for code, sentences in sorted(corpus.items()):
        counts = count_forms(sentences, script_of(code))
        for form, count in sorted((form, count) for form, count in counts.items() if count >= least):
            text.write(f"{code}\t{form}\t{count}\n")
    compressed = gzip.compress(text.getvalue().encode("utf-8"), compresslevel=9, mtime=0)
    write_atomically(path, lambda file: file.write(compressed))


def read_word_counts(path: Path) -> dict[str, dict[str, int]]:
    """FLORES code -> form -> count. Raises ValueError, naming the line, where the table is not one."""
    try:
        lines = gzip.decompress(Path(path).read_bytes()).decode("utf-8").removesuffix("\n").split("\n")
    except (OSError, EOFError, UnicodeDecodeError, gzip.zlib.error) as error:
        raise ValueError(f"{path}: not a gzip of UTF-8 ({error})") from None
    if lines[0] != "language\tform\tcount":
        raise ValueError(f"{path}:1: the header is not language, form, count")
    counts: dict[str, dict[str, int]] = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            code, form, count = line.split("\t")
            counts.setdefault(code, {})[form] = int(count)
        except ValueError:
            raise ValueError(f"{path}:{number}: not language, form, count: {line!r}") from None
    return {language_code(code): forms for code, forms in counts.items()}


# --- counts of tokens ------------------------------------------------------------------------------------------


def encode_all(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without the special tokens around it."""
    backend = tokenizer.backend_tokenizer
    batches = range(0, len(texts), BATCH_OF_TEXTS)
    encoded = (backend.encode_batch_fast(texts[i : i + BATCH_OF_TEXTS], add_special_tokens=False) for i in batches)
    return [encoding.ids for batch in encoded for encoding in batch]


def bag_of_tokens(id_lists: list[list[int]], size: int) -> sp.csr_matrix:
    """[text, vocab]: how often each token occurs in each text."""
    lengths = [len(ids) for ids in id_lists]
    ids = np.fromiter((id for ids in id_lists for id in ids), dtype=np.int32, count=sum(lengths))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    bag = sp.csr_matrix((np.ones(len(ids), np.float32), ids, starts), shape=(len(lengths), size))
    bag.sum_duplicates()
    return bag


def count_tokens(tokenizer, corpus: dict[str, list[str]]) -> sp.csr_matrix:
    """[vocab, language]: how often each token occurs in each language's sentences."""
    size = vocabulary_size(tokenizer)
    columns = [
        sp.csr_matrix(bag_of_tokens(encode_all(tokenizer, sentences), size).sum(axis=0))
        for sentences in tqdm(corpus.values(), desc="tokenizing", unit="language", leave=False, disable=None)
    ]
    return sp.vstack(columns).T.tocsr()


def count_tokens_of_forms(tokenizer, word_counts: dict[str, dict[str, int]]) -> sp.csr_matrix:
    """[vocab, language]: how often each token occurs in each language's words.

    The n-grams of a script written without spaces overlap, so there only an n-gram that is a token counts.
    """
    forms = sorted({form for counts in word_counts.values() for form in counts})
    row = {form: number for number, form in enumerate(forms)}
    # A tokenizer that puts a space before every text (Llama 2's) has to be given the word without its own.
    adds_space = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens[0].startswith("\u2581")
    ids = encode_all(tokenizer, [form.removeprefix(" ") for form in forms] if adds_space else forms)
    single = np.array([len(tokens) == 1 for tokens in ids])
    rows, columns, values = [], [], []
    for column, (code, of_language) in enumerate(word_counts.items()):
        numbers = np.array([row[form] for form in of_language])
        weights = np.fromiter(of_language.values(), dtype=np.float32)
        keep = single[numbers] if script_of(code) in WRITTEN_WITHOUT_SPACES else np.ones(len(numbers), bool)
        rows.append(numbers[keep])
        values.append(weights[keep])
        columns.append(np.full(keep.sum(), column))
    rows, columns, values = map(np.concatenate, (rows, columns, values))
    counts = sp.csr_matrix((values, (rows, columns)), shape=(len(forms), len(word_counts)))
    return (bag_of_tokens(ids, vocabulary_size(tokenizer)).T @ counts).tocsr()


# --- Bayes over the counts -------------------------------------------------------------------------------------


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
    quotes = even_over_scripts(languages) == 0  # [script, language]
    quotes = np.vstack([quotes, np.zeros(len(languages), bool)])[scripts_of_pieces(pieces)]  # [vocab, language]
    for block, from_characters in _character_posterior(rates, pieces, rows, languages):
        posterior = normalised_rows(smoothed[block].toarray() + CHARACTER_WEIGHT * from_characters)
        posterior[posterior < SMALLEST_PROBABILITY] = 0
        posterior = _at_most(posterior, most[block])
        parts.append(sp.csr_matrix(_with_few_quotations(posterior, quotes[block])))
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
    weights = np.zeros((len(languages),) * 2)
    for own in range(len(languages)):
        ends = slice(*counts.indptr[own : own + 2])
        ids, seen = counts.indices[ends], counts.data[ends]
        kin = [own, *(k for k in range(len(languages)) if k != own and scripts[k] & scripts[own])]
        if len(ids) == 0 or len(kin) == 1:
            weights[own, own] = 1
            continue
        components = np.column_stack([frequencies[ids][:, kin].toarray(), np.full(len(ids), anything)])
        components[:, 0] = np.maximum(seen - DISCOUNT, 0) / totals[own]
        mixture = np.full(len(kin) + 1, 1 / (len(kin) + 1))
        for _ in range(BORROWING_STEPS):
            mixture *= components.T @ ((seen / totals[own]) / (components @ mixture))
        weights[own, kin[1:]] = np.minimum(mixture[1:-1], MOST_BORROWED)
        weights[own] *= min(1, 0.9 / max(weights[own].sum(), 1e-12))
        weights[own, own] = 1 - weights[own].sum()
    return weights.astype(np.float32)


def normalised_rows(rows: np.ndarray) -> np.ndarray:
    """Each row divided by its sum; a row of zeros stays one."""
    totals = rows.sum(axis=1, keepdims=True)
    return np.divide(rows, totals, out=np.zeros_like(rows), where=totals > 0)


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


def _character_posterior(rates: sp.csr_matrix, pieces: list[Piece], rows: np.ndarray, languages: list[str]):
    """Blocks of (token ids, q): q(l | v) [token, language] from the character n-grams (1 to 4) of the pieces.

    q is naive Bayes over the n-grams of v that occur in the corpus's tokens, its log-likelihood divided by
    the square root of their number, since overlapping n-grams are far from independent, and dampened by
    CHARACTER_EXPONENT; only the languages that write the most of v's characters are in the running, and of them the
    CHARACTER_LANGUAGES likeliest. Where no letter of v occurs in the corpus, q is even over the languages of its
    script; where its script has none, q is zero.
    """
    incidence, ngrams = _ngrams_of_pieces(pieces, rows)  # [token, ngram], list of ngrams
    lengths = np.array([len(ngram) for ngram in ngrams])
    is_letter = np.array([len(ngram) == 1 and bool(LETTER.match(ngram)) for ngram in ngrams])
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
    of_script = _languages_of_scripts(languages)
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
        for i in np.flatnonzero(n_letters[block] == 0):
            q[i] = of_script(pieces[rows[start + i]].text)
        yield rows[block], q.astype(np.float32)


def _ngrams_of_pieces(pieces: list[Piece], rows: np.ndarray) -> tuple[sp.csr_matrix, list[str]]:
    number: dict[str, int] = {}
    columns: list[int] = []
    ends = [0]
    for id in rows:
        columns += [
            number.setdefault(ngram, len(number)) for ngram in character_ngrams(_without_idle_space(pieces[id].text))
        ]
        ends.append(len(columns))
    ones = np.ones(len(columns), np.float32)
    incidence = sp.csr_matrix((ones, np.array(columns, np.int32), np.array(ends)), shape=(len(rows), len(number)))
    return incidence, list(number)


def _languages_of_scripts(languages: list[str]):
    """Function from a text to an even distribution over the languages of its first letter's script: [language]."""
    belongs: dict[str, np.ndarray] = {}
    for script in {name for names in UNICODE_SCRIPTS.values() for name in names}:
        member = np.array([script in UNICODE_SCRIPTS.get(script_of(code), ()) for code in languages], np.float32)
        belongs[script] = member / max(member.sum(), 1)
    nothing = np.zeros(len(languages), np.float32)

    @cache
    def of_letter(letter: str) -> np.ndarray:
        matching = (row for script, row in belongs.items() if regex.match(rf"\p{{Script={script}}}", letter))
        return next(matching, nothing)

    return lambda text: of_letter(LETTER.search(text)[0])


# --- the paper's method ----------------------------------------------------------------------------------------


def langid_channels(classes: list[str]) -> list[str]:
    """FLORES-style codes of langid's ISO 639-1 codes, in its order; all 97 are different."""
    return [LANGID_ONLY.get(code) or ISO_639_1[code] for code in classes]


def langid_posterior(pieces: list[Piece]) -> tuple[sp.csr_matrix, list[str]]:
    """softmax of langid's scores for each decoded, stripped token: [vocab, 97], and the 97 codes.

    The same numbers as `langid.rank` and a softmax, for all tokens at once: langid runs an automaton over the
    text's bytes, counts the features of the states that it enters, and scores them by naive Bayes (Lui and
    Baldwin 2012). Rows of pieces that are no text are zero.
    """
    ids = [id for id, piece in enumerate(pieces) if piece.kind == "text"]
    scores, channels = _langid_scores([pieces[id].text.strip() for id in ids])
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    return _rows_at(ids, sp.csr_matrix(scores), len(pieces)), channels


def langid_best(texts: list[str]) -> tuple[sp.csr_matrix, list[str]]:
    """All of each text's row on langid's best language: [text, 97], and the 97 codes.

    As the paper's published curves have it: a text that langid has no evidence on (punctuation, digits, nothing) is in
    the language of its largest prior, English.
    """
    scores, channels = _langid_scores(texts)
    best = scores.argmax(axis=1)
    ones = np.ones(len(texts), np.float32)
    return sp.csr_matrix((ones, (np.arange(len(texts)), best)), shape=scores.shape), channels


def _langid_scores(texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """langid's log joint scores, [text, 97], and its languages."""
    from langid import langid  # its module logs and unpacks a model; only this method needs it

    identifier = langid.LanguageIdentifier.from_modelstring(langid.model)
    columns, ends = [], [0]
    for text in texts:
        state = 0
        for byte in text.encode("utf-8"):
            state = identifier.tk_nextmove[(state << 8) + byte]
            columns += identifier.tk_output.get(state, ())
        ends.append(len(columns))
    features = sp.csr_matrix(
        (np.ones(len(columns)), np.array(columns, np.int32), np.array(ends)),
        shape=(len(texts), identifier.nb_numfeats),
    )
    scores = features @ identifier.nb_ptc + identifier.nb_pc  # [text, 97], float64
    return scores, langid_channels(identifier.nb_classes)


def _rows_at(ids: list[int], rows: sp.csr_matrix, n: int) -> sp.csr_matrix:
    """[n, column] float32, with these rows at these ids and zeros elsewhere."""
    place = sp.csr_matrix((np.ones(len(ids)), (ids, np.arange(len(ids)))), shape=(n, len(ids)))
    return (place @ rows).astype(np.float32).tocsr()


# --- the matrix ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenLanguages:
    """The matrix, its channels and where it comes from. probs: [vocab, channel] CSR float32, rows sum to 1."""

    probs: sp.csr_matrix
    channels: list[str]
    config: dict
    scripts: np.ndarray | None = None  # [vocab], index into SCRIPTS, -1 where none; None: no token says nothing
    attested: np.ndarray | None = None  # [vocab], is the token in the corpus?

    @cached_property
    def n_languages(self) -> int:
        """Languages are the first channels; `special`, `byte`, `zxx` and `und` follow."""
        return len(self.channels) - len(NOT_LANGUAGES)

    @cached_property
    def languages(self) -> list[str]:
        return self.channels[: self.n_languages]

    @property
    def groups(self) -> list[list[str]]:
        """Close languages that a token can hardly tell apart, where there is more than one."""
        return self.config.get("groups", [])

    @property
    def fits_shares(self) -> bool:
        """Whether a reading is a fitted mixture; the paper's (langid) is the plain sum of the tokens' rows."""
        return self.config.get("method") not in LANGID_METHODS

    @cached_property
    def rows_to_fit(self) -> np.ndarray:
        """What `utils.shares` takes: [vocab, language] float32, proportional to P(v | l); zeros where no text.

        A token's row, but for SAYS_NOTHING of it, which is even over the languages of the token's script: a
        corpus lacks much, so that no token rules a language of its script out.
        """
        rows = self.probs[:, : self.n_languages].toarray()
        if self.scripts is not None:
            known = (self.scripts >= 0) & rows.any(axis=1)
            even = even_over_scripts(self.languages)
            rows[known] *= 1 - SAYS_NOTHING
            rows[known] += np.float32(SAYS_NOTHING) * even[self.scripts[known]]
        return rows

    def shares(self, vocab_probs: np.ndarray) -> np.ndarray:
        """How much of each channel a distribution is: [..., vocab] -> [..., channel], float64, each summing to 1.

        Languages: the mixture that explains the text tokens best (`utils.shares`); the four channels that are no
        language keep their mass. For the paper's methods, the sum of the tokens' rows.
        Raises ValueError for what isn't finite, is negative, doesn't sum to 1 or is of another vocabulary.
        """
        probs = np.asarray(vocab_probs, dtype=np.float64)
        self._require_distributions(probs)
        flat = probs.reshape(-1, probs.shape[-1])
        shares = flat @ self.probs.astype(np.float64)  # [set, channel]
        if self.fits_shares:
            shares[:, : self.n_languages] = fit(flat, self.rows_to_fit, torch.float64)
        return shares.reshape(*probs.shape[:-1], len(self.channels))

    def _require_distributions(self, probs: np.ndarray) -> None:
        if probs.shape[-1:] != self.probs.shape[:1]:
            raise ValueError(f"distributions over {probs.shape[-1:]} tokens, but the matrix has {self.probs.shape[0]}")
        if not np.isfinite(probs).all():
            raise ValueError("a distribution over the vocabulary that is not finite")
        if (probs < 0).any() or not np.allclose(probs.sum(axis=-1), 1, atol=1e-3):
            worst = float(probs.sum(axis=-1).ravel()[np.abs(probs.sum(axis=-1).ravel() - 1).argmax()])
            raise ValueError(f"a distribution over the vocabulary that has negative entries, or sums to {worst:.4g}")

    @cached_property
    def floor(self) -> np.ndarray:
        """What each channel gets from a uniform distribution over the vocabulary: [channel]."""
        return mean_row(self.probs)

    @cached_property
    def channel_of_token(self) -> list[str]:
        """The likeliest channel of each token: [vocab]."""
        return [self.channels[i] for i in np.asarray(self.probs.argmax(axis=1)).ravel()]

    def language_of(self, ids: list[int], asked: str) -> str:
        """The language of a short text of these tokens, or `und` where its tokens don't tell: names, numbers.

        P(l | text) ~ prior(l) * prod_i (P(l | token_i) + SMALLEST_PROBABILITY), over the tokens that are text.
        Half of the prior is on `asked`, the language that the text is supposed to be in, the rest even over the
        languages with an ISO 639-1 code, since a few tokens can't tell close varieties apart.
        """
        rows = self.probs[ids, : self.n_languages].toarray()  # [token, language]
        rows = rows[rows.sum(axis=1) > 0.5]
        if not len(rows):
            return "und"
        log_probs = np.log(rows + SMALLEST_PROBABILITY).sum(axis=0) + self._log_prior(asked)
        probs = np.exp(log_probs - log_probs.max())
        best = int(probs.argmax())
        return self.channels[best] if probs[best] >= SURE_OF_LANGUAGE * probs.sum() else "und"

    def _log_prior(self, asked: str) -> np.ndarray:
        others = [code in WITH_SHORT_CODE and code != asked for code in self.channels[: self.n_languages]]
        prior = np.array(others) / max(sum(others), 1)
        if asked in self.channels:
            prior[self.channels.index(asked)] = 1.0
        with np.errstate(divide="ignore"):
            return np.log(prior)

    @classmethod
    def build(cls, tokenizer, method: str = "corpus", corpus: Path | None = None, name: str = "") -> "TokenLanguages":
        """The matrix of a tokenizer. method: one of METHODS. corpus: a folder or a word-count file.

        name: how the user named the tokenizer; it is kept in the configuration only.
        """
        config = {**_source(method, corpus), "tokenizer": name, "tokenizer_sha256": tokenizer_checksum(tokenizer)}
        pieces = read_pieces(tokenizer)
        made = METHODS[method](tokenizer, pieces, corpus)
        config |= {"version": VERSION, "groups": made.groups}
        channels = [*made.languages, *NOT_LANGUAGES]
        return cls(
            _with_other_channels(made.posterior, pieces), channels, config, scripts_of_pieces(pieces), made.attested
        )

    @classmethod
    def load_or_build(cls, folder: Path, tokenizer, method: str, corpus: Path | None, name: str) -> "TokenLanguages":
        """The matrix in `folder`, built and saved there first where it isn't yet.

        Raises ValueError where the folder holds another matrix than the one asked for.
        """
        if not (folder / "config.json").exists():
            built = cls.build(tokenizer, method, corpus, name)
            built.save(folder)
            return built
        stored = cls.load(folder, tokenizer)
        asked = _source(method, corpus)
        differing = [key for key in asked if stored.config.get(key) != asked[key]]
        if differing:
            raise ValueError(
                f"{folder}: holds another matrix ({differing[0]} was {stored.config.get(differing[0])!r}, "
                f"is {asked[differing[0]]!r}); choose another folder"
            )
        return stored

    def save(self, folder: Path) -> None:
        """probs.npz, tokens.npz, channels.json, config.json; the configuration last: it says that all is there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "probs.npz", lambda file: sp.save_npz(file, self.probs, compressed=False))
        tokens = {"scripts": self.scripts, "attested": self.attested}
        write_arrays(folder / "tokens.npz", **{name: array for name, array in tokens.items() if array is not None})
        write_json(folder / "channels.json", self.channels)
        write_json(folder / "config.json", self.config)

    @classmethod
    def load(cls, folder: Path, tokenizer) -> "TokenLanguages":
        """Raises ValueError where the folder holds no matrix, or another tokenizer's."""
        folder = Path(folder)
        for name in ("config.json", "channels.json", "probs.npz"):
            if not (folder / name).is_file():
                raise ValueError(f"--token_languages {folder}: no {name} in it, so it is no token x language matrix")
        try:
            config, channels = (json.loads(read_text(folder / name)) for name in ("config.json", "channels.json"))
            if not isinstance(config, dict) or not isinstance(channels, list):
                raise ValueError("config.json is no mapping or channels.json no list")
            if config.get("version") != VERSION:
                raise _OlderMatrix
            probs = sp.load_npz(folder / "probs.npz").tocsr()
            tokens = read_arrays(folder / "tokens.npz")
        except _OlderMatrix:
            command = f"python logit_lens_tokenid_to_lang.py --method {config.get('method')} --output_dir NEW_FOLDER"
            raise ValueError(
                f"--token_languages {folder}: a matrix of version {config.get('version', 1)}, {VERSION} is needed; "
                f"make it anew: {command}, with --model as before"
            ) from None
        except (ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
            raise ValueError(f"--token_languages {folder}: a damaged matrix ({error}); build it anew") from None
        size = vocabulary_size(tokenizer)
        if probs.shape != (size, len(channels)):
            raise ValueError(
                f"--token_languages {folder}: a matrix of {probs.shape[0]} tokens x {probs.shape[1]} channels, "
                f"but the model's tokenizer has {size} tokens (and channels.json {len(channels)} channels)"
            )
        if config.get("tokenizer_sha256") != tokenizer_checksum(tokenizer):
            raise ValueError(
                f"--token_languages {folder}: made for another tokenizer ({config.get('tokenizer')}); "
                "build this one with logit_lens_tokenid_to_lang.py"
            )
        if not np.allclose(probs.sum(axis=1), 1, atol=1e-4):
            raise ValueError(f"--token_languages {folder}: rows that don't sum to 1; build it anew")
        return cls(probs, channels, config, tokens.get("scripts"), tokens.get("attested"))


class _OlderMatrix(Exception):
    pass


def named_matrix(name: str, tokenizer, model: str) -> TokenLanguages:
    """The matrix that `--token_languages` names: a folder, or a method, whose matrix is made on first use.

    model: how the user named the tokenizer's model. Raises ValueError for a folder that holds another's.
    """
    if name not in METHODS:
        return TokenLanguages.load(Path(name), tokenizer)
    folder = default_folder(model, tokenizer, name)
    if not (folder / "config.json").exists():
        print(f"making the token x language matrix once: {folder}")
    return TokenLanguages.load_or_build(folder, tokenizer, name, None, model)


def mean_row(probs: sp.csr_matrix) -> np.ndarray:
    """The mean of the rows, added up in float64: [channel]. (scipy's own mean adds up in the matrix's dtype.)"""
    return np.asarray(probs.astype(np.float64).sum(axis=0)).ravel() / probs.shape[0]


SCRIPTS = sorted({name for names in UNICODE_SCRIPTS.values() for name in names})


def scripts_of_pieces(pieces: list[Piece]) -> np.ndarray:
    """[vocab]: the script of each text token's first letter that has one, as an index into SCRIPTS; else -1.

    (Marks and the lengthening sign of kana belong to several scripts.)
    """
    patterns = [regex.compile(rf"\p{{Script={script}}}") for script in SCRIPTS]

    @cache
    def number(letter: str) -> int:
        return next((i for i, pattern in enumerate(patterns) if pattern.match(letter)), -1)

    def of_text(text: str) -> int:
        return next((found for letter in LETTER.findall(text) if (found := number(letter)) >= 0), -1)

    return np.array([of_text(p.text) if p.kind == "text" else -1 for p in pieces], np.int8)


def even_over_scripts(languages: list[str]) -> np.ndarray:
    """[script, language]: even over the languages that write each of SCRIPTS; zeros where none does."""
    members = [[script in UNICODE_SCRIPTS.get(script_of(code), ()) for code in languages] for script in SCRIPTS]
    return normalised_rows(np.array(members, np.float32))


def _with_other_channels(posterior: sp.csr_matrix, pieces: list[Piece]) -> sp.csr_matrix:
    """The language columns and, after them, special, byte, zxx and und: [vocab, language + 4]."""
    kind = np.array([piece.kind for piece in pieces])
    known = posterior.getnnz(axis=1) > 0
    masks = [(kind == name) & ~known for name in ("special", "byte", "zxx", "text")]
    others = sp.csr_matrix(np.stack(masks, axis=1).astype(np.float32))
    return sp.hstack([posterior, others]).tocsr().astype(np.float32)


def default_folder(model: str, tokenizer, method: str, corpus: Path | None = None) -> Path:
    """Where a matrix is kept: a readable name, and a checksum of the tokenizer and of all that the method reads."""
    identity = json.dumps([tokenizer_checksum(tokenizer), _source(method, corpus)], sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return PROJECT_DIR / "results" / "token_languages" / f"{Path(model).name}-{method}-{digest}"


def _source(method: str, corpus: Path | None) -> dict:
    """What a matrix is made from besides the tokenizer. Raises ValueError for what it can't be made from."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose from {', '.join(METHODS)}")
    if method in LANGID_METHODS:
        if corpus is not None:
            raise ValueError(f"--corpus {corpus}: langid brings its own model; --corpus goes with --method corpus")
        return {"method": method, "langid": version("langid")}
    path = Path(corpus or WORD_COUNTS)
    if not path.exists():
        raise ValueError(f"--corpus {path}: no such folder or file")
    of_corpus = {"method": method, "corpus": path.name, "corpus_sha256": corpus_checksum(path)}
    return {**of_corpus, **corpus_settings(), "says_nothing": SAYS_NOTHING}


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


@dataclass(frozen=True)
class Made:
    """What a method makes: P(language | token), [vocab, language]; its languages; close ones; which tokens it saw."""

    posterior: sp.csr_matrix
    languages: list[str]
    groups: list[list[str]]
    attested: np.ndarray | None = None


def made_from_corpus(tokenizer, pieces: list[Piece], corpus: Path | None) -> Made:
    path = Path(corpus or WORD_COUNTS)
    texts = read_corpus(path) if path.is_dir() else read_word_counts(path)
    if len(texts) < 2:
        raise ValueError(f"--corpus {path}: {len(texts)} language(s); telling them apart takes two or more")
    counts = count_tokens(tokenizer, texts) if path.is_dir() else count_tokens_of_forms(tokenizer, texts)
    posterior, groups = language_posterior(counts, pieces, list(texts))
    return Made(posterior, list(texts), groups, _with_leading_spaces(counts, pieces).getnnz(axis=1) > 0)


def made_from_langid(tokenizer, pieces: list[Piece], corpus: None) -> Made:
    return Made(*langid_posterior(pieces), [])


def made_from_langid_hard(tokenizer, pieces: list[Piece], corpus: None) -> Made:
    return Made(*langid_best([tokenizer.decode([id]).strip() for id in range(len(pieces))]), [])


METHODS = {"corpus": made_from_corpus, "langid": made_from_langid, "langid-hard": made_from_langid_hard}
LANGID_METHODS = ("langid", "langid-hard")


# --- how good is it? -------------------------------------------------------------------------------------------


def evaluate(matrix: TokenLanguages, tokenizer, sentences: dict[str, list[str]], seed: int = 42) -> dict:
    """What shares recover of text that is known. sentences: FLORES code -> sentences that the matrix hasn't seen.

    accuracy: single sentences whose largest share is their language's. share_of_true_language: over passages of
    PASSAGE sentences, mean, tenth percentile of the languages' means, and each language; the same of the tokens that
    the matrix's corpus lacks, read alone. mixture_error: mean total variation over MIXTURES mixtures of passages of
    LANGUAGES_OF_MIXTURE languages with Dirichlet(1) weights, drawn with the seed. worst_confusions: what text of a
    language reads as. A language that the matrix has no channel for counts as wrong, and is named.
    """
    size, column = matrix.probs.shape[0], {code: i for i, code in enumerate(matrix.languages)}
    truth, bags, accuracy, of_unseen = [], [], {}, {}
    for code, lines in tqdm(sentences.items(), desc="evaluating", unit="language", leave=False, disable=None):
        ids = encode_all(tokenizer, lines)
        single = _shares_of_texts(matrix, bag_of_tokens(ids, size), GAP_OF_SENTENCES)
        accuracy[code] = single.argmax(axis=1) == column.get(code, -1)
        accuracy[code] &= single.any(axis=1)
        starts = range(0, max(len(ids) - PASSAGE, 0) + 1, PASSAGE)
        bags.append(bag_of_tokens([list(chain.from_iterable(ids[i : i + PASSAGE])) for i in starts], size))
        truth += [code] * len(starts)
    bags = sp.vstack(bags).tocsr()
    truth = np.array(truth)
    shares = _shares_of_texts(matrix, bags)
    on_truth = _on_truth(shares, truth, column)
    if matrix.attested is not None:
        unseen = bags @ sp.diags_array((~matrix.attested).astype(np.float32))
        alone = _shares_of_texts(matrix, unseen.tocsr())
        of_unseen = {"mean": float(_on_truth(alone, truth, column)[alone.any(axis=1)].mean())} if alone.any() else {}
    of_language = {code: float(on_truth[truth == code].mean()) for code in sentences}
    right = np.concatenate(list(accuracy.values()))
    scripts = np.array([script_of(code) for code in accuracy for _ in accuracy[code]])
    return {
        "accuracy": float(right.mean()),
        "share_of_true_language": {
            "mean": float(np.mean(list(of_language.values()))),
            "tenth_percentile": float(np.quantile(list(of_language.values()), 0.1)),
            "of_tokens_not_in_the_corpus": of_unseen,
            "of_language": of_language,
        },
        "mixture_error": _mixture_error(matrix, bags, truth, column, seed),
        "n_sentences": len(right),
        "n_passages": len(truth),
        "n_languages": len(sentences),
        "languages_without_a_channel": [code for code in sentences if code not in column],
        "worst_confusions": _worst_confusions(matrix, shares, truth),
        "accuracy_of_script": {script: float(right[scripts == script].mean()) for script in sorted(set(scripts))},
        "accuracy_of_language": {code: float(of_code.mean()) for code, of_code in accuracy.items()},
    }


def _shares_of_texts(matrix: TokenLanguages, bags: sp.csr_matrix, gap: float = LARGEST_GAP) -> np.ndarray:
    """Language shares of each text's language tokens, summing to 1: [text, language]; zeros where it has none.

    bags: [text, vocab], counts of tokens. For the paper's methods, the sums of the tokens' rows.
    """
    if not matrix.fits_shares:
        return normalised_rows((bags @ matrix.probs[:, : matrix.n_languages]).toarray().astype(np.float64))
    parts = []
    for start in range(0, bags.shape[0], TEXTS_AT_ONCE):
        block = bags[start : start + TEXTS_AT_ONCE]
        ids = np.unique(block.indices)
        parts.append(fit(block[:, ids].toarray().astype(np.float64), matrix.rows_to_fit[ids], largest_gap=gap))
    return normalised_rows(np.concatenate(parts))


def _on_truth(shares: np.ndarray, truth: np.ndarray, column: dict[str, int]) -> np.ndarray:
    return np.array([of_text[column[code]] if code in column else 0.0 for of_text, code in zip(shares, truth)])


def _mixture_error(matrix, bags, truth, column, seed: int) -> float | None:
    rng = np.random.default_rng(seed)
    known = sorted(set(truth.tolist()) & column.keys())
    if len(known) < LANGUAGES_OF_MIXTURE:
        return None
    totals = np.maximum(np.asarray(bags.sum(axis=1)).ravel(), 1)
    mixtures, weights = [], np.zeros((MIXTURES, matrix.n_languages))
    for number in range(MIXTURES):
        parts = rng.choice(known, LANGUAGES_OF_MIXTURE, replace=False)
        of_parts = rng.dirichlet(np.ones(LANGUAGES_OF_MIXTURE))
        rows = [int(rng.choice(np.flatnonzero(truth == code))) for code in parts]
        mixtures.append(sum((bags[[row]] * (weight / totals[row]) for row, weight in zip(rows, of_parts))))
        weights[number, [column[code] for code in parts]] = of_parts
    found = _shares_of_texts(matrix, sp.vstack(mixtures).tocsr())
    return float(0.5 * np.abs(found - weights).sum(axis=1).mean())


def _worst_confusions(matrix: TokenLanguages, shares: np.ndarray, truth: np.ndarray, n: int = 10) -> list[dict]:
    rows = [
        (float(mean), code, taken)
        for code in sorted(set(truth.tolist()))
        for taken, mean in zip(matrix.languages, shares[truth == code].mean(axis=0))
        if taken != code
    ]
    return [{"language": code, "read_as": taken, "share": share} for share, code, taken in sorted(rows)[: -n - 1 : -1]]
