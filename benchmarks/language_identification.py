"""How much of known text do shares recover, on sentences that it has not seen?

    python benchmarks/language_identification.py --corpus datasets/flores200/dev --model gemma-3-270m

Cuts the corpus (one file a language, parallel lines) into contiguous folds; for each, builds the matrix from
the other folds' word counts and from their full text, and evaluates it on the fold. Neighbouring sentences come
from one article, so contiguous folds keep an article on one side. Prints recovery, accuracy and seconds, fold by fold.
The more folds, the nearer each matrix is to one of the whole corpus: --n_folds 50 --folds 0 10 20 30 40 takes 5 of 50.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd

from utils.data.corpora import read_corpus, write_word_counts
from utils.models.loading import load_tokenizer
from utils.token_languages.evaluation import evaluate
from utils.token_languages.matrix import TokenLanguages


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with one file a language")
    parser.add_argument("--model", default="gemma-3-270m", help="whose tokenizer")
    parser.add_argument("--n_folds", type=int, default=5)
    parser.add_argument("--folds", type=int, nargs="+", help="these of them alone, from 0; default: all")
    parser.add_argument("--langid", action="store_true", help="the paper's method too, on the first fold")
    args = parser.parse_args(argv)

    tokenizer = load_tokenizer(args.model)
    corpus = read_corpus(args.corpus)
    rows = []
    for fold in args.folds or range(args.n_folds):
        seen, unseen = split(corpus, fold, args.n_folds)
        with tempfile.TemporaryDirectory() as folder:
            sources = {"word counts": Path(folder) / "word_counts.tsv.gz", "full text": Path(folder) / "text"}
            write_word_counts(sources["word counts"], seen)
            write_corpus(sources["full text"], seen)
            for source, path in sources.items():
                rows.append(measure(tokenizer, source, fold, unseen, method="corpus", corpus=path))
        if args.langid and not any(row["source"] == "langid" for row in rows):
            rows.append(measure(tokenizer, "langid", fold, unseen, method="langid"))
        print(pd.DataFrame(rows).query("fold == @fold").to_string(index=False, float_format="%.4f"), flush=True)
    print(pd.DataFrame(rows).groupby("source").mean(numeric_only=True).drop(columns="fold").to_string())


def split(corpus, fold, n_folds):
    """(languages -> sentences outside the fold, languages -> sentences in it)."""
    seen, unseen = {}, {}
    for code, sentences in corpus.items():
        start, end = (len(sentences) * k // n_folds for k in (fold, fold + 1))
        seen[code], unseen[code] = sentences[:start] + sentences[end:], sentences[start:end]
    return seen, unseen


def write_corpus(folder, corpus):
    folder.mkdir()
    for code, sentences in corpus.items():
        (folder / f"{code}.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8", newline="\n")


def measure(tokenizer, source, fold, unseen, **build):
    started = time.perf_counter()
    matrix = TokenLanguages.build(tokenizer, **build)
    seconds = time.perf_counter() - started
    quality = evaluate(matrix, tokenizer, unseen)
    return {
        "source": source,
        "fold": fold,
        "accuracy": quality["accuracy"],
        "share_of_true": quality["share_of_true_language"]["mean"],
        "tenth_percentile": quality["share_of_true_language"]["tenth_percentile"],
        "mixture_error": quality["mixture_error"],
        "entries_per_row": matrix.probs.nnz / matrix.probs.shape[0],
        "build_seconds": seconds,
    }


if __name__ == "__main__":
    main()
