"""The lens against the models themselves, for every family, and its self-checks against injected mistakes."""

import dataclasses

import pytest
import torch

from utils.lens import reading
from utils.models import checks, loading
from utils.models import hidden_states as states_module
from utils.models.hidden_states import Prompt, hidden_states, last_position
from utils.models.loading import load_model
from utils.models.offline import OFFLINE_MODEL

TEXTS = [
    "The heart has four chambers.\n\nQ: How many chambers does the heart have?\nA:",
    "दिल के चार कक्ष होते हैं।\n\nQ: कितने?\nA:",
    "A:",
]


def own_probs(model, prompt):
    """The model's next-token distribution, by its own forward pass: [vocab]."""
    with torch.inference_mode():
        logits = model.causal_lm(input_ids=torch.tensor([prompt.ids]), use_cache=False).logits[0, -1]
    return torch.softmax(logits[: model.n_tokens].float(), dim=-1)


def prompts_of(model, texts=TEXTS):
    return [last_position(model, text) for text in texts]


def test_the_last_layer_equals_the_model_and_a_batch_its_members(tiny_model, family):
    model = tiny_model(family)
    prompts = prompts_of(model)
    with torch.inference_mode():
        batched = reading.vocab_probs(model, hidden_states(model, prompts))
        for prompt, together in zip(prompts, batched):
            alone = reading.vocab_probs(model, hidden_states(model, [prompt]))[0]
            assert torch.allclose(alone[-1], own_probs(model, prompt), atol=1e-5)
            assert torch.allclose(together, alone, atol=1e-5)
    assert batched.shape == (len(TEXTS), len(model.layers) + 1, len(model.tokenizer))
    # A lens that always read the last layer would pass all of the above.
    assert (batched[:, 0] - batched[:, -1]).abs().max() > 1e-3


def test_hidden_states_are_those_that_transformers_reports(tiny_model, family):
    model = tiny_model(family)
    prompt = prompts_of(model)[0]
    with torch.inference_mode():
        reported = model.causal_lm(input_ids=torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states
        ours = hidden_states(model, [Prompt(prompt.ids, list(range(len(prompt.ids))))])  # [position, layer, width]
        normed = model.final_norm(ours[:, -1])
    for layer in range(len(model.layers)):
        assert torch.allclose(ours[:, layer], reported[layer][0], atol=1e-5), layer
    assert torch.allclose(normed, reported[-1][0], atol=1e-5)  # transformers norms its last one


def test_padding_rows_get_no_probability_and_the_rest_sums_to_one(tiny_model):
    model = tiny_model("bloom")
    assert model.unembedding.weight.shape[0] > model.n_tokens == len(model.tokenizer)
    probs = reading.vocab_probs(model, hidden_states(model, prompts_of(model)))
    assert probs.shape[-1] == model.n_tokens
    assert torch.allclose(probs.sum(-1), torch.ones(probs.shape[:-1]), atol=1e-5)


def obvious_reading(model, prompts, token_languages):
    """The Reading's definitions with loops and in float64, one position at a time."""
    languages, scalars, sums = [], [], 0
    for prompt in prompts:
        per_position = []
        for position in prompt.positions:
            state = hidden_states(model, [Prompt(prompt.ids, [position])])[0]
            p = torch.softmax(reading.logits(model, state).double(), dim=-1)  # [layer, vocab]
            entropy = -(p * p.log2()).sum(-1)
            kl = (p * (p.log2() - p[-1].log2())).sum(-1)
            agreement = (p.argmax(-1) == p[-1].argmax()).double()
            per_position.append((p @ token_languages.double(), torch.stack([entropy, kl, agreement], -1), p))
        language, scalar, vocab = (torch.stack(part).mean(0) for part in zip(*per_position))
        languages.append(language)
        scalars.append(scalar)
        sums = sums + vocab
    return torch.stack(languages), torch.stack(scalars), sums


@pytest.mark.parametrize("step_bytes", [1, reading.STEP_BYTES])
def test_a_reading_equals_its_definition(tiny_model, monkeypatch, step_bytes):
    monkeypatch.setattr(reading, "STEP_BYTES", step_bytes)
    model = tiny_model("gemma2")
    first, second, third = prompts_of(model)
    prompts = [Prompt(first.ids, [3, 5, len(first.ids) - 1]), second, Prompt(third.ids, [0, 1])]
    token_languages = torch.softmax(torch.randn(model.n_tokens, 6), dim=-1)
    with torch.inference_mode():
        result = reading.read(model, prompts, hidden_states(model, prompts), token_languages)
        languages, scalars, sums = obvious_reading(model, prompts, token_languages)
    assert torch.allclose(result.language_probs.double(), languages, atol=1e-6)
    assert torch.allclose(result.language_probs.sum(-1), torch.ones(3, len(model.layers) + 1), atol=1e-5)
    assert torch.allclose(result.entropy_bits.double(), scalars[..., 0], atol=1e-4)
    assert torch.allclose(result.kl_to_final_bits.double(), scalars[..., 1], atol=1e-4)
    assert torch.allclose(result.top1_agreement.double(), scalars[..., 2], atol=1e-6)
    assert torch.allclose(result.vocab_prob_sums.double(), sums, atol=1e-6)


def test_the_head_is_applied_to_the_asked_positions_alone(tiny_model):
    model = tiny_model("llama")
    prompts = prompts_of(model)
    seen = []
    handle = model.unembedding.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    try:
        states = hidden_states(model, prompts)
        assert not seen
        reading.read(model, prompts, states, torch.ones(model.n_tokens, 1))
    finally:
        handle.remove()
    assert sum(shape[:-1].numel() for shape in seen) == len(prompts) * (len(model.layers) + 1)


# --- the self-checks -------------------------------------------------------------------------------------------


def test_the_self_check_passes_for_every_family(tiny_model, family):
    model = tiny_model(family)
    distances = reading.self_check(model, sorted(prompts_of(model), key=lambda prompt: -len(prompt.ids)))
    assert set(distances) == {"last_layer", "batch"}
    assert max(distances.values()) < 1e-5


def test_a_double_norm_is_caught(tiny_model, family, monkeypatch):
    model = tiny_model(family)
    once = reading.logits
    monkeypatch.setattr(reading, "logits", lambda model, states: once(model, model.final_norm(states)))
    with pytest.raises(ValueError, match="self-check failed: .* the model's own next-token distribution"):
        reading.self_check(model, prompts_of(model))


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "cohere", "cohere2", "granite"])
def test_a_missing_soft_cap_or_logit_scale_is_caught(tiny_model, family):
    model = tiny_model(family)
    plain = dataclasses.replace(model.family, after_unembedding=lambda logits, config: logits)
    with pytest.raises(ValueError, match="self-check failed: .* the model's own next-token distribution"):
        reading.self_check(dataclasses.replace(model, family=plain), prompts_of(model))


@pytest.mark.parametrize("family", ["bloom", "gpt2", "llama"])
def test_an_unmasked_pad_is_caught(tiny_model, family, monkeypatch):
    model = tiny_model(family)

    def left_without_a_mask(id_lists, device):
        width = max(map(len, id_lists))
        ids = torch.tensor([[0] * (width - len(ids)) + ids for ids in id_lists])
        # the positions that were asked for lie at the right end now
        return ids, torch.ones_like(ids)

    pad, ask = states_module.pad, states_module.hidden_states
    monkeypatch.setattr(states_module, "pad", left_without_a_mask)

    def shifted(model, prompts):
        width = max(len(prompt.ids) for prompt in prompts)
        moved = [Prompt(p.ids, [width - len(p.ids) + position for position in p.positions]) for p in prompts]
        return ask_moved(model, prompts, moved)

    def ask_moved(model, prompts, moved):
        ids = left_without_a_mask([prompt.ids for prompt in prompts], None)
        monkeypatch.setattr(states_module, "pad", lambda *_: ids)
        return ask(model, moved)

    monkeypatch.setattr(reading, "hidden_states", shifted)
    with pytest.raises(ValueError, match="self-check failed: .* the prompt alone"):
        reading.self_check(model, prompts_of(model))
    # The same left padding with the mask that belongs to it would be no mistake of the lens's: not what is caught.
    monkeypatch.setattr(states_module, "pad", pad)
    monkeypatch.setattr(reading, "hidden_states", ask)
    assert reading.self_check(model, prompts_of(model))["batch"] < 1e-5


def test_logits_that_overflow_name_the_layer(tiny_model):
    model = tiny_model("llama")
    prompts = prompts_of(model)
    states = hidden_states(model, prompts)
    with torch.inference_mode():
        model.unembedding.weight[5] = float("inf")
    with pytest.raises(ValueError, match="logits not finite at layer 0 in float32"):
        reading.read(model, prompts, states, torch.ones(model.n_tokens, 1))


# --- what only a real model can show ---------------------------------------------------------------------------


def test_the_offline_model_passes_and_knows_its_answer_late(offline_model):
    prompts = prompts_of(offline_model)
    distances = reading.self_check(offline_model, prompts)
    assert max(distances.values()) < 1e-4
    probs = reading.vocab_probs(offline_model, hidden_states(offline_model, [prompts[0]]))[0]
    assert torch.allclose(probs[-1], own_probs(offline_model, prompts[0]), atol=1e-5)
    days = last_position(offline_model, "Monday, Tuesday, Wednesday, Thursday,")
    friday = offline_model.tokenizer.convert_tokens_to_ids("▁Friday")
    by_layer = reading.vocab_probs(offline_model, hidden_states(offline_model, [days]))[0, :, friday]
    assert by_layer[-1] > 0.5 and by_layer[:6].max() < 0.1


def test_the_offline_model_in_half_precision_is_refused_or_right(offline_model, monkeypatch):
    """fp16 overflows in Gemma's residual stream: whatever comes out must be the model's own or a refusal."""
    monkeypatch.setattr(loading, "load_tokenizer", lambda name: offline_model.tokenizer)
    model = load_model(OFFLINE_MODEL, dtype="float16")
    try:
        assert reading.self_check(model, prompts_of(model))["last_layer"] < checks.TOLERANCE[torch.float16]
    except ValueError as error:
        assert "not finite at layer" in str(error) and "float16" in str(error)
