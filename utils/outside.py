r"""Files of others: regular ones alone, of a bounded size, as UTF-8; and their texts in our messages.

A named pipe has no end, and U+2028 ends no line: a file of ours has its lines end at \n alone.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

LARGEST_TEXT_BYTES = 2 << 30
LONGEST_LINE = 1000  # of a message, in characters
# A password may have an @ or a / in it: what stands before the last @ goes.
SECRETS = re.compile(r"(?<=//)[^\s'\"]*@|\bhf_[A-Za-z0-9]{16,}")


def read_bytes(path: Path) -> bytes:
    """A regular file's content. Raises ValueError for anything else, what isn't there and what is too large."""
    path = Path(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer would block
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{path}: not a regular file")
            if found.st_size > LARGEST_TEXT_BYTES:
                raise ValueError(f"{path}: {found.st_size:,} bytes, more than {LARGEST_TEXT_BYTES:,}")
            return file.read()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def read_utf8(path: Path) -> str:
    """A regular file's text. Raises ValueError where it is not UTF-8; a byte order mark is no part of the text."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start}: {error.reason})") from None


def read_json(path: Path):
    """The content of a JSON file. Raises ValueError, naming the file and the line, where it is none."""
    text = read_utf8(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON that can be read ({error})") from None


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    r"""(number, line) of a text file, at \n alone: U+2028 and U+0085 are parts of a text."""
    text = read_utf8(path)
    if text:
        yield from enumerate(text.removesuffix("\n").split("\n"), 1)


def without_secrets(text: str) -> str:
    """A text without the passwords of addresses and the hub's tokens."""
    return SECRETS.sub("...", text)


def one_line(text: str) -> str:
    """A message without line breaks, control characters (a terminal obeys some) and passwords of addresses."""
    text = without_secrets(" ".join(text.split()))
    text = text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}..."
    return _printable(text)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


MARKDOWN = re.compile(r"[\\\\|*`<~$]|(?<![^\W_])_|_(?![^\W_])|(?<=\])[(\[:]|&(?=#?\w+;)")


def markdown(text: str) -> str:
    """A text of others as Markdown shows it, in a table's cell too: no mark, link, HTML or formula begins in it."""
    return MARKDOWN.sub(r"\\\g<0>", _printable(" ".join(text.split())))


def markdown_code(text: str) -> str:
    """A text of others between backquotes, more of them than it has itself."""
    text = _printable(" ".join(text.split()))
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def shown(value) -> str:
    """A value in an error line: cut, with what can't be printed escaped."""
    text = one_line(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
