"""The same numbers sooner, on a CPU in float32: linear maps by oneDNN, attention without copies of its heads, and the
likeliest tokens by way of an unembedding in bfloat16, from which exact float32 logits are taken where it matters.

    with quick(model) as way:
        texts, states = way.read(model, prompts, True)
        logits, ids = way.likeliest(states, k, within)  # [row, candidate]; all logits where ids is None
    with quick_maps(model):
        states = shared_hidden_states(model, prompts, max_tokens)
    for piece in head_pieces(model):
        logits = piece.logits(normed)  # [row, token of the piece], float32

Within `quick` the decoder computes what it always does, in another order of sums. Elsewhere (a GPU, another dtype, a
CPU or a torch without these kernels) `quick` changes nothing, prompts are read as ever, and all logits are returned.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeGuard, cast

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from utils.models.checks import require_finite
from utils.models.families import LensModel
from utils.models.mapped import FileMappings
from utils.models.prefixes import Read, can_hold_stems, read_on_stems, read_prompts

# Smaller maps and unembeddings gain nothing.
LEAST_MAP, LEAST_UNEMBEDDING = 2**16, 2**24
# Rows of an unembedding that are laid out together, and multiplied together; and those whose norms are taken together.
# Pieces of 32 MiB and more go back to the system as soon as they are free; small ones are used again.
ROWS, ROWS_OF_NORMS = 2**15, 2**11
# oneDNN adds up a sum term by term, MKL in parts: with maps of 1,024 and 2,048 inputs by oneDNN, probabilities of Gemma
# 3 270M are twice as far from those in float64.
LONGEST_SUM = 2**10 - 1
# Tokens of a piece of the head: what is computed of some hundred states stays in the cache.
PIECE = 2**11
# Rows that a head's pieces are laid out for, sixteen positions of twenty layers; others are as right.
USUAL_STATES = 320
# Rows of a batch that oneDNN lays weights out for; others are as right.
USUAL_ROWS = 16
# A row with more candidates than this share of the vocabulary has all logits computed: they cost no more.
MOST_CANDIDATES = 1 / 16
# Rows with more candidates than this between them are computed one by one, each from its own candidates.
MOST_TOGETHER = 2048
# Rows of the unembedding that are looked up before its memory is given back again. The system reads 64 KiB for each.
LOOKED_UP = 2048
# Relative rounding: half a unit in the last place of bfloat16 (8 bits) and of float32 (24 bits).
BFLOAT16, FLOAT32 = 2.0**-9, 2.0**-24
# More than a norm of some thousand float32 can be rounded by.
ROUNDED_NORM = 1e-3
GROUPED = "grouped"

# Coordinates of a state whose part of the bound is counted by itself: a few are far larger than all others.
APART = 8

Likeliest = Callable[[torch.Tensor, int, float], tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class Way:
    """How prompts are read, and how likely tokens come from states: (logits, their ids or None for all).

    likeliest(states, k, within): of the k likeliest tokens those whose logits are at most `within` below the first's.
    """

    read: Read
    likeliest: Likeliest

    @property
    def holds_stems(self) -> bool:
        return self.read is read_on_stems


def usual(model: LensModel) -> Way:
    return Way(read_prompts, functools.partial(all_logits, model))


@contextlib.contextmanager
def quick(model: LensModel) -> Iterator[Way]:
    """The decoder's maps and attention in their quick form until the end, and the way that goes with it."""
    if not _is_quick(model):
        yield usual(model)
        return
    is_large = cast(torch.Tensor, model.unembedding.weight).numel() >= LEAST_UNEMBEDDING
    files = FileMappings.of_this_process() if is_large else FileMappings(())  # to find them takes a tenth of a second
    with quick_maps(model, files, longest_sum=math.inf):
        read = read_on_stems if can_hold_stems(model) else read_prompts
        yield Way(read, unembedding_of(model, files) or usual(model).likeliest)


@contextlib.contextmanager
def quick_maps(model: LensModel, files: FileMappings | None = None, longest_sum: float = LONGEST_SUM) -> Iterator[None]:
    """The decoder's maps and attention in their quick form until the end; elsewhere nothing changes.

    Weights that lie in `files` are laid out anew, which takes a second: it pays for many texts. Maps of more than
    `longest_sum` inputs are left as they are.
    """
    with contextlib.ExitStack() as undo:
        if _is_quick(model):
            for module in model.decoder.modules():
                if _is_plain_map(module) and module.weight.numel() >= LEAST_MAP and module.in_features <= longest_sum:
                    undo.enter_context(_by_onednn(module, files or FileMappings(())))
            undo.enter_context(_grouped_attention(model.decoder.config))
        yield


def _is_plain_map(module: nn.Module) -> TypeGuard[nn.Linear]:
    # One whose forward is replaced already has been given hooks by accelerate.
    return type(module) is nn.Linear and "forward" not in vars(module)


def _is_quick(model: LensModel) -> bool:
    return is_quick(model.device, model.dtype)


def is_quick(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `by_onednn` is there and pays: float32 on a CPU with AVX-512, in a torch that has these kernels."""
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and bool(torch.cpu.get_capabilities().get("avx512_f"))
    )


@contextlib.contextmanager
def _by_onednn(module: nn.Linear, files: FileMappings) -> Iterator[None]:
    """The map by oneDNN, whose products of few rows are twice as fast as MKL's on some CPUs.

    Its weights are laid out anew where the memory of the old ones can be given back meanwhile.
    """
    weight, bias = module.weight.detach(), module.bias
    if files.hold(weight):
        weight = torch.ops.mkldnn._reorder_linear_weight(weight, USUAL_ROWS)
        files.release(module.weight.detach())
    module.forward = functools.partial(by_onednn, weight=weight, bias=bias)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward


def by_onednn(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """weight states + bias, [..., in] -> [..., out], without a gradient of its own; weight may be a transposed one."""
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


@contextlib.contextmanager
def _grouped_attention(config) -> Iterator[None]:
    before = config._attn_implementation
    if before == "sdpa":
        config._attn_implementation = GROUPED
    try:
        yield
    finally:
        config._attn_implementation = before


def grouped_attention(module, query, key, value, attention_mask, stems=None, **options):
    """sdpa's, with query heads of one key head as more query positions: transformers copies keys once a query head.

    query: [row, key head x group, new, width]; key, value: [row, key head, position, width]; the mask, where there
    is one, [row, 1, new, position]. With stems, keys are of what follows them.
    """
    if stems is not None:
        scaling = options.get("scaling") or query.shape[-1] ** -0.5
        window = options.get("sliding_window")
        return stems.attend(module.layer_idx, query, key, value, attention_mask, scaling, window), None
    groups = getattr(module, "num_key_value_groups", 1)
    n_rows, n_heads, n_new, width = query.shape
    if groups == 1 or attention_mask is None or attention_mask.shape[1] != 1 or n_heads != groups * key.shape[1]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    folded = query.reshape(n_rows, key.shape[1], groups * n_new, width)
    mask = attention_mask[:, :, None].expand(-1, -1, groups, -1, -1).flatten(2, 3)
    attended = torch.nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=mask, dropout_p=options.get("dropout", 0.0), scale=options.get("scaling")
    )
    return attended.view(n_rows, n_heads, n_new, value.shape[-1]).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(GROUPED, grouped_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(GROUPED, sdpa_mask)


@dataclass(frozen=True)
class HeadPiece:
    """Some tokens, and the head's part that gives their logits: normed states [row, width] -> float32 [row, token]."""

    tokens: slice
    logits: Callable[[torch.Tensor], torch.Tensor]


def head_pieces(model: LensModel, order: torch.Tensor | None = None) -> list[HeadPiece]:
    """The head by pieces of the tokenizer's ids, small enough for what is computed of a piece to stay in a CPU's cache;
    where it can't be cut, all in one.

    order: of ids, which the pieces follow; their weights are then a copy, laid out for oneDNN.
    """
    if not can_cut_head(model):
        assert order is None
        return [HeadPiece(slice(0, model.n_tokens), lambda normed: model.head(normed)[:, : model.n_tokens].float())]
    weight = cast(torch.Tensor, model.unembedding.weight).detach()
    bias = cast(torch.Tensor | None, model.unembedding.bias)
    files = FileMappings.of_this_process() if order is not None else FileMappings(())
    pieces = []
    for start in range(0, model.n_tokens, PIECE):
        tokens = slice(start, min(start + PIECE, model.n_tokens))
        ids = tokens if order is None else order[tokens]
        of_piece = weight[ids]
        if order is not None:
            of_piece = torch.ops.mkldnn._reorder_linear_weight(of_piece, USUAL_STATES)
        of_bias = None if bias is None else bias.detach()[ids]
        pieces.append(HeadPiece(tokens, functools.partial(_logits_of, model, of_piece, of_bias)))
    files.release(weight)
    return pieces


def map_by_onednn(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """[..., in] -> [..., out] by a copy of weight, [out, in], that is laid out for some hundred rows at a time."""
    return functools.partial(by_onednn, weight=torch.ops.mkldnn._reorder_linear_weight(weight, USUAL_STATES))


def can_cut_head(model: LensModel) -> bool:
    unembedding = model.unembedding
    return (
        _is_quick(model)
        and _is_plain_map(unembedding)
        and not (unembedding._forward_hooks or unembedding._forward_pre_hooks)
        and unembedding.weight.numel() >= LEAST_UNEMBEDDING
    )


def _logits_of(model: LensModel, weight: torch.Tensor, bias: torch.Tensor | None, normed: torch.Tensor) -> torch.Tensor:
    return model.family.after_unembedding(by_onednn(normed, weight, bias), model.config)


def all_logits(
    model: LensModel, states: torch.Tensor, k: int = 1, within: float = torch.inf
) -> tuple[torch.Tensor, None]:
    """Final-normed states [row, width] -> float32 logits [row, vocab] over the tokenizer's ids; no ids: it's all."""
    logits = model.head(states)[:, : model.n_tokens].float()
    # The maximum passes on a NaN.
    require_finite(torch.isfinite(logits.amax(dim=-1)).all(), "logits", model.dtype)
    return logits, None


def unembedding_of(model: LensModel, files: FileMappings) -> "BoundedUnembedding | None":
    """The unembedding in bfloat16, where it can serve: a plain linear map, finite, and a CPU that multiplies such."""
    unembedding = model.unembedding
    if (
        type(unembedding) is not nn.Linear
        or unembedding.bias is not None
        or unembedding._forward_hooks
        or unembedding._forward_pre_hooks
        or unembedding.weight.numel() < LEAST_UNEMBEDDING
        or not torch.cpu.get_capabilities().get("avx512_bf16")
        or not _grows(model)
    ):
        return None
    made = BoundedUnembedding(model, files)
    return made if made.is_finite else None


def _grows(model: LensModel) -> bool:
    """Whether what comes after the unembedding keeps the order of logits: a cap, a positive factor."""
    logits = torch.tensor([-1.0, 0.0, 1.0])
    return bool((model.family.after_unembedding(logits, model.config).diff() > 0).all())


class BoundedUnembedding:
    """The k likeliest tokens by approximate logits in bfloat16 and a bound on how far these are from the exact ones.

    Let w be a token's row of the unembedding, rounded to w', and h a state, rounded to h'. Then
        |w h - w' h'| <= |w - w'| |h| + |w'| |h - h'|    (Cauchy-Schwarz),
    to which come the roundings of the sums, at most width x 2^-24 |w| |h| each (Higham 2002, eq. 3.5), and of the
    approximate logit itself to bfloat16. With b the largest such bound over all tokens, a token whose approximate
    logit is more than 2b below the k-th largest one is not among the k likeliest; one more than 2b + `within` below
    the largest is further than that from the likeliest. All others' logits are computed in float32 from the
    unembedding itself, as without this shortcut. The bound is taken over a state's few largest coordinates one by
    one, as |w_j - w'_j| |h_j| with the largest difference in a column, and by Cauchy-Schwarz over the others.
    """

    def __init__(self, model: LensModel, files: FileMappings):
        self.model, self.files, self.n_looked_up = model, files, 0
        self.weight = weight = cast(torch.Tensor, model.unembedding.weight).detach()[: model.n_tokens]
        self.width = weight.shape[1]
        self.parts = []
        largest_norm = largest_rest = 0.0
        columns, rests = torch.zeros(self.width), torch.zeros(self.width)
        finite = True
        for rows in weight.split(ROWS):
            rounded = rows.bfloat16()
            for some, of_some in zip(rows.split(ROWS_OF_NORMS), rounded.split(ROWS_OF_NORMS)):
                largest_norm = max(largest_norm, float(some.norm(dim=1).amax()))
                rest = some - of_some
                largest_rest = max(largest_rest, float(rest.norm(dim=1).amax()))
                columns, rests = columns.maximum(of_some.abs().amax(0)), rests.maximum(rest.abs().amax(0))
            finite = finite and bool(torch.isfinite(rounded).all())
            self.parts.append(torch.ops.mkldnn._reorder_linear_weight(rounded, USUAL_ROWS))
            files.release(rows)
        # These norms are sums of float32, too.
        self.largest_norm, self.largest_rest = ((1 + ROUNDED_NORM) * norm for norm in (largest_norm, largest_rest))
        self.columns, self.rests = columns.double(), rests.double()  # the largest in each coordinate
        # Only where logits are the products themselves is a distance between these one between logits.
        probe = torch.linspace(-50, 50, 11)
        self.is_plain = model.family.after_unembedding(probe, model.config).equal(probe)
        self.is_finite = finite

    def __call__(
        self, states: torch.Tensor, k: int, within: float = torch.inf
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Exact logits and the ids that they are of, [row, candidate]; among them, of each row's k likeliest, all whose
        logits are at most `within` below the first's.

        All logits, and no ids, where too many tokens are that near to one another.
        """
        require_finite(torch.isfinite(states).all(), "logits", self.model.dtype)
        near = self.candidates(states, k, within)
        together = near.any(dim=0).nonzero()[:, 0]
        if len(together) <= MOST_TOGETHER:
            return self.exact(states, together), together.expand(len(states), -1)
        of_rows = [row.nonzero()[:, 0] for row in near]
        if max(map(len, of_rows)) > MOST_CANDIDATES * self.model.n_tokens:
            logits, _ = all_logits(self.model, states)
            self.files.release(self.weight)
            return logits, None
        found = [self.likeliest_of(state[None], row, k) for state, row in zip(states, of_rows)]
        return torch.cat([logits for logits, _ in found]), torch.cat([ids for _, ids in found])

    def likeliest_of(self, state: torch.Tensor, ids: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits and the ids of the k likeliest of these tokens, [1, k] each; where they are fewer, nothing more
        can be drawn: logits of -inf.
        """
        logits, places = self.exact(state, ids).sort(dim=1, descending=True, stable=True)
        short = (0, max(k - len(ids), 0))
        return nn.functional.pad(logits[:, :k], short, value=-torch.inf), nn.functional.pad(ids[places[:, :k]], short)

    def exact(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The float32 logits of these tokens: [row, token]."""
        self.n_looked_up += len(ids)
        logits = self.model.family.after_unembedding(by_onednn(states, self.weight[ids]), self.model.config)
        if self.n_looked_up > LOOKED_UP:
            self.files.release(self.weight)
            self.n_looked_up = 0
        require_finite(torch.isfinite(logits.amax(dim=-1)).all(), "logits", self.model.dtype)
        return logits

    def candidates(self, states: torch.Tensor, k: int, within: float = torch.inf) -> torch.Tensor:
        """Which tokens may be among the k likeliest and within so much of the first: [row, vocab]."""
        rounded = states.bfloat16()
        approximate = torch.cat([by_onednn(rounded, part) for part in self.parts], dim=1)  # [row, vocab]
        bound = self.bound(states, rounded, approximate)
        first = approximate.amax(dim=-1)
        kth = approximate.topk(min(k, self.model.n_tokens), dim=-1).values[:, -1] if k > 1 else first
        least = kth.double() - 2 * bound
        if self.is_plain:
            least = least.maximum(first.double() - 2 * bound - within)
        if not torch.isfinite(least).all():  # beyond what bfloat16 holds
            return torch.ones_like(approximate, dtype=torch.bool)
        return approximate >= _below(least)[:, None]

    def bound(self, states: torch.Tensor, rounded: torch.Tensor, approximate: torch.Tensor) -> torch.Tensor:
        """How far any token's approximate logit is from its float32 one, at most: [row]."""
        exact, rest = states.double(), states.double() - rounded.double()
        largest = torch.maximum(approximate.amax(dim=1), -approximate.amin(dim=1)).double()
        of_weights = _product_bound(exact, self.rests, self.largest_rest)
        of_states = _product_bound(rest, self.columns, self.largest_norm + self.largest_rest)
        norms = exact.norm(dim=1) + rest.norm(dim=1)
        of_sums = 4 * self.width * FLOAT32 * (self.largest_norm + self.largest_rest) * norms
        return of_weights + of_states + of_sums + 2 * BFLOAT16 * largest


def _product_bound(states: torch.Tensor, columns: torch.Tensor, norm: float) -> torch.Tensor:
    """How large a product of a state with a row can be: [row]. columns: the largest of the rows in each coordinate;
    norm: the largest of theirs.
    """
    apart = states.abs().topk(min(APART, states.shape[1]), dim=1)
    others = (states.square().sum(dim=1) - apart.values.square().sum(dim=1)).clamp(min=0).sqrt()
    whole = norm * states.norm(dim=1)
    return whole.minimum((apart.values * columns[apart.indices]).sum(dim=1) + norm * others * (1 + ROUNDED_NORM))


def _below(values: torch.Tensor) -> torch.Tensor:
    """A bfloat16 below each value."""
    rounded = values.bfloat16()
    return torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
