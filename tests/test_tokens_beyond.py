"""Tokens that a tokenizer has and its model has no embedding of, as Gemma 3's for images: one line, before any work."""

import json

import pytest

import fit_lens
import logit_lens_tokenid_to_lang
import probe_logit_lens
import QAinference
import QAtraining
from tests.conftest import PADDING_ROWS, make_tiny_tokenizer, tiny_causal_lm
from tests.scripts import PARALLEL, assert_one_error_line, run
from utils.models.hidden_states import encode
from utils.models.loading import load_model

IMAGE = "<image_soft_token>"


@pytest.fixture(scope="module")
def sees(tmp_path_factory):
    """A model whose tokenizer has, past the embedding's last row, one token more."""
    folder = tmp_path_factory.mktemp("sees") / "tiny"
    tokenizer = make_tiny_tokenizer()
    tiny_causal_lm("llama", len(tokenizer), max_position_embeddings=1024).save_pretrained(folder)
    tokenizer.add_tokens([f"<unused{i}>" for i in range(PADDING_ROWS)])
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


def with_image(path):
    """A data file whose first text has the token in it."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        content = json.loads(text)
        content["examples"][0]["question"] += f" {IMAGE} what is this?"
        path.write_text(json.dumps(content), encoding="utf-8")
    else:
        path.write_text(f"See {IMAGE} here: {text}", encoding="utf-8")


def test_the_last_row_is_a_token_and_the_next_is_refused(sees):
    model = load_model(str(sees))
    rows = len(model.causal_lm.get_input_embeddings().weight)
    last, image = f"<unused{PADDING_ROWS - 1}>", model.tokenizer.convert_tokens_to_ids(IMAGE)
    assert image == rows and encode(model.tokenizer, f"a {last}")[-1] == rows - 1
    says = (
        rf"token '{IMAGE}' \(id {rows}\), which the model has no embedding of \({rows} rows\): 'before {IMAGE} after'"
    )
    with pytest.raises(ValueError, match=says):
        encode(model.tokenizer, f"before {IMAGE} after")


@pytest.mark.parametrize("script", [QAinference, probe_logit_lens], ids=lambda script: script.__name__)
def test_a_question_with_such_a_token_is_one_line(sees, datasets, tmp_path, script):
    with_image(datasets / "sample/qa/en/sample_qa_en_test.json")
    argv = ["--model", sees, "--langs", "en", "--limit", 2, "--token_languages", tmp_path / "matrix"]
    made = run(
        logit_lens_tokenid_to_lang.main, "--model", sees, "--corpus", PARALLEL, "--output_dir", tmp_path / "matrix"
    )
    assert made.status == 0  # a matrix needs no embedding
    outcome = run(script.main, *argv, "--output_dir", tmp_path / "run")
    assert_one_error_line(outcome, IMAGE, "no embedding", "what is this?"[:5])
    assert not (tmp_path / "run").exists()


def test_a_training_text_with_such_a_token_is_one_line(sees, datasets, tmp_path):
    path = datasets / "sample/qa/en/sample_qa_en_train.json"
    with_image(path)
    argv = ["--model", sees, "--train_file", path, "--lora_rank", 2, "--output_dir", tmp_path / "run"]
    assert_one_error_line(run(QAtraining.main, *argv), IMAGE, "no embedding")
    assert not (tmp_path / "run").exists()


def test_a_corpus_with_such_a_token_is_one_line(sees, datasets, tmp_path):
    with_image(datasets / "sample/parallel/eng_Latn.txt")
    argv = ["--lens", "tuned", "--model", sees, "--langs", "en", "hi", "--corpus", datasets / "sample/parallel"]
    argv += ["--tokens", 24, "--limit", 12, "--held_out", 4, "--steps", 2, "--output_dir", tmp_path / "run"]
    assert_one_error_line(run(fit_lens.main, *argv), IMAGE, "no embedding")
    assert not (tmp_path / "run" / "metrics.json").exists()
