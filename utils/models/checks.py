"""What must hold before a number is used: finite states and logits, and distributions that differ by rounding alone."""

import torch

from utils.models.families import LensModel


def require_finite_states(states: torch.Tensor) -> None:
    finite = torch.isfinite(states).all(dim=2).all(dim=0)  # [layer]
    if not finite.all():
        layer = int((~finite).nonzero()[0])
        dtype = str(states.dtype).removeprefix("torch.")
        advice = "the model or its adapter is damaged" if dtype == "float32" else "try --dtype float32"
        raise ValueError(f"hidden states not finite at layer {layer} in {dtype}: {advice}")


# Total variation distance that rounding may cause between two ways to the same distribution.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


def require_finite_logits(log_total: torch.Tensor, model: LensModel) -> None:
    finite = torch.isfinite(log_total).all(dim=0)
    if not finite.all():
        layer = int((~finite).nonzero()[0])
        dtype = str(model.dtype).removeprefix("torch.")
        advice = "the model or its adapter is damaged" if dtype == "float32" else "try --dtype float32"
        raise ValueError(f"logits not finite at layer {layer} in {dtype}: {advice}")


def total_variation(p: torch.Tensor, q: torch.Tensor) -> float:
    return float(0.5 * (p - q).abs().sum(dim=-1).max())
