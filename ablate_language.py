"""What does taking a language out of a model do to its answers in another one? Suppression by hand, with controls.

    python get_datasets.py xquad_in flores200
    python ablate_language.py --model bigscience/bloomz-560m --dataset xquad_in --langs or --language bn --by direction
    python ablate_language.py --model gemma-3-270m --langs hi --language en --by logits --strength 0.5 1
    python ablate_language.py --model gemma-3-270m --adapter results/RUN --langs or --language en --add_back

The same questions are answered, the same prompts probed and the same sentences' perplexity measured with and without
the language; beside it five random ablations that take as much, another language's ablation, and the target's own.
--by direction projects the language's direction out at each layer of --layers, neurons sets its expert neurons to
their mean in other languages, logits takes its part of each next-token distribution. --add_back adds back to a tuned
model what tuning took along the language's direction. Writes, in a folder under results/, answers.csv, changes.csv,
perplexity.csv, lens.csv, verdict.csv and figures/; docs/ablation.md has the rule of the verdict. A run that was stopped
goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from utils import command_line
from utils.command_line import DTYPES, METHODS, above_zero, not_negative, positive, seed
from utils.data.examples import (
    DATASETS,
    DEFAULT_LANGS,
    Example,
    QuestionSet,
    data_files,
    default_split,
    fields_of,
    load_examples,
)
from utils.data.prompts import QA_TEMPLATES, render
from utils.languages import language_code, language_name, short_code
from utils.runs import (
    RunDirectory,
    configuration,
    default_output_dir,
    sha256_of_file,
    write_arrays,
    write_atomically,
    write_table,
)

if TYPE_CHECKING:
    import numpy as np

    from utils.answers.generation import Generated, Question
    from utils.experiments.ablation_tables import Condition
    from utils.experiments.ablations import AddedBack, Directions, Logits, Neurons
    from utils.models.families import LensModel
    from utils.models.hidden_states import Prompt
    from utils.token_languages.matrix import TokenLanguages

    Way = AddedBack | Directions | Logits | Neurons

SCRIPT = "ablate_language.py"
WAYS = ("direction", "neurons", "logits")
CENTRES = ("zero", "others")
QUESTION_SETS = [name for name, files in DATASETS.items() if isinstance(files, QuestionSet)]
# The first of them that is neither taken away nor asked: far from the paper's languages in script and family.
BYSTANDERS = ("zho_Hans", "deu_Latn", "rus_Cyrl", "hin_Deva")
LINES = 3  # of an answer: the first is scored, the best one too
SELF_CHECKED = 12
LEAST_SHARE = 1e-3  # a channel with less at a layer has no row in lens.csv
N_CALIBRATION = 24  # prompts of questions that --add_back measures the tuned and the untuned model on
ANSWERS, WORK = "answers", "records"


def main(argv: Sequence[str] | None = None) -> int:
    return command_line.run(ablate, parse_args(argv))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="bigscience/bloomz-560m", help="a hub id, a folder, a .gguf, gemma-3-270m")
    model.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT adapter's folder")
    model.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help="auto: float32 on a CPU")
    model.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    ablation = parser.add_argument_group("ablation")
    ablation.add_argument("--language", required=True, metavar="LANG", help="what is taken away")
    ablation.add_argument("--by", default="direction", choices=WAYS)
    ablation.add_argument("--layers", metavar="A-B", help="default: from the middle to the last; 0: embeddings")
    ablation.add_argument(
        "--strength", nargs="+", type=above_zero, default=[0.1, 1.0], metavar="S", help="1: all of it"
    )
    ablation.add_argument(
        "--centre",
        default="zero",
        choices=CENTRES,
        help="what strength 1 leaves along it: 0, or what other languages have",
    )
    ablation.add_argument("--top", type=positive, default=1000, metavar="K", help="expert neurons")
    ablation.add_argument("--add_back", action="store_true", help="of --adapter: what it took along the direction")
    ablation.add_argument("--n_random", type=positive, default=5, metavar="N", help="random controls, 5 or more")
    ablation.add_argument("--bystander", metavar="LANG", help="another language's ablation, as a control")
    data = parser.add_argument_group("questions")
    data.add_argument("--dataset", default="sample_qa", choices=QUESTION_SETS)
    data.add_argument("--split", help="test where the set has one")
    data.add_argument("--langs", nargs="+", default=["or"], metavar="LANG", help="the target languages; default: or")
    data.add_argument("--limit", type=positive, metavar="N", help="the first N questions of each language")
    data.add_argument("--prompt", default="plain", choices=QA_TEMPLATES)
    data.add_argument("--max_new_tokens", type=positive, default=100, metavar="N")
    data.add_argument(
        "--max_answer_tokens",
        type=positive,
        metavar="N",
        help="cut answers here in cut_f1; default: as the gold answer",
    )
    data.add_argument(
        "--lens", type=not_negative, default=20, metavar="N", help="prompts a language that the lens reads"
    )
    data.add_argument("--token_languages", default="corpus", metavar="DIR|" + "|".join(METHODS))
    sentences = parser.add_argument_group("sentences")
    sentences.add_argument(
        "--corpus",
        nargs="+",
        default=["sample_parallel"],
        metavar=("NAME", "SPLIT"),
        help="a parallel set, or a folder",
    )
    sentences.add_argument("--corpus_langs", nargs="+", metavar="LANG", help="default: those named, and the usual six")
    sentences.add_argument("--sentences", type=positive, default=200, metavar="N", help="at most so many a language")
    sentences.add_argument("--losses", type=positive, default=30, metavar="N", help="those whose perplexity is read")
    parser.add_argument("--seed", type=seed, default=42, help="of the random controls")
    parser.add_argument("--output_dir", type=Path, metavar="D")
    parser.add_argument("--overwrite", action="store_true", help="remove the run that --output_dir holds")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Asked:
    """All that a condition reads. questions: language -> its questions; sentences: language -> prompts, translations
    in the same rows; layers: of the ablation; max_batch_tokens: of a batch of questions; shares: may prompts share
    their beginnings.
    """

    model: LensModel
    matrix: TokenLanguages
    questions: dict[str, list[Question]]
    sentences: dict[str, list[Prompt]]
    layers: list[int]
    max_batch_tokens: int
    shares: bool
    untuned: LensModel | None


def ablate(args: argparse.Namespace) -> None:
    from utils.experiments.ablation_tables import conditions
    from utils.models.loading import load_model
    from utils.token_languages.matrix import named_matrix

    resolve_defaults(args)
    examples = load_examples(args.dataset, args.langs, args.split, args.limit)
    sentences = read_sentences_of(args)
    model = load_model(args.model, args.adapter, args.dtype, args.device)
    matrix = named_matrix(args.token_languages, model.tokenizer, args.model)
    layers = layers_of(args, len(model.layers))
    questions, prompts = tokenized(args, model, examples, sentences)
    require_taken(args, model, matrix, layers)
    run = open_run(args, model, matrix, layers)
    if not run.finished:
        asked = prepared(args, run, model, matrix, layers, questions, prompts)
        every = conditions(
            args.language, args.bystander, args.langs, args.strength, args.n_random, untuned=args.add_back
        )
        way = MAKERS["add_back" if args.add_back else args.by](args, run, asked)
        measure_all(args, run, asked, way, every)
        finish(args, run, asked, way, every)
    remove_work(run)
    report(run)


def resolve_defaults(args: argparse.Namespace) -> None:
    """Languages as FLORES codes, and what can't be asked together, refused before anything is loaded."""
    from utils.experiments.ablation_tables import FEWEST_RANDOM

    args.language = language_code(args.language)
    args.langs = [language_code(lang) for lang in args.langs]
    args.split = default_split(args.dataset) if args.split is None else args.split
    taken = [args.language, *args.langs]
    if args.language in args.langs:
        raise ValueError(f"--language {args.language}: it is among --langs, whose own ablation is a control")
    free = [code for code in BYSTANDERS if code not in taken]
    if not (args.bystander or free):
        raise ValueError(f"--bystander: name one; {', '.join(BYSTANDERS)} are taken away or asked already")
    args.bystander = language_code(args.bystander or free[0])
    if args.bystander in taken:
        raise ValueError(f"--bystander {args.bystander}: it is taken away or asked already; choose another language")
    named = [language_code(lang) for lang in args.corpus_langs or DEFAULT_LANGS]
    if args.corpus_langs and len(set(named)) < len(named):
        raise ValueError(f"--corpus_langs {' '.join(args.corpus_langs)}: give each language once")
    args.corpus_langs = list(dict.fromkeys([*taken, args.bystander, *named]))
    args.strength = sorted(set(args.strength))
    if args.n_random < FEWEST_RANDOM:
        raise ValueError(f"--n_random {args.n_random}: the verdict needs {FEWEST_RANDOM} random controls or more")
    if args.by == "logits" and args.layers:
        raise ValueError(f"--layers {args.layers}: --by logits is of the last layer alone; leave --layers out")
    if args.centre != CENTRES[0] and (args.add_back or args.by != "direction"):
        raise ValueError(f"--centre {args.centre}: it is of --by direction alone, without --add_back")
    if args.add_back and not args.adapter:
        raise ValueError("--add_back needs --adapter: what is added back is what tuning took away")
    if args.add_back and args.by != "direction":
        raise ValueError(f"--add_back is along a direction; leave --by {args.by} out")


def read_sentences_of(args: argparse.Namespace) -> dict[str, list[str]]:
    """At most --sentences of each of --corpus_langs. Raises ValueError for fewer than two, which have no halves."""
    from utils.data.corpora import parallel_files, read_parallel

    sentences = read_parallel(parallel_files(args.corpus, args.corpus_langs))
    n = len(sentences[args.language])
    if min(n, args.sentences) < 2:
        raise ValueError(f"--corpus {' '.join(args.corpus)}: two sentences a language are needed, one for each half")
    return {lang: of_lang[: args.sentences] for lang, of_lang in sentences.items()}


def layers_of(args: argparse.Namespace, n_layers: int) -> list[int]:
    """--layers A-B or A, as the lens counts them. Raises ValueError for layers that the model has not."""
    if args.by == "logits":
        return [n_layers]
    first, _, last = (args.layers or f"{n_layers // 2}-{n_layers}").partition("-")
    least = 1 if args.by == "neurons" else 0
    try:
        found = list(range(int(first), int(last or first) + 1))
    except ValueError:
        raise ValueError(f"--layers {args.layers}: give a layer, or the first and the last with - between") from None
    if not found or found[0] < least or found[-1] > n_layers:
        raise ValueError(f"--layers {args.layers}: the model has layers {least} to {n_layers}")
    return found


def open_run(args: argparse.Namespace, model: LensModel, matrix: TokenLanguages, layers: list[int]) -> RunDirectory:
    from utils.answers.generation import max_batch_tokens
    from utils.data.corpora import parallel_files
    from utils.models.loading import provenance

    corpus = parallel_files(args.corpus, args.corpus_langs).values()
    files = [*data_files(args.dataset, args.langs, args.split), *corpus]
    inputs = {
        "data_sha256": {path.name: sha256_of_file(path) for path in files},
        **provenance(model, args.adapter),
        "token_languages": matrix.config,
        "layers": layers,
    }
    settings = configuration(SCRIPT, args, inputs)
    # The memory at hand is another one each time; a run that goes on keeps to the batches that it began with.
    settings["max_batch_tokens"] = max_batch_tokens(model)
    parts = [Path(args.model).name, args.by, "without", short_code(args.language), args.dataset]
    parts[2] = "back" if args.add_back else parts[2]
    folder = args.output_dir or default_output_dir("ablation", args, *parts, "-".join(map(short_code, args.langs[:6])))
    return RunDirectory(folder, settings, args.overwrite)


def tokenized(
    args: argparse.Namespace, model: LensModel, examples: list[Example], sentences: dict[str, list[str]]
) -> tuple[dict[str, list[Question]], dict[str, list[Prompt]]]:
    """(language -> its questions, language -> its sentences). Raises ValueError for one longer than the context."""
    from utils.answers.generation import Question
    from utils.models.hidden_states import encode
    from utils.models.interventions import sentence_prompt
    from utils.models.prefixes import question_prompt

    questions: dict[str, list[Question]] = {lang: [] for lang in args.langs}
    for example in examples:
        text = render(example, args.prompt)
        prompt = question_prompt(encode(model.tokenizer, text), example.context, f"{example.lang} {example.id}")
        questions[example.lang].append(Question(example, text, prompt))
    prompts = {lang: [sentence_prompt(model, text) for text in texts] for lang, texts in sentences.items()}
    longest = max(len(question.prompt.ids) for of_lang in questions.values() for question in of_lang)
    longest = max(longest + args.max_new_tokens, *(len(one.ids) for of_lang in prompts.values() for one in of_lang))
    if model.max_positions and longest > model.max_positions:
        raise ValueError(
            f"a text of {longest} tokens (--max_new_tokens {args.max_new_tokens} counted), more than the "
            f"{model.max_positions} of --model {args.model}"
        )
    return questions, prompts


def require_taken(args: argparse.Namespace, model: LensModel, matrix: TokenLanguages, layers: list[int]) -> None:
    """Raises ValueError where the model has too few neurons, or the matrix lacks a language that is taken away."""
    from utils.models.interventions import neuron_maps
    from utils.token_languages.removal import language_column

    n_neurons = sum(one.width for one in neuron_maps(model) if one.layer in layers)
    if args.by == "neurons" and args.top > n_neurons:
        raise ValueError(f"--top {args.top}: layers {layers[0]} to {layers[-1]} have {n_neurons} neurons")
    for lang in ablated_languages(args) if args.by == "logits" else ():
        language_column(matrix, lang, model.n_tokens)


def prepared(
    args: argparse.Namespace,
    run: RunDirectory,
    model: LensModel,
    matrix: TokenLanguages,
    layers: list[int],
    questions: dict[str, list[Question]],
    sentences: dict[str, list[Prompt]],
) -> Asked:
    """All that conditions read. Raises ValueError where the self-check of batches fails."""
    from utils.answers import generation
    from utils.models.loading import load_model
    from utils.models.prefixes import can_share

    some = [question.prompt for question in questions[args.langs[0]][:SELF_CHECKED]]
    shares = can_share(model, some)
    generation.self_check(model, some, shares)
    untuned = load_model(args.model, None, args.dtype, args.device) if args.add_back else None
    return Asked(model, matrix, questions, sentences, layers, run.configuration["max_batch_tokens"], shares, untuned)


def batches_of(model: LensModel, prompts: list[Prompt]) -> list[list[int]]:
    from utils.models.hidden_states import MAX_BATCH_TOKENS, batches

    return batches(prompts, None, MAX_BATCH_TOKENS.get(model.device.type, MAX_BATCH_TOKENS["cpu"]))


# What is taken away


def ablated_languages(args: argparse.Namespace) -> list[str]:
    return [args.language, args.bystander, *args.langs]


def directions_of(args: argparse.Namespace, run: RunDirectory, asked: Asked) -> Directions:
    """Each language's direction at every layer, from its sentences' mean states; a file a language."""
    import numpy as np

    from utils.experiments.ablations import Directions
    from utils.neurons.directions import FOLDS, differences, mean_states, means_of_others
    from utils.runs import read_arrays

    model, states = asked.untuned or asked.model, {}
    for lang, prompts in tqdm(asked.sentences.items(), desc="finding directions", unit="language", disable=None):
        path = record(run, f"states-{lang}.npz")
        if not path.exists():
            write_arrays(path, states=mean_states(model, prompts, batches_of(model, prompts)))
        states[lang] = read_arrays(path)["states"]
    found = {fold: differences(states, fold) for fold in FOLDS}
    kept = ablated_languages(args)
    lengths = np.linalg.norm(np.mean([of_lang.mean(axis=0) for of_lang in states.values()], axis=0), axis=-1)
    found = {fold: {lang: of_fold[lang] for lang in kept} for fold, of_fold in found.items()}
    others = {fold: means_of_others(states, fold) for fold in FOLDS} if args.centre == "others" else {}
    directions = Directions(args.language, found, others, asked.layers, args.seed, lengths)
    if args.add_back:
        return directions
    return replace(directions, left=left_over_of(args, run, asked, directions))


def left_over_of(
    args: argparse.Namespace, run: RunDirectory, asked: Asked, directions: Directions
) -> dict[float, dict[int, float]]:
    """Strength -> layer -> what the random controls' change is scaled by, so that it is as long as the language's."""
    from utils.neurons.directions import left_over

    path, units = record(run, "left.json"), directions.units(args.language, "all")
    if not path.exists():
        prompts, centres = calibration_prompts(asked)[::2], directions.centres(args.language, "all")
        found = [left_over(asked.model, prompts, units, strength, centres) for strength in args.strength]
        text = json.dumps([list(of_layer.values()) for of_layer in found])
        write_atomically(path, lambda file: file.write(text.encode("utf-8")))
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {strength: dict(zip(units, values)) for strength, values in zip(args.strength, stored)}


def added_back_of(args: argparse.Namespace, run: RunDirectory, asked: Asked) -> AddedBack:
    """What brings the tuned model's questions to the untuned model's mean component along each direction."""
    from utils.experiments.ablations import AddedBack
    from utils.neurons.directions import back_to, components

    assert asked.untuned, "--add_back without the model that was tuned"
    directions = directions_of(args, run, asked)
    prompts = calibration_prompts(asked)
    batches = batches_of(asked.model, prompts)
    shifts, means = {}, {}
    bar = tqdm(
        total=len(ablated_languages(args)) * len(asked.layers), desc="finding shifts", unit="layer", disable=None
    )
    for lang in ablated_languages(args):
        path = record(run, f"shifts-{lang}.json")
        if not path.exists():
            units = directions.units(lang, "all")
            sides = {"untuned": components(asked.untuned, prompts, batches, units)}
            sides["tuned"] = components(asked.model, prompts, batches, units)
            vectors = back_to(sides["untuned"], asked.model, prompts, batches, units, bar.update)
            found = {layer: float(vectors[layer] @ units[layer]) for layer in units}
            text = json.dumps({"shifts": found, **sides})
            write_atomically(path, lambda file, text=text: file.write(text.encode("utf-8")))  # type: ignore[misc]
        stored = json.loads(path.read_text(encoding="utf-8"))
        by_layer = {side: {int(layer): value for layer, value in of.items()} for side, of in stored.items()}
        shifts[lang] = by_layer.pop("shifts")
        means[lang] = by_layer
    bar.close()
    return AddedBack(directions, shifts, means)


def calibration_prompts(asked: Asked) -> list[Prompt]:
    """N_CALIBRATION of the questions' prompts, spread over all of them, read at their last token."""
    prompts = [question.prompt for of_lang in asked.questions.values() for question in of_lang]
    step = max(1, len(prompts) // N_CALIBRATION)
    return prompts[::step][:N_CALIBRATION]


def neurons_of(args: argparse.Namespace, run: RunDirectory, asked: Asked) -> Neurons:
    """Each language's expert neurons, and each neuron's mean output in the other languages; a file a batch."""
    import numpy as np

    from utils.experiments.ablations import Neurons, outputs_of_others
    from utils.models.interventions import max_responses, neuron_maps
    from utils.neurons.directions import FOLDS, expert_neurons, mean_outputs
    from utils.neurons.experts import ResponseFiles

    model, langs = asked.model, list(asked.sentences)
    maps = neuron_maps(model)
    prompts = [prompt for of_lang in asked.sentences.values() for prompt in of_lang]
    n = len(prompts) // len(langs)
    work = batches_of(model, prompts)
    highest, means = (ResponseFiles(run.path / WORK / name, work) for name in ("highest", "means"))
    for number, batch in enumerate(tqdm(work, desc="finding neurons", unit="batch", disable=None)):
        chosen = [prompts[i] for i in batch]
        if not highest.is_done(number):
            highest.write(number, max_responses(model, maps, chosen).cpu().numpy())
        if not means.is_done(number):
            means.write(number, mean_outputs(model, maps, chosen))
    classes, numbers = np.repeat(np.arange(len(langs)), n), np.tile(np.arange(n), len(langs))
    experts = expert_neurons(highest, maps, classes, numbers, asked.layers, args.top)
    outputs = means.columns(0, maps[-1].stop).reshape(len(langs), n, -1)
    by_lang = dict(zip(langs, outputs))
    kept = ablated_languages(args)
    chosen_of = {fold: {lang: experts[fold][langs.index(lang)] for lang in kept} for fold in FOLDS}
    others = {fold: outputs_of_others(by_lang, fold) for fold in FOLDS}
    return Neurons(args.language, maps, chosen_of, others, args.seed)


def columns_of(args: argparse.Namespace, run: RunDirectory, asked: Asked) -> Logits:
    """Each language's part of each token, and the mean next-token distribution after the questions."""
    from utils.experiments.ablations import Logits
    from utils.runs import read_arrays
    from utils.token_languages.removal import is_text, language_column

    path, model = record(run, "next-token.npz"), asked.model
    columns = {lang: language_column(asked.matrix, lang, model.n_tokens) for lang in ablated_languages(args)}
    if not path.exists():
        from utils.lens.reading import mean_vocab_probs

        prompts = calibration_prompts(asked)
        write_arrays(path, probs=mean_vocab_probs(model, prompts)[-1].numpy())
    probs = read_arrays(path)["probs"]
    return Logits(args.language, columns, probs, is_text(asked.matrix, model.n_tokens), args.seed)


MAKERS: dict[str, Callable[..., Way]] = {
    "direction": directions_of,
    "neurons": neurons_of,
    "logits": columns_of,
    "add_back": added_back_of,
}


# A condition's measures, each a file of its own, so that a stopped run goes on at the next one


def record(run: RunDirectory, name: str) -> Path:
    (run.path / WORK).mkdir(exist_ok=True)
    return run.path / WORK / name


def answers_file(run: RunDirectory, condition: Condition, lang: str) -> Path:
    (run.path / ANSWERS).mkdir(exist_ok=True)
    return run.path / ANSWERS / f"{condition.name}_{lang}.jsonl"


@contextmanager
def live(asked: Asked, way: Way, condition: Condition, fold: str) -> Iterator[LensModel]:
    """The model that the condition is: its own, the one without adapter, or with something taken away."""
    from utils.experiments.ablation_tables import BASE, UNTUNED

    if condition.role == BASE:
        yield asked.model
    elif condition.role == UNTUNED:
        assert asked.untuned, "untuned without --add_back"
        yield asked.untuned
    else:
        with way.live(asked.model, condition, fold) as changed:
            yield changed


def measure_all(args: argparse.Namespace, run: RunDirectory, asked: Asked, way: Way, every: list[Condition]) -> None:
    """Answers, lens and losses of every condition."""
    bar = tqdm(every, desc="measuring", unit="condition", disable=None)
    for condition in bar:
        bar.set_postfix_str(condition.name)
        langs = [lang for lang in asked.questions if condition.asks(lang)]
        for lang in langs:
            path = answers_file(run, condition, lang)
            if not path.exists():
                with live(asked, way, condition, "all") as model:
                    rows = answered(args, asked, model, asked.questions[lang])
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                write_atomically(path, lambda file, text=text: file.write(text.encode("utf-8")))  # type: ignore[misc]
            path = record(run, f"lens-{condition.name}_{lang}.npz")
            if args.lens and not path.exists():
                with live(asked, way, condition, "all") as model:
                    write_arrays(path, shares=lens_shares(args, asked, model, asked.questions[lang]))
        path = record(run, f"losses-{condition.name}.npz")
        if not path.exists():
            write_arrays(path, **losses(args, asked, way, condition))


def answered(args: argparse.Namespace, asked: Asked, model: LensModel, questions: list[Question]) -> list[dict]:
    """A row a question, in their order."""
    from utils.answers.generation import generate, question_batches

    prompts = [question.prompt for question in questions]
    rows: list[dict] = [{} for _ in questions]
    for batch in question_batches(prompts, None, asked.max_batch_tokens, args.max_new_tokens):
        written = generate(
            model, [prompts[i] for i in batch], "greedy", args.max_new_tokens, args.seed, asked.shares, LINES
        )
        for i, generated in zip(batch, written):
            rows[i] = row_of(args, asked, questions[i], generated)
    return rows


def row_of(args: argparse.Namespace, asked: Asked, question: Question, generated: Generated) -> dict:
    from utils.answers.generation import first_line
    from utils.experiments.ablation_tables import readings

    example, prediction = question.example, first_line(generated.text)
    # With the space that stands before an answer in every prompt: a word's token has it.
    ids = asked.model.tokenizer.encode(f" {prediction}", add_special_tokens=False)
    scores = readings(generated.text, example.answers, example.lang, args.max_answer_tokens)
    ended = "\n" in generated.text.lstrip()  # its first line did, whatever the others do
    return {
        **fields_of(example),
        "generated": generated.text,
        "prediction": prediction,
        "scores": {**scores, "answer_language": asked.matrix.language_of(ids, example.lang)},
        "answer_tokens": len(ids),
        "stopped_by": "line" if ended else generated.stopped_by,
    }


def lens_shares(args: argparse.Namespace, asked: Asked, model: LensModel, questions: list[Question]) -> np.ndarray:
    """What the lens reads after the first --lens prompts, with the ablation live: [layer, channel]."""
    import torch

    from utils.lens.reading import mean_vocab_probs

    prompts = [question.prompt for question in questions[: args.lens]]
    # `logits` changes the head, which the lens reads every layer with: below the last one it is the model's own.
    own_head = model if args.by == "logits" else None
    below = asked.model if own_head else model
    return asked.matrix.shares(mean_vocab_probs(below, prompts, own_head), torch.float32)


def losses(args: argparse.Namespace, asked: Asked, way: Way, condition: Condition) -> dict[str, np.ndarray]:
    """Language -> the loss of each of its first --losses sentences (nats a token), [sentence].

    What is taken away was found on the half of the sentences that a sentence is not in.
    """
    import numpy as np

    from utils.neurons.directions import finders_of
    from utils.neurons.effects import pooled_and_losses

    found = {lang: np.full(len(prompts[: args.losses]), np.nan) for lang, prompts in asked.sentences.items()}
    for fold in ("even", "odd"):
        with live(asked, way, condition, fold) as model:
            for lang, prompts in asked.sentences.items():
                places = [i for i in range(len(found[lang])) if finders_of(i) == fold]
                chosen = [prompts[i] for i in places]
                if chosen:
                    found[lang][places] = pooled_and_losses(model, chosen, len(chosen), batches_of(model, chosen))[1]
    return found


# Tables


def finish(args: argparse.Namespace, run: RunDirectory, asked: Asked, way: Way, every: list[Condition]) -> None:
    from utils.experiments import ablation_tables as tables
    from utils.figures.ablation import draw_ablation
    from utils.runs import read_arrays

    langs = {condition: [lang for lang in asked.questions if condition.asks(lang)] for condition in every}
    answers = {
        condition: {lang: read_rows(answers_file(run, condition, lang)) for lang in of_condition}
        for condition, of_condition in langs.items()
    }
    found = {condition: read_arrays(record(run, f"losses-{condition.name}.npz")) for condition in every}
    changes, perplexity = tables.change_table(answers), tables.perplexity_table(found)
    verdicts = tables.verdict_table(changes, perplexity, args.add_back)
    written = {
        "answers.csv": tables.answer_table(answers),
        "changes.csv": changes,
        "perplexity.csv": perplexity,
        "verdict.csv": verdicts,
        f"{args.by}.csv": way.table(),
    }
    if args.lens:
        shares = {
            condition: {
                lang: read_arrays(record(run, f"lens-{condition.name}_{lang}.npz"))["shares"] for lang in of_condition
            }
            for condition, of_condition in langs.items()
        }
        written["lens.csv"] = tables.lens_table(shares, asked.matrix.channels, LEAST_SHARE)
    for name, table in written.items():
        write_table(run.path / name, table)
    draw_ablation(run.path)
    counts = {lang: len(questions) for lang, questions in asked.questions.items()}
    told = verdicts[["lang", "strength", "verdict", "because"]].to_dict("records")
    run.finish({"verdicts": told, "questions": counts, "sentences": len(asked.sentences[args.language])})


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")]


def remove_work(run: RunDirectory) -> None:
    """What a stopped run goes on from; only a finished one can do without it."""
    import shutil

    shutil.rmtree(run.path / WORK, ignore_errors=True)


def report(run: RunDirectory) -> None:
    import pandas as pd

    table = pd.read_csv(
        run.path / "verdict.csv", keep_default_na=False, na_values={"change": "", "low": "", "high": ""}
    )
    shown = ["lang", "strength", "before", "after", "change", "low", "high", "hardest_control", "over_control"]
    columns = [*shown, "over_control_low", "perplexity_ratio_high"]
    print(table[columns].to_string(index=False, float_format=lambda number: f"{number:.3g}"))
    for row in table.itertuples():
        because = f": {row.because}" if row.because else ""
        print(f"{language_name(str(row.lang))}, strength {row.strength:g}: {row.verdict}{because}")
    print("F1 of the target's questions with and without the language; 95% intervals over contexts (docs/ablation.md)")
    print(f"tables: {run.path}")
    for path in sorted((run.path / "figures").glob("*.png")):
        print(f"  {path}")


if __name__ == "__main__":
    sys.exit(main())
