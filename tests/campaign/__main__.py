"""Malformed inputs, kills and planted faults, whole or a share drawn by a seed, with a table of the counts.

    python -m tests.campaign
    python -m tests.campaign --share 0.1 --seed 7 --only malformed

Ends with status 1 where a case ends otherwise than it must; each such case is named.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.campaign import faults, kills, malformed
from tests.conftest import make_tiny_tokenizer

KINDS = ("malformed", "kills", "faults")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--share", type=float, default=1.0, metavar="X", help="of the cases, drawn by --seed")
    parser.add_argument("--seed", default="0", help="any text: CI gives the commit")
    args = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    failures: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bench = (
            malformed.Bench(folder / "bench", make_tiny_tokenizer()) if {"malformed", "kills"} & {*args.only} else None
        )
        work = {
            "malformed": lambda: malformed.cases(bench),
            "kills": lambda: kills.cases(bench),
            "faults": faults.cases,
        }
        outcome_of = {"malformed": malformed.outcome_of, "kills": kills.outcome_of, "faults": faults.outcome_of}
        for kind in args.only:
            rng = random.Random(f"{args.seed} {kind}")
            for number, case in enumerate(work[kind]()):
                if rng.random() >= args.share:
                    continue
                place = folder / f"{kind}-{number}"
                wrong = outcome_of[kind](case, place)
                counts[f"{kind}: {case.kind}", "as it must" if wrong is None else "otherwise"] += 1
                if kind != "malformed":
                    print(
                        f"{kind}: {case.kind}: {case.name}: {'as it must' if wrong is None else 'OTHERWISE'}",
                        flush=True,
                    )
                if wrong is not None:
                    failures.append(f"{kind}: {case.kind}: {case.name}: {wrong}")
                    print(failures[-1], flush=True)
                shutil.rmtree(place, ignore_errors=True)
    print_table(counts)
    print(f"{sum(counts.values())} cases, {len(failures)} otherwise, {time.monotonic() - began:.0f} s")
    return 1 if failures else 0


def print_table(counts: Counter) -> None:
    print("| class | cases | otherwise |\n|---|---:|---:|")
    for kind in dict.fromkeys(kind for kind, _ in counts):
        wrong = counts[kind, "otherwise"]
        print(f"| {kind} | {counts[kind, 'as it must'] + wrong} | {wrong} |")


if __name__ == "__main__":
    sys.exit(main())
