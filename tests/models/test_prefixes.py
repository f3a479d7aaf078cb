"""Beginnings that are shared change nothing: the lens of every family, where prompts branch, and when it can't be."""

import itertools
import math
import random

import pytest
import torch

from tests.answers.test_generation import shared_prompts
from utils.answers import generation
from utils.lens import reading
from utils.models import prefixes
from utils.models.hidden_states import Prompt, answer_positions, encode, hidden_states
from utils.models.prefixes import context_batches, shared_hidden_states

pytestmark = pytest.mark.usefixtures("one_thread")

ALL_IN_ONE = 4096


def answered_prompts(model) -> list[Prompt]:
    """The prompts of `shared_prompts`, read where their answers' tokens are predicted."""
    prompts = []
    for i, prompt in enumerate(shared_prompts(model.tokenizer)):
        text = model.tokenizer.decode(prompt.ids)
        answered = answer_positions(model, text, text + " four chambers of it"[: 6 + 3 * i])
        assert answered.ids[: len(prompt.ids)] == prompt.ids and len(answered.positions) > 1
        prompts.append(answered)
    return prompts


@pytest.fixture
def tokens_read(monkeypatch):
    """How many tokens, padding counted, go through the decoder."""
    seen = []

    def watch(model):
        model.decoder.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        return seen

    return watch


@pytest.mark.parametrize("position", ["last", "answer"])
def test_shared_beginnings_leave_the_lens_as_it_is(tiny_model, family, position, tokens_read):
    model = tiny_model(family)
    prompts = shared_prompts(model.tokenizer) if position == "last" else answered_prompts(model)
    seen = tokens_read(model)
    with torch.inference_mode():
        shared = reading.vocab_probs(model, shared_hidden_states(model, prompts, ALL_IN_ONE))
        assert sum(seen) < sum(len(prompt.ids) for prompt in prompts)
        apart = torch.cat([reading.vocab_probs(model, hidden_states(model, [prompt])) for prompt in prompts])
    assert shared.shape[:2] == (sum(len(prompt.positions) for prompt in prompts), len(model.layers) + 1)
    assert torch.allclose(shared, apart, atol=1e-5)
    assert (apart[0] - apart[-1]).abs().max() > 1e-4  # prompts differ, so that rows can't have been mixed up


@pytest.mark.parametrize("max_tokens", [1, 30, 80, ALL_IN_ONE])
def test_passes_of_any_size_give_the_same_states(tiny_model, max_tokens):
    model = tiny_model("gemma3_text")
    prompts = [*answered_prompts(model), *shared_prompts(model.tokenizer)][::-1]
    states = shared_hidden_states(model, prompts, max_tokens)
    assert torch.allclose(states, hidden_states(model, prompts), atol=1e-4)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("max_tokens", [40, 10**6])
def test_passes_are_the_cheapest_within_their_limits(seed, max_tokens):
    """Against all ways to cut the lengths, sorted, into passes."""
    rng = random.Random(seed)
    lengths, starts = ([rng.randint(1, 30) for _ in range(7)] for _ in range(2))
    found = prefixes._passes(lengths, 7, starts, max_tokens)
    order = [i for places in found for i in places]
    assert sorted(order) == list(range(7)) and [lengths[i] for i in order] == sorted(lengths, reverse=True)

    def cost(passes):
        total = 0.0
        for places in passes:
            new = len(places) * max(lengths[i] for i in places)
            held = len(places) * max(lengths[i] + starts[i] for i in places)
            fits = len(places) == 1 or (new <= max_tokens and held <= prefixes.HELD * max_tokens)
            total += new + 7 if fits else math.inf
        return total

    cuts = (itertools.compress(range(1, 7), chosen) for chosen in itertools.product([0, 1], repeat=6))
    ends = [[0, *some, 7] for some in cuts]
    assert cost(found) == min(cost([order[a:b] for a, b in itertools.pairwise(some)]) for some in ends)


def test_where_passes_are_dear_none_is_made_that_is_not_needed():
    assert len(prefixes._passes([1, 500, 2, 400], prefixes.NO_PASS_MORE)) == 1
    assert len(prefixes._passes([1, 500, 2, 400], prefixes.PASS_TOKENS["cpu"])) == 3


def test_each_beginning_is_read_once(tiny_model, tokens_read):
    """Solved examples, then contexts, then questions: three passes, each as wide as its longest."""
    model = tiny_model("llama")
    prompts = shared_prompts(model.tokenizer)
    seen = tokens_read(model)
    shared_hidden_states(model, prompts, ALL_IN_ONE)
    example = prefixes._shared(prompts)
    of_context = [prompts[:3], prompts[3:5]]
    ends = [prefixes._shared(group) for group in of_context]
    assert example > prefixes.SHORTEST_SHARED
    # a context that shares hardly anything beyond the example goes on from there
    deep = [end for end in ends if end - example >= prefixes.SHORTEST_SHARED]
    assert len(deep) == 1 and seen[0] == example and len(deep) * max(end - example for end in deep) in seen
    rests = [len(prompt.ids) - example for prompt in prompts[:3] + prompts[5:]]
    assert sum(seen) <= example + max(deep) - example + 4 * max(rests) + 2 * max(len(p.ids) - deep[0] for p in prompts)


def test_what_is_asked_for_is_not_shared_away(tiny_model):
    model = tiny_model("bloom")
    ids = encode(model.tokenizer, "The moon has no air, and there is no sound on it; so no bell rings there.")
    prompts = [Prompt(ids, [3, 9]), Prompt(ids, [len(ids) - 1]), Prompt([*ids, 7], [len(ids) - 1, len(ids)])]
    apart = torch.cat([hidden_states(model, [prompt]) for prompt in prompts])
    assert torch.allclose(shared_hidden_states(model, prompts, ALL_IN_ONE), apart, atol=1e-5)


def test_batches_keep_contexts_whole_and_within_what_is_read():
    lengths = {"a": (40, 44), "b": (90, 91, 89), "c": (42,), "d": (38, 38, 39, 37)}
    prompts = [
        Prompt([ord(context)] * (n - 6) + [i] * 6, [n - 1], context)
        for context, ns in lengths.items()
        for i, n in enumerate(ns)
    ]
    cut = context_batches(prompts, None, 150)
    assert sorted(i for batch in cut for i in batch) == list(range(len(prompts)))
    assert ["".join(prompts[i].context for i in batch) for batch in cut] == ["bbb", "aa", "c", "dddd"]
    assert [len(batch) for batch in context_batches(prompts, 3, 1)] == [3, 3, 3, 1]
    long = [Prompt([1] * 50 + [i], [50], "one") for i in range(9)]
    assert [len(batch) for batch in context_batches(long, None, 54)] == [4, 4, 1]
    assert context_batches([Prompt([1, i], [1]) for i in range(3)], None, 4) == [[0, 1], [2]]


def test_a_cache_that_cannot_share_falls_back_and_says_so_once(tiny_model, monkeypatch, capsys):
    model = tiny_model("llama")
    prompts = shared_prompts(model.tokenizer)
    really = prefixes.chosen

    def forgetful(texts, rows, room=0):
        found = really(texts, rows, room)
        for layer in found.layers:
            layer.keys *= 0.5
        return found

    monkeypatch.setattr(prefixes, "chosen", forgetful)
    with pytest.raises(ValueError, match="the prompt alone"):
        reading.self_check(model, prompts, ALL_IN_ONE)
    shares = prefixes.can_share(model, prompts)
    said = capsys.readouterr().out
    assert not shares and reading.self_check(model, prompts, ALL_IN_ONE, shares)["batch"] < 1e-5
    assert said.startswith("each prompt is read whole") and said.count("\n") == 1
    states = shared_hidden_states(model, prompts, ALL_IN_ONE, shares)
    assert torch.allclose(states, hidden_states(model, prompts), atol=1e-5)


def test_texts_that_are_joined_go_on_as_they_would_have(tiny_model, family):
    model = tiny_model(family)
    prompts = shared_prompts(model.tokenizer)
    with torch.inference_mode():
        together, _ = prefixes.read_prompts(model, prompts)
        parts = [prefixes.read_prompts(model, prompts[start : start + 2])[0] for start in (0, 2, 4)]
        order = [5, 0, 3, 1]
        new = [[11, 12]] * 4
        _, expected = prefixes.read_on(model, prefixes.chosen(together, order), new)
        _, found = prefixes.read_on(model, prefixes.joined(parts, order, 8), new)
    assert torch.allclose(found, expected, atol=1e-4)


def test_answers_without_sharing_are_the_same(tiny_model, family):
    model = tiny_model(family)
    prompts = shared_prompts(model.tokenizer)
    assert generation.generate(model, prompts, max_new_tokens=6) == generation.generate(
        model, prompts, max_new_tokens=6, shares=False
    )
