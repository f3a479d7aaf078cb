"""Figures of fitted lenses: how far what a lens reads is from what the last layer says."""

import json
import textwrap
from pathlib import Path

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from utils.figures.looks import line_style
from utils.figures.style import LAYER_LABEL, draw_title, in_our_style, save_figure
from utils.languages import channel_name
from utils.lens.probe_runs import lens_name
from utils.runs import CONFIG, HELD_OUT_LOSS


def loss_figure(table: pd.DataFrame, name: str, about: str = "") -> Figure:
    """KL of the last layer against the layer: a thin line a language, dotted for the plain lens, and the means.

    table: held_out.csv of fit_lens.py.
    """
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    sums = table.assign(**{side: table[side] * table["n"] for side in ("kl_logit", "kl_lens")}).groupby("layer")
    mean = sums[["kl_logit", "kl_lens"]].sum().div(sums["n"].sum(), axis=0)
    for lang, rows in table.groupby("lang", sort=False):
        colour = line_style(lang).color
        axes.plot(rows["layer"], rows["kl_logit"], ":", color=colour, linewidth=0.8)
        axes.plot(rows["layer"], rows["kl_lens"], color=colour, linewidth=0.8, label=channel_name(lang))
    axes.plot(mean.index, mean["kl_logit"], ":", color="#5A5A5A", linewidth=2.4, label="plain logit lens, mean")
    axes.plot(mean.index, mean["kl_lens"], color="#5A5A5A", linewidth=2.4, label="this lens, mean")
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True))
    axes.margins(x=0.02)
    # The plain lens is hundreds of bits off before layer 2, and one or two after the last but one.
    axes.set_yscale("symlog", linthresh=1)
    axes.set_yticks([0, 1, 3, 10, 30, 100, 300, 1000], labels=["0", "1", "3", "10", "30", "100", "300", "1,000"])
    axes.set(xlabel=LAYER_LABEL, ylabel="KL of the last layer (bits a token)", ylim=(0, None))
    figure.legend(loc="outside right center", frameon=False)
    draw_title(figure, f"Held-out loss: {name}", about)
    return figure


# What `english_middle.by_layer` looks at -> what matplotlib's lines take.
LOOKS: dict[str, dict] = {
    "english": {"label": "English", "color": "#000000", "linestyle": "-"},
    "prompt": {"label": "the prompt's own language", "color": "#0072B2", "linestyle": "--"},
    "lens": {"label": "the lens's own language", "color": "#D55E00", "linestyle": "-."},
}


def english_figure(table: pd.DataFrame, middle: tuple[int, int]) -> Figure:
    """A panel a lens: shares of English, of the prompt's language and of the lens's against the layer, with 95% bands
    and nulls. table: of `english_middle.by_layer`; middle: the layers that are shaded, the first and the last.
    """
    lenses = list(dict.fromkeys(table["lens"]))
    n_columns = min(3, len(lenses))
    n_rows = -(-len(lenses) // n_columns)
    figure = Figure(figsize=(2.4 * n_columns + 2, 2 * n_rows + 0.5), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, lens in zip(panels, lenses):
        of_lens = table[table["lens"] == lens]
        axes.axvspan(*middle, color="#8A8A8A", alpha=0.12, linewidth=0)
        for what, rows in of_lens.groupby("what", sort=False):
            colour = LOOKS[what]["color"]
            axes.fill_between(rows["layer"], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
            axes.plot(rows["layer"], rows["null"], ":", color=colour, linewidth=0.9)
            axes.plot(rows["layer"], rows["share"], **LOOKS[what], linewidth=1.4)
        axes.set_title("\n".join(textwrap.wrap(lens, 30)))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        axes.set_ylim(0, 1)
    for axes in panels[len(lenses) :]:
        axes.remove()
    handles: list[Artist] = [Line2D([], [], **look) for look in LOOKS.values()]
    handles.append(Line2D([], [], color="#5A5A5A", linestyle=":", linewidth=0.9, label="null: random tokens"))
    handles.append(Patch(color="#8A8A8A", alpha=0.4, linewidth=0, label="95% interval"))
    figure.supxlabel(LAYER_LABEL, fontsize=9)
    figure.supylabel("share of the distribution", fontsize=9)
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    return figure


@in_our_style
def draw_english(table: pd.DataFrame, path: Path, middle: tuple[int, int]) -> list[Path]:
    """`english_figure` as PNG and PDF; returns the PNG."""
    return [save_figure(english_figure(table, middle), path)]


@in_our_style
def draw_fit(run_dir: Path) -> list[Path]:
    """Draws a fit's held-out loss into run_dir/loss.png and .pdf; returns the PNG."""
    configuration = json.loads((Path(run_dir) / CONFIG).read_text(encoding="utf-8"))
    arguments = configuration["arguments"]
    table = pd.read_csv(Path(run_dir) / HELD_OUT_LOSS)
    name = lens_name({"kind": arguments["lens"], "langs": arguments["langs"]})
    model = Path(arguments["model"]).name
    if arguments["adapter"]:
        model += f" + {Path(arguments['adapter']).name}"
    positions = f"{int(table.groupby('lang')['n'].first().sum()):,} positions of {Path(arguments['corpus']).name}"
    return [save_figure(loss_figure(table, name, f"{model}, {positions}"), Path(run_dir) / "loss")]
