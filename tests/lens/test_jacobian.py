"""The Jacobians of the Jacobian lens against autograd's full ones, and against those of a model that is linear."""

import types

import pytest
import torch

from utils.lens import jacobian
from utils.lens.jacobian import text_jacobians
from utils.models.families import FAMILIES, LensModel
from utils.models.loading import load_model

pytestmark = pytest.mark.usefixtures("one_thread")
IDS, SKIPPED = [1, 40, 500, 77, 900, 321, 1500, 41], 3
VALID = slice(SKIPPED, len(IDS) - 1)


def last_states(model, layer: int, states: torch.Tensor) -> torch.Tensor:
    """h_L [position, width] of the whole text where what enters `layer` is replaced by `states`, [position, width]."""
    kept = []

    def replace(module, args, kwargs):
        return ((states[None], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states[None]})

    def keep(module, args, kwargs):
        kept.append(args[0] if args else kwargs["hidden_states"])

    handles = [model.final_norm.register_forward_pre_hook(keep, with_kwargs=True)]
    handles.append(model.layers[layer].register_forward_pre_hook(replace, with_kwargs=True))
    try:
        ids = torch.tensor([IDS])
        model.decoder(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return kept[0][0]


def entering(model, layer: int) -> torch.Tensor:
    """What enters a layer by the model's own forward pass: [position, width]."""
    with torch.no_grad():
        ids = torch.tensor([IDS])
        return model.causal_lm(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[layer][0]


def test_the_jacobian_is_autograd_s_full_one_for_every_family(tiny_model, family):
    model = tiny_model(family)
    # XGLM's own code can't compute in float64: its mask is filled with float32's lowest number.
    dtype, tolerance = (torch.float32, 1e-3) if family == "xglm" else (torch.float64, 1e-6)
    model.causal_lm.to(dtype)
    found = text_jacobians(model, IDS, SKIPPED, rows=5)  # a number that doesn't divide the width
    width = found.shape[1]
    assert found.shape == (len(model.layers), width, width) and found.dtype == dtype
    layer = len(model.layers) - 2
    states = entering(model, layer)
    full = torch.autograd.functional.jacobian(lambda h: last_states(model, layer, h)[VALID].sum(dim=0), states)
    # [coordinate of h_L, position, coordinate of h_l], summed over targets: what is left is the mean over sources
    assert torch.allclose(found[layer], full[:, VALID].mean(dim=1), rtol=0, atol=tolerance)
    assert full[:, VALID].mean(dim=1).abs().max() > 1e-2
    assert all(parameter.requires_grad for parameter in model.causal_lm.parameters())


def test_every_layer_from_all_pairs_of_positions(tiny_model):
    """The definition with its two sums over positions written out."""
    model = tiny_model("gemma3_text")
    model.causal_lm.double()
    found = text_jacobians(model, IDS, SKIPPED)
    for layer in range(len(model.layers)):
        states = entering(model, layer)
        full = torch.autograd.functional.jacobian(lambda h, i=layer: last_states(model, i, h), states, vectorize=False)
        sources = []
        for t in range(SKIPPED, len(IDS) - 1):
            targets = [full[later, :, t] for later in range(t, len(IDS) - 1)]
            assert full[: max(t, 0), :, t].abs().max() == 0  # nothing moves what came before it
            sources.append(torch.stack(targets).sum(dim=0))
        assert torch.allclose(found[layer], torch.stack(sources).mean(dim=0), rtol=0, atol=1e-6), layer


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3"])
def test_a_feed_forward_part_is_gone_through_by_its_jacobian_or_by_autograd(tiny_model, family, monkeypatch):
    """Where its Jacobians would take too much memory, gradients go through it as through everything else."""
    model = tiny_model(family)
    model.causal_lm.double()
    made = []
    monkeypatch.setattr(
        jacobian, "_through_jacobian", lambda *a, of=jacobian._through_jacobian: made.append(1) or of(*a)
    )
    short_way = text_jacobians(model, IDS, SKIPPED)
    assert len(made) == len(model.layers)
    monkeypatch.setattr(jacobian, "MOST_BYTES", 0)
    assert torch.allclose(text_jacobians(model, IDS, SKIPPED), short_way, rtol=1e-9, atol=1e-12)
    assert len(made) == len(model.layers)
    assert not any("forward" in vars(layer.mlp) for layer in model.layers)  # the model is left as it was


class LinearLayer(torch.nn.Module):
    """h'_t = W h_t + U sum_{s <= t} h_s, s over what is read at once."""

    def __init__(self, width):
        super().__init__()
        self.own, self.mix = (torch.nn.Parameter(torch.randn(width, width, dtype=torch.float64)) for _ in range(2))

    def forward(self, hidden_states):
        return hidden_states @ self.own.T + hidden_states.cumsum(dim=1) @ self.mix.T


class LinearDecoder(torch.nn.Module):
    def __init__(self, width, n_layers):
        super().__init__()
        self.embedding = torch.nn.Embedding(2000, width, dtype=torch.float64)
        self.layers = torch.nn.ModuleList(LinearLayer(width) for _ in range(n_layers))
        self.norm = torch.nn.LayerNorm(width, dtype=torch.float64)

    def forward(self, input_ids, **unused):
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)


def test_the_jacobian_of_a_linear_model_is_its_matrix():
    torch.manual_seed(0)
    width, n = 6, len(IDS) - 1 - SKIPPED
    decoder = LinearDecoder(width, 3)
    parts = types.SimpleNamespace(config=None)
    model = LensModel(decoder, None, decoder, decoder.layers, decoder.norm, parts, FAMILIES["llama"], 2000)
    found = text_jacobians(model, IDS, SKIPPED)
    product = torch.eye(n * width, dtype=torch.float64)
    later = torch.ones(n, n, dtype=torch.float64).tril()
    for layer in reversed(range(3)):
        of_layer = decoder.layers[layer]
        step = torch.kron(torch.eye(n, dtype=torch.float64), of_layer.own) + torch.kron(later, of_layer.mix)
        product = product @ step.detach()
        exact = product.view(n, width, n, width).sum(dim=0).mean(dim=1)  # over targets, then sources
        assert torch.allclose(found[layer], exact, rtol=1e-9)


def test_a_text_that_is_too_short_is_refused(tiny_model):
    with pytest.raises(ValueError, match="a text of 17 tokens: a Jacobian needs more than 17"):
        text_jacobians(tiny_model("llama"), list(range(17)))
    assert jacobian.SKIPPED == 16


def test_a_live_adapter_is_in_the_jacobian(llama, adapter):
    base, adapted, merged = (
        load_model(str(folder), with_adapter)
        for folder, with_adapter in ((llama, None), (llama, adapter), (llama.parent / "merged", None))
    )
    found = text_jacobians(adapted, IDS, SKIPPED)
    assert torch.allclose(found, text_jacobians(merged, IDS, SKIPPED), rtol=1e-3, atol=1e-3 * float(found.abs().max()))
    assert (found - text_jacobians(base, IDS, SKIPPED)).abs().max() > 1e-2 * found.abs().max()
