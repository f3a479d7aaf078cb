"""What an experiment's commands cost: tokens, and hours from a few examples on this machine."""

import time

import torch

from utils.answers.generation import generate
from utils.data.prompts import render
from utils.lens import reading
from utils.models.hidden_states import encode, hidden_states, last_position
from utils.models.loading import load_model, load_tokenizer
from utils.models.prefixes import question_prompt
from utils.training import texts, trainer
from utils.training.cpu import keep_freed_memory
from utils.training.recipe import RECIPE

NEW_TOKENS = 100
N_CHANNELS = 208  # of the default matrix
N_MEASURED = 8  # questions that are answered together to say what an answer costs


def print_costs(preset, commands):
    """Every command with its tokens and hours, the hours from a few examples on this machine."""
    try:
        tokenizer, why = load_tokenizer(preset.model), None
        seconds = measure(preset, commands)
    except ValueError as error:
        tokenizer, seconds, why = None, {}, str(error)
    to_run = 0.0
    counted: dict[int, int] = {}  # many commands have the same examples: of a preset's questions there are thousands
    for command in commands:
        tokens, hours = "-", "-"
        if command.kind and tokenizer:
            key = id(command.examples)
            if key not in counted:
                counted[key] = sum(len(encode(tokenizer, render(example))) for example in command.examples)
            n_tokens = command.repeats * counted[key]
            spent = n_tokens * seconds[command.kind] / 3600
            to_run += 0 if command.finished else spent
            tokens, hours = f"{n_tokens:,}", f"{spent:.2f}"
        state = "finished" if command.finished else ""
        print(f"{command.step:8} {state:8} {tokens:>12} tokens {hours:>7} h  {command.line}")
    if why:
        print(f"hours and tokens are not known here: {why}")
    else:
        print(f"still to run: about {to_run:.1f} hours on this machine, by a few examples")


def measure(preset, commands):
    """Seconds a prompt token for each kind of command: training, answering (its new tokens included), probing."""
    keep_freed_memory()
    examples = next(command.examples for command in commands if command.kind in ("answer", "train"))[:N_MEASURED]
    example = examples[0]
    model = load_model(preset.model)
    position = last_position(model, render(example))
    prompts = [question_prompt(encode(model.tokenizer, render(e)), e.context, e.id) for e in examples]
    matrix = torch.rand(model.n_tokens, N_CHANNELS, device=model.device)
    reading.read(model, [position], hidden_states(model, [position]), matrix)  # the first pass is slower
    seconds = {
        "probe": timed(lambda: reading.read(model, [position], hidden_states(model, [position]), matrix)),
        "answer": timed(lambda: generate(model, prompts, max_new_tokens=NEW_TOKENS)) / len(prompts),
        "train": timed(step_of_training(preset, example)),
    }
    return {kind: spent / len(position.ids) for kind, spent in seconds.items()}


def step_of_training(preset, example):
    """The forward and backward pass of one text, as the preset's flags have it."""
    dtype = preset.flags[preset.flags.index("--dtype") + 1] if "--dtype" in preset.flags else "auto"
    model = load_model(preset.model, None, dtype)
    adapted = trainer.with_new_adapter(
        model, RECIPE.lora_rank, RECIPE.lora_alpha, RECIPE.lora_dropout, preset.model, RECIPE.seed
    ).train()
    if "--no-gradient_checkpointing" not in preset.flags:
        adapted.enable_input_require_grads()
        adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    text = texts.training_text(model.tokenizer, example)
    assert text is not None  # without a limit of tokens
    batch = texts.Collator([text], 0)([{"row": 0}])
    batch = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "rows"}
    return lambda: adapted(**batch).loss.backward()


def timed(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
