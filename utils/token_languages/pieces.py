"""What the pieces of a tokenizer stand for, their scripts, and how texts become counts of tokens."""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import regex
import scipy.sparse as sp
from transformers.convert_slow_tokenizer import bytes_to_unicode

from utils.languages import UNICODE_SCRIPTS, script_of

# Letters and the marks that belong to them; a variation selector or a keycap makes a picture, not a sound.
LETTER = regex.compile(r"[[\p{L}\p{Mn}\p{Mc}]--[\uFE00-\uFE0F]]", regex.V1)
FALLBACK_BYTE = regex.compile(r"<0x([0-9A-F]{2})>")
BATCH_OF_TEXTS = 8192
WORDS_OF_A_TEXT = 128


class Piece(NamedTuple):
    """A token of the vocabulary: kind is text, zxx, byte or special; text is what it stands for.

    text keeps the leading space; it is empty for byte and special. raw is the tokenizer's own spelling.
    """

    raw: str
    kind: str
    text: str = ""
    bytes: bytes = b""


def vocabulary_size(tokenizer) -> int:
    """Number of rows: `len(tokenizer)`, or one past the largest id where the ids have holes."""
    return _vocabulary(tokenizer)[1]


class Pieces(Sequence):
    """Every id's Piece, from the tokenizer's raw pieces: [vocab]. Ids that stand for nothing are special.

    Each is read when it is asked for. Reads byte-level vocabularies (GPT-2's alphabet: BLOOM, OPT, Qwen, ...) and
    those that write a space as U+2581 and a byte as <0xNN> (SentencePiece: Gemma, Llama 2, XGLM, ...). Raises
    ValueError for any other.
    """

    def __init__(self, tokenizer):
        self._to_bytes = _piece_decoder(tokenizer)
        self._raw = tokenizer.backend_tokenizer.id_to_token
        self._added = tokenizer.added_tokens_decoder
        self._n = vocabulary_size(tokenizer)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, id):
        if added := self._added.get(int(id)):
            # Added tokens are literal text, matched before the model's own pieces; those that look like markers
            # ([multimodal], <start_of_image>, <table>) are never written by a person in a language.
            marker = added.special or regex.fullmatch(r"\s*(<.*>|\[.*\])\s*", added.content)
            text = added.content.encode()
            return Piece(added.content, "special", bytes=text) if marker else _piece(added.content, text)
        if not 0 <= id < self._n:
            raise IndexError(id)
        raw = self._raw(int(id))
        return Piece("", "special") if raw is None else _piece(raw, self._to_bytes(raw))


def read_pieces(tokenizer) -> list[Piece]:
    """All of `Pieces`."""
    return list(Pieces(tokenizer))


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
    byte = FALLBACK_BYTE.fullmatch(raw)
    return bytes([int(byte[1], 16)]) if byte else raw.replace("\u2581", " ").encode()


def _piece(raw: str, content: bytes) -> Piece:
    if FALLBACK_BYTE.fullmatch(raw):  # even where that byte alone is ASCII
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
    """SHA-256 of all that decides which tokens a text is: every piece with its id, and the rules that cut a text.

    Rules: merges or piece scores, normalizer, pre-tokenizer, and the added tokens. What is put around a text
    (padding, begin and end tokens) isn't among them: no matrix is made with it.
    """
    digest = _vocabulary(tokenizer)[2].copy()
    for id, added in sorted(tokenizer.added_tokens_decoder.items()):
        digest.update(f"{id}\t{added!r}\n".encode("utf-8", "surrogatepass"))
    digest.update(_rules(tokenizer))
    return digest.hexdigest()


# Of each tokenizer what takes a second to find: (its length then, `vocabulary_size`, the checksum of its pieces).
_VOCABULARIES: WeakKeyDictionary = WeakKeyDictionary()


def _vocabulary(tokenizer) -> tuple:
    if tokenizer not in _VOCABULARIES or _VOCABULARIES[tokenizer][0] != len(tokenizer):
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        size = max(len(tokenizer), vocabulary[-1][1] + 1)
        lines = "".join(f"{id}\t{raw}\n" for raw, id in vocabulary)
        _VOCABULARIES[tokenizer] = len(tokenizer), size, hashlib.sha256(lines.encode("utf-8", "surrogatepass"))
    return _VOCABULARIES[tokenizer]


_RULES: WeakKeyDictionary = WeakKeyDictionary()  # merges of a large vocabulary take a second to write out


def _rules(tokenizer) -> bytes:
    if tokenizer not in _RULES:
        backend = tokenizer.backend_tokenizer
        parts = (backend.model, backend.normalizer, backend.pre_tokenizer)
        states = [b"" if part is None else part.__getstate__() for part in parts]
        _RULES[tokenizer] = hashlib.sha256(b"\n".join(states)).digest()
    return _RULES[tokenizer]


def encode_all(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without the special tokens around it."""
    backend = tokenizer.backend_tokenizer
    batches = range(0, len(texts), BATCH_OF_TEXTS)
    encoded = (backend.encode_batch_fast(texts[i : i + BATCH_OF_TEXTS], add_special_tokens=False) for i in batches)
    return [encoding.ids for batch in encoded for encoding in batch]


def bag_of_tokens(id_lists: list[list[int]], size: int) -> sp.csr_matrix:
    """[text, vocab]: how often each token occurs in each text."""
    lengths = np.array([len(ids) for ids in id_lists], np.int64)
    return _bag(np.fromiter((id for ids in id_lists for id in ids), dtype=np.int32, count=lengths.sum()), lengths, size)


def _bag(ids: np.ndarray, lengths: np.ndarray, size: int) -> sp.csr_matrix:
    """ids: of all texts, one after the other; lengths: tokens of each."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    bag = sp.csr_matrix((np.ones(len(ids), np.float32), ids, starts), shape=(len(lengths), size))
    bag.sum_duplicates()
    return bag


def bag_of_words(tokenizer, words: list[str]) -> sp.csr_matrix:
    """[word, vocab]: `bag_of_tokens` of the words, each encoded by itself, without the special tokens around it.

    They are handed over as the words of texts that are cut into words already: an object for each of a million words
    would take as long as its tokens do.
    """
    backend, ids, lengths = tokenizer.backend_tokenizer, [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for start in range(0, len(words), BATCH_OF_TEXTS):
        batch = words[start : start + BATCH_OF_TEXTS]
        texts = [batch[i : i + WORDS_OF_A_TEXT] for i in range(0, len(batch), WORDS_OF_A_TEXT)]
        encoded = backend.encode_batch(texts, is_pretokenized=True, add_special_tokens=False)
        for text, encoding in zip(texts, encoded, strict=True):
            ids.append(np.array(encoding.ids, np.int32))
            lengths.append(np.bincount(np.array(encoding.word_ids, np.int64), minlength=len(text)))
    return _bag(np.concatenate(ids), np.concatenate(lengths), vocabulary_size(tokenizer))


def normalised_rows(rows: np.ndarray) -> np.ndarray:
    """Each row divided by its sum; a row of zeros stays one."""
    totals = rows.sum(axis=1, keepdims=True)
    return np.divide(rows, totals, out=np.zeros_like(rows), where=totals > 0)


SCRIPTS = sorted({name for names in UNICODE_SCRIPTS.values() for name in names})


def scripts_of_pieces(pieces: list[Piece]) -> np.ndarray:
    """[vocab]: the script of each text token's first letter that has one, as an index into SCRIPTS; else -1.

    (Marks and the lengthening sign of kana belong to several scripts.)
    """
    patterns = [regex.compile(rf"\p{{Script={script}}}") for script in SCRIPTS]

    @cache
    def number(character: str) -> int:
        is_letter = LETTER.match(character)
        return next((i for i, pattern in enumerate(patterns) if is_letter and pattern.match(character)), -1)

    def of_text(text: str) -> int:
        return next((found for character in text if (found := number(character)) >= 0), -1)

    return np.array([of_text(p.text) if p.kind == "text" else -1 for p in pieces], np.int8)


def even_over_scripts(languages: list[str]) -> np.ndarray:
    """[script, language]: even over the languages that write each of SCRIPTS; zeros where none does."""
    members = [[script in UNICODE_SCRIPTS.get(script_of(code), ()) for code in languages] for script in SCRIPTS]
    return normalised_rows(np.array(members, np.float32))


@dataclass(frozen=True)
class Made:
    """What a method makes: P(language | token), [vocab, language]; its languages; close ones; which tokens it saw."""

    posterior: sp.csr_matrix
    languages: list[str]
    groups: list[list[str]]
    attested: np.ndarray | None = None
