"""The paper's method against langid's own."""

import copy
from functools import cache

import numpy as np
import pytest

from tests.token_languages.tokenizers import row
from utils.languages import NOT_LANGUAGES, language_code
from utils.token_languages.from_langid import langid_channels, langid_posterior
from utils.token_languages.matrix import TokenLanguages
from utils.token_languages.pieces import (
    read_pieces,
)


@cache
def langid_itself():
    from langid import langid

    return langid.LanguageIdentifier.from_modelstring(langid.model)


def langid_of(texts):
    """langid itself, but for the zeros that it multiplies: a token has a handful of its 7,480 features."""
    plain, sparse = langid_itself(), copy.copy(langid_itself())

    def without_zeros(counts):
        used = np.flatnonzero(counts)
        return counts[used] @ sparse.nb_ptc[used].astype(np.float64) + sparse.nb_pc

    sparse.nb_classprobs = without_zeros
    for text in texts[::200]:
        assert dict(sparse.rank(text)) == pytest.approx(dict(plain.rank(text)), abs=1e-9)
    return sparse


def slow_langid(texts) -> np.ndarray:
    """[text, 97], in the order of langid's classes: its own rank, and a softmax."""
    sparse = langid_of(texts)
    scores = [dict(sparse.rank(text)) for text in texts]
    scores = np.array([[ranked[code] for code in sparse.nb_classes] for ranked in scores])
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
    texts = [tiny_tokenizer.decode([id]).strip() for id in range(len(tiny_tokenizer))]
    identifier, matrix = langid_of(texts), TokenLanguages.build(tiny_tokenizer, "langid-hard")
    for id, text in enumerate(texts):
        best, _ = identifier.classify(text)
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
