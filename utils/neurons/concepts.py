"""Names of concepts in short sentences -> expert neurons of a concept in a language, and what two languages share.

The names are Unicode's (CLDR annotations), the sentences the project's own frames: one half of the frames finds a
concept's neurons and the other half tests them, so that a neuron is not merely one for the frame.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pandas as pd

from utils.data.examples import DATASETS_DIR, read_sentences, read_text
from utils.languages import ENGLISH, language_code, script_of
from utils.neurons.experts import aurocs, most_expert
from utils.neurons.language_probes import thirds
from utils.neurons.steering import verdict_of
from utils.uncertainty import bootstrap_interval

CONCEPTS = DATASETS_DIR / "cldr_concepts" / "concepts.tsv"
FRAMES = DATASETS_DIR / "sample" / "frames"
# The branch of its family that a language is of (Glottolog 5), for the languages that there are frames in.
BRANCHES = {
    "arb_Arab": "Semitic",
    "ben_Beng": "Indo-Aryan",
    "deu_Latn": "Germanic",
    "eng_Latn": "Germanic",
    "hin_Deva": "Indo-Aryan",
    "ory_Orya": "Indo-Aryan",
    "rus_Cyrl": "Slavic",
    "tam_Taml": "Dravidian",
    "tel_Telu": "Dravidian",
    "tha_Thai": "Tai",
    "tur_Latn": "Turkic",
    "zho_Hans": "Sinitic",
}
N_SHOTS = 4
LATENT = ("english", "target", "third", "english_null", "target_null")
N_DRAWS = 10_000  # of concepts, for intervals at a smaller level than 5%
# All orders of so many languages are tried by Mantel's test, else as many drawn ones.
MOST_ORDERS = 5040


@dataclass(frozen=True)
class Concept:
    """A thing by its symbol (an emoji or sign) and its name in each language."""

    symbol: str
    names: dict[str, str]


def read_concepts(path: Path, langs: Sequence[str]) -> list[Concept]:
    """The concepts that have a name in each of the languages, in the file's order.

    path: a table with tabs, `symbol` and FLORES codes in its first line. Raises ValueError for a file that is none, and
    for a language without a column.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file (python get_datasets.py cldr_concepts brings CLDR's)")
    lines = read_text(path).removesuffix("\n").split("\n")
    header = lines[0].split("\t")
    if header[0] != "symbol" or len(header) < 2:
        raise ValueError(f"{path}:1: the header is not symbol and languages, parted by tabs")
    columns = {language_code(name): i for i, name in enumerate(header) if i}
    if missing := [lang for lang in langs if lang not in columns]:
        raise ValueError(f"{path}: no column for {', '.join(missing)}; it has {', '.join(columns)}")
    found = []
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if len(cells) != len(header):
            raise ValueError(f"{path}:{number}: {len(cells)} columns, the header has {len(header)}")
        names = {lang: cells[columns[lang]].strip() for lang in langs}
        if all(names.values()):
            found.append(Concept(cells[0], names))
    return found


def chosen_concepts(concepts: list[Concept], n: int, seed: int) -> list[Concept]:
    """n of those whose name is one English word (or in the first language) and another one in each language.

    Where two languages have the same name, what they share is a word and no concept. Drawn with the seed.
    Raises ValueError where there are fewer than n.
    """
    fit = [
        one
        for one in concepts
        if _is_one_word(one) and len({name.casefold() for name in one.names.values()}) == len(one.names)
    ]
    if len(fit) < n:
        raise ValueError(f"--n_concepts {n}: {len(fit)} concepts have one word in English and no name in two languages")
    return random.Random(seed).sample(fit, n)


def _is_one_word(concept: Concept) -> bool:
    name = concept.names.get(ENGLISH) or next(iter(concept.names.values()))
    return name.isalpha()


def _differs(concept: Concept) -> bool:
    return len({name.casefold() for name in concept.names.values()}) == len(concept.names)


def read_frames(lang: str, folder: Path = FRAMES) -> tuple[str, list[str]]:
    """(the language's own name, its frames with {} for the concept's name). Raises ValueError where there are none."""
    path = Path(folder) / f"{lang}.txt"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in Path(folder).glob("*.txt")))
        raise ValueError(f"no frames in {lang}: choose from {there}")
    own_name, *frames = read_sentences(path)
    for number, frame in enumerate(frames, 2):
        if frame.count("{}") != 1:
            raise ValueError(f"{path}:{number}: not one {{}} for the name: {frame!r}")
    return own_name, frames


def is_finding(n_frames: int) -> np.ndarray:
    """Every other frame, from the first, finds; the rest tests: [frame] of bool."""
    return np.arange(n_frames) % 2 == 0


@dataclass(frozen=True)
class ConceptSets:
    """What one language's sentences say of each concept. experts, null: [concept, k] of neurons, sorted by expertise.

    held_out: [concept], the mean AUROC of a concept's experts in the frames that did not find them; null_held_out: the
    same of `null`, the experts of concepts that were dealt out anew within each frame.
    """

    experts: np.ndarray
    null: np.ndarray
    held_out: np.ndarray
    null_held_out: np.ndarray


def concept_sets(files, maps: Sequence, frames: np.ndarray, concepts: np.ndarray, k: int, seed: int) -> ConceptSets:
    """Experts of each concept among one language's sentences; frames, concepts: [sentence] of numbers.

    A neuron's AUROC: the concept's sentences against the other concepts' in the same frames.
    """
    n, n_concepts = maps[-1].stop, int(concepts.max()) + 1
    finding = is_finding(int(frames.max()) + 1)[frames]
    dealt = np.empty_like(concepts)
    rng = np.random.default_rng(seed)
    for frame in np.unique(frames):
        dealt[frames == frame] = rng.permutation(concepts[frames == frame])
    number = np.arange(n_concepts)[:, None]
    labels = np.concatenate([concepts == number, dealt == number])  # [concept, and dealt concept, sentence]
    auroc = np.empty((2, len(labels), n), dtype=np.float32)
    for one in maps:
        responses = files.columns(one.start, one.stop)
        for side, rows in enumerate((finding, ~finding)):
            auroc[side, :, one.start : one.stop] = aurocs(responses[rows], labels[:, rows])
    sets = np.stack([most_expert(of_concept, k) for of_concept in auroc[0]])
    tested = np.take_along_axis(auroc[1], sets, axis=1).mean(axis=1, dtype=np.float64)
    return ConceptSets(sets[:n_concepts], sets[n_concepts:], tested[:n_concepts], tested[n_concepts:])


def membership(sets: np.ndarray, n: int) -> np.ndarray:
    """Which neurons are in each set: [concept, neuron], float32, so that products count."""
    members = np.zeros((len(sets), n), dtype=np.float32)
    np.put_along_axis(members, sets, 1, axis=1)
    return members


@dataclass(frozen=True)
class Shared:
    """What two languages' sets have in common, in each layer: [layer, concept], numbers of neurons.

    same: of the same concept; other: of a concept and another one, the mean over all other ones and both ways;
    null: of concepts dealt out anew in each language; size: [layer, concept], the mean of both sets' neurons there.
    """

    same: np.ndarray
    other: np.ndarray
    null: np.ndarray
    size: np.ndarray


def shared_neurons(one: ConceptSets, two: ConceptSets, maps: Sequence) -> Shared:
    n, layers = maps[-1].stop, sorted({m.layer for m in maps})
    members = [membership(sets, n) for sets in (one.experts, two.experts, one.null, two.null)]
    n_concepts = len(one.experts)
    parts: list[list[np.ndarray]] = [[], [], [], []]
    for layer in layers:
        columns = slice(min(m.start for m in maps if m.layer == layer), max(m.stop for m in maps if m.layer == layer))
        a, b, null_a, null_b = (of_set[:, columns] for of_set in members)
        counts = a @ b.T  # [concept, concept]
        same = np.diagonal(counts)
        parts[0].append(same)
        parts[1].append((counts.sum(axis=0) + counts.sum(axis=1) - 2 * same) / (2 * (n_concepts - 1)))
        parts[2].append((null_a * null_b).sum(axis=1))
        parts[3].append((a.sum(axis=1) + b.sum(axis=1)) / 2)
    return Shared(*(np.stack(part).astype(np.float64) for part in parts))


def sharing_tables(
    sets: dict[str, ConceptSets], maps: Sequence, k: int
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """({pairs.csv, by_layer.csv, concepts.csv}, claims). Shares are of k; intervals are over concepts."""
    langs, n = list(sets), maps[-1].stop
    shared = {pair: shared_neurons(sets[pair[0]], sets[pair[1]], maps) for pair in combinations(langs, 2)}
    layers = sorted({m.layer for m in maps})
    pairs, by_layer = [], []
    for (a, b), one in shared.items():
        totals = {name: getattr(one, name).sum(axis=0) / k for name in ("same", "other", "null")}
        row = {"language": a, "other": b, "same_script": script_of(a) == script_of(b)}
        row |= {"same_branch": BRANCHES.get(a, a) == BRANCHES.get(b, b)}
        row |= {f"{name}_concept" if name != "null" else name: values.mean() for name, values in totals.items()}
        row |= {"chance": k / n} | _interval("above_other", totals["same"] - totals["other"])
        pairs.append(
            row | _interval("above_null", totals["same"] - totals["null"]) | {"k": k, "concepts": len(totals["same"])}
        )
    for i, layer in enumerate(layers):
        same, other, null, size = (
            np.mean([getattr(one, name)[i] for one in shared.values()], axis=0) / k
            for name in ("same", "other", "null", "size")
        )
        by_layer.append(
            {"layer": layer, "experts": size.mean(), "same_concept": same.mean(), "other_concept": other.mean()}
            | {"null": null.mean()}
            | _interval("above_other", same - other)
        )
    held_out = [
        {"language": lang, "held_out_auroc": one.held_out.mean(), "null_held_out": one.null_held_out.mean()}
        | _interval("above_null", one.held_out - one.null_held_out)
        for lang, one in sets.items()
    ]
    tables = {"pairs.csv": pd.DataFrame(pairs), "by_layer.csv": pd.DataFrame(by_layer)}
    tables["held_out.csv"] = pd.DataFrame(held_out)
    return tables, _sharing_claims(shared, tables["pairs.csv"], layers, k)


def _interval(name: str, values: np.ndarray) -> dict[str, float]:
    """Mean and its interval over concepts."""
    low, high = bootstrap_interval(values, list(range(len(values))))
    return {name: float(values.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}


def _sharing_claims(shared: dict, pairs: pd.DataFrame, layers: list[int], k: int) -> pd.DataFrame:
    rows = []

    def add(claim: str, values: np.ndarray) -> None:
        low, high = bootstrap_interval(values, list(range(len(values))))
        rows.append({"claim": claim, "effect": values.mean(), "low": low, "high": high, "p": np.nan})
        rows[-1]["verdict"] = verdict_of(low, high, rises=True)

    # [layer, concept], the mean over pairs
    same, other, null = (
        np.mean([getattr(one, name) for one in shared.values()], axis=0) / k for name in ("same", "other", "null")
    )
    add("two languages share a concept's neurons: above other concepts", (same - other).sum(axis=0))
    add("two languages share a concept's neurons: above the permuted null", (same - null).sum(axis=0))
    first, middle, last = ([layers.index(layer) for layer in third] for third in thirds(layers))
    gap = same - other
    add("they share most in the middle: above the first third", gap[middle].mean(axis=0) - gap[first].mean(axis=0))
    add("they share most in the middle: above the last third", gap[middle].mean(axis=0) - gap[last].mean(axis=0))
    for what in ("script", "branch"):
        effect, p = mantel(pairs, "above_other", f"same_{what}")
        verdict = "can't be asked" if np.isnan(p) else "holds" if p <= 0.05 else "not seen"
        claim = f"languages of one {what} share more"
        rows.append({"claim": claim, "effect": effect, "low": np.nan, "high": np.nan, "p": p, "verdict": verdict})
    return pd.DataFrame(rows)


def mantel(pairs: pd.DataFrame, value: str, same: str) -> tuple[float, float]:
    """(mean of the pairs that are the same less that of the others, p): one-sided, over orders of the languages.

    Pairs that have a language in common are not independent, so languages change places and not pairs (Mantel 1967).
    NaN where all pairs are the same or none is.
    """
    langs = list(dict.fromkeys([*pairs["language"], *pairs["other"]]))
    values, is_same = np.zeros((len(langs),) * 2), np.zeros((len(langs),) * 2, dtype=bool)
    for row in pairs.to_dict("records"):
        i, j = langs.index(row["language"]), langs.index(row["other"])
        values[i, j] = values[j, i] = row[value]
        is_same[i, j] = is_same[j, i] = row[same]
    upper = np.triu_indices(len(langs), 1)
    if is_same[upper].all() or not is_same[upper].any():
        return np.nan, np.nan

    def effect(order: Sequence[int]) -> float:
        marked = is_same[np.ix_(order, order)][upper]
        return float(values[upper][marked].mean() - values[upper][~marked].mean())

    seen = effect(range(len(langs)))
    if len(langs) <= 7:
        effects = [effect(order) for order in permutations(range(len(langs)))]
        return seen, float(np.mean([one >= seen - 1e-12 for one in effects]))
    rng = np.random.default_rng(0)
    effects = [effect(rng.permutation(len(langs)).tolist()) for _ in range(MOST_ORDERS)]
    return seen, float((1 + sum(one >= seen - 1e-12 for one in effects)) / (1 + MOST_ORDERS))


# Latent language: a concept asked for in one language, by its name in another


def latent_prompt(
    concept: Concept, shots: Sequence[Concept], source: str, target: str, own_names: dict[str, str]
) -> str:
    """Lines `<source>: "<name>" - <target>: "<name>"`, the last of which ends before the name in the target."""
    lines = [
        f'{own_names[source]}: "{one.names[source]}" - {own_names[target]}: "{one.names[target]}"' for one in shots
    ]
    return "\n".join([*lines, f'{own_names[source]}: "{concept.names[source]}" - {own_names[target]}: "'])


def latent_pairs(langs: Sequence[str]) -> list[tuple[str, str, str]]:
    """(source, target, third): each language but English is asked for once, by names in the next one of the list."""
    others = [lang for lang in langs if lang != ENGLISH]
    n = len(others)
    return [(others[(i + 1) % n], lang, others[(i + 2) % n]) for i, lang in enumerate(others)] if n >= 3 else []


def latent_tables(found: dict[tuple[str, str, str], dict[str, np.ndarray]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(latent.csv, claims). found: (source, target, third) -> LATENT, probabilities [prompt, layer], and `concepts`.

    concepts: [prompt], numbers. The nulls are the names of another concept.
    """
    rows = []
    for (source, target, third), of_pair in found.items():
        for name in LATENT:
            probs = of_pair[name]
            lows, highs = bootstrap_interval(probs, list(range(len(probs))))
            for layer, (mean, low, high) in enumerate(zip(probs.mean(axis=0), lows, highs)):
                row = {"source": source, "target": target, "third": third, "layer": layer, "name": name}
                rows.append({**row, "prob": mean, "low": low, "high": high, "n": len(probs)})
    return pd.DataFrame(rows), latent_claims(found)


def latent_claims(found: dict[tuple[str, str, str], dict[str, np.ndarray]]) -> pd.DataFrame:
    """Does the middle hold the English name? At its best layer of the middle third, for all of them together.

    English less target, and English less another concept's English name, over the prompts of all pairs. Concepts are
    drawn, each with its prompts of all pairs; the intervals hold for all layers of the middle third together.
    """
    english, target, null = (
        np.concatenate([of_pair[name] for of_pair in found.values()]) for name in ("english", "target", "english_null")
    )  # [prompt, layer]
    _, concept = np.unique(np.concatenate([of_pair["concepts"] for of_pair in found.values()]), return_inverse=True)
    _, middle, _ = thirds(range(english.shape[1]))
    level = 0.05 / len(middle)
    n = concept.max() + 1
    times = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), N_DRAWS)  # [draw, concept]
    differences = {"the target's": english - target, "another concept's English one": english - null}
    bounds = {}
    for name, values in differences.items():
        sums = np.zeros((n, values.shape[1]))
        np.add.at(sums, concept, values)
        means = (times @ sums) / (times @ np.bincount(concept))[:, None]
        bounds[name] = np.quantile(means, (level / 2, 1 - level / 2), axis=0)  # [2, layer]
    lowest = np.minimum(*(low for low, _ in bounds.values()))  # [layer]
    best = max(middle, key=lambda layer: lowest[layer])
    rows = []
    for name, values in differences.items():
        low, high = bounds[name][:, best]
        claim = f"the middle holds the English name (layer {best}): above {name}"
        row = {"claim": claim, "effect": values[:, best].mean(), "low": low, "high": high, "p": np.nan}
        rows.append({**row, "verdict": verdict_of(low, high, rises=True)})
    return pd.DataFrame(rows)
