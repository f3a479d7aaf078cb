"""Malformed and hostile inputs to every script: each must end in one line and status 2, or be taken as what it is."""

import contextlib
import copy
import gzip
import io
import json
import os
import shutil
import signal
import tarfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

import compare_runs
import get_datasets
import logit_lens_tokenid_to_lang
import plot_figures
import probe_logit_lens
import QAinference
import QAtraining
from tests.conftest import tiny_causal_lm
from tests.scripts import PARALLEL, run, save_adapter
from utils.data.examples import DATASETS_DIR

LONGEST_SECONDS = 60.0
# What a field may be given in place of its value.
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    float("nan"),
    "",
    "x",
    "\x1b[2J",
    "\ud800",
    "../..",
    [],
    {},
    [[]],
]
VALUES += [[None], {"a": 1}, "(a+)+$", "x" * 200_000]


@dataclass(frozen=True)
class Case:
    """A case of a class, and what runs it: a script's main with its arguments, once `prepare` has spoilt an input.

    must_refuse: nothing but a refusal is right.
    """

    kind: str
    name: str
    prepare: Callable[[Path], tuple[Callable, list]]
    must_refuse: bool = False


class Bench:
    """A tiny model, its matrix, an adapter and finished runs, which each case gets a copy of."""

    def __init__(self, folder: Path, tokenizer):
        self.folder = folder
        self.model, self.adapter, self.matrix = folder / "tiny", folder / "adapter", folder / "matrix"
        tiny_causal_lm("llama", len(tokenizer), max_position_embeddings=1024).save_pretrained(self.model)
        tokenizer.save_pretrained(self.model)
        save_adapter(self.model, self.adapter)
        self.common = ["--model", self.model, "--token_languages", self.matrix, "--langs", "en", "hi", "--limit", 3]
        self._make(logit_lens_tokenid_to_lang.main, "--model", self.model, "--corpus", PARALLEL, to="matrix")
        for name, more in (("base", []), ("tuned", ["--adapter", self.adapter])):
            answers = [*self.common, *more, "--max_new_tokens", 3]
            self._make(QAinference.main, *answers, to=f"answers_{name}")
            self._make(probe_logit_lens.main, *self.common, *more, to=f"probe_{name}")
        self._make(compare_runs.main, folder / "probe_base", folder / "probe_tuned", to="changes")
        training = ["--model", self.model, "--dataset", "sample_qa", "--langs", "en", "--limit", 4, "--epochs", 1]
        self._make(QAtraining.main, *training, "--lora_rank", 2, "--batch_size", 2, "--accumulate", 1, to="trained")
        self.questions = DATASETS_DIR / "sample/qa/en/sample_qa_en_train.json"

    def _make(self, main, *argv, to: str) -> None:
        outcome = run(main, *argv, "--output_dir", self.folder / to)
        assert outcome.status == 0, outcome.err


def outcome_of(case: Case, folder: Path) -> str | None:
    """What is wrong with how a case ends; None where nothing is."""
    folder.mkdir()
    main, argv = case.prepare(folder)
    out, err = io.StringIO(), io.StringIO()
    began = time.monotonic()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
        ended_after(2 * LONGEST_SECONDS),
    ):
        warnings.simplefilter("ignore")
        try:
            status = main([str(argument) for argument in argv])
        except SystemExit as error:  # argparse
            return None if error.code == 2 else f"exit status {error.code}"
        except BaseException as error:  # what no script may let through is what is looked for
            return f"{type(error).__name__}: {str(error)[:100]}"
    if time.monotonic() - began > LONGEST_SECONDS:
        return f"{time.monotonic() - began:.0f} seconds"
    if status == 0:
        return "was taken" if case.must_refuse else None
    lines = err.getvalue().split("\n")
    if status != 2 or len(lines) != 2 or not lines[0].startswith("error: "):
        return f"status {status}: {err.getvalue()[:200]!r}"
    return None if lines[0].isprintable() and len(lines[0]) < 2000 else f"a line of {len(lines[0])} characters"


class Endless(BaseException):
    """What no script catches."""


@contextlib.contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """A case that never ends must not keep the others from their turn."""

    def end(number, frame):
        raise Endless(f"after {seconds:.0f} seconds")

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


# Ways to spoil a file


def json_changes(content, places: list[tuple]) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of a JSON document in which one place has another value, or is gone."""
    for place in places:
        for number, value in enumerate(VALUES):
            yield f"{'.'.join(map(str, place))} = {number}", _dumped(_with(content, place, value))
        yield f"no {'.'.join(map(str, place))}", _dumped(_with(content, place, None, gone=True))


def _dumped(content) -> bytes:
    return json.dumps(content).encode("utf-8", "surrogatepass")


def _with(content, place, value, gone=False):
    content = copy.deepcopy(content)
    if not place:
        return value
    at = content
    for key in place[:-1]:
        at = at[key]
    if gone and isinstance(at, dict):
        at.pop(place[-1], None)
    elif gone:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    return content


def byte_changes(content: bytes) -> Iterator[tuple[str, bytes | None]]:
    """(name, bytes) of a file that is cut, garbled or another thing; None: gone."""
    yield "gone", None
    yield "empty", b""
    for part in (1, 2, 3):
        yield f"cut at {part}/4", content[: len(content) * part // 4]
    yield "cut by one", content[:-1]
    rng = np.random.default_rng(0)
    for number in range(6):
        garbled = bytearray(content)
        for place in rng.integers(0, min(len(content), 4000), 8):
            garbled[place] ^= int(rng.integers(1, 256))
        yield f"garbled {number}", bytes(garbled)
    yield "zeros", bytes(len(content))
    yield "utf-16", content.decode("latin-1").encode("utf-16")
    yield "nested", b"[" * 100_000
    yield "pickle", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtins."


def _put(path: Path, content: bytes | None) -> None:
    if path.is_symlink() or path.exists():
        path.unlink()
    if content is not None:
        path.write_bytes(content)


def _copy(source: Path, folder: Path) -> Path:
    """A copy of a folder, its files links: what is spoilt is put in a link's place."""
    return Path(shutil.copytree(source, folder / source.name, copy_function=os.symlink))


# The cases


def cases(bench: Bench) -> Iterator[Case]:
    yield from of_questions(bench)
    yield from of_predictions(bench)
    yield from of_adapters(bench)
    yield from of_models(bench)
    yield from of_matrices(bench)
    yield from of_runs(bench)
    yield from of_word_counts(bench)
    yield from of_archives()
    yield from of_flags(bench)


def of_file(kind, bench_file, changes, folder_of, command, must_refuse=False) -> Iterator[Case]:
    """Cases in which a file of a copied folder is spoilt. command: folder -> (main, argv)."""
    for name, content in changes:

        def prepare(folder: Path, content=content):
            copied = _copy(folder_of, folder)
            _put(copied / bench_file, content)
            return command(copied)

        yield Case(kind, f"{bench_file}: {name}", prepare, must_refuse)


def of_questions(bench: Bench) -> Iterator[Case]:
    content = json.loads(bench.questions.read_text(encoding="utf-8"))
    content["examples"] = content["examples"][:3]
    example = ("examples", 1)
    places = [(), ("examples",), example, *((*example, key) for key in ("id", "question", "context", "answers"))]
    places += [(*example, "answers", 0), (*example, "answers", 0, "text")]
    changes = [*json_changes(content, places), *byte_changes(_dumped(content))]
    changes += [("twice", _dumped({"examples": [content["examples"][0]] * 2}))]
    for name, spoilt in changes:

        def prepare(folder: Path, spoilt=spoilt):
            _put(folder / "questions.json", spoilt)
            argv = ["--model", bench.model, "--train_file", folder / "questions.json", "--epochs", 0, "--lora_rank", 2]
            return QAtraining.main, [*argv, "--output_dir", folder / "out"]

        yield Case("questions", name, prepare)

    def pipe(folder: Path):
        os.mkfifo(folder / "questions.json")
        return QAtraining.main, ["--train_file", folder / "questions.json", "--output_dir", folder / "out"]

    yield Case("questions", "a pipe", pipe, True)


def of_predictions(bench: Bench) -> Iterator[Case]:
    lines = (bench.folder / "answers_base/predictions.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    rows = [json.loads(line) for line in lines]
    row = rows[1]

    def with_row(content: bytes | None) -> bytes | None:
        return "\n".join([lines[0], "@", *lines[2:], ""]).encode().replace(b"@", content or b"", 1)

    places = [(), *((key,) for key in ("id", "lang", "prediction", "dataset", "question", "context", "stopped_by"))]
    changes = [(name, with_row(spoilt)) for name, spoilt in json_changes(row, places)]
    changes += [*byte_changes("\n".join(lines).encode()), ("twice", "\n".join([*lines, lines[0], ""]).encode())]
    for name, spoilt in changes:

        def prepare(folder: Path, spoilt=spoilt):
            _put(folder / "predictions.jsonl", spoilt)
            argv = [*bench.common, "--score", folder / "predictions.jsonl", "--output_dir", folder / "out"]
            return QAinference.main, argv

        yield Case("predictions", name, prepare)
    for name, spoilt in json_changes(
        row, [("scores",), ("scores", "multilingual_exact_match"), ("scores", "squad_f1")]
    ):

        def subset(folder: Path, spoilt=spoilt):
            _put(folder / "tuned.jsonl", with_row(spoilt))
            base = bench.folder / "answers_base/predictions.jsonl"
            files = ["--base_predictions", base, "--tuned_predictions", folder / "tuned.jsonl"]
            return probe_logit_lens.main, [
                *bench.common,
                "--subset",
                "newly_right",
                *files,
                "--output_dir",
                folder / "o",
            ]

        yield Case("predictions", f"--subset, {name}", subset)


def of_adapters(bench: Bench) -> Iterator[Case]:
    def command(adapter: Path):
        # A shot more than there are: a good adapter isn't used for more than to be loaded.
        argv = [*bench.common, "--adapter", adapter, "--max_new_tokens", 1, "--output_dir", adapter.parent / "out"]
        return QAinference.main, argv

    config = json.loads((bench.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    keys = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "base_model_name_or_path", "rank_pattern")
    keys += ("modules_to_save", "layers_to_transform", "layers_pattern", "auto_mapping", "bias", "use_dora")
    changes = [*json_changes(config, [(), *((key,) for key in keys)]), *byte_changes(_dumped(config))]
    yield from of_file("adapters", "adapter_config.json", changes, bench.adapter, command)
    weights = (bench.adapter / "adapter_model.safetensors").read_bytes()
    for name, content in byte_changes(weights):
        # Weights of a few other values are an adapter like any other.
        refused = not name.startswith("garbled")
        spoilt = [(name, content)]
        yield from of_file("adapters", "adapter_model.safetensors", spoilt, bench.adapter, command, refused)


def of_models(bench: Bench) -> Iterator[Case]:
    def command(model: Path):
        argv = [*bench.common[2:], "--model", model, "--max_new_tokens", 1, "--output_dir", model.parent / "out"]
        return QAinference.main, argv

    config = json.loads((bench.model / "config.json").read_text(encoding="utf-8"))
    keys = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "hidden_act")
    keys += ("max_position_embeddings", "rms_norm_eps", "architectures", "quantization_config", "auto_map", "dtype")
    changes = [*json_changes(config, [(), *((key,) for key in keys)]), *byte_changes(_dumped(config))]
    yield from of_file("models", "config.json", changes, bench.model, command)
    tokenizer = json.loads((bench.model / "tokenizer.json").read_text(encoding="utf-8"))
    places = [(), *((key,) for key in ("model", "added_tokens", "decoder", "pre_tokenizer", "normalizer"))]
    places += [("model", "vocab"), ("model", "merges"), ("model", "type")]
    changes = [*json_changes(tokenizer, places), *byte_changes(_dumped(tokenizer))]
    yield from of_file("models", "tokenizer.json", changes, bench.model, command)
    weights = (bench.model / "model.safetensors").read_bytes()
    for name, content in byte_changes(weights):
        spoilt = [(name, content)]
        yield from of_file("models", "model.safetensors", spoilt, bench.model, command, not name.startswith("garbled"))
    shards = [("empty", {}), ("outside", {"weight_map": {"a": "../tiny/model.safetensors"}}), ("none", [])]
    for name, index in shards:
        spoilt = [(name, _dumped(index))]
        yield from of_file("models", "model.safetensors.index.json", spoilt, bench.model, command, True)


def of_matrices(bench: Bench) -> Iterator[Case]:
    def command(matrix: Path):
        common = ["--model", bench.model, "--langs", "en", "--limit", 1, "--token_languages", matrix]
        return probe_logit_lens.main, [*common, "--output_dir", matrix.parent / "out"]

    for name in ("config.json", "channels.json"):
        content = json.loads((bench.matrix / name).read_text(encoding="utf-8"))
        keys = ("version", "tokenizer_sha256", "files") if name == "config.json" else (0, -1)
        changes = [*json_changes(content, [(), *((key,) for key in keys)]), *byte_changes(_dumped(content))]
        changes = [(change, spoilt) for change, spoilt in changes if spoilt != _dumped(content)]
        yield from of_file("matrices", name, changes, bench.matrix, command, True)
    for name in ("probs.npz", "tokens.npz"):
        changes = list(byte_changes((bench.matrix / name).read_bytes()))
        yield from of_file("matrices", name, changes, bench.matrix, command, True)


def of_runs(bench: Bench) -> Iterator[Case]:
    def compared(kind):
        return lambda other: (
            compare_runs.main,
            [bench.folder / f"{kind}_base", other, "--output_dir", other.parent / "out"],
        )

    def drawn(other: Path):
        return plot_figures.main, [other]

    for kind in ("answers", "probe"):
        source = bench.folder / f"{kind}_tuned"
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        changes = json_changes(config, [(), ("script",), ("arguments",), ("inputs",), ("inputs", "data_sha256")])
        yield from of_file("runs", "config.json", [*changes, *byte_changes(_dumped(config))], source, compared(kind))
        metrics = json.loads((source / "metrics.json").read_text(encoding="utf-8"))
        changes = json_changes(metrics, [(), ("files",)])
        yield from of_file("runs", "metrics.json", [*changes, *byte_changes(_dumped(metrics))], source, compared(kind))
        for path in sorted(source.iterdir()):
            if path.is_file() and path.name not in ("config.json", "metrics.json"):
                changes = [(n, c) for n, c in byte_changes(path.read_bytes()) if c != path.read_bytes()]
                read = path.suffix != ".html"  # a page is drawn anew at any time, and has no checksum
                yield from of_file("runs", path.name, changes, source, compared(kind), read)
    for folder, name in (
        ("probe_tuned", "language_probs.csv"),
        ("changes", "changes.csv"),
        ("trained", "train_log.csv"),
    ):
        content = (bench.folder / folder / name).read_bytes()
        refused = name != "train_log.csv"  # whose times differ each time, so that it has no checksum
        yield from of_file("runs", name, list(byte_changes(content))[1:], bench.folder / folder, drawn, refused)


def of_word_counts(bench: Bench) -> Iterator[Case]:
    header = b"language\tform\tcount\n"
    tables = {
        "no table": b"x",
        "two spellings": header + b"en\t a\t3\neng_Latn\t b\t2\n",
        "twice": header + b"en\t a\t3\nen\t a\t2\n",
        "negative": header + b"en\t a\t-3\n",
        "no number": header + b"en\t a\tinf\n",
        "unknown language": header + b"../..\t a\t3\n",
        "header alone": header,
        "two columns": header + b"en\t3\n",
    }
    for name, table in tables.items():
        for packed in (gzip.compress(table), table, gzip.compress(table)[:-5]):

            def prepare(folder: Path, packed=packed):
                (folder / "w.tsv.gz").write_bytes(packed)
                argv = ["--model", bench.model, "--corpus", folder / "w.tsv.gz", "--output_dir", folder / "out"]
                return logit_lens_tokenid_to_lang.main, argv

            yield Case("word counts", f"{name}, {len(packed)} bytes", prepare, True)


def of_archives() -> Iterator[Case]:
    def packed(*members: tuple[str, dict]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
            for name, fields in members:
                member = tarfile.TarInfo(name)
                for field, value in fields.items():
                    setattr(member, field, value)
                tar.addfile(member, io.BytesIO(bytes(min(member.size, 1000))) if member.size <= 1000 else None)
        return buffer.getvalue()

    plain = packed(("xquad/xquad.en.json", {"size": 10}))
    kinds = {
        "upwards": packed(("../evil", {"size": 3})),
        "absolute": packed(("/tmp/evil", {"size": 3})),
        "link": packed(("xquad/xquad.en.json", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})),
        "hard link": packed(("xquad/xquad.en.json", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"})),
        "device": packed(("xquad/xquad.en.json", {"type": tarfile.CHRTYPE})),
        "pipe": packed(("xquad/xquad.en.json", {"type": tarfile.FIFOTYPE})),
        "stranger": packed(("xquad/evil.py", {"size": 3})),
        "other content": plain,
        **{f"archive {name}": content for name, content in byte_changes(plain)},
    }
    for name, content in kinds.items():

        def prepare(folder: Path, content=content):
            (folder / "mirror").mkdir()
            _put(folder / "mirror" / "xquad.tar.xz", content)
            return get_datasets.main, ["xquad", "--mirror", folder / "mirror", "--datasets_dir", folder / "d"]

        yield Case("archives", name, prepare, True)


FLAGS = {
    QAtraining: ("learning_rate", "weight_decay", "lora_dropout", "lora_rank", "max_grad_norm", "seed", "batch_size"),
    QAinference: ("seed", "limit", "shots", "max_new_tokens", "batch_size", "device", "model", "adapter", "split"),
    probe_logit_lens: ("seed", "limit", "top_k", "max_tokens", "batch_size", "device", "langs", "token_languages"),
}


def of_flags(bench: Bench) -> Iterator[Case]:
    for script, flags in FLAGS.items():
        for flag in flags:
            for value in ("-1", "inf", "nan", "", "\udcff", "cpu:99999", "x" * 5000, "/dev/zero"):

                def prepare(folder: Path, script=script, flag=flag, value=value):
                    return script.main, ["--model", bench.model, f"--{flag}={value}", "--output_dir", folder / "out"]

                yield Case("flags", f"{script.__name__} --{flag}={ascii(value)[:20]}", prepare, True)


def tiny_bench(folder: Path, tokenizer_folder: Path) -> Bench:
    return Bench(folder, AutoTokenizer.from_pretrained(tokenizer_folder))
