"""Run folders, atomic writes, tables, and the standard error of a mean over prompts that share contexts."""

import argparse
import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils import runs
from utils.runs import (
    PROJECT_DIR,
    RunDirectory,
    configuration,
    default_output_dir,
    read_arrays,
    sha256_of_file,
    write_array,
    write_arrays,
    write_atomically,
    write_json,
    write_table,
)
from utils.uncertainty import standard_error

RUN = {"script": "probe", "arguments": {"langs": ["en", "or"], "limit": 8}, "inputs": {"model": "abc"}}


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def other_run(part="arguments", **changes):
    return {**RUN, part: {**RUN[part], **changes}}


# Run folders


def test_a_run_starts_with_its_configuration(tmp_path):
    run = RunDirectory(tmp_path / "a/b", RUN)
    assert content_of(tmp_path) == {"a/b/config.json": (json.dumps(RUN, indent=2) + "\n").encode()}
    assert run.configuration == RUN
    assert not run.finished


def test_an_empty_folder_is_taken(tmp_path):
    RunDirectory(tmp_path, RUN)
    assert list(content_of(tmp_path)) == ["config.json"]


def test_a_stopped_run_goes_on_with_what_it_has(tmp_path):
    RunDirectory(tmp_path, {**RUN, "commit": "first"})
    (tmp_path / "rows.csv").write_text("1\n")
    before = content_of(tmp_path)
    # another commit or other libraries don't make it another run, and the folder keeps saying what began it
    run = RunDirectory(tmp_path, {**RUN, "commit": "second"})
    assert not run.finished and run.configuration["commit"] == "first"
    assert content_of(tmp_path) == before


def test_tuples_in_a_configuration_are_the_stored_lists(tmp_path):
    arguments = {"langs": ("en", "or"), "limit": 8}
    RunDirectory(tmp_path, {**RUN, "arguments": arguments})
    RunDirectory(tmp_path, {**RUN, "arguments": arguments})


def test_a_finished_run_has_its_metrics(tmp_path):
    RunDirectory(tmp_path, RUN).finish({"f1": 0.5, "name": "ଓଡ଼ିଆ"})
    run = RunDirectory(tmp_path, RUN)
    assert run.finished and run.read_metrics() == {"f1": 0.5, "name": "ଓଡ଼ିଆ"}


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (other_run(limit=9), "limit was 8, is 9"),
        (other_run(langs=["en"]), r"langs was \['en', 'or'\], is \['en'\]"),
        (other_run(seed=1), "seed was None, is 1"),
        (other_run("inputs", model="abd"), "model was 'abc', is 'abd'"),
        ({**RUN, "script": "train"}, "script was 'probe', is 'train'"),
    ],
)
def test_another_command_is_refused_and_the_run_is_left_alone(tmp_path, other, difference):
    run = RunDirectory(tmp_path, RUN)
    (tmp_path / "rows.csv").write_text("1\n")
    run.finish({"n": 1})
    before = content_of(tmp_path)
    with pytest.raises(ValueError, match=rf"holds another command's run \({difference}\).*--overwrite") as error:
        RunDirectory(tmp_path, other)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert content_of(tmp_path) == before


def test_overwrite_starts_anew(tmp_path):
    RunDirectory(tmp_path, RUN).finish({"n": 1})
    (tmp_path / "rows.csv").write_text("1\n")
    (tmp_path / "checkpoints/1").mkdir(parents=True)
    (tmp_path / "checkpoints/1/state.npz").write_bytes(b"s")
    (tmp_path / ".rows.csv.7.tmp").write_text("half")
    other = other_run(limit=9)
    run = RunDirectory(tmp_path, other, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    assert not run.finished and run.configuration == other


@pytest.mark.parametrize("name", ["model", "adapter", "deep/er"])
def test_overwrite_removes_nothing_that_the_command_reads(tmp_path, name):
    run = tmp_path / "run"
    RunDirectory(run, RUN).finish({"n": 1})
    (run / name).mkdir(parents=True)
    (run / name / "weights").write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(run / name)
    before = content_of(tmp_path)
    for given in (run / name, link, run / name / ".." / Path(name).name, run):
        with pytest.raises(ValueError, match=f"--overwrite: {run} holds what the command reads .--model {given}"):
            RunDirectory(run, other_run(model=str(given)), overwrite=True)
    with pytest.raises(ValueError, match="holds what the command reads"):
        RunDirectory(run, other_run(files=["nowhere", str(link)]), overwrite=True)
    assert content_of(tmp_path) == before


def test_overwrite_of_a_run_inside_of_what_the_command_reads_is_refused(tmp_path):
    RunDirectory(tmp_path / "model" / "run", RUN)
    before = content_of(tmp_path)
    with pytest.raises(ValueError, match="lies in what the command reads"):
        RunDirectory(tmp_path / "model" / "run", other_run(model=str(tmp_path / "model")), overwrite=True)
    assert content_of(tmp_path) == before
    RunDirectory(tmp_path / "model" / "run", other_run(langs=[str(tmp_path / "model")]), overwrite=True)  # no path


def test_overwrite_of_another_script_s_run_is_refused(tmp_path):
    RunDirectory(tmp_path, RUN).finish({"n": 1})
    before = content_of(tmp_path)
    with pytest.raises(ValueError, match="holds a run of probe, not of answers"):
        RunDirectory(tmp_path, {**RUN, "script": "answers"}, overwrite=True)
    assert content_of(tmp_path) == before


OLD_RUN = {"rows.csv": b"1\n", "folder/a.npz": b"a", "metrics.json": b"{}", "config.json": json.dumps(RUN).encode()}


@pytest.mark.parametrize("stop_after", range(7))
def test_what_overwrite_replaces_is_not_lost_if_it_is_stopped_before_the_new_run_began(
    tmp_path, monkeypatch, stop_after
):
    for name, content in OLD_RUN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    left = stop_after

    def stopping(really):
        def stopped(*args, **kwargs):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return really(*args, **kwargs)

        return stopped

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stopping(Path.rename))
        patch.setattr(runs, "write_json", stopping(runs.write_json))
        patch.setattr(runs.shutil, "rmtree", stopping(runs.shutil.rmtree))
        if stop_after < 6:
            with pytest.raises(KeyboardInterrupt):
                RunDirectory(tmp_path, other_run(limit=9), overwrite=True)
        else:
            RunDirectory(tmp_path, other_run(limit=9), overwrite=True)
    if stop_after < 5:  # four files and folders are moved, then the configuration is written
        assert not runs.is_finished(tmp_path) or stop_after == 0
        assert RunDirectory(tmp_path, RUN).finished
        assert content_of(tmp_path) == OLD_RUN
    else:
        RunDirectory(tmp_path, other_run(limit=9))
        assert list(content_of(tmp_path)) == ["config.json"]


def test_overwrite_of_nothing_is_a_start(tmp_path):
    RunDirectory(tmp_path / "new", RUN, overwrite=True)
    assert list(content_of(tmp_path)) == ["new/config.json"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["thesis.tex", ".hidden", "folder/file", "metrics.json", "config.json.bak"])
def test_a_folder_with_foreign_files_is_refused_and_left_untouched(tmp_path, overwrite, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = content_of(tmp_path)
    with pytest.raises(ValueError, match=f"holds '{name.split('/')[0]}' and no config.json; choose another folder"):
        RunDirectory(tmp_path, RUN, overwrite)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_instead_of_a_folder_is_refused_and_left_untouched(tmp_path, overwrite):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ValueError, match="file: a file, not a folder"):
        RunDirectory(path, RUN, overwrite)
    assert path.read_text() == "mine"


def test_a_run_killed_while_it_wrote_its_configuration_starts_again(tmp_path):
    (tmp_path / ".config.json.123.tmp").write_text('{"scr')
    assert RunDirectory(tmp_path, RUN).configuration == RUN


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_model_folder_is_no_run_of_ours(tmp_path, overwrite):
    (tmp_path / "config.json").write_text('{"model_type": "bloom"}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = content_of(tmp_path)
    with pytest.raises(ValueError):
        RunDirectory(tmp_path, RUN, overwrite)
    assert content_of(tmp_path) == before


def test_overwrite_takes_away_a_saved_model_inside_the_run(tmp_path):
    RunDirectory(tmp_path, RUN)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/config.json").write_text("{}")
    RunDirectory(tmp_path, RUN, overwrite=True)
    assert list(content_of(tmp_path)) == ["config.json"]


def test_a_damaged_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"script"')
    with pytest.raises(ValueError, match=r"config\.json"):
        RunDirectory(tmp_path, RUN)


def test_a_refused_folder_keeps_its_temporary_files(tmp_path):
    RunDirectory(tmp_path, RUN)
    (tmp_path / "below").mkdir()
    for name in (".a.csv.123.tmp", "below/.b.csv.9.tmp"):
        (tmp_path / name).write_text("half")
    before = content_of(tmp_path)
    for other, overwrite in ((other_run(limit=9), False), ({**RUN, "script": "answers"}, True)):
        with pytest.raises(ValueError):
            RunDirectory(tmp_path, other, overwrite)
    assert content_of(tmp_path) == before
    (tmp_path / ".mine.tmp").write_text("no writer of ours has such names")
    RunDirectory(tmp_path, RUN)
    assert set(content_of(tmp_path)) == {"config.json", ".mine.tmp"}


def finished_run(folder):
    run = RunDirectory(folder, RUN)
    (folder / "rows.csv").write_text("1\n")
    (folder / "figures").mkdir()
    (folder / "figures" / "a.png").write_bytes(b"a")
    (folder / "train_log.csv").write_text("seconds\n1\n")
    run.finish({"n": 1})
    return run


def test_a_finished_run_whose_files_are_gone_is_not_finished(tmp_path):
    run = finished_run(tmp_path)
    assert run.finished and run.read_metrics() == {"n": 1}
    for name in ("rows.csv", "train_log.csv"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        assert not run.finished
        with pytest.raises(ValueError, match=f"not finished: no {name} in it"):
            runs.require_finished(tmp_path)
        again = RunDirectory(tmp_path, RUN)
        assert not again.finished
        (tmp_path / name).write_bytes(content)
        again.finish({"n": 1})
        runs.require_finished(tmp_path)


def test_a_finished_run_whose_files_have_changed_is_refused(tmp_path):
    run = finished_run(tmp_path)
    (tmp_path / "rows.csv").write_text("2\n")
    assert not run.finished
    before = content_of(tmp_path)
    with pytest.raises(ValueError, match=r"rows\.csv has changed since the run was finished; .*--overwrite"):
        RunDirectory(tmp_path, RUN)
    with pytest.raises(ValueError, match=r"rows\.csv has changed since the run was finished"):
        runs.require_finished(tmp_path)
    assert content_of(tmp_path) == before
    assert not RunDirectory(tmp_path, RUN, overwrite=True).finished


def test_figures_can_be_drawn_anew_and_logs_have_other_times(tmp_path):
    run = finished_run(tmp_path)
    (tmp_path / "figures" / "a.png").write_bytes(b"b")
    (tmp_path / "train_log.csv").write_text("seconds\n2\n")
    assert run.finished and RunDirectory(tmp_path, RUN).finished


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}', '{"files": {"a": 1}}', "null", "[" * 10**5])
def test_metrics_that_are_none_are_named(tmp_path, content):
    RunDirectory(tmp_path, RUN)
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=r"metrics\.json: not"):
        RunDirectory(tmp_path, RUN)


# What a configuration holds


def test_a_configuration_says_what_was_asked_and_with_what(tmp_path):
    args = argparse.Namespace(model=Path("a/b"), limit=None, langs=["en"], output_dir="x", overwrite=True)
    stored = configuration("probe", args, {"checksum": "c"})
    assert stored["script"] == "probe"
    assert stored["arguments"] == {"langs": ["en"], "limit": None, "model": "a/b"}
    assert stored["inputs"] == {"checksum": "c"}
    assert stored["versions"]["numpy"] == np.__version__ and stored["versions"]["python"]
    assert "commit" in stored
    RunDirectory(tmp_path / "run", stored)  # JSON


def test_the_default_folder_is_the_same_for_the_same_arguments_only():
    def folder(**changes):
        arguments = {"model": "m", "limit": 8, "output_dir": None, "overwrite": False, **changes}
        return default_output_dir("probe", argparse.Namespace(**arguments), "m", "xquad")

    assert folder().parent == PROJECT_DIR / "results"
    assert folder().name.startswith("probe-m-xquad-")
    assert folder() == folder(overwrite=True) == folder(output_dir=Path("elsewhere"))
    assert folder() != folder(limit=9)


def test_the_checksum_of_a_file(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    assert sha256_of_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"a" * 3_000_000)  # several blocks
    assert sha256_of_file(path) == hashlib.sha256(b"a" * 3_000_000).hexdigest()


# Writes


def no_space(file):
    file.write(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(file):
    file.write(b"half")
    raise KeyboardInterrupt


@pytest.mark.parametrize(("writer", "error"), [(no_space, OSError), (interrupted, KeyboardInterrupt)])
@pytest.mark.parametrize("old", [{"table.csv": b"old"}, {}])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, writer, error, old):
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error):
        write_atomically(tmp_path / "table.csv", writer)
    assert content_of(tmp_path) == old


def test_a_disk_that_is_full_at_the_end_of_the_write_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "a.json", {"new": True})
    assert content_of(tmp_path) == {"a.json": b"old"}


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"

    write_atomically(path, write)
    assert content_of(tmp_path) == {"a.json": b"new"}


def test_json_is_utf8_as_written(tmp_path):
    write_json(tmp_path / "a.json", {"ଓଡ଼ିଆ": ["é", 0.1]})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "ଓଡ଼ିଆ": [\n    "é",\n    0.1\n  ]\n}\n'.encode()


IDS = ["NA", "null", "None", "nan", "", "a\rb", "a\nb", "a\r\nb", "\u2028", "\u0085", '"', "1e3", "007", " x "]


def test_texts_survive_a_table_whatever_they_are(tmp_path):
    write_table(tmp_path / "t.csv", pd.DataFrame({"row": range(len(IDS)), "id": IDS}))
    back = pd.read_csv(tmp_path / "t.csv", dtype={"id": str}, keep_default_na=False)
    assert list(back["id"]) == IDS and list(back["row"]) == list(range(len(IDS)))


def test_float32_survives_a_table(tmp_path):
    rng = np.random.default_rng(0)
    values = np.concatenate([
        rng.random(1000, np.float32),
        np.exp(rng.normal(0, 20, 1000)).astype(np.float32),
        np.array([0, 1, 1 / 3, 1e-38, 1e-45, np.finfo(np.float32).max, np.float32(0.1)], np.float32),
    ])  # fmt: skip
    texts = ["ଓଡ଼ିଆ", 'a,"b"', "line\nbreak"]
    table = pd.DataFrame({"prob": values, "n": np.arange(len(values)), "token": (texts * len(values))[: len(values)]})
    write_table(tmp_path / "t.csv", table)
    back = pd.read_csv(tmp_path / "t.csv", dtype={"prob": np.float32}, keep_default_na=False)
    assert np.array_equal(back["prob"].to_numpy(), values)
    assert back["n"].tolist() == table["n"].tolist() and back["token"].tolist() == table["token"].tolist()


def test_a_table_s_bytes(tmp_path):
    table = pd.DataFrame({"lang": ["ory_Orya", "ଓ"], "prob": np.array([0.1, np.nan], np.float32), "n": [3, 4]})
    write_table(tmp_path / "t.csv", table)
    assert (tmp_path / "t.csv").read_bytes() == "lang,prob,n\nory_Orya,0.100000001,3\nଓ,,4\n".encode()


def test_arrays(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_array(tmp_path / "a.npy", array)
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)
    write_arrays(tmp_path / "b.npz", one=array, two=array.T)
    back = read_arrays(tmp_path / "b.npz")
    assert sorted(back) == ["one", "two"] and np.array_equal(back["two"], array.T)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "b.npz"]


# The standard error


def slow_standard_error(values, clusters):
    """One number at a time, from the docstring's formula."""
    n, labels = len(values), sorted(set(clusters))
    mean = sum(values) / n
    total = 0.0
    for label in labels:
        total += sum(value - mean for value, cluster in zip(values, clusters) if cluster == label) ** 2
    return (len(labels) / (len(labels) - 1) * total) ** 0.5 / n


@pytest.fixture
def values():
    return np.random.default_rng(0).gamma(2, size=(30, 4, 3))


def test_with_a_cluster_for_every_row_it_is_the_textbook_s(values):
    expected = values.std(axis=0, ddof=1) / np.sqrt(30)
    assert standard_error(values, list(range(30))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", [str, int, lambda label: f"context {label % 7}"])
def test_with_clusters_it_equals_a_slow_loop(values, name):
    # of unequal sizes, in no order, one of them a single row
    clusters = [name(label) for label in np.random.default_rng(1).integers(0, 8, 29)] + [name(99)]
    result = standard_error(values, clusters)
    assert result.shape == (4, 3)
    for place in np.ndindex(4, 3):
        assert result[place] == pytest.approx(
            slow_standard_error(values[(slice(None), *place)].tolist(), clusters), rel=1e-12
        )


def test_a_copy_of_every_row_in_its_cluster_changes_nothing(values):
    # Twice the rows double each cluster's sum, so quadruple the sum of squares; n^2 quadruples with it.
    clusters = [i // 3 for i in range(30)]
    twice = standard_error(np.concatenate([values, values]), clusters * 2)
    assert twice == pytest.approx(standard_error(values, clusters), rel=1e-12)
    # whereas copies that pass for independent draws would shrink it
    naive = standard_error(np.concatenate([values, values]), list(range(60)))
    assert (naive < 0.75 * standard_error(values, list(range(30)))).all()


def test_rows_that_agree_within_contexts_have_the_error_of_their_contexts():
    contexts = np.random.default_rng(2).normal(size=10)
    rows = np.repeat(contexts, 5)
    expected = contexts.std(ddof=1) / np.sqrt(10)
    assert standard_error(rows, [i // 5 for i in range(50)]) == pytest.approx(expected, rel=1e-12)


def test_one_cluster_tells_nothing(values):
    result = standard_error(values, ["one"] * 30)
    assert result.shape == (4, 3) and np.isnan(result).all()
    assert np.isnan(standard_error(np.array([1.0]), ["one"]))


def test_float32_values_are_summed_in_float64():
    values = (1000 + np.random.default_rng(3).random(5000)).astype(np.float32)
    expected = values.astype(np.float64).std(ddof=1) / np.sqrt(5000)
    assert standard_error(values, list(range(5000))) == pytest.approx(expected, rel=1e-9)
