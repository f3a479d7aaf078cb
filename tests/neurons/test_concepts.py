"""Concepts: planted neurons that languages share, nulls that share nothing, the frames, the prompts, Mantel's test."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.neurons.test_experts import files_of
from utils.languages import script_of
from utils.neurons import concepts

N_CONCEPTS, N_FRAMES, WIDTH = 12, 8, 60


def maps():
    return [SimpleNamespace(layer=i + 1, start=20 * i, stop=20 * i + 20, width=20, name="mlp") for i in range(3)]


def language(folder, seed, planted: bool):
    """Sets of a language whose neuron 20 + c, of the second layer, fires on concept c where it is planted."""
    rng = np.random.default_rng(seed)
    frames, of_concept = np.repeat(np.arange(N_FRAMES), N_CONCEPTS), np.tile(np.arange(N_CONCEPTS), N_FRAMES)
    responses = rng.normal(size=(len(frames), WIDTH))
    if planted:
        responses[np.arange(len(frames)), 20 + of_concept] += 20
    return concepts.concept_sets(files_of(folder, responses), maps(), frames, of_concept, 6, seed)


def test_what_is_planted_in_two_languages_is_shared_and_in_its_layer(tmp_path):
    sets = {lang: language(tmp_path / lang, i, True) for i, lang in enumerate(("eng_Latn", "hin_Deva", "deu_Latn"))}
    for one in sets.values():
        assert one.experts[:, 0].tolist() == list(range(20, 20 + N_CONCEPTS))
        assert one.held_out.mean() > one.null_held_out.mean() + 0.03  # one of six is more than noise
    tables, claims = concepts.sharing_tables(sets, maps(), 6)
    verdicts = claims.set_index("claim")["verdict"]
    assert (verdicts[[claim for claim in verdicts.index if "concept" in claim or "middle" in claim]] == "holds").all()
    by_layer = tables["by_layer.csv"].set_index("layer")
    assert by_layer["above_other"].idxmax() == 2
    pairs = tables["pairs.csv"]
    assert pairs["same_script"].tolist() == [False, True, False] and pairs["same_branch"].tolist() == [
        False,
        True,
        False,
    ]
    # By hand, for one pair.
    a, b = sets["eng_Latn"].experts, sets["hin_Deva"].experts
    same = np.mean([len(set(a[c]) & set(b[c])) for c in range(N_CONCEPTS)]) / 6
    other = np.mean([len(set(a[c]) & set(b[d])) for c in range(N_CONCEPTS) for d in range(N_CONCEPTS) if c != d]) / 6
    assert pairs["same_concept"].iloc[0] == pytest.approx(same)
    assert pairs["other_concept"].iloc[0] == pytest.approx(other)


def test_where_nothing_is_planted_nothing_is_shared(tmp_path):
    sets = {lang: language(tmp_path / lang, i, False) for i, lang in enumerate(("eng_Latn", "hin_Deva", "deu_Latn"))}
    tables, claims = concepts.sharing_tables(sets, maps(), 6)
    assert tables["pairs.csv"]["same_concept"].to_numpy() == pytest.approx(6 / WIDTH, abs=0.06)
    assert claims["verdict"].iloc[0] == "not seen"
    assert tables["held_out.csv"]["held_out_auroc"].to_numpy() == pytest.approx(0.5, abs=0.08)


def test_frames_are_eight_in_each_of_twelve_languages():
    files = sorted(concepts.FRAMES.glob("*.txt"))
    assert sorted(concepts.BRANCHES) == [path.stem for path in files]
    for path in files:
        own_name, frames = concepts.read_frames(path.stem)
        assert own_name and len(frames) == len(set(frames)) == N_FRAMES and script_of(path.stem)
    assert concepts.is_finding(N_FRAMES).sum() == N_FRAMES / 2
    with pytest.raises(ValueError, match="choose from arb_Arab"):
        concepts.read_frames("xho_Latn")


def test_names_are_read_and_chosen(tmp_path):
    path = tmp_path / "names.tsv"
    path.write_text("symbol\teng_Latn\tde\n1\train\tRegen\n2\tice cream\tEis\n3\tradio\tRadio\n4\tmoon\t\n", "utf-8")
    known = concepts.read_concepts(path, ["eng_Latn", "deu_Latn"])
    assert [one.symbol for one in known] == ["1", "2", "3"]
    assert [one.symbol for one in concepts.chosen_concepts(known, 1, seed=0)] == ["1"]
    with pytest.raises(ValueError, match="no column for hin_Deva"):
        concepts.read_concepts(path, ["hin_Deva"])
    path.write_text("symbol\teng_Latn\n1\n", "utf-8")
    with pytest.raises(ValueError, match="names.tsv:2: 1 columns"):
        concepts.read_concepts(path, ["eng_Latn"])


def test_a_latent_prompt_to_the_letter():
    rain = concepts.Concept("1", {"deu_Latn": "Regen", "hin_Deva": "बारिश"})
    moon = concepts.Concept("2", {"deu_Latn": "Mond", "hin_Deva": "चाँद"})
    own_names = {"deu_Latn": "Deutsch", "hin_Deva": "हिन्दी"}
    prompt = concepts.latent_prompt(rain, [moon], "deu_Latn", "hin_Deva", own_names)
    assert prompt == 'Deutsch: "Mond" - हिन्दी: "चाँद"\nDeutsch: "Regen" - हिन्दी: "'
    assert concepts.latent_pairs(["eng_Latn", "x", "y", "z"]) == [("y", "x", "z"), ("z", "y", "x"), ("x", "z", "y")]


@pytest.mark.parametrize("held", [True, False])
def test_latent_claims_need_both_differences(held):
    rng = np.random.default_rng(0)
    probs = {name: rng.random((40, 7)) * 0.1 for name in concepts.LATENT}
    probs["english"][:, 3] += 0.5
    if not held:
        probs["english_null"][:, 3] += 0.5  # any English name does
    found = {("y", "x", "z"): {**probs, "concepts": np.arange(40)}}
    table, claims = concepts.latent_tables(found)
    assert len(table) == 5 * 7 and (set(claims["verdict"]) == {"holds"}) == held


def test_mantel_s_test_is_level_and_finds_blocks():
    langs = list("abcdef")
    names = [(a, b) for i, a in enumerate(langs) for b in langs[i + 1 :]]
    same = [(a in "abc") == (b in "abc") for a, b in names]
    blocks = pd.DataFrame({"language": [a for a, _ in names], "other": [b for _, b in names], "same": same})
    effect, p = concepts.mantel(blocks.assign(value=np.where(same, 1.0, 0.0)), "value", "same")
    assert effect == 1 and p == pytest.approx(72 / 720)  # 3! 3! 2 of 6! orders keep the blocks
    rng = np.random.default_rng(0)
    ps = [concepts.mantel(blocks.assign(value=rng.random(15)), "value", "same")[1] for _ in range(40)]
    assert np.mean(np.array(ps) <= 0.1) < 0.25
    assert np.isnan(concepts.mantel(blocks.assign(value=1.0, same=True), "value", "same")[1])
