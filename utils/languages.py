"""Language codes: FLORES-200's (`ory_Orya`) are canonical; every other spelling is converted here, once."""

import json
from functools import cache
from pathlib import Path

import regex

MAP_FILE = Path(__file__).resolve().parent.parent / "flores_lang_map.json"
# ISO 639-1 -> FLORES-200, where FLORES-200 has the language. Macrolanguages go to the variety that
# XQuAD, FLORES-200 and the models' own documentation mean by the short code.
ISO_639_1 = dict(
    pair.split(":")
    for pair in """
    af:afr_Latn ak:aka_Latn am:amh_Ethi ar:arb_Arab as:asm_Beng ay:ayr_Latn az:azj_Latn ba:bak_Cyrl be:bel_Cyrl
    bg:bul_Cyrl bm:bam_Latn bn:ben_Beng bo:bod_Tibt bs:bos_Latn ca:cat_Latn cs:ces_Latn cy:cym_Latn da:dan_Latn
    de:deu_Latn dz:dzo_Tibt ee:ewe_Latn el:ell_Grek en:eng_Latn eo:epo_Latn es:spa_Latn et:est_Latn eu:eus_Latn
    fa:pes_Arab ff:fuv_Latn fi:fin_Latn fj:fij_Latn fo:fao_Latn fr:fra_Latn ga:gle_Latn gd:gla_Latn gl:glg_Latn
    gn:grn_Latn gu:guj_Gujr ha:hau_Latn he:heb_Hebr hi:hin_Deva hr:hrv_Latn ht:hat_Latn hu:hun_Latn hy:hye_Armn
    id:ind_Latn ig:ibo_Latn is:isl_Latn it:ita_Latn ja:jpn_Jpan jv:jav_Latn ka:kat_Geor kg:kon_Latn ki:kik_Latn
    kk:kaz_Cyrl km:khm_Khmr kn:kan_Knda ko:kor_Hang ku:kmr_Latn ky:kir_Cyrl lb:ltz_Latn lg:lug_Latn li:lim_Latn
    ln:lin_Latn lo:lao_Laoo lt:lit_Latn lv:lvs_Latn mg:plt_Latn mi:mri_Latn mk:mkd_Cyrl ml:mal_Mlym mn:khk_Cyrl
    mr:mar_Deva ms:zsm_Latn mt:mlt_Latn my:mya_Mymr nb:nob_Latn ne:npi_Deva nl:nld_Latn nn:nno_Latn no:nob_Latn
    ny:nya_Latn oc:oci_Latn om:gaz_Latn or:ory_Orya pa:pan_Guru pl:pol_Latn ps:pbt_Arab pt:por_Latn qu:quy_Latn
    rn:run_Latn ro:ron_Latn ru:rus_Cyrl rw:kin_Latn sa:san_Deva sc:srd_Latn sd:snd_Arab sg:sag_Latn si:sin_Sinh
    sk:slk_Latn sl:slv_Latn sm:smo_Latn sn:sna_Latn so:som_Latn sq:als_Latn sr:srp_Cyrl ss:ssw_Latn st:sot_Latn
    su:sun_Latn sv:swe_Latn sw:swh_Latn ta:tam_Taml te:tel_Telu tg:tgk_Cyrl th:tha_Thai ti:tir_Ethi tk:tuk_Latn
    tl:tgl_Latn tn:tsn_Latn tr:tur_Latn ts:tso_Latn tt:tat_Cyrl tw:twi_Latn ug:uig_Arab uk:ukr_Cyrl ur:urd_Arab
    uz:uzn_Latn vi:vie_Latn wo:wol_Latn xh:xho_Latn yi:ydd_Hebr yo:yor_Latn zh:zho_Hans zu:zul_Latn
    """.split()
)
# FLORES+ renamed some of FLORES-200's codes, and tells others apart by a Glottocode; all are read.
FLORES_PLUS = {
    "cmn_Hans": "zho_Hans",
    "cmn_Hant": "zho_Hant",
    "fil_Latn": "tgl_Latn",
    "ekk_Latn": "est_Latn",
    "gug_Latn": "grn_Latn",
    "ktu_Latn": "kon_Latn",
    "zgh_Tfng": "tzm_Tfng",
    "apc_Arab_sout3123": "ajp_Arab",
    "apc_Arab_nort3139": "apc_Arab",
    "twi_Latn_asan1239": "aka_Latn",
    "twi_Latn_akua1239": "twi_Latn",
}
# ISO 639-3 codes that FLORES-200 has in several scripts and that mean one of them without saying so.
USUAL_SCRIPT = {"zho": "zho_Hans", "cmn": "zho_Hans", "arb": "arb_Arab"}
# ISO 15924 script of a FLORES code -> Unicode scripts of its letters.
UNICODE_SCRIPTS = {
    "Arab": ("Arabic",),
    "Armn": ("Armenian",),
    "Beng": ("Bengali",),
    "Cyrl": ("Cyrillic",),
    "Deva": ("Devanagari",),
    "Ethi": ("Ethiopic",),
    "Geor": ("Georgian",),
    "Grek": ("Greek",),
    "Gujr": ("Gujarati",),
    "Guru": ("Gurmukhi",),
    "Hang": ("Hangul",),
    "Hans": ("Han",),
    "Hant": ("Han",),
    "Hebr": ("Hebrew",),
    "Jpan": ("Han", "Hiragana", "Katakana"),
    "Khmr": ("Khmer",),
    "Knda": ("Kannada",),
    "Laoo": ("Lao",),
    "Latn": ("Latin",),
    "Mlym": ("Malayalam",),
    "Mymr": ("Myanmar",),
    "Olck": ("Ol_Chiki",),
    "Orya": ("Oriya",),
    "Sinh": ("Sinhala",),
    "Taml": ("Tamil",),
    "Telu": ("Telugu",),
    "Tfng": ("Tifinagh",),
    "Thai": ("Thai",),
    "Tibt": ("Tibetan",),
}
# ISO 15924 scripts in which white space does not part the words.
WRITTEN_WITHOUT_SPACES = ("Hans", "Hant", "Jpan", "Khmr", "Laoo", "Mymr", "Thai", "Tibt")
# What a code looks like, known here or not: it is printed, and names files of figures.
CODE = regex.compile(r"[A-Za-z0-9]+([_-][A-Za-z0-9]+)*")
NOT_LANGUAGES = ("special", "byte", "zxx", "und")
ENGLISH = "eng_Latn"
# Channels that are no languages: name, grey, dash.
OTHER_CHANNELS = {
    "special": ("control tokens", "#555555", (0, (7, 2))),
    "byte": ("parts of characters", "#8F8F8F", (0, (2.5, 1))),
    "zxx": ("punctuation, digits", "#727272", (0, (4, 1, 1, 1))),
    "und": ("unknown text", "#A8A8A8", (0, (4, 1, 1, 1, 1, 1))),
}


@cache
def flores_names() -> dict[str, str]:
    """FLORES code -> English name, for the 204 languages of FLORES-200, in the order of their codes."""
    name_to_code = json.loads(MAP_FILE.read_text(encoding="utf-8"))
    return {code: name for name, code in sorted(name_to_code.items(), key=lambda pair: pair[1])}


@cache
def _spellings() -> dict[str, tuple[str, ...]]:
    """Every lower-cased spelling -> the FLORES codes that it can mean."""
    meanings: dict[str, set[str]] = {}
    for code, name in flores_names().items():
        for spelling in (code, code.split("_")[0], name):
            meanings.setdefault(spelling.lower(), set()).add(code)
    for renamed, code in FLORES_PLUS.items():
        for spelling in (renamed, renamed.split("_")[0]):
            meanings.setdefault(spelling.lower(), {code})  # `twi` stays Twi, though Akan is twi_Latn_asan1239
    for short, code in (ISO_639_1 | USUAL_SCRIPT).items():
        meanings[short] = {code}
    return {spelling: tuple(sorted(codes)) for spelling, codes in meanings.items()}


def language_code(language: str) -> str:
    """The FLORES-200 code of an ISO 639-1 or 639-3 code, a FLORES-200 or FLORES+ code, or an English name.

    Raises ValueError for an unknown language, and for a code that several scripts share.
    """
    codes = _spellings().get(language.strip().lower(), ())
    if len(codes) == 1:
        return codes[0]
    if codes:
        raise ValueError(f"ambiguous language {language!r}: choose from {', '.join(codes)}")
    raise ValueError(
        f"unknown language {language!r}: give an ISO 639 code (or, ory), a FLORES-200 code (ory_Orya) "
        f"or a name (Odia) of one of the {len(flores_names())} in {MAP_FILE.name}"
    )


def language_name(code: str) -> str:
    """English name of a FLORES code; a code that FLORES-200 lacks (some of langid's) is its own name."""
    return flores_names().get(code, code)


@cache
def _short_codes() -> dict[str, str]:
    # setdefault: the first ISO 639-1 code of a language wins (nb before no)
    shortened: dict[str, str] = {}
    for short, code in ISO_639_1.items():
        shortened.setdefault(code, short)
    return shortened


def short_code(code: str) -> str:
    """ISO 639-1 code of a FLORES code where there is one (`or`), else the code itself: file names, axes."""
    return _short_codes().get(code, code)


def script_of(code: str) -> str:
    """ISO 15924 script of a FLORES code: `ory_Orya` -> `Orya`."""
    return code.split("_")[1]


def in_own_script(text: str, code: str) -> bool:
    """Is at least half of a text's letters of a script that the language is written in? True without letters."""
    letters = regex.findall(r"\p{L}", text)
    return 2 * len(_own_letter(code).findall("".join(letters))) >= len(letters)


@cache
def _own_letter(code: str) -> regex.Pattern:
    scripts = "".join(rf"\p{{Script={script}}}" for script in UNICODE_SCRIPTS[script_of(code)])
    return regex.compile(f"[{scripts}]")


def channel_name(channel: str) -> str:
    """What a figure calls a channel, in English: `mni_Beng` is Meitei (Bengali), `zxx` punctuation, digits."""
    if channel in OTHER_CHANNELS:
        return OTHER_CHANNELS[channel][0]
    return language_name(channel).removeprefix("Modern ").replace(" script)", ")")
