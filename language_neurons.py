"""Which neurons speak a language, what does forcing them do, and do languages share concepts?

    python get_datasets.py flores200
    python language_neurons.py find --model bigscience/bloom-560m --corpus flores200 dev --langs en hi or bn es zh
    python language_neurons.py steer --neurons results/RUN --to es --top 100 1000
    python language_neurons.py layers --model gemma-3-270m
    python language_neurons.py concepts --model gemma-3-270m

find: how well each neuron of the MLPs tells the sentences of a language from their translations. steer: the most
expert neurons of a language are forced, and what comes of it is measured beside random neurons and beside taking each
language's mean away. layers: how well a linear probe tells the language of a token's state. concepts: which neurons are
expert for a concept, what languages share of them, and whether the middle of the model holds its English name. Each
command writes tables, figures and metrics.json in a folder under results/; docs/neurons.md says what is in them. A run
that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from utils import command_line
from utils.command_line import DTYPES, METHODS, not_negative, positive, seed
from utils.data.examples import DEFAULT_LANGS
from utils.languages import language_code, short_code
from utils.runs import CONFIG, METRICS, RunDirectory, configuration, default_output_dir, sha256_of_file, write_table

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from utils.models.families import LensModel
    from utils.models.hidden_states import Prompt
    from utils.token_languages.matrix import TokenLanguages

SCRIPT = "language_neurons.py"
# So many sentences find the neurons where --limit does not say, and at most half of the corpus: the rest is for steer.
N_SENTENCES = 200
N_EXPERTS_WRITTEN = 5000
OVERLAP_SIZES = (100, 1000, 5000)
# A set of experts for the table by layer.
TOP = 1000
# Tokens of a sentence that a continuation starts from, and tokens that are written.
OPENING, NEW_TOKENS = 8, 24
# Folders within a run that last as long as it does.
WORK = ("responses*", "states-*", "told-*", "records")
LEAST_SHARE = 1e-3  # a channel with less at a layer has no row in lens.csv


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return command_line.run(COMMANDS[args.command], args)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))

    one = commands.add_parser("find", help="how expert each neuron is for each language")
    add_model(one)
    add_sentences(one)
    add_run(one)

    one = commands.add_parser("steer", help="force the neurons of a language")
    add_model(one, of_run=True)
    one.add_argument("--neurons", type=Path, required=True, metavar="RUN", help="folder of a finished `find`")
    one.add_argument("--to", required=True, metavar="LANG", help="the language whose neurons are forced")
    one.add_argument("--top", nargs="+", type=positive, default=[10, 100, 1000, 5000], metavar="K")
    one.add_argument(
        "--corpus", nargs="+", metavar=("NAME", "SPLIT"), help="default: the run's, past its own sentences"
    )
    one.add_argument("--limit", type=positive, metavar="N", default=300, help="at most so many sentences a language")
    one.add_argument("--losses", type=not_negative, metavar="N", default=30, help="sentences whose perplexity is read")
    one.add_argument("--written", type=not_negative, metavar="N", default=20, help="sentences that it goes on writing")
    one.add_argument("--lens", type=not_negative, metavar="N", default=20, help="sentences that the lens reads")
    one.add_argument("--token_languages", default="corpus", metavar="DIR|" + "|".join(METHODS))
    add_run(one)

    one = commands.add_parser("layers", help="how well a linear probe tells the language of a token's state")
    add_model(one)
    one.add_argument("--revisions", nargs="+", metavar="R", help="checkpoints: revisions on the hub, or subfolders")
    add_sentences(one)
    one.add_argument("--tokens", type=positive, default=4, metavar="N", help="tokens of a sentence, drawn")
    add_run(one)

    one = commands.add_parser("concepts", help="expert neurons of a concept, and what languages share of them")
    add_model(one)
    one.add_argument("--langs", nargs="+", metavar="LANG", default=DEFAULT_LANGS, help="those that there are frames in")
    one.add_argument("--concepts", type=Path, metavar="FILE", help="a table of names; default: CLDR's")
    one.add_argument("--n_concepts", type=positive, default=100, metavar="N", help="so many, drawn")
    one.add_argument("--top", type=positive, default=500, metavar="K", help="expert neurons of a concept")
    one.add_argument("--latent", type=not_negative, default=50, metavar="N", help="concepts that are asked for by name")
    add_run(one)
    return parser.parse_args(argv)


def add_model(parser: argparse.ArgumentParser, of_run: bool = False) -> None:
    default = None if of_run else "bigscience/bloomz-560m"
    parser.add_argument(
        "--model", default=default, help="a hub id, a folder, a .gguf, gemma-3-270m" + "; default: the run's" * of_run
    )
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT adapter's folder")
    parser.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help="auto: float32 on a CPU")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")


def add_sentences(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--langs", nargs="+", metavar="LANG", default=DEFAULT_LANGS)
    parser.add_argument(
        "--corpus",
        nargs="+",
        default=["sample_parallel"],
        metavar=("NAME", "SPLIT"),
        help="a parallel set, or a folder",
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help=f"sentences a language; default: {N_SENTENCES}, half the corpus"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=seed, default=42)
    parser.add_argument("--output_dir", type=Path, metavar="D")
    parser.add_argument("--overwrite", action="store_true", help="remove the run that --output_dir holds")


# What the commands share


def languages_of(args: argparse.Namespace) -> list[str]:
    """--langs as FLORES codes. Raises ValueError for one language alone, or one given twice."""
    langs = [language_code(lang) for lang in args.langs]
    if len(set(langs)) < len(langs) or len(langs) < 2:
        raise ValueError(f"--langs {' '.join(args.langs)}: give two languages or more, each once")
    return langs


def open_run(args: argparse.Namespace, model: LensModel, inputs: dict, *parts: str) -> RunDirectory:
    from utils.models.loading import provenance

    name = f"neurons-{args.command}"
    output_dir = args.output_dir or default_output_dir(name, args, Path(args.model).name, *parts)
    inputs = {**inputs, **provenance(model, args.adapter)}
    return RunDirectory(output_dir, configuration(f"{SCRIPT} {args.command}", args, inputs), args.overwrite)


def checksums(files: dict[str, Path]) -> dict[str, str]:
    return {path.name: sha256_of_file(path) for path in files.values()}


def finished_run(path: Path, command: str) -> dict:
    """The configuration of another command's finished run. Raises ValueError for anything else."""
    if not (path / CONFIG).is_file():
        raise ValueError(f"{path}: no run of `{SCRIPT} {command}`: no {CONFIG} in it")
    config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    if config.get("script") != f"{SCRIPT} {command}":
        raise ValueError(f"{path}: a run of {config.get('script')}; give one of `{SCRIPT} {command}`")
    if not (path / METRICS).is_file():
        raise ValueError(f"{path}: the run is not finished: no {METRICS} in it")
    return config


def batches_of(model: LensModel, prompts: list[Prompt]) -> list[list[int]]:
    from utils.models.hidden_states import MAX_BATCH_TOKENS, batches

    return batches(prompts, None, MAX_BATCH_TOKENS.get(model.device.type, MAX_BATCH_TOKENS["cpu"]))


def require_room(model: LensModel, prompts: list[Prompt]) -> None:
    longest = max(len(prompt.ids) for prompt in prompts)
    if model.max_positions and longest > model.max_positions:
        raise ValueError(f"a sentence of {longest} tokens, more than the model's {model.max_positions}")


def finish(run: RunDirectory, tables: dict[str, pd.DataFrame], metrics: dict) -> None:
    from utils.figures.neurons import draw_neurons

    for name, table in tables.items():
        write_table(run.path / name, table)
    draw_neurons(run.path)
    run.finish({**metrics, "rows": {name: len(table) for name, table in tables.items()}})


def remove_work(run: RunDirectory) -> None:
    """What a stopped run goes on from; only a finished one can do without it."""
    for pattern in WORK:
        for folder in run.path.glob(pattern):
            shutil.rmtree(folder)


def show(run: RunDirectory, table: pd.DataFrame, note: str) -> None:
    print(table.to_string(index=False, float_format=lambda number: f"{number:.3g}"))
    print(note)
    print(f"tables: {run.path}")
    for path in sorted((run.path / "figures").glob("*.png")):
        print(f"  {path}")


# find


def find(args: argparse.Namespace) -> None:
    """Every neuron's response to every sentence, map by map to its AUROC for each language."""
    import numpy as np
    import pandas as pd

    from utils.data.corpora import parallel_files, read_parallel
    from utils.models.interventions import max_responses, neuron_maps, sentence_prompt
    from utils.models.loading import load_model
    from utils.neurons import experts

    args.langs = langs = languages_of(args)
    files = parallel_files(args.corpus, langs)
    sentences = read_parallel(files)
    n = number_of_sentences(args, len(sentences[langs[0]]))
    model = load_model(args.model, args.adapter, args.dtype, args.device)
    run = open_run(args, model, {"data_sha256": checksums(files), "n_sentences": n}, *args.corpus, names(langs))
    if not run.finished:
        maps = neuron_maps(model)
        prompts = [sentence_prompt(model, text) for lang in langs for text in sentences[lang][:n]]
        require_room(model, prompts)
        responses = experts.ResponseFiles(run.path / "responses", batches_of(model, prompts))
        for number, batch in enumerate(tqdm(responses.batches, desc="reading", unit="batch", disable=None)):
            if not responses.is_done(number):
                found = max_responses(model, maps, [prompts[i] for i in batch])
                responses.write(number, found.cpu().numpy())
        classes, groups = np.repeat(np.arange(len(langs)), n), np.tile(np.arange(n), len(langs))
        halves = experts.half_sets(responses, maps, classes, groups, TOP)
        write_experts(run, experts.expertise(responses, maps, classes, groups, args.seed), halves, langs, maps)
    remove_work(run)
    metrics = run.read_metrics()
    show(
        run,
        pd.DataFrame(metrics["languages"]),
        f"{metrics['n_neurons']} neurons, {n} sentences a language; above_null: AUROC above that of every neuron in "
        f"{experts.N_SHUFFLES} shuffles of the labels; halves: share of the top {metrics['top']} that are so in both "
        "halves of the sentences",
    )


def number_of_sentences(args: argparse.Namespace, n: int) -> int:
    """--limit, or N_SENTENCES and at most half of the corpus. Raises ValueError where the corpus has fewer."""
    if args.limit and args.limit > n:
        raise ValueError(f"--limit {args.limit}: {' '.join(args.corpus)} has {n} sentences")
    return args.limit or min(N_SENTENCES, n // 2)


def names(langs: Sequence[str]) -> str:
    return "-".join(map(short_code, langs[:6]))


def write_experts(run: RunDirectory, found: Any, halves: np.ndarray, langs: list[str], maps: list) -> None:
    """neurons.npz and the tables of `find`. halves: [half, language, k], the top k of either half of the sentences."""
    import pandas as pd

    from utils.neurons import experts
    from utils.runs import write_arrays

    write_arrays(run.path / experts.NEURONS, auroc=found.auroc, mean_response=found.mean_response)
    overlaps = experts.overlap_table(found, langs, OVERLAP_SIZES)
    k = halves.shape[2]
    n = found.auroc.shape[1]
    of_halves = pd.DataFrame(
        {"language": lang, "k": k, **experts.overlap(halves[0, i], halves[1, i], n)} for i, lang in enumerate(langs)
    )
    shuffles = pd.DataFrame(found.highest_null, columns=langs).rename_axis("shuffle").reset_index()
    tables = {
        experts.EXPERTS: experts.expert_table(found, langs, maps, N_EXPERTS_WRITTEN),
        experts.MAPS: pd.DataFrame(
            {"layer": one.layer, "module": one.name, "start": one.start, "width": one.width} for one in maps
        ),
        "layers.csv": experts.layer_table(found, langs, maps, min(TOP, n)),
        "overlap.csv": overlaps,
        "halves.csv": of_halves,
        "null.csv": shuffles.melt("shuffle", var_name="language", value_name="highest_auroc"),
    }
    languages = {
        "language": langs,
        "above_null": (found.auroc > found.threshold[:, None]).sum(axis=1).tolist(),
        "threshold": found.threshold.tolist(),
        "null_mean": found.null_mean.tolist(),
        "best_auroc": found.auroc.max(axis=1).tolist(),
        "halves": (of_halves["shared"] / k).tolist(),
    }
    tables["claims.csv"] = experts.overlap_claims(overlaps)
    metrics = {"languages": languages, "n_neurons": n, "top": k}
    finish(run, tables, metrics)


# steer


def steer(args: argparse.Namespace) -> None:
    """Each language's sentences through the model as it is, with its experts forced, and with random neurons forced."""
    import pandas as pd

    from utils.data.corpora import parallel_files, read_parallel
    from utils.models.interventions import neuron_maps
    from utils.models.loading import load_model
    from utils.neurons.experts import NEURONS, read_neurons
    from utils.token_languages.matrix import named_matrix

    found = finished_run(args.neurons, "find")
    args.model = args.model or found["arguments"]["model"]
    if args.model != found["arguments"]["model"]:
        raise ValueError(f"--model {args.model}: {args.neurons} is of {found['arguments']['model']}")
    if args.adapter is None and found["arguments"]["adapter"]:
        args.adapter = Path(found["arguments"]["adapter"])
    langs = [language_code(lang) for lang in found["arguments"]["langs"]]
    args.to = language_code(args.to)
    if args.to not in langs:
        raise ValueError(f"--to {args.to}: {args.neurons} has {', '.join(langs)}")
    n_neurons = read_neurons(args.neurons)["auroc"].shape[1]
    if min(args.top) > n_neurons:
        raise ValueError(f"--top {min(args.top)}: the model has {n_neurons} neurons")
    # Sentences that found the neurons can't test them.
    same = args.corpus in (None, found["arguments"]["corpus"])
    args.corpus = args.corpus or found["arguments"]["corpus"]
    n_find = found["inputs"]["n_sentences"]
    files = parallel_files(args.corpus, langs)
    sentences = {lang: of_lang[n_find * same :][: args.limit] for lang, of_lang in read_parallel(files).items()}
    if len(sentences[args.to]) < 2:
        raise ValueError(f"--corpus {' '.join(args.corpus)}: nothing is left past the {n_find} sentences of `find`")
    model = load_model(args.model, args.adapter, args.dtype, args.device)
    matrix = named_matrix(args.token_languages, model.tokenizer, args.model)
    inputs = {
        "data_sha256": checksums(files),
        "neurons_sha256": sha256_of_file(args.neurons / NEURONS),
        "token_languages": matrix.config,
        "n_find": n_find,
    }
    run = open_run(args, model, inputs, *args.corpus, f"to-{short_code(args.to)}")
    if not run.finished:
        maps = neuron_maps(model)
        conditions = conditions_of(args, maps, langs.index(args.to))
        held_out = read_parallel(parallel_files(found["arguments"]["corpus"], langs))
        n_centre = min(n_find, 2 * len(sentences[args.to]))  # a mean needs no more than what it is taken from
        centres = {lang: of_lang[:n_centre] for lang, of_lang in held_out.items()}
        records = read_conditions(args, run, model, matrix, maps, conditions, sentences, centres)
        write_effects(args, run, matrix, records, langs)
    remove_work(run)
    metrics = run.read_metrics()
    note = (
        "change: of the cosine distance, or of the share found first, against `against`; 95% intervals over sentences"
    )
    show(run, pd.DataFrame(metrics["claims"]), note)


def conditions_of(args: argparse.Namespace, maps: list, target: int) -> dict[tuple[str, int], tuple]:
    """(condition, k) -> (neurons, values): the model's own pass, k experts, and k random neurons of the same maps.

    A forced neuron, expert or random, gets its own mean response to the target's sentences.
    """
    import numpy as np

    from utils.neurons.experts import most_expert, random_like, read_neurons

    arrays = read_neurons(args.neurons)
    auroc, mean = arrays["auroc"][target], arrays["mean_response"][target]
    if auroc.shape[0] != maps[-1].stop:
        raise ValueError(f"--neurons {args.neurons}: of {auroc.shape[0]} neurons, but the model has {maps[-1].stop}")
    nothing = np.empty(0, dtype=np.int64)
    conditions = {("base", 0): (nothing, mean[nothing])}
    for k in sorted({k for k in args.top if k <= len(auroc)}):
        chosen = most_expert(auroc, k)
        drawn = random_like(chosen, maps, args.seed)
        conditions |= {("expert", k): (chosen, mean[chosen]), ("random", k): (drawn, mean[drawn])}
    return conditions


def read_conditions(
    args: argparse.Namespace,
    run: RunDirectory,
    model: LensModel,
    matrix: TokenLanguages,
    maps: list,
    conditions: dict[tuple[str, int], tuple],
    sentences: dict[str, list[str]],
    centres: dict[str, list[str]],
) -> dict[tuple[str, int], dict[str, dict[str, np.ndarray]]]:
    """(condition, k) -> language -> arrays. A record on the disk for each, so that a stopped run goes on there."""
    from utils.models.interventions import forced, sentence_prompt
    from utils.neurons.effects import pooled_and_losses
    from utils.runs import read_arrays, write_arrays

    folder = run.path / "records"
    folder.mkdir(exist_ok=True)
    # The lens costs more than all else together: it looks at one size of set.
    sizes = sorted({k for _, k in conditions if k})
    lens_k = max((k for k in sizes if k <= TOP), default=sizes[0])
    records: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    bar = tqdm(total=len(conditions) * len(sentences), desc="steering", unit="language", disable=None)
    for (name, k), (neurons, values) in conditions.items():
        for lang, texts in sentences.items():
            path = folder / f"{name}-{k}-{lang}.npz"
            bar.set_postfix_str(f"{name} {k} {short_code(lang)}")
            if not path.exists():
                prompts = [sentence_prompt(model, text) for text in texts]
                require_room(model, prompts)
                with forced(maps, neurons, values):
                    pooled, losses = pooled_and_losses(model, prompts, args.losses, batches_of(model, prompts))
                    arrays = {"pooled": pooled, "losses": losses}
                    if k in (0, lens_k):
                        arrays |= read_lens(model, matrix, prompts[: args.lens])
                    arrays |= read_written(args, model, matrix, prompts[: args.written], lang)
                if name == "base":
                    of_find = [sentence_prompt(model, text) for text in centres[lang]]
                    states, _ = pooled_and_losses(model, of_find, 0, batches_of(model, of_find))
                    arrays["centre"] = states.mean(axis=0, dtype="float64")
                write_arrays(path, **arrays)
            records.setdefault((name, k), {})[lang] = read_arrays(path)
            bar.update()
    bar.close()
    return records


def read_lens(model: LensModel, matrix: TokenLanguages, prompts: list[Prompt]) -> dict[str, np.ndarray]:
    """`lens`: the shares at the last token of the sentences, as one set: [layer, channel]. Empty without sentences."""
    from utils.lens.reading import mean_vocab_probs
    from utils.models.hidden_states import Prompt

    if not prompts:
        return {}
    probs = mean_vocab_probs(model, [Prompt(prompt.ids, prompt.positions[-1:]) for prompt in prompts])
    return {"lens": fitted_shares(matrix, probs.numpy())}


def fitted_shares(matrix: TokenLanguages, probs: np.ndarray) -> np.ndarray:
    """`matrix.shares`, fitted in float32 as a probe's are: [set, vocab] -> [set, channel]."""
    shares = probs @ matrix.probs
    if matrix.fits_shares:
        shares[:, : matrix.n_languages] = matrix.fit(probs)
    return shares


def read_written(
    args: argparse.Namespace, model: LensModel, matrix: TokenLanguages, prompts: list[Prompt], lang: str
) -> dict[str, np.ndarray]:
    """What the model writes after the first tokens of each sentence: its text, its shares, is it told as --to's?"""
    import numpy as np

    from utils.answers.generation import generate
    from utils.models.hidden_states import Prompt

    if not prompts:
        return {}
    openings = [Prompt(ids, [len(ids) - 1], key=str(i)) for i, ids in enumerate(opening(p) for p in prompts)]
    written = generate(model, openings, "greedy", NEW_TOKENS, args.seed)
    counts = np.zeros((len(written), matrix.probs.shape[0]))
    for row, text in zip(counts, written):
        np.add.at(row, list(text.ids), 1 / len(text.ids))
    told = [matrix.language_of(list(text.ids), lang) == args.to for text in written]
    texts = np.array([text.text for text in written], dtype=np.str_)
    return {
        "written": fitted_shares(matrix, counts.mean(axis=0)[None])[0],
        "told": np.array(told, dtype=np.float64),
        "texts": texts,
    }


def opening(prompt: Prompt) -> list[int]:
    return prompt.ids[: prompt.positions[0] + OPENING]


def write_effects(
    args: argparse.Namespace, run: RunDirectory, matrix: TokenLanguages, records: dict, langs: list[str]
) -> None:
    from utils.neurons import steering

    tables = steering.effect_tables(records, langs, args.to)
    tables |= {
        name: table
        for name, table in (
            ("lens.csv", steering.share_table(records, matrix.channels, LEAST_SHARE)),
            ("written.csv", steering.written_table(records, matrix.channels, args.to)),
            ("texts.csv", steering.text_table(records)),
        )
        if len(table)
    }
    claims = steering.steering_claims(records, tables, args.to)
    finish(run, {**tables, "claims.csv": claims}, {"claims": claims.to_dict("list"), "to": args.to})


# layers


def layers(args: argparse.Namespace) -> None:
    """For each checkpoint: states of drawn tokens, a probe a layer, and the same on nothing and on embeddings."""
    import pandas as pd

    from utils.data.corpora import parallel_files, read_parallel
    from utils.models.loading import checkpoint, load_model

    args.langs = langs = languages_of(args)
    files = parallel_files(args.corpus, langs)
    sentences = read_parallel(files)
    n = number_of_sentences(args, len(sentences[langs[0]]))
    texts = {lang: of_lang[:n] for lang, of_lang in sentences.items()}
    revisions = args.revisions or [""]
    sources = [checkpoint(args.model, revision) if revision else args.model for revision in revisions]
    model = load_model(sources[0], args.adapter, args.dtype, args.device)
    run = open_run(args, model, {"data_sha256": checksums(files), "n_sentences": n}, *args.corpus, names(langs))
    if not run.finished:
        parts: list[dict[str, pd.DataFrame]] = []
        for i, (revision, source) in enumerate(zip(revisions, sources)):
            model = load_model(source, args.adapter, args.dtype, args.device) if i else model
            parts.append(probe_checkpoint(args, run, model, texts, revision, i))
        tables = {name: pd.concat([part[name] for part in parts], ignore_index=True) for name in parts[0]}
        finish(run, tables, {"claims": tables["claims.csv"].to_dict("list")})
    remove_work(run)
    note = "effect: a difference of accuracies, with its 95% interval over sentences"
    show(run, pd.DataFrame(run.read_metrics()["claims"]), note)


def probe_checkpoint(
    args: argparse.Namespace,
    run: RunDirectory,
    model: LensModel,
    texts: dict[str, list[str]],
    revision: str,
    number: int,
) -> dict[str, pd.DataFrame]:
    """The tables of one checkpoint. States are on the disk, a file a batch, and so is what each probe tells."""
    import numpy as np

    from utils.models.hidden_states import hidden_states
    from utils.models.interventions import sentence_prompt
    from utils.neurons import language_probes as probes
    from utils.neurons.experts import ResponseFiles
    from utils.runs import read_arrays, write_arrays

    n, langs = len(next(iter(texts.values()))), list(texts)
    whole = [(i, sentence_prompt(model, text)) for lang in langs for i, text in enumerate(texts[lang])]
    require_room(model, [prompt for _, prompt in whole])
    prompts = [probes.drawn_positions(one, args.tokens, f"{args.seed} {j}") for j, (_, one) in enumerate(whole)]
    sentences = np.repeat([i for i, _ in whole], args.tokens)
    classes = np.repeat(np.arange(len(langs)), n * args.tokens)
    sentence_batches = batches_of(model, prompts)
    rows = [[i * args.tokens + t for i in batch for t in range(args.tokens)] for batch in sentence_batches]
    files = ResponseFiles(run.path / f"states-{number}", rows)
    width = model.config.hidden_size
    embed: Any = model.decoder.get_input_embeddings()  # type: ignore[operator]
    embedded = embed.weight.shape[1]
    for j, batch in enumerate(tqdm(sentence_batches, desc=f"reading {revision}".strip(), unit="batch", disable=None)):
        if not files.is_done(j):
            chosen = [prompts[i] for i in batch]
            states = hidden_states(model, chosen).float().flatten(1).cpu().numpy()  # [token, layer * width]
            ids = [prompt.ids[position] for prompt in chosen for position in prompt.positions]
            files.write(j, np.hstack([states, embeddings_of(embed, ids, model.device)]))
    n_layers = len(model.layers) + 1
    cells = [(probes.STATE, layer) for layer in range(n_layers)]
    cells += [(probes.SHUFFLED, layer) for layer in range(n_layers)] + [(probes.EMBEDDING, 0)]
    folder = run.path / f"told-{number}"
    folder.mkdir(exist_ok=True)
    found = {}
    for probe, layer in tqdm(cells, desc="probing", unit="probe", disable=None):
        path = folder / f"{probe}-{layer}.npz"
        if not path.exists():
            start = (n_layers if probe == probes.EMBEDDING else layer) * width
            stop = None if probe == probes.EMBEDDING else start + width
            states = files.columns(start, stop or start + embedded)
            told = probes.probe_layer(states, classes, sentences, shuffle=probe == probes.SHUFFLED)
            write_arrays(path, sentences=told.sentences, true=told.true, told=told.told)
        found[probe, layer] = probes.Told(**read_arrays(path))
    return {
        "accuracy.csv": probes.accuracy_rows(found, revision),
        "confusion.csv": probes.confusion_rows(found, langs, revision),
        "claims.csv": probes.probe_claims(found, revision),
    }


def embeddings_of(embed: Any, ids: list[int], device: Any) -> np.ndarray:
    """The tokens' own embeddings, before any layer, norm or position: [token, width] float32."""
    import torch

    with torch.inference_mode():
        return embed(torch.tensor(ids, device=device)).float().cpu().numpy()


# concepts


def concepts(args: argparse.Namespace) -> None:
    """Each language's frames with each name: experts of each concept, what pairs of languages share, latent names."""
    import pandas as pd

    from utils.models.interventions import neuron_maps
    from utils.models.loading import load_model
    from utils.neurons import concepts as of_concepts

    args.langs = langs = languages_of(args)
    path = args.concepts or of_concepts.CONCEPTS
    known = of_concepts.read_concepts(path, langs)
    chosen = of_concepts.chosen_concepts(known, args.n_concepts, args.seed)
    frames = {lang: of_concepts.read_frames(lang) for lang in langs}
    model = load_model(args.model, args.adapter, args.dtype, args.device)
    files = {lang: of_concepts.FRAMES / f"{lang}.txt" for lang in langs} | {"concepts": path}
    run = open_run(args, model, {"data_sha256": checksums(files)}, f"top{args.top}", names(langs))
    if not run.finished:
        maps = neuron_maps(model)
        if args.top > maps[-1].stop:
            raise ValueError(f"--top {args.top}: the model has {maps[-1].stop} neurons")
        sets = {}
        for i, lang in enumerate(langs):
            sets[lang] = sets_of_language(args, run, model, maps, chosen, frames[lang][1], lang, args.seed + i)
        tables, claims = of_concepts.sharing_tables(sets, maps, args.top)
        tables["concepts.csv"] = pd.DataFrame([{"symbol": one.symbol, **one.names} for one in chosen])
        found = latent_probabilities(args, run, model, chosen, {lang: frames[lang][0] for lang in langs})
        if found:
            tables["latent.csv"], of_latent = of_concepts.latent_tables(found)
            claims = pd.concat([claims, of_latent], ignore_index=True)
        finish(run, {**tables, "claims.csv": claims}, {"claims": claims.to_dict("list"), "n_known": len(known)})
    remove_work(run)
    note = "effect: shares of the top K, or probabilities; 95% intervals over concepts"
    show(run, pd.DataFrame(run.read_metrics()["claims"]), note)


def sets_of_language(
    args: argparse.Namespace,
    run: RunDirectory,
    model: LensModel,
    maps: list,
    chosen: list,
    frames: list[str],
    lang: str,
    seed: int,
) -> Any:
    """One language's experts; kept on the disk, so that a stopped run goes on at the next language."""
    import numpy as np

    from utils.models.interventions import max_responses, sentence_prompt
    from utils.neurons.concepts import ConceptSets, concept_sets
    from utils.neurons.experts import ResponseFiles
    from utils.runs import read_arrays, write_arrays

    folder = run.path / "records"
    folder.mkdir(exist_ok=True)
    path = folder / f"sets-{lang}.npz"
    if not path.exists():
        texts = [frame.replace("{}", concept.names[lang]) for frame in frames for concept in chosen]
        prompts = [sentence_prompt(model, text) for text in texts]
        require_room(model, prompts)
        files = ResponseFiles(run.path / f"responses-{lang}", batches_of(model, prompts))
        bar = tqdm(files.batches, desc=f"reading {short_code(lang)}", unit="batch", disable=None)
        for number, batch in enumerate(bar):
            if not files.is_done(number):
                files.write(number, max_responses(model, maps, [prompts[i] for i in batch]).cpu().numpy())
        frame_of = np.repeat(np.arange(len(frames)), len(chosen))
        concept_of = np.tile(np.arange(len(chosen)), len(frames))
        found = concept_sets(files, maps, frame_of, concept_of, args.top, seed)
        write_arrays(path, **vars(found))
    return ConceptSets(**read_arrays(path))


def latent_probabilities(
    args: argparse.Namespace, run: RunDirectory, model: LensModel, chosen: list, own_names: dict[str, str]
) -> dict[tuple[str, str, str], dict[str, np.ndarray]]:
    """(source, target, third) -> probabilities of names' first tokens by layer; a record on the disk for each."""
    from utils.languages import ENGLISH
    from utils.neurons.concepts import latent_pairs
    from utils.runs import read_arrays, write_arrays

    if not args.latent or ENGLISH not in own_names:
        return {}
    asked = chosen[: args.latent]
    found = {}
    for pair in tqdm(latent_pairs(list(own_names)), desc="asking for names", unit="pair", disable=None):
        path = run.path / "records" / f"latent-{'-'.join(pair)}.npz"
        if not path.exists():
            write_arrays(path, **read_names(args, model, asked, pair, own_names))
        found[pair] = read_arrays(path)
        if not len(found[pair]["concepts"]):
            raise ValueError(f"--latent {args.latent}: no name in {pair[1]} whose first token is its own")
    return found


def read_names(
    args: argparse.Namespace, model: LensModel, asked: list, pair: tuple[str, str, str], own_names: dict[str, str]
) -> dict[str, np.ndarray]:
    """Probabilities of the first tokens of a name by layer: LATENT's rows, [prompt, layer], and `concepts` [prompt]."""
    import random

    import numpy as np
    import torch

    from utils.languages import ENGLISH
    from utils.lens.reading import vocab_probs
    from utils.models.hidden_states import answer_positions, hidden_states, last_position
    from utils.neurons.concepts import LATENT, N_SHOTS, latent_prompt

    source, target, third = pair
    rows: dict[str, list] = {name: [] for name in (*LATENT, "concepts")}

    def first_token(prompt: str, name: str) -> int:
        read = answer_positions(model, prompt, prompt + name)
        return read.ids[read.positions[0] + 1]

    for i, concept in enumerate(asked):
        others = [one for one in asked if one is not concept]
        rng = random.Random(f"{args.seed} {concept.symbol} {source} {target}")
        shots, other = rng.sample(others, min(N_SHOTS, len(others))), rng.choice(others)
        prompt = latent_prompt(concept, shots, source, target, own_names)
        tokens = {
            name: first_token(prompt, concept.names[lang]) for name, lang in zip(LATENT, (ENGLISH, target, third))
        }
        tokens |= {name: first_token(prompt, other.names[lang]) for name, lang in zip(LATENT[3:], (ENGLISH, target))}
        # What two names begin with says nothing of either language, and a null must not be the thing itself.
        if len({tokens[name] for name in LATENT[:3]}) < 3 or tokens["english"] == tokens["english_null"]:
            continue
        state = hidden_states(model, [last_position(model, prompt)])[0]
        with torch.inference_mode():
            probs = vocab_probs(model, state)[:, [tokens[name] for name in LATENT]].double().cpu().numpy()
        for j, name in enumerate(LATENT):
            rows[name].append(probs[:, j])
        rows["concepts"].append(i)
    return {name: np.array(values) for name, values in rows.items()}


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "find": find,
    "steer": steer,
    "layers": layers,
    "concepts": concepts,
}


if __name__ == "__main__":
    sys.exit(main())
