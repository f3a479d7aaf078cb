"""Which languages does each token of a model's vocabulary belong to? Makes the token x language matrix.

    python logit_lens_tokenid_to_lang.py --model bigscience/bloomz-560m
    python logit_lens_tokenid_to_lang.py --model gemma-3-270m --method langid

The matrix is a folder under results/token_languages/ with probs.npz (SciPy CSR, [vocab, channel], float32, rows
sum to 1), channels.json (language codes, then special, byte, zxx, und) and config.json. probe_logit_lens.py reads
it. --evaluate DIR, a folder of sentences with one file a language, tells how good a language identifier it is:

    python get_datasets.py flores200
    python logit_lens_tokenid_to_lang.py --model bigscience/bloomz-560m --evaluate datasets/flores200/devtest
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils import command_line
from utils.command_line import METHODS
from utils.data.corpora import corpus_checksum, read_corpus
from utils.languages import NOT_LANGUAGES, language_name
from utils.runs import write_json

if TYPE_CHECKING:
    from utils.token_languages.matrix import TokenLanguages


def main(argv: Sequence[str] | None = None) -> int:
    return command_line.run(make_matrix, parse_args(argv))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bigscience/bloomz-560m", help="a hub id, a folder, a .gguf, gemma-3-270m")
    parser.add_argument(
        "--method",
        default="corpus",
        choices=METHODS,
        help="langid is the paper's, langid-hard that of its published curves",
    )
    parser.add_argument(
        "--corpus", type=Path, metavar="DIR|FILE", help="one file a language, or a word-count table (the default's)"
    )
    parser.add_argument("--output_dir", type=Path, metavar="D")
    parser.add_argument("--evaluate", type=Path, metavar="DIR", help="sentences to identify, one file a language")
    return parser.parse_args(argv)


def make_matrix(args: argparse.Namespace) -> None:
    from utils.models.loading import load_tokenizer
    from utils.token_languages.evaluation import evaluate
    from utils.token_languages.matrix import TokenLanguages, default_folder

    sentences = read_corpus(args.evaluate) if args.evaluate else None
    tokenizer = load_tokenizer(args.model)
    folder = args.output_dir or default_folder(args.model, tokenizer, args.method, args.corpus)
    started = time.perf_counter()
    matrix = TokenLanguages.load_or_build(folder, tokenizer, args.method, args.corpus, args.model)
    print(f"{folder}: {matrix.probs.shape[0]:,} tokens x {len(matrix.channels)} channels", end=" ")
    print(f"({matrix.n_languages} languages), {time.perf_counter() - started:.1f} s")
    print_channels(matrix)
    if sentences:
        quality = evaluate(matrix, tokenizer, sentences)
        quality |= {"sentences": args.evaluate.name, "sentences_sha256": corpus_checksum(args.evaluate)}
        write_json(folder / "evaluation.json", quality)
        print_quality(quality, folder / "evaluation.json")


def print_channels(matrix: TokenLanguages) -> None:
    share = matrix.floor
    languages = sorted(range(matrix.n_languages), key=lambda i: -share[i])[:8]
    others = [matrix.channels.index(channel) for channel in NOT_LANGUAGES]
    print("share of the vocabulary:", ", ".join(f"{matrix.channels[i]} {share[i]:.1%}" for i in languages), end="; ")
    print(", ".join(f"{matrix.channels[i]} {share[i]:.1%}" for i in others))


def print_quality(quality: dict, path: Path) -> None:
    shares, error = quality["share_of_true_language"], quality["mixture_error"]
    print(f"on {quality['sentences']} ({quality['n_sentences']:,} sentences, {quality['n_languages']} languages):")
    print(
        f"share of the true language {shares['mean']:.3f}, tenth percentile {shares['tenth_percentile']:.3f}; mixture "
        f"error {'-' if error is None else f'{error:.3f}'}; single sentences right {quality['accuracy']:.4f}"
    )
    if alone := shares["of_tokens_not_in_the_corpus"]:
        print(f"of tokens that are not in the corpus, alone: share of the true language {alone['mean']:.3f}")
    if quality["languages_without_a_channel"]:
        print(f"languages without a channel: {', '.join(quality['languages_without_a_channel'])}")
    print("worst confusions:")
    for row in quality["worst_confusions"]:
        print(f"  {row['share']:.2f} of {language_name(row['language'])} reads as {language_name(row['read_as'])}")
    print(f"per language and per script: {path}")


if __name__ == "__main__":
    sys.exit(main())
