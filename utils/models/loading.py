"""Models and their tokenizers, and all that differs between model families: this is the only place that knows."""

import contextlib
import dataclasses
import http.client
import importlib.util
import json
import os
import re
import struct
import threading
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from utils.checksums import known_sha256
from utils.models.families import LensModel, family_of, lens_model
from utils.models.offline import OFFLINE_MODEL, begin_as_gguf_says, offline_model, silence_transformers
from utils.outside import read_utf8
from utils.processes import uncollected
from utils.schemas import AdapterConfiguration, require_form

HUB = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
HUB_TIMEOUT_SECONDS = 3.0
# What transformers, PEFT and safetensors raise on configurations and weights that are none, or of wrong types.
FOREIGN_FILE_ERRORS = (
    *(OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ArithmeticError, ImportError),
    *(AssertionError, EOFError, MemoryError, struct.error, SafetensorError, StrictDataclassError),
)
# No language model has half as many.
MOST_LAYERS = 1000
# What a folder's model and tokenizer are read from.
READ_SUFFIXES = (".safetensors", ".json", ".txt", ".model")
# Buffers that older releases of transformers saved, and newer ones compute.
COMPUTED_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias|position_ids)$")


@uncollected()
def load_model(
    name: str,
    adapter: Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantization: str = "none",
    device_map: str = "none",
) -> LensModel:
    """A hub id, a local folder, a .gguf file or `gemma-3-270m`; with the PEFT adapter of a folder.

    dtype auto: float32 on a CPU, the checkpoint's on a GPU. device auto: the GPU where there is one.
    quantization: none, 8bit or 4bit, by bitsandbytes, on a GPU. device_map auto: accelerate lays the model's layers
    out over the devices at hand, in place of `device`.
    Raises ValueError, in one line, for whatever can't be loaded.
    """
    silence_transformers()
    if device_map == "auto" and device != "auto":
        raise ValueError(f"--device_map auto: it chooses the devices itself; leave --device {device} out")
    place = _resolve_device(device)
    source = _resolve(name)
    config = _from_pretrained(transformers.AutoConfig, name, source)
    family_of(config)
    _require_layers(config, name)
    tokenizer = load_tokenizer(name)
    _begin_texts_once(tokenizer, name, config)
    chosen = _resolve_dtype(dtype, place, config)
    options = {"dtype": chosen, "config": config, "use_safetensors": not _is_gguf(source)}
    if quantization != "none":
        options |= {"quantization_config": _quantized(quantization, place, chosen), "device_map": {"": place}}
    if device_map == "auto":
        options["device_map"] = "auto"
    causal_lm, report = _from_pretrained(
        transformers.AutoModelForCausalLM, name, source, **options, output_loading_info=True
    )
    if absent := sorted({*report["missing_keys"], *map(str, report["mismatched_keys"])}):
        # transformers fills what a checkpoint lacks with random numbers, and goes on.
        raise ValueError(f"--model {name}: the checkpoint lacks {len(absent)} of the model's weights: {absent[0]}")
    if strange := sorted(key for key in map(str, report["unexpected_keys"]) if not COMPUTED_BUFFERS.search(key)):
        raise ValueError(
            f"--model {name}: the checkpoint has {len(strange)} weights that the model of its config.json has not, so "
            f"it is another model's: {strange[0]}"
        )
    if "device_map" not in options:
        causal_lm = causal_lm.to(place)
    if adapter is not None:
        causal_lm = _with_adapter(causal_lm, name, Path(adapter))
    with _foreign_file(f"--model {name}"):
        model = lens_model(causal_lm, tokenizer)
    n_rows, n_pieces = len(causal_lm.get_input_embeddings().weight), tokenizer.backend_tokenizer.get_vocab_size(False)
    if n_pieces > n_rows:
        raise ValueError(f"--model {name}: its tokenizer has {n_pieces} pieces, its embedding {n_rows} rows")
    tokenizer.n_embedded = n_rows  # tokens that were added to it may lie past them: Gemma 3's <image_soft_token>
    return dataclasses.replace(model, files=_files_of(source))


def _require_layers(config, name: str) -> None:
    """transformers makes a configuration's layers one by one, until memory ends, before it looks at the weights."""
    n_layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(n_layers, int) and not 1 <= n_layers <= MOST_LAYERS:
        raise ValueError(f"--model {name}: config.json has {n_layers} layers; a model here has 1 to {MOST_LAYERS}")


def _begin_texts_once(tokenizer, name: str, config) -> None:
    """The begin token of families that need it is set here, whatever the tokenizer's file says of it."""
    begin = tokenizer.bos_token_id
    if family_of(config).needs_bos and tokenizer("a")["input_ids"][0] != begin:
        tokenizer.add_bos_token = True
        if tokenizer("a")["input_ids"][0] != begin:
            raise ValueError(
                f"--model {name}: its tokenizer does not begin a text with the token that {config.model_type} needs"
            )
    if begin is not None and tokenizer("a")["input_ids"][:2] == [begin, begin]:
        raise ValueError(f"--model {name}: its tokenizer begins a text with {tokenizer.bos_token} twice")


def _quantized(quantization: str, device: torch.device, dtype: torch.dtype):
    if device.type != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"--quantization {quantization}: needs a GPU and `pip install bitsandbytes`; choose from none")
    if quantization == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
    )


@uncollected()
def load_tokenizer(name: str):
    """The tokenizer of whatever `load_model` takes."""
    silence_transformers()
    source = _resolve(name)
    tokenizer = _from_pretrained(transformers.AutoTokenizer, name, source)
    if _is_gguf(source):
        with _foreign_file(f"--model {name}"):
            begin_as_gguf_says(tokenizer, source)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(f"--model {name}: no fast tokenizer ({type(tokenizer).__name__})")
    _read_texts_whole(tokenizer)
    return tokenizer


def _read_texts_whole(tokenizer) -> None:
    """Undo what a tokenizer that was saved after a padded or cut call, or while it was trained, brings with it.

    With padding on, a token comes with others; with dropout, a text is other tokens each time.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = tokenizer.split_special_tokens = False
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None


def _resolve(name: str) -> Path | str:
    """A folder, a .gguf file or a hub id. Raises ValueError where none of them can be had."""
    if name == OFFLINE_MODEL:
        return offline_model()
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"--model {name}: no config.json in that folder")
        _require_own_shards(name, path)
        return path
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"--model {name}: no such file")
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ValueError(f"--model {name}: no such folder; give a hub id, a folder, a .gguf file or {OFFLINE_MODEL}")
    _require_hub(name)
    return name


def _require_own_shards(name: str, folder: Path) -> None:
    """Raises ValueError where an index of shards names what is no file of its folder."""
    for index in folder.glob("*.safetensors.index.json"):
        try:
            shards = {*json.loads(read_utf8(index))["weight_map"].values()}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"--model {name}: {index.name} is no index of shards") from None
        for shard in sorted(map(str, shards)):
            if Path(shard).name != shard or not (folder / shard).is_file():
                raise ValueError(f"--model {name}: {index.name} names {shard!r}, which is no file in that folder")


def _is_gguf(source: Path | str) -> TypeGuard[Path]:
    return isinstance(source, Path) and source.suffix == ".gguf"


def _from_pretrained(auto_class, name: str, source, **options):
    if _is_gguf(source):
        source, options["gguf_file"] = source.parent, source.name
    with _foreign_file(f"--model {name}"):
        # Code that a download brings is never run, and nobody is asked whether it may.
        return auto_class.from_pretrained(source, trust_remote_code=False, **options)


@contextlib.contextmanager
def _foreign_file(what: str) -> Iterator[None]:
    """What a library raises while it reads a stranger's file is a ValueError of one line that begins with `what`."""
    try:
        yield
    except BaseException as error:
        # tokenizers raises Exception itself, and Rust's panics, which are no Exception.
        is_tokenizers = type(error) is Exception or type(error).__name__ == "PanicException"
        if not is_tokenizers and not isinstance(error, FOREIGN_FILE_ERRORS):
            raise
        raise ValueError(f"{what}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, OSError | ValueError) and text else f"{type(error).__name__}: {text}"


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
    if answer[0] == "no address":
        raise ValueError(f"--model {name}: HF_ENDPOINT is {HUB!r}, which is no address; https://huggingface.co is one")
    if isinstance(answer[0], int) and answer[0] >= 500:
        raise ValueError(f"--model {name}: the hub ({HUB}) answers {answer[0]}; try again later")
    if answer[0] == 404 or (answer[0] == 401 and not _logged_in()):
        raise ValueError(f"--model {name}: the hub has no such model, or it is private or gated and needs a login")


def _ask_hub(name: str) -> int | str:
    """The HTTP status of the hub's page on a model, or `unreachable`."""
    try:
        with urllib.request.urlopen(f"{HUB}/api/models/{name}", timeout=HUB_TIMEOUT_SECONDS) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return "unreachable"
    except ValueError:
        return "no address"


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
        if resolved.type == "cpu" and resolved.index:
            raise RuntimeError("there is one CPU")
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
        content = json.loads(read_utf8(folder / "adapter_config.json"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--adapter {folder}: adapter_config.json can't be read ({error})") from None
    require_form(AdapterConfiguration, content, f"--adapter {folder}: adapter_config.json")
    with _foreign_file(f"--adapter {folder}: adapter_config.json can't be read"):
        config = PeftConfig.from_pretrained(str(folder))
    made_for = (config.base_model_name_or_path or "").rstrip("/")
    if made_for and Path(made_for).name.lower() != Path(name.rstrip("/")).name.lower():
        raise ValueError(f"--adapter {folder}: made for {made_for}, not for --model {name}")
    if config.is_prompt_learning:
        raise ValueError(
            f"--adapter {folder}: {config.peft_type} adds virtual tokens; only LoRA and its like are taken"
        )
    with _foreign_file(f"--adapter {folder}: does not fit --model {name}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of what is refused below
        adapted = PeftModel.from_pretrained(causal_lm, folder)
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
        "model_sha256": {path.name: known_sha256(path) for path in model.files},
        "adapter_sha256": adapter and known_sha256(adapter / "adapter_model.safetensors"),
        "adapter_config_sha256": adapter and known_sha256(adapter / "adapter_config.json"),
        "model_type": model.config.model_type,
        "model_commit": getattr(model.config, "_commit_hash", None),
        "n_layers": len(model.layers),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }


def model_checksums(name: str) -> dict[str, str]:
    """Name of each file that a local model is read from -> its SHA-256; nothing for a hub id."""
    path = offline_model() if name == OFFLINE_MODEL else Path(name).expanduser()
    return {file.name: known_sha256(file) for file in _files_of(path)} if path.exists() else {}


def _files_of(source: Path | str) -> tuple[Path, ...]:
    """What a model and its tokenizer are read from; nothing for a hub id, whose commit says the same."""
    if isinstance(source, str):
        return ()
    if source.is_file():
        return (source,)
    return tuple(sorted(p for p in source.iterdir() if p.suffix in READ_SUFFIXES and p.is_file()))


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
