"""Malformed inputs, kills and planted faults, whole or a share drawn by a seed, with a table of the counts.

    python -m tests.campaign
    python -m tests.campaign --share 0.1 --seed 7 --only malformed

Ends with status 1 where a case ends otherwise than it must; each such case is named.
"""

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.campaign import faults, kills, malformed
from tests.conftest import make_tiny_tokenizer
from utils.processes import end_with_parent

KINDS = ("malformed", "kills", "faults")
Counts = dict[str, tuple[int, int]]  # class -> how many cases, and how many of them ended otherwise than they must


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--share", type=float, default=1.0, metavar="X", help="of the cases, drawn by --seed")
    parser.add_argument("--seed", default="0", help="any text: CI gives the commit")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, metavar="S", help="begin no case of a kind after so many"
    )
    parser.add_argument("--one_by_one", action="store_true", help="not a process for each of the kinds")
    parser.add_argument("--counts", type=Path, metavar="FILE", help="where the counts go, in JSON")
    args = parser.parse_args()
    began = time.monotonic()
    if len(args.only) > 1 and not args.one_by_one:
        counts = together(args)
    else:
        counts = {name: count for kind in args.only for name, count in counts_of(kind, args).items()}
    if args.counts:
        args.counts.write_text(json.dumps(counts), encoding="utf-8")
        return 0
    print_table(counts)
    n_cases, n_otherwise = (sum(count[i] for count in counts.values()) for i in (0, 1))
    print(f"{n_cases} cases, {n_otherwise} otherwise, {time.monotonic() - began:.0f} s")
    return 1 if n_otherwise or not n_cases else 0


def together(args: argparse.Namespace) -> Counts:
    """The counts of all kinds, each in a process of its own: kills wait for most of their time."""
    with tempfile.TemporaryDirectory() as temporary:
        files = {kind: Path(temporary) / f"{kind}.json" for kind in args.only}
        command = [sys.executable, "-m", "tests.campaign", "--share", str(args.share), "--seed", args.seed]
        command += ["--seconds", str(args.seconds)]
        started = [
            subprocess.Popen([*command, "--only", kind, "--counts", file], preexec_fn=end_with_parent)
            for kind, file in files.items()
        ]
        if any([process.wait() for process in started]):
            sys.exit("a part of the campaign has not ended as it should")
        return {name: count for file in files.values() for name, count in json.loads(file.read_text()).items()}


def counts_of(kind: str, args: argparse.Namespace) -> Counts:
    """What a share of the cases of a kind come to, with a line for each that ends otherwise."""
    counts: Counts = {}
    rng, began = random.Random(f"{args.seed} {kind}"), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bench = None if kind == "faults" else malformed.Bench(folder / "bench", make_tiny_tokenizer())
        cases = {"malformed": malformed.cases, "kills": kills.cases, "faults": lambda bench: faults.cases()}[kind]
        outcome_of = {"malformed": malformed.outcome_of, "kills": kills.outcome_of, "faults": faults.outcome_of}[kind]
        for number, case in enumerate(cases(bench)):
            if time.monotonic() - began > args.seconds:
                print(f"{kind}: stopped before case {number}: {case.kind}: {case.name}")
                break
            if rng.random() >= args.share:
                continue
            place = folder / f"{kind}-{number}"
            wrong = outcome_of(case, place)
            name = f"{kind}: {case.kind}"
            n, n_otherwise = counts.get(name, (0, 0))
            counts[name] = n + 1, n_otherwise + (wrong is not None)
            if wrong is not None:
                print(f"{name}: {case.name}: OTHERWISE: {wrong}", flush=True)
            elif kind != "malformed":
                print(f"{name}: {case.name}: as it must", flush=True)
            shutil.rmtree(place, ignore_errors=True)
    return counts


def print_table(counts: Counts) -> None:
    print("| class | cases | ended otherwise |\n|---|---:|---:|")
    for name, (n, n_otherwise) in counts.items():
        print(f"| {name} | {n} | {n_otherwise} |")


if __name__ == "__main__":
    sys.exit(main())
