"""Lenses: their equations, their files, and which model each is for."""

import json
import shutil

import pytest
import torch

from tests.scripts import damage
from utils.lens import reading
from utils.lens.lenses import LOGIT, JacobianLens, LogitLens, TunedLens, fitted_for, load_lens
from utils.models.fingerprints import weights_fingerprint
from utils.models.hidden_states import hidden_states, last_position
from utils.models.loading import load_model

N_LAYERS, WIDTH = 3, 32


def random_lens(kind, width=WIDTH):
    torch.manual_seed(0)
    matrices = torch.randn(N_LAYERS, width, width) / 5
    return TunedLens(matrices, biases=torch.randn(N_LAYERS, width)) if kind == "tuned" else JacobianLens(matrices)


def test_a_lens_is_its_equation():
    states = torch.randn(2, 5, N_LAYERS + 1, WIDTH)
    tuned, jacobian = random_lens("tuned"), random_lens("jacobian")
    found_tuned, found_jacobian = tuned(states), jacobian(states)
    for layer in range(N_LAYERS):
        h = states[1, 3, layer]
        expected = h + tuned.matrices[layer] @ h + tuned.biases[layer]
        assert torch.allclose(found_tuned[1, 3, layer], expected, atol=1e-5)
        assert torch.allclose(found_jacobian[1, 3, layer], jacobian.matrices[layer] @ h, atol=1e-5)
    for lens in (LOGIT, tuned, jacobian):
        assert torch.equal(lens(states)[..., -1, :], states[..., -1, :])
        assert lens(states.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["tuned", "jacobian"])
def test_the_self_check_holds_under_every_lens(tiny_model, family, kind):
    model = tiny_model(family)
    texts = ["The heart has four chambers.\n\nQ: How many?\nA:", "दिल के चार कक्ष होते हैं।", "A:"]
    prompts = [last_position(model, text) for text in texts]
    assert max(reading.self_check(model, prompts, lens=random_lens(kind)).values()) < 1e-4
    moved = reading.vocab_probs(model, random_lens(kind)(hidden_states(model, prompts)))
    plain = reading.vocab_probs(model, hidden_states(model, prompts))
    assert torch.equal(moved[:, -1], plain[:, -1]) and (moved[:, 0] - plain[:, 0]).abs().max() > 1e-3


# --- files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    """Function that writes a finished lens for a model."""

    def write(model, adapter=None, kind="tuned"):
        folder = tmp_path / "lens"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        random_lens(kind).save(folder)
        inputs = {"fitted_for": fitted_for(model, "a-model", adapter)}
        config = {"arguments": {"lens": kind, "langs": ["eng_Latn"]}, "inputs": inputs}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "metrics.json").write_text("{}")
        return folder

    return write


@pytest.mark.parametrize("kind", ["tuned", "jacobian"])
def test_a_stored_lens_is_the_lens(tiny_model, stored, kind):
    model = tiny_model("llama")
    lens = load_lens(stored(model, kind=kind), model, None)
    states = torch.randn(4, N_LAYERS + 1, WIDTH)
    assert torch.equal(lens(states), random_lens(kind)(states))
    assert lens.about["kind"] == kind and lens.about["langs"] == ["eng_Latn"] and len(lens.about["sha256"]) == 64
    assert load_lens(None, model, None) == LogitLens() and LogitLens().about == {}


def test_of_other_weights_is_refused_unless_it_is_wanted(tiny_model, stored):
    model, folder = tiny_model("llama"), stored(tiny_model("llama"))
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight.mul_(1.1)
    with pytest.raises(
        ValueError, match=f"--lens {folder}: fitted for other weights, those of a-model; .*--lens_of_base"
    ):
        load_lens(folder, model, None)
    assert load_lens(folder, model, None, of_base=True).kind == "tuned"
    with pytest.raises(ValueError, match="whose model_type is llama, not mistral"):
        load_lens(folder, tiny_model("mistral"), None, of_base=True)
    with pytest.raises(ValueError, match="whose n_layers is 3, not 2"):
        load_lens(folder, tiny_model("llama", num_hidden_layers=2), None, of_base=True)
    with pytest.raises(ValueError, match="--lens_of_base goes with --lens"):
        load_lens(None, model, None, of_base=True)


def test_an_adapter_is_no_other_model_but_another_adapter_is_refused(llama, adapter, stored):
    base, adapted = load_model(str(llama)), load_model(str(llama), adapter)
    merged = load_model(str(llama.parent / "merged"))
    assert weights_fingerprint(base) == weights_fingerprint(adapted) != weights_fingerprint(merged)
    assert weights_fingerprint(load_model(str(llama), dtype="bfloat16")) == weights_fingerprint(base)
    of_base = stored(base)
    with pytest.raises(ValueError, match="fitted for the model without an adapter; .*--lens_of_base"):
        load_lens(of_base, adapted, adapter)
    assert load_lens(of_base, adapted, adapter, of_base=True).kind == "tuned"
    of_adapter = stored(adapted, adapter)
    assert load_lens(of_adapter, adapted, adapter).kind == "tuned"
    with pytest.raises(ValueError, match="fitted for another adapter"):
        load_lens(of_adapter, base, None)


@pytest.mark.parametrize("name", ["config.json", "lens.safetensors", "metrics.json"])
def test_a_folder_that_is_not_whole_is_refused(tiny_model, stored, name):
    model = tiny_model("llama")
    folder = stored(model)
    damage(folder / name, None)
    with pytest.raises(ValueError, match=f"--lens {folder}: no {name} in it"):
        load_lens(folder, model, None)


@pytest.mark.parametrize("name, content", [("config.json", b"{}"), ("config.json", b"{"), ("lens.safetensors", 40)])
def test_a_damaged_lens_is_refused(tiny_model, stored, name, content):
    model = tiny_model("llama")
    folder = stored(model)
    damage(folder / name, content)
    with pytest.raises(ValueError, match=f"--lens {folder}: a damaged lens"):
        load_lens(folder, model, None)


def test_maps_of_another_size_are_refused(tiny_model, stored):
    model = tiny_model("llama")
    folder = stored(model)
    random_lens("tuned", 8).save(folder)
    with pytest.raises(ValueError, match="holds no tuned lens of 3 layers of width 32"):
        load_lens(folder, model, None)
