"""Weights that are a file's pages: their memory can be given back while nobody reads them."""

import ctypes
import mmap
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

MADV_DONTNEED = 4


@dataclass(frozen=True)
class FileMappings:
    """Addresses, first and past the last, of private mappings of files whose pages the process has not written to."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of_this_process(cls) -> "FileMappings":
        """Those of now: a weight that is written to later is to be looked for again. None but on Linux."""
        path = Path("/proc/self/smaps")
        if not sys.platform.startswith("linux") or not path.is_file():
            return cls(())
        ranges: list[tuple[int, int]] = []
        for line in path.read_text().splitlines():
            name, *fields = line.split()
            if not name.endswith(":"):
                low, high = (int(address, 16) for address in name.split("-"))
                private, of_file = fields[0].endswith("p"), fields[3] != "0"
                ranges += [(low, high)] * (private and of_file)
                unchanged = private and of_file
            elif name in ("Anonymous:", "Swap:") and fields[0] != "0" and unchanged:  # pages of its own: written to
                ranges.pop()
                unchanged = False
        return cls(tuple(ranges))

    def hold(self, weight: torch.Tensor) -> bool:
        start, end = weight.data_ptr(), weight.data_ptr() + weight.nbytes
        return weight.is_contiguous() and any(low <= start and end <= high for low, high in self.ranges)

    def release(self, weight: torch.Tensor) -> None:
        """Give back the memory of a weight that lies in one of them; nothing where it doesn't.

        The system reads it from the file again when it is next used: nothing but the process's size changes.
        """
        if not self.hold(weight):
            return
        first = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (weight.data_ptr() + weight.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if size > 0:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), MADV_DONTNEED)
