"""Each script is stopped at a random moment, started again with the same command, and must end as one never stopped.

The scripts run in forks of this process, which has imported all that takes long: a stop is in the work, not in the
imports, which `tests/test_outside.py` stops.
"""

import dataclasses
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

import compare_runs
import logit_lens_tokenid_to_lang
import probe_logit_lens
import QAinference
import QAtraining
import reproduce_paper
from tests.campaign.malformed import Bench
from tests.scripts import PARALLEL, content_of
from utils.experiments.presets import PRESETS
from utils.processes import end_with_parent

N_OF_A_KIND = 21
SIGNALS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
ONE_SET = {"or": PRESETS["smoke"].training["or"]}
SECONDS_TO_END = 2.0  # after SIGTERM or SIGINT


@dataclass(frozen=True)
class Case:
    kind: str
    name: str
    main: object
    argv: tuple
    number: int
    moment: float  # share of the time that the whole command takes


_WHOLE: dict[str, tuple[dict, float]] = {}  # kind -> what an unstopped run leaves, and its seconds


def cases(bench: Bench) -> Iterator[Case]:
    common = bench.common
    training = ["--model", bench.model, "--dataset", "sample_qa", "--langs", "en", "--limit", 8, "--lora_rank", 2]
    training += ["--batch_size", 2, "--accumulate", 1, "--epochs", 3]
    kinds = {
        "probe": (probe_logit_lens.main, [*common, "--batch_size", 1]),
        "answers": (QAinference.main, [*common, "--batch_size", 1, "--max_new_tokens", 20]),
        "training": (QAtraining.main, training),
        "matrix": (logit_lens_tokenid_to_lang.main, ["--model", bench.model, "--corpus", PARALLEL]),
        "comparison": (compare_runs.main, [bench.folder / "probe_base", bench.folder / "probe_tuned"]),
        "reproduction": (reproduce, ["--preset", "smoke", "--model", bench.model]),
    }
    rng = random.Random(0)
    for kind, (main, argv) in kinds.items():
        for i in range(N_OF_A_KIND):
            number = list(SIGNALS)[i % len(SIGNALS)]
            yield Case(kind, f"{signal.Signals(number).name} {i}", main, tuple(argv), number, rng.random())


def outcome_of(case: Case, folder: Path) -> str | None:
    """What is wrong with how a case ends; None where nothing is."""
    folder.mkdir()
    place = folder.parent / "run"  # the same for all: an experiment's runs name one another by their folders
    if case.kind not in _WHOLE:
        began = time.monotonic()
        status, said = finished(case, place, folder)
        if status:
            return f"unstopped: status {status}: {said}"
        _WHOLE[case.kind] = result_of(place), time.monotonic() - began
    shutil.rmtree(place, ignore_errors=True)
    whole, seconds = _WHOLE[case.kind]
    (folder / "log").unlink(missing_ok=True)
    child = start(case, place, folder / "log")
    while not (folder / "log").exists():  # until the child is there to be stopped
        time.sleep(0.001)
    time.sleep(case.moment * seconds)
    os.kill(child, case.number)
    killed = time.monotonic()
    status = wait(child)
    unheard = -case.number if not place.exists() else 0  # before the script listens, Python itself ends
    if status not in (0, SIGNALS[case.number], unheard):
        return f"status {status}: {(folder / 'log').read_text()[-200:]!r}"
    if time.monotonic() - killed > SECONDS_TO_END:
        return f"ended after {time.monotonic() - killed:.1f} s"
    said = (folder / "log").read_text()
    if status > 0 and said.count("error: ") != 1:
        return f"said {said[-200:]!r}"
    if case.main is reproduce and case.number == signal.SIGKILL:
        time.sleep(SECONDS_TO_END)  # its command hears that it is alone, and gives its folder back
    status, said = finished(case, place, folder)
    if status:
        return f"started again: status {status}: {said}"
    again = result_of(place)
    shutil.rmtree(place)
    odd = [name for name in {**whole, **again} if whole.get(name) != again.get(name)]
    return f"other than unstopped: {', '.join(sorted(odd))}" if odd else None


def start(case: Case, output_dir: Path, log: Path) -> int:
    child = os.fork()
    if child:
        return child
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    status = 70
    try:
        status = case.main([*map(str, case.argv), "--output_dir", str(output_dir)])
    except BaseException:  # a fault of ours is said as Python does
        traceback.print_exc()
    finally:
        os._exit(status)


def reproduce(argv: list[str]) -> int:
    """reproduce_paper.py, whose commands are forks too, over one training set and one epoch."""
    PRESETS["smoke"] = dataclasses.replace(PRESETS["smoke"], training=ONE_SET, epochs=1, probed_epochs=(1,))
    reproduce_paper.subprocess = SimpleNamespace(run=run_in_fork, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)
    return reproduce_paper.main(argv)


def run_in_fork(command: list[str], **options) -> subprocess.CompletedProcess:
    """subprocess.run for one of our scripts; what it says is dropped."""
    _, script, *argv = command
    child = os.fork()
    if not child:
        status = 70
        try:
            end_with_parent()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(nowhere, stream)
            status = importlib.import_module(Path(script).stem).main(argv)
        finally:
            os._exit(status)
    try:
        return subprocess.CompletedProcess(command, wait(child), stderr="")
    except BaseException:
        os.kill(child, signal.SIGKILL)
        wait(child)
        raise


def finished(case: Case, output_dir: Path, folder: Path) -> tuple[int, str]:
    status = wait(start(case, output_dir, folder / "log"))
    return status, (folder / "log").read_text()[-200:]


def wait(child: int) -> int:
    """Exit status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def result_of(folder: Path) -> dict:
    """Content of finished runs by name, without what holds times or lies on the way."""
    content = {}
    for name, of_file in content_of(folder).items():
        path = folder / name
        if "checkpoints" in path.parts:
            continue
        if path.name == "train_log.csv":
            of_file = pd.read_csv(path).drop(columns="tokens_per_second").to_csv()
        elif path.name == "config.json":
            config = json.loads(of_file)
            of_file = json.dumps([config.get(key) for key in ("script", "arguments", "inputs")])
        elif path.name == "commands.json":  # its checksums of config.json are of times
            kept = json.loads(of_file)
            of_file = json.dumps({name: {**entry, "config.json": None} for name, entry in kept.items()})
        content[name] = of_file
    return content
