"""P(language | token) as the paper has it: langid on each decoded token."""

from functools import cache

import numpy as np
import scipy.sparse as sp

from utils.languages import ISO_639_1
from utils.token_languages.pieces import Made, Piece

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
    identifier = _identifier()
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


@cache
def _identifier():
    """langid's own model, which takes seconds to unpack."""
    from langid import langid  # its module logs and unpacks a model; only this method needs it

    return langid.LanguageIdentifier.from_modelstring(langid.model)


def _rows_at(ids: list[int], rows: sp.csr_matrix, n: int) -> sp.csr_matrix:
    """[n, column] float32, with these rows at these ids and zeros elsewhere."""
    place = sp.csr_matrix((np.ones(len(ids)), (ids, np.arange(len(ids)))), shape=(n, len(ids)))
    return (place @ rows).astype(np.float32).tocsr()


def made_from_langid(tokenizer, pieces: list[Piece], corpus: None) -> Made:
    return Made(*langid_posterior(pieces), [])


def made_from_langid_hard(tokenizer, pieces: list[Piece], corpus: None) -> Made:
    return Made(*langid_best([tokenizer.decode([id]).strip() for id in range(len(pieces))]), [])


LANGID_METHODS = ("langid", "langid-hard")
