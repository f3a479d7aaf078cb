"""The token x language matrix: what pieces are, what is counted, Bayes over the counts, and how it is judged."""

import gzip
import json
import math
from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest
import regex
import scipy.sparse as sp
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from utils.data import corpora
from utils.data.corpora import corpus_checksum, count_forms, read_corpus, read_word_counts, write_word_counts
from utils.data.examples import DATASETS_DIR, load_examples, read_sentences
from utils.languages import NOT_LANGUAGES, UNICODE_SCRIPTS, language_code, script_of
from utils.token_languages import from_corpus, pieces
from utils.token_languages.evaluation import evaluate
from utils.token_languages.from_corpus import count_tokens, count_tokens_of_forms, language_groups, language_posterior
from utils.token_languages.from_langid import langid_channels, langid_posterior
from utils.token_languages.matrix import TokenLanguages, default_folder
from utils.token_languages.pieces import (
    LETTER,
    Piece,
    display_text,
    encode_all,
    read_pieces,
    tokenizer_checksum,
    vocabulary_size,
)

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
LANGUAGES = ["deu_Latn", "eng_Latn", "hin_Deva", "mar_Deva", "ory_Orya", "zho_Hans"]

# Texts that belong to no language, in any script.
PUNCTUATION = ["!", "?!", "،", "।", "॥", "。", "—", "«", " (", "...", "€", " +"]
DIGITS = ["7", " 12", "३", "१२", "٣", " ١٢", "½", "²"]
WHITE_SPACE = [" ", "   ", "\n", "\n\n", "\t", "\u00a0", "\u3000", "\u200d", "\u200b"]
EMOJI = ["🙂", " 🙂", "❤️", "👍🏽", "👨‍👩‍👧", "🇮🇳"]
WORDS = ["A", " the", "the", "ओ", "ି", " ଓଡ଼ିଆ", "中", "a1", "l'", "é", "\u0301"]


def spelled(content: str | bytes) -> str:
    """GPT-2's spelling of bytes."""
    content = content.encode() if isinstance(content, str) else content
    return "".join(bytes_to_unicode()[byte] for byte in content)


def fast(tokenizer):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def byte_level(*texts):
    """A byte-level tokenizer whose vocabulary is all bytes and the given texts, each of them one token."""
    pieces = dict.fromkeys([*SPECIAL, *sorted(bytes_to_unicode().values()), *map(spelled, texts)])
    tokenizer = Tokenizer(models.BPE({piece: id for id, piece in enumerate(pieces)}, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return fast(tokenizer)


def sentencepiece(*texts, first_id=260, adds_space=False):
    """A tokenizer as Gemma's, or Llama 2's (adds_space): byte pieces, U+2581 for a space, each text one token."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    ids = {piece: id for id, piece in enumerate(pieces)}
    for text in texts:
        ids.setdefault(text.replace(" ", "\u2581"), first_id + len(ids) - len(pieces))
    model = models.BPE(ids, [], unk_token="<unk>", byte_fallback=True, ignore_merges=True)
    tokenizer = Tokenizer(model)
    replace = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace]) if adds_space else replace
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return fast(tokenizer)


BUILDERS = {"byte-level": byte_level, "sentencepiece": sentencepiece}


@pytest.fixture(params=BUILDERS)
def builder(request):
    """Each kind of tokenizer, as a function of its texts."""
    return BUILDERS[request.param]


@pytest.fixture(scope="module")
def sample():
    """Six languages of the project's own sentences."""
    return {code: read_sentences(DATASETS_DIR / f"sample/parallel/{code}.txt") for code in LANGUAGES}


@pytest.fixture
def corpus_folder(tmp_path):
    """Function from a corpus to a folder that holds it."""

    def write(corpus, name="corpus"):
        (tmp_path / name).mkdir()
        for code, sentences in corpus.items():
            (tmp_path / name / f"{code}.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8", newline="\n")
        return tmp_path / name

    return write


def kinds(tokenizer):
    """Text of a token as it was given -> its Piece's kind."""
    pieces = read_pieces(tokenizer)
    return {piece.text or piece.raw: piece.kind for piece in pieces}


def token(tokenizer, text) -> int:
    (ids,) = encode_all(tokenizer, [text])
    assert len(ids) == 1, (text, ids)
    return ids[0]


def row(matrix, id) -> dict[str, float]:
    """Channel -> probability, where it is above zero."""
    values = matrix.probs[[id]].toarray()[0]
    return {channel: float(value) for channel, value in zip(matrix.channels, values) if value}


# Pieces


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


# The corpus


def test_a_corpus_is_read_under_any_spelling_in_the_order_of_the_codes(tmp_path):
    for name, text in {
        "cmn_Hans.dev": "一。\n二。\n",
        "or.txt": "ଏକ\n",
        "eng_Latn.devtest": "One.\n",
        ".hidden": "",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "folder").mkdir()
    corpus = read_corpus(tmp_path)
    assert list(corpus.items()) == [("eng_Latn", ["One."]), ("ory_Orya", ["ଏକ"]), ("zho_Hans", ["一。", "二。"])]


@pytest.mark.parametrize(
    ("files", "named", "reason"),
    [
        (["eng_Latn.txt", "README.md"], "README.md", "unknown language 'README'"),
        (["ace.txt"], "ace.txt", "choose from ace_Arab, ace_Latn"),
        (["cmn_Hans.txt", "zho_Hans.txt"], "zho_Hans.txt", "a second file for zho_Hans, beside cmn_Hans.txt"),
        (["eng_Latn.dev", "eng_Latn.devtest"], "eng_Latn.devtest", "a second file for eng_Latn"),
        ([".hidden"], "", "no files in it"),
        ([], "", "no files in it"),
    ],
)
def test_a_bad_corpus_folder(tmp_path, files, named, reason):
    for name in files:
        (tmp_path / name).write_text("One.\n")
    with pytest.raises(ValueError) as error:
        read_corpus(tmp_path)
    message = str(error.value)
    assert message.startswith(str(tmp_path / named)) and reason in message and "\n" not in message


def test_bad_corpus_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        read_corpus(tmp_path / "nowhere")
    (tmp_path / "eng_Latn.txt").write_text("One.\n\nThree.\n")
    with pytest.raises(ValueError, match=r"eng_Latn\.txt:2: empty line"):
        read_corpus(tmp_path)


def test_the_checksum_of_a_corpus_is_of_its_names_and_contents(corpus_folder, tmp_path):
    corpus = {"eng_Latn": ["One."], "deu_Latn": ["Eins."]}
    sums = {name: corpus_checksum(corpus_folder(corpus, name)) for name in ("a", "b")}
    assert sums["a"] == sums["b"]
    (tmp_path / "b/eng_Latn.txt").write_text("Two.\n")
    (tmp_path / "a/eng_Latn.txt").rename(tmp_path / "a/fra_Latn.txt")
    assert len({sums["a"], corpus_checksum(tmp_path / "a"), corpus_checksum(tmp_path / "b")}) == 3


@pytest.mark.parametrize(
    ("sentence", "forms"),
    [
        ("The cat saw the cat.", {" The": 1, " cat": 2, " saw": 1, " the": 1}),
        ('He said "no" (never), then «oui».', {" He": 1, " said": 1, " no": 1, " never": 1, " then": 1, " oui": 1}),
        ("l'été can't re-do 3,5%", {" l'été": 1, " can't": 1, " re-do": 1, " 3,5": 1}),
        ("Well -- yes ... $5", {" Well": 1, " yes": 1, " 5": 1}),
        ("पानी, नमक।", {" पानी": 1, " नमक": 1}),
        ("a\u00a0b  c\td", {" a": 1, " b": 1, " c": 1, " d": 1}),
        ("— !", {}),
    ],
)
def test_the_forms_of_a_sentence(sentence, forms):
    assert count_forms([sentence], "Latn") == forms
    assert count_forms([sentence, sentence], "Latn") == {form: 2 * count for form, count in forms.items()}


@pytest.mark.parametrize("script", ["Hans", "Hant", "Jpan", "Thai", "Khmr", "Laoo", "Mymr", "Tibt"])
def test_the_forms_of_scripts_without_spaces_are_ngrams(script):
    counts = count_forms(["我们我们们 去", "我"], script)
    expected = {"我": 3, "们": 3, "去": 1, "我们": 2, "们我": 1, "们们": 1, "我们我": 1, "们我们": 1, "我们们": 1}
    assert counts == expected | {"我们我们": 1, "们我们们": 1}


def test_korean_is_written_with_spaces():
    assert count_forms(["한국 사람."], "Hang") == {" 한국": 1, " 사람": 1}


def test_word_counts_are_the_same_bytes_every_time_and_read_back(tmp_path, sample):
    write_word_counts(tmp_path / "a.tsv.gz", sample)
    write_word_counts(tmp_path / "b.tsv.gz", dict(reversed(sample.items())))
    content = (tmp_path / "a.tsv.gz").read_bytes()
    assert content == (tmp_path / "b.tsv.gz").read_bytes()
    assert content[3:8] == bytes(5)  # neither a name nor a time in gzip's header
    expected = {
        code: {form: n for form, n in count_forms(sentences, script_of(code)).items()}
        for code, sentences in sample.items()
    }
    counts = read_word_counts(tmp_path / "a.tsv.gz")
    assert counts == expected and list(counts) == LANGUAGES
    assert counts["eng_Latn"][" the"] > counts["eng_Latn"][" The"]


def test_rare_forms_are_left_out_on_request(tmp_path):
    write_word_counts(tmp_path / "a.tsv.gz", {"eng_Latn": ["One two two"]}, least=2)
    assert read_word_counts(tmp_path / "a.tsv.gz") == {"eng_Latn": {" two": 2}}


HEADER = b"language\tform\tcount\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"plain text", ": not a gzip of UTF-8"),
        (gzip.compress(HEADER)[:-6], ": not a gzip of UTF-8"),
        (gzip.compress(HEADER + b"eng_Latn\t\xff\t3\n"), ": not a gzip of UTF-8"),
        (gzip.compress(b"form\tcount\n"), ":1: the header is not"),
        (gzip.compress(HEADER + b"eng_Latn\tthe\t3\neng_Latn\tof\n"), ":3: not language, form, count"),
        (gzip.compress(HEADER + b"eng_Latn\tthe\tmany\n"), ":2: not language, form, count"),
        (gzip.compress(HEADER + b"xxx_Latn\tthe\t3\n"), "unknown language 'xxx_Latn'"),
    ],
)
def test_bad_word_counts(tmp_path, content, reason):
    path = tmp_path / "w.tsv.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_word_counts(path)
    assert reason in str(error.value) and "\n" not in str(error.value)
    if not reason.startswith("unknown"):
        assert str(error.value).startswith(f"{path}{reason}")


# Counts of tokens


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


# Bayes


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
    # a Cyrillic word that only these two have is no word of theirs
    assert not posterior_of([[9, 1], [90, 99]], [" им", " in"], ["deu_Latn", "tha_Thai"])[0].any()


def test_a_row_has_the_languages_that_have_the_token_or_at_most_99():
    rows = np.array([[5, 4, 3, 2, 1], [2, 2, 1, 1, 1], [1, 1, 1, 1, 1]], float)
    assert from_corpus._at_most(rows, np.array([5, 5, 5])).tolist() == rows.tolist()
    cut = from_corpus._at_most(rows, np.array([3, 2, 2])).tolist()
    assert cut == [[5, 4, 3, 0, 0], [2, 2, 0, 0, 0], [0, 0, 0, 0, 0]]  # of equal ones all or none


# The matrix


@pytest.mark.parametrize("method", ["corpus", "langid"])
@pytest.mark.parametrize("kind", ["tiny", "sentencepiece"])
def test_every_row_is_a_distribution(tiny_tokenizer, sample, corpus_folder, method, kind):
    words = {form for code, sentences in sample.items() for form in count_forms(sentences, script_of(code))}
    texts = [*PUNCTUATION, *DIGITS, *WHITE_SPACE, *EMOJI, *WORDS, *sorted(words)]
    tokenizer = tiny_tokenizer if kind == "tiny" else sentencepiece(*texts, first_id=300)
    corpus = corpus_folder(sample) if method == "corpus" else None
    matrix = TokenLanguages.build(tokenizer, method, corpus)
    pieces = read_pieces(tokenizer)
    assert matrix.probs.shape == (len(pieces), len(matrix.channels)) and matrix.probs.dtype == np.float32
    assert matrix.channels[-4:] == [*NOT_LANGUAGES] == ["special", "byte", "zxx", "und"]
    assert matrix.channels[:-4] == LANGUAGES if corpus else matrix.n_languages == 97
    assert np.asarray(matrix.probs.sum(axis=1)) == pytest.approx(1, abs=1e-6)
    assert matrix.probs.data.min() >= 0
    for id, piece in enumerate(pieces):
        if piece.kind != "text":
            assert row(matrix, id) == {piece.kind: 1}
        else:
            assert not {"special", "byte", "zxx"} & set(row(matrix, id))


def test_the_floor_is_the_mean_row_in_float64():
    # 0.1 has no short binary form; a third of a vocabulary of 300,000 tokens has it
    probs = np.tile(np.array([[0.1, 0.9], [0, 1], [0, 1]], np.float32), (100_000, 1))
    matrix = TokenLanguages(sp.csr_matrix(probs), ["eng_Latn", "und"], {})
    assert matrix.floor == pytest.approx(probs.mean(axis=0, dtype=np.float64), rel=1e-6)


def test_a_word_and_the_word_after_a_space_are_two_tokens(builder, corpus_folder):
    tokenizer = builder("the", " the", " x", "x", " y", "y", " ")
    corpus = {"eng_Latn": ["x the the the y", "the x"], "deu_Latn": ["the x", "the y", "the x y"]}
    matrix = TokenLanguages.build(tokenizer, corpus=corpus_folder(corpus))
    first, later = (row(matrix, token(tokenizer, text)) for text in ("the", " the"))
    assert first["deu_Latn"] > first["eng_Latn"] and later["deu_Latn"] < later["eng_Latn"]
    assert matrix.channel_of_token[token(tokenizer, "the")] == "deu_Latn"
    assert matrix.channel_of_token[token(tokenizer, " the")] == "eng_Latn"


def test_word_counts_and_the_text_give_nearly_the_same_matrix(tiny_tokenizer, sample, corpus_folder, tmp_path):
    write_word_counts(tmp_path / "w.tsv.gz", sample, least=1)
    text = TokenLanguages.build(tiny_tokenizer, corpus=corpus_folder(sample))
    words = TokenLanguages.build(tiny_tokenizer, corpus=tmp_path / "w.tsv.gz")
    assert text.channels == words.channels
    used = np.flatnonzero(count_tokens(tiny_tokenizer, sample).getnnz(axis=1))
    agree = [text.channel_of_token[id] == words.channel_of_token[id] for id in used]
    assert np.mean(agree) > 0.9


def test_a_matrix_says_what_it_was_made_of(tiny_tokenizer, sample, corpus_folder):
    folder = corpus_folder(sample)
    matrix = TokenLanguages.build(tiny_tokenizer, corpus=folder, name="tiny")
    expected = {"method": "corpus", "tokenizer": "tiny", "tokenizer_sha256": tokenizer_checksum(tiny_tokenizer)}
    expected |= {"corpus": "corpus", "corpus_sha256": corpus_checksum(folder)}
    assert expected.items() <= matrix.config.items()


@pytest.mark.parametrize(
    ("method", "corpus", "reason"),
    [
        ("bayes", None, "unknown method 'bayes': choose from corpus, langid"),
        ("langid", "x", "--corpus x: langid brings its own model"),
        ("langid-hard", "x", "--corpus x: langid brings its own model"),
        ("corpus", "nowhere", "--corpus nowhere: no such folder or file"),
    ],
)
def test_what_a_matrix_can_not_be_built_of(tiny_tokenizer, method, corpus, reason):
    with pytest.raises(ValueError, match=reason):
        TokenLanguages.build(tiny_tokenizer, method, corpus)


def test_one_language_is_refused(tiny_tokenizer, corpus_folder, tmp_path):
    corpus = {"eng_Latn": ["One two two."]}
    write_word_counts(tmp_path / "w.tsv.gz", corpus)
    for path in (corpus_folder(corpus), tmp_path / "w.tsv.gz"):
        with pytest.raises(ValueError, match=f"--corpus {path}: 1 language"):
            TokenLanguages.build(tiny_tokenizer, corpus=path)


def test_word_counts_of_no_language_are_refused(tiny_tokenizer, tmp_path):
    (tmp_path / "w.tsv.gz").write_bytes(gzip.compress(HEADER))
    with pytest.raises(ValueError, match=f"--corpus {tmp_path / 'w.tsv.gz'}"):
        TokenLanguages.build(tiny_tokenizer, corpus=tmp_path / "w.tsv.gz")


@pytest.fixture
def saved(tmp_path):
    """A small tokenizer and the folder of its matrix."""
    tokenizer = byte_level("one", " zwei")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "eng_Latn.txt").write_text("one two\n")
    (corpus / "deu_Latn.txt").write_text("eins zwei\n")
    matrix = TokenLanguages.build(tokenizer, corpus=corpus, name="small")
    matrix.save(tmp_path / "a/matrix")
    return tokenizer, matrix, tmp_path / "a/matrix"


def test_a_matrix_is_saved_and_loaded(saved):
    tokenizer, matrix, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["channels.json", "config.json", "probs.npz", "tokens.npz"]
    back = TokenLanguages.load(folder, tokenizer)
    assert (back.channels, back.config) == (matrix.channels, matrix.config)
    assert back.probs.dtype == np.float32 and back.probs.format == "csr"
    assert np.array_equal(back.probs.toarray(), matrix.probs.toarray())
    assert np.array_equal(back.scripts, matrix.scripts) and np.array_equal(back.attested, matrix.attested)


def test_a_matrix_is_the_same_bytes_every_time(saved, tmp_path):
    tokenizer, _, folder = saved
    TokenLanguages.build(tokenizer, corpus=tmp_path / "corpus", name="small").save(tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_another_tokenizer_s_matrix_is_refused(saved):
    _, _, folder = saved
    # as many pieces, one of them another
    with pytest.raises(ValueError, match=rf"--token_languages {folder}: made for another tokenizer \(small\)"):
        TokenLanguages.load(folder, byte_level("one", " drei"))
    with pytest.raises(ValueError, match=r"262 tokens x 6 channels, but the model's tokenizer has 263 tokens"):
        TokenLanguages.load(folder, byte_level("one", " zwei", " drei"))


@pytest.mark.parametrize("missing", ["probs.npz", "channels.json", "config.json"])
def test_an_incomplete_matrix_is_refused(saved, missing):
    tokenizer, _, folder = saved
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=f"--token_languages {folder}: no {missing} in it"):
        TokenLanguages.load(folder, tokenizer)


def test_a_matrix_of_other_channels_is_refused(saved):
    tokenizer, _, folder = saved
    (folder / "channels.json").write_text(json.dumps(["deu_Latn", *NOT_LANGUAGES]))
    with pytest.raises(ValueError, match=r"x 6 channels.*channels\.json 5 channels"):
        TokenLanguages.load(folder, tokenizer)


def test_a_matrix_whose_rows_are_no_distributions_is_refused(saved):
    tokenizer, matrix, folder = saved
    sp.save_npz(folder / "probs.npz", matrix.probs * 0.5)
    with pytest.raises(ValueError, match="rows that don't sum to 1"):
        TokenLanguages.load(folder, tokenizer)


@pytest.mark.parametrize("damaged", ["probs.npz", "channels.json", "config.json"])
def test_a_damaged_matrix_is_refused_by_name(saved, damaged):
    tokenizer, _, folder = saved
    content = (folder / damaged).read_bytes()
    (folder / damaged).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=str(folder)):
        TokenLanguages.load(folder, tokenizer)


def test_a_matrix_is_built_once(saved, tmp_path, monkeypatch):
    tokenizer, matrix, _ = saved
    asked = (tmp_path / "kept", tokenizer, "corpus", tmp_path / "corpus", "small")
    built = TokenLanguages.load_or_build(*asked)
    monkeypatch.setattr(TokenLanguages, "build", None)
    loaded = TokenLanguages.load_or_build(*asked)
    for again in (built, loaded):
        assert again.config == matrix.config and np.array_equal(again.probs.toarray(), matrix.probs.toarray())


def test_a_folder_with_another_matrix_is_refused_and_left_alone(saved, tmp_path):
    tokenizer, _, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=rf"{folder}: holds another matrix \(method was 'corpus', is 'langid'\)"):
        TokenLanguages.load_or_build(folder, tokenizer, "langid", None, "small")
    (tmp_path / "corpus/eng_Latn.txt").write_text("three four\n")
    with pytest.raises(ValueError, match=rf"{folder}: holds another matrix \(corpus_sha256 was"):
        TokenLanguages.load_or_build(folder, tokenizer, "corpus", tmp_path / "corpus", "small")
    with pytest.raises(ValueError, match="made for another tokenizer"):
        TokenLanguages.load_or_build(folder, byte_level("one", " drei"), "corpus", tmp_path / "corpus", "small")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_default_folder_is_another_for_another_matrix(saved, tmp_path):
    tokenizer, _, _ = saved
    corpus = tmp_path / "corpus"
    folders = [default_folder("hub/small", tokenizer, "corpus", corpus) for _ in range(2)]
    assert folders[0] == folders[1] and folders[0].name.startswith("small-corpus-")
    folders += [default_folder("hub/small", byte_level("one"), "corpus", corpus)]
    folders += [default_folder("hub/small", tokenizer, "langid")]
    (corpus / "eng_Latn.txt").write_text("three four\n")
    folders += [default_folder("hub/small", tokenizer, "corpus", corpus)]
    assert len(set(folders)) == 4


# The paper's method


def slow_langid(texts) -> np.ndarray:
    """[text, 97], in the order of langid's classes: its own rank, and a softmax."""
    from langid import langid

    plain, sparse = (langid.LanguageIdentifier.from_modelstring(langid.model) for _ in range(2))

    def without_zeros(counts):  # langid multiplies all 7,480 counts, of which a token has a handful
        used = np.flatnonzero(counts)
        return counts[used] @ sparse.nb_ptc[used].astype(np.float64) + sparse.nb_pc

    sparse.nb_classprobs = without_zeros
    for text in texts[::200]:
        assert dict(sparse.rank(text)) == pytest.approx(dict(plain.rank(text)), abs=1e-9)
    scores = [dict(sparse.rank(text)) for text in texts]
    scores = np.array([[ranked[code] for code in plain.nb_classes] for ranked in scores])
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def assert_langids_own(pieces):
    probs, channels = langid_posterior(pieces)
    assert len(channels) == len(set(channels)) == 97
    assert {"ory_Orya", "eng_Latn", "nob_Latn", "nor_Latn"} < set(channels)
    ids = [id for id, piece in enumerate(pieces) if piece.kind == "text"]
    expected = slow_langid([pieces[id].text.strip() for id in ids])
    assert np.abs(probs[ids].toarray() - expected).max() < 1e-6
    assert probs.sum() == pytest.approx(len(ids), abs=1e-2)  # the other rows are zero


def test_langid_gives_the_same_probabilities(tiny_tokenizer):
    assert_langids_own(read_pieces(tiny_tokenizer))


def test_langid_gives_the_same_probabilities_on_a_real_vocabulary(offline_tokenizer):
    assert_langids_own(read_pieces(offline_tokenizer)[::127])


def test_langid_hard_is_langid_s_best_of_every_token(tiny_tokenizer):
    from langid import langid

    identifier = langid.LanguageIdentifier.from_modelstring(langid.model)
    matrix = TokenLanguages.build(tiny_tokenizer, "langid-hard")
    for id in range(len(tiny_tokenizer)):
        best, _ = identifier.classify(tiny_tokenizer.decode([id]).strip())
        assert row(matrix, id) == {langid_channels([best])[0]: 1}
    without_evidence = next(id for id, piece in enumerate(read_pieces(tiny_tokenizer)) if piece.kind == "zxx")
    assert row(matrix, without_evidence) == {"eng_Latn": 1}
    assert matrix.channels[-4:] == [*NOT_LANGUAGES] and not matrix.floor[-4:].any()


def test_the_codes_of_langid():
    assert langid_channels(["or", "zh", "no", "nb", "la"]) == [
        "ory_Orya",
        "zho_Hans",
        "nor_Latn",
        "nob_Latn",
        "lat_Latn",
    ]
    assert all(language_code(code) == code for code in langid_channels(["or", "zh", "nb", "fa", "sw"]))


# How good is it?


def made_by_hand(tokenizer, languages, rows) -> TokenLanguages:
    """rows: text -> a probability for each language and, where there is one more, zxx; other tokens are und."""
    channels = [*languages, *NOT_LANGUAGES]
    probs = np.zeros((vocabulary_size(tokenizer), len(channels)), np.float32)
    for text, values in rows.items():
        probs[token(tokenizer, text), : len(languages)] = values[: len(languages)]
        probs[token(tokenizer, text), channels.index("zxx")] = sum(values[len(languages) :])
    probs[:, channels.index("und")] += 1 - probs.sum(axis=1)
    return TokenLanguages(sp.csr_matrix(probs), channels, {})


PRIVATE = {"eng_Latn": "x", "deu_Latn": "y", "rus_Cyrl": "z", "zho_Hans": "w"}


def test_an_oracle_scores_exactly_one():
    tokenizer = byte_level()
    rows = {letter: np.eye(4)[i] for i, letter in enumerate(PRIVATE.values())}
    sentences = {code: [letter * 3 + "!" for _ in range(5)] for code, letter in PRIVATE.items()}
    score = evaluate(made_by_hand(tokenizer, list(PRIVATE), rows), tokenizer, sentences)
    assert score["accuracy"] == 1 and score["mixture_error"] < 1e-3
    assert score["share_of_true_language"]["mean"] == pytest.approx(1, abs=1e-4)
    assert max(row["share"] for row in score["worst_confusions"]) < 1e-4 and not score["languages_without_a_channel"]
    assert score["accuracy_of_language"] == dict.fromkeys(PRIVATE, 1.0)
    assert score["accuracy_of_script"] == {"Cyrl": 1, "Hans": 1, "Latn": 1}
    assert (score["n_sentences"], score["n_languages"]) == (20, 4)


def test_a_matrix_built_from_private_tokens_is_an_oracle(builder, corpus_folder):
    tokenizer = builder("ab", "cd", "ef", " ab", " cd", " ef", " ")
    corpus = {"eng_Latn": ["ab ab"] * 3, "deu_Latn": ["cd cd"] * 3, "fra_Latn": ["ef ef"] * 3}
    matrix = TokenLanguages.build(tokenizer, corpus=corpus_folder(corpus))
    score = evaluate(matrix, tokenizer, {code: ["ab ab ab", "ab"] for code in ["eng_Latn"]} | {"fra_Latn": ["ef ef"]})
    assert score["accuracy"] == 1 and score["share_of_true_language"]["mean"] > 0.99


def test_a_matrix_that_knows_nothing_scores_chance():
    tokenizer = byte_level()
    rows = {letter: [0.25] * 4 for letter in PRIVATE.values()}
    sentences = {code: [letter * n for n in range(1, 26)] for code, letter in PRIVATE.items()}
    score = evaluate(made_by_hand(tokenizer, list(PRIVATE), rows), tokenizer, sentences)
    assert score["accuracy"] == score["share_of_true_language"]["mean"] == 0.25


def test_random_rows_score_about_chance():
    tokenizer = byte_level()
    rng = np.random.default_rng(0)
    languages, letters = list(PRIVATE), "abcdefghijklmnopqrstuvwxyz"
    matrix = made_by_hand(tokenizer, languages, {letter: rng.dirichlet([1] * 4) for letter in letters})
    sentences = {code: ["".join(rng.choice(list(letters), 5)) for _ in range(250)] for code in languages}
    assert evaluate(matrix, tokenizer, sentences)["accuracy"] == pytest.approx(0.25, abs=0.05)


def test_scores_by_hand():
    tokenizer = byte_level()
    # `x` and `y` are half zxx, which doesn't count against a language: x is 0.8 English, y is 0.9 German
    rows = {"x": [0.4, 0.1, 0.5], "y": [0.05, 0.45, 0.5], "z": [1, 0]}
    matrix = made_by_hand(tokenizer, ["eng_Latn", "deu_Latn"], rows)
    score = evaluate(matrix, tokenizer, {"eng_Latn": ["x"] * 6 + ["y"], "deu_Latn": ["x"] * 4 + ["y"] * 3})
    assert score["accuracy"] == pytest.approx(9 / 14)
    assert score["accuracy_of_language"] == pytest.approx({"eng_Latn": 6 / 7, "deu_Latn": 3 / 7})
    assert score["accuracy_of_script"] == pytest.approx({"Latn": 9 / 14})


def test_a_language_without_a_channel_counts_as_wrong_and_is_named():
    tokenizer = byte_level()
    matrix = made_by_hand(tokenizer, ["eng_Latn", "deu_Latn"], {"x": [1, 0], "y": [0, 1]})
    score = evaluate(matrix, tokenizer, {"eng_Latn": ["x"], "fra_Latn": ["x", "y", "x"]})
    assert score["accuracy"] == 0.25 and score["share_of_true_language"]["of_language"]["fra_Latn"] == 0
    assert score["languages_without_a_channel"] == ["fra_Latn"]
    assert score["accuracy_of_language"] == {"eng_Latn": 1, "fra_Latn": 0}
    assert (score["worst_confusions"][0]["language"], score["worst_confusions"][0]["read_as"]) == (
        "fra_Latn",
        "eng_Latn",
    )


def test_a_sentence_that_nothing_is_known_of_is_wrong():
    tokenizer = byte_level()
    matrix = made_by_hand(tokenizer, ["eng_Latn", "deu_Latn"], {"x": [1, 0], "y": [0, 1]})
    score = evaluate(matrix, tokenizer, {"eng_Latn": ["x", "qqq"]})
    assert score["accuracy"] == 0.5
    json.dumps(score, allow_nan=False)


# The language of an answer


def test_a_language_is_named_where_its_tokens_tell_it():
    tokenizer = byte_level()
    rows = {"x": [0.7, 0.3], "y": [0.82, 0.18], "z": [0.02, 0.98], "w": [0.4, 0.05, 0.55]}
    matrix = made_by_hand(tokenizer, ["eng_Latn", "deu_Latn"], rows)

    def language_of(text, asked="eng_Latn"):
        return matrix.language_of(encode_all(tokenizer, [text])[0], asked)

    assert language_of("x") == "und"  # 0.701 : 0.301, less than SURE_OF_LANGUAGE
    assert language_of("y") == language_of("xx") == language_of("yx") == "eng_Latn"  # 0.701^2 : 0.301^2
    assert language_of("zx") == language_of("z", "deu_Latn") == "deu_Latn"
    assert language_of("") == language_of("1 ?") == language_of("w") == "und"  # no text among their tokens
    assert language_of("www y !1") == "eng_Latn"


def test_half_of_the_prior_is_on_the_language_that_is_asked():
    tokenizer = byte_level()
    languages = ["eng_Latn", "deu_Latn", "fra_Latn", "spa_Latn", "ita_Latn"]
    matrix = made_by_hand(tokenizer, languages, {"x": [0.5, 0.5, 0, 0, 0], "y": [0.9, 0.1, 0, 0, 0]})
    x, y = token(tokenizer, "x"), token(tokenizer, "y")
    assert [matrix.language_of([x], asked) for asked in languages] == ["und", "und", "und", "und", "und"]
    # 4 : 1 in the prior, so 0.8 exactly but for the others' share: one token more decides
    assert matrix.language_of([x, y], "eng_Latn") == "eng_Latn"
    assert matrix.language_of([y], "fra_Latn") == matrix.language_of([y], "eng_Latn") == "eng_Latn"
    assert matrix.language_of([y], "deu_Latn") == "und"  # 0.901 against 4 times 0.101
    assert matrix.language_of([y], "hin_Deva") == "eng_Latn"  # asked in what the matrix has no channel for


def test_a_close_variety_without_a_short_code_is_only_named_where_it_is_asked():
    tokenizer = byte_level()
    matrix = made_by_hand(tokenizer, ["hin_Deva", "awa_Deva", "eng_Latn"], {"x": [0.1, 0.9, 0]})
    id = token(tokenizer, "x")
    assert matrix.language_of([id], "hin_Deva") == matrix.language_of([id], "eng_Latn") == "hin_Deva"
    assert matrix.language_of([id], "awa_Deva") == "awa_Deva"


def test_a_long_answer_s_probabilities_do_not_vanish():
    tokenizer = byte_level()
    matrix = made_by_hand(tokenizer, ["deu_Latn", "eng_Latn"], {"x": [0.4, 0.6]})
    assert matrix.language_of([token(tokenizer, "x")] * 5000, "deu_Latn") == "eng_Latn"


@pytest.fixture(scope="module")
def language_of(offline_tokenizer):
    """Function from a text and the language asked to its language, by the matrix that a run makes by default."""
    matrix = TokenLanguages.build(offline_tokenizer)
    return lambda text, asked: matrix.language_of(encode_all(offline_tokenizer, [f" {text}"])[0], asked)


def test_a_sentence_is_in_the_language_that_was_asked(language_of):
    corpus = read_corpus(DATASETS_DIR / "sample/parallel")
    named = Counter((code, language_of(text, code)) for code, sentences in corpus.items() for text in sentences)
    right, unknown = (sum(n for pair, n in named.items() if pair[1] == of(pair[0])) for of in (str, lambda code: "und"))
    assert named.total() == 720 and right >= 705 and right + unknown >= 718
    for code in ("deu_Latn", "eng_Latn", "hin_Deva", "ory_Orya", "rus_Cyrl", "tha_Thai", "zho_Hans"):
        assert language_of(corpus[code][0], code) == code
        assert language_of(corpus[code][0], "ita_Latn") == code  # and where another was


def test_an_answer_in_english_to_a_question_in_hindi(language_of):
    assert language_of("the layer of ice", "hin_Deva") == "eng_Latn"
    assert language_of("बर्फ की परत", "hin_Deva") == "hin_Deva"


@pytest.mark.parametrize("text", ["1990", "", "42 %", "?!", "Peyton Manning"])
def test_a_number_or_a_name_is_in_no_language(language_of, text):
    for asked in ("hin_Deva", "deu_Latn", "zho_Hans"):
        assert language_of(text, asked) == "und"


@pytest.mark.parametrize("lang", ["ar", "de", "en", "hi", "th", "zh"])
def test_gold_answers_are_hardly_ever_taken_for_another_language(language_of, official_datasets, lang):
    examples = load_examples("xquad", [lang], datasets_dir=official_datasets)
    named = Counter(language_of(example.answers[0], example.lang) for example in examples)
    right, unknown = named.pop(examples[0].lang), named.pop("und")
    assert right >= 0.45 * len(examples)
    assert named.total() <= 0.03 * len(examples) and unknown > 0


# A real vocabulary and real sentences


@pytest.fixture(scope="module")
def default_matrix(offline_tokenizer):
    """What `--token_languages corpus` makes of the repository's own word counts."""
    return TokenLanguages.build(offline_tokenizer)


def test_a_token_belongs_to_languages_that_write_its_script(default_matrix, offline_tokenizer):
    pieces = read_pieces(offline_tokenizer)
    rows = default_matrix.probs[:, : default_matrix.n_languages]
    script_of_token = {
        id: script
        for id, piece in enumerate(pieces)
        if piece.kind == "text" and (script := first_script(piece.text)) and rows.indptr[id] < rows.indptr[id + 1]
    }
    assert len(script_of_token) > 240_000
    for script in sorted(set(script_of_token.values())):
        at_home = np.array([script in UNICODE_SCRIPTS[script_of(code)] for code in default_matrix.languages])
        ids = [id for id, of_token in script_of_token.items() if of_token == script]
        on_them = np.asarray(rows[ids][:, np.flatnonzero(at_home)].sum(axis=1)).ravel()
        assert on_them.min() >= 0.9 - 1e-5, script
    counts = count_tokens_of_forms(offline_tokenizer, read_word_counts(corpora.WORD_COUNTS))
    n_seen = np.diff(from_corpus._with_leading_spaces(counts, pieces).tocsr().indptr)
    many = np.flatnonzero(np.diff(rows.indptr) >= 100)
    assert len(many) > 100 and (n_seen[many] >= 100).all()


@cache
def first_script(text):
    """The first script that one of the text's letters has."""
    found = (s for letter in LETTER.findall(text) for s in pieces.SCRIPTS if script_pattern(s).match(letter))
    return next(found, None)


@cache
def script_pattern(script):
    return regex.compile(rf"\p{{Script={script}}}")


QUESTION_SETS = {"xquad": "ar de en es hi ru th tr zh", "xquad_in": "bn en gu hi kn ml mr or pa ta te"}


@pytest.mark.parametrize(
    ("dataset", "lang"), [(name, lang) for name, langs in QUESTION_SETS.items() for lang in langs.split()]
)
def test_text_of_another_kind_is_in_its_language(default_matrix, offline_tokenizer, official_datasets, dataset, lang):
    examples = load_examples(dataset, [lang], datasets_dir=official_datasets)
    contexts = list({example.context for example in examples})
    assert len(contexts) == 240
    ids = [id for text in encode_all(offline_tokenizer, contexts) for id in text]
    probs = np.bincount(ids, minlength=vocabulary_size(offline_tokenizer)) / len(ids)
    shares = default_matrix.shares(probs)[: default_matrix.n_languages]
    assert shares[default_matrix.languages.index(examples[0].lang)] >= 0.85 * shares.sum()


@pytest.fixture(scope="module")
def flores(official_datasets):
    """The first 797 and the last 200 sentences of FLORES-200 dev, in 204 languages."""
    corpus = read_corpus(official_datasets / "flores200/dev")
    assert len(corpus) == 204
    return [{code: lines[part] for code, lines in corpus.items()} for part in (slice(797), slice(797, None))]


def test_word_counts_tell_204_languages_apart(offline_tokenizer, flores, tmp_path):
    seen, unseen = flores
    write_word_counts(tmp_path / "w.tsv.gz", seen)
    score = evaluate(TokenLanguages.build(offline_tokenizer, corpus=tmp_path / "w.tsv.gz"), offline_tokenizer, unseen)
    assert (score["n_languages"], score["n_sentences"]) == (204, 204 * 200)
    assert_shares_recover(score, share=0.95, tenth_percentile=0.9, mixture_error=0.04)


def test_the_full_text_tells_204_languages_apart_better(offline_tokenizer, flores, corpus_folder):
    seen, unseen = flores
    score = evaluate(TokenLanguages.build(offline_tokenizer, corpus=corpus_folder(seen)), offline_tokenizer, unseen)
    assert_shares_recover(score, share=0.96, tenth_percentile=0.92, mixture_error=0.035)


def assert_shares_recover(score, share, tenth_percentile, mixture_error):
    """At least that much of known text, with a fifth of the sentences kept from the matrix."""
    assert score["share_of_true_language"]["mean"] >= share
    assert score["share_of_true_language"]["tenth_percentile"] >= tenth_percentile
    assert score["mixture_error"] <= mixture_error
    assert score["accuracy"] >= 0.945


# Shares


def test_a_pure_text_and_a_mixture_are_what_they_are():
    tokenizer = byte_level()
    rows = {"x": [0.9, 0.1], "y": [0.1, 0.9], "!": [0, 0, 1]}
    matrix = made_by_hand(tokenizer, ["eng_Latn", "deu_Latn"], rows)
    x, y, mark = (token(tokenizer, text) for text in "xy!")
    probs = np.zeros((2, vocabulary_size(tokenizer)))
    # P(x | English) : P(x | German) is 9 : 1, and so on: English writes .9 of x, German .1
    probs[0, [x, y]] = 0.9, 0.1
    probs[1, [x, y, mark]] = 0.56, 0.24, 0.2
    shares = matrix.shares(probs)
    assert shares.shape == (2, 6) and shares.dtype == np.float64
    assert shares[0, :2] == pytest.approx([1, 0], abs=0.02)
    # .9 a + .1 (1 - a) = .7, so that a = .75; a fifth is no language
    assert shares[1, :2] == pytest.approx([0.8 * 0.75, 0.8 * 0.25], abs=0.01)
    assert shares[1, matrix.channels.index("zxx")] == pytest.approx(0.2)
    assert shares.sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [(np.nan, "not finite"), (0.5, "sums to"), (-1e-2, "negative")],
)
def test_what_is_no_distribution_has_no_shares(changed, reason):
    tokenizer = byte_level()
    matrix = made_by_hand(tokenizer, ["eng_Latn", "deu_Latn"], {"x": [0.9, 0.1], "y": [0.1, 0.9]})
    probs = np.zeros(vocabulary_size(tokenizer))
    probs[token(tokenizer, "x")] = 1
    probs[token(tokenizer, "y")] = changed
    with pytest.raises(ValueError, match=reason):
        matrix.shares(probs)
    with pytest.raises(ValueError, match="the matrix has"):
        matrix.shares(np.ones(3) / 3)


def test_an_idle_space_says_nothing():
    texts, languages = ["中", " 中", " the"], ["zho_Hans", "eng_Latn"]
    result = posterior_of([[10, 0], [0, 0], [0, 10]], texts, languages)
    assert result[1].tolist() == result[0].tolist() and result[0, 0] > 0.9


def test_a_matrix_of_an_older_version_is_refused_with_the_command(saved):
    tokenizer, _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    del config["version"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"a matrix of version 1, 2 is needed; make it anew: python logit_lens_tok"):
        TokenLanguages.load(folder, tokenizer)
