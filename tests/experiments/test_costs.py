"""What a dry run says that commands cost, against tokens counted one by one."""

from types import SimpleNamespace

from utils.data.examples import load_examples
from utils.data.prompts import render
from utils.experiments import costs
from utils.experiments.plan import Command
from utils.models.hidden_states import encode
from utils.models.loading import load_tokenizer


def test_every_command_s_tokens_are_its_own_examples(llama, tmp_path, monkeypatch, capsys):
    examples = tuple(load_examples("sample_qa", ["en", "hi"], "test"))
    chosen = [(examples[:2], 1), (examples[2:7], 1), (examples[:2], 3), (examples[2:7], 10)]
    commands = [
        Command("train", str(i), [f"{i}.py"], tmp_path / str(i), kind="train", examples=part, repeats=n)
        for i, (part, n) in enumerate(chosen)
    ]
    monkeypatch.setattr(costs, "measure", lambda preset, commands: {"train": 3600.0})
    costs.print_costs(SimpleNamespace(model=llama), commands)
    tokenizer = load_tokenizer(llama)
    expected = [n * sum(len(encode(tokenizer, render(example))) for example in part) for part, n in chosen]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == [f"{n:,}" for n in expected] and len(set(expected)) == 4
    assert f"about {sum(expected):.1f} hours" in lines[-1]
