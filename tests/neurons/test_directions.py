"""Directions, means and experts of each half of the sentences, against slow obvious versions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from utils.models.ablations import added, projected_out
from utils.models.hidden_states import Prompt, hidden_states
from utils.models.interventions import neuron_maps
from utils.neurons import directions
from utils.neurons.experts import ResponseFiles, aurocs

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = [Prompt([1, 50, 60, 70, 80], [1, 2, 3, 4]), Prompt([1, 90, 91], [1, 2]), Prompt([1, 40], [1])]


def test_means_over_positions_are_those_of_each_prompt_alone(tiny_model, family):
    model = tiny_model(family)
    found = directions.mean_states(model, PROMPTS, [[0, 2], [1]])
    maps = neuron_maps(model)
    outputs = directions.mean_outputs(model, maps, PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        expected = hidden_states(model, [prompt]).mean(dim=0)
        np.testing.assert_allclose(found[i], expected.numpy(), rtol=1e-3, atol=1e-4)
        kept = []
        handle = maps[2].module.register_forward_hook(lambda module, args, output, kept=kept: kept.append(output))
        with torch.inference_mode():
            model.causal_lm(input_ids=torch.tensor([prompt.ids]), use_cache=False)
        handle.remove()
        slow = kept[0].reshape(len(prompt.ids), -1)[prompt.positions].mean(dim=0)[: maps[2].width]
        np.testing.assert_allclose(outputs[i, maps[2].start : maps[2].stop], slow.numpy(), rtol=1e-3, atol=1e-4)


def test_differences_take_one_half_of_the_sentences():
    rng = np.random.default_rng(0)
    states = {lang: rng.standard_normal((7, 2, 3)) + i for i, lang in enumerate("abc")}
    for fold, rows in (("even", [0, 2, 4, 6]), ("odd", [1, 3, 5]), ("all", range(7))):
        found = directions.differences(states, fold)
        slow = sum(states["b"][i] for i in rows) / len(rows)
        for other in "ac":
            slow = slow - sum(states[other][i] for i in rows) / len(rows) / 2
        np.testing.assert_allclose(found["b"], slow)
        others = directions.means_of_others(states, fold)["b"]
        np.testing.assert_allclose(others, (states["a"][list(rows)].mean(0) + states["c"][list(rows)].mean(0)) / 2)
        # The sentences that it measures have no part in it: other ones there give the same direction.
        spoilt = {lang: of_lang.copy() for lang, of_lang in states.items()}
        measured = [i for i in range(7) if directions.finders_of(i) == fold]
        assert fold == "all" or sorted([*measured, *rows]) == list(range(7))
        for of_lang in spoilt.values():
            of_lang[measured] = 1e6
        np.testing.assert_array_equal(directions.differences(spoilt, fold)["b"], found["b"])


def test_unit_vectors_and_what_is_drawn_beside_them():
    units = directions.unit_vectors(np.arange(12.0).reshape(2, 6) + 1, [0, 1])
    drawn = [directions.random_beside(units, seed) for seed in (1, 1, 2)]
    for layer, vector in units.items():
        assert np.linalg.norm(vector) == pytest.approx(1) == pytest.approx(np.linalg.norm(drawn[0][layer]))
        assert abs(vector @ drawn[0][layer]) < 1e-12
        assert np.array_equal(drawn[0][layer], drawn[1][layer]) and abs(drawn[0][layer] @ drawn[2][layer]) < 0.999
    with pytest.raises(ValueError, match="layer 1: .*no direction"):
        directions.unit_vectors(np.array([[1.0, 0], [0, 0]]), [0, 1])


def test_what_is_left_over_is_what_layer_after_layer_finds(tiny_model):
    model = tiny_model("llama")
    rng = np.random.default_rng(3)
    units = {layer: vector / np.linalg.norm(vector) for layer, vector in enumerate(rng.standard_normal((4, 32)))}
    whole = [Prompt(prompt.ids, list(range(1, len(prompt.ids)))) for prompt in PROMPTS]  # all but the begin token
    centres = {1: 2.0, 2: -1.0, 3: 0.5}
    for strength in (0.5, 1):
        found = directions.left_over(model, PROMPTS, units, strength, centres)
        assert found[0] == pytest.approx(1)  # below it nothing is gone
        for layer in (1, 2, 3):
            below, c = {lower: units[lower] for lower in range(layer)}, centres[layer]
            own = np.abs(
                np.concatenate([hidden_states(model, [one])[:, layer].numpy() @ units[layer] - c for one in whole])
            )
            with projected_out(model, below, strength, centres=centres):
                left = np.abs(
                    np.concatenate([hidden_states(model, [one])[:, layer].numpy() @ units[layer] - c for one in whole])
                )
            assert found[layer] == pytest.approx(left.sum() / own.sum(), rel=1e-3)


def test_what_is_added_back_brings_every_layer_to_the_other_model_s_mean(tiny_model):
    model = tiny_model("llama")
    rng = np.random.default_rng(3)
    units = {layer: vector / np.linalg.norm(vector) for layer, vector in enumerate(rng.standard_normal((4, 32)))}
    target = {0: 1.5, 1: -4.0, 2: 7.0, 3: 2.0}
    batches = [[0, 1], [2]]
    vectors = directions.back_to(target, model, PROMPTS, batches, units)
    with added(model, vectors, 1):
        assert directions.components(model, PROMPTS, batches, units) == pytest.approx(target, abs=1e-3)
    assert all(abs(vector / np.linalg.norm(vector) @ units[layer]) > 0.9999 for layer, vector in vectors.items())


def test_experts_of_a_half_are_the_best_of_its_layers(tmp_path):
    maps = [SimpleNamespace(layer=layer, start=5 * (layer - 1), stop=5 * layer) for layer in (1, 2, 3)]
    rng = np.random.default_rng(0)
    classes, numbers = np.repeat([0, 1], 8), np.tile(np.arange(8), 2)
    responses = rng.standard_normal((16, 15)).astype(np.float32)
    responses[(classes == 1) & (numbers % 2 == 0), 12] += 20  # an expert to the even sentences alone
    responses[classes == 1, 2] += 50  # one in a layer that is not asked for
    files = ResponseFiles(tmp_path, [list(range(16))])
    files.write(0, responses)
    found = directions.expert_neurons(files, maps, classes, numbers, [2, 3], 3)
    assert found["even"].shape == (2, 3) and found["even"][1, 0] == 12
    for fold in directions.FOLDS:
        rows = directions.rows_of_fold(fold, numbers)
        auroc = aurocs(responses[rows], classes[rows][None] == 1)[0]
        assert set(found[fold][1]) == set(5 + np.argsort(-auroc[5:], kind="stable")[:3])
