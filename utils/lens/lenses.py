"""Lenses: from what the residual stream is after a layer to what the final norm and the unembedding can read.

    logit     h_l                       nostalgebraist 2020
    tuned     h_l + A_l h_l + b_l       Belrose et al. 2023: KL to the last layer, an affine map a layer
    jacobian  J_l h_l                   Gurnee et al. 2026: J_l = E[d h_L / d h_l]

All have one signature: hidden states [..., layer, width] -> the same shape, in the last layer's coordinates; the last
layer is left as it is. What reads hidden states (`reading`) reads these in their place.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from utils.models.families import LensModel
from utils.models.fingerprints import weights_fingerprint
from utils.runs import CONFIG, METRICS, sha256_of_file, write_atomically

WEIGHTS = "lens.safetensors"


@dataclass(frozen=True)
class LogitLens:
    """The plain lens: every layer is read in the last one's coordinates."""

    kind: ClassVar[str] = "logit"
    # What a run's configuration says of its lens, and what its null is kept by.
    about: dict = field(default_factory=dict)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return states


@dataclass(frozen=True)
class _LinearLens:
    matrices: torch.Tensor  # [layer, width, width], of the layers before the last
    about: dict = field(default_factory=dict)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Computed in the dtype of the maps, whatever that of the states."""
        below = states[..., :-1, :].to(self.matrices.dtype)
        return torch.cat([self.moved(below).to(states.dtype), states[..., -1:, :]], dim=-2)

    def moved(self, states: torch.Tensor) -> torch.Tensor:
        """The map of each layer but the last: [..., layer, width] -> the same shape."""
        return torch.einsum("lij,...lj->...li", self.matrices, states)

    def to(self, device: torch.device):
        tensors = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return type(self)(**tensors, about=self.about)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"matrices": self.matrices}

    def save(self, folder: Path) -> None:
        """lens.safetensors; the run's config.json says what it is of."""
        content = save({name: tensor.cpu().contiguous() for name, tensor in self.tensors().items()})
        write_atomically(folder / WEIGHTS, lambda file: file.write(content))


@dataclass(frozen=True)
class JacobianLens(_LinearLens):
    """J_l h_l; matrices[l] = J_l."""

    kind: ClassVar[str] = "jacobian"


@dataclass(frozen=True)
class TunedLens(_LinearLens):
    """h_l + A_l h_l + b_l; matrices[l] = A_l, biases[l] = b_l."""

    kind: ClassVar[str] = "tuned"
    biases: torch.Tensor = field(default_factory=lambda: torch.zeros(0))  # [layer, width]

    @classmethod
    def start(cls, n_layers: int, width: int) -> "TunedLens":
        """The tuned lens before it is tuned: the logit lens."""
        return cls(torch.zeros(n_layers, width, width), biases=torch.zeros(n_layers, width))

    def moved(self, states: torch.Tensor) -> torch.Tensor:
        return states + super().moved(states) + self.biases

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"matrices": self.matrices, "biases": self.biases}


Lens = LogitLens | JacobianLens | TunedLens
LOGIT = LogitLens()
FITTED: dict[str, type[JacobianLens] | type[TunedLens]] = {"tuned": TunedLens, "jacobian": JacobianLens}


def fitted_for(model: LensModel, name: str, adapter: Path | None) -> dict:
    """What a lens belongs to: the weights, the adapter in them, and the sizes that its maps must have."""
    return {
        "model": name,
        "weights": weights_fingerprint(model),
        "adapter_sha256": adapter and sha256_of_file(adapter / "adapter_model.safetensors"),
        "model_type": model.config.model_type,
        "n_layers": len(model.layers),
        "width": model.width,
    }


def load_lens(folder: Path | None, model: LensModel, adapter: Path | None, of_base: bool = False) -> Lens:
    """The lens that `--lens` names, on the model's device; None is the logit lens.

    of_base: a lens of other weights of the same shape is what is wanted, such as one of the model without its adapter.
    Raises ValueError where the folder holds no whole lens, or another model's or another adapter's.
    """
    if folder is None:
        if of_base:
            raise ValueError("--lens_of_base goes with --lens")
        return LOGIT
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS, METRICS):
        if not (folder / name).is_file():
            raise ValueError(f"--lens {folder}: no {name} in it, so it is no finished lens of fit_lens.py")
    try:
        configuration = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        arguments, belongs = configuration["arguments"], configuration["inputs"]["fitted_for"]
        kind, langs = arguments["lens"], arguments["langs"]
        tensors = load((folder / WEIGHTS).read_bytes())
        lens_class = FITTED[kind]
        _refuse_other_model(folder, belongs, fitted_for(model, belongs["model"], adapter), of_base)
        shape = (belongs["n_layers"], belongs["width"], belongs["width"])
    except (KeyError, TypeError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"--lens {folder}: a damaged lens ({error!r}); fit it anew") from None
    if (
        set(tensors) != {"matrices", "biases"} & set(lens_class.__dataclass_fields__)
        or tensors["matrices"].shape != shape
    ):
        raise ValueError(f"--lens {folder}: {WEIGHTS} holds no {kind} lens of {shape[0]} layers of width {shape[1]}")
    about = {"kind": kind, "langs": langs, "sha256": sha256_of_file(folder / WEIGHTS)}
    return lens_class(**tensors, about=about).to(model.device)


def _refuse_other_model(folder: Path, theirs: dict, ours: dict, of_base: bool) -> None:
    for key in ("model_type", "n_layers", "width"):
        if theirs[key] != ours[key]:
            raise ValueError(
                f"--lens {folder}: fitted for {theirs['model']}, whose {key} is {theirs[key]}, not {ours[key]}"
            )
    if of_base:
        return
    if theirs["weights"] != ours["weights"]:
        raise ValueError(
            f"--lens {folder}: fitted for other weights, those of {theirs['model']}; fit one for this model, or read "
            "with it all the same by --lens_of_base"
        )
    if theirs["adapter_sha256"] != ours["adapter_sha256"]:
        was = "another adapter" if theirs["adapter_sha256"] else "the model without an adapter"
        raise ValueError(
            f"--lens {folder}: fitted for {was}; fit one for what --adapter says, or read with it all the same by "
            "--lens_of_base"
        )
