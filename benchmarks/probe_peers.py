"""The probe beside the paper's own way to read a lens, and beside itself in bfloat16.

    python benchmarks/probe_peers.py --model gemma-3-270m --dataset xquad_in --langs en --every 40

The paper's way: a prompt at a time, the head on every position of every layer, and of the last position the product
with each language's column of the matrix. It is computed for a few of the prompts (--slow), which take turns with the
probe's step on all of them; both sides' sums of P(language | token) are compared. In bfloat16 the same prompts are read
by the same step with the model's weights in that dtype: the shares of each layer's mean distribution beside those in
float32, the largest difference at each layer, and what reading costs.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from utils.data.examples import DATASETS_DIR, load_examples, of_every_nth_context
from utils.data.prompts import render
from utils.lens import reading
from utils.lens.distributions import Vocabulary
from utils.models.arithmetic import quick_maps
from utils.models.hidden_states import MAX_BATCH_TOKENS, last_position, pad
from utils.models.loading import load_model, load_tokenizer
from utils.models.mapped import FileMappings
from utils.models.prefixes import context_batches, shared_hidden_states
from utils.token_languages.matrix import TokenLanguages, default_folder
from utils.token_languages.shares import fit


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--dataset", default="sample_qa")
    parser.add_argument("--datasets_dir", type=Path, default=DATASETS_DIR)
    parser.add_argument("--langs", nargs="+", default=["en"])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each Nth context with all its questions")
    parser.add_argument("--slow", type=int, default=4, metavar="N", help="prompts that the paper's way reads")
    args = parser.parse_args(argv)

    tokenizer = load_tokenizer(args.model)
    folder = default_folder(args.model, tokenizer, "corpus")
    matrix = TokenLanguages.load_or_build(folder, tokenizer, "corpus", None, args.model)
    examples = load_examples(args.dataset, args.langs, "test", None, datasets_dir=args.datasets_dir)
    examples = of_every_nth_context(examples, args.every)
    texts = [(render(example), example.context) for example in examples]

    model = load_model(args.model, dtype="float32")
    figures, mean_probs = beside_the_paper(model, matrix, texts, args.slow)
    half = load_model(args.model, dtype="bfloat16")
    figures |= beside_bfloat16(half, matrix, texts, mean_probs, figures["probe_seconds"])
    print(json.dumps(figures))


def beside_the_paper(model, matrix, texts, n_slow):
    """(figures, the mean distribution of each layer, [layer, vocab])."""
    prompts = [last_position(model, *text) for text in texts]
    columns = torch.from_numpy(matrix.dense[: model.n_tokens])  # [vocab, channel]
    of_languages = columns.T.contiguous()
    paper_way(model, prompts[0], of_languages)  # the first pass of a process pays for its threads
    chosen = [prompts[i] for i in np.linspace(0, len(prompts) - 1, n_slow).astype(int)]
    paper, found = [], []
    for prompt in chosen[: n_slow // 2]:
        took, probs = timed(paper_way, model, prompt, of_languages)
        paper.append(took)
        found.append(probs)
    probe, language_probs, sums = probe_all(model, columns, prompts)
    paper_way(model, prompts[0], of_languages)  # the probe has given back the memory of the weights
    for prompt in chosen[n_slow // 2 :]:
        took, probs = timed(paper_way, model, prompt, of_languages)
        paper.append(took)
        found.append(probs)
    places = [prompts.index(prompt) for prompt in chosen]
    differs = max(float((language_probs[i] - probs).abs().max()) for i, probs in zip(places, found))
    n_tokens, of_slow = (np.mean([len(prompt.ids) for prompt in of]) for of in (prompts, chosen))
    # by tokens, of which the paper's way reads each one's head
    slow = [sum(one[i] for one in paper) / n_slow * n_tokens / of_slow for i in range(2)]
    quick = [seconds / len(prompts) for seconds in probe]
    print(f"{len(prompts)} prompts of {n_tokens:.0f} tokens; the paper's way on {n_slow} of {of_slow:.0f} tokens")
    ratio, of_processor = (slow[i] / quick[i] for i in range(2))
    print(f"a prompt takes the paper's way {slow[0]:.2f} s and the probe {quick[0]:.3f} s: {ratio:.0f} times, ", end="")
    print(f"of processor time {of_processor:.0f}; largest difference of a sum of P(language | token): {differs:.1e}")
    figures = {"paper_seconds": slow[0], "probe_seconds": quick[0], "ratio": ratio}
    figures |= {"of_processor_time": of_processor, "differs": differs}
    return figures, (sums.double() / len(prompts)).numpy()


def timed(step, *args):
    """(seconds and seconds of the processor, what it returned)."""
    began = np.array([time.perf_counter(), time.process_time()])
    result = step(*args)
    return [time.perf_counter(), time.process_time()] - began, result


@torch.inference_mode()
def paper_way(model, prompt, of_languages):
    """Sums of P(language | token) at each layer: [layer, channel]. of_languages: [channel, vocab]."""
    ids, mask = pad([prompt.ids], model.device)
    output = model.causal_lm(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    by_layer = []
    for layer, states in enumerate(output.hidden_states):
        last = layer == len(output.hidden_states) - 1  # that one comes normed
        logits = model.head(states[0] if last else model.final_norm(states[0]))  # [position, vocab]
        probs = torch.softmax(logits[..., : model.n_tokens].float(), dim=-1)[-1]
        by_layer.append(torch.stack([(probs * column).sum() for column in of_languages]))
    return torch.stack(by_layer)


def probe_all(model, columns, prompts):
    """((seconds, of the processor), sums of P(language | token) [prompt, layer, channel], sums of probabilities)."""
    parts = context_batches(prompts, None, MAX_BATCH_TOKENS["cpu"])
    vocabulary = Vocabulary.laid_out(model, columns)
    took, languages, sums = np.zeros(2), [None] * len(prompts), 0

    def step(chosen):
        with quick_maps(model, FileMappings.of_this_process()):
            states = shared_hidden_states(model, chosen, MAX_BATCH_TOKENS["cpu"])
        return reading.read(model, chosen, states, vocabulary)

    for batch in parts:
        seconds, found = timed(step, [prompts[i] for i in batch])
        took += seconds
        sums = sums + found.vocab_prob_sums
        for i, of_prompt in zip(batch, found.language_probs):
            languages[i] = of_prompt
    return took, languages, sums


def beside_bfloat16(model, matrix, texts, mean_probs, seconds):
    """The same prompts in bfloat16. mean_probs: in float32, [layer, vocab]; seconds: a prompt's then."""
    prompts = [last_position(model, *text) for text in texts]
    columns = torch.from_numpy(matrix.dense[: model.n_tokens])
    took, _, sums = probe_all(model, columns, prompts)
    half = (sums.double() / len(prompts)).numpy()
    rows = matrix.rows_to_fit[: model.n_tokens]
    shares = [fit(probs, rows) for probs in (mean_probs, half)]  # [layer, language] each
    apart = np.abs(shares[0] - shares[1])
    of_prompt = took[0] / len(prompts)
    print(f"in bfloat16 a prompt takes {of_prompt:.3f} s, {of_prompt / seconds:.2f} times float32's")
    print("layer  largest difference of a share  of language  in float32")
    for layer, of_layer in enumerate(apart):
        which = int(of_layer.argmax())
        print(f"{layer:5}  {of_layer.max():29.4f}  {matrix.languages[which]:11}  {shares[0][layer, which]:10.4f}")
    return {
        "bfloat16_seconds": of_prompt,
        "bfloat16_differs": float(apart.max()),
        "bfloat16_differs_by_layer": [round(float(of_layer.max()), 5) for of_layer in apart],
    }


if __name__ == "__main__":
    main()
