"""The tuned lens: its start, its least squares, its loss on a part of the vocabulary, and what it learns."""

import pytest
import torch

from utils.lens import reading, tuned
from utils.lens.fitting import fit_tuned, held_out_loss
from utils.lens.lenses import LOGIT, TunedLens
from utils.lens.tuned import (
    DrawnTokens,
    Moments,
    TunedFit,
    drawn_positions,
    drawn_tokens,
    kl_to_last,
    least_squares,
    sample_of,
)
from utils.models.hidden_states import encode, hidden_states, last_position

pytestmark = pytest.mark.usefixtures("one_thread")


def texts_in(model, sample, n_tokens: int = 24) -> list[list[int]]:
    return [encode(model.tokenizer, sentence)[:n_tokens] for of_lang in sample.values() for sentence in of_lang]


def prompts_in(model, sample, n: int = 12):
    generator = torch.Generator().manual_seed(0)
    return [drawn_positions(ids, n, generator) for ids in texts_in(model, sample)]


def test_at_its_start_it_is_the_logit_lens_for_every_family(tiny_model, family):
    model = tiny_model(family)
    states = hidden_states(model, [last_position(model, "The heart has four chambers.")])
    start = TunedLens.start(len(model.layers), model.width)
    assert torch.equal(reading.vocab_probs(model, start(states)), reading.vocab_probs(model, states))


def test_least_squares_is_that_of_numpy(monkeypatch):
    """Without a ridge, the weighted problem as numpy's lstsq solves it."""
    monkeypatch.setattr(tuned, "RIDGE", 0.0)
    torch.manual_seed(0)
    states = torch.randn(200, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 3
    last = states @ torch.randn(5, 5, dtype=torch.float64) + torch.randn(200, 5, dtype=torch.float64) + 1
    found = least_squares(moments_of(states, last), 0)
    weight = last.square().mean(dim=1).rsqrt()[:, None]
    design = torch.cat([states, torch.ones(200, 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(design * weight, (last - states) * weight).solution  # [coefficient and 1, width]
    a = (found.map @ found.whitening).double()
    assert torch.allclose(a, solution[:5].T, atol=1e-4)
    assert torch.allclose(found.shift.double() - a @ found.mean.double(), solution[5], atol=1e-4)


def moments_of(states, last, n_parts: int = 3) -> Moments:
    """Of one layer, added up part after part."""
    moments = Moments.none(1, states.shape[1], "cpu")
    for part in torch.stack([states, last], dim=1).tensor_split(n_parts):
        moments.add(part)
    return moments


def test_a_large_ridge_is_the_logit_lens(monkeypatch):
    monkeypatch.setattr(tuned, "RIDGE", 1e9)
    found = least_squares(moments_of(torch.randn(50, 4), torch.randn(50, 4)), 0)
    assert (found.map @ found.whitening).abs().max() < 1e-6


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom"])
def test_the_loss_on_all_tokens_is_the_divergence(tiny_model, sample, family):
    model = tiny_model(family)
    states = hidden_states(model, prompts_in(model, sample)[:3])
    weight, bias = model.unembedding.weight[: model.n_tokens], getattr(model.unembedding, "bias", None)
    whole = DrawnTokens(weight, bias, torch.zeros(model.n_tokens))
    total = reading.logits(model, states[:, -1]).logsumexp(dim=-1)
    loss = whole.kl(model, whole.log_probs(model, states[:, -1], total), states[:, 1])
    bits = kl_to_last(model, states, LOGIT)[:, 1].mean()
    assert float(loss) / torch.log(torch.tensor(2.0)) == pytest.approx(float(bits), rel=1e-4)
    p, q = (torch.distributions.Categorical(reading.vocab_probs(model, states[:, layer]).double()) for layer in (-1, 1))
    assert float(torch.distributions.kl_divergence(p, q).mean()) == pytest.approx(float(loss), rel=1e-4)


def test_on_drawn_tokens_the_loss_is_right_on_average(tiny_model, sample, monkeypatch):
    monkeypatch.setattr(tuned, "OTHER_TOKENS", 600)
    model = tiny_model("llama")
    found = sample_of(model, hidden_states(model, prompts_in(model, sample)[:2]))
    states = found.states / 20  # flat distributions: what is not drawn matters
    last, total = states[:, -1], reading.logits(model, states[:, -1]).logsumexp(dim=-1)
    exact = kl_to_last(model, states, LOGIT)[:, 1].mean() * torch.log(torch.tensor(2.0))
    losses = []
    for seed in range(200):
        tokens = drawn_tokens(model, found.likely, torch.Generator().manual_seed(seed))
        losses.append(float(tokens.kl(model, tokens.log_probs(model, last, total), states[:, 1])))
    mean, error = torch.tensor(losses).mean(), torch.tensor(losses).std() / 200**0.5
    assert float(mean) == pytest.approx(float(exact), abs=5 * float(error) + 0.01 * float(exact))
    assert float(torch.tensor(losses).std()) > 0


def test_no_gradient_stays_in_the_model(tiny_model, sample):
    model = tiny_model("llama")
    states = hidden_states(model, prompts_in(model, sample)[:20])
    moments = Moments.none(len(model.layers), model.width, "cpu")
    moments.add(states)
    fit = TunedFit(model, moments, sample_of(model, states), 2, 0)
    fit.step()
    assert all(parameter.grad is None for parameter in model.causal_lm.parameters())


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_held_out_loss_falls_at_every_layer(tiny_model, sample, family, tmp_path):
    model = tiny_model(family)
    texts = [("eng_Latn", ids) for ids in texts_in(model, sample)]
    held_out, fitted = texts[::6], [text for i, text in enumerate(texts) if i % 6]
    of_steps = {
        n: fit_tuned(tmp_path / str(n), model, fitted, n, 0) for n in (0, 40) if not (tmp_path / str(n)).mkdir()
    }
    tables = {n: held_out_loss(model, held_out, lens, 0) for n, (lens, _) in of_steps.items()}
    below = tables[40][:-1]
    assert (below["kl_lens"] < below["kl_logit"]).all()
    assert tables[40]["kl_lens"].mean() < tables[0]["kl_lens"].mean()  # descent goes on from least squares
    assert tables[40]["kl_lens"].iloc[-1] == 0  # the last layer is the model's own
    assert len(of_steps[40][1]) == 40
