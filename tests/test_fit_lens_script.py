"""fit_lens.py from its command line to a lens that the probe reads with: whole, stopped, and with bad input."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

import fit_lens
import plot_figures
import probe_logit_lens
from tests.scripts import assert_one_error_line, assert_stopped, content_of, run
from utils.figures import layers
from utils.lens import fitting, tuned
from utils.lens.probe_runs import ProbeRun

pytestmark = pytest.mark.usefixtures("one_commit", "one_thread")
FIT = ["--langs", "en", "hi", "--corpus", "sample_parallel", "--tokens", 24, "--limit", 12, "--held_out", 4]
PROBE = ["--langs", "en", "hi", "--limit", 2, "--batch_size", 2]


@pytest.fixture(scope="module", autouse=True)
def saved_at_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "SECONDS_BETWEEN_SAVES", -1)
        patch.setattr(fitting, "TEXTS_OF_A_BATCH", 5)
        yield


@pytest.fixture
def titles(monkeypatch):
    """Titles of the figures that would be written; to write them takes nine tenths of a tiny run's time."""
    seen = []
    monkeypatch.setattr(layers, "save_figure", lambda figure, path: seen.append(figure._suptitle.get_text()) or path)
    return seen


@pytest.fixture(scope="module", params=["tuned", "jacobian"])
def finished(request, tmp_path_factory, llama):
    """A lens that nothing disturbed: its kind, its folder, and what was written on the screen. Not to be changed."""
    folder = tmp_path_factory.mktemp("fits") / request.param
    outcome = run(fit_lens.main, "--lens", request.param, "--model", llama, "--steps", 6, *FIT, "--output_dir", folder)
    assert (outcome.status, outcome.err) == (0, "")
    return request.param, folder, outcome.out


def fit(kind, model, folder, *changes):
    return run(fit_lens.main, "--lens", kind, "--model", model, "--steps", 6, *FIT, "--output_dir", folder, *changes)


def test_a_fit_writes_its_lens_and_its_loss(finished, llama, monkeypatch):
    kind, folder, out = finished
    names = {"config.json", "lens.safetensors", "held_out.csv", "loss.png", "loss.pdf", "metrics.json"}
    assert {path.name for path in folder.iterdir()} == names | ({"steps.csv"} if kind == "tuned" else set())
    tensors = load_file(folder / "lens.safetensors")
    assert tensors["matrices"].shape == (3, 32, 32) and ("biases" in tensors) == (kind == "tuned")
    table = pd.read_csv(folder / "held_out.csv")
    assert list(table.columns) == ["lang", "layer", "kl_logit", "kl_lens", "n"]
    assert table["lang"].unique().tolist() == ["eng_Latn", "hin_Deva"] and len(table) == 2 * 4
    assert (table.loc[table["layer"] == 3, ["kl_logit", "kl_lens"]] == 0).all(axis=None)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["texts"] == {"eng_Latn": 6, "hin_Deva": 6} and metrics["held_out_texts"] == 4
    assert "bits a token, on held-out text" in out and f"lens: {folder}" in out
    # the same command again computes nothing, and says the same
    monkeypatch.setattr(fitting, "fit_tuned", None)
    monkeypatch.setattr(fitting, "fit_jacobian", None)
    assert fit(kind, llama, folder).out == out


def test_a_fit_that_was_stopped_ends_with_the_same_bytes(finished, llama, tmp_path, monkeypatch):
    kind, folder, _ = finished
    owner, name = (tuned.TunedFit, "step") if kind == "tuned" else (fitting, "text_jacobians")
    whole = getattr(owner, name)
    calls = []

    def stopped_at_the_fourth(*args, **options):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stopped_at_the_fourth)
        assert_stopped(fit(kind, llama, tmp_path / "run"), tmp_path / "run")
    if kind == "tuned":  # and once more, while the states are collected
        shutil.rmtree(tmp_path / "run")
        sample_of, n_batches = fitting.sample_of, []
        with monkeypatch.context() as patch:
            patch.setattr(
                fitting,
                "sample_of",
                lambda *a: sample_of(*a) if not n_batches.append(1) and len(n_batches) < 3 else 1 / 0,
            )
            with pytest.raises(ZeroDivisionError):
                fit(kind, llama, tmp_path / "run")
        assert len(n_batches) == 3
    assert fit(kind, llama, tmp_path / "run").status == 0
    same = ("lens.safetensors", "held_out.csv", "config.json")
    found, expected = content_of(tmp_path / "run"), content_of(folder)
    assert found.keys() == expected.keys() and [name for name in same if found[name] != expected[name]] == []


def test_the_probe_reads_with_it(finished, llama, small_matrix, tmp_path, titles):
    kind, lens, _ = finished
    argv = ["--model", llama, "--token_languages", small_matrix, *PROBE]
    plain = run(probe_logit_lens.main, *argv, "--output_dir", tmp_path / "plain")
    named = {"tuned": "tuned lens fitted on en hi", "jacobian": "Jacobian lens fitted on en hi"}[kind]
    assert plain.status == 0 and not any(named in title for title in titles)
    titles.clear()
    read = run(probe_logit_lens.main, *argv, "--lens", lens, "--output_dir", tmp_path / "read")
    assert (read.status, read.err) == (0, "") and all(named in " ".join(title.split()) for title in titles)
    one, other = (ProbeRun(tmp_path / name) for name in ("plain", "read"))
    assert one.lens == {} and other.lens["kind"] == kind and other.lens["langs"] == ["eng_Latn", "hin_Deva"]
    last = one.table["layer"] == 3
    for column in ("share", "prob", "null_share"):
        both = [table.table[column].to_numpy() for table in (one, other)]
        assert np.allclose(both[0][last], both[1][last], atol=1e-6), column  # the model's own
        assert np.abs(both[0][~last] - both[1][~last]).max() > 1e-3, column  # a null of its own
    assert json.loads((other.path / "metrics.json").read_text())["self_check_total_variation"]["last_layer"] < 1e-4


def test_what_a_lens_is_not_for_is_refused(finished, llama, adapter, bloom, small_matrix, tmp_path, titles):
    _, lens, _ = finished
    argv = ["--token_languages", small_matrix, *PROBE, "--lens", lens, "--output_dir", tmp_path / "run"]
    assert_one_error_line(run(probe_logit_lens.main, "--model", bloom, *argv), lens, "model_type is llama, not bloom")
    with_adapter = ["--model", llama, "--adapter", adapter, *argv]
    assert_one_error_line(run(probe_logit_lens.main, *with_adapter), "without an adapter", "--lens_of_base")
    assert not (tmp_path / "run").exists()
    assert run(probe_logit_lens.main, *with_adapter, "--lens_of_base").status == 0


@pytest.mark.parametrize(
    "changes, words",
    [
        (["--langs", "en", "eng_Latn"], ["language given twice: eng_Latn"]),
        (["--langs", "en", "sw"], ["sample/parallel: no sentences in swh_Latn", "choose from"]),
        (["--corpus", "nowhere"], ["nowhere: no such folder"]),
        (["--tokens", 200], ["eng_Latn: 5 of its 24 sentences give no text of 200 tokens"]),
        (["--tokens", 2000], ["--tokens 2000: the model reads at most 1024"]),
    ],
)
def test_bad_input_is_one_line(llama, tmp_path, changes, words):
    assert_one_error_line(fit("tuned", llama, tmp_path / "run", *changes), *words)
    assert not (tmp_path / "run").exists()


def test_a_jacobian_needs_tokens(llama, tmp_path):
    outcome = fit("jacobian", llama, tmp_path / "run", "--tokens", 17)
    assert_one_error_line(outcome, "--tokens 17: a jacobian lens needs texts of at least 18")


def test_its_figure_is_drawn_again(finished, tmp_path):
    _, folder, _ = finished
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "loss.png").unlink()
    outcome = run(plot_figures.main, copy)
    assert outcome.status == 0 and (copy / "loss.png").stat().st_size > 10_000
