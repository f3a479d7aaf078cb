"""Figures of one probe: which languages each layer speaks."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.figures.grids import draw_grid
from utils.figures.looks import (
    IN,
    LANGUAGES_OF_HEATMAP,
    LANGUAGES_OF_LINES,
    PANELS,
    SAYS,
    VISIBLE_CELL,
    VISIBLE_LINE,
    channels_that_matter,
    describe_run,
)
from utils.figures.style import LAYER_LABEL, draw_legend, draw_lines, draw_title, framed, in_our_style, save_figure
from utils.languages import ENGLISH, OTHER_CHANNELS, channel_name, short_code
from utils.lens.probe_runs import FEWEST_TOKENS, LOGIT_LENS, ProbeRun, lens_name


def lines_figure(table: pd.DataFrame, prompt_lang: str, run: str = "", says: str = IN) -> Figure:
    """Share of the channels that matter against the layer. run: the title's second line."""
    table = table[table["prompt_lang"] == prompt_lang]
    channels = channels_that_matter(table, [prompt_lang, ENGLISH], LANGUAGES_OF_LINES, VISIBLE_LINE)
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    draw_lines(axes, table, channels, prompt_lang, n_ticks=10)
    axes.set(xlabel=LAYER_LABEL, ylabel="share of the distribution")
    draw_title(figure, f"The prompt {says} {channel_name(prompt_lang)}", run)
    draw_legend(figure, channels, table)
    return figure


def overview_figure(table: pd.DataFrame, run: str = "", says: str = IN, lens: str = LOGIT_LENS) -> Figure:
    """A panel of lines for each prompt language; of the channels that matter over all, those that do in the panel."""
    prompt_langs = list(dict.fromkeys(table["prompt_lang"]))
    always = list(dict.fromkeys([*prompt_langs, ENGLISH]))
    channels = channels_that_matter(table, always, max(LANGUAGES_OF_LINES, len(always) + 2), VISIBLE_LINE)
    n_columns = len(prompt_langs) if len(prompt_langs) <= 3 else math.ceil(math.sqrt(len(prompt_langs)))
    n_rows = math.ceil(len(prompt_langs) / n_columns)
    height = max(1.75 * n_rows + 1, 0.17 * len(channels) + 1.6)
    figure = Figure(figsize=(max(2.2 * n_columns + 2, 6), height), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, prompt_lang in zip(panels, prompt_langs):
        of_prompt = table[table["prompt_lang"] == prompt_lang]
        visible = channels_that_matter(of_prompt, [prompt_lang, ENGLISH], len(channels), VISIBLE_LINE)
        draw_lines(axes, of_prompt, [c for c in channels if c in visible], prompt_lang, n_ticks=5)
        axes.set_title(f"{PANELS[says]} {channel_name(prompt_lang)}".strip())
    for i in range(len(prompt_langs), len(panels)):
        panels[i].remove()
        panels[i - n_columns].tick_params(labelbottom=True)
    return framed(figure, f"The language of each layer's next token ({lens})", run, channels, table)


def heatmap_figure(table: pd.DataFrame, prompt_lang: str, run: str = "", says: str = IN) -> Figure:
    """Share above the null, channel x layer, on one scale for all runs; a cross: of fewer than FEWEST_TOKENS tokens."""
    table = table[table["prompt_lang"] == prompt_lang]
    channels = channels_that_matter(table, [prompt_lang, ENGLISH], LANGUAGES_OF_HEATMAP, VISIBLE_CELL)
    by_cell = table.set_index(["channel", "layer"])
    excess = (by_cell["share"] - by_cell["null_share"]).unstack()  # [channel, layer]
    figure = Figure(figsize=(7.2, 0.19 * len(channels) + 1.6), layout="constrained")
    axes = figure.subplots()
    edges = np.append(excess.columns, excess.columns[-1] + 1) - 0.5
    cells = axes.pcolormesh(
        edges, np.arange(len(channels) + 1), excess.loc[channels], cmap="viridis", norm=PowerNorm(0.5, vmin=0, vmax=1)
    )
    few = (by_cell["tokens"].unstack().loc[channels] < FEWEST_TOKENS) & (excess.loc[channels] > VISIBLE_LINE)
    row, column = np.nonzero(few.to_numpy())
    axes.scatter(excess.columns.to_numpy()[column], row + 0.5, s=14, marker="x", color="white", linewidths=0.8)
    n_languages = sum(channel not in OTHER_CHANNELS for channel in channels)
    axes.axhline(n_languages, color="white", linewidth=2)
    axes.set_yticks(np.arange(len(channels)) + 0.5, [channel_name(channel) for channel in channels])
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=LAYER_LABEL, ylim=(len(channels), 0))
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True))
    bar = figure.colorbar(cells, label=f"share above the null (x: of fewer than {FEWEST_TOKENS} tokens)")
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 1], labels=["≤ 0", "0.01", "0.05", "0.1", "0.25", "0.5", "1"])
    draw_title(figure, f"The prompt {says} {channel_name(prompt_lang)}", run)
    return figure


@in_our_style
def draw_probe_run(run_dir: Path) -> list[Path]:
    """Draws a probe run's tables into run_dir/figures as PNG and PDF; returns the PNGs, the overview first.

    Raises ValueError where a table is missing or is no probe run's.
    """
    probe = ProbeRun(Path(run_dir))
    table, arguments = probe.table, probe.arguments
    folder = Path(run_dir) / "figures"
    folder.mkdir(exist_ok=True)
    paths = []
    says = SAYS.get(arguments["dataset"], IN)
    lens = lens_name(probe.lens)
    overview = overview_figure(table, describe_run(arguments, table), says, lens)
    paths.append(save_figure(overview, folder / "overview"))
    for prompt_lang, rows in table.groupby("prompt_lang", sort=False):
        run = describe_run(arguments, rows) + (f"; {lens}" if probe.lens else "")
        name = short_code(prompt_lang)
        paths.append(save_figure(lines_figure(rows, prompt_lang, run, says), folder / f"lines_{name}"))
        paths.append(save_figure(heatmap_figure(rows, prompt_lang, run, says), folder / f"heatmap_{name}"))
        if probe.grid and (of_lang := [row for row in probe.grid.prompts if row["prompt_lang"] == prompt_lang]):
            paths.append(draw_grid(probe.grid, of_lang[0], folder / f"grid_{name}", run))
    return paths
