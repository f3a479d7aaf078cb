"""Write requirements.lock and requirements-cuda.lock from the pins of requirements-dev.txt.

    make lock

Needs uv (https://docs.astral.sh/uv/). Versions that the files hold already are kept where the pins allow them; to take
the newest of what nobody pins, remove the files first.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parent.parent
LOCK, CUDA_LOCK = PROJECT_DIR / "requirements.lock", PROJECT_DIR / "requirements-cuda.lock"
COMMAND = ["uv", "pip", "compile", "--universal", "--generate-hashes", "--python-version", "3.10"]
COMMAND += ["requirements-dev.txt"]
CUDA = re.compile(r"nvidia-|cuda-|triton==")
# PyTorch's own CPU builds of torch 2.13.0 for Linux on x86-64, by Python. pip takes one where an index or a folder
# offers it, and without its checksum here refuses it. 3.11's was read from the file; the others are as public lock
# files that were made from PyTorch's index agree on. 3.10's is not known to us: PyPI's file is taken there.
TORCH = "torch==2.13.0"
CPU_BUILDS = {
    "3.11": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    "3.12": "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
    "3.13": "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
}
HEAD = f"""\
# Made by `make lock`, that is `{" ".join(COMMAND)}`, for Python 3.10 to 3.13.
"""
LOCK_HEAD = f"""{HEAD}\
# All that `make install` brings but the libraries of torch's CUDA build (requirements-cuda.lock). torch has the
# checksums of PyPI's files and of PyTorch's CPU builds for Linux, which have the same version and none of CUDA.
"""
CUDA_HEAD = f"""{HEAD}\
# What PyPI's build of torch for Linux needs beyond requirements.lock.
"""


def main() -> int:
    if not re.search(rf"^{re.escape(TORCH)}$", (PROJECT_DIR / "requirements.txt").read_text(encoding="utf-8"), re.M):
        print(f"error: requirements.txt no longer has {TORCH}: {__file__} needs the CPU builds of the new version")
        return 2
    entries = compiled()
    ours = [with_cpu_builds(entry) for entry in entries if not CUDA.match(entry)]
    LOCK.write_text(LOCK_HEAD + "".join(ours), encoding="utf-8", newline="\n")
    cuda = [entry for entry in entries if CUDA.match(entry)]
    CUDA_LOCK.write_text(CUDA_HEAD + "".join(cuda), encoding="utf-8", newline="\n")
    print(f"{LOCK.name}: {len(ours)} entries; {CUDA_LOCK.name}: {len(cuda)}")
    return 0


def compiled() -> list[str]:
    """uv's entries: each a name with its version, its checksums, and who asks for it."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "whole.lock"
        path.write_text("".join(old.read_text(encoding="utf-8") for old in (LOCK, CUDA_LOCK) if old.exists()))
        subprocess.run([*COMMAND, "--quiet", "--no-header", "--output-file", path], cwd=PROJECT_DIR, check=True)
        text = path.read_text(encoding="utf-8")
    return re.findall(r"^\S.*\n(?:[ \t].*\n)*", text, re.M)


def with_cpu_builds(entry: str) -> str:
    if not entry.startswith(f"{TORCH} "):
        return entry
    checksums = "".join(f"    --hash=sha256:{digest} \\\n" for digest in CPU_BUILDS.values())
    head, rest = entry.split("\n", 1)
    rest = "".join(line for line in rest.splitlines(keepends=True) if line not in checksums.splitlines(keepends=True))
    return f"{head}\n{checksums}{rest}"


if __name__ == "__main__":
    sys.exit(main())
