"""What a tokenizer's pieces stand for."""

import copy
import json
from collections import Counter

import numpy as np
import pytest
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from tests.token_languages.tokenizers import (
    DIGITS,
    EMOJI,
    PUNCTUATION,
    SPECIAL,
    WHITE_SPACE,
    WORDS,
    byte_level,
    kinds,
    sentencepiece,
    token,
)
from utils.token_languages import pieces
from utils.token_languages.pieces import (
    Piece,
    Pieces,
    bag_of_tokens,
    bag_of_words,
    display_text,
    encode_all,
    read_pieces,
    tokenizer_checksum,
    vocabulary_size,
)


@pytest.mark.parametrize("texts", [PUNCTUATION, DIGITS, WHITE_SPACE, EMOJI])
def test_what_belongs_to_no_language_is_zxx(builder, texts):
    found = kinds(builder(*texts))
    assert {text: found[text] for text in texts} == dict.fromkeys(texts, "zxx")


def test_a_keycap_emoji_is_zxx(builder):
    assert kinds(builder("1\ufe0f\u20e3"))["1\ufe0f\u20e3"] == "zxx"


def test_what_has_a_letter_is_text(builder):
    found = kinds(builder(*WORDS))
    assert {word: found[word] for word in WORDS} == dict.fromkeys(WORDS, "text")


def test_a_fallback_byte_is_a_byte_and_the_letter_is_not():
    tokenizer = sentencepiece("A", "AB", " ")
    pieces = {piece.raw: piece for piece in read_pieces(tokenizer)}
    assert pieces["<0x41>"] == Piece("<0x41>", "byte", "", b"A")
    assert pieces["A"] == Piece("A", "text", "A", b"A")
    assert pieces["\u2581"] == Piece("\u2581", "zxx", " ", b" ")
    assert sum(piece.kind == "byte" for piece in pieces.values()) == 256


def test_a_part_of_a_character_is_a_byte():
    half = "ଓ".encode()[:2]
    tokenizer = byte_level(half, b" " + half, b"a" + half, "ଓ", "aଓ", half[1:])
    pieces = {piece.bytes: piece.kind for piece in read_pieces(tokenizer) if piece.kind != "special"}
    for content in (half, b" " + half, b"a" + half, half[1:], b"\xff", b"\xc0"):
        assert pieces[content] == "byte", content
    assert pieces["ଓ".encode()] == pieces["aଓ".encode()] == pieces[b"A"] == "text"
    assert sum(kind == "byte" for kind in pieces.values()) == 128 + 3  # half[1:] is one byte


def test_a_replacement_character_that_is_written_is_no_byte(builder):
    # what decoding shows for half a character, and what a text can really hold: only the raw piece tells
    tokenizer = builder("\ufffd", "a\ufffd")
    pieces = read_pieces(tokenizer)
    by_text = {piece.text: piece.kind for piece in pieces}
    assert by_text["\ufffd"] == "zxx" and by_text["a\ufffd"] == "text"
    assert tokenizer.decode([token(tokenizer, "\ufffd")]) == "\ufffd"


def test_the_tiny_tokenizer_s_pieces_are_what_it_decodes(tiny_tokenizer):
    pieces = read_pieces(tiny_tokenizer)
    assert len(pieces) == len(tiny_tokenizer) == vocabulary_size(tiny_tokenizer)
    assert [piece.raw for piece in pieces[:3]] == ["<pad>", "<s>", "</s>"]
    counted = Counter(piece.kind for piece in pieces)
    assert counted["special"] == 3 and counted["text"] > 1000 and counted["zxx"] > 20 and counted["byte"] >= 128
    for id, piece in enumerate(pieces):
        decoded = tiny_tokenizer.decode([id], clean_up_tokenization_spaces=False)
        if piece.kind in ("text", "zxx"):
            assert piece.text == decoded and piece.bytes == decoded.encode()
        elif piece.kind == "byte":
            assert "\ufffd" in decoded and piece.text == ""


def test_control_tokens_and_holes_are_special():
    tokenizer = sentencepiece("the", " the", first_id=300)
    pieces = read_pieces(tokenizer)
    assert len(pieces) == vocabulary_size(tokenizer) == 302 > len(tokenizer)
    assert [piece.kind for piece in pieces[:4]] == ["special"] * 4
    assert {(piece.raw, piece.kind) for piece in pieces[260:300]} == {("", "special")}
    assert [piece.text for piece in pieces[300:]] == ["the", " the"]


def test_added_tokens_are_literal_text_and_markers_are_special(builder):
    tokenizer = builder("the")
    tokenizer.add_tokens(["\n\n\n", "hello", "<table>", "[multimodal]", "x<y>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["END"]})
    found = kinds(tokenizer)
    expected = {"\n\n\n": "zxx", "hello": "text", "x<y>": "text"}
    expected |= dict.fromkeys(["<table>", "[multimodal]", "END", *SPECIAL], "special")
    assert {text: found[text] for text in expected} == expected


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece()])
def test_a_tokenizer_of_another_kind_is_refused_by_name(decoder):
    tokenizer = byte_level("the")
    tokenizer.backend_tokenizer.decoder = decoder
    with pytest.raises(ValueError, match="pieces") as error:
        read_pieces(tokenizer)
    assert type(tokenizer).__name__ in str(error.value)


@pytest.mark.parametrize(
    ("piece", "line"),
    [
        (Piece("Ġ", "zxx", " ", b" "), "␣"),
        (Piece("Ġthe", "text", " the", b" the"), "␣the"),
        (Piece("\n", "zxx", "\n", b"\n"), "\\n"),
        (Piece("\\n", "text", "\\n", b"\\n"), "\\\\n"),
        (Piece("\\", "zxx", "\\", b"\\"), "\\\\"),
        (Piece("\u200d", "zxx", "\u200d", "\u200d".encode()), "\\u200d"),
        (Piece("\u00a0", "zxx", "\u00a0", "\u00a0".encode()), "\\xa0"),
        (Piece("\u2028", "zxx", "\u2028", "\u2028".encode()), "\\u2028"),
        (Piece("<0x20>", "byte", "", b" "), "<0x20>"),
        (Piece("à¬", "byte", "", b"\xe0\xac"), "<0xE0><0xAC>"),
        (Piece("<pad>", "special"), "<pad>"),
        (Piece("", "special"), "<no token>"),
        (Piece("ଓ", "text", "ଓଡ଼ିଆ", b""), "ଓଡ଼ିଆ"),
    ],
)
def test_a_token_as_it_is_written_in_a_table(piece, line):
    assert display_text(piece) == line


def test_no_two_tokens_are_written_alike(tiny_tokenizer):
    for tokenizer in (tiny_tokenizer, sentencepiece(*PUNCTUATION, *DIGITS, *WHITE_SPACE, *EMOJI, *WORDS, "\\", "\\n")):
        lines = [display_text(piece) for piece in read_pieces(tokenizer)]
        assert len(set(lines)) == len(lines)
        assert all(len(line.splitlines()) == 1 and line.isprintable() for line in lines)


def test_the_checksum_is_of_the_pieces_and_their_order():
    sums = [
        tokenizer_checksum(byte_level(*texts)) for texts in (["a1", "b2"], ["a1", "b2"], ["b2", "a1"], ["a1", "b3"])
    ]
    assert sums[0] == sums[1] and len(set(sums)) == 3


def test_the_checksum_is_of_the_rules_that_cut_a_text_too(tiny_tokenizer):
    def changed(change):
        tokenizer = copy.deepcopy(tiny_tokenizer)
        change(tokenizer.backend_tokenizer)
        return tokenizer_checksum(tokenizer)

    def other_normalizer(backend):
        backend.normalizer = normalizers.Lowercase()

    def other_pre_tokenizer(backend):
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)

    def other_merges(backend):
        state = json.loads(backend.model.__getstate__())
        state["merges"][5:7] = reversed(state["merges"][5:7])
        backend.model = models.BPE(state["vocab"], [tuple(merge) for merge in state["merges"]])

    def more_around(backend):
        backend.enable_padding()
        backend.enable_truncation(3)
        backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])

    sums = [changed(change) for change in (other_normalizer, other_pre_tokenizer, other_merges)]
    assert len({tokenizer_checksum(tiny_tokenizer), *sums}) == 4
    assert changed(more_around) == tokenizer_checksum(tiny_tokenizer)


def test_a_token_that_is_added_is_in_the_checksum_and_the_size(tiny_tokenizer):
    """What is known of a tokenizer is kept, until it has more tokens."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    size, checksum = vocabulary_size(tokenizer), tokenizer_checksum(tokenizer)
    assert (size, checksum) == (vocabulary_size(tiny_tokenizer), tokenizer_checksum(tiny_tokenizer))
    tokenizer.add_tokens(["ocean liner"])
    assert vocabulary_size(tokenizer) == size + 1 and tokenizer_checksum(tokenizer) != checksum
    assert read_pieces(tokenizer)[size].text == "ocean liner"


def test_a_piece_is_read_alone_as_with_all_others(tiny_tokenizer):
    pieces, every = Pieces(tiny_tokenizer), read_pieces(tiny_tokenizer)
    assert len(pieces) == len(every) == vocabulary_size(tiny_tokenizer)
    assert [pieces[id] for id in np.arange(len(every))[::-7]] == every[::-7]
    with pytest.raises(IndexError):
        pieces[len(every)]


def metaspace(scheme):
    """The kind of tokenizer that puts a space before the first word of a text, or before every one."""
    tokenizer = sentencepiece(*WORDS, " one", "one", *" onetw")
    backend = tokenizer.backend_tokenizer
    backend.normalizer, backend.pre_tokenizer = None, pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return tokenizer


@pytest.mark.parametrize(
    "make",
    [
        lambda: byte_level(*WORDS, " one"),
        lambda: sentencepiece(*WORDS, " one", *" onetw"),
        lambda: sentencepiece(*WORDS, " one", *" onetw", adds_space=True),
        lambda: metaspace("first"),
        lambda: metaspace("always"),
    ],
    ids=["byte-level", "sentencepiece", "adds a space", "first", "always"],
)
def test_words_at_once_are_the_tokens_of_each_by_itself(monkeypatch, make):
    monkeypatch.setattr(pieces, "BATCH_OF_TEXTS", 7)
    monkeypatch.setattr(pieces, "WORDS_OF_A_TEXT", 3)
    tokenizer = make()
    words = [*WORDS, " one", "one", "", "one two", "</s>", " <s>one", "\u2581one", " ", "  two", "two "]
    alone = bag_of_tokens(encode_all(tokenizer, words), vocabulary_size(tokenizer))
    assert np.array_equal(bag_of_words(tokenizer, words).toarray(), alone.toarray())
    assert (alone.sum(axis=1) > 0).sum() >= len(words) - 2


def test_no_words_have_no_tokens(tiny_tokenizer):
    assert bag_of_words(tiny_tokenizer, []).shape == (0, vocabulary_size(tiny_tokenizer))
