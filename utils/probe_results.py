"""What a probe keeps while it runs, and the tables that it leaves."""

import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd

from utils.lens import Reading
from utils.results import read_arrays, standard_error, write_array, write_arrays, write_table
from utils.vocabulary import Piece, TokenLanguages, mean_row, written

RECORDS = "records"
SECONDS_BETWEEN_SAVES = 20.0


class LanguageRecord:
    """All readings of one prompt language, on disk between batches: a run that is killed goes on from here.

    Batches are added in a fixed order, so that the sums come out the same however often the run was stopped.
    """

    def __init__(self, path: Path, arrays: dict[str, np.ndarray]):
        self.path = path
        self.arrays = arrays
        self._saved_at = time.monotonic()

    @classmethod
    def open(cls, run: Path, lang: str, n_prompts: int, n_layers: int, n_channels: int, n_tokens: int):
        """The record in a run's folder, or an empty one."""
        path = run / RECORDS / f"{lang}.npz"
        if path.exists():
            return cls(path, read_arrays(path))
        path.parent.mkdir(exist_ok=True)
        empty = {
            "language_probs": np.zeros((n_prompts, n_layers, n_channels), np.float32),
            "scalars": np.zeros((n_prompts, n_layers, 3), np.float32),  # entropy, KL, agreement
            "vocab_prob_sums": np.zeros((n_layers, n_tokens), np.float64),
            "done": np.zeros(2, np.int64),  # batches, prompts
        }
        return cls(path, empty)

    @property
    def n_batches(self) -> int:
        return int(self.arrays["done"][0])

    @property
    def n_done(self) -> int:
        return int(self.arrays["done"][1])

    def add(self, batch: list[int], reading: Reading) -> None:
        scalars = (reading.entropy_bits, reading.kl_to_final_bits, reading.top1_agreement)
        self.arrays["language_probs"][batch] = reading.language_probs.cpu().numpy()
        self.arrays["scalars"][batch] = np.stack([scalar.cpu().numpy() for scalar in scalars], axis=-1)
        self.arrays["vocab_prob_sums"] += reading.vocab_prob_sums.cpu().numpy()
        self.arrays["done"] += (1, len(batch))

    def save_now_and_then(self) -> None:
        if time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        write_arrays(self.path, **self.arrays)
        self._saved_at = time.monotonic()

    @staticmethod
    def remove_all(run: Path) -> None:
        shutil.rmtree(run / RECORDS, ignore_errors=True)


def write_tables(run: Path, prompts: dict, matrix: TokenLanguages, n_tokens: int, pieces: list[Piece], top_k: int):
    """The tables of a finished run from its records. prompts: language -> [(example, prompt)]."""
    floor = mean_row(matrix.probs[:n_tokens])
    language_probs, layers, top_tokens, ids, per_prompt = [], [], [], [], []
    for lang, examples in prompts.items():
        stored = read_arrays(run / RECORDS / f"{lang}.npz")
        assert stored["done"][1] == len(examples), f"{lang}: {stored['done'][1]} of {len(examples)} prompts read"
        clusters = [getattr(example, "context", example.id) for example, _ in examples]
        language_probs.append(_channel_rows(lang, stored["language_probs"], matrix.channels, floor, clusters))
        layers.append(_layer_rows(lang, stored["scalars"]))
        mean_probs = stored["vocab_prob_sums"] / len(examples)  # [layer, vocab]
        top_tokens.append(_token_rows(lang, mean_probs, top_k, pieces, matrix.channel_of_token))
        ids += [(example.id, lang) for example, _ in examples]
        per_prompt.append(stored["language_probs"])
    write_table(run / "language_probs.csv", pd.concat(language_probs))
    write_table(run / "layers.csv", pd.concat(layers))
    write_table(run / "top_tokens.csv", pd.concat(top_tokens))
    write_table(run / "prompts.csv", pd.DataFrame(ids, columns=["id", "prompt_lang"]).rename_axis("row").reset_index())
    write_array(run / "per_prompt.npy", np.concatenate(per_prompt))  # [prompt, layer, channel]


def _channel_rows(lang, probs, channels, floor, clusters) -> pd.DataFrame:
    """probs: [prompt, layer, channel]. Standard errors are clustered by context."""
    n, n_layers, n_channels = probs.shape
    return pd.DataFrame(
        {
            "prompt_lang": lang,
            "layer": np.repeat(np.arange(n_layers), n_channels),
            "channel": channels * n_layers,
            "prob": probs.mean(axis=0, dtype=np.float64).ravel(),
            "floor": np.tile(floor, n_layers),
            "stderr": standard_error(probs, clusters).ravel(),
            "n": n,
        }
    )


def _layer_rows(lang, scalars) -> pd.DataFrame:
    means = scalars.mean(axis=0, dtype=np.float64)  # [layer, 3]
    columns = dict(zip(("entropy_bits", "kl_to_final_bits", "top1_agreement"), means.T))
    return pd.DataFrame({"prompt_lang": lang, "layer": np.arange(len(means)), **columns, "n": len(scalars)})


def _token_rows(lang, mean_probs, top_k, pieces, channel_of_token) -> pd.DataFrame:
    rows = []
    for layer, probs in enumerate(mean_probs):
        # By probability, then by id: a stable order, the same everywhere.
        top = np.argpartition(-probs, min(top_k, len(probs) - 1))[:top_k]
        top = top[np.lexsort((top, -probs[top]))]
        rows += [
            (lang, layer, rank, id, written(pieces[id]), probs[id], channel_of_token[id])
            for rank, id in enumerate(top, 1)
        ]
    return pd.DataFrame(rows, columns=["prompt_lang", "layer", "rank", "token_id", "token", "prob", "channel"])
