"""Checksums of what a run reads: of large files they are kept, by size and times, so that asking again costs little."""

import hashlib
import json
import os
import time
from pathlib import Path

# Smaller files are read again each time.
LEAST_KEPT_BYTES = 1 << 20
# A file written so shortly before may be written again within one tick of the file system's clock.
SETTLED_NANOSECONDS = 2_000_000_000


def cache_folder() -> Path:
    """The project's folder in the user's cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "cross-lingual-transfer"


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read a MiB at a time."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def known_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes; of a large file, the one found before where size, times and inode are the same.

    The time of the last change of the inode is among them: it can't be set back as the modification time can.
    """
    path = Path(path).resolve()
    before = _stamp(path)
    if before[0] < LEAST_KEPT_BYTES:
        return sha256_of_file(path)
    kept = _read_kept()
    stored = kept.get(str(path))
    if isinstance(stored, list) and stored[:-1] == before:
        return stored[-1]
    digest = sha256_of_file(path)
    if _stamp(path) == before and time.time_ns() - max(before[1:3]) > SETTLED_NANOSECONDS:
        _keep({**kept, str(path): [*before, digest]})
    return digest


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _kept_file() -> Path:
    return cache_folder() / "checksums.json"


def _read_kept() -> dict:
    try:
        kept = json.loads(_kept_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet, or damaged: what it holds can be found again
        return {}
    return kept if isinstance(kept, dict) else {}


def _keep(kept: dict) -> None:
    """Two processes that write at once may each lose what the other found, which is then found again."""
    kept = {path: stored for path, stored in kept.items() if Path(path).exists()}
    temporary = _kept_file().with_name(f".checksums.{os.getpid()}.tmp")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(kept), encoding="utf-8")
        temporary.replace(_kept_file())
    except OSError:  # a cache that can't be written costs time, and nothing else
        temporary.unlink(missing_ok=True)
