"""What a user of a script sees: flags that scripts share, and one line and an exit status when something is wrong.

The choices of flags stand here by name, so that --help needs no model library; tests hold them against the registries
that they name.
"""

import argparse
import contextlib
import errno
import io
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator

from utils import processes
from utils.outside import one_line, without_secrets

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "8bit", "4bit")
DEVICE_MAPS = ("none", "auto")
DECODINGS = ("greedy", "paper")
LOSSES = ("all", "answer")
LOSS_MEANS = ("tokens", "batches")
TRUNCATIONS = ("context", "end")
AUTOCASTS = ("auto", "none", "bfloat16")
METHODS = ("corpus", "langid", "langid-hard")  # of the token x language matrix
LENSES = ("tuned", "jacobian")  # that are fitted
ATTRIBUTIONS = ("retrain", "ekfac", "cosine", "representation", "bm25", "random")  # of a gain to training examples
UNITS = ("context", "language")  # that are left out of a training set

LARGEST_RANK = 8192

USER_ERROR = 2
INTERRUPTED = 130
TERMINATED = 143
# signal -> (what is said, exit status)
STATUS: dict[int, tuple[str, int]] = {
    signal.SIGINT: ("stopped; the same command goes on from here", INTERRUPTED),
    signal.SIGTERM: ("terminated; the same command goes on from here", TERMINATED),
}
SPINS = 10_000
SECONDS_TO_END = 1.2  # after a signal, before the process is ended
REPORT = "Please report it as an issue of the repository, with the command and the lines above."


def run(script, args) -> int:
    """Exit status of `script(args)`: 0, or 2 with one line for a user's mistake, a file or a full disk.

    130 where it was interrupted, 143 where it was terminated: the same command goes on. A reader of the output that
    has seen enough (`| head -1`) is no error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without the letters of a language's name
    wait_briefly_for_threads()
    try:
        return _run(script, args)
    except Terminated:  # before the script had begun
        return _say(*STATUS[signal.SIGTERM])
    except KeyboardInterrupt:
        return _say(*STATUS[signal.SIGINT])


def wait_briefly_for_threads() -> None:
    """Threads of GNU's OpenMP, PyTorch's on Linux, wait for one another in a loop of SPINS, and only then asleep.

    By default it is 300,000, milliseconds: with another program on one of two cores three quarters of all processor
    time went into it. To be called before torch is loaded. Who has set either variable is left with it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def _run(script, args) -> int:
    with _signals() as seen:
        try:
            with _nothing_to_read():
                script(args)
            sys.stdout.flush()
            _ignore_signals()
        except BrokenPipeError:
            return _nobody_reads()
        except Terminated:
            return _say(*STATUS[signal.SIGTERM])
        except KeyboardInterrupt:
            return _say(*STATUS[signal.SIGINT])
        except ValueError as error:
            return _say(str(error), USER_ERROR)
        except OSError as error:
            after = "; what is finished is kept, and the same command goes on" if error.errno == errno.ENOSPC else ""
            return _say(f"{error}{after}", USER_ERROR)
        except Exception:
            if signal.SIGINT in seen:  # an import that was interrupted fails in a way of its own
                return _say(*STATUS[signal.SIGINT])
            raise
        finally:
            _ignore_signals()
            processes.release_all()
    return 0


def _ignore_signals() -> None:
    """What comes once a script is done, or has said why not, changes nothing any more."""
    if threading.current_thread() is threading.main_thread():
        for number in STATUS:
            signal.signal(number, signal.SIG_IGN)


class Terminated(BaseException):
    """SIGTERM: a batch system's end. As an exception, it ends a script's children and closes its files."""


@contextlib.contextmanager
def _signals() -> Iterator[set[int]]:
    """SIGTERM and SIGINT as exceptions; yields the set of those that have come.

    Python raises them between two of its own instructions, and a library's call may take minutes, or swallow them
    where it was imported. A thread then ends the process in their place: what is written is whole at any moment.
    """
    seen: set[int] = set()

    def end(number, frame):
        seen.add(number)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield seen  # Python has signals in the main thread alone
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    _WATCHED.append(write)
    ended = threading.Event()
    watch = threading.Thread(target=_end_for_sure, args=(read, ended), daemon=True)
    watch.start()
    before = {number: signal.getsignal(number) for number in STATUS}
    try:
        for number in STATUS:
            signal.signal(number, end)
        yield seen
    finally:
        _WATCHED.remove(write)
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        ended.set()
        os.close(write)
        watch.join()


_WATCHED: list[int] = []  # pipes that signals are written to


def _not_watched() -> None:
    """A forked child shares the pipe: what ends it would end its parent."""
    if _WATCHED:
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_not_watched)


def _end_for_sure(read: int, ended: threading.Event) -> None:
    """End the process where it goes on SECONDS_TO_END after a signal, of which its number comes out of a pipe."""
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while number := pipe.read(1):
            if number[0] in STATUS and not ended.wait(SECONDS_TO_END):
                message, status = STATUS[number[0]]
                _say(message, status)
                sys.stderr.flush()
                os._exit(status)


def _unexpected(kind, error, trace) -> None:
    """What no script foresaw: our own fault. Before a script begins, its imports may be interrupted, too."""
    if issubclass(kind, KeyboardInterrupt):
        _say(*STATUS[signal.SIGINT])
        os._exit(INTERRUPTED)
    print(without_secrets("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
    print(f"This is a fault of the scripts, not yours. {REPORT}", file=sys.stderr)


if sys.excepthook is sys.__excepthook__:  # here, since it is the imports that take the first seconds
    sys.excepthook = _unexpected


@contextlib.contextmanager
def _nothing_to_read() -> Iterator[None]:
    """A library that asks a question on standard input gets no answer, so that `yes |` says yes to nothing."""
    before = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before


def _nobody_reads() -> int:
    """Python would write what is left at its exit, and say that it can't."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def positive(text: str) -> int:
    """The type of a flag that takes a whole number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def not_negative(text: str) -> int:
    """The type of a flag that takes a whole number of 0 or more."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def seed(text: str) -> int:
    """The type of a flag that takes a seed of NumPy's and torch's generators alike: 0 to 2^32 - 1."""
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {2**32 - 1}")
    return number


def above_zero(text: str) -> float:
    """The type of a flag that takes a finite number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return number


def zero_or_more(text: str) -> float:
    """The type of a flag that takes a finite number of 0 or more."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of 0 or more")
    return number


def dropout(text: str) -> float:
    """The type of a flag that takes a share of 0 or more that is below 1."""
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more and below 1")
    return number


def rank(text: str) -> int:
    """The type of a flag that takes the rank of an adapter: no model here is as wide as LARGEST_RANK."""
    number = positive(text)
    if number > LARGEST_RANK:
        raise argparse.ArgumentTypeError(f"{text} is more than {LARGEST_RANK}")
    return number


def share(text: str) -> float:
    """The type of a flag that takes a number above 0 and below 1."""
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def batch_size(text: str) -> int | str:
    """The type of a flag that takes `auto` or a whole number of 1 or more."""
    return text if text == "auto" else positive(text)


def _say(message: str, status: int) -> int:
    print("error:", one_line(message), file=sys.stderr)
    return status
