"""How many questions a minute, beside a transformers pipeline that is called a question at a time?

    python benchmarks/inference_speed.py --model gemma-3-270m --dataset xquad_in --langs en hi or te --limit 6

Both answer the same questions with the paper's settings (a draw at temperature 0.1, top-k 50, top-p 0.95, at most 100
new tokens), each in a process of its own, one after the other. Loading is not counted. Prints seconds, questions a
minute, the share of equal answers (both draw, so some differ), their ratio and the peak memory of both: the process's
resident set, and the GPU's allocation where there is one.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import pipeline

from utils.answers import generation
from utils.data.examples import DATASETS_DIR, load_examples
from utils.data.prompts import render
from utils.models import prefixes
from utils.models.hidden_states import encode
from utils.models.loading import load_model

MAX_NEW_TOKENS = 100


def main():
    args = parse_args()
    if args.side:
        print(json.dumps(measure(args)))
        return
    ours, peer = (run_apart(side) for side in ("ours", "pipeline"))
    for name, result in (("this repository", ours), ("pipeline", peer)):
        per_minute = 60 * len(result["answers"]) / result["seconds"]
        gpu = f", GPU {result['gpu_bytes'] / 2**30:.2f} GiB" if result["gpu_bytes"] else ""
        print(
            f"{name}: {len(result['answers'])} questions in {result['seconds']:.1f} s, {per_minute:.1f} a minute, "
            f"peak memory {result['resident_bytes'] / 2**30:.2f} GiB{gpu}"
        )
    equal = sum(a == b for a, b in zip(ours["answers"], peer["answers"])) / len(ours["answers"])
    speed, memory = peer["seconds"] / ours["seconds"], ours["resident_bytes"] / peer["resident_bytes"]
    print(f"equal answers: {equal:.0%}; ratio of questions a minute: {speed:.1f}, of peak memory {memory:.2f}")
    print(json.dumps({"ratio": speed, "memory_ratio": memory, "equal_answers": equal}))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--dataset", default="sample_qa")
    parser.add_argument("--datasets_dir", type=Path, default=DATASETS_DIR)
    parser.add_argument("--langs", nargs="+", default=["en", "hi", "or", "ru", "de", "zh"])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--side", choices=("ours", "pipeline"), help="one of the two alone, as JSON")
    return parser.parse_args()


def run_apart(side):
    command = [sys.executable, *sys.argv, "--side", side]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def measure(args):
    model = load_model(args.model)
    examples = load_examples(args.dataset, args.langs, "test", args.limit, datasets_dir=args.datasets_dir)
    texts = [render(example) for example in examples]
    step = by_batches if args.side == "ours" else one_at_a_time
    step(model, examples[:1], texts[:1])  # the first pass of a process pays for its threads
    started = time.perf_counter()
    answers = step(model, examples, texts)
    seconds = time.perf_counter() - started
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gpu = torch.cuda.max_memory_allocated() if model.device.type == "cuda" else 0
    return {"seconds": seconds, "answers": answers, "resident_bytes": resident, "gpu_bytes": gpu}


def by_batches(model, examples, texts):
    prompts = [
        prefixes.question_prompt(encode(model.tokenizer, text), example.context, f"{example.lang} {example.id}")
        for example, text in zip(examples, texts)
    ]
    answers = [None] * len(prompts)
    for batch in generation.question_batches(prompts, None, generation.max_batch_tokens(model), MAX_NEW_TOKENS):
        generated = generation.generate(model, [prompts[i] for i in batch], "paper", MAX_NEW_TOKENS)
        for i, one in zip(batch, generated):
            answers[i] = generation.first_line(one.text)
    return answers


def one_at_a_time(model, examples, texts):
    torch.manual_seed(0)
    write = pipeline("text-generation", model=model.causal_lm, tokenizer=model.tokenizer)
    settings = dict(do_sample=True, temperature=generation.TEMPERATURE, top_k=generation.TOP_K, top_p=generation.TOP_P)
    answers = []
    for text in texts:
        (generated,) = write(text, return_full_text=False, max_new_tokens=MAX_NEW_TOKENS, **settings)
        answers.append(generation.first_line(generated["generated_text"]))
    return answers


if __name__ == "__main__":
    main()
