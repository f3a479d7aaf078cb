"""Training on a CPU, where much of a step is spent in asking the kernel for memory: fewer large tensors, and kept."""

import ctypes
import os
import sys
from collections.abc import Iterable

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from utils.models.arithmetic import LEAST_MAP, LONGEST_SUM, by_onednn, is_quick

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
# glibc's limit for a block that is kept for the next one of its size, not handed back.
LARGEST_KEPT = 32 * 2**20
LAYERS_BETWEEN_TRIMS = 4


def keep_freed_memory() -> None:
    """Large tensors go on huge pages, and the memory that they leave stays with the process.

    Without it a third of a step goes into page faults. To be called before the first tensor is made. Linux with glibc
    alone; elsewhere nothing happens.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch reads it at its first large tensor
    if malloc := _glibc():
        malloc.mallopt(M_TRIM_THRESHOLD, 2**30)
        malloc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)


def return_free_memory() -> None:
    """Give the pieces between small objects back, before they add up: once a batch costs little."""
    if malloc := _glibc():
        malloc.malloc_trim(0)


def _glibc():
    """The C library where it has glibc's ways to steer malloc, else None."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def trim_between_layers(layers: Iterable[torch.nn.Module]) -> None:
    """Give the pieces back before every fourth layer's pass too, also where checkpointing runs it again.

    What a layer leaves is too scattered for the next one: without it the heap grows by as much again with each layer.
    """
    for layer in list(layers)[::LAYERS_BETWEEN_TRIMS]:
        if next(layer.parameters()).device.type == "cpu":
            layer.register_forward_pre_hook(lambda *_: return_free_memory())


def fuse_lora(model: PeftModel) -> int:
    """Give every plain LoRA layer on a CPU a forward pass that makes two large tensors in place of six.

    What it computes is PEFT's: W x + b + s B A dropout(x). Quantized layers, other kinds of layer and layers on a GPU
    stay as they are. Returns how many layers were changed.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLinear) and _is_plain(module)]
    for layer in layers:
        layer.forward = _Fused(layer)  # type: ignore[method-assign]
    return len(layers)


def _is_plain(module: LoraLinear) -> bool:
    """One low-rank adapter without variants, on a torch.nn.Linear on the CPU."""
    return (
        type(module.base_layer) is torch.nn.Linear
        and module.base_layer.weight.device.type == "cpu"
        and len(module.active_adapters) == 1
        and not module.lora_variant
        and not any(module.lora_bias.values())
    )


class _Fused:
    def __init__(self, layer: LoraLinear):
        self.layer, self.by_peft = layer, layer.forward

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        layer, name = self.layer, self.layer.active_adapters[0]
        if layer.disable_adapters or layer.merged or _casts_from(layer.base_layer.weight.dtype):
            return self.by_peft(x)
        dropout = getattr(layer.lora_dropout[name], "p", 0.0) if layer.training else 0.0
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        base = layer.base_layer
        return _LoraLinear.apply(x, base.weight, base.bias, down, up, layer.scaling[name], dropout)


def _casts_from(dtype) -> bool:
    """Whether autocast computes in another dtype than that of the weights: PEFT's steps are what it is made for."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != dtype


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """weight x + bias without a gradient, [..., in] -> [..., out]; large maps of short sums by oneDNN, if it is there.

    A large unembedding's logits take two thirds of MKL's time, other maps nine tenths. Longer sums are MKL's: oneDNN
    adds them up term by term, so that gradients of Gemma 3 270M would be four times as far from those in float64.
    """
    pays = weight.numel() >= LEAST_MAP and x.shape[-1] <= LONGEST_SUM and is_quick(weight.device, weight.dtype)
    if pays and x.dtype == weight.dtype and not torch.is_autocast_enabled("cpu"):
        return by_onednn(x, weight, bias)
    return linear(x, weight, bias)


class _LoraLinear(torch.autograd.Function):
    """weight x + bias + scaling up down dropout(x) (Hu et al. 2022); x: [..., in], down: [rank, in], up: [out, rank].

    All in the dtype of weight, which is frozen.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, down, up, scaling, dropout):
        ctx.scaling, ctx.shape, ctx.dtypes = scaling, x.shape, (x.dtype, down.dtype, up.dtype)
        x, down, up = x.reshape(-1, x.shape[-1]).to(weight.dtype), down.to(weight.dtype), up.to(weight.dtype)
        keep = keep_mask(x, dropout) if dropout else None
        dropped = x if keep is None else keep * x
        inner = product(dropped, down)
        ctx.save_for_backward(weight, down, up, keep, dropped, inner)
        return product(x, weight, bias).addmm_(inner, up.T, alpha=scaling).view(*ctx.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, by_result):
        weight, down, up, keep, dropped, inner = ctx.saved_tensors
        by_result = by_result.reshape(-1, by_result.shape[-1]).to(weight.dtype)
        x_dtype, down_dtype, up_dtype = ctx.dtypes
        by_up = (by_result.T @ inner).mul_(ctx.scaling)
        by_inner = product(by_result, up.T).mul_(ctx.scaling)
        by_down = by_inner.T @ dropped
        by_x = None
        if ctx.needs_input_grad[0]:
            by_dropped = product(by_inner, down.T)
            by_dropped = by_dropped if keep is None else by_dropped.mul_(keep)
            by_x = product(by_result, weight.T).add_(by_dropped).view(ctx.shape).to(x_dtype)
        return by_x, None, None, by_down.to(down_dtype), by_up.to(up_dtype), None, None


def keep_mask(x: torch.Tensor, dropout: float) -> torch.Tensor:
    """0 with probability dropout (to 2^-16), else 1 / (1 - dropout), in the shape and dtype of x, which is on a CPU.

    PyTorch's own draws 64 random bits an element, one element after the other; 16 will do.
    """
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = bits[: x.numel()].view(x.shape) >= round(dropout * 2**16) - 2**15
    return kept.to(x.dtype).mul_(1 / (1 - dropout))
