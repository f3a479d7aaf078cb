"""What all figures share: colours and line styles of languages, which channels a figure shows, frames and files."""

import hashlib
import textwrap
import warnings
from collections.abc import Callable
from functools import cache, partial, wraps
from itertools import product
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from utils.languages import ENGLISH, OTHER_CHANNELS, channel_name, flores_names, script_of, short_code
from utils.lens.probe_runs import FEWEST_TOKENS
from utils.runs import write_atomically

Drawing = TypeVar("Drawing", bound=Callable)

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
LAYER_LABEL = "layer (0: embeddings)"
# What a prompt has to do with its prompt_lang, in a title and over a panel.
IN, INTO, IS = "is in", "asks for a translation into", "is"
PANELS = {IN: "prompt in", INTO: "into", IS: ""}
SAYS = {"sample_parallel": INTO, "flores200": INTO, "text": IS}  # by data set; IN where none is said
POSITIONS = {"last": "last prompt token", "answer": "answer tokens"}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
    "text.parse_math": False,  # names of runs and of languages are in the titles, and may hold a dollar sign
    "text.usetex": False,
}
FORMATS: dict[str, dict] = {"png": {"dpi": 150}, "pdf": {"metadata": {"CreationDate": None}}}


def in_our_style(draw: Drawing) -> Drawing:
    """A drawing function under STYLE alone: a user's own matplotlib settings would make other figures of a table."""

    @wraps(draw)
    def drawn(*args, **kwargs):
        with matplotlib.style.context(STYLE, after_reset=True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")  # of a run's name; it shows as a box
            return draw(*args, **kwargs)

    return cast(Drawing, drawn)


def shaded(colour: str, nth: int, on_dark: bool = False) -> str:
    """The nth shade of a colour, each different; the 0th is the colour. On a dark ground they are lighter; on a light
    one too where the colour is dark, else darker.
    """
    if nth == 0:
        return colour
    rgb = np.array(to_rgb(colour))
    end = 1.0 if on_dark or rgb @ (0.299, 0.587, 0.114) < 0.4 else 0.0
    part = 0.14 + 0.6 * (0.62 * nth % 1)  # steps of the golden section: far from those before
    return to_hex(tuple(rgb + part * (end - rgb))).upper()


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


def draw_lines(axes: Axes, table: pd.DataFrame, channels: list[str], prompt_lang: str, n_ticks: int) -> None:
    """Each channel's line, 95% band and null, the first on top; the prompt's own language is drawn thick.

    Faint where the null explains the whole curve; a cross where a share rests on fewer than FEWEST_TOKENS.
    """
    for channel in reversed(channels):
        rows = table[table["channel"] == channel].sort_values("layer")
        style, own = line_style(channel), channel == prompt_lang
        layer, share = rows["layer"], rows["share"]
        alpha = FAINT if explained_by_null(rows) else 1
        low, high = rows["share_low"], rows["share_high"]
        axes.fill_between(layer, low, high, color=style.color, alpha=0.15 * alpha, linewidth=0)
        null = f"null of {channel}"
        axes.plot(layer, rows["null_share"], ":", color=style.color, linewidth=0.8, alpha=alpha, label=null)
        every = max(1, len(layer) // 8)
        width = 2.4 if own else 1.3
        axes.plot(
            layer, share, **style._asdict(), linewidth=width, alpha=alpha, markersize=4, markevery=every, label=channel
        )
        few = rows[(rows["tokens"] < FEWEST_TOKENS) & (share > VISIBLE_LINE)]
        if len(few):
            axes.plot(few["layer"], few["share"], "x", color=style.color, alpha=alpha, markersize=4, label="few tokens")
    axes.xaxis.set_major_locator(MaxNLocator(n_ticks, steps=[1, 2, 5, 10], integer=True))
    axes.margins(x=0.02)
    axes.set_ylim(bottom=0)


def explained_by_null(rows: pd.DataFrame) -> bool:
    """Is a channel's share nowhere more, with its whole interval, than what random prompts read?"""
    low = rows["share_low"].fillna(rows["share"])
    return bool((low <= rows["null_share"]).all())


def draw_legend(figure: Figure, channels: list[str], table: pd.DataFrame) -> None:
    """Beside the panels, so that it covers no data."""
    looks = {channel: line_style(channel)._asdict() for channel in channels}
    handles: list[Artist] = [
        Line2D([], [], **look, markersize=4, label=channel_name(channel)) for channel, look in looks.items()
    ]
    if table["share_low"].notna().any():
        handles.append(Patch(color="#8A8A8A", alpha=0.4, linewidth=0, label="95% interval"))
    if table["null_share"].notna().any():
        handles.append(Line2D([], [], color="#5A5A5A", linestyle=":", linewidth=0.8, label="null: random tokens"))
    if (table["tokens"] < FEWEST_TOKENS).any():
        handles.append(
            Line2D([], [], color="#5A5A5A", linestyle="", marker="x", markersize=4, label="fewer than 3 tokens")
        )
    figure.legend(handles=handles, loc="outside right center", frameon=False, handlelength=3)


def framed(figure: Figure, title: str, about: str, channels: list[str], table: pd.DataFrame) -> Figure:
    """With what panels of lines have around them: labels of the axes, title and legend."""
    figure.supxlabel(LAYER_LABEL, fontsize=9)
    figure.supylabel("share of the distribution", fontsize=9)
    draw_title(figure, title, about)
    draw_legend(figure, channels, table)
    return figure


def counts(table: pd.DataFrame) -> str:
    """`n = 60 in 11 contexts` of a table's rows, ranges where they differ; contexts where the table has them."""
    text = f"n = {_range(table['n'])}"
    if "n_contexts" in table and table["n_contexts"].notna().all():
        text += f" in {_range(table['n_contexts'].astype(int))} contexts"
    return text


def _range(values: pd.Series) -> str:
    least, most = values.min(), values.max()
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def draw_title(figure: Figure, title: str, run: str) -> None:
    width = round(13 * figure.get_figwidth())  # characters that fit
    figure.suptitle("\n".join([title, *textwrap.wrap(run, width, break_on_hyphens=False)]), fontsize=10)


def save_figure(figure: Figure, path: Path) -> Path:
    for suffix, options in FORMATS.items():
        write_atomically(path.with_suffix(f".{suffix}"), partial(figure.savefig, format=suffix, **options))
        figure.set_layout_engine("none")  # as it was laid out for the first
    return path.with_suffix(".png")
