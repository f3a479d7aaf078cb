"""How well does a model answer questions in each language, and where does it miss?

    python QAinference.py --model bigscience/bloomz-560m
    python QAinference.py --model gemma-3-270m --dataset xquad_in --langs en hi or te --limit 200 --shots 2
    python QAinference.py --score results/RUN/predictions.jsonl

The model answers each question in the paper's prompt; the answer is the first line that it writes. Writes, in a
folder under results/, predictions.jsonl, a line a question as it is answered, and metrics.json. A run that was
stopped goes on with the same command. --score scores a file of predictions again, or another program's, without a
model. `accelerate launch --num_processes N QAinference.py ...` divides the contexts over N processes (on a CPU with
--multi_gpu, or torchrun --nproc_per_node N).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from utils import command_line
from utils.answers import scores
from utils.answers.predictions import PREDICTIONS, Key, append, read_predictions, require_all, write_in_order
from utils.command_line import (
    DECODINGS,
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
    Example,
    QuestionSet,
    choose_shots,
    data_files,
    default_split,
    fields_of,
    load_examples,
    read_text,
    shots_split,
    solved_examples,
)
from utils.data.prompts import QA_TEMPLATES, render, render_shots
from utils.languages import language_code, language_name, short_code
from utils.runs import RunDirectory, configuration, default_output_dir, sha256_of_file

if TYPE_CHECKING:
    from utils.answers.generation import Generated, Question
    from utils.models.arithmetic import Way
    from utils.models.families import LensModel
    from utils.models.processes import Processes
    from utils.token_languages.matrix import TokenLanguages

SCRIPT = "QAinference.py"
QUESTION_SETS = [name for name, files in DATASETS.items() if isinstance(files, QuestionSet)]
# Flags that the command doesn't give: with --score, as the run that made the file had them; else these.
DEFAULTS = {
    "model": "bigscience/bloomz-560m",
    "dataset": "sample_qa",
    "split": None,
    "langs": None,
    "limit": None,
    "seed": 42,
    "token_languages": "corpus",
}
# Prompts of the first batch that are read for the self-check.
SELF_CHECKED = 12
MISS_COLUMNS = {
    "punctuation_or_unicode": "punct",
    "overgeneration": "over",
    "truncation": "part",
    "wrong_span": "other span",
    "not_in_context": "absent",
    "wrong_language_or_script": "language",
    "empty": "empty",
}


def main(argv: Sequence[str] | None = None) -> int:
    return command_line.run(infer, parse_args(argv))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_argument_group("model")
    model.add_argument("--model", help="a hub id (bigscience/bloomz-560m), a folder, a .gguf, gemma-3-270m")
    model.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT adapter's folder")
    model.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help="auto: float32 on a CPU")
    model.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    model.add_argument("--device_map", default="none", choices=DEVICE_MAPS, help="auto: over all devices at hand")
    model.add_argument("--quantization", default="none", choices=QUANTIZATIONS, help="on a GPU")
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", choices=QUESTION_SETS, help="sample_qa")
    data.add_argument("--split", help="test where the set has one")
    data.add_argument("--langs", nargs="+", metavar="LANG", help=f"default: {' '.join(DEFAULT_LANGS)}")
    data.add_argument("--limit", type=positive, metavar="N", help="the first N questions of each language")
    data.add_argument("--prompt", default="plain", choices=QA_TEMPLATES)
    data.add_argument("--shots", type=not_negative, default=0, metavar="K", help="solved examples before each question")
    answers = parser.add_argument_group("answers")
    answers.add_argument("--decode", default="greedy", choices=DECODINGS)
    answers.add_argument("--max_new_tokens", type=positive, default=100, metavar="N")
    answers.add_argument("--batch_size", type=batch_size, default="auto", metavar="auto|N")
    answers.add_argument("--seed", type=seed, help="42; of the shots, of what --decode paper draws")
    scoring = parser.add_argument_group("scores")
    scoring.add_argument("--score", type=Path, metavar="FILE", help="score these predictions; no model is loaded")
    scoring.add_argument(
        "--token_languages", metavar="DIR|" + "|".join(METHODS), help="corpus; tells an answer's language"
    )
    parser.add_argument("--output_dir", type=Path, metavar="D")
    parser.add_argument("--overwrite", action="store_true", help="remove the run that --output_dir holds")
    return parser.parse_args(argv)


def infer(args: argparse.Namespace) -> None:
    from utils.models.processes import processes

    with processes() as together:
        resolve_defaults(args)
        examples = load_examples(args.dataset, args.langs, args.split, args.limit)
        if together.main or not args.score:
            run = score_file(args, examples) if args.score else answer(args, examples, together)
        if together.main:
            report(run, args.langs)


def resolve_defaults(args: argparse.Namespace) -> None:
    """Languages as FLORES codes; flags that aren't given, as the scored file's own run had them, or by default."""
    of_run = arguments_of_run(args.score) if args.score else {}
    for name, default in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, of_run.get(name, default))
    args.langs = [language_code(lang) for lang in args.langs or DEFAULT_LANGS]
    args.split = default_split(args.dataset) if args.split is None else args.split


def arguments_of_run(predictions: Path) -> dict:
    """What the run that a file of predictions lies in was asked; nothing for a file of another program's."""
    if not predictions.is_file():
        raise ValueError(f"--score {predictions}: no such file")
    path = predictions.parent / "config.json"
    try:
        config = json.loads(read_text(path)) if path.is_file() else {}
        return dict(config["arguments"]) if config.get("script") == SCRIPT else {}
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{path}: no configuration of a run; move {predictions.name} to a folder of its own") from None


def output_dir(args: argparse.Namespace, kind: str, *parts: str) -> Path:
    of_data = (args.dataset, args.split, "-".join(map(short_code, args.langs[:6])))
    return args.output_dir or default_output_dir(kind, args, *parts, *of_data)


def answer(args: argparse.Namespace, examples: list[Example], together: Processes) -> RunDirectory:
    """The finished run of the model's answers to all questions; where it isn't the main process, with its part done."""
    from utils.answers.generation import max_batch_tokens
    from utils.models.loading import load_model, provenance
    from utils.token_languages.matrix import named_matrix

    texts, shots = prompts_of(args, examples)
    model = load_model(args.model, args.adapter, args.dtype, args.device, args.quantization, args.device_map)
    with together.main_first("matrix"):
        token_languages = named_matrix(args.token_languages, model.tokenizer, args.model)
    questions = tokenized(args, model, examples, texts)
    files = data_files(args.dataset, args.langs, args.split)
    inputs = {
        "data_sha256": {path.name: sha256_of_file(path) for path in files},
        "shots": shots,
        **provenance(model, args.adapter),
        "token_languages": token_languages.config,
    }
    settings = configuration(SCRIPT, args, inputs)
    # The memory at hand is another one each time; a run that goes on keeps to the batches that it began with.
    settings["max_batch_tokens"] = max_batch_tokens(model)
    folder = output_dir(args, "answers", Path(args.model).name)
    with together.main_first("folder of answers"):
        run = RunDirectory(folder, settings, args.overwrite and together.main, lock=together.main)
    if not run.finished:
        answer_all(args, run, model, token_languages, questions, together)
        if together.main:
            finish(args, run, examples)
    return run


def prompts_of(args: argparse.Namespace, examples: list[Example]) -> tuple[list[str], dict | None]:
    """(the text before each answer, what its shots are taken from)."""
    if not args.shots:
        return [render(example, args.prompt) for example in examples], None
    pools = {lang: solved_examples(args.dataset, lang, args.split, args.seed) for lang in args.langs}
    texts = []
    for example in examples:
        shots = choose_shots(example, pools[example.lang], args.shots)
        texts.append(render_shots(shots, args.prompt) + render(example, args.prompt))
    split = shots_split(args.dataset, args.split)
    files = data_files(args.dataset, args.langs, split)
    return texts, {"split": split, "sha256": {path.name: sha256_of_file(path) for path in files}}


def tokenized(args: argparse.Namespace, model: LensModel, examples: list[Example], texts: list[str]) -> list[Question]:
    """Raises ValueError where a prompt and its answer are longer than the model's context."""
    from utils.answers.generation import Question
    from utils.models.hidden_states import encode
    from utils.models.prefixes import question_prompt

    questions = []
    for example, text in zip(tqdm(examples, desc="tokenizing", leave=False, disable=None), texts):
        prompt = question_prompt(encode(model.tokenizer, text), example.context, f"{example.lang} {example.id}")
        questions.append(Question(example, text, prompt))
    limit = model.max_positions
    lengths = [len(question.prompt.ids) for question in questions]
    if limit and max(lengths) + args.max_new_tokens > limit:
        n_long = sum(length + args.max_new_tokens > limit for length in lengths)
        raise ValueError(
            f"{n_long} of {len(lengths)} prompts do not fit --model {args.model}: the longest has {max(lengths)} "
            f"tokens and --max_new_tokens {args.max_new_tokens}, the context {limit}; choose fewer --shots or another "
            "--model"
        )
    return questions


def answer_all(
    args: argparse.Namespace,
    run: RunDirectory,
    model: LensModel,
    token_languages: TokenLanguages,
    questions: list[Question],
    together: Processes,
) -> None:
    """Every question's row in the run's predictions; those that an earlier start has made are kept."""
    path = run.path / PREDICTIONS
    examples = [question.example for question in questions]
    with together.main_first("predictions"):
        if together.main:
            resumed(path, examples)
            collect(run.path, examples)
        done = read_predictions(path, examples)[0] if path.exists() else {}
    bar = tqdm(total=len(questions), desc="answering", unit="question", initial=len(done), disable=together.no_bar)
    for answered in batches_answered(args, run, model, questions, together, done):
        append(
            part_of(run.path, together.rank),
            [row_of(question, generated, model.tokenizer, token_languages) for question, generated in answered],
        )
        bar.set_postfix_str(language_name(answered[-1][0].example.lang))
        bar.update(len(answered))
    bar.close()
    together.wait("answered")
    if together.main:
        collect(run.path, examples)


def batches_answered(
    args: argparse.Namespace,
    run: RunDirectory,
    model: LensModel,
    questions: list[Question],
    together: Processes,
    done: dict[Key, dict],
) -> Iterator[list[tuple[Question, Generated]]]:
    """This process's part of the batches in which a question is left, one at a time: what is left in it, answered."""
    from utils.answers import generation
    from utils.models import arithmetic, prefixes

    def is_left(question: Question) -> bool:
        return (question.example.lang, question.example.id) not in done

    if not any(map(is_left, questions)):
        return
    with arithmetic.quick(model) as way:
        batches = batches_of(args, run, model, questions, way)
        some = [question.prompt for question in batches[0][0][:SELF_CHECKED]]
        shares = prefixes.can_share(model, some, way.read)
        generation.self_check(model, some, shares, way.read)
        options = (args.decode, args.max_new_tokens, args.seed, shares)
        for batch, at_once in together.share([(batch, n) for batch, n in batches if any(map(is_left, batch))]):
            # The whole batch again, so that rounding, and with it a tie, comes out as it did without the stop.
            prompts = [question.prompt for question in batch]
            answers = generation.generate(model, prompts, *options, way=way, at_once=at_once)
            yield [(question, answer) for question, answer in zip(batch, answers) if is_left(question)]


def batches_of(
    args: argparse.Namespace, run: RunDirectory, model: LensModel, questions: list[Question], way: Way
) -> list[tuple[list[Question], int | None]]:
    """Questions in batches, and how many of each are answered at once (None: all): as many as the memory holds,
    whatever their languages, or --batch_size of a language.
    """
    from utils.answers.generation import batches_for, question_batches

    if args.batch_size == "auto":
        max_tokens = run.configuration["max_batch_tokens"]
        prompts = [question.prompt for question in questions]
        found = batches_for(way, model, prompts, args.max_new_tokens, max_tokens)
        return [([questions[i] for i in part], at_once) for part, at_once in found]
    batches: list = []
    for lang in args.langs:
        chosen = [question for question in questions if question.example.lang == lang]
        parts = question_batches([question.prompt for question in chosen], args.batch_size, 0, args.max_new_tokens)
        batches += [([chosen[i] for i in part], None) for part in parts]
    return batches


def part_of(folder: Path, rank: int) -> Path:
    """Where a process writes its rows: the main one into the run's predictions."""
    return folder / (f"predictions.{rank}.jsonl" if rank else PREDICTIONS)


def collect(folder: Path, examples: list[Example]) -> None:
    """What other processes have written goes into the run's predictions, and their own files go."""
    parts = sorted(folder.glob("predictions.*.jsonl"))
    if not parts:
        return
    path = folder / PREDICTIONS
    rows = read_predictions(path, examples)[0] if path.exists() else {}
    for part in parts:
        rows |= read_predictions(part, examples)[0]  # without a last line that a kill has cut short
    write_in_order(path, rows, examples)
    for part in parts:
        part.unlink()


def resumed(path: Path, examples: list[Example]) -> dict[Key, dict]:
    """The rows of an earlier start. What a kill left of a last line is dropped, and its question answered again."""
    if not path.exists():
        return {}
    rows, broken = read_predictions(path, examples)
    if broken:
        print(f"{path}:{broken}: the last line is broken off; its question is answered again")
    write_in_order(path, rows, examples)
    return rows


def row_of(question: Question, generated: Generated, tokenizer: Any, token_languages: TokenLanguages) -> dict:
    from utils.answers.generation import first_line

    prediction = first_line(generated.text)
    return {
        **fields_of(question.example),
        "prompt": question.text,
        "generated": generated.text,
        "prediction": prediction,
        "scores": scored(question.example, prediction, tokenizer, token_languages),
        "new_tokens": generated.new_tokens,
        "stopped_by": generated.stopped_by,
    }


def scored(example: Example, prediction: str, tokenizer: Any, token_languages: TokenLanguages) -> dict:
    # With the space that stands before an answer in every prompt: a word's token has it.
    ids = tokenizer.encode(f" {prediction}", add_special_tokens=False)
    language = token_languages.language_of(ids, example.lang)
    return scores.score(prediction, example.answers, example.context, example.lang, language)


def score_file(args: argparse.Namespace, examples: list[Example]) -> RunDirectory:
    """The finished run that scores the predictions of a file."""
    from utils.models.loading import load_tokenizer
    from utils.token_languages.matrix import named_matrix

    rows, broken = read_predictions(args.score, examples)
    require_all(args.score, rows, examples, broken)
    if args.overwrite and args.output_dir and args.output_dir.resolve() == args.score.parent.resolve():
        raise ValueError(f"--overwrite would remove --score {args.score} itself; choose another --output_dir")
    tokenizer = load_tokenizer(args.model)
    token_languages = named_matrix(args.token_languages, tokenizer, args.model)
    files = data_files(args.dataset, args.langs, args.split)
    inputs = {
        "data_sha256": {path.name: sha256_of_file(path) for path in files},
        "predictions_sha256": sha256_of_file(args.score),
        "token_languages": token_languages.config,
    }
    run = RunDirectory(output_dir(args, "scores", args.score.stem), configuration(SCRIPT, args, inputs), args.overwrite)
    if not run.finished:
        for example in tqdm(examples, desc="scoring", leave=False, disable=None):
            row = rows[example.lang, example.id]
            new = scored(example, row["prediction"], tokenizer, token_languages)
            fields = fields_of(example)
            # Fields keep the row's order, so that a run's own predictions come out as they are.
            rows[example.lang, example.id] = {**fields, **row, **fields, "scores": new}
        write_in_order(run.path / PREDICTIONS, rows, examples)
        finish(args, run, examples)
    return run


def finish(args: argparse.Namespace, run: RunDirectory, examples: list[Example]) -> None:
    path = run.path / PREDICTIONS
    rows, _ = read_predictions(path, examples)
    write_in_order(path, rows, examples)
    # In the data's order, whatever order they were made in: sums round the same way.
    of_lang = {lang: [rows[lang, example.id] for example in examples if example.lang == lang] for lang in args.langs}
    run.finish({"languages": {lang: scores.summary(of_lang[lang]) for lang in args.langs}})


def report(run: RunDirectory, langs: list[str]) -> None:
    """A row a language: both scores with their intervals, the ceiling, and where the misses are."""
    import pandas as pd

    summaries = run.read_metrics()["languages"]
    table = pd.DataFrame({short_code(lang): table_row(summaries[lang]) for lang in langs}).T
    print(table.rename_axis("lang").fillna("-").to_string())
    print("per cent of all questions, with 95% intervals over contexts; punct to empty: where exact match is missed")
    print(f"predictions: {run.path / PREDICTIONS}")
    print(f"scores: {run.path / 'metrics.json'}")


def table_row(summary: dict) -> dict:
    squad, multilingual, ceiling = (summary[key] for key in ("squad", "multilingual", "ceiling"))
    row = {
        "n": summary["n"],
        "EM": percent(squad["exact_match"]),
        "F1": with_interval(squad, "f1"),
        "multi EM": percent(multilingual["exact_match"]),
        "multi F1": with_interval(multilingual, "f1"),
        "char F1": percent(summary["char_f1"]),
        "spans": f"{percent(ceiling['raw'])} / {percent(ceiling['normalised'])}",
    }
    if "no_answer" in summary:
        row["HasAns F1"] = percent(summary["has_answer"] and summary["has_answer"]["squad"]["f1"])
        row["NoAns F1"] = percent(summary["no_answer"]["squad"]["f1"])
    for kind, name in MISS_COLUMNS.items():
        row[name] = percent(summary["misses"][kind])
    row["+tok"] = number(summary["overgeneration"]["tokens"])
    return row


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def with_interval(scores_of_kind: dict, metric: str) -> str:
    low, high = scores_of_kind[f"{metric}_interval"]
    return percent(scores_of_kind[metric]) + ("" if low is None else f" [{percent(low)}, {percent(high)}]")


if __name__ == "__main__":
    sys.exit(main())
