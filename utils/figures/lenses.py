"""Figures of fitted lenses: how far what a lens reads is from what the last layer says."""

import json
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.figures.style import LAYER_LABEL, draw_title, in_our_style, line_style, save_figure
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
    axes.set(xlabel=LAYER_LABEL, ylabel="KL of the last layer (bits a token)", ylim=(0, None))
    figure.legend(loc="outside right center", frameon=False)
    draw_title(figure, f"Held-out loss: {name}", about)
    return figure


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
