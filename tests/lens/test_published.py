"""Our curves over the published ones: what is the same agrees wholly, what differs by so much is said to."""

import numpy as np
import pandas as pd
import pytest

import reproduce_paper
from tests.scripts import assert_one_error_line, run
from utils.experiments import plan
from utils.experiments.plan import published_commands
from utils.experiments.presets import PRESETS
from utils.experiments.published_report import write_published_report
from utils.figures.tuning import draw_overlay
from utils.lens.published import EPOCH_OF_STEP, agreement, overlay, published_mean, read_published, with_no_nulls
from utils.training.recipe import PAPER

ODIA, GERMAN, ENGLISH = "ory_Orya", "deu_Latn", "eng_Latn"
THEIR_SUM = 1 - (29 / 30) ** 150


def test_the_mean_is_the_recurrence_of_their_script():
    values = np.random.default_rng(0).random((150, 2, 3))
    mean, weight = np.zeros((2, 3)), 0.0
    for value in values:
        mean, weight = mean + (value - mean) / 30, weight + (1 - weight) / 30
    assert weight == pytest.approx(THEIR_SUM)
    assert published_mean(values) == pytest.approx(mean / weight)
    assert published_mean(np.ones((7, 2))) == pytest.approx(1)


@pytest.fixture
def write_probe(tmp_path):
    def write(step, cells, n_prompts=4):
        """A probe whose prompts all have these cells: prompt_lang, layer, channel, prob."""
        run_dir = tmp_path / f"step-{step}"
        run_dir.mkdir()
        cells = cells.sort_values(["prompt_lang", "layer", "channel"], kind="stable")
        langs = list(dict.fromkeys(cells["prompt_lang"]))
        shape = (cells["layer"].nunique(), cells["channel"].nunique())
        of_lang = [cells.loc[cells["prompt_lang"] == lang, "prob"].to_numpy().reshape(shape) for lang in langs]
        np.save(run_dir / "per_prompt.npy", np.repeat(of_lang, n_prompts, axis=0).astype(np.float32))
        rows = [(i, i, lang) for i, lang in enumerate(np.repeat(langs, n_prompts))]
        pd.DataFrame(rows, columns=["row", "id", "prompt_lang"]).to_csv(run_dir / "prompts.csv", index=False)
        with_no_nulls(cells).assign(n=n_prompts).to_csv(run_dir / "language_probs.csv", index=False)
        (run_dir / "metrics.json").write_text("{}")
        return run_dir

    return write


def theirs(step):
    table = read_published()
    table = table[(table["step"] == step) & table["prompt_lang"].isin([ODIA, GERMAN])]
    return table[["prompt_lang", "layer", "channel"]].assign(prob=table["prob"] / THEIR_SUM)


def test_their_own_curves_agree_wholly(write_probe, tmp_path):
    runs = {step: [write_probe(step, theirs(step))] for step in (0, 13, 60)}
    table = overlay(runs)
    assert set(table["source"]) == {"here", "published"} and set(table["step"]) == {0, 13, 60}
    sums = table.groupby(["source", "prompt_lang", "step", "layer"])["prob"].sum()
    assert sums.to_numpy() == pytest.approx(1, abs=1e-3)  # theirs are of bfloat16
    agreed = agreement(table).set_index(["prompt_lang", "step"])
    assert len(agreed) == 6 and agreed["total_variation"].max() < 1e-6 and agreed["last_layer"].max() < 1e-6
    assert agreed.loc[(ODIA, 60), "r_of_changes"] == pytest.approx(1)
    assert np.isnan(agreed.loc[(ODIA, 0), "r_of_changes"])
    figures = draw_overlay(table, tmp_path / "figures", "made up")
    assert [path.name for path in figures] == ["overlay_de.png", "overlay_or.png"]


def test_what_differs_by_a_tenth_is_said_to(write_probe):
    moved = theirs(0)
    own = moved["channel"] == moved["prompt_lang"]
    moved["prob"] *= 0.9
    moved.loc[own, "prob"] += 0.1  # a tenth of all mass, half of the way from what it was to the prompt's language
    agreed = agreement(overlay({0: [write_probe(0, moved)]})).set_index("prompt_lang")
    kept = theirs(0)
    for lang, rows in kept[kept["channel"] == kept["prompt_lang"]].groupby("prompt_lang"):
        assert agreed.loc[lang, "total_variation"] == pytest.approx(0.1 * (1 - rows["prob"]).mean(), abs=1e-4)
        last = rows.loc[rows["layer"] == 30, "prob"].item()
        assert agreed.loc[lang, "last_layer"] == pytest.approx(0.1 * (1 - last), abs=1e-4)


def test_another_model_is_refused(write_probe):
    with pytest.raises(ValueError, match="bloomz-7b1, with 30 layers; this model has 29"):
        overlay({0: [write_probe(0, theirs(0).query("layer < 30"))]})
    with pytest.raises(ValueError, match="none of the probes"):
        overlay({0: []})


def test_the_commands(official_datasets, monkeypatch, tmp_path):
    def load(*args):
        return original(*args, datasets_dir=official_datasets)

    original = plan.load_examples
    monkeypatch.setattr(plan, "load_examples", load)
    commands, runs = published_commands(PRESETS["paper"], tmp_path)
    assert [command.step for command in commands] == ["probes"] * 2 + ["train"] + ["probes"] * 10
    assert [command.folder for command in commands[:2]] == runs[0] and set(runs) == set(EPOCH_OF_STEP)
    made = set()
    for command in commands:
        assert set(command.needs) <= made
        made.add(command.folder)
    assert {"--recipe", "paper"} < set(commands[2].argv) and "--adapter" not in commands[0].argv
    checkpoints = [command.argv[command.argv.index("--adapter") + 1] for command in commands[3::2]]
    assert [path.rpartition("/")[2] for path in checkpoints] == [f"checkpoint-{step}" for step in (13, 26, 39, 52, 60)]
    last = commands[-1].argv
    assert {"--shuffle", "langid-hard", "150"} < set(last)


def test_a_training_set_of_another_size_has_not_the_published_steps(official_datasets, monkeypatch, tmp_path):
    original = plan.load_examples
    monkeypatch.setattr(plan, "load_examples", lambda *a: original(*a, datasets_dir=official_datasets)[:90])
    with pytest.raises(ValueError, match="en2de_nllb_train: 90 examples have no checkpoint at the published step 13"):
        published_commands(PRESETS["paper"], tmp_path)


def test_the_report_says_what_is_inferred(tmp_path):
    rows = [(ODIA, step, 0.2, 0.3, np.nan) for step in EPOCH_OF_STEP]
    agreed = pd.DataFrame(rows, columns=["prompt_lang", "step", "total_variation", "last_layer", "r_of_changes"])
    argv = ["QAtraining.py", "--recipe", "paper", "--lora_targets", "query_key_value"]
    train = plan.Command("train", "German", argv, tmp_path)
    figures = [tmp_path / "figures" / "overlay_or.png"]
    report = write_published_report(tmp_path, agreed, train, figures, ["query_key_value"]).read_text(encoding="utf-8")
    assert "0.200 on average" in report and "| ory_Orya | 60 | 0.2 | 0.3 | nan | 9.2 |" in report
    assert "![overlay_or](figures/overlay_or.png)" in report and f"`{train.line}`" in report
    for flag, choice in PAPER.items():
        ground = "asked for here" if flag == "lora_targets" else choice.ground
        assert any(line.startswith(f"| `--{flag}` |") and f"| {ground} |" in line for line in report.splitlines()), flag
    plain = write_published_report(tmp_path, agreed, train, []).read_text(encoding="utf-8")
    strange = write_published_report(tmp_path, agreed, train, [], ["a|b", "`c"]).read_text(encoding="utf-8")
    assert "| `--lora_targets` | `` a\\|b `c `` | asked for here |" in strange
    assert "| `--lora_targets` | all | read |" in plain and "asked for here" not in plain


def test_lora_targets_are_for_the_published_step_alone(tmp_path):
    outcome = run(reproduce_paper.main, "--lora_targets", "dense", "--output_dir", tmp_path / "out")
    assert_one_error_line(outcome, "--lora_targets is for --steps published alone")


def test_it_is_asked_for_alone(tmp_path):
    outcome = run(reproduce_paper.main, "--steps", "published", "report", "--output_dir", tmp_path / "out")
    assert_one_error_line(outcome, "published has commands of its own; ask for it alone")
    assert not (tmp_path / "out").exists()
