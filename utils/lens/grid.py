"""The same reading at every position of a few prompts: a grid of layers x positions."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from utils.lens import reading
from utils.lens.lenses import LOGIT, Lens
from utils.lens.records import GRID_RECORD, LanguageRecord
from utils.models.families import LensModel
from utils.models.hidden_states import Prompt, hidden_states
from utils.token_languages.matrix import TokenLanguages


@dataclass(frozen=True)
class Cells:
    """Which positions are read. A prefix that several prompts share is read once: nothing later can change it.

    of_prompts: the cell of each position of each prompt. first_read: the positions that each prompt is the first to
    have, whose cells are the next numbers.
    """

    of_prompts: list[list[int]]
    first_read: list[list[int]]

    @property
    def n(self) -> int:
        return sum(map(len, self.first_read))


def cells_of(prompts: list[Prompt]) -> Cells:
    number: dict[tuple[int, int], int] = {}  # (the cell before, token) -> cell
    of_prompts, first_read = [], []
    for prompt in prompts:
        cell, path, new = -1, [], []
        for position, token in enumerate(prompt.ids):
            if (cell, token) not in number:
                number[cell, token] = len(number)
                new.append(position)
            cell = number[cell, token]
            path.append(cell)
        of_prompts.append(path)
        first_read.append(new)
    return Cells(of_prompts, first_read)


def read_grid(
    run: Path, lang: str, prompts: list[Prompt], model: LensModel, matrix: TokenLanguages, lens: Lens = LOGIT
) -> Cells:
    """Read the prompts of a language at every position, into the run's record of its grid; goes on where it stopped.

    Each position counts as a prompt of its own, so that shares mean what they mean everywhere else: the set is all of
    the language's cells at a layer.
    """
    cells = cells_of(prompts)
    numbers = iter(range(cells.n))
    batches = [(prompt, new, [next(numbers) for _ in new]) for prompt, new in zip(prompts, cells.first_read) if new]
    dense = torch.from_numpy(matrix.dense[: model.n_tokens]).to(model.device)  # [vocab, channel]
    shape = (cells.n, len(model.layers) + 1, dense.shape[1], model.n_tokens, len(batches))
    record = LanguageRecord.open(run, GRID_RECORD + lang, *shape)
    with tqdm(total=cells.n, desc=f"grid of {lang}", unit="position", leave=False, disable=None) as bar:
        bar.update(int(record.arrays["read"].sum()))
        for number, (prompt, new, numbered) in enumerate(batches):
            if record.arrays["batches"][number]:
                continue
            states = lens(hidden_states(model, [Prompt(prompt.ids[: new[-1] + 1], new)]))  # [position, layer, width]
            alone = [Prompt(prompt.ids, [position]) for position in new]
            record.add(number, numbered, reading.read(model, alone, states, dense))
            record.save_now_and_then()
            bar.update(len(new))
    record.save()
    return cells
