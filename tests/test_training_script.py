"""QAtraining.py from its command line to its adapter: a whole run, a stopped one, two processes, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

import probe_logit_lens
import QAinference
import QAtraining
from tests.scripts import PROJECT_DIR, assert_one_error_line, content_of, forked, run, status_of
from utils import runs
from utils.data.examples import DATASETS_DIR, load_examples
from utils.models.loading import load_model
from utils.training import loss, texts, trainer
from utils.training.recipe import PAPER

pytestmark = pytest.mark.usefixtures("one_commit", "one_thread")

ARGUMENTS = ["--dataset", "sample_qa", "--langs", "en", "hi", "--limit", 6, "--batch_size", 2, "--accumulate", 2]
ARGUMENTS += ["--epochs", 3, "--lora_rank", 4, "--learning_rate", 0.01]
N_STEPS = 9  # 12 texts, 4 to a step, three times
COLUMNS = ["step", "epoch", "loss", "learning_rate", "gradient_norm", "tokens_per_second", "examples_seen"]
WEIGHTS = "adapter_model.safetensors"
DEV = DATASETS_DIR / "sample/qa/en/sample_qa_en_test.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, one_commit, one_thread, bloom):
    """(folder, what was said) of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    outcome = run(QAtraining.main, "--model", bloom, *ARGUMENTS, "--output_dir", folder)
    assert outcome.status == 0, outcome.err
    return folder, outcome


@pytest.fixture
def train(tmp_path, bloom):
    """Function that runs the finished run's command, with changes, into tmp_path/run."""
    argv = ["--model", bloom, *ARGUMENTS, "--output_dir", tmp_path / "run"]
    return lambda *changes: run(QAtraining.main, *argv, *changes)


def weights_of(folder: Path) -> bytes:
    return (folder / WEIGHTS).read_bytes()


def log_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "train_log.csv")


def test_a_whole_run(finished, bloom):
    folder, outcome = finished
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "metrics.json", "train_log.csv", "loss.png", "adapter_config.json", WEIGHTS} <= names
    assert "training_args.bin" not in names
    steps = {path.name for path in (folder / "checkpoints").iterdir()}
    assert steps == {"checkpoint-3", "checkpoint-6", "checkpoint-9"}  # one an epoch
    log = log_of(folder)
    assert list(log) == COLUMNS and list(log["step"]) == list(range(1, N_STEPS + 1))
    assert list(log["examples_seen"]) == [4 * step for step in log["step"]]
    assert (log["learning_rate"] == 0.01).all() and (log["tokens_per_second"] > 0).all()
    assert log["loss"].iloc[-3:].mean() < log["loss"].iloc[:3].mean()
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(bloom)
    said = outcome.out.splitlines()
    assert said[0].split() == "n contexts tokens p50 p95 max in the loss spans cut too long".split()
    assert said[2].startswith("sample_qa train en") and said[3].startswith("sample_qa train hi")
    assert f"{N_STEPS} steps" in said[-3] and said[-1] == f"adapter: {folder}"
    assert not (folder / "dev_log.csv").exists()


def test_the_report_counts_what_there_is(finished):
    folder, _ = finished
    sources = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["sources"]
    examples = load_examples("sample_qa", ["en"], "train", 6)
    of_english = sources["sample_qa train en"]
    assert of_english["n"] == 6 and of_english["contexts"] == len({e.context for e in examples})
    assert of_english["cut"] == of_english["too long"] == 0 and of_english["spans"] == "100%"
    assert of_english["in the loss"] == of_english["tokens"] - 6  # all but each text's first token


def test_the_loss_on_other_questions(finished, train, tmp_path):
    file = DATASETS_DIR / "sample/qa/en/sample_qa_en_test.json"
    outcome = train("--dev_file", file)
    dev = pd.read_csv(tmp_path / "run/dev_log.csv")
    assert list(dev) == ["step", "epoch", "loss"] and list(dev["step"]) == [3, 6, 9]
    assert f"on --dev_file {dev['loss'][0]:.3f} and {dev['loss'][2]:.3f}" in outcome.out
    assert weights_of(tmp_path / "run") == weights_of(finished[0])  # looking changes nothing


def test_the_loss_on_other_questions_is_a_mean_over_their_tokens(train, tmp_path, bloom):
    file = DATASETS_DIR / "sample/qa/en/sample_qa_en_test.json"
    assert train("--dev_file", file).status == 0
    model = load_model(str(bloom), tmp_path / "run")
    total, n_tokens = 0.0, 0
    for example in load_examples("sample_qa", ["en"], "test"):
        ids = torch.tensor([texts.training_text(model.tokenizer, example).ids])
        total += cross_entropy(model.causal_lm(ids).logits[0, :-1], ids[0, 1:], reduction="sum").item()
        n_tokens += ids.shape[1] - 1
    dev = pd.read_csv(tmp_path / "run/dev_log.csv")
    assert dev["loss"].iloc[-1] == pytest.approx(total / n_tokens, rel=1e-4)


def test_the_same_seed_gives_the_same_adapter_and_another_another(finished, train, tmp_path):
    assert train().status == 0
    assert weights_of(tmp_path / "run") == weights_of(finished[0])
    assert train("--seed", 43, "--output_dir", tmp_path / "other").status == 0
    assert weights_of(tmp_path / "other") != weights_of(finished[0])


def test_a_run_stopped_between_two_checkpoints_ends_with_the_same_adapter(finished, train, tmp_path, monkeypatch):
    step, calls = trainer.Finetuning.training_step, []

    def stopping(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 9:  # of the second epoch, past the first checkpoint
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Finetuning, "training_step", stopping)
        assert train().status == 130
    assert len(log_of(tmp_path / "run")) == 4
    assert train("--resume").status == 0
    assert weights_of(tmp_path / "run") == weights_of(finished[0])
    stable = [column for column in COLUMNS if column != "tokens_per_second"]
    assert log_of(tmp_path / "run")[stable].equals(log_of(finished[0])[stable])


def test_the_papers_recipe_stopped_within_an_accumulation_ends_with_the_same_adapter(train, tmp_path, monkeypatch):
    step, calls = trainer.Finetuning.training_step, []

    def stopping(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 11:  # the third batch of the third step, past the first epoch's checkpoint
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    # 6 batches an epoch and 4 to a step: 3 steps, the second of which has batches of both epochs
    paper = ("--recipe", "paper", "--accumulate", 4, "--weight_decay", 0.25, "--max_tokens", 150, "--dev_file", DEV)
    assert train(*paper, "--output_dir", tmp_path / "whole").status == 0
    config = json.loads((tmp_path / "whole/config.json").read_text(encoding="utf-8"))
    effective = {flag: choice.value for flag, choice in PAPER.items()} | {"weight_decay": 0.25, "recipe": "paper"}
    assert effective.items() <= config["arguments"].items() and config["inputs"]["dtype"] == "float32"
    assert json.loads((tmp_path / "whole/metrics.json").read_text())["sources"]["sample_qa train hi"]["cut"] > 0
    log = log_of(tmp_path / "whole")
    assert list(log["epoch"].round(3)) == [0.667, 1.333, 2.0] and list(log["examples_seen"]) == [8, 16, 24]
    assert list(pd.read_csv(tmp_path / "whole/dev_log.csv")["step"]) == [1, 3]
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Finetuning, "training_step", stopping)
        assert train(*paper).status == 130
    assert trainer.last_checkpoint(tmp_path / "run/checkpoints").name == "checkpoint-1"
    assert train(*paper, "--resume").status == 0
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "whole")


def test_a_killed_run_ends_with_the_same_adapter(finished, train, tmp_path, bloom):
    folder = tmp_path / "run"
    argv = ["--model", bloom, *ARGUMENTS, "--output_dir", folder]
    process = forked(lambda: run(QAtraining.main, *argv), tmp_path / "said")
    deadline = time.monotonic() + 90
    while not (folder / "checkpoints/checkpoint-3/trainer_state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    assert status_of(process) == -signal.SIGKILL
    assert not (folder / "metrics.json").exists()
    assert train().status == 0
    assert weights_of(folder) == weights_of(finished[0])


def test_a_finished_run_is_not_trained_again(finished, bloom, monkeypatch):
    folder, outcome = finished
    before = content_of(folder)
    monkeypatch.setattr(trainer.Finetuning, "training_step", lambda *args, **kwargs: pytest.fail("trained"))
    again = run(QAtraining.main, "--model", bloom, *ARGUMENTS, "--output_dir", folder)
    assert (again.status, again.out) == (0, outcome.out)
    assert content_of(folder) == before
    other = run(QAtraining.main, "--model", bloom, *ARGUMENTS, "--output_dir", folder, "--loss", "answer")
    assert_one_error_line(other, "holds another command's run", "loss was 'all', is 'answer'")


@pytest.mark.parametrize(
    "changes", [("--loss", "answer"), ("--mask_eos",), ("--shuffle_answers",), ("--keep_context", 0.5)]
)
def test_what_is_taught_changes_the_adapter(finished, train, tmp_path, changes):
    assert train(*changes).status == 0
    assert weights_of(tmp_path / "run") != weights_of(finished[0])


def test_a_zero_step_adapter_changes_nothing(train, tmp_path, bloom):
    assert train("--epochs", 0).status == 0
    ids = torch.tensor([[5, 6, 7]])
    base = AutoModelForCausalLM.from_pretrained(bloom).eval()
    before = base(ids).logits
    assert PeftModel.from_pretrained(base, tmp_path / "run").eval()(ids).logits.equal(before)


def test_the_adapter_is_peft_s_own_live_or_merged(finished, bloom):
    ids = torch.tensor([[5, 6, 7, 8]])
    before = AutoModelForCausalLM.from_pretrained(bloom).eval()(ids).logits
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bloom), finished[0]).eval()
    live = adapted(ids).logits
    assert (live - before).abs().max() > 0.01
    assert torch.allclose(adapted.merge_and_unload()(ids).logits, live, atol=1e-4)


def test_the_other_scripts_take_the_adapter(finished, bloom, small_matrix, tmp_path):
    for script, more in ((QAinference, ["--max_new_tokens", 4]), (probe_logit_lens, [])):
        argv = ["--model", bloom, "--langs", "en", "--limit", 2, "--token_languages", small_matrix, *more]
        argv += ["--adapter", finished[0], "--output_dir", tmp_path / script.__name__]
        outcome = run(script.main, *argv)
        assert outcome.status == 0, outcome.err


TORCHRUN = ["torch.distributed.run", "--nproc_per_node", 2, "--standalone"]
# accelerate's name for several processes of any kind; without a GPU they run on the CPU.
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--main_process_port", 0]


OF_PROCESSES = ["--dataset", "sample_qa", "--langs", "en", "hi", "--limit", 8, "--epochs", 2, "--batch_size", 2]
OF_PROCESSES += ["--lora_rank", 4, "--learning_rate", 0.01, "--lora_dropout", 0, "--device", "cpu"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, bloom):
    """The log of the run that several processes divide among themselves."""
    folder = tmp_path_factory.mktemp("processes") / "one"
    outcome = run(QAtraining.main, "--model", bloom, *OF_PROCESSES, "--accumulate", 2, "--output_dir", folder)
    assert outcome.status == 0, outcome.err
    return log_of(folder)


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_have_the_loss_curve_of_one(tmp_path, bloom, launcher, one_process):
    argv = ["-m", *launcher, "QAtraining.py", "--model", bloom, *OF_PROCESSES, "--accumulate", 1]
    done = subprocess.run(
        list(map(str, [sys.executable, *argv, "--output_dir", tmp_path / "two"])),
        cwd=PROJECT_DIR,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two" / "config.json").read_text(encoding="utf-8"))["inputs"]["processes"] == 2
    one, two = one_process, log_of(tmp_path / "two")
    assert len(one) == 8 and list(one["examples_seen"]) == list(two["examples_seen"])
    assert (one["loss"] - two["loss"]).abs().max() < 1e-3
    assert (one["gradient_norm"] - two["gradient_norm"]).abs().max() < 1e-3


# --- bad input -------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_examples(train, tmp_path, monkeypatch):
    really, calls = loss.chunked_loss, []

    def infinite(*args):
        calls.append(1)
        return really(*args) * (float("inf") if len(calls) == 16 else 1)  # of step 4, a text at a time

    monkeypatch.setattr(loss, "chunked_loss", infinite)
    outcome = train("--lora_dropout", 0)
    assert_one_error_line(outcome, "the loss is inf at step 4", "in the examples ", "last checkpoint is kept")
    named = outcome.err.split("in the examples ")[1].split(";")[0].split(", ")
    assert set(named) <= {e.id for e in load_examples("sample_qa", ["en"], "train", 6)} and len(named) == 2
    assert trainer.last_checkpoint(tmp_path / "run/checkpoints").name == "checkpoint-3"


def question(answers):
    return {"id": "q1", "context": "Ice floats.", "question": "What floats?", "answers": [{"text": a} for a in answers]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"examples": [question([""])]}, "no answer"),
        ({"examples": [question(["Ice", "ice"])]}, "example q1 has 2 answers"),
        ({"examples": []}, "no examples in it"),
        ({"nothing": []}, "wrong schema"),
    ],
)
def test_a_bad_training_file_is_refused(tmp_path, bloom, content, says):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    outcome = run(QAtraining.main, "--model", bloom, "--train_file", path, "--output_dir", tmp_path / "run")
    assert_one_error_line(outcome, "bad", says)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--langs", "sw"], ["no such file", "sample_qa train is here in"]),
        (["--langs", "xx"], ["unknown language 'xx'"]),
        (["--split", "dev"], ["unknown split 'dev'"]),
        (["--train_file", "none.json"], ["none.json", "No such file"]),
        (["--carry_over", "--accumulate", 7], ["--carry_over: an epoch of 6 batches of 2 can't fill"]),
        (["--lora_targets", "q_proj"], ["--lora_targets q_proj: bloom has no such map; choose from query_key_value"]),
        (["--max_tokens", 5], ["sample_qa train en: no example fits into --max_tokens 5"]),
        (["--quantization", "4bit"], ["--quantization 4bit", "needs a GPU"]),
        (["--shuffle_answers", "--limit", 1], ["--shuffle_answers: too few different answers"]),
    ],
)
def test_bad_arguments_are_refused(train, tmp_path, changes, says):
    assert_one_error_line(train(*changes), *says)
    assert not (tmp_path / "run").exists()


def test_training_files_need_no_output_dir(tmp_path, bloom, monkeypatch):
    monkeypatch.setattr(runs, "PROJECT_DIR", tmp_path)
    files = [DATASETS_DIR / f"sample/qa/{lang}/sample_qa_{lang}_train.json" for lang in ("en", "hi")]
    argv = ["--model", bloom, "--train_file", *files, "--limit", 2, "--epochs", 1, "--lora_rank", 2]
    outcome = run(QAtraining.main, *argv)
    assert outcome.status == 0, outcome.err
    (folder,) = (tmp_path / "results").iterdir()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["arguments"]["train_file"] == list(map(str, files))
    assert run(QAtraining.main, *argv) == outcome  # the same folder, finished
    assert_one_error_line(run(QAtraining.main, *argv, "--train_file", files[0], files[0]), "sample_qa_en_train; give")


def test_a_development_text_that_is_too_long_is_refused(train, tmp_path):
    file = tmp_path / "dev.json"
    long = {**question(["Ice"]), "question": "What floats? " * 99}
    file.write_text(json.dumps({"examples": [question(["Ice"]), long | {"id": "q2"}]}), encoding="utf-8")
    outcome = train("--dev_file", file, "--max_tokens", 400)
    assert_one_error_line(outcome, "dev.json: example q2 does not fit into --max_tokens 400")
    assert not (tmp_path / "run").exists()


def test_resume_insists_on_a_checkpoint(train):
    assert_one_error_line(train("--resume"), "--resume: no whole checkpoint")


@pytest.mark.parametrize("value", ["0", "1", "-0.5", "60"])
def test_a_share_of_the_context_is_between_0_and_1(value, capsys):
    with pytest.raises(SystemExit) as stopped:
        QAtraining.parse_args(["--keep_context", value])
    assert stopped.value.code == 2 and f"{value} is not between 0 and 1" in capsys.readouterr().err
