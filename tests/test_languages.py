"""Every spelling of a language reads to its FLORES-200 code, or is refused."""

import json

import pytest

from utils.languages import (
    FLORES_PLUS,
    ISO_639_1,
    MAP_FILE,
    flores_names,
    in_own_script,
    language_code,
    language_name,
    script_of,
    short_code,
)

SHARED_ISO_639_3 = ["ace", "acm", "arb", "bjn", "kas", "knc", "min", "taq", "zho"]  # codes with several scripts


def test_the_map_has_204_names_and_204_codes():
    name_to_code = json.loads(MAP_FILE.read_text(encoding="utf-8"))
    assert len(name_to_code) == len(set(name_to_code.values())) == len(flores_names()) == 204
    assert list(flores_names()) == sorted(name_to_code.values())
    assert all(len(code) == 8 and code[3] == "_" and code[:3].islower() for code in flores_names())


@pytest.mark.parametrize("spelling", ["or", "ory", "ory_Orya", "Odia", "OR", "ORY", "ORY_ORYA", "odia", " or "])
def test_every_spelling_of_a_language_is_read(spelling):
    assert language_code(spelling) == "ory_Orya"


def test_every_code_and_every_name_reads_to_the_code():
    for code, name in flores_names().items():
        assert language_code(code) == language_code(name) == language_code(name.upper()) == code
        assert language_name(code) == name


@pytest.mark.parametrize(
    ("short", "code"),
    # the codes that the data sets' files go by, and those of macrolanguages
    [
        ("en", "eng_Latn"),
        ("ar", "arb_Arab"),
        ("as", "asm_Beng"),
        ("el", "ell_Grek"),
        ("et", "est_Latn"),
        ("fa", "pes_Arab"),
        ("ms", "zsm_Latn"),
        ("ne", "npi_Deva"),
        ("no", "nob_Latn"),
        ("pa", "pan_Guru"),
        ("sq", "als_Latn"),
        ("sw", "swh_Latn"),
        ("te", "tel_Telu"),
        ("ur", "urd_Arab"),
        ("xh", "xho_Latn"),
        ("zh", "zho_Hans"),
        ("zho", "zho_Hans"),
    ],
)
def test_short_codes(short, code):
    assert language_code(short) == code


@pytest.mark.parametrize(
    ("renamed", "code"),
    [
        ("cmn_Hans", "zho_Hans"),
        ("cmn_Hant", "zho_Hant"),
        ("cmn", "zho_Hans"),
        ("fil_Latn", "tgl_Latn"),
        ("fil", "tgl_Latn"),
        ("ekk_Latn", "est_Latn"),
        ("gug_Latn", "grn_Latn"),
        ("ktu_Latn", "kon_Latn"),
        ("zgh_Tfng", "tzm_Tfng"),
        ("apc_Arab_sout3123", "ajp_Arab"),
        ("apc_Arab_nort3139", "apc_Arab"),
        ("twi_Latn_asan1239", "aka_Latn"),
        ("twi_Latn_akua1239", "twi_Latn"),
        # what FLORES+ tells apart by a Glottocode stays FLORES-200's own code without it
        ("apc_Arab", "apc_Arab"),
        ("twi", "twi_Latn"),
    ],
)
def test_what_flores_plus_renamed_is_read(renamed, code):
    assert language_code(renamed) == language_code(renamed.upper()) == code


def test_the_tables_name_only_languages_of_the_map():
    assert {*ISO_639_1.values(), *FLORES_PLUS.values()} <= set(flores_names())


@pytest.mark.parametrize("unknown", ["xx", "", "klingon", "ory_Latn", "or_Orya", "orya", "ory_Orya.dev"])
def test_an_unknown_language_is_refused_with_its_value_and_the_choices(unknown):
    with pytest.raises(ValueError, match="unknown language") as error:
        language_code(unknown)
    message = str(error.value)
    assert repr(unknown) in message and "\n" not in message
    assert "204" in message and "flores_lang_map.json" in message and "ory_Orya" in message


def test_a_code_that_scripts_share_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"^ambiguous language 'ace': choose from ace_Arab, ace_Latn$"):
        language_code("ace")


def test_an_iso_639_3_code_is_read_or_has_several_scripts():
    shared = {code[:3] for code in flores_names() if sum(other[:3] == code[:3] for other in flores_names()) > 1}
    assert shared == {*SHARED_ISO_639_3} - {"acm"}
    for code in flores_names():
        if code[:3] not in shared:
            assert language_code(code[:3]) == code


def test_short_codes_round_trip():
    shortened = [short_code(code) for code in flores_names()]
    assert len(set(shortened)) == 204  # they name files: no two may be the same
    assert [language_code(short) for short in shortened] == list(flores_names())
    assert short_code("ory_Orya") == "or"
    assert short_code("nob_Latn") == "nb"
    assert short_code("zho_Hans") == "zh" and short_code("zho_Hant") == "zho_Hant"
    assert short_code("awa_Deva") == "awa_Deva"


def test_names_and_scripts():
    assert language_name("ory_Orya") == "Odia"
    assert language_name("bre_Latn") == "bre_Latn"  # langid has Breton, FLORES-200 hasn't
    assert script_of("ory_Orya") == "Orya"


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("ପାଣି", "ory_Orya", True),
        ("पानी", "ory_Orya", False),
        ("पानी", "mar_Deva", True),
        ("NASA ପାଣି", "ory_Orya", False),  # four letters of six, vowel signs not counted
        ("NA ପାଣି", "ory_Orya", True),
        ("水とみず", "jpn_Jpan", True),
        ("みず", "zho_Hans", False),
        ("1990, 50%", "tha_Thai", True),
        ("", "tha_Thai", True),
    ],
)
def test_the_script_of_a_text(text, code, expected):
    assert in_own_script(text, code) is expected


def test_every_language_has_its_script():
    assert all(in_own_script("1", code) for code in flores_names())
