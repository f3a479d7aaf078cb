"""What scripts share on the command line: choices that stand for registries, and answers that need no model library."""

import argparse
import importlib
import os
import subprocess
import sys

import pytest
import torch

from tests.scripts import PROJECT_DIR
from utils import command_line
from utils.answers.generation import DECODINGS
from utils.lens.lenses import FITTED
from utils.token_languages.matrix import METHODS

SCRIPTS = sorted(path.stem for path in PROJECT_DIR.glob("*.py"))


def test_choices_are_those_of_the_registries():
    assert tuple(DECODINGS) == command_line.DECODINGS and tuple(METHODS) == command_line.METHODS
    assert tuple(FITTED) == command_line.LENSES
    assert all(getattr(torch, name).is_floating_point for name in command_line.DTYPES)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_model_library(script):
    code = (
        f"import sys, {script} as script\ntry: script.main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_DIR, capture_output=True, text=True)
    assert done.returncode == 0 and f"python {script}.py" in done.stdout
    assert not set(done.stderr.split()) & {"torch", "transformers", "peft", "matplotlib", "scipy", "statsmodels"}


@pytest.mark.parametrize(
    ("kind", "taken", "refused"),
    [
        ("above_zero", ["1e-9", "2"], ["0", "-1", "inf", "nan", "-inf", "x"]),
        ("zero_or_more", ["0", "0.3"], ["-0.1", "inf", "nan", "-1"]),
        ("dropout", ["0", "0.99"], ["1", "-0.1", "nan", "inf"]),
        ("seed", ["0", str(2**32 - 1)], ["-1", str(2**32), "1.5"]),
        ("rank", ["1", "8192"], ["0", "8193", str(10**10)]),
    ],
)
def test_a_flag_out_of_range_is_refused_before_anything_is_loaded(kind, taken, refused, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--flag", type=getattr(command_line, kind))
    for text in taken:
        assert parser.parse_args(["--flag", text]).flag == float(text)
    for text in refused:
        with pytest.raises(SystemExit):
            parser.parse_args([f"--flag={text}"])
    assert "argument --flag" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("QAtraining", ["--learning_rate", "--weight_decay", "--lora_dropout", "--max_grad_norm", "--seed"]),
        ("QAinference", ["--seed"]),
        ("probe_logit_lens", ["--seed"]),
        ("compare_runs", ["--seed"]),
    ],
)
def test_no_script_takes_a_negative_number_where_there_is_none(script, flags, capsys):
    main = importlib.import_module(script).main
    for flag in flags:
        with pytest.raises(SystemExit):
            main([f"{flag}=-1"])
        assert f"argument {flag}" in capsys.readouterr().err


def test_threads_wait_briefly_for_one_another_unless_the_user_has_said_how(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert command_line.run(lambda args: None, None) == 0 and os.environ["GOMP_SPINCOUNT"] == "10000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    command_line.wait_briefly_for_threads()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    command_line.wait_briefly_for_threads()
    assert "GOMP_SPINCOUNT" not in os.environ
