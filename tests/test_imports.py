"""Who imports whom, read from the code itself: wings of `utils` import downwards, scripts import `utils`."""

import ast
from pathlib import Path

import pytest

from tests.scripts import PROJECT_DIR

GROUND = (
    "checksums",
    "outside",
    "processes",
    "command_line",
    "schemas",
    "runs",
    "languages",
    "uncertainty",
)  # each imports only those before it
READERS = {"lens.probe_runs", "lens.published", "answers.predictions"}  # of the tables that figures are drawn from
BELOW = {
    "data": set(),
    "models": set(),
    "token_languages": {"data"},
    "answers": {"data", "models"},
    "training": {"data", "models"},
    "neurons": {"data", "models"},
    "lens": {"models", "token_languages"},
    "figures": set(),
    "experiments": {"data", "models", "token_languages", "answers", "training", "neurons", "lens", "figures"},
}
SCRIPTS = sorted(path.stem for path in PROJECT_DIR.glob("*.py"))
MODULES = sorted(PROJECT_DIR.glob("utils/**/*.py"))


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, functions' own imports among them: `models.loading`, `QAinference`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if is_module(name) else node.module for name in whole}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("utils.") for name in found if name.split(".")[0] in ("utils", "benchmarks", *SCRIPTS)}


def is_module(name: str) -> bool:
    return (PROJECT_DIR / f"{name.replace('.', '/')}.py").is_file()


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT_DIR / "utils").with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_what_lies_below_it(path):
    wing, _, _ = name_of(path).partition(".")
    for other in imported(path):
        if path.name == "__init__.py":
            pytest.fail(f"{path} imports {other}: a wing's __init__ says what its modules do, and brings nothing")
        if wing in GROUND:
            assert other in GROUND[: GROUND.index(wing)], f"{wing} imports {other}"
        else:
            may = other in GROUND or other.split(".")[0] in {wing, *BELOW[wing]}
            assert may or (wing == "figures" and other in READERS), f"{name_of(path)} imports {other}"


def test_no_circle():
    graph = {name_of(path): imported(path) for path in MODULES}
    while free := [name for name, others in graph.items() if not others & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, f"in a circle, or above one: {sorted(graph)}"


PROGRAMS = [*PROJECT_DIR.glob("*.py"), *PROJECT_DIR.glob("benchmarks/*.py")]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_scripts_and_benchmarks_import_no_script(path):
    assert not imported(path) & {*SCRIPTS, "benchmarks"}


@pytest.mark.parametrize("path", PROJECT_DIR.glob("benchmarks/*.py"), ids=lambda path: path.stem)
def test_a_benchmark_finds_utils_when_it_is_run_by_its_path(path):
    text = path.read_text(encoding="utf-8")
    assert "sys.path.insert(0, str(Path(__file__).resolve().parent.parent))" in text.partition("\nfrom utils")[0]
