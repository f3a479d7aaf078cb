"""How much of each language is in a distribution over the vocabulary: the mixture that explains it best.

    shares = argmax over s of  sum_v p[v] log sum_l s[l] P(v | l)  -  sum_l s[l]

over the text tokens, so that the shares sum to their mass. It is the maximum-likelihood estimate under label shift
(Saerens, Latinne and Decaestecker 2002): concave, and found by EM and then Newton's method. P(v | l) may be scaled
token by token, so that rows of P(l | v) under an even prior serve.

Distributions over many tokens are fitted together. The gradients of all come from one pass over the rows, as products
of matrices; the second derivatives of each, which cost more, from some thousand tokens that stand for the rest. So the
point that is reached is the maximum over all tokens, however few stand for them: these decide how fast.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from scipy.linalg import solve_triangular
from scipy.optimize import nnls

from utils.processes import side_by_side

FIT_VERSION = 3  # of the way that shares are found, for what is kept of them

# A fit ends where no other shares make the distribution likelier by more than this, in nats a token: with
# g[l] = sum_v p[v] P(v | l) / sum_k s[k] P(v | k), that is bounded by max g - 1 (Lindsay 1983).
LARGEST_GAP = 1e-5
FIRST_STEPS, MOST_STEPS, MOST_ROUNDS, MOST_STEPS_OF_EM = 20, 100, 20, 1000
# Steps of EM are stretched by this power: below 2 they still converge, in half as many.
STRETCH = 1.8
LENGTHS = (1.0, 0.5, 0.25, 0.125, 0.0625)
RIDGE = 1e-6  # two languages whose tokens are the same ones would leave Newton's equations without an answer
# A distribution over more tokens than this is fitted together with others. Each round of that, so many tokens, or this
# many times as many as in the round before, stand for all of them.
MANY, GROWTH = 8192, 1.2
FIRST_STEPS_TOGETHER = 8
SETTLED = 3  # largest gaps by which a share may move in the last round: the next would move it by a tenth of that
SMALL = 1e-5  # languages with less than this take steps of EM, the others Newton's
LEAST = 1e-8  # from 0 no step of EM comes back
BLOCK = 1024  # tokens whose arrays of languages a processor's cache holds
BLOCKS_AT_ONCE = 32  # that one thread sums up
TINY = np.finfo(np.float32).tiny
SMALLEST = 1e-12  # probability that a mixture gives a token that none of its languages has
# What each token has of no language, relative to its likeliest: a language that explains a millionth of the text, and
# no more, is not needed for it.
NOTHING = 1e-6
SET_ASIDE = 1e-6  # languages with less than this after the first steps start at 0
# Mass of the least likely tokens that a fit on its own, or a split over prompts, leaves out.
LEFT_OUT_ALONE, LEFT_OUT = 1e-5, 1e-4
# A language with less than this of the text is at the border, where the estimate's error is not linear: it counts as
# fixed in the others' error, and its own is the spread of the prompts' posteriors.
LEAST_SHARE = 5e-3
FITTING_STEPS = 50


@dataclass(frozen=True)
class LaidOut:
    """Rows of `fit` by blocks of tokens, of which each leaves out the languages that none of its tokens has.

    order: the token at each place, [vocab]; blocks: of BLOCK places, one after the other, which languages they have,
    and the rows of these, [token, language].
    """

    order: np.ndarray
    blocks: Sequence[tuple[torch.Tensor | slice, torch.Tensor]]

    @classmethod
    def as_they_are(cls, rows: np.ndarray) -> "LaidOut":
        """Nothing is moved, left out or copied."""
        return cls(np.arange(len(rows)), [(slice(None), block) for block in torch.from_numpy(rows).split(BLOCK)])

    @classmethod
    def by(cls, order: np.ndarray, rows: np.ndarray) -> "LaidOut":
        """order: of the tokens; the more alike the languages of neighbours, the more is left out."""
        blocks = []
        for start in range(0, len(order), BLOCK):
            block = rows[order[start : start + BLOCK]]
            languages = np.flatnonzero(block.max(axis=0))
            blocks.append((torch.from_numpy(languages), torch.from_numpy(block[:, languages])))
        return cls(order, blocks)


def fit(
    probs: np.ndarray,
    rows: np.ndarray,
    dtype: torch.dtype = torch.float32,
    largest_gap: float = LARGEST_GAP,
    laid_out: LaidOut | None = None,
) -> np.ndarray:
    """The shares of each distribution: [set, vocab] -> [set, language], float64, each summing to its text's mass.

    rows: [vocab, language], each row proportional to P(v | l); a row of zeros is a token that is no text. laid_out: the
    same rows by blocks; as they are where it isn't given.
    """
    highest = rows.max(axis=1, initial=0)
    of_text = np.where(highest > 0, probs, 0)
    mass = of_text.sum(axis=1, dtype=np.float64, keepdims=True)
    shares = np.zeros((len(probs), rows.shape[1]))
    likely = [np.flatnonzero(p * p.size > LEFT_OUT_ALONE * m) for p, m in zip(of_text, mass)]
    alone = [i for i, ids in enumerate(likely) if 0 < len(ids) <= MANY]
    found = side_by_side(lambda i: _fit_one(of_text[i], likely[i], rows, dtype, largest_gap), alone, len(alone))
    for i, of_set in zip(alone, found):
        shares[i] = of_set
    if many := [i for i, ids in enumerate(likely) if len(ids) > MANY]:
        laid_out = laid_out or LaidOut.as_they_are(rows)
        shares[many] = _fit_together(of_text[many] / mass[many], rows, highest, dtype, largest_gap, laid_out)
    return mass * shares


def fit_short_texts(counts: sp.csr_array, rows: np.ndarray, largest_gap: float) -> np.ndarray:
    """`fit` of many texts of a sentence or so, all in each step: [text, vocab] -> [text, language], each summing to 1.

    counts: of each text's tokens; a text without any that `rows` has is 0 everywhere.
    """
    weights, components = _padded(counts, rows)
    texts = torch.nonzero(weights.any(dim=1)).squeeze(1)
    found = torch.zeros(len(weights), rows.shape[1])
    found[texts] = 1 / rows.shape[1]
    weights, components = weights[texts], components[texts]
    for _ in range(MOST_STEPS_OF_EM):
        shares = found[texts]
        # a row times a matrix: a matrix times a column takes ten times as long on a CPU
        mixture = torch.bmm(shares[:, None], components.mT).squeeze(1) + NOTHING
        gain = torch.bmm((weights / mixture)[:, None], components).squeeze(1)
        goes_on = gain.max(dim=1).values - 1 > largest_gap
        if not goes_on.any():
            break
        shares = shares * gain**STRETCH
        found[texts[goes_on]] = (shares / shares.sum(dim=1, keepdim=True))[goes_on]
        if goes_on.sum() < len(texts) / 2:  # fewer would be copied again and again
            texts, weights, components = texts[goes_on], weights[goes_on], components[goes_on]
    return found.double().numpy()


def _padded(counts: sp.csr_array, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights [text, token], components [text, token, language]) of each text's tokens, with zeros after the last."""
    lengths = np.diff(counts.indptr)
    place = np.arange(counts.nnz) - np.repeat(counts.indptr[:-1], lengths)
    text = np.repeat(np.arange(len(lengths)), lengths)
    weights = np.zeros((len(lengths), lengths.max(initial=1)), dtype=np.float32)
    components = np.zeros((*weights.shape, rows.shape[1]), dtype=np.float32)
    weights[text, place], components[text, place] = counts.data, rows[counts.indices]
    highest = components.max(axis=2, keepdims=True)
    weights *= highest[:, :, 0] > 0
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), SMALLEST)
    return torch.from_numpy(weights), torch.from_numpy(components / np.maximum(highest, SMALLEST))


def _fit_one(p, ids, rows, dtype, largest_gap) -> np.ndarray:
    """The shares of one distribution, which sum to 1, by its tokens `ids` alone: [language]."""
    weights = torch.from_numpy(p[ids] / p[ids].sum(dtype=np.float64)).to(dtype)
    components = _components(ids, rows, dtype)
    return _maximised(_first_steps(weights, components), weights, components, largest_gap).double().numpy()


def _components(ids: np.ndarray, rows: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """[token, language] of `ids`, each token's scaled to 1 for its likeliest language."""
    components = rows[ids]
    components /= components.max(axis=1, keepdims=True)
    return torch.from_numpy(components).to(dtype)


def _fit_together(probs, rows, highest, dtype, largest_gap, laid_out: LaidOut) -> np.ndarray:
    """The shares of distributions over many tokens, which sum to 1: [set, vocab] -> [set, language].

    Ends where a round moves no share by more than SETTLED * largest_gap; what still moves after MOST_ROUNDS is fitted
    over all its tokens, which takes longer.
    """
    order, blocks = laid_out.order, laid_out.blocks
    in_order = probs[:, order]
    weights = torch.from_numpy(in_order).to(dtype)
    nothing = torch.from_numpy(NOTHING * np.where(highest > 0, highest, 1)[order]).to(dtype)  # [place]
    shares = torch.full((len(probs), rows.shape[1]), 1 / rows.shape[1], dtype=dtype)
    for _ in range(FIRST_STEPS_TOGETHER):
        shares = (shares * _over_all(shares, weights, nothing, blocks)[0] ** STRETCH).clamp(min=LEAST)
    left, n_drawn = np.arange(len(probs)), float(MANY)
    for _ in range(MOST_ROUNDS):
        gains, leverages = _over_all(shares[left], weights[left], nothing, blocks, with_leverages=True)
        new = _steps(shares[left], gains, in_order[left], leverages, int(n_drawn), order, rows, largest_gap)
        goes_on = (new - shares[left]).abs().amax(dim=1).numpy() > SETTLED * largest_gap
        shares[left] = new
        left, n_drawn = left[goes_on], n_drawn * GROWTH
        if not len(left):
            break
    shares = torch.where(shares > SET_ASIDE, shares, 0).double()
    found = (shares / shares.sum(dim=1, keepdim=True)).numpy()
    for i in left:
        found[i] = _fit_one(probs[i], np.flatnonzero(probs[i]), rows, dtype, largest_gap)
    return found


def _steps(shares, gains, probs, leverages, n_drawn: int, order, rows, largest_gap: float) -> torch.Tensor:
    """A step of each set, towards what n_drawn of its tokens say: [set, language]. probs, leverages: [set, place]."""

    def moved(i: int) -> torch.Tensor:
        weights, places = _drawn(probs[i], leverages[i].double().numpy(), n_drawn)
        components = _components(order[places], rows, shares.dtype)
        return _one_step(shares[i], gains[i], torch.from_numpy(weights).to(shares.dtype), components, largest_gap)

    return torch.stack(side_by_side(moved, range(len(shares)), len(shares)))


def _over_all(shares, weights, nothing, blocks, with_leverages: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(gains [set, language], leverages [set, place]) of all sets in one pass over the blocks of a `LaidOut`.

    m[v] = components[v] . s + nothing[v], gain[l] = sum_v w[v] components[v, l] / m[v]. A token's leverage is its part
    of sum_l s[l] H[l, l], H as in `_newton`, and its weight: what is drawn by it stands for all in H.
    """
    leverages = torch.empty_like(weights)
    seen = shares.clamp(min=SET_ASIDE)

    def summed(first: int) -> torch.Tensor:
        gains = torch.zeros_like(shares)
        for number, (languages, of_tokens) in enumerate(blocks[first : first + BLOCKS_AT_ONCE], first):
            places = slice(number * BLOCK, number * BLOCK + len(of_tokens))
            of_tokens = of_tokens.to(shares.dtype)
            mixture = torch.addmm(nothing[places], shares[:, languages], of_tokens.T)  # [set, token]
            relative = weights[:, places] / mixture
            gains[:, languages] += relative @ of_tokens
            if with_leverages:
                of_each = seen[:, languages] @ of_tokens.square().T
                leverages[:, places] = relative / mixture * of_each + weights[:, places]
        return gains

    starts = range(0, len(blocks), BLOCKS_AT_ONCE)
    return sum(side_by_side(summed, starts, len(starts)), torch.zeros_like(shares)), leverages


def _drawn(p, leverages, n) -> tuple[np.ndarray, np.ndarray]:
    """(weights, which) of about n tokens that stand for all: every token is as likely to be drawn as its leverage says,
    at even distances, and weighs the more the less likely that was.
    """
    if n >= len(p):
        found = np.flatnonzero(p)
        return p[found], found
    up_to = np.cumsum(leverages)
    drawn = np.searchsorted(up_to, (np.arange(n) + 0.5) / n * up_to[-1])
    found, times = np.unique(drawn, return_counts=True)
    return p[found] * times * (up_to[-1] / n) / leverages[found], found


def _one_step(shares, gain, weights, components, largest_gap: float) -> torch.Tensor:
    """Shares after a step of Newton's, or of EM for languages with next to nothing: [language].

    gain: over all tokens; weights, components: of those that stand for them, whose own gain differs from it by
    `correction`.
    """
    mixture = components @ shares + NOTHING
    correction = gain - (weights / mixture) @ components
    inside = torch.nonzero((shares > SMALL) | (gain > 1 + largest_gap)).squeeze(1)
    information = _information(weights, components.index_select(1, inside), mixture)
    found = _best_within(information, shares[inside].double().numpy(), gain[inside].double().numpy() - 1)
    best = (shares * gain).index_copy(0, inside, torch.from_numpy(found).to(shares.dtype))
    return _risen(shares, best, gain, weights, components, mixture, correction)[0].clamp(min=LEAST)


def _likeliest(p: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The likeliest of `ids`, without which no more than LEFT_OUT of their mass is lost, in their order."""
    of_ids = p[ids]
    from_highest = np.sort(of_ids)[::-1]
    kept = np.cumsum(from_highest, dtype=np.float64)
    return ids[of_ids >= from_highest[int(np.searchsorted(kept, (1 - LEFT_OUT) * kept[-1]))]]


def _maximised(shares, weights, components, largest_gap: float) -> torch.Tensor:
    """argmax over s >= 0 of F(s) = sum_v weights[v] log m[v] - sum_l s[l], m = components @ s + NOTHING: [language].

    From where `shares` is. At the maximum they sum to 1, but for NOTHING. Most languages have no part in it: those that
    are at 0 stay there until they would gain.
    """
    gain = _gain(shares, weights, components)
    for _ in range(MOST_ROUNDS):
        inside = torch.nonzero((shares > 0) | (gain > 1 + largest_gap)).squeeze(1)
        found = _newton(shares[inside], weights, components.index_select(1, inside), largest_gap)
        shares = torch.zeros_like(shares).index_copy_(0, inside, found)
        gain = _gain(shares, weights, components)
        if gain.max() - 1 <= 2 * largest_gap:
            break
    return shares / shares.sum()


def _first_steps(weights, components) -> torch.Tensor:
    """Shares after some steps of EM, which go far at first, without the languages that have next to nothing then."""
    shares = torch.full_like(components[0], 1 / components.shape[1])
    for _ in range(FIRST_STEPS):
        shares = shares * _gain(shares, weights, components) ** STRETCH
        shares = shares / shares.sum()
    return torch.where(shares > SET_ASIDE, shares, 0)


def _newton(shares, weights, components, largest_gap: float) -> torch.Tensor:
    """`_maximised` by second-order steps (Kim, Carbonetto, Stephens and Anitescu 2020), over few languages.

    F's gradient is gain - 1; its Hessian is -H, H[l, k] = sum_v weights[v] components[v, l] components[v, k] / m[v]^2.
    Each step goes towards the maximum over s >= 0 of F's second-order expansion, as far as F rises.
    """
    mixture = components @ shares + NOTHING
    for _ in range(MOST_STEPS):
        gain = (weights / mixture) @ components
        if gain.max() - 1 <= largest_gap:
            break
        information = _information(weights, components, mixture)
        best = _best_within(information, shares.double().numpy(), gain.double().numpy() - 1)
        shares, mixture = _risen(shares, torch.from_numpy(best).to(shares.dtype), gain, weights, components, mixture)
    return shares


def _information(weights, components, mixture) -> np.ndarray:
    """H: [language, language], block by block.

    In float64: rounded, the equations of languages that are nearly the same could have no root.
    """
    information = torch.zeros(components.shape[1], components.shape[1], dtype=torch.float64)
    scales = weights.sqrt() / mixture
    for scale, block in zip(scales.split(BLOCK), components.split(BLOCK)):
        scaled = (block * scale[:, None]).double()
        information.addmm_(scaled.T, scaled)
    return information.numpy()


def _best_within(information: np.ndarray, shares: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """argmax over s >= 0 of gradient . (s - shares) - (s - shares) . information (s - shares) / 2, by least squares."""
    diagonal = np.diag_indices_from(information)
    information[diagonal] += RIDGE * (1 + information[diagonal])
    root = np.linalg.cholesky(information)
    target = root.T @ shares + solve_triangular(root, gradient, lower=True)
    return nnls(root.T, target, maxiter=MOST_STEPS * len(shares))[0]


def _risen(
    shares, best, gain, weights, components, mixture, correction: torch.Tensor | float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(shares, their mixture) where F is higher: all the way to `best`, half, a quarter ...; or after a step of EM.

    correction: of F's gradient, which is gain - 1.
    """
    for length in LENGTHS:
        step = length * (best - shares)
        of_new = components @ (shares + step) + NOTHING
        # The change of F from ratios: in the difference of two sums it would be rounded away near the end.
        if (weights * torch.log(of_new / mixture)).sum() > ((1 - correction) * step).sum():
            return shares + step, of_new
    new = shares * gain
    return new, components @ new + NOTHING


def _gain(shares, weights, components) -> torch.Tensor:
    return (weights / (components @ shares + NOTHING)) @ components


def responsibilities(ids: np.ndarray, rows: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """P(language | token) under the shares of its set, s[l] P(v | l) / sum_k s[k] P(v | k): [..., language]."""
    joint = rows[ids] * shares.astype(rows.dtype)
    total = joint.sum(axis=-1, keepdims=True)
    return np.divide(joint, total, out=np.zeros_like(joint), where=total > 0)


@dataclass(frozen=True)
class SetShares:
    """The shares of a set of prompts at one layer. shares: [language]; of_prompts, influence: [prompt, language].

    of_prompts: each prompt's own, its posterior under the set's shares; their mean is `shares`. influence: what each
    prompt adds to the set's estimate, s + H^-1 (g_i - 1), g_i[l] = of_prompts[i, l] / s[l], H the information; their
    mean is `shares` too, and their spread is its sampling error (the sandwich of Huber 1967), where the spread of
    of_prompts, which leans on s, is too small. tokens: [language], the effective number of tokens that each share rests
    on, the exponential of the entropy of its share over tokens.
    """

    shares: np.ndarray
    of_prompts: np.ndarray
    influence: np.ndarray
    tokens: np.ndarray


def of_prompts(mean_probs: np.ndarray, shares: np.ndarray, own: np.ndarray, rows: np.ndarray) -> SetShares:
    """What the errors of a set's shares need, beside its prompts' own. mean_probs: [vocab], the prompts' mean; own: of
    `posteriors`, [prompt, language]; the others as there.
    """
    tokens, influence = np.zeros(len(shares)), own.copy()
    present = np.flatnonzero(shares > 0)
    if len(present):
        likely = _likeliest(mean_probs, np.arange(len(mean_probs)))
        of_set = _sums(mean_probs, likely, rows, present, shares[present], len(own) > 1)
        tokens[present] = of_set.effective_tokens()
        if len(own) > 1:  # a prompt alone is the set
            influence[:, present] = _influence(of_set.information, shares[present], own[:, present])
    return SetShares(shares, own, influence, tokens)


def posteriors(
    shares: np.ndarray,
    top_ids: np.ndarray,
    top_probs: np.ndarray,
    even: np.ndarray,
    plain: sp.csr_array | sp.csr_matrix,
    rows: np.ndarray,
) -> np.ndarray:
    """Each prompt's own shares under its set's, whose mean is the set's: [prompt, language].

    shares: `fit` of the prompts' mean, [language]; top_ids, top_probs: [prompt, k], each prompt's likeliest tokens;
    even: [prompt, language], each prompt's sum of `plain` rows over all its tokens; rows: `fit`'s. What is beyond the
    top tokens is known of a prompt by `even` alone, and of the set exactly, since a fit's shares are the mean of its
    tokens' posteriors: it is dealt out so that both its margins hold (iterative proportional fitting).
    """
    own = np.zeros((len(top_ids), len(shares)))
    present = np.flatnonzero(shares > 0)
    if len(top_ids) == 1 or not len(present):  # a prompt alone is the set
        own[:] = shares
        return own
    top, place = np.unique(top_ids, return_inverse=True)
    columns = rows[np.ix_(top, present)]
    of_top = responsibilities(np.arange(len(top)), columns, shares[present])  # [token, language]
    plain_of_top = plain[top][:, present].toarray()
    found, rest = np.zeros((2, len(top_ids), len(present)))
    for i, (likeliest, probs) in enumerate(zip(place.reshape(top_ids.shape), top_probs.astype(np.float64))):
        found[i] = probs @ of_top[likeliest]
        rest[i] = np.maximum(even[i, present] - probs @ plain_of_top[likeliest], 0)
    left = np.maximum(shares[present] * len(found) - found.sum(axis=0), 0)  # [language]
    found += _fitted(rest, rest.sum(axis=1), left)
    # A prompt's text that no language of the set explains is dealt out too: its shares sum to its text.
    own[:, present] = _fitted(found, even.sum(axis=1, dtype=np.float64), shares[present] * len(found))
    return own


@dataclass(frozen=True)
class _Sums:
    """Sums over the tokens of a set, r[v, l] = p[v] P(l | v) under its shares. mass: sum_v r[v, l], [language]; logs:
    sum_v r log r, [language]; information: H[l, k] = sum_v p[v] P(v | l) P(v | k) / P(v)^2, [language, language],
    zeros where it is not asked for.
    """

    mass: np.ndarray
    logs: np.ndarray
    information: np.ndarray

    def effective_tokens(self) -> np.ndarray:
        """exp of the entropy of each language over its tokens: [language]; 0 for one without any."""
        has_any = self.mass > 0
        mass = np.where(has_any, self.mass, 1)
        return np.where(has_any, np.exp(np.log(mass) - self.logs / mass), 0)


def _sums(mean_probs, ids, rows, present, shares, with_information: bool) -> _Sums:
    """Block by block. mean_probs: [vocab]; ids: the tokens; rows: [vocab, language]; shares: of the `present` ones."""
    n, shares = len(present), shares.astype(np.float32)
    mass, logs, information = np.zeros(n), np.zeros(n), np.zeros((n, n))
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK]
        probs = mean_probs[block].astype(np.float32)[:, None]
        columns = rows[block][:, present]
        joint = columns * shares
        mixture = joint.sum(axis=1, keepdims=True)
        of_tokens = np.divide(probs * joint, mixture, out=np.zeros_like(joint), where=mixture > 0)
        mass += of_tokens.sum(axis=0, dtype=np.float64)
        logs += (of_tokens * np.log(np.maximum(of_tokens, TINY))).sum(axis=0, dtype=np.float64)
        if not with_information:
            continue
        relative = columns / np.maximum(mixture, np.float32(SMALLEST))
        weighted = torch.from_numpy(relative * np.where(probs > 1e-9, probs, 0))  # NumPy's product has its own threads
        information += (weighted.T @ torch.from_numpy(relative)).numpy()
    return _Sums(mass, logs, information)


def _fitted(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`table` scaled so that its columns' sums are `columns`, and its rows' proportional to `rows`, or nearly."""
    rows = rows * (columns.sum() / max(rows.sum(), 1e-300))
    fitted = table + 1e-12
    for _ in range(FITTING_STEPS):
        fitted *= (rows / np.maximum(fitted.sum(axis=1), 1e-300))[:, None]
        fitted *= columns / np.maximum(fitted.sum(axis=0), 1e-300)
    return fitted


def _influence(information, shares, own) -> np.ndarray:
    """s + H^-1 (g_i - 1) over the languages that there are: [prompt, language]."""
    large = np.flatnonzero(shares > LEAST_SHARE * max(shares.sum(), 1e-300))
    influence = own.copy()
    if not len(large):
        return influence
    scores = own[:, large] / shares[large] - 1
    inverse = np.linalg.pinv(information[np.ix_(large, large)], rcond=1e-6)
    influence[:, large] = shares[large] + scores @ inverse.T
    return influence
