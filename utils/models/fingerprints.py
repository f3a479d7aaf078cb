"""Which model is this? A checksum of the weights themselves, wherever they lie and whatever they are called."""

import hashlib
from typing import Any

import torch

from utils.models.families import LensModel

# Of each parameter so many values are looked at: any training of a matrix, or an adapter merged into it, moves them.
VALUES_OF_A_PARAMETER = 256


def weights_fingerprint(model: LensModel) -> str:
    """16 hex digits of the base model's parameters: names, shapes and some values; a live adapter is left out.

    Values are rounded to bfloat16, so that a checkpoint has one fingerprint in float32 and in bfloat16.
    """
    causal_lm: Any = model.causal_lm
    adapted = hasattr(causal_lm, "get_base_model")
    base = causal_lm.get_base_model() if adapted else causal_lm
    of_adapter = (causal_lm.base_model.prefix, "modules_to_save.") if adapted else ()
    digest = hashlib.sha256()
    for name, parameter in sorted(base.named_parameters(), key=lambda item: _plain(item[0])):
        if any(mark in name for mark in of_adapter):
            continue
        flat = parameter.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // VALUES_OF_A_PARAMETER)]
        values = some.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes()
        digest.update(f"{_plain(name)} {tuple(parameter.shape)}".encode() + values)
    return digest.hexdigest()[:16]


def _plain(name: str) -> str:
    """A parameter's name without what PEFT puts around the module that it adapts."""
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")
