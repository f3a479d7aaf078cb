"""Sentences in several languages -> each language's direction in the stream, and the means of neurons' outputs.

Everything is found three times: on the even sentences, on the odd ones, and on all. What is measured on sentences of
one half takes what the other half found (cross-fitting); questions, which are other text, take what all found.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from utils.models.ablations import added, projected_out, watched
from utils.models.checks import require_finite
from utils.models.families import LensModel
from utils.models.hidden_states import Prompt, hidden_states
from utils.models.interventions import NeuronMap, run_decoder
from utils.neurons.experts import ResponseFiles, aurocs, most_expert

FOLDS = ("even", "odd", "all")


def rows_of_fold(fold: str, numbers: np.ndarray) -> np.ndarray:
    """Which sentences find in this fold: [sentence] of bool; numbers: [sentence], translations have the same."""
    return np.ones(len(numbers), dtype=bool) if fold == "all" else numbers % 2 == FOLDS.index(fold)


def finders_of(number: int) -> str:
    """The fold that may change a pass over this sentence: the half that it is not in."""
    return "odd" if number % 2 == 0 else "even"


def mean_states(model: LensModel, prompts: list[Prompt], batches: list[list[int]]) -> np.ndarray:
    """The stream's mean over each prompt's positions, layer by layer: [prompt, layer, width], float32."""
    found = np.empty((len(prompts), len(model.layers) + 1, model.width), dtype=np.float32)
    for batch in batches:
        chosen = [prompts[i] for i in batch]
        parts = hidden_states(model, chosen).float().split([len(prompt.positions) for prompt in chosen])
        for i, states in zip(batch, parts):
            found[i] = states.mean(dim=0).cpu().numpy()
    return found


def mean_outputs(model: LensModel, maps: list[NeuronMap], prompts: list[Prompt]) -> np.ndarray:
    """Each neuron's mean output over the positions of each prompt, which are read as one batch: [prompt, neuron]."""
    weights = torch.zeros(len(prompts), max(len(prompt.ids) for prompt in prompts), device=model.device)
    for row, prompt in enumerate(prompts):
        weights[row, prompt.positions] = 1 / len(prompt.positions)
    parts: dict[int, torch.Tensor] = {}

    def keep(number: int, one: NeuronMap) -> Callable:
        def hook(module, args, output):
            outputs = output[..., : one.width].reshape(len(prompts), -1, one.width).float()
            parts[number] = torch.einsum("np,npk->nk", weights.to(outputs.device), outputs).cpu()

        return hook

    handles = [one.module.register_forward_hook(keep(i, one)) for i, one in enumerate(maps)]
    try:
        run_decoder(model, prompts)
    finally:
        for handle in handles:
            handle.remove()
    means = torch.cat([parts[i] for i in range(len(maps))], dim=1)
    require_finite(torch.isfinite(means).all(), "outputs of the MLP", model.dtype)
    return means.numpy()


def differences(states: dict[str, np.ndarray], fold: str) -> dict[str, np.ndarray]:
    """Language -> mean state of its sentences less that of the other languages', each of which weighs the same.

    states: language -> [sentence, ...], translations in the same rows. Difference in means (Marks and Tegmark 2023;
    Arditi et al. 2024, eq. 2): [...], float64.
    """
    others = means_of_others(states, fold)
    return {
        lang: of_lang[rows_of_fold(fold, np.arange(len(of_lang)))].mean(axis=0, dtype=np.float64) - others[lang]
        for lang, of_lang in states.items()
    }


def means_of_others(states: dict[str, np.ndarray], fold: str) -> dict[str, np.ndarray]:
    """Language -> the mean state of the other languages' sentences, each language weighing the same: [...], float64."""
    means = {
        lang: of_lang[rows_of_fold(fold, np.arange(len(of_lang)))].mean(axis=0, dtype=np.float64)
        for lang, of_lang in states.items()
    }
    return {lang: np.mean([mean for other, mean in means.items() if other != lang], axis=0) for lang in means}


def unit_vectors(vectors: np.ndarray, layers: Sequence[int]) -> dict[int, np.ndarray]:
    """layer -> the vector of that layer at length 1. vectors: [layer, width]. Raises ValueError where it is nothing."""
    found = {}
    for layer in layers:
        length = np.linalg.norm(vectors[layer])
        if not length > 0:
            raise ValueError(f"layer {layer}: the mean states of the languages do not differ, so there is no direction")
        found[layer] = vectors[layer] / length
    return found


def random_beside(units: dict[int, np.ndarray], seed: int) -> dict[int, np.ndarray]:
    """layer -> a direction drawn evenly among those at a right angle to that layer's, of length 1."""
    rng, found = np.random.default_rng(seed), {}
    for layer, unit in units.items():
        drawn = rng.standard_normal(len(unit))
        drawn -= (drawn @ unit) * unit
        found[layer] = drawn / np.linalg.norm(drawn)
    return found


def left_over(
    model: LensModel, prompts: list[Prompt], units: dict, strength: float, centres: dict[int, float]
) -> dict[int, float]:
    """layer -> the mean |h . u - c| that comes there while all layers are ablated, over that in the model's own pass.

    What is gone at one layer does not come back at once, so that the layers above have less to take. Over all tokens
    but begin tokens.
    """
    bos = model.tokenizer.bos_token_id
    totals = []
    for s in (0, strength):
        with watched(model, units, centres) as seen, projected_out(model, units, s, centres=centres):
            for prompt in prompts:
                run_decoder(model, [prompt])
        kept = [torch.tensor([id != bos for id in prompt.ids]) for prompt in prompts]
        totals.append({layer: sum(float(one[0][k].sum()) for one, k in zip(seen[layer], kept)) for layer in units})
    own, ablated = totals
    return {layer: ablated[layer] / own[layer] if own[layer] else 1.0 for layer in units}


def components(model: LensModel, prompts: list[Prompt], batches: list[list[int]], units: dict) -> dict[int, float]:
    """layer -> the mean over the prompts of (mean state . unit)."""
    states = mean_states(model, prompts, batches)
    return {layer: float((states[:, layer].astype(np.float64) @ unit).mean()) for layer, unit in units.items()}


def back_to(
    target: dict[int, float],
    model: LensModel,
    prompts: list[Prompt],
    batches: list[list[int]],
    units: dict,
    progress: Callable[[], object] = lambda: None,
) -> dict[int, np.ndarray]:
    """layer -> what, added along its unit vector, brings the prompts' mean component to the target's, [width].

    Layer by layer upwards, each found while the lower ones are added: what is added at a layer reaches those above it,
    and would otherwise count twice.
    """
    vectors: dict[int, np.ndarray] = {}
    for layer in sorted(units):
        with added(model, vectors, 1):
            now = components(model, prompts, batches, {layer: units[layer]})[layer]
        vectors[layer] = (target[layer] - now) * units[layer]
        progress()
    return vectors


def expert_neurons(
    files: ResponseFiles, maps: Sequence, classes: np.ndarray, numbers: np.ndarray, layers: Sequence[int], k: int
) -> dict[str, np.ndarray]:
    """fold -> the k most expert neurons of these layers for each class, [class, k]. classes, numbers: [sentence].

    The layers must have so many.
    """
    n, n_classes = maps[-1].stop, int(classes.max()) + 1
    allowed = np.zeros(n, dtype=bool)
    for one in maps:
        allowed[one.start : one.stop] = one.layer in layers
    assert k <= allowed.sum(), f"{k} of {allowed.sum()} neurons"
    auroc = {fold: np.full((n_classes, n), -1.0) for fold in FOLDS}
    for one in (one for one in maps if one.layer in layers):
        responses = files.columns(one.start, one.stop)
        for fold in FOLDS:
            rows = rows_of_fold(fold, numbers)
            labels = classes[rows] == np.arange(n_classes)[:, None]
            auroc[fold][:, one.start : one.stop] = aurocs(responses[rows], labels)
    return {fold: np.stack([most_expert(of_class, k) for of_class in auroc[fold]]) for fold in FOLDS}
