"""The probe against SciPy's minimum of its loss, on states that are all language or none, and split by sentence."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from utils.models.hidden_states import Prompt
from utils.neurons import language_probes as probes

pytestmark = pytest.mark.usefixtures("one_thread")


def tokens(n=20, n_langs=3, a_sentence=2):
    """classes and sentences [token] of a small parallel corpus."""
    classes = np.repeat(np.arange(n_langs), n * a_sentence)
    return classes, np.tile(np.repeat(np.arange(n), a_sentence), n_langs)


def test_the_probe_is_the_minimum_of_its_loss():
    rng = np.random.default_rng(0)
    classes, _ = tokens()
    states = rng.normal(size=(len(classes), 6)) + classes[:, None] * 0.4
    rows = np.arange(len(classes))

    def loss(parameters: np.ndarray) -> float:
        weight, bias = parameters[:18].reshape(3, 6), parameters[18:]
        log_probs = log_softmax(states @ weight.T + bias, axis=1)
        return -log_probs[rows, classes].sum() + (weight**2).sum() / (2 * probes.C)

    ours, theirs = probes.fitted_probe(states, classes, 3), minimize(loss, np.zeros(21), tol=1e-9).x
    assert ours.weight.detach().numpy() == pytest.approx(theirs[:18].reshape(3, 6), abs=1e-3)
    bias = ours.bias.detach().numpy()  # only its differences matter
    assert bias - bias.mean() == pytest.approx(theirs[18:] - theirs[18:].mean(), abs=1e-3)


def test_language_is_told_where_it_is_and_not_where_it_is_not():
    rng = np.random.default_rng(1)
    classes, sentences = tokens(30)
    noise = rng.normal(size=(len(classes), 4))
    with_language = np.column_stack([noise, np.eye(3)[classes] * 5])
    assert probes.probe_layer(with_language, classes, sentences).right.mean() > 0.98
    for found in (
        probes.probe_layer(with_language, classes, sentences, shuffle=True),
        probes.probe_layer(noise, classes, sentences),
    ):
        assert found.right.mean() == pytest.approx(1 / 3, abs=0.12)


def test_a_probe_can_t_use_what_only_a_sentence_has():
    """States that name their sentence and language: split by tokens all would be told, split by sentences none."""
    classes, sentences = tokens(24)
    names = np.unique(np.stack([classes, sentences]), axis=1, return_inverse=True)[1].ravel()
    found = probes.probe_layer(np.eye(names.max() + 1)[names], classes, sentences)
    assert found.right.mean() < 0.5


def test_shuffled_classes_stay_balanced_and_whole():
    classes, sentences = tokens(10)
    dealt = probes._dealt(classes, sentences, seed=0)
    assert np.bincount(dealt).tolist() == np.bincount(classes).tolist() and (dealt != classes).any()
    for sentence in range(10):
        assert sorted(dealt[sentences == sentence]) == sorted(classes[sentences == sentence])
        for lang in range(3):
            assert len(set(dealt[(sentences == sentence) & (classes == lang)])) == 1


def test_tables_and_claims():
    rng = np.random.default_rng(2)
    classes, sentences = tokens(20)
    found = {}
    for layer, strength in enumerate((3.0, 3.0, 0.0, 3.0)):
        states = rng.normal(size=(len(classes), 3)) + strength * np.eye(3)[classes]
        found[probes.STATE, layer] = probes.probe_layer(states, classes, sentences)
        found[probes.SHUFFLED, layer] = probes.probe_layer(states, classes, sentences, shuffle=True)
    found[probes.EMBEDDING, 0] = found[probes.STATE, 0]
    rows = probes.accuracy_rows(found, "main")
    assert (rows["low"] <= rows["accuracy"]).all() and (rows["accuracy"] <= rows["high"]).all()
    confusion = probes.confusion_rows(found, ["a", "b", "c"], "main")
    totals = confusion.groupby(["probe", "layer"], sort=False)["n"].sum()
    assert totals.tolist() == rows["tokens"].tolist()
    verdicts = probes.probe_claims(found, "main")["verdict"].tolist()
    assert verdicts[0] == "not seen" and verdicts[1:3] == ["holds", "holds"]


def test_thirds_and_positions():
    assert probes.thirds(range(19)) == (list(range(1, 7)), list(range(7, 13)), list(range(13, 19)))
    assert probes.thirds([0, 1, 2, 3]) == ([1], [2], [3])
    prompt = Prompt(list(range(9)), [1, 2, 3, 4])
    drawn = probes.drawn_positions(prompt, 3, "0")
    assert drawn == probes.drawn_positions(prompt, 3, "0") and len(set(drawn.positions)) == 3
    assert set(drawn.positions) <= set(prompt.positions) and len(probes.drawn_positions(prompt, 9, "0").positions) == 9
    with pytest.raises(ValueError, match="4 or more"):
        probes.probe_layer(np.zeros((6, 2)), np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2] * 2))
