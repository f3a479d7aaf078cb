"""Brings the official data sets into datasets/, each file checked against datasets/sources.tsv.

    python get_datasets.py xquad xquad_in indicqa flores200 cldr_concepts
    python get_datasets.py all --mirror DIR

The first command downloads from the official addresses. The second needs no network: DIR is a folder that
holds xquad.tar.xz, xquad_in.tar.xz, indicqa.tar.xz, flores200_dev.tar.xz and concepts.tsv.xz, or those of them
that are asked for. A command that was stopped goes on where it was when it is given again: a file is written
as NAME.part and takes its name once it is whole and its size and SHA-256 are the table's. A further name,

    python get_datasets.py word_counts

makes datasets/word_counts.tsv.gz, which the repository carries, anew from datasets/flores200/dev.
"""

from __future__ import annotations

import argparse
import csv
import lzma
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tqdm import tqdm

from utils import command_line
from utils.data.downloads import download, open_archive, part_of, unpack_member
from utils.runs import sha256_of_file

SOURCES = Path(__file__).resolve().parent / "datasets" / "sources.tsv"
FLORES_LANGUAGES = 204
FLORES_LINES = {"dev": 997, "devtest": 1012}
CONCEPTS_SHA256 = "f80429bf67ba83a10d4d4e0327807428626d4775961c3b13358dd6342de262e7"
FLORES_FILE = re.compile(r"flores200(?:_dataset)?/(?P<split>dev|devtest)/[a-z]{3}_[A-Z][a-z]{3}\.(?P=split)")


class Source(NamedTuple):
    """A row of the table; `sha256` and `bytes` are None where they are not known."""

    path: str
    url: str
    sha256: str | None
    bytes: int | None
    licence: str


class Outcome(NamedTuple):
    """How many files of a set were there already, were brought now, and are still not there."""

    present: int
    new: int
    missing: int
    licence: str


def main(argv: Sequence[str] | None = None) -> int:
    return command_line.run(get_datasets, parse_args(argv))


def get_datasets(args: argparse.Namespace) -> None:
    sources = read_sources(SOURCES)
    wanted = {*DOWNLOADS} if "all" in args.names else {*args.names}
    for name in [name for name in DOWNLOADS if name in wanted]:
        rows = [source for source in sources if source.path.split("/")[0] == name]
        outcome = DOWNLOADS[name](name, rows, args.datasets_dir, args.mirror)
        print(
            f"{name}: {outcome.present} files present, {outcome.new} new, {outcome.missing} missing; "
            f"licence: {outcome.licence}"
        )
    if "word_counts" in args.names:
        make_word_counts(args.datasets_dir)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    names = [*DOWNLOADS, "all", "word_counts"]
    parser.add_argument("names", nargs="+", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument(
        "--mirror",
        type=Path,
        metavar="DIR",
        help="take the files from the archives in DIR, not from the network",
    )
    parser.add_argument("--datasets_dir", type=Path, default=SOURCES.parent, metavar="DIR")
    return parser.parse_args(argv)


def read_sources(path: Path) -> list[Source]:
    """The table of sources. Raises ValueError for an address that is not http or https."""
    sources = []
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            if urlsplit(row["url"]).scheme not in ("http", "https"):
                raise ValueError(f"{path}: {row['path']}: address {row['url']!r} is neither http nor https")
            known = {name: None if row[name] == "-" else row[name] for name in ("sha256", "bytes")}
            size = None if known["bytes"] is None else int(known["bytes"])
            sources.append(Source(row["path"], row["url"], known["sha256"], size, row["licence"]))
    return sources


# XQuAD, XQuAD-IN, IndicQA: the table has a row, with a SHA-256, for every file.


def get_files(name: str, sources: list[Source], datasets_dir: Path, mirror: Path | None) -> Outcome:
    """Bring every file of a set that is not there yet."""
    licence = " and ".join(sorted({source.licence for source in sources}))
    absent = [source for source in sources if not is_present(datasets_dir / source.path, source)]
    if mirror is None:
        for source in tqdm(absent, desc=name, unit="file", disable=None):
            target = datasets_dir / source.path
            download(source.url, part_of(target), source.bytes)
            put_in_place(target, source)
        brought = len(absent)
    else:
        brought = unpack_files(mirror / f"{name}.tar.xz", sources, absent, datasets_dir)
    return Outcome(len(sources) - len(absent), brought, len(absent) - brought, licence)


def unpack_files(archive: Path, sources: list[Source], absent: list[Source], datasets_dir: Path) -> int:
    """Unpack the absent files from a mirror's archive, once every name in it is known to the table."""
    known = {source.path for source in sources}
    with open_archive(archive) as (tar, members):
        for path in members:
            if path not in known:
                raise ValueError(f"{archive}: refused {path!r}: it is not in {SOURCES.name}")
        print_lacking(archive, len(known) - len(members), len(known))
        found = [source for source in absent if source.path in members]
        for source in tqdm(found, desc=archive.name, unit="file", disable=None):
            target = datasets_dir / source.path
            unpack_member(tar, members[source.path], part_of(target))
            put_in_place(target, source)
    return len(found)


def is_present(path: Path, source: Source) -> bool:
    """Whether a file is there. Raises ValueError where it is, with another SHA-256 than the table's."""
    if not path.exists():
        return False
    digest = sha256_of_file(path)
    if digest != source.sha256:
        raise ValueError(
            f"{path} is not the official file: expected SHA-256 {source.sha256}, got {digest}; "
            "move it away or delete it, then give the same command again"
        )
    return True


def put_in_place(target: Path, source: Source) -> None:
    """Give a whole NAME.part its name. Raises ValueError, and removes it, where it is not the table's file."""
    part = part_of(target)
    check(part, source, target)
    part.replace(target)


def check(part: Path, source: Source, name: object) -> None:
    """Compare size and SHA-256, where the table has them. A file that differs is removed: ValueError."""
    size, digest = part.stat().st_size, sha256_of_file(part)
    if source.bytes not in (None, size) or source.sha256 not in (None, digest):
        part.unlink()
        raise ValueError(
            f"{name}: expected SHA-256 {source.sha256} ({source.bytes} bytes), got {digest} ({size} bytes); "
            "what came was removed"
        )


# FLORES-200: one tarball, without a published SHA-256, so its languages and lines are counted.


def get_flores(name: str, sources: list[Source], datasets_dir: Path, mirror: Path | None) -> Outcome:
    """Bring every split of FLORES-200 that is not there yet."""
    [source] = sources
    folder = datasets_dir / name
    present = [split for split in FLORES_LINES if (folder / split).exists()]
    for split in present:
        check_flores_split(folder / split)
    absent = [split for split in FLORES_LINES if split not in present]
    if mirror is not None:
        brought = unpack_mirrored_flores(mirror / f"{name}_dev.tar.xz", folder, absent)
    elif absent:
        brought = download_flores(source, folder, absent)
    else:
        brought = []
    missing = len(absent) - len(brought)
    n_present, n_new, n_missing = (n * FLORES_LANGUAGES for n in (len(present), len(brought), missing))
    return Outcome(n_present, n_new, n_missing, source.licence)


def download_flores(source: Source, folder: Path, absent: list[str]) -> list[str]:
    """Download the tarball, unpack the absent splits and delete it. Returns those splits."""
    part = part_of(folder.with_name("flores200_dataset.tar.gz"))
    download(source.url, part, source.bytes)
    print(f"flores200: the SHA-256 of {source.url} is {sha256_of_file(part)} (none is published)")
    check(part, source, source.url)
    try:
        in_archive = unpack_flores(part, folder, absent)
        if len(in_archive) < len(FLORES_LINES):
            raise ValueError(f"{part}: has the splits {in_archive}, expected {list(FLORES_LINES)}")
    except ValueError as error:
        part.unlink()
        raise ValueError(f"{error}; the tarball was removed") from error
    part.unlink()
    return absent


def unpack_mirrored_flores(archive: Path, folder: Path, absent: list[str]) -> list[str]:
    """Unpack the absent splits that a mirror's archive has. Returns those splits."""
    in_archive = unpack_flores(archive, folder, absent)
    lacking = len(FLORES_LINES) - len(in_archive)
    print_lacking(archive, lacking * FLORES_LANGUAGES, len(FLORES_LINES) * FLORES_LANGUAGES)
    return [split for split in absent if split in in_archive]


def unpack_flores(archive: Path, folder: Path, absent: list[str]) -> list[str]:
    """Unpack the absent splits, which take their places once all are checked. Returns the archive's splits."""
    unpacked = part_of(folder)
    shutil.rmtree(unpacked, ignore_errors=True)  # a killed run's
    try:
        with open_archive(archive) as (tar, members):
            matches = {path: match for path in members if (match := FLORES_FILE.fullmatch(path))}
            wanted = [path for path, match in matches.items() if match["split"] in absent]
            for path in tqdm(wanted, desc=archive.name, unit="file", disable=None):
                unpack_member(tar, members[path], unpacked / matches[path]["split"] / Path(path).name)
            if others := len(members) - len(matches):
                print(f"{archive}: left out {others} files that are not sentences")
        in_archive = sorted({match["split"] for match in matches.values()})
        brought = [split for split in absent if split in in_archive]
        for split in brought:
            check_flores_split(unpacked / split)
        for split in brought:
            folder.mkdir(parents=True, exist_ok=True)
            (unpacked / split).rename(folder / split)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return in_archive


def check_flores_split(folder: Path) -> None:
    """Count a split's languages, and each one's lines. Raises ValueError for a wrong number."""
    paths = sorted(folder.glob(f"*.{folder.name}"))
    if len(paths) != FLORES_LANGUAGES:
        raise ValueError(f"{folder}: expected {FLORES_LANGUAGES} files, got {len(paths)}")
    for path in paths:
        with path.open("rb") as lines:
            count = sum(1 for _ in lines)
        if count != FLORES_LINES[folder.name]:
            raise ValueError(f"{path}: expected {FLORES_LINES[folder.name]} lines, got {count}")


def print_lacking(archive: Path, lacking: int, total: int) -> None:
    if lacking:
        print(f"{archive}: does not have {lacking} of the {total} official files")


# Unicode's names of things: a table that is made from one package's files, and has a SHA-256 of its own.


def get_concepts(name: str, sources: list[Source], datasets_dir: Path, mirror: Path | None) -> Outcome:
    """Make the table of concepts from Unicode's package, or take it from a mirror's concepts.tsv.xz."""
    [source] = sources
    table = Source(f"{name}/concepts.tsv", source.url, CONCEPTS_SHA256, None, source.licence)
    target = datasets_dir / table.path
    if is_present(target, table):
        return Outcome(1, 0, 0, source.licence)
    target.parent.mkdir(parents=True, exist_ok=True)
    content = concepts_of_package(source, target) if mirror is None else unpack_xz(mirror / "concepts.tsv.xz")
    part_of(target).write_bytes(content)
    put_in_place(target, table)
    return Outcome(0, 1, 0, source.licence)


def concepts_of_package(source: Source, target: Path) -> bytes:
    """Download the package beside the table, make the table and delete the package."""
    from utils.data.cldr import LANGUAGES, annotation_file, concept_table

    package = part_of(target.with_name("annotations.tgz"))
    download(source.url, package, source.bytes)
    check(package, source, source.url)
    with open_archive(package) as (tar, members):
        unpacked = {}
        for lang in LANGUAGES:
            if annotation_file(lang) not in members:
                raise ValueError(f"{package}: has no {annotation_file(lang)}")
            with tar.extractfile(members[annotation_file(lang)]) as file:
                unpacked[lang] = file.read()
    package.unlink()
    return concept_table(unpacked)


def unpack_xz(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path} is not there; --mirror takes a folder that holds the archives")
    try:
        return lzma.decompress(path.read_bytes())
    except lzma.LZMAError as error:
        raise ValueError(f"{path}: a damaged archive: {error}") from error


# word_counts.tsv.gz, which the repository carries


def make_word_counts(datasets_dir: Path) -> None:
    """Counts FLORES-200 dev's words anew: the same bytes as the repository's file, or a larger corpus's counts."""
    from utils.data.corpora import read_corpus, write_word_counts  # they take seconds to load

    path = datasets_dir / "word_counts.tsv.gz"
    corpus = read_corpus(datasets_dir / "flores200" / "dev")
    write_word_counts(path, corpus)
    print(f"word_counts: {path}, {len(corpus)} languages, {path.stat().st_size:,} bytes; licence: CC BY-SA 4.0")


# The choices of the command line, in the order in which they are brought. Each takes the set's name, its rows
# of the table, the datasets folder and the mirror (None: the official address), and returns an Outcome.
DOWNLOADS = {
    "xquad": get_files,
    "xquad_in": get_files,
    "indicqa": get_files,
    "flores200": get_flores,
    "cldr_concepts": get_concepts,
}


if __name__ == "__main__":
    sys.exit(main())
