"""What does the lens cost, beside a plain forward pass of the same prompts without the head?

    python benchmarks/probe_cost.py --model gemma-3-270m --dataset sample_qa --langs en hi or ru de zh

Alternates, batch by batch, between the decoder alone over every prompt whole and the probe's own step (hidden states,
where a context is read once; head at every layer, languages, entropies, sums), so that both see the same machine.
--every N takes each Nth context with all its questions. Prints seconds, where they go, their ratio, how far shares of
the mass are from unshared ones, and the peak memory of the probe above the loaded model (Linux: the resident set's
high-water mark, reset after loading).
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from utils.data.examples import DATASETS_DIR, load_examples
from utils.data.prompts import render
from utils.lens import reading
from utils.models.arithmetic import quick_maps
from utils.models.hidden_states import MAX_BATCH_TOKENS, batches, hidden_states, last_position, pad
from utils.models.loading import load_model, load_tokenizer
from utils.models.prefixes import context_batches, shared_hidden_states
from utils.token_languages.matrix import TokenLanguages, default_folder


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--dataset", default="sample_qa")
    parser.add_argument("--datasets_dir", type=Path, default=DATASETS_DIR)
    parser.add_argument("--langs", nargs="+", default=["en", "hi", "or", "ru", "de", "zh"])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--every", type=int, default=1, metavar="N")
    args = parser.parse_args(argv)

    tokenizer = load_tokenizer(args.model)
    folder = default_folder(args.model, tokenizer, "corpus")
    TokenLanguages.load_or_build(folder, tokenizer, "corpus", None, args.model)
    model = load_model(args.model)
    sum(
        float(weight.detach().sum()) for weight in model.causal_lm.parameters()
    )  # weights count once they have been read
    loaded = reset_peak_memory()
    matrix = torch.from_numpy(TokenLanguages.load(folder, tokenizer).probs[: model.n_tokens].toarray())
    examples = load_examples(args.dataset, args.langs, "test", args.limit, datasets_dir=args.datasets_dir)
    contexts = {context: i for i, context in enumerate(dict.fromkeys(example.context for example in examples))}
    examples = [example for example in examples if contexts[example.context] % args.every == 0]
    prompts = [last_position(model, render(example), example.context) for example in examples]
    max_tokens = MAX_BATCH_TOKENS["cpu"]
    parts = context_batches(prompts, None, max_tokens)
    plain_pass(model, [prompts[i] for i in parts[-1]])  # the first pass of a process pays for its threads
    plain = states = rest = 0.0
    furthest = 0.0
    for batch in parts:
        chosen = [prompts[i] for i in batch]
        for whole in batches(chosen, None, max_tokens):
            plain += seconds(plain_pass, model, [chosen[i] for i in whole])[0]
        took, shared = seconds(quick_states, model, chosen, max_tokens)
        states += took
        rest += seconds(reading.read, model, chosen, shared, matrix)[0]
        if batch in (parts[0], parts[-1]):
            furthest = max(furthest, largest_difference(model, chosen[:1], shared[:1]))
    tokens = sum(len(prompt.ids) for prompt in prompts)
    print(f"{len(prompts)} prompts of {len(set(e.context for e in examples))} contexts, {len(parts)} batches", end=", ")
    print(f"{tokens / len(prompts):.0f} tokens a prompt")
    print(
        f"plain forward pass {plain:.2f} s, probe {states + rest:.2f} s ({states:.2f} hidden states, {rest:.2f} head)"
    )
    print(f"ratio {(states + rest) / plain:.3f}; largest difference of a probability from unshared: {furthest:.1e}")
    figures = {"ratio": (states + rest) / plain, "states": states / plain, "head": rest / plain, "differs": furthest}
    if loaded is not None:
        figures["peak_mib"] = (peak_memory() - loaded) / 2**20
        print(f"peak memory above the loaded model: {figures['peak_mib']:.0f} MiB")
    print(json.dumps(figures))


def seconds(step, *args):
    """(how long it took, what it returned)."""
    started = time.perf_counter()
    result = step(*args)
    return time.perf_counter() - started, result


def plain_pass(model, prompts):
    ids, mask = pad([prompt.ids for prompt in prompts], model.device)
    with torch.inference_mode():
        model.decoder(input_ids=ids, attention_mask=mask, use_cache=False)


def quick_states(model, prompts, max_tokens):
    with quick_maps(model):
        return shared_hidden_states(model, prompts, max_tokens)


@torch.inference_mode()
def largest_difference(model, prompts, states):
    return float(
        (reading.vocab_probs(model, states) - reading.vocab_probs(model, hidden_states(model, prompts))).abs().max()
    )


def reset_peak_memory():
    """Bytes resident now, with the high-water mark set to it; None where the system can't say."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return peak_memory()
    except OSError:
        return None


def peak_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
