"""Distributions over the vocabulary, computed by pieces that stay in a CPU's cache, and what is summed over them.

vocabulary = Vocabulary.laid_out(model, token_languages)
some = Distributions.of(vocabulary, states, scratch)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from utils.models.arithmetic import HeadPiece, can_cut_head, head_pieces, map_by_onednn
from utils.models.checks import require_finite
from utils.models.families import LensModel
from utils.processes import side_by_side

# Tokens whose highest logit is looked at together; and what stands where a group has fewer.
GROUP, NO_TOKEN = 16, -1
# A logit further below a piece's highest counts as this: exp of less than -87 is no normal float32, and takes a CPU up
# to thirty times as long. All tokens of a vocabulary together have less than 1e-28 of a piece's likeliest then.
LEAST = -80.0


@dataclass(frozen=True)
class PieceLanguages:
    """A piece's part of the token x language matrix: of([..., token]) is its product, [..., channel], with `channels`
    alone; in all others it has nothing but zeros.
    """

    of: Callable[[torch.Tensor], torch.Tensor]
    channels: torch.Tensor | slice


@dataclass(frozen=True)
class Vocabulary:
    """The head and the token x language matrix by the same pieces. order: the id at each place, where the pieces have
    tokens in another order than that of their ids.
    """

    model: LensModel
    pieces: list[HeadPiece]
    matrices: list[PieceLanguages]
    n_channels: int
    order: torch.Tensor | None = None
    kept: list[torch.Tensor] = field(default_factory=list, repr=False)  # see `room`

    @classmethod
    def of(cls, model: LensModel, token_languages: torch.Tensor) -> "Vocabulary":
        """token_languages: [vocab, channel]."""
        pieces = head_pieces(model)
        matrices = [PieceLanguages(partial(_product, token_languages[piece.tokens]), slice(None)) for piece in pieces]
        return cls(model, pieces, matrices, token_languages.shape[1])

    @classmethod
    def laid_out(cls, model: LensModel, token_languages: torch.Tensor) -> "Vocabulary":
        """`of`, laid out for many prompts, which takes seconds and the memory of another head: tokens of the same
        languages are side by side, so that most channels are left out of a piece's product.
        """
        if not can_cut_head(model):
            return cls.of(model, token_languages)
        speaks = token_languages.numpy() > 0
        order = torch.from_numpy(by_pattern(speaks, token_languages.sum(dim=0).argsort().numpy()))
        pieces, matrices = head_pieces(model, order), []
        for piece in pieces:
            rows = token_languages[order[piece.tokens]]
            channels = (rows != 0).any(dim=0).nonzero()[:, 0]
            # Sums of what is not negative are as exact by oneDNN, to 1e-6, however long they are.
            matrices.append(PieceLanguages(map_by_onednn(rows[:, channels].T.contiguous()), channels))
        return cls(model, pieces, matrices, token_languages.shape[1], order)

    def room(self, n: int, device: torch.device) -> torch.Tensor:
        """Room for n numbers, the same for every call: to ask the system for so much memory anew costs more than to
        fill it.
        """
        if not self.kept or len(self.kept[0]) < n:
            self.kept[:] = [torch.empty(n, device=device)]
        return self.kept[0]

    def ids(self, places: torch.Tensor) -> torch.Tensor:
        return places if self.order is None else self.order[places]

    def by_id(self, sums: torch.Tensor) -> torch.Tensor:
        """[layer, place] -> [layer, id]."""
        return sums if self.order is None else torch.empty_like(sums).index_copy_(1, self.order, sums)


def _product(languages: torch.Tensor, powers: torch.Tensor) -> torch.Tensor:
    return powers @ languages


def by_pattern(speaks: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """Tokens that have the same channels side by side. speaks: [token, channel] of bool; the first of `channels` counts
    most.
    """
    patterns = np.ascontiguousarray(np.packbits(speaks[:, channels], axis=1))
    return patterns.view(f"V{patterns.shape[1]}").ravel().argsort(kind="stable")


@dataclass(frozen=True)
class Distributions:
    """The distributions over the vocabulary of some positions and layers, computed by pieces of the vocabulary.

    Of a piece c there are the powers e_t = exp(z_t - m_c), where m_c is the piece's highest logit, and its shift
    s_c = exp(m_c - m) / sum_t exp(z_t - m), where m is the highest of all: p_t = s_c e_t. What is wanted of p is a sum
    over tokens, and so the sum of the pieces' parts times their shifts.

    powers: [position, layer, token] of one piece after the other, flat; shifts: [piece, position, layer]; highest: of
    each piece the highest logit in each group of its tokens, [position x layer, group]; languages: [position, layer,
    channel]; entropy, kl: [position, layer], in nats.
    """

    vocabulary: Vocabulary
    powers: torch.Tensor
    shifts: torch.Tensor
    highest: list[torch.Tensor]
    languages: torch.Tensor
    entropy: torch.Tensor
    kl: torch.Tensor

    @classmethod
    def of(cls, vocabulary: Vocabulary, states: torch.Tensor, scratch: torch.Tensor) -> "Distributions":
        """states: [position, layer, width]; scratch: room for position x layer x vocab numbers, which it keeps."""
        model = vocabulary.model
        shape = states.shape[:2]
        normed = model.final_norm(states).to(states.device).flatten(0, 1)
        by_language = torch.zeros(len(vocabulary.pieces), *shape, vocabulary.n_channels, device=states.device)

        @torch.inference_mode()  # which each thread has for itself
        def of_piece(i: int) -> tuple:
            """(Highest of its groups, highest of all, sums over its tokens)."""
            piece, matrix = vocabulary.pieces[i], vocabulary.matrices[i]
            z = piece.logits(normed)
            groups = _highest_of_groups(z)
            top = groups.amax(dim=1, keepdim=True)
            below = z.sub_(top).view(*shape, -1)  # [position, layer, token]
            e = torch.clamp(below, min=LEAST, out=_room(scratch, shape, piece.tokens)).exp_()
            of_final = torch.linalg.vecdot(e, below[:, -1:])
            of_own = below.mul_(e).sum(dim=-1)
            by_language[i][..., matrix.channels] = matrix.of(e)
            return groups, top.view(shape), e.sum(dim=-1), of_own, of_final

        # A small piece has too little work for several threads; a whole head has work for all.
        n_pieces = len(vocabulary.pieces)
        highest, *others = zip(*(side_by_side(of_piece, range(n_pieces), n_pieces) if n_pieces > 1 else [of_piece(0)]))
        below_top, mass, of_own, of_final = (torch.stack(part) for part in others)  # [piece, position, layer]
        below_top = below_top - below_top.amax(dim=0)
        shifts = torch.exp(below_top)
        total = (shifts * mass).sum(dim=0)
        require_finite(torch.isfinite(total).all(dim=0), "logits", model.dtype)
        shifts = shifts / total
        mean = (shifts * (of_own + below_top * mass)).sum(dim=0)
        mean_of_final = (shifts * (of_final + below_top[:, :, -1:] * mass)).sum(dim=0)
        log_total = total.log()
        entropy = log_total - mean
        kl = (log_total[:, -1:] - mean_of_final) - entropy
        languages = torch.einsum("cpl,cplx->plx", shifts, by_language)
        return cls(vocabulary, scratch, shifts, list(highest), languages, entropy, kl)

    def likeliest(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(probabilities, ids) of the k likeliest tokens, the likeliest first: [position, layer, k] each.

        They are in the k groups whose highest logits are the highest: any other group's tokens have k before them.
        """
        highest = torch.cat(self.highest, dim=1)  # [row, group]
        if k >= highest.shape[1]:  # of a small vocabulary all groups
            probs = torch.cat([powers * shift[..., None] for powers, shift in self._powers_and_shifts()], dim=-1)
            best = probs.topk(k, dim=-1)
            return best.values, self.vocabulary.ids(best.indices)
        members = torch.cat([_members_of_groups(piece.tokens) for piece in self.vocabulary.pieces])
        groups = highest.topk(k, dim=1, sorted=False).indices
        places = members.to(groups.device)[groups].flatten(1)  # [row, candidate]
        best = self._probs_of(places).topk(k, dim=1)
        shape = (*self.entropy.shape, k)
        return best.values.view(shape), self.vocabulary.ids(places.gather(1, best.indices)).view(shape)

    def _probs_of(self, places: torch.Tensor) -> torch.Tensor:
        """[row, candidate] -> the same shape; -1 where there is NO_TOKEN."""
        pieces = self.vocabulary.pieces
        n_rows, size, end = len(places), pieces[0].tokens.stop, pieces[-1].tokens.stop
        real = places.clamp(min=0)
        piece = real // size
        start = piece * size
        row = torch.arange(n_rows, device=places.device)[:, None]
        powers = self.powers[start * n_rows + row * (end - start).clamp(max=size) + real - start]
        return (powers * self.shifts.flatten(1).T.gather(1, piece)).masked_fill(places == NO_TOKEN, -1)

    def _powers_and_shifts(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Of each piece ([position, layer, token], [position, layer])."""
        for piece, shift in zip(self.vocabulary.pieces, self.shifts):
            yield _room(self.powers, self.entropy.shape, piece.tokens), shift

    def add_to(self, sums: torch.Tensor, weights: torch.Tensor) -> None:
        """Add the positions' weighted probabilities to sums [layer, place]."""
        for piece, (e, shift) in zip(self.vocabulary.pieces, self._powers_and_shifts()):
            sums[:, piece.tokens] += ((weights[:, None] * shift).T.unsqueeze(1) @ e.transpose(0, 1)).squeeze(1)


def _room(powers: torch.Tensor, shape: torch.Size, tokens: slice) -> torch.Tensor:
    """Where a piece's powers are, [position, layer, token]."""
    n_rows = shape.numel()
    return powers[tokens.start * n_rows : tokens.stop * n_rows].view(*shape, -1)


def _highest_of_groups(z: torch.Tensor) -> torch.Tensor:
    """[row, token] -> the highest logit of each of `_members_of_groups`: [row, group]."""
    n_groups = z.shape[1] // GROUP
    whole = z[:, : GROUP * n_groups].unflatten(1, (GROUP, n_groups))
    return torch.cat([whole.amax(dim=1), z[:, GROUP * n_groups :]], dim=1)


def _members_of_groups(tokens: slice) -> torch.Tensor:
    """The places of each group of a piece: [group, GROUP]. A group's are far apart, so that all groups' highest logits
    are found side by side; the last tokens are alone in theirs, beside NO_TOKEN.
    """
    n_groups = (tokens.stop - tokens.start) // GROUP
    places = torch.arange(tokens.start, tokens.stop)
    whole, rest = places[: GROUP * n_groups].view(GROUP, n_groups).T, places[GROUP * n_groups :]
    return torch.cat([whole, torch.nn.functional.pad(rest[:, None], (0, GROUP - 1), value=NO_TOKEN)])
