"""A LoRA layer in fewer steps is PEFT's; dropout keeps what it should; freed memory is used again."""

import os
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear

from tests.conftest import tiny_causal_lm
from utils.models.arithmetic import LEAST_MAP, LONGEST_SUM, by_onednn
from utils.models.families import FAMILIES
from utils.training import cpu
from utils.training.cpu import LAYERS_BETWEEN_TRIMS, fuse_lora, keep_mask, trim_between_layers


def adapted(family, dropout=0.0, dtype=torch.float32, **settings):
    """A tiny model with an adapter that changes what it says."""
    torch.manual_seed(3)
    config = LoraConfig(
        r=4, lora_alpha=16, lora_dropout=dropout, target_modules=list(FAMILIES[family].lora_targets), **settings
    )
    model = get_peft_model(tiny_causal_lm(family, 300).to(dtype), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model.train()


def loss_and_gradients(model, dtype=None):
    torch.manual_seed(5)
    ids = torch.randint(300, (2, 11))
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        logits = model(ids).logits
    logits.float().square().mean().backward()
    return logits, {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


def test_values_and_gradients_are_those_of_peft(family):
    expected, gradients = loss_and_gradients(adapted(family))
    model = adapted(family)
    n = fuse_lora(model)
    assert n == sum(isinstance(module, LoraLinear) for module in model.modules()) * (family != "gpt2")
    found, fused = loss_and_gradients(model)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        assert (fused[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-9, name


def test_in_bfloat16_they_are_as_close_to_float32_as_peft_is():
    exact, gradients = loss_and_gradients(adapted("llama"))
    peft, by_peft = loss_and_gradients(adapted("llama", dtype=torch.bfloat16), torch.bfloat16)
    model = adapted("llama", dtype=torch.bfloat16)
    fuse_lora(model)
    fused, by_us = loss_and_gradients(model, torch.bfloat16)
    assert fused.dtype == peft.dtype
    assert (fused - exact).norm() <= 1.5 * (peft - exact).norm()
    for name, gradient in gradients.items():
        assert by_us[name].dtype == by_peft[name].dtype == torch.float32
        assert (by_us[name] - gradient).norm() <= 1.5 * (by_peft[name] - gradient).norm() + 1e-6, name


@pytest.mark.parametrize(
    "n_in, n_out, bias", [(640, 2048, True), (640, 2048, False), (2048, 640, False), (64, 640, True)]
)
def test_products_are_as_exact_as_torch_s(n_in, n_out, bias, monkeypatch):
    """Long sums, and small maps, are torch's own; so is all that autocast has a say in."""
    torch.manual_seed(2)
    x, weight = torch.randn(2, 150, n_in), torch.randn(n_in, n_out).T  # as of a transposed weight
    shift = torch.randn(n_out) if bias else None
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if shift is None else shift.double())
    by_torch, found = torch.nn.functional.linear(x, weight, shift), cpu.product(x, weight, shift)
    far = [(values - exact).norm() / exact.norm() for values in (found, by_torch)]
    assert found.shape == (2, 150, n_out) and far[0] <= 2 * far[1] + 1e-7
    went = []
    monkeypatch.setattr(cpu, "by_onednn", lambda *args: went.append(args) or by_onednn(*args))
    cpu.product(x, weight, shift)
    assert len(went) == (cpu.is_quick(x.device, x.dtype) and n_in <= LONGEST_SUM and n_in * n_out >= LEAST_MAP)
    with torch.autocast("cpu", torch.bfloat16):
        assert cpu.product(x, weight, shift).dtype == torch.bfloat16
    assert cpu.product(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16


def test_under_autocast_from_float32_pefts_own_steps_are_taken():
    expected, gradients = loss_and_gradients(adapted("bloom"), torch.bfloat16)
    model = adapted("bloom")
    assert fuse_lora(model) > 0
    found, by_us = loss_and_gradients(model, torch.bfloat16)
    assert found.dtype == torch.bfloat16 and found.equal(expected)
    assert all(by_us[name].equal(gradient) for name, gradient in gradients.items())


@pytest.mark.parametrize("n", [1, 3, 4, 40_001])
def test_a_mask_has_its_shape_and_keeps_the_mean(n):
    torch.manual_seed(1)
    mask = keep_mask(torch.empty(n, 3), 0.1)
    assert mask.shape == (n, 3) and mask.dtype == torch.float32
    assert set(mask.unique().tolist()) <= {0.0, torch.tensor(1 / 0.9).item()}
    if n > 1000:
        share = (mask == 0).float().mean().item()
        assert abs(share - 0.1) < 5 * (0.09 / mask.numel()) ** 0.5
        of_columns = (mask == 0).float().mean(dim=0)
        assert (of_columns - 0.1).abs().max() < 5 * (0.09 / n) ** 0.5
        neighbours = (mask[1:] == 0) & (mask[:-1] == 0)
        assert abs(neighbours.float().mean().item() - 0.01) < 5 * (0.01 / mask.numel()) ** 0.5


def test_forward_and_backward_drop_the_same():
    """A layer is linear in x for a given mask: its gradient by x is its slope."""
    model = adapted("llama", dropout=0.5)
    fuse_lora(model)
    layer = next(module for module in model.modules() if isinstance(module, LoraLinear)).double()
    x = torch.randn(6, layer.in_features, dtype=torch.float64, requires_grad=True)
    step = torch.randn_like(x)

    def result(at):
        torch.manual_seed(9)
        return layer.forward(at).square().sum()

    result(x).backward()
    with torch.no_grad():
        slope = (result(x + 1e-6 * step) - result(x - 1e-6 * step)) / 2e-6
    assert slope.item() == pytest.approx((x.grad * step).sum().item(), rel=1e-6)
    torch.manual_seed(9)
    dropped = layer.forward(x)
    layer.eval()
    assert not torch.allclose(dropped, layer.forward(x))


def test_dropout_is_for_training_alone():
    model = adapted("llama", dropout=0.5)
    fuse_lora(model)
    model.eval()
    ids = torch.arange(9)[None]
    assert model(ids).logits.equal(model(ids).logits)
    expected = adapted("llama", dropout=0.5).eval()(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-6)


def test_a_model_without_its_adapter_is_the_base():
    model = adapted("llama")
    fuse_lora(model)
    ids = torch.arange(9)[None]
    with model.disable_adapter():
        without = model(ids).logits
    assert without.equal(tiny_causal_lm("llama", 300)(ids).logits)


def test_layers_of_another_kind_stay_as_they_are():
    assert fuse_lora(adapted("llama", use_dora=True)) == 0
    assert fuse_lora(adapted("llama", lora_bias=True)) == 0
    assert fuse_lora(adapted("llama").to("meta")) == 0


FAULTS = """
import resource, sys, torch
if sys.argv[1] == "kept":
    from utils.training import cpu
    cpu.keep_freed_memory()
for i in range(5):
    if i == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    several = [torch.empty(6 * 2**20).fill_(1) for _ in range(4)]
    del several
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux's malloc is steered")
def test_freed_memory_is_used_again():
    # A training in this process may have asked for huge pages already, which a child would inherit.
    plain = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}

    def faults(how):
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, check=True, capture_output=True, env=plain).stdout)

    assert faults("kept") < 0.3 * faults("plain")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_goes_back_every_few_layers_and_again_where_they_run_again(monkeypatch, checkpointing):
    n_layers = 2 * LAYERS_BETWEEN_TRIMS + 1
    model = tiny_causal_lm("llama", 300, num_hidden_layers=n_layers).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    expected = model(torch.tensor([[5, 6, 7]])).logits
    calls = []
    monkeypatch.setattr(cpu, "return_free_memory", lambda: calls.append("trim"))
    trim_between_layers(model.model.layers)
    logits = model(torch.tensor([[5, 6, 7]])).logits
    assert logits.equal(expected) and len(calls) == 3
    logits.sum().backward()
    assert len(calls) == (6 if checkpointing else 3)
