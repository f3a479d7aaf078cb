"""ablate_language.py from its command line to its files: a planted cause, each way, stopped and gone on with."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

import ablate_language
import plot_figures
from tests.scripts import assert_one_error_line, assert_stopped, content_of, run
from utils.answers import generation
from utils.data.corpora import read_corpus
from utils.data.examples import DATASETS_DIR, Example, load_examples
from utils.data.prompts import render
from utils.models.hidden_states import Prompt, encode
from utils.models.loading import load_model

pytestmark = pytest.mark.usefixtures("one_commit", "one_thread")

LANGS = ["en", "or", "zh"]
FEW = ["--corpus_langs", *LANGS, "--max_new_tokens", 4, "--lens", 2, "--losses", 12, "--strength", 1]
SIZE, ENGLISH, ODIA = 32, 0, 1  # two coordinates of the stream; each of the others is a language's or nobody's
N = 12


def ablate(folder, *argv):
    return run(ablate_language.main, "--output_dir", folder, "--language", "en", *argv)


@pytest.fixture(scope="module")
def tokens_of(tiny_tokenizer) -> dict[str, set[int]]:
    """Language -> the tokens that only its sentences have, among six languages."""
    sentences = read_corpus(DATASETS_DIR / "sample/parallel")
    codes = ("eng_Latn", "ory_Orya", "zho_Hans", "hin_Deva", "rus_Cyrl", "deu_Latn")
    found = {code: {i for ids in tiny_tokenizer(sentences[code])["input_ids"] for i in ids} for code in codes}
    return {code: found[code].difference(*(found[other] for other in codes if other != code)) for code in codes}


@pytest.fixture(scope="module")
def word(tokens_of, tiny_tokenizer) -> tuple[int, str]:
    """An Odia token that is a whole word: the answer to every question."""
    for token in sorted(tokens_of["ory_Orya"]):
        text = tiny_tokenizer.decode([token])
        if text.startswith(" ") and "\ufffd" not in text and len(text) > 2 and text[1:].isalpha():
            return token, text.strip()
    raise AssertionError("no such token")


@pytest.fixture(scope="module")
def planted(tmp_path_factory, llama, tokens_of, word) -> Path:
    """A model that writes two languages. One direction of the stream, which every text has and English ones have
    five times, writes English; another writes Odia. The first is the stronger one, so that it answers in English. What
    tells the other languages apart is in coordinates of their own, which write nothing.
    """
    folder = tmp_path_factory.mktemp("planted") / "tiny"
    model = AutoModelForCausalLM.from_pretrained(llama)
    embeddings, unembedding = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()  # the stream is what the tokens bring
            if "norm" in name:
                parameter.fill_(1)
        embeddings.zero_()
        unembedding.zero_()
        embeddings[:, ENGLISH], embeddings[:, ODIA] = 3, 2
        embeddings[:, 8:] = torch.from_numpy(0.3 * rng.standard_normal((len(embeddings), SIZE - 8))).float()
        embeddings[sorted(tokens_of["eng_Latn"]), ENGLISH] = 15
        for coordinate, code in enumerate(list(tokens_of)[1:], 2):
            embeddings[sorted(tokens_of[code]), coordinate] = 3
        unembedding[sorted(tokens_of["eng_Latn"]), ENGLISH] = 9
        unembedding[sorted(tokens_of["ory_Orya"]), ODIA] = 8
        unembedding[word[0], ODIA] = 10
    model.save_pretrained(folder)
    for file in llama.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture
def questions(monkeypatch, word):
    """Twelve questions, each on a context of its own, all with the same answer."""
    asked = [Example(str(i), "sample_qa", "ory_Orya", f"ଗଙ୍ଗା {i}", "କଣ?", [word[1]]) for i in range(N)]
    monkeypatch.setattr(ablate_language, "load_examples", lambda *args: asked)


def test_what_one_direction_writes_goes_with_it_and_no_control_does_it(planted, questions, small_matrix, tmp_path):
    argv = ["--model", planted, "--token_languages", small_matrix, *FEW[4:], "--layers", 3]
    outcome = ablate(tmp_path / "out", *argv)
    assert outcome.status == 0, outcome.err
    assert "Odia, strength 1: suppression lifts\n" in outcome.out
    (verdict,) = pd.read_csv(tmp_path / "out" / "verdict.csv").to_dict("records")
    assert verdict["before"] == 0 and verdict["after"] > 0.3 and verdict["over_control_low"] > 0
    assert verdict["perplexity_ratio_high"] < 1
    answers = pd.read_csv(tmp_path / "out" / "answers.csv").set_index("role")
    assert answers.loc["language", "cut_f1"] == 1 and answers.loc["base", "cut_f1"] == 0
    for control in ("random", "bystander", "target"):
        assert (answers.loc[[control], "f1"] == 0).all(), control
    lens = pd.read_csv(tmp_path / "out" / "lens.csv")
    last = lens[lens["layer"] == 3].pivot_table(index=["role", "draw"], columns="channel", values="share").fillna(0)
    assert last.loc[("base", 0), "eng_Latn"] > 0.5 > last.loc[("base", 0), "ory_Orya"]
    assert last.loc[("language", 0), "ory_Orya"] > 0.8 and last.loc[("language", 0), "eng_Latn"] < 0.05
    assert (last.drop(index=("language", 0))["eng_Latn"] > 0.5).all()
    below = lens[(lens["layer"] == 2) & (lens["channel"] == "eng_Latn")]
    assert below["share"].nunique() == 1 and len(below) == 9  # below --layers all is the model's own
    loss = pd.read_csv(tmp_path / "out" / "perplexity.csv").set_index(["role", "language"])["change"]
    assert loss["language", "eng_Latn"] > 0.5
    assert loss["language", "ory_Orya"] < loss.drop("language")[:, "ory_Orya"].min() - 5
    table = pd.read_csv(tmp_path / "out" / "direction.csv")
    assert (table["cosine_of_halves"] > 0.9).all() and set(table["layer"]) == {3}


def test_the_last_layer_s_share_goes_by_the_logits_alone(planted, questions, small_matrix, tmp_path):
    argv = ["--model", planted, "--token_languages", small_matrix, *FEW[:-1], 1000, "--by", "logits"]
    outcome = ablate(tmp_path / "out", *argv)
    assert outcome.status == 0, outcome.err
    lens = pd.read_csv(tmp_path / "out" / "lens.csv")
    english = lens[lens["channel"] == "eng_Latn"].set_index(["role", "draw", "layer"])["share"]
    assert english.get(("language", 0, 3), 0) < 0.05 and english["base", 0, 3] > 0.5
    for layer in (0, 1, 2):
        assert english["language", 0, layer] == english["base", 0, layer]
    assert not (tmp_path / "out" / "records").exists()


def test_neurons_are_stopped_and_gone_on_with(llama, small_matrix, tmp_path, monkeypatch):
    argv = ["--model", llama, "--token_languages", small_matrix, *FEW, "--by", "neurons", "--top", 30, "--limit", 3]
    whole = ablate(tmp_path / "whole", *argv)
    assert whole.status == 0 and "too few contexts" in whole.out, whole.err
    calls, generate = [], generation.generate

    def stopped(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(*args)

    monkeypatch.setattr(generation, "generate", stopped)
    assert_stopped(ablate(tmp_path / "out", *argv), tmp_path / "out")
    done = {path.name for path in (tmp_path / "out" / "answers").iterdir()}
    assert done == {
        "base_ory_Orya.jsonl",
        "language-eng_Latn-1_ory_Orya.jsonl",
        "random-eng_Latn-1-1_ory_Orya.jsonl",
    }
    before = len(calls)
    assert ablate(tmp_path / "out", *argv).status == 0
    assert len(calls) == before + 6  # what was done is not done again
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")
    again = ablate(tmp_path / "out", *argv)
    assert again.status == 0 and again.out.replace("out", "whole") == whole.out.replace("out", "whole")
    assert_one_error_line(ablate(tmp_path / "out", *argv, "--seed", 1), "another command's run", "seed")
    shutil.rmtree(tmp_path / "out" / "figures")
    drawn = run(plot_figures.main, tmp_path / "out")
    assert drawn.status == 0 and "dose_or.png" in drawn.out
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")
    table = pd.read_csv(tmp_path / "out" / "neurons.csv")
    assert set(table["layer"]) <= {1, 2, 3} and (table.groupby("language")["experts"].sum() == 30).all()


def test_what_tuning_took_is_added_back(llama, adapter, small_matrix, tmp_path):
    argv = ["--model", llama, "--adapter", adapter, "--add_back", "--token_languages", small_matrix, *FEW]
    outcome = ablate(tmp_path / "out", *argv, "--limit", 3)
    assert outcome.status == 0, outcome.err
    table = pd.read_csv(tmp_path / "out" / "direction.csv")
    first = table[table["layer"] == table["layer"].min()]
    assert first["added"].to_numpy() == pytest.approx(
        (first["component_untuned"] - first["component_tuned"]).to_numpy()
    )
    assert "gain" in pd.read_csv(tmp_path / "out" / "verdict.csv")
    rows = [json.loads(line) for line in (tmp_path / "out/answers/untuned_ory_Orya.jsonl").read_text().splitlines()]
    model = load_model(str(llama))  # the model without its adapter, asked by ourselves
    ids = encode(model.tokenizer, render(load_examples("sample_qa", ["or"], limit=1)[0], "plain"))
    (own,) = generation.generate(model, [Prompt(ids, [len(ids) - 1], key="x")], max_new_tokens=4)
    assert rows[0]["generated"] == own.text and len(rows) == 3


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--langs", "or", "en"], ["--language eng_Latn", "--langs"]),
        (["--bystander", "or"], ["--bystander ory_Orya", "choose another"]),
        (["--langs", "zh", "de", "ru", "hi"], ["--bystander", "name one"]),
        (["--corpus_langs", "or", "or"], ["--corpus_langs", "once"]),
        (["--n_random", 4], ["--n_random 4", "5"]),
        (["--layers", "2-9"], ["--layers 2-9", "0 to 3"]),
        (["--layers", "3-2"], ["--layers 3-2", "0 to 3"]),
        (["--layers", "0-2", "--by", "neurons"], ["--layers 0-2", "1 to 3"]),
        (["--layers", "few"], ["--layers few", "first and the last"]),
        (["--layers", "1", "--by", "logits"], ["--layers 1", "last layer alone"]),
        (["--centre", "others", "--by", "logits"], ["--centre others", "direction"]),
        (["--add_back"], ["--add_back", "--adapter"]),
        (["--add_back", "--adapter", "x", "--by", "logits"], ["--add_back", "--by logits"]),
        (["--sentences", 1], ["two sentences"]),
        (["--corpus", "nowhere"], ["nowhere", "sample_parallel"]),
        (["--max_new_tokens", 2000], ["2000", "1024"]),
        (["--by", "neurons", "--top", 500], ["--top 500", "layers 1 to 3"]),
    ],
)
def test_bad_input_is_one_line(llama, small_matrix, tmp_path, argv, words):
    outcome = ablate(tmp_path / "out", "--model", llama, "--token_languages", small_matrix, *FEW, *argv)
    assert_one_error_line(outcome, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("strength", ["0", "-1", "nan", "inf"])
def test_no_strength_is_refused(llama, tmp_path, strength):
    outcome = ablate(tmp_path / "out", "--model", llama, "--strength", strength)
    assert outcome.status == 2 and strength in outcome.err and not (tmp_path / "out").exists()
