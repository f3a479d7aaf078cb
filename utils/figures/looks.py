"""What figures and pages share: looks and signs of languages, which channels are shown, words. No drawing library."""

import hashlib
import unicodedata
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from utils.languages import ENGLISH, OTHER_CHANNELS, flores_names, script_of, short_code
from utils.lens.probe_runs import FEWEST_TOKENS

# Okabe and Ito's colours without black and yellow; then those that stay farthest from them, from each other
# and from the greys below, in CIELAB, to eyes with and without each kind of colour blindness.
COLOURS = (
    *("#D55E00", "#E69F00", "#CC79A7", "#009E73", "#56B4E9", "#0072B2"),
    *("#704010", "#9900E6", "#DF2040", "#4C39AC", "#CCAA66", "#99007F"),
)
SOLID: str = "solid"
DASHED: tuple = (0, (4, 1.5))
DASH_DOT: tuple = (0, (6, 1.5, 1.5, 1.5))
# English is in every figure, so its black is no other's. A row here has one dash and each of its columns one
# colour; no two languages of XQuAD are in one column, and no two of XQuAD-IN.
COMMON_LANGUAGES: dict[str | tuple, str] = {
    SOLID: """ory_Orya hin_Deva rus_Cyrl deu_Latn zho_Hans spa_Latn
              arb_Arab ben_Beng tam_Taml tel_Telu tha_Thai fra_Latn""",
    DASHED: """ell_Grek pes_Arab guj_Gujr kan_Knda mar_Deva mal_Mlym
               asm_Beng tur_Latn ron_Latn vie_Latn pan_Guru urd_Arab""",
    DASH_DOT: """kor_Hang jpn_Jpan ind_Latn npi_Deva por_Latn ukr_Cyrl
                 pol_Latn ita_Latn nld_Latn khm_Khmr swh_Latn zho_Hant""",
}
MARKERS = ("o", "^", "s", "D", "v")
MARKER_OUTSIDE_FLORES = "X"
# Less of a share above its null than this can't be told from none, at any layer.
VISIBLE_LINE, VISIBLE_CELL = 0.01, 0.003
VISIBLE_PUBLISHED = 0.05  # published without nulls: a curve that rises to be seen
FAINT = 0.25  # opacity of a curve that its null explains
LANGUAGES_OF_LINES, LANGUAGES_OF_HEATMAP = 8, 17
# What a prompt has to do with its prompt_lang, in a title and over a panel.
IN, INTO, IS = "is in", "asks for a translation into", "is"
PANELS = {IN: "prompt in", INTO: "into", IS: ""}
SAYS = {"sample_parallel": INTO, "flores200": INTO, "text": IS}  # by data set; IN where none is said
POSITIONS = {"last": "last prompt token", "answer": "answer tokens"}


def shaded(colour: str, nth: int, on_dark: bool = False) -> str:
    """The nth shade of a colour, each different; the 0th is the colour. On a dark ground they are lighter; on a light
    one too where the colour is dark, else darker.
    """
    if nth == 0:
        return colour
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    end = 1.0 if on_dark or rgb @ (0.299, 0.587, 0.114) < 0.4 else 0.0
    part = 0.14 + 0.6 * (0.62 * nth % 1)  # steps of the golden section: far from those before
    red, green, blue = np.rint(255 * (rgb + part * (end - rgb))).astype(int)
    return f"#{red:02X}{green:02X}{blue:02X}"


def shades(channels: list[str]) -> dict[str, tuple[str, int]]:
    """(colour, which shade of it) of each channel, no two the same; common languages' colours are as they are."""
    found: dict[str, tuple[str, int]] = {}
    for channel in sorted(channels, key=lambda channel: (line_style(channel).marker, line_style(channel)[1] != SOLID)):
        colour = line_style(channel).color
        found[channel] = colour, sum(other == colour for other, _ in found.values())
    return {channel: found[channel] for channel in channels}


def signs(channels: list[str]) -> dict[str, str]:
    """Two or three letters of each channel, no two the same: a second sign beside a colour. More where it must be."""
    found: dict[str, str] = {}
    for channel in channels:
        short = short_code(channel)
        first = short if len(short) <= 3 else channel[:3]
        others = (first, f"{first}{channel[4:5]}", channel)  # zhoH: Chinese in another script
        found[channel] = next(sign for sign in others if sign not in found.values())
    return found


class LineStyle(NamedTuple):
    """What matplotlib's `plot` takes under the same names."""

    color: str
    linestyle: str | tuple
    marker: str = ""


def line_style(channel: str) -> LineStyle:
    """The look of a channel, a function of its code alone; all of FLORES-200's languages look different."""
    if channel in _line_styles():
        return _line_styles()[channel]
    number = int.from_bytes(hashlib.sha256(channel.encode()).digest()[:4], "big")
    dash = tuple(COMMON_LANGUAGES)[number // len(COLOURS) % len(COMMON_LANGUAGES)]
    return LineStyle(COLOURS[number % len(COLOURS)], dash, MARKER_OUTSIDE_FLORES)


@cache
def _line_styles() -> dict[str, LineStyle]:
    styles = {channel: LineStyle(grey, dash) for channel, (_, grey, dash) in OTHER_CHANNELS.items()}
    styles[ENGLISH] = LineStyle("#000000", SOLID)
    for dash, codes in COMMON_LANGUAGES.items():
        styles |= {code: LineStyle(colour, dash) for code, colour in zip(codes.split(), COLOURS)}
    # In order of their scripts: languages that share tokens come together and get different colours.
    rest = sorted((code for code in flores_names() if code not in styles), key=lambda code: (script_of(code), code))
    looks = product(MARKERS, COMMON_LANGUAGES, COLOURS)  # the last varies fastest
    return styles | {code: LineStyle(colour, dash, marker) for code, (marker, dash, colour) in zip(rest, looks)}


def channels_that_matter(table: pd.DataFrame, always: list[str], n_languages: int, least: float) -> list[str]:
    """`always` (those that are channels), other languages, non-languages: the greatest share above its null first.

    table: rows of language_probs.csv. A channel that is not in `always` has at least `least` above its null at
    some layer; there are `n_languages` languages at most, `always` included.
    """
    # A language's share that rests on a token or two says which token it is, not that the language matters.
    is_token = (table["tokens"] < FEWEST_TOKENS) & ~table["channel"].isin(OTHER_CHANNELS)
    excess = (table["share"] - table["null_share"]).mask(is_token, 0).groupby(table["channel"]).max()
    excess = excess.sort_values(ascending=False, kind="stable")
    always = [code for code in dict.fromkeys(always) if code in excess.index]
    above = [channel for channel in excess.index[excess >= least] if channel not in always]
    languages = [channel for channel in above if channel not in OTHER_CHANNELS]
    others = [channel for channel in above if channel in OTHER_CHANNELS]
    return [*always, *languages[: max(n_languages - len(always), 0)], *others]


def explained_by_null(rows: pd.DataFrame) -> bool:
    """Is a channel's share nowhere more, with its whole interval, than what random prompts read?"""
    low = rows["share_low"].fillna(rows["share"])
    return bool((low <= rows["null_share"]).all())


def counts(table: pd.DataFrame) -> str:
    """`n = 60 in 11 contexts` of a table's rows, ranges where they differ; contexts where the table has them."""
    text = f"n = {_range(table['n'])}"
    if "n_contexts" in table and table["n_contexts"].notna().all():
        text += f" in {_range(table['n_contexts'].astype(int))} contexts"
    return text


def _range(values: pd.Series) -> str:
    least, most = values.min(), values.max()
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def describe_run(arguments: dict, table: pd.DataFrame) -> str:
    """Model, data set, prompt unless plain, position and the number of prompts a language, for a title."""
    model = Path(arguments["model"]).name
    if arguments.get("adapter"):
        model += f" + {Path(arguments['adapter']).name}"
    parts = [" ".join([model, "on", arguments["dataset"], arguments.get("split") or ""]).strip()]
    if arguments.get("prompt", "plain") != "plain":  # the default, and the only one that a parallel set has
        parts.append(f"{arguments['prompt']} prompt")
    if position := arguments.get("position"):
        parts.append(POSITIONS.get(position, position))
    n = counts(table)
    return ", ".join([*parts, n if table["prompt_lang"].nunique() == 1 else f"{n} a language"])


def direction_of(text: str) -> str:
    """rtl or ltr, by most of a text's letters: a question in Arabic may begin with a number or a name."""
    kinds = [unicodedata.bidirectional(character) for character in text]
    right = sum(kind in ("R", "AL") for kind in kinds)
    return "rtl" if right > sum(kind == "L" for kind in kinds) else "ltr"
