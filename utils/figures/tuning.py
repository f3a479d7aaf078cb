"""Figures of what tuning changes: curves of epochs and outcomes, transfer, gains, changes, the loss."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from utils.answers.predictions import OUTCOMES
from utils.figures.looks import (
    COLOURS,
    IN,
    LANGUAGES_OF_HEATMAP,
    LANGUAGES_OF_LINES,
    VISIBLE_CELL,
    VISIBLE_LINE,
    VISIBLE_PUBLISHED,
    channels_that_matter,
    counts,
    line_style,
)
from utils.figures.style import FORMATS, LAYER_LABEL, draw_lines, draw_title, framed, in_our_style, save_figure
from utils.languages import ENGLISH, channel_name, short_code
from utils.lens.published import read_published, with_no_nulls
from utils.runs import write_atomically


def tuning_figure(table: pd.DataFrame, prompt_lang: str, by: str, about: str = "", says: str = IN) -> Figure:
    """A panel of lines for each point of the tuning, over the channels that matter at any of them.

    table: rows of language_probs.csv, or of `read_published`, with a column `by` (step or epoch), 0 before tuning.
    """
    table = table[table["prompt_lang"] == prompt_lang]
    always = [prompt_lang, ENGLISH]
    if table["null_share"].isna().all():
        channels = channels_that_matter(table.assign(null_share=0.0), always, LANGUAGES_OF_LINES, VISIBLE_PUBLISHED)
    else:
        channels = channels_that_matter(table, always, LANGUAGES_OF_LINES, VISIBLE_LINE)
    points = table[by].unique()
    n_columns = min(len(points), 4 if len(points) == 4 else 3)
    n_rows = math.ceil(len(points) / n_columns)
    figure = Figure(figsize=(2.2 * n_columns + 2, max(2 * n_rows + 0.6, 0.17 * len(channels) + 1.6)))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, point in zip(panels, sorted(points)):
        draw_lines(axes, table[table[by] == point], channels, prompt_lang, n_ticks=6)
        axes.set_title("before tuning" if point == 0 else f"{by} {point}")
    for axes in panels[len(points) :]:
        axes.remove()
    return framed(figure, f"The prompt {says} {channel_name(prompt_lang)}", about, channels, table)


@in_our_style
def draw_published(folder: Path) -> list[Path]:
    """A figure a prompt language into folder, as PNG and PDF; returns the PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    table = read_published()
    about = "bloomz-7b1 tuned on 103 German examples, 150 prompts; published by Samantaray and Jyothi (2025)"
    return [
        save_figure(tuning_figure(table, lang, "step", about), folder / f"published_{short_code(lang)}")
        for lang in dict.fromkeys(table["prompt_lang"])
    ]


def overlay_figure(table: pd.DataFrame, prompt_lang: str, about: str = "") -> Figure:
    """The published curves above, those of the same cells run here below: the first, a middle and the last step.

    table: `utils.published`'s overlay.
    """
    table = with_no_nulls(table[table["prompt_lang"] == prompt_lang])
    always = [prompt_lang, ENGLISH]
    channels = channels_that_matter(table.assign(null_share=0.0), always, LANGUAGES_OF_LINES, VISIBLE_PUBLISHED)
    steps = sorted(table["step"].unique())
    shown = list(dict.fromkeys([steps[0], steps[len(steps) // 2], steps[-1]]))
    figure = Figure(figsize=(2.2 * len(shown) + 2.2, 4.6), layout="constrained")
    panels = figure.subplots(2, len(shown), sharex=True, sharey=True, squeeze=False)
    for row, source in zip(panels, ("published", "here")):
        for axes, step in zip(row, shown):
            of_panel = table[(table["source"] == source) & (table["step"] == step)]
            draw_lines(axes, of_panel, channels, prompt_lang, n_ticks=6)
            axes.set_title(f"{source}, {'before tuning' if step == 0 else f'step {step}'}")
    return framed(figure, f"The prompt is in {channel_name(prompt_lang)}", about, channels, table)


@in_our_style
def draw_overlay(table: pd.DataFrame, folder: Path, about: str) -> list[Path]:
    """`overlay_figure` of each prompt language into folder, as PNG and PDF; returns the PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        save_figure(overlay_figure(table, lang, about), folder / f"overlay_{short_code(lang)}")
        for lang in dict.fromkeys(table["prompt_lang"])
    ]


@in_our_style
def draw_epochs(table: pd.DataFrame, path: Path, about: str, says: str = IN) -> list[Path]:
    """`tuning_figure` of each prompt language, beside one another at path_LANG; returns the PNGs."""
    return [
        save_figure(
            tuning_figure(table, lang, "epoch", f"{about}, {counts(of_lang)}", says),
            path.with_name(f"{path.name}_{short_code(lang)}"),
        )
        for lang, of_lang in table.groupby("prompt_lang", sort=False)
    ]


def outcomes_figure(table: pd.DataFrame, prompt_lang: str, about: str = "") -> Figure:
    """A column of two panels for each outcome of the answers: lines before tuning, and after it.

    table: rows of language_probs.csv with the columns outcome and model (base or tuned).
    """
    table = table[table["prompt_lang"] == prompt_lang]
    channels = channels_that_matter(table, [prompt_lang, ENGLISH], LANGUAGES_OF_LINES, VISIBLE_LINE)
    outcomes = [name for name in OUTCOMES if name in set(table["outcome"])]
    figure = Figure(figsize=(2.2 * len(outcomes) + 2.2, 4.6), layout="constrained")
    panels = figure.subplots(2, len(outcomes), sharex=True, sharey=True, squeeze=False)
    for row, (model, title) in zip(panels, (("base", "before tuning"), ("tuned", "after"))):
        for axes, name in zip(row, outcomes):
            of_panel = table[(table["outcome"] == name) & (table["model"] == model)]
            draw_lines(axes, of_panel, channels, prompt_lang, n_ticks=6)
            axes.set_title(f"{name.replace('_', ' ')}, {title}\n{counts(of_panel)}")
    return framed(figure, f"The prompt is in {channel_name(prompt_lang)}", about, channels, table)


@in_our_style
def draw_outcomes(table: pd.DataFrame, path: Path, about: str) -> list[Path]:
    """`outcomes_figure` of each prompt language, beside one another at path_LANG; returns the PNGs."""
    return [
        save_figure(outcomes_figure(table, lang, about), path.with_name(f"{path.name}_{short_code(lang)}"))
        for lang in dict.fromkeys(table["prompt_lang"])
    ]


def transfer_figure(table: pd.DataFrame, about: str = "") -> Figure:
    """Change of a score in points, training set x language, a star where its 95% interval leaves zero out; with null
    runs, where that of what it exceeds theirs by does so too, on the same side. Null runs' own rows have no star then.

    table: `tables.transfer`'s rows of one score; from 0 to 1. The score itself stands below.
    """
    trained, langs = (list(dict.fromkeys(table[column])) for column in ("training", "lang"))
    change = 100 * table.pivot(index="training", columns="lang", values="change").loc[trained, langs]
    most, beside_nulls = max(float(change.abs().to_numpy().max()), 1.0), bool(table["null_runs"].max())
    figure = Figure(figsize=(1.0 * len(langs) + 2.6, 0.55 * len(trained) + 1.6), layout="constrained")
    axes = figure.subplots()
    cells = axes.imshow(change, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    for row in table.itertuples():
        low, high = row.low, row.high
        if beside_nulls:  # NaN, where there is no excess, is neither above nor below zero
            low, high = np.minimum(low, row.excess_low), np.maximum(high, row.excess_high)
        star = "*" if low > 0 or high < 0 else ""
        dark = abs(100 * row.change) > 0.6 * most
        axes.text(
            langs.index(row.lang),
            trained.index(row.training),
            f"{100 * row.change:+.1f}{star}\n{100 * row.after:.1f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
        )
    axes.set_xticks(range(len(langs)), [channel_name(lang) for lang in langs])
    axes.set_yticks(range(len(trained)), trained)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="evaluated in", ylabel="tuned on")
    beyond = ", beyond null runs too" if beside_nulls else ""
    figure.colorbar(cells, label=f"change of F1, points\n(*: 95% interval without zero{beyond})")
    draw_title(figure, "Multilingual F1 after tuning: its change, and the score", f"{about}, {counts(table)}")
    return figure


@in_our_style
def draw_transfer(table: pd.DataFrame, path: Path, about: str) -> Path:
    return save_figure(transfer_figure(table, about), path)


def gains_figure(table: pd.DataFrame, about: str = "") -> Figure:
    """Change of F1 against the fall of the interfering languages: a point a tuned model, a colour a language.

    table: `suppression`'s. Bars are 95% intervals. Beside null runs, the mean of which is 0, a point says what its fall
    exceeds theirs by.
    """
    beside_nulls = bool(table["null_runs"].max())
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="#C8C8C8", linewidth=0.8, zorder=0)
    axes.axvline(0, color="#C8C8C8", linewidth=0.8, zorder=0)
    points: list[tuple[str, float, float]] = []
    for lang, rows in table.groupby("lang", sort=False):
        chosen = dict.fromkeys(code for channels in rows["channels"] for code in channels.split())
        channels = " + ".join(map(channel_name, chosen)) if len(chosen) <= 3 else f"{len(chosen)} languages"
        null = rows["null_change"].fillna(0)
        x, y = null - rows["change"], 100 * rows["gain"]
        axes.errorbar(
            x,
            y,
            xerr=_bars(x, -rows["high"], -rows["low"]),
            yerr=_bars(y, 100 * rows["gain_low"], 100 * rows["gain_high"]),
            fmt="o",
            markersize=4,
            elinewidth=0.7,
            color=line_style(lang).color,
            label=f"{channel_name(lang)} prompts: {channels}",
        )
        points += zip(rows["training"], x, y)
    fall = "fall of the interfering languages" + (" beyond the null runs'" if beside_nulls else "")
    axes.set(xlabel=f"{fall}, shares in the upper half of the layers", ylabel="change of F1, points")
    figure.legend(loc="outside lower center", frameon=False)
    draw_title(figure, "Suppression and gain", f"{about}, shares: {counts(table)}")
    _label(figure, axes, points)
    return figure


def _label(figure: Figure, axes: Axes, points: list[tuple[str, float, float]]) -> None:
    """Names of points, each at the first corner of its point where it covers no point and touches no name before it."""
    figure.draw_without_rendering()  # the layout decides where points are
    marks = axes.transData.transform([(x, y) for _, x, y in points])  # [point, 2], pixels
    radius = 2 * figure.dpi / 72
    taken = [Bbox([mark - radius, mark + radius]) for mark in marks]
    gap = 2 * radius  # beside a name: two of them on one line are not read as one
    for name, x, y in points:
        label = axes.annotate(name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=7)
        for across, up in ((4, 4), (4, -4), (-4, -4), (-4, 4), (4, 12), (-4, -12), (4, -12), (-4, 12)):
            label.set(position=(across, up), ha="left" if across > 0 else "right", va="bottom" if up > 0 else "top")
            place = label.get_window_extent()
            if not any(place.overlaps(other) for other in taken):
                break
        taken.append(place.padded(gap, 0))


def _bars(middle: pd.Series, low: pd.Series, high: pd.Series) -> np.ndarray:
    """Lengths below and above, [2, point]; none where there is no interval. A percentile interval can miss its mean."""
    return np.nan_to_num(np.maximum([middle - low, high - middle], 0))


@in_our_style
def draw_gains(table: pd.DataFrame, path: Path, about: str) -> Path:
    return save_figure(gains_figure(table, about), path)


def changes_figure(table: pd.DataFrame, prompt_lang: str, runs: str = "", rate: float = 0.05) -> Figure:
    """Change of share, channel x layer, from white in both directions; a dot where q is at most `rate`.

    table: rows of compare_runs.py's changes.csv. Its rows are the channels whose change is greatest at some layer.
    """
    table = table[table["prompt_lang"] == prompt_lang]
    greatest = table["change"].abs().groupby(table["channel"]).max().sort_values(ascending=False, kind="stable")
    always = [code for code in dict.fromkeys([prompt_lang, ENGLISH]) if code in greatest.index]
    others = [code for code in greatest.index[greatest > 0] if code not in always]
    channels = [*always, *others[: LANGUAGES_OF_HEATMAP - len(always)]]
    by_cell = table.set_index(["channel", "layer"])
    change, q = by_cell["change"].unstack().loc[channels], by_cell["q"].unstack().loc[channels]  # [channel, layer]
    figure = Figure(figsize=(7.2, 0.19 * len(channels) + 1.6), layout="constrained")
    axes = figure.subplots()
    edges = np.append(change.columns, change.columns[-1] + 1) - 0.5
    most = max(float(change.abs().to_numpy().max()), VISIBLE_CELL)
    norm = AsinhNorm(linear_width=0.05, vmin=-most, vmax=most)
    cells = axes.pcolormesh(edges, np.arange(len(channels) + 1), change, cmap="RdBu_r", norm=norm)
    row, column = np.nonzero(q.to_numpy() <= rate)
    axes.scatter(change.columns.to_numpy()[column], row + 0.5, s=4, color="black", linewidths=0)
    axes.set_yticks(np.arange(len(channels)) + 0.5, [channel_name(channel) for channel in channels])
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=LAYER_LABEL, ylim=(len(channels), 0))
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True))
    ticks = [sign * tick for tick in (0.01, 0.03, 0.1, 0.3, 1) if tick <= most for sign in (-1, 1)]
    bar = figure.colorbar(cells, label=f"change of share\n(dot: false discovery rate {rate:.0%})")
    bar.minorticks_off()
    bar.set_ticks([0, *ticks], labels=["0", *(f"{tick:+g}" for tick in ticks)])
    draw_title(figure, f"What changed, prompts in {channel_name(prompt_lang)}", f"{runs}, {counts(table)}")
    return figure


@in_our_style
def draw_changes(table: pd.DataFrame, path: Path, runs: str) -> list[Path]:
    """`changes_figure` of each prompt language, beside one another at path_LANG; returns the PNGs."""
    path.parent.mkdir(exist_ok=True)
    return [
        save_figure(changes_figure(table, lang, runs), path.with_name(f"{path.name}_{short_code(lang)}"))
        for lang in dict.fromkeys(table["prompt_lang"])
    ]


@in_our_style
def draw_loss(log: pd.DataFrame, path: Path, dev: pd.DataFrame | None = None) -> None:
    """The loss of each optimizer step, with that on other questions if there are, and the gradient's norm under it.

    log, dev: the columns of train_log.csv and dev_log.csv.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    of_loss, of_norm = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    of_loss.plot(log["step"], log["loss"], color="black", label="training")
    if dev is not None:
        of_loss.plot(dev["step"], dev["loss"], "o-", color=COLOURS[0], label="other questions")
        of_loss.legend(frameon=False)
    of_loss.set(ylabel="loss (nats a token)", ylim=(0, 1.05 * of_loss.dataLim.ymax))
    of_norm.plot(log["step"], log["gradient_norm"], color="#727272")
    of_norm.set(ylabel="gradient norm", xlabel="optimizer step", ylim=(0, 1.05 * of_norm.dataLim.ymax))
    write_atomically(path, lambda file: figure.savefig(file, format="png", **FORMATS["png"]))
