"""States of tokens -> how well a linear probe tells their language, layer by layer, beside what it tells of nothing.

Sentences, not tokens, are parted between training and test, and all translations of a sentence are on one side.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from utils.models.hidden_states import Prompt
from utils.neurons.experts import shuffled_labels
from utils.neurons.steering import verdict_of
from utils.uncertainty import bootstrap_interval

TEST_SHARE = 0.3
SEEDS = (0, 1, 2)
# The penalty of the weights is half their squared length over C, beside the sum of the losses: scikit-learn's default.
C = 1.0
STEPS = 100
STATE, SHUFFLED, EMBEDDING = "state", "shuffled", "embedding"


def drawn_positions(prompt: Prompt, n: int, seed: str) -> Prompt:
    """The prompt, read at n of its positions, drawn without replacement where it has so many; in order."""
    rng = random.Random(seed)
    enough = len(prompt.positions) >= n
    drawn = rng.sample(prompt.positions, n) if enough else rng.choices(prompt.positions, k=n)
    return Prompt(prompt.ids, sorted(drawn))


def fitted_probe(states: np.ndarray, classes: np.ndarray, n_classes: int) -> torch.nn.Linear:
    """Multinomial logistic regression by L-BFGS, in float64: states [token, width], classes [token] of numbers.

    min over W, b of  sum_i -log softmax(W x_i + b)[y_i]  +  |W|^2 / (2 C). It is strictly convex in W, so that where it
    starts makes no difference. Standardise the states first.
    """
    x, y = torch.from_numpy(np.asarray(states, dtype=np.float64)), torch.from_numpy(np.asarray(classes))
    probe = torch.nn.Linear(x.shape[1], n_classes, dtype=torch.float64)
    for parameter in probe.parameters():
        torch.nn.init.zeros_(parameter)
    options = {"max_iter": STEPS, "tolerance_grad": 1e-5, "line_search_fn": "strong_wolfe", "history_size": 10}
    optimizer = torch.optim.LBFGS(probe.parameters(), **options)  # type: ignore[arg-type]

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        penalty = probe.weight.square().sum() / (2 * C)
        # Divided by the number of tokens, which moves no minimum, so that a gradient's size means the same for any.
        value = (torch.nn.functional.cross_entropy(probe(x), y, reduction="sum") + penalty) / len(x)
        value.backward()
        return value

    optimizer.step(loss)
    return probe


def told(train: np.ndarray, classes: np.ndarray, test: np.ndarray, n_classes: int) -> np.ndarray:
    """The class that a probe of `train` gives to each row of `test`: [token]. Standardised by what `train` has."""
    mean, spread = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    spread[spread == 0] = 1
    probe = fitted_probe((train - mean) / spread, classes, n_classes)
    with torch.inference_mode():
        return probe(torch.from_numpy((test - mean) / spread)).argmax(dim=1).numpy()


@dataclass(frozen=True)
class Told:
    """Over all seeds: sentence, true and told class of each test token, each [token]."""

    sentences: np.ndarray
    true: np.ndarray
    told: np.ndarray

    @property
    def right(self) -> np.ndarray:
        return (self.true == self.told).astype(np.float64)

    def by_sentence(self, n: int) -> np.ndarray:
        """Accuracy over a sentence's test tokens, all translations and seeds: [sentence], NaN where it has none."""
        counts = np.bincount(self.sentences, minlength=n)
        sums = np.bincount(self.sentences, self.right, minlength=n)
        return np.divide(sums, counts, out=np.full(n, np.nan), where=counts > 0)


def probe_layer(states: np.ndarray, classes: np.ndarray, sentences: np.ndarray, shuffle: bool = False) -> Told:
    """Train and test with each of SEEDS. states: [token, width]; classes, sentences: [token] of numbers.

    shuffle: classes are dealt out anew among each sentence's translations first, so that there is nothing to tell.
    Raises ValueError for fewer than four sentences.
    """
    n, n_classes = int(sentences.max()) + 1, int(classes.max()) + 1
    if n < 4:
        raise ValueError(f"{n} sentences a language: a probe needs 4 or more")
    parts = []
    for seed in SEEDS:
        of_seed = _dealt(classes, sentences, seed) if shuffle else classes
        chosen = np.random.default_rng(seed).permutation(n)[: max(1, round(TEST_SHARE * n))]
        test = np.isin(sentences, chosen)
        guesses = told(states[~test], of_seed[~test], states[test], n_classes)
        parts.append((sentences[test], of_seed[test], guesses))
    return Told(*(np.concatenate(arrays) for arrays in zip(*parts)))


def _dealt(classes: np.ndarray, sentences: np.ndarray, seed: int) -> np.ndarray:
    """Each translation of a sentence gets the class of another one, all its tokens the same."""
    units, of_token = np.unique(np.stack([sentences, classes]), axis=1, return_inverse=True)
    labels = shuffled_labels(units[0], units[1], 1, seed)[0]  # [class, translation]
    return labels.argmax(axis=0)[of_token.ravel()]


def accuracy_rows(found: dict[tuple[str, int], Told], revision: str) -> pd.DataFrame:
    """A row a probe and layer: accuracy with its interval over sentences. found: (probe, layer) -> Told."""
    rows = []
    for (probe, layer), one in found.items():
        low, high = bootstrap_interval(one.right, one.sentences.tolist(), 2000)
        row = {"revision": revision, "probe": probe, "layer": layer, "accuracy": one.right.mean(), "low": low}
        rows.append({**row, "high": high, "tokens": len(one.right), "sentences": len(set(one.sentences.tolist()))})
    return pd.DataFrame(rows)


def confusion_rows(found: dict[tuple[str, int], Told], langs: Sequence[str], revision: str) -> pd.DataFrame:
    """How many test tokens of each language are told to be in each: a row a probe, layer and two languages."""
    rows = []
    for (probe, layer), one in found.items():
        counts = np.zeros((len(langs), len(langs)), dtype=np.int64)
        np.add.at(counts, (one.true, one.told), 1)
        for i, true in enumerate(langs):
            for j, guess in enumerate(langs):
                row = {"revision": revision, "probe": probe, "layer": layer, "language": true, "told": guess}
                rows.append({**row, "n": counts[i, j]})
    return pd.DataFrame(rows)


def probe_claims(found: dict[tuple[str, int], Told], revision: str) -> pd.DataFrame:
    """Is there a language at every layer, and less of it in the middle? Differences of accuracies, over sentences."""
    layers = sorted(layer for probe, layer in found if probe == STATE)
    n = 1 + max(int(one.sentences.max()) for one in found.values())
    by_layer = {key: one.by_sentence(n) for key, one in found.items()}  # [sentence] each
    rows = []

    def add(claim: str, difference: np.ndarray, rises: bool, layer: object) -> dict:
        known = np.isfinite(difference)
        low, high = bootstrap_interval(difference[known], np.flatnonzero(known).tolist(), 2000)
        row = {"revision": revision, "claim": claim, "layer": layer, "effect": difference[known].mean()}
        rows.append({**row, "low": low, "high": high, "verdict": verdict_of(low, high, rises)})
        return rows[-1]

    worst = min(layers, key=lambda layer: np.nanmean(by_layer[STATE, layer] - by_layer[SHUFFLED, layer]))
    claim = "a linear probe tells the language at every layer: least above shuffled labels"
    add(claim, by_layer[STATE, worst] - by_layer[SHUFFLED, worst], True, worst)
    first, middle, last = (_mean(by_layer, third) for third in thirds(layers))
    add("the middle tells the language less than the first third", middle - first, False, "middle")
    add("the middle tells the language less than the last third", middle - last, False, "middle")
    best = max(layers, key=lambda layer: np.nanmean(by_layer[STATE, layer]))
    claim = "states tell the language better than token embeddings alone: the best layer"
    add(claim, by_layer[STATE, best] - by_layer[EMBEDDING, 0], True, best)
    return pd.DataFrame(rows)


def thirds(layers: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """First, middle and last third of the layers past the embeddings (layer 0), in order."""
    inner = [layer for layer in layers if layer > 0] or list(layers)
    first, second = round(len(inner) / 3), round(2 * len(inner) / 3)
    return inner[: max(first, 1)], inner[first : max(second, first + 1)], inner[min(second, len(inner) - 1) :]


def _mean(by_layer: dict[tuple[str, int], np.ndarray], layers: list[int]) -> np.ndarray:
    return np.mean([by_layer[STATE, layer] for layer in layers], axis=0)
