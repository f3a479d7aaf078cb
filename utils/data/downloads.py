"""Downloads that go on where they stopped, and archives that are unpacked without leaving their folder.

The going on is what libraries lack: pooch, for one, checks sums and tries again, but from the first byte.
"""

import contextlib
import gzip
import http.client
import lzma
import shutil
import ssl
import tarfile
import time
import urllib.request
import zlib
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from tqdm import tqdm

ATTEMPTS = 3
PAUSE_SECONDS = 2.0
TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 16
# What an archive or a download may hold where the table of sources doesn't say it.
LARGEST_MEMBER_BYTES, LARGEST_ARCHIVE_BYTES, MOST_MEMBERS = 1 << 28, 1 << 31, 100_000
LARGEST_DOWNLOAD_BYTES = 1 << 31
# A server that sends less than this over so many seconds has stopped, for us.
LEAST_BYTES_A_SECOND, SECONDS_TO_JUDGE = 1024, 30
PASSING_FAULTS = (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
DAMAGED_ARCHIVE = (tarfile.TarError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError)


# Archives


@contextlib.contextmanager
def open_archive(path):
    """A tar and its regular files by path. Raises ValueError where it is damaged, or could write elsewhere."""
    if not path.is_file():
        raise ValueError(f"{path} is not there; --mirror takes a folder that holds the archives")
    try:
        with tarfile.open(path) as tar:
            members = members_of(tar, path)
            # tar stops before the end of the compressed stream, where its checksum is.
            rest = 0
            while chunk := tar.fileobj.read(CHUNK_BYTES):
                rest += len(chunk)
                if rest > LARGEST_MEMBER_BYTES:
                    raise ValueError(f"{path}: refused: more than {LARGEST_MEMBER_BYTES:,} bytes after its last file")
            yield tar, members
    except DAMAGED_ARCHIVE as error:
        raise ValueError(f"{path}: a damaged archive: {error}") from error


def members_of(tar, archive):
    """Regular files by path. Raises ValueError for more or larger ones than any data set here has."""
    members: dict[str, tarfile.TarInfo] = {}
    total = 0
    for member in tar:
        total += member.size
        if member.size > LARGEST_MEMBER_BYTES or total > LARGEST_ARCHIVE_BYTES or len(members) >= MOST_MEMBERS:
            raise ValueError(
                f"{archive}: refused: {len(members) + 1:,} files of {total:,} bytes with {member.name!r}; "
                f"at most {MOST_MEMBERS:,}, of {LARGEST_MEMBER_BYTES:,} bytes each and {LARGEST_ARCHIVE_BYTES:,} in all"
            )
        if not member.isdir():
            members[str(safe_path(member, archive))] = member
    return members


def safe_path(member, archive):
    path = PurePosixPath(member.name)
    if not member.isfile() or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{archive}: refused {member.name!r}: not a regular file inside the folder")
    return path


def unpack_member(tar, member, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tar.extractfile(member) as packed, path.open("wb") as file:
        shutil.copyfileobj(packed, file)


# Downloads


def download(url, part, table_bytes):
    """Stream an address to `part`, going on from what a broken download left there.

    Raises ValueError where it cannot be had; after a fault that may pass, what came is kept in `part`.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        try:
            return stream(url, part, table_bytes)
        except PASSING_FAULTS as error:
            fault = error
    kept = f"{part} keeps {part.stat().st_size} bytes, and " if part.exists() else ""
    raise ValueError(f"{url}: {fault!r}, {ATTEMPTS} times over; {kept}the same command goes on from here")


def stream(url, part, table_bytes):
    have = part.stat().st_size if part.exists() else 0
    if have and have == table_bytes:
        return
    with request(url, have) as response:
        content_range = response.headers.get("Content-Range", "")
        if response.status == 416 and content_range == f"bytes */{have}":
            return
        if response.status == 416 or (response.status == 206 and not content_range.startswith(f"bytes {have}-")):
            part.unlink()
            raise http.client.HTTPException("what was kept of an earlier download was stale")
        start = have if response.status == 206 else 0  # 200: the whole file, whatever was asked for
        length = response.headers.get("Content-Length")
        whole = table_bytes if length is None else start + int(length)
        most = LARGEST_DOWNLOAD_BYTES if table_bytes is None else table_bytes
        if whole is not None and whole > most:
            raise ValueError(f"{url}: refused: the server announces {whole:,} bytes, the table of sources {most:,}")
        append(response, part, start, whole, most)
    # Reading in chunks, http.client takes a connection that closed early for the end of the file.
    size = part.stat().st_size
    if whole is not None and size < whole:
        raise http.client.HTTPException(f"the connection closed after {size} of {whole} bytes")


class SameScheme(urllib.request.HTTPRedirectHandler):
    """Follows an address to another one of its scheme, or to https; to nothing else."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme not in ("https", urlsplit(req.full_url).scheme):
            raise ValueError(f"{req.full_url}: refused: the server leads to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


OPENER = urllib.request.build_opener(SameScheme)


def request(url, start):
    """The answer to a GET of the bytes from `start` on. Raises ValueError for what no second try mends."""
    # Some hosts refuse Python's own agent.
    headers = {"User-Agent": "get_datasets.py", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        return OPENER.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            return error
        error.close()
        if error.code in (408, 429) or error.code >= 500:
            raise http.client.HTTPException(f"{error.code} {error.reason}") from error
        raise ValueError(f"{url}: the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise ValueError(
            f"cannot reach {urlsplit(url).hostname} for {url}: {error.reason}; "
            "--mirror DIR takes the files from a folder that holds the archives"
        ) from error
    except ValueError as error:  # urllib's own, which doesn't say where the address came from
        if url in str(error):
            raise
        raise ValueError(f"{url}: the server leads to what is no address ({error})") from None


def append(response, part, start, whole, most):
    """Raises ValueError, and removes what came, for more than `most` bytes; TimeoutError for a server that trickles."""
    part.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(desc=part.stem, initial=start, total=whole, unit="B", unit_scale=True, leave=False, disable=None)
    with part.open("ab" if start else "wb") as file, bar:
        began, size = time.monotonic(), start
        while chunk := response.read1(CHUNK_BYTES):
            size += len(chunk)
            if size > most:
                part.unlink()
                raise ValueError(
                    f"{part.stem}: refused: the server sends more than {most:,} bytes; what came was removed"
                )
            file.write(chunk)
            bar.update(len(chunk))
            elapsed = time.monotonic() - began
            if elapsed > SECONDS_TO_JUDGE and size - start < LEAST_BYTES_A_SECOND * elapsed:
                raise TimeoutError(f"{size - start} bytes in {elapsed:.0f} seconds")


# Files


def part_of(path):
    return path.with_name(path.name + ".part")
