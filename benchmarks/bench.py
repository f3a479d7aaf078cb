"""All benchmarks, one after the other: a line of JSON each, with the machine, the versions and the figures.

    python benchmarks/bench.py
    python benchmarks/bench.py --only probe help --datasets_dir datasets --output results/bench.jsonl

Each is a command of its own; what it prints is passed on. A benchmark that can't run is named with its error, and the
others go on. Figures are those that a benchmark prints as its last line, as JSON; and its seconds, start included.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.data.examples import DATASETS_DIR
from utils.runs import PROJECT_DIR

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate")
SCRIPTS = ("probe_logit_lens", "QAinference", "QAtraining", "logit_lens_tokenid_to_lang", "compare_runs")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--datasets_dir", type=Path, default=DATASETS_DIR)
    parser.add_argument("--output", type=Path, default=PROJECT_DIR / "results" / "bench.jsonl")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of those that the output names")
    args = parser.parse_args()
    commands = benchmarks(args)
    if unknown := set(args.only or ()) - set(commands):
        parser.error(f"--only {min(unknown)}: choose from {', '.join(commands)}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", encoding="utf-8", newline="\n") as file:
        for name in args.only or commands:
            row = {"benchmark": name, **measured(commands[name]), **machine()}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            print(f"{name}: {row['error'] or row['figures']} in {row['seconds']:.0f} s", flush=True)
    print(f"rows: {args.output}")


def benchmarks(args):
    """Name -> command."""
    model = ["--model", args.model]
    data = ["--dataset", "xquad_in", "--datasets_dir", args.datasets_dir]
    four = ["--langs", "en", "hi", "or", "te"]
    commands: dict = {
        # Every twelfth context with all its questions; the whole language takes half an hour on two cores.
        **{f"probe {lang}": ["probe_cost.py", *model, *data, "--langs", lang, "--every", 12] for lang in ("en", "te")},
        "answers": ["inference_speed.py", *model, *data, *four, "--limit", 4],
        "training": ["training_speed.py", *model, *data, "--lang", "hi", "--steps", 1],
    }
    found = {name: [PROJECT_DIR / "benchmarks" / command[0], *command[1:]] for name, command in commands.items()}
    found["help"] = ["-c", HELP, *(PROJECT_DIR / f"{script}.py" for script in SCRIPTS)]
    return {name: [sys.executable, *map(str, command)] for name, command in found.items()}


HELP = """
import json, subprocess, sys, time
figures = {}
for script in sys.argv[1:]:
    started = time.perf_counter()
    subprocess.run([sys.executable, script, "--help"], check=True, stdout=subprocess.DEVNULL)
    figures[script.rsplit("/")[-1]] = round(time.perf_counter() - started, 2)
print(json.dumps({"seconds_to_help": figures}))
"""


def measured(command):
    """The command's figures, its seconds and, where it failed, the last line of what it said."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    print(done.stdout, end="", flush=True)
    lines = done.stdout.splitlines()
    figures = json.loads(lines[-1]) if done.returncode == 0 and lines and lines[-1].startswith("{") else {}
    error = None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no word"])[-1]
    return {"figures": figures, "seconds": round(seconds, 1), "error": error, "command": " ".join(command[1:])}


def machine():
    import psutil

    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = None
    return {
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        },
        "versions": {"python": platform.python_version(), **versions},
    }


if __name__ == "__main__":
    main()
