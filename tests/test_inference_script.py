"""QAinference.py from its command line to its files: answers, a stopped run, scores of a file, bad input."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import string
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

import QAinference
from tests.scripts import (
    COMMIT,
    assert_one_error_line,
    assert_stopped,
    content_of,
    damage,
    forked,
    full_disk_after,
    run,
    save_adapter,
    status_of,
)
from utils import runs
from utils.answers import generation, predictions
from utils.answers.generation import Generated
from utils.answers.predictions import as_line
from utils.data.examples import DATASETS_DIR, fields_of, load_examples
from utils.models import loading, prefixes

pytestmark = pytest.mark.usefixtures("one_commit", "one_thread", "project")

LANGS, SHORT = ["hin_Deva", "ory_Orya", "eng_Latn"], ["hi", "or", "en"]
SAMPLE_LANGS = sorted(path.name for path in (DATASETS_DIR / "sample/qa").iterdir())
N, N_NEW = 5, 8  # questions of a language, on two contexts; new tokens of an answer
QUESTIONS = ["--langs", *SHORT, "--limit", N]
ARGUMENTS = [*QUESTIONS, "--batch_size", 2, "--max_new_tokens", N_NEW]
BATCHES = [2, 2, 1] * 3  # of those arguments
FIELDS = ["id", "dataset", "lang", "context", "question", "answers"]
KEYS = [*FIELDS, "prompt", "generated", "prediction", "scores", "new_tokens", "stopped_by"]
MISSES = {
    "punctuation_or_unicode",
    "overgeneration",
    "truncation",
    "wrong_span",
    "not_in_context",
    "wrong_language_or_script",
    "empty",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, project, one_commit, one_thread, llama):
    """A run that nothing disturbed: its folder, and what it wrote on the screen. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    outcome = run(QAinference.main, "--model", llama, *ARGUMENTS, "--output_dir", folder)
    assert (outcome.status, outcome.err) == (0, "")
    return SimpleNamespace(folder=folder, out=outcome.out, predictions=folder / "predictions.jsonl")


@pytest.fixture
def infer(tmp_path, llama):
    """Function that runs the finished run's command, with changes, into tmp_path/run."""
    argv = ["--model", llama, *ARGUMENTS, "--output_dir", tmp_path / "run"]
    return lambda *changes: run(QAinference.main, *argv, *changes)


@pytest.fixture
def score(tmp_path):
    """Function that scores a file of predictions into tmp_path/scored."""
    return lambda file, *more: run(QAinference.main, "--score", file, "--output_dir", tmp_path / "scored", *more)


@pytest.fixture(scope="module")
def examples():
    return load_examples("sample_qa", SHORT, limit=N)


def rows_of(folder: Path) -> list[dict]:
    text = (folder / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["languages"]


def answers_of(folder: Path) -> dict[str, bytes]:
    """What must not depend on how a run came to its end."""
    return {name: (folder / name).read_bytes() for name in ("predictions.jsonl", "metrics.json")}


def said(folder: Path) -> list[tuple]:
    return [(row["lang"], row["id"], row["generated"], row["prediction"]) for row in rows_of(folder)]


def qa_text(example) -> str:
    return f"{example.context}\n\nQ: {example.question}\nA:"


# --- a whole run -----------------------------------------------------------------------------------------------


def test_the_files_of_a_run(finished):
    content = content_of(finished.folder)
    assert set(content) == {"config.json", "predictions.jsonl", "metrics.json"}
    assert not any(b"\r\n" in text or b"\\u0b" in text for text in content.values())  # letters, not escapes of them


def test_a_row_is_the_example_and_what_was_made_of_it(finished, examples):
    rows = rows_of(finished.folder)
    assert [list(row) for row in rows] == [KEYS] * 3 * N
    assert [{field: row[field] for field in FIELDS} for row in rows] == list(map(fields_of, examples))
    assert [row["prompt"] for row in rows] == list(map(qa_text, examples))
    for row in rows:
        assert row["prediction"] == row["generated"].strip().split("\n")[0].strip()
        assert 0 < row["new_tokens"] <= N_NEW
        assert row["stopped_by"] in ("line", "end") or (row["stopped_by"], row["new_tokens"]) == ("length", N_NEW)
    assert len({row["prediction"] for row in rows}) == 3 * N  # else no test here could tell a row from another


def test_rows_come_in_the_data_s_order_whatever_the_batches(infer, tmp_path, monkeypatch):
    append, appended = QAinference.append, []

    def noted(path, rows):
        appended.extend(row["id"] for row in rows)
        append(path, rows)

    monkeypatch.setattr(QAinference, "append", noted)
    ids = [example.id for example in load_examples("sample_qa", ["en"])]
    assert infer("--langs", "en", "--limit", len(ids), "--max_new_tokens", 1).status == 0
    assert sorted(appended) == sorted(ids) and appended != ids  # the longest were answered first
    assert [row["id"] for row in rows_of(tmp_path / "run")] == ids


@pytest.mark.parametrize("family", ["bloom", "gpt2", "cohere"])
def test_answers_are_what_transformers_generates(infer, saved, tmp_path, tiny_tokenizer, family):
    positions = {"gpt2": {"n_positions": 512}, "cohere": {"max_position_embeddings": 512}}.get(family, {})
    folder = saved(family, **positions)
    outcome = infer("--model", folder, "--langs", "en", "or", "--batch_size", "auto")
    assert (outcome.status, outcome.err) == (0, "")
    model = AutoModelForCausalLM.from_pretrained(folder)
    padding_rows = list(range(len(tiny_tokenizer), model.config.vocab_size))
    for row in rows_of(tmp_path / "run"):
        ids = torch.tensor([tiny_tokenizer(row["prompt"])["input_ids"]])
        options = dict(do_sample=False, max_new_tokens=N_NEW, suppress_tokens=padding_rows)
        new = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :]
        assert row["generated"] == tiny_tokenizer.decode(new[: row["new_tokens"]], skip_special_tokens=True)


def test_the_configuration_says_what_was_asked_and_with_what(finished, llama):
    config = json.loads((finished.folder / "config.json").read_text(encoding="utf-8"))
    assert (config["script"], config["commit"]) == ("QAinference.py", COMMIT)
    asked = {"model": str(llama), "dataset": "sample_qa", "split": "test", "langs": LANGS, "limit": N, "shots": 0}
    assert asked.items() <= config["arguments"].items()
    inputs = config["inputs"]
    assert set(inputs["data_sha256"]) == {f"sample_qa_{lang}_test.json" for lang in SHORT}
    assert (inputs["model_type"], inputs["dtype"], inputs["shots"]) == ("llama", "float32", None)
    assert inputs["token_languages"]["corpus"] == "counts.tsv.gz" and config["max_batch_tokens"] > 0


def test_config_json_is_the_first_file_and_metrics_json_the_last(infer, monkeypatch):
    names, write, append = [], runs.write_atomically, QAinference.append

    def noted(path, writer):
        names.append(path.name)
        write(path, writer)

    def noted_append(path, rows):
        names.append(f"{len(rows)} rows")
        append(path, rows)

    monkeypatch.setattr(runs, "write_atomically", noted)
    monkeypatch.setattr(QAinference, "append", noted_append)
    assert infer().status == 0
    assert names == ["config.json", *(f"{n} rows" for n in BATCHES), "metrics.json"]


@pytest.fixture
def answered(monkeypatch):
    """Function from `language and id -> text` to a model that writes these answers."""

    def install(texts):
        def generate(model, prompts, *args, **options):
            return [Generated(texts[prompt.key], (7, 8), "line") for prompt in prompts]

        monkeypatch.setattr(generation, "generate", generate)

    return install


def answers_of_each_kind(examples) -> dict[str, str]:
    """Right, right with more around it, another part of the context, nothing, and of no context; in every language."""
    texts = {}
    for i, example in enumerate(examples):
        gold, other = example.answers[0], " ".join(example.context.split()[:2])
        assert other not in gold and gold not in other
        text = [f" {gold}\n", f" 5 {gold}, 7\n\nQ: more", f" {other}\n", "\n \n", " Xqj vbw"][i % N]
        texts[f"{example.lang} {example.id}"] = text
    return texts


def squad_tokens(text: str) -> list[str]:
    without_punctuation = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", without_punctuation).split()


def squad_by_hand(rows) -> tuple[float, float]:
    """Mean exact match and F1, as SQuAD's own script has them; every question here has one gold answer."""
    exact, f1 = [], []
    for row in rows:
        said, gold = squad_tokens(row["prediction"]), squad_tokens(row["answers"][0])
        exact.append(said == gold)
        n_common = sum((Counter(said) & Counter(gold)).values())
        f1.append(2 * n_common / (len(said) + len(gold)))
    return sum(exact) / len(rows), sum(f1) / len(rows)


def test_the_metrics_are_the_means_of_the_rows(infer, answered, examples, tmp_path):
    answered(answers_of_each_kind(examples))
    assert infer().status == 0
    rows, metrics = rows_of(tmp_path / "run"), metrics_of(tmp_path / "run")
    assert list(metrics) == LANGS
    for lang, summary in metrics.items():
        of_lang = [row for row in rows if row["lang"] == lang]
        scores = [row["scores"] for row in of_lang]
        assert (summary["n"], summary["n_contexts"], len(of_lang)) == (N, 2, N)
        for kind in ("squad", "multilingual"):
            for metric in ("exact_match", "f1"):
                assert summary[kind][metric] == pytest.approx(sum(row[f"{kind}_{metric}"] for row in scores) / N)
                assert summary[kind][f"{metric}_interval"] == [None, None]  # of two contexts there is none
        by_hand = squad_by_hand(of_lang)
        assert (summary["squad"]["exact_match"], summary["squad"]["f1"]) == pytest.approx(by_hand)
        assert by_hand[0] == pytest.approx(1 / N) and 1 / N < by_hand[1] < 2 / N
        assert set(summary["misses"]) == MISSES
        assert sum(summary["misses"].values()) == pytest.approx(1 - 1 / N)
        wanted = {kind: summary["misses"][kind] for kind in ("overgeneration", "wrong_span", "empty")}
        assert wanted == pytest.approx(dict.fromkeys(wanted, 1 / N))
        assert summary["stopped_by"] == {"line": 1.0}
        assert summary["ceiling"] == {"raw": 1.0, "normalised": 1.0, "n": N}


def test_the_screen_shows_a_row_a_language_and_paths_that_exist(infer, answered, examples, tmp_path):
    answered(answers_of_each_kind(examples))
    outcome = infer()
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].split()[:2] == ["n", "EM"]
    for lang, short, line in zip(LANGS, SHORT, lines[2:5]):
        summary = metrics_of(tmp_path / "run")[lang]
        expected = [short, str(N)]
        for kind in ("squad", "multilingual"):
            numbers = [100 * summary[kind][metric] for metric in ("exact_match", "f1")]
            expected += "{:.1f} {:.1f}".format(*numbers).split()  # two contexts have no interval
        assert line.split()[: len(expected)] == expected
        n_misses = sum(word == "20.0" for word in line.split()[len(expected) :])
        assert n_misses == 4  # of the five answers, each another kind
    paths = [Path(line.split(": ")[1]) for line in lines if line.startswith(("predictions: ", "scores: "))]
    assert paths == [tmp_path / "run/predictions.jsonl", tmp_path / "run/metrics.json"]
    assert all(path.is_file() for path in paths)


def test_a_run_goes_to_a_folder_of_its_own_under_results(project, bloom):
    argv = ["--model", bloom, "--langs", "Hindi", "eng", "--limit", 1, "--max_new_tokens", 1]
    outcome = run(QAinference.main, *argv)
    (folder,) = (project / "results").glob("answers-tiny-sample_qa-test-hi-en-*")
    assert f"predictions: {folder / 'predictions.jsonl'}\n" in outcome.out
    assert run(QAinference.main, *argv) == outcome and len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("size", [1, 3, "auto"])
def test_batches_of_any_size_give_the_same_answers(infer, finished, tmp_path, size):
    assert infer("--batch_size", size).status == 0
    assert answers_of(tmp_path / "run") == answers_of(finished.folder)


def test_a_batch_that_does_not_fit_into_memory_is_halved(infer, finished, tmp_path, monkeypatch):
    generate, sizes = generation._generate, []

    def small_machine(model, prompts, *args):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(model, prompts, *args)

    monkeypatch.setattr(generation, "_generate", small_machine)
    assert infer("--batch_size", "auto").status == 0
    assert sizes == [15, 8, 4, 2, 2, 4, 2, 2, 7, 4, 2, 2, 3, 2, 1]
    assert answers_of(tmp_path / "run") == answers_of(finished.folder)


def test_a_language_s_answers_do_not_depend_on_the_others(infer, finished, tmp_path):
    assert infer("--langs", "English", "hin").status == 0
    assert said(tmp_path / "run") == [*said(finished.folder)[2 * N :], *said(finished.folder)[:N]]
    whole = metrics_of(finished.folder)
    assert metrics_of(tmp_path / "run") == {lang: whole[lang] for lang in ("eng_Latn", "hin_Deva")}


def test_draws_depend_on_the_seed_and_the_question_alone(infer, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "TEMPERATURE", 5.0)  # at the paper's 0.1 a tiny model leaves nothing to chance
    runs = {
        "a": [],
        "again": [],
        "batches": ["--batch_size", "auto"],
        "seed": ["--seed", 43],
        "fewer": ["--langs", "en", "--limit", 3],
    }
    for name, changes in runs.items():
        assert infer("--decode", "paper", "--output_dir", tmp_path / name, *changes).status == 0
    drawn = said(tmp_path / "a")
    assert answers_of(tmp_path / "a") == answers_of(tmp_path / "again") == answers_of(tmp_path / "batches")
    assert said(tmp_path / "fewer") == drawn[2 * N : 2 * N + 3]
    assert sum(one != other for one, other in zip(drawn, said(tmp_path / "seed"))) > 2 * N


PROMPTS = {
    "instruction": "Instruction: Answer the question based on the context.\n"
    "Input: Context: {context} Question: {question}\nOutput:",
    "short_span": "{context}\n\nNow answer the following question in a short span. Please do not hallucinate, "
    "and answer based on the above provided context.\nQ: {question}\nA:",
    "plain": "{context}\n\nQ: {question}\nA:",
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_two_shots_of_the_train_split_stand_before_the_question(infer, bloom, tmp_path, prompt):
    argv = ["--model", bloom, "--prompt", prompt, "--shots", 2]  # BLOOM's context has no end
    assert infer(*argv, "--langs", "hi", "en", "--limit", 2).status == 0
    template = PROMPTS[prompt]
    chosen = []
    for row in rows_of(tmp_path / "run"):
        own = template.format(context=row["context"], question=row["question"])
        train = load_examples("sample_qa", [row["lang"]], "train")
        solved = {
            f"{template.format(context=e.context, question=e.question)} {e.answers[0]}\n\n": (e.id, e.context)
            for e in train
        }
        before = [text for text in solved if text in row["prompt"]]
        assert len(before) == 2 and len({solved[text][1] for text in before}) == 2
        before.sort(key=row["prompt"].index)
        assert row["prompt"] == "".join(before) + own and row["question"] not in "".join(before)
        chosen.append([solved[text][0] for text in before])
    assert chosen == [chosen[0]] * 4  # the same in both languages
    inputs = json.loads((tmp_path / "run/config.json").read_text(encoding="utf-8"))["inputs"]
    assert inputs["shots"]["split"] == "train"
    assert set(inputs["shots"]["sha256"]) == {f"sample_qa_{lang}_train.json" for lang in ("hi", "en")}


def test_the_seed_chooses_the_shots(infer, tmp_path):
    for seed in (1, 2):
        argv = ["--seed", seed, "--shots", 2, "--langs", "en", "--limit", 1, "--output_dir", tmp_path / str(seed)]
        assert infer(*argv).status == 0
    assert rows_of(tmp_path / "1")[0]["prompt"] != rows_of(tmp_path / "2")[0]["prompt"]


@pytest.fixture
def indicqa(datasets):
    """Function: IndicQA's Hindi file is the sample's first questions, of which those numbers have no answer."""

    def write(*unanswerable, n=N):
        rows = json.loads((datasets / "sample/qa/hi/sample_qa_hi_test.json").read_text(encoding="utf-8"))["examples"]
        paragraphs = []
        for i, row in enumerate(rows[:n]):
            answers = [] if i in unanswerable else row["answers"]
            paragraphs.append({"context": row["context"], "qas": [{**row, "id": i, "answers": answers}]})
        (datasets / "indicqa").mkdir(exist_ok=True)
        content = json.dumps({"data": [{"paragraphs": paragraphs}]})
        (datasets / "indicqa/indicqa.hi.json").write_text(content, encoding="utf-8")

    return write


def test_questions_without_an_answer_are_asked_and_counted_apart(infer, indicqa, answered, examples, tmp_path):
    indicqa(1, 3)
    answered({f"hin_Deva {i}": text for i, text in enumerate(answers_of_each_kind(examples).values())})
    assert infer("--dataset", "indicqa", "--langs", "hi").status == 0
    assert [row["id"] for row in rows_of(tmp_path / "run")] == ["0", "1", "2", "3", "4"]
    summary = metrics_of(tmp_path / "run")["hin_Deva"]
    assert [summary[kind]["n"] for kind in ("has_answer", "no_answer")] == [3, 2]
    exact = [part["squad"]["exact_match"] for part in (summary, summary["has_answer"], summary["no_answer"])]
    assert exact == pytest.approx([2 / 5, 1 / 3, 1 / 2])  # question 3 has no answer, and was given none
    assert infer("--dataset", "indicqa", "--langs", "hi").out.splitlines()[0].split().count("NoAns") == 1


def test_a_language_of_which_no_question_has_an_answer(infer, indicqa, answered, tmp_path):
    indicqa(0, 1, n=2)
    answered({"hin_Deva 0": "", "hin_Deva 1": " x"})
    outcome = infer("--dataset", "indicqa", "--langs", "hi")
    assert (outcome.status, outcome.err) == (0, "")
    assert metrics_of(tmp_path / "run")["hin_Deva"]["no_answer"]["squad"]["exact_match"] == 0.5


# --- adapters --------------------------------------------------------------------------------------------------


def test_an_adapter_counts_and_equals_the_merged_model(infer, tmp_path, llama, adapter):
    save_adapter(llama, tmp_path / "nothing", std=0)
    for name, argv in {
        "without": ["--model", llama],
        "nothing": ["--model", llama, "--adapter", tmp_path / "nothing"],
        "with": ["--model", llama, "--adapter", adapter],
        "merged": ["--model", llama.parent / "merged"],
    }.items():
        assert infer(*argv, "--limit", 3, "--output_dir", tmp_path / f"run_{name}").status == 0
    runs = {name: answers_of(tmp_path / f"run_{name}") for name in ("without", "nothing", "with", "merged")}
    assert runs["without"] == runs["nothing"] and runs["with"] == runs["merged"] != runs["without"]
    config = json.loads((tmp_path / "run_with/config.json").read_text(encoding="utf-8"))
    assert re.fullmatch("[0-9a-f]{64}", config["inputs"]["adapter_sha256"])


# --- a stopped run ---------------------------------------------------------------------------------------------


@pytest.fixture
def batches(monkeypatch):
    """How many questions each batch had; Ctrl-C comes before the batch number `stop_before`."""
    seen = SimpleNamespace(sizes=[], stop_before=None)
    generate = generation.generate

    def counted(model, prompts, *args, **options):
        if len(seen.sizes) == seen.stop_before:
            seen.stop_before = None
            raise KeyboardInterrupt
        seen.sizes.append(len(prompts))
        return generate(model, prompts, *args, **options)

    monkeypatch.setattr(generation, "generate", counted)
    return seen


def test_a_run_stopped_after_every_batch_gives_the_same_bytes(infer, finished, tmp_path, batches):
    for n in range(len(BATCHES)):
        batches.stop_before = n
        assert_stopped(infer(), tmp_path / "run")
        assert (tmp_path / "run/predictions.jsonl").exists() == (n > 0)
        if n:
            assert len(rows_of(tmp_path / "run")) == sum(BATCHES[:n])
    outcome = infer()
    assert (outcome.status, outcome.err) == (0, "")
    assert batches.sizes == BATCHES  # nothing is answered twice
    assert answers_of(tmp_path / "run") == answers_of(finished.folder)
    assert outcome.out == finished.out.replace(str(finished.folder), str(tmp_path / "run"))


def test_a_run_that_goes_on_keeps_to_the_batches_it_began_with(infer, finished, tmp_path, batches, monkeypatch):
    memory = {"at hand": 300}
    monkeypatch.setattr(generation, "max_batch_tokens", lambda model: memory["at hand"])
    assert infer("--batch_size", "auto", "--output_dir", tmp_path / "whole").status == 0
    whole = batches.sizes.copy()
    assert len(whole) > 3 and set(whole) > {3}
    for n in (1, len(whole) - 1):
        memory["at hand"], batches.sizes, batches.stop_before = 300, [], n
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        assert_stopped(infer("--batch_size", "auto"), tmp_path / "run")
        memory["at hand"] = 1000
        assert infer("--batch_size", "auto").status == 0
        assert batches.sizes == whole
        assert answers_of(tmp_path / "run") == answers_of(tmp_path / "whole") == answers_of(finished.folder)


CUTS = {
    "in the first line": lambda lines: lines[0][:50],
    "in a letter": lambda lines: b"".join(lines[:5]) + lines[5][: re.search(rb"[\x80-\xff]", lines[5]).end()],
    "before the last brace": lambda lines: b"".join(lines[:7]) + lines[7].removesuffix(b"}\n"),
    "before a line feed": lambda lines: b"".join(lines[:6]).removesuffix(b"\n"),
    "between two of a batch": lambda lines: b"".join(lines[:6]),
    "before any line": lambda lines: b"",
}
KEPT = {"in the first line": 0, "in a letter": 5, "before the last brace": 7, "before any line": 0}


@pytest.mark.parametrize("cut", CUTS)
def test_what_a_kill_left_of_the_last_line_is_answered_again(infer, finished, tmp_path, batches, cut):
    batches.stop_before = 5
    assert_stopped(infer(), tmp_path / "run")
    path = tmp_path / "run/predictions.jsonl"
    path.write_bytes(CUTS[cut](path.read_bytes().splitlines(keepends=True)))
    n_kept, batches.sizes = KEPT.get(cut, 6), []
    broken = path.read_bytes().count(b"\n") + 1 if cut in KEPT and path.stat().st_size else None
    outcome = infer()
    assert (outcome.status, outcome.err) == (0, "")
    # rows 1 to 5 are the Hindi ones, in batches of two, two and one
    assert batches.sizes == {0: BATCHES, 5: BATCHES[3:], 6: BATCHES[3:], 7: BATCHES[4:]}[n_kept]
    assert answers_of(tmp_path / "run") == answers_of(finished.folder)
    line = f"{path}:{broken}: the last line is broken off; its question is answered again\n"
    assert outcome.out == (line if broken else "") + finished.out.replace(str(finished.folder), str(tmp_path / "run"))


def test_a_run_killed_in_the_middle_of_a_line_goes_on(infer, finished, project, tmp_path, llama, batches):
    appends, append = itertools.count(1), QAinference.append

    def append_and_die(path, rows):
        if next(appends) < 5:
            return append(path, rows)
        with open(path, "ab") as file:
            file.write("".join(map(predictions.as_line, rows)).encode()[:-300])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    def killed():
        QAinference.append = append_and_die
        QAinference.main(list(map(str, argv)))

    argv = ["--model", llama, *ARGUMENTS, "--output_dir", tmp_path / "run"]
    assert status_of(forked(killed, tmp_path / "said")) == -signal.SIGKILL
    assert (tmp_path / "said").read_text() == ""
    assert not (tmp_path / "run/predictions.jsonl").read_bytes().endswith(b"\n")
    outcome = infer()
    assert (outcome.status, outcome.err) == (0, "") and "broken off" in outcome.out
    assert batches.sizes == BATCHES[4:]
    assert answers_of(tmp_path / "run") == answers_of(finished.folder)


@pytest.mark.parametrize("place", ["write_in_order", "finish"])
def test_a_run_stopped_before_its_last_file_answers_nothing_again(
    infer, finished, tmp_path, batches, monkeypatch, place
):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(QAinference, place, interrupted)
        assert_stopped(infer(), tmp_path / "run")
    assert infer().status == 0
    assert batches.sizes == BATCHES
    assert answers_of(tmp_path / "run") == answers_of(finished.folder)


def test_a_stopped_run_draws_what_it_would_have_drawn(infer, tmp_path, batches, monkeypatch):
    monkeypatch.setattr(generation, "TEMPERATURE", 5.0)
    assert infer("--decode", "paper", "--output_dir", tmp_path / "whole").status == 0
    batches.sizes, batches.stop_before = [], 4
    assert_stopped(infer("--decode", "paper"), tmp_path / "run")
    assert infer("--decode", "paper").status == 0
    assert answers_of(tmp_path / "run") == answers_of(tmp_path / "whole")


@pytest.mark.parametrize("n_writes", [0, 1, 4, 9, 10, 11])
def test_a_disk_that_is_full_at_any_write(infer, finished, tmp_path, n_writes):
    # config.json; nine batches; the rows in order; metrics.json
    with full_disk_after(n_writes):
        outcome = infer()
    assert_one_error_line(outcome, "No space left on device", "the same command goes on")
    assert outcome.out == "" and not (tmp_path / "run/metrics.json").exists()
    assert not list((tmp_path / "run").rglob(".*.tmp"))
    assert infer().status == 0
    assert set(content_of(tmp_path / "run")) == set(content_of(finished.folder))
    assert answers_of(tmp_path / "run") == answers_of(finished.folder)


def test_a_finished_run_prints_its_results_and_answers_nothing(infer, finished, batches):
    before = content_of(finished.folder)
    outcome = infer("--output_dir", finished.folder)
    assert outcome == (0, finished.out, "")
    assert infer("--output_dir", finished.folder, "--langs", "Hindi", "ory", "eng_Latn") == outcome  # the same command
    assert content_of(finished.folder) == before and batches.sizes == []


CHANGES = [
    ["--limit", 4],
    ["--langs", "hi", "en"],
    ["--shots", 1],
    ["--prompt", "instruction"],
    ["--decode", "paper"],
    ["--seed", 1],
    ["--max_new_tokens", 9],
    ["--batch_size", 3],
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: changes[0])
def test_another_command_on_a_run_s_folder_is_refused(infer, finished, changes):
    before = content_of(finished.folder)
    outcome = infer("--output_dir", finished.folder, *changes)
    assert_one_error_line(outcome, finished.folder, f"{changes[0].removeprefix('--')} was", "--overwrite")
    assert outcome.out == "" and content_of(finished.folder) == before


@pytest.mark.parametrize("split", ["test", "train"])
def test_other_data_of_the_same_name_is_another_command(infer, tmp_path, datasets, split):
    changes = ["--shots", 1, "--limit", 1, "--max_new_tokens", 1]
    assert infer(*changes).status == 0
    path = datasets / f"sample/qa/or/sample_qa_or_{split}.json"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert_one_error_line(infer(*changes), tmp_path / "run", {"test": "data_sha256 was", "train": "shots was"}[split])


def test_overwrite_starts_anew(infer, finished, tmp_path, batches):
    shutil.copytree(finished.folder, tmp_path / "run")
    assert infer("--limit", 2, "--overwrite").status == 0
    assert batches.sizes == [2, 2, 2] and len(rows_of(tmp_path / "run")) == 6
    assert infer("--limit", 2, "--output_dir", tmp_path / "new").status == 0
    assert set(content_of(tmp_path / "run")) == set(content_of(tmp_path / "new"))
    assert answers_of(tmp_path / "run") == answers_of(tmp_path / "new")


# --- scores of a file ------------------------------------------------------------------------------------------


@pytest.fixture
def without_model(monkeypatch):
    def loaded(*args):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loading, "load_model", loaded)


def test_a_run_s_own_predictions_score_as_they_did(finished, project, without_model):
    outcome = run(QAinference.main, "--score", finished.predictions)
    assert (outcome.status, outcome.err) == (0, "")
    (folder,) = (project / "results").glob("scores-predictions-sample_qa-test-hi-or-en-*")
    assert answers_of(folder) == answers_of(finished.folder)
    assert outcome.out == finished.out.replace(str(finished.folder), str(folder))
    assert run(QAinference.main, "--score", finished.predictions) == outcome  # finished: it prints again
    assert answers_of(folder) == answers_of(finished.folder)


def test_scores_go_by_the_seed_and_the_matrix_of_the_run(infer, score, small_matrix, tmp_path):
    assert infer("--seed", 7, "--token_languages", small_matrix).status == 0
    assert score(tmp_path / "run/predictions.jsonl").status == 0
    assert answers_of(tmp_path / "scored") == answers_of(tmp_path / "run")


def test_a_part_of_a_run_s_questions_can_be_scored(finished, score, without_model, tmp_path):
    part = [row for row in rows_of(finished.folder) if row["lang"] == "eng_Latn"][:2]
    file = tmp_path / "part.jsonl"
    file.write_text("".join(map(as_line, part)), encoding="utf-8")
    shutil.copy(finished.folder / "config.json", tmp_path)  # so that it lies in a run's folder
    assert_one_error_line(score(file), "no prediction for id 'water-1' in hin_Deva", "13 of 15 questions")
    assert score(file, "--langs", "en", "--limit", 2).status == 0
    assert (tmp_path / "scored/predictions.jsonl").read_bytes() == file.read_bytes()


def foreign_file(path: Path, examples, prediction) -> Path:
    rows = [{"lang": e.lang, "id": e.id, "prediction": prediction(e)} for e in examples]
    path.write_text("".join(map(as_line, rows)), encoding="utf-8")
    return path


def test_another_program_s_predictions(score, bloom, examples, without_model, tmp_path):
    rows = [{"id": e.id, "lang": e.lang[:3], "prediction": f" {e.answers[0]} ", "by": "x"} for e in examples]
    random.Random(0).shuffle(rows)
    file = tmp_path / "theirs.jsonl"
    file.write_text("".join(map(as_line, rows)).removesuffix("\n"), encoding="utf-8")
    assert score(file, *QUESTIONS, "--dataset", "sample_qa", "--model", bloom).status == 0
    scored = rows_of(tmp_path / "scored")
    assert [list(row) for row in scored] == [[*FIELDS, "prediction", "by", "scores"]] * 3 * N
    assert [{field: row[field] for field in FIELDS} for row in scored] == list(map(fields_of, examples))
    for summary in metrics_of(tmp_path / "scored").values():
        assert (summary["n"], summary["squad"]["exact_match"], summary["stopped_by"]) == (N, 1, {})
    config = json.loads((tmp_path / "scored/config.json").read_text(encoding="utf-8"))
    assert config["inputs"]["predictions_sha256"] == runs.sha256_of_file(file)


@pytest.fixture(scope="module")
def all_examples():
    return load_examples("sample_qa", SAMPLE_LANGS)


@pytest.fixture
def scores_of(score, bloom, all_examples, tmp_path):
    """Function from `example -> prediction` to the metrics, of every question in twelve languages."""

    def metrics(prediction):
        file = foreign_file(tmp_path / "p.jsonl", all_examples, prediction)
        outcome = score(file, "--langs", *SAMPLE_LANGS, "--model", bloom)
        assert (outcome.status, outcome.err) == (0, "")
        summaries = metrics_of(tmp_path / "scored")
        assert len(summaries) == 12 and {summary["n"] for summary in summaries.values()} == {18}
        return summaries.values()

    return metrics


def numbers_of(summary) -> list[float]:
    kinds = [summary[kind][metric] for kind in ("squad", "multilingual") for metric in ("exact_match", "f1")]
    return [*kinds, summary["char_f1"]]


def test_gold_answers_score_exactly_one(scores_of):
    for summary in scores_of(lambda example: example.answers[0]):
        assert numbers_of(summary) == [1, 1, 1, 1, 1]
        assert set(summary["misses"].values()) == {0} and summary["squad"]["f1_interval"] == [None, None]


def test_no_answers_score_zero(scores_of):
    for summary in scores_of(lambda example: ""):
        assert numbers_of(summary) == [0, 0, 0, 0, 0] and summary["misses"]["empty"] == 1


def test_answers_to_other_questions_score_about_zero(scores_of, all_examples):
    contexts = list(dict.fromkeys(example.context for example in all_examples))
    other = {}
    for i, context in enumerate(contexts):  # six contexts a language, one after the other
        next_one = contexts[i // 6 * 6 + (i + 1) % 6]
        other[context] = [example.answers[0] for example in all_examples if example.context == next_one]
    for summary in scores_of(lambda example: other[example.context][0]):
        exact, f1, *_ = numbers_of(summary)
        assert exact == 0 and f1 < 0.1
        assert sum(summary["misses"].values()) == 1


@pytest.fixture
def assert_not_scored(score, bloom, project, tmp_path):
    """Function: scoring this file is refused in one line with these words, and nothing is written."""

    def check(file: Path, *argv, says: list) -> None:
        before, around = content_of(project), content_of(tmp_path)
        outcome = score(file, *(argv or [*QUESTIONS, "--model", bloom]))
        assert_one_error_line(outcome, *says)
        assert outcome.out == "" and content_of(project) == before and content_of(tmp_path) == around

    return check


UNKNOWN = as_line({"id": "x", "lang": "en", "prediction": ""})
BAD_FILES = {
    "a line is missing": (lambda lines: lines[:3] + lines[4:], ": no prediction for id 'heart-1' in hin_Deva; 1 of 15"),
    "a broken last line": (
        lambda lines: [*lines[:-1], lines[-1][:-20]],
        ": no prediction for id 'heart-2' in eng_Latn; 1 of 15 questions have none (line 15, the last, is broken)",
    ),
    "an empty file": (lambda lines: [], ": no prediction for id 'water-1' in hin_Deva; 15 of 15"),
    "another id": (lambda lines: [*lines[:-1], UNKNOWN], ":15: unknown id 'x' in eng_Latn"),
    "a line twice": (lambda lines: [*lines, lines[3]], ":16: a second prediction for id 'heart-1' in hin_Deva"),
    "no JSON": (lambda lines: [*lines[:4], "so it goes\n", *lines[4:]], ":5: not JSON: 'so it goes'"),
    "no prediction": (lambda lines: ['{"id": "water-1", "lang": "hi"}\n', *lines[1:]], ":1: not a prediction"),
}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_a_bad_file_of_predictions_is_refused(assert_not_scored, finished, tmp_path, bad):
    change, says = BAD_FILES[bad]
    file = tmp_path / "theirs.jsonl"
    lines = finished.predictions.read_text(encoding="utf-8").split("\n")[:-1]
    file.write_text("".join(change([f"{line}\n" for line in lines])), encoding="utf-8")
    assert_not_scored(file, says=[f"{file}{says}"])


def test_a_file_that_is_not_there_is_refused(assert_not_scored, tmp_path):
    for file in (tmp_path / "none.jsonl", tmp_path):
        assert_not_scored(file, says=[f"--score {file}: no such file"])


def test_predictions_of_other_questions_are_refused(assert_not_scored, finished, tmp_path, bloom):
    file = Path(shutil.copy(finished.predictions, tmp_path / "theirs.jsonl"))
    argv = ["--langs", "hi", "--model", bloom]
    assert_not_scored(file, *argv, says=[f"{file}:6: unknown id 'water-1' in ory_Orya: none of the 18"])
    assert_not_scored(file, *QUESTIONS, "--split", "train", "--model", bloom, says=[f"{file}:1: unknown id 'water-1'"])
    file.write_text(file.read_text(encoding="utf-8").replace('"sample_qa"', '"xquad"'), encoding="utf-8")
    assert_not_scored(file, says=[f"{file}:1: the dataset of id 'water-1' is 'xquad', but 'sample_qa' in the data"])


@pytest.mark.parametrize("content", ["{", "[]", '{"script": "QAinference.py"}'])
def test_a_folder_whose_configuration_is_no_run_s_is_named(assert_not_scored, finished, tmp_path, content):
    file = Path(shutil.copy(finished.predictions, tmp_path))
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    assert_not_scored(file, says=[f"{tmp_path / 'config.json'}: no configuration of a run; move predictions.jsonl"])


def test_another_program_s_configuration_says_nothing(score, finished, tmp_path, bloom):
    file = Path(shutil.copy(finished.predictions, tmp_path))
    config = {"script": "probe_logit_lens.py", "arguments": {"langs": ["deu_Latn"]}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert score(file, *QUESTIONS, "--model", bloom).status == 0
    assert metrics_of(tmp_path / "scored") == metrics_of(finished.folder)


def test_scores_are_not_written_over_the_run_they_are_of(finished):
    before = content_of(finished.folder)
    outcome = run(QAinference.main, "--score", finished.predictions, "--output_dir", finished.folder)
    assert_one_error_line(outcome, finished.folder, "holds another command's run")
    outcome = run(QAinference.main, "--score", finished.predictions, "--output_dir", finished.folder, "--overwrite")
    assert_one_error_line(outcome, "--overwrite would remove", finished.predictions)
    assert content_of(finished.folder) == before


# --- bad input -------------------------------------------------------------------------------------------------


@pytest.fixture
def assert_refused(infer, finished, tmp_path):
    """Function: a command is refused in one line with these words, before anything is written or removed."""

    def check(*changes, says: list) -> None:
        outcome = infer(*changes)
        assert_one_error_line(outcome, *says)
        assert outcome.out == "" and not (tmp_path / "run").exists()
        old = shutil.copytree(finished.folder, tmp_path / "old")
        assert_one_error_line(infer(*changes, "--output_dir", old, "--overwrite"), *says)
        assert content_of(old) == content_of(finished.folder)

    return check


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--langs", "en", "Klingon"], ["unknown language 'Klingon'"]),
        (["--langs", "en", "hi", "eng"], ["language given twice: eng_Latn"]),
        (["--langs", "en", "fr"], ["sample_qa_fr_test.json: no such file", "ar, bn, de, en, hi"]),
        (["--split", "dev"], ["unknown split 'dev' of sample_qa", "train, test"]),
        (["--split", ""], ["unknown split ''", "train, test"]),
        (["--shots", 7], ["--shots 7: sample_qa in hin_Deva has solved examples of 6 contexts"]),
        (["--split", "train", "--shots", 6], ["--shots 6: sample_qa in hin_Deva has solved examples of 5 contexts"]),
        (["--model", "/no/such/folder"], ["--model /no/such/folder: no such folder"]),
        (["--adapter", "/no/adapter"], ["--adapter /no/adapter: no adapter_config.json"]),
        (["--token_languages", "/no/matrix"], ["--token_languages /no/matrix"]),
        (["--device", "tpu"], ["--device tpu", "choose from auto, cpu, cuda"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_bad_arguments_are_refused(assert_refused, changes, says):
    assert_refused(*changes, says=says)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--dataset", "squad"),
        ("--dataset", "sample_parallel"),
        ("--dataset", "flores200"),
        ("--prompt", "fancy"),
        ("--limit", "0"),
        ("--shots", "-1"),
        ("--shots", "two"),
        ("--decode", "beam"),
        ("--max_new_tokens", "0"),
        ("--batch_size", "0"),
        ("--batch_size", "all"),
        ("--seed", "x"),
        ("--no_such_flag", "1"),
    ],
)
def test_what_no_flag_takes_is_refused_by_argparse(infer, tmp_path, flag, value):
    outcome = infer(flag, value)
    assert outcome.status == 2 and outcome.out == "" and not (tmp_path / "run").exists()
    last = outcome.err.splitlines()[-1]
    assert ": error: " in last and flag in last and value in last


def test_prompts_longer_than_the_model_s_context_are_refused(
    infer, assert_refused, saved, examples, tiny_tokenizer, tmp_path
):
    lengths = [len(tiny_tokenizer(qa_text(example))["input_ids"]) for example in examples]
    fits, short = (saved("gpt2", n_positions=max(lengths) + N_NEW - n) for n in (0, 1))
    assert infer("--model", fits, "--output_dir", tmp_path / "fits").status == 0
    says = [f"{lengths.count(max(lengths))} of 15 prompts do not fit --model {short}", f"longest has {max(lengths)}"]
    assert_refused("--model", short, says=[*says, f"the context {max(lengths) + N_NEW - 1};"])


def test_a_damaged_matrix_is_refused(assert_refused, small_matrix, tmp_path):
    matrix = shutil.copytree(small_matrix, tmp_path / "matrix")
    damage(matrix / "probs.npz", 3000)
    assert_refused("--token_languages", matrix, says=[f"--token_languages {matrix}: a damaged matrix"])


def test_an_adapter_that_is_none_is_refused(assert_refused, llama, adapter, tmp_path):
    copy = shutil.copytree(adapter, tmp_path / "adapter")
    damage(copy / "adapter_config.json", b"[]")
    assert_refused("--model", llama, "--adapter", copy, says=[f"--adapter {copy}"])


DAMAGES = {
    "no JSON in the middle": (lambda lines: [lines[0], "so it goes", *lines[1:]], ":2: not JSON: 'so it goes'"),
    "a line twice": (lambda lines: [*lines[:3], lines[1], *lines[3:]], ":4: a second prediction for id"),
    "another data set's": (lambda lines: [lines[0].replace("sample_qa", "xquad"), *lines[1:]], ":1: the dataset of id"),
    "no prediction": (lambda lines: ['{"id": "water-1", "lang": "hi"}', *lines[1:]], ":1: not a prediction"),
}


@pytest.mark.parametrize("damaged", DAMAGES)
def test_damaged_predictions_of_a_stopped_run_are_named_and_left_alone(infer, tmp_path, batches, damaged):
    change, says = DAMAGES[damaged]
    batches.stop_before = 3
    assert_stopped(infer(), tmp_path / "run")
    path = tmp_path / "run/predictions.jsonl"
    lines = change(path.read_text(encoding="utf-8").split("\n"))
    path.write_text("\n".join(lines), encoding="utf-8")
    before = content_of(tmp_path / "run")
    outcome = infer()
    assert_one_error_line(outcome, f"{path}{says}")
    assert outcome.out == "" and content_of(tmp_path / "run") == before


def test_logits_that_are_not_finite_are_named(infer, saved, tmp_path):
    folder = saved("bloom")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = torch.nan
    model.save_pretrained(folder)
    assert_one_error_line(infer("--model", folder), "not finite in float32")
    assert set(content_of(tmp_path / "run")) == {"config.json"}


def test_a_batch_that_differs_from_its_prompts_alone_stops_the_run(infer, tmp_path, monkeypatch):
    moved = prefixes.moved
    off_by_one = lambda texts, rows, steps, room=0: moved(texts, rows, steps + 1, room)  # noqa: E731
    monkeypatch.setattr(prefixes, "moved", off_by_one)
    assert_one_error_line(infer(), "a prompt in a batch and alone differ", "--batch_size 1")
    assert set(content_of(tmp_path / "run")) == {"config.json"}
