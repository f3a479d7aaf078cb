"""A corpus of sentences in many languages, and the table of word counts that is made from one."""

import gzip
import hashlib
import io
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from utils.data.examples import (
    DATASETS,
    DATASETS_DIR,
    ParallelSet,
    data_files,
    default_split,
    read_sentences,
)
from utils.languages import WRITTEN_WITHOUT_SPACES, language_code, script_of
from utils.outside import read_bytes
from utils.runs import sha256_of_file, write_atomically

WORD_COUNTS = DATASETS_DIR / "word_counts.tsv.gz"
LONGEST_NGRAM = 4
# Folders of sentences that have a name.
CORPORA = {"flores200": DATASETS_DIR / "flores200" / "dev", "sample_parallel": DATASETS_DIR / "sample" / "parallel"}


def read_corpus(folder: Path) -> dict[str, list[str]]:
    """FLORES code -> sentences, from a folder with one file a language, named CODE.anything."""
    return {code: read_sentences(path) for code, path in sorted(_files_of(Path(folder)).items())}


def named_corpus(name: str, langs: list[str]) -> dict[str, list[str]]:
    """FLORES code -> sentences of the languages, in their order. name: one of CORPORA, or a folder as `read_corpus`'s.

    Raises ValueError, naming the languages that are there, for one that isn't.
    """
    return {code: read_sentences(path) for code, path in corpus_files(name, langs).items()}


def corpus_files(name: str, langs: list[str]) -> dict[str, Path]:
    """FLORES code -> the file that `named_corpus` reads."""
    folder = CORPORA.get(name, Path(name))
    if name == "flores200" and not folder.is_dir():
        raise ValueError(
            f"{folder}: no such folder; python get_datasets.py flores200 brings it, or --corpus sample_parallel"
        )
    files = _files_of(folder)
    if absent := [code for code in langs if code not in files]:
        raise ValueError(f"{folder}: no sentences in {', '.join(absent)}; choose from {', '.join(sorted(files))}")
    return {code: files[code] for code in langs}


def _files_of(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        try:
            code = language_code(path.name.split(".")[0])
        except ValueError as error:
            raise ValueError(f"{path}: a corpus has one file a language, named CODE.anything; {error}") from None
        if code in files:
            raise ValueError(f"{path}: a second file for {code}, beside {files[code].name}")
        files[code] = path
    if not files:
        raise ValueError(f"{folder}: no files in it; a corpus has one file a language, named CODE.anything")
    return files


def corpus_checksum(path: Path) -> str:
    """SHA-256 of a word-count file, or of a corpus folder's file names and contents in order."""
    path = Path(path)
    if path.is_file():
        return sha256_of_file(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")):
        digest.update(f"{file.name}\t{sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


def count_forms(sentences: Iterable[str], script: str) -> Counter[str]:
    """How often each form occurs: words with their leading space, without the punctuation around them.

    For scripts written without spaces, character n-grams of 1 to 4 within what white space separates.
    """
    counts: Counter[str] = Counter()
    for chunk in (chunk for sentence in sentences for chunk in sentence.split()):
        if script in WRITTEN_WITHOUT_SPACES:
            counts.update(character_ngrams(chunk))
        elif word := _without_punctuation_around(chunk):
            counts[" " + word] += 1
    return counts


def character_ngrams(text: str) -> list[str]:
    return [text[i : i + n] for n in range(1, LONGEST_NGRAM + 1) for i in range(len(text) - n + 1)]


def _without_punctuation_around(chunk: str) -> str:
    start, end = 0, len(chunk)
    while start < end and unicodedata.category(chunk[start])[0] in "PS":
        start += 1
    while end > start and unicodedata.category(chunk[end - 1])[0] in "PS":
        end -= 1
    return chunk[start:end]


def write_word_counts(path: Path, corpus: dict[str, list[str]], least: int = 1) -> None:
    """A table language, form, count of the forms that occur at least `least` times. The same bytes every time."""
    text = io.StringIO(newline="\n")
    text.write("language\tform\tcount\n")
    for code, sentences in sorted(corpus.items()):
        counts = count_forms(sentences, script_of(code))
        for form, count in sorted((form, count) for form, count in counts.items() if count >= least):
            text.write(f"{code}\t{form}\t{count}\n")
    compressed = gzip.compress(text.getvalue().encode("utf-8"), compresslevel=9, mtime=0)
    write_atomically(path, lambda file: file.write(compressed))


def read_word_counts(path: Path) -> dict[str, dict[str, int]]:
    """FLORES code -> form -> count. Raises ValueError, naming the line, where the table is not one."""
    try:
        lines = gzip.decompress(read_bytes(path)).decode("utf-8").removesuffix("\n").split("\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"{path}: not a gzip of UTF-8 ({error})") from None
    if lines[0] != "language\tform\tcount":
        raise ValueError(f"{path}:1: the header is not language, form, count")
    counts: dict[str, dict[str, int]] = {}
    spelling: dict[str, str] = {}  # FLORES code -> as the table spells it
    codes: dict[str, str] = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            written, form, count = line.split("\t")
            n = int(count)
        except ValueError:
            raise ValueError(f"{path}:{number}: not language, form, count: {line!r}") from None
        if written not in codes:
            codes[written] = _code_of_table(f"{path}:{number}", written)
            first = spelling.setdefault(codes[written], written)
            if first != written:
                raise ValueError(f"{path}:{number}: {written} is {codes[written]}, which the table has as {first} too")
        forms = counts.setdefault(codes[written], {})
        if form in forms or n < 1:
            what = f"{form!r} of {written} a second time" if form in forms else f"a count of {n}"
            raise ValueError(f"{path}:{number}: {what}")
        forms[form] = n
    return counts


def _code_of_table(place: str, written: str) -> str:
    try:
        return language_code(written)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def parallel_files(corpus: list[str], langs: list[str]) -> dict[str, Path]:
    """Language -> its file of a parallel corpus: the name of a set and its split, or a folder of CODE.anything.

    Raises ValueError for what is neither, and for a language that is not there.
    """
    name, *splits = corpus
    if len(splits) > 1:
        raise ValueError(f"--corpus {' '.join(corpus)}: give a data set and its split, or a folder")
    sets = [known for known, files in DATASETS.items() if isinstance(files, ParallelSet)]
    if name in sets:
        split = splits[0] if splits else default_split(name)
        return dict(zip(langs, data_files(name, langs, split, langs[0])))
    if splits or not Path(name).is_dir():
        raise ValueError(f"--corpus {' '.join(corpus)}: no such folder, and no parallel set; choose {', '.join(sets)}")
    files = {language_code(path.name.split(".")[0]): path for path in sorted(Path(name).iterdir()) if path.is_file()}
    if missing := [lang for lang in langs if lang not in files]:
        raise ValueError(f"--corpus {name}: no file for {', '.join(missing)}; it has {', '.join(files)}")
    return {lang: files[lang] for lang in langs}


def read_parallel(files: dict[str, Path]) -> dict[str, list[str]]:
    """Language -> sentences, the same number in each. Raises ValueError where a file has fewer or more."""
    sentences = {lang: read_sentences(path) for lang, path in files.items()}
    first = next(iter(files))
    for lang, of_lang in sentences.items():
        if len(of_lang) != len(sentences[first]):
            raise ValueError(f"{files[lang]}: {len(of_lang)} lines, but {files[first]} has {len(sentences[first])}")
    return sentences
