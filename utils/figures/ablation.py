"""Figures of ablate_language.py: dose curves beside the controls, and the lens by layer."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.figures.style import LAYER_LABEL, draw_title, in_our_style, save_figure
from utils.languages import channel_name, short_code
from utils.runs import CONFIG, read_table

ROLES = {
    "language": ("#D55E00", "-", 2.2),
    "bystander": ("#0072B2", "--", 1.3),
    "target": ("#009E73", "-.", 1.3),
    "random": ("#8A8A8A", "-", 0.8),
}
SCORES = {"f1": "F1", "exact_match": "exact match", "cut_f1": "F1, answers cut", "best_line_f1": "F1, best line"}
SCALE = 100  # scores are drawn in points


@in_our_style
def draw_ablation(run_dir: Path) -> list[Path]:
    """Draws a run's tables into run_dir/figures as PNG and PDF; returns the PNGs."""
    run_dir = Path(run_dir)
    arguments = json.loads((run_dir / CONFIG).read_text(encoding="utf-8"))["arguments"]
    changes, perplexity = (read_table(run_dir / name) for name in ("changes.csv", "perplexity.csv"))
    folder = run_dir / "figures"
    folder.mkdir(exist_ok=True)
    about = f"{Path(arguments['model']).name} on {arguments['dataset']}"
    done = "adding back" if arguments["add_back"] else "taking away"
    title = f"{done.capitalize()} {channel_name(arguments['language'])} by {arguments['by']}"
    paths = []
    for lang in dict.fromkeys(changes["lang"]):
        names = {"language": channel_name(arguments["language"]), "random": "random, as much"}
        names |= {"bystander": f"{channel_name(arguments['bystander'])} (bystander)"}
        names |= {"target": f"{channel_name(lang)} (the target)"}
        figure = dose_figure(changes[changes["lang"] == lang], perplexity, lang, names, title, about)
        paths.append(save_figure(figure, folder / f"dose_{short_code(lang)}"))
        if (run_dir / "lens.csv").exists():
            lens = read_table(run_dir / "lens.csv", keep_default_na=False)
            of_lang = lens[lens["prompt_lang"] == lang]
            figure = lens_figure(of_lang, [arguments["language"], lang], names, title, about)
            paths.append(save_figure(figure, folder / f"lens_{short_code(lang)}"))
    return paths


def dose_figure(
    changes: pd.DataFrame, perplexity: pd.DataFrame, lang: str, names: dict[str, str], title: str, about: str
) -> Figure:
    """Each score's change from the base, and the ratio of the target's perplexity, against the strength."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True).ravel()
    of_base = changes[changes["against"] == "base"]
    for axes, (score, label) in zip(panels, SCORES.items()):
        table = of_base[of_base["score"] == score]
        _curves(axes, table, lambda values: values * SCALE, 0, names)
        axes.set_title(f"{label} (points)")
    _curves(panels[4], perplexity[perplexity["language"] == lang], np.exp, 1, names)
    panels[4].set_title(f"perplexity of {short_code(lang)}, ratio")
    if perplexity["change"].max() > 1:
        panels[4].set_yscale("log")
        for axis_format in (panels[4].yaxis.set_major_formatter, panels[4].yaxis.set_minor_formatter):
            axis_format("{x:g}")  # the logarithm's own is mathtext, which our style doesn't read
    for axes in panels[2:5]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("strength")
    handles, labels = panels[0].get_legend_handles_labels()
    panels[5].axis("off")
    panels[5].legend(handles[::-1], labels[::-1], loc="center", frameon=False, handlelength=3)
    n, n_contexts = int(of_base["n"].max()), int(of_base["n_contexts"].max())
    bars = "; bars: 95%" if of_base["low"].notna().any() else ""
    about = f"{about}, {channel_name(lang)}: change of {n} questions in {n_contexts} contexts{bars}"
    draw_title(figure, title, about)
    return figure


def _curves(axes: Axes, table: pd.DataFrame, scaled, nothing: float, names: dict[str, str]) -> None:
    """A line a condition over the strengths, from `nothing` at 0; the language's with its intervals."""
    axes.axhline(nothing, color="#5A5A5A", linewidth=0.6)
    for role in reversed(ROLES):
        colour, dash, width = ROLES[role]
        of_role = table[table["role"] == role]
        for number, (_, rows) in enumerate(of_role.groupby(["ablated", "draw"], sort=False)):
            rows = rows.sort_values("strength")
            label = names[role] if number == 0 else None
            x, y = [0, *rows["strength"]], [nothing, *scaled(rows["change"])]
            axes.plot(x, y, color=colour, linestyle=dash, linewidth=width, marker="o", markersize=3, label=label)
            if role == "language" and rows["low"].notna().all():
                ends = [scaled(rows["change"]) - scaled(rows["low"]), scaled(rows["high"]) - scaled(rows["change"])]
                axes.errorbar(rows["strength"], scaled(rows["change"]), yerr=np.abs(ends), fmt="none", ecolor=colour)


def lens_figure(lens: pd.DataFrame, channels: list[str], names: dict[str, str], title: str, about: str) -> Figure:
    """The shares of the ablated language and of the target by layer, at the largest strength, beside the controls."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    panels = figure.subplots(1, len(channels), sharey=True)
    strongest = lens["strength"].max()
    shown = lens[(lens["strength"] == strongest) | (lens["role"] == "base")]
    layers = range(int(lens["layer"].max()) + 1)
    for axes, channel in zip(panels, channels):
        for role, (colour, dash, width) in [*reversed(ROLES.items()), ("base", ("#000000", ":", 1.5))]:
            for number, (_, rows) in enumerate(shown[shown["role"] == role].groupby(["ablated", "draw"], sort=False)):
                shares = rows[rows["channel"] == channel].set_index("layer")["share"].reindex(layers, fill_value=0)
                label = None if number else names.get(role, "the model's own")
                axes.plot(layers, shares, color=colour, linestyle=dash, linewidth=width, label=label)
        axes.set_title(f"share of {channel_name(channel)}")
        axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10], integer=True))
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
    figure.supxlabel(LAYER_LABEL, fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False, handlelength=3)
    draw_title(figure, title, f"{about}; lens at the prompts' last token, strength {strongest:g}")
    return figure
