"""The head by pieces against its definition in float64, for every family and in every order of the tokens."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.lens.test_reading import obvious_reading, prompts_of
from utils.lens import reading
from utils.lens.distributions import Vocabulary, by_pattern
from utils.models import arithmetic
from utils.models.arithmetic import can_cut_head
from utils.models.hidden_states import Prompt, hidden_states

pytestmark = pytest.mark.usefixtures("one_thread")

needs_kernels = pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_f"), reason="this CPU has no AVX-512")


@pytest.fixture(params=[37, 64, 10**6])
def cut(request, monkeypatch):
    """Heads of any size are cut, into pieces of so many tokens."""
    monkeypatch.setattr(arithmetic, "LEAST_UNEMBEDDING", 0)
    monkeypatch.setattr(arithmetic, "PIECE", request.param)


def block_matrix(n_tokens: int) -> torch.Tensor:
    """Tokens of three scripts, mixed, with four languages each: [vocab, channel]."""
    torch.manual_seed(5)
    script = torch.randint(3, (n_tokens, 1))
    of_script = torch.arange(12)[None] // 4 == script
    return torch.softmax(torch.randn(n_tokens, 12).masked_fill(~of_script, -torch.inf), dim=-1)


@needs_kernels
@pytest.mark.parametrize("made", ["of", "laid_out"])
def test_a_reading_by_pieces_equals_its_definition(tiny_model, family, made, cut):
    model = tiny_model(family)
    first, second, third = prompts_of(model)
    prompts = [Prompt(first.ids, [3, 5, len(first.ids) - 1]), second, Prompt(third.ids, [0, 1])]
    matrix = block_matrix(model.n_tokens)
    with torch.inference_mode():
        assert can_cut_head(model)
        states = hidden_states(model, prompts)
        result = reading.read(model, prompts, states, getattr(Vocabulary, made)(model, matrix))
        languages, scalars, sums = obvious_reading(model, prompts, matrix)
        whole = reading.vocab_probs(model, states[3])  # of the second prompt, which has one position
    assert torch.allclose(result.language_probs.double(), languages, atol=1e-6)
    for found, wanted in zip((result.entropy_bits, result.kl_to_final_bits, result.top1_agreement), scalars.unbind(-1)):
        assert torch.allclose(found.double(), wanted, atol=1e-4)
    assert torch.allclose(result.vocab_prob_sums.double(), sums, atol=1e-6)
    best = whole.topk(reading.KEPT_TOKENS, dim=-1)
    assert torch.allclose(result.top_probs[1], best.values, atol=1e-6)
    assert torch.allclose(whole.gather(1, result.top_ids[1].long()), best.values, atol=1e-6)
    assert len(set(result.top_ids[1, -1].tolist())) == reading.KEPT_TOKENS


@needs_kernels
@pytest.mark.parametrize("made", ["of", "laid_out"])
def test_a_bias_goes_with_its_tokens(tiny_model, made, cut):
    model = tiny_model("llama")
    model.unembedding.bias = torch.nn.Parameter(torch.randn(model.unembedding.weight.shape[0]))
    prompts, matrix = prompts_of(model), block_matrix(model.n_tokens)
    with torch.inference_mode():
        states = hidden_states(model, prompts)
        result = reading.read(model, prompts, states, getattr(Vocabulary, made)(model, matrix))
        assert torch.allclose(result.vocab_prob_sums, reading.vocab_probs(model, states).sum(dim=0), atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("made", ["of", "laid_out"])
def test_logits_hundreds_below_the_highest_are_read_as_they_are(tiny_model, made, cut):
    """exp of less than -87 is no normal number; a token that is so unlikely counts by its logit in a divergence."""
    model = tiny_model("llama")
    with torch.inference_mode():
        model.unembedding.weight *= 100
    prompts, matrix = prompts_of(model), block_matrix(model.n_tokens)
    with torch.inference_mode():
        states = hidden_states(model, prompts)
        z = reading.logits(model, states).double()
        result = reading.read(model, prompts, states, getattr(Vocabulary, made)(model, matrix))
    log_probs = torch.log_softmax(z, dim=-1)  # [prompt, layer, vocab]
    assert (z - z.amax(dim=-1, keepdim=True)).min() < -200
    in_bits = -(log_probs.exp() * log_probs).sum(dim=-1) / math.log(2)
    kl = (log_probs.exp() * (log_probs - log_probs[:, -1:])).sum(dim=-1) / math.log(2)
    assert torch.allclose(result.entropy_bits.double(), in_bits, atol=1e-3) and kl.max() > 100
    assert torch.allclose(result.kl_to_final_bits.double(), kl, rtol=1e-4, atol=1e-3)
    assert torch.allclose(result.language_probs.double(), log_probs.exp() @ matrix.double(), atol=1e-4)


@needs_kernels
def test_a_reading_is_the_same_on_any_number_of_threads_and_a_second_time(tiny_model, cut):
    model = tiny_model("llama")
    prompts, matrix = prompts_of(model), block_matrix(model.n_tokens)
    vocabulary, before = Vocabulary.laid_out(model, matrix), torch.get_num_threads()
    try:
        with torch.inference_mode():
            states = hidden_states(model, prompts)
            readings = []
            for n_threads in (1, 3, 3):
                torch.set_num_threads(n_threads)
                readings.append(reading.read(model, prompts, states, vocabulary))
                assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    for other in readings[1:]:
        for name, values in vars(readings[0]).items():
            assert getattr(other, name).equal(values), name


def test_a_whole_head_has_all_threads(tiny_model, monkeypatch):
    model, before, found = tiny_model("llama"), torch.get_num_threads(), []
    vocabulary = Vocabulary.of(model, block_matrix(model.n_tokens))
    (piece,) = vocabulary.pieces
    counted = dataclasses.replace(piece, logits=lambda z: found.append(torch.get_num_threads()) or piece.logits(z))
    try:
        torch.set_num_threads(3)
        prompts = prompts_of(model)
        reading.read(model, prompts, hidden_states(model, prompts), dataclasses.replace(vocabulary, pieces=[counted]))
    finally:
        torch.set_num_threads(before)
    assert found and set(found) == {3}


@needs_kernels
def test_logits_that_overflow_in_one_piece_name_the_layer(tiny_model, cut):
    model = tiny_model("llama")
    prompts, matrix = prompts_of(model), block_matrix(model.n_tokens)
    states = hidden_states(model, prompts)
    with torch.inference_mode():
        model.unembedding.weight[150] = float("inf")
    for vocabulary in (Vocabulary.of(model, matrix), Vocabulary.laid_out(model, matrix)):
        with pytest.raises(ValueError, match="logits not finite at layer 0 in float32"):
            reading.read(model, prompts, states, vocabulary)


@needs_kernels
def test_laid_out_tokens_leave_most_of_a_matrix_out(tiny_model, monkeypatch):
    monkeypatch.setattr(arithmetic, "LEAST_UNEMBEDDING", 0)
    monkeypatch.setattr(arithmetic, "PIECE", 16)
    model = tiny_model("llama")
    matrix = block_matrix(model.n_tokens)
    laid_out = Vocabulary.laid_out(model, matrix)
    assert laid_out.order.sort().values.equal(torch.arange(model.n_tokens))
    n_multiplied = sum(
        len(part.channels) * (piece.tokens.stop - piece.tokens.start)
        for part, piece in zip(laid_out.matrices, laid_out.pieces)
    )
    assert n_multiplied < 0.5 * matrix.numel()
    assert all(part.channels == slice(None) for part in Vocabulary.of(model, matrix).matrices)


def test_a_head_with_hooks_or_in_another_dtype_is_not_cut(tiny_model, cut):
    model = tiny_model("llama")
    handle = model.unembedding.register_forward_pre_hook(lambda module, args: None)
    assert not can_cut_head(model) and len(Vocabulary.laid_out(model, block_matrix(model.n_tokens)).pieces) == 1
    handle.remove()
    model.causal_lm.bfloat16()
    assert not can_cut_head(model)


def test_tokens_of_one_pattern_lie_side_by_side():
    speaks = np.random.default_rng(0).random((200, 11)) < 0.2
    order = by_pattern(speaks, np.arange(11)[::-1])
    assert sorted(order) == list(range(200))
    patterns = [tuple(row) for row in speaks[order][:, ::-1]]
    assert patterns == sorted(patterns)
