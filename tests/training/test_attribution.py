"""Sums and scores against slow obvious versions; an oracle scores 1, and intervals hold what they say."""

import unicodedata

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from tests.conftest import tiny_causal_lm
from utils.data.examples import Example
from utils.models.families import lens_model
from utils.models.hidden_states import encode
from utils.training import attribution, measures, similarity
from utils.training.attribution import datamodeling_score

RNG = np.random.default_rng(7)
TRUTH = RNG.normal(size=(8, 12))  # [unit, query]
CONTEXTS = [i // 3 for i in range(12)]
EXAMPLE = Example("one", "tests", "eng_Latn", "Ice floats on water.", "What floats?", ["Ice cubes"])


def test_a_units_value_is_the_sum_of_its_examples():
    of_examples = RNG.normal(size=(7, 3))
    sums = attribution.unit_sums(of_examples, [2, 0, 0, 1, 2, 2, 0], 3)
    for unit, rows in enumerate([[1, 2, 6], [3], [0, 4, 5]]):
        assert sums[unit] == pytest.approx(of_examples[rows].sum(axis=0))


def test_the_score_is_the_mean_of_spearmans_correlations():
    predicted = TRUTH + RNG.normal(size=TRUTH.shape)
    found = datamodeling_score(predicted, TRUTH, CONTEXTS)
    by_query = [spearmanr(a, b)[0] for a, b in zip(predicted.T, TRUTH.T)]
    assert found["lds"] == pytest.approx(np.mean(by_query))
    assert found["rho_of_means"] == pytest.approx(spearmanr(predicted.mean(axis=1), TRUTH.mean(axis=1))[0])
    assert (found["n_units"], found["n_queries"], found["n_contexts"]) == (8, 12, 4)
    assert found["low"] < found["lds"] < found["high"]


@pytest.mark.parametrize(("predicted", "lds"), [(TRUTH, 1), (-TRUTH, -1), (np.exp(3 * TRUTH), 1)])
def test_an_oracle_scores_one_and_its_opposite_minus_one(predicted, lds):
    found = datamodeling_score(predicted, TRUTH, CONTEXTS)
    assert [found[name] for name in ("lds", "low", "high")] == pytest.approx([lds] * 3)
    assert found["p"] < 0.001


def test_ties_count_as_spearman_counts_them():
    predicted, truth = RNG.integers(0, 3, size=(2, 9, 5)).astype(float)
    by_query = [spearmanr(a, b)[0] for a, b in zip(predicted.T, truth.T)]
    assert datamodeling_score(predicted, truth, list(range(5)))["lds"] == pytest.approx(np.mean(by_query))


def test_queries_without_a_difference_are_not_counted():
    truth = TRUTH.copy()
    truth[:, 4:] = 0.5
    found = datamodeling_score(TRUTH, truth, CONTEXTS)
    assert found["lds"] == pytest.approx(1) and found["n_queries"] == 4 and found["n_contexts"] == 2
    nothing = datamodeling_score(TRUTH, 0 * truth, CONTEXTS)
    assert nothing["n_queries"] == 0 and all(np.isnan(nothing[name]) for name in ("lds", "low", "high", "p"))


def test_there_is_no_interval_from_three_units_or_one_context():
    assert np.isnan(datamodeling_score(TRUTH[:3], TRUTH[:3], CONTEXTS)["low"])
    assert np.isnan(datamodeling_score(TRUTH, TRUTH, [0] * 12)["low"])


def test_intervals_hold_the_score_and_p_its_level():
    """Units and queries are drawn from a population whose score is known from a large draw."""
    rng = np.random.default_rng(1)

    def drawn(n_units, n_contexts, share):
        """Truth and prediction have a part in common, and the queries of a context have another."""
        of_context = rng.normal(size=(n_units, n_contexts))
        truth = np.repeat(of_context, 2, axis=1) + rng.normal(size=(n_units, 2 * n_contexts))
        common = share * rng.normal(size=(n_units, 1))
        return truth + common, share * truth + common + rng.normal(size=truth.shape)

    truth, predicted = drawn(2000, 200, 0.5)
    known = np.mean([spearmanr(a, b)[0] for a, b in zip(predicted.T, truth.T)])
    held, found_by_chance = 0, 0
    for _ in range(200):
        truth, predicted = drawn(12, 8, 0.5)
        found = datamodeling_score(predicted, truth, np.repeat(range(8), 2))
        held += found["low"] <= known <= found["high"]
        truth, predicted = drawn(6, 3, 0.0)
        found_by_chance += datamodeling_score(predicted, truth, np.repeat(range(3), 2))["p"] <= 0.05
    assert 184 <= held <= 200 and found_by_chance <= 20


def test_two_seeds_reliability_is_the_score_of_one_by_the_other():
    truth = np.stack([TRUTH, TRUTH + RNG.normal(size=TRUTH.shape), RNG.normal(size=TRUTH.shape)])
    assert attribution.reliability(truth[:2], CONTEXTS) == datamodeling_score(TRUTH, truth[1], CONTEXTS)
    halves = (truth[0] + truth[2]) / 2, truth[1]
    assert attribution.reliability(truth, CONTEXTS) == datamodeling_score(*halves, CONTEXTS)


@pytest.mark.filterwarnings("error")
def test_a_difference_that_one_unit_makes_has_no_interval():
    """Without that unit nothing differs, so that there is no jackknife."""
    truth = np.zeros((5, 3))
    truth[2] = 1
    found = datamodeling_score(TRUTH[:5, :3], truth, [0, 1, 2])
    assert found["n_queries"] == 3 and np.isnan(found["low"]) and np.isnan(found["high"])


def test_mean_effects():
    contexts = list(range(12))
    found = attribution.mean_effects(TRUTH + 3, contexts)
    assert found["mean"] == pytest.approx(TRUTH.mean(axis=1) + 3)
    assert (found["low"] < found["mean"]).all() and (found["mean"] < found["high"]).all() and (found["p"] < 0.01).all()


# --- similarity --------------------------------------------------------------------------------------------------


def test_bm25_against_the_formula_term_by_term():
    documents, queries = [[1, 2, 2, 3], [2, 4], [5, 5, 5, 1, 6, 7]], [[2, 5, 5], [9], [1]]
    found = similarity.bm25(documents, queries)
    mean = (4 + 2 + 6) / 3
    for d, document in enumerate(documents):
        for q, query in enumerate(queries):
            expected = 0.0
            for token in set(query):
                n = sum(token in other for other in documents)
                tf = document.count(token)
                idf = np.log(1 + (3 - n + 0.5) / (n + 0.5))
                expected += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(document) / mean))
            assert found[d, q] == pytest.approx(expected)
    assert found[:, 0].min() > 0 == found[:, 1].max()


def test_the_nearest_state_is_its_own():
    states = RNG.normal(size=(6, 20)) + 50  # all much the same direction
    found = similarity.centred_cosine(states, states)
    assert np.diag(found) == pytest.approx(np.ones(6))
    assert (found - 2 * np.eye(6)).max() < 0.9 and np.abs(found).max() <= 1 + 1e-9


def test_random_scores_are_those_of_the_seed():
    assert (similarity.random_scores(5, 3, 1) == similarity.random_scores(5, 3, 1)).all()
    assert (similarity.random_scores(5, 3, 1) != similarity.random_scores(5, 3, 2)).any()


# --- measures ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    return lens_model(tiny_causal_lm("gemma2", len(tiny_tokenizer)), tiny_tokenizer)


def test_a_query_is_a_prompt_an_answer_and_the_end_token(tiny_tokenizer):
    query = measures.query_of(tiny_tokenizer, EXAMPLE, 1024)
    assert query.prompt == encode(tiny_tokenizer, "Ice floats on water.\n\nQ: What floats?\nA:")
    assert tiny_tokenizer.decode(query.ids[query.first : -1]) == " Ice cubes"
    assert query.ids[-1] == tiny_tokenizer.eos_token_id and not query.was_cut
    assert measures.query_of(tiny_tokenizer, EXAMPLE, len(query.ids) - 2).was_cut
    assert measures.query_of(tiny_tokenizer, EXAMPLE, 4) is None


def test_measures_are_of_the_models_own_distributions(model, tiny_tokenizer):
    query = measures.query_of(tiny_tokenizer, EXAMPLE, 1024)
    found = measures.Measures(model, ["eng_Latn"], "hin_Deva")
    assert found.names == ["loss", "script", "stop"]
    found = {name: value.item() for name, value in found(query).items()}
    probs = torch.softmax(model.causal_lm(torch.tensor([query.ids])).logits[0, :, : model.n_tokens], dim=-1).double()
    answer = [probs[i - 1, query.ids[i]].log().item() for i in range(query.first, len(query.ids) - 1)]
    assert found["loss"] == pytest.approx(sum(answer) / len(answer), rel=1e-5)

    def total(position, chosen):
        pieces = [tiny_tokenizer.decode([id]) for id in range(model.n_tokens)]
        return sum(probs[position, id] for id, piece in enumerate(pieces) if chosen(piece)).log()

    def in_letters(script):
        def chosen(piece):
            letters = [c for c in piece if unicodedata.category(c).startswith("L")]
            of_script = all(unicodedata.name(c, "").startswith(script) for c in letters)
            return bool(letters) and of_script and not piece.endswith(">")  # <s>, </s> and <pad> are no words

        return chosen

    first = query.first - 1
    of_latin, of_devanagari = total(first, in_letters("LATIN")), total(first, in_letters("DEVANAGARI"))
    assert found["script"] == pytest.approx(float((of_latin - of_devanagari).detach()), abs=1e-4)
    last = total(-2, lambda piece: piece == "</s>" or piece.lstrip(" \t").startswith("\n"))
    assert found["stop"] == pytest.approx(float(last), rel=1e-5)


def test_there_is_no_script_measure_without_an_interferer(model):
    assert measures.Measures(model, ["eng_Latn"]).names == ["loss", "stop"]


def test_tokens_of_a_script():
    pieces = ["the", " The", "и", "ice и", "12", "�", "हिम", " हि", "!", "", "中", "ひ", "<unused7>", "</s>"]
    assert measures.tokens_of_script(pieces, "eng_Latn") == [0, 1]
    assert measures.tokens_of_script(pieces, "hin_Deva") == [6, 7]
    assert measures.tokens_of_script(pieces, "jpn_Jpan") == [10, 11]
    with pytest.raises(ValueError, match="no token of the model is written in the script of tha_Thai"):
        measures.tokens_of_script(pieces, "tha_Thai")


def test_an_interferer_in_the_same_letters_is_refused(model):
    with pytest.raises(ValueError, match="--interferer asm_Beng: written in Bengali letters, as .* ben_Beng is"):
        measures.Measures(model, ["ben_Beng"], "asm_Beng")
    measures.require_other_script("ory_Orya", "ben_Beng")
