"""Memory of weights that are a file's pages is given back, and nothing else is."""

import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from utils.models.mapped import FileMappings

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells of its mappings")


def resident(path) -> int:
    """Bytes of a file's mappings in this process that are in memory."""
    found, inside = 0, False
    with open("/proc/self/smaps", encoding="utf-8") as lines:
        for line in lines:
            if not line.split()[0].endswith(":"):
                inside = str(path) in line
            elif inside and line.startswith("Rss:"):
                found += 1024 * int(line.split()[1])
    return found


@pytest.fixture
def mapped(tmp_path):
    """A weight that is mapped from a file, and the file."""
    path = tmp_path / "weights.bin"
    values = torch.randn(1 << 20)
    values.numpy().tofile(path)
    return torch.from_file(str(path), shared=False, size=values.numel()), values, path


def test_a_mapped_weight_is_given_back_and_read_again(mapped):
    weight, values, path = mapped
    assert weight.equal(values) and resident(path) >= weight.nbytes
    files = FileMappings.of_this_process()
    assert files.hold(weight) and files.hold(weight[1000:2000])
    files.release(weight)
    assert resident(path) < weight.nbytes / 10
    assert weight.equal(values)


def test_a_weight_that_was_changed_stays(mapped):
    weight, values, _ = mapped
    weight[12345] = 7.0
    files = FileMappings.of_this_process()
    assert not files.hold(weight)
    files.release(weight)
    assert weight[12345] == 7.0 and weight[12346] == values[12346]


def test_a_weight_of_no_file_and_a_part_with_gaps_stay(mapped):
    files = FileMappings.of_this_process()
    assert not files.hold(torch.ones(1 << 20))
    assert not files.hold(mapped[0].view(1024, 1024)[:, :10])


def test_a_checkpoints_weights_are_mapped(tiny_model, tmp_path):
    """What `quick` counts on: transformers maps safetensors, and leaves them as they are."""
    model = tiny_model("llama").causal_lm
    model.save_pretrained(tmp_path)
    save_file({"x": torch.ones(3)}, tmp_path / "other.safetensors")
    read = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    files = FileMappings.of_this_process()
    weight = read.get_output_embeddings().weight.detach()
    assert files.hold(weight)
    before = weight.clone()
    files.release(weight)
    assert weight.equal(before)
