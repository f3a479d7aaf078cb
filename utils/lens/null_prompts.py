"""What a lens reads from prompts without content: sequences of random text tokens, as long as the prompts."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils.lens import reading
from utils.lens.lenses import LOGIT, Lens
from utils.models.arithmetic import quick_maps
from utils.models.families import LensModel
from utils.models.hidden_states import Prompt, batches, encode, hidden_states
from utils.runs import PROJECT_DIR, read_arrays, write_arrays, write_json
from utils.token_languages.matrix import TokenLanguages
from utils.token_languages.shares import FIT_VERSION

N_NULL_PROMPTS = 60
# Lengths are rounded to a multiple of this, so that a null serves the next data set too.
LENGTH_STEP = 16
NULLS = PROJECT_DIR / "results" / "nulls"


def null_length(prompts: list[Prompt]) -> int:
    """The median length of the prompts in tokens, to the next LENGTH_STEP, at least one of it."""
    lengths = sorted(len(prompt.ids) for prompt in prompts)
    return max(LENGTH_STEP, round(lengths[len(lengths) // 2] / LENGTH_STEP) * LENGTH_STEP)


def null_shares(
    model: LensModel,
    matrix: TokenLanguages,
    identity: dict,
    length: int,
    seed: int,
    max_tokens: int,
    lens: Lens = LOGIT,
) -> np.ndarray:
    """The shares that the lens reads from N_NULL_PROMPTS random prompts, taken as one set: [layer, channel].

    Each prompt is `length` tokens, drawn evenly from the vocabulary's text tokens after the tokenizer's own begin
    token, and read at its last one. Made once for an `identity` (model, adapter, matrix, lens), a length and a seed,
    and kept under results/nulls/.
    """
    identity = {**identity, "length": length, "seed": seed, "n": N_NULL_PROMPTS, "fit": FIT_VERSION}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    folder = NULLS / f"{Path(identity['model']).name}-{length}-{digest}"
    if not (folder / "config.json").exists():
        shares = _read(model, matrix, random_prompts(model, matrix, length, seed), max_tokens, lens)
        folder.mkdir(parents=True, exist_ok=True)
        write_arrays(folder / "null_share.npz", null_share=shares)
        write_json(folder / "config.json", identity)  # last: it says that all is there
    return read_arrays(folder / "null_share.npz")["null_share"]


def random_prompts(model: LensModel, matrix: TokenLanguages, length: int, seed: int) -> list[Prompt]:
    """N_NULL_PROMPTS prompts of text tokens drawn evenly, with the tokenizer's own begin token."""
    is_text = np.asarray(matrix.probs[: model.n_tokens, : matrix.n_languages].sum(axis=1)).ravel() > 0
    tokens, rng = np.flatnonzero(is_text).tolist(), random.Random(seed)
    begin = encode(model.tokenizer, "")
    length = max(length - len(begin), 1)
    texts = [begin + rng.choices(tokens, k=length) for _ in range(N_NULL_PROMPTS)]
    return [Prompt(ids, [len(ids) - 1]) for ids in texts]


def _read(model: LensModel, matrix: TokenLanguages, prompts: list[Prompt], max_tokens: int, lens: Lens) -> np.ndarray:
    dense = torch.from_numpy(matrix.dense[: model.n_tokens]).to(model.device)
    sums = np.zeros((len(model.layers) + 1, model.n_tokens))
    bar = tqdm(total=len(prompts), desc="null prompts", unit="prompt", leave=False, disable=None)
    with bar, quick_maps(model):
        for batch in batches(prompts, None, max_tokens):
            chosen = [prompts[i] for i in batch]
            result = reading.read(model, chosen, lens(hidden_states(model, chosen)), dense)
            sums += result.vocab_prob_sums.double().cpu().numpy()
            bar.update(len(batch))
    probs = np.zeros((len(sums), matrix.probs.shape[0]))
    probs[:, : model.n_tokens] = sums / sums.sum(axis=1, keepdims=True)
    return matrix.shares(probs, torch.float32)  # as the prompts' own are fitted
