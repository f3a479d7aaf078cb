"""How alike a training text and a question are: cheap rivals of influence, and a random one. Each [text, query]."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from utils.models.families import LensModel

# Within the usual ranges (Robertson and Zaragoza 2009).
K1, B = 1.2, 0.75


def bm25(documents: Sequence[Sequence[int]], queries: Sequence[Sequence[int]]) -> np.ndarray:
    """Okapi BM25 (Robertson and Zaragoza 2009) over token ids: [document, query].

    score(d, q) = sum over the query's distinct tokens t of idf(t) tf (k1 + 1) / (tf + k1 (1 - b + b |d| / mean |d|)),
    idf(t) = log(1 + (N - n + 1/2) / (n + 1/2)) for a token in n of N documents: with the 1 it is never below zero.
    """
    counts = [Counter(document) for document in documents]
    lengths = np.array([len(document) for document in documents], dtype=np.float64)
    norms = K1 * (1 - B + B * lengths / lengths.mean())
    scores = np.zeros((len(documents), len(queries)))
    for column, query in enumerate(queries):
        for token in sorted(set(query)):
            tf = np.array([count[token] for count in counts], dtype=np.float64)
            n = (tf > 0).sum()
            idf = np.log1p((len(documents) - n + 0.5) / (n + 0.5))
            scores[:, column] += idf * tf * (K1 + 1) / (tf + norms)
    return scores


def random_scores(n_texts: int, n_queries: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_texts, n_queries))


@torch.inference_mode()
def answering_state(model: LensModel, ids: Sequence[int], first: int) -> np.ndarray:
    """The final-normed state from which the answer's first token is predicted: [width]. ids[first] is that token."""
    states = model.decoder(input_ids=torch.tensor([ids[:first]], device=model.device), use_cache=False)
    return states.last_hidden_state[0, -1].double().cpu().numpy()


def centred_cosine(of_texts: np.ndarray, of_queries: np.ndarray) -> np.ndarray:
    """[text, width], [query, width] -> [text, query]: cosine of states, the texts' mean taken away from both.

    States of a language model point all in much the same direction (Ethayarajh 2019); what is left tells them apart.
    """
    mean = of_texts.mean(axis=0)
    texts, queries = (_unit_rows(states - mean) for states in (of_texts, of_queries))
    return texts @ queries.T


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)
