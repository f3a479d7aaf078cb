"""Several processes make the run that one makes; when one dies, all end with one line, and any number goes on."""

import io
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import probe_logit_lens
import QAinference
from tests.scripts import content_of, run
from utils.answers import generation
from utils.figures import layers
from utils.lens import reading, records
from utils.models.processes import processes

pytestmark = [pytest.mark.usefixtures("one_commit", "one_thread"), pytest.mark.slow]

LANGS = ["--langs", "hi", "or", "--limit", 5]
SECONDS_TO_END = 10


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def launch(n: int, main, argv, folder: Path, in_process=None) -> SimpleNamespace:
    """What torchrun does, but for the start of Python: `main(argv)` in n processes that know of one another.

    in_process: a function of the rank that is called first in each.
    """
    environment = {"WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    folder.mkdir(exist_ok=True)
    pids = []
    for rank in range(n):
        if pid := os.fork():
            pids.append(pid)
            continue
        status = 70
        try:
            torch.set_num_threads(1)
            os.environ.update({name: str(value) for name, value in (environment | {"RANK": rank}).items()})
            for name, descriptor in (("out", 1), ("err", 2)):
                os.dup2(os.open(folder / f"{rank}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
            sys.stdout, sys.stderr, sys.__stderr__ = (io.TextIOWrapper(os.fdopen(d, "wb")) for d in (1, 2, 2))
            if in_process:
                in_process(rank)
            status = main([str(argument) for argument in argv])
        except SystemExit as error:
            status = error.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    ended, statuses = {}, {}
    deadline = time.monotonic() + 120
    while len(statuses) < n and time.monotonic() < deadline:
        for rank, pid in enumerate(pids):
            if rank not in statuses and (found := os.waitpid(pid, os.WNOHANG))[0]:
                statuses[rank], ended[rank] = os.waitstatus_to_exitcode(found[1]), time.monotonic()
        time.sleep(0.01)
    for rank, pid in enumerate(pids):
        if rank not in statuses:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    out, err = ("".join((folder / f"{rank}.{name}").read_text() for rank in range(n)) for name in ("out", "err"))
    took = max(ended.values()) - min(ended.values()) if len(ended) == n else float("inf")
    return SimpleNamespace(statuses=statuses, out=out, err=err, seconds_apart=took)


@pytest.fixture
def without_figures(monkeypatch):
    monkeypatch.setattr(layers, "draw_probe_run", lambda folder: (folder / "figures").mkdir(exist_ok=True))


@pytest.fixture
def probe_argv(bloom, small_matrix):
    return ["--model", bloom, "--token_languages", small_matrix, *LANGS, "--batch_size", 2, "--grid", 0]


@pytest.fixture
def answers_argv(llama, small_matrix):
    return ["--model", llama, "--token_languages", small_matrix, *LANGS, "--batch_size", 2, "--max_new_tokens", 6]


def assert_same_probe(one: Path, other: Path) -> None:
    assert set(content_of(one)) == set(content_of(other))
    assert (one / "prompts.csv").read_bytes() == (other / "prompts.csv").read_bytes()
    assert np.load(one / "per_prompt.npy") == pytest.approx(np.load(other / "per_prompt.npy"), abs=1e-6)
    a, b = (pd.read_csv(folder / "language_probs.csv") for folder in (one, other))
    assert a["share"].to_numpy() == pytest.approx(b["share"].to_numpy(), abs=1e-6)


@pytest.mark.parametrize("n", [2, 3])
def test_a_probe_of_several_processes_is_that_of_one(n, probe_argv, tmp_path, without_figures):
    assert run(probe_logit_lens.main, *probe_argv, "--output_dir", tmp_path / "one").status == 0
    outcome = launch(n, probe_logit_lens.main, [*probe_argv, "--output_dir", tmp_path / "run"], tmp_path / "said")
    assert (set(outcome.statuses.values()), outcome.err) == ({0}, "")
    assert outcome.out.count("shares of at least") == 1
    assert_same_probe(tmp_path / "one", tmp_path / "run")


@pytest.mark.parametrize("n", [2, 3])
def test_answers_of_several_processes_are_those_of_one(n, answers_argv, tmp_path):
    assert run(QAinference.main, *answers_argv, "--output_dir", tmp_path / "one").status == 0
    outcome = launch(n, QAinference.main, [*answers_argv, "--output_dir", tmp_path / "run"], tmp_path / "said")
    assert (set(outcome.statuses.values()), outcome.err) == ({0}, "")
    assert outcome.out.count("predictions: ") == 1
    for name in ("predictions.jsonl", "metrics.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert set(content_of(tmp_path / "run")) == set(content_of(tmp_path / "one"))


def dies_after(module, name: str, victim: int, n_calls: int):
    """In the process of that rank, SIGKILL comes at the call after so many; the others wait there for a long time."""

    def in_process(rank):
        really, calls = getattr(module, name), iter(range(1000))
        records.SECONDS_BETWEEN_SAVES = -1

        def called(*args, **options):
            if next(calls) == n_calls:
                if rank == victim:
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
            return really(*args, **options)

        setattr(module, name, called)

    return in_process


@pytest.mark.parametrize("victim, then", [(1, 2), (0, 1)])
def test_when_one_is_killed_all_probes_end_and_any_number_goes_on(
    victim, then, probe_argv, tmp_path, without_figures, monkeypatch
):
    argv = [*probe_argv, "--output_dir", tmp_path / "run"]
    killed = dies_after(reading, "read", victim, 1)
    outcome = launch(3, probe_logit_lens.main, argv, tmp_path / "said", killed)
    others = {status for rank, status in outcome.statuses.items() if rank != victim}
    assert outcome.statuses[victim] == -signal.SIGKILL and others == {2}
    assert outcome.seconds_apart < SECONDS_TO_END
    assert outcome.err.startswith(f"error: process {victim + 1} of 3 has ended") and outcome.err.count("\n") == 1
    done = [np.load(path)["batches"].sum() for path in (tmp_path / "run/records").glob("*.npz")]
    assert sum(done) > 0
    if then > 1:
        assert set(launch(then, probe_logit_lens.main, argv, tmp_path / "said").statuses.values()) == {0}
    else:
        read = []
        really = reading.read
        monkeypatch.setattr(reading, "read", lambda *args: read.append(1) or really(*args))
        assert run(probe_logit_lens.main, *argv).status == 0
        assert len(read) == 6 - sum(done)  # what was done is not done again
    assert run(probe_logit_lens.main, *probe_argv, "--output_dir", tmp_path / "one").status == 0
    assert_same_probe(tmp_path / "one", tmp_path / "run")


def test_when_one_is_killed_answers_end_and_go_on_to_the_same_bytes(answers_argv, tmp_path):
    argv = [*answers_argv, "--output_dir", tmp_path / "run"]
    outcome = launch(3, QAinference.main, argv, tmp_path / "said", dies_after(generation, "generate", 2, 1))
    assert outcome.statuses == {0: 2, 1: 2, 2: -signal.SIGKILL} and outcome.seconds_apart < SECONDS_TO_END
    assert outcome.err.startswith("error: process 3 of 3 has ended") and outcome.err.count("\n") == 1
    assert (tmp_path / "run" / "predictions.2.jsonl").stat().st_size  # its first batch was written
    assert set(launch(2, QAinference.main, argv, tmp_path / "said").statuses.values()) == {0}
    assert run(QAinference.main, *answers_argv, "--output_dir", tmp_path / "one").status == 0
    assert set(content_of(tmp_path / "run")) == set(content_of(tmp_path / "one"))
    for name in ("predictions.jsonl", "metrics.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_a_mistake_is_said_once(probe_argv, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("mine")
    outcome = launch(3, probe_logit_lens.main, [*probe_argv, "--output_dir", tmp_path / "run"], tmp_path / "said")
    assert set(outcome.statuses.values()) == {2}
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and "'thesis.tex'" in outcome.err
    outcome = launch(2, probe_logit_lens.main, [*probe_argv, "--langs", "xx"], tmp_path / "said")
    assert set(outcome.statuses.values()) == {2} and outcome.err.count("\n") == 1


def test_one_process_waits_for_no_one():
    with processes() as together:
        assert (together.main, together.n, together.no_bar) == (True, 1, None)
        assert together.share([1, 2, 3]) == [1, 2, 3]
        together.wait("here")
