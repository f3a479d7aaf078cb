"""The three ways to take a language away from a model, each with its controls: condition -> the model without it.

A way is made of sentences or of the token x language matrix, and says for each condition and fold (`FOLDS`) what is
live. Random controls take as much away as the language's own ablation does.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from utils.experiments.ablation_tables import RANDOM, Condition
from utils.models.ablations import added, moved_neurons, projected_out, without_share
from utils.models.families import LensModel
from utils.models.interventions import NeuronMap
from utils.neurons.directions import FOLDS, random_beside, rows_of_fold, unit_vectors
from utils.neurons.experts import random_like
from utils.token_languages.removal import random_column, removed_mass


@dataclass(frozen=True)
class Directions:
    """differences: fold -> language -> [layer, width] of `directions.differences`; others: the same of
    `means_of_others`, or empty where all of the component goes; layers: those that are changed.
    """

    language: str
    differences: dict[str, dict[str, np.ndarray]]
    others: dict[str, dict[str, np.ndarray]]
    layers: Sequence[int]
    seed: int
    lengths: np.ndarray  # [layer], of the mean state over all languages
    left: dict[float, dict[int, float]] = field(default_factory=dict)  # strength -> `directions.left_over`

    def units(self, lang: str, fold: str) -> dict[int, np.ndarray]:
        return unit_vectors(self.differences[fold][lang], self.layers)

    def centres(self, lang: str, fold: str) -> dict[int, float]:
        """layer -> the other languages' mean component along the language's direction; empty for none."""
        if not self.others:
            return {}
        return {layer: float(self.others[fold][lang][layer] @ unit) for layer, unit in self.units(lang, fold).items()}

    @contextmanager
    def live(self, model: LensModel, condition: Condition, fold: str) -> Iterator[LensModel]:
        centres = self.centres(condition.ablated, fold)
        units = self.units(condition.ablated, fold)
        instead = random_beside(units, self.seed + condition.draw) if condition.role == RANDOM else None
        scale = self.left[condition.strength] if instead else None
        with projected_out(model, units, condition.strength, instead, scale, centres) as changed:
            yield changed

    def table(self) -> pd.DataFrame:
        """A row a language and layer: how long the difference is, and how alike both halves of the sentences find it.

        centre: the component along it that is left (`centres`). cosine_of_halves: of the even and the odd sentences'
        directions. cosine: with the ablated language's direction. left_at_S: of the ablated language at strength S,
        `directions.left_over`.
        """
        rows = []
        for lang, whole in self.differences["all"].items():
            for layer in self.layers:
                even, odd = (self.differences[fold][lang][layer] for fold in FOLDS[:2])
                own = self.differences["all"][self.language][layer]
                length = np.linalg.norm(whole[layer])
                rows.append(
                    {
                        "language": lang,
                        "layer": layer,
                        "length": length,
                        "of_mean_state": length / self.lengths[layer],
                        "centre": self.centres(lang, "all").get(layer, 0.0),
                        "cosine_of_halves": _cosine(even, odd),
                        "cosine": _cosine(whole[layer], own),
                        **{
                            f"left_at_{strength:g}": of_layer[layer] if lang == self.language else np.nan
                            for strength, of_layer in self.left.items()
                        },
                    }
                )
        return pd.DataFrame(rows)


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-300))


@dataclass(frozen=True)
class AddedBack:
    """directions: of the model without adapter; shifts: language -> layer -> what is added along its unit vector."""

    directions: Directions
    shifts: dict[str, dict[int, float]]
    means: dict[str, dict[str, dict[int, float]]] = field(
        default_factory=dict
    )  # language -> side -> layer -> component

    @contextmanager
    def live(self, model: LensModel, condition: Condition, fold: str) -> Iterator[LensModel]:
        along = self.directions.units(condition.ablated, fold)
        if condition.role == RANDOM:
            along = random_beside(along, self.directions.seed + condition.draw)
        vectors = {layer: shift * along[layer] for layer, shift in self.shifts[condition.ablated].items()}
        with added(model, vectors, condition.strength) as changed:
            yield changed

    def table(self) -> pd.DataFrame:
        """`Directions.table` with the mean component of the model without and with adapter, and what is added."""
        table = self.directions.table()
        for side in ("untuned", "tuned"):
            found = [
                self.means.get(row.language, {}).get(side, {}).get(row.layer, np.nan) for row in table.itertuples()
            ]
            table[f"component_{side}"] = found
        table["added"] = [self.shifts.get(row.language, {}).get(row.layer, np.nan) for row in table.itertuples()]
        return table


@dataclass(frozen=True)
class Neurons:
    """experts: fold -> language -> [k]; outputs: fold -> language -> [neuron], mean output in the *other* languages."""

    language: str
    maps: list[NeuronMap]
    experts: dict[str, dict[str, np.ndarray]]
    outputs: dict[str, dict[str, np.ndarray]]
    seed: int

    @contextmanager
    def live(self, model: LensModel, condition: Condition, fold: str) -> Iterator[LensModel]:
        chosen = self.experts[fold][condition.ablated]
        if condition.role == RANDOM:
            chosen = random_like(chosen, self.maps, self.seed + condition.draw)
        values = self.outputs[fold][condition.ablated][chosen]
        with moved_neurons(model, self.maps, chosen, values, condition.strength) as changed:
            yield changed

    def table(self) -> pd.DataFrame:
        """A row a language and map: how many of its experts are there, and how many both halves of sentences find."""
        rows = []
        for lang, whole in self.experts["all"].items():
            both = np.intersect1d(self.experts["even"][lang], self.experts["odd"][lang])
            for one in self.maps:
                counts = [int(((set_ >= one.start) & (set_ < one.stop)).sum()) for set_ in (whole, both)]
                if counts[0] or counts[1]:
                    row = {"language": lang, "layer": one.layer, "module": one.name, "neurons": one.width}
                    rows.append({**row, "experts": counts[0], "in_both_halves": counts[1]})
        return pd.DataFrame(rows)


def outputs_of_others(means: dict[str, np.ndarray], fold: str) -> dict[str, np.ndarray]:
    """Language -> each neuron's mean output in the other languages, which weigh the same: [neuron].

    means: language -> [sentence, neuron], translations in the same rows.
    """
    own = {
        lang: of_lang[rows_of_fold(fold, np.arange(len(of_lang)))].mean(axis=0, dtype=np.float64)
        for lang, of_lang in means.items()
    }
    return {lang: np.mean([mean for other, mean in own.items() if other != lang], axis=0) for lang in own}


@dataclass(frozen=True)
class Logits:
    """columns: language -> P(language | token) [vocab]; probs: the base's mean next-token distribution, [vocab]."""

    language: str
    columns: dict[str, np.ndarray]
    probs: np.ndarray
    text: np.ndarray
    seed: int

    def column(self, condition: Condition) -> np.ndarray:
        own = self.columns[condition.ablated]
        if condition.role != RANDOM:
            return own
        rng = np.random.default_rng(self.seed + condition.draw)
        return random_column(own, self.probs, self.text, condition.strength, rng)

    @contextmanager
    def live(self, model: LensModel, condition: Condition, fold: str) -> Iterator[LensModel]:
        yield without_share(model, self.column(condition), condition.strength)

    def table(self) -> pd.DataFrame:
        rows = [
            {"language": lang, "tokens": int((column > 0.5).sum()), "mass": removed_mass(self.probs, column, 1)}
            for lang, column in self.columns.items()
        ]
        return pd.DataFrame(rows)
