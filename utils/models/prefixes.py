"""Prompts that begin alike are read together: the shared prefix once, then each prompt's own rest from its cache."""

import inspect
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch
from transformers.cache_utils import Cache, DynamicLayer

from utils.models.families import LensModel
from utils.models.hidden_states import Prompt, pad

# Shared beginnings shorter than this are read again for each prompt: a pass of its own costs more.
SHORTEST_SHARED = 16
# Keys and values get room for so many tokens more whenever there is none left.
ROOM = 64


def question_prompt(ids: list[int], context: str, key: str) -> Prompt:
    """The prompt of a question, read at its last token: what comes next is the answer."""
    return Prompt(ids, [len(ids) - 1], context, key)


class RoomyLayer(DynamicLayer):
    """Keys and values [row, head, position, width] with room for more; DynamicLayer copies all of them every time."""

    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def holding(cls, keys: torch.Tensor, values: torch.Tensor) -> "RoomyLayer":
        layer = cls()
        layer.lazy_initialization(keys, values)
        layer._rooms = [keys, values]
        layer._show(keys.shape[0], keys.shape[2])
        return layer

    def _show(self, n_rows: int, n_positions: int) -> None:
        self.keys, self.values = (states[:n_rows, :, :n_positions] for states in self._rooms)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self._rooms = [key_states, value_states]
            self.lazy_initialization(key_states, value_states)
            self._show(key_states.shape[0], key_states.shape[2])
            return self.keys, self.values
        n_rows, _, start, _ = self.keys.shape
        end = start + key_states.shape[2]
        if end > self._rooms[0].shape[2]:
            self._rooms = [_with_room(states, end - start) for states in (self.keys, self.values)]
        for states, new in zip(self._rooms, (key_states, value_states)):
            states[:n_rows, :, start:end] = new
        self._show(n_rows, end)
        return self.keys, self.values

    def drop(self, row: int) -> None:
        last = self.keys.shape[0] - 1
        for states in self._rooms:
            states[row] = states[last]
        self._show(last, self.keys.shape[2])


def _with_room(states: torch.Tensor, least: int) -> torch.Tensor:
    n_rows, heads, n_positions, width = states.shape
    roomy = states.new_empty(n_rows, heads, n_positions + max(least, ROOM), width)
    roomy[:, :, :n_positions] = states
    return roomy


@dataclass
class Texts:
    """Texts as far as they have been read: keys and values, and the mask of real tokens [row, position]."""

    cache: Cache
    mask: torch.Tensor

    @property
    def layers(self) -> list[RoomyLayer]:
        return cast(list[RoomyLayer], self.cache.layers)

    def drop(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        for layer in self.layers:
            layer.drop(row)
        self.mask[row] = self.mask[-1]
        self.mask = self.mask[:-1]


def forward(model: LensModel, texts: Texts, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Read on in every text: final-normed states [row, new position, width]. ids, mask: [row, new position]."""
    texts.mask = torch.cat([texts.mask, mask], dim=1)
    options = {}
    if "position_ids" in inspect.signature(model.decoder.forward).parameters:  # BLOOM's counts the mask by itself
        options["position_ids"] = (texts.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    read = model.decoder(
        input_ids=ids, attention_mask=texts.mask, past_key_values=texts.cache, use_cache=True, **options
    )
    return read.last_hidden_state


def nothing_read(n_rows: int, device) -> Texts:
    return Texts(Cache(layer_class_to_replicate=RoomyLayer), torch.zeros(n_rows, 0, dtype=torch.long, device=device))


def read_prompts(model: LensModel, prompts: list[Prompt]) -> tuple[Texts, torch.Tensor]:
    """All prompts read, and their last states [prompt, width].

    What all of them begin with (the solved examples) is read once, then once a context what its prompts share,
    then the rest of each.
    """
    ids = [prompt.ids for prompt in prompts]
    of_context = [list(rows) for _, rows in groupby(range(len(prompts)), key=lambda i: prompts[i].context)]
    ends = [_shared([ids[i] for i in rows]) for rows in of_context]
    if len(of_context) == len(prompts) or min(ends) < SHORTEST_SHARED:
        return read_on(model, nothing_read(len(prompts), model.device), ids, list(range(len(prompts))))
    start = min(_shared(ids), min(ends) - 1)
    if start < SHORTEST_SHARED or len(of_context) == 1:
        start, texts = 0, nothing_read(len(of_context), model.device)
    else:
        texts = nothing_read(1, model.device)
        texts, _ = read_on(model, texts, [ids[0][:start]], [0] * len(of_context))
    segments = [ids[rows[0]][start:end] for rows, end in zip(of_context, ends)]
    parents = [number for number, rows in enumerate(of_context) for _ in rows]
    texts, _ = read_on(model, texts, segments, parents)
    return read_on(model, texts, [ids[i][ends[parents[i]] :] for i in range(len(ids))], list(range(len(ids))))


def _shared(id_lists: list[list[int]]) -> int:
    """How many tokens all of the lists begin with; at least one of each is left over."""
    differs = (i for i, column in enumerate(zip(*id_lists)) if len(set(column)) > 1)
    return min(next(differs, len(id_lists[0])), min(map(len, id_lists)) - 1)


def read_on(
    model: LensModel, texts: Texts, segments: list[list[int]], parents: list[int]
) -> tuple[Texts, torch.Tensor]:
    """Read a segment of tokens after each text. Returns a text for each of `parents`, the row that it goes on from,
    and the final-normed states of the segments' last tokens [segment, width].

    Segments are padded on the right, where causal attention doesn't see it; then every text is moved so that its
    padding is on the left: a distance in the cache stays a distance in the text, as sliding windows measure it.
    """
    ids, mask = pad(segments, model.device)
    states = forward(model, texts, ids, mask)
    n_new = mask.sum(dim=1)
    last = states[torch.arange(len(segments), device=model.device), n_new - 1]
    return moved(texts, torch.tensor(parents, device=model.device), ids.shape[1] - n_new), last


def moved(texts: Texts, rows: torch.Tensor, steps: torch.Tensor) -> Texts:
    """The texts of `rows`, each moved to the right by its row's number of steps."""
    lengths = texts.mask.sum(dim=1)[rows]  # [new row]
    old_width, width = texts.mask.shape[1], int(lengths.max())
    place = torch.arange(old_width - width, old_width, device=rows.device) - steps[rows][:, None]
    place = place.clamp(min=0)  # [new row, position]
    layers = []
    for layer in texts.layers:
        states = (states.transpose(1, 2)[rows[:, None], place] for states in (layer.keys, layer.values))
        layers.append(RoomyLayer.holding(*(moved.transpose(1, 2) for moved in states)))
    real = torch.arange(width, device=rows.device) >= width - lengths[:, None]
    return Texts(Cache(layers=list(layers)), real.long())
