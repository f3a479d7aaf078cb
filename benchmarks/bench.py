"""All benchmarks, one after the other: a line of JSON each, with the machine, the versions and the figures.

    python benchmarks/bench.py
    python benchmarks/bench.py --only probe help --datasets_dir datasets --output results/bench.jsonl

Each is a command of its own; what it prints is passed on. A benchmark that can't run is named with its error, and the
others go on. Figures are those that a benchmark prints as its last line, as JSON; and its seconds, start included.
The peers of the answers and of the training are `pip install lm_eval==0.4.13 trl==1.16.0`.
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

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "lm_eval")
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
    hflm = ["--peer", "hflm", "--decoding", "greedy"]
    commands: dict = {
        # Every twelfth context with all its questions; the whole language takes half an hour on two cores.
        **{f"probe {lang}": ["probe_cost.py", *model, *data, "--langs", lang, "--every", 12] for lang in ("en", "te")},
        "probe peers": ["probe_peers.py", *model, *data, "--langs", "en", "--every", 40],
        "answers": ["inference_speed.py", *model, *data, *four, "--limit", 4],
        **{f"answers hflm {n}": ["inference_speed.py", *model, *data, *four, *hflm, "--limit", n] for n in (4, 16)},
        "training": ["training_speed.py", *model, *data, "--lang", "hi", "--steps", 1],
    }
    found = {name: [PROJECT_DIR / "benchmarks" / command[0], *command[1:]] for name, command in commands.items()}
    found["help"] = ["-c", HELP, *(PROJECT_DIR / f"{script}.py" for script in SCRIPTS)]
    found["matrix"] = ["-c", MATRIX, args.model]
    found["start"] = ["-c", START, args.model]
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


# The token x language matrix, from nothing: the whole script.
MATRIX = """
import json, subprocess, sys, tempfile, time
with tempfile.TemporaryDirectory() as folder:
    started = time.perf_counter()
    command = [sys.executable, "logit_lens_tokenid_to_lang.py", "--model", sys.argv[1], "--output_dir", folder]
    subprocess.run(command, check=True, stdout=sys.stderr)
    print(json.dumps({"seconds": round(time.perf_counter() - started, 2)}))
"""

# From the start of a process to the first forward pass of a prompt, over loading the model alone, turn by turn. The
# matrix is there already.
START = """
import json, statistics, subprocess, sys, tempfile, time
UNTIL = "import os, runpy, sys, torch; sys.argv = sys.argv[1:]; sys.path.insert(0, '.');"
UNTIL += "torch.nn.modules.module.register_module_forward_pre_hook(lambda *args: os._exit(0));"
UNTIL += "runpy.run_path(sys.argv[0], run_name='__main__')"
LOADED = "import os, sys; sys.path.insert(0, '.'); from utils.models.loading import load_model;"
LOADED += "load_model(sys.argv[1]); os._exit(0)"
def seconds(*command):
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", *command], check=True, stdout=sys.stderr)
    return time.perf_counter() - started
with tempfile.TemporaryDirectory() as folder:
    model = ["--model", sys.argv[1], "--output_dir", folder + "/run", "--overwrite"]
    scripts = {
        "QAinference": [UNTIL, "QAinference.py", *model, "--langs", "en", "--limit", "1"],
        "probe_logit_lens": [UNTIL, "probe_logit_lens.py", *model, "--text", "The capital of France is"],
    }
    for command in ([LOADED, sys.argv[1]], *scripts.values()):
        seconds(*command)
    took = {name: [] for name in ("load", *scripts)}
    for _ in range(3):
        took["load"].append(seconds(LOADED, sys.argv[1]))
        for name, command in scripts.items():
            took[name].append(seconds(*command))
median = {name: statistics.median(values) for name, values in took.items()}
figures = {f"{name}_over_load": round(median[name] / median["load"], 2) for name in scripts}
print(json.dumps({**figures, "load_seconds": round(median["load"], 2)}))
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
