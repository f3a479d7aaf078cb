"""language_neurons.py from its command line to its files: each command, stopped and gone on with, bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

import language_neurons
import plot_figures
from tests.scripts import assert_one_error_line, assert_stopped, content_of, run
from utils.data.examples import DATASETS_DIR, read_sentences
from utils.models import interventions
from utils.models.loading import load_model
from utils.neurons import effects

pytestmark = pytest.mark.usefixtures("one_commit", "one_thread")

LANGS = ["en", "hi", "or", "zh"]
CODES = ["eng_Latn", "hin_Deva", "ory_Orya", "zho_Hans"]


def neurons(command, folder, *argv):
    return run(language_neurons.main, command, "--output_dir", folder, *argv)


def tokens_of(tokenizer, code) -> set[int]:
    sentences = read_sentences(DATASETS_DIR / f"sample/parallel/{code}.txt")
    return {i for ids in tokenizer(sentences)["input_ids"] for i in ids}


@pytest.fixture(scope="module")
def planted(tmp_path_factory, llama) -> Path:
    """The tiny Llama, one neuron of whose first MLP listens to Devanagari, and does nothing else."""
    folder = tmp_path_factory.mktemp("planted") / "tiny"
    model = AutoModelForCausalLM.from_pretrained(llama)
    tokenizer = load_model(str(llama)).tokenizer
    ids = {code: tokens_of(tokenizer, code) for code in CODES}
    own = ids["hin_Deva"] - set().union(*(ids[code] for code in CODES if code != "hin_Deva"))
    assert len(own) > 10
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        embeddings[:, 0] = 0
        embeddings[sorted(own), 0] = 30  # a direction of the stream that only Devanagari's tokens have
        for layer in model.model.layers:  # and that nothing else reads or writes
            for name, parameter in layer.named_parameters():
                if "o_proj" in name or "down_proj" in name:
                    parameter[0] = 0
        gate = model.model.layers[0].mlp.gate_proj.weight
        gate[7] = 0
        gate[7, 0] = 50
        model.model.layers[0].post_attention_layernorm.weight[0] = 1
    model.save_pretrained(folder)
    for file in llama.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def found(planted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "find"
    outcome = neurons("find", folder, "--model", planted, "--langs", *LANGS)
    assert (outcome.status, "tables:" in outcome.out) == (0, True), outcome.err
    return folder


def test_the_planted_neuron_is_found_first(found):
    table = pd.read_csv(found / "experts.csv")
    assert list(table) == "language rank layer module neuron auroc mean_response above_null".split()
    first = table[(table["language"] == "hin_Deva") & (table["auroc"] == 1)]
    assert ((first["layer"] == 1) & (first["module"] == "mlp.gate_proj") & (first["neuron"] == 7)).any()
    planted = first[(first["layer"] == 1) & (first["module"] == "mlp.gate_proj") & (first["neuron"] == 7)].iloc[0]
    others = table[(table["language"] != "hin_Deva") & (table["layer"] == 1) & (table["neuron"] == 7)]
    assert planted["above_null"] and planted["mean_response"] > 10
    assert (others[others["module"] == "mlp.gate_proj"]["auroc"] < 0.5).all()
    assert (table.groupby("language", sort=False)["auroc"].apply(lambda a: a.is_monotonic_decreasing)).all()
    metrics = json.loads((found / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["languages"]["language"] == CODES and metrics["n_neurons"] == 3 * (48 + 32)
    assert np.array(metrics["languages"]["null_mean"]) == pytest.approx(0.5, abs=0.06)
    arrays = np.load(found / "neurons.npz")
    assert arrays["auroc"].shape == (4, 240) and not (found / "responses").exists()
    overlaps = pd.read_csv(found / "overlap.csv")
    assert set(overlaps["k"]) == {100} and len(overlaps) == 6
    config = json.loads((found / "config.json").read_text(encoding="utf-8"))
    assert config["script"] == "language_neurons.py find" and config["inputs"]["n_sentences"] == 12
    assert sorted(path.name for path in (found / "figures").glob("*.png")) == ["experts.png", "overlap.png"]


def test_exchanged_languages_give_exchanged_tables(found, planted, no_figures, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    exchanged = {"eng_Latn": "hin_Deva", "hin_Deva": "eng_Latn"}
    for code in CODES:
        shutil.copy(DATASETS_DIR / f"sample/parallel/{exchanged.get(code, code)}.txt", corpus / f"{code}.txt")
    argv = ["--model", planted, "--langs", "hi", "en", "or", "zh", "--corpus", corpus]
    assert neurons("find", tmp_path / "out", *argv).status == 0
    own, other = (np.load(folder / "neurons.npz") for folder in (found, tmp_path / "out"))
    # English's sentences came first in both, under either name.
    assert np.array_equal(own["auroc"], other["auroc"]) and np.array_equal(own["mean_response"], other["mean_response"])
    tables = [pd.read_csv(folder / "experts.csv") for folder in (found, tmp_path / "out")]
    tables[1]["language"] = tables[1]["language"].map(lambda code: exchanged.get(code, code))
    pd.testing.assert_frame_equal(*tables)


def test_find_goes_on_where_it_was_stopped(planted, no_figures, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.models.hidden_states.MAX_BATCH_TOKENS", {"cpu": 400})
    argv = ["--model", planted, "--langs", *LANGS]
    whole = neurons("find", tmp_path / "whole", *argv)
    assert whole.status == 0
    read, calls = interventions.max_responses, []

    def stopped(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(interventions, "max_responses", stopped)
    assert_stopped(neurons("find", tmp_path / "out", *argv), tmp_path / "out")
    assert len(list((tmp_path / "out" / "responses").glob("*.npy"))) == 2
    assert neurons("find", tmp_path / "out", *argv).status == 0
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")
    again = neurons("find", tmp_path / "out", *argv)
    assert again.status == 0 and again.out.replace("out", "whole") == whole.out.replace("out", "whole")


@pytest.fixture
def no_figures(monkeypatch):
    """Where tables alone are compared: figures are drawn from them, and cost more than a tiny model."""
    monkeypatch.setattr("utils.figures.neurons.draw_neurons", lambda run_dir: [])


@pytest.fixture(scope="module")
def steered(found, small_matrix, tmp_path_factory):
    folder = tmp_path_factory.mktemp("steered") / "steer"
    argv = ["--neurons", found, "--to", "hi", "--top", 2, 40, "--limit", 6, "--losses", 3, "--written", 2, "--lens", 2]
    outcome = neurons("steer", folder, *argv, "--token_languages", small_matrix)
    assert outcome.status == 0, outcome.err
    return folder


def test_steering_compares_experts_with_both_controls(steered, found, planted):
    changes = pd.read_csv(steered / "changes.csv")
    assert set(changes["condition"]) == {"centred", "expert", "random"} and set(changes["k"]) == {0, 2, 40}
    assert set(changes[changes["condition"] == "expert"]["against"]) == {"base", "random", "centred"}
    assert changes["change"].to_numpy() == pytest.approx((changes["after"] - changes["before"]).to_numpy(), abs=1e-7)
    alignment, retrieval = (pd.read_csv(steered / f"{name}.csv") for name in ("alignment", "retrieval"))
    assert len(alignment) == 6 * 6 and len(retrieval) == 6 * 12 and set(alignment["n"]) == {6}
    # The base's distances, from a pass of our own over the sentences past those that found the neurons.
    model = load_model(str(planted))
    states = {}
    for code in ("eng_Latn", "zho_Hans"):
        texts = read_sentences(DATASETS_DIR / f"sample/parallel/{code}.txt")[12:18]
        states[code] = []
        for text in texts:
            ids = torch.tensor([interventions.sentence_prompt(model, text).ids])
            with torch.inference_mode():
                states[code].append(model.decoder(input_ids=ids).last_hidden_state[0].mean(dim=0))
    expected = 1 - torch.cosine_similarity(*(torch.stack(of_lang) for of_lang in states.values())).mean()
    row = alignment.set_index(["condition", "k", "language", "other"]).loc[("base", 0, "eng_Latn", "zho_Hans")]
    assert row["mean"] == pytest.approx(float(expected), abs=1e-5)
    perplexity = pd.read_csv(steered / "perplexity.csv")
    assert np.exp(perplexity["loss"]).to_numpy() == pytest.approx(perplexity["perplexity"].to_numpy(), rel=1e-6)
    base = perplexity[perplexity["condition"] == "base"]
    assert (base["change"] == 0).all() and (base["n"] == 3).all() and len(perplexity) == 5 * 4
    lens = pd.read_csv(steered / "lens.csv")
    assert set(zip(lens["condition"], lens["k"])) == {("base", 0), ("expert", 40), ("random", 40)}
    assert (lens.groupby(["condition", "k", "prompt_lang", "layer"])["share"].sum() < 1 + 1e-6).all()
    written = pd.read_csv(steered / "written.csv")
    assert written["told"].between(0, 1).all() and len(pd.read_csv(steered / "texts.csv")) == 5 * 4 * 2
    claims = pd.read_csv(steered / "claims.csv")
    assert set(claims["verdict"]) <= {"holds", "reversed", "not seen", "fails"}
    assert set(claims[claims["claim"] == "alignment rises"]["against"]) == {"base", "random", "centred"}
    assert (steered / "figures" / "effects.png").exists() and not (steered / "records").exists()


def test_steering_goes_on_where_it_was_stopped(steered, found, small_matrix, no_figures, tmp_path, monkeypatch):
    read, calls = effects.pooled_and_losses, []

    def stopped(*args):
        calls.append(1)
        if len(calls) == 11:  # base reads each language twice
            raise KeyboardInterrupt
        return read(*args)

    argv = ["--neurons", found, "--to", "hi", "--top", 2, 40, "--limit", 6, "--losses", 3, "--written", 2, "--lens", 2]
    argv += ["--token_languages", small_matrix]
    monkeypatch.setattr(effects, "pooled_and_losses", stopped)
    assert_stopped(neurons("steer", tmp_path / "out", *argv), tmp_path / "out")
    assert len(list((tmp_path / "out" / "records").iterdir())) == 6
    monkeypatch.setattr(effects, "pooled_and_losses", read)
    assert neurons("steer", tmp_path / "out", *argv).status == 0
    expected = {name: content for name, content in content_of(steered).items() if not name.startswith("figures/")}
    assert content_of(tmp_path / "out") == expected


def test_a_probe_a_layer_over_checkpoints(bloom, tmp_path):
    checkpoints = tmp_path / "training"
    for step in ("step1", "step2"):
        shutil.copytree(bloom, checkpoints / step)
    model = AutoModelForCausalLM.from_pretrained(bloom)
    with torch.no_grad():
        for parameter in model.transformer.h.parameters():
            parameter.zero_()  # nothing but embeddings: every layer says what they say
    model.save_pretrained(checkpoints / "step2")
    argv = ["--model", checkpoints, "--revisions", "step1", "step2", "--langs", *LANGS[:3], "--tokens", 10]
    outcome = neurons("layers", tmp_path / "out", *argv)
    assert outcome.status == 0, outcome.err
    accuracy = pd.read_csv(tmp_path / "out" / "accuracy.csv")
    assert set(accuracy["revision"]) == {"step1", "step2"} and len(accuracy) == 2 * (4 + 4 + 1)
    assert set(accuracy["tokens"]) == {3 * 3 * 10 * 4}  # seeds, languages, tokens, test sentences
    shuffled = accuracy[accuracy["probe"] == "shuffled"]["accuracy"]
    assert shuffled.mean() == pytest.approx(1 / 3, abs=0.12)
    of_last = accuracy[(accuracy["revision"] == "step2") & (accuracy["probe"] == "state")]["accuracy"]
    assert of_last.nunique() == 1 and of_last.iloc[0] > 0.45  # chance is a third
    confusion = pd.read_csv(tmp_path / "out" / "confusion.csv")
    assert confusion.groupby(["revision", "probe", "layer"])["n"].sum().eq(360).all()
    assert (tmp_path / "out" / "figures" / "revisions.png").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["figures"]
    assert_one_error_line(neurons("layers", tmp_path / "no", *argv[:3], "step9", *argv[5:]), "step9", "step1, step2")


@pytest.fixture(scope="module")
def names_file(tmp_path_factory) -> Path:
    """Made-up names, of which two are refused: one is two words, one is the same in two languages."""
    words = "stone river cloud lamp bread moon chair glass".split()
    rows = [["symbol", *CODES]]
    rows += [[str(i), word, "क" * (i + 1) + "ा", "କ" * (i + 1) + "ା", "石" * (i + 1)] for i, word in enumerate(words)]
    rows += [["8", "ice cream", "ख", "ଖ", "冰"], ["9", "radio", "radio", "ଗ", "台"], ["10", "salt", "", "ଘ", "盐"]]
    path = tmp_path_factory.mktemp("names") / "names.tsv"
    path.write_text("\n".join("\t".join(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_concepts_and_latent_names(llama, names_file, tmp_path):
    argv = [
        "--model",
        llama,
        "--langs",
        *LANGS,
        "--concepts",
        names_file,
        "--n_concepts",
        8,
        "--top",
        20,
        "--latent",
        6,
    ]
    outcome = neurons("concepts", tmp_path / "out", *argv)
    assert outcome.status == 0, outcome.err
    pairs = pd.read_csv(tmp_path / "out" / "pairs.csv")
    assert len(pairs) == 6 and set(pairs["k"]) == {20} and set(pairs["concepts"]) == {8}
    assert pairs["chance"].to_numpy() == pytest.approx(20 / 240)
    assert pairs["above_other"].to_numpy() == pytest.approx(
        (pairs["same_concept"] - pairs["other_concept"]).to_numpy(), abs=1e-7
    )
    by_layer = pd.read_csv(tmp_path / "out" / "by_layer.csv")
    assert by_layer["experts"].sum() == pytest.approx(1, abs=1e-6)
    for column in ("same_concept", "other_concept", "null"):
        assert by_layer[column].sum() == pytest.approx(pairs[column].mean(), abs=1e-6)
    latent = pd.read_csv(tmp_path / "out" / "latent.csv")
    assert set(latent["name"]) == {"english", "target", "third", "english_null", "target_null"}
    assert set(latent["layer"]) == {0, 1, 2, 3} and latent["prob"].between(0, 1).all()
    assert {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")} == {"latent", "layers", "pairs"}
    few = [*argv[:10], 9, *argv[11:]]
    assert_one_error_line(neurons("concepts", tmp_path / "no", *few), "--n_concepts 9", "8 concepts")


def test_figures_are_drawn_again_from_the_tables(found, tmp_path):
    copy = shutil.copytree(found, tmp_path / "copy")
    shutil.rmtree(copy / "figures")
    outcome = run(plot_figures.main, copy)
    assert outcome.status == 0 and "overlap.png" in outcome.out
    assert content_of(copy / "figures") == content_of(found / "figures")
    (copy / "halves.csv").unlink()
    assert_one_error_line(run(plot_figures.main, copy), "halves.csv")


def test_bad_input_is_one_line(found, planted, names_file, tmp_path):
    out = tmp_path / "out"
    find = ["--model", planted, "--langs"]
    assert_one_error_line(neurons("find", out, *find, "en"), "--langs en", "two languages")
    assert_one_error_line(neurons("find", out, *find, "en", "hi", "--limit", 99), "--limit 99", "24 sentences")
    assert_one_error_line(neurons("find", out, *find, "en", "hi", "--corpus", "nowhere"), "nowhere", "flores200")
    steer = ["--neurons", found, "--to"]
    assert_one_error_line(neurons("steer", out, *steer, "de"), "deu_Latn", "hin_Deva")
    assert_one_error_line(neurons("steer", out, *steer, "hi", "--top", 500), "--top 500", "240 neurons")
    assert_one_error_line(neurons("steer", out, *steer, "hi", "--model", "gemma-3-270m"), "gemma-3-270m", planted)
    assert_one_error_line(neurons("steer", out, "--neurons", tmp_path, "--to", "hi"), "config.json")
    assert_one_error_line(
        neurons("concepts", out, "--model", planted, "--concepts", names_file, "--langs", "en", "xh"), "xh"
    )
    assert_one_error_line(neurons("concepts", out, "--model", planted, "--concepts", out / "no.tsv"), "no.tsv")
