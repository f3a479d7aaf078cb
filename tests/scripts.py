"""What the tests of the scripts share: running one, and looking at what a person sees of it and finds on the disk."""

import contextlib
import errno
import io
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from utils.checksums import sha256_of_file
from utils.data.examples import DATASETS_DIR
from utils.runs import METRICS

PROJECT_DIR = Path(__file__).resolve().parent.parent
PARALLEL = DATASETS_DIR / "sample" / "parallel"
COMMIT = "f" * 40


class Outcome(NamedTuple):
    """What a person sees of a script's run."""

    status: int
    out: str
    err: str


def run(main, *argv) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in argv])
        except SystemExit as error:  # argparse
            status = error.code
    return Outcome(status, out.getvalue(), err.getvalue())


def forked(function, said: Path) -> int:
    """The id of a process that runs `function` and ends; what it says on standard error goes into the file `said`.

    A copy of this process, which has loaded the libraries already: a new one takes seconds for them.
    """
    import torch

    if pid := os.fork():
        return pid
    status = 70
    try:
        torch.set_num_threads(1)  # those of this process are not there
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
        sys.stdout, sys.stderr = io.StringIO(), io.TextIOWrapper(os.fdopen(2, "wb"), write_through=True)
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def status_of(pid: int) -> int:
    """How a process ended, once it did; -9 is SIGKILL."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def draw_one_blank(folder: Path) -> None:
    """In place of `layers.draw_probe_run`, whose figures take nine tenths of a tiny run's time."""
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures/overview.png").touch()


def assert_one_error_line(outcome: Outcome, *words) -> None:
    assert outcome.status == 2
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and outcome.err.endswith("\n")
    for word in words:
        assert str(word) in outcome.err, outcome.err


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_stopped(outcome: Outcome, folder: Path) -> None:
    assert (outcome.status, outcome.out) == (130, "")
    assert outcome.err == "error: stopped; the same command goes on from here\n"
    assert (folder / "config.json").exists() and not (folder / "metrics.json").exists()


@contextlib.contextmanager
def full_disk_after(n_writes: int) -> Iterator[None]:
    fsync = os.fsync

    def fsync_or_fail(file):
        nonlocal n_writes
        if n_writes == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        n_writes -= 1
        fsync(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync_or_fail)
        yield


def damage(path: Path, content: bytes | int | None) -> None:
    """Another content; a number cuts the file there, None removes it."""
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content)


def finished_as_it_is(folder: Path) -> None:
    """Give a finished run's metrics the checksums of its files as they are now, as if it had made them so."""
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    metrics["files"] = {name: digest and sha256_of_file(folder / name) for name, digest in metrics["files"].items()}
    (folder / METRICS).write_text(json.dumps(metrics), encoding="utf-8")


def save_adapter(base: Path, folder: Path, std: float = 0.3):
    """A LoRA adapter with weights that matter, unless their `std` is 0; returns the model with it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=std)
    adapted.save_pretrained(folder)
    return adapted
