"""A figure of one prompt: layers x its last positions, each cell's likeliest token in its own script."""

import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from utils.figures.looks import direction_of, shaded, shades, signs
from utils.figures.style import draw_title, save_figure
from utils.languages import OTHER_CHANNELS, channel_name
from utils.lens.probe_runs import Grid

# Positions of a figure, the prompt's last; characters of a token that fit into a cell.
POSITIONS_SHOWN, CHARACTERS_SHOWN = 12, 10
HATCH = "////"  # of channels that are no language
# Of these fonts, those that are installed write what DejaVu Sans, matplotlib's own, lacks.
SCRIPTS_OF_NOTO = (
    *("Oriya", "Devanagari", "Bengali", "Telugu", "Thai", "Arabic", "CJK", "Tamil", "Kannada", "Malayalam", "Gujarati"),
    *("Gurmukhi", "Sinhala", "Khmer", "Lao", "Myanmar", "Tibetan", "Ethiopic", "Hebrew", "Armenian", "Georgian"),
    *("OlChiki", "Tifinagh", "MeeteiMayek", "Symbols", "Symbols2"),
)
PACKAGES = "fonts-noto-core fonts-noto-cjk"  # Debian's


@cache
def token_fonts() -> list[str]:
    """Families to write a token with, each for the characters that those before it lack.

    Looked for on the disk, since matplotlib's own list may be older than a font; made known to matplotlib here.
    """
    found = {Path(path).stem: path for path in sorted(font_manager.findSystemFonts())}
    families = ["DejaVu Sans"]
    for script in SCRIPTS_OF_NOTO:
        name = f"NotoSans{script}"
        if stems := [
            stem for stem in found if stem == f"{name}-Regular" or stem.startswith((f"{name}-VF", f"{name}["))
        ]:
            font_manager.fontManager.addfont(found[stems[0]])
            families.append(font_manager.FontProperties(fname=found[stems[0]]).get_name())
    return families


def grid_figure(grid: Grid, prompt: dict, direction: str, run: str = "") -> Figure:
    """Each cell has its leading channel's colour, the stronger the larger its share, and under its token the channel's
    sign; hatched where it is no language.

    prompt: one of the grid's. direction: rtl where its readers go from right to left; so do the positions then.
    A character that no installed font has is a box, and a warning names the packages.
    """
    last = slice(-POSITIONS_SHOWN, None)
    cells, positions = prompt["cells"][last], range(len(prompt["cells"]))[last]
    n_layers = grid.top_ids.shape[1]
    figure = Figure(figsize=(1 + 0.75 * len(cells), 0.3 * n_layers + 1.6), layout="constrained")
    axes = figure.subplots()
    shares_of = dict[str, float]()
    for channel, share in zip(grid.channels[cells, :, 0].ravel(), grid.shares[cells, :, 0].ravel()):
        name = grid.channel_names[channel]
        shares_of[name] = shares_of.get(name, 0) + float(share)
    leaders = sorted(shares_of, key=lambda channel: -shares_of[channel])
    colour_of = {channel: shaded(*shade) for channel, shade in shades(leaders).items()}
    sign_of = signs(leaders)
    colours = np.ones((n_layers, len(cells), 3))
    for column, cell in enumerate(cells):
        for layer in range(n_layers):
            channel = grid.channel_names[grid.channels[cell, layer, 0]]
            share = float(grid.shares[cell, layer, 0])
            colours[layer, column] = ground = _mixed(colour_of[channel], share)
            other = channel in OTHER_CHANNELS
            if other:
                axes.bar(column, 1, 1, layer - 0.5, color="none", edgecolor="white", hatch=HATCH, linewidth=0)
            ink = "black" if ground @ (0.299, 0.587, 0.114) > 0.5 else "white"
            token = _cut(grid.tokens[int(grid.top_ids[cell, layer, 0])])
            box = {"facecolor": ground, "pad": 0.6, "linewidth": 0} if other else None
            for height, words, size in ((0.13, token, 7), (-0.31, sign_of[channel], 5)):
                text = axes.text(
                    column, layer + height, words, color=ink, size=size, ha="center", va="center_baseline", bbox=box
                )
                text.set_in_layout(False)  # it lies within the axes; measuring it costs as much as drawing it
    axes.imshow(colours, origin="lower", aspect="auto", interpolation="nearest")
    axes.set(xlim=(-0.5, len(cells) - 0.5), ylim=(-0.5, n_layers - 0.5), ylabel="layer (0: embeddings)")
    labels = [f"{_cut(grid.tokens[prompt['token_ids'][position]])}\n{position + 1}" for position in positions]
    axes.set_xticks(range(len(cells)), labels, size=7)
    axes.set_yticks(range(0, n_layers, 1 if n_layers <= 20 else 2))
    axes.tick_params(length=0)
    for text in (*axes.texts, *axes.get_xticklabels()):
        text.set_fontfamily(fonts_for(text.get_text()))
    if direction == "rtl":
        axes.invert_xaxis()
        axes.yaxis.tick_right()
        axes.yaxis.set_label_position("right")
    axes.set_frame_on(False)
    axes.set_xlabel("token that the prompt has there, and its position")
    handles = [
        Patch(
            facecolor=colour_of[channel],
            edgecolor="white",
            hatch=HATCH if channel in OTHER_CHANNELS else None,
            label=f"{sign_of[channel]}: {channel_name(channel)}",
        )
        for channel in leaders[:8]
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    draw_title(figure, f"What each layer would say next: {prompt['id']} in {channel_name(prompt['prompt_lang'])}", run)
    return figure


def _mixed(colour: str, share: float) -> np.ndarray:
    """A colour on white, RGB."""
    return 1 - min(share, 1.0) * (1 - np.array(to_rgb(colour)))


def _cut(token: str) -> str:
    return token if len(token) <= CHARACTERS_SHOWN else token[: CHARACTERS_SHOWN - 1] + "…"


def fonts_for(text: str) -> list[str]:
    """Of `token_fonts` the first, and each that has a character which those before it lack: matplotlib looks a text's
    fonts up again and again."""
    families: list[str] = []
    left = set(text) - {"\n"}
    for family in token_fonts():
        font = font_manager.get_font(font_manager.findfont(family))
        has = {character for character in left if font.get_char_index(ord(character))}
        if has or not families:
            families.append(family)
        left -= has
    return families


def without_font(texts: Iterable[str]) -> set[str]:
    """The characters that none of `token_fonts` has."""
    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in token_fonts()]
    return {
        character for character in set("".join(texts)) if not any(font.get_char_index(ord(character)) for font in fonts)
    }


def draw_grid(grid: Grid, prompt: dict, path: Path, run: str) -> Path:
    """`grid_figure` as PNG and PDF; returns the PNG. Characters without a font are boxes, which a warning says."""
    shown = [grid.tokens[int(id)] for id in np.unique(grid.top_ids[prompt["cells"][-POSITIONS_SHOWN:], :, 0])]
    if missing := without_font([*shown, *(grid.tokens[id] for id in prompt["token_ids"][-POSITIONS_SHOWN:])]):
        some = "".join(sorted(missing)[:10])
        warnings.warn(f"{path}: no font for {len(missing)} characters ({some}); Debian's: {PACKAGES}", stacklevel=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        return save_figure(grid_figure(grid, prompt, direction_of(prompt["text"]), run), path)
