"""The quick arithmetic is the model's own: the same distributions, the same tokens whatever the near ties."""

import peft
import pytest
import torch

from tests.answers.test_generation import question_prompts, shared_prompts
from utils.answers import generation
from utils.answers.generation import generate
from utils.lens import reading
from utils.models import arithmetic, prefixes
from utils.models.arithmetic import BoundedUnembedding, all_logits, quick, quick_maps
from utils.models.families import lens_model
from utils.models.hidden_states import hidden_states
from utils.models.mapped import FileMappings
from utils.models.prefixes import shared_hidden_states

pytestmark = pytest.mark.usefixtures("one_thread")

needs_kernels = pytest.mark.skipif(
    not torch.cpu.get_capabilities().get("avx512_bf16"), reason="this CPU has no products of bfloat16"
)


@pytest.fixture
def for_small_models(monkeypatch):
    """The shortcuts are taken for models of any size."""
    monkeypatch.setattr(arithmetic, "LEAST_MAP", 0)
    monkeypatch.setattr(arithmetic, "LEAST_UNEMBEDDING", 0)
    monkeypatch.setattr(arithmetic, "MOST_CANDIDATES", 1.0)
    monkeypatch.setattr(arithmetic, "ROWS", 300)


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("decoding", generation.DECODINGS)
def test_quick_answers_are_the_same_for_every_family(tiny_model, family, decoding, for_small_models):
    """All at once, and three at a time: rows that come later go on beside those that are there."""
    model = tiny_model(family)
    prompts = shared_prompts(model.tokenizer)
    plain = generate(model, prompts, decoding, 8)
    with quick(model) as way:
        assert isinstance(way.likeliest, BoundedUnembedding)
        assert way.holds_stems == (family not in ("bloom", "xglm"))
        for at_once in (None, 3, 1):
            assert generate(model, prompts, decoding, 8, way=way, at_once=at_once) == plain
        assert generate(model, prompts, decoding, 8, shares=False, way=way, at_once=3) == plain
    assert not any("forward" in vars(module) for module in model.decoder.modules())
    assert model.decoder.config._attn_implementation != arithmetic.GROUPED


@needs_kernels
def test_quick_states_are_the_same_for_every_family(tiny_model, family, for_small_models):
    """Prompts read from shared beginnings, through masks, groups of heads and windows."""
    model = tiny_model(family)
    prompts = shared_prompts(model.tokenizer)
    with torch.inference_mode():
        _, plain = prefixes.read_prompts(model, prompts)
        with quick(model):
            _, found = prefixes.read_prompts(model, prompts)
    assert torch.allclose(found, plain, atol=1e-4)


@needs_kernels
def test_the_probes_shared_states_are_the_same_for_every_family(tiny_model, family, for_small_models):
    """Probabilities of every layer within 1e-5 of those that each prompt has alone in the usual arithmetic."""
    model = tiny_model(family)
    prompts = shared_prompts(model.tokenizer)
    with torch.inference_mode():
        plain = torch.cat([reading.vocab_probs(model, hidden_states(model, [prompt])) for prompt in prompts])
        with quick_maps(model):
            states = shared_hidden_states(model, prompts, 4096)
        found = torch.stack([reading.by_pieces(model, of_prompt) for of_prompt in states])
    assert torch.allclose(found, plain, atol=1e-5)


@needs_kernels
def test_a_live_adapter_is_heard_through_quick_maps(tiny_model, for_small_models):
    """Also when its weights change meanwhile."""
    plain = tiny_model("llama")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = lens_model(peft.get_peft_model(plain.causal_lm, config), plain.tokenizer)
    prompts = shared_prompts(model.tokenizer)
    with torch.inference_mode(), quick_maps(model):
        before = shared_hidden_states(model, prompts, 4096)
        for name, weight in model.causal_lm.named_parameters():
            if "lora_B" in name:
                weight.mul_(-3)
        after = shared_hidden_states(model, prompts, 4096)
    with torch.inference_mode():
        expected = torch.cat([hidden_states(model, [prompt]) for prompt in prompts])
    assert torch.allclose(after, expected, atol=1e-4) and not torch.allclose(before, expected, atol=1e-2)


@needs_kernels
def test_maps_and_attention_go_the_quick_way(tiny_model, for_small_models, monkeypatch):
    model = tiny_model("gemma3_text")
    called = []
    for name in ("by_onednn", "grouped_attention"):
        function = getattr(arithmetic, name)
        monkeypatch.setattr(arithmetic, name, lambda *a, f=function, n=name, **o: called.append(n) or f(*a, **o))
    monkeypatch.setitem(arithmetic.ALL_ATTENTION_FUNCTIONS, "grouped", arithmetic.grouped_attention)
    with torch.inference_mode(), quick(model):
        prefixes.read_prompts(model, shared_prompts(model.tokenizer))
    n_passes = called.count("grouped_attention") / len(model.layers)
    assert n_passes > 1 and called.count("by_onednn") == 7 * len(model.layers) * n_passes


def exact(model, states, k):
    """The k likeliest tokens of each row, by all logits in float64."""
    logits = states.double() @ model.unembedding.weight.detach().double()[: model.n_tokens].T
    return logits.topk(k, dim=-1)


def bounded(model):
    return BoundedUnembedding(model, FileMappings(()))


@needs_kernels
@pytest.mark.parametrize("k", [1, 50])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("most_together", [0, 10**6])
def test_candidates_hold_the_likeliest_of_random_heads(
    tiny_model, for_small_models, monkeypatch, k, scale, most_together
):
    monkeypatch.setattr(arithmetic, "MOST_TOGETHER", most_together)
    model = tiny_model("llama")
    torch.manual_seed(1)
    states = scale * torch.randn(64, model.width)
    states[:, 3] *= 50  # as real models have one coordinate far above the others
    with torch.inference_mode():
        logits, ids = bounded(model)(states, k)
        whole, _ = all_logits(model, states)
    assert torch.allclose(logits, whole.gather(1, ids), rtol=1e-5, atol=1e-4 * float(whole.abs().max()))
    wanted = exact(model, states, k).indices
    assert ids.gather(1, logits.topk(k).indices).sort().values.equal(wanted.sort().values)


@needs_kernels
def test_near_ties_that_bfloat16_turns_around_are_told_apart(tiny_model, for_small_models, monkeypatch):
    """All tokens' rows are nearly the same one: which is the likeliest is beyond bfloat16."""
    model = tiny_model("llama")
    torch.manual_seed(2)
    weight, states = model.unembedding.weight, torch.randn(64, model.width)
    with torch.inference_mode():
        weight.copy_(torch.randn(model.width) + 1e-3 * torch.randn(weight.shape))
        head, (values, ids_wanted) = bounded(model), exact(model, states, 2)
        sure = (values[:, 0] - values[:, 1] > 1e-5).tolist()  # float32 itself tells them apart
        wanted = ids_wanted[:, 0].tolist()
        found = [head(state[None], 1) for state in states]
        chosen = [int(ids[0, logits.argmax()]) for logits, ids in found]
        assert sum(sure) > 40 and all(a == b for a, b, is_sure in zip(chosen, wanted, sure) if is_sure)
        monkeypatch.setattr(BoundedUnembedding, "bound", lambda *args: torch.zeros(1, dtype=torch.float64))
        missed = [not head.candidates(state[None], 1)[0, token] for state, token in zip(states, wanted)]
        assert sum(missed) > 10  # it is the bound that keeps them


@needs_kernels
def test_the_bound_is_above_all_errors_and_not_far(tiny_model, for_small_models):
    model = tiny_model("gemma2")
    with torch.inference_mode():
        head, states = bounded(model), torch.randn(32, model.width)
        rounded = states.bfloat16()
        approximate = torch.cat([arithmetic.by_onednn(rounded, part) for part in head.parts], dim=1)
        errors = (approximate.double() - states.double() @ model.unembedding.weight.double()[: model.n_tokens].T).abs()
        bound = head.bound(states, rounded, approximate)
    assert (errors.amax(dim=1) < bound).all() and (errors.amax(dim=1) > bound / 30).all()


@needs_kernels
@pytest.mark.parametrize("most_together", [0, 10**6])
def test_tokens_that_are_far_below_the_first_need_no_logits(tiny_model, for_small_models, monkeypatch, most_together):
    monkeypatch.setattr(arithmetic, "MOST_TOGETHER", most_together)
    model, capped = tiny_model("llama"), tiny_model("gemma2")
    torch.manual_seed(3)
    states = torch.randn(16, model.width)
    with torch.inference_mode():
        assert bounded(capped).candidates(states, 50, 2.0).equal(bounded(capped).candidates(states, 50))
        head = bounded(model)
        _, ids = head(states, 50, 2.0)
        assert head.candidates(states, 50, 2.0).sum() < head.candidates(states, 50).sum()
        values, wanted = exact(model, states, 50)
        found = [set(row) for row in ids.tolist()]
        for row, (of_row, tokens) in enumerate(zip(values, wanted.tolist())):
            assert {token for token, value in zip(tokens, of_row) if value >= of_row[0] - 2.0} <= found[row]


@needs_kernels
def test_logits_beyond_bfloat16_are_all_computed(tiny_model, for_small_models):
    model = tiny_model("llama")
    states = torch.full((1, model.width), 3e38)
    with torch.inference_mode():
        model.unembedding.weight.fill_(2.0)
        assert bounded(model).candidates(states, 1).all()


@needs_kernels
def test_too_many_candidates_are_all_tokens(tiny_model, for_small_models, monkeypatch):
    monkeypatch.setattr(arithmetic, "MOST_CANDIDATES", 0.1)
    monkeypatch.setattr(arithmetic, "MOST_TOGETHER", 10)
    model = tiny_model("llama")
    with torch.no_grad():
        model.unembedding.weight.fill_(0.5)
    logits, ids = bounded(model)(torch.randn(2, model.width), 1)
    assert ids is None and logits.shape == (2, model.n_tokens)


@needs_kernels
def test_heads_that_are_no_plain_map_are_left_alone(tiny_model, for_small_models):
    files = FileMappings(())
    model = tiny_model("llama")
    assert isinstance(arithmetic.unembedding_of(model, files), BoundedUnembedding)
    handle = model.unembedding.register_forward_hook(lambda module, args, out: -out)
    assert arithmetic.unembedding_of(model, files) is None
    handle.remove()
    model.unembedding.bias = torch.nn.Parameter(torch.randn(model.unembedding.weight.shape[0]))
    assert arithmetic.unembedding_of(model, files) is None
    assert arithmetic.unembedding_of(tiny_model("cohere", logit_scale=-1.0), files) is None
    broken = tiny_model("bloom")
    with torch.no_grad():
        broken.unembedding.weight[5, 5] = float("inf")
    assert arithmetic.unembedding_of(broken, files) is None


def test_small_models_and_other_dtypes_are_left_alone(tiny_model):
    model = tiny_model("llama")
    with quick(model) as way:
        assert not isinstance(way.likeliest, BoundedUnembedding)
        logits, ids = way.likeliest(torch.randn(2, model.width), 1, 0.0)
        assert ids is None and logits.shape == (2, model.n_tokens)
    model.causal_lm.bfloat16()
    with quick(model):
        assert model.decoder.config._attn_implementation == "sdpa"


@needs_kernels
def test_states_and_logits_that_are_not_finite_are_refused(tiny_model, for_small_models):
    model = tiny_model("llama")
    with quick(model) as way:
        with torch.no_grad():
            model.final_norm.weight[0] = float("nan")
        with pytest.raises(ValueError, match="logits not finite in float32"):
            generate(model, shared_prompts(model.tokenizer), way=way)


@needs_kernels
def test_the_offline_models_answers_are_the_same(offline_model):
    prompts = question_prompts(offline_model.tokenizer, limit=1)
    plain = generate(offline_model, prompts, max_new_tokens=8)
    with quick(offline_model) as way:
        assert isinstance(way.likeliest, BoundedUnembedding)
        assert generate(offline_model, prompts, max_new_tokens=8, way=way) == plain
