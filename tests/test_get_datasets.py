"""get_datasets.py against a server on 127.0.0.1 whose faults are switched on by the test."""

import hashlib
import io
import json
import lzma
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

import get_datasets  # noqa: E402
from utils.data import cldr, downloads  # noqa: E402

REAL_MIRROR = ROOT.parent / "shared" / "data"
CONTENT = bytes(range(256)) * 1200  # 307,200 bytes: several chunks
LICENCE = "CC BY-SA 4.0"


class Handler(BaseHTTPRequestHandler):
    """Serves server.files, with Range requests, and with what server.faults says about the next answers."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, str) and fault.startswith("to "):
            self.send_response(302)
            self.send_header("Location", fault.removeprefix("to "))
            self.end_headers()
            return
        content = server.files[self.path]
        if isinstance(fault, int):
            self.send_error(fault)
            return
        start = 0
        if self.headers.get("Range") and fault != "no range":
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if fault in ("truncate", "stall"):
            self.wfile.write(content[start : start + (len(content) - start) // 2])
            self.wfile.flush()
            if fault == "stall":
                server.released.wait(30)
            return
        if fault == "trickle":
            for i in range(start, len(content)):
                self.wfile.write(content[i : i + 1])
                self.wfile.flush()
                if server.released.wait(0.05):
                    return
            return
        self.wfile.write(content[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.faults, server.requests = {"/a.json": CONTENT}, [], []
        server.released = threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes a table of sources and makes the script read it; one attempt at a download unless a test asks."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(get_datasets, "SOURCES", tmp_path / "sources.tsv")
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    monkeypatch.setattr(downloads, "PAUSE_SECONDS", 0)

    def write(*rows):
        lines = ["path\turl\tsha256\tbytes\tlicence", *("\t".join([*row, LICENCE]) for row in rows)]
        get_datasets.SOURCES.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")

    return write


def row(path, url, content):
    return path, url, hashlib.sha256(content).hexdigest(), str(len(content))


@pytest.fixture
def one_file(table, server):
    table(row("xquad/xquad.en.json", f"{server.url}/a.json", CONTENT))


@pytest.fixture
def bring(tmp_path, capsys):
    """Runs the script's main; returns its exit status, and standard output and error."""

    def run(*args):
        status = get_datasets.main([*map(str, args), "--datasets_dir", str(tmp_path / "d")])
        return status, *capsys.readouterr()

    return run


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_one_error_line(err, *parts):
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for part in parts:
        assert str(part) in err


def make_tar(path, files, links=()):
    with tarfile.open(path, "w:xz" if path.suffix == ".xz" else "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return path


# Downloads


def test_a_good_download(bring, one_file, server, tmp_path):
    status, out, err = bring("xquad")
    assert (status, err) == (0, "")
    assert files_under(tmp_path / "d") == ["xquad/xquad.en.json"]
    assert (tmp_path / "d/xquad/xquad.en.json").read_bytes() == CONTENT
    assert out.splitlines()[-1] == f"xquad: 0 files present, 1 new, 0 missing; licence: {LICENCE}"
    assert server.requests == [("/a.json", None)]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a.json", "//[", "data:,x"])
def test_an_address_that_leads_elsewhere_than_to_the_web_is_not_followed(bring, one_file, server, tmp_path, target):
    server.faults = [f"to {target}"]
    status, _out, err = bring("xquad")
    assert status == 2
    assert_one_error_line(err, server.url)
    assert not files_under(tmp_path / "d")


def test_an_address_that_leads_to_another_of_the_web_is_followed(bring, one_file, server, tmp_path):
    server.files["/b.json"] = CONTENT
    server.faults = [f"to {server.url}/b.json"]
    assert bring("xquad")[0] == 0 and files_under(tmp_path / "d") == ["xquad/xquad.en.json"]


def test_no_more_is_downloaded_than_the_table_says(bring, table, server, tmp_path):
    name, url, digest, _ = row("xquad/xquad.en.json", f"{server.url}/a.json", CONTENT)
    table((name, url, digest, "10"))
    status, _out, err = bring("xquad")
    assert status == 2
    assert_one_error_line(err, "the server announces", "the table of sources 10")
    assert not files_under(tmp_path / "d")


def test_a_server_that_sends_more_than_it_announced_is_cut_off(tmp_path):
    part = tmp_path / "a.part"
    with pytest.raises(ValueError, match="sends more than 1,000 bytes"):
        downloads.append(io.BufferedReader(io.BytesIO(b"x" * 5000)), part, 0, None, 1000)
    assert not part.exists()


def test_a_server_that_trickles_is_given_up(bring, one_file, server, monkeypatch):
    monkeypatch.setattr(downloads, "SECONDS_TO_JUDGE", 0.2)
    server.faults = ["trickle"]
    status, _out, err = bring("xquad")
    assert status == 2
    assert_one_error_line(err, "TimeoutError", "goes on from here")


def test_what_a_server_says_does_not_reach_the_terminal_as_it_is(bring, one_file, server, monkeypatch):
    class Escapes(Handler):
        def send_error(self, code):
            self.send_response(code, "\x1b]0;owned\x07\x1b[2J")
            self.end_headers()

    server.RequestHandlerClass = Escapes
    server.faults = [404]
    status, _out, err = bring("xquad")
    assert status == 2 and "owned" in err and "\x1b" not in err and "\x07" not in err


@pytest.mark.parametrize(
    ("name", "value"), [("LARGEST_MEMBER_BYTES", 10), ("LARGEST_ARCHIVE_BYTES", 15), ("MOST_MEMBERS", 1)]
)
def test_an_archive_of_more_than_any_data_set_has_is_refused(tmp_path, monkeypatch, name, value):
    archive = make_tar(tmp_path / "xquad.tar.xz", {"a": b"x" * 9, "b": b"y" * 11})
    monkeypatch.setattr(downloads, name, value)
    with pytest.raises(ValueError, match="refused: "), downloads.open_archive(archive):
        pass


def test_the_same_command_goes_on_after_a_truncated_transfer(bring, one_file, server, tmp_path):
    server.faults = ["truncate"]
    half = len(CONTENT) // 2
    part = tmp_path / "d/xquad/xquad.en.json.part"
    status, _, err = bring("xquad")
    assert status == 2
    assert_one_error_line(err, "/a.json", f"closed after {half} of {len(CONTENT)} bytes", part)
    assert part.read_bytes() == CONTENT[:half]
    assert files_under(tmp_path / "d") == ["xquad/xquad.en.json.part"]

    assert bring("xquad")[0] == 0
    assert server.requests == [("/a.json", None), ("/a.json", f"bytes={half}-")]
    assert (tmp_path / "d/xquad/xquad.en.json").read_bytes() == CONTENT
    assert not part.exists()


def test_passing_faults_are_tried_again(bring, one_file, server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "ATTEMPTS", 3)
    server.faults = ["truncate", 503]
    assert bring("xquad")[0] == 0
    asked = f"bytes={len(CONTENT) // 2}-"
    assert [asked_range for _, asked_range in server.requests] == [None, asked, asked]
    assert (tmp_path / "d/xquad/xquad.en.json").read_bytes() == CONTENT


def test_a_file_that_is_not_on_the_server_is_asked_for_once(bring, one_file, server, monkeypatch):
    monkeypatch.setattr(downloads, "ATTEMPTS", 3)
    server.faults = [404]
    status, _, err = bring("xquad")
    assert status == 2
    assert_one_error_line(err, "/a.json", "404")
    assert len(server.requests) == 1


def test_a_server_that_ignores_range_starts_the_file_anew(bring, one_file, server, tmp_path):
    server.faults = ["truncate", "no range"]
    assert bring("xquad")[0] == 2
    assert bring("xquad")[0] == 0
    assert server.requests[1][1] is not None
    assert (tmp_path / "d/xquad/xquad.en.json").read_bytes() == CONTENT


def test_a_part_that_is_whole_is_not_downloaded_again(bring, one_file, server, tmp_path):
    part = tmp_path / "d/xquad/xquad.en.json.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    assert bring("xquad")[0] == 0
    assert server.requests == []
    assert (tmp_path / "d/xquad/xquad.en.json").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_stale(bring, one_file, server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    part = tmp_path / "d/xquad/xquad.en.json.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT + b"more")
    assert bring("xquad")[0] == 0
    assert [asked_range for _, asked_range in server.requests] == [f"bytes={len(CONTENT) + 4}-", None]
    assert (tmp_path / "d/xquad/xquad.en.json").read_bytes() == CONTENT


@pytest.mark.parametrize("served", [CONTENT[:-1] + b"x", CONTENT[:-1]])
def test_a_wrong_checksum_leaves_nothing(bring, one_file, server, tmp_path, served):
    server.files["/a.json"] = served
    status, _, err = bring("xquad")
    assert status == 2
    expected, got = (hashlib.sha256(content).hexdigest() for content in (CONTENT, served))
    assert_one_error_line(err, tmp_path / "d/xquad/xquad.en.json", expected, got)
    assert err.index(expected) < err.index(got)
    assert files_under(tmp_path / "d") == []


def test_a_refused_connection_ends_at_once(bring, table, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "ATTEMPTS", 3)
    monkeypatch.setattr(downloads, "PAUSE_SECONDS", 10)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening, so refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.json"
        table(row("xquad/xquad.en.json", url, CONTENT))
        started = time.monotonic()
        status, _, err = bring("xquad")
    assert time.monotonic() - started < 5
    assert status == 2
    assert_one_error_line(err, "cannot reach 127.0.0.1 ", url, "--mirror DIR")
    assert not (tmp_path / "d").exists()


def test_an_address_that_is_a_file_is_refused(bring, table, tmp_path):
    (tmp_path / "a.json").write_bytes(CONTENT)
    table(row("xquad/xquad.en.json", (tmp_path / "a.json").as_uri(), CONTENT))
    status, _, err = bring("xquad")
    assert status == 2
    assert_one_error_line(err, "file:///", "neither http nor https")
    assert not (tmp_path / "d").exists()


def test_a_present_file_is_left_alone(bring, one_file, server, tmp_path):
    path = tmp_path / "d/xquad/xquad.en.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    before = path.stat()
    status, out, _ = bring("xquad")
    assert status == 0
    assert "xquad: 1 files present, 0 new, 0 missing" in out
    assert server.requests == []
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_corrupted_file_is_named_and_not_overwritten(bring, one_file, server, tmp_path):
    path = tmp_path / "d/xquad/xquad.en.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    status, _, err = bring("xquad")
    assert status == 2
    assert_one_error_line(err, path, hashlib.sha256(CONTENT).hexdigest(), hashlib.sha256(b"mine").hexdigest())
    assert path.read_bytes() == b"mine"
    assert server.requests == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_download_goes_on(bring, one_file, server, tmp_path, stop):
    server.faults = ["stall"]
    part = tmp_path / "d/xquad/xquad.en.json.part"
    program = (
        "import pathlib, signal, sys; import get_datasets;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a shell's background job ignores it
        f"get_datasets.SOURCES = pathlib.Path({str(get_datasets.SOURCES)!r});"
        f"sys.exit(get_datasets.main(['xquad', '--datasets_dir', {str(tmp_path / 'd')!r}]))"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not (part.exists() and part.stat().st_size >= downloads.CHUNK_BYTES):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(stop)
        err = process.communicate(timeout=30)[1]
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert_one_error_line(err, "stopped")
    assert files_under(tmp_path / "d") == ["xquad/xquad.en.json.part"]
    kept = part.stat().st_size
    assert part.read_bytes() == CONTENT[:kept]

    assert bring("xquad")[0] == 0
    assert server.requests[1] == ("/a.json", f"bytes={kept}-")
    assert (tmp_path / "d/xquad/xquad.en.json").read_bytes() == CONTENT


# FLORES-200


@pytest.fixture
def flores(table, server, tmp_path, monkeypatch):
    """A FLORES-200 of two languages, two lines of dev and three of devtest; returns its files."""
    monkeypatch.setattr(get_datasets, "FLORES_LANGUAGES", 2)
    monkeypatch.setattr(get_datasets, "FLORES_LINES", {"dev": 2, "devtest": 3})
    table(("flores200", f"{server.url}/flores.tar.gz", "-", "-"))
    return {
        f"{split}/{code}.{split}": f"{code} ଓଡ଼ିଆ\n".encode() * lines
        for split, lines in get_datasets.FLORES_LINES.items()
        for code in ("ory_Orya", "eng_Latn")
    }


def serve_flores(server, tmp_path, files):
    path = make_tar(tmp_path / "flores.tar.gz", {f"./flores200_dataset/{name}": files[name] for name in files})
    server.files["/flores.tar.gz"] = path.read_bytes()


def test_flores_is_unpacked_and_its_tarball_deleted(bring, flores, server, tmp_path):
    serve_flores(server, tmp_path, {"README": b"read me", **flores})
    status, out, err = bring("flores200")
    assert (status, err) == (0, "")
    assert files_under(tmp_path / "d") == sorted(f"flores200/{name}" for name in flores)
    for name, content in flores.items():
        assert (tmp_path / "d/flores200" / name).read_bytes() == content
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["flores200"]
    assert hashlib.sha256(server.files["/flores.tar.gz"]).hexdigest() in out
    assert "left out 1 files" in out
    assert "flores200: 0 files present, 4 new, 0 missing" in out

    assert "flores200: 4 files present, 0 new, 0 missing" in bring("flores200")[1]
    assert len(server.requests) == 1


def test_flores_goes_on_from_half_a_tarball_and_from_a_whole_one(bring, flores, server, tmp_path):
    serve_flores(server, tmp_path, flores)
    tarball = server.files["/flores.tar.gz"]
    part = tmp_path / "d/flores200_dataset.tar.gz.part"
    server.faults = ["truncate"]
    assert bring("flores200")[0] == 2
    assert files_under(tmp_path / "d") == [part.name]
    assert bring("flores200")[0] == 0
    assert server.requests[1][1] == f"bytes={len(tarball) // 2}-"

    # Killed between the download and the end of the unpacking.
    shutil.rmtree(tmp_path / "d/flores200")
    part.write_bytes(tarball)
    (tmp_path / "d/flores200.part/dev").mkdir(parents=True)
    (tmp_path / "d/flores200.part/dev/old_Latn.dev").write_bytes(b"half a li")
    assert bring("flores200")[0] == 0
    assert server.requests[2][1] == f"bytes={len(tarball)}-"
    assert files_under(tmp_path / "d") == sorted(f"flores200/{name}" for name in flores)


def test_flores_with_a_line_too_few_is_not_put_in_place(bring, flores, server, tmp_path):
    serve_flores(server, tmp_path, {**flores, "devtest/eng_Latn.devtest": b"one\ntwo\n"})
    status, _, err = bring("flores200")
    assert status == 2
    assert_one_error_line(err, "eng_Latn.devtest", "expected 3 lines, got 2")
    assert files_under(tmp_path / "d") == []


@pytest.mark.parametrize("gone", ["dev/eng_Latn.dev", "devtest/"])
def test_flores_without_a_language_or_a_split_is_refused(bring, flores, server, tmp_path, gone):
    serve_flores(server, tmp_path, {name: flores[name] for name in flores if not name.startswith(gone)})
    status, _, err = bring("flores200")
    assert status == 2
    assert_one_error_line(err, "expected")
    assert not (tmp_path / "d/flores200_dataset.tar.gz.part").exists()
    assert not (tmp_path / "d/flores200" / gone).exists()


def test_a_damaged_tarball_is_refused(bring, flores, server, tmp_path):
    serve_flores(server, tmp_path, flores)
    tarball = bytearray(server.files["/flores.tar.gz"])
    tarball[-8] ^= 1  # a bit of the checksum that ends a gzip file: its tar is still readable
    server.files["/flores.tar.gz"] = bytes(tarball)
    status, _, err = bring("flores200")
    assert status == 2
    assert_one_error_line(err, "flores200_dataset.tar.gz.part", "damaged archive", "removed")
    assert files_under(tmp_path / "d") == []


@pytest.mark.parametrize("name", ["../escaped.dev", "/tmp/escaped.dev", "flores200_dataset/dev/../../../escaped.dev"])
def test_a_member_that_leaves_the_folder_is_refused(bring, flores, server, tmp_path, name):
    files = {f"flores200_dataset/{path}": content for path, content in flores.items()}
    path = make_tar(tmp_path / "flores.tar.gz", {**files, name: b"a\nb\n"})
    server.files["/flores.tar.gz"] = path.read_bytes()
    status, _, err = bring("flores200")
    assert status == 2
    assert_one_error_line(err, "refused", name)
    assert files_under(tmp_path / "d") == []


def test_a_link_is_refused(bring, flores, server, tmp_path):
    files = {f"flores200_dataset/{path}": content for path, content in flores.items()}
    path = make_tar(tmp_path / "flores.tar.gz", files, [("flores200_dataset/dev/xxx_Latn.dev", "/etc/passwd")])
    server.files["/flores.tar.gz"] = path.read_bytes()
    status, _, err = bring("flores200")
    assert status == 2
    assert_one_error_line(err, "refused", "xxx_Latn.dev")
    assert files_under(tmp_path / "d") == []


def test_a_flores_split_that_is_there_and_short_is_named(bring, flores, server, tmp_path):
    (tmp_path / "d/flores200/dev").mkdir(parents=True)
    (tmp_path / "d/flores200/dev/eng_Latn.dev").write_bytes(flores["dev/eng_Latn.dev"])
    status, _, err = bring("flores200")
    assert status == 2
    assert_one_error_line(err, tmp_path / "d/flores200/dev", "expected 2 files, got 1")
    assert server.requests == []


# Mirrors


@pytest.fixture
def mirror(tmp_path):
    (tmp_path / "m").mkdir()
    return tmp_path / "m"


def test_a_mirror_brings_what_it_has(bring, table, mirror, tmp_path):
    paths = [f"xquad_in/{lang}/xquad_{lang}_test.json" for lang in ("hi", "or", "te")]
    table(*(row(path, "http://127.0.0.1:9/unused", path.encode()) for path in paths))
    make_tar(mirror / "xquad_in.tar.xz", {path: path.encode() for path in paths[:2]})
    status, out, err = bring("xquad_in", "--mirror", mirror)
    assert (status, err) == (0, "")
    assert files_under(tmp_path / "d") == paths[:2]
    assert (tmp_path / "d" / paths[1]).read_bytes() == paths[1].encode()
    assert "does not have 1 of the 3 official files" in out
    assert "xquad_in: 0 files present, 2 new, 1 missing" in out
    assert "xquad_in: 2 files present, 0 new, 1 missing" in bring("xquad_in", "--mirror", mirror)[1]


def test_a_mirror_with_another_file_under_the_name_is_refused(bring, table, mirror, tmp_path):
    table(row("indicqa/indicqa.or.json", "http://127.0.0.1:9/unused", b"right"))
    make_tar(mirror / "indicqa.tar.xz", {"indicqa/indicqa.or.json": b"wrong"})
    status, _, err = bring("indicqa", "--mirror", mirror)
    assert status == 2
    assert_one_error_line(err, "indicqa.or.json", *(hashlib.sha256(c).hexdigest() for c in (b"right", b"wrong")))
    assert files_under(tmp_path / "d") == []


@pytest.mark.parametrize("name", ["indicqa/indicqa.xx.json", "../indicqa.or.json", "xquad/xquad.en.json"])
def test_a_mirror_with_a_file_that_the_set_does_not_have_is_refused(bring, table, mirror, tmp_path, name):
    table(
        row("indicqa/indicqa.or.json", "http://127.0.0.1:9/unused", b"right"),
        row("xquad/xquad.en.json", "http://127.0.0.1:9/unused", b"stray"),
    )
    make_tar(mirror / "indicqa.tar.xz", {"indicqa/indicqa.or.json": b"right", name: b"stray"})
    status, _, err = bring("indicqa", "--mirror", mirror)
    assert status == 2
    assert_one_error_line(err, "refused", name)
    assert files_under(tmp_path / "d") == []


def test_a_mirror_brings_flores_dev_and_the_official_address_the_rest(bring, flores, server, mirror, tmp_path):
    dev = {f"flores200/{name}": content for name, content in flores.items() if name.startswith("dev/")}
    make_tar(mirror / "flores200_dev.tar.xz", dev)
    status, out, _ = bring("flores200", "--mirror", mirror)
    assert status == 0
    assert files_under(tmp_path / "d") == sorted(dev)
    assert "does not have 2 of the 4 official files" in out
    assert "flores200: 0 files present, 2 new, 2 missing" in out

    serve_flores(server, tmp_path, flores)
    assert "flores200: 2 files present, 2 new, 0 missing" in bring("flores200")[1]
    assert files_under(tmp_path / "d") == sorted(f"flores200/{name}" for name in flores)


def test_a_mirror_without_the_archive(bring, one_file, mirror):
    status, _, err = bring("xquad", "--mirror", mirror)
    assert status == 2
    assert_one_error_line(err, mirror / "xquad.tar.xz", "is not there")


@pytest.mark.skipif(not (REAL_MIRROR / "indicqa.tar.xz").is_file(), reason="no folder of real archives beside us")
def test_the_real_indicqa_archive(bring, tmp_path):
    status, out, err = bring("indicqa", "--mirror", REAL_MIRROR)
    assert (status, err) == (0, "")
    names = [f"indicqa/indicqa.{lang}.json" for lang in ("gu", "hi", "kn", "or")]
    assert files_under(tmp_path / "d") == names
    rows = [line.split("\t") for line in get_datasets.SOURCES.read_text(encoding="utf-8").splitlines()[1:]]
    sha256 = {path: digest for path, _, digest, *_ in rows}
    for name in names:
        assert hashlib.sha256((tmp_path / "d" / name).read_bytes()).hexdigest() == sha256[name]
    assert "indicqa: 0 files present, 4 new, 2 missing" in out


# Unicode's names


@pytest.fixture
def package(table, server, tmp_path, monkeypatch):
    """A package of two things' names, the second of which English alone has; returns the table that is made of it."""
    files = {}
    for lang in cldr.LANGUAGES:
        names = {"🐇": {"default": ["hop"], "tts": [f"rabbit {lang}"]}, "🌧": {"default": ["wet"]}}
        if lang == "eng_Latn":
            names["🌧"]["tts"] = ["rain"]
        files[cldr.annotation_file(lang)] = json.dumps({"annotations": {"annotations": names}}).encode()
    content = make_tar(tmp_path / "names.tgz", {**files, "package/LICENSE": b"UNICODE LICENSE V3"}).read_bytes()
    server.files["/names.tgz"] = content
    table(("cldr_concepts", f"{server.url}/names.tgz", hashlib.sha256(content).hexdigest(), str(len(content))))
    rain = ["rain" if lang == "eng_Latn" else "" for lang in cldr.LANGUAGES]
    rows = [["symbol", *cldr.LANGUAGES], ["🐇", *(f"rabbit {lang}" for lang in cldr.LANGUAGES)], ["🌧", *rain]]
    made = "".join("\t".join(row) + "\n" for row in rows).encode()
    monkeypatch.setattr(get_datasets, "CONCEPTS_SHA256", hashlib.sha256(made).hexdigest())
    return made


def test_concepts_are_made_from_unicode_s_package(bring, package, server, tmp_path):
    status, out, err = bring("cldr_concepts")
    assert (status, err) == (0, "") and "cldr_concepts: 0 files present, 1 new, 0 missing" in out
    assert files_under(tmp_path / "d") == ["cldr_concepts/concepts.tsv"]
    assert (tmp_path / "d/cldr_concepts/concepts.tsv").read_bytes() == package
    assert "cldr_concepts: 1 files present, 0 new, 0 missing" in bring("cldr_concepts")[1]
    assert len(server.requests) == 1


def test_concepts_come_from_a_mirror_and_no_others(bring, package, mirror, tmp_path):
    assert_one_error_line(bring("cldr_concepts", "--mirror", mirror)[2], "concepts.tsv.xz", "is not there")
    (mirror / "concepts.tsv.xz").write_bytes(lzma.compress(b"symbol\n"))
    assert_one_error_line(bring("cldr_concepts", "--mirror", mirror)[2], "expected SHA-256")
    assert files_under(tmp_path / "d") == []
    (mirror / "concepts.tsv.xz").write_bytes(lzma.compress(package))
    assert bring("cldr_concepts", "--mirror", mirror)[0] == 0
    assert (tmp_path / "d/cldr_concepts/concepts.tsv").read_bytes() == package


@pytest.mark.skipif(not (REAL_MIRROR / "concepts.tsv.xz").is_file(), reason="no folder of real archives beside us")
def test_the_real_concepts(bring, tmp_path):
    assert bring("cldr_concepts", "--mirror", REAL_MIRROR)[0] == 0
    lines = (tmp_path / "d/cldr_concepts/concepts.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0].split("\t") == ["symbol", *cldr.LANGUAGES] and len(lines) == 1967


# The command line and the table


def test_an_unknown_name_is_refused_with_the_choices(bring, capsys):
    with pytest.raises(SystemExit) as exit_:
        bring("xqad")
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert "'xqad'" in err and "'xquad_in'" in err and "'all'" in err


def test_all_brings_every_set(bring, table, flores, server, tmp_path, monkeypatch):
    serve_flores(server, tmp_path, flores)
    names = {"xquad/xquad.en.json", "xquad_in/or/xquad_or_test.json", "indicqa/indicqa.or.json"}
    table(
        *(row(name, f"{server.url}/a.json", CONTENT) for name in names),
        ("flores200", f"{server.url}/flores.tar.gz", "-", "-"),
    )
    monkeypatch.setattr(
        get_datasets,
        "DOWNLOADS",
        {name: get_datasets.DOWNLOADS[name] for name in ("xquad", "xquad_in", "indicqa", "flores200")},
    )
    status, out, _ = bring("all")
    assert status == 0
    assert set(files_under(tmp_path / "d")) == names | {f"flores200/{name}" for name in flores}
    assert [line.split(":")[0] for line in out.splitlines() if " present, " in line] == list(get_datasets.DOWNLOADS)


def test_our_own_table():
    sources = get_datasets.read_sources(get_datasets.SOURCES)
    counts = {}
    for source in sources:
        name = source.path.split("/")[0]
        counts[name] = counts.get(name, 0) + 1
        assert source.url.startswith("https://")
        assert source.licence.endswith("CC BY-SA 4.0") or name == "cldr_concepts"
        if name not in ("flores200", "cldr_concepts"):
            assert re.fullmatch("[0-9a-f]{64}", source.sha256) and source.bytes > 0
            assert source.url.rsplit("/", 1)[1] == source.path.rsplit("/", 1)[1]
    assert counts == {"xquad": 12, "xquad_in": 62, "indicqa": 6, "flores200": 1, "cldr_concepts": 1}
    assert len({source.path for source in sources}) == len(sources)
