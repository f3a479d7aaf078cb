"""Responses of neurons -> how expert each one is for a language.

Expertise is the area under the ROC curve of a neuron's response against "the sentence is in that language" (Suau,
Zappella and Apostoloff 2022, who take average precision; Sundar et al. 2025 for languages).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from utils.runs import read_arrays, write_array

# Labels are shuffled so often: a neuron above the highest of all shuffles is above the null at 1 / (N + 1) = 5%,
# over all neurons of the model together.
N_SHUFFLES = 19
# Two languages that share less of their top k hardly overlap.
FEW = 0.1
EXPERTS, NEURONS, MAPS = "experts.csv", "neurons.npz", "maps.csv"


def aurocs(responses: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AUROC of each neuron for each labelling: [labelling, neuron], float64.

    responses: [sentence, neuron]; labels: [labelling, sentence] of bool. Exact: with R the sum of the positives'
    mid-ranks, n of them and m others, (R - n (n + 1) / 2) / (n m), so that a tie counts half (Mann and Whitney 1947;
    Hanley and McNeil 1982). Raises ValueError for a labelling without positives or without negatives.
    """
    from scipy.stats import rankdata

    labels = np.asarray(labels, dtype=bool)
    positives = labels.sum(axis=1, keepdims=True).astype(np.float64)
    negatives = labels.shape[1] - positives
    if not (positives.all() and negatives.all()):
        raise ValueError("an AUROC needs positives and negatives: give two languages or more, and sentences of each")
    # float64 holds every sum of mid-ranks exactly: they are multiples of a half.
    sums = labels.astype(np.float64) @ rankdata(responses, axis=0)
    return (sums - positives * (positives + 1) / 2) / (positives * negatives)


def shuffled_labels(groups: np.ndarray, classes: np.ndarray, n_shuffles: int, seed: int) -> np.ndarray:
    """Labels that mean nothing: [shuffle, class, sentence] of bool.

    groups, classes: [sentence] of numbers. Within each group (the translations of one sentence) the classes are dealt
    out anew, so that what the sentences say stays balanced.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(groups, kind="stable")
    dealt = np.empty((n_shuffles, len(classes)), dtype=np.int64)
    for shuffle in dealt:
        # Sorted by group first and a random number second, each group's members come in a random order.
        random_order = np.lexsort((rng.random(len(groups)), groups))
        shuffle[order] = classes[random_order]
    return dealt[:, None, :] == np.arange(classes.max() + 1)[None, :, None]


class ResponseFiles:
    """Responses of all neurons on the disk, a file a batch of sentences: only a map's columns are ever in memory.

    A batch whose file is there is done; `write` is atomic, so that a stopped run goes on at the next batch.
    """

    def __init__(self, folder: Path, batches: list[list[int]]):
        self.folder, self.batches = Path(folder), batches
        self.folder.mkdir(parents=True, exist_ok=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npy"

    def is_done(self, number: int) -> bool:
        return self._file(number).exists()

    def write(self, number: int, responses: np.ndarray) -> None:
        """responses: [sentence of the batch, neuron]."""
        write_array(self._file(number), responses)

    def columns(self, start: int, stop: int) -> np.ndarray:
        """[sentence, neuron] of the neurons from start to stop, sentences in their own order."""
        found = np.empty((sum(map(len, self.batches)), stop - start), dtype=np.float32)
        for number, batch in enumerate(self.batches):
            found[batch] = np.load(self._file(number), mmap_mode="r")[:, start:stop]
        return found


@dataclass(frozen=True)
class Expertise:
    """auroc, mean_response: [class, neuron], float32; highest_null: [shuffle, class], over all neurons.

    mean_response: the mean over the class's sentences of a neuron's highest output in a sentence.
    null_mean: [class], the mean AUROC over shuffles and neurons, which must be near .5.
    """

    auroc: np.ndarray
    mean_response: np.ndarray
    highest_null: np.ndarray
    null_mean: np.ndarray

    @property
    def threshold(self) -> np.ndarray:
        """What no neuron reaches in any shuffle: [class]. One does without cause in 1 of N_SHUFFLES + 1 models."""
        return self.highest_null.max(axis=0)


def expertise(files: ResponseFiles, maps: Sequence, classes: np.ndarray, groups: np.ndarray, seed: int) -> Expertise:
    """Each neuron's AUROC for each class, and the null's; a map (`start`, `stop`) at a time.

    classes, groups: [sentence], which language a sentence is in, and which sentences are translations of each other.
    """
    n_classes, n = int(classes.max()) + 1, maps[-1].stop
    own = classes[None, :] == np.arange(n_classes)[:, None]  # [class, sentence]
    null = shuffled_labels(groups, classes, N_SHUFFLES, seed)
    labels = np.concatenate([own, null.reshape(-1, len(classes))])
    auroc, mean = np.empty((n_classes, n), dtype=np.float32), np.empty((n_classes, n), dtype=np.float32)
    highest, total = np.zeros((N_SHUFFLES, n_classes)), np.zeros(n_classes)
    for one in maps:
        responses = files.columns(one.start, one.stop)
        found = aurocs(responses, labels)
        auroc[:, one.start : one.stop] = found[:n_classes]
        mean[:, one.start : one.stop] = own @ responses.astype(np.float64) / own.sum(axis=1, keepdims=True)
        of_null = found[n_classes:].reshape(N_SHUFFLES, n_classes, -1)
        highest = np.maximum(highest, of_null.max(axis=2))
        total += of_null.sum(axis=(0, 2))
    return Expertise(auroc, mean, highest, total / (N_SHUFFLES * n))


def most_expert(auroc: np.ndarray, k: int) -> np.ndarray:
    """Numbers of the k neurons with the highest AUROC, [k], the best first; of equal ones the lower number first."""
    return np.argsort(-auroc, kind="stable")[:k]


def random_like(neurons: np.ndarray, maps: Sequence, seed: int) -> np.ndarray:
    """As many other neurons of the same maps, drawn evenly: [k].

    Where a map has too few others, some of `neurons` are drawn again.
    """
    rng, drawn = np.random.default_rng(seed), []
    for one in maps:
        taken = neurons[(neurons >= one.start) & (neurons < one.stop)]
        others = np.setdiff1d(np.arange(one.start, one.stop), taken)
        again = rng.choice(taken, max(len(taken) - len(others), 0), replace=False) if len(taken) else taken
        drawn.append(np.concatenate([rng.choice(others, min(len(taken), len(others)), replace=False), again]))
    return np.concatenate(drawn)


def overlap(one: np.ndarray, other: np.ndarray, n: int) -> dict[str, float]:
    """How many neurons two sets share, beside what two random sets of their sizes out of n neurons would.

    p: of as many or more by chance (hypergeometric).
    """
    from scipy.stats import hypergeom

    shared = len(np.intersect1d(one, other))
    expected = len(one) * len(other) / n
    p = float(hypergeom.sf(shared - 1, n, len(one), len(other)))
    return {"shared": shared, "expected": expected, "over_chance": shared / expected, "p": p}


def expert_table(found: Expertise, langs: list[str], maps: Sequence, n_kept: int) -> pd.DataFrame:
    """The n_kept most expert neurons of each language: language, rank, layer, module, neuron, auroc, mean_response.

    neuron: its place among the outputs of its module.
    """
    starts = np.array([one.start for one in maps])
    tables = []
    for i, lang in enumerate(langs):
        neurons = most_expert(found.auroc[i], n_kept)
        which = np.searchsorted(starts, neurons, side="right") - 1
        rows = {
            "language": lang,
            "rank": np.arange(1, len(neurons) + 1),
            "layer": [maps[j].layer for j in which],
            "module": [maps[j].name for j in which],
            "neuron": neurons - starts[which],
            "auroc": found.auroc[i, neurons],
            "mean_response": found.mean_response[i, neurons],
            "above_null": found.auroc[i, neurons] > found.threshold[i],
        }
        tables.append(pd.DataFrame(rows))
    return pd.concat(tables, ignore_index=True)


def layer_table(found: Expertise, langs: list[str], maps: Sequence, k: int) -> pd.DataFrame:
    """How many neurons of each map are above the null, and among the k most expert: a row a language and map."""
    rows = []
    for i, lang in enumerate(langs):
        chosen = most_expert(found.auroc[i], k)
        for one in maps:
            auroc = found.auroc[i, one.start : one.stop]
            rows.append(
                {
                    "language": lang,
                    "layer": one.layer,
                    "module": one.name,
                    "neurons": one.width,
                    "above_null": int((auroc > found.threshold[i]).sum()),
                    f"among_top_{k}": int(((chosen >= one.start) & (chosen < one.stop)).sum()),
                    "mean_auroc": float(auroc.mean(dtype=np.float64)),
                }
            )
    return pd.DataFrame(rows)


def overlap_table(found: Expertise, langs: list[str], sizes: Sequence[int]) -> pd.DataFrame:
    """`overlap` of the k most expert neurons of each two languages, for each k that the model has neurons for."""
    n, rows = found.auroc.shape[1], []
    for k in (k for k in sizes if k <= n):
        chosen = [most_expert(auroc, k) for auroc in found.auroc]
        for i, one in enumerate(langs):
            for j in range(i + 1, len(langs)):
                rows.append({"language": one, "other": langs[j], "k": k, **overlap(chosen[i], chosen[j], n)})
    return pd.DataFrame(rows)


def read_neurons(folder: Path) -> dict[str, np.ndarray]:
    """auroc and mean_response [language, neuron] of a finished `find`. Raises ValueError where there is none."""
    path = Path(folder) / NEURONS
    if not path.is_file():
        raise ValueError(f"--neurons {folder}: no {NEURONS} in it; give the folder of a finished `find`")
    return read_arrays(path)


def half_sets(files: ResponseFiles, maps: Sequence, classes: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """The k most expert neurons for each class in either half of the sentences: [half, class, k].

    What a language's own two sets share is the most that two languages' sets can be expected to.
    """
    n, n_classes = maps[-1].stop, int(classes.max()) + 1
    auroc = np.empty((2, n_classes, n), dtype=np.float32)
    for half in range(2):
        rows = np.flatnonzero(groups % 2 == half)
        labels = classes[rows] == np.arange(n_classes)[:, None]
        for one in maps:
            auroc[half, :, one.start : one.stop] = aurocs(files.columns(one.start, one.stop)[rows], labels)
    return np.stack([[most_expert(of_class, min(k, n)) for of_class in of_half] for of_half in auroc])


def overlap_claims(overlaps: pd.DataFrame) -> pd.DataFrame:
    """Do the neurons of different languages hardly overlap? A row a k: the mean share of two languages' top k.

    The rule, fixed before any run: they hardly do where no two languages share FEW of their top k or more. low and
    high: the least and the most that two languages share.
    """
    rows = []
    for k, table in overlaps.groupby("k"):
        shares = table["shared"] / k
        verdict = "holds" if shares.max() < FEW else "fails"
        rows.append(
            {
                "claim": f"neurons of different languages hardly overlap (each two under {FEW:.0%})",
                "k": k,
                "effect": shares.mean(),
                "low": shares.min(),
                "high": shares.max(),
                "over_chance": table["over_chance"].mean(),
                "verdict": verdict,
            }
        )
    return pd.DataFrame(rows)
