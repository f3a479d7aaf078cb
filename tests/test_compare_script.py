"""compare_runs.py from its command line to its files: answers, probes, an adapter that changes nothing, bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import compare_runs
import probe_logit_lens
import QAinference
from tests.scripts import (
    assert_one_error_line,
    content_of,
    damage,
    draw_one_blank,
    finished_as_it_is,
    run,
    save_adapter,
)
from utils.answers.scores import SCORES, char_f1_beyond_chance, cut_f1
from utils.figures import layers
from utils.lens.probe_runs import ProbeRun
from utils.uncertainty import FALSE_DISCOVERY_RATE, against_null

pytestmark = pytest.mark.usefixtures("one_commit", "one_thread")

LANGS, N = ["hin_Deva", "eng_Latn"], 12  # questions of a language, on four contexts


@pytest.fixture(scope="module", autouse=True)
def probes_without_figures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "draw_probe_run", draw_one_blank)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory, llama, adapter, small_matrix):
    """Finished runs by name: answers and probes of a base model, of it with an adapter, and with one that is zero."""
    folder = tmp_path_factory.mktemp("runs")
    save_adapter(llama, folder / "zero", std=0.0)
    common = ["--model", llama, "--token_languages", small_matrix, "--langs", "hi", "en", "--limit", N]
    for name, tuned in (("base", []), ("tuned", ["--adapter", adapter]), ("zero", ["--adapter", folder / "zero"])):
        answers = [*common, *tuned, "--max_new_tokens", 6, "--output_dir", folder / f"answers_{name}"]
        assert run(QAinference.main, *answers).status == 0
        probe = [*common, *tuned, "--grid", 1, "--output_dir", folder / f"probe_{name}"]
        assert run(probe_logit_lens.main, *probe).status == 0
    return folder


def compare(runs, one, other, folder, *more):
    return run(compare_runs.main, runs / one, runs / other, "--output_dir", folder, *more)


def test_two_runs_of_answers(runs, tmp_path):
    copy = shutil.copytree(runs / "answers_tuned", tmp_path / "better")
    rows = [json.loads(line) for line in (copy / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if row["lang"] == "hin_Deva":  # every Hindi question right
            row["scores"] |= dict.fromkeys(SCORES, 1.0)
    (copy / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    finished_as_it_is(copy)
    outcome = compare(runs, "answers_base", copy, tmp_path / "out")
    assert (outcome.status, outcome.err) == (0, "")
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    columns = "lang score before after change low high p double_low double_high double_p n n_contexts".split()
    assert list(scores) == columns
    measures = [*SCORES, "cut_f1", "holds_gold", "overgeneration", "char_f1_beyond_chance"]
    assert list(scores["lang"]) == [lang for lang in LANGS for _ in measures]
    assert set(scores["score"]) == set(measures)
    base = json.loads((runs / "answers_base" / "metrics.json").read_text(encoding="utf-8"))["languages"]
    written = (runs / "answers_base" / "predictions.jsonl").read_text(encoding="utf-8")
    answers = [json.loads(line) for line in written.splitlines()]
    for row in scores.itertuples():
        normalisation, _, name = row.score.partition("_")
        summary = base[row.lang]
        expected = summary[normalisation][name] if name in summary.get(normalisation, ()) else summary.get(row.score)
        if row.score == "overgeneration":
            expected = summary["misses"]["overgeneration"]
        if row.score == "holds_gold":
            expected = summary["misses"]["overgeneration"] + summary["multilingual"]["exact_match"]
        of_lang = [one for one in answers if one["lang"] == row.lang]
        if row.score == "char_f1_beyond_chance":
            expected = np.mean(char_f1_beyond_chance(of_lang, row.lang))
        if row.score == "cut_f1":
            expected = np.mean([cut_f1(one["prediction"], one["answers"], row.lang) for one in of_lang])
        assert row.before == pytest.approx(expected) and row.n == N and row.n_contexts == summary["n_contexts"]
        assert row.change == pytest.approx(row.after - row.before) and np.isnan(row.low)  # four contexts
    hindi = scores[(scores["lang"] == "hin_Deva") & (scores["score"] == "multilingual_exact_match")].iloc[0]
    assert (hindi["before"], hindi["after"]) == (0, 1) and hindi["p"] == 2 / 2 ** hindi["n_contexts"]
    outcomes = pd.read_csv(tmp_path / "out" / "outcomes.csv").set_index("lang")
    assert outcomes.loc["hin_Deva"].to_dict() == {"both_right": 0, "newly_right": N, "newly_wrong": 0, "both_wrong": 0}
    assert outcome.out.startswith("These two checkpoints alone") and "n = 12 in 4 contexts" in outcome.out
    assert f"0.0 -> 100.0: +100.0, p {hindi['p']:.2g}" in outcome.out


def test_two_probes(runs, tmp_path):
    outcome = compare(runs, "probe_base", "probe_tuned", tmp_path / "out")
    assert (outcome.status, outcome.err) == (0, "")
    table = pd.read_csv(tmp_path / "out" / "changes.csv", keep_default_na=False)
    columns = "prompt_lang layer channel before after change low high p q n n_contexts".split()
    assert list(table) == columns
    keys = ["prompt_lang", "layer", "channel"]
    for side, name in (("before", "base"), ("after", "tuned")):
        shares = pd.read_csv(runs / f"probe_{name}" / "language_probs.csv", keep_default_na=False)
        both = table.merge(shares, on=keys)
        assert len(both) == len(table) == len(shares)
        assert both[side].to_numpy() == pytest.approx(both["share"].to_numpy(), abs=1e-6)
    # What one channel gains others lose.
    assert table.groupby(["prompt_lang", "layer"])["change"].sum().abs().max() < 1e-5
    assert table["change"].abs().max() > 0.001
    assert (table["q"] >= table["p"] - 1e-9).all() and table["p"].between(0, 1).all()
    figures = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert figures == ["changes_en.pdf", "changes_en.png", "changes_hi.pdf", "changes_hi.png"]
    assert (tmp_path / "out" / "page.html").is_file()
    assert f"of {len(table) // 2} cells changed" in outcome.out
    assert "the least p is 0.12, so the least q of a cell alone is 1" in outcome.out
    channels = pd.read_csv(tmp_path / "out" / "channels.csv", keep_default_na=False)
    of_layers = table.groupby(["prompt_lang", "channel"])["p"].min()
    for row in channels.itertuples():  # a channel over its layers is as sure as its surest layer at most
        assert row.p >= of_layers[row.prompt_lang, row.channel]
    assert len(channels) == len(of_layers)


@pytest.mark.parametrize("kind, name", [("answers", "scores.csv"), ("probe", "changes.csv")])
def test_an_adapter_that_is_zero_changes_exactly_nothing(runs, tmp_path, kind, name):
    outcome = compare(runs, f"{kind}_base", f"{kind}_zero", tmp_path / "out")
    assert (outcome.status, outcome.err) == (0, "")
    table = pd.read_csv(tmp_path / "out" / name, keep_default_na=False)
    assert (table["change"] == 0).all() and (table["p"] == 1).all()
    if kind == "probe":
        assert (
            table["q"] > FALSE_DISCOVERY_RATE
        ).all() and "prompts in hi, n = 12 in 4 contexts (an interval needs 10 contexts): 0 of" in outcome.out
    else:
        outcomes = pd.read_csv(tmp_path / "out" / "outcomes.csv")
        assert (outcomes[["newly_right", "newly_wrong"]] == 0).all(axis=None)


@pytest.mark.parametrize("kind, name", [("answers", "scores.csv"), ("probe", "changes.csv")])
def test_null_runs_are_taken_in(runs, tmp_path, kind, name):
    copies = [shutil.copytree(runs / f"{kind}_zero", tmp_path / f"null_{i}") for i in range(3)]
    outcome = compare(runs, f"{kind}_base", f"{kind}_tuned", tmp_path / "out", "--null", *copies)
    assert (outcome.status, outcome.err) == (0, "") and outcome.out.startswith("Beside 3 null runs")
    table = pd.read_csv(tmp_path / "out" / name, keep_default_na=False)
    # Copies of the base differ by nothing, so the whole change is over them, with its error over contexts alone.
    assert (table["null_change"] == 0).all() and table["excess"].to_numpy() == pytest.approx(table["change"].to_numpy())
    assert (table["p"][table["change"] == 0] == 1).all() and (table["low"] <= table["excess"] + 1e-12).all()
    few = compare(runs, f"{kind}_base", f"{kind}_tuned", tmp_path / "few", "--null", *copies[:2])
    assert_one_error_line(few, "--null", "2 runs", "at least 3")
    other = "probe" if kind == "answers" else "answers"
    mixed = compare(
        runs, f"{kind}_base", f"{kind}_tuned", tmp_path / "few", "--null", *copies[:2], runs / f"{other}_zero"
    )
    assert_one_error_line(mixed, "--null", runs / f"{other}_zero", "QAinference.py", "probe_logit_lens.py")


def test_the_same_command_prints_the_same_again_and_another_is_refused(runs, tmp_path):
    folder = tmp_path / "out"
    first = compare(runs, "probe_base", "probe_tuned", folder)
    before = content_of(folder)
    again = compare(runs, "probe_base", "probe_tuned", folder)
    assert (again.status, again.out) == (0, first.out) and content_of(folder) == before
    assert_one_error_line(compare(runs, "probe_base", "probe_zero", folder), folder, "another command's run")
    assert compare(runs, "probe_base", "probe_zero", folder, "--overwrite").status == 0


def test_languages_of_one_run_alone_are_named_and_left_out(runs, tmp_path, llama, small_matrix):
    argv = ["--model", llama, "--token_languages", small_matrix, "--langs", "en", "--limit", N]
    assert run(probe_logit_lens.main, *argv, "--output_dir", tmp_path / "english").status == 0
    outcome = compare(runs, "probe_base", tmp_path / "english", tmp_path / "out")
    assert (outcome.status, outcome.err) == (0, "")
    assert f"in {runs / 'probe_base'} alone, so left out: hin_Deva" in outcome.out
    table = pd.read_csv(tmp_path / "out" / "changes.csv")
    assert set(table["prompt_lang"]) == {"eng_Latn"} and np.allclose(table["change"], 0, atol=1e-6)


def without(name):
    return lambda folder: damage(folder / name, None)


def other_id(folder: Path):
    table = pd.read_csv(folder / "prompts.csv")
    table.loc[0, "id"] = "another"
    table.to_csv(folder / "prompts.csv", index=False)
    finished_as_it_is(folder)


def other_scores(value):
    def change(folder: Path):
        path = folder / "predictions.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")
        row = json.loads(lines[2])
        row["scores"]["squad_f1"] = value
        lines[2] = json.dumps(row)
        path.write_text("\n".join(lines), encoding="utf-8")
        finished_as_it_is(folder)

    return change


def doubled_line(folder: Path):
    path = folder / "predictions.jsonl"
    content = path.read_bytes()
    path.write_bytes(content + content.split(b"\n")[0] + b"\n")
    finished_as_it_is(folder)


def other_array(name, change):
    def write(folder: Path):
        array = np.load(folder / name)
        np.save(folder / name, change(array))
        finished_as_it_is(folder)

    return write


def with_cell(value):
    def change(array):
        array[3, 1, 2] = value
        return array

    return change


def other_data(folder: Path):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["inputs"]["data_sha256"] = dict.fromkeys(config["inputs"]["data_sha256"], "0" * 64)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def doubled_cell(folder: Path):
    table = pd.read_csv(folder / "language_probs.csv", keep_default_na=False)
    pd.concat([table, table.iloc[[4]]]).to_csv(folder / "language_probs.csv", index=False)
    finished_as_it_is(folder)


def other_matrix(folder: Path):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["inputs"]["token_languages"] = {"method": "langid"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def other_question(folder: Path):
    path = folder / "predictions.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[0] = json.dumps(json.loads(lines[0]) | {"question": "Another?"}) + "\n"
    path.write_text("".join(lines), encoding="utf-8")
    finished_as_it_is(folder)


@pytest.mark.parametrize(
    "kind, change, words",
    [
        ("probe", without("config.json"), ["no config.json"]),
        ("probe", without("metrics.json"), ["not finished", "metrics.json"]),
        ("probe", without("per_prompt.npy"), ["not finished", "per_prompt.npy"]),
        ("probe", other_id, ["'another'", "hin_Deva"]),
        ("probe", other_matrix, ["--token_languages"]),
        ("probe", lambda folder: (folder / "prompts.csv").write_text("row"), ["prompts.csv has changed since"]),
        ("probe", other_array("influence.npy", with_cell(np.nan)), ["influence.npy", "not finite"]),
        ("probe", other_array("influence.npy", lambda a: np.concatenate([a, a[:1]])), ["influence.npy", "tables are"]),
        ("probe", other_array("influence.npy", lambda a: a.astype(int)), ["influence.npy", "int64"]),
        ("probe", doubled_cell, ["language_probs.csv", "a second row"]),
        ("answers", other_question, ["not the same question", "hin_Deva"]),
        ("answers", doubled_line, ["predictions.jsonl:25", "a second prediction"]),
        *(
            ("answers", other_scores(value), ["predictions.jsonl:3", "scores.squad_f1", shown])
            for value, shown in ((float("nan"), "nan"), (7, "7"), (-1, "-1"), ("1", "'1'"), (True, "True"))
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path, kind, change, words):
    folder = shutil.copytree(runs / f"{kind}_tuned", tmp_path / "run")
    change(folder)
    assert_one_error_line(compare(runs, f"{kind}_base", folder, tmp_path / "out"), folder, *words)
    assert not (tmp_path / "out").exists()


def test_how_a_tokenizer_was_named_is_no_difference(runs, tmp_path):
    """A copy of a model (with noise in its weights, say) lies in a folder of its own, with the same tokenizer."""
    copy = shutil.copytree(runs / "probe_tuned", tmp_path / "run")
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["inputs"]["token_languages"]["tokenizer"] = "results/noise/copy-1"
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert compare(runs, "probe_base", copy, tmp_path / "out").status == 0


def test_contexts_come_from_the_data_that_the_run_read(runs, tmp_path):
    copies = [shutil.copytree(runs / name, tmp_path / name) for name in ("probe_base", "probe_tuned")]
    for copy in copies:
        other_data(copy)
    outcome = run(compare_runs.main, *copies, "--output_dir", tmp_path / "out")
    assert_one_error_line(outcome, copies[0], "sample_qa_hi_test.json is not the file that the run read")


def test_a_probe_s_own_shares_are_shares(runs, tmp_path):
    for value in (-0.5, 1.5, np.inf):
        folder = shutil.copytree(runs / "probe_base", tmp_path / f"run {value}")
        other_array("per_prompt.npy", with_cell(value))(folder)
        with pytest.raises(ValueError, match=r"per_prompt\.npy"):
            _ = ProbeRun(folder).per_prompt


def test_a_probe_and_answers_are_refused(runs, tmp_path):
    outcome = compare(runs, "answers_base", "probe_base", tmp_path / "out")
    assert_one_error_line(outcome, "QAinference.py", "probe_logit_lens.py")
    outcome = run(compare_runs.main, runs / "nowhere", runs / "probe_base")
    assert_one_error_line(outcome, runs / "nowhere", "no config.json")


# --- a probe of the questions with one outcome -----------------------------------------------------------------


@pytest.fixture
def tuned_predictions(runs, tmp_path):
    """The tuned model's, of which the first two Hindi answers are made right; none of the base model's is."""
    path = tmp_path / "tuned.jsonl"
    rows = [
        json.loads(line)
        for line in (runs / "answers_tuned" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    for row in [row for row in rows if row["lang"] == "hin_Deva"][:2]:
        row["scores"]["multilingual_exact_match"] = 1.0
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def probe_subset(runs, llama, small_matrix, folder, subset, tuned, *more):
    argv = ["--model", llama, "--token_languages", small_matrix, "--langs", "hi", "en", "--limit", N]
    argv += ["--subset", subset] if subset else []
    argv += ["--base_predictions", runs / "answers_base" / "predictions.jsonl"]
    return run(probe_logit_lens.main, *argv, "--tuned_predictions", tuned, "--output_dir", folder, *more)


def test_a_probe_of_what_is_newly_right(runs, llama, small_matrix, tmp_path, tuned_predictions):
    folder = tmp_path / "probe"
    outcome = probe_subset(runs, llama, small_matrix, folder, "newly_right", tuned_predictions)
    assert (outcome.status, outcome.err) == (0, "") and "no question is newly_right in eng_Latn" in outcome.out
    of_base = pd.read_csv(runs / "probe_base" / "prompts.csv")
    expected = of_base[of_base["prompt_lang"] == "hin_Deva"].head(2)
    prompts = pd.read_csv(folder / "prompts.csv")
    assert list(prompts["id"]) == list(expected["id"]) and set(prompts["prompt_lang"]) == {"hin_Deva"}
    # The same prompts as in the whole probe, so the same mass of what is no language; shares are those of a set.
    whole = np.load(runs / "probe_base" / "per_prompt.npy", allow_pickle=False)[expected.index]
    part = np.load(folder / "per_prompt.npy", allow_pickle=False)
    assert part[..., -4:] == pytest.approx(whole[..., -4:], abs=1e-6)
    assert part.sum(axis=2) == pytest.approx(1, abs=1e-5)


def test_the_outcomes_share_all_questions_out(runs, llama, small_matrix, tmp_path, tuned_predictions):
    outcome = probe_subset(runs, llama, small_matrix, tmp_path / "wrong", "both_wrong", tuned_predictions)
    assert outcome.status == 0 and len(pd.read_csv(tmp_path / "wrong" / "prompts.csv")) == 2 * N - 2
    outcome = probe_subset(runs, llama, small_matrix, tmp_path / "right", "both_right", tuned_predictions)
    assert_one_error_line(outcome, "both_right", f"none of the {2 * N} questions")
    assert not (tmp_path / "right").exists()
    # Without a subset all are read, and the page knows their outcomes.
    outcome = probe_subset(runs, llama, small_matrix, tmp_path / "all", None, tuned_predictions, "--grid", N)
    assert outcome.status == 0 and len(pd.read_csv(tmp_path / "all" / "prompts.csv")) == 2 * N
    outcomes = [row["outcome"] for row in ProbeRun(tmp_path / "all").grid.prompts]
    assert outcomes.count("newly_right") == 2 and outcomes.count("both_wrong") == 2 * N - 2


@pytest.mark.parametrize(
    "content, words",
    [
        (None, ["No such file"]),
        ("{}\n", [":1:", "lang, id and scores"]),
        ("not JSON\n", [":1:"]),
        ("", ["no prediction for id", "hin_Deva", "24 of 24"]),
        (lambda rows: [*rows, rows[0]], [":25:", "a second prediction"]),
        (
            lambda rows: [{**rows[0], "dataset": "xquad"}, *rows[1:]],
            ["the dataset of id", "answers to other questions"],
        ),
        (lambda rows: [{**rows[0], "context": "Another."}, *rows[1:]], ["the context of id", "'Another.'"]),
        (lambda rows: [{**rows[0], "scores": {"multilingual_exact_match": None}}, *rows[1:]], [":1:", "is None"]),
    ],
)
def test_predictions_that_do_not_say_the_outcome_are_refused(runs, llama, small_matrix, tmp_path, content, words):
    path = tmp_path / "tuned.jsonl"
    if callable(content):
        lines = (runs / "answers_tuned" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        content = "".join(json.dumps(row) + "\n" for row in content([json.loads(line) for line in lines]))
    if content is not None:
        path.write_text(content, encoding="utf-8")
    outcome = probe_subset(runs, llama, small_matrix, tmp_path / "probe", "newly_right", path)
    assert_one_error_line(outcome, path, *words)
    assert not (tmp_path / "probe").exists()


def test_a_subset_needs_both_predictions(llama):
    outcome = run(probe_logit_lens.main, "--model", llama, "--subset", "newly_right")
    assert_one_error_line(outcome, "--base_predictions", "--tuned_predictions")


def test_a_share_that_all_null_runs_have_next_to_nothing_of_is_no_finding():
    """[prompt, layer, channel] of A, B and four null runs: B has .004 of one channel, and half of the other is gone."""
    rng = np.random.default_rng(0)
    values = [np.stack([1e-7 * rng.random((20, 1)), 0.8 + 0.01 * rng.random((20, 1))], axis=2) for _ in range(6)]
    values[1] += np.array([0.004, -0.5])
    cells, channels = compare_runs.changes_of_probes(values, list(range(20)), ["fin_Latn", "eng_Latn"], 0)
    for table in (cells, channels):
        q = table.set_index("channel")["q"]
        assert q["fin_Latn"] > 0.05 > q["eng_Latn"]


def test_beside_null_runs_a_change_is_paired_by_context_and_beside_their_mean():
    """[question, measure] of A, B and three null runs; the questions of a context are alike."""
    rng = np.random.default_rng(4)
    contexts = np.repeat(np.arange(12), 3).tolist()
    values = [np.repeat(rng.normal(size=(12, 2)), 3, axis=0) for _ in range(5)]
    found = compare_runs.beside_null(values, contexts)
    nulls = np.stack(values[2:]) - values[0]
    assert found["null_change"] == pytest.approx(nulls.reshape(-1, 2).mean(axis=0))
    assert found["excess"] == pytest.approx((values[1] - np.mean(values[2:], axis=0)).mean(axis=0))
    of_context = against_null((values[1] - values[0])[::3], nulls[:, ::3], list(range(12)))  # a context is one value
    assert found["low"] == pytest.approx(of_context["low"]) and found["p"] == pytest.approx(of_context["p"])
