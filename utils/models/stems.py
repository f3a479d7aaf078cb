"""Stems: what prompts begin with, its keys and values held once and read by all rows that go on from it."""

from dataclasses import dataclass, field

import torch


@dataclass
class Stems:
    """The keys and values of stems, the stem of each row, and the positions of what is read on now.

    keys, values: [layer][stem] of [key head, position, width]; lengths [stem]; of_row [row]; positions [row, new].
    """

    keys: list[list[torch.Tensor]]
    values: list[list[torch.Tensor]]
    lengths: torch.Tensor
    of_row: torch.Tensor
    positions: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))
    n_layers_read: int = 0
    members: list[torch.Tensor] = field(default_factory=list)
    unseen: dict[int, torch.Tensor | None] = field(default_factory=dict)

    def begin(self, positions: torch.Tensor) -> None:
        """A forward pass begins that reads tokens at these positions. What its layers have in common is found once:
        the rows of each stem, and, by window and group of heads, what of the stems is out of sight.
        """
        self.positions, self.n_layers_read, self.unseen = positions, 0, {}
        self.members = [(self.of_row == stem).nonzero()[:, 0] for stem in range(len(self.lengths))]

    def out_of_sight(self, window: int | None, longest: int, groups: int) -> torch.Tensor | None:
        """[row, 1, group x new, stem position]: what lies a window back or more; None where nothing does."""
        if window is None:
            return None
        if window not in self.unseen:
            self.unseen[window] = None
            if int(self.positions.max()) >= window:
                places = torch.arange(longest, device=self.positions.device)
                unseen = places <= self.positions[:, :, None] - window  # [row, new, stem position]
                self.unseen[window] = unseen[:, None].repeat(1, 1, groups, 1)
        return self.unseen[window]

    def drop(self, row: int) -> None:
        self.of_row[row] = self.of_row[-1]
        self.of_row = self.of_row[:-1]

    @classmethod
    def joined(cls, parts: list["Stems"]) -> "Stems":
        """The rows of all parts, in their order, with the stems that some row goes on from."""
        kept = [part.of_row.unique() for part in parts]
        of_row, first = [], 0
        for part, stems in zip(parts, kept):
            of_row.append(torch.searchsorted(stems, part.of_row) + first)
            first += len(stems)
        keys, values = (
            [
                [layer[stem] for layer, stems in zip(layers, kept) for stem in stems.tolist()]
                for layers in zip(*(getattr(part, name) for part in parts))
            ]
            for name in ("keys", "values")
        )
        lengths = torch.cat([part.lengths[stems] for part, stems in zip(parts, kept)])
        return cls(keys, values, lengths, torch.cat(of_row))

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        visible: torch.Tensor | None,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Attention of each row to its stem and to its own tokens after it: [row, new, head, width].

        query: [row, head, new, width]; key, value: the row's own, [row, key head, own position, width]; visible: of
        these, [row, 1, new, own position]. All of a stem is visible but what lies `window` positions back or more.
        One softmax goes over both, so that this is attention to the whole text. Rows of one stem are multiplied with
        it together: it is read from memory once.
        """
        self.n_layers_read += 1
        n_rows, n_heads, n_new, width = query.shape
        n_key_heads, n_own = key.shape[1:3]
        folded = (query * scaling).reshape(n_rows, n_key_heads, -1, width)  # [row, key head, group x new, width]
        groups = n_heads // n_key_heads
        keys, values = self.keys[layer], self.values[layer]
        longest = max(stem.shape[1] for stem in keys)
        # Finite, so that padding that sees nothing attends to something: weights that are nan would spread.
        lowest = torch.finfo(folded.dtype).min
        scores = folded.new_full((*folded.shape[:3], longest + n_own), lowest)
        own = folded @ key.transpose(2, 3)
        if visible is None:
            visible = torch.ones(n_new, n_own, dtype=torch.bool, device=key.device).tril(n_own - n_new)[None, None]
        scores[..., longest:] = own.masked_fill(~visible.repeat(1, 1, groups, 1), lowest)
        for rows, stem in zip(self.members, keys):
            if len(rows):
                scores[rows, :, :, : stem.shape[1]] = _unfolded(_together(folded, rows) @ stem.transpose(1, 2), rows)
        if (beyond := self.out_of_sight(window, longest, groups)) is not None:
            scores[..., :longest].masked_fill_(beyond, lowest)
        weights = torch.softmax(scores, dim=-1)
        attended = weights[..., longest:] @ value
        for rows, stem in zip(self.members, values):
            if len(rows):
                attended[rows] += _unfolded(_together(weights[..., : stem.shape[1]], rows) @ stem, rows)
        return attended.view(n_rows, n_heads, n_new, value.shape[-1]).transpose(1, 2).contiguous()


def _together(states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[row, key head, query, width] -> of these rows, [key head, row x query, width]."""
    return states[rows].transpose(0, 1).flatten(1, 2)


def _unfolded(states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[key head, row x query, width] -> [row, key head, query, width]."""
    return states.unflatten(1, (len(rows), -1)).transpose(0, 1)
