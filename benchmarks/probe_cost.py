"""What does the lens cost, beside a plain forward pass of the same prompts without the head?

    python benchmarks/probe_cost.py --model gemma-3-270m --dataset sample_qa --langs en hi or ru de zh

Alternates, batch by batch, between the decoder alone over every prompt whole and the probe's own step (hidden states,
where a context is read once; head at every layer, languages, entropies, sums), so that both see the same machine.
--every N takes each Nth context with all its questions. Prints seconds, where they go, their ratio, in time and in
processor time, how far probabilities are from unshared ones in the usual arithmetic, and the peak memory of the probe's
own steps above the loaded model (Linux: the resident set's high-water mark).
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from utils.data.examples import DATASETS_DIR, load_examples, of_every_nth_context
from utils.data.prompts import render
from utils.lens import reading
from utils.lens.distributions import Vocabulary
from utils.models.arithmetic import quick_maps
from utils.models.hidden_states import MAX_BATCH_TOKENS, batches, hidden_states, last_position, pad
from utils.models.loading import load_model, load_tokenizer
from utils.models.mapped import FileMappings
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
    read_weights(model.causal_lm)
    loaded = reset_peak_memory()
    matrix = torch.from_numpy(TokenLanguages.load(folder, tokenizer).probs[: model.n_tokens].toarray())
    examples = load_examples(args.dataset, args.langs, "test", args.limit, datasets_dir=args.datasets_dir)
    examples = of_every_nth_context(examples, args.every)
    prompts = [last_position(model, render(example), example.context) for example in examples]
    max_tokens = MAX_BATCH_TOKENS["cpu"]
    parts = context_batches(prompts, None, max_tokens)
    plain_pass(model, [prompts[i] for i in parts[-1]])  # the first pass of a process pays for its threads
    laid_out, vocabulary = spent(Vocabulary.laid_out, model, matrix)
    plain, states, head = ([0.0, 0.0] for _ in range(3))
    furthest, peak = 0.0, 0
    for batch in parts:
        chosen = [prompts[i] for i in batch]
        read_weights(model.layers)  # the probe has given back their memory
        for whole in batches(chosen, None, max_tokens):
            add(plain, spent(plain_pass, model, [chosen[i] for i in whole])[0])
        with quick_maps(model, FileMappings.of_this_process()):
            reset_peak_memory()
            took, shared = spent(shared_hidden_states, model, chosen, max_tokens)
        add(states, took)
        add(head, spent(reading.read, model, chosen, shared, vocabulary)[0])
        peak = max(peak, peak_memory()) if loaded is not None else 0
        if batch in (parts[0], parts[-1]):
            furthest = max(furthest, largest_difference(model, chosen[:1], shared[:1]))
    tokens = sum(len(prompt.ids) for prompt in prompts)
    print(f"{len(prompts)} prompts of {len(set(e.context for e in examples))} contexts, {len(parts)} batches", end=", ")
    print(f"{tokens / len(prompts):.0f} tokens a prompt")
    ratio, of_processor = ((states[i] + head[i]) / plain[i] for i in range(2))
    print(
        f"plain forward pass {plain[0]:.2f} s, probe {states[0] + head[0]:.2f} s ({states[0]:.2f} hidden states, "
        f"{head[0]:.2f} head); not counted: weights are laid out in {laid_out[0]:.1f} s once"
    )
    print(f"ratio {ratio:.3f}, of processor time {of_processor:.3f}", end="; ")
    print(f"largest difference of a probability from unshared: {furthest:.1e}")
    figures = {"ratio": ratio, "of_processor_time": of_processor, "states": states[1] / plain[1]}
    figures |= {"head": head[1] / plain[1], "differs": furthest, "laid_out_seconds": laid_out[0]}
    if loaded is not None:
        figures["peak_mib"] = (peak - loaded) / 2**20
        print(f"peak memory above the loaded model: {figures['peak_mib']:.0f} MiB")
    print(json.dumps(figures))


def spent(step, *args):
    """((seconds, seconds of the processor), what it returned)."""
    started, processor = time.perf_counter(), time.process_time()
    result = step(*args)
    return (time.perf_counter() - started, time.process_time() - processor), result


def add(total, took):
    for i, seconds in enumerate(took):
        total[i] += seconds


def read_weights(module):
    """Weights count once they have been read."""
    for weight in module.parameters():
        float(weight.detach().sum())


def plain_pass(model, prompts):
    ids, mask = pad([prompt.ids for prompt in prompts], model.device)
    with torch.inference_mode():
        model.decoder(input_ids=ids, attention_mask=mask, use_cache=False)


@torch.inference_mode()
def largest_difference(model, prompts, states):
    return float(
        (reading.by_pieces(model, states[0]) - reading.vocab_probs(model, hidden_states(model, prompts))[0]).abs().max()
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
