"""Neurons of every family: what is read is the map's own output, what is forced is forced, nothing else moves."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from utils.models.hidden_states import Prompt, hidden_states
from utils.models.interventions import forced, max_responses, n_neurons, neuron_maps, sentence_prompt

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = [Prompt([1, 50, 60, 70, 80], [1, 2, 3, 4]), Prompt([1, 90, 91], [1, 2])]


@pytest.fixture
def model(tiny_model, family):
    return tiny_model(family)


def by_hand(model, one, prompt) -> torch.Tensor:
    """A map's outputs for one prompt alone, by a hook of our own: [position, neuron]."""
    kept = []
    handle = one.module.register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.inference_mode():
        model.causal_lm(input_ids=torch.tensor([prompt.ids]), use_cache=False)
    handle.remove()
    return kept[0].reshape(len(prompt.ids), -1)[:, : one.width]


def test_responses_are_the_highest_outputs_of_real_tokens(model):
    maps = neuron_maps(model)
    assert [one.layer for one in maps] == [1, 1, 2, 2, 3, 3] and maps[1].width == 32
    assert all(one.start == before.stop for before, one in pairwise(maps))
    responses = max_responses(model, maps, PROMPTS)
    assert responses.shape == (2, n_neurons(maps)) and responses.dtype == torch.float32
    for row, prompt in zip(responses, PROMPTS):
        for one in maps:
            expected = by_hand(model, one, prompt)[prompt.positions].amax(dim=0)
            torch.testing.assert_close(row[one.start : one.stop], expected, atol=1e-4, rtol=1e-4)


def test_forced_neurons_have_their_values_and_no_neuron_changes_no_bit(model):
    maps = neuron_maps(model)
    own = hidden_states(model, PROMPTS)
    with forced(maps, np.empty(0, dtype=int), np.empty(0)):
        assert torch.equal(hidden_states(model, PROMPTS), own)
    neurons = np.array([maps[2].start, maps[3].start + 5])  # of the second layer
    with forced(maps, neurons, np.array([3.5, -2.0])):
        moved, responses = hidden_states(model, PROMPTS), max_responses(model, maps, PROMPTS)
    assert responses[:, neurons].tolist() == [[3.5, -2.0]] * 2
    assert torch.equal(moved[:, :2], own[:, :2]) and not torch.allclose(moved[:, 2], own[:, 2])
    assert torch.equal(hidden_states(model, PROMPTS), own)  # and it is over when it is over


def test_the_neuron_that_is_forced_to_what_it_is_changes_nothing(tiny_model):
    model = tiny_model("llama")
    maps = neuron_maps(model)
    prompt = Prompt([1, 50], [1])
    value = by_hand(model, maps[0], prompt)[:, 4]
    at_last = Prompt([50], [0])  # one position, so that one value is all positions'
    own = hidden_states(model, [at_last])
    with forced(maps, np.array([4]), by_hand(model, maps[0], at_last)[:, 4].numpy()):
        torch.testing.assert_close(hidden_states(model, [at_last]), own)
    assert value.shape == (2,)


def test_a_neuron_that_is_not_there_is_refused(tiny_model):
    maps = neuron_maps(tiny_model("bloom"))
    with pytest.raises(ValueError, match="the model has 480"), forced(maps, np.array([480]), np.zeros(1)):
        pass


def test_a_sentence_s_positions_leave_out_the_begin_token(tiny_model):
    model = tiny_model("llama")
    prompt = sentence_prompt(model, "Die Katze schläft.")
    assert prompt.positions == list(range(len(prompt.ids)))  # this tokenizer adds none
