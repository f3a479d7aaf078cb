"""Unicode's names of emoji and signs (CLDR annotations) -> a table of concepts by their names in 33 languages."""

import json

from utils.languages import short_code

# The languages of Unicode's names that the project knows, but for those with few names.
LANGUAGES = """
    arb_Arab asm_Beng ben_Beng deu_Latn ell_Grek eng_Latn est_Latn fin_Latn fra_Latn guj_Gujr hin_Deva ind_Latn jpn_Jpan
    kan_Knda kor_Hang mal_Mlym mar_Deva ory_Orya pan_Guru ron_Latn rus_Cyrl spa_Latn swe_Latn swh_Latn tam_Taml tel_Telu
    tha_Thai tur_Latn urd_Arab vie_Latn xho_Latn zho_Hans zsm_Latn
""".split()


def annotation_file(lang: str) -> str:
    """Where a language's names are in the package cldr-annotations-full."""
    return f"package/annotations/{short_code(lang)}/annotations.json"


def concept_table(files: dict[str, bytes]) -> bytes:
    """The table, parted by tabs: symbol and a name in each language, empty where there is none. English's order.

    files: language -> its annotations.json. A name is the text that is read aloud (`tts`).
    """
    names = {lang: json.loads(content)["annotations"]["annotations"] for lang, content in files.items()}
    lines = ["\t".join(["symbol", *files])]
    for symbol in names["eng_Latn"]:
        of_symbol = [names[lang].get(symbol, {}).get("tts", [""])[0] for lang in files]
        lines.append("\t".join([symbol, *of_symbol]))
    return ("\n".join(lines) + "\n").encode("utf-8")
