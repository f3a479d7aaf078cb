"""What the environment holds in secret is in nothing that a script prints or writes, whether it ends well or fails."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.scripts import PROJECT_DIR

TOKEN = "hf_" + "planted" * 5
PASSWORDS = {"HF_ENDPOINT": "PlantedHub", "HTTPS_PROXY": "PlantedProxy", "HTTP_PROXY": "Planted@/Slash"}
HIDDEN = ["planted" * 5, "PlantedHub", "PlantedProxy", "Slash"]
NOBODY = "127.0.0.1:9"  # where nothing listens

# Each script with a model that is there, and what asks a hub or a server that is not; in one process, since the
# libraries take seconds to load.
COMMANDS = """
import importlib, json, sys
for script, *argv in json.loads(sys.argv[1]):
    print("#", script, *argv, file=sys.stderr)
    try:
        print("status", importlib.import_module(script).main(argv))
    except SystemExit as error:
        print("status", error.code)
"""
FAULT = """
import sys, urllib.request
from utils import command_line
def script(args):
    raise RuntimeError(f"no answer from {urllib.request.getproxies()['https']}, {urllib.request.getproxies()['http']}")
sys.exit(command_line.run(script, None))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The machine's, with a token and passwords in it, a hub and proxies that don't answer, and empty caches."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "TRANSF"))}
    addresses = {name: f"http://me:{password}@{NOBODY}" for name, password in PASSWORDS.items()}
    addresses |= {name.lower(): address for name, address in addresses.items() if name.endswith("PROXY")}
    folder = tmp_path_factory.mktemp("home")
    caches = {"HF_HOME": str(folder / "hub"), "XDG_CACHE_HOME": str(folder / "cache"), "no_proxy": "", "NO_PROXY": ""}
    return {**mine, **addresses, **caches, "HF_TOKEN": TOKEN, "HF_HUB_VERBOSITY": "debug", "OMP_NUM_THREADS": "1"}


def run(environment, *argv):
    return subprocess.run(
        [sys.executable, *argv],
        cwd=PROJECT_DIR,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def contents(folder: Path):
    """(name, bytes) of every file, of archives' members and of packed files as they are unpacked."""
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            yield path, content
            if path.suffix == ".gz":
                yield path, gzip.decompress(content)
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(io.BytesIO(content)) as archive:
                    yield from ((path / name, archive.read(name)) for name in archive.namelist())


def test_no_secret_of_the_environment_is_in_any_output(environment, llama, adapter, tmp_path):
    def out(name):
        return ["--output_dir", str(tmp_path / "runs" / name)]

    def of(model, *more):
        return ["--model", str(model), "--langs", "en", "hi", *map(str, more)]

    matrix = ["--token_languages", str(tmp_path / "runs" / "matrix")]
    parallel = PROJECT_DIR / "datasets" / "sample" / "parallel"
    tune = ["--lora_rank", "2", "--batch_size", "2", "--accumulate", "1", "--epochs", "1"]
    fit = ["--lens", "tuned", "--corpus", "sample_parallel", "--tokens", "24", "--held_out", "4", "--steps", "2"]
    answer = ["--max_new_tokens", "2"]
    well = [
        ["logit_lens_tokenid_to_lang", "--model", str(llama), "--corpus", str(parallel), *out("matrix")],
        ["QAtraining", *of(llama, "--dataset", "sample_qa", "--limit", 2), *tune, *out("trained")],
        ["QAinference", *of(llama, "--limit", 2), *answer, *matrix, *out("base")],
        ["QAinference", *of(llama, "--limit", 2, "--adapter", adapter), *answer, *matrix, *out("tuned")],
        ["probe_logit_lens", "--model", str(llama), "--langs", "hi", "--limit", "2", *matrix, *out("probe")],
        ["compare_runs", *(str(tmp_path / "runs" / name) for name in ("base", "tuned")), *out("changes")],
        ["fit_lens", *of(llama, "--limit", 6), *fit, *out("lens")],
        ["language_neurons", "find", *of(llama), *out("neurons")],
        ["plot_figures", str(tmp_path / "runs" / "trained")],
        ["reproduce_paper", "--preset", "smoke", "--model", str(llama), "--dry_run", *out("planned")],
    ]
    badly = [
        ["logit_lens_tokenid_to_lang", "--model", "some/model", *out("no1")],
        ["QAinference", *of("some/model"), *out("no2")],
        ["language_neurons", "layers", *of("some/model", "--revisions", "step1"), *out("no3")],
        ["get_datasets", "xquad", "--datasets_dir", str(tmp_path / "runs" / "datasets")],
        ["reproduce_paper", "--preset", "smoke", "--model", "some/model", "--steps", "answers", *out("no4")],
    ]
    done = run(environment, "-c", COMMANDS, json.dumps(well + badly))
    statuses = [line for line in done.stdout.splitlines() if line.startswith("status ")]
    assert statuses == ["status 0"] * len(well) + ["status 2"] * len(badly), done.stderr
    for name in ("some/model: the hub (http://...127.0.0.1:9)", "error: "):
        assert name in done.stderr  # the failures were those that are meant
    assert len(list(contents(tmp_path / "runs"))) > 40
    for secret in HIDDEN:
        assert secret not in done.stdout and secret not in done.stderr
        assert not [str(path) for path, content in contents(tmp_path) if secret.encode() in content]
    caches = contents(Path(environment["HF_HOME"]).parent)  # fonts may be called Slanted
    assert not [path for path, content in caches if re.search(rb"[pP]lanted", content)]


def test_no_password_is_in_the_traceback_of_a_fault_of_ours(environment):
    done = run(environment, "-c", FAULT)
    assert done.returncode == 1 and "RuntimeError: no answer from http://..." in done.stderr and "report" in done.stderr
    assert not [secret for secret in HIDDEN if secret in done.stdout + done.stderr]
