"""The token x language matrix: which languages does each token of a vocabulary belong to?

Row = token id, column = channel; every row is a probability distribution over the channels.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import scipy.sparse as sp
import torch

from utils import processes
from utils.checksums import known_sha256, sha256_of_file
from utils.data.corpora import WORD_COUNTS, corpus_checksum
from utils.data.examples import read_text
from utils.languages import CODE, ISO_639_1, NOT_LANGUAGES
from utils.runs import PROJECT_DIR, read_arrays, write_arrays, write_atomically, write_json
from utils.token_languages.from_corpus import SMALLEST_PROBABILITY, corpus_settings, made_from_corpus
from utils.token_languages.from_langid import LANGID_METHODS, made_from_langid, made_from_langid_hard
from utils.token_languages.pieces import (
    Made,
    Piece,
    even_over_scripts,
    read_pieces,
    scripts_of_pieces,
    tokenizer_checksum,
    vocabulary_size,
)
from utils.token_languages.shares import LaidOut, fit

# How likely a token says nothing of the languages of its script, when shares are fitted: no corpus has it all.
SAYS_NOTHING = 0.15
ROWS_AT_ONCE = 4096  # of what is filled out: more would be another array of its size
# The form of a matrix's folder; another one's is refused.
VERSION = 4
PROBS, TOKENS, CHANNELS = "probs.npz", "tokens.npz", "channels.json"
# A short text's language is named where its probability is at least this.
SURE_OF_LANGUAGE = 0.8
WITH_SHORT_CODE = frozenset(ISO_639_1.values())


@dataclass(frozen=True)
class TokenLanguages:
    """The matrix, its channels and where it comes from. probs: [vocab, channel] CSR float32, rows sum to 1."""

    probs: sp.csr_matrix
    channels: list[str]
    config: dict
    scripts: np.ndarray | None = None  # [vocab], index into SCRIPTS, -1 where none; None: no token says nothing
    attested: np.ndarray | None = None  # [vocab], is the token in the corpus?

    @cached_property
    def n_languages(self) -> int:
        """Languages are the first channels; `special`, `byte`, `zxx` and `und` follow."""
        return len(self.channels) - len(NOT_LANGUAGES)

    @cached_property
    def languages(self) -> list[str]:
        return self.channels[: self.n_languages]

    @property
    def groups(self) -> list[list[str]]:
        """Close languages that a token can hardly tell apart, where there is more than one."""
        return self.config.get("groups", [])

    @property
    def fits_shares(self) -> bool:
        """Whether a reading is a fitted mixture; the paper's (langid) is the plain sum of the tokens' rows."""
        return self.config.get("method") not in LANGID_METHODS

    @cached_property
    def dense(self) -> np.ndarray:
        """`probs` with its zeros: [vocab, channel]."""
        return self.probs.toarray()

    @cached_property
    def rows_to_fit(self) -> np.ndarray:
        """What `shares.fit` takes: [vocab, language] float32, proportional to P(v | l); zeros where no text.

        A token's row, but for SAYS_NOTHING of it, which is even over the languages of the token's script: a
        corpus lacks much, so that no token rules a language of its script out.
        """
        rows = self.dense[:, : self.n_languages].copy()
        if self.scripts is not None:
            known = (self.scripts >= 0) & rows.any(axis=1)
            even = np.float32(SAYS_NOTHING) * even_over_scripts(self.languages)  # [script, language]
            for start in range(0, len(rows), ROWS_AT_ONCE):
                block = slice(start, start + ROWS_AT_ONCE)
                rows[block] *= np.where(known[block], np.float32(1 - SAYS_NOTHING), np.float32(1))[:, None]
                rows[block][known[block]] += even[self.scripts[block][known[block]]]
        return rows

    @cached_property
    def laid_out(self) -> LaidOut:
        """`rows_to_fit` with tokens of a script, and of as many languages, side by side."""
        n_languages = np.diff(self.probs.indptr)
        order = n_languages.argsort(kind="stable") if self.scripts is None else np.lexsort((n_languages, self.scripts))
        return LaidOut.by(order, self.rows_to_fit)

    def fit(self, probs: np.ndarray, dtype: torch.dtype = torch.float32) -> np.ndarray:
        """`shares.fit` by this matrix: [set, token] -> [set, language]; tokens beyond these have no probability."""
        beyond = self.probs.shape[0] - probs.shape[1]
        return fit(np.pad(probs, ((0, 0), (0, beyond))), self.rows_to_fit, dtype, laid_out=self.laid_out)

    def shares(self, vocab_probs: np.ndarray | torch.Tensor, dtype: torch.dtype = torch.float64) -> np.ndarray:
        """How much of each channel a distribution is: [..., vocab] -> [..., channel], float64, each summing to 1.

        Languages: the mixture that explains the text tokens best (`shares.fit`); the four channels that are no
        language keep their mass. For the paper's methods, the sum of the tokens' rows. dtype: of the fit, which takes
        half of the time in float32.
        Raises ValueError for what isn't finite, is negative, doesn't sum to 1 or is of another vocabulary.
        """
        if isinstance(vocab_probs, torch.Tensor):
            vocab_probs = vocab_probs.detach().double().cpu().numpy()
        probs = np.asarray(vocab_probs, dtype=np.float64)
        self._require_distributions(probs)
        flat = probs.reshape(-1, probs.shape[-1])
        shares = flat @ self.probs.astype(np.float64)  # [set, channel]
        if self.fits_shares:
            shares[:, : self.n_languages] = self.fit(flat, dtype)
        return shares.reshape(*probs.shape[:-1], len(self.channels))

    def _require_distributions(self, probs: np.ndarray) -> None:
        if probs.shape[-1:] != self.probs.shape[:1]:
            raise ValueError(f"distributions over {probs.shape[-1:]} tokens, but the matrix has {self.probs.shape[0]}")
        if not np.isfinite(probs).all():
            raise ValueError("a distribution over the vocabulary that is not finite")
        if (probs < 0).any() or not np.allclose(probs.sum(axis=-1), 1, atol=1e-3):
            worst = float(probs.sum(axis=-1).ravel()[np.abs(probs.sum(axis=-1).ravel() - 1).argmax()])
            raise ValueError(f"a distribution over the vocabulary that has negative entries, or sums to {worst:.4g}")

    @cached_property
    def floor(self) -> np.ndarray:
        """What each channel gets from a uniform distribution over the vocabulary: [channel]."""
        return mean_row(self.probs)

    @cached_property
    def channel_of_token(self) -> list[str]:
        """The likeliest channel of each token, of equal ones the first: [vocab]."""
        starts, values = self.probs.indptr[:-1], self.probs.data
        lengths = np.diff(self.probs.indptr)
        highest = np.repeat(np.maximum.reduceat(values, starts), lengths)  # no row is empty: each sums to 1
        token = np.repeat(np.arange(len(lengths)), lengths)
        channel = np.full(len(lengths), len(self.channels))
        np.minimum.at(channel, token[values == highest], self.probs.indices[values == highest])
        return [self.channels[i] for i in channel]

    def language_of(self, ids: list[int], asked: str) -> str:
        """The language of a short text of these tokens, or `und` where its tokens don't tell: names, numbers.

        P(l | text) ~ prior(l) * prod_i (P(l | token_i) + SMALLEST_PROBABILITY), over the tokens that are text.
        Half of the prior is on `asked`, the language that the text is supposed to be in, the rest even over the
        languages with an ISO 639-1 code, since a few tokens can't tell close varieties apart.
        """
        rows = self.probs[ids, : self.n_languages].toarray()  # [token, language]
        rows = rows[rows.sum(axis=1) > 0.5]
        if not len(rows):
            return "und"
        log_probs = np.log(rows + SMALLEST_PROBABILITY).sum(axis=0) + self._log_prior(asked)
        probs = np.exp(log_probs - log_probs.max())
        best = int(probs.argmax())
        return self.channels[best] if probs[best] >= SURE_OF_LANGUAGE * probs.sum() else "und"

    def _log_prior(self, asked: str) -> np.ndarray:
        others = [code in WITH_SHORT_CODE and code != asked for code in self.channels[: self.n_languages]]
        prior = np.array(others) / max(sum(others), 1)
        if asked in self.channels:
            prior[self.channels.index(asked)] = 1.0
        with np.errstate(divide="ignore"):
            return np.log(prior)

    @classmethod
    @processes.uncollected()
    def build(cls, tokenizer, method: str = "corpus", corpus: Path | None = None, name: str = "") -> "TokenLanguages":
        """The matrix of a tokenizer. method: one of METHODS. corpus: a folder or a word-count file.

        name: how the user named the tokenizer; it is kept in the configuration only.
        """
        config = {**_source(method, corpus), "tokenizer": name, "tokenizer_sha256": tokenizer_checksum(tokenizer)}
        pieces = read_pieces(tokenizer)
        made = METHODS[method](tokenizer, pieces, corpus)
        config |= {"version": VERSION, "groups": made.groups}
        channels = [*made.languages, *NOT_LANGUAGES]
        return cls(
            _with_other_channels(made.posterior, pieces), channels, config, scripts_of_pieces(pieces), made.attested
        )

    @classmethod
    def load_or_build(cls, folder: Path, tokenizer, method: str, corpus: Path | None, name: str) -> "TokenLanguages":
        """The matrix in `folder`, built and saved there first where it isn't yet.

        Raises ValueError where the folder holds another matrix than the one asked for.
        """
        processes.hold(folder, wait=True)  # two probes that need one matrix make it once
        try:
            if not (folder / "config.json").exists():
                _require_empty(folder)
                built = cls.build(tokenizer, method, corpus, name)
                built.save(folder)
                return built
        finally:
            processes.release(folder)
        stored = cls.load(folder, tokenizer)
        asked = _source(method, corpus)
        differing = [key for key in asked if stored.config.get(key) != asked[key]]
        if differing:
            raise ValueError(
                f"{folder}: holds another matrix ({differing[0]} was {stored.config.get(differing[0])!r}, "
                f"is {asked[differing[0]]!r}); choose another folder"
            )
        return stored

    def save(self, folder: Path) -> None:
        """probs.npz, tokens.npz, channels.json, config.json; the configuration last: it says that all is there.

        It has their checksums: channels in another order would be other languages. The folder takes its name once it
        is whole. Raises ValueError where there is something in it already.
        """
        folder = Path(folder)
        _require_empty(folder)
        whole = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(whole, ignore_errors=True)
        whole.mkdir(parents=True)
        try:
            self._write(whole)
            whole.replace(folder)
        finally:
            shutil.rmtree(whole, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        write_atomically(folder / PROBS, lambda file: sp.save_npz(file, self.probs, compressed=False))
        tokens = {"scripts": self.scripts, "attested": self.attested}
        write_arrays(folder / TOKENS, **{name: array for name, array in tokens.items() if array is not None})
        write_json(folder / CHANNELS, self.channels)
        files = {name: sha256_of_file(folder / name) for name in (PROBS, TOKENS, CHANNELS)}
        write_json(folder / "config.json", {**self.config, "files": files})

    @classmethod
    def load(cls, folder: Path, tokenizer) -> "TokenLanguages":
        """Raises ValueError where the folder holds no matrix, a damaged one, or another tokenizer's."""
        folder = Path(folder)
        for name in ("config.json", CHANNELS, PROBS):
            if not (folder / name).is_file():
                raise ValueError(f"--token_languages {folder}: no {name} in it, so it is no token x language matrix")
        try:
            config, channels = (json.loads(read_text(folder / name)) for name in ("config.json", CHANNELS))
            if not isinstance(config, dict):
                raise ValueError("config.json is no mapping")
            if config.get("version") != VERSION:
                raise _OlderMatrix
            _require_channels(channels)
            _require_unchanged(folder, config.pop("files", None))
            probs = _read_probs(folder / PROBS)
            tokens = read_arrays(folder / TOKENS)
        except _OlderMatrix:
            command = f"python logit_lens_tokenid_to_lang.py --method {config.get('method')} --output_dir NEW_FOLDER"
            raise ValueError(
                f"--token_languages {folder}: a matrix of version {config.get('version', 1)}, {VERSION} is needed; "
                f"make it anew: {command}, with --model as before"
            ) from None
        except (ValueError, KeyError, OSError, EOFError, BadZipFile, RecursionError) as error:
            raise ValueError(f"--token_languages {folder}: a damaged matrix ({error}); build it anew") from None
        size = vocabulary_size(tokenizer)
        if probs.shape != (size, len(channels)):
            raise ValueError(
                f"--token_languages {folder}: a matrix of {probs.shape[0]} tokens x {probs.shape[1]} channels, "
                f"but the model's tokenizer has {size} tokens (and channels.json {len(channels)} channels)"
            )
        if config.get("tokenizer_sha256") != tokenizer_checksum(tokenizer):
            raise ValueError(
                f"--token_languages {folder}: made for another tokenizer ({config.get('tokenizer')}); "
                "build this one with logit_lens_tokenid_to_lang.py"
            )
        if not np.allclose(probs.sum(axis=1), 1, atol=1e-4):
            raise ValueError(f"--token_languages {folder}: rows that don't sum to 1; build it anew")
        for name, array in tokens.items():
            if name not in ("scripts", "attested") or array.shape != (size,) or array.dtype.kind not in "ib":
                raise ValueError(f"--token_languages {folder}: {TOKENS} is damaged ({name}); build it anew")
        return cls(probs, channels, config, tokens.get("scripts"), tokens.get("attested"))


def _require_channels(channels) -> None:
    """Raises ValueError for what is no list of languages, each once, with NOT_LANGUAGES at its end."""
    if not isinstance(channels, list) or not all(isinstance(c, str) and CODE.fullmatch(c) for c in channels):
        raise ValueError(f"{CHANNELS} is no list of codes")
    if tuple(channels[-len(NOT_LANGUAGES) :]) != NOT_LANGUAGES:
        raise ValueError(f"{CHANNELS} does not end with {', '.join(NOT_LANGUAGES)}")
    if len(set(channels)) < len(channels):
        raise ValueError(f"{CHANNELS} has a channel twice")


def _require_unchanged(folder: Path, files) -> None:
    if not isinstance(files, dict) or set(files) != {PROBS, TOKENS, CHANNELS}:
        raise ValueError("config.json has no checksums of its files")
    for name, digest in files.items():
        if known_sha256(folder / name) != digest:
            raise ValueError(f"{name} has changed since the matrix was made")


def _read_probs(path: Path) -> sp.csr_matrix:
    """The matrix of a CSR file, each index looked at: SciPy's own code reads and writes wherever they point.

    Raises ValueError for what is no CSR of float32 with finite entries of at least 0.
    """
    arrays = read_arrays(path)
    kind = arrays["format"].item() if arrays["format"].ndim == 0 else None
    shape, indices, indptr, data = (arrays[name] for name in ("shape", "indices", "indptr", "data"))
    if kind not in (b"csr", "csr") or shape.shape != (2,) or shape.dtype.kind != "i" or (shape < 0).any():
        raise ValueError(f"{path.name} is no CSR matrix")
    if data.dtype != np.float32 or indices.dtype.kind != "i" or indptr.dtype.kind != "i":
        raise ValueError(f"{path.name}: entries of {data.dtype}, indices of {indices.dtype}")
    n_rows, n_columns = map(int, shape)
    if data.shape != indices.shape or data.ndim != 1 or indptr.shape != (n_rows + 1,):
        raise ValueError(f"{path.name}: {len(data)} entries, {len(indices)} columns, {len(indptr)} rows")
    if indptr[0] != 0 or indptr[-1] != len(data) or (np.diff(indptr) < 0).any():
        raise ValueError(f"{path.name}: rows that begin outside the entries")
    if len(indices) and not 0 <= indices.min() <= indices.max() < n_columns:
        raise ValueError(f"{path.name}: a column of {indices.max()}, of {n_columns}")
    if not np.isfinite(data).all() or (data < 0).any():
        raise ValueError(f"{path.name}: entries that are negative or not finite")
    return sp.csr_matrix((data, indices, indptr), shape=(n_rows, n_columns))


def _require_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder}: a file, not a folder")
    if folder.exists() and (names := sorted(path.name for path in folder.iterdir())):
        raise ValueError(f"--output_dir {folder}: holds {names[0]!r} and is no matrix; choose another folder")


class _OlderMatrix(Exception):
    pass


def named_matrix(name: str, tokenizer, model: str) -> TokenLanguages:
    """The matrix that `--token_languages` names: a folder, or a method, whose matrix is made on first use.

    model: how the user named the tokenizer's model. Raises ValueError for a folder that holds another's.
    """
    if name not in METHODS:
        return TokenLanguages.load(Path(name), tokenizer)
    folder = default_folder(model, tokenizer, name)
    if not (folder / "config.json").exists():
        print(f"making the token x language matrix once: {folder}")
    return TokenLanguages.load_or_build(folder, tokenizer, name, None, model)


def mean_row(probs: sp.csr_matrix) -> np.ndarray:
    """The mean of the rows, added up in float64: [channel]. (scipy's own mean adds up in the matrix's dtype.)"""
    return np.asarray(probs.astype(np.float64).sum(axis=0)).ravel() / probs.shape[0]


def _with_other_channels(posterior: sp.csr_matrix, pieces: list[Piece]) -> sp.csr_matrix:
    """The language columns and, after them, special, byte, zxx and und: [vocab, language + 4]."""
    kind = np.array([piece.kind for piece in pieces])
    known = posterior.getnnz(axis=1) > 0
    masks = [(kind == name) & ~known for name in ("special", "byte", "zxx", "text")]
    others = sp.csr_matrix(np.stack(masks, axis=1).astype(np.float32))
    return sp.hstack([posterior, others]).tocsr().astype(np.float32)


def default_folder(model: str, tokenizer, method: str, corpus: Path | None = None) -> Path:
    """Where a matrix is kept: a readable name, and a checksum of the tokenizer and of all that the method reads."""
    identity = json.dumps([VERSION, tokenizer_checksum(tokenizer), _source(method, corpus)], sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return PROJECT_DIR / "results" / "token_languages" / f"{Path(model).name}-{method}-{digest}"


def _source(method: str, corpus: Path | None) -> dict:
    """What a matrix is made from besides the tokenizer. Raises ValueError for what it can't be made from."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose from {', '.join(METHODS)}")
    if method in LANGID_METHODS:
        if corpus is not None:
            raise ValueError(f"--corpus {corpus}: langid brings its own model; --corpus goes with --method corpus")
        return {"method": method, "langid": version("langid")}
    path = Path(corpus or WORD_COUNTS)
    if not path.exists():
        raise ValueError(f"--corpus {path}: no such folder or file")
    of_corpus = {"method": method, "corpus": path.name, "corpus_sha256": corpus_checksum(path)}
    return {**of_corpus, **corpus_settings(), "says_nothing": SAYS_NOTHING}


METHODS: dict[str, Callable[..., Made]] = {
    "corpus": made_from_corpus,
    "langid": made_from_langid,
    "langid-hard": made_from_langid_hard,
}
