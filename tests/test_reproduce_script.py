"""reproduce_paper.py from its command line to its report: a whole small run, one that goes on, one that half fails."""

import dataclasses
import importlib
import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

import plot_figures
import QAinference
import reproduce_paper
from tests.scripts import PROJECT_DIR, assert_one_error_line, content_of, draw_one_blank, finished_as_it_is, run
from utils.data.examples import Example
from utils.experiments import plan
from utils.experiments.drawings import outcome_curves
from utils.experiments.ledger import Ledger
from utils.experiments.plan import plan_commands, steps_an_epoch, whole_contexts
from utils.experiments.presets import PRESETS, Experiment, TrainingSet
from utils.figures import layers

pytestmark = pytest.mark.usefixtures("one_commit")

N_COMMANDS = 16  # of the preset smoke


@pytest.fixture(scope="module")
def finished(tmp_path_factory, project, llama):
    """A whole experiment. Its first comparison is a process of its own, as all commands are for a user; the others run
    in this one, since each would import the libraries anew."""
    folder = tmp_path_factory.mktemp("experiment") / "smoke"
    here, apart = [], []

    def started(argv, **options):
        if argv[1] == "compare_runs.py" and not apart:
            apart.append(argv)
            return really(argv, **options)
        here.append(argv)
        return run_here(argv)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT_DIR)
        really = reproduce_paper.subprocess.run
        patch.setattr(reproduce_paper.subprocess, "run", started)
        patch.setattr(layers, "draw_probe_run", draw_one_blank)  # which nothing here looks at
        outcome = run(reproduce_paper.main, "--preset", "smoke", "--model", llama, "--output_dir", folder)
    assert (outcome.status, len(apart), len(here)) == (0, 1, N_COMMANDS - 1), outcome.err
    return folder, outcome


def run_here(argv: list[str]) -> subprocess.CompletedProcess:
    """subprocess.run for one of our scripts, in this process."""
    _, script, *arguments = argv
    outcome = run(importlib.import_module(Path(script).stem).main, *arguments)
    return subprocess.CompletedProcess(argv, outcome.status or 0, stderr=outcome.err)


def test_a_whole_run_and_its_report(finished, llama):
    folder, outcome = finished
    assert f"[{N_COMMANDS}/{N_COMMANDS}]" in outcome.out and f"report: {folder / 'REPORT.md'}" in outcome.out
    report = (folder / "REPORT.md").read_text(encoding="utf-8")
    titles = ["Claims", "Transfer", "Which language each layer speaks", "What falls", "Does suppression explain gain?"]
    for title in (*titles, "Quality of the training data", "Form and content of answers", "Confounds"):
        assert f"## {title}" in report
    for letter in "abcde":
        assert f"**({letter}) " in report and f"| ({letter}) " in report
    assert report.index("| claim | refuted where | the surest of its cells | verdict |") < report.index("**(a) ")
    assert "What has not run" not in report
    table = pd.read_csv(folder / "transfer.csv")
    assert set(table["training"]) == {"or", "de"} and set(table["lang"]) == {"ory_Orya", "eng_Latn"}
    for row in table[table["score"] == "multilingual_f1"].itertuples():
        for side, name in (("before", "base"), ("after", row.training)):
            metrics = json.loads((folder / "answers" / f"{name}-sample_qa" / "metrics.json").read_text("utf-8"))
            assert getattr(row, side) == pytest.approx(metrics["languages"][row.lang]["multilingual"]["f1"])
    lengths = pd.read_csv(folder / "lengths.csv")
    assert set(lengths["training"]) == {"base", "or", "de"} and len(lengths) == 6
    figures = sorted(path.name for path in (folder / "figures").glob("*.png"))
    curves = [f"{kind}_{name}_sample_qa_or" for kind in ("changes", "epochs", "outcomes") for name in ("de", "or")]
    kinds = [*curves, "gains", "transfer_sample_qa"]
    assert figures == sorted(f"{kind}.png" for kind in kinds)
    for name in figures:
        assert f"(figures/{name})" in report


def test_every_figure_can_be_drawn_again_from_the_tables(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "smoke")
    runs = [folder, folder / "adapters" / "or", folder / "changes" / "probes-or-epoch-2-sample_qa"]
    for run_dir in runs:
        before = {path: path.read_bytes() for path in (*run_dir.glob("figures/*"), *run_dir.glob("*.png"))}
        assert before
        for path in before:
            path.unlink()
        outcome = run(plot_figures.main, run_dir)
        assert (outcome.status, outcome.err) == (0, ""), run_dir
        assert {path: path.read_bytes() for path in before} == before
        assert {str(path) for path in before} == set(outcome.out.split())
    outcome = run(plot_figures.main, folder / "answers" / "base-sample_qa")
    assert_one_error_line(outcome, "QAinference.py has no figures", "probe_logit_lens.py")


def test_suppression_is_that_of_the_probes_and_answers(finished):
    folder, _ = finished
    table = pd.read_csv(folder / "suppression.csv")
    scores = pd.read_csv(folder / "transfer.csv").set_index(["training", "lang", "score"])
    assert list(table["training"]) == ["or", "de"] and set(table["lang"]) == {"ory_Orya"}
    for row in table.itertuples():
        assert row.gain == scores.loc[(row.training, "ory_Orya", "multilingual_f1"), "change"]
        run_dir = folder / "changes" / f"probes-{row.training}-epoch-2-sample_qa"
        changes = pd.read_csv(run_dir / "changes.csv")
        upper = changes[changes["layer"] >= (changes["layer"].max() + 1) // 2]
        of_channel = upper.groupby("channel")["change"].mean()
        assert row.change == pytest.approx(of_channel[row.channels.split()].sum(), abs=1e-6)


def test_curves_by_outcome_add_up_to_the_curves_of_all(finished):
    folder, _ = finished
    rows = [
        json.loads(line)
        for line in (folder / "answers" / "or-sample_qa" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    changed = shutil.copytree(folder, folder.parent / "changed", dirs_exist_ok=True)
    contexts = list(dict.fromkeys(row["context"] for row in rows if row["lang"] == "ory_Orya"))
    n_right = 0
    for row in rows:  # one question of each Odia context becomes right
        if row["context"] in contexts:
            contexts.remove(row["context"])
            row["scores"]["multilingual_exact_match"] = 1.0
            n_right += 1
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (changed / "answers" / "or-sample_qa" / "predictions.jsonl").write_text(text, encoding="utf-8")
    finished_as_it_is(changed / "answers" / "or-sample_qa")
    experiment = Experiment.of(PRESETS["smoke"], changed)
    table = outcome_curves(experiment, "or", "sample_qa")
    counts = table.groupby("outcome")["n"].first()
    assert dict(counts) == {"newly_right": n_right, "both_wrong": 6 - n_right} and n_right > 1
    for model, name in (("base", "base"), ("tuned", "or-epoch-2")):
        whole = pd.read_csv(folder / "probes" / f"{name}-sample_qa" / "language_probs.csv", keep_default_na=False)
        of_model = table[table["model"] == model]
        summed = (of_model["share"] * of_model["n"]).groupby([of_model["layer"], of_model["channel"]]).sum() / 6
        expected = whole.set_index(["layer", "channel"])["share"].astype(float).sort_index()
        assert summed.sort_index().to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-6)


def test_what_is_finished_is_not_run_again_and_the_report_is_the_same(finished, llama, monkeypatch):
    folder, _ = finished
    before = content_of(folder)
    monkeypatch.setattr(reproduce_paper.subprocess, "run", None)
    outcome = run(reproduce_paper.main, "--preset", "smoke", "--model", llama, "--output_dir", folder)
    assert (outcome.status, outcome.err) == (0, "") and outcome.out.count("finished before") == N_COMMANDS
    assert content_of(folder) == before


def test_another_run_in_a_command_s_folder_is_not_taken(finished, llama, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce_paper.subprocess, "run", lambda argv, **options: run_here(argv))
    folder = shutil.copytree(finished[0], tmp_path / "smoke")
    answers = folder / "answers" / "base-sample_qa"
    shutil.rmtree(answers)
    argv = ["--model", llama, "--langs", "or", "en", "--limit", 6, "--max_new_tokens", 3, "--output_dir", answers]
    assert run(QAinference.main, *argv).status == 0
    report = (folder / "REPORT.md").read_bytes()
    outcome = run(reproduce_paper.main, "--preset", "smoke", "--model", llama, "--output_dir", folder)
    assert_one_error_line(outcome, answers, "holds another run than", "another command's run")
    assert (folder / "REPORT.md").read_bytes() == report


def test_what_read_an_adapter_that_was_trained_again_is_made_again(finished, llama, tmp_path, monkeypatch):
    folder = shutil.copytree(finished[0], tmp_path / "smoke")
    finish = json.loads((folder / "adapters" / "or" / "metrics.json").read_text(encoding="utf-8"))
    (folder / "adapters" / "or" / "metrics.json").write_text(json.dumps(finish | {"again": 1}), encoding="utf-8")
    ledger = Ledger(folder)
    commands = plan_commands(dataclasses.replace(PRESETS["smoke"], model=str(llama)), folder)
    ledger.record(next(command for command in commands if command.folder == folder / "adapters" / "or"))
    called = []

    def rerun(argv, **options):
        called.append(argv[1:])
        return subprocess.CompletedProcess(argv, 2, stderr="error: no memory")

    monkeypatch.setattr(reproduce_paper.subprocess, "run", rerun)
    outcome = run(reproduce_paper.main, "--preset", "smoke", "--model", llama, "--output_dir", folder)
    assert outcome.status == 2
    names = [Path(argv[argv.index("--output_dir") + 1]).name for argv in called]
    assert set(names) == {"or-sample_qa", "or-epoch-1-sample_qa", "or-epoch-2-sample_qa"}
    assert all(argv[-1] == "--overwrite" for argv in called)
    assert not any((folder / "answers" / name / "metrics.json").exists() for name in names)
    assert "or" not in set(pd.read_csv(folder / "transfer.csv")["training"])


def test_a_command_that_fails_is_named_and_the_rest_goes_on(finished, llama, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce_paper.subprocess, "run", lambda argv, **options: run_here(argv))
    monkeypatch.setattr("utils.experiments.report.draw_all", lambda folder: [])  # at which another test looks
    folder = shutil.copytree(finished[0], tmp_path / "smoke")
    shutil.rmtree(folder / "adapters" / "de")
    (folder / "adapters" / "de").mkdir()
    (folder / "adapters" / "de" / "notes.txt").write_text("mine")  # no run wrote it, so none will touch it
    shutil.rmtree(folder / "answers" / "de-sample_qa")
    shutil.rmtree(folder / "changes" / "answers-de-sample_qa")
    outcome = run(reproduce_paper.main, "--preset", "smoke", "--model", llama, "--output_dir", folder)
    assert_one_error_line(outcome, "3 of 16 commands failed", "QAtraining.py")
    assert "needs adapters/de, which is not there" in outcome.out
    report = (folder / "REPORT.md").read_text(encoding="utf-8")
    assert "## What has not run" in report and "'notes.txt'" in report and "| train | de |" in report
    without = run(
        reproduce_paper.main, "--preset", "smoke", "--model", llama, "--output_dir", folder, "--steps", "report"
    )
    assert without.status == 0  # nothing was asked to run, so nothing failed; what is missing is named all the same
    report = (folder / "REPORT.md").read_text(encoding="utf-8")
    assert "| train | de | not begun, or stopped |" in report and "answers | de on sample_qa |" in report
    assert set(pd.read_csv(folder / "transfer.csv")["training"]) == {"or"}


@pytest.fixture(scope="module")
def halves(finished, tmp_path_factory, project, llama):
    """The whole experiment as two machines would have it: the set `de` ran on the first alone, `or` on the second."""
    folders = {}
    for name, other in (("de", "or"), ("or", "de")):
        folder = folders[name] = shutil.copytree(finished[0], tmp_path_factory.mktemp("half") / name)
        for path in (*folder.glob(f"adapters/{other}"), *folder.glob(f"*/{other}-*"), *folder.glob(f"*/*-{other}-*")):
            shutil.rmtree(path)
        for path in (*folder.glob("*.csv"), *folder.glob("figures/*"), folder / "REPORT.md"):
            path.unlink()
        assert report_of(folder, llama).status == 0
    return folders


def report_of(folder, model, *more):
    argv = ("--preset", "smoke", "--model", model, "--output_dir", folder, "--steps", "report")
    return run(reproduce_paper.main, *argv, *more)


@pytest.mark.parametrize("here, there", [("de", "or"), ("or", "de")])
def test_two_halves_of_an_experiment_give_the_report_of_the_whole(finished, halves, llama, tmp_path, here, there):
    whole, folder = finished[0], shutil.copytree(halves[here], tmp_path / "joined")
    assert set(pd.read_csv(folder / "transfer.csv")["training"]) == {here}
    missing = pd.read_csv(folder / "missing.csv", keep_default_na=False)
    assert missing["training"].value_counts().to_dict() == {there: 4, "": 3}  # and three comparisons
    assert f"| train | {there} |" in text_of(folder)
    assert report_of(folder, llama, "--join", halves[there]).status == 0
    for path in (*whole.glob("*.csv"), *whole.glob("figures/*.png")):
        assert (folder / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name
    says = f"Rows and figures of `{there}` come from another report of this experiment"
    assert says in text_of(folder) and "What has not run" not in text_of(folder)
    assert [line for line in text_of(folder).splitlines() if says not in line and line] == [
        line for line in text_of(whole).splitlines() if line
    ]


def text_of(folder):
    return (folder / "REPORT.md").read_text(encoding="utf-8")


def test_a_set_that_ran_here_is_not_taken_from_elsewhere(finished, halves, llama, tmp_path):
    folder, there = (shutil.copytree(path, tmp_path / path.name) for path in (finished[0], halves["or"]))
    before = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    for name in ("transfer.csv", "lengths.csv"):
        (there / name).write_bytes((there / name).read_bytes().replace(b"0", b"7"))
    assert report_of(folder, llama, "--join", there).status == 0
    assert {path.name: path.read_bytes() for path in folder.glob("*.csv")} == before
    assert "--join" not in text_of(folder)


def test_a_report_of_another_experiment_is_not_joined(finished, halves, llama, bloom, tmp_path):
    folder, there = shutil.copytree(finished[0], tmp_path / "here"), shutil.copytree(halves["or"], tmp_path / "there")
    before = content_of(folder)
    (there / "missing.csv").unlink()
    assert_one_error_line(report_of(folder, llama, "--join", there), "--join", there, "missing.csv")
    config = json.loads((there / "config.json").read_text(encoding="utf-8"))
    config["inputs"]["preset"]["epochs"] = 3
    (there / "config.json").write_text(json.dumps(config), encoding="utf-8")
    outcome = report_of(folder, llama, "--join", there)
    assert_one_error_line(outcome, "--join", there, "another experiment", "epochs of preset was 3, is 2")
    assert_one_error_line(report_of(folder, llama, "--join", tmp_path / "nowhere"), "nowhere")
    argv = ("--preset", "smoke", "--model", llama, "--output_dir", folder, "--steps", "compare", "--join", there)
    assert_one_error_line(run(reproduce_paper.main, *argv), "--join", "--steps")
    assert content_of(folder) == before


def test_another_models_experiment_is_refused(finished, bloom):
    folder, _ = finished
    before = content_of(folder)
    outcome = run(reproduce_paper.main, "--preset", "smoke", "--model", bloom, "--output_dir", folder)
    assert_one_error_line(outcome, folder, "another command's run", bloom)
    assert content_of(folder) == before


def test_a_dry_run_prints_every_command_and_what_it_costs_and_writes_nothing(llama, tmp_path):
    folder = tmp_path / "dry"
    outcome = run(reproduce_paper.main, "--preset", "smoke", "--model", llama, "--output_dir", folder, "--dry_run")
    assert (outcome.status, outcome.err) == (0, "") and not folder.exists()
    lines = outcome.out.splitlines()
    assert len([line for line in lines if " tokens " in line]) == N_COMMANDS
    assert sum("python QAtraining.py" in line for line in lines) == 2
    assert "still to run: about" in lines[-1]
    only = ["--steps", "train", "--dry_run"]
    outcome = run(reproduce_paper.main, "--preset", "smoke", "--model", llama, "--output_dir", folder, *only)
    assert outcome.out.count(" tokens ") == 2


def test_a_dry_run_without_the_model_still_prints_the_commands(tmp_path):
    argv = ["--preset", "smoke", "--model", tmp_path / "nowhere", "--output_dir", tmp_path / "dry", "--dry_run"]
    outcome = run(reproduce_paper.main, *argv)
    assert outcome.status == 0 and outcome.out.count("python QA") == 5
    assert "hours and tokens are not known here" in outcome.out and "nowhere" in outcome.out


@pytest.mark.parametrize("n_examples, steps", [(1, 1), (16, 1), (17, 2), (32, 2), (103, 7)])
def test_steps_of_an_epoch(n_examples, steps):
    assert steps_an_epoch(n_examples) == steps


def questions(lang, contexts):
    return [Example(str(i), "tests", lang, f"{lang} {context}", "?", ["!"]) for i, context in enumerate(contexts)]


@pytest.mark.parametrize("n, limit", [(1, 3), (3, 3), (4, 5), (5, 5), (6, None), (7, None), (None, None)])
def test_whole_contexts(n, limit):
    # English has its last two questions on two contexts, Hindi on one.
    examples = [*questions("eng_Latn", "aaabbcd"), *questions("hin_Deva", "aaabbcc")]
    assert whole_contexts("tests", examples, n) == limit


def test_other_questions_in_another_language_are_refused():
    examples = [*questions("eng_Latn", "aab"), *questions("hin_Deva", "aa")]
    with pytest.raises(ValueError, match="hin_Deva has not the same questions as eng_Latn"):
        whole_contexts("tests", examples, 2)


def test_every_command_finds_what_it_needs_and_no_two_write_to_one_folder(official_datasets, monkeypatch, tmp_path):
    def load(*args):
        return original(*args, datasets_dir=official_datasets)

    original = plan.load_examples
    monkeypatch.setattr(plan, "load_examples", load)
    commands = plan_commands(PRESETS["small"], tmp_path)
    assert len({command.folder for command in commands}) == len(commands)
    made = set()
    for command in commands:
        assert set(command.needs) <= made and command.step in reproduce_paper.STEPS
        made.add(command.folder)
    trained = [command for command in commands if command.step == "train"]
    assert [command.name for command in trained[:4]] == ["or", "en2ru_nllb", "en2de_nllb", "en"]
    assert {"en_shuffled", "en_masked_end", "en_truncated"} == {command.name for command in trained[4:7]}
    assert [command.name for command in trained[7:]] == [name for name in PRESETS["small"].training if "_seed_" in name]
    assert "--shuffle_answers" in next(command for command in trained if command.name == "en_shuffled").argv
    answered = next(command for command in commands if command.step == "answers")
    of_lang = {}
    for example in answered.examples:
        of_lang.setdefault(example.lang, []).append(example.id)
    ids = list(of_lang.values())
    assert len(ids) == 5 and all(other == ids[0] for other in ids) and 120 <= len(ids[0]) < 140
    probe = next(command for command in commands if command.name == "or-epoch-2 on xquad_in")
    assert str(tmp_path / "adapters" / "or" / "checkpoints" / "checkpoint-14") in probe.argv


def test_a_set_that_is_not_there_is_named(monkeypatch, tmp_path):
    missing = dataclasses.replace(PRESETS["smoke"], training={"xx": TrainingSet("sample_qa", "xh")})
    monkeypatch.setitem(PRESETS, "smoke", missing)
    outcome = run(reproduce_paper.main, "--preset", "smoke", "--output_dir", tmp_path / "out")
    assert_one_error_line(outcome, "sample_qa_xh_train.json")
    assert not (tmp_path / "out").exists()
