"""Whose English the middle layers speak: the numbers against loops, and each verdict of the rule."""

import json

import numpy as np
import pandas as pd
import pytest

from benchmarks import english_in_the_middle
from tests.scripts import run
from utils.data.examples import Example
from utils.experiments.english_middle import LAYERS, by_layer, excess_of, table_of, verdict
from utils.lens.probe_runs import COLUMNS, ProbeRun

LANGS, CHANNELS, IDS = (
    ["eng_Latn", "hin_Deva", "rus_Cyrl"],
    ["eng_Latn", "hin_Deva", "rus_Cyrl", "zxx"],
    ["a", "b", "c"],
)
N_LAYERS = 19
ARGUMENTS = {"dataset": "sample_qa", "langs": LANGS, "split": "test", "source_lang": "eng_Latn"}
CONTEXTS = {(lang, id): "one" if id == "a" else "two" for lang in LANGS for id in IDS}


@pytest.fixture
def probe(tmp_path):
    """Function that writes a finished probe whose influence is drawn at random; Hindi prompts lie in another order."""

    def write(name: str, lens: dict, english: float | None = None):
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(len(name))
        influence = rng.random((len(LANGS) * len(IDS), N_LAYERS, len(CHANNELS)))
        if english is not None:
            influence[:, :, 0] = english
        np.save(folder / "influence.npy", influence)
        ids = [(id, lang) for lang in LANGS for id in (IDS[::-1] if lang == "hin_Deva" else IDS)]
        prompts = pd.DataFrame(ids, columns=["id", "prompt_lang"]).rename_axis("row").reset_index()
        prompts.to_csv(folder / "prompts.csv", index=False)
        cells = [(lang, layer, channel) for lang in LANGS for layer in range(N_LAYERS) for channel in CHANNELS]
        table = pd.DataFrame(cells, columns=["prompt_lang", "layer", "channel"])
        table = table.assign(**dict.fromkeys(COLUMNS[3:], 0.5))
        table["null_share"] = table["layer"] / 100 + table["channel"].map(dict(zip(CHANNELS, (0.0, 0.1, 0.2, 0.3))))
        table.to_csv(folder / "language_probs.csv", index=False)
        (folder / "config.json").write_text(json.dumps({"arguments": ARGUMENTS, "inputs": {"lens": lens}}))
        return folder

    return write


def test_the_excess_is_its_definition(probe):
    plain = ProbeRun(probe("plain", {}))
    found = excess_of(plain, ["hin_Deva", "rus_Cyrl"], "eng_Latn", CONTEXTS)
    values = {}
    for row, id, lang in plain.prompts.itertuples(index=False):
        if lang != "eng_Latn":
            values.setdefault(id, []).append(np.mean([plain.influence[row, layer, 0] for layer in range(8, 17)]))
    of_id = np.array([np.mean(values[id]) for id in IDS])
    null = np.mean([layer / 100 for layer in range(8, 17)])
    assert (found.share, found.null, found.n) == (pytest.approx(of_id.mean()), pytest.approx(null), 3)
    residuals = of_id - of_id.mean()
    error = np.sqrt(2 * (residuals[0] ** 2 + (residuals[1] + residuals[2]) ** 2)) / 3  # two contexts
    assert found.excess == pytest.approx(of_id.mean() - null)
    assert (found.low, found.high) == pytest.approx((found.excess - 1.96 * error, found.excess + 1.96 * error))
    layers = by_layer([plain.path], CONTEXTS).query("what == 'english'")
    assert layers[layers["layer"].isin(LAYERS)]["share"].mean() == pytest.approx(found.share)


def test_prompts_of_english_and_of_the_lens_s_own_language_do_not_count(probe):
    runs = [
        probe("plain", {}),
        probe("hindi", {"kind": "tuned", "langs": ["hin_Deva"], "sha256": ""}, english=0.9),
        probe("english", {"kind": "tuned", "langs": ["eng_Latn"], "sha256": ""}, english=0.0),
    ]
    table = table_of(runs, CONTEXTS)
    assert table["prompt_langs"].tolist() == ["hin_Deva rus_Cyrl", "rus_Cyrl", "hin_Deva rus_Cyrl"]
    assert table["lens"].tolist() == ["logit lens", "tuned lens fitted on hi", "tuned lens fitted on en"]
    assert table["excess"].iloc[1] == pytest.approx(0.9 - 0.12) and table["shown"].iloc[1]
    assert table["shown"].tolist()[1:] == [True, False]  # and None where it can't be told
    assert table["own_excess"].isna().tolist() == [True, False, False]
    own = by_layer(runs, CONTEXTS).query("what == 'lens'")
    assert own["seen"].unique().tolist() == ["hin_Deva"] and (own["null"] - own["layer"] / 100).round(9).eq(0.1).all()


def test_the_benchmark_prints_and_draws_them(probe, tmp_path, monkeypatch):
    examples = [Example(id, "sample_qa", lang, context, "", []) for (lang, id), context in CONTEXTS.items()]
    monkeypatch.setattr(english_in_the_middle, "load_examples", lambda *asked, **options: examples)
    runs = [
        probe(f"probe{len(langs)}", {"kind": "tuned", "langs": langs} if langs else {}) for langs in ([], ["hin_Deva"])
    ]
    outcome = run(english_in_the_middle.main, *runs, "--output_dir", tmp_path / "out")
    assert (outcome.status, outcome.err) == (0, "") and "tuned lenses: " in outcome.out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "english.csv",
        "by_layer.csv",
        "english.png",
        "english.pdf",
    }
    assert len(pd.read_csv(tmp_path / "out" / "english.csv")) == 2


def test_what_the_rule_is_not_about_is_refused(probe):
    lens = {"kind": "tuned", "langs": ["hin_Deva"]}
    folder = probe("few", lens)
    table = pd.read_csv(folder / "language_probs.csv")
    table[table["layer"] < 5].to_csv(folder / "language_probs.csv", index=False)
    with pytest.raises(ValueError, match="its last layer is 4; the rule is about layers 8 to 16"):
        table_of([folder], CONTEXTS)
    folder = probe("none", lens)
    prompts = pd.read_csv(folder / "prompts.csv")
    prompts[prompts["prompt_lang"] != "rus_Cyrl"].to_csv(folder / "prompts.csv", index=False)
    with pytest.raises(ValueError, match="no prompts but those in English or in the language of its lens"):
        table_of([folder], CONTEXTS)


@pytest.mark.parametrize(
    "plain, with_english, without, expected",
    [
        (True, True, [True, True], "the model's"),
        (False, False, [True, True], "the model's"),
        (True, True, [False, False], "the lens's"),
        (False, True, [False, False], "can't tell"),
        (True, True, [True, False], "can't tell"),
        (True, True, [None, False], "can't tell"),
        (True, True, [], "can't tell"),
    ],
)
def test_the_verdict_goes_by_the_rule(plain, with_english, without, expected):
    rows = [("logit", "", plain), ("tuned", "eng_Latn", with_english), ("tuned", "eng_Latn hin_Deva", with_english)]
    rows += [("tuned", "hin_Deva", shown) for shown in without]
    assert verdict(pd.DataFrame(rows, columns=["kind", "seen", "shown"])) == expected
