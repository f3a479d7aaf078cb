# ruff: noqa: E501
"""Planted faults: the code with one thing wrong, and the tests that must say so.

Each is a text of a module that is replaced in a copy of the project. A text that is no longer there fails: the fault
is then to be written for the code as it is.
"""

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.scripts import PROJECT_DIR

LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "results", "__pycache__", ".mypy_cache", ".ruff_cache", "docs")
SECONDS = 300


@dataclass(frozen=True)
class Case:
    """A fault of a kind; tests: pytest's arguments, of which one test at least must fail."""

    kind: str
    name: str
    path: str
    old: str
    new: str
    tests: str


LENS, TRAINING, MATRIX, ANSWERS, STATISTICS, RUNS = "lens", "training", "matrix", "answers", "statistics", "runs"
READING, STATES = "utils/lens/reading.py", "utils/models/hidden_states.py"
DISTRIBUTIONS, T_DISTRIBUTIONS = "utils/lens/distributions.py", "tests/lens/test_distributions.py -k 'bloom or gemma3'"
T_READING = "tests/lens/test_reading.py -k 'bloom or definition or padding_rows'"
T_LOSS, T_TRAINER = "tests/training/test_trainer.py -k loss", "tests/training/test_trainer.py"
T_TEXTS = "tests/training/test_trainer.py -k 'labels or token or text'"
T_MATRIX, T_LOADING = "tests/token_languages/test_matrix.py", "tests/models/test_loading.py"
T_SCORES, T_UNCERTAIN, T_RUNS = "tests/answers/test_scores.py", "tests/test_uncertainty.py", "tests/test_runs.py"
T_PROBES, T_PREDICTIONS = "tests/lens/test_probe_runs.py", "tests/answers/test_predictions.py"
FAULTS = [
    (LENS, "no final norm", READING, "model.final_norm(states).to(", "states.to(", T_READING),
    (
        *(LENS, "final norm twice", READING, "model.final_norm(states).to("),
        *("model.final_norm(model.final_norm(states)).to(", T_READING),
    ),
    (
        *(LENS, "padding rows of the unembedding counted", READING, "[..., : model.n_tokens].float()"),
        *(".float()[..., -model.n_tokens :]", T_READING),
    ),
    (LENS, "softmax in bfloat16", READING, ": model.n_tokens].float()", ": model.n_tokens].bfloat16().float()", T_READING),
    (LENS, "softmax over layers", READING, "return torch.softmax(logits(model, states), dim=-1)",
     "return torch.softmax(logits(model, states), dim=0)", T_READING),
    (LENS, "the first layer's divergence in place of the last one's", DISTRIBUTIONS, "of_final = torch.linalg.vecdot(e, below[:, -1:])",
     "of_final = torch.linalg.vecdot(e, below[:, :1])", T_DISTRIBUTIONS),
    (LENS, "no final norm where the head is in pieces", DISTRIBUTIONS, "model.final_norm(states).to(", "states.to(", T_DISTRIBUTIONS),
    (LENS, "pieces not set in relation to each other", DISTRIBUTIONS, "shifts = shifts / total", "shifts = 1 / total.expand_as(shifts)",
     T_DISTRIBUTIONS),
    (LENS, "entropy in nats", READING, "entropy.clamp(min=0) / math.log(2)", "entropy.clamp(min=0)", T_READING),
    (LENS, "one position off", STATES, "return Prompt(ids, [len(ids) - 1], context)", "return Prompt(ids, [len(ids) - 2], context)",
     "tests/models/test_hidden_states.py tests/lens/test_reading.py -k bloom"),
    (LENS, "the answer's positions are the answer's own", STATES, "list(range(first - 1, len(ids) - 1))",
     "list(range(first, len(ids)))", "tests/models/test_hidden_states.py tests/lens/test_reading.py -k 'answer or bloom'"),
    (LENS, "states that are not finite", "utils/models/checks.py", "if finite.all():", "if True:", "tests/models tests/lens -k finite"),
    (LENS, "no logit scale", "utils/models/families.py", "lambda logits, config: logits * config.logit_scale",
     "lambda logits, config: logits", "tests/lens/test_reading.py -k cohere"),
    (LENS, "no soft cap", "utils/models/families.py", "return logits if cap is None else torch.tanh(logits / cap) * cap",
     "return logits", "tests/lens/test_reading.py -k gemma2"),
    (LENS, "begin token missing", "utils/models/loading.py", "tokenizer.add_bos_token = True", "pass", T_LOADING),
    (LENS, "begin token doubled", "utils/models/loading.py", '[:2] == [begin, begin]', '[:2] == "no"', T_LOADING),
    (LENS, "padding of the tokenizer's file", "utils/models/loading.py", "    backend.no_padding()\n", "", T_LOADING),
    (LENS, "truncation of the tokenizer's file", "utils/models/loading.py", "    backend.no_truncation()\n", "", T_LOADING),
    (LENS, "dropout of merges", "utils/models/loading.py", "backend.model.dropout = None", "pass", T_LOADING),
    (LENS, "a checkpoint of another depth", "utils/models/loading.py", "if strange := sorted(", "if strange := list(set() and ",
     T_LOADING),
    (LENS, "shares above 1 taken", "utils/lens/probe_runs.py", "between(-ROUNDING, 1 + ROUNDING)", "between(-9, 9)", T_PROBES),
    (LENS, "arrays with NaN taken", "utils/lens/probe_runs.py", "if not np.isfinite(part).all():", "if False:",
     "tests/test_compare_script.py -k cannot_be_compared"),
    (MATRIX, "transposed", "utils/token_languages/matrix.py", "shares = flat @ self.probs.astype(np.float64)",
     "shares = flat @ self.probs.astype(np.float64)[::-1]", T_MATRIX),
    (MATRIX, "languages swapped", "utils/token_languages/matrix.py", "return [self.channels[i] for i in",
     "return [self.channels[::-1][i] for i in", T_MATRIX),
    (MATRIX, "a stale one", "utils/token_languages/matrix.py", "        if known_sha256(folder / name) != digest:",
     "        if False:", T_MATRIX),
    (MATRIX, "negative entries", "utils/token_languages/matrix.py", "or (data < 0).any()", "", T_MATRIX),
    (MATRIX, "indices anywhere", "utils/token_languages/matrix.py", "if indptr[0] != 0 or", "if False and", T_MATRIX),
    (MATRIX, "another tokenizer's rules", "utils/token_languages/pieces.py", "    digest.update(_rules(tokenizer))\n", "",
     "tests/token_languages/test_pieces.py"),
    (MATRIX, "two spellings of a language", "utils/data/corpora.py", "            if first != written:",
     "            if False:", "tests/data/test_corpora.py"),
    (TRAINING, "labels shifted", "utils/training/loss.py", "states[:, :-1][predicted]", "states[:, 1:][predicted]", T_LOSS),
    (TRAINING, "the loss of a chunk alone", "utils/training/loss.py", "total = total * shrink + exps.sum",
     "total = exps.sum", T_LOSS),
    (TRAINING, "no shrinking of the gradient", "utils/training/loss.py", "gradient.mul_(shrink).add_", "gradient.add_", T_LOSS),
    (TRAINING, "padding in the loss", "utils/training/texts.py", "[NOT_IN_THE_LOSS] * (width - len(text.labels))",
     "[0] * (width - len(text.labels))", T_TRAINER),
    (TRAINING, "a checkpoint without its optimizer", "utils/training/checkpoints.py", "{*NEEDED} <= files.keys()", "True",
     T_TRAINER),
    (TRAINING, "a checkpoint of another step", "utils/training/checkpoints.py",
     'state["global_step"] == _step(checkpoint)', "True", T_TRAINER),
    (TRAINING, "an adapter that is not finite", "utils/training/checkpoints.py", "    require_finite_weights(adapted)\n", "",
     T_TRAINER),
    (ANSWERS, "a normaliser that drops vowel signs", "utils/answers/normalisation.py", "    return text.split()",
     '    return re.sub(r"[\\u0900-\\u0903\\u093a-\\u094f]", "", text).split()', T_SCORES),
    (ANSWERS, "F1 of the worst answer", "utils/answers/scores.py", "return max(_overlap", "return min(_overlap", T_SCORES),
    (ANSWERS, "answers cut", "utils/answers/generation.py", 'text.strip().split("\\n")[0].strip()',
     'text.strip().split(" ")[0].strip()', "tests/answers/test_generation.py -k 'line or first'"),
    (ANSWERS, "rows doubled", "utils/answers/predictions.py", "        if key in rows:\n", "        if False:\n", T_PREDICTIONS),
    (ANSWERS, "lines at U+2028", "utils/outside.py", '.split("\\n"), 1)', ".splitlines(), 1)", "tests/test_outside.py -k lines"),
    (ANSWERS, "scores above 1 taken", "utils/schemas.py", "Field(ge=0, le=1, allow_inf_nan=False)", "Field()",
     "tests/test_compare_script.py -k cannot_be_compared"),
    (STATISTICS, "mean over the wrong axis", "utils/uncertainty.py", '"change": differences.mean(axis=0)',
     '"change": differences.mean()', T_UNCERTAIN),
    (STATISTICS, "prompts for contexts", "utils/uncertainty.py", "(sums**2).sum(axis=0)) / n",
     "(residuals**2).sum(axis=0)) / n", T_RUNS),
    (STATISTICS, "no monotone q", "utils/uncertainty.py", "np.minimum.accumulate(adjusted[::-1])[::-1]", "adjusted",
     T_UNCERTAIN),
    (RUNS, "other weights go on", "utils/models/loading.py", '"model_sha256": {path.name: known_sha256(path) for path in model.files},',
     '"model_sha256": {},', T_LOADING),
    (RUNS, "changed files are finished", "utils/runs.py", "return known_sha256(path) != digest", "return False", T_RUNS),
    (RUNS, "checksums by size alone", "utils/checksums.py", "stored[:-1] == before:", "stored[0] == before[0]:",
     "tests/test_processes.py -k large"),
    (RUNS, "two processes on a folder", "utils/processes.py", "lock.acquire(timeout=-1 if wait else 0)", "pass",
     "tests/test_processes.py -k held"),
    (RUNS, "--overwrite removes what is read", "utils/runs.py", "if path == ours or ours in path.parents or",
     "if False or", T_RUNS),
]  # fmt: skip


def cases() -> Iterator[Case]:
    for fault in FAULTS:
        yield Case(*fault)


def outcome_of(case: Case, folder: Path) -> str | None:
    """None where the tests fail with the fault, as they must."""
    shutil.copytree(PROJECT_DIR, folder, ignore=LEFT_OUT)
    path = folder / case.path
    text = path.read_text(encoding="utf-8")
    if text.count(case.old) < 1:
        return f"{case.path} no longer has {case.old!r}"
    path.write_text(text.replace(case.old, case.new), encoding="utf-8")
    status, said = tested(folder, shlex.split(case.tests))
    if status == 1 and "FAILED" in said:
        return None
    return f"not caught by {case.tests}: status {status}: {said[-300:]!r}"


def tested(folder: Path, arguments: list[str]) -> tuple[int, str]:
    """(exit status, output) of pytest in a fork that has the libraries, which take long to import, and none of our
    modules: these come from the copy."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        status = 70
        try:
            signal.alarm(SECONDS)
            log = os.open(folder / "said", os.O_CREAT | os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(log, stream)
            ours = {path.stem for path in folder.glob("*.py")} | {"utils", "tests", "benchmarks", "tools"}
            for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
                del sys.modules[name]
            sys.path[:] = [str(folder), *(place for place in sys.path if Path(place).resolve() != PROJECT_DIR)]
            os.chdir(folder)
            status = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *arguments]))
            sys.stdout.flush()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, (folder / "said").read_text(encoding="utf-8", errors="replace")
