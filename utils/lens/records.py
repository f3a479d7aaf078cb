"""What a probe keeps while it runs, and the tables that it leaves."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from tqdm import tqdm

from utils.lens.probe_runs import GRID, GRID_CHANNELS, GRID_TOKENS, GRID_WORDS
from utils.lens.reading import KEPT_TOKENS, Reading
from utils.processes import side_by_side
from utils.runs import read_arrays, write_array, write_arrays, write_json, write_table
from utils.token_languages.matrix import TokenLanguages, mean_row
from utils.token_languages.pieces import Piece, display_text
from utils.token_languages.shares import SetShares, of_prompts, posteriors
from utils.uncertainty import mean_interval, standard_error

RECORDS = "records"
GRID_RECORD = "grid-"  # and the language: the record of its grid
SECONDS_BETWEEN_SAVES = 20.0
# Sums of probabilities are kept as multiples of this. Up to 32,768 prompts, float64 adds such numbers exactly.
GRAIN = 2.0**-38


class LanguageRecord:
    """The readings of one prompt language by one process, on disk between batches: a killed run goes on from here.

    Sums are exact, so that they come out the same however often the run was stopped, in whatever order its batches
    were read, and by how many processes.
    """

    def __init__(self, path: Path, arrays: dict[str, np.ndarray]):
        self.path = path
        self.arrays = arrays
        self._saved_at = time.monotonic()

    @classmethod
    def open(
        cls, run: Path, lang: str, n_prompts: int, n_layers: int, n_channels: int, n_tokens: int, n_batches: int, rank=0
    ):
        """The record of a process in a run's folder, or an empty one."""
        path = _path(run, lang, rank)
        if (stored := _stored(path, n_batches)) is not None:
            return cls(path, stored)
        path.parent.mkdir(exist_ok=True)
        empty: dict[str, np.ndarray] = {
            "language_probs": np.zeros((n_prompts, n_layers, n_channels), np.float32),
            "scalars": np.zeros((n_prompts, n_layers, 3), np.float32),  # entropy, KL, agreement
            "top_ids": np.zeros((n_prompts, n_layers, min(KEPT_TOKENS, n_tokens)), np.int32),
            "top_probs": np.zeros((n_prompts, n_layers, min(KEPT_TOKENS, n_tokens)), np.float32),
            "vocab_prob_sums": np.zeros((n_layers, n_tokens), np.float64),
            "read": np.zeros(n_prompts, bool),
            "batches": np.zeros(n_batches, bool),
        }
        return cls(path, empty)

    @staticmethod
    def done(run: Path, lang: str, n_batches: int) -> tuple[np.ndarray, int]:
        """(which batches the main process's record has, [batch] of bool; how many prompts)."""
        path = _path(run, lang, 0)
        if not path.exists():
            return np.zeros(n_batches, bool), 0
        with np.load(path, allow_pickle=False) as stored:  # these two alone
            known = "batches" in stored and len(stored["batches"]) == n_batches
            return (stored["batches"], int(stored["read"].sum())) if known else (np.zeros(n_batches, bool), 0)

    @classmethod
    def merge(cls, run: Path, lang: str, n_batches: int) -> None:
        """What other processes have read goes into the main process's record, and their own records go."""
        parts = sorted((run / RECORDS).glob(f"{lang}.*.npz"))
        if not parts:
            return
        found = [stored for path in parts if (stored := _stored(path, n_batches)) is not None]
        whole = _stored(_path(run, lang, 0), n_batches)
        for part in found:
            if whole is None:
                whole = part
            # A merge that was killed has left parts that are in the whole already.
            elif not (part["batches"] & whole["batches"]).any():
                for name in ("vocab_prob_sums", "batches"):
                    whole[name] = whole[name] + part[name]
                for name in ("language_probs", "scalars", "top_ids", "top_probs", "read"):
                    whole[name][part["read"]] = part[name][part["read"]]
        if whole is not None:
            cls(_path(run, lang, 0), whole).save()
        for path in parts:
            path.unlink()

    def add(self, number: int, batch: list[int], reading: Reading) -> None:
        """The reading of the batch of that number: prompts by their own numbers."""
        scalars = (reading.entropy_bits, reading.kl_to_final_bits, reading.top1_agreement)
        self.arrays["language_probs"][batch] = reading.language_probs.cpu().numpy()
        self.arrays["scalars"][batch] = np.stack([scalar.cpu().numpy() for scalar in scalars], axis=-1)
        for name in ("top_ids", "top_probs"):
            self.arrays[name][batch] = getattr(reading, name).cpu().numpy()
        sums = reading.vocab_prob_sums.double().cpu().numpy()
        self.arrays["vocab_prob_sums"] += np.rint(sums / GRAIN) * GRAIN
        self.arrays["read"][batch] = True
        self.arrays["batches"][number] = True

    def save_now_and_then(self) -> None:
        if time.monotonic() - self._saved_at > SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        write_arrays(self.path, **self.arrays)
        self._saved_at = time.monotonic()

    @staticmethod
    def remove_all(run: Path) -> None:
        shutil.rmtree(run / RECORDS, ignore_errors=True)


def _path(run: Path, lang: str, rank: int) -> Path:
    return run / RECORDS / (f"{lang}.{rank}.npz" if rank else f"{lang}.npz")


def _stored(path: Path, n_batches: int) -> dict[str, np.ndarray] | None:
    """A record's arrays; None where there is none, or one of an earlier version, whose batches were others."""
    arrays = read_arrays(path) if path.exists() else {}
    return arrays if "batches" in arrays and len(arrays["batches"]) == n_batches else None


@dataclass(frozen=True)
class SetReading:
    """The shares of a prompt language. of_prompts, influence: [prompt, layer, channel] as in `SetShares`, the four
    channels that are no language with their plain mass in both; tokens: [layer, channel].
    """

    of_prompts: np.ndarray
    influence: np.ndarray
    tokens: np.ndarray


def write_tables(
    run: Path,
    prompts: dict,
    matrix: TokenLanguages,
    null: np.ndarray,
    n_tokens: int,
    pieces: Sequence[Piece],
    top_k: int,
):
    """The tables of a finished run from its records. prompts: language -> [(example, prompt)].

    null: [layer, channel], what random prompts read.
    """
    floor = mean_row(matrix.probs[:n_tokens])
    language_probs, groups, layers, top_tokens, ids, per_prompt, influence = [], [], [], [], [], [], []
    for lang, examples in tqdm(prompts.items(), desc="fitting shares", unit="language", leave=False, disable=None):
        stored = read_arrays(run / RECORDS / f"{lang}.npz")
        assert stored["read"].all() and len(stored["read"]) == len(examples), f"{lang}: not all prompts read"
        clusters = [getattr(example, "context", example.id) for example, _ in examples]
        mean_probs = stored["vocab_prob_sums"] / len(examples)  # [layer, vocab]
        reading = read_set(stored, mean_probs, matrix)
        language_probs.append(
            _channel_rows(lang, stored["language_probs"], reading, null, matrix.channels, floor, clusters)
        )
        groups.append(_group_rows(lang, reading, null, matrix, clusters))
        layers.append(_layer_rows(lang, stored["scalars"]))
        top_tokens.append(_token_rows(lang, mean_probs, top_k, pieces, matrix.channel_of_token))
        ids += [(example.id, lang) for example, _ in examples]
        per_prompt.append(reading.of_prompts)
        influence.append(reading.influence)
    write_table(run / "language_probs.csv", pd.concat(language_probs))
    write_table(run / "groups.csv", pd.concat(groups))
    write_table(run / "layers.csv", pd.concat(layers))
    write_table(run / "top_tokens.csv", pd.concat(top_tokens))
    write_table(run / "prompts.csv", pd.DataFrame(ids, columns=["id", "prompt_lang"]).rename_axis("row").reset_index())
    write_array(run / "per_prompt.npy", np.concatenate(per_prompt))  # [prompt, layer, channel]
    write_array(run / "influence.npy", np.concatenate(influence))  # [prompt, layer, channel]


def write_grid(
    run: Path, grids: dict, prompts: dict, outcomes: dict, matrix: TokenLanguages, pieces: Sequence[Piece], tokenizer
) -> None:
    """The likeliest tokens and the largest shares of each cell, and the prompts whose positions the cells are.

    grids: language -> the `Cells` of its first prompts; prompts: language -> [(example, prompt)]; outcomes:
    (language, id) -> what the two models made of a question, where that is known.
    """
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in ("top_ids", "top_probs", "channels", "shares")}
    listed, first = [], 0
    for lang, cells in grids.items():
        stored = read_arrays(run / RECORDS / f"{GRID_RECORD}{lang}.npz")
        assert stored["read"].all(), f"{lang}: {stored['read'].sum()} of {cells.n} positions read"
        shares = read_cells(stored, stored["vocab_prob_sums"] / cells.n, matrix)  # [cell, layer, channel]
        largest = np.argsort(-shares, axis=-1, kind="stable")[..., :GRID_CHANNELS]
        arrays["channels"].append(largest.astype(np.int16))
        arrays["shares"].append(np.take_along_axis(shares, largest, axis=-1))
        for name in ("top_ids", "top_probs"):
            arrays[name].append(stored[name][..., :GRID_TOKENS])
        for (example, prompt), of_prompt in zip(prompts[lang], cells.of_prompts):
            listed.append(
                {
                    "id": example.id,
                    "prompt_lang": lang,
                    "outcome": outcomes.get((lang, example.id)),
                    "text": tokenizer.decode(prompt.ids, skip_special_tokens=True),
                    "token_ids": prompt.ids,
                    "read": prompt.positions,
                    "cells": [first + cell for cell in of_prompt],
                }
            )
        first += cells.n
    tables = {name: np.concatenate(parts) for name, parts in arrays.items()}
    used = sorted({int(id) for id in np.unique(tables["top_ids"])} | {id for row in listed for id in row["token_ids"]})
    words = {"channels": matrix.channels, "tokens": {id: display_text(pieces[id]) for id in used}, "prompts": listed}
    write_arrays(run / GRID, **tables)
    write_json(run / GRID_WORDS, words)


def read_set(stored: dict[str, np.ndarray], mean_probs: np.ndarray, matrix: TokenLanguages) -> SetReading:
    """The shares of a set of prompts and each prompt's own, from its record. mean_probs: [layer, vocab]."""
    n_tokens = mean_probs.shape[1]
    even = stored["language_probs"]
    own, influence = even.astype(np.float64), even.astype(np.float64)
    first = matrix.n_languages if matrix.fits_shares else 0  # of the channels that are plain sums
    summed = matrix.probs[:n_tokens, first:]
    tokens = np.zeros((len(mean_probs), len(matrix.channels)))
    tokens[:, first:] = [_effective_tokens(probs, summed) for probs in mean_probs]
    if matrix.fits_shares:
        n, rows = matrix.n_languages, matrix.rows_to_fit[:n_tokens]
        of_layers, plain = matrix.fit(mean_probs), matrix.probs[:n_tokens, :n]

        def split(layer: int) -> SetShares:
            of_each = _own_shares(stored, layer, of_layers[layer], plain, rows)
            return of_prompts(mean_probs[layer], of_layers[layer], of_each, rows)

        for layer, found in enumerate(side_by_side(split, range(len(mean_probs)), len(mean_probs))):
            own[:, layer, :n], influence[:, layer, :n] = found.of_prompts, found.influence
            tokens[layer, :n] = found.tokens
    return SetReading(own.astype(np.float32), influence.astype(np.float32), tokens)


def read_cells(stored: dict[str, np.ndarray], mean_probs: np.ndarray, matrix: TokenLanguages) -> np.ndarray:
    """`of_prompts` of `read_set` alone, without what errors need: [cell, layer, channel]."""
    own = stored["language_probs"].astype(np.float64)
    if matrix.fits_shares:
        n, n_layers, n_tokens = matrix.n_languages, *mean_probs.shape
        rows, plain = matrix.rows_to_fit[:n_tokens], matrix.probs[:n_tokens, :n]
        of_layers = matrix.fit(mean_probs)

        def split(layer: int) -> np.ndarray:
            return _own_shares(stored, layer, of_layers[layer], plain, rows)

        own[:, :, :n] = np.stack(side_by_side(split, range(n_layers), n_layers), axis=1)
    return own.astype(np.float32)


def _own_shares(stored, layer: int, shares: np.ndarray, plain: sp.csr_matrix, rows: np.ndarray) -> np.ndarray:
    """`posteriors` of a layer's prompts, from their record: [prompt, language]. plain, rows: [vocab, language]."""
    even = stored["language_probs"][:, layer, : plain.shape[1]].astype(np.float64)
    return posteriors(shares, stored["top_ids"][:, layer], stored["top_probs"][:, layer], even, plain, rows)


def _effective_tokens(probs: np.ndarray, rows: sp.csr_matrix) -> np.ndarray:
    """exp of the entropy over tokens of what each channel's plain sum rests on: [channel]; rows: [vocab, channel]."""
    weights = (sp.diags_array(probs) @ rows).tocsr()
    totals = np.asarray(weights.sum(axis=0)).ravel()
    logs = weights.copy()
    logs.data = weights.data * np.log(np.maximum(weights.data, 1e-300))
    entropy = np.log(np.maximum(totals, 1e-300)) - np.asarray(logs.sum(axis=0)).ravel() / np.maximum(totals, 1e-300)
    return np.where(totals > 0, np.exp(entropy), 0)


def _interval(influence: np.ndarray, share: np.ndarray, clusters: list) -> dict[str, np.ndarray]:
    """share_low and share_high: 95%, from the prompts' influence (its mean is the share), clustered by context; within
    0 and 1. NaN with few contexts.
    """
    low, high = np.clip(share + mean_interval(influence, clusters) - influence.mean(axis=0, dtype=np.float64), 0, 1)
    return {"share_low": low, "share_high": high}


def _channel_rows(lang, probs, reading, null, channels, floor, clusters) -> pd.DataFrame:
    """probs: [prompt, layer, channel], summed under the even prior. Errors are clustered by context."""
    n, n_layers, n_channels = probs.shape
    share = reading.of_prompts.mean(axis=0, dtype=np.float64)
    ends = _interval(reading.influence, share, clusters)
    return pd.DataFrame(
        {
            "prompt_lang": lang,
            "layer": np.repeat(np.arange(n_layers), n_channels),
            "channel": channels * n_layers,
            "share": share.ravel(),
            **{name: end.ravel() for name, end in ends.items()},
            "null_share": null.ravel(),
            "tokens": reading.tokens.ravel(),
            "prob": probs.mean(axis=0, dtype=np.float64).ravel(),
            "floor": np.tile(floor, n_layers),
            "stderr": standard_error(probs, clusters).ravel(),
            "n": n,
            "n_contexts": len(set(clusters)),
        }
    )


def _group_rows(lang, reading, null, matrix, clusters) -> pd.DataFrame:
    """Close languages together: the codes with blanks between, and what they have together at each layer."""
    columns = ["prompt_lang", "layer", "group", "share", "share_low", "share_high", "null_share", "n", "n_contexts"]
    tables = [pd.DataFrame(columns=columns)]
    for group in matrix.groups:
        members = [matrix.channels.index(code) for code in group]
        share = reading.of_prompts[:, :, members].sum(axis=2, dtype=np.float64).mean(axis=0)  # [layer]
        table = {
            "prompt_lang": lang,
            "layer": np.arange(len(share)),
            "group": " ".join(group),
            "share": share,
            **_interval(reading.influence[:, :, members].sum(axis=2, dtype=np.float64), share, clusters),
            "null_share": null[:, members].sum(axis=1),
            "n": len(clusters),
            "n_contexts": len(set(clusters)),
        }
        tables.append(pd.DataFrame(table))
    return pd.concat([table for table in tables if len(table)] or tables)


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
            (lang, layer, rank, id, display_text(pieces[id]), probs[id], channel_of_token[id])
            for rank, id in enumerate(top, 1)
        ]
    return pd.DataFrame(rows, columns=["prompt_lang", "layer", "rank", "token_id", "token", "prob", "channel"])
