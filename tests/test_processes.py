"""Two processes on one folder, children whose parent ends, and checksums that are kept."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.scripts import PROJECT_DIR
from utils import checksums, processes

HOLDS = """
import sys, time
from utils import processes
processes.hold(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds a folder."""
    argv = [sys.executable, "-c", HOLDS, str(tmp_path / "run")]
    process = subprocess.Popen(argv, cwd=PROJECT_DIR, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_folder_is_held_by_one_process_and_free_when_that_ends(other, tmp_path, number):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for name in ("run", "link"):
        with pytest.raises(ValueError, match=f"run: another process is working on it .process {other.pid}."):
            processes.hold(tmp_path / name)
    assert not (tmp_path / "run").exists()  # nothing is touched
    other.send_signal(number)
    other.wait()
    processes.hold(tmp_path / "run")
    processes.hold(tmp_path / "run")  # once more by the same process
    processes.release_all()


PARENT = """
import subprocess, sys
from utils import processes
child = "import sys, time; print('ready', flush=True); time.sleep(60)"
started = subprocess.Popen([sys.executable, "-c", child], preexec_fn=processes.end_with_parent)
print(started.pid, flush=True)
started.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_child_ends_with_its_parent_even_a_killed_one():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=PROJECT_DIR, stdout=subprocess.PIPE, text=True)
    lines = sorted([parent.stdout.readline(), parent.stdout.readline()])
    assert lines[1] == "ready\n"
    parent.kill()
    parent.wait()
    for _ in range(200):
        if not is_running(int(lines[0])):
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child lives on")


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().split()[2] != "Z"  # dead, and not yet asked for
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_large_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "SETTLED_NANOSECONDS", 0)
    path = tmp_path / "weights"
    path.write_bytes(b"a" * (checksums.LEAST_KEPT_BYTES + 1))
    read, really = [], checksums.sha256_of_file
    monkeypatch.setattr(checksums, "sha256_of_file", lambda path: read.append(path) or really(path))
    first = checksums.known_sha256(path)
    assert first == really(path) == checksums.known_sha256(path) and len(read) == 1
    stat = path.stat()
    with path.open("r+b") as file:  # the same size, and a modification time that is set back
        file.write(b"b")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert checksums.known_sha256(path) == really(path) != first
    (tmp_path / "cache" / "cross-lingual-transfer" / "checksums.json").write_text("{")
    assert checksums.known_sha256(path) == really(path)


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = tmp_path / "weights"
    path.write_bytes(b"a" * (checksums.LEAST_KEPT_BYTES + 1))
    assert checksums.known_sha256(path) == checksums.sha256_of_file(path)
