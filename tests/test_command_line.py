"""What scripts share on the command line: choices that stand for registries, and answers that need no model library."""

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
