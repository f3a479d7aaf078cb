"""Figures from tables alone: of probe runs, of changes between two, of training; a language looks the same in all."""

import hashlib
import json
import math
import textwrap
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import AsinhNorm, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from utils.comparisons import OUTCOMES
from utils.languages import flores_names, language_name, script_of, short_code
from utils.results import CONFIG, PROJECT_DIR, write_atomically

PROBABILITIES = "language_probs.csv"
PUBLISHED_CURVES = PROJECT_DIR / "datasets" / "published" / "bloomz7b1_de_lens.csv.gz"
COLUMNS = ("prompt_lang", "layer", "channel", "share", "share_low", "share_high", "null_share", "tokens", "n")
ENGLISH = "eng_Latn"

# Okabe and Ito's colours without black and yellow; then those that stay farthest from them, from each other
# and from the greys below, in CIELAB, to eyes with and without each kind of colour blindness.
COLOURS = (
    *("#D55E00", "#E69F00", "#CC79A7", "#009E73", "#56B4E9", "#0072B2"),
    *("#704010", "#9900E6", "#DF2040", "#4C39AC", "#CCAA66", "#99007F"),
)
SOLID, DASHED, DASH_DOT = "solid", (0, (4, 1.5)), (0, (6, 1.5, 1.5, 1.5))
# English is in every figure, so its black is no other's. A row here has one dash and each of its columns one
# colour; no two languages of XQuAD are in one column, and no two of XQuAD-IN.
COMMON_LANGUAGES = {
    SOLID: """ory_Orya hin_Deva rus_Cyrl deu_Latn zho_Hans spa_Latn
              arb_Arab ben_Beng tam_Taml tel_Telu tha_Thai fra_Latn""",
    DASHED: """ell_Grek pes_Arab guj_Gujr kan_Knda mar_Deva mal_Mlym
               asm_Beng tur_Latn ron_Latn vie_Latn pan_Guru urd_Arab""",
    DASH_DOT: """kor_Hang jpn_Jpan ind_Latn npi_Deva por_Latn ukr_Cyrl
                 pol_Latn ita_Latn nld_Latn khm_Khmr swh_Latn zho_Hant""",
}
MARKERS = ("o", "^", "s", "D", "v")
MARKER_OUTSIDE_FLORES = "X"
# Channels that are no languages: name, grey, dash.
OTHER_CHANNELS = {
    "special": ("control tokens", "#555555", (0, (7, 2))),
    "byte": ("parts of characters", "#8F8F8F", (0, (2.5, 1))),
    "zxx": ("punctuation, digits", "#727272", (0, (4, 1, 1, 1))),
    "und": ("unknown text", "#A8A8A8", (0, (4, 1, 1, 1, 1, 1))),
}

# A share that rests on fewer tokens than this is no language's.
FEWEST_TOKENS = 3
# Less of a share above its null than this can't be told from none, at any layer.
VISIBLE_LINE, VISIBLE_CELL = 0.01, 0.003
VISIBLE_PUBLISHED = 0.05  # published without nulls: a curve that rises to be seen
FAINT = 0.25  # opacity of a curve that its null explains
LANGUAGES_OF_LINES, LANGUAGES_OF_HEATMAP = 8, 17
LAYER_LABEL = "layer (0: embeddings)"
# What a prompt has to do with its prompt_lang, in a title and over a panel.
IN, INTO = "is in", "asks for a translation into"
PANELS = {IN: "prompt in", INTO: "into"}
TRANSLATED = ("sample_parallel", "flores200")
POSITIONS = {"last": "last prompt token", "answer": "answer tokens"}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
}
FORMATS = {"png": {"dpi": 150}, "pdf": {"metadata": {"CreationDate": None}}}


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


def channel_name(channel: str) -> str:
    """What a figure calls a channel, in English: `mni_Beng` is Meitei (Bengali), `zxx` punctuation, digits."""
    if channel in OTHER_CHANNELS:
        return OTHER_CHANNELS[channel][0]
    return language_name(channel).removeprefix("Modern ").replace(" script)", ")")


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


# --- figures ---------------------------------------------------------------------------------------------------


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


def overview_figure(table: pd.DataFrame, run: str = "", says: str = IN) -> Figure:
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
        axes.set_title(f"{PANELS[says]} {channel_name(prompt_lang)}")
    for i in range(len(prompt_langs), len(panels)):
        panels[i].remove()
        panels[i - n_columns].tick_params(labelbottom=True)
    return framed(figure, "The language of each layer's next token (logit lens)", run, channels, table)


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


def draw_lines(axes: Axes, table: pd.DataFrame, channels: list[str], prompt_lang: str, n_ticks: int) -> None:
    """Each channel's line, 95% band and null, the first on top; the prompt's own language is drawn thick.

    Faint where the null explains the whole curve; a cross where a share rests on fewer than FEWEST_TOKENS.
    """
    for channel in reversed(channels):
        rows = table[table["channel"] == channel].sort_values("layer")
        style, own = line_style(channel), channel == prompt_lang
        layer, share = rows["layer"], rows["share"]
        alpha = FAINT if explained_by_null(rows) else 1
        band = {"color": style.color, "alpha": 0.15 * alpha, "linewidth": 0}
        axes.fill_between(layer, rows["share_low"], rows["share_high"], **band)
        null = {"color": style.color, "linestyle": ":", "linewidth": 0.8, "alpha": alpha}
        axes.plot(layer, rows["null_share"], **null, label=f"null of {channel}")
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
    handles = [Line2D([], [], **look, markersize=4, label=channel_name(channel)) for channel, look in looks.items()]
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


# --- a run's figures -------------------------------------------------------------------------------------------


def draw_probe_run(run_dir: Path) -> list[Path]:
    """Draws a probe run's tables into run_dir/figures as PNG and PDF; returns the PNGs, the overview first.

    Raises ValueError where a table is missing or is no probe run's.
    """
    table, arguments = read_probe_run(run_dir)
    folder = Path(run_dir) / "figures"
    folder.mkdir(exist_ok=True)
    paths = []
    # The user's own matplotlib settings would make other figures of the same tables.
    with matplotlib.style.context(STYLE, after_reset=True):
        says = INTO if arguments["dataset"] in TRANSLATED else IN
        paths.append(save_figure(overview_figure(table, describe_run(arguments, table), says), folder / "overview"))
        for prompt_lang, rows in table.groupby("prompt_lang", sort=False):
            run = describe_run(arguments, rows)
            name = short_code(prompt_lang)
            paths.append(save_figure(lines_figure(rows, prompt_lang, run, says), folder / f"lines_{name}"))
            paths.append(save_figure(heatmap_figure(rows, prompt_lang, run, says), folder / f"heatmap_{name}"))
    return paths


def read_probe_run(run_dir: Path) -> tuple[pd.DataFrame, dict]:
    """language_probs.csv and the run's arguments."""
    run_dir = Path(run_dir)
    require_files(run_dir, CONFIG, PROBABILITIES)
    table = pd.read_csv(run_dir / PROBABILITIES)
    if missing := [column for column in COLUMNS if column not in table]:
        raise ValueError(f"{run_dir / PROBABILITIES}: no column {', '.join(missing)}; it has {', '.join(table)}")
    if table.empty:
        raise ValueError(f"{run_dir / PROBABILITIES}: no rows")
    return table, json.loads((run_dir / CONFIG).read_text(encoding="utf-8"))["arguments"]


def require_files(run_dir: Path, *names: str) -> None:
    """Raises ValueError that names the folder and what is missing in it."""
    missing = [name for name in names if not (Path(run_dir) / name).is_file()]
    if missing:
        raise ValueError(f"{run_dir}: no finished run with figures: no {', no '.join(missing)} in it")


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
    fewest, most = table["n"].min(), table["n"].max()
    n = f"n = {fewest:,}" if fewest == most else f"n = {fewest:,} to {most:,}"
    return ", ".join([*parts, n if table["prompt_lang"].nunique() == 1 else f"{n} a language"])


def save_figure(figure: Figure, path: Path) -> Path:
    for suffix, options in FORMATS.items():
        write_atomically(path.with_suffix(f".{suffix}"), partial(figure.savefig, format=suffix, **options))
    return path.with_suffix(".png")


# --- the paper's own curves --------------------------------------------------------------------------------------


def read_published(path: Path = PUBLISHED_CURVES) -> pd.DataFrame:
    """prompt_lang, step, layer, channel, prob of the paper's authors; every channel at every layer, 0 where left out.

    Their `prob` is the share here, as langid's reading is; nulls, intervals and numbers of tokens are NaN.
    """
    table = pd.read_csv(path, keep_default_na=False)
    cells = table.set_index(["prompt_lang", "step", "layer", "channel"])["prob"].unstack(fill_value=0.0)
    return with_no_nulls(cells.stack().rename("prob").reset_index())


def with_no_nulls(table: pd.DataFrame) -> pd.DataFrame:
    """Published curves with language_probs.csv's columns: `prob` is the share, and the rest of them are NaN."""
    missing = dict.fromkeys(("share_low", "share_high", "null_share", "tokens"), np.nan)
    return table.assign(share=table["prob"], **missing)


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


def draw_published(folder: Path) -> list[Path]:
    """A figure a prompt language into folder, as PNG and PDF; returns the PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    table = read_published()
    about = "bloomz-7b1 tuned on 103 German examples, 150 prompts; published by Samantaray and Jyothi (2025)"
    with matplotlib.style.context(STYLE, after_reset=True):
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


def draw_overlay(table: pd.DataFrame, folder: Path, about: str) -> list[Path]:
    """`overlay_figure` of each prompt language into folder, as PNG and PDF; returns the PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.style.context(STYLE, after_reset=True):
        return [
            save_figure(overlay_figure(table, lang, about), folder / f"overlay_{short_code(lang)}")
            for lang in dict.fromkeys(table["prompt_lang"])
        ]


# --- an experiment ---------------------------------------------------------------------------------------------


def draw_epochs(table: pd.DataFrame, path: Path, about: str, says: str = IN) -> list[Path]:
    """`tuning_figure` of each prompt language, beside one another at path_LANG; returns the PNGs."""
    with matplotlib.style.context(STYLE, after_reset=True):
        return [
            save_figure(
                tuning_figure(table, lang, "epoch", f"{about}, n = {of_lang['n'].max()}", says),
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
    there = [name for name in OUTCOMES if name in set(table["outcome"])]
    figure = Figure(figsize=(2.2 * len(there) + 2.2, 4.6), layout="constrained")
    panels = figure.subplots(2, len(there), sharex=True, sharey=True, squeeze=False)
    for row, (model, title) in zip(panels, (("base", "before tuning"), ("tuned", "after"))):
        for axes, name in zip(row, there):
            of_panel = table[(table["outcome"] == name) & (table["model"] == model)]
            draw_lines(axes, of_panel, channels, prompt_lang, n_ticks=6)
            axes.set_title(f"{name.replace('_', ' ')}, {title}\nn = {of_panel['n'].iloc[0]}")
    return framed(figure, f"The prompt is in {channel_name(prompt_lang)}", about, channels, table)


def draw_outcomes(table: pd.DataFrame, path: Path, about: str) -> list[Path]:
    """`outcomes_figure` of each prompt language, beside one another at path_LANG; returns the PNGs."""
    with matplotlib.style.context(STYLE, after_reset=True):
        return [
            save_figure(outcomes_figure(table, lang, about), path.with_name(f"{path.name}_{short_code(lang)}"))
            for lang in dict.fromkeys(table["prompt_lang"])
        ]


def transfer_figure(table: pd.DataFrame, about: str = "") -> Figure:
    """Change of a score in points, training set x language, a star where its 95% interval leaves zero out.

    table: training, lang, before, after, change, low, high of one score; from 0 to 1. The score itself stands below.
    """
    trained, langs = (list(dict.fromkeys(table[column])) for column in ("training", "lang"))
    change = 100 * table.pivot(index="training", columns="lang", values="change").loc[trained, langs]
    most = max(float(change.abs().to_numpy().max()), 1.0)
    figure = Figure(figsize=(1.0 * len(langs) + 2.6, 0.55 * len(trained) + 1.6), layout="constrained")
    axes = figure.subplots()
    cells = axes.imshow(change, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    for row in table.itertuples():
        star = "*" if row.low > 0 or row.high < 0 else ""
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
    figure.colorbar(cells, label="change of F1, points")
    draw_title(figure, "Multilingual F1 after tuning: its change, and the score", about)
    return figure


def draw_transfer(table: pd.DataFrame, path: Path, about: str) -> Path:
    with matplotlib.style.context(STYLE, after_reset=True):
        return save_figure(transfer_figure(table, about), path)


def gains_figure(table: pd.DataFrame, about: str = "") -> Figure:
    """Change of F1 against the fall of the interfering languages: a point a tuned model, a colour a language.

    table: `utils.suppression`'s. Bars are 95% intervals.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="#C8C8C8", linewidth=0.8, zorder=0)
    axes.axvline(0, color="#C8C8C8", linewidth=0.8, zorder=0)
    for lang, rows in table.groupby("lang", sort=False):
        channels = " + ".join(map(channel_name, rows["channels"].iloc[0].split()))
        x, y = -rows["change"], 100 * rows["gain"]
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
        for name, *where in zip(rows["training"], x, y):
            axes.annotate(name, where, xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="fall of the interfering languages, shares in the upper half of the layers", ylabel="F1, points")
    axes.legend(frameon=False)
    draw_title(figure, "Suppression and gain", about)
    return figure


def _bars(middle: pd.Series, low: pd.Series, high: pd.Series) -> np.ndarray:
    """Lengths below and above, [2, point]; none where there is no interval. A percentile interval can miss its mean."""
    return np.nan_to_num(np.maximum([middle - low, high - middle], 0))


def draw_gains(table: pd.DataFrame, path: Path, about: str) -> Path:
    with matplotlib.style.context(STYLE, after_reset=True):
        return save_figure(gains_figure(table, about), path)


# --- what changed from one run to another --------------------------------------------------------------------------


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
    draw_title(figure, f"What changed, prompts in {channel_name(prompt_lang)}", f"{runs}, n = {table['n'].iloc[0]:,}")
    return figure


def draw_changes(table: pd.DataFrame, path: Path, runs: str) -> list[Path]:
    """`changes_figure` of each prompt language, beside one another at path_LANG; returns the PNGs."""
    path.parent.mkdir(exist_ok=True)
    with matplotlib.style.context(STYLE, after_reset=True):
        return [
            save_figure(changes_figure(table, lang, runs), path.with_name(f"{path.name}_{short_code(lang)}"))
            for lang in dict.fromkeys(table["prompt_lang"])
        ]


def draw_loss(log: pd.DataFrame, path: Path, dev: pd.DataFrame | None = None) -> None:
    """The loss of each optimizer step, with that on other questions if there are, and the gradient's norm under it.

    log, dev: the columns of train_log.csv and dev_log.csv.
    """
    with matplotlib.style.context(STYLE):
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
