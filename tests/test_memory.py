"""A long run keeps no more in memory than a short one: what is done is on the disk."""

import json
import subprocess
import sys

import pytest

import logit_lens_tokenid_to_lang
from tests.scripts import PARALLEL, PROJECT_DIR, run

MOST_MB = 25  # of a hundred questions and more; 50 of a thousand, as docs/reliability.md measures it
LANGS = "ar bn de en hi or ru ta te th tr zh".split()

# Runs a script and says, after each batch, how many questions are done and how many MB the process holds.
MEASURED = """
import json, sys
import psutil
script, place, *argv = sys.argv[1:]
sys.path.insert(0, "")
me, seen = psutil.Process(), []
def measured(really, count):
    def call(*args):
        result = really(*args)
        seen.append([count(args) + (seen[-1][0] if seen else 0), me.memory_info().rss / 1e6])
        return result
    return call
import probe_logit_lens, QAinference
from utils.figures import layers
from utils.lens.records import LanguageRecord
layers.draw_probe_run = lambda folder: []  # after all questions, and the longest part of a tiny run
QAinference.append = measured(QAinference.append, lambda args: len(args[1]))
LanguageRecord.add = measured(LanguageRecord.add, lambda args: len(args[2]))
status = {"QAinference": QAinference, "probe_logit_lens": probe_logit_lens}[script].main(argv)
json.dump([status, seen], open(place, "w"))
"""


@pytest.mark.parametrize(("script", "more"), [("QAinference", ["--max_new_tokens", 4]), ("probe_logit_lens", [])])
def test_memory_does_not_grow_with_the_questions(script, more, llama, tmp_path):
    matrix = tmp_path / "matrix"
    made = run(logit_lens_tokenid_to_lang.main, "--model", llama, "--corpus", PARALLEL, "--output_dir", matrix)
    assert made.status == 0
    argv = ["--model", llama, "--token_languages", matrix, "--langs", *LANGS, "--batch_size", 4, *more]
    if script == "probe_logit_lens":
        argv += ["--grid", 0]
    command = [sys.executable, "-c", MEASURED, script, tmp_path / "seen.json", *argv, "--output_dir", tmp_path / "run"]
    done = subprocess.run(list(map(str, command)), cwd=PROJECT_DIR, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    status, seen = json.loads((tmp_path / "seen.json").read_text())
    assert status == 0 and seen[-1][0] > 200
    first = next(megabytes for n, megabytes in seen if n >= 60)
    growth = max(megabytes for n, megabytes in seen if n >= 60) - first
    assert growth < MOST_MB, f"{growth:.0f} MB more after the first sixty of {seen[-1][0]} questions"
