"""Each script from its command line to its files: a whole run, a stopped one, and one with bad input."""

import contextlib
import functools
import http.server
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import logit_lens_tokenid_to_lang
import plot_figures
import probe_logit_lens
from tests.scripts import (
    COMMIT,
    PARALLEL,
    PROJECT_DIR,
    Outcome,
    assert_one_error_line,
    assert_stopped,
    content_of,
    damage,
    draw_one_blank,
    forked,
    full_disk_after,
    run,
    save_adapter,
    status_of,
)
from utils import runs
from utils.checksums import sha256_of_file
from utils.data.corpora import read_corpus, write_word_counts
from utils.data.examples import load_examples
from utils.figures import layers
from utils.languages import short_code
from utils.lens import null_prompts, reading, records
from utils.lens.distributions import Vocabulary
from utils.lens.probe_runs import ProbeRun
from utils.models import arithmetic, loading
from utils.models.offline import OFFLINE_MODEL
from utils.token_languages import from_corpus, matrix
from utils.token_languages.matrix import TokenLanguages

pytestmark = pytest.mark.usefixtures("one_commit", "one_thread")

LANGS, SHORT = ["hin_Deva", "ory_Orya", "eng_Latn"], ["hi", "or", "en"]
N_PROMPTS, N_LAYERS, TOP_K = 5, 4, 7  # of the tiny models: three layers and what enters the first
ARGUMENTS = ["--langs", *SHORT, "--limit", N_PROMPTS, "--batch_size", 2, "--top_k", TOP_K, "--grid", 1]
N_BATCHES = 12  # of those arguments: three a language, and one a language's grid
TABLES = {
    "language_probs.csv": [
        *("prompt_lang", "layer", "channel", "share", "share_low", "share_high"),
        *("null_share", "tokens", "prob", "floor", "stderr", "n", "n_contexts"),
    ],
    "groups.csv": [
        "prompt_lang",
        "layer",
        "group",
        "share",
        "share_low",
        "share_high",
        "null_share",
        "n",
        "n_contexts",
    ],
    "layers.csv": ["prompt_lang", "layer", "entropy_bits", "kl_to_final_bits", "top1_agreement", "n"],
    "top_tokens.csv": ["prompt_lang", "layer", "rank", "token_id", "token", "prob", "channel"],
    "prompts.csv": ["row", "id", "prompt_lang"],
}
FIGURES = {"overview", *(f"{kind}_{lang}" for kind in ("lines", "heatmap", "grid") for lang in SHORT)}


def tables_of(folder: Path) -> dict[str, bytes]:
    """The content of a run's folder but for its figures."""
    return {name: content for name, content in content_of(folder).items() if not name.startswith("figures/")}


def read(folder: Path, table: str) -> pd.DataFrame:
    return pd.read_csv(folder / table, keep_default_na=False, na_values={"stderr": [""]})


def assert_same_numbers(one: Path, other: Path) -> None:
    # Rounding moves shares of close languages more than it moves probabilities.
    assert np.load(one / "per_prompt.npy") == pytest.approx(np.load(other / "per_prompt.npy"), abs=5e-3)
    shares = ["share", "share_low", "share_high", "tokens", "null_share"]
    for table, keys in {"language_probs.csv": "channel", "groups.csv": "group"}.items():
        a, b = read(one, table), read(other, table)
        assert a[["prompt_lang", "layer", keys]].equals(b[["prompt_lang", "layer", keys]])
        assert a["share"].to_numpy(float) == pytest.approx(b["share"].to_numpy(float), abs=5e-3)
    for table, numbers in {
        "language_probs.csv": ["prob", "floor", "stderr"],
        "layers.csv": ["entropy_bits", "kl_to_final_bits", "top1_agreement"],
        "top_tokens.csv": ["prob"],
        "prompts.csv": [],
    }.items():
        a, b = (read(folder, table).drop(columns=shares, errors="ignore") for folder in (one, other))
        unstable = ["token_id", "token", "channel"] if table == "top_tokens.csv" else []  # of equal tokens, either
        pd.testing.assert_frame_equal(a.drop(columns=numbers + unstable), b.drop(columns=numbers + unstable))
        np.testing.assert_allclose(a[numbers], b[numbers], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, bloom, small_matrix):
    """A probe that nothing disturbed: its folder, and what it wrote on the screen. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    argv = ["--model", bloom, "--token_languages", small_matrix, *ARGUMENTS, "--output_dir", folder]
    outcome = run(probe_logit_lens.main, *argv)
    assert (outcome.status, outcome.err) == (0, "")
    return SimpleNamespace(folder=folder, out=outcome.out)


@pytest.fixture
def probe(tmp_path, bloom, small_matrix):
    """Function that runs the finished run's command, with changes, into tmp_path/run."""
    argv = ["--model", bloom, "--token_languages", small_matrix, *ARGUMENTS, "--output_dir", tmp_path / "run"]
    return lambda *changes: run(probe_logit_lens.main, *argv, *changes)


@pytest.fixture
def without_figures(monkeypatch):
    monkeypatch.setattr(layers, "draw_probe_run", draw_one_blank)


@pytest.fixture
def drawn_before(finished, monkeypatch):
    """Figures are the finished run's, of whose tables' bytes they are to be drawn: another test draws them twice."""

    def draw(folder: Path) -> list[Path]:
        drawn_of = content_of(finished.folder)
        there = {name: content for name, content in content_of(folder).items() if not name.startswith("records/")}
        assert {name: drawn_of[name] for name in there} == there
        assert there.keys() >= {*TABLES, "grid.npz", "grid.json", "config.json"}
        shutil.copytree(finished.folder / "figures", folder / "figures", dirs_exist_ok=True)
        return []

    monkeypatch.setattr(layers, "draw_probe_run", draw)


# --- the matrix ------------------------------------------------------------------------------------------------


def test_a_matrix_of_a_corpus_folder(small_matrix, bloom, tiny_tokenizer, monkeypatch):
    assert {p.name for p in small_matrix.iterdir()} == {"probs.npz", "tokens.npz", "channels.json", "config.json"}
    probs = sp.load_npz(small_matrix / "probs.npz")
    channels = json.loads((small_matrix / "channels.json").read_text(encoding="utf-8"))
    assert channels == [*sorted(p.stem for p in PARALLEL.iterdir()), "special", "byte", "zxx", "und"]
    assert probs.shape == (len(tiny_tokenizer), 34) and probs.format == "csr" and probs.dtype == np.float32
    assert probs.sum(axis=1) == pytest.approx(1, abs=1e-5)
    config = json.loads((small_matrix / "config.json").read_text(encoding="utf-8"))
    assert (config["method"], config["corpus"], config["tokenizer"]) == ("corpus", "parallel", str(bloom))
    # the same command again computes nothing, and says the same
    monkeypatch.setattr(TokenLanguages, "build", None)
    before = content_of(small_matrix)
    argv = ["--model", bloom, "--corpus", PARALLEL, "--output_dir", small_matrix]
    outcome = run(logit_lens_tokenid_to_lang.main, *argv)
    assert (outcome.status, outcome.err) == (0, "") and content_of(small_matrix) == before
    assert f"{small_matrix}: 2,000 tokens x 34 channels (30 languages)" in outcome.out
    assert "share of the vocabulary: ell_Grek 4." in outcome.out and "byte 11.7%, zxx 4." in outcome.out


def test_a_matrix_of_a_word_count_file(bloom, tmp_path):
    counts = tmp_path / "counts.tsv.gz"
    write_word_counts(counts, read_corpus(PARALLEL))
    argv = ["--model", bloom, "--corpus", counts, "--output_dir", tmp_path / "m", "--evaluate", PARALLEL]
    outcome = run(logit_lens_tokenid_to_lang.main, *argv)
    assert (outcome.status, outcome.err) == (0, "")
    assert json.loads((tmp_path / "m/config.json").read_text())["corpus"] == "counts.tsv.gz"
    assert json.loads((tmp_path / "m/evaluation.json").read_text())["accuracy"] > 0.8


def test_a_matrix_of_langid(bloom, tmp_path):
    argv = ["--model", bloom, "--method", "langid", "--output_dir", tmp_path / "m"]
    outcome = run(logit_lens_tokenid_to_lang.main, *argv)
    assert (outcome.status, outcome.err) == (0, "") and "(97 languages)" in outcome.out
    assert json.loads((tmp_path / "m/config.json").read_text())["method"] == "langid"
    assert sp.load_npz(tmp_path / "m/probs.npz").sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_evaluate_writes_and_prints_the_accuracy(bloom, small_matrix, tmp_path):
    folder = shutil.copytree(small_matrix, tmp_path / "m")
    argv = ["--model", bloom, "--corpus", PARALLEL, "--output_dir", folder, "--evaluate", PARALLEL]
    outcome = run(logit_lens_tokenid_to_lang.main, *argv)
    assert (outcome.status, outcome.err) == (0, "")
    quality = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert quality["n_sentences"] == 720 and quality["n_languages"] == 30 and quality["sentences"] == "parallel"
    assert 0.9 < quality["accuracy"] <= 1
    assert set(quality["accuracy_of_language"]) == {p.stem for p in PARALLEL.iterdir()}
    assert f"single sentences right {quality['accuracy']:.4f}" in outcome.out
    assert f"share of the true language {quality['share_of_true_language']['mean']:.3f}" in outcome.out
    assert f"per language and per script: {folder / 'evaluation.json'}" in outcome.out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--corpus", "/nowhere"], ["--corpus /nowhere"]),
        (["--corpus", PARALLEL, "--evaluate", "/nowhere"], ["/nowhere"]),
        (["--corpus", PARALLEL, "--evaluate", PROJECT_DIR / "utils"], ["utils", "named CODE.anything"]),
        (["--corpus", PROJECT_DIR / "flores_lang_map.json"], ["flores_lang_map.json"]),
        (["--corpus", PARALLEL, "--method", "langid"], [f"--corpus {PARALLEL}"]),
        (["--corpus", PARALLEL, "--model", "/nowhere"], ["--model /nowhere"]),
    ],
)
def test_a_matrix_of_bad_input_is_refused_and_nothing_written(bloom, tmp_path, argv, words):
    command = ["--model", bloom, "--output_dir", tmp_path / "m", *argv]
    assert_one_error_line(run(logit_lens_tokenid_to_lang.main, *command), *words)
    assert not (tmp_path / "m").exists()


def test_a_folder_with_another_matrix_is_refused_and_left_alone(bloom, small_matrix):
    before = content_of(small_matrix)
    argv = ["--model", bloom, "--method", "langid", "--output_dir", small_matrix]
    assert_one_error_line(run(logit_lens_tokenid_to_lang.main, *argv), small_matrix, "'corpus'", "'langid'")
    assert content_of(small_matrix) == before


@pytest.mark.parametrize("n_writes", range(4))
def test_a_disk_that_is_full_while_the_matrix_is_written(bloom, small_matrix, tmp_path, n_writes):
    argv = ["--model", bloom, "--corpus", PARALLEL, "--output_dir", tmp_path / "m", "--evaluate", PARALLEL]
    with full_disk_after(n_writes):
        assert_one_error_line(run(logit_lens_tokenid_to_lang.main, *argv), "No space left on device")
    assert run(logit_lens_tokenid_to_lang.main, *argv).status == 0
    content = content_of(tmp_path / "m")
    assert content.pop("evaluation.json") and content == content_of(small_matrix)


# --- a whole probe ---------------------------------------------------------------------------------------------


@functools.cache
def loaded(folder: Path):
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)


def hand_made_probs(folder: Path, text: str, positions=slice(-1, None)) -> torch.Tensor:
    """softmax(head(final_norm(h_l))), from a BLOOM's own parts and nothing of ours: [position, layer, vocab]."""
    tokenizer, model = loaded(folder)
    with torch.inference_mode():
        output = model(torch.tensor([tokenizer(text)["input_ids"]]), output_hidden_states=True)
        logits = [model.lm_head(model.transformer.ln_f(state)) for state in output.hidden_states[:-1]]
    logits = torch.stack([*logits, output.logits], dim=2)[0, positions]
    return torch.softmax(logits[..., : len(tokenizer)].double(), dim=-1)


def slow_shares(probs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """EM as it stands in Saerens, Latinne and Decaestecker, in float64: [vocab] -> [language]."""
    text = rows.any(axis=1)
    p, rows = probs[text], rows[text].astype(np.float64)
    shares = np.full(rows.shape[1], p.sum() / rows.shape[1])
    for _ in range(3000):
        shares = shares * (rows.T @ (p / (rows @ shares)))
    return shares


def assert_shares_are_the_model_s_own(run: Path, folder: Path, matrix: Path, texts: list, positions=None) -> None:
    """A run's tables and arrays against a BLOOM's own parts, and the slow fit. texts: one for each row."""
    tokenizer, _ = loaded(folder)
    read_matrix = TokenLanguages.load(matrix, tokenizer)
    rows, n = read_matrix.rows_to_fit, read_matrix.n_languages
    probs = np.stack(
        [
            hand_made_probs(folder, text, where).mean(dim=0).numpy()
            for text, where in zip(texts, positions or [slice(-1, None)] * len(texts))
        ]
    )
    prompts, table = read(run, "prompts.csv"), read(run, "language_probs.csv")
    per_prompt, influence = (np.load(run / f"{name}.npy") for name in ("per_prompt", "influence"))
    plain = probs @ read_matrix.probs.toarray()  # [prompt, layer, channel]
    assert len(texts) == len(prompts) == len(per_prompt) == len(influence)
    for lang, of_lang in prompts.groupby("prompt_lang", sort=False):
        mine = table[table["prompt_lang"] == lang]
        shape = (probs.shape[1], len(read_matrix.channels))
        chosen, share = probs[of_lang.index], mine["share"].to_numpy().reshape(shape)
        assert mine["prob"].to_numpy().reshape(shape) == pytest.approx(plain[of_lang.index].mean(axis=0), abs=1e-5)
        assert share[:, n:] == pytest.approx(plain[of_lang.index].mean(axis=0)[:, n:], abs=1e-5)
        assert share.sum(axis=1) == pytest.approx(1, abs=1e-4)
        for values in (per_prompt, influence):
            assert values[of_lang.index].mean(axis=0) == pytest.approx(share, abs=1e-4)
        for layer in range(shape[0]):
            slow = slow_shares(chosen[:, layer].mean(axis=0), rows)
            assert share[layer, :n] == pytest.approx(slow, abs=0.01)
            # a prompt's own: its posterior under the set's shares
            joint = rows * share[layer, :n]
            posterior = joint / np.maximum(joint.sum(axis=1, keepdims=True), 1e-300)
            assert per_prompt[of_lang.index, layer, :n] == pytest.approx(chosen[:, layer] @ posterior, abs=0.02)


def qa_text(example) -> str:
    return f"{example.context}\n\nQ: {example.question}\nA:"


@pytest.fixture(scope="module")
def examples():
    return load_examples("sample_qa", SHORT, limit=N_PROMPTS)


def test_the_files_of_a_run(finished):
    figures = {f"figures/{name}.{suffix}" for name in FIGURES for suffix in ("png", "pdf")}
    assert set(content_of(finished.folder)) == {
        *TABLES,
        "config.json",
        "metrics.json",
        "per_prompt.npy",
        "influence.npy",
        "grid.npz",
        "grid.json",
        "page.html",
        *figures,
    }
    assert {p.name for p in finished.folder.iterdir() if p.is_dir()} == {"figures"}
    for table, columns in TABLES.items():
        assert list(read(finished.folder, table)) == columns
    for name, content in content_of(finished.folder).items():
        magic = {".png": b"\x89PNG", ".pdf": b"%PDF-", ".npz": b"PK"}.get(Path(name).suffix, b"")
        assert content.startswith(magic) and b"\r\n" not in content[: 0 if magic else None]


def test_config_json_is_the_first_file_and_metrics_json_the_last(probe, tmp_path, without_figures, monkeypatch):
    names, write = [], runs.write_atomically

    def noted(path, writer):
        names.append(path.name)
        write(path, writer)

    for module in (runs, records):
        monkeypatch.setattr(module, "write_atomically", noted, raising=False)
    assert probe().status == 0
    assert names[0] == "config.json" and names[-1] == "metrics.json" and names.count("metrics.json") == 1
    assert {*TABLES, "per_prompt.npy"} < set(names)


def test_the_configuration_says_what_was_asked_and_with_what(finished, bloom, small_matrix):
    config = json.loads((finished.folder / "config.json").read_text(encoding="utf-8"))
    assert config["arguments"]["langs"] == LANGS and config["arguments"]["model"] == str(bloom)
    assert set(config["inputs"]["data_sha256"]) == {f"sample_qa_{lang}_test.json" for lang in SHORT}
    of_matrix = json.loads((small_matrix / "config.json").read_text())
    of_matrix.pop("files")  # checksums of its own
    assert config["inputs"]["token_languages"] == of_matrix
    assert config["commit"] == COMMIT


def test_the_metrics_count_the_prompts(finished):
    metrics = json.loads((finished.folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["prompts"] == {lang: {"n": N_PROMPTS, "skipped": 0} for lang in LANGS} and metrics["skipped"] == []
    assert set(metrics["self_check_total_variation"]) == {"last_layer", "batch"}
    assert max(metrics["self_check_total_variation"].values()) < 1e-4


def test_every_prompt_s_numbers_are_the_model_s_own(finished, examples, bloom, small_matrix):
    per_prompt, prompts = np.load(finished.folder / "per_prompt.npy"), read(finished.folder, "prompts.csv")
    assert per_prompt.shape == (3 * N_PROMPTS, N_LAYERS, 34) and per_prompt.dtype == np.float32
    assert prompts["row"].tolist() == list(range(3 * N_PROMPTS))
    assert prompts["id"].tolist() == [example.id for example in examples]
    assert prompts["prompt_lang"].tolist() == [example.lang for example in examples]
    texts = [qa_text(example) for example in examples]
    assert_shares_are_the_model_s_own(finished.folder, bloom, small_matrix, texts)


def test_language_probs_are_the_prompts_means(finished, examples, small_matrix):
    table = read(finished.folder, "language_probs.csv")
    channels = json.loads((small_matrix / "channels.json").read_text())
    shape = (3, N_LAYERS, len(channels))
    expected_keys = [(lang, layer, channel) for lang in LANGS for layer in range(N_LAYERS) for channel in channels]
    assert list(zip(table["prompt_lang"], table["layer"], table["channel"])) == expected_keys
    assert (table["n"] == N_PROMPTS).all()
    prob = table["prob"].to_numpy().reshape(shape)
    assert prob.sum(axis=2) == pytest.approx(1, abs=1e-5)
    share = table["share"].to_numpy().reshape(shape)
    assert share.sum(axis=2) == pytest.approx(1, abs=1e-5)
    influence = np.load(finished.folder / "influence.npy").reshape(3, N_PROMPTS, *shape[1:])
    assert share == pytest.approx(influence.mean(axis=1, dtype=np.float64), abs=1e-5)
    floor = sp.load_npz(small_matrix / "probs.npz").toarray().mean(axis=0, dtype=np.float64)
    assert table["floor"].to_numpy().reshape(shape) == pytest.approx(np.broadcast_to(floor, shape), abs=1e-7)
    contexts = [example.context for example in examples[:N_PROMPTS]]
    assert (table["n_contexts"] == len(set(contexts))).all() and len(set(contexts)) == 2
    assert (table["share_low"] == "").all() and (table["share_high"] == "").all()  # too few contexts for an interval
    assert (table["stderr"] >= 0).all()
    assert (table["tokens"] >= 0).all() and table["null_share"].to_numpy().reshape(shape).sum(axis=2) == pytest.approx(
        1
    )


def test_layers_are_the_model_s_own_too(finished, examples, bloom):
    table = read(finished.folder, "layers.csv")
    assert list(zip(table["prompt_lang"], table["layer"])) == [(lang, i) for lang in LANGS for i in range(N_LAYERS)]
    assert (table["n"] == N_PROMPTS).all()
    last = table[table["layer"] == N_LAYERS - 1]
    assert last["kl_to_final_bits"].to_numpy() == pytest.approx(0, abs=1e-5)
    assert (last["top1_agreement"] == 1).all()
    expected = []
    for example in examples:
        probs = hand_made_probs(bloom, qa_text(example))[0]  # [layer, vocab]
        entropy = -(probs * probs.log2()).sum(dim=1)
        kl = (probs * (probs.log2() - probs[-1].log2())).sum(dim=1)
        expected.append(torch.stack([entropy, kl, (probs.argmax(1) == probs[-1].argmax()).double()], dim=1).numpy())
    expected = np.stack(expected).reshape(3, N_PROMPTS, N_LAYERS, 3).mean(axis=1).reshape(-1, 3)
    assert expected[:, 1].max() > 0.5  # the layers differ: a zero everywhere would not pass
    numbers = table[["entropy_bits", "kl_to_final_bits", "top1_agreement"]].to_numpy()
    assert numbers == pytest.approx(expected, abs=1e-4)


def test_top_tokens_are_the_likeliest_on_average(finished, examples, bloom, small_matrix, tiny_tokenizer):
    table = read(finished.folder, "top_tokens.csv")
    channels = json.loads((small_matrix / "channels.json").read_text())
    channel_of_token = sp.load_npz(small_matrix / "probs.npz").toarray().argmax(axis=1)
    assert len(table) == 3 * N_LAYERS * TOP_K
    for (lang, layer), rows in table.groupby(["prompt_lang", "layer"]):
        texts = [qa_text(example) for example in examples if example.lang == lang]
        mean = np.mean([hand_made_probs(bloom, text)[0, layer].numpy() for text in texts], axis=0)
        assert rows["rank"].tolist() == list(range(1, TOP_K + 1))
        assert (np.diff(rows["prob"]) <= 0).all() and rows["token_id"].is_unique
        assert rows["prob"].to_numpy() == pytest.approx(np.sort(mean)[::-1][:TOP_K], abs=1e-6)
        assert rows["prob"].to_numpy() == pytest.approx(mean[rows["token_id"]], abs=1e-6)
        assert rows["channel"].tolist() == [channels[channel_of_token[id]] for id in rows["token_id"]]
    whole = [(row.token, tiny_tokenizer.decode([row.token_id])) for row in table.itertuples() if row.channel != "byte"]
    assert len(whole) > 20
    assert all(token.replace("␣", " ") == text for token, text in whole if text.isprintable())


def test_the_screen_shows_the_table_and_the_paths(finished):
    lines = finished.out.splitlines()
    assert lines[0].split() == ["in", "hi", "in", "or", "in", "en"]
    assert [line.split()[0] for line in lines[2 : 2 + N_LAYERS]] == [str(layer) for layer in range(N_LAYERS)]
    table = read(finished.folder, "language_probs.csv").query("layer == 3 and prompt_lang == 'hin_Deva'")
    best = table["share"][table["share"] - table["null_share"] >= 0.03].idxmax()
    assert f"{short_code(table['channel'][best])} {table['share'][best]:.0%}" in lines[1 + N_LAYERS]
    assert lines[2 + N_LAYERS].startswith("shares of at least 3% above what random tokens read")
    rest = lines[3 + N_LAYERS :]
    assert rest[0] == "prompts: hi 5, or 5, en 5; skipped: 0"
    assert f"tables: {finished.folder}" in rest
    paths = "\n".join(rest[1:])
    assert str(finished.folder / "figures/overview.png") in paths
    assert all(f"{name}.png" in paths for name in FIGURES)


def test_plot_figures_redraws_from_the_tables(finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    shutil.rmtree(folder / "figures")
    outcome = run(plot_figures.main, folder)
    assert (outcome.status, outcome.err) == (0, "") and content_of(folder) == content_of(finished.folder)
    drawn = {str(folder / f"figures/{name}.{suffix}") for name in FIGURES for suffix in ("png", "pdf")}
    assert set(outcome.out.splitlines()) == drawn


def test_plot_figures_refuses_a_run_that_is_not_finished(finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    shutil.rmtree(folder / "figures")
    (folder / "metrics.json").unlink()
    before = content_of(folder)
    assert_one_error_line(run(plot_figures.main, finished.folder, folder), folder, "metrics.json")
    assert_one_error_line(run(plot_figures.main, tmp_path / "nothing"), tmp_path / "nothing")
    assert content_of(folder) == before


def test_weights_laid_out_for_many_prompts_change_no_number(probe, finished, tmp_path, monkeypatch, without_figures):
    monkeypatch.setattr(probe_logit_lens, "MANY_PROMPTS", 1)
    for name, value in (("LEAST_MAP", 0), ("LEAST_UNEMBEDDING", 0), ("PIECE", 300)):
        monkeypatch.setattr(arithmetic, name, value)
    laid_out, pieces = Vocabulary.laid_out, []
    monkeypatch.setattr(Vocabulary, "laid_out", lambda *a: pieces.append(laid_out(*a).pieces) or laid_out(*a))
    assert probe().status == 0
    assert len(pieces) == 1 and len(pieces[0]) == (7 if torch.cpu.get_capabilities().get("avx512_f") else 1)
    assert_same_numbers(finished.folder, tmp_path / "run")


@pytest.mark.parametrize("size", [1, "auto"])
def test_batches_of_any_size_give_the_same_tables(probe, finished, tmp_path, without_figures, size):
    assert probe("--batch_size", size).status == 0
    assert_same_numbers(tmp_path / "run", finished.folder)


def test_position_answer_averages_where_the_answer_is_predicted(
    probe, tmp_path, examples, bloom, small_matrix, tiny_tokenizer, without_figures
):
    assert probe("--position", "answer").status == 0
    longest, texts, positions = 0, [], []
    for example in examples:
        prompt = qa_text(example)
        text = f"{prompt} {example.answers[0]}"
        n_prompt, ids = len(tiny_tokenizer(prompt)["input_ids"]), tiny_tokenizer(text)["input_ids"]
        assert tiny_tokenizer(prompt)["input_ids"] == ids[:n_prompt] and len(ids) > n_prompt
        longest = max(longest, len(ids) - n_prompt)
        texts.append(text)
        positions.append(slice(n_prompt - 1, len(ids) - 1))
    assert_shares_are_the_model_s_own(tmp_path / "run", bloom, small_matrix, texts, positions)
    assert longest > 3


PROMPTS = {
    "instruction": "Instruction: Answer the question based on the context.\n"
    "Input: Context: {context} Question: {question}\nOutput:",
    "short_span": "{context}\n\nNow answer the following question in a short span. Please do not hallucinate, "
    "and answer based on the above provided context.\nQ: {question}\nA:",
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_other_prompts(probe, tmp_path, examples, bloom, small_matrix, without_figures, prompt):
    assert probe("--prompt", prompt, "--langs", "hi").status == 0
    texts = [PROMPTS[prompt].format(context=e.context, question=e.question) for e in examples[:N_PROMPTS]]
    assert_shares_are_the_model_s_own(tmp_path / "run", bloom, small_matrix, texts)


def test_parallel_sentences_are_translated(probe, tmp_path, bloom, small_matrix, without_figures):
    outcome = probe("--dataset", "sample_parallel", "--langs", "hi", "en", "--source_lang", "German")
    assert outcome.status == 0 and "prompts: hi 5, en 5; skipped: 0" in outcome.out
    sources = (PARALLEL / "deu_Latn.txt").read_text(encoding="utf-8").split("\n")[:N_PROMPTS]
    texts = [
        f"Translate the following text to {name}\nQ:{source}\nA:" for name in ("Hindi", "English") for source in sources
    ]
    assert_shares_are_the_model_s_own(tmp_path / "run", bloom, small_matrix, texts)
    assert read(tmp_path / "run", "prompts.csv")["id"].tolist() == [f"test-{i}" for i in range(1, 6)] * 2
    files = json.loads((tmp_path / "run/config.json").read_text())["inputs"]["data_sha256"]
    assert set(files) == {"deu_Latn.txt", "eng_Latn.txt", "hin_Deva.txt"}


OWN_TEXTS = ["<script>alert(1)</script>", "ନଦୀର ପାଣି ଥଣ୍ଡା"]


def test_texts_of_one_s_own_are_read_as_they_are(tmp_path, bloom, small_matrix):
    argv = ["--model", bloom, "--token_languages", small_matrix, "--output_dir", tmp_path / "run"]
    outcome = run(probe_logit_lens.main, *argv, "--text", OWN_TEXTS[0], "--text", OWN_TEXTS[1])
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.splitlines()[0].split() == ["in", "text-1", "in", "text-2"]
    assert outcome.out.splitlines()[-1].endswith(str(tmp_path / "run" / "page.html"))
    prompts = read(tmp_path / "run", "prompts.csv")
    assert list(prompts["id"]) == list(prompts["prompt_lang"]) == ["text-1", "text-2"]
    assert_shares_are_the_model_s_own(tmp_path / "run", bloom, small_matrix, OWN_TEXTS)
    assert [row["text"] for row in ProbeRun(tmp_path / "run").grid.prompts] == OWN_TEXTS
    page = (tmp_path / "run" / "page.html").read_text(encoding="utf-8")
    assert OWN_TEXTS[0] not in page and OWN_TEXTS[1] in page
    assert not (tmp_path / "run" / "figures").exists()  # plot_figures.py draws them


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--text", " "], ["--text", "text-1 is empty"]),
        (["--text", "a", "--langs", "en", "--limit", 2], ["--text", "leave --langs, --limit out"]),
        (["--text", "a", "--dataset", "xquad"], ["leave --dataset out"]),
        (["--text", "a", "--position", "answer"], ["--position answer"]),
    ],
)
def test_texts_of_one_s_own_that_make_no_sense_are_refused(tmp_path, bloom, changes, says):
    assert_one_error_line(
        run(probe_logit_lens.main, "--model", bloom, *changes, "--output_dir", tmp_path / "run"), *says
    )
    assert not (tmp_path / "run").exists()


def test_longer_prompts_are_skipped_counted_and_named(probe, tmp_path, examples, tiny_tokenizer, without_figures):
    length = {(e.lang, e.id): len(tiny_tokenizer(qa_text(e))["input_ids"]) for e in examples}
    limit = sorted(length.values())[len(length) // 2]
    expected = [
        {"prompt_lang": lang, "id": id, "reason": f"{n} tokens, more than {limit}"}
        for (lang, id), n in length.items()
        if n > limit
    ]
    n_skipped = {lang: sum(row["prompt_lang"] == lang for row in expected) for lang in LANGS}
    assert len(expected) >= 3 and max(n_skipped.values()) < N_PROMPTS
    outcome = probe("--max_tokens", limit)
    assert outcome.status == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))
    assert metrics["skipped"] == expected
    n = {lang: N_PROMPTS - n_skipped[lang] for lang in LANGS}
    assert metrics["prompts"] == {lang: {"n": n[lang], "skipped": n_skipped[lang]} for lang in LANGS}
    assert f"skipped: {len(expected)} (metrics.json says why)" in outcome.out
    assert f"prompts: hi {n['hin_Deva']}, or {n['ory_Orya']}, en {n['eng_Latn']};" in outcome.out
    kept = [(e.id, e.lang) for e in examples if length[e.lang, e.id] <= limit]
    prompts = read(tmp_path / "run", "prompts.csv")
    assert list(zip(prompts["id"], prompts["prompt_lang"])) == kept
    for table in ("language_probs.csv", "layers.csv"):
        assert read(tmp_path / "run", table).groupby("prompt_lang")["n"].agg(set).to_dict() == {
            lang: {n[lang]} for lang in LANGS
        }


def test_prompts_past_the_model_s_context_are_skipped(
    probe, tmp_path, examples, saved, tiny_tokenizer, without_figures
):
    lengths = [len(tiny_tokenizer(qa_text(example))["input_ids"]) for example in examples]
    context = sorted(lengths)[len(lengths) // 2]
    outcome = probe("--model", saved("llama", max_position_embeddings=context))
    n_skipped = sum(length > context for length in lengths)
    assert outcome.status == 0 and n_skipped > 2 and f"skipped: {n_skipped} (" in outcome.out


def test_questions_without_an_answer_are_skipped_where_the_answer_is_read(probe, tmp_path, datasets, without_figures):
    content = json.loads((datasets / "sample/qa/hi/sample_qa_hi_test.json").read_text(encoding="utf-8"))
    content["examples"][1]["answers"] = []
    paragraphs = [
        {"context": row["context"], "qas": [{key: row[key] for key in ("id", "question", "answers")}]}
        for row in content["examples"]
    ]
    (datasets / "indicqa").mkdir()
    (datasets / "indicqa/indicqa.hi.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    outcome = probe("--dataset", "indicqa", "--langs", "hi", "--position", "answer")
    assert outcome.status == 0 and "prompts: hi 4; skipped: 1 (" in outcome.out
    metrics = json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))
    assert metrics["skipped"] == [{"prompt_lang": "hin_Deva", "id": "water-2", "reason": "no answer"}]
    # where the prompt is read, such a question is as good as any
    outcome = probe("--dataset", "indicqa", "--langs", "hi", "--output_dir", tmp_path / "last")
    assert outcome.status == 0 and "prompts: hi 5; skipped: 0" in outcome.out


@pytest.mark.parametrize("method", ["corpus", "langid"])
def test_a_matrix_that_is_only_named_is_made_once(probe, tmp_path, monkeypatch, without_figures, method):
    write_word_counts(tmp_path / "counts.tsv.gz", read_corpus(PARALLEL))
    for module in (matrix, from_corpus):
        monkeypatch.setattr(module, "WORD_COUNTS", tmp_path / "counts.tsv.gz")
    monkeypatch.setattr(matrix, "PROJECT_DIR", tmp_path / "project")
    outcome = probe("--token_languages", method)
    assert outcome.status == 0
    (folder,) = (tmp_path / "project/results/token_languages").iterdir()
    assert f"making the token x language matrix once: {folder}" in outcome.out
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["inputs"]["token_languages"]["method"] == method
    monkeypatch.setattr(TokenLanguages, "build", None)
    outcome = probe("--token_languages", method, "--output_dir", tmp_path / "second")
    assert outcome.status == 0 and "making" not in outcome.out
    before, after = tables_of(tmp_path / "run"), tables_of(tmp_path / "second")
    assert before == after


# --- a stopped probe -------------------------------------------------------------------------------------------


@pytest.fixture
def readings(monkeypatch):
    """How many batches have been read; Ctrl-C comes before the batch number `stop_before`."""
    count = SimpleNamespace(done=0, stop_before=None)
    original = reading.read

    def counted(*args):
        if count.done == count.stop_before:
            count.stop_before = None
            raise KeyboardInterrupt
        count.done += 1
        return original(*args)

    monkeypatch.setattr(reading, "read", counted)
    return count


def test_a_probe_stopped_after_every_batch_gives_the_same_bytes(
    probe, finished, tmp_path, readings, drawn_before, monkeypatch
):
    monkeypatch.setattr(records, "SECONDS_BETWEEN_SAVES", -1)
    for n in range(N_BATCHES):
        readings.stop_before = n
        assert_stopped(probe(), tmp_path / "run")
    outcome = probe()
    assert (outcome.status, outcome.err) == (0, "")
    assert readings.done == N_BATCHES  # nothing is read twice
    assert content_of(tmp_path / "run") == content_of(finished.folder)
    assert outcome.out == finished.out.replace(str(finished.folder), str(tmp_path / "run"))


@pytest.mark.parametrize("n", [1, 3, 4, 8])
def test_a_probe_stopped_between_two_saves_reads_that_much_again(
    probe, finished, tmp_path, readings, without_figures, n
):
    readings.stop_before = n
    assert_stopped(probe(), tmp_path / "run")
    assert probe().status == 0
    assert readings.done == N_BATCHES + n % 3  # a whole language is always kept
    assert tables_of(tmp_path / "run") == tables_of(finished.folder)


def test_a_probe_stopped_while_it_draws_reads_nothing_again(
    probe, finished, tmp_path, readings, drawn_before, monkeypatch
):
    def interrupted(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(layers, "draw_probe_run", interrupted)
        assert_stopped(probe(), tmp_path / "run")
    assert probe().status == 0
    assert readings.done == N_BATCHES
    assert content_of(tmp_path / "run") == content_of(finished.folder)


def test_a_probe_killed_in_the_middle_of_a_write_goes_on(
    probe, finished, tmp_path, bloom, small_matrix, readings, without_figures
):
    def killed():
        writes, fsync = itertools.count(1), os.fsync
        # after the configuration and six of the records
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL) if next(writes) == 7 else fsync(file)
        records.SECONDS_BETWEEN_SAVES = -1
        probe_logit_lens.main(list(map(str, argv)))

    argv = ["--model", bloom, "--token_languages", small_matrix, *ARGUMENTS, "--output_dir", tmp_path / "run"]
    assert status_of(forked(killed, tmp_path / "said")) == -signal.SIGKILL
    assert (tmp_path / "said").read_text() == ""
    assert len(list((tmp_path / "run/records").glob(".*.tmp"))) == 1
    assert probe().status == 0
    assert 0 < readings.done < N_BATCHES
    assert tables_of(tmp_path / "run") == tables_of(finished.folder)


@pytest.mark.parametrize("place", ["", "figures"])
def test_what_a_killed_run_left_half_written_goes_away(probe, finished, tmp_path, readings, without_figures, place):
    readings.stop_before = 4
    assert_stopped(probe(), tmp_path / "run")
    (tmp_path / "run" / place).mkdir(exist_ok=True)
    (tmp_path / "run" / place / ".layers.csv.99999.tmp").write_text("half")
    assert probe().status == 0
    assert not list((tmp_path / "run").rglob(".*.tmp"))


def test_a_probe_stopped_before_its_last_file_reads_nothing_again(
    probe, tmp_path, readings, without_figures, monkeypatch
):
    def interrupted(run, metrics):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.RunDirectory, "finish", interrupted)
        assert_stopped(probe(), tmp_path / "run")
    assert probe().status == 0
    assert readings.done == N_BATCHES


def test_a_finished_run_prints_its_results_and_computes_nothing(probe, finished, readings):
    before = content_of(finished.folder)
    readings.stop_before = 0
    outcome = probe("--output_dir", finished.folder)
    assert outcome == (0, finished.out, "")
    assert probe("--output_dir", finished.folder, "--langs", "Hindi", "ory", "eng_Latn") == outcome  # the same command
    assert content_of(finished.folder) == before and readings.done == 0


def test_shuffled_prompts_are_the_paper_s_draw(probe, tmp_path, without_figures):
    assert probe("--shuffle", "--limit", 3).status == 0
    prompts = pd.read_csv(tmp_path / "run" / "prompts.csv", dtype={"id": str})
    for lang, of_lang in prompts.groupby("prompt_lang"):
        ids = [example.id for example in load_examples("sample_qa", [lang])]
        random.seed(42)
        random.shuffle(ids)
        assert list(of_lang["id"]) == ids[:3]


@pytest.mark.parametrize("changes", [["--limit", 4], ["--langs", "hi", "en"], ["--position", "answer"], ["--seed", 1]])
def test_another_command_on_a_run_s_folder_is_refused(probe, finished, changes):
    before = content_of(finished.folder)
    outcome = probe("--output_dir", finished.folder, *changes)
    assert_one_error_line(outcome, finished.folder, f"{changes[0].removeprefix('--')} was", "--overwrite")
    assert outcome.out == "" and content_of(finished.folder) == before


def test_other_data_of_the_same_name_is_another_command(probe, tmp_path, datasets, without_figures):
    assert probe().status == 0
    path = datasets / "sample/qa/or/sample_qa_or_test.json"
    path.write_text(path.read_text(encoding="utf-8").replace("water-1", "water-0"), encoding="utf-8")
    assert_one_error_line(probe(), tmp_path / "run", "data_sha256 was")


def test_overwrite_starts_anew(probe, finished, tmp_path, readings, without_figures):
    shutil.copytree(finished.folder, tmp_path / "run")
    assert probe("--limit", 4, "--overwrite").status == 0
    assert readings.done == 9
    assert probe("--limit", 4, "--output_dir", tmp_path / "new").status == 0
    assert content_of(tmp_path / "run") == content_of(tmp_path / "new")  # none of the old figures either


# --- bad input -------------------------------------------------------------------------------------------------


@pytest.fixture
def assert_refused(probe, finished, tmp_path):
    """Function: a command is refused in one line with these words, before anything is written or removed."""

    def check(*changes, says: list) -> None:
        outcome = probe(*changes)
        assert_one_error_line(outcome, *says)
        assert outcome.out == "" and not (tmp_path / "run").exists()
        old = shutil.copytree(finished.folder, tmp_path / "old")
        assert_one_error_line(probe(*changes, "--output_dir", old, "--overwrite"), *says)
        assert content_of(old) == content_of(finished.folder)

    return check


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--langs", "en", "Klingon"], ["unknown language 'Klingon'"]),
        (["--langs", "en", "hi", "eng"], ["language given twice: eng_Latn"]),
        (["--langs", "en", "fr"], ["sample_qa_fr_test.json: no such file", "ar, bn, de, en, hi"]),
        (["--split", "dev"], ["unknown split 'dev' of sample_qa", "train, test"]),
        (["--split", ""], ["unknown split ''", "train, test"]),
        (["--dataset", "sample_parallel", "--langs", "hi", "--source_lang", "Klingon"], ["language 'Klingon'"]),
        (["--dataset", "sample_parallel", "--langs", "hi", "en"], ["source language eng_Latn"]),
        (["--dataset", "sample_parallel", "--langs", "hi", "--prompt", "instruction"], ["--prompt instruction"]),
        (["--model", "/no/such/folder"], ["--model /no/such/folder: no such folder"]),
        (["--model", "no_such_folder"], ["--model no_such_folder: no such folder", "gemma-3-270m"]),
        (["--model", "no/such.gguf"], ["--model no/such.gguf: no such file"]),
        (["--model", PARALLEL], [f"--model {PARALLEL}: no config.json"]),
        (["--adapter", "/no/adapter"], ["--adapter /no/adapter: no adapter_config.json"]),
        (["--token_languages", "/no/matrix"], ["--token_languages /no/matrix"]),
        (["--token_languages", "copus"], ["--token_languages copus"]),
        (["--device", "tpu"], ["--device tpu", "choose from auto, cpu, cuda"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_bad_arguments_are_refused(assert_refused, changes, says):
    assert_refused(*changes, says=says)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--dataset", "squad"),
        ("--prompt", "fancy"),
        ("--position", "first"),
        ("--dtype", "float64"),
        ("--limit", "0"),
        ("--limit", "five"),
        ("--max_tokens", "-1"),
        ("--batch_size", "all"),
        ("--top_k", "0"),
        ("--seed", "x"),
        ("--no_such_flag", "1"),
    ],
)
def test_what_no_flag_takes_is_refused_by_argparse(probe, tmp_path, flag, value):
    outcome = probe(flag, value)
    assert outcome.status == 2 and outcome.out == "" and not (tmp_path / "run").exists()
    last = outcome.err.splitlines()[-1]
    assert ": error: " in last and flag in last and value in last


def with_changed_config(source: Path, folder: Path, **changes) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    return folder


@pytest.mark.parametrize("family", ["mpt", "t5", "gemma3", "no_such_family"])
def test_an_unknown_family_is_refused_by_name(assert_refused, bloom, tmp_path, family):
    folder = with_changed_config(bloom, tmp_path / "model", model_type=family)
    assert_refused("--model", folder, says=[family])


def test_opt_without_a_final_norm_is_refused(assert_refused, saved, tmp_path):
    folder = with_changed_config(saved("opt"), tmp_path / "model", do_layer_norm_before=False)
    assert_refused("--model", folder, says=["'opt' without a final layer norm"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("tokenizer.json", b"{"),
        ("model.safetensors", None),
        pytest.param("model.safetensors", b"garbage"),
        pytest.param("model.safetensors", 3000),  # cut short
    ],
)
def test_a_damaged_model_is_refused(assert_refused, bloom, tmp_path, name, content):
    folder = shutil.copytree(bloom, tmp_path / "model")
    damage(folder / name, content)
    assert_refused("--model", folder, says=[f"--model {folder}"])


def with_changed_weights(source: Path, folder: Path, change) -> Path:
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


WEIGHT = "transformer.h.1.mlp.dense_4h_to_h.bias"  # of the second layer


def test_a_model_that_lacks_a_weight_is_refused(assert_refused, bloom, tmp_path, without_figures):
    folder = with_changed_weights(bloom, tmp_path / "model", lambda weights: weights.pop(WEIGHT))
    assert_refused("--model", folder, says=[f"--model {folder}", "h.1.mlp.dense_4h_to_h.bias"])


def test_a_model_with_a_weight_of_another_shape_is_refused(assert_refused, bloom, tmp_path):
    def cut(weights):
        weights[WEIGHT] = weights[WEIGHT][:5].clone()

    folder = with_changed_weights(bloom, tmp_path / "model", cut)
    assert_refused("--model", folder, says=[f"--model {folder}"])


def test_states_that_are_not_finite_are_named_with_layer_and_dtype(probe, bloom, tmp_path):
    def not_a_number(weights):
        weights[WEIGHT][3] = torch.nan

    folder = with_changed_weights(bloom, tmp_path / "model", not_a_number)
    outcome = probe("--model", folder)
    assert_one_error_line(outcome, "not finite at layer 2 in float32")
    assert outcome.out == "" and list(content_of(tmp_path / "run")) == ["config.json"]
    assert_one_error_line(probe("--model", folder, "--dtype", "bfloat16", "--overwrite"), "at layer 2 in bfloat16")


def test_a_limit_that_leaves_no_prompt_is_refused(assert_refused):
    assert_refused("--max_tokens", 3, says=["no prompt in hin_Deva, ory_Orya, eng_Latn", "more than 3"])


# Data files


@contextlib.contextmanager
def edited(path: Path) -> Iterator[list]:
    content = json.loads(path.read_text(encoding="utf-8"))
    yield content["examples"]
    path.write_text(json.dumps(content), encoding="utf-8")


def duplicate_id(path):
    with edited(path) as rows:
        rows[4]["id"] = rows[1]["id"]


def empty_context(path):
    with edited(path) as rows:
        rows[2]["context"] = " \n"


def no_answer(path):
    with edited(path) as rows:
        rows[2]["answers"] = []


def no_question(path):
    with edited(path) as rows:
        del rows[2]["question"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (Path.unlink, "no such file"),
        (lambda path: path.write_bytes(b""), "empty file"),
        (lambda path: path.write_text('{"examples": [\n{]}'), ":2: not JSON"),
        (lambda path: path.write_bytes(b'{"examples": "\xff"}'), "not UTF-8 (byte 14"),
        (lambda path: path.write_text('{"rows": []}'), "wrong schema"),
        (lambda path: path.write_text('{"examples": []}'), "no examples in it"),
        (duplicate_id, "example 5: duplicate id 'water-2'"),
        (empty_context, "example 3 (id 'water-3'): empty context"),
        (no_answer, "example 3 (id 'water-3'): no answer"),
        (no_question, "example 3: wrong schema (no 'question')"),
    ],
)
def test_a_bad_data_file_is_refused(assert_refused, datasets, change, says):
    path = datasets / "sample/qa/or/sample_qa_or_test.json"  # the second of the languages
    change(path)
    assert_refused(says=[path, says])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (Path.unlink, "no such file"),
        (lambda path: path.write_text("one\n\nthree\n"), ":2: empty line"),
        (lambda path: path.write_text("one\ntwo\n"), "2 lines"),
        (lambda path: path.write_bytes(b"\xe0\xac"), "not UTF-8"),
    ],
)
def test_a_bad_file_of_sentences_is_refused(assert_refused, datasets, change, says):
    path = datasets / "sample/parallel/ory_Orya.txt"
    change(path)
    assert_refused("--dataset", "sample_parallel", "--langs", "hi", "or", says=[path, says])


# The matrix


def other_model(bloom: Path, folder: Path, change) -> Path:
    """The same model with another tokenizer.json."""
    shutil.copytree(bloom, folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_matrix_of_another_tokenizer_is_refused(assert_refused, bloom, small_matrix, tmp_path):
    def swap(content):
        vocab = content["model"]["vocab"]
        vocab["!"], vocab["?"] = vocab["?"], vocab["!"]

    folder = other_model(bloom, tmp_path / "model", swap)
    assert_refused("--model", folder, says=[f"--token_languages {small_matrix}: made for another tokenizer", bloom])


def test_a_matrix_of_another_size_is_refused(assert_refused, bloom, small_matrix, tmp_path):
    def add(content):
        content["added_tokens"].append(content["added_tokens"][-1] | {"id": 2000, "content": "<extra>"})

    folder = other_model(bloom, tmp_path / "model", add)
    assert_refused("--model", folder, says=[f"--token_languages {small_matrix}", "2000 tokens", "has 2001 tokens"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None),
        ("config.json", b""),
        ("probs.npz", None),
        ("channels.json", b"[]"),
        ("channels.json", b"{"),
        ("probs.npz", b"garb"),
        pytest.param("probs.npz", b""),
        ("probs.npz", 3000),
        pytest.param("config.json", b"[]"),
    ],
)
def test_a_damaged_matrix_is_refused(assert_refused, small_matrix, tmp_path, name, content):
    folder = shutil.copytree(small_matrix, tmp_path / "matrix")
    damage(folder / name, content)
    assert_refused("--token_languages", folder, says=[folder])


def test_rows_that_do_not_sum_to_one_are_refused(assert_refused, small_matrix, tmp_path):
    folder = shutil.copytree(small_matrix, tmp_path / "matrix")
    sp.save_npz(folder / "probs.npz", sp.load_npz(folder / "probs.npz") * np.float32(0.9))
    assert_refused("--token_languages", folder, says=[folder, "probs.npz has changed since the matrix was made"])
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["files"]["probs.npz"] = sha256_of_file(folder / "probs.npz")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.rmtree(tmp_path / "old")
    assert_refused("--token_languages", folder, says=[folder, "rows that don't sum to 1"])


# Where the output goes


def test_a_folder_that_no_run_wrote_is_refused_and_left_alone(probe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("mine")
    for flags in ([], ["--overwrite"]):
        assert_one_error_line(probe(*flags), tmp_path / "run", "'thesis.tex'")
        assert content_of(tmp_path / "run") == {"thesis.tex": b"mine"}


def test_a_folder_that_cannot_be_made_is_named(probe, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file/run"):
        assert_one_error_line(probe("--output_dir", place), place)
    assert (tmp_path / "file").read_text() == "mine"


def assert_full_disk(outcome: Outcome, folder: Path) -> None:
    assert_one_error_line(outcome, "No space left on device", "the same command goes on")
    assert outcome.out == "" and not (folder / "metrics.json").exists()
    assert not list(folder.rglob(".*.tmp"))


def test_a_disk_that_is_full_at_any_write(probe, finished, tmp_path, without_figures, monkeypatch):
    monkeypatch.setattr(records, "SECONDS_BETWEEN_SAVES", -1)
    # config.json; a record for some batches and each language; of grids, which are records too, none; then the tables,
    # of which the last: grid.npz, grid.json, page.html, metrics.json
    tables = 1 + N_BATCHES + 2 * 3 + 7
    for n_writes in (0, 1, 5, *range(9, 13), *range(tables, tables + 4)):
        folder = tmp_path / str(n_writes)
        with full_disk_after(n_writes):
            assert_full_disk(probe("--output_dir", folder), folder)
        assert probe("--output_dir", folder).status == 0
        assert tables_of(folder) == tables_of(finished.folder)
        shutil.rmtree(folder)


def test_a_disk_that_is_full_while_figures_are_drawn(probe, finished, tmp_path, readings, request):
    with full_disk_after(1 + 2 * 3 + 9 + 3):  # the second figure's PDF
        assert_full_disk(probe(), tmp_path / "run")
    assert {p.name for p in (tmp_path / "run/figures").iterdir()} == {"overview.png", "overview.pdf", "lines_hi.png"}
    request.getfixturevalue("drawn_before")
    assert probe().status == 0
    assert readings.done == N_BATCHES
    assert content_of(tmp_path / "run") == content_of(finished.folder)


# The hub

BLOOMZ = ["--model", "bigscience/bloomz-560m"]


@pytest.fixture
def hub(monkeypatch):
    """Function that makes an address the hub's; nothing is in the local cache."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    return lambda address: monkeypatch.setattr(loading, "HUB", address)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hub_that_refuses_ends_in_a_line_with_the_offline_command(assert_refused, hub):
    hub("http://127.0.0.1:9")
    says = ["--model bigscience/bloomz-560m: the hub (http://127.0.0.1:9) can't be reached", "--model gemma-3-270m"]
    assert_refused(*BLOOMZ, says=says)


def test_a_hub_that_never_answers_is_not_waited_for(probe, hub, silent_server):
    hub(silent_server)
    started = time.monotonic()
    assert_one_error_line(probe(*BLOOMZ), silent_server, "can't be reached", "--model gemma-3-270m")
    assert time.monotonic() - started < loading.HUB_TIMEOUT_SECONDS + 1


@pytest.mark.parametrize("status", [401, 404])
def test_a_model_that_the_hub_does_not_have_is_named(probe, hub, monkeypatch, status):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path == "/api/models/bigscience/bloomz-560m"
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub(f"http://127.0.0.1:{server.server_port}")
        assert_one_error_line(probe(*BLOOMZ), "--model bigscience/bloomz-560m: the hub has no such model")
        server.shutdown()


@pytest.mark.parametrize("silent", [False, True])
def test_without_a_hub_a_fresh_command_ends_within_ten_seconds(tmp_path, silent_server, silent):
    address = silent_server if silent else "http://127.0.0.1:9"
    script = "logit_lens_tokenid_to_lang.py" if silent else "probe_logit_lens.py"
    hub_variables = ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in hub_variables}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
    started = time.monotonic()
    command = [sys.executable, script, *BLOOMZ, "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=PROJECT_DIR, env=environment, capture_output=True, text=True, timeout=60)
    # Most of it is the import of the model libraries, which takes longer where other tests run beside it.
    assert time.monotonic() - started < (30 if "PYTEST_XDIST_WORKER" in os.environ else 10)
    assert_one_error_line(Outcome(done.returncode, done.stdout, done.stderr), address, "--model gemma-3-270m")
    assert done.stdout == "" and not (tmp_path / "run").exists()


# --- adapters --------------------------------------------------------------------------------------------------


def test_an_adapter_counts_and_equals_the_merged_model(probe, tmp_path, llama, adapter, without_figures):
    assert probe("--model", llama, "--output_dir", tmp_path / "without").status == 0
    assert probe("--model", llama, "--adapter", adapter, "--output_dir", tmp_path / "with").status == 0
    assert probe("--model", llama.parent / "merged", "--output_dir", tmp_path / "merged").status == 0
    assert_same_numbers(tmp_path / "with", tmp_path / "merged")
    without, live = (np.load(tmp_path / name / "per_prompt.npy") for name in ("without", "with"))
    assert without[:, 0] == pytest.approx(live[:, 0], abs=1e-6)  # what enters the first layer is the model's own
    assert (np.abs(without - live)[:, 1:].max(axis=2) > 1e-3).all()


def test_an_adapter_trained_further_is_another_command(probe, tmp_path, llama, adapter, without_figures):
    copy = shutil.copytree(adapter, tmp_path / "adapter")
    argv = ["--model", llama, "--adapter", copy, "--langs", "hi", "--limit", 2]
    assert probe(*argv).status == 0
    weights = load_file(copy / "adapter_model.safetensors")
    save_file({name: weight * 2 for name, weight in weights.items()}, copy / "adapter_model.safetensors")
    assert_one_error_line(probe(*argv), tmp_path / "run", "adapter_sha256 was")


def test_an_adapter_of_a_model_of_another_name_is_refused(assert_refused, bloom, adapter, tmp_path):
    copy = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((copy / "adapter_config.json").read_text()) | {"base_model_name_or_path": "someone/else"}
    (copy / "adapter_config.json").write_text(json.dumps(config))
    assert_refused("--adapter", copy, says=[f"--adapter {copy}", "someone/else", f"--model {bloom}"])


OTHER_SHAPES = [dict(hidden_size=64), dict(num_hidden_layers=4), dict(num_hidden_layers=2)]


@pytest.mark.parametrize("changes", OTHER_SHAPES, ids=str)
def test_an_adapter_of_a_model_of_another_shape_is_refused(assert_refused, saved, llama, tmp_path, changes):
    save_adapter(saved("llama", **changes), tmp_path / "adapter")
    says = [f"--adapter {tmp_path / 'adapter'}: does not fit --model {llama}"]
    assert_refused("--model", llama, "--adapter", tmp_path / "adapter", says=says)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_config.json", None),
        ("adapter_model.safetensors", None),
        pytest.param("adapter_config.json", b"{"),
        pytest.param("adapter_config.json", b"{}"),
        pytest.param("adapter_config.json", b"[]"),
        pytest.param("adapter_model.safetensors", b"garbage"),
        pytest.param("adapter_model.safetensors", 3000),
    ],
)
def test_what_is_no_adapter_is_refused(assert_refused, llama, adapter, tmp_path, name, content):
    copy = shutil.copytree(adapter, tmp_path / "adapter")
    damage(copy / name, content)
    assert_refused("--model", llama, "--adapter", copy, says=[f"--adapter {copy}"])


# --- what only a fresh process can show ------------------------------------------------------------------------

COMMANDS_IN_TURN = """
import json, sys
import probe_logit_lens
for argv in json.load(sys.stdin):
    print(probe_logit_lens.main(argv), flush=True)
"""


def test_the_libraries_add_nothing_to_the_line(saved, bloom, llama, small_matrix, tmp_path):
    save_adapter(saved("llama", hidden_size=64), tmp_path / "wider")
    save_adapter(saved("llama", num_hidden_layers=4), tmp_path / "deeper")
    no_weights = shutil.copytree(bloom, tmp_path / "no_weights")
    (no_weights / "model.safetensors").unlink()
    rest = ["--token_languages", small_matrix, "--langs", "hi", "--limit", 2, "--output_dir", tmp_path / "run"]
    commands = [
        ["--model", llama, "--adapter", tmp_path / "wider", *rest],
        ["--model", llama, "--adapter", tmp_path / "deeper", *rest],
        ["--model", with_changed_config(bloom, tmp_path / "t5", model_type="t5"), *rest],
        ["--model", no_weights, *rest],
        ["--model", bloom, *rest, "--split", "dev"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS_IN_TURN],
        cwd=PROJECT_DIR,
        input=json.dumps([[str(argument) for argument in argv] for argv in commands]),
        capture_output=True,
        text=True,
    )
    lines = done.stderr.splitlines()  # of the libraries' own loggers and warnings too
    assert done.stdout.split() == ["2"] * 5, done.stderr
    assert len(lines) == 5 and all(line.startswith("error: ") for line in lines), lines


def test_peft_adds_nothing_to_the_line(probe, saved, llama, tmp_path, recwarn):
    save_adapter(saved("llama", num_hidden_layers=2), tmp_path / "shallower")
    assert probe("--model", llama, "--adapter", tmp_path / "shallower").status == 2
    assert not recwarn.list


# --- the offline model -----------------------------------------------------------------------------------------


def test_the_last_layer_of_a_real_model_speaks_the_prompt_s_language(
    default_matrix_folder, offline_tokenizer, tmp_path, without_figures, monkeypatch
):
    monkeypatch.setattr(loading, "load_tokenizer", lambda name: offline_tokenizer)
    # What random prompts read is not looked at here.
    monkeypatch.setattr(null_prompts, "_read", lambda model, matrix, *_: np.zeros((19, len(matrix.channels))))
    rest = ["--langs", "hi", "--limit", 4, "--grid", 0, "--token_languages", default_matrix_folder]
    outcome = run(probe_logit_lens.main, "--model", OFFLINE_MODEL, *rest, "--output_dir", tmp_path / "run")
    assert (outcome.status, outcome.err) == (0, "") and "prompts: hi 4; skipped: 0" in outcome.out
    table = read(tmp_path / "run", "language_probs.csv")
    last = table[(table["prompt_lang"] == "hin_Deva") & (table["layer"] == table["layer"].max())]
    assert last.loc[(last["prob"] - last["floor"]).idxmax(), "channel"] == "hin_Deva"
    assert last.loc[last["share"].idxmax(), "channel"] == "hin_Deva"
