"""Adapters as they are saved, and checkpoints, which count when all of one is there as it was written."""

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from utils.checksums import known_sha256
from utils.runs import write_json

LEAST_FREE_BYTES = 1 << 20
SEAL = "whole.json"  # of a checkpoint: name of each of its files -> its checksum; written last
ADAPTER_CONFIG = "adapter_config.json"
# Without any of these a training would go on as another one.
NEEDED = ("adapter_model.safetensors", ADAPTER_CONFIG, "optimizer.pt", "scheduler.pt", "trainer_state.json")


def save_adapter(adapted, folder: Path, state_dict: dict | None = None) -> None:
    """The adapter in PEFT's own format, the same bytes every time. Raises ValueError where it is not finite.

    PEFT would ask the hub whether the base model's vocabulary had grown, and writes sets in their hash order.
    """
    require_finite_weights(adapted)
    with full_disk_in_one_line(folder):
        adapted.save_pretrained(str(folder), state_dict=state_dict, save_embedding_layers=False)
    path = Path(folder) / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {key: _in_order(value) for key, value in config.items()})


@contextlib.contextmanager
def full_disk_in_one_line(folder: Path) -> Iterator[None]:
    """torch and safetensors say of a write that failed what they were at, and not why; the disk does."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        is_full = "No space left" in str(error) or shutil.disk_usage(Path(folder).parent).free < LEAST_FREE_BYTES
        if not is_full:
            raise
        raise OSError(errno.ENOSPC, "No space left on device", str(folder)) from None


def _in_order(value):
    is_set = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return sorted(value) if is_set else value


def require_finite_weights(adapted) -> None:
    """The loss says that a step's weights are finite but the last one's, after which nothing is computed."""
    for name, weights in adapted.named_parameters():
        if weights.requires_grad and not torch.isfinite(weights).all():
            raise ValueError(
                f"the adapter is not finite after its last update ({name}); it is not saved, and the last checkpoint "
                "is kept; try a smaller --learning_rate, or --dtype float32"
            )


def seal(checkpoint: Path) -> None:
    """Say that a checkpoint is whole, and of which files."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != SEAL)
    write_json(checkpoint / SEAL, {path.relative_to(checkpoint).as_posix(): known_sha256(path) for path in files})


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint of which all is there as it was written; None where there is none."""
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return next((path for path in sorted(numbered, key=_step, reverse=True) if _is_whole(path)), None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _is_whole(checkpoint: Path) -> bool:
    try:
        files = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return (
            {*NEEDED} <= files.keys()
            and any(name.startswith("rng_state") for name in files)
            and state["global_step"] == _step(checkpoint)
            and all(known_sha256(checkpoint / name) == digest for name, digest in files.items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # cut short, or another program's
        return False
