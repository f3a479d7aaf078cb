"""Processes: one at a time on a folder, by a lock that ends with it; children that end with their parent; threads;
memory.

The locks are the operating system's. Their files lie in the user's cache, so that a folder that is refused is not
touched.
"""

import contextlib
import ctypes
import gc
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from utils.checksums import cache_folder

if TYPE_CHECKING:
    from filelock import FileLock

_HELD: dict[Path, "FileLock"] = {}


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """While libraries and tokenizers are loaded: of the millions of objects that they make, most stay, and to look
    for garbage among them again and again takes as long as to make them.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """`uncollected`, while a script imports the libraries that it keeps to its end: nobody looks at them again.

    In a process that has torch already some of what there is may be garbage, which would be kept as well.
    """
    is_new = "torch" not in sys.modules
    with uncollected():
        yield
    if is_new:
        gc.freeze()


def side_by_side(function: Callable, values: Iterable, at_once: int) -> list:
    """`function` of each value, at most `at_once` and as many as torch has threads at a time, each in one thread.

    For steps that have too little work for several threads, which would mostly wait for memory and for one another. It
    comes out the same on any machine.
    """
    from concurrent.futures import ThreadPoolExecutor

    import torch

    n_threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            max(min(n_threads, at_once), 1), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            return list(pool.map(function, values))
    finally:
        torch.set_num_threads(n_threads)


def hold(folder: Path, wait: bool = False) -> None:
    """Hold a folder until `release_all`, or until this process ends. What it holds already, it goes on holding.

    Raises ValueError where another process holds it, unless we are to wait for that one.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder).resolve()
    if folder in _HELD:
        return
    path = _file_of(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise ValueError(
            f"{folder}: another process is working on it{_holder(path)}; wait until it ends, or choose another folder"
        ) from None
    _HELD[folder] = lock
    path.with_suffix(".pid").write_text(str(os.getpid()), encoding="ascii")


def release(folder: Path) -> None:
    if lock := _HELD.pop(Path(folder).resolve(), None):
        lock.release()


def release_all() -> None:
    for folder in list(_HELD):
        release(folder)


def _file_of(folder: Path) -> Path:
    return cache_folder() / "locks" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.lock"


def _holder(path: Path) -> str:
    try:
        return f" (process {int(path.with_suffix('.pid').read_text(encoding='ascii'))})"
    except (OSError, ValueError):
        return ""


PR_SET_PDEATHSIG = 1  # of prctl(2)


def end_with_parent() -> None:
    """In a child, before its program: SIGTERM when the parent ends, killed or not. Linux alone has it.

    Elsewhere the parent ends its children on a signal that it can catch.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
