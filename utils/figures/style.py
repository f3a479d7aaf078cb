"""What all figures share besides `looks`: lines, frames and files."""

import textwrap
import warnings
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import TypeVar, cast

import matplotlib.style
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from utils.figures.looks import FAINT, VISIBLE_LINE, explained_by_null, line_style
from utils.languages import channel_name
from utils.lens.probe_runs import FEWEST_TOKENS
from utils.runs import write_atomically

Drawing = TypeVar("Drawing", bound=Callable)

LAYER_LABEL = "layer (0: embeddings)"
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


def draw_title(figure: Figure, title: str, run: str) -> None:
    width = round(13 * figure.get_figwidth())  # characters that fit
    figure.suptitle("\n".join([title, *textwrap.wrap(run, width, break_on_hyphens=False)]), fontsize=10)


def save_figure(figure: Figure, path: Path) -> Path:
    for suffix, options in FORMATS.items():
        write_atomically(path.with_suffix(f".{suffix}"), partial(figure.savefig, format=suffix, **options))
        figure.set_layout_engine("none")  # as it was laid out for the first
    return path.with_suffix(".png")
