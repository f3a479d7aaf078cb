"""A page of one probe, or of two with their difference: one HTML file that any browser opens, without a network.

It holds the tables as JSON, our page.css and page.js, and D3 (https://d3js.org), which draws axes, lines and bands.
D3 is the file in the package mpld3: 0.24 MB a page, where Plotly's would be 4.8 MB.
"""

import base64
import html
import importlib.util
import json
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd

from utils.figures.looks import (
    COLOURS,
    DASH_DOT,
    DASHED,
    IN,
    LANGUAGES_OF_LINES,
    PANELS,
    SAYS,
    VISIBLE_CELL,
    VISIBLE_LINE,
    channels_that_matter,
    describe_run,
    direction_of,
    explained_by_null,
    line_style,
    shaded,
    shades,
    signs,
)
from utils.languages import ENGLISH, OTHER_CHANNELS, channel_name, short_code
from utils.lens.probe_runs import FEWEST_TOKENS, PAGE, Grid, ProbeRun
from utils.runs import write_atomically
from utils.uncertainty import FALSE_DISCOVERY_RATE

SOURCES = Path(__file__).resolve().parent
D3_FILE = Path("js") / "d3.v5.min.js"
# COLOURS as they are on a dark ground: 3:1 against it at least, of nearly the same hue, and as far from one another to
# every kind of eye as a search found. English, black on white, is white.
ON_DARK = dict(
    zip(
        COLOURS,
        (
            *("#D0441F", "#E69F00", "#CC79A7", "#009E73", "#56B4E9", "#008CE4"),
            *("#855D34", "#A935FF", "#DF2040", "#6757B8", "#C8BF69", "#A7429E"),
        ),
    )
)
ON_DARK |= {"#000000": "#F2F2F2"}
ON_DARK |= dict(zip((grey for _, grey, _ in OTHER_CHANNELS.values()), ("#A8A8A8", "#6E6E6E", "#8F8F8F", "#7F7F7F")))
# Of a page's 8 MB the grids may have so many, which is some 77,000 cells of one layer and position.
BYTES_OF_GRIDS = 6_200_000
# Names of dashes in CSS, which a grid's cells are underlined with.
UNDERLINES: dict[str | tuple, str] = {DASHED: "dashed", DASH_DOT: "dotted"}
MARKERS = {"o": "circle", "^": "triangle", "s": "square", "D": "diamond", "v": "wye", "X": "cross"}


def write_page(run_dir: Path) -> Path:
    """RUN/page.html of a probe run. Raises ValueError where a table is missing or is no probe run's."""
    run = ProbeRun(Path(run_dir))
    return _written(Path(run_dir) / PAGE, [run], ["probe"], None)


def write_comparison_page(run_dir: Path, before: Path, after: Path, changes: pd.DataFrame) -> Path:
    """RUN/page.html of a comparison's two probes with their difference, of changes.csv."""
    runs = [ProbeRun(Path(path)) for path in (before, after)]
    return _written(Path(run_dir) / PAGE, runs, ["before", "after"], changes)


def _written(path: Path, runs: list[ProbeRun], names: list[str], changes: pd.DataFrame | None) -> Path:
    says = SAYS.get(runs[0].arguments["dataset"], IN)
    texts = page_html(page_data(runs, names, changes, says))
    write_atomically(path, lambda file: file.write(texts.encode("utf-8")))
    return path


def page_data(runs: list[ProbeRun], names: list[str], changes: pd.DataFrame | None, says: str = IN) -> dict:
    """What page.js draws: plain lists and texts."""
    tables = [run.table for run in runs]
    langs = [lang for lang in dict.fromkeys(tables[0]["prompt_lang"]) if (tables[-1]["prompt_lang"] == lang).any()]
    grids = [_grid(run.grid, langs, BYTES_OF_GRIDS // len(runs)) for run in runs]
    in_grids = {code for grid in grids if grid for code in grid["channels"]}
    channels, shown = _channels(tables, langs, changes, in_grids)
    return {
        "title": "Which language does each layer speak?",
        "runs": [
            {"name": name, "about": describe_run(run.arguments, table)} for name, run, table in zip(names, runs, tables)
        ],
        "prefix": f"{PANELS[says]} ".lstrip(),
        "langs": [{"code": lang, "short": short_code(lang), "name": channel_name(lang)} for lang in langs],
        "channels": _looks(channels),
        "shown": shown,
        "layers": sorted(int(layer) for layer in tables[0]["layer"].unique()),
        "fewest_tokens": FEWEST_TOKENS,
        "rate": FALSE_DISCOVERY_RATE,
        "curves": [{lang: _curves(table, lang, channels) for lang in langs} for table in tables],
        "changes": changes is not None and {lang: _changes(changes, lang, channels) for lang in langs},
        "grids": grids,
    }


def _channels(tables, langs, changes, in_grids) -> tuple[list[str], dict[str, list[str]]]:
    """(the channels that can be switched on, prompt language -> those that its figure shows at first)."""
    shown, candidates = {}, dict[str, None]()
    for lang in langs:
        of_lang = [table[table["prompt_lang"] == lang] for table in tables]
        always = [lang, ENGLISH]
        both = [channels_that_matter(table, always, LANGUAGES_OF_LINES, VISIBLE_LINE) for table in of_lang]
        shown[lang] = list(dict.fromkeys(channel for found in both for channel in found))
        candidates |= dict.fromkeys(shown[lang])
    for table in tables:
        highest = table.groupby("channel")["share"].max().sort_values(ascending=False, kind="stable")
        candidates |= dict.fromkeys(highest.index[highest >= VISIBLE_CELL])
    if changes is not None:
        largest = changes["change"].abs().groupby(changes["channel"]).max()
        candidates |= dict.fromkeys(largest.index[largest >= VISIBLE_CELL])
    known = set(tables[0]["channel"])
    return [channel for channel in {**candidates, **dict.fromkeys(sorted(in_grids))} if channel in known], shown


def _looks(channels: list[str]) -> list[dict]:
    """What tells them apart: a colour each, on either ground, and a sign, which needs no colours to be seen."""
    sign_of = signs(channels)
    return [_look(channel, sign_of[channel], *shade) for channel, shade in shades(channels).items()]


def _look(channel: str, sign: str, colour: str, nth: int) -> dict:
    style = line_style(channel)
    dash = "" if isinstance(style.linestyle, str) else " ".join(str(part) for part in style.linestyle[1])
    return {
        "code": channel,
        "sign": sign,
        "name": channel_name(channel),
        "light": shaded(colour, nth),
        "dark": shaded(ON_DARK[colour.upper()], nth, on_dark=True),
        "dash": dash,
        "underline": "double" if channel in OTHER_CHANNELS else UNDERLINES.get(style.linestyle, "solid"),
        "marker": MARKERS.get(style.marker, ""),
        "other": channel in OTHER_CHANNELS,
    }


def _curves(table: pd.DataFrame, lang: str, channels: list[str]) -> dict:
    """n, and of each channel share, low, high, null, tokens: a list of a number a layer each."""
    rows = table[(table["prompt_lang"] == lang) & table["channel"].isin(channels)].sort_values(
        ["channel", "layer"], kind="stable"
    )
    of_channel = {}
    for channel, cells in rows.groupby("channel", sort=False):
        columns = ("share", "share_low", "share_high", "null_share")
        numbers = [_rounded(cells[column], 4) for column in columns]
        # Faint: the null explains the whole curve, as in the figures.
        tokens, faint = _rounded(cells["tokens"], 1), explained_by_null(cells)
        of_channel[channel] = [*numbers, tokens, faint]
    return {"n": int(table.loc[table["prompt_lang"] == lang, "n"].iloc[0]), "channels": of_channel}


def _changes(changes: pd.DataFrame, lang: str, channels: list[str]) -> dict:
    """Of each channel change, low, high and q: a list of a number a layer each."""
    rows = changes[(changes["prompt_lang"] == lang) & changes["channel"].isin(channels)]
    rows = rows.sort_values(["channel", "layer"], kind="stable")
    return {
        channel: [_rounded(cells[column], 4) for column in ("change", "low", "high", "q")]
        for channel, cells in rows.groupby("channel", sort=False)
    }


def _rounded(column: pd.Series, digits: int) -> list[float | None]:
    """As JSON has them: no NaN."""
    return [None if pd.isna(number) else round(float(number), digits) for number in column]


def prompts_that_fit(grid: Grid, langs: list[str], most_bytes: int) -> list[dict]:
    """The prompts of these languages, the first of each, then the second of each, as long as their cells fit; in the
    grid's order. One at least."""
    of_lang = {lang: [row for row in grid.prompts if row["prompt_lang"] == lang] for lang in langs}
    in_turn = [row for rank in zip_longest(*of_lang.values()) for row in rank if row]
    # In base64, four bytes for three.
    numbers = 4 * grid.top_ids.shape[2] + 4 * grid.shares.shape[2]
    most_cells = most_bytes * 3 // 4 // (numbers * grid.top_ids.shape[1])
    chosen: list[dict] = []
    cells: set[int] = set()
    for row in in_turn:
        if chosen and len(cells.union(row["cells"])) > most_cells:
            break
        chosen.append(row)
        cells.update(row["cells"])
    return [row for row in grid.prompts if any(row is other for other in chosen)]


def _grid(grid: Grid | None, langs: list[str], most_bytes: int) -> dict | None:
    """The grid's arrays in base64, little-endian, and its prompts.

    tokens: [cell, layer, token] into `words`, uint16, or uint32 where there are more words; probs: the same shape,
    uint16, 65535 for 1; leading: [cell, layer, channel] into `channels`, uint16; shares the same, 65535 for 1.
    """
    prompts = prompts_that_fit(grid, langs, most_bytes) if grid else []
    if not grid or not prompts:
        return None
    n_prompts = sum(row["prompt_lang"] in langs for row in grid.prompts)
    cells, renumbered = np.unique([cell for row in prompts for cell in row["cells"]], return_inverse=True)
    ids, words = np.unique(grid.top_ids[cells], return_inverse=True)
    leading, channels = np.unique(grid.channels[cells], return_inverse=True)
    shape = grid.top_ids[cells].shape
    in_prompts = sorted({id for row in prompts for id in row["token_ids"]} - set(ids.tolist()))
    words_of = [grid.tokens[int(id)] for id in ids] + [grid.tokens[id] for id in in_prompts]
    number = {int(id): i for i, id in enumerate([*ids, *in_prompts])}
    ends = np.cumsum([len(row["cells"]) for row in prompts])
    return {
        "shape": shape,
        "left_out": n_prompts - len(prompts),
        "n_shares": grid.shares.shape[-1],
        "words": words_of,
        "channels": [grid.channel_names[i] for i in leading],
        "wide": len(ids) > 2**16,
        "tokens": _base64(words.reshape(shape), "<u4" if len(ids) > 2**16 else "<u2"),
        "probs": _base64(np.rint(grid.top_probs[cells].clip(0, 1) * 65535), "<u2"),
        "leading": _base64(channels.reshape(grid.channels[cells].shape), "<u2"),
        "shares": _base64(np.rint(grid.shares[cells].clip(0, 1) * 65535), "<u2"),
        "prompts": [
            {
                "id": row["id"],
                "lang": row["prompt_lang"],
                "outcome": row["outcome"],
                "text": row["text"],
                "direction": direction_of(row["text"]),
                "tokens": [number[id] for id in row["token_ids"]],
                "read": row["read"],
                "cells": part.tolist(),
            }
            for row, part in zip(prompts, np.split(renumbered, ends[:-1]))
        ],
    }


def _base64(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array.astype(dtype)).tobytes()).decode("ascii")


def page_html(data: dict) -> str:
    """The whole file. Everything from data is JSON, in which no `<` is left that could end the script around it."""
    read = partial(Path.read_text, encoding="utf-8")
    as_json = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    parts = {
        "title": html.escape(f"{data['title']} {data['runs'][-1]['about']}"),
        "css": read(SOURCES / "page.css"),
        "d3": read(d3_file()),
        "js": read(SOURCES / "page.js"),
        "data": as_json.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
    }
    page = read(SOURCES / "page.html")
    # One pass: what a part holds is never taken for a name.
    pieces = page.split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:]))


def d3_file() -> Path:
    """D3's minified file in the package mpld3, which isn't imported: that would bring a template engine and pyplot."""
    found = importlib.util.find_spec("mpld3")
    if found is None or found.origin is None:
        raise ValueError("mpld3, which carries D3 for the page, is not installed: pip install -r requirements.txt")
    return Path(found.origin).parent / D3_FILE
