"""Prompts, positions, batches, and what is refused."""

import pytest
import torch

from utils.models.hidden_states import Prompt, answer_positions, batches, encode, hidden_states, last_position, pad


def test_the_last_position_is_the_prompts_last_token(tiny_model):
    model = tiny_model("bloom")
    prompt = last_position(model, "Q: How many?\nA:")
    assert prompt.positions == [len(prompt.ids) - 1]
    assert model.tokenizer.decode(prompt.ids) == "Q: How many?\nA:"


def test_answer_positions_predict_exactly_the_answers_tokens(tiny_model):
    model = tiny_model("bloom")
    prompt = answer_positions(model, "Q: How many?\nA:", "Q: How many?\nA: four chambers")
    predicted = [prompt.ids[position + 1] for position in prompt.positions]
    assert model.tokenizer.decode(predicted) == " four chambers"
    assert prompt.positions[-1] == len(prompt.ids) - 2  # the last token predicts what follows the answer


def test_the_end_token_that_a_tokenizer_adds_is_not_part_of_a_prompt(tiny_tokenizer):
    class Closing:
        eos_token, eos_token_id = tiny_tokenizer.eos_token, tiny_tokenizer.eos_token_id

        def __call__(self, text):
            return {"input_ids": [*tiny_tokenizer(text)["input_ids"], tiny_tokenizer.eos_token_id]}

    assert encode(Closing(), "the heart") == tiny_tokenizer("the heart")["input_ids"]


def test_pads_are_on_the_right_and_masked():
    ids, mask = pad([[5, 6, 7], [8]], "cpu")
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids[0].tolist() == [5, 6, 7] and ids[1, 0] == 8


def test_the_content_of_pads_changes_nothing(tiny_model, family, monkeypatch):
    model = tiny_model(family)
    prompts = [Prompt(list(range(10, 40)), [29]), Prompt([11, 12, 13], [2])]
    usual = hidden_states(model, prompts)

    def with_other_pads(id_lists, device):
        ids, mask = pad(id_lists, device)
        return torch.where(mask == 1, ids, 99), mask

    monkeypatch.setattr("utils.models.hidden_states.pad", with_other_pads)
    assert torch.allclose(hidden_states(model, prompts), usual, atol=1e-6)


def test_states_come_in_the_order_of_prompts_and_positions(tiny_model):
    model = tiny_model("llama")
    prompts = [Prompt([10, 11, 12, 13], [1, 3]), Prompt([20, 21], [0])]
    together = hidden_states(model, prompts)
    alone = [hidden_states(model, [Prompt(p.ids, [i])])[0] for p in prompts for i in p.positions]
    assert together.shape[:2] == (3, len(model.layers) + 1)
    assert torch.allclose(together, torch.stack(alone), atol=1e-5)


def test_no_hook_stays_behind(tiny_model):
    model = tiny_model("llama")
    hidden_states(model, [Prompt([10, 11], [1])])
    assert not any(module._forward_pre_hooks for module in (*model.layers, model.final_norm))


def test_states_that_are_not_finite_name_layer_and_dtype(tiny_model):
    model = tiny_model("llama")
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite at layer 2 in float32"):
        hidden_states(model, [Prompt([10, 11], [1])])


def test_batches_hold_each_prompt_once_longest_first():
    prompts = [Prompt([0] * length, [0]) for length in (3, 9, 5, 9, 1, 2)]
    cut = batches(prompts, None, max_batch_tokens=18)
    assert sorted(i for batch in cut for i in batch) == list(range(6))
    assert cut[0] == [1, 3]
    assert all(len(batch) * max(len(prompts[i].ids) for i in batch) <= 18 for batch in cut)
    assert [len(batch) for batch in batches(prompts, 4, max_batch_tokens=1)] == [4, 2]


def test_a_prompt_longer_than_a_batch_goes_alone():
    prompts = [Prompt([0] * length, [0]) for length in (50, 4, 4)]
    assert batches(prompts, None, max_batch_tokens=10) == [[0], [1, 2]]
