"""The fit against another optimizer, and intervals against refitting."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.optimize import minimize

from utils.token_languages import shares
from utils.token_languages.pieces import normalised_rows
from utils.token_languages.shares import LEFT_OUT, LaidOut, fit, fit_short_texts, of_prompts, posteriors
from utils.uncertainty import standard_error


@pytest.fixture(scope="module")
def languages():
    """P(v | l) of four languages over sixty tokens, and the rows that are fitted: [vocab, language]."""
    frequencies = np.random.default_rng(1).dirichlet([0.3] * 60, 4).T
    rows = frequencies / frequencies.sum(axis=1, keepdims=True)
    return frequencies, rows.astype(np.float32)


def test_the_fit_is_the_maximum_that_another_optimizer_finds(languages):
    frequencies, rows = languages
    p = frequencies @ [0.6, 0.3, 0.1, 0.0]
    p = 0.9 * p + 0.1 / 60

    def loss(logits):
        s = np.exp(logits - logits.max())
        return -(p * np.log(rows @ (s / s.sum()))).sum()

    best = np.exp(minimize(loss, np.zeros(4), method="BFGS", tol=1e-10).x)
    assert fit(p[None], rows)[0] == pytest.approx(best / best.sum(), abs=2e-3)


def slow_maximum(p, rows):
    """EM, a step a step, until nothing moves."""
    shares = np.full(rows.shape[1], 1 / rows.shape[1])
    for _ in range(200_000):
        better = shares * ((p / (rows @ shares)) @ rows)
        if np.abs(better - shares).max() < 1e-12:
            break
        shares = better
    return shares


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_is_where_em_ends(seed):
    rng = np.random.default_rng(seed)
    frequencies = rng.dirichlet([0.1] * 300, 20).T + 1e-9
    rows = (frequencies / frequencies.sum(axis=1, keepdims=True)).astype(np.float32)
    p = rng.multinomial(400, frequencies @ rng.dirichlet([0.2] * 20) / (1 + 3e-7)) / 400
    found = fit(p[None], rows, largest_gap=1e-6, dtype=torch.float64)[0]
    assert found == pytest.approx(slow_maximum(p, rows.astype(np.float64)), abs=1e-3)
    assert found == pytest.approx(fit(p[None], 1e-4 * rows, largest_gap=1e-6, dtype=torch.float64)[0], abs=1e-6)


@pytest.fixture(scope="module")
def over_many_tokens():
    """Five sets over more tokens than a fit on its own takes: (distributions [set, vocab], rows [vocab, language])."""
    rng, n = np.random.default_rng(7), 12_000
    frequencies = rng.dirichlet([0.05] * n, 12).T + 1e-9
    close = frequencies[:, :4] * rng.uniform(0.2, 1.8, (n, 4))  # each much like one of the first
    frequencies = np.concatenate([frequencies, close / close.sum(axis=0)], axis=1)
    rows = (frequencies / frequencies.sum(axis=1, keepdims=True)).astype(np.float32)
    mixtures = np.stack([[0.5, 0.3, 0.1, 0.05, 0.04, 0.009, 0.001, *[0.0] * 9], *rng.dirichlet([0.2] * 16, 4)])
    probs = mixtures @ frequencies.T + rng.dirichlet([1.0] * n, 5) * np.array([[0.05], [0.01], [0.1], [0.3], [2.0]])
    return probs / probs.sum(axis=1, keepdims=True), rows


def test_fits_together_over_many_tokens_are_where_em_ends(over_many_tokens):
    """Shares within 1e-4, in float32, of what plain EM in float64 ends at, which knows what is NOTHING too."""
    probs, rows = over_many_tokens
    components = rows.astype(np.float64)
    nothing = shares.NOTHING * components.max(axis=1)
    slow = np.full((len(probs), rows.shape[1]), 1 / rows.shape[1])
    for _ in range(20_000):
        better = slow * ((probs / (slow @ components.T + nothing)) @ components)
        moved, slow = np.abs(better - slow).max(), better
        if moved < 1e-8:
            break
    assert moved < 1e-8
    found = fit(probs, rows)
    assert found == pytest.approx(slow, abs=1e-4)
    assert (found > 0.001).sum() >= 30 and (found == 0).any()


def test_a_set_is_fitted_with_others_as_alone_and_in_float64(over_many_tokens):
    probs, rows = over_many_tokens
    together = fit(probs, rows)
    for p, of_set in zip(probs, together):
        assert fit(p[None], rows)[0] == pytest.approx(of_set, abs=2e-5)
    assert fit(probs, rows, torch.float64, 1e-7) == pytest.approx(together, abs=1e-4)


def test_few_tokens_that_stand_for_all_change_how_fast_a_fit_ends_and_not_where(over_many_tokens, monkeypatch):
    probs, rows = over_many_tokens
    most = fit(probs, rows, torch.float64, 1e-7)
    drawn, draw = [], shares._drawn
    monkeypatch.setattr(
        shares, "_drawn", lambda p, leverages, n, *rest: drawn.append(n) or draw(p, leverages, 1000, *rest)
    )
    few = fit(probs, rows, torch.float64, 1e-7)
    assert few == pytest.approx(most, abs=1e-5) and drawn


def test_what_does_not_settle_is_fitted_over_all_its_tokens(over_many_tokens, monkeypatch):
    probs, rows = over_many_tokens
    settled = fit(probs, rows)
    monkeypatch.setattr(shares, "SETTLED", -1)
    alone, fit_one = [], shares._fit_one
    monkeypatch.setattr(shares, "_fit_one", lambda p, ids, *rest: alone.append(len(ids)) or fit_one(p, ids, *rest))
    assert fit(probs, rows) == pytest.approx(settled, abs=1e-4)
    assert alone == [(p > 0).sum() for p in probs]


def test_blocks_without_the_languages_that_they_have_nothing_of_change_no_fit(over_many_tokens):
    probs, rows = over_many_tokens
    script = np.arange(len(rows)) % 3
    rows = np.where(
        (script == 1)[:, None] & (np.arange(16) < 6) | (script == 2)[:, None] & (np.arange(16) > 5), 0, rows
    )
    laid_out = LaidOut.by(script.argsort(kind="stable"), rows)
    assert sum(block.numel() for _, block in laid_out.blocks) < 0.75 * rows.size
    assert fit(probs, rows, laid_out=laid_out) == pytest.approx(fit(probs, rows), abs=5e-5)


def test_threads_change_no_bit_of_a_fit(over_many_tokens):
    probs, rows = over_many_tokens
    n_threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(fit(probs, rows))
    finally:
        torch.set_num_threads(n_threads)
    assert (found[0] == found[1]).all()


def split(mean_probs, shares, ids, probs, even, plain, rows):
    """A set's shares over its prompts, with what their errors need."""
    return of_prompts(mean_probs, shares, posteriors(shares, ids, probs, even, plain, rows), rows)


def test_a_prompt_alone_is_what_two_of_it_are(languages):
    """A set of one prompt takes a shorter way than a set of two that are the same."""
    frequencies, rows = languages
    p = np.random.default_rng(8).multinomial(50, frequencies @ [0.5, 0.3, 0.15, 0.05]) / 50
    shares, ids = fit(p[None], rows)[0], np.argsort(-p)[None, :20]
    alone, both = (
        split(p, shares, *(np.repeat(a, n, axis=0) for a in (ids, p[ids], p[None] @ rows)), sp.csr_array(rows), rows)
        for n in (1, 2)
    )
    assert alone.of_prompts[0] == pytest.approx(shares, abs=1e-12) and alone.of_prompts.shape == (1, 4)
    for name in ("of_prompts", "influence"):
        assert getattr(both, name) == pytest.approx(np.repeat(getattr(alone, name), 2, axis=0), abs=1e-9), name
    assert both.tokens == pytest.approx(alone.tokens, rel=1e-9)


def test_languages_that_are_the_same_share_what_one_of_them_has(languages):
    frequencies, rows = languages
    noise = 1 + np.random.default_rng(5).uniform(0, 1e-7, (60, 40))
    p = frequencies @ [0.6, 0.3, 0.1, 0.0]
    alone, together = fit(p[None], rows)[0], fit(p[None], (np.tile(rows, 10) * noise).astype(np.float32))[0]
    assert together.reshape(10, 4).sum(axis=0) == pytest.approx(alone, abs=1e-3)


def test_many_short_texts_are_fitted_as_one_by_one(languages):
    frequencies, rows = languages
    rows = np.concatenate([rows, np.zeros((1, 4), np.float32)])  # a token that is no text
    rng = np.random.default_rng(4)
    counts = np.stack([rng.multinomial(n, [*frequencies[:, n % 4] * 0.9, 0.1]) for n in range(1, 40)])
    counts = np.concatenate([counts, [[0] * 60 + [2]], [[0] * 61]])
    found = fit_short_texts(sp.csr_array(counts), rows, 1e-6)
    alone = np.concatenate([normalised_rows(fit(text[None].astype(float), rows, largest_gap=1e-6)) for text in counts])
    likelihoods = [
        np.where(counts > 0, counts * np.log(s @ rows.T + 1e-12), 0)[:, :60].sum(axis=1) for s in (found, alone)
    ]
    assert likelihoods[0] == pytest.approx(likelihoods[1], abs=1e-3)
    assert found == pytest.approx(alone, abs=0.02)
    assert not found[-2:].any() and found[:-2].sum(axis=1) == pytest.approx(1)


def test_a_mixture_is_found_and_text_that_is_no_language_is_left_out(languages):
    frequencies, rows = languages
    shares = [0.5, 0.25, 0.15, 0.1]
    p = np.concatenate([0.8 * frequencies @ shares, [0.2]])
    rows = np.concatenate([rows, np.zeros((1, 4), np.float32)])
    assert fit(p[None], rows)[0] == pytest.approx(0.8 * np.array(shares), abs=3e-3)


def sampled_prompts(frequencies, n, rng):
    """Distributions of prompts: ten tokens each, in a language of its own; [prompt, vocab]."""
    langs = rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])
    return np.stack([rng.multinomial(10, frequencies[:, lang]) / 10 for lang in langs])


def test_the_sandwich_is_the_spread_of_refits_and_covers(languages):
    frequencies, rows = languages
    rng = np.random.default_rng(2)
    truth, inside, errors, found = np.array([0.4, 0.3, 0.2, 0.1]), [], [], []
    for _ in range(150):
        probs = sampled_prompts(frequencies, 80, rng)
        shares = fit(probs.mean(axis=0, keepdims=True), rows)[0]
        ids = np.tile(np.arange(60), (80, 1))
        read = split(probs.mean(axis=0), shares, ids, probs, probs @ rows, sp.csr_array(rows), rows)
        assert read.of_prompts.mean(axis=0) == pytest.approx(shares, abs=1e-6)
        error = standard_error(read.influence, list(range(80)))
        errors.append(error)
        found.append(shares)
        inside.append(np.abs(shares - truth) <= 1.96 * error)
    assert np.mean(errors, axis=0) == pytest.approx(np.std(found, axis=0), rel=0.2)
    assert 0.9 <= np.mean(inside) <= 0.99


def test_a_language_at_the_border_does_not_change_the_error_of_another(languages):
    frequencies, rows = languages
    close = 0.999 * frequencies[:, 0] + 0.001 * frequencies[:, 1]  # hardly another language than the first
    both = np.column_stack([frequencies, close])
    both_rows = (both / both.sum(axis=1, keepdims=True)).astype(np.float32)
    probs = sampled_prompts(frequencies, 80, np.random.default_rng(3))
    mean, ids = probs.mean(axis=0), np.tile(np.arange(60), (80, 1))
    shares = fit(mean[None], rows)[0]
    alone = split(mean, shares, ids, probs, probs @ rows, sp.csr_array(rows), rows)
    hint = np.append(shares * (1 - 3e-4), 3e-4)
    beside = split(mean, hint, ids, probs, probs @ both_rows, sp.csr_array(both_rows), both_rows)
    of_alone, of_beside = (standard_error(read.influence, list(range(80)))[0] for read in (alone, beside))
    assert of_beside == pytest.approx(of_alone, rel=0.05)


def test_the_unlikeliest_tokens_that_are_left_out_of_the_errors_change_none(monkeypatch):
    """A large vocabulary, of which each prompt has its own tokens: much of it is likely after few of them."""
    rng = np.random.default_rng(4)
    n_tokens, n_prompts = 20_000, 40
    frequencies = rng.dirichlet(1 / np.arange(1, n_tokens + 1), 4).T[rng.permutation(n_tokens)]
    rows = (frequencies / np.maximum(frequencies.sum(axis=1, keepdims=True), 1e-300)).astype(np.float32)
    mixtures = rng.dirichlet([8, 4, 1, 0.1], n_prompts)
    probs = np.stack([rng.multinomial(400, frequencies @ mixture) / 400 for mixture in mixtures])
    probs = 0.99 * probs + 0.01 * (frequencies @ mixtures.mean(axis=0))
    mean = probs.mean(axis=0)
    shares = fit(mean[None], rows)[0]
    ids = np.argsort(-probs, axis=1)[:, :100]
    read = [
        monkeypatch.setattr("utils.token_languages.shares.LEFT_OUT", left_out)
        or split(mean, shares, ids, np.take_along_axis(probs, ids, 1), probs @ rows, sp.csr_array(rows), rows)
        for left_out in (LEFT_OUT, 0)
    ]
    cut, whole = (standard_error(one.influence, list(range(n_prompts))) for one in read)
    assert (whole > 0).all() and cut == pytest.approx(whole, rel=1e-3)
    assert read[0].tokens == pytest.approx(read[1].tokens, rel=0.02)


def test_a_token_that_the_mixture_hardly_explains_overflows_nothing(languages):
    frequencies, rows = languages
    rows = np.concatenate([rows, [[0, 0, 0, 1]]]).astype(np.float32)  # a token of the last language alone
    p = np.concatenate([frequencies @ [0.6, 0.3, 0.1, 0.0] * 0.9, [0.1]])
    shares = np.array([0.6, 0.3, 0.1, 1e-41])
    with np.errstate(all="raise", under="ignore"):
        read = split(p, shares, np.arange(61)[None], p[None], p[None] @ rows, sp.csr_array(rows), rows)
    for values in (read.of_prompts, read.influence, read.tokens):
        assert np.isfinite(values).all()
