"""How good is a matrix? Shares of text whose language is known."""

from itertools import chain

import numpy as np
import scipy.sparse as sp
from tqdm import tqdm

from utils.languages import script_of
from utils.token_languages.matrix import TokenLanguages
from utils.token_languages.pieces import bag_of_tokens, encode_all, normalised_rows
from utils.token_languages.shares import fit, fit_short_texts

PASSAGE = 20  # sentences
MIXTURES, LANGUAGES_OF_MIXTURE = 100, 3
TEXTS_AT_ONCE = 128
# A single sentence's largest share is clear long before its shares are exact.
GAP_OF_SENTENCES = 1e-2


def evaluate(matrix: TokenLanguages, tokenizer, sentences: dict[str, list[str]], seed: int = 42) -> dict:
    """What shares recover of text that is known. sentences: FLORES code -> sentences that the matrix hasn't seen.

    accuracy: single sentences whose largest share is their language's. share_of_true_language: over passages of
    PASSAGE sentences, mean, tenth percentile of the languages' means, and each language; the same of the tokens that
    the matrix's corpus lacks, read alone. mixture_error: mean total variation over MIXTURES mixtures of passages of
    LANGUAGES_OF_MIXTURE languages with Dirichlet(1) weights, drawn with the seed. worst_confusions: what text of a
    language reads as. A language that the matrix has no channel for counts as wrong, and is named.
    """
    size, column = matrix.probs.shape[0], {code: i for i, code in enumerate(matrix.languages)}
    languages, passages, accuracy, of_unseen = [], [], {}, {}
    for code, lines in tqdm(sentences.items(), desc="evaluating", unit="language", leave=False, disable=None):
        ids = encode_all(tokenizer, lines)
        single = _shares_of_texts(matrix, bag_of_tokens(ids, size), _of_sentences)
        accuracy[code] = single.argmax(axis=1) == column.get(code, -1)
        accuracy[code] &= single.any(axis=1)
        starts = range(0, max(len(ids) - PASSAGE, 0) + 1, PASSAGE)
        passages.append(bag_of_tokens([list(chain.from_iterable(ids[i : i + PASSAGE])) for i in starts], size))
        languages += [code] * len(starts)
    bags, truth = sp.vstack(passages).tocsr(), np.array(languages)
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


def _of_passages(bags: sp.csr_matrix, rows: np.ndarray) -> np.ndarray:
    return fit(bags.toarray().astype(np.float64), rows)


def _of_sentences(bags: sp.csr_matrix, rows: np.ndarray) -> np.ndarray:
    return fit_short_texts(bags, rows, GAP_OF_SENTENCES)


def _shares_of_texts(matrix: TokenLanguages, bags: sp.csr_matrix, fitted=_of_passages) -> np.ndarray:
    """Language shares of each text's language tokens, summing to 1: [text, language]; zeros where it has none.

    bags: [text, vocab], counts of tokens. For the paper's methods, the sums of the tokens' rows.
    """
    if not matrix.fits_shares:
        return normalised_rows((bags @ matrix.probs[:, : matrix.n_languages]).toarray().astype(np.float64))
    parts = []
    for start in range(0, bags.shape[0], TEXTS_AT_ONCE):
        block = bags[start : start + TEXTS_AT_ONCE]
        ids = np.unique(block.indices)
        parts.append(fitted(block[:, ids], matrix.rows_to_fit[ids]))
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
