"""The paper's recipe: its steps are the published ones, and each of its flags does what a plain loop does."""

import dataclasses
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from tests.conftest import tiny_causal_lm
from utils.command_line import AUTOCASTS, LOSS_MEANS, TRUNCATIONS
from utils.data.examples import Example, load_examples
from utils.lens.published import EPOCH_OF_STEP
from utils.models.families import lens_model
from utils.models.hidden_states import encode
from utils.training import trainer
from utils.training.carried import CarriedBatches
from utils.training.recipe import PAPER, RECIPE, RECIPES, Recipe
from utils.training.texts import NOT_IN_THE_LOSS as OUT
from utils.training.texts import Collator, training_text

PAPERS = Recipe(carry_over=True)


def steps_of_the_loop(n_texts, recipe):
    """[(step, batches read)] of transformers 4.44: a count of batches that no epoch resets, and a limit of steps."""
    n_batches = -(-n_texts // recipe.batch_size)
    limit, steps, read, ends = n_batches // recipe.accumulate * recipe.epochs, 0, 0, []
    for _ in range(recipe.epochs):
        for _ in range(n_batches):
            read += 1
            if read % recipe.accumulate == 0:
                steps += 1
            if steps == limit:
                break
        ends.append(steps)
        if steps == limit:
            break
    return ends, read


def test_a_hundred_and_three_texts_stand_at_the_published_steps():
    ends = PAPERS.epoch_ends(103)
    assert ends == [6, 13, 19, 26, 32, 39, 45, 52, 58, 60]
    published = {step: epoch for step, epoch in EPOCH_OF_STEP.items() if step}
    assert [ends[int(epoch) - 1] for epoch in (2, 4, 6, 8)] + ends[-1:] == list(published)
    assert 60 * PAPERS.accumulate / 26 == pytest.approx(EPOCH_OF_STEP[60], abs=0.05)
    assert RECIPE.epoch_ends(103) == [7 * epoch for epoch in range(1, 11)]


@pytest.mark.parametrize("n_texts", [16, 17, 30, 103, 111])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 4), (2, 3), (1, 5)])
def test_steps_are_those_of_the_loop(n_texts, batch_size, accumulate):
    recipe = Recipe(epochs=5, batch_size=batch_size, accumulate=accumulate, carry_over=True)
    ends, read = steps_of_the_loop(n_texts, recipe)
    found = recipe.epoch_ends(n_texts)
    assert found[: len(ends)] == ends and set(found[len(ends) :]) <= {ends[-1]}
    batches = CarriedBatches(recipe, n_texts, lambda epoch: list(range(n_texts)), 0, 1)
    assert len(batches) == len(list(batches)) == read == accumulate * ends[-1]


def test_batches_of_all_epochs_are_dealt_to_the_processes_in_turn():
    recipe = Recipe(epochs=3, batch_size=2, accumulate=2, carry_over=True)

    def order(epoch):
        return random.Random(epoch).sample(range(11), 11)

    shares = [list(CarriedBatches(recipe, 11, order, rank, 2)) for rank in range(2)]
    one_epoch = [order(epoch)[start : start + 2] for epoch in range(3) for start in range(0, 11, 2)]
    assert len(one_epoch[5]) == 1  # an epoch's last batch stays short
    together = [batch for pair in zip(*shares) for batch in pair]
    assert together == one_epoch[: 3 * 2 * 2] and Recipe.epoch_ends(recipe, 11, 2)[-1] == 3


def test_an_epoch_that_fills_no_accumulation_is_refused():
    with pytest.raises(ValueError, match="--carry_over: an epoch of 3 batches of 4 can't fill an accumulation of 4"):
        PAPERS.epoch_ends(11)


def test_each_flag_of_the_recipe_has_a_default_and_a_choice():
    import QAtraining

    defaults, papers = (vars(QAtraining.parse_args(argv)) for argv in ([], ["--recipe", "paper"]))
    changed = {name for name in defaults if defaults[name] != papers[name]}
    assert changed == {"recipe", *PAPER} - {"lora_targets"}  # there they had all, as we have
    assert {name: papers[name] for name in PAPER} == RECIPES["paper"]
    assert papers["truncation"] in TRUNCATIONS and papers["loss_mean"] in LOSS_MEANS
    assert papers["autocast"] in AUTOCASTS


def test_a_flag_beside_the_recipe_wins_wherever_it_stands():
    import QAtraining

    argv = ["--weight_decay", "0.5", "--recipe", "paper", "--no-mask_eos", "--truncation", "context"]
    args = QAtraining.parse_args([*argv, "--lora_targets", "query_key_value"])
    assert (args.weight_decay, args.mask_eos, args.truncation) == (0.5, False, "context")
    assert args.lora_targets == ["query_key_value"] and args.carry_over and args.begin_text == "<s>"


# --- texts -----------------------------------------------------------------------------------------------------

LONG = Example("long", "tests", "eng_Latn", " ".join(f"word{i}" for i in range(60)), "What floats?", ["Ice and oil"])


def test_a_begin_text_is_read_by_the_tokenizer(tiny_tokenizer):
    plain, begun = (training_text(tiny_tokenizer, LONG, begin_text=begin) for begin in ("", "<s>"))
    assert begun.ids == [tiny_tokenizer.bos_token_id, *plain.ids]  # BLOOM's too has it as a token
    assert begun.labels == [OUT, *plain.ids]
    spelt = training_text(tiny_tokenizer, LONG, begin_text="Text: ")
    assert tiny_tokenizer.decode(spelt.ids).startswith("Text: word0 word1")
    answers = [training_text(tiny_tokenizer, LONG, "answer", begin_text=begin) for begin in ("", "<s>")]
    expected = [*encode(tiny_tokenizer, " Ice and oil"), tiny_tokenizer.eos_token_id]
    assert [[label for label in text.labels if label != OUT] for text in answers] == [expected, expected]


@pytest.mark.parametrize("lost", [1, 2, 5, 40])
def test_a_text_can_lose_its_end(tiny_tokenizer, lost):
    whole = training_text(tiny_tokenizer, LONG)
    for mask_eos in (False, True):
        text = training_text(tiny_tokenizer, LONG, "all", mask_eos, max_tokens=len(whole.ids) - lost, truncation="end")
        assert text.ids == whole.ids[:-lost] and text.was_cut
        assert text.labels == whole.labels[:-lost]  # no end token is left that could be masked
    fits = training_text(tiny_tokenizer, LONG, "all", True, max_tokens=len(whole.ids), truncation="end")
    assert fits.ids == whole.ids and fits.labels == [*whole.labels[:-1], OUT] and not fits.was_cut


def test_a_text_that_lost_all_that_its_loss_is_of_is_none(tiny_tokenizer):
    n = len(encode(tiny_tokenizer, " Ice and oil")) + 1
    whole = training_text(tiny_tokenizer, LONG)
    options = {"loss": "answer", "truncation": "end"}
    text = training_text(tiny_tokenizer, LONG, max_tokens=len(whole.ids) - n + 1, **options)
    assert [label for label in text.labels if label != OUT] == encode(tiny_tokenizer, " Ice and oil")[:1]
    assert training_text(tiny_tokenizer, LONG, max_tokens=len(whole.ids) - n, **options) is None


# --- the training, beside a loop by hand -------------------------------------------------------------------------

# Six batches an epoch, four to a step: two are left over of the first and the third epoch.
TEXTS, SHORT = 11, {"epochs": 4, "batch_size": 2, "accumulate": 4, "learning_rate": 0.01, "lora_dropout": 0.0}


def texts_of(tokenizer):
    examples = load_examples("sample_qa", ["en"], "train") + load_examples("sample_qa", ["hi"], "train")
    return [training_text(tokenizer, example, mask_eos=True, begin_text="<s>") for example in examples[:TEXTS]]


def weights_after(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def by_us(tokenizer, recipe, folder, targets=None):
    """(adapter before, after each step, the log, the order of each epoch, names of the checkpoints)."""
    model = lens_model(tiny_causal_lm("bloom", len(tokenizer)), tokenizer)
    texts = texts_of(tokenizer)
    adapted = trainer.with_new_adapter(model, 4, 16, 0.0, "tiny", recipe.seed, targets)
    with torch.no_grad():  # a B of zero would leave half of the gradients zero at first
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    before, after = weights_after(adapted), []

    class Keeps(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            after.append(weights_after(adapted))

    finetuning = trainer.Finetuning(
        model=adapted,
        args=trainer.training_arguments(recipe, folder, model),
        train_dataset=trainer.numbered(texts),
        data_collator=Collator(texts, trainer.pad_token(tokenizer)),
        texts=texts,
        recipe=recipe,
        callbacks=[Keeps()],
    )
    finetuning.remove_callback(PrinterCallback)
    finetuning.train()
    log = [entry for entry in finetuning.state.log_history if "loss" in entry]
    orders = [finetuning._order_of_epoch(epoch) for epoch in range(recipe.epochs)]
    return before, after, log, orders, sorted(path.name for path in folder.iterdir())


def by_hand(tokenizer, recipe, before, orders):
    """The same in a plain loop: PEFT's own layers, the whole logits, AdamW, a count of batches that goes on."""
    config = LoraConfig(r=4, lora_alpha=16, target_modules=sorted(maps_of(before)))
    model = get_peft_model(tiny_causal_lm("bloom", len(tokenizer)), config).train()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            weight.data.copy_(before[name])
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    texts, after, losses, waiting = texts_of(tokenizer), [], [], []
    batches = [order[i : i + 2] for order in orders for i in range(0, len(order), 2)]
    for batch in batches[:16]:  # 4 epochs, of one whole accumulation each: 4 steps of 4 batches
        waiting.append(batch)
        if len(waiting) < recipe.accumulate:
            continue
        means, sums, n_tokens = [], [], 0
        for rows in waiting:
            inputs = Collator(texts, 0)([{"row": row} for row in rows])
            labels = inputs["labels"][:, 1:].flatten()
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast == "bfloat16"):
                logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels, ignore_index=OUT)
            n = int((labels != OUT).sum())
            means.append(loss)
            sums.append(loss * n)
            n_tokens += n
        loss = sum(means) / len(means) if recipe.loss_mean == "batches" else sum(sums) / n_tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        after.append(weights_after(model))
        losses.append(loss.item())
        waiting = []
    return after, losses


def maps_of(names):
    return {name.split(".lora_")[0].split(".")[-1] for name in names}


def change(after, before):
    return torch.cat([(after[name] - before[name]).flatten() for name in before])


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_mean": "batches"},
        {"loss_mean": "tokens"},
        {"loss_mean": "batches", "weight_decay": 5.0},
        {"loss_mean": "batches", "autocast": "bfloat16"},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_training_is_that_of_a_plain_loop(tiny_tokenizer, tmp_path, changes):
    recipe = Recipe(carry_over=True, **SHORT, **{"weight_decay": 0.0} | changes)
    before, after, log, orders, checkpoints = by_us(tiny_tokenizer, recipe, tmp_path)
    assert recipe.epoch_ends(TEXTS) == [1, 3, 4, 4] and checkpoints == [f"checkpoint-{step}" for step in (1, 3, 4)]
    expected, losses = by_hand(tiny_tokenizer, recipe, before, orders)
    assert len(after) == len(expected) == 4
    assert [entry["epoch"] for entry in log] == pytest.approx([4 * step / 6 for step in range(1, 5)])
    rough = recipe.autocast == "bfloat16"
    assert [entry["loss"] for entry in log] == pytest.approx(losses, rel=1e-2 if rough else 1e-4)
    for found, by_loop in zip(after, expected):
        there, here = change(by_loop, before), change(found, before)
        assert (here - there).norm() <= (0.1 if rough else 1e-3) * there.norm()


def test_what_a_flag_changes_is_more_than_what_two_ways_to_compute_it_do(tiny_tokenizer, tmp_path):
    plain = Recipe(carry_over=True, loss_mean="batches", weight_decay=0.0, **SHORT)
    before, after, *_ = by_us(tiny_tokenizer, plain, tmp_path / "plain")
    here = change(after[-1], before)
    for name, value in (("loss_mean", "tokens"), ("carry_over", False)):
        recipe = dataclasses.replace(plain, **{name: value})
        _, other, *_ = by_us(tiny_tokenizer, recipe, tmp_path / name)
        assert (change(other[-1], before) - here).norm() > 0.02 * here.norm(), name


def test_only_the_named_maps_are_tuned(tiny_tokenizer):
    model = lens_model(tiny_causal_lm("bloom", len(tiny_tokenizer)), tiny_tokenizer)
    assert trainer.lora_targets(model, None) == ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    with pytest.raises(ValueError, match="--lora_targets q_proj: bloom has no such map; choose from query_key_v"):
        trainer.lora_targets(model, ["query_key_value", "q_proj"])
    adapted = trainer.with_new_adapter(model, 4, 16, 0.0, "tiny", 0, ["query_key_value"])
    assert maps_of(weights_after(adapted)) == {"query_key_value"}
