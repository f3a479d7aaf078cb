"""The token x language matrix: made, kept, loaded, read; the language of an answer."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from tests.token_languages.tokenizers import (
    DIGITS,
    EMOJI,
    LANGUAGES,
    PUNCTUATION,
    WHITE_SPACE,
    WORDS,
    byte_level,
    made_by_hand,
    row,
    sentencepiece,
    token,
)
from utils.checksums import sha256_of_file
from utils.data.corpora import corpus_checksum, count_forms, read_corpus, write_word_counts
from utils.data.examples import DATASETS_DIR, load_examples
from utils.languages import NOT_LANGUAGES, script_of
from utils.token_languages.from_corpus import count_tokens
from utils.token_languages.matrix import TokenLanguages, default_folder
from utils.token_languages.pieces import (
    encode_all,
    read_pieces,
    tokenizer_checksum,
    vocabulary_size,
)


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
    (tmp_path / "w.tsv.gz").write_bytes(gzip.compress(b"language\tform\tcount\n"))
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


def signed(folder):
    """The checksums of what a folder holds now, as if it had been made so."""
    config = json.loads((folder / "config.json").read_text())
    config["files"] = {name: sha256_of_file(folder / name) for name in config["files"]}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("channels.json", lambda folder: reordered(folder, [1, 0, 2, 3, 4, 5])),
        ("probs.npz", lambda folder: with_probs(folder, data=lambda data: data[::-1].copy())),
        ("tokens.npz", lambda folder: np.savez(folder / "tokens.npz", scripts=np.zeros(262, np.int8))),
    ],
)
def test_a_matrix_that_has_changed_since_it_was_made_is_refused(saved, name, change):
    tokenizer, _, folder = saved
    change(folder)
    with pytest.raises(ValueError, match=f"a damaged matrix .{name} has changed since the matrix was made"):
        TokenLanguages.load(folder, tokenizer)


def reordered(folder, order):
    channels = json.loads((folder / "channels.json").read_text())
    (folder / "channels.json").write_text(json.dumps([channels[i] for i in order]))


def with_probs(folder, **changes):
    """Other arrays in probs.npz, each made of the one that is there."""
    with np.load(folder / "probs.npz") as stored:
        arrays = dict(stored)
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    np.savez(folder / "probs.npz", **arrays)


def with_first(value):
    def change(array):
        array = array.copy()
        array.flat[0] = value
        return array

    return change


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": with_first(-0.5)}, "negative or not finite"),
        ({"data": with_first(np.nan)}, "negative or not finite"),
        ({"data": with_first(np.inf)}, "negative or not finite"),
        ({"data": lambda a: a.astype(np.float64)}, "entries of float64"),
        ({"data": lambda a: a[:-1]}, "entries"),
        ({"indices": with_first(-1)}, "a column of"),
        ({"indices": with_first(10**6)}, "a column of"),
        ({"indices": lambda a: a.astype(np.float32)}, "indices of float32"),
        ({"indptr": with_first(5)}, "rows that begin outside"),
        ({"indptr": lambda a: np.append(a[:-1], 10**9).astype(a.dtype)}, "rows that begin outside"),
        ({"indptr": lambda a: a[::-1].copy()}, "rows that begin outside"),
        ({"indptr": lambda a: a[:-1]}, "rows"),
        ({"shape": lambda a: np.array([262, 2**40])}, "the model's tokenizer has 262 tokens"),
        ({"shape": lambda a: -a}, "no CSR matrix"),
        ({"shape": lambda a: a[:1]}, "no CSR matrix"),
        ({"format": lambda a: np.array(b"coo")}, "no CSR matrix"),
        ({"format": lambda a: np.array([{}], dtype=object)}, "damaged"),
    ],
)
def test_a_matrix_whose_arrays_point_elsewhere_is_refused_before_it_is_used(saved, changes, says):
    tokenizer, _, folder = saved
    with_probs(folder, **changes)
    signed(folder)
    with pytest.raises(ValueError, match=says) as error:
        TokenLanguages.load(folder, tokenizer)
    assert str(folder) in str(error.value)


def test_channels_are_languages_each_once_then_the_others(saved):
    tokenizer, _, folder = saved
    for order, says in (([2, 0, 1, 3, 4, 5], "does not end with special"), ([0, 0, 2, 3, 4, 5], "a channel twice")):
        channels = (folder / "channels.json").read_bytes()
        reordered(folder, order)
        signed(folder)
        with pytest.raises(ValueError, match=says):
            TokenLanguages.load(folder, tokenizer)
        (folder / "channels.json").write_bytes(channels)


def test_a_matrix_of_other_channels_is_refused(saved):
    tokenizer, _, folder = saved
    (folder / "channels.json").write_text(json.dumps(["deu_Latn", *NOT_LANGUAGES]))
    signed(folder)
    with pytest.raises(ValueError, match=r"x 6 channels.*channels\.json 5 channels"):
        TokenLanguages.load(folder, tokenizer)


def test_a_matrix_whose_rows_are_no_distributions_is_refused(saved):
    tokenizer, matrix, folder = saved
    sp.save_npz(folder / "probs.npz", matrix.probs * np.float32(0.5))
    signed(folder)
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
def language_of(default_matrix, offline_tokenizer):
    """Function from a text and the language asked to its language, by the matrix that a run makes by default."""
    return lambda text, asked: default_matrix.language_of(encode_all(offline_tokenizer, [f" {text}"])[0], asked)


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
    assert (matrix.shares(torch.tensor(probs, requires_grad=True)) == shares).all()


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


def test_a_matrix_of_an_older_version_is_refused_with_the_command(saved):
    tokenizer, _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    del config["version"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"a matrix of version 1, 4 is needed; make it anew: python logit_lens_tok"):
        TokenLanguages.load(folder, tokenizer)
