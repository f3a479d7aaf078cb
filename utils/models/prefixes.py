"""Prompts that begin alike are read together: the shared prefix once, then each prompt's own rest from its cache.

The probe (`shared_hidden_states`) and the answers (`read_prompts`) both go through `beginnings`.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from transformers.cache_utils import Cache, DynamicLayer

from utils.models.checks import TOLERANCE, total_variation
from utils.models.families import LensModel
from utils.models.hidden_states import Prompt, hidden_states, pad, recorded
from utils.models.stems import Stems

# Shared beginnings shorter than this are read again for each prompt: a pass of its own costs more.
SHORTEST_SHARED = 16
# Tokens that the cache of a pass of rests may hold, times what a batch may read: a few hundred new tokens a pass.
HELD = 2
# What is left of a prompt beyond this is a stem of its own, but for its last token: rows are padded to the longest.
LONGEST_REST = 128
# What a pass costs beside its tokens, counted in tokens, by device: the weights are read from memory once more. On
# others too much for any pass that is not needed.
PASS_TOKENS = {"cpu": 24.0}
NO_PASS_MORE = 1e9
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
    def holding(cls, keys: torch.Tensor, values: torch.Tensor, n_positions: int) -> "RoomyLayer":
        """The first positions are keys and values; the others are room."""
        layer = cls()
        layer.lazy_initialization(keys, values)
        layer._rooms = [keys, values]
        layer._show(keys.shape[0], n_positions)
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
    """Texts as far as they have been read: keys and values, and the mask of real tokens [row, position].

    With stems, these are of what follows each row's stem.
    """

    cache: Cache
    mask: torch.Tensor
    stems: Stems | None = None

    @property
    def layers(self) -> list[RoomyLayer]:
        return cast(list[RoomyLayer], self.cache.layers)

    def drop(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        for layer in self.layers:
            layer.drop(row)
        self.mask[row] = self.mask[-1]
        self.mask = self.mask[:-1]
        if self.stems:
            self.stems.drop(row)


class StemsNotRead(Exception):
    """A layer's attention does not know of stems."""


def forward(model: LensModel, texts: Texts, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Read on in every text: final-normed states [row, new position, width]. ids, mask: [row, new position]."""
    texts.mask = torch.cat([texts.mask, mask], dim=1)
    options: dict = {}
    if "position_ids" in inspect.signature(model.decoder.forward).parameters:  # BLOOM's counts the mask by itself
        options["position_ids"] = (texts.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if texts.stems:
        options["position_ids"] += texts.stems.lengths[texts.stems.of_row][:, None]
        texts.stems.begin(options["position_ids"])
        options["stems"] = texts.stems
    read = model.decoder(
        input_ids=ids, attention_mask=texts.mask, past_key_values=texts.cache, use_cache=True, **options
    )
    if texts.stems and texts.stems.n_layers_read != len(model.layers):
        raise StemsNotRead
    return read.last_hidden_state.to(ids.device)


def nothing_read(n_rows: int, device) -> Texts:
    return Texts(Cache(layer_class_to_replicate=RoomyLayer), torch.zeros(n_rows, 0, dtype=torch.long, device=device))


@dataclass
class Beginning:
    """Prompts, by number, that go on from texts: the row of each prompt's text, and how many of its tokens that is."""

    texts: Texts
    prompts: list[int]
    rows: list[int]
    starts: list[int]


def pass_tokens(model: LensModel) -> float:
    return PASS_TOKENS.get(model.device.type, NO_PASS_MORE)


def beginnings(
    model: LensModel, prompts: list[Prompt], shares: bool = True, of_pass: float | None = None
) -> Iterator[Beginning]:
    """What prompts begin with alike, each read once. Every prompt comes in one Beginning, and what is left of it, with
    all positions that are asked for, is to be read by the caller.

    First what the prompts of a batch begin with (solved examples), then what those of a context do, and so on. Without
    `shares` nothing is read, and all of every prompt is left.

    of_pass: what a pass counts beside its tokens; None: `pass_tokens`.
    """
    of_pass = pass_tokens(model) if of_pass is None else of_pass
    texts = nothing_read(1, model.device)
    alike = [(list(range(len(prompts))), 0)]  # of each text: the prompts that begin with it, and its length
    while alike:
        here = Beginning(texts, [], [], [])
        parents, segments, longer = [], [], []
        for row, (members, start) in enumerate(alike):
            for group in _groups(prompts, members, start) if shares else [[i] for i in members]:
                end = start if len(group) == 1 else _shared([prompts[i] for i in group])
                if end - start >= SHORTEST_SHARED:
                    parents.append(row)
                    segments.append(prompts[group[0]].ids[start:end])
                    longer.append((group, end))
                else:
                    here.prompts += group
                    here.rows += [row] * len(group)
                    here.starts += [start] * len(group)
        if here.prompts:
            yield here
        if longer:
            passes = _passes([len(segment) for segment in segments], of_pass)
            texts = _read_in_passes(model, texts, parents, segments, passes)
        alike = [longer[i] for places in passes for i in places] if longer else []


def _read_in_passes(
    model: LensModel, texts: Texts, parents: list[int], segments: list[list[int]], passes: list[list[int]]
) -> Texts:
    """`read_on` for segments that go on from the rows of `parents`; in the order of the passes."""
    parts = [
        read_on(model, chosen(texts, [parents[i] for i in places]), [segments[i] for i in places])[0]
        for places in passes
    ]
    return parts[0] if len(parts) == 1 else joined(parts, None, 0)


def _groups(prompts: list[Prompt], members: list[int], start: int) -> list[list[int]]:
    """The members whose next SHORTEST_SHARED tokens are the same, together."""
    groups: dict[tuple, list[int]] = {}
    for i in members:
        groups.setdefault(tuple(prompts[i].ids[start : start + SHORTEST_SHARED]), []).append(i)
    return list(groups.values())


def _shared(prompts: list[Prompt]) -> int:
    """How many tokens all of the prompts begin with, before the first position that is asked for in any."""
    most = min(prompt.positions[0] for prompt in prompts)
    columns = zip(*(prompt.ids[:most] for prompt in prompts))
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), most)


def read_prompts(model: LensModel, prompts: list[Prompt], shares: bool = True) -> tuple[Texts, torch.Tensor]:
    """All prompts read whole, in their order, and their last final-normed states [prompt, width]."""
    order: list[int] = []
    parts, lasts = [], []
    asked = [replace(prompt, positions=[len(prompt.ids) - 1]) for prompt in prompts]
    for part in beginnings(model, asked, shares):
        rests = [prompts[i].ids[start:] for i, start in zip(part.prompts, part.starts)]
        texts, last = read_on(model, chosen(part.texts, part.rows, room=max(map(len, rests))), rests)
        order += part.prompts
        parts.append(texts)
        lasts.append(last)
    places = sorted(range(len(order)), key=order.__getitem__)
    return joined(parts, places, ROOM), torch.cat(lasts)[places]


def read_on_stems(model: LensModel, prompts: list[Prompt], shares: bool = True) -> tuple[Texts, torch.Tensor]:
    """`read_prompts`, where what prompts begin with is held once, for attention that knows of stems.

    Each stem is read without padding, its beginning being an other one's text or nothing; then, in one pass, what is
    left of all prompts. Without `shares` every prompt is a stem of its own, but for its last token.
    """
    stems: list[Texts] = []
    of_prompt, starts = [0] * len(prompts), [0] * len(prompts)
    todo = [(nothing_read(1, model.device), 0, list(range(len(prompts))))]
    while todo:
        stem, start, members = todo.pop()
        ending = []
        for group in _branches(prompts, members, start, shares):
            end = _shared([prompts[i] for i in group])
            if end - start >= (SHORTEST_SHARED if len(group) > 1 else LONGEST_REST if start else 1):
                segment = prompts[group[0]].ids[start:end]
                longer, _ = read_on(model, chosen(stem, [0], room=len(segment)), [segment])
                todo.append((longer, end, group))
            else:
                ending += group
        for i in ending:
            of_prompt[i], starts[i] = len(stems), start
        stems += [stem] if ending else []
    if not all(starts):  # a prompt of one token has no stem
        return read_prompts(model, prompts, shares)
    texts = nothing_read(len(prompts), model.device)
    texts.stems = _held(stems, of_prompt, model.device)
    return read_on(model, texts, [prompt.ids[start:] for prompt, start in zip(prompts, starts)])


def _branches(prompts: list[Prompt], members: list[int], start: int, shares: bool) -> list[list[int]]:
    """Members that go on alike, together where that is long enough to be read once."""
    groups = _groups(prompts, members, start) if shares else [[i] for i in members]
    branches = []
    for group in groups:
        shared = _shared([prompts[i] for i in group]) - start
        branches += [group] if shared >= SHORTEST_SHARED else [[i] for i in group]
    return branches


def _held(stems: list[Texts], of_row: list[int], device) -> Stems:
    layers = list(zip(*(stem.layers for stem in stems)))  # [layer][stem]
    return Stems(
        [[layer.keys[0] for layer in of_stems] for of_stems in layers],
        [[layer.values[0] for layer in of_stems] for of_stems in layers],
        torch.tensor([stem.mask.shape[1] for stem in stems], device=device),
        torch.tensor(of_row, device=device),
    )


def shared_hidden_states(
    model: LensModel, prompts: list[Prompt], max_tokens: int, shares: bool = True, of_pass: float | None = None
) -> torch.Tensor:
    """`hidden_states`, with what prompts begin with alike read once: [position, layer, width], prompts in order.

    max_tokens: of a batch, as in `context_batches`; the rests are read by length, in passes of at most as many, and
    so many that little padding is read (of_pass: what one counts beside its tokens; None: `pass_tokens`).
    """
    if not shares:
        return hidden_states(model, prompts)
    of_pass = pass_tokens(model) if of_pass is None else of_pass
    found: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
    with torch.inference_mode():
        for part in beginnings(model, prompts, of_pass=of_pass):
            rests = [
                Prompt(prompts[i].ids[start:], [position - start for position in prompts[i].positions])
                for i, start in zip(part.prompts, part.starts)
            ]
            lengths = [len(prompt.ids) for prompt in rests]
            for places in _passes(lengths, of_pass, part.starts, max_tokens):
                together = [rests[place] for place in places]
                states = _states_after(model, part, places, together)
                counts = [len(prompt.positions) for prompt in together]
                for place, of_prompt in zip(places, states.split(counts)):
                    found[part.prompts[place]] = of_prompt
    return torch.cat(found)


def _states_after(model: LensModel, part: Beginning, places: list[int], rests: list[Prompt]) -> torch.Tensor:
    if not part.texts.mask.shape[1]:
        return hidden_states(model, rests)
    width = max(len(prompt.ids) for prompt in rests)
    texts = chosen(part.texts, [part.rows[place] for place in places], room=width)
    return recorded(model, rests, lambda ids, mask: forward(model, texts, ids, mask))


def _passes(
    lengths: list[int], of_pass: float, starts: list[int] | None = None, max_tokens: float = math.inf
) -> list[list[int]]:
    """Which of so many new tokens are read in one pass: the longest first, within max_tokens new ones and HELD times as
    many held, so that the tokens read, padding and `of_pass` for each pass counted, are the fewest.
    """
    starts = starts or [0] * len(lengths)
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], -starts[i], i))
    least, cut = [0.0] * (len(order) + 1), [0] * (len(order) + 1)  # for the first ones in order
    for end in range(1, len(order) + 1):
        least[end], held = math.inf, 0
        for first in range(end - 1, -1, -1):
            n, new = end - first, lengths[order[first]]
            held = max(held, starts[order[first]] + new)
            if n > 1 and (n * new > max_tokens or n * held > HELD * max_tokens):
                break
            if least[first] + n * new + of_pass < least[end]:
                least[end], cut[end] = least[first] + n * new + of_pass, first
    passes, end = [], len(order)
    while end:
        passes.append(order[cut[end] : end])
        end = cut[end]
    return passes[::-1]


def context_batches(prompts: list[Prompt], batch_size: int | None, max_tokens: int) -> list[list[int]]:
    """Indices of prompts in batches of similar length, the longest first, those of one context side by side.

    batch_size: prompts in a batch; None: as many as read at most max_tokens tokens, padding counted, where a context
    is read once. A context is cut only where it alone is more than a batch.
    """
    by_context: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_context.setdefault(prompt.context or f"\0{i}", []).append(i)  # no context: one of its own
    contexts = sorted(by_context.values(), key=lambda rows: (-max(len(prompts[i].ids) for i in rows), rows[0]))
    if batch_size:
        order = [i for rows in contexts for i in rows]
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    parts: list[list[int]] = []
    context = rest = n = 0  # the longest context and the longest rest of the batch, and its contexts
    for rows in contexts:
        shared = _shared([prompts[i] for i in rows]) if len(rows) > 1 else 0
        longest = max(len(prompts[i].ids) for i in rows) - shared
        fitting = max((max_tokens - shared) // longest, 1)
        for piece in (rows[start : start + fitting] for start in range(0, len(rows), fitting)):
            context, rest, n = max(context, shared), max(rest, longest), n + 1
            if parts and n * context + (len(parts[-1]) + len(piece)) * rest <= max_tokens:
                parts[-1] += piece
            else:
                parts.append(piece)
                context, rest, n = shared, longest, 1
    return parts


Read = Callable[[LensModel, list[Prompt], bool], tuple[Texts, torch.Tensor]]


@torch.inference_mode()
def can_share(model: LensModel, prompts: list[Prompt], read: Read = read_prompts) -> bool:
    """Whether shared beginnings leave this model's next-token distributions as they are, but for rounding.

    Looks at the longest and the shortest of the prompts, read together. Where a family's cache doesn't keep them, a
    line says so, and prompts are to be read whole.
    """
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    ends = sorted({by_length[0], by_length[-1]})
    _, last = read(model, prompts, True)
    distance = max(
        total_variation(next_token(model, last[i]), next_token(model, alone(model, prompts[i].ids))) for i in ends
    )
    if not distance > TOLERANCE[model.dtype]:  # what isn't finite is for the self-check to name
        return True
    print(f"each prompt is read whole: shared beginnings move a distribution by {distance:.2g}")
    return False


@torch.inference_mode()
def can_hold_stems(model: LensModel) -> bool:
    """Whether this family's attention, as it is set now, hands its keys to stems; tried on two short prompts."""
    parameters = inspect.signature(model.decoder.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if "position_ids" not in parameters or not takes_any:
        return False
    ids = [i % model.n_tokens for i in range(SHORTEST_SHARED + 4)]
    prompts = [question_prompt([*ids, i], "", "") for i in range(2)]
    try:
        _, last = read_on_stems(model, prompts)
    except StemsNotRead:
        return False
    expected = torch.stack([alone(model, prompt.ids) for prompt in prompts])
    return bool((last - expected).norm() <= TOLERANCE[model.dtype] * expected.norm())


def alone(model: LensModel, ids: list[int]) -> torch.Tensor:
    """The final-normed state of a prompt's last token, without a batch or a cache: [width]."""
    one, mask = pad([ids], model.device)
    return model.decoder(input_ids=one, attention_mask=mask, use_cache=False).last_hidden_state[0, -1].to(model.device)


def next_token(model: LensModel, states: torch.Tensor) -> torch.Tensor:
    """Final-normed states [..., width] -> distributions over the tokenizer's ids [..., vocab]."""
    return torch.softmax(model.head(states)[..., : model.n_tokens].float(), dim=-1)


def read_on(model: LensModel, texts: Texts, segments: list[list[int]]) -> tuple[Texts, torch.Tensor]:
    """Read a segment of tokens after each text. Returns the longer texts, and the final-normed states of the segments'
    last tokens [segment, width].

    Segments are padded on the right, where causal attention doesn't see it; then every text is moved so that its
    padding is on the left: a distance in the cache stays a distance in the text, as sliding windows measure it.
    """
    ids, mask = pad(segments, model.device)
    states = forward(model, texts, ids, mask)
    n_new = mask.sum(dim=1)
    last = states[torch.arange(len(segments), device=model.device), n_new - 1]
    return moved(texts, torch.arange(len(segments), device=model.device), ids.shape[1] - n_new), last


def chosen(texts: Texts, rows: list[int], room: int = 0) -> Texts:
    """The texts of `rows`, with room for so many tokens more."""
    chosen = torch.tensor(rows, device=texts.mask.device)
    return moved(texts, chosen, torch.zeros(len(texts.mask), dtype=torch.long, device=texts.mask.device), room)


def moved(texts: Texts, rows: torch.Tensor, steps: torch.Tensor, room: int = 0) -> Texts:
    """The texts of `rows`, each moved to the right by its row's number of steps, with room for so many tokens more."""
    lengths = texts.mask.sum(dim=1)[rows]  # [new row]
    old_width, width = texts.mask.shape[1], int(lengths.max())
    place = torch.arange(old_width - width, old_width + room, device=rows.device) - steps[rows][:, None]
    place = place.clamp(min=0, max=max(old_width - 1, 0))  # [new row, position]; what stands in the room is never seen
    layers = []
    for layer in texts.layers:
        at = (rows[:, None].to(layer.keys.device), place.to(layer.keys.device))
        keys, values = (states.transpose(1, 2)[at] for states in (layer.keys, layer.values))
        layers.append(RoomyLayer.holding(keys.transpose(1, 2), values.transpose(1, 2), width))
    return Texts(_cache_of(layers), _left_padded(lengths, width), texts.stems)


def joined(parts: list[Texts], rows: list[int] | None, room: int) -> Texts:
    """The texts of all parts as one, in the order of `rows`, which count through the parts; None: as they are."""
    if len(parts) == 1 and rows is not None:
        return chosen(parts[0], rows, room)
    lengths = torch.cat([part.mask.sum(dim=1) for part in parts])
    width = int(lengths.max())
    layers = []
    for of_parts in zip(*(part.layers for part in parts)):
        both = []
        for name in ("keys", "values"):
            like = getattr(of_parts[0], name)
            states = like.new_zeros(len(lengths), like.shape[1], width + room, like.shape[3])
            first = 0
            for layer in of_parts:
                old = getattr(layer, name)[:, :, -width:]
                states[first : first + len(old), :, width - old.shape[2] : width] = old
                first += len(old)
            both.append(states if rows is None else states[rows])
        layers.append(RoomyLayer.holding(both[0], both[1], width))
    stems = [part.stems for part in parts if part.stems]
    assert not stems or rows is None
    return Texts(
        _cache_of(layers),
        _left_padded(lengths if rows is None else lengths[rows], width),
        Stems.joined(stems) if stems else None,
    )


def _cache_of(layers: list[RoomyLayer]) -> Cache:
    return Cache(layers=list(layers)) if layers else Cache(layer_class_to_replicate=RoomyLayer)


def _left_padded(lengths: torch.Tensor, width: int) -> torch.Tensor:
    return (torch.arange(width, device=lengths.device) >= width - lengths[:, None]).long()
