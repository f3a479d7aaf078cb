"""Expertise against SciPy's U test, a planted neuron, exchanged languages, and how often the null finds something."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from utils.neurons import experts


def one_map(width: int, start: int = 0) -> SimpleNamespace:
    return SimpleNamespace(start=start, stop=start + width, width=width, layer=1, name="mlp")


def files_of(folder, responses: np.ndarray, size: int = 7) -> experts.ResponseFiles:
    """Responses as a run writes them, in batches of shuffled sentences."""
    order = np.random.default_rng(0).permutation(len(responses)).tolist()
    files = experts.ResponseFiles(folder, [order[i : i + size] for i in range(0, len(order), size)])
    for number, batch in enumerate(files.batches):
        files.write(number, responses[batch].astype(np.float32))
    return files


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_auroc_is_mann_and_whitney_s_ties_or_not(decimals):
    rng = np.random.default_rng(1)
    responses = rng.normal(size=(60, 25)).round(decimals)
    labels = rng.random((3, 60)) < 0.3
    ours = experts.aurocs(responses, labels)
    theirs = [
        mannwhitneyu(responses[label], responses[~label]).statistic / (label.sum() * (~label).sum()) for label in labels
    ]
    assert ours == pytest.approx(np.array(theirs), abs=1e-12)
    assert experts.aurocs(np.ones((60, 2)), labels) == pytest.approx(0.5)


def test_an_auroc_of_one_class_is_refused():
    with pytest.raises(ValueError, match="positives and negatives"):
        experts.aurocs(np.ones((4, 2)), np.ones((1, 4), dtype=bool))


def test_what_is_streamed_equals_what_is_held_at_once(tmp_path):
    rng = np.random.default_rng(2)
    responses = rng.normal(size=(40, 30)).astype(np.float32)
    classes, groups = np.repeat([0, 1], 20), np.tile(np.arange(20), 2)
    files = files_of(tmp_path / "responses", responses)
    maps = [one_map(12), one_map(18, 12)]
    found = experts.expertise(files, maps, classes, groups, seed=3)
    assert found.auroc == pytest.approx(experts.aurocs(responses, [classes == 0, classes == 1]), abs=1e-6)
    assert found.mean_response == pytest.approx(np.stack([responses[:20].mean(0), responses[20:].mean(0)]), abs=1e-6)
    # Two classes: what speaks for one speaks against the other.
    assert found.auroc[0] == pytest.approx(1 - found.auroc[1], abs=1e-6)
    assert found.null_mean == pytest.approx(0.5, abs=0.02)


def test_a_planted_neuron_is_first_and_exchanged_languages_exchange_the_tables(tmp_path):
    rng = np.random.default_rng(4)
    responses = rng.normal(size=(90, 50))
    classes, groups = np.repeat([0, 1, 2], 30), np.tile(np.arange(30), 3)
    responses[classes == 1, 17] += 10
    maps, files = [one_map(50)], files_of(tmp_path / "one", responses)
    found = experts.expertise(files, maps, classes, groups, seed=0)
    assert experts.most_expert(found.auroc[1], 1).tolist() == [17] and found.auroc[1, 17] == 1
    assert found.auroc[1, 17] > found.threshold[1]
    table = experts.expert_table(found, ["a", "b", "c"], maps, 5)
    assert table[table["language"] == "b"].iloc[0][["rank", "layer", "neuron"]].tolist() == [1, 1, 17]
    exchanged = np.array([1, 0, 2])[classes]
    other = experts.expertise(files, maps, exchanged, groups, seed=0)
    assert np.array_equal(other.auroc[[1, 0, 2]], found.auroc)
    halves = experts.half_sets(files, maps, classes, groups, 3)
    assert halves.shape == (2, 3, 3) and (halves[:, 1, 0] == 17).all()


def test_shuffles_keep_each_sentence_s_translations_together():
    classes, groups = np.repeat([0, 1, 2], 4), np.tile(np.arange(4), 3)
    labels = experts.shuffled_labels(groups, classes, 50, seed=0)
    assert labels.shape == (50, 3, 12) and (labels.sum(axis=1) == 1).all()
    for group in range(4):
        assert (labels[:, :, groups == group].sum(axis=2) == 1).all()
    # Each of a sentence's translations is as often of each class.
    assert labels.mean(axis=0) == pytest.approx(1 / 3, abs=0.25)


def test_the_null_finds_something_in_one_model_of_twenty(tmp_path):
    rng = np.random.default_rng(5)
    classes, groups = np.repeat([0, 1], 12), np.tile(np.arange(12), 2)
    n_models, n_found = 200, 0
    for seed in range(n_models):
        responses = rng.normal(size=(24, 8))
        labels = np.concatenate(
            [[classes == 0], experts.shuffled_labels(groups, classes, experts.N_SHUFFLES, seed)[:, 0]]
        )
        highest = experts.aurocs(responses, labels).max(axis=1)
        n_found += highest[0] > highest[1:].max()
    assert n_found / n_models == pytest.approx(1 / (experts.N_SHUFFLES + 1), abs=0.04)  # 2.6 standard errors


def test_random_neurons_are_others_of_the_same_maps():
    maps = [one_map(10), one_map(20, 10), one_map(5, 30)]
    chosen = np.array([3, 4, 12, 30, 31, 32, 33])
    drawn = experts.random_like(chosen, maps, seed=0)
    counts = [[((s >= m.start) & (s < m.stop)).sum() for m in maps] for s in (chosen, drawn)]
    assert counts[0] == counts[1] and len(set(drawn)) == len(drawn)
    # Four of the last map's five are experts: one other is left, and three are drawn again.
    assert sorted(set(chosen) & set(drawn)) == [n for n in sorted(drawn) if n in (30, 31, 32, 33)]
    assert not {3, 4, 12} & set(drawn.tolist()) and 34 in drawn
    assert experts.random_like(np.empty(0, dtype=np.int64), maps, seed=0).size == 0


def test_overlap_by_chance_is_k_squared_over_n():
    rng = np.random.default_rng(6)
    shared = [experts.overlap(rng.permutation(200)[:20], rng.permutation(200)[:20], 200) for _ in range(300)]
    assert np.mean([one["shared"] for one in shared]) == pytest.approx(2, abs=0.25)
    assert np.mean([one["p"] <= 0.05 for one in shared]) <= 0.08
    same = experts.overlap(np.arange(20), np.arange(20), 200)
    assert same["shared"] == 20 and same["over_chance"] == 10 and same["p"] < 1e-20
