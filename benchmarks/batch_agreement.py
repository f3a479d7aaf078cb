"""Do questions get the same answers alone, the usual way, and the quick way, many at once? Where not, was it a tie?

    python benchmarks/batch_agreement.py --model gemma-3-270m --dataset xquad_in --langs en hi or te --limit 50

Rounding differs between batches, and may choose between two tokens that are as good as equal. For every question
whose greedy tokens differ, prints the gap between the two tokens' logits where they part, read off a plain forward
pass of the prompt and all that was written before. Exit status 1 where a gap is larger than 1e-4: no tie.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from tqdm import tqdm

from utils.answers import generation
from utils.data.examples import DATASETS_DIR, load_examples
from utils.data.prompts import render
from utils.models import arithmetic, prefixes
from utils.models.hidden_states import encode, pad
from utils.models.loading import load_model

TIE = 1e-4


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--dataset", default="sample_qa")
    parser.add_argument("--datasets_dir", type=Path, default=DATASETS_DIR)
    parser.add_argument("--langs", nargs="+", default=["en", "hi", "or", "ru", "de", "zh"])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--at_once", type=int, default=generation.AT_ONCE)
    args = parser.parse_args(argv)

    model = load_model(args.model, dtype="float32")
    examples = load_examples(args.dataset, args.langs, "test", args.limit, datasets_dir=args.datasets_dir)
    prompts = [
        prefixes.question_prompt(encode(model.tokenizer, render(e)), e.context, f"{e.lang} {e.id}") for e in examples
    ]
    with arithmetic.quick(model) as way:
        together = generation.generate(model, prompts, way=way, at_once=args.at_once)
    alone = [generation.generate(model, [prompt])[0] for prompt in tqdm(prompts, desc="alone", disable=None)]
    differing = [i for i in range(len(prompts)) if together[i].ids != alone[i].ids]
    gaps = [gap(model, prompts[i].ids, together[i].ids, alone[i].ids) for i in differing]
    for i, size in zip(differing, gaps):
        print(f"{prompts[i].key}: logits of the two tokens differ by {size:.1e}")
    lines = [generation.first_line(generated.text) for generated in together]
    n_answers = sum(line != generation.first_line(generated.text) for line, generated in zip(lines, alone))
    print(f"{len(prompts)} questions: {len(differing)} with other tokens, {n_answers} with another answer")
    print(f"ties (within {TIE:g}): {sum(size <= TIE for size in gaps)} of {len(gaps)}")
    return int(any(size > TIE for size in gaps))


@torch.inference_mode()
def gap(model, prompt, one, other):
    """How far apart the logits of the first two different tokens are."""
    place = next(i for i, (a, b) in enumerate(zip(one, other)) if a != b)
    ids, mask = pad([[*prompt, *one[:place]]], model.device)
    states = model.decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, -1]
    logits = model.head(states)[0]
    return abs(float(logits[one[place]] - logits[other[place]]))


if __name__ == "__main__":
    sys.exit(main())
