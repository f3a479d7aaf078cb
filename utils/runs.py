"""Run folders: the configuration first, rows while the run goes on, metrics last; every write is atomic."""

import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
import zipfile
import zlib
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from utils import processes
from utils.checksums import known_sha256, sha256_of_file  # noqa: F401 (scripts ask for it here)
from utils.outside import read_json

PROJECT_DIR = Path(__file__).resolve().parent.parent
CONFIG, METRICS = "config.json", "metrics.json"
FILES = "files"  # of the metrics: name of each of the run's files -> its checksum
LINE_END = "\r\x1e\n"  # of a CSV while it is written: no text has it
REPLACED = ".replaced"  # in a run's folder: what --overwrite takes away, until the new configuration is written
# What is drawn anew at any time, or on the way to the result; `states-eng_Latn` is of `states`.
PASSING_FOLDERS = ("figures", "checkpoints", "records", "responses", "states", "told")
TRAIN_LOG, DEV_LOG = "train_log.csv", "dev_log.csv"
HELD_OUT_LOSS = "held_out.csv"  # of a fitted lens
# Where an output goes and whether an old one may go say nothing about what is computed.
NOT_PATHS = ("dataset", "langs", "source_lang", "split", "prompt")  # arguments, whatever lies beside us
NOT_PART_OF_A_RUN = ("output_dir", "overwrite", "resume")
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "numpy", "scipy", "pandas")


class RunDirectory:
    """One run's folder. `config.json` says what was asked and with what; `metrics.json` says that it is whole.

    Opening a folder starts a run or goes on with one that was stopped: `configuration` must then equal the
    stored one. Raises ValueError where the folder holds another command's run or things that no run wrote.
    """

    def __init__(self, path: Path, configuration: dict, overwrite: bool = False, lock: bool = True):
        """lock: False for the further processes of one run, which the first of them locks for all.

        A folder that is refused is left as it is, to its temporary files.
        """
        self.path = Path(path)
        # The same round trip that the stored one has made: tuples are lists, keys are texts.
        configuration = json.loads(json.dumps(configuration))
        if lock:
            processes.hold(self.path)
        self._refuse_foreign_folder()
        if lock:
            self._bring_back()
        if overwrite:
            self._refuse_to_remove_more(configuration)
        elif stored := self._stored_configuration():
            self.configuration = stored
            self._refuse_other_run(configuration)
            self._look_at_finished_files()
            if lock:  # the first process may be writing by now
                self._tidy()
            return
        self.configuration = configuration
        self.path.mkdir(parents=True, exist_ok=True)
        if overwrite:
            self._move_aside()
        self._tidy()
        write_json(self.path / CONFIG, configuration)
        shutil.rmtree(self.path / REPLACED, ignore_errors=True)

    @property
    def finished(self) -> bool:
        return is_finished(self.path)

    def read_metrics(self) -> dict:
        return {key: value for key, value in _read_metrics(self.path).items() if key != FILES}

    def finish(self, metrics: dict) -> None:
        """Write the metrics and, with them, the checksum of each file of the run: it is finished while they hold."""
        write_json(self.path / METRICS, {**metrics, FILES: _checksums_of_files(self.path)})

    def _refuse_foreign_folder(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--output_dir {self.path}: a file, not a folder")
        strangers = [p.name for p in self.path.glob("*")] if not (self.path / CONFIG).exists() else []
        # A run that was killed while it wrote its configuration leaves that temporary file alone.
        strangers = [name for name in strangers if not name.startswith(f".{CONFIG}.") and name != REPLACED]
        if strangers:
            raise ValueError(f"--output_dir {self.path}: holds {strangers[0]!r} and no {CONFIG}; choose another folder")

    def _look_at_finished_files(self) -> None:
        """A file that is gone is made again; one that has changed is the user's, so that the run is refused."""
        if not (self.path / METRICS).exists():
            return
        gone, changed = _altered_files(self.path)
        if changed:
            raise ValueError(
                f"--output_dir {self.path}: {changed[0]} has changed since the run was finished; "
                "choose another folder, or --overwrite it"
            )
        if gone:
            (self.path / METRICS).unlink()

    def _refuse_other_run(self, configuration: dict) -> None:
        stored = self.configuration
        differing = [
            difference
            for part in ("arguments", "inputs")
            for difference in differences(stored.get(part, {}), configuration.get(part, {}))
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

    def _tidy(self) -> None:
        """Remove what a writer that was killed has left half written; there is no other one while we hold the lock."""
        for path in self.path.rglob(".*.tmp"):
            if path.suffixes[-2:-1] and path.suffixes[-2][1:].isdecimal() and path.is_file():
                path.unlink()

    def _refuse_to_remove_more(self, configuration: dict) -> None:
        """--overwrite removes a run of the same script, and nothing that the command reads."""
        stored = self._stored_configuration()
        if stored is None:
            return
        if stored["script"] != configuration.get("script"):
            raise ValueError(
                f"--overwrite: {self.path} holds a run of {stored['script']}, not of {configuration.get('script')}; "
                "choose another folder"
            )
        ours = self.path.resolve()
        for name, value in configuration.get("arguments", {}).items():
            for path in _paths_in(value) if name not in NOT_PATHS else ():
                if path == ours or ours in path.parents or (path in ours.parents and path.is_dir()):
                    relation = "lies in" if path in ours.parents else "holds"
                    raise ValueError(
                        f"--overwrite: {self.path} {relation} what the command reads (--{name} {value}); "
                        "choose another folder"
                    )

    def _move_aside(self) -> None:
        """The earlier run, its metrics first, since what is half moved must not look whole, its configuration last."""
        aside = self.path / REPLACED
        aside.mkdir()
        names = [path.name for path in self.path.iterdir() if path.name not in (REPLACED, METRICS, CONFIG)]
        for name in (METRICS, *sorted(names), CONFIG):
            if (self.path / name).exists() or (self.path / name).is_symlink():
                (self.path / name).rename(aside / name)

    def _bring_back(self) -> None:
        """What --overwrite had moved aside when it was killed: back, unless the new run had begun."""
        aside = self.path / REPLACED
        if not aside.is_dir():
            return
        if not ((aside / CONFIG).exists() and (self.path / CONFIG).exists()):
            for path in sorted(aside.iterdir(), key=lambda path: path.name == METRICS):
                path.rename(self.path / path.name)
        shutil.rmtree(aside)


def _paths_in(value) -> list[Path]:
    """The files and folders on this disk that an argument names, links resolved."""
    values = value if isinstance(value, list) else [value]
    paths = [Path(text).expanduser() for text in values if isinstance(text, str) and text and "\0" not in text]
    return [path.resolve() for path in paths if _exists(path)]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a text that is no name of a file: too long a name
        return False


def is_finished(run: Path) -> bool:
    """Does the folder hold a finished run, each of whose files is there as it was when the run was finished?"""
    return (Path(run) / METRICS).is_file() and not any(_altered_files(Path(run)))


def require_finished(run: Path) -> None:
    """Raises ValueError, naming the file, for a folder whose run is not finished, or has been altered since."""
    if not (Path(run) / METRICS).is_file():
        raise ValueError(f"{run}: the run is not finished: no {METRICS} in it")
    gone, changed = _altered_files(Path(run))
    if gone:
        raise ValueError(f"{run}: the run is not finished: no {', no '.join(gone)} in it")
    if changed:
        raise ValueError(f"{run}: {changed[0]} has changed since the run was finished")


def _altered_files(run: Path) -> tuple[list[str], list[str]]:
    """The files of a finished run that are gone, and those that have changed."""
    files = _read_metrics(run).get(FILES, {})  # runs of before have none
    gone = [name for name in files if not (run / name).is_file()]
    changed = [name for name, digest in files.items() if digest and name not in gone and _differs(run / name, digest)]
    return gone, changed


def _differs(path: Path, digest: str) -> bool:
    return known_sha256(path) != digest


def _read_metrics(run: Path) -> dict:
    path = run / METRICS
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: not JSON; remove it, and the same command goes on") from None
    files = metrics.get(FILES, {}) if isinstance(metrics, dict) else None
    if not isinstance(files, dict) or not all(isinstance(digest, str | None) for digest in files.values()):
        raise ValueError(f"{path}: not the metrics of a run; remove it, and the same command goes on")
    return metrics


def _checksums_of_files(run: Path) -> dict[str, str | None]:
    """Name of each file of a run -> its SHA-256; None for a log with times in it, which differ each time.

    Figures are drawn from the tables at any time, and checkpoints and records are on the way to the result.
    """
    files = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run)
        if path.is_file() and not _is_passing(name):
            files[name.as_posix()] = None if name.name == TRAIN_LOG else known_sha256(path)
    return files


def _is_passing(name: Path) -> bool:
    passing = name.parts[0].split("-")[0] in PASSING_FOLDERS or name.suffix in (".png", ".pdf", ".html")
    return passing or name.name.startswith(".") or name.as_posix() in (CONFIG, METRICS)


def differences(stored: dict, given: dict, of: str = "") -> list[str]:
    """`limit was 8, is 9` for each key whose values differ; within a mapping, of each of its keys."""
    found = []
    for key in sorted({*stored, *given}):
        was, now = stored.get(key), given.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += differences(was, now, f" of {key}{of}")
        elif was != now:
            found.append(f"{key}{of} was {_shortened(was)}, is {_shortened(now)}")
    return found


def _shortened(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


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


@functools.cache
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
    # A text is quoted where it has a character of the line's end: a lone carriage return is one for readers.
    text = table.to_csv(index=False, lineterminator=LINE_END, float_format="%.9g").replace(LINE_END, "\n")
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_array(path: Path, array: np.ndarray) -> None:
    write_atomically(path, lambda file: np.save(file, array, allow_pickle=False))


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Raises ValueError, naming the file, for one that is damaged or holds objects (a pickle runs what it likes)."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged, or no arrays of NumPy's ({error})") from None


def read_table(path: Path, **options) -> pd.DataFrame:
    """A CSV by pandas. Raises ValueError, naming the file, for what is no table."""
    try:
        return pd.read_csv(path, **options)
    except (ValueError, OverflowError) as error:  # pandas' own are ValueErrors, and those of UTF-8
        raise ValueError(f"{path}: not a table ({error})") from None


def read_configuration(run: Path) -> dict:
    """What a run's configuration says. Raises ValueError where it isn't there, or is no run's."""
    content = read_json(Path(run) / CONFIG)
    known = {"script": str, "arguments": dict, "inputs": dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in known.items()):
        raise ValueError(f"{Path(run) / CONFIG}: not the configuration of a run")
    return content
