"""A real vocabulary and real sentences: rows, text of another kind, 204 languages."""

import zlib
from functools import cache

import numpy as np
import pytest
import regex
import torch

from utils.data import corpora
from utils.data.corpora import read_corpus, write_word_counts
from utils.data.examples import load_examples
from utils.languages import UNICODE_SCRIPTS, script_of
from utils.lens.reading import logits
from utils.models.hidden_states import Prompt, encode, hidden_states
from utils.token_languages import from_corpus, shares
from utils.token_languages.evaluation import evaluate
from utils.token_languages.matrix import TokenLanguages
from utils.token_languages.pieces import (
    LETTER,
    SCRIPTS,
    encode_all,
    read_pieces,
    vocabulary_size,
)


def test_a_token_belongs_to_languages_that_write_its_script(default_matrix, default_counts, offline_tokenizer):
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
    n_seen = np.diff(from_corpus._with_leading_spaces(default_counts, pieces).tocsr().indptr)
    many = np.flatnonzero(np.diff(rows.indptr) >= 100)
    assert len(many) > 100 and (n_seen[many] >= 100).all()


def test_a_fit_of_many_layers_is_the_maximum_over_all_tokens(default_matrix, offline_model):
    """Layers of the real model, fitted together: Newton's method over all tokens in float64 finds nothing better."""
    ids = encode(offline_model.tokenizer, "The river rose for three days, and then the")
    with torch.inference_mode():
        states = hidden_states(offline_model, [Prompt(ids, [len(ids) - 1])])[0, [3, 6, 9, 12, 18]]
        probs = torch.softmax(logits(offline_model, states).double(), dim=-1).numpy()
    rows = default_matrix.rows_to_fit
    for p, of_layer in zip(probs, default_matrix.fit(probs)):
        text = np.flatnonzero(rows.any(axis=1))
        weights = torch.from_numpy(p[text] / p[text].sum())
        components = shares._components(text, rows, torch.float64)
        start = torch.from_numpy(np.where(of_layer > 1e-7, of_layer / of_layer.sum(), 0))
        best = shares._maximised(start, weights, components, 1e-9).numpy()
        assert of_layer / of_layer.sum() == pytest.approx(best, abs=1e-4)


def first_script(text):
    """The first script that one of the text's letters has."""
    return next(filter(None, map(script_of_letter, LETTER.findall(text))), None)


@cache
def script_of_letter(letter):
    return next((script for script in SCRIPTS if regex.match(rf"\p{{Script={script}}}", letter)), None)


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
    """Of FLORES-200 dev the first 797 sentences, and every other one of the last 200; in 204 languages."""
    corpus = read_corpus(official_datasets / "flores200/dev")
    assert len(corpus) == 204
    return [{code: lines[part] for code, lines in corpus.items()} for part in (slice(797), slice(797, None, 2))]


def test_word_counts_tell_204_languages_apart(offline_tokenizer, flores, tmp_path, monkeypatch):
    seen, unseen = flores
    # as small as can be is for a file that is kept
    monkeypatch.setattr(corpora.gzip, "compress", lambda content, **options: zlib.compress(content, 1, wbits=31))
    write_word_counts(tmp_path / "w.tsv.gz", seen)
    score = evaluate(TokenLanguages.build(offline_tokenizer, corpus=tmp_path / "w.tsv.gz"), offline_tokenizer, unseen)
    assert (score["n_languages"], score["n_sentences"]) == (204, 204 * 100)
    assert_shares_recover(score, share=0.95, tenth_percentile=0.9, mixture_error=0.04)


def test_the_full_text_tells_204_languages_apart_better(offline_tokenizer, flores, corpus_folder):
    seen, unseen = flores
    score = evaluate(TokenLanguages.build(offline_tokenizer, corpus=corpus_folder(seen)), offline_tokenizer, unseen)
    assert_shares_recover(score, share=0.96, tenth_percentile=0.92, mixture_error=0.035)


def assert_shares_recover(score, share, tenth_percentile, mixture_error):
    """At least that much of known text that the matrix has not seen."""
    assert score["share_of_true_language"]["mean"] >= share
    assert score["share_of_true_language"]["tenth_percentile"] >= tenth_percentile
    assert score["mixture_error"] <= mixture_error
    assert score["accuracy"] >= 0.955
