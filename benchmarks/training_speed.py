"""How many tokens a second does training take in, beside TRL's SFTTrainer with the same data and the same LoRA?

    pip install trl==1.16.0
    python benchmarks/training_speed.py --model gemma-3-270m --dataset xquad_in --lang hi --steps 2

Each of `--loss all`, `--loss answer` and TRL trains in a process of its own, one after the other, on the same texts in
batches of 4, four of them to an optimizer step, with the recipe of QAtraining.py. Prints seconds a step, tokens a
second (padding not counted), the peak memory of the process (and of the GPU), the ratios to TRL, and an estimate of
what the arithmetic alone would take: the matrix products of a step at the speed of a large product on this machine.
"""

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers.trainer_callback import PrinterCallback

from utils.data.examples import DATASETS_DIR, load_examples
from utils.data.prompts import render_answered
from utils.models.loading import load_model
from utils.training import trainer
from utils.training.cpu import keep_freed_memory
from utils.training.recipe import Recipe
from utils.training.texts import NOT_IN_THE_LOSS, Collator, training_text
from utils.training.trainer import Finetuning, with_new_adapter

SIDES = ("all", "answer", "trl")


def main():
    args = parse_args()
    if args.side:
        with contextlib.redirect_stdout(sys.stderr):
            result = measure(args)
        print(json.dumps(result))
        return
    results = {side: run_apart(side) for side in SIDES}
    for side, result in results.items():
        name = "TRL's SFTTrainer" if side == "trl" else f"--loss {side}"
        gpu = f", GPU {result['gpu_bytes'] / 2**30:.2f} GiB" if result["gpu_bytes"] else ""
        limit = f"; arithmetic alone {result['limit']:.0f} tokens a second" if "limit" in result else ""
        print(
            f"{name}: {result['seconds'] / args.steps:.1f} s a step, {speed(result):.0f} tokens a second, peak memory "
            f"{result['resident_bytes'] / 2**30:.2f} GiB{gpu}{limit}"
        )
    peer, figures = results["trl"], {}
    for side in SIDES[:2]:
        memory = results[side]["resident_bytes"] / peer["resident_bytes"]
        figures[side] = {"ratio": speed(results[side]) / speed(peer), "memory_ratio": memory}
        print(f"--loss {side} : TRL = {figures[side]['ratio']:.2f} in speed, {memory:.2f} in memory")
    print(json.dumps(figures))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--dataset", default="sample_qa")
    parser.add_argument("--datasets_dir", type=Path, default=DATASETS_DIR)
    parser.add_argument("--lang", default="hi")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--gradient_checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--side", choices=SIDES, help="one of the three alone, as JSON")
    return parser.parse_args()


def speed(result):
    return result["tokens"] / result["seconds"]


def run_apart(side):
    command = [sys.executable, *sys.argv, "--side", side]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def measure(args):
    recipe = Recipe(gradient_checkpointing=args.gradient_checkpointing)
    if args.side != "trl":  # which is measured as its users have it
        keep_freed_memory()
    model = load_model(args.model, None, trainer.training_dtype("auto"))
    examples = load_examples(args.dataset, [args.lang], "train", datasets_dir=args.datasets_dir)
    examples = examples[: args.steps * recipe.texts_a_step]
    texts = [
        training_text(model.tokenizer, example, "answer" if args.side == "answer" else "all") for example in examples
    ]
    with tempfile.TemporaryDirectory() as folder:
        make = trl_trainer if args.side == "trl" else our_trainer
        finetuning = make(args, recipe, model, texts, Path(folder))
        started = time.perf_counter()
        finetuning.train()
        seconds = time.perf_counter() - started
    result = {
        "seconds": seconds,
        "tokens": sum(len(text.ids) for text in texts),
        "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "gpu_bytes": torch.cuda.max_memory_allocated() if model.device.type == "cuda" else 0,
    }
    if args.side != "trl":
        result["limit"] = arithmetic_limit(recipe, model, texts)
    return result


def our_trainer(args, recipe, model, texts, folder):
    settings = trainer.training_arguments(recipe, folder, model)
    settings.max_steps, settings.save_strategy = args.steps, "no"
    finetuning = Finetuning(
        model=with_new_adapter(
            model, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout, args.model, recipe.seed
        ),
        args=settings,
        train_dataset=trainer.numbered(texts),
        data_collator=Collator(texts, trainer.pad_token(model.tokenizer)),
        texts=texts,
    )
    finetuning.remove_callback(PrinterCallback)
    return finetuning


def trl_trainer(args, recipe, model, texts, folder):
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from datasets import Dataset

    ours = trainer.training_arguments(recipe, folder, model)
    shared = (
        *("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type"),
        *("max_grad_norm", "weight_decay", "gradient_checkpointing", "gradient_checkpointing_kwargs", "bf16"),
        *("use_cpu", "seed", "disable_tqdm", "logging_steps"),
    )
    settings = SFTConfig(
        output_dir=str(folder),
        max_steps=args.steps,
        save_strategy="no",
        max_length=1024,
        report_to="none",
        dataset_text_field="text",
        **{name: getattr(ours, name) for name in shared},
    )
    lora = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=list(model.family.lora_targets),
    )
    rows = [{"text": render_answered(text.example)} for text in texts]
    return SFTTrainer(
        model=model.causal_lm,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=model.tokenizer,
        peft_config=lora,
    )


def arithmetic_limit(recipe, model, texts):
    """Tokens a second if only the matrix products of training took time; attention's own are left out.

    A frozen matrix of n numbers costs 2n operations a token forward and 2n for the gradient of what goes in; an
    adapter's 2n more for its own; checkpointing runs the layers forward once more. The unembedding is passed by the
    tokens in the loss alone.
    """
    linear = [module for module in model.layers.modules() if isinstance(module, torch.nn.Linear)]
    adapter = sum(weight.numel() for weight in model.layers.parameters() if weight.requires_grad)
    frozen = sum(module.weight.numel() for module in linear if not module.weight.requires_grad)
    again = 2 if recipe.gradient_checkpointing else 0
    n_tokens = sum(len(text.ids) for text in texts)
    n_in_loss = sum(label != NOT_IN_THE_LOSS for text in texts for label in text.labels)
    operations = n_tokens * ((4 + again) * frozen + (6 + again) * adapter)
    operations += n_in_loss * 4 * model.unembedding.weight.numel()
    return n_tokens / (operations / operations_a_second(model))


def operations_a_second(model):
    """Of a product of two square matrices, the best of three."""
    n = 4096
    one, other = (torch.randn(n, n, device=model.device, dtype=model.dtype) for _ in range(2))
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        float((one @ other)[0, 0])  # waits for a GPU
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


if __name__ == "__main__":
    main()
