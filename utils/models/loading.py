"""Models and their tokenizers, and all that differs between model families: this is the only place that knows."""

import importlib.util
import os
import threading
import urllib.request
import warnings
from pathlib import Path
from typing import TypeGuard

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from utils.models.families import LensModel, family_of, lens_model
from utils.models.offline import OFFLINE_MODEL, begin_as_gguf_says, offline_model, silence_transformers
from utils.runs import sha256_of_file

HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
HUB_TIMEOUT_SECONDS = 3.0


def load_model(
    name: str, adapter: Path | None = None, dtype: str = "auto", device: str = "auto", quantization: str = "none"
) -> LensModel:
    """A hub id, a local folder, a .gguf file or `gemma-3-270m`; with the PEFT adapter of a folder.

    dtype auto: float32 on a CPU, the checkpoint's on a GPU. device auto: the GPU where there is one.
    quantization: none, 8bit or 4bit, by bitsandbytes, on a GPU.
    Raises ValueError, in one line, for whatever can't be loaded.
    """
    silence_transformers()
    place = _resolve_device(device)
    source = _resolve(name)
    config = _from_pretrained(AutoConfig, name, source)
    family_of(config)
    tokenizer = load_tokenizer(name)
    if family_of(config).needs_bos and tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
        raise ValueError(
            f"--model {name}: its tokenizer does not begin a text with the token that {config.model_type} needs"
        )
    chosen = _resolve_dtype(dtype, place, config)
    options = {"dtype": chosen, "config": config, "use_safetensors": not _is_gguf(source)}
    if quantization != "none":
        options |= {"quantization_config": _quantized(quantization, place, chosen), "device_map": {"": place}}
    causal_lm, report = _from_pretrained(AutoModelForCausalLM, name, source, **options, output_loading_info=True)
    if absent := sorted({*report["missing_keys"], *map(str, report["mismatched_keys"])}):
        # transformers fills what a checkpoint lacks with random numbers, and goes on.
        raise ValueError(f"--model {name}: the checkpoint lacks {len(absent)} of the model's weights: {absent[0]}")
    if quantization == "none":
        causal_lm = causal_lm.to(place)
    if adapter is not None:
        causal_lm = _with_adapter(causal_lm, name, Path(adapter))
    return lens_model(causal_lm, tokenizer)


def _quantized(quantization: str, device: torch.device, dtype: torch.dtype):
    if device.type != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"--quantization {quantization}: needs a GPU and `pip install bitsandbytes`; choose from none")
    if quantization == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
    )


def load_tokenizer(name: str):
    """The tokenizer of whatever `load_model` takes."""
    silence_transformers()
    source = _resolve(name)
    tokenizer = _from_pretrained(AutoTokenizer, name, source)
    if _is_gguf(source):
        begin_as_gguf_says(tokenizer, source)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(f"--model {name}: no fast tokenizer ({type(tokenizer).__name__})")
    return tokenizer


def _resolve(name: str) -> Path | str:
    """A folder, a .gguf file or a hub id. Raises ValueError where none of them can be had."""
    if name == OFFLINE_MODEL:
        return offline_model()
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"--model {name}: no config.json in that folder")
        return path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"--model {name}: no such file")
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ValueError(f"--model {name}: no such folder; give a hub id, a folder, a .gguf file or {OFFLINE_MODEL}")
    _require_hub(name)
    return name


def _is_gguf(source: Path | str) -> TypeGuard[Path]:
    return isinstance(source, Path) and source.suffix == ".gguf"


def _from_pretrained(auto_class, name: str, source, **options):
    if _is_gguf(source):
        source, options["gguf_file"] = source.parent, source.name
    try:
        return auto_class.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"--model {name}: {' '.join(str(error).split())[:300]}") from None


def _require_hub(name: str) -> None:
    """Raises ValueError at once where a hub id is neither in the local cache nor to be had from the hub.

    The hub's own client waits and retries for minutes; a name server that never answers blocks any client.
    """
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    answer: list = []
    thread = threading.Thread(target=lambda: answer.append(_ask_hub(name)), daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_SECONDS)
    if not answer or answer[0] == "unreachable":
        raise ValueError(
            f"--model {name}: the hub ({HUB}) can't be reached and the model is not in the local cache; "
            f"this works offline: --model {OFFLINE_MODEL} (after `make install`)"
        )
    if answer[0] == 404 or (answer[0] == 401 and not _logged_in()):
        raise ValueError(f"--model {name}: the hub has no such model, or it is private or gated and needs a login")


def _ask_hub(name: str) -> int | str:
    """The HTTP status of the hub's page on a model, or `unreachable`."""
    try:
        with urllib.request.urlopen(f"{HUB}/api/models/{name}", timeout=HUB_TIMEOUT_SECONDS) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return "unreachable"


def _logged_in() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _resolve_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        if resolved.type == "meta":
            raise RuntimeError("a device without memory")
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {device}: not to be had here ({reason}); choose from auto, cpu, cuda") from None
    return resolved


def _resolve_dtype(dtype: str, device: torch.device, config) -> torch.dtype:
    if dtype != "auto":
        return getattr(torch, dtype)
    stored = getattr(config, "dtype", None) or torch.float32
    return stored if device.type == "cuda" else torch.float32


def _with_adapter(causal_lm, name: str, folder: Path):
    """The model with a PEFT adapter live in it. Raises ValueError for an adapter that is another model's."""
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    weights = folder / "adapter_model.safetensors"
    for path in (folder / "adapter_config.json", weights):
        if not path.is_file():
            raise ValueError(f"--adapter {folder}: no {path.name} in it, so it is no PEFT adapter")
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"--adapter {folder}: adapter_config.json can't be read ({error})") from None
    made_for = (config.base_model_name_or_path or "").rstrip("/")
    if made_for and Path(made_for).name.lower() != Path(name.rstrip("/")).name.lower():
        raise ValueError(f"--adapter {folder}: made for {made_for}, not for --model {name}")
    if config.is_prompt_learning:
        raise ValueError(
            f"--adapter {folder}: {config.peft_type} adds virtual tokens; only LoRA and its like are taken"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of what is refused below
            adapted = PeftModel.from_pretrained(causal_lm, folder)
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"--adapter {folder}: does not fit --model {name} ({reason})") from None
    # PEFT passes over keys that the model has no place for; an adapter of a deeper model would half apply.
    with safe_open(weights, framework="pt") as stored:
        # Asked for its default, PEFT would look on the hub whether the vocabulary had grown.
        strangers = min(
            (
                set(stored.keys()) ^ set(get_peft_model_state_dict(adapted, save_embedding_layers=embeddings))
                for embeddings in (False, True)
            ),
            key=len,
        )
    if strangers:
        raise ValueError(f"--adapter {folder}: does not fit --model {name} (as to {min(strangers)})")
    return adapted


def provenance(model: LensModel, adapter: Path | None) -> dict:
    """What a run's configuration says of its model, beyond its name."""
    return {
        "adapter_sha256": adapter and sha256_of_file(adapter / "adapter_model.safetensors"),
        "model_type": model.config.model_type,
        "model_commit": getattr(model.config, "_commit_hash", None),
        "n_layers": len(model.layers),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }


def weights_on_disk(name: str) -> list:
    """Name, size and time of a local model's weight files: another list is another model. Empty for a hub id."""
    path = offline_model() if name == OFFLINE_MODEL else Path(name).expanduser()
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) if path.is_dir() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def checkpoint(name: str, revision: str) -> str:
    """What `load_model` takes for a checkpoint of a pre-training run: a revision of a hub id, or a folder's subfolder.

    Raises ValueError where there is none.
    """
    if Path(name).expanduser().is_dir():
        folder = Path(name).expanduser() / revision
        if not (folder / "config.json").is_file():
            others = ", ".join(sorted(path.parent.name for path in folder.parent.glob("*/config.json"))) or "none"
            raise ValueError(f"--revisions {revision}: no checkpoint {folder}; there are {others}")
        return str(folder)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    _resolve(name)
    files = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        return snapshot_download(name, revision=revision, allow_patterns=files)
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(f"--revisions {revision}: {name} has no such checkpoint to be had ({error})") from None
