"""Files of others, and what of their texts reaches a terminal; the forms that they must have."""

import contextlib
import os
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest
from markdown_it import MarkdownIt

from tests.scripts import PROJECT_DIR
from utils import command_line, outside
from utils.schemas import AdapterConfiguration, ScoredRow, require_form


def test_a_pipe_a_folder_and_a_device_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(ValueError, match=f"{path}: (not a regular file|Is a directory)"):
            outside.read_bytes(path)


def test_a_file_that_is_not_there_too_large_or_not_utf8_is_named(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"abc\xff")
    for path, says in ((tmp_path / "b", "No such file"), (tmp_path / "a", "not UTF-8 .byte 3")):
        with pytest.raises(ValueError, match=f"{path}: {says}"):
            outside.read_utf8(path)
    monkeypatch.setattr(outside, "LARGEST_TEXT_BYTES", 3)
    with pytest.raises(ValueError, match="4 bytes, more than 3"):
        outside.read_bytes(tmp_path / "a")


def test_lines_end_at_line_feeds_alone(tmp_path):
    (tmp_path / "a").write_bytes("\ufeffone\u2028still\u0085one\rone\n\ntwo".encode())
    assert list(outside.lines_of(tmp_path / "a")) == [(1, "one\u2028still\u0085one\rone"), (2, ""), (3, "two")]
    (tmp_path / "a").write_bytes(b"")
    assert list(outside.lines_of(tmp_path / "a")) == []


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("a\nb\r\n c", "a b c"),
        ("\x1b[2J\x07\u202egpj", "\\x1b[2J\\x07\\u202egpj"),
        ("\udcff", "\\udcff"),
        ("at https://me:secret@hub.example/api", "at https://...hub.example/api"),
        ("at https://me:s@cr/t@hub.example/api, me@b", "at https://...hub.example/api, me@b"),
        ("token hf_" + "a" * 24 + " here", "token ... here"),
        ("ଓଡ଼ିଆ “quoted” 中", "ଓଡ଼ିଆ “quoted” 中"),
        ("x" * 5000, "x" * 1000 + "..."),
    ],
)
def test_a_message_is_one_line_without_what_a_terminal_obeys_and_without_secrets(message, line):
    assert outside.one_line(message) == line


GOOD = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "mlp.up_proj"], "other": {"x": 1}}


def test_what_peft_writes_is_taken():
    assert require_form(AdapterConfiguration, GOOD, "f").target_modules == GOOD["target_modules"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"target_modules": "(a+)+$"}, "target_modules"),
        ({"target_modules": ["(a+)+$"]}, "target_modules.0"),
        ({"target_modules": [3]}, "target_modules.0"),
        ({"exclude_modules": ".*"}, "exclude_modules"),
        ({"layers_pattern": "(a|a)*"}, "layers_pattern"),
        ({"rank_pattern": {"(a+)+": 4}}, "rank_pattern"),
        ({"rank_pattern": {"a": 10**10}}, "rank_pattern.a"),
        ({"r": 10**10}, "r"),
        ({"r": 0}, "r"),
        ({"r": "8"}, "r"),
        ({"r": True}, "r"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_dropout": -0.1}, "lora_dropout"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path"),
        ({"peft_type": None}, "peft_type"),
    ],
)
def test_an_adapter_s_configuration_of_other_types_is_refused_by_field(change, field):
    with pytest.raises(ValueError, match=f"^f: {field}.* is ") as error:
        require_form(AdapterConfiguration, GOOD | change, "f")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("content", [None, [], "x", 3, {}, {"lang": "en"}, {"lang": "en", "id": "a", "scores": []}])
def test_a_row_of_another_form_is_refused(content):
    with pytest.raises(ValueError, match="^f:7: "):
        require_form(ScoredRow, content, "f:7")


def test_standard_input_is_never_read(monkeypatch):
    answers = []

    def asks(args):
        with contextlib.suppress(EOFError):
            answers.append(input("Do you trust it? "))

    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    assert command_line.run(asks, None) == 0 and answers == []


PRINTS = """
import sys
from utils import command_line
def script(args):
    for i in range(100_000):
        print(i)
sys.exit(command_line.run(script, None))
"""


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -c '{PRINTS}' | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=PROJECT_DIR, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


def test_a_terminal_without_a_language_s_letters_gets_their_numbers():
    code = "from utils import command_line; command_line.run(lambda args: print('ଓ ok'), None)"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=PROJECT_DIR, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\u0b13 ok\n", "")


def test_a_terminated_script_says_how_to_go_on():
    code = "import os, signal, time; from utils import command_line; import sys\n"
    code += "def script(args):\n    os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)\n"
    code += "sys.exit(command_line.run(script, None))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_DIR, capture_output=True, text=True)
    line = "error: terminated; the same command goes on from here\n"
    assert (done.returncode, done.stdout, done.stderr) == (143, "", line)


MARKS = st.text(st.sampled_from("\\|*`<>~$_[]()!&#;:ab1 -+=/\"'.\n\x1bଓ"), max_size=20)
EVIL = [
    "<script>x</script>",
    "[a](javascript:b)",
    "![a](b)",
    "a|b",
    "`|`",
    "*a* _b_ __c__ ~~d~~",
    "&lt;&#60;",
    "\\",
    "$x_$",
]


def texts_of(tokens) -> str:
    """What a reader sees of inline tokens of Markdown; fails where one is more than text."""
    assert {token.type for token in tokens} <= {"text", "text_special"}, tokens
    return "".join(token.content for token in tokens)


@pytest.mark.parametrize("text", EVIL)
def test_marks_of_markdown_are_text(text):
    assert_a_cell(text)


@hypothesis.given(MARKS)
@hypothesis.settings(max_examples=400, deadline=None)
def test_a_text_of_others_is_a_table_s_cell_in_markdown(text):
    assert_a_cell(text)


def assert_a_cell(text):
    page = f"| name | b |\n|---|---|\n| {outside.markdown(text)} | 1 |\n"
    read = MarkdownIt().enable(["strikethrough", "table"]).parse(page)
    cells = [texts_of(token.children) for token in read if token.type == "inline"]
    assert cells == ["name", "b", shown_of(text), "1"]


def shown_of(text):
    return "".join(c if c.isprintable() else "\\x1b" for c in " ".join(text.split()))


def test_a_dollar_sign_begins_no_formula_of_github_s():
    assert outside.markdown("$x_$") == "\\$x\\_\\$"


@hypothesis.given(MARKS)
@hypothesis.settings(max_examples=300, deadline=None)
def test_a_text_of_others_is_code_in_markdown(text):
    hypothesis.assume(text.strip())
    (paragraph,) = [token for token in MarkdownIt().parse(f"a {outside.markdown_code(text)} b") if token.children]
    before, code, after = paragraph.children
    found = (before.content, code.type, code.content, after.content)
    assert found == ("a ", "code_inline", shown_of(text), " b")


def test_what_is_written_plainly_stays_as_it_is():
    for text in ("en -> or_null_1", "-20.0 [-25.0, -10.0] (-3%)", "x1.20 [1.0, 2.0]", "a & b", "R&D"):
        assert outside.markdown(text) == text
    assert outside.markdown_code("python a.py --x or") == "`python a.py --x or`"
