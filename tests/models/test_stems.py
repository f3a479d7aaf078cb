"""Stems are read as the texts that they stand for: windows, rows that end, rows that come later."""

import pytest
import torch

from tests.answers.test_generation import shared_prompts
from utils.models import arithmetic, prefixes
from utils.models.hidden_states import Prompt
from utils.models.prefixes import alone, forward, joined, read_on_stems
from utils.models.stems import Stems

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_f"), reason="this CPU has no quick way"),
]


@pytest.fixture
def quick_model(tiny_model):
    """Function from a family to a model whose attention knows of stems, in inference mode."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def make(family, **changes):
            model = tiny_model(family, **changes)
            stack.enter_context(torch.inference_mode())
            assert stack.enter_context(arithmetic.quick(model)).holds_stems
            return model

        yield make


def next_states(model, texts, ids):
    """The states of one more token in each row."""
    new = torch.tensor([[id] for id in ids])
    return forward(model, texts, new, torch.ones_like(new))[:, -1]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mistral", "opt"])
@pytest.mark.parametrize("shares", [True, False])
def test_states_are_those_of_each_prompt_alone(quick_model, family, shares):
    """mistral with a window that ends within stems; opt has learnt positions."""
    model = quick_model(family, **({"sliding_window": 20} if family == "mistral" else {}))
    prompts = shared_prompts(model.tokenizer)
    texts, last = read_on_stems(model, prompts, shares)
    assert torch.allclose(last, torch.stack([alone(model, prompt.ids) for prompt in prompts]), atol=1e-4)
    for id in (7, 8, 9):
        prompts = [Prompt([*prompt.ids, id], []) for prompt in prompts]
        states = next_states(model, texts, [id] * len(prompts))
        assert torch.allclose(states, torch.stack([alone(model, prompt.ids) for prompt in prompts]), atol=1e-4)
    assert (states[0] - states[-1]).abs().max() > 1e-3


def test_what_is_shared_is_held_once(quick_model):
    model = quick_model("llama")
    prompts = shared_prompts(model.tokenizer)
    texts, _ = read_on_stems(model, prompts)
    apart, _ = read_on_stems(model, prompts, False)
    assert int(texts.stems.lengths.sum()) < int(apart.stems.lengths.sum()) / 3
    assert [len(stems) for stems in texts.stems.keys] == [len(texts.stems.lengths)] * len(model.layers)
    held = texts.stems.lengths[texts.stems.of_row] + texts.mask.sum(dim=1)
    assert held.tolist() == [len(prompt.ids) for prompt in prompts]


def test_rows_that_end_and_rows_that_come_leave_the_others_alone(quick_model):
    model = quick_model("gemma3_text")
    prompts = shared_prompts(model.tokenizer)
    first, _ = read_on_stems(model, prompts[:4])
    next_states(model, first, [7] * 4)
    for row in (3, 0):  # the last row takes the place of the one that goes: now prompts 2, 1
        first.drop(row)
    texts = joined([first, read_on_stems(model, prompts[4:])[0]], None, prefixes.ROOM)
    assert len(texts.stems.lengths) == len(texts.stems.of_row.unique())  # the stem of no row is not kept
    expected = [[*prompts[2].ids, 7], [*prompts[1].ids, 7], prompts[4].ids, prompts[5].ids]
    for id in (11, 12):
        expected = [[*ids, id] for ids in expected]
        states = next_states(model, texts, [id] * 4)
        assert torch.allclose(states, torch.stack([alone(model, ids) for ids in expected]), atol=1e-4)


def test_a_long_rest_is_a_stem_of_its_own_and_a_single_token_has_none(quick_model, monkeypatch):
    monkeypatch.setattr(prefixes, "LONGEST_REST", 20)
    model = quick_model("llama")
    begin = list(range(40, 60))
    prompts = [prefixes.question_prompt([*begin, *range(n)], "", "") for n in (3, 5, 30)]
    texts, last = read_on_stems(model, prompts)
    assert sorted(texts.stems.lengths.tolist()) == [22, 49]  # a prompt is asked for its last token
    assert torch.allclose(last, torch.stack([alone(model, prompt.ids) for prompt in prompts]), atol=1e-4)
    short = [*prompts, prefixes.question_prompt([5], "", "")]
    texts, last = read_on_stems(model, short)
    assert texts.stems is None
    assert torch.allclose(last, torch.stack([alone(model, prompt.ids) for prompt in short]), atol=1e-4)


def test_attention_is_that_to_the_whole_text():
    """Against softmax over all keys side by side, in float64, groups of heads and a window with it."""
    torch.manual_seed(0)
    groups, n_new, width = 3, 2, 4
    lengths, own = [7, 12], 5
    keys, values = ([torch.randn(2, n, width) for n in lengths] for _ in range(2))
    of_row = torch.tensor([1, 0, 1])
    key, value = torch.randn(3, 2, own, width), torch.randn(3, 2, own, width)
    query = torch.randn(3, 2 * groups, n_new, width)
    positions = torch.tensor(lengths)[of_row][:, None] + torch.tensor([own - 2, own - 1])
    for window in (None, 9):
        stems = Stems([keys], [values], torch.tensor(lengths), of_row)
        stems.begin(positions)
        found = stems.attend(0, query, key, value, None, 0.5, window)
        for row, stem in enumerate(of_row.tolist()):
            for head in range(2 * groups):
                all_keys, all_values = (
                    torch.cat([a[stem][head // groups], b[row, head // groups]]).double()
                    for a, b in ((keys, key), (values, value))
                )
                for new in range(n_new):
                    place = int(positions[row, new])
                    low = 0 if window is None else max(place - window + 1, 0)
                    scores = 0.5 * all_keys[low : place + 1] @ query[row, head, new].double()
                    expected = torch.softmax(scores, dim=0) @ all_values[low : place + 1]
                    assert torch.allclose(found[row, new, head].double(), expected, atol=1e-5)


def test_a_family_whose_attention_does_not_know_stems_is_told_apart(tiny_model):
    for family, holds in (("bloom", False), ("xglm", False), ("llama", True)):
        model = tiny_model(family)
        assert not prefixes.can_hold_stems(model)  # sdpa's own attention doesn't
        with arithmetic.quick(model) as way:
            assert way.holds_stems == holds
