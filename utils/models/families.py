"""The model families: where each keeps its layers and its final norm, and what it does after the norm.

All branching on families is here; one that is not listed is refused by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import transformers


@dataclass(frozen=True)
class Family:
    """Where a family keeps what the lens needs, as attributes of its decoder, and what it does to each of its logits.

    lora_targets: the names of the linear maps of its attention and its MLP.
    mlp_maps: within a layer, the MLP's map into its inner width, whose output the activation function takes, and its
    map back. An MLP with a gate has a third map, `up`, that only multiplies what the gate lets through.
    """

    layers: str
    final_norm: str
    lora_targets: tuple[str, ...]
    after_unembedding: Callable = lambda logits, config: logits
    # Gemma has never seen a text without its begin token, and writes nonsense after one.
    needs_bos: bool = False
    mlp_maps: tuple[str, str] = ("mlp.gate_proj", "mlp.down_proj")
    # The map into the MLP computes gate and up side by side: its first half is the gate.
    gate_is_first_half: bool = False


def _soft_cap(logits, config):
    cap = config.final_logit_softcapping
    return logits if cap is None else torch.tanh(logits / cap) * cap


_FUSED = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
_FUSED_MLP = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
_FAIRSEQ = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_GATED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PLAIN = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
_LLAMA_LIKE = Family("layers", "norm", _GATED)
_COHERE = Family("layers", "norm", _GATED, lambda logits, config: logits * config.logit_scale)
_GEMMA_WITH_CAP = Family("layers", "norm", _GATED, _soft_cap, needs_bos=True)
FAMILIES = {
    "bloom": Family("h", "ln_f", _FUSED, mlp_maps=_FUSED_MLP),
    "gpt2": Family("h", "ln_f", ("c_attn", "c_proj", "c_fc"), mlp_maps=("mlp.c_fc", "mlp.c_proj")),
    "gpt_neox": Family("layers", "final_layer_norm", _FUSED, mlp_maps=_FUSED_MLP),
    "opt": Family("layers", "final_layer_norm", _FAIRSEQ, mlp_maps=("fc1", "fc2")),
    "xglm": Family("layers", "layer_norm", _FAIRSEQ, mlp_maps=("fc1", "fc2")),
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "qwen3": _LLAMA_LIKE,
    "smollm3": _LLAMA_LIKE,
    "apertus": Family("layers", "norm", _PLAIN, mlp_maps=("mlp.up_proj", "mlp.down_proj")),
    "gemma": Family("layers", "norm", _GATED, needs_bos=True),
    "gemma2": _GEMMA_WITH_CAP,
    "gemma3_text": _GEMMA_WITH_CAP,
    "phi3": Family(
        "layers",
        "norm",
        ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        mlp_maps=("mlp.gate_up_proj", "mlp.down_proj"),
        gate_is_first_half=True,
    ),
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
    files: tuple[Path, ...] = ()  # what it was read from, where that is on this disk under no name of the hub's

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
    def width(self) -> int:
        """Coordinates of the residual stream."""
        return cast(torch.Tensor, self.unembedding.weight).shape[1]

    @property
    def max_positions(self) -> int | None:
        """The model's context in tokens; None where its configuration names no limit."""
        names = ("max_position_embeddings", "n_positions", "seq_length")
        return next((getattr(self.config, name) for name in names if getattr(self.config, name, None)), None)

    def head(self, normed: torch.Tensor) -> torch.Tensor:
        """All that the model does after its final norm: [..., width] -> logits [..., vocab], padding rows included."""
        # A model that lies on several devices has its unembedding on another one than what it is asked.
        return self.family.after_unembedding(self.unembedding(normed).to(normed.device), self.config)


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
