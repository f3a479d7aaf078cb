"""What is taken away is away, at the states' own length; strength 0 changes no bit; a cached pass is a whole one."""

import numpy as np
import pytest
import torch

from utils.lens.reading import mean_vocab_probs, vocab_probs
from utils.models import ablations
from utils.models.ablations import added, moved_neurons, project_out, projected_out, without_share
from utils.models.hidden_states import Prompt, hidden_states
from utils.models.interventions import max_responses, neuron_maps
from utils.models.prefixes import next_token, read_prompts

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = [Prompt([1, 50, 60, 70, 80], [1, 2, 3, 4]), Prompt([1, 90, 91], [1, 2])]
WIDTH = 32


def unit(seed=0) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_normal(WIDTH)
    return vector / np.linalg.norm(vector)


@pytest.fixture
def model(tiny_model, family):
    return tiny_model(family)


def test_strength_0_changes_no_bit_and_all_is_over_when_it_is_over(model):
    maps, own = neuron_maps(model), hidden_states(model, PROMPTS)
    units = {layer: unit() for layer in range(4)}
    ways = [projected_out(model, units, 0), projected_out(model, units, 0, units), added(model, units, 0)]
    ways.append(moved_neurons(model, maps, np.array([3]), np.array([9.0]), 0))
    for way in ways:
        with way as changed:
            assert changed is model and torch.equal(hidden_states(model, PROMPTS), own)
    assert without_share(model, np.ones(model.n_tokens), 0) is model
    ways = [projected_out(model, units, 1), added(model, units, 1)]
    ways.append(moved_neurons(model, maps, np.array([3]), np.array([9.0]), 1))
    for way in ways:
        with way:
            assert not torch.equal(hidden_states(model, PROMPTS), own)
        assert torch.equal(hidden_states(model, PROMPTS), own)


def test_strength_1_leaves_no_component_and_every_length(model):
    states, u = hidden_states(model, PROMPTS), torch.from_numpy(unit()).float()
    for layer in (0, 2, 3):
        with projected_out(model, {layer: unit()}, 1):
            changed = hidden_states(model, PROMPTS)
        assert torch.equal(changed[:, :layer], states[:, :layer])  # below it all is the model's own
        lengths = torch.linalg.vector_norm(changed[:, layer], dim=-1)
        torch.testing.assert_close(lengths, torch.linalg.vector_norm(states[:, layer], dim=-1), rtol=1e-4, atol=1e-4)
        assert ((changed[:, layer] @ u).abs() < 1e-4 * lengths).all()
        assert ((states[:, layer] @ u).abs() > 1e-3 * lengths).any()


def test_a_begin_token_is_left_alone(tiny_model):
    model = tiny_model("llama")
    prompts = [Prompt([1, 50, 60], [0, 1, 2])]
    own = hidden_states(model, prompts)
    with projected_out(model, {layer: unit() for layer in range(4)}, 1):
        changed = hidden_states(model, prompts)
    assert torch.equal(changed[0], own[0]) and not torch.allclose(changed[1], own[1])


def test_project_out_is_the_equation():
    rng = np.random.default_rng(1)
    states, u = rng.standard_normal((3, 5, WIDTH)), unit()
    v = unit(2) - (unit(2) @ u) * u
    v /= np.linalg.norm(v)
    for strength, instead, centre in ((0.5, None, 0), (1, None, 0), (2, None, 3.0), (0.7, v, -1.5)):
        given = [torch.from_numpy(array).float() if array is not None else None for array in (states, u, instead)]
        found = project_out(given[0], given[1], strength, given[2], centre).numpy()
        for i, j in np.ndindex(3, 5):
            h = states[i, j]
            along = sum(h[k] * u[k] for k in range(WIDTH)) - centre
            expected = h - strength * along * (u if instead is None else instead)
            expected *= np.sqrt((h**2).sum() / (expected**2).sum())
            np.testing.assert_allclose(found[i, j], expected, rtol=1e-4, atol=1e-5)


def test_the_lens_reads_the_changed_model_s_own_distribution(model):
    """Its last layer is what the model writes from; its own norm of states is no pass that is changed again."""
    prompts = [Prompt([1, 50, 60, 70], [3]), Prompt([1, 90, 91, 92], [3])]
    for strength in (0.5, 1):
        with projected_out(model, {2: unit(), 3: unit(1)}, strength):
            read = mean_vocab_probs(model, prompts)[-1]
            ids = torch.tensor([prompt.ids for prompt in prompts])
            with torch.inference_mode():
                logits = model.causal_lm(input_ids=ids, use_cache=False).logits[:, -1, : model.n_tokens]
        expected = torch.softmax(logits.float(), dim=-1).double().mean(dim=0)
        torch.testing.assert_close(read, expected, rtol=1e-3, atol=1e-6)


def test_a_pass_that_goes_on_from_a_cache_is_a_whole_one(model):
    shared = list(range(40, 60))
    prompts = [Prompt([1, *shared, *rest], [len(shared) + len(rest)]) for rest in ([70, 71], [80], [90, 91, 92])]
    maps = neuron_maps(model)
    neurons = np.array([2, maps[3].start + 1])
    for way in (
        lambda: projected_out(model, {1: unit(), 3: unit(1)}, 1),
        lambda: moved_neurons(model, maps, neurons, np.array([3.0, -2.0]), 1),
    ):
        with way():
            _, last = read_prompts(model, prompts)
            together = next_token(model, last)
            alone = torch.cat([next_token(model, read_prompts(model, [prompt], False)[1]) for prompt in prompts])
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)


def test_neurons_move_as_far_as_the_strength_says(model):
    maps, prompts = neuron_maps(model), [Prompt([1, 50], [1]), Prompt([1, 60], [1])]
    neurons, values = np.array([maps[0].start + 3, maps[0].start + 5]), np.array([4.0, -3.0])
    own = max_responses(model, maps, prompts)[:, neurons]
    for strength in (0.5, 1, 2):
        with moved_neurons(model, maps, neurons, values, strength):
            found = max_responses(model, maps, prompts)[:, neurons]
        expected = own + strength * (torch.from_numpy(values).float() - own)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    too_far = moved_neurons(model, maps, np.array([maps[-1].stop]), np.zeros(1), 1)
    with pytest.raises(ValueError, match=f"the model has {maps[-1].stop}"), too_far:
        pass


def test_logits_lose_a_language_s_part(model):
    rng = np.random.default_rng(0)
    share = rng.random(model.n_tokens) * (rng.random(model.n_tokens) < 0.5)
    states = torch.from_numpy(rng.standard_normal((2, WIDTH))).float()
    with torch.inference_mode():
        own = vocab_probs(model, states).double().numpy()
        for strength in (0.5, 1, 3):
            found = vocab_probs(without_share(model, share, strength), states).double().numpy()
            for row, expected in zip(found, own):
                slow = [p * max(1 - strength * s, ablations.LEAST_KEPT) for p, s in zip(expected, share)]
                np.testing.assert_allclose(row, np.array(slow) / sum(slow), rtol=2e-3, atol=1e-9)
