"""Fits a lens that can read early layers: tuned, or Jacobian. probe_logit_lens.py --lens reads with it.

    python fit_lens.py --model gemma-3-270m --lens tuned --langs en hi or ru de zh --corpus sample_parallel
    python fit_lens.py --model bigscience/bloomz-560m --lens jacobian --langs en hi

The plain logit lens takes the last layer's coordinates for every layer's. A tuned lens (Belrose et al. 2023) learns an
affine map a layer that brings what is read closest to what the last layer says; a Jacobian lens (Gurnee et al. 2026)
is how the last layer moves with each one, on average over texts. Writes, in a folder under results/, lens.safetensors,
config.json, held_out.csv (KL of the last layer from the lens, beside the plain one), loss.png and metrics.json.
A fit that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils import command_line
from utils.command_line import DTYPES, LENSES, not_negative, positive
from utils.data.corpora import CORPORA, named_corpus
from utils.data.examples import DEFAULT_LANGS
from utils.languages import language_code, short_code
from utils.runs import HELD_OUT_LOSS, RunDirectory, configuration, default_output_dir, write_table

if TYPE_CHECKING:
    import pandas as pd

    from utils.models.families import LensModel

# Texts of a fit that names no number.
TEXTS = {"tuned": 512, "jacobian": 25}


def main(argv: Sequence[str] | None = None) -> int:
    return command_line.run(fit, parse_args(argv))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lens", required=True, choices=LENSES)
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="bigscience/bloomz-560m", help="a hub id, a folder, a .gguf, gemma-3-270m")
    model.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT adapter's folder")
    model.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help="auto: float32 on a CPU")
    model.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    data = parser.add_argument_group("texts")
    data.add_argument("--langs", nargs="+", metavar="LANG", help=f"default: {' '.join(DEFAULT_LANGS)}")
    data.add_argument(
        "--corpus", default="flores200", metavar="DIR|" + "|".join(CORPORA), help="sentences, one file a language"
    )
    data.add_argument("--tokens", type=positive, default=64, metavar="N", help="tokens of a text (default: 64)")
    data.add_argument(
        "--limit", type=positive, metavar="N", help="at most so many texts, all languages together; default: 512, or 25"
    )
    data.add_argument("--held_out", type=positive, default=40, metavar="N", help="at most so many texts for the loss")
    tuned = parser.add_argument_group("tuned")
    tuned.add_argument("--steps", type=not_negative, default=120, metavar="N", help="of descent, after least squares")
    parser.add_argument("--seed", type=int, default=42, help="of positions and of each step's part of the vocabulary")
    parser.add_argument("--output_dir", type=Path, metavar="D")
    parser.add_argument("--overwrite", action="store_true", help="remove the run that --output_dir holds")
    return parser.parse_args(argv)


def fit(args: argparse.Namespace) -> None:
    from utils.figures.lenses import draw_fit
    from utils.lens.fitting import CHECKPOINTS, held_out_loss, texts_of
    from utils.models.loading import load_model

    resolve_defaults(args)
    sentences = named_corpus(args.corpus, args.langs)
    model = load_model(args.model, args.adapter, args.dtype, args.device)
    require_tokens(args, model)
    texts, held_out = texts_of(model, sentences, args.tokens, args.limit, args.held_out)
    run = RunDirectory(output_dir(args), describe(args, model), args.overwrite)
    if not run.finished:
        started = time.perf_counter()
        lens = fitted(args, run, model, texts)
        lens.save(run.path)
        write_table(run.path / HELD_OUT_LOSS, held_out_loss(model, held_out, lens.to(model.device), args.seed))
        draw_fit(run.path)
        counts = {lang: sum(of == lang for of, _ in texts) for lang in args.langs}
        run.finish({"texts": counts, "held_out_texts": len(held_out), "seconds": time.perf_counter() - started})
    shutil.rmtree(run.path / CHECKPOINTS, ignore_errors=True)  # only a finished run can do without them
    report(run)


def resolve_defaults(args: argparse.Namespace) -> None:
    args.langs = [language_code(lang) for lang in args.langs or DEFAULT_LANGS]
    if repeated := sorted({lang for lang in args.langs if args.langs.count(lang) > 1}):
        raise ValueError(f"language given twice: {', '.join(repeated)}")
    args.limit = args.limit or TEXTS[args.lens]


def require_tokens(args: argparse.Namespace, model: LensModel) -> None:
    from utils.lens.jacobian import SKIPPED

    least = SKIPPED + 2 if args.lens == "jacobian" else 2
    if args.tokens < least:
        raise ValueError(f"--tokens {args.tokens}: a {args.lens} lens needs texts of at least {least}")
    if model.max_positions and args.tokens > model.max_positions:
        raise ValueError(f"--tokens {args.tokens}: the model reads at most {model.max_positions}")


def output_dir(args: argparse.Namespace) -> Path:
    parts = [Path(args.model).name, args.lens, "-".join(map(short_code, args.langs[:8]))]
    return args.output_dir or default_output_dir("lens", args, *parts)


def describe(args: argparse.Namespace, model: LensModel) -> dict:
    """The run's configuration: the arguments, and what they only name."""
    from utils.data.corpora import corpus_files
    from utils.lens.lenses import fitted_for
    from utils.models.loading import provenance
    from utils.runs import sha256_of_file

    inputs = {
        "data_sha256": {path.name: sha256_of_file(path) for path in corpus_files(args.corpus, args.langs).values()},
        **provenance(model, args.adapter),
        "fitted_for": fitted_for(model, args.model, args.adapter),
    }
    return configuration("fit_lens.py", args, inputs)


def fitted(args: argparse.Namespace, run: RunDirectory, model: LensModel, texts: list):
    import pandas as pd

    from utils.lens.fitting import fit_jacobian, fit_tuned

    if args.lens == "jacobian":
        return fit_jacobian(run.path, model, texts)
    lens, losses = fit_tuned(run.path, model, texts, args.steps, args.seed)
    write_table(run.path / "steps.csv", pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses}))
    return lens


def report(run: RunDirectory) -> None:
    """The loss on held-out text by layer, over all languages, and where the lens is."""
    import pandas as pd

    print(by_layer(pd.read_csv(run.path / HELD_OUT_LOSS)).to_string(float_format="{:.2f}".format))
    print("KL of the last layer from what the lens reads, bits a token, on held-out text")
    print(f"lens: {run.path}")
    print(f"figure: {run.path / 'loss.png'}")


def by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """layer -> logit, lens: means over all positions of all languages."""
    weighted = table.assign(logit=table["kl_logit"] * table["n"], lens=table["kl_lens"] * table["n"])
    sums = weighted.groupby("layer")[["logit", "lens", "n"]].sum()
    return sums[["logit", "lens"]].div(sums["n"], axis=0)


if __name__ == "__main__":
    sys.exit(main())
