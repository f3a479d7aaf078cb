"""Answers in batches are those of each prompt alone, as transformers itself generates them."""

import random
from collections import Counter
from typing import ClassVar

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import DynamicLayer

from utils.answers import generation
from utils.answers.generation import first_line, generate, question_batches
from utils.data.examples import load_examples
from utils.data.prompts import render, render_shots
from utils.models import prefixes
from utils.models.checks import TOLERANCE
from utils.models.hidden_states import encode
from utils.models.prefixes import question_prompt

N_NEW = 12


def question_prompts(tokenizer, langs=("en", "or"), limit=5, shots=0):
    solved = load_examples("sample_qa", ["en"], "train")[:shots]
    examples = load_examples("sample_qa", list(langs), limit=limit)
    texts = [render_shots(solved) + render(example) for example in examples]
    return [question_prompt(encode(tokenizer, t), e.context, f"{e.lang} {e.id}") for t, e in zip(texts, examples)]


def shared_prompts(tokenizer):
    """Prompts of 3, 2 and 1 questions on three contexts, which all begin with the same solved example."""
    example = encode(tokenizer, "Rivers run to the sea.\n\nQ: Where do rivers run?\nA: to the sea\n\n")
    contexts = ["The moon has no air.", "An apple falls from its tree in autumn, and rots.", "Ice floats."]
    questions = ["Q: What has no air?\nA:", "Q: Why?\nA:", "Q: When does it fall, and from where to where?\nA:"]
    prompts = []
    for context, n in zip(contexts, (3, 2, 1)):
        for question in questions[:n]:
            ids = example + encode(tokenizer, f"{context}\n\n{question}")
            prompts.append(question_prompt(ids, context, f"{context} {question}"))
    return prompts


def alone(model, prompt, n_new=N_NEW):
    """The greedy continuation by transformers' own generate, cut where the first line ends."""
    ids = torch.tensor([prompt.ids])
    padding_rows = list(range(model.n_tokens, model.unembedding.weight.shape[0]))
    out = model.causal_lm.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n_new, suppress_tokens=padding_rows
    )
    return out[0, ids.shape[1] :].tolist()


class Scripted:
    """Stands in for random.Random: the tokens that the prompt of a key is to be continued with."""

    scripts: ClassVar[dict] = {}

    def __init__(self, seed):
        self.tokens = iter(self.scripts[seed.partition(" ")[2]])

    def random(self):
        return next(self.tokens)


@pytest.fixture
def scripted(monkeypatch):
    """Function from key -> tokens to a decoding that writes them, whatever the model says."""

    def install(scripts):
        monkeypatch.setattr(Scripted, "scripts", scripts)
        monkeypatch.setattr(generation.random, "Random", Scripted)
        decoding = lambda logits, draws: torch.tensor([draw.random() for draw in draws])  # noqa: E731
        monkeypatch.setitem(generation.DECODINGS, "scripted", decoding)

    return install


def test_a_batch_with_shared_beginnings_gives_what_transformers_generates_alone(tiny_model, family):
    model = tiny_model(family)
    prompts = shared_prompts(model.tokenizer)
    generated = generate(model, prompts, max_new_tokens=N_NEW)
    for prompt, written in zip(prompts, generated):
        ids = alone(model, prompt)[: written.new_tokens]
        assert written.text == model.tokenizer.decode(ids, skip_special_tokens=True)
        assert written.stopped_by in ("line", "end") or written.new_tokens == N_NEW


def test_the_tiny_models_do_not_all_write_the_same(tiny_model):
    """Else the test above could not tell a row from another."""
    model = tiny_model("bloom")
    assert len({written.text for written in generate(model, shared_prompts(model.tokenizer))}) > 2


def test_stopping_early_leaves_the_answer_as_it_is(tiny_model):
    model = tiny_model("llama")
    prompts = question_prompts(model.tokenizer)
    for prompt, written in zip(prompts, generate(model, prompts, max_new_tokens=40)):
        full = model.tokenizer.decode(alone(model, prompt, 40), skip_special_tokens=True)
        assert first_line(written.text) == first_line(full)


@pytest.mark.parametrize("decoding", generation.DECODINGS)
def test_neither_order_nor_batch_changes_what_is_written(tiny_model, decoding):
    model = tiny_model("bloom")
    prompts = question_prompts(model.tokenizer, shots=1)
    together = generate(model, prompts, decoding, N_NEW)
    assert [generate(model, [prompt], decoding, N_NEW)[0] for prompt in prompts] == together
    assert generate(model, prompts[::-1], decoding, N_NEW)[::-1] == together


def test_draws_depend_on_the_seed_and_the_key(tiny_model, monkeypatch):
    monkeypatch.setattr(generation, "TEMPERATURE", 5.0)  # at the paper's 0.1 a tiny model leaves nothing to chance
    model = tiny_model("bloom")
    prompt = shared_prompts(model.tokenizer)[0]
    same = [question_prompt(prompt.ids, prompt.context, key) for key in "abcdefgh"]
    drawn = generate(model, same, "paper", N_NEW)
    assert generate(model, same, "paper", N_NEW) == drawn
    assert len({written.text for written in drawn}) > 4
    assert generate(model, same, "paper", N_NEW, seed=43) != drawn


def test_the_papers_sampling_is_that_of_transformers():
    torch.manual_seed(1)
    logits = torch.randn(1, 300) * 0.4
    warpers = LogitsProcessorList(
        [
            TemperatureLogitsWarper(generation.TEMPERATURE),
            TopKLogitsWarper(generation.TOP_K),
            TopPLogitsWarper(generation.TOP_P),
        ]
    )
    expected = torch.softmax(warpers(None, logits), dim=-1)[0]

    class Fixed(random.Random):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def random(self):
            return self.number

    n = 20_000
    draws = [Fixed((i + 0.5) / n) for i in range(n)]
    counts = Counter(generation.paper(logits.expand(n, -1), draws).tolist())
    found = torch.tensor([counts[id] / n for id in range(300)])
    assert (expected > 0).sum() > 5
    assert (found > 0).equal(expected > 1 / n)
    assert torch.allclose(found, expected, atol=2 / n)


def test_every_row_stops_by_its_own_reason_and_the_others_go_on(tiny_model, scripted, tiny_tokenizer):
    model = tiny_model("bloom")
    line, word, more, blank = (encode(tiny_tokenizer, text) for text in ("a\n", "word", " more", "\n"))
    prompts = shared_prompts(tiny_tokenizer)
    end = tiny_tokenizer.eos_token_id
    scripts = [
        [*word, *line, *more],
        [end],
        [*blank, *blank, *word, *more, *blank, *word],
        [*word] * 20,
        [*more, end],
        [*more, *more, *blank],
    ]
    scripted({prompt.key: script for prompt, script in zip(prompts, scripts)})
    written = generate(model, prompts, "scripted", max_new_tokens=8)
    said = [first_line(tiny_tokenizer.decode(script[:8], skip_special_tokens=True)) for script in scripts]
    assert said[:3] == ["worda", "", "word more"]
    assert [first_line(row.text) for row in written] == [said[0], "", *said[2:]]
    assert [row.stopped_by for row in written] == ["line", "end", "line", "length", "end", "line"]
    assert written[1].new_tokens == 1 and written[3].new_tokens == 8


def test_first_line():
    assert first_line(" 308\n\nQ: more") == "308"
    assert first_line("\n\n 308 \nmore") == "308"  # blank lines before the answer are the paper's to skip, too
    assert first_line("308") == "308"
    assert first_line(" \n ") == ""


def test_a_batch_that_does_not_fit_is_halved(tiny_model, monkeypatch):
    model = tiny_model("bloom")
    prompts = shared_prompts(model.tokenizer)
    whole, sizes, really = generate(model, prompts), [], generation._generate

    def small_machine(model, prompts, *args):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return really(model, prompts, *args)

    monkeypatch.setattr(generation, "_generate", small_machine)
    assert generate(model, prompts) == whole
    assert sizes == [6, 3, 2, 1, 3, 2, 1]


def test_a_single_prompt_that_does_not_fit_is_refused_and_other_errors_pass(tiny_model, monkeypatch):
    model = tiny_model("bloom")
    prompts = shared_prompts(model.tokenizer)

    def fail(message):
        def failing(*args):
            raise RuntimeError(message)

        monkeypatch.setattr(generation, "_generate", failing)

    fail("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    with pytest.raises(ValueError, match="tokens does not fit into the memory of cpu"):
        generate(model, prompts)
    fail("shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes"):
        generate(model, prompts)


def test_logits_that_are_not_finite_are_refused(tiny_model):
    model = tiny_model("bloom")
    with torch.no_grad():
        model.final_norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="not finite in float32"):
        generate(model, shared_prompts(model.tokenizer))


def test_prompts_of_one_context_that_begin_differently_are_read_apart(tiny_model):
    model = tiny_model("bloom")
    prompts = [
        question_prompt(prompt.ids[i:], "one", prompt.key) for i, prompt in enumerate(question_prompts(model.tokenizer))
    ]
    assert generate(model, prompts) == [generate(model, [prompt])[0] for prompt in prompts]


def test_self_check_passes_and_sees_a_cache_that_is_off_by_one(tiny_model, family, monkeypatch):
    model = tiny_model(family)
    prompts = shared_prompts(model.tokenizer)
    assert generation.self_check(model, prompts) < 1e-5
    really = prefixes.moved
    monkeypatch.setattr(prefixes, "moved", lambda texts, rows, steps, room=0: really(texts, rows, steps + 1, room))
    with pytest.raises(ValueError, match="in a batch and alone differ"):
        generation.self_check(model, prompts)


def test_self_check_of_a_real_model_sees_that_one_token_of_the_context_is_not_attended_to(offline_model, monkeypatch):
    examples = load_examples("sample_qa", ["en", "or"], limit=2)
    prompts = [
        question_prompt(encode(offline_model.tokenizer, render(e)), e.context, f"{e.lang} {e.id}") for e in examples
    ]
    bound = TOLERANCE[torch.float32]
    assert generation.self_check(offline_model, prompts) < bound / 10

    def one_unseen(model, ids):
        mask = torch.ones(1, len(ids), dtype=torch.long)
        mask[0, len(ids) // 2] = 0
        return model.decoder(torch.tensor([ids]), attention_mask=mask, use_cache=False).last_hidden_state[0, -1]

    monkeypatch.setattr(generation, "alone", one_unseen)
    with pytest.raises(ValueError, match="in a batch and alone differ"):
        generation.self_check(offline_model, prompts)


def test_a_roomy_layer_holds_what_a_dynamic_one_does():
    torch.manual_seed(0)
    roomy, dynamic = prefixes.RoomyLayer(), DynamicLayer()
    for n_new in (5, 1, 70, 1, 1):
        states = torch.randn(4, 2, n_new, 3), torch.randn(4, 2, n_new, 3)
        for a, b in zip(roomy.update(*states), dynamic.update(*states)):
            assert a.equal(b)
    roomy.drop(1)
    kept = [0, 3, 2]
    assert roomy.keys.equal(dynamic.keys[kept]) and roomy.values.equal(dynamic.values[kept])
    assert roomy.get_seq_length() == dynamic.get_seq_length()
    states = torch.randn(3, 2, 1, 3), torch.randn(3, 2, 1, 3)
    assert roomy.update(*states)[0].equal(torch.cat([dynamic.keys[kept], states[0]], dim=2))


def test_batches_keep_contexts_together_and_within_their_limits():
    lengths = {"a": (9, 4), "b": (30, 31, 29), "c": (12,), "d": (8, 8)}
    prompts = [question_prompt([0] * n, context, "") for context, ns in lengths.items() for n in ns]
    cut = question_batches(prompts, 3, 0, max_new_tokens=10)
    assert sorted(i for batch in cut for i in batch) == list(range(len(prompts)))
    assert [[prompts[i].context for i in batch] for batch in cut] == [list("bbb"), list("caa"), list("dd")]
    for batch in question_batches(prompts, None, 90, max_new_tokens=10):
        assert len(batch) * (max(len(prompts[i].ids) for i in batch) + 10) <= 90
    assert question_batches(prompts, None, 1, max_new_tokens=10) == [[i] for batch in cut for i in batch]


def test_memory_at_hand_takes_some_tokens(tiny_model):
    model = tiny_model("llama")
    heads, width, layers = model.config.num_key_value_heads, model.config.head_dim, len(model.layers)
    at_most = generation.CPU_CACHE_BYTES // (2 * heads * width * layers * 4)
    assert 0 < generation.max_batch_tokens(model) <= at_most
    # The logits of as many texts, with a softmax and a copy of them, have room beside the rest.
    n_texts = generation.max_batch_tokens(model) / generation.SHORT_TEXT
    assert n_texts * 3 * 4 * model.n_tokens < generation.CPU_CACHE_BYTES


def test_offline_model_batched_and_alone_write_the_same(offline_model):
    """benchmarks/batch_agreement.py asks more questions, and tells ties from mistakes."""
    tokenizer = offline_model.tokenizer
    examples = load_examples("sample_qa", ["en", "or"], limit=2)
    prompts = [question_prompt(encode(tokenizer, render(e)), e.context, e.id) for e in examples]
    together = generate(offline_model, prompts, max_new_tokens=6)
    for prompt, written in zip(prompts, together):
        ids = alone(offline_model, prompt, 6)[: written.new_tokens]
        assert written.text == tokenizer.decode(ids, skip_special_tokens=True)


def test_more_lines_go_on_from_the_first(tiny_model, monkeypatch):
    """Up to so many lines that are not blank; the first is the one that is written where it is all that is asked."""
    model = tiny_model("llama")
    script = model.tokenizer.encode("one\n\n\ntwo\nthree\nfour", add_special_tokens=False)
    prompt = question_prompt([1, 50, 60], "", "key")
    steps = iter(script * 2)
    monkeypatch.setitem(generation.DECODINGS, "scripted", lambda logits, draws: torch.tensor([next(steps)]))
    (written,) = generate(model, [prompt], "scripted", 100, lines=2)
    assert written.text.rstrip("\n").split("\n") == ["one", "", "", "two"] and written.stopped_by == "line"
    steps = iter(script * 2)
    (first,) = generate(model, [prompt], "scripted", 100)
    assert first.text.strip() == "one" == first_line(written.text) and first.stopped_by == "line"
