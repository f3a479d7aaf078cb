"""What must hold before a number is used: finite states and logits, and distributions that differ by rounding alone."""

import torch

# Total variation distance that rounding may cause between two ways to the same distribution. In float32, of Gemma 3
# 270M: rounding moves most prompts by 1e-6 to 1e-5, and one of a tuned model by 2.2e-4 (in float64 by nothing); of
# seven faults in the reading of two prompts, such as one token of the context that is not attended to, each moves one
# prompt at least by .0038. The bound is half-way between, by ratio.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}


def require_finite(finite: torch.Tensor, what: str, dtype: torch.dtype) -> None:
    """Raises ValueError, naming what isn't finite, the first such layer and the dtype.

    finite: [layer] of bool, or a single one where there are no layers to name.
    """
    if finite.all():
        return
    layer = f" at layer {int((~finite).nonzero()[0])}" if finite.dim() else ""
    name = str(dtype).removeprefix("torch.")
    advice = "the model or its adapter is damaged" if dtype == torch.float32 else "try --dtype float32"
    raise ValueError(f"{what} not finite{layer} in {name}: {advice}")


def total_variation(p: torch.Tensor, q: torch.Tensor) -> float:
    """Half the L1 distance of two distributions, the largest over all but the last dimension."""
    return float(0.5 * (p - q).abs().sum(dim=-1).max())
