"""Corpora, and the table of word counts."""

import gzip

import pytest

from tests.token_languages.tokenizers import (
    LANGUAGES,
)
from utils.data.corpora import corpus_checksum, count_forms, read_corpus, read_word_counts, write_word_counts
from utils.languages import script_of


def test_a_corpus_is_read_under_any_spelling_in_the_order_of_the_codes(tmp_path):
    for name, text in {
        "cmn_Hans.dev": "一。\n二。\n",
        "or.txt": "ଏକ\n",
        "eng_Latn.devtest": "One.\n",
        ".hidden": "",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "folder").mkdir()
    corpus = read_corpus(tmp_path)
    assert list(corpus.items()) == [("eng_Latn", ["One."]), ("ory_Orya", ["ଏକ"]), ("zho_Hans", ["一。", "二。"])]


@pytest.mark.parametrize(
    ("files", "named", "reason"),
    [
        (["eng_Latn.txt", "README.md"], "README.md", "unknown language 'README'"),
        (["ace.txt"], "ace.txt", "choose from ace_Arab, ace_Latn"),
        (["cmn_Hans.txt", "zho_Hans.txt"], "zho_Hans.txt", "a second file for zho_Hans, beside cmn_Hans.txt"),
        (["eng_Latn.dev", "eng_Latn.devtest"], "eng_Latn.devtest", "a second file for eng_Latn"),
        ([".hidden"], "", "no files in it"),
        ([], "", "no files in it"),
    ],
)
def test_a_bad_corpus_folder(tmp_path, files, named, reason):
    for name in files:
        (tmp_path / name).write_text("One.\n")
    with pytest.raises(ValueError) as error:
        read_corpus(tmp_path)
    message = str(error.value)
    assert message.startswith(str(tmp_path / named)) and reason in message and "\n" not in message


def test_bad_corpus_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        read_corpus(tmp_path / "nowhere")
    (tmp_path / "eng_Latn.txt").write_text("One.\n\nThree.\n")
    with pytest.raises(ValueError, match=r"eng_Latn\.txt:2: empty line"):
        read_corpus(tmp_path)


def test_the_checksum_of_a_corpus_is_of_its_names_and_contents(corpus_folder, tmp_path):
    corpus = {"eng_Latn": ["One."], "deu_Latn": ["Eins."]}
    sums = {name: corpus_checksum(corpus_folder(corpus, name)) for name in ("a", "b")}
    assert sums["a"] == sums["b"]
    (tmp_path / "b/eng_Latn.txt").write_text("Two.\n")
    (tmp_path / "a/eng_Latn.txt").rename(tmp_path / "a/fra_Latn.txt")
    assert len({sums["a"], corpus_checksum(tmp_path / "a"), corpus_checksum(tmp_path / "b")}) == 3


@pytest.mark.parametrize(
    ("sentence", "forms"),
    [
        ("The cat saw the cat.", {" The": 1, " cat": 2, " saw": 1, " the": 1}),
        ('He said "no" (never), then «oui».', {" He": 1, " said": 1, " no": 1, " never": 1, " then": 1, " oui": 1}),
        ("l'été can't re-do 3,5%", {" l'été": 1, " can't": 1, " re-do": 1, " 3,5": 1}),
        ("Well -- yes ... $5", {" Well": 1, " yes": 1, " 5": 1}),
        ("पानी, नमक।", {" पानी": 1, " नमक": 1}),
        ("a\u00a0b  c\td", {" a": 1, " b": 1, " c": 1, " d": 1}),
        ("— !", {}),
    ],
)
def test_the_forms_of_a_sentence(sentence, forms):
    assert count_forms([sentence], "Latn") == forms
    assert count_forms([sentence, sentence], "Latn") == {form: 2 * count for form, count in forms.items()}


@pytest.mark.parametrize("script", ["Hans", "Hant", "Jpan", "Thai", "Khmr", "Laoo", "Mymr", "Tibt"])
def test_the_forms_of_scripts_without_spaces_are_ngrams(script):
    counts = count_forms(["我们我们们 去", "我"], script)
    expected = {"我": 3, "们": 3, "去": 1, "我们": 2, "们我": 1, "们们": 1, "我们我": 1, "们我们": 1, "我们们": 1}
    assert counts == expected | {"我们我们": 1, "们我们们": 1}


def test_korean_is_written_with_spaces():
    assert count_forms(["한국 사람."], "Hang") == {" 한국": 1, " 사람": 1}


def test_word_counts_are_the_same_bytes_every_time_and_read_back(tmp_path, sample):
    write_word_counts(tmp_path / "a.tsv.gz", sample)
    write_word_counts(tmp_path / "b.tsv.gz", dict(reversed(sample.items())))
    content = (tmp_path / "a.tsv.gz").read_bytes()
    assert content == (tmp_path / "b.tsv.gz").read_bytes()
    assert content[3:8] == bytes(5)  # neither a name nor a time in gzip's header
    expected = {
        code: {form: n for form, n in count_forms(sentences, script_of(code)).items()}
        for code, sentences in sample.items()
    }
    counts = read_word_counts(tmp_path / "a.tsv.gz")
    assert counts == expected and list(counts) == LANGUAGES
    assert counts["eng_Latn"][" the"] > counts["eng_Latn"][" The"]


def test_rare_forms_are_left_out_on_request(tmp_path):
    write_word_counts(tmp_path / "a.tsv.gz", {"eng_Latn": ["One two two"]}, least=2)
    assert read_word_counts(tmp_path / "a.tsv.gz") == {"eng_Latn": {" two": 2}}


HEADER = b"language\tform\tcount\n"


def compressed(content):
    """The same bytes every time: parallel processes must name their tests alike."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"plain text", ": not a gzip of UTF-8"),
        (compressed(HEADER)[:-6], ": not a gzip of UTF-8"),
        (compressed(HEADER + b"eng_Latn\t\xff\t3\n"), ": not a gzip of UTF-8"),
        (compressed(b"form\tcount\n"), ":1: the header is not"),
        (compressed(HEADER + b"eng_Latn\tthe\t3\neng_Latn\tof\n"), ":3: not language, form, count"),
        (compressed(HEADER + b"eng_Latn\tthe\tmany\n"), ":2: not language, form, count"),
        (compressed(HEADER + b"xxx_Latn\tthe\t3\n"), ":2: unknown language 'xxx_Latn'"),
        (compressed(HEADER + b"en\tthe\t3\neng_Latn\tof\t2\n"), ":3: eng_Latn is eng_Latn, which the table has as en"),
        (compressed(HEADER + b"en\tthe\t3\nen\tthe\t2\n"), ":3: 'the' of en a second time"),
        (compressed(HEADER + b"en\tthe\t-3\n"), ":2: a count of -3"),
        (compressed(HEADER + b"en\tthe\t0\n"), ":2: a count of 0"),
    ],
)
def test_bad_word_counts(tmp_path, content, reason):
    path = tmp_path / "w.tsv.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_word_counts(path)
    assert reason in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}{reason}")
