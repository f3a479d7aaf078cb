"""Several processes that do one run together, as `accelerate launch` or `torchrun` starts them.

Each has a whole model and takes every n-th piece of the work; the first one, the main process, writes what is made of
all. A process that dies is noticed by the others at once, for its connection to the main process closes, and ends
them: no one waits for what will never come.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from utils.command_line import INTERRUPTED, USER_ERROR

STARTS_WITHIN = timedelta(minutes=10)
SECONDS_BETWEEN_LOOKS = 0.05
# A machine that has lost its power closes no connection; the network notices after 3 + 2 x 2 seconds of silence.
KEEPALIVE = {"TCP_KEEPIDLE": 3, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 2}
FINISHED, STOPPED = b"f", b"s"


class Processes:
    """This process among the `n` of a run, by its `rank`; that of rank 0 is the main one. One alone is usual."""

    def __init__(self, rank: int = 0, n: int = 1, store: Any = None):
        self.rank, self.n, self.store = rank, n, store
        self._leaving = threading.Event()
        self._connections: list[socket.socket] = []
        self._watchers: list[threading.Thread] = []

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def no_bar(self) -> bool | None:
        """What tqdm takes as `disable`: a bar in the main process alone, and there only on a terminal."""
        return None if self.main else True

    def share(self, work: Sequence) -> Sequence:
        """This process's part of the work."""
        return work[self.rank :: self.n]

    def wait(self, name: str) -> None:
        """Go on when all processes have come here. Each wait of a run has a name of its own."""
        if self.n > 1:
            self.store.add(f"waiting/{name}", 1)
            self._until(lambda: self.store.add(f"waiting/{name}", 0) >= self.n)

    @contextmanager
    def main_first(self, name: str) -> Iterator[None]:
        """The main process does what stands inside, then the others do; all go on together."""
        if self.n > 1 and not self.main:
            self._until(lambda: self.store.add(f"first/{name}", 0) > 0)
        yield
        if self.n > 1 and self.main:
            self.store.add(f"first/{name}", 1)
        self.wait(name)

    def _until(self, condition) -> None:
        # A blocking call of the store would keep other threads from it.
        while not condition():
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def __enter__(self) -> "Processes":
        if self.n > 1:
            self._connect()
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self.n == 1:
            return
        if error is None:
            self.wait("end")
        self._leaving.set()
        speaks = error is None or self._may_speak()
        for connection in self._connections:
            with suppress(OSError):  # the other side may be gone already
                connection.sendall(FINISHED if error is None else STOPPED)
        if error is None and self.main:  # it may keep the store: it leaves last
            for watcher in self._watchers:
                watcher.join(timeout=5)
        if not speaks and isinstance(error, ValueError | OSError | KeyboardInterrupt):
            raise SystemExit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else USER_ERROR) from None

    def _connect(self) -> None:
        """A connection between the main process and each other one, which is watched."""
        if self.main:
            with socket.create_server(("", 0)) as server:
                server.settimeout(STARTS_WITHIN.total_seconds())
                self.store.set("port", str(server.getsockname()[1]))
                self._connections = [server.accept()[0] for _ in range(self.n - 1)]
            ranks = [int.from_bytes(connection.recv(4), "big") for connection in self._connections]
        else:
            address = os.environ["MASTER_ADDR"], int(self.store.get("port"))
            self._connections = [socket.create_connection(address, STARTS_WITHIN.total_seconds())]
            self._connections[0].sendall(self.rank.to_bytes(4, "big"))
            ranks = [0]
        for connection, rank in zip(self._connections, ranks):
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEPALIVE.items():
                if hasattr(socket, name):
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            watcher = threading.Thread(target=self._watch, args=(connection, rank), daemon=True)
            watcher.start()
            self._watchers.append(watcher)

    def _watch(self, connection: socket.socket, rank: int) -> None:
        try:
            said = connection.recv(1)
        except OSError:
            said = b""
        if said == FINISHED or self._leaving.is_set():
            return
        # One that stopped with an error has said so itself. A main process that kept the store has taken it along.
        store_is_gone = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        if said != STOPPED and (self.rank == 1 if store_is_gone else self._may_speak()):
            line = (
                f"error: process {rank + 1} of {self.n} has ended; what is finished is kept, and the same command, "
                "with any number of processes, goes on\n"
            )
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())
        for other in self._connections:
            with suppress(OSError):
                other.sendall(STOPPED)
        os._exit(USER_ERROR)  # the main thread may be in the middle of a long product of matrices

    def _may_speak(self) -> bool:
        """Is this the first process that has something to say about the run's end?"""
        try:
            return self.store.add("said", 1) == 1
        except RuntimeError:  # the store has gone with the main process, which stopped for the same reason and said so
            return False


def processes() -> Processes:
    """This process, alone or among those that a launcher has started; to be entered with `with`.

    On a machine with GPUs, each process takes the one of its number on the machine. Only the main process prints.
    """
    n = int(os.environ.get("WORLD_SIZE", 1))
    if n == 1:
        if "MASTER_PORT" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
            print("accelerate has started one process; on a CPU it starts several with --multi_gpu, or torchrun does")
        return Processes()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what the store says of a lost connection is said already
    import torch  # takes seconds, which one process need not spend before it has seen its arguments
    from torch.distributed.rendezvous import rendezvous

    store, rank, n = next(rendezvous("env://", timeout=STARTS_WITHIN))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
    if rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
    return Processes(rank, n, torch.distributed.PrefixStore("run", store))
