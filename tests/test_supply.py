"""What is installed: every pin is in the lock with checksums, and every package of it on the page of licences."""

import re
from email.message import Message

import pytest

from tests.scripts import PROJECT_DIR
from tools import licences, lock

LOCKS = [PROJECT_DIR / "requirements.lock", PROJECT_DIR / "requirements-cuda.lock"]
PIN = re.compile(r"([\w.-]+)==([\w.+]+)(?:\s*;\s*(.*))?")


def pins():
    """(name, version, marker) of every requirement of the readable files."""
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (PROJECT_DIR / name).read_text(encoding="utf-8").splitlines():
            if line and not line.startswith(("#", "-r ")):
                yield PIN.fullmatch(line).groups()


def locked():
    """{(name, version)} of the lock, read line by line."""
    lines = [line for path in LOCKS for line in path.read_text(encoding="utf-8").splitlines()]
    return {PIN.match(line).groups()[:2] for line in lines if re.match(r"[a-z]", line)}


def test_every_pin_is_in_the_lock_with_its_version():
    found = list(pins())
    assert len(found) > 25
    assert {(re.sub(r"[._-]+", "-", name).lower(), version) for name, version, _ in found} <= locked()


def test_a_pin_of_some_pythons_is_the_lock_s_for_the_same():
    ends = {'python_version < "3.11"': "< '3.11'", 'python_version >= "3.11"': ">= '3.11'"}
    text = LOCKS[0].read_text(encoding="utf-8")
    for name, version, marker in pins():
        if marker:
            assert f"{name}=={version} ; python_full_version {ends[marker]} \\\n" in text


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_entry_of_the_lock_has_checksums_and_no_other_option(path):
    text = path.read_text(encoding="utf-8")
    assert f"`{' '.join(lock.COMMAND)}`" in text.split("\n")[0]
    entries = licences.entries_of(path)
    assert len(entries) > 20 and "".join(entries) == text[text.index(entries[0]) :]
    for entry in entries:
        assert re.fullmatch(
            r"[^\n]+ \\\n(?: {4}--hash=sha256:[0-9a-f]{64} \\\n)* {4}--hash=\S{71}\n(?: +#.*\n)+", entry
        )
    assert "://" not in text and "--index" not in text


def test_the_cpu_builds_of_torch_stand_once_and_before_no_other_package():
    assert lock.TORCH in (PROJECT_DIR / "requirements.txt").read_text(encoding="utf-8").splitlines()
    (torch,) = [entry for entry in licences.entries_of(LOCKS[0]) if entry.startswith("torch==")]
    assert all(torch.count(digest) == 1 for digest in lock.CPU_BUILDS.values())
    assert lock.with_cpu_builds(torch) == torch
    assert lock.with_cpu_builds("torchmetrics==1 \\\n") == "torchmetrics==1 \\\n"


def test_make_install_takes_nothing_without_a_checksum():
    makefile = (PROJECT_DIR / "Makefile").read_text(encoding="utf-8")
    installs = re.findall(r"^INSTALL = (.*)$|^\t.*(install .*-r .*)$", makefile, re.M)
    assert len(installs) == 1 and "--require-hashes" in installs[0][0] and "--no-deps" in installs[0][0]


def test_the_page_names_every_package_of_the_lock_its_version_and_licence():
    page = licences.PAGE.read_text(encoding="utf-8")
    for name, version in locked():
        (row,) = re.findall(rf"^\| {re.escape(name)} \| ([^|]*) \| ([^|]+) \|$", page, re.M)
        assert version in row[0].replace("\\", "").split(", ") and row[1].strip()
    assert page.startswith(licences.HEAD)


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License-Expression", "MIT"), ("License", "x")], "MIT"),
        ([("License", "Apache 2.0"), ("Classifier", "License :: OSI Approved :: MIT License")], "Apache 2.0"),
        ([("License", "Copyright\n and so on"), ("Classifier", "License :: A :: B")], "B"),
        ([("License", "x" * 61)], "not said"),
        ([], "not said"),
    ],
)
def test_a_licence_is_what_the_metadata_says(fields, licence):
    found = Message()
    for name, value in fields:
        found[name] = value
    assert licences.licence_of(found) == licence


def test_metadata_ends_no_cell_of_the_table():
    page = licences.page(["a==1 \\\n    --hash=x\n"], {"a": "MIT | <b>_x_\n[y](z)"})
    assert "| a | 1 | MIT \\| \\<b>\\_x\\_ [y]\\(z) |\n" in page
