"""What a report is made of."""

import dataclasses

import pandas as pd
from markdown_it import MarkdownIt

from utils.experiments.presets import PRESETS, Experiment, with_nulls
from utils.experiments.report import _introduction as introduction
from utils.experiments.report import _markdown as markdown
from utils.experiments.report import _missing as missing_section
from utils.experiments.report import _quality as quality_section
from utils.experiments.tables import pairs


def test_a_table_in_markdown():
    found = markdown(pd.DataFrame({"a": [1, 2], "b": ["x|y", "z"]}))
    assert found == "| a | b |\n| --- | --- |\n| 1 | x\\|y |\n| 2 | z |"


def test_pairs_of_training_sets_are_read_and_shown(tmp_path):
    run = tmp_path / "changes" / "pairs-en-en_shuffled-xquad_in"
    run.mkdir(parents=True)
    scores = pd.DataFrame(
        [
            ("hin_Deva", "multilingual_f1", 0.3, 0.1, -0.2, -0.25, -0.1, 0.01, 120, 20),
            ("eng_Latn", "multilingual_f1", 0.5, 0.51, 0.01, -0.02, 0.04, 0.6, 120, 20),
        ],
        columns="lang score before after change low high p n n_contexts".split(),
    )
    scores.to_csv(run / "scores.csv", index=False)
    of_pairs = [("en_shuffled", "en"), ("en_truncated", "en")]
    experiment = Experiment(tmp_path, pairs=of_pairs, evaluation={"xquad_in": []})
    assert len(pairs(experiment)) == 0  # a comparison that is not finished
    (run / "metrics.json").write_text("{}")
    table = pairs(experiment)
    assert set(table["training"]) == {"en_shuffled"} and set(table["against"]) == {"en"}
    quality = pd.DataFrame(
        [("en", "eng_Latn", 103, 1.0, 826.0, 1.0, "", float("nan"))],
        columns="training lang n spans characters of_english second chrf".split(),
    )
    gains = pd.DataFrame([("en", "multilingual_f1", 0.25)], columns=["training", "score", "change"])
    text = "\n".join(quality_section({"quality.csv": quality, "transfer.csv": gains, "pairs.csv": table}))
    assert "| en -> en_shuffled | -20.0 [-25.0, -10.0] | +1.0 [-2.0, +4.0] |" in text
    assert "| en | 100% | 826 | 100% | - | +25.0 |" in text


def test_null_runs_are_trainings_on_shuffled_answers(tmp_path):
    experiment = Experiment.of(with_nulls(PRESETS["small"], 3), tmp_path)
    added = ["or_null_1", "or_null_2", "or_null_3"]
    assert experiment.nulls == ["en_shuffled", *added]
    assert all(experiment.control_of[name] == "or" for name in added)
    flags = [with_nulls(PRESETS["small"], 3).training[name].flags for name in added]
    assert flags == [("--shuffle_answers", "--seed", str(seed)) for seed in (1, 2, 3)]
    assert Experiment.of(with_nulls(PRESETS["small"], 0), tmp_path).nulls == ["en_shuffled"]


def test_the_report_says_first_whom_it_speaks_of(tmp_path):
    experiment = Experiment.of(PRESETS["small"], tmp_path)
    _, first, *_ = introduction(experiment, pd.DataFrame({"null_runs": [0, 0]}))
    assert first.startswith("**This speaks of these checkpoints alone:**") and "--nulls 5" in first
    _, first, *_ = introduction(experiment, pd.DataFrame({"null_runs": [0, 5]}))
    assert first.startswith("**This speaks of these checkpoints alone:**") and "5 or fewer" in first


EVIL = "$x_$ <b>*a*<b> [l](x) `c|d`"


def test_names_of_others_are_no_marks_of_the_report(tmp_path):
    experiment = dataclasses.replace(Experiment.of(PRESETS["small"], tmp_path), model=f"folder/{EVIL}")
    title, *_ = introduction(experiment, pd.DataFrame({"null_runs": [0, 0]}))
    (_, heading, _) = MarkdownIt().parse(title)
    assert "".join(token.content for token in heading.children) == title_of(EVIL)
    assert {token.type for token in heading.children} <= {"text", "text_special"}
    missing = [{"step": "train", "name": EVIL, "reason": f"error: {EVIL}\nmore"}]
    _, table = missing_section(missing)
    cells = [token for token in MarkdownIt().enable("table").parse(table) if token.type == "inline"]
    assert ["".join(part.content for part in cell.children) for cell in cells[3:]] == [
        "train",
        EVIL,
        f"error: {EVIL} more",
    ]
    assert not [part for cell in cells for part in cell.children if part.type not in ("text", "text_special")]


def title_of(name):
    return f"What tuning {name.rsplit('/', 1)[-1]} on one language does to others"
