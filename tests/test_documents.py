"""README and docs: their links lead somewhere, README is short, and its Python runs."""

import re

import pytest

from tests.scripts import PROJECT_DIR
from utils.models import loading
from utils.models.offline import OFFLINE_MODEL
from utils.token_languages.matrix import TokenLanguages

DOCUMENTS = sorted([*PROJECT_DIR.glob("*.md"), *PROJECT_DIR.glob("docs/**/*.md"), PROJECT_DIR / "datasets/README.md"])
README = (PROJECT_DIR / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT_DIR)))
def test_every_link_leads_somewhere(path):
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    missing = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert not missing


def test_every_script_of_a_command_is_there():
    named = set(re.findall(r"python ([\w/]+\.py)", "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)))
    assert len(named) > 8 and not [name for name in named if not (PROJECT_DIR / name).is_file()]


def test_readme_is_short():
    assert len(README.split()) <= 1500


def test_readme_s_python_reads_shares(offline_model, default_matrix, capsys, monkeypatch):
    monkeypatch.setattr(TokenLanguages, "build", lambda tokenizer: default_matrix)  # the same, made already
    monkeypatch.setattr(loading, "load_model", lambda name: {OFFLINE_MODEL: offline_model}[name])
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 19 and lines[-1].startswith("18 deu_Latn")
