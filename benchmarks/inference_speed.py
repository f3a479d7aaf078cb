"""How many questions a minute, beside a transformers pipeline and lm-evaluation-harness?

    python benchmarks/inference_speed.py --model gemma-3-270m --dataset xquad_in --langs en hi or te --limit 4
    pip install lm_eval==0.4.13
    python benchmarks/inference_speed.py --peer hflm --decoding greedy --dataset xquad_in --langs en hi or te --limit 4

Both sides answer the same questions, at most 100 new tokens each. The pipeline is called a question at a time, with
the paper's settings (a draw at temperature 0.1, top-k 50, top-p 0.95) or greedily; HFLM, the harness's Hugging Face
backend, in batches of 16, greedily, until a line ends. Each side is a process of its own that stays loaded; they take
turns, --rounds times. Loading is not counted, and for ours what is laid out anew once a run is printed apart. Prints
seconds, questions a minute, equal answers, the ratio of seconds (of all rounds, of each, and of processor time, which
other programs change less) and the peak memory of both: the resident set, and the GPU's allocation where there is one.
"""

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import pipeline

from utils.answers import generation
from utils.data.examples import DATASETS_DIR, load_examples
from utils.data.prompts import render
from utils.models import arithmetic, prefixes
from utils.models.hidden_states import encode
from utils.models.loading import load_model

MAX_NEW_TOKENS = 100
PEER_BATCH = 16


def main():
    args = parse_args()
    if args.side:
        serve(args)
        return
    if args.peer == "hflm":
        print(f"lm_eval {metadata.version('lm_eval')}")  # where it isn't installed, this is the error
    with Side("ours") as ours, Side(args.peer) as peer:
        rounds = [(ours.answer(), peer.answer()) for _ in range(args.rounds)]
    for name, results in (("this repository", [a for a, _ in rounds]), (args.peer, [b for _, b in rounds])):
        n_answers, seconds = len(results[0]["answers"]), [result["seconds"] for result in results]
        gpu = f", GPU {results[-1]['gpu_bytes'] / 2**30:.2f} GiB" if results[-1]["gpu_bytes"] else ""
        print(
            f"{name}: {n_answers} questions in {', '.join(f'{s:.1f}' for s in seconds)} s "
            f"({sum(result['busy'] for result in results):.1f} s of processor time), "
            f"{60 * n_answers * len(seconds) / sum(seconds):.1f} a minute, laid out in {results[0]['laid_out']:.1f} s, "
            f"peak memory {results[-1]['resident_bytes'] / 2**30:.2f} GiB{gpu}"
        )
    print(json.dumps(figures(rounds)))


def figures(rounds):
    """Of each side's results, round by round."""
    ours, peer = rounds[-1]

    def ratio(name):
        return round(sum(b[name] for _, b in rounds) / sum(a[name] for a, _ in rounds), 2)

    return {
        "ratio": ratio("seconds"),
        "of_rounds": [round(b["seconds"] / a["seconds"], 2) for a, b in rounds],
        "of_processor_time": ratio("busy"),
        "a_minute": round(60 * len(ours["answers"]) * len(rounds) / sum(a["seconds"] for a, _ in rounds), 1),
        "memory_ratio": round(ours["resident_bytes"] / peer["resident_bytes"], 2),
        "equal_answers": sum(a == b for a, b in zip(ours["answers"], peer["answers"])),
        "questions": len(ours["answers"]),
    }


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--dataset", default="sample_qa")
    parser.add_argument("--datasets_dir", type=Path, default=DATASETS_DIR)
    parser.add_argument("--langs", nargs="+", default=["en", "hi", "or", "ru", "de", "zh"])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--peer", default="pipeline", choices=("pipeline", "hflm"))
    parser.add_argument("--decoding", default="paper", choices=generation.DECODINGS)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--side", choices=("ours", "pipeline", "hflm"), help="one of them alone, a round for each line")
    args = parser.parse_args()
    if args.peer == "hflm" and args.decoding != "greedy":
        parser.error("--peer hflm: its draws are others; choose --decoding greedy")
    return args


class Side:
    """A process that answers all questions when it is asked to; within `with` it is loaded, and waits."""

    def __init__(self, name):
        command = [sys.executable, *sys.argv, "--side", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        self.said()  # else it would load while the other one is measured
        return self

    def __exit__(self, *exception):
        self.process.stdin.close()
        self.process.wait()

    def answer(self):
        print("answer", file=self.process.stdin, flush=True)
        return self.said()

    def said(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError("a side has ended; what it said stands above")


def serve(args):
    """A line of JSON when all is loaded, and one for each line that is read: seconds, answers, memory."""
    model = load_model(args.model, dtype="float32" if args.peer == "hflm" else "auto")
    examples = load_examples(args.dataset, args.langs, "test", args.limit, datasets_dir=args.datasets_dir)
    texts = [render(example) for example in examples]
    with contextlib.ExitStack() as stack:
        started = time.perf_counter()
        step = SIDES[args.side](stack, model, args.decoding)
        laid_out = time.perf_counter() - started
        step(examples[:1], texts[:1])  # the first pass of a process pays for its threads
        print(json.dumps({"laid_out": laid_out}), flush=True)
        for _ in sys.stdin:
            started, busy = time.perf_counter(), time.process_time()
            answers = step(examples, texts)
            seconds, busy = time.perf_counter() - started, time.process_time() - busy
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            gpu = torch.cuda.max_memory_allocated() if model.device.type == "cuda" else 0
            result = {"seconds": seconds, "busy": busy, "laid_out": laid_out, "answers": answers}
            print(json.dumps({**result, "resident_bytes": resident, "gpu_bytes": gpu}), flush=True)


def ours(stack, model, decoding):
    way = stack.enter_context(arithmetic.quick(model))

    def step(examples, texts):
        prompts = [
            prefixes.question_prompt(encode(model.tokenizer, text), example.context, f"{example.lang} {example.id}")
            for example, text in zip(examples, texts)
        ]
        answers = [None] * len(prompts)
        for batch, at_once in generation.batches_for(way, model, prompts, MAX_NEW_TOKENS):
            of_batch = [prompts[i] for i in batch]
            generated = generation.generate(model, of_batch, decoding, MAX_NEW_TOKENS, way=way, at_once=at_once)
            for i, one in zip(batch, generated):
                answers[i] = generation.first_line(one.text)
        return answers

    return step


def by_pipeline(stack, model, decoding):
    write = pipeline("text-generation", model=model.causal_lm, tokenizer=model.tokenizer)
    settings = {"do_sample": False}
    if decoding == "paper":
        settings = dict(
            do_sample=True, temperature=generation.TEMPERATURE, top_k=generation.TOP_K, top_p=generation.TOP_P
        )

    def step(examples, texts):
        torch.manual_seed(0)
        answers = []
        for text in texts:
            (generated,) = write(text, return_full_text=False, max_new_tokens=MAX_NEW_TOKENS, **settings)
            answers.append(generation.first_line(generated["generated_text"]))
        return answers

    return step


def by_harness(stack, model, decoding):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model.causal_lm, tokenizer=model.tokenizer, batch_size=PEER_BATCH)
    settings = {"until": ["\n"], "max_gen_toks": MAX_NEW_TOKENS, "do_sample": False}

    def step(examples, texts):
        assert harness.tok_encode(texts[0]) == encode(model.tokenizer, texts[0]), "the harness reads other tokens"
        requests = [Instance("generate_until", {}, (text, dict(settings)), i) for i, text in enumerate(texts)]
        return [generation.first_line(text) for text in harness.generate_until(requests, disable_tqdm=True)]

    return step


SIDES = {"ours": ours, "pipeline": by_pipeline, "hflm": by_harness}


if __name__ == "__main__":
    main()
