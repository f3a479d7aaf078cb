"""Run folders: the configuration first, rows while the run goes on, metrics last; every write is atomic."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

PROJECT_DIR = Path(__file__).resolve().parent.parent
CONFIG, METRICS = "config.json", "metrics.json"
TRAIN_LOG, DEV_LOG = "train_log.csv", "dev_log.csv"
HELD_OUT_LOSS = "held_out.csv"  # of a fitted lens
# Where an output goes and whether an old one may go say nothing about what is computed.
NOT_PART_OF_A_RUN = ("output_dir", "overwrite", "resume")
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "numpy", "scipy", "pandas")


class RunDirectory:
    """One run's folder. `config.json` says what was asked and with what; `metrics.json` says that it is whole.

    Opening a folder starts a run or goes on with one that was stopped: `configuration` must then equal the
    stored one. Raises ValueError where the folder holds another command's run or things that no run wrote.
    """

    def __init__(self, path: Path, configuration: dict, overwrite: bool = False):
        self.path = Path(path)
        # The same round trip that the stored one has made: tuples are lists, keys are texts.
        configuration = json.loads(json.dumps(configuration))
        if overwrite:
            self._clear()
        self._refuse_foreign_folder()
        for path in self.path.rglob(".*.tmp"):  # a writer that was killed leaves its temporary file
            path.unlink()
        if stored := self._stored_configuration():
            self.configuration = stored
            self._refuse_other_run(configuration)
        else:
            self.configuration = configuration
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / CONFIG, configuration)

    @property
    def finished(self) -> bool:
        return (self.path / METRICS).exists()

    def read_metrics(self) -> dict:
        return json.loads((self.path / METRICS).read_text(encoding="utf-8"))

    def finish(self, metrics: dict) -> None:
        write_json(self.path / METRICS, metrics)

    def _refuse_foreign_folder(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--output_dir {self.path}: a file, not a folder")
        strangers = [p.name for p in self.path.glob("*")] if not (self.path / CONFIG).exists() else []
        # A run that was killed while it wrote its configuration leaves that temporary file alone.
        strangers = [name for name in strangers if not name.startswith(f".{CONFIG}.")]
        if strangers:
            raise ValueError(f"--output_dir {self.path}: holds {strangers[0]!r} and no {CONFIG}; choose another folder")

    def _refuse_other_run(self, configuration: dict) -> None:
        stored = self.configuration
        differing = [
            f"{key} was {stored.get(part, {}).get(key)!r}, is {configuration.get(part, {}).get(key)!r}"
            for part in ("arguments", "inputs")
            for key in sorted({*stored.get(part, {}), *configuration.get(part, {})})
            if stored.get(part, {}).get(key) != configuration.get(part, {}).get(key)
        ]
        if stored.get("script") != configuration.get("script"):
            differing.insert(0, f"script was {stored.get('script')!r}, is {configuration.get('script')!r}")
        if differing:
            raise ValueError(
                f"--output_dir {self.path}: holds another command's run ({differing[0]}); "
                "choose another folder, or --overwrite it"
            )

    def _stored_configuration(self) -> dict | None:
        """What a run's configuration says; None where there is none or where the file is something else's."""
        try:
            stored = json.loads((self.path / CONFIG).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError:
            raise ValueError(f"{self.path / CONFIG}: not JSON, so the folder is no run of ours") from None
        if not isinstance(stored, dict) or not {"script", "arguments", "inputs"} <= stored.keys():
            raise ValueError(f"--output_dir {self.path}: its {CONFIG} is no run's; choose another folder")
        return stored

    def _clear(self) -> None:
        """Remove an earlier run, and only that: a folder without a run's configuration is not ours to empty."""
        if self._stored_configuration() is None:
            return
        (self.path / METRICS).unlink(missing_ok=True)  # first: what is half removed must not look whole
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != CONFIG:
                path.unlink()
        (self.path / CONFIG).unlink()


def configuration(script: str, args, inputs: dict) -> dict:
    """What `config.json` holds. `inputs` are the things that the arguments only name: checksums, resolved sizes."""
    arguments = {key: _plain(value) for key, value in sorted(vars(args).items()) if key not in NOT_PART_OF_A_RUN}
    return {
        "script": script,
        "arguments": arguments,
        "inputs": inputs,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
        "commit": _commit(),
    }


def _plain(value):
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The project's commit, with `+changes` where the checkout differs from it; None outside a checkout."""
    git = ["git", "-C", str(PROJECT_DIR)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = [*git, "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def default_output_dir(script: str, args, *parts: str) -> Path:
    """A readable folder under results/, the same for the same arguments and another for any other ones."""
    arguments = {key: _plain(value) for key, value in sorted(vars(args).items()) if key not in NOT_PART_OF_A_RUN}
    digest = hashlib.sha256(json.dumps([script, arguments]).encode()).hexdigest()[:6]
    return PROJECT_DIR / "results" / "-".join([script, *parts, digest])


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read a MiB at a time."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, write) -> None:
    """`write(file)` on a temporary name beside `path`, then rename: a reader sees the old file or the whole new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk doesn't say where it is
            error.filename = str(path)
        raise


def write_json(path: Path, content) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A tidy CSV: UTF-8, \\n, nine significant digits (float32 survives the round trip)."""
    text = table.to_csv(index=False, lineterminator="\n", float_format="%.9g")
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_array(path: Path, array: np.ndarray) -> None:
    write_atomically(path, lambda file: np.save(file, array, allow_pickle=False))


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)
