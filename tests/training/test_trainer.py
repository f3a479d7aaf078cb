"""What is trained on, token by token; the loss in chunks; an adapter that learns, and one that changes nothing."""

import dataclasses
import json

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

from tests.conftest import tiny_causal_lm
from tests.scripts import damage
from utils.answers import generation
from utils.command_line import LOSSES
from utils.data.examples import Example, load_examples
from utils.data.prompts import render, render_answered
from utils.models import prefixes
from utils.models.families import FAMILIES, lens_model
from utils.models.hidden_states import encode
from utils.training import checkpoints, texts, trainer
from utils.training import loss as loss_in_chunks
from utils.training.loss import chunked_loss, install_chunked_loss
from utils.training.texts import NOT_IN_THE_LOSS as OUT
from utils.training.texts import Collator, shortened_context, shuffled_answers, training_text

EXAMPLE = Example("one", "tests", "eng_Latn", "Ice floats on water.", "What floats?", ["Ice"])


def example(context, answer):
    return dataclasses.replace(EXAMPLE, context=context, answers=[answer])


# --- texts -----------------------------------------------------------------------------------------------------


def test_the_labels_of_one_example_token_by_token(tiny_tokenizer):
    prompt = encode(tiny_tokenizer, "Ice floats on water.\n\nQ: What floats?\nA:")
    ids = [*encode(tiny_tokenizer, "Ice floats on water.\n\nQ: What floats?\nA: Ice"), tiny_tokenizer.eos_token_id]
    answer = [tiny_tokenizer.decode([id]) for id in ids[len(prompt) :]]
    assert "".join(answer) == " Ice</s>"
    for in_loss, mask_eos, expected in [
        ("all", False, [OUT, *ids[1:]]),
        ("all", True, [OUT, *ids[1:-1], OUT]),
        ("answer", False, [OUT] * len(prompt) + ids[len(prompt) :]),
        ("answer", True, [OUT] * len(prompt) + ids[len(prompt) : -1] + [OUT]),
    ]:
        text = training_text(tiny_tokenizer, EXAMPLE, in_loss, mask_eos)
        assert text.ids == ids and text.labels == expected and not text.was_cut


def test_a_begin_token_of_the_tokenizer_is_there_once_and_never_predicted(offline_tokenizer):
    text = training_text(offline_tokenizer, EXAMPLE)
    assert text.ids[0] == offline_tokenizer.bos_token_id and text.ids[-1] == offline_tokenizer.eos_token_id
    assert offline_tokenizer.decode(text.ids[1:-1]) == render_answered(EXAMPLE)
    assert text.labels == [OUT, *text.ids[1:]]


def test_padding_is_never_in_the_loss_even_where_it_is_the_end_token(tiny_tokenizer):
    texts = [training_text(tiny_tokenizer, e) for e in (EXAMPLE, example("Fire burns.", "Fire, and nothing else"))]
    batch = Collator(texts, tiny_tokenizer.eos_token_id)([{"row": 1}, {"row": 0}])
    assert batch["rows"].tolist() == [1, 0]
    for row, text in zip(range(2), texts[::-1]):
        n = len(text.ids)
        assert batch["input_ids"][row, :n].tolist() == text.ids and batch["labels"][row, :n].tolist() == text.labels
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (batch["labels"].shape[1] - n)
        assert (batch["labels"][row, n:] == OUT).all()
    assert batch["labels"][0, len(texts[1].ids) - 1] == tiny_tokenizer.eos_token_id


WORDS = [f"word{i}" for i in range(80)]


@pytest.mark.parametrize("loss_mean", ["tokens", "batches"])
def test_texts_one_by_one_have_the_loss_and_the_gradients_of_their_batch(tiny_tokenizer, loss_mean):
    examples = [EXAMPLE, example("Fire burns.", "Fire, and nothing else"), example(" ".join(WORDS), "word5")]
    texts = [training_text(tiny_tokenizer, e, "answer") for e in examples]
    batch = Collator(texts, 0)([{"row": row} for row in range(3)])
    batch.pop("rows")
    model = lens_model(tiny_causal_lm("bloom", len(tiny_tokenizer)), tiny_tokenizer)
    adapted = trainer.with_new_adapter(model, 4, 16, 0.0, "tiny", seed=42)
    weights = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    n_of_step = {"num_items_in_batch": 31} if loss_mean == "tokens" else {}
    together = adapted(**batch, **n_of_step).loss
    expected = torch.autograd.grad(together, weights)
    parts = trainer.one_by_one(batch, loss_mean)
    assert [part["input_ids"][0].tolist() for part in parts] == [text.ids for text in texts]
    alone = sum(adapted(**part, **n_of_step).loss for part in parts)
    assert alone.item() == pytest.approx(together.item(), rel=1e-5)
    for found, by_batch in zip(torch.autograd.grad(alone, weights), expected):
        assert torch.allclose(found, by_batch, rtol=1e-3, atol=1e-5 * by_batch.abs().max().item())


@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_a_cpu_attends_step_by_step_to_the_same(tiny_tokenizer, family):
    texts = [training_text(tiny_tokenizer, e) for e in (EXAMPLE, example(" ".join(WORDS[:6]), "word5"))]
    batch = Collator(texts, 0)([{"row": row} for row in range(2)])
    batch.pop("rows")
    losses, ways = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        model = lens_model(tiny_causal_lm(family, len(tiny_tokenizer)).to(dtype), tiny_tokenizer)
        usual = model.decoder.config._attn_implementation  # some families have no other way than eager
        losses[dtype] = trainer.with_new_adapter(model, 4, 16, 0.0, "tiny", seed=42)(**batch).loss.item()
        ways[dtype] = model.decoder.config._attn_implementation
    assert ways == {torch.float32: usual, torch.bfloat16: "eager"}
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.01)


@pytest.mark.parametrize(("place", "kept"), [(5, "left"), (75, "right"), (None, "left")])
def test_a_long_context_loses_words_on_the_side_far_from_the_answer(tiny_tokenizer, place, kept):
    long = example(" ".join(WORDS), "elsewhere" if place is None else WORDS[place])
    whole = training_text(tiny_tokenizer, long, max_tokens=10_000)
    text = training_text(tiny_tokenizer, long, max_tokens=len(whole.ids) - 50)
    assert text.was_cut and not whole.was_cut
    assert len(whole.ids) - 60 < len(text.ids) <= len(whole.ids) - 50
    said = tiny_tokenizer.decode(text.ids[:-1])
    words = said.split("\n\nQ: ")[0].split(" ")
    assert words == (WORDS[: len(words)] if kept == "left" else WORDS[-len(words) :])
    assert said.endswith(f"\n\nQ: What floats?\nA: {long.answers[0]}")


def test_the_answer_stays_in_the_context_however_short_it_gets(tiny_tokenizer):
    long = example(" ".join(WORDS), "word40 word41")
    shortest = len(training_text(tiny_tokenizer, example("word40 word41", "word40 word41")).ids)
    for max_tokens in range(shortest, 200, 13):
        text = training_text(tiny_tokenizer, long, max_tokens=max_tokens)
        assert len(text.ids) <= max_tokens
        assert "word40 word41" in tiny_tokenizer.decode(text.ids).split("\n\nQ:")[0]
    assert training_text(tiny_tokenizer, long, max_tokens=shortest - 5) is None


@pytest.mark.parametrize(
    ("answer_start", "kept"),
    [(None, 6), (6 * 9 + 2, 6), (70 * 9 + 2, 70), (41, 6), (-5, 6), (10**6, 6)],
)
def test_the_gold_answer_is_kept_and_not_another_of_its_kind(tiny_tokenizer, answer_start, kept):
    """`Ice` stands twice, in the 6th and 70th of words of 8 letters; an offset at which it doesn't says nothing."""
    words = [f"a.Ice.{i:02}" if i in (6, 70) else f"word..{i:02}" for i in range(80)]
    long = dataclasses.replace(example(" ".join(words), " Ice"), answer_start=answer_start and answer_start - 1)
    whole = training_text(tiny_tokenizer, long, max_tokens=10_000)
    text = training_text(tiny_tokenizer, long, max_tokens=len(whole.ids) // 4)
    context = tiny_tokenizer.decode(text.ids).split("\n\nQ: ")[0]
    assert [i for i in (6, 70) if f"a.Ice.{i:02}" in context] == [kept]


def test_xquads_offsets_are_of_the_gold_answer_which_need_not_be_the_first(official_datasets):
    n_others = {}
    for lang in ("en", "zh"):
        examples = load_examples("xquad", [lang], datasets_dir=official_datasets)
        for e in examples:
            assert e.context.startswith(e.answers[0], e.answer_start)
        n_others[lang] = sum(e.context.find(e.answers[0]) != e.answer_start for e in examples)
        moved = [e for e in examples if e.context.find(e.answers[0]) != e.answer_start]
        assert all(texts._place_of_answer(e)[0] == e.answer_start for e in moved)
    assert n_others == {"en": 39, "zh": 58}  # of 1,190
    assert {e.answer_start for e in load_examples("xquad_in", ["or"], datasets_dir=official_datasets)} == {None}


def test_shuffled_answers_are_a_derangement_by_the_seed():
    examples = load_examples("sample_qa", ["en"], "train")
    dealt = shuffled_answers(examples, 42)
    assert sorted(e.answers[0] for e in dealt) == sorted(e.answers[0] for e in examples)
    assert all(a.answers != b.answers and a.question == b.question for a, b in zip(dealt, examples))
    assert shuffled_answers(examples, 42) == dealt != shuffled_answers(examples, 43)
    with pytest.raises(ValueError, match="too few different answers"):
        shuffled_answers([EXAMPLE, EXAMPLE], 42)


@pytest.mark.parametrize(
    "context, share, kept",
    [
        ("one two three four", 0.5, "one two"),  # the ninth character is in "three"
        ("one two three four", 0.9, "one two three"),
        ("one two three four", 0.1, "on"),  # no word is whole: characters are
        ("一二三四", 0.5, "一二"),
    ],
)
def test_a_context_keeps_its_first_share_in_whole_words(context, share, kept):
    example = dataclasses.replace(EXAMPLE, context=context)
    assert shortened_context(example, share) == dataclasses.replace(example, context=kept)


# --- the loss --------------------------------------------------------------------------------------------------


def batch_of(tokenizer, n=3, loss="all"):
    texts = [training_text(tokenizer, e, loss) for e in load_examples("sample_qa", ["en"], "train")[:n]]
    return Collator(texts, tokenizer.pad_token_id)([{"row": row} for row in range(n)])


@pytest.mark.parametrize("loss", LOSSES)
def test_the_chunked_loss_and_its_gradient_are_those_of_the_model(tiny_tokenizer, family, loss, monkeypatch):
    plain = tiny_causal_lm(family, len(tiny_tokenizer))
    chunked = tiny_causal_lm(family, len(tiny_tokenizer))
    model = lens_model(chunked, tiny_tokenizer)
    batch = batch_of(tiny_tokenizer, loss=loss)
    n_positions = int((batch["labels"][:, 1:] != OUT).sum())
    monkeypatch.setattr(loss_in_chunks, "CHUNK_BYTES", 4 * n_positions * 37)  # 37 rows of the unembedding at a time
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = plain(**inputs).logits
    expected = cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), ignore_index=OUT)
    model.unembedding.weight.requires_grad_(False)
    plain.get_output_embeddings().weight.requires_grad_(False)
    install_chunked_loss(model)
    found = chunked(**inputs, labels=batch["labels"]).loss
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    found.backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), chunked.named_parameters()):
        if a.grad is not None:
            assert (a.grad - b.grad).abs().max() <= 1e-4 * a.grad.abs().max() + 1e-7, name


@pytest.mark.parametrize("scale", [0.01, 1, 1000])
def test_the_chunked_loss_of_any_logits_and_with_a_bias(tiny_model, monkeypatch, scale):
    model = tiny_model("phi3")
    n_rows = model.unembedding.weight.shape[0]
    model.unembedding.bias = torch.nn.Parameter(torch.randn(n_rows) * scale)
    model.unembedding.requires_grad_(False)
    monkeypatch.setattr(loss_in_chunks, "CHUNK_BYTES", 4 * 9 * 37)
    states, labels = torch.randn(9, 32) * scale, torch.arange(9) * 17 % n_rows
    plain, chunked = states.clone().requires_grad_(), states.clone().requires_grad_()
    expected = cross_entropy(model.head(plain), labels, reduction="sum")
    found = chunked_loss(model, chunked, labels)
    (3 * expected).backward()
    (3 * found).backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (plain.grad - chunked.grad).abs().max() <= 1e-4 * plain.grad.abs().max()


def test_the_chunked_loss_under_autocast_is_that_of_rounded_logits(tiny_model, monkeypatch):
    model = tiny_model("bloom")
    model.unembedding.requires_grad_(False)
    monkeypatch.setattr(loss_in_chunks, "CHUNK_BYTES", 4 * 9 * 37)
    plain = torch.randn(9, 32, requires_grad=True)
    chunked, labels = plain.detach().clone().requires_grad_(), torch.arange(9) * 17 % 2000
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.head(plain)
        expected = cross_entropy(logits.float(), labels, reduction="sum")
        found = chunked_loss(model, chunked, labels)
    assert logits.dtype == torch.bfloat16 and found.item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    found.backward()
    assert (plain.grad - chunked.grad).norm() <= 0.01 * plain.grad.norm()  # products of bfloat16 have 8 bits


def test_a_logit_that_is_no_number_makes_the_chunked_loss_none(tiny_model):
    model = tiny_model("bloom")
    states = torch.randn(4, 32)
    for bad in (torch.nan, torch.inf):
        states[2, 5] = bad
        assert not torch.isfinite(chunked_loss(model, states, torch.arange(4)))


def test_the_chunked_loss_of_no_position_is_zero(tiny_model):
    assert chunked_loss(tiny_model("bloom"), torch.empty(0, 32), torch.empty(0, dtype=torch.long)) == 0


def test_positions_out_of_the_loss_have_no_gradient(tiny_model):
    model = tiny_model("bloom")
    states = torch.randn(9, 32, requires_grad=True)
    labels = torch.arange(9)
    chunked_loss(model, states[3:5], labels[3:5]).backward()
    assert (states.grad[3:5] != 0).all()
    assert (states.grad[:3] == 0).all() and (states.grad[5:] == 0).all()


# --- the adapter -----------------------------------------------------------------------------------------------


def test_lora_targets_are_there_in_every_family_and_all_its_linear_maps(tiny_model, family):
    model = tiny_model(family)
    linear = {
        name.rpartition(".")[2]
        for name, module in model.layers.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D")
    }
    assert linear == set(model.family.lora_targets)


def test_a_new_adapter_changes_nothing(tiny_model, family, tmp_path):
    model = tiny_model(family)
    ids = torch.tensor([encode(model.tokenizer, render(EXAMPLE))])
    before = model.causal_lm(ids).logits
    trainer.with_new_adapter(model, 8, 16, 0.1, "tiny", seed=42).save_pretrained(tmp_path, save_embedding_layers=False)
    base = tiny_causal_lm(family, len(model.tokenizer))
    adapted = PeftModel.from_pretrained(base, tmp_path).eval()
    assert adapted(ids).logits.equal(before)


def test_twenty_steps_on_eight_examples_teach_a_tiny_bloom_their_answers(tiny_tokenizer):
    model = lens_model(tiny_causal_lm("bloom", len(tiny_tokenizer), hidden_size=128), tiny_tokenizer)
    words = zip("river mountain bread window seven purple clock garden".split(), "ab cd ef gh ij kl mn op".split())
    examples = [dataclasses.replace(EXAMPLE, question=f"{word}?", answers=[answer]) for word, answer in words]
    texts = [training_text(tiny_tokenizer, e, "answer") for e in examples]
    adapted = trainer.with_new_adapter(model, 64, 256, 0.0, "tiny", seed=42).train()
    weights = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.002)
    batch = Collator(texts, tiny_tokenizer.pad_token_id)([{"row": row} for row in range(8)])
    batch.pop("rows")
    losses = []
    for _ in range(20):
        loss = adapted(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < 10 < losses[0]
    adapted.eval()
    prompts = [prefixes.question_prompt(encode(tiny_tokenizer, render(e)), e.context, e.id) for e in examples]
    written = generation.generate(model, prompts, max_new_tokens=8)
    assert [(generation.first_line(w.text), w.stopped_by) for w in written] == [(e.answers[0], "end") for e in examples]


NAMES = [*checkpoints.NEEDED, "rng_state.pth"]


@pytest.fixture
def kept(tmp_path):
    """Two whole checkpoints, after steps 9 and 18."""
    for step in (9, 18):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in NAMES:
            (folder / name).write_text(json.dumps({"global_step": step, "of": name}))
        checkpoints.seal(folder)
    return tmp_path


def test_the_last_whole_checkpoint(kept):
    assert trainer.last_checkpoint(kept / "nowhere") is None
    (kept / "checkpoint-100").mkdir()
    (kept / "checkpoint-110").mkdir()
    (kept / "checkpoint-110" / "trainer_state.json").write_text("{}")
    (kept / "checkpoint-final").mkdir()
    assert trainer.last_checkpoint(kept).name == "checkpoint-18"


@pytest.mark.parametrize("name", [*NAMES, checkpoints.SEAL])
@pytest.mark.parametrize("content", [None, b"", b"other", b"[]"])
def test_a_checkpoint_without_one_of_its_files_or_with_another_does_not_count(kept, name, content):
    damage(kept / "checkpoint-18" / name, content)
    assert trainer.last_checkpoint(kept).name == "checkpoint-9"


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_that_never_had_one_of_its_files_does_not_count(kept, name):
    (kept / "checkpoint-18" / name).unlink()
    checkpoints.seal(kept / "checkpoint-18")
    assert trainer.last_checkpoint(kept).name == "checkpoint-9"


def test_a_checkpoint_of_another_step_does_not_count(kept):
    (kept / "checkpoint-18").rename(kept / "checkpoint-27")
    assert trainer.last_checkpoint(kept).name == "checkpoint-9"


def test_an_adapter_is_the_same_bytes_whatever_the_order_of_sets(tiny_model, tmp_path):
    adapted = trainer.with_new_adapter(tiny_model("llama"), 4, 8, 0.0, "tiny", seed=42)
    checkpoints.save_adapter(adapted, tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert stored["target_modules"] == sorted(FAMILIES["llama"].lora_targets)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_not_saved(tiny_model, tmp_path, value):
    adapted = trainer.with_new_adapter(tiny_model("llama"), 4, 8, 0.0, "tiny", seed=42)
    weights = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    with torch.no_grad():
        weights[-1].view(-1)[-1] = value
    with pytest.raises(ValueError, match="not finite after its last update .*lora_"):
        checkpoints.save_adapter(adapted, tmp_path)
    assert not list(tmp_path.iterdir())
