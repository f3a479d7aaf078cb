"""How a matrix is judged: an oracle, chance, and scores by hand."""

import json

import numpy as np
import pytest

from tests.token_languages.tokenizers import (
    byte_level,
    made_by_hand,
)
from utils.token_languages.evaluation import evaluate
from utils.token_languages.matrix import TokenLanguages

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
