"""Which training examples carry a gain?

    python attribute_gain.py --method retrain --model gemma-3-270m --langs or --query_langs or hi --interferer en
    python attribute_gain.py --method ekfac --model gemma-3-270m --langs or --query_langs or hi --interferer en
    python attribute_gain.py --truth results/RETRAIN --predicted results/EKFAC results/BM25

retrain leaves each context of the training set out (--by language: each language of a mixed set), trains again by
QAtraining.py's fast recipe, and measures what changed on the queries: that is the truth. The other methods predict it
from one adapter, or from the texts alone; --truth says how well. Positive means helpful, everywhere: with the example
in the training set the measure is better. Writes, in a folder under results/, values.csv, effects.csv (means over the
queries, with intervals) and metrics.json; docs/attribution.md says what is in them. A run that was stopped goes on
with the same command.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from utils import command_line
from utils.command_line import ATTRIBUTIONS, DTYPES, LOSSES, UNITS, above_zero, dropout, positive, rank, seed
from utils.data.examples import DATASETS, Example, QuestionSet, data_files, load_examples, read_questions
from utils.languages import language_code, short_code
from utils.runs import (
    METRICS,
    RunDirectory,
    configuration,
    default_output_dir,
    read_configuration,
    read_table,
    require_finished,
    sha256_of_file,
    write_array,
    write_table,
)
from utils.training.recipe import RECIPE, RECIPES, Recipe

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from utils.models.families import LensModel
    from utils.training.influence import Curvature, Directions
    from utils.training.measures import Measures, Query
    from utils.training.texts import TrainingText

SCRIPT = "attribute_gain.py"
QUESTION_SETS = [name for name, files in DATASETS.items() if isinstance(files, QuestionSet)]
WITH_GRADIENTS, WITH_ADAPTER = ("ekfac", "cosine"), ("ekfac", "cosine", "representation")
EVERYTHING = "all"  # a training that leaves nothing out
ANY = "any"  # the measure of a method that knows of none
VALUES, EFFECTS, EXAMPLES, UNIT_TABLE, QUERY_TABLE = (
    f"{name}.csv" for name in ("values", "effects", "examples", "units", "queries")
)
MEASURED, SCORES = "measured.csv", "scores.csv"
ADAPTER, RETRAINED, RECORDS = "adapter", "retrained", "records"
# Questions that are answered at a time: always as many, so that rounding is always the same.
ANSWERED = 16
PRINTED = 3
OTHER_SEEDS = "retrain, other seeds"


def main(argv: Sequence[str] | None = None) -> int:
    return command_line.run(attribute, parse_args(argv))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=ATTRIBUTIONS, help="retrain is the truth, the others predict it")
    parser.add_argument("--by", default="context", choices=UNITS, help="what is left out at a time")
    scoring = parser.add_argument_group("how well a method predicts the truth (no model is loaded)")
    scoring.add_argument("--truth", type=Path, metavar="RUN", help="a finished run of --method retrain")
    scoring.add_argument("--predicted", type=Path, nargs="+", metavar="RUN", help="finished runs of the other methods")
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="bigscience/bloomz-560m", help="a hub id, a folder, a .gguf, gemma-3-270m")
    model.add_argument(
        "--adapter", type=Path, metavar="DIR", help="trained on the whole set, to predict from; else one is trained"
    )
    model.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help="auto: float32 on a CPU")
    model.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    data = parser.add_argument_group("training set")
    data.add_argument("--train_file", nargs="+", type=Path, metavar="FILE", help="in place of --langs and --split")
    data.add_argument("--dataset", default="sample_qa", choices=QUESTION_SETS)
    data.add_argument("--langs", nargs="+", default=["or"], metavar="LANG", help="several are mixed")
    data.add_argument("--split", default="train")
    data.add_argument("--limit", type=positive, metavar="N", help="the first N questions of each file")
    queries = parser.add_argument_group("queries")
    queries.add_argument("--query_langs", nargs="+", metavar="LANG", help="default: --langs")
    queries.add_argument("--query_split", default="test")
    queries.add_argument(
        "--query_limit", type=positive, default=16, metavar="N", help="of each language, of as many contexts as can be"
    )
    queries.add_argument(
        "--interferer", metavar="LANG", help="whose script the measure `script` has below the query's own"
    )
    queries.add_argument("--max_new_tokens", type=positive, default=32, metavar="N", help="of an answer, for F1")
    recipe = parser.add_argument_group("recipe: QAtraining.py --recipe fast, and what is given here")
    recipe.add_argument("--loss", default="all", choices=LOSSES, help="of the whole text, or of the answer")
    recipe.add_argument("--max_tokens", type=positive, metavar="N", help="longer texts, queries too, lose context")
    recipe.add_argument("--epochs", type=positive, metavar="N")
    recipe.add_argument("--learning_rate", type=above_zero, metavar="X")
    recipe.add_argument("--batch_size", type=positive, metavar="N", help="texts at a time")
    recipe.add_argument("--accumulate", type=positive, metavar="N", help="batches to an optimizer step")
    recipe.add_argument("--lora_rank", type=rank, metavar="N")
    recipe.add_argument("--lora_alpha", type=positive, metavar="N")
    recipe.add_argument("--lora_dropout", type=dropout, metavar="P")
    recipe.add_argument("--seeds", type=seed, nargs="+", default=[42, 43], help="of retrain; the others use the first")
    parser.add_argument("--output_dir", type=Path, metavar="D")
    parser.add_argument("--overwrite", action="store_true", help="remove the run that --output_dir holds")
    args = parser.parse_args(argv)
    for name, value in {**vars(RECIPE), **RECIPES["fast"]}.items():
        if name in vars(args) and getattr(args, name) is None:
            setattr(args, name, value)
    return args


def attribute(args: argparse.Namespace) -> None:
    refuse_mixed_commands(args)
    if args.truth:
        report_scores(score(args))
        return
    args.langs = [language_code(lang) for lang in args.langs]
    args.query_langs = [language_code(lang) for lang in args.query_langs or args.langs]
    args.interferer = args.interferer and language_code(args.interferer)
    report(args, run_of(args))


def refuse_mixed_commands(args: argparse.Namespace) -> None:
    """Raises ValueError where the command is none of the two, or both."""
    if (args.truth is None) != (args.predicted is None):
        raise ValueError("--truth RUN and --predicted RUN... go together: the one is held against the others")
    if (args.method is None) == (args.truth is None):
        raise ValueError(f"give either --method ({', '.join(ATTRIBUTIONS)}), or --truth with --predicted")
    if args.adapter and args.method not in WITH_ADAPTER:
        raise ValueError(f"--adapter {args.adapter}: --method {args.method} takes none; {', '.join(WITH_ADAPTER)} do")
    if twice := [number for number in args.seeds if args.seeds.count(number) > 1]:
        raise ValueError(f"--seeds: {twice[0]} is given twice; the same training says nothing new")


# --- data --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Training texts in units that are left out together, and queries.

    sources: of each text, its language's code or its file's name; units: name -> rows of the texts.
    """

    texts: list[TrainingText]
    sources: list[str]
    units: dict[str, list[int]]
    queries: list[Query]

    @property
    def unit_of_text(self) -> list[int]:
        number = {row: i for i, rows in enumerate(self.units.values()) for row in rows}
        return [number[row] for row in range(len(self.texts))]

    @property
    def query_contexts(self) -> list[int]:
        """Of each query, the number of its context; translations of a question, which share its id, have one."""
        of_id: dict[str, int] = {}
        of_context: dict[str, int] = {}
        numbers = []
        for example in (query.example for query in self.queries):
            known = of_id.get(example.id, of_context.get(example.context, len(set(of_context.values()))))
            of_id[example.id] = of_context[example.context] = known
            numbers.append(known)
        return numbers


def read_data(args: argparse.Namespace, tokenizer: Any) -> Data:
    """Raises ValueError where too few units are left, or a text or query can't be used."""
    texts, sources = texts_of(args, tokenizer)
    units: dict[str, list[int]] = {}
    if args.by == "language":
        for row, source in enumerate(sources):
            units.setdefault(source, []).append(row)
    else:
        number: dict[str, str] = {}
        for row, text in enumerate(texts):
            name = number.setdefault(text.example.context, f"context-{len(number) + 1:03}")
            units.setdefault(name, []).append(row)
    if len(units) < 2:
        raise ValueError(f"--by {args.by}: the training set has one {args.by}, so that none can be left out")
    return Data(texts, sources, units, queries_of(args, tokenizer))


def texts_of(args: argparse.Namespace, tokenizer: Any) -> tuple[list[TrainingText], list[str]]:
    """(training texts, the source of each); a text that doesn't fit is left out and counted in what is printed."""
    from utils.training.texts import training_text

    texts, sources, n_long = [], [], 0
    for source, examples in training_examples(args).items():
        for example in examples:
            if len(example.answers) != 1:
                n = len(example.answers)
                raise ValueError(f"{source}: example {example.id} has {n} answers; training takes one each")
            text = training_text(tokenizer, example, args.loss, max_tokens=args.max_tokens)
            n_long += text is None
            if text is not None:
                texts.append(text)
                sources.append(source)
    if not texts:
        raise ValueError(f"no training text fits into --max_tokens {args.max_tokens}")
    if n_long:
        print(f"{n_long} training texts do not fit into --max_tokens {args.max_tokens} and are left out")
    return texts, sources


def training_examples(args: argparse.Namespace) -> dict[str, list[Example]]:
    if args.train_file:
        if twice := {path.stem for path in args.train_file if [p.stem for p in args.train_file].count(path.stem) > 1}:
            raise ValueError(f"--train_file: two files of the name {min(twice)}; give each once, or rename one")
        return {path.stem: read_questions(path, path.stem, "und")[: args.limit] for path in args.train_file}
    return {lang: load_examples(args.dataset, [lang], args.split)[: args.limit] for lang in unique(args.langs)}


def unique(langs: list[str]) -> list[str]:
    if twice := [lang for lang in langs if langs.count(lang) > 1]:
        raise ValueError(f"language given twice: {twice[0]}")
    return langs


def queries_of(args: argparse.Namespace, tokenizer: Any) -> list[Query]:
    """Of each language, question after question of every context in turn. Raises ValueError where none fits."""
    from utils.training.measures import query_of

    queries = []
    for lang in unique(args.query_langs):
        examples = [e for e in load_examples(args.dataset, [lang], args.query_split) if e.answers]
        made = [query_of(tokenizer, example, args.max_tokens) for example in by_turns(examples)]
        fitting = [query for query in made if query is not None][: args.query_limit]
        if not fitting:
            raise ValueError(f"{args.dataset} {lang}: no query fits into --max_tokens {args.max_tokens}")
        queries += fitting
    return queries


def by_turns(examples: list[Example]) -> list[Example]:
    """The first question of each context, then the second of each, and so on."""
    seen: dict[str, int] = {}
    turns = []
    for example in examples:
        turns.append(seen.setdefault(example.context, 0))
        seen[example.context] += 1
    return [example for _, example in sorted(zip(turns, examples), key=lambda pair: pair[0])]


def unit_table(data: Data) -> pd.DataFrame:
    import pandas as pd

    rows = [
        {
            "unit": name,
            "source": " ".join(sorted({data.sources[row] for row in rows})),
            "first_id": data.texts[rows[0]].example.id,
            "n": len(rows),
            "cut": sum(data.texts[row].was_cut for row in rows),
        }
        for name, rows in data.units.items()
    ]
    return pd.DataFrame(rows)


def query_table(data: Data) -> pd.DataFrame:
    import pandas as pd

    contexts = data.query_contexts
    rows = [
        {
            "query": i,
            "lang": query.example.lang,
            "id": query.example.id,
            "context": contexts[i],
            "cut": query.was_cut,
        }
        for i, query in enumerate(data.queries)
    ]
    return pd.DataFrame(rows)


# --- a run -------------------------------------------------------------------------------------------------------


def run_of(args: argparse.Namespace) -> RunDirectory:
    """The finished run of a method."""
    from utils.models.loading import load_model, load_tokenizer, model_checksums, provenance
    from utils.training.cpu import keep_freed_memory
    from utils.training.measures import require_other_script
    from utils.training.trainer import training_dtype

    keep_freed_memory()
    for lang in args.query_langs if args.interferer else []:
        require_other_script(lang, args.interferer)
    args.dtype = training_dtype(args.dtype, args.device)
    needs_model = args.method == "retrain" or args.method in WITH_ADAPTER
    model = load_model(args.model, args.adapter, args.dtype, args.device) if needs_model else None
    data = read_data(args, model.tokenizer if model else load_tokenizer(args.model))
    files = args.train_file or data_files(args.dataset, args.langs, args.split)
    inputs = {
        "data_sha256": {path.name: sha256_of_file(path) for path in files},
        "query_sha256": {
            path.name: sha256_of_file(path) for path in data_files(args.dataset, args.query_langs, args.query_split)
        },
        **(provenance(model, args.adapter) if model else {"model_sha256": model_checksums(args.model)}),
    }
    path = args.output_dir or default_output_dir(
        f"attribution-{args.method}", args, Path(args.model).name, "-".join(map(short_code, args.langs[:6]))
    )
    del model  # a training changes it, and wants the memory
    run = RunDirectory(path, configuration(SCRIPT, args, inputs), args.overwrite)
    if not run.finished:
        write_table(run.path / UNIT_TABLE, unit_table(data))
        write_table(run.path / QUERY_TABLE, query_table(data))
        values = retrained(args, run, data) if args.method == "retrain" else predicted(args, run, data)
        finish(run, data, values)
    return run


def finish(run: RunDirectory, data: Data, values: pd.DataFrame) -> None:
    write_table(run.path / VALUES, values)
    effects = effect_table(data, values)
    write_table(run.path / EFFECTS, effects)
    shutil.rmtree(run.path / RECORDS, ignore_errors=True)
    sizes = {"texts": len(data.texts), "units": len(data.units), "queries": len(data.queries)}
    run.finish({**sizes, "query_contexts": len(set(data.query_contexts)), "measures": sorted(set(values["measure"]))})


def effect_table(data: Data, values: pd.DataFrame) -> pd.DataFrame:
    """Means over the queries, of all and of each language, of what a unit did: seeds are averaged first."""
    import numpy as np
    import pandas as pd

    from utils.training.attribution import mean_effects

    langs, contexts = [query.example.lang for query in data.queries], data.query_contexts
    tables = []
    for measure in dict.fromkeys(values["measure"]):
        by_unit = as_array(values[values["measure"] == measure], list(data.units)).mean(axis=0)  # [unit, query]
        for lang in ["all", *dict.fromkeys(langs)] if len(set(langs)) > 1 else ["all"]:
            chosen = np.array([lang in ("all", of_query) for of_query in langs])
            chosen_contexts = [context for context, there in zip(contexts, chosen) if there]
            table = pd.DataFrame({"measure": measure, "query_lang": lang, "unit": list(data.units)})
            table["n_examples"] = [len(rows) for rows in data.units.values()]
            table = table.assign(**mean_effects(by_unit[:, chosen], chosen_contexts))
            tables.append(table.assign(n=int(chosen.sum()), n_contexts=len(set(chosen_contexts))))
    return pd.concat(tables, ignore_index=True)


def as_array(values: pd.DataFrame, units: list[str]) -> np.ndarray:
    """The values of a measure: [seed, unit, query]."""
    table = values.pivot(index=["seed", "unit"], columns="query", values="value")
    return (
        table.loc[[(number, unit) for number in dict.fromkeys(values["seed"]) for unit in units]]
        .to_numpy()
        .reshape(-1, len(units), table.shape[1])
    )


def value_rows(measure: str, number: int, by_unit: np.ndarray, data: Data) -> pd.DataFrame:
    """by_unit: [unit, query] -> a row each."""
    import numpy as np
    import pandas as pd

    n_queries = len(data.queries)
    return pd.DataFrame(
        {
            "measure": measure,
            "seed": number,
            "unit": np.repeat(list(data.units), n_queries),
            "query": np.tile(np.arange(n_queries), len(data.units)),
            "value": by_unit.ravel(),
        }
    )


# --- the truth ---------------------------------------------------------------------------------------------------


def retrained(args: argparse.Namespace, run: RunDirectory, data: Data) -> pd.DataFrame:
    """What each unit did: a query's measure with all texts less that without the unit's, by the same seed."""
    import numpy as np
    import pandas as pd

    trainings = [(number, unit) for number in args.seeds for unit in (EVERYTHING, *data.units)]
    measures: Measures | None = None
    measured: dict[tuple[int, str], pd.DataFrame] = {}
    for number, unit in tqdm(trainings, desc="retraining", unit="adapter", disable=None):
        folder = run.path / RETRAINED / f"seed{number}-{unit}"
        if not (folder / MEASURED).is_file():
            train(args, data, number, data.units.get(unit, []), folder)
            measures = measure_adapter(args, data, folder, measures)
        if unit != EVERYTHING:
            remove_adapter(folder)
        measured[number, unit] = read_table(folder / MEASURED).pivot(index="measure", columns="query", values="value")
    tables = []
    for measure in measured[trainings[0]].index:
        for number in args.seeds:
            whole = measured[number, EVERYTHING].loc[measure].to_numpy()
            without = np.stack([measured[number, unit].loc[measure].to_numpy() for unit in data.units])
            tables.append(value_rows(str(measure), number, whole - without, data))
    return pd.concat(tables, ignore_index=True)


def train(args: argparse.Namespace, data: Data, number: int, left_out: list[int], folder: Path) -> None:
    from utils.models.loading import load_model
    from utils.training.retraining import is_trained, train_without

    if is_trained(folder):
        return
    model = load_model(args.model, None, args.dtype, args.device)
    train_without(model, args.model, data.texts, left_out, recipe_of(args, number), folder)


def recipe_of(args: argparse.Namespace, number: int) -> Recipe:
    given = {name: value for name, value in vars(args).items() if name in vars(RECIPE)}
    fixed = {name: value for name, value in RECIPES["fast"].items() if name in vars(RECIPE)}
    return Recipe(**{**fixed, **given, "seed": number})  # type: ignore[arg-type]


def measure_adapter(args: argparse.Namespace, data: Data, folder: Path, measures: Measures | None) -> Measures:
    """Write the measures of the folder's adapter; returns them, for the next one to go without the vocabulary again."""
    import pandas as pd
    import torch

    from utils.models.loading import load_model
    from utils.training.measures import F1, Measures

    model = load_model(args.model, folder, args.dtype, args.device)
    measures = measures.of(model) if measures else Measures(model, args.query_langs, args.interferer)
    rows = []
    with torch.inference_mode():
        for i, query in enumerate(tqdm(data.queries, desc="measuring", leave=False, disable=None)):
            found = {name: float(value) for name, value in measures(query).items()}
            rows += [{"query": i, "measure": name, "value": value} for name, value in found.items()]
    rows += [{"query": i, "measure": F1, "value": value} for i, value in enumerate(f1_of_answers(args, model, data))]
    write_table(folder / MEASURED, pd.DataFrame(rows))
    return measures


def f1_of_answers(args: argparse.Namespace, model: LensModel, data: Data) -> list[float]:
    """Of what the model answers, greedily, by the multilingual normalisation; 0 to 1."""
    from utils.answers.generation import first_line, generate
    from utils.answers.normalisation import normaliser
    from utils.answers.scores import f1
    from utils.models.prefixes import question_prompt

    found = []
    for start in range(0, len(data.queries), ANSWERED):
        part = data.queries[start : start + ANSWERED]
        prompts = [question_prompt(query.prompt, query.example.context, query.example.id) for query in part]
        for query, written in zip(part, generate(model, prompts, max_new_tokens=args.max_new_tokens, shares=False)):
            answers, lang = query.example.answers, query.example.lang
            normalised = normaliser(answers, lang)
            found.append(f1(normalised(first_line(written.text)), [*map(normalised, answers)], str.split))
    return found


def remove_adapter(folder: Path) -> None:
    """Fifty adapters of 60 MB are not kept: what they answer is."""
    for path in (*folder.glob("adapter_*"), *folder.glob("README.md")):
        path.unlink()


# --- predictions -------------------------------------------------------------------------------------------------


def predicted(args: argparse.Namespace, run: RunDirectory, data: Data) -> pd.DataFrame:
    """Every text's value for every query, written, and the sums over units."""
    import numpy as np
    import pandas as pd

    from utils.training.attribution import unit_sums

    by_measure = example_scores(args, run, data)
    n_texts, n_queries = len(data.texts), len(data.queries)
    of_texts = [
        pd.DataFrame(
            {
                "measure": measure,
                "example": np.repeat(np.arange(n_texts), n_queries),
                "source": np.repeat(data.sources, n_queries),
                "id": np.repeat([text.example.id for text in data.texts], n_queries),
                "query": np.tile(np.arange(n_queries), n_texts),
                "value": scores.ravel(),
            }
        )
        for measure, scores in by_measure.items()
    ]
    write_table(run.path / EXAMPLES, pd.concat(of_texts, ignore_index=True))
    sums = {measure: unit_sums(of, data.unit_of_text, len(data.units)) for measure, of in by_measure.items()}
    return pd.concat([value_rows(measure, args.seeds[0], by_unit, data) for measure, by_unit in sums.items()])


def example_scores(args: argparse.Namespace, run: RunDirectory, data: Data) -> dict[str, np.ndarray]:
    """Measure -> [text, query]."""
    from utils.training.similarity import bm25, random_scores

    if args.method == "random":
        return {ANY: random_scores(len(data.texts), len(data.queries), args.seeds[0])}
    if args.method == "bm25":
        return {ANY: bm25([text.ids for text in data.texts], [query.prompt for query in data.queries])}
    model = adapted_model(args, run, data)
    if args.method == "representation":
        return {ANY: representations(args, model, data)}
    return gradient_scores(args, run, model, data)


def adapted_model(args: argparse.Namespace, run: RunDirectory, data: Data) -> LensModel:
    """With --adapter, or with one that is trained on all texts first."""
    from utils.models.loading import load_model

    if args.adapter is None:
        train(args, data, args.seeds[0], [], run.path / ADAPTER)
    return load_model(args.model, args.adapter or run.path / ADAPTER, args.dtype, args.device)


def representations(args: argparse.Namespace, model: LensModel, data: Data) -> np.ndarray:
    import numpy as np

    from utils.training.measures import query_of
    from utils.training.similarity import answering_state, centred_cosine

    def states(of_all: Iterable[Query]) -> np.ndarray:
        return np.stack([answering_state(model, query.ids, query.first) for query in of_all])

    as_queries = [query_of(model.tokenizer, text.example, args.max_tokens) for text in data.texts]
    bar = tqdm([query for query in as_queries if query], desc="texts", leave=False, disable=None)
    return centred_cosine(states(bar), states(data.queries))


def gradient_scores(args: argparse.Namespace, run: RunDirectory, model: LensModel, data: Data) -> dict[str, np.ndarray]:
    """Influence by EK-FAC, or the cosine of gradients. A file a query and a file a text, so that a stop costs one."""
    import numpy as np

    from utils.training.influence import lora_blocks, loss_gradient, unit_length
    from utils.training.measures import Measures

    records = run.path / RECORDS
    records.mkdir(exist_ok=True)
    blocks = lora_blocks(model)
    measures = Measures(model, args.query_langs, args.interferer)
    directions = directions_of_queries(args, records, model, blocks, measures, data)
    rows = []
    for i, text in enumerate(tqdm(data.texts, desc="gradients of texts", disable=None)):
        path = records / f"text-{i:05}.npy"
        if not path.is_file():
            found = loss_gradient(model, blocks, text)
            write_array(path, directions.products(unit_length(found) if args.method == "cosine" else found))
        rows.append(np.load(path, allow_pickle=False))
    of_all = np.stack(rows).reshape(len(data.texts), len(data.queries), len(measures.names))
    return {name: of_all[:, :, i] for i, name in enumerate(measures.names)}


def directions_of_queries(
    args: argparse.Namespace, records: Path, model: LensModel, blocks: dict, measures: Measures, data: Data
) -> Directions:
    """A direction for each query and measure, in this order."""
    from utils.training.influence import Directions, gradient, influence_direction

    paths = [records / f"query-{i:05}.npz" for i in range(len(data.queries))]
    curvatures = None
    if args.method == "ekfac" and not all(path.is_file() for path in paths):
        curvatures = curvatures_of_texts(args, records, model, blocks, data)
    directions = Directions()
    for query, path in zip(tqdm(data.queries, desc="gradients of queries", disable=None), paths):
        if not path.is_file():
            of_query = Directions()
            found = measures(query)
            for name in measures.names:
                of_query.add(influence_direction(gradient(found[name], blocks, again=True), curvatures))
            of_query.save(path)
        directions.add_saved(path)
    return directions


def curvatures_of_texts(
    args: argparse.Namespace, records: Path, model: LensModel, blocks: dict, data: Data
) -> list[Curvature]:
    from utils.training.influence import fit_curvature, save_curvatures, saved_curvatures

    def bar(items: Iterable, what: str) -> Iterable:
        return tqdm(items, desc=what, disable=None)

    found = saved_curvatures(records, blocks)
    if found is None:
        found = fit_curvature(model, blocks, data.texts, args.seeds[0], bar)
        save_curvatures(records, found)
    return found


# --- how well a method predicts the truth -------------------------------------------------------------------------


def score(args: argparse.Namespace) -> RunDirectory:
    """A row for each predicted run, measure of the truth and language of the queries; first the truth's own seeds."""
    import pandas as pd

    truth = Stored(args.truth, "--truth")
    if truth.method != "retrain":
        raise ValueError(f"--truth {args.truth}: a run of --method {truth.method}; the truth is one of retrain")
    others = [Stored(path, "--predicted") for path in args.predicted]
    for other in others:
        truth.require_same_data(other)
    inputs = {"metrics_sha256": {str(path): sha256_of_file(path / METRICS) for path in (args.truth, *args.predicted)}}
    given = argparse.Namespace(truth=args.truth, predicted=args.predicted)
    path = args.output_dir or default_output_dir("attribution-scores", given, args.truth.name)
    run = RunDirectory(path, configuration(SCRIPT, given, inputs), args.overwrite)
    if not run.finished:
        of_seeds = truth.rows_of_seeds()
        agree = {(row["measure"], row["query_lang"]): bool(row["low"] > 0) for row in of_seeds}
        rows = of_seeds + [row for other in others for row in truth.rows_of(other)]
        rows = [row | {"seeds_agree": agree.get((row["measure"], row["query_lang"]))} for row in rows]
        write_table(run.path / SCORES, pd.DataFrame(rows))
        run.finish({"runs": len(others), "rows": len(rows)})
    return run


class Stored:
    """A finished run of a method, as its files say. Raises ValueError where the folder holds none."""

    def __init__(self, path: Path, flag: str):
        require_finished(path)
        self.path, self.flag, config = path, flag, read_configuration(path)
        if config["script"] != SCRIPT or "method" not in config["arguments"]:
            raise ValueError(f"{flag} {path}: a run of {config['script']}, not of {SCRIPT} --method")
        self.arguments, self.inputs = config["arguments"], config["inputs"]
        self.method = self.arguments["method"]
        self.units, self.queries = (read_table(path / name) for name in (UNIT_TABLE, QUERY_TABLE))
        self.values = read_table(path / VALUES)

    def array(self, measure: str) -> np.ndarray:
        """[seed, unit, query]"""
        return as_array(self.values[self.values["measure"] == measure], list(self.units["unit"]))

    def require_same_data(self, other: Stored) -> None:
        """Raises ValueError where the other run has other texts, units, queries or another model."""
        for name in ("data_sha256", "query_sha256", "model_sha256"):
            if self.inputs.get(name) != other.inputs.get(name):
                raise ValueError(f"{other.flag} {other.path}: its {name} is not that of --truth {self.path}")
        for name in ("model", "by", "loss", "max_tokens", "interferer"):
            ours, theirs = self.arguments[name], other.arguments[name]
            if ours != theirs:
                raise ValueError(f"{other.flag} {other.path}: its {name} is {theirs!r}, that of --truth is {ours!r}")
        if not (self.units.equals(other.units) and self.queries.equals(other.queries)):
            raise ValueError(f"{other.flag} {other.path}: its units or queries are not those of --truth {self.path}")

    def languages(self) -> dict[str, np.ndarray]:
        """`all` and, where there are several, each language -> which queries are of it."""
        langs = self.queries["lang"].to_numpy()
        several = list(dict.fromkeys(langs)) if len(set(langs)) > 1 else []
        return {"all": langs == langs} | {lang: langs == lang for lang in several}

    def rows_of_seeds(self) -> list[dict]:
        """How well one half of the truth's seeds predicts the other; nothing where there is one seed."""
        from utils.training.attribution import reliability

        if len(self.arguments["seeds"]) < 2:
            return []
        contexts = self.queries["context"].to_numpy()
        head = {"method": OTHER_SEEDS, "run": self.path.name}
        return [
            {**head, "measure": measure, "predicted_by": measure, "query_lang": lang}
            | reliability(self.array(measure)[:, :, chosen], contexts[chosen])
            for measure in dict.fromkeys(self.values["measure"])
            for lang, chosen in self.languages().items()
        ]

    def rows_of(self, other: Stored) -> list[dict]:
        """The other run's predictions against this one's truth, the mean over its seeds."""
        from utils.training.attribution import datamodeling_score
        from utils.training.measures import LOSS

        contexts, rows = self.queries["context"].to_numpy(), []
        known = set(other.values["measure"])
        for measure in dict.fromkeys(self.values["measure"]):
            # F1 has no gradient: what predicts it is the method's prediction of the loss.
            by = next((name for name in (measure, ANY, LOSS) if name in known), None)
            if by is None:
                raise ValueError(f"{other.flag} {other.path}: {VALUES} has no measure that could predict {measure}")
            truth, predicted = self.array(measure).mean(axis=0), other.array(by).mean(axis=0)
            for lang, chosen in self.languages().items():
                found = datamodeling_score(predicted[:, chosen], truth[:, chosen], contexts[chosen])
                head = {"method": other.method, "run": other.path.name, "measure": measure, "predicted_by": by}
                rows.append({**head, "query_lang": lang} | found)
        return rows


# --- what is printed ---------------------------------------------------------------------------------------------


def report(args: argparse.Namespace, run: RunDirectory) -> None:
    """Of each measure, the units that help most and least."""
    effects = read_table(run.path / EFFECTS)
    effects = effects[effects["query_lang"] == "all"]
    for measure, table in effects.groupby("measure", sort=False):
        ordered = table.sort_values("mean", ascending=False, kind="stable")
        order = list(ordered.index)
        shown = ordered.loc[order if len(order) <= 2 * PRINTED else order[:PRINTED] + order[-PRINTED:]]
        print(f"{measure}: what a {args.by} did, in the mean over {table['n'].iloc[0]} queries (positive helps)")
        for unit, mean, low, high, n in zip(*(shown[name] for name in ("unit", "mean", "low", "high", "n_examples"))):
            print(f"  {unit:24} {mean:+.4g}{interval(low, high)}  n {n}")
    print(f"run: {run.path}")


def interval(low: float, high: float) -> str:
    return "" if low != low else f" [{low:+.4g}, {high:+.4g}]"


def report_scores(run: RunDirectory) -> None:
    table = read_table(run.path / SCORES)
    print("linear datamodeling score (mean rank correlation over the queries) of each method with the truth")
    for row in table[table["query_lang"] == "all"].itertuples():
        value = "none: nothing differs" if row.lds != row.lds else f"{row.lds:+.3f}{interval(row.low, row.high)}"
        print(f"  {row.measure:8} {row.method:24} {value}  p {row.p:.3g}  n {row.n_queries}")
    for measure, agree in table[table["query_lang"] == "all"].groupby("measure", sort=False)["seeds_agree"]:
        if agree.isna().all():
            print(f"{measure}: the truth is of one seed, so that nobody knows what it is worth; give more --seeds")
        elif not agree.all():
            print(f"{measure}: the truth's own seeds are not seen to agree, so no method is judged by it; more --seeds")
    print(f"run: {run.path}")


if __name__ == "__main__":
    sys.exit(main())
