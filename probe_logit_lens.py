"""Which languages does each layer of a model speak? The multilingual logit lens.

    python probe_logit_lens.py --model bigscience/bloomz-560m
    python probe_logit_lens.py --model gemma-3-270m --dataset xquad_in --langs en hi or --limit 100
    python probe_logit_lens.py --model gemma-3-270m --text "Die Hauptstadt von Frankreich ist"

For each prompt and layer, the hidden state goes through the final norm and the unembedding. The shares of a layer
are the mixture of languages that explains this distribution over the vocabulary best. Writes, in a folder under
results/, language_probs.csv, groups.csv, layers.csv, top_tokens.csv, per_prompt.npy and influence.npy with
prompts.csv, grid.npz with grid.json (of --grid), metrics.json, figures/ and page.html, which any browser opens.
A run that was stopped goes on with the same command. `accelerate launch --num_processes N probe_logit_lens.py ...`
divides the contexts over N processes (on a CPU with --multi_gpu, or torchrun --nproc_per_node N).
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from utils import command_line
from utils.answers.predictions import OUTCOMES, outcome, right_answers_of
from utils.command_line import (
    DEVICE_MAPS,
    DTYPES,
    METHODS,
    QUANTIZATIONS,
    batch_size,
    not_negative,
    positive,
    seed,
)
from utils.data.examples import (
    DATASETS,
    DEFAULT_LANGS,
    OWN_TEXTS,
    ParallelSet,
    data_files,
    default_split,
    load_examples,
    own_texts,
)
from utils.data.prompts import QA_TEMPLATES, render, render_answered
from utils.languages import language_code, language_name, short_code
from utils.lens.probe_runs import FEWEST_TOKENS, PAGE, ProbeRun
from utils.processes import imports
from utils.runs import RunDirectory, configuration, default_output_dir, sha256_of_file

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from utils.lens.grid import Cells
    from utils.lens.lenses import Lens
    from utils.models.families import LensModel
    from utils.models.hidden_states import Prompt
    from utils.models.processes import Processes
    from utils.token_languages.matrix import TokenLanguages

    Prompts = dict[str, list[tuple[Any, Prompt]]]  # language -> its examples and their prompts

# The table on the screen leaves out what is less than this above its null.
LEAST_SHOWN = 0.03
# Prompts of the first batch that are read for the self-check.
SELF_CHECKED = 6
# From so many prompts on, weights are laid out for them, which takes as long as ten.
MANY_PROMPTS = 100
# What --text takes the place of.
OF_DATA_SETS = "dataset split langs limit shuffle subset base_predictions tuned_predictions".split()


def main(argv: Sequence[str] | None = None) -> int:
    return command_line.run(probe, parse_args(argv))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="bigscience/bloomz-560m", help="a hub id, a folder, a .gguf, gemma-3-270m")
    model.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT adapter's folder")
    model.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help="auto: float32 on a CPU")
    model.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    model.add_argument("--device_map", default="none", choices=DEVICE_MAPS, help="auto: over all devices at hand")
    model.add_argument("--quantization", default="none", choices=QUANTIZATIONS, help="on a GPU")
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", choices=DATASETS, help="default: sample_qa")
    data.add_argument("--split", help="test where the set has one")
    data.add_argument("--langs", nargs="+", metavar="LANG", help=f"default: {' '.join(DEFAULT_LANGS)}")
    data.add_argument("--source_lang", default="en", metavar="LANG", help="the other side of a parallel set")
    data.add_argument("--limit", type=positive, metavar="N", help="at most so many prompts a language")
    data.add_argument(
        "--shuffle", action="store_true", help="in an order drawn by --seed, as the paper's; then --limit"
    )
    data.add_argument("--prompt", default="plain", choices=QA_TEMPLATES)
    data.add_argument("--max_tokens", type=positive, metavar="N", help="skip longer prompts (the model's context too)")
    data.add_argument(
        "--text", action="append", metavar="TEXT", help="a prompt of your own, as it is, in place of a data set; again"
    )
    outcomes = parser.add_argument_group("questions by two models' answers", "predictions.jsonl of QAinference.py")
    outcomes.add_argument("--subset", choices=OUTCOMES, help="only the questions with this outcome, by exact match")
    outcomes.add_argument("--base_predictions", type=Path, metavar="FILE")
    outcomes.add_argument("--tuned_predictions", type=Path, metavar="FILE")
    probe = parser.add_argument_group("probe")
    probe.add_argument(
        "--position",
        default="last",
        choices=("last", "answer"),
        help="answer: one position before each token of the answer, the first of them the prompt's last",
    )
    probe.add_argument(
        "--token_languages", default="corpus", metavar="DIR|" + "|".join(METHODS), help="a matrix, or how to make it"
    )
    probe.add_argument("--lens", type=Path, metavar="D", help="a lens of fit_lens.py; default: the plain logit lens")
    probe.add_argument(
        "--lens_of_base",
        action="store_true",
        help="--lens was fitted for other weights, as the model's without adapter",
    )
    probe.add_argument("--batch_size", type=batch_size, default="auto", metavar="auto|N")
    probe.add_argument("--top_k", type=positive, default=10, metavar="N", help="rows a layer in top_tokens.csv")
    probe.add_argument(
        "--grid", type=not_negative, default=3, metavar="N", help="every position of a language's first N prompts"
    )
    probe.add_argument("--seed", type=seed, default=42, help="of --shuffle and of the null prompts")
    parser.add_argument("--output_dir", type=Path, metavar="D")
    parser.add_argument("--overwrite", action="store_true", help="remove the run that --output_dir holds")
    return parser.parse_args(argv)


def probe(args: argparse.Namespace) -> None:
    with imports():
        from utils.lens.lenses import load_lens
        from utils.lens.records import LanguageRecord
        from utils.models.loading import load_model
        from utils.models.processes import processes
        from utils.token_languages.matrix import named_matrix

    with processes() as together:
        resolve_defaults(args)
        examples = examples_in_order(args)
        outcomes: dict[tuple[str, str], str] = {}
        if args.subset or args.base_predictions or args.tuned_predictions:
            outcomes = outcomes_of(args, examples)
            examples = of_subset(args, examples, outcomes)
        texts = [render(example, args.prompt) for example in examples]
        model = load_model(args.model, args.adapter, args.dtype, args.device, args.quantization, args.device_map)
        lens = load_lens(args.lens, model, args.adapter, args.lens_of_base)
        with together.main_first("matrix"):
            token_languages = named_matrix(args.token_languages, model.tokenizer, args.model)
        prompts, skipped = positions_of(args, model, examples, texts)
        settings = describe(args, model, token_languages, lens)
        with together.main_first("folder"):
            run = RunDirectory(output_dir(args), settings, args.overwrite and together.main, lock=together.main)
        finished = run.finished
        if not finished:
            checks = read_all(args, run, model, token_languages, lens, prompts, together)
        if not together.main:
            return
        if not finished:
            null = null_of(args, run, model, token_languages, lens, prompts)
            grids = grids_of(args, run, model, token_languages, lens, prompts)
            finish(args, run, model, token_languages, prompts, null, skipped, checks, grids, outcomes)
        LanguageRecord.remove_all(run.path)  # only a finished run can do without them
        report(run, args.langs)


def resolve_defaults(args: argparse.Namespace) -> None:
    """Languages as FLORES codes; what the data set decides where the user has not."""
    args.source_lang = language_code(args.source_lang)
    if args.text:
        if given := [f"--{name}" for name in OF_DATA_SETS if getattr(args, name)]:
            raise ValueError(f"--text takes the place of a data set: leave {', '.join(given)} out")
        if args.position == "answer" or args.prompt != "plain":
            raise ValueError("--text is read as it is, at its last token: leave --position answer and --prompt out")
        args.dataset, args.langs = OWN_TEXTS, [example.lang for example in own_texts(args.text)]
        return
    args.dataset = args.dataset or "sample_qa"
    parallel = isinstance(DATASETS[args.dataset], ParallelSet)
    if args.langs is None:
        args.langs = [lang for lang in DEFAULT_LANGS if not parallel or language_code(lang) != args.source_lang]
    args.langs = [language_code(lang) for lang in args.langs]
    args.split = default_split(args.dataset) if args.split is None else args.split


def examples_in_order(args: argparse.Namespace) -> list[Any]:
    """At most --limit a language: the first ones, or the first ones of a shuffled file."""
    if args.text:
        return own_texts(args.text)
    if not args.shuffle:
        return load_examples(args.dataset, args.langs, args.split, args.limit, args.source_lang)
    chosen = []
    for lang in args.langs:
        examples = load_examples(args.dataset, [lang], args.split, None, args.source_lang)
        random.Random(args.seed).shuffle(examples)
        chosen += examples[: args.limit]
    return chosen


def outcomes_of(args: argparse.Namespace, examples: list[Any]) -> dict[tuple[str, str], str]:
    """(language, id) -> what became of the question from one model's answers to the other's."""
    if not (args.base_predictions and args.tuned_predictions):
        raise ValueError("--subset needs --base_predictions and --tuned_predictions, and each of these the other")
    files = (args.base_predictions, args.tuned_predictions)
    rights = [right_answers_of(path, examples) for path in files]
    return {(e.lang, e.id): outcome(*(right[e.lang, e.id] for right in rights)) for e in examples}


def of_subset(args: argparse.Namespace, examples: list[Any], outcomes: dict[tuple[str, str], str]) -> list[Any]:
    """The questions that have --subset's outcome; languages without any are left out. Without --subset, all."""
    if not args.subset:
        return examples
    chosen = [example for example in examples if outcomes[example.lang, example.id] == args.subset]
    with_questions = {example.lang for example in chosen}
    if not chosen:
        raise ValueError(f"--subset {args.subset}: none of the {len(examples)} questions")
    if without := [lang for lang in args.langs if lang not in with_questions]:
        print(f"no question is {args.subset} in {', '.join(without)}")
    args.langs = [lang for lang in args.langs if lang in with_questions]
    return chosen


def output_dir(args: argparse.Namespace) -> Path:
    parts = [Path(args.model).name, args.dataset, args.split, "-".join(map(short_code, args.langs[:6]))]
    return args.output_dir or default_output_dir("probe", args, *filter(None, parts))


def describe(args: argparse.Namespace, model: LensModel, token_languages: TokenLanguages, lens: Lens) -> dict:
    """The run's configuration: the arguments, and what they only name."""
    from utils.models.hidden_states import MAX_BATCH_TOKENS
    from utils.models.loading import provenance

    files = [] if args.text else data_files(args.dataset, args.langs, args.split, args.source_lang)
    inputs = {
        "data_sha256": {path.name: sha256_of_file(path) for path in files},
        **{
            name: sha256_of_file(path)
            for name in ("base_predictions", "tuned_predictions")
            if (path := getattr(args, name))
        },
        **provenance(model, args.adapter),
        "max_batch_tokens": MAX_BATCH_TOKENS.get(model.device.type, MAX_BATCH_TOKENS["cpu"]),
        "token_languages": token_languages.config,
        "lens": lens.about,
    }
    return configuration("probe_logit_lens.py", args, inputs)


def positions_of(
    args: argparse.Namespace, model: LensModel, examples: list[Any], texts: list[str]
) -> tuple[Prompts, list[dict]]:
    """(language -> [(example, prompt)], the rows of what is too long or has no answer to read)."""
    from utils.models.hidden_states import answer_positions, last_position

    limit = min(filter(None, (args.max_tokens, model.max_positions)), default=None)
    prompts: Prompts = {lang: [] for lang in args.langs}
    skipped = []
    for example, text in zip(tqdm(examples, desc="tokenizing", leave=False, disable=None), texts):
        if args.position == "answer" and getattr(example, "answers", None) == []:
            skipped.append({"prompt_lang": example.lang, "id": example.id, "reason": "no answer"})
            continue
        if args.position == "last":
            prompt = last_position(model, text, getattr(example, "context", ""))
        else:
            answered = render_answered(example, args.prompt)
            prompt = answer_positions(model, text, answered, getattr(example, "context", ""))
        if limit and len(prompt.ids) > limit:
            reason = f"{len(prompt.ids)} tokens, more than {limit}"
            skipped.append({"prompt_lang": example.lang, "id": example.id, "reason": reason})
        else:
            prompts[example.lang].append((example, prompt))
    empty = [lang for lang in args.langs if not prompts[lang]]
    if empty:
        raise ValueError(f"no prompt in {', '.join(empty)} can be read; the first: {skipped[0]['reason']}")
    return prompts, skipped


def read_all(
    args: argparse.Namespace,
    run: RunDirectory,
    model: LensModel,
    token_languages: TokenLanguages,
    lens: Lens,
    prompts: Prompts,
    together: Processes,
) -> dict[str, float]:
    """Read every prompt of every language into the run's records. Returns the self-check's distances."""
    import torch

    from utils.lens import reading
    from utils.lens.distributions import Vocabulary
    from utils.lens.records import LanguageRecord
    from utils.models.arithmetic import quick_maps
    from utils.models.mapped import FileMappings
    from utils.models.prefixes import can_share, context_batches, shared_hidden_states

    matrix = torch.from_numpy(token_languages.dense[: model.n_tokens]).to(model.device)  # [vocab, channel]
    max_tokens = run.configuration["inputs"]["max_batch_tokens"]
    size = None if args.batch_size == "auto" else args.batch_size
    asked = {lang: [prompt for _, prompt in of_lang] for lang, of_lang in prompts.items()}
    batches = {lang: context_batches(of_lang, size, max_tokens) for lang, of_lang in asked.items()}
    most = max(args.langs, key=lambda lang: len(asked[lang]))
    some = self_checked(asked[most], batches[most][0])
    shares = len(some) > 1 and can_share(model, some)
    checks = reading.self_check(model, some, max_tokens, shares, lens)
    with together.main_first("records"):
        if together.main:
            for lang in args.langs:
                LanguageRecord.merge(run.path, lang, len(batches[lang]))
        done = {lang: LanguageRecord.done(run.path, lang, len(batches[lang])) for lang in args.langs}
    mine = together.share([(lang, i) for lang in args.langs for i in range(len(batches[lang])) if not done[lang][0][i]])
    bar = tqdm(total=sum(map(len, asked.values())), desc="probing", unit="prompt", disable=together.no_bar)
    bar.update(sum(n for _, n in done.values()))
    # By all prompts, not by those left: a run that goes on computes as it would have, to the last bit.
    many = sum(map(len, asked.values())) >= MANY_PROMPTS
    vocabulary = (Vocabulary.laid_out if many else Vocabulary.of)(model, matrix)
    files = FileMappings.of_this_process() if many else FileMappings(())
    for lang in args.langs:
        of_process = [i for of_lang, i in mine if of_lang == lang]
        if not of_process:
            continue
        shape = (len(asked[lang]), len(model.layers) + 1, matrix.shape[1], model.n_tokens, len(batches[lang]))
        record = LanguageRecord.open(run.path, lang, *shape, rank=together.rank)
        for number in of_process:
            batch = batches[lang][number]
            chosen = [asked[lang][i] for i in batch]
            with quick_maps(model, files):
                states = lens(shared_hidden_states(model, chosen, max_tokens, shares))  # [position, layer, width]
            record.add(number, batch, reading.read(model, chosen, states, vocabulary))
            record.save_now_and_then()
            bar.update(len(batch))
        record.save()
        bar.set_postfix_str(language_name(lang))
    bar.close()
    together.wait("read")
    if together.main:
        for lang in args.langs:
            LanguageRecord.merge(run.path, lang, len(batches[lang]))
    return checks


def self_checked(prompts: list[Prompt], batch: list[int]) -> list[Prompt]:
    """What the self-check looks at: of a batch, some of the longest context and some of the shortest."""
    half = SELF_CHECKED // 2
    return [prompts[i] for i in (*batch[:half], *batch[half:][-half:])]


def null_of(
    args: argparse.Namespace,
    run: RunDirectory,
    model: LensModel,
    token_languages: TokenLanguages,
    lens: Lens,
    prompts: Prompts,
) -> np.ndarray:
    """What the same lens reads from random tokens, [layer, channel]; prompts of all languages' median length."""
    from utils.lens.null_prompts import null_length, null_shares

    inputs = run.configuration["inputs"]
    of_model = ("model_sha256", "model_type", "model_commit", "n_layers", "dtype", "device")
    known = (*of_model, "adapter_sha256", "adapter_config_sha256", "token_languages")
    identity = {"model": args.model, **{name: inputs[name] for name in known}}
    identity |= {"lens": lens.about} if lens.about else {}  # the plain lens's nulls are kept as they were
    length = null_length([prompt for of_lang in prompts.values() for _, prompt in of_lang])
    return null_shares(model, token_languages, identity, length, args.seed, inputs["max_batch_tokens"], lens)


def grids_of(
    args: argparse.Namespace,
    run: RunDirectory,
    model: LensModel,
    token_languages: TokenLanguages,
    lens: Lens,
    prompts: Prompts,
) -> dict[str, Cells]:
    """Every position of each language's first --grid prompts, read into the run's records."""
    from utils.lens.grid import read_grid

    grids = {}
    for lang, of_lang in prompts.items() if args.grid else ():
        first = [prompt for _, prompt in of_lang[: args.grid]]
        grids[lang] = read_grid(run.path, lang, first, model, token_languages, lens)
    return grids


def finish(
    args: argparse.Namespace,
    run: RunDirectory,
    model: LensModel,
    token_languages: TokenLanguages,
    prompts: Prompts,
    null: np.ndarray,
    skipped: list[dict],
    checks: dict[str, float],
    grids: dict[str, Cells],
    outcomes: dict[tuple[str, str], str],
) -> None:
    from utils.figures.page import write_page
    from utils.lens.records import write_grid, write_tables
    from utils.token_languages.pieces import Pieces

    pieces = Pieces(model.tokenizer)
    write_tables(run.path, prompts, token_languages, null, model.n_tokens, pieces, args.top_k)
    if grids:
        write_grid(run.path, grids, prompts, outcomes, token_languages, pieces, model.tokenizer)
    if not args.text:  # its answer is wanted at once: plot_figures.py draws them
        from utils.figures.layers import draw_probe_run

        draw_probe_run(run.path)
    write_page(run.path)
    counts = {lang: {"n": len(prompts[lang])} for lang in args.langs}
    for lang in args.langs:
        counts[lang]["skipped"] = sum(row["prompt_lang"] == lang for row in skipped)
    run.finish({"prompts": counts, "skipped": skipped, "self_check_total_variation": checks})


def report(run: RunDirectory, langs: list[str]) -> None:
    """What a person wants to know: the leading channels of each layer, what was skipped, where the rest is."""

    table = ProbeRun(run.path).table
    shown = leading_channels(table, langs)
    print(shown.to_string(line_width=shutil.get_terminal_size((200, 24)).columns))
    starred = shown.map(lambda cell: "*" in cell).any(axis=None)
    note = f"; *: rests on fewer than {FEWEST_TOKENS} tokens" if starred else ""
    print(f"shares of at least {LEAST_SHOWN:.0%} above what random tokens read{note}")
    metrics = run.read_metrics()
    counts = metrics["prompts"]
    print("prompts:", ", ".join(f"{short_code(lang)} {counts[lang]['n']}" for lang in langs), end="")
    print(f"; skipped: {len(metrics['skipped'])}" + (" (metrics.json says why)" if metrics["skipped"] else ""))
    if grid := ProbeRun(run.path).grid:
        n = sum(counts[lang]["n"] for lang in langs)
        print(
            f"grid: all positions of {len(grid.prompts)} prompts, {len(grid.shares):,} readings beside the {n:,} of "
            "the prompts (--grid 0 does without)"
        )
    figures = sorted((run.path / "figures").glob("*.png"), key=lambda path: (path.stem != "overview", path.name))
    print(f"tables: {run.path}")
    if figures:
        print("figures, each beside its PDF:")
    for path in figures:
        print(f"  {path}")
    print(f"page, for any browser: {run.path / PAGE}")


def leading_channels(table: pd.DataFrame, langs: list[str], most_rows: int = 13) -> pd.DataFrame:
    """Layer by prompt language: the two largest shares that are above their null, in per cent.

    A share that rests on fewer than FEWEST_TOKENS tokens has a star: it is a token, and no language.
    """
    import numpy as np
    import pandas as pd

    layers = sorted(table["layer"].unique())
    shown = sorted({int(layer) for layer in np.linspace(layers[0], layers[-1], min(most_rows, len(layers))).round()})
    cells = {}
    for lang in langs:
        of_lang = table[(table["prompt_lang"] == lang) & (table["share"] - table["null_share"] >= LEAST_SHOWN)]
        for layer in shown:
            top = of_lang[of_lang["layer"] == layer].nlargest(2, "share")
            pairs = [
                f"{short_code(c)} {share:.0%}{'*' if tokens < FEWEST_TOKENS else ''}"
                for c, share, tokens in zip(top["channel"], top["share"], top["tokens"])
            ]
            cells[layer, f"in {short_code(lang)}"] = "  ".join(pairs) or "-"
    table = pd.Series(cells).unstack()[[f"in {short_code(lang)}" for lang in langs]]
    return table.rename_axis("layer")


if __name__ == "__main__":
    sys.exit(main())
