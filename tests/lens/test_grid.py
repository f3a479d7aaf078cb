"""A grid's cells are what the lens reads of each prompt's beginning, as if it were a prompt of its own."""

import numpy as np
import pandas as pd
import pytest
import torch

from utils.data.examples import OwnText
from utils.lens import reading, records
from utils.lens.grid import Cells, cells_of, read_grid
from utils.lens.probe_runs import GRID_CHANNELS, GRID_TOKENS, ProbeRun
from utils.models.hidden_states import Prompt, hidden_states, last_position
from utils.runs import read_arrays
from utils.token_languages import shares
from utils.token_languages.matrix import TokenLanguages
from utils.token_languages.pieces import read_pieces


def prompt(*ids: int) -> Prompt:
    return Prompt(list(ids), [len(ids) - 1])


def test_a_shared_beginning_is_read_once_and_nothing_else_is_shared():
    cells = cells_of([prompt(1, 5, 6, 7), prompt(1, 5, 9, 7), prompt(1, 5, 6), prompt(2, 5, 6, 7)])
    assert cells == Cells(
        of_prompts=[[0, 1, 2, 3], [0, 1, 4, 5], [0, 1, 2], [6, 7, 8, 9]],
        first_read=[[0, 1, 2, 3], [2, 3], [], [0, 1, 2, 3]],
    )
    assert cells.n == 10


@pytest.fixture
def read(tiny_model, small_matrix, tiny_tokenizer, tmp_path):
    """(model, matrix, prompts, cells) of three texts, two of which begin alike, read into tmp_path."""
    model, matrix = tiny_model("llama"), TokenLanguages.load(small_matrix, tiny_tokenizer)
    texts = ["The water is cold.\n\nQ: Why?\nA:", "The water is cold.\n\nQ: Where?\nA:", "ନଦୀର ପାଣି"]
    prompts = [last_position(model, text) for text in texts]
    return model, matrix, prompts, read_grid(tmp_path, "eng_Latn", prompts, model, matrix)


def test_a_cell_is_the_reading_of_the_prompt_s_beginning_alone(read, tmp_path):
    model, _, prompts, cells = read
    stored = read_arrays(tmp_path / records.RECORDS / "grid-eng_Latn.npz")
    assert cells.n < sum(len(prompt.ids) for prompt in prompts)
    for prompt, of_prompt in zip(prompts, cells.of_prompts):
        for position, cell in enumerate(of_prompt):
            alone = Prompt(prompt.ids[: position + 1], [position])
            probs = reading.vocab_probs(model, hidden_states(model, [alone])[0]).detach()  # [layer, vocab]
            top = torch.from_numpy(stored["top_ids"][cell, :, :GRID_TOKENS].astype(np.int64))
            assert stored["top_probs"][cell, :, :GRID_TOKENS] == pytest.approx(probs.gather(1, top).numpy(), abs=1e-5)
            best = probs.topk(GRID_TOKENS, dim=-1).values.numpy()
            assert stored["top_probs"][cell, :, :GRID_TOKENS] == pytest.approx(best, abs=1e-5)


def test_what_is_written_is_read_back(read, tmp_path, monkeypatch):
    """Shares are each cell's posterior under those of all cells, here from the whole vocabulary."""
    model, matrix, prompts, cells = read
    states = [hidden_states(model, [Prompt(p.ids, new)]) for p, new in zip(prompts, cells.first_read) if new]
    probs = reading.vocab_probs(model, torch.cat(states)).detach().numpy()  # [cell, layer, vocab]
    expected = probs.astype(np.float64) @ matrix.probs.toarray()  # right for what is no language
    for layer, of_set in enumerate(shares.fit(probs.mean(axis=0), matrix.rows_to_fit)):
        posterior = shares.responsibilities(np.arange(probs.shape[2]), matrix.rows_to_fit, of_set)
        expected[:, layer, : matrix.n_languages] = probs[:, layer] @ posterior
    examples = [(OwnText(str(i), "text", "eng_Latn", ""), prompt) for i, prompt in enumerate(prompts)]
    pieces = read_pieces(model.tokenizer)
    records.write_grid(
        tmp_path,
        {"eng_Latn": cells},
        {"eng_Latn": examples},
        {("eng_Latn", "1"): "newly_right"},
        matrix,
        pieces,
        model.tokenizer,
    )
    monkeypatch.setattr(ProbeRun, "table", pd.DataFrame({"layer": range(expected.shape[1])}))
    grid = ProbeRun(tmp_path).grid
    assert [row["outcome"] for row in grid.prompts] == [None, "newly_right", None]
    assert grid.prompts[0]["text"] == "The water is cold.\n\nQ: Why?\nA:" and grid.prompts[2]["text"] == "ନଦୀର ପାଣି"
    assert [row["cells"] for row in grid.prompts] == cells.of_prompts
    assert grid.prompts[1]["read"] == [len(prompts[1].ids) - 1]
    assert expected.sum(axis=-1) == pytest.approx(1, abs=1e-3)
    assert np.take_along_axis(expected, grid.channels.astype(int), axis=-1) == pytest.approx(grid.shares, abs=0.03)
    assert grid.shares == pytest.approx(-np.sort(-expected, axis=-1)[..., :GRID_CHANNELS], abs=0.03)
    assert (grid.shares.sum(axis=-1) < 1 + 1e-5).all()
    assert {int(id) for id in grid.top_ids.ravel()} <= grid.tokens.keys()
    assert grid.tokens[prompts[0].ids[-1]] == ":"
