"""What a user of a script sees: flags that scripts share, and one line and an exit status when something is wrong.

The choices of flags stand here by name, so that --help needs no model library; tests hold them against the registries
that they name.
"""

import argparse
import errno
import sys

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "8bit", "4bit")
DECODINGS = ("greedy", "paper")
LOSSES = ("all", "answer")
METHODS = ("corpus", "langid", "langid-hard")  # of the token x language matrix
LENSES = ("tuned", "jacobian")  # that are fitted

USER_ERROR = 2
INTERRUPTED = 130


def run(script, args) -> int:
    """Exit status of `script(args)`: 0, or 2 with one line for a user's mistake, a file or a full disk."""
    try:
        script(args)
    except ValueError as error:
        return _say(str(error), USER_ERROR)
    except OSError as error:
        after = "; what is finished is kept, and the same command goes on" if error.errno == errno.ENOSPC else ""
        return _say(f"{error}{after}", USER_ERROR)
    except KeyboardInterrupt:
        return _say("stopped; the same command goes on from here", INTERRUPTED)
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
    print("error:", " ".join(message.split()), file=sys.stderr)
    return status
