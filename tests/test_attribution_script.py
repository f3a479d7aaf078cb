"""attribute_gain.py from its command line to its tables: whole runs, stopped ones, planted examples, bad input."""

import argparse
import functools
import json
import os

import numpy as np
import pandas as pd
import pytest
import torch

import attribute_gain
import QAtraining
from tests.scripts import assert_one_error_line, content_of, run
from utils import command_line
from utils.command_line import ATTRIBUTIONS
from utils.data.examples import DATASETS_DIR, data_files, load_examples
from utils.models.loading import load_model
from utils.runs import RunDirectory, configuration, write_table
from utils.training import influence, retraining, trainer
from utils.training.measures import Measures, query_of
from utils.training.recipe import FAST, RECIPES, Recipe
from utils.training.texts import training_text

pytestmark = pytest.mark.usefixtures("one_commit", "one_thread")

WEIGHTS = "adapter_model.safetensors"
SHORT = ["--batch_size", 2, "--accumulate", 1, "--epochs", 1, "--lora_rank", 2, "--learning_rate", 0.01]
ARGUMENTS = [
    "--langs",
    "en",
    "--limit",
    6,
    "--query_langs",
    "hi",
    "en",
    "--query_limit",
    3,
    "--interferer",
    "ta",
    *SHORT,
]
ARGUMENTS += ["--max_new_tokens", 3]


@pytest.fixture(scope="module")
def runs_of(tmp_path_factory, one_commit, one_thread, llama):
    """Method -> its finished run: (folder, what was said); made on first use."""

    @functools.cache
    def made(method):
        folder = tmp_path_factory.mktemp(method) / "run"
        outcome = run(attribute_gain.main, "--model", llama, "--method", method, *ARGUMENTS, "--output_dir", folder)
        assert outcome.status == 0, outcome.err
        return folder, outcome

    return made


def test_methods_and_recipes_are_those_of_the_command_line():
    assert set(attribute_gain.WITH_ADAPTER) < set(ATTRIBUTIONS) and "fast" in RECIPES
    args = attribute_gain.parse_args(["--method", "bm25"])
    assert (args.epochs, args.max_tokens, args.lora_rank, args.seeds) == (2, 256, 64, [42, 43])
    assert attribute_gain.recipe_of(args, 7) == Recipe(epochs=2, gradient_checkpointing=False, seed=7)
    assert args.epochs == FAST["epochs"] and "ekfac" in command_line.ATTRIBUTIONS


# --- the truth ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tiny_tokenizer):
    return [training_text(tiny_tokenizer, e, max_tokens=256) for e in load_examples("sample_qa", ["en"], "train")[:6]]


RECIPE = Recipe(epochs=2, batch_size=2, accumulate=2, lora_rank=2, learning_rate=0.01, gradient_checkpointing=False)


def test_without_nothing_the_adapter_is_that_of_the_training_script(llama, texts, tmp_path):
    argv = ["--model", llama, "--dataset", "sample_qa", "--langs", "en", "--limit", 6, "--recipe", "fast"]
    argv += ["--batch_size", 2, "--accumulate", 2, "--lora_rank", 2, "--learning_rate", 0.01]
    outcome = run(QAtraining.main, *argv, "--output_dir", tmp_path / "script")
    assert outcome.status == 0, outcome.err
    retraining.train_without(load_model(str(llama)), str(llama), texts, [], RECIPE, tmp_path / "ours")
    for name in (WEIGHTS, "adapter_config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "script" / name).read_bytes()
    assert not (tmp_path / "ours/checkpoints").exists()
    retraining.train_without(load_model(str(llama)), str(llama), texts, [1], RECIPE, tmp_path / "less")
    assert (tmp_path / "less" / WEIGHTS).read_bytes() != (tmp_path / "ours" / WEIGHTS).read_bytes()


def test_what_is_left_out_is_never_read_and_the_others_keep_their_order(llama, texts, tmp_path, monkeypatch):
    read = []
    really = trainer.Finetuning.training_step

    def step(self, model, inputs, *args, **kwargs):
        read.extend(self.texts[row].example.id for row in inputs["rows"].tolist())
        return really(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer.Finetuning, "training_step", step)
    retraining.train_without(load_model(str(llama)), str(llama), texts, [], RECIPE, tmp_path / "all")
    whole, left_out = read[:], {texts[row].example.id for row in (0, 4)}
    read.clear()
    retraining.train_without(load_model(str(llama)), str(llama), texts, [0, 4], RECIPE, tmp_path / "some")
    assert len(whole) == 12 and read == [id for id in whole if id not in left_out]
    with pytest.raises(ValueError, match="nothing is left to train on"):
        retraining.train_without(load_model(str(llama)), str(llama), texts, range(6), RECIPE, tmp_path / "none")


def test_a_run_of_retraining(runs_of, llama, tiny_tokenizer):
    folder, outcome = runs_of("retrain")
    units, queries = (pd.read_csv(folder / f"{name}.csv") for name in ("units", "queries"))
    assert list(units["unit"]) == ["context-001", "context-002", "context-003"] and list(units["n"]) == [2, 2, 2]
    assert list(queries["lang"]) == ["hin_Deva"] * 3 + ["eng_Latn"] * 3
    assert list(queries["context"]) == [0, 1, 2, 0, 1, 2]  # translations share their ids
    values = pd.read_csv(folder / "values.csv")
    assert len(values) == 4 * 2 * 3 * 6 and set(values["measure"]) == {"loss", "script", "stop", "f1"}
    loss = values[(values["measure"] == "loss") & (values["seed"] == 42)].pivot(
        index="unit", columns="query", values="value"
    )
    kept = folder / "retrained/seed42-all"
    model = load_model(str(llama), kept)
    query = query_of(tiny_tokenizer, load_examples("sample_qa", ["hi"])[0], 256)
    with_all = Measures(model, ["hin_Deva"])(query)["loss"].item()
    without = pd.read_csv(folder / "retrained/seed42-context-002/measured.csv").query(
        "measure == 'loss' and query == 0"
    )
    assert loss.loc["context-002", 0] == pytest.approx(with_all - without["value"].iloc[0], abs=1e-5)
    assert len(list(folder.glob(f"retrained/*/{WEIGHTS}"))) == 2  # with all texts, of each seed
    effects = pd.read_csv(folder / "effects.csv")
    assert len(effects) == 4 * 3 * 3 and set(effects["query_lang"]) == {"all", "hin_Deva", "eng_Latn"}
    means = values[values["measure"] == "stop"].groupby("unit")["value"].mean()
    of_all = effects[(effects["measure"] == "stop") & (effects["query_lang"] == "all")].set_index("unit")
    assert of_all["mean"].to_numpy() == pytest.approx(means.loc[of_all.index].to_numpy())
    assert "loss: what a context did" in outcome.out and outcome.out.endswith(f"run: {folder}\n")


def test_a_retraining_that_was_stopped_goes_on_to_the_same_bytes(runs_of, llama, tmp_path, monkeypatch):
    whole, _ = runs_of("retrain")
    argv = ["--model", llama, "--method", "retrain", *ARGUMENTS, "--output_dir", tmp_path / "run"]
    really, calls = attribute_gain.f1_of_answers, []

    def stops(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return really(*args)

    monkeypatch.setattr(attribute_gain, "f1_of_answers", stops)
    assert run(attribute_gain.main, *argv).status == 130
    assert len(list((tmp_path / "run").glob("retrained/*/measured.csv"))) == 2
    kept = tmp_path / "run/retrained/seed42-context-002"  # trained, and not measured
    before = os.stat(kept / WEIGHTS).st_mtime_ns
    monkeypatch.setattr(attribute_gain, "remove_adapter", lambda folder: None)
    assert run(attribute_gain.main, *argv).status == 0
    assert os.stat(kept / WEIGHTS).st_mtime_ns == before and len(calls) == 9
    for name in ("values.csv", "effects.csv", "units.csv", "queries.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


# --- predictions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ATTRIBUTIONS[1:])
def test_a_run_of_a_predictor(runs_of, method):
    folder, _ = runs_of(method)
    values, of_examples = (pd.read_csv(folder / f"{name}.csv") for name in ("values", "examples"))
    measures = {"loss", "script", "stop"} if method in attribute_gain.WITH_GRADIENTS else {"any"}
    assert set(values["measure"]) == measures and len(of_examples) == len(measures) * 6 * 6
    summed = of_examples.assign(unit=[f"context-00{1 + row // 2}" for row in of_examples["example"]])
    summed = summed.groupby(["measure", "unit", "query"])["value"].sum()
    stored = values.set_index(["measure", "unit", "query"])["value"]
    assert stored.to_numpy() == pytest.approx(summed.loc[stored.index].to_numpy(), rel=1e-5)
    assert not (folder / "records").exists()
    assert (folder / "adapter" / WEIGHTS).is_file() == (method in attribute_gain.WITH_ADAPTER)


def test_the_adapter_of_the_truth_predicts_as_one_of_its_own(runs_of, llama, tmp_path):
    """The same recipe and seed, so that the same adapter comes of it."""
    truth, _ = runs_of("retrain")
    argv = ["--model", llama, "--method", "cosine", *ARGUMENTS, "--adapter", truth / "retrained/seed42-all"]
    assert run(attribute_gain.main, *argv, "--output_dir", tmp_path / "run").status == 0
    assert (tmp_path / "run/values.csv").read_bytes() == (runs_of("cosine")[0] / "values.csv").read_bytes()


def test_cosines_are_those_of_plain_gradients(runs_of, llama, texts, tiny_tokenizer):
    folder, _ = runs_of("cosine")
    model = load_model(str(llama), folder / "adapter")
    weights = [p.requires_grad_() for name, p in model.causal_lm.named_parameters() if "lora_" in name]

    def flat(scalar):
        return torch.cat([part.flatten() for part in torch.autograd.grad(scalar, weights)])

    ids = torch.tensor([texts[2].ids])
    of_text = flat(torch.nn.functional.cross_entropy(model.causal_lm(ids).logits[0, :-1], ids[0, 1:]))
    query = query_of(tiny_tokenizer, load_examples("sample_qa", ["hi"])[0], 256)
    of_query = flat(-Measures(model, ["hin_Deva"])(query)["loss"])
    expected = torch.nn.functional.cosine_similarity(of_text, of_query, dim=0).item()
    found = pd.read_csv(folder / "examples.csv").query("measure == 'loss' and example == 2 and query == 0")["value"]
    assert found.iloc[0] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(("of_blocks", "n_files"), [(0, 1), (1, 3), (1, 10)])
def test_ekfac_that_was_stopped_goes_on_to_the_same_bytes(runs_of, llama, tmp_path, monkeypatch, of_blocks, n_files):
    """Among the curvatures, after a query's file, among the files of the texts; those are not made again."""
    whole, _ = runs_of("ekfac")
    argv = ["--model", llama, "--method", "ekfac", *ARGUMENTS, "--output_dir", tmp_path / "run"]
    argv += ["--adapter", runs_of("retrain")[0] / "retrained/seed42-all"]
    n_blocks = len(influence.lora_blocks(load_model(str(llama), whole / "adapter")))
    left = [of_blocks * n_blocks + n_files]

    def counted(writer):
        def write(*args, **kwargs):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return writer(*args, **kwargs)

        return write

    monkeypatch.setattr(influence, "write_arrays", counted(influence.write_arrays))
    monkeypatch.setattr(attribute_gain, "write_array", counted(attribute_gain.write_array))
    assert run(attribute_gain.main, *argv).status == 130
    n_queries = n_texts = 6
    left[0] = n_blocks * (1 - of_blocks) + n_queries + n_texts - n_files * of_blocks
    assert run(attribute_gain.main, *argv).status == 0 and left == [0]
    assert (tmp_path / "run/values.csv").read_bytes() == (whole / "values.csv").read_bytes()


def test_languages_of_a_mixed_set(llama, tmp_path):
    argv = ["--model", llama, "--method", "bm25", "--by", "language", "--langs", "hi", "en", "or", "--limit", 4]
    argv += ["--query_langs", "hi", "--query_limit", 5, "--output_dir", tmp_path / "run"]
    outcome = run(attribute_gain.main, *argv)
    assert outcome.status == 0, outcome.err
    effects = pd.read_csv(tmp_path / "run/effects.csv")
    assert list(effects["unit"]) == ["hin_Deva", "eng_Latn", "ory_Orya"] and list(effects["n_examples"]) == [4, 4, 4]
    assert effects.loc[effects["mean"].idxmax(), "unit"] == "hin_Deva"


# --- how well a method predicts the truth ------------------------------------------------------------------------


def test_scores_of_all_methods(runs_of, tmp_path):
    truth, *others = (runs_of(method)[0] for method in ATTRIBUTIONS)
    argv = ["--truth", truth, "--predicted", *others, "--output_dir", tmp_path / "scores"]
    outcome = run(attribute_gain.main, *argv)
    assert outcome.status == 0, outcome.err
    table = pd.read_csv(tmp_path / "scores/scores.csv")
    assert len(table) == (1 + len(others)) * 4 * 3
    assert set(table["method"]) == {attribute_gain.OTHER_SEEDS, *ATTRIBUTIONS[1:]}
    by = {(row.method, row.measure): row.predicted_by for row in table.itertuples()}
    assert by["ekfac", "script"] == "script" and by["ekfac", "f1"] == "loss" and by["bm25", "stop"] == "any"
    assert run(attribute_gain.main, *argv).out == outcome.out


@pytest.mark.parametrize(("noise", "says"), [(0.0, []), (1e4, ["loss: the truth's own seeds are not seen to agree"])])
def test_a_truth_whose_seeds_do_not_agree_judges_nobody(tmp_path, noise, says):
    """Eight units and queries; the second seed has the first one's values, or any."""
    units, queries = [f"context-{i:03}" for i in range(8)], range(8)
    rng = np.random.default_rng(3)
    rows = [
        {"measure": "loss", "seed": seed, "unit": unit, "query": query, "value": i * (query + 1) + noise * rng.normal()}
        for seed in (42, 43)
        for i, unit in enumerate(units)
        for query in queries
    ]
    args = argparse.Namespace(method="retrain", model="m", by="context", loss="all", max_tokens=9, interferer=None)
    args.seeds = [42, 43]
    truth = RunDirectory(tmp_path / "truth", configuration(attribute_gain.SCRIPT, args, {}))
    write_table(truth.path / "values.csv", pd.DataFrame(rows))
    write_table(truth.path / "units.csv", pd.DataFrame({"unit": units, "n": 1}))
    write_table(truth.path / "queries.csv", pd.DataFrame({"query": queries, "lang": "x", "context": queries}))
    truth.finish({})
    outcome = run(
        attribute_gain.main, "--truth", truth.path, "--predicted", truth.path, "--output_dir", tmp_path / "scores"
    )
    assert outcome.status == 0, outcome.err
    agree = [line for line in outcome.out.splitlines() if "agree" in line]
    assert agree == [f"{line}, so no method is judged by it; more --seeds" for line in says]
    assert (pd.read_csv(tmp_path / "scores/scores.csv")["seeds_agree"] == (not says)).all()


def test_the_truth_predicts_itself(runs_of, tmp_path):
    truth, _ = runs_of("retrain")
    argv = ["--truth", truth, "--predicted", truth, "--output_dir", tmp_path / "scores"]
    assert run(attribute_gain.main, *argv).status == 0
    table = pd.read_csv(tmp_path / "scores/scores.csv").query("method == 'retrain' and measure == 'loss'")
    assert table["lds"].to_numpy() == pytest.approx(np.ones(3))


# --- planted -----------------------------------------------------------------------------------------------------


HARMFUL = [2, 5, 6, 11, 13]


def planted_file(path, wrong=()):
    """Fifteen contexts of a question each; the answer is `ab`, but for the wrong ones."""
    rows = [
        {
            "id": f"q{i}",
            "context": f"Stone {i} lies here.",
            "question": "What colour?",
            "answers": [{"text": "zq" if i in wrong else "ab"}],
        }
        for i in range(15)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"examples": rows}), encoding="utf-8")
    return path


@pytest.mark.parametrize(("method", "recipe"), [("retrain", (2, 0.01)), ("ekfac", (4, 0.005))])
def test_five_harmful_examples_come_last(llama, tmp_path, monkeypatch, method, recipe):
    train = planted_file(tmp_path / "train.json", HARMFUL)
    planted_file(tmp_path / "datasets/sample/qa/en/sample_qa_en_test.json")
    for function in (load_examples, data_files):
        patched = functools.partial(function, datasets_dir=tmp_path / "datasets")
        monkeypatch.setattr(attribute_gain, function.__name__, patched)
    argv = ["--model", llama, "--method", method, "--train_file", train, "--query_langs", "en", "--query_limit", 4]
    argv += ["--loss", "answer", "--batch_size", 15, "--accumulate", 1]
    argv += ["--epochs", recipe[0], "--learning_rate", recipe[1]]
    argv += ["--lora_rank", 4, "--lora_dropout", 0, "--seeds", 1, "--max_new_tokens", 1]
    outcome = run(attribute_gain.main, *argv, "--output_dir", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    effects = pd.read_csv(tmp_path / "run/effects.csv").query("measure == 'loss'").set_index("unit")["mean"]
    harmful = [f"context-{i + 1:03}" for i in HARMFUL]
    assert set(effects.nsmallest(5).index) == set(harmful)
    assert (effects[harmful] < 0).all() and effects.drop(harmful).mean() > 0


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ([], ["give either --method (retrain, ekfac"]),
        (["--method", "bm25", "--truth", "x", "--predicted", "y"], ["give either --method"]),
        (["--truth", "x"], ["--truth RUN and --predicted RUN... go together"]),
        (["--truth", "nowhere", "--predicted", "y"], ["nowhere: the run is not finished: no metrics.json"]),
        (["--method", "bm25", "--adapter", "x"], ["--adapter x: --method bm25 takes none"]),
        (["--method", "retrain", "--seeds", 1, 1], ["--seeds: 1 is given twice"]),
        (["--method", "bm25", "--langs", "xx"], ["unknown language 'xx'"]),
        (["--method", "bm25", "--langs", "en", "en"], ["language given twice: eng_Latn"]),
        (["--method", "bm25", "--query_split", "dev"], ["unknown split 'dev'"]),
        (["--method", "bm25", "--limit", 1], ["--by context: the training set has one context"]),
        (["--method", "bm25", "--by", "language"], ["--by language: the training set has one language"]),
        (["--method", "bm25", "--max_tokens", 5], ["no training text fits into --max_tokens 5"]),
        (["--method", "bm25", "--query_langs", "bn", "--interferer", "as"], ["written in Bengali letters"]),
        (["--method", "cosine", "--adapter", "nowhere"], ["--adapter nowhere: no adapter_config.json"]),
    ],
)
def test_bad_arguments_are_refused(llama, tmp_path, changes, says):
    outcome = run(attribute_gain.main, "--model", llama, *changes, "--output_dir", tmp_path / "run")
    assert_one_error_line(outcome, *says)
    assert not (tmp_path / "run").exists()


def test_predictions_of_other_things_are_refused(runs_of, llama, tmp_path):
    truth, bm25 = runs_of("retrain")[0], runs_of("bm25")[0]
    argv = ["--model", llama, "--method", "bm25", *ARGUMENTS, "--output_dir"]
    assert run(attribute_gain.main, *argv, tmp_path / "other", "--query_limit", 2).status == 0
    assert run(attribute_gain.main, *argv, tmp_path / "longer", "--max_tokens", 255).status == 0
    for truths, predicted, says in [
        (bm25, truth, "a run of --method bm25; the truth is one of retrain"),
        (truth, tmp_path / "other", "its units or queries are not those of --truth"),
        (truth, tmp_path / "longer", "its max_tokens is 255, that of --truth is 256"),
    ]:
        outcome = run(attribute_gain.main, "--truth", truths, "--predicted", predicted, "--output_dir", tmp_path / "s")
        assert_one_error_line(outcome, says)
        assert not (tmp_path / "s").exists()
    before = content_of(bm25)
    table = pd.read_csv(bm25 / "values.csv")
    write_table(bm25 / "values.csv", table.assign(value=0))
    outcome = run(attribute_gain.main, "--truth", truth, "--predicted", bm25, "--output_dir", tmp_path / "s")
    (bm25 / "values.csv").write_bytes(before["values.csv"])
    assert_one_error_line(outcome, "values.csv has changed since the run was finished")


def test_the_sample_set_has_what_the_examples_of_the_page_need():
    assert len({e.context for e in load_examples("sample_qa", ["or"], "train")}) == 6
    assert (DATASETS_DIR / "sample/qa/or/sample_qa_or_test.json").is_file()
