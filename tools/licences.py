"""Write docs/licences.md: the licence of each package of the lock files, as the package's own metadata says it.

    make licences

Of a package with several versions, the one that is installed is read. What this system or Python does not take (tomli,
colorama, CUDA: 3 GB) is downloaded to be read.
"""

import email.parser
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from email.message import Message
from importlib import metadata
from pathlib import Path

from utils.outside import markdown

PROJECT_DIR = Path(__file__).resolve().parent.parent
PAGE = PROJECT_DIR / "docs" / "licences.md"
DOWNLOAD = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
DOWNLOAD += ["--require-hashes", "--only-binary", ":all:", "--ignore-requires-python"]
LONGEST = 60  # a licence's whole text stands in some packages' field for its name
HEAD = """\
# Licences of what is installed

What `make install` brings, and with PyPI's build of torch for Linux the libraries of CUDA, each with the licence that
its own metadata says: made by `make licences` from `requirements.lock` and `requirements-cuda.lock`, not by hand. None
of it is part of this repository. Data sets have their own licences: [datasets/README.md](../datasets/README.md). The
offline model, Gemma 3 270M, is under [Gemma's terms](https://ai.google.dev/gemma/terms).

"""


def main() -> int:
    entries = entries_of(*(PROJECT_DIR / name for name in ("requirements.lock", "requirements-cuda.lock")))
    licences = {name: licence_of(of_name) for name, of_name in installed().items()}
    first = {name_of(entry): entry for entry in reversed(entries)}
    licences |= downloaded([without_marker(entry) for name, entry in first.items() if name not in licences])
    PAGE.write_text(page(entries, licences), encoding="utf-8", newline="\n")
    print(f"{PAGE.relative_to(PROJECT_DIR)}: {len(first)} packages")
    return 0


def installed() -> dict[str, Message]:
    return {canonical(found.metadata["Name"]): found.metadata for found in metadata.distributions()}


def entries_of(*locks: Path) -> list[str]:
    """A lock's entries: each a name with its version, its marker and its checksums."""
    return [entry for lock in locks for entry in re.findall(r"^\w.*\n(?:[ \t].*\n)*", lock.read_text("utf-8"), re.M)]


def name_of(entry: str) -> str:
    return entry.split("==")[0]


def version_of(entry: str) -> str:
    return entry.split("==")[1].split()[0]


def without_marker(entry: str) -> str:
    head, rest = entry.split("\n", 1)
    return f"{head.split(' ;')[0].removesuffix(' ' + chr(92))} \\\n{rest}"


def downloaded(entries: list[str]) -> dict[str, str]:
    """Name -> licence, read from wheels, one after the other since CUDA's are large."""
    licences = {}
    for entry in entries:
        with tempfile.TemporaryDirectory() as temporary:
            lock = Path(temporary) / "lock.txt"
            lock.write_text(entry, encoding="utf-8")
            subprocess.run([*DOWNLOAD, "--dest", temporary, "-r", lock], check=True)
            (wheel,) = Path(temporary).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (name,) = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
                licences[name_of(entry)] = licence_of(email.parser.BytesParser().parsebytes(archive.read(name)))
    return licences


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def licence_of(found: Message) -> str:
    """What the metadata says: the expression, else the field where it is a name and not a text, else classifiers."""
    field = (found.get("License") or "").strip()
    if expression := found.get("License-Expression"):
        return expression
    if field and "\n" not in field and len(field) <= LONGEST:
        return field
    classifiers = [c.split(" :: ")[-1] for c in found.get_all("Classifier") or [] if c.startswith("License :: ")]
    return "; ".join(classifiers) or "not said"


def page(entries: list[str], licences: dict[str, str]) -> str:
    versions: dict[str, list[str]] = {}
    for entry in entries:
        versions.setdefault(name_of(entry), []).append(version_of(entry))
    rows = [" | ".join(map(markdown, (name, ", ".join(each), licences[name]))) for name, each in versions.items()]
    counts = Counter(licences[name] for name in versions).most_common()
    table = "| package | version | licence |\n|---|---|---|\n" + "".join(f"| {row} |\n" for row in rows)
    table += "\n| licence | packages |\n|---|---:|\n" + "".join(f"| {markdown(name)} | {n} |\n" for name, n in counts)
    return HEAD + table


if __name__ == "__main__":
    sys.exit(main())
