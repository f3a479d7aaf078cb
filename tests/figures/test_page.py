"""The page in a real browser, offline; and what goes into it."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

import plot_figures
from tests.figures.test_figures import ARGUMENTS, CHANNELS, COLOUR_BLIND, HINDI, ODIA, cielab, made_up_table
from tests.scripts import assert_one_error_line, run
from utils.figures.looks import COLOURS, direction_of, line_style
from utils.figures.page import BYTES_OF_GRIDS, ON_DARK, _looks, page_data, prompts_that_fit, write_page
from utils.languages import ENGLISH, OTHER_CHANNELS, channel_name, flores_names
from utils.lens.probe_runs import GRID, GRID_WORDS, Grid, ProbeRun
from utils.runs import write_arrays, write_json

ARABIC = "arb_Arab"
N_LAYERS = 7
SCRIPT = "<script>window.broken = 1</script>"
# language, id, outcome, tokens: in Arabic's script, in Odia's, and what must stay text
PROMPTS = [
    (ODIA, "one", "newly_right", ["<s>", "ଓଡ଼ିଶାର", "␣ରାଜଧାନୀ", "<0xE0>", "\\n"]),
    (ARABIC, "one", "both_wrong", ["<s>", "عاصمة", "␣فرنسا", "␣هي"]),
    (ENGLISH, "a&b", "both_right", ["<s>", SCRIPT, "</script>", "␣\"quoted'"]),
]
SUMMARY = "() => document.getElementById('cell').innerText"


def made_up_run(folder: Path, arguments=ARGUMENTS, grid: bool = True, **changes) -> Path:
    folder.mkdir()
    config = {"script": "probe_logit_lens.py", "arguments": arguments, "inputs": {}}
    write_json(folder / "config.json", config)
    channels = [*CHANNELS, ARABIC]
    table = made_up_table([ODIA, ARABIC, ENGLISH], N_LAYERS - 1, channels=channels, **changes)
    table.to_csv(folder / "language_probs.csv", index=False)
    if grid:
        made_up_grid(folder, channels)
    write_json(folder / "metrics.json", {})
    return folder


def made_up_grid(folder: Path, channels: list[str]) -> None:
    """The cell of layer l at position p says token p + l first; its prompt's language leads with (l + 1) / 8."""
    tokens = sorted({token for *_, of_prompt in PROMPTS for token in of_prompt})
    n_cells = sum(len(of_prompt) for *_, of_prompt in PROMPTS)
    shape = (n_cells, N_LAYERS)
    ids = (np.arange(n_cells)[:, None, None] + np.arange(N_LAYERS)[:, None] + np.arange(10)) % len(tokens)
    probs = np.broadcast_to(np.float32(2.0 ** -np.arange(1, 11)), (*shape, 10))
    leading, shares = np.zeros((*shape, 5), np.int16), np.zeros((*shape, 5), np.float32)
    prompts, first = [], 0
    for lang, id, outcome, of_prompt in PROMPTS:
        cells = range(first, first + len(of_prompt))
        others = [i for i, channel in enumerate(channels) if channel != lang][:4]
        leading[cells.start : cells.stop] = [channels.index(lang), *others]
        shares[cells.start : cells.stop, :, 0] = (np.arange(N_LAYERS) + 1) / 8
        shares[cells.start : cells.stop, :, 1] = 0.1
        row = {"id": id, "prompt_lang": lang, "outcome": outcome, "text": "".join(of_prompt[1:])}
        row |= {"token_ids": [tokens.index(token) for token in of_prompt], "read": [len(of_prompt) - 1]}
        prompts.append(row | {"cells": list(cells)})
        first += len(of_prompt)
    write_arrays(folder / GRID, top_ids=ids.astype(np.int32), top_probs=probs, channels=leading, shares=shares)
    write_json(folder / GRID_WORDS, {"channels": channels, "tokens": dict(enumerate(tokens)), "prompts": prompts})


@pytest.fixture(scope="module")
def probe(tmp_path_factory) -> Path:
    folder = made_up_run(tmp_path_factory.mktemp("page") / "run")
    write_page(folder)
    return folder


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, probe) -> Path:
    """Of `probe` with a run whose English is .1 more at layer 3 of Odia prompts, which is found there alone."""
    folder = tmp_path_factory.mktemp("comparison")
    after = made_up_run(folder / "tuned", ARGUMENTS | {"adapter": "results/tuned"})
    table = ProbeRun(probe).table[["prompt_lang", "layer", "channel"]].assign(change=0.0, low=-0.01, high=0.01, q=1.0)
    table = table.assign(before=0.1, after=0.1, p=1.0, n=24, n_contexts=12)
    found = (table["prompt_lang"] == ODIA) & (table["layer"] == 3) & (table["channel"] == ENGLISH)
    table.loc[found, ["change", "low", "high", "q"]] = 0.1, 0.05, 0.15, 0.01
    table.to_csv(folder / "changes.csv", index=False)
    config = {"script": "compare_runs.py", "arguments": {"before": str(probe), "after": str(after)}, "inputs": {}}
    write_json(folder / "config.json", config)
    write_json(folder / "metrics.json", {})
    assert run(plot_figures.main, folder, "--page").out.split() == [str(folder / "page.html")]
    return folder


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium, driven by playwright, which brings no browser of its own here."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is in requirements-dev.txt")
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as started:
        # Its sandbox doesn't start for root, whom CI runs as.
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser):
    """Function from a run's folder to its page, offline; what the page complains of fails the test."""
    contexts, complaints = [], []

    def go(folder: Path, **options):
        context = browser.new_context(offline=True, **{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith("file:") else complaints.append(request.url))
        page.goto((folder / "page.html").as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert not complaints


# --- in a browser ----------------------------------------------------------------------------------------------


def test_a_page_opens_offline_with_a_figure_a_prompt_language(open_page, probe):
    page = open_page(probe)
    captions = page.locator("figcaption").all_inner_texts()
    assert [text.split(" n =")[0] for text in captions] == [
        f"prompt in {name}" for name in ("Odia", "Standard Arabic", "English")
    ]
    lines = page.locator("figure").first.locator("path.line")
    assert {line.get_attribute("data-channel") for line in lines.all()} == {
        ODIA,
        ENGLISH,
        "bre_Latn",
        "fra_Latn",
        "und",
    }
    assert "bloomz-560m on sample_qa test" in page.locator("#about").inner_text()


def test_a_line_is_where_its_numbers_are(open_page, probe):
    """English of the Odia prompts is .5 at layer 3 and 0 at layers 0 and 6: from the axis, and back to it."""
    page = open_page(probe)
    places = page.evaluate(
        """(code) => {
            const svg = document.querySelector("figure svg");
            const numbers = svg.querySelector(`path.line[data-channel="${code}"]`).getAttribute("d").match(/[\\d.]+/g);
            const heights = numbers.map(Number).filter((_, i) => i % 2);
            const ticks = [...svg.querySelectorAll("g.tick")].filter((tick) => tick.textContent.endsWith("%"));
            const height = (tick) => Number(tick.getAttribute("transform").match(/,([\\d.]+)/)[1]);
            return [heights, ticks.map((tick) => [parseInt(tick.textContent), height(tick)])];
        }""",
        ENGLISH,
    )
    heights, ticks = places
    on_axis = np.interp(heights, *zip(*sorted((height, share) for share, height in ticks)))
    table = made_up_table([ODIA], N_LAYERS - 1)
    expected = table[table["channel"] == ENGLISH]["share"] * 100
    assert on_axis == pytest.approx(expected.to_numpy(), abs=0.5)


def test_pointing_and_the_keyboard_tell_the_numbers(open_page, probe):
    page = open_page(probe)
    figure = page.locator("figure svg").first
    box = figure.bounding_box()
    figure.hover(position={"x": 44 + (box["width"] - 54) / 2, "y": 60})  # layer 3 of 0 to 6
    tip = page.locator("#tip").inner_text()
    assert "prompt in Odia, layer 3" in tip and "English" in tip and "50%" in tip and "48% to 52%" in tip
    assert "null 2.0%" in tip
    page.mouse.move(0, 0)
    assert page.locator("#tip").is_hidden()
    figure.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert figure.get_attribute("aria-valuenow") == "1"
    assert figure.get_attribute("aria-valuetext").startswith("layer 1: unknown text 44%, English 28%")


def test_a_language_is_switched_in_all_figures_at_once(open_page, probe):
    page = open_page(probe)
    lines = page.locator(f'path.line[data-channel="{ENGLISH}"]')
    assert lines.count() == 3
    switch = page.get_by_role("button", name="English")
    switch.click()
    assert lines.count() == 0 and switch.get_attribute("aria-pressed") == "false"
    switch.press("Enter")
    assert lines.count() == 3
    assert page.locator(f'path.line[data-channel="{HINDI}"]').count() == 0
    page.locator("#more").select_option("hin_Deva")
    assert page.locator(f'path.line[data-channel="{HINDI}"]').count() == 3
    page.get_by_role("button", name="None").click()
    assert page.locator("path.line").count() == 0
    page.get_by_role("button", name="As at first").click()
    assert lines.count() == 3 and page.locator(f'path.line[data-channel="{HINDI}"]').count() == 0


def test_the_numbers_are_there_as_a_table(open_page, probe):
    page = open_page(probe)
    page.locator("summary").first.click()
    rows = page.locator("details table").first.locator("tr").all_inner_texts()
    assert rows[0].split("\t") == ["layer", "Odia", "English", "bre_Latn", "French", "unknown text"]
    assert rows[4].split("\t")[:3] == ["3", "3.8%", "50%"]


def test_a_prompt_is_chosen_by_language_outcome_and_id(open_page, probe):
    page = open_page(probe)
    offered = page.locator("#prompt option")
    odia, arabic, english = "one (Odia, newly right)", "one (Standard Arabic, both wrong)", "a&b (English, both right)"
    assert offered.all_inner_texts() == [odia, arabic, english]
    page.locator("#outcome").select_option("both_wrong")
    assert offered.all_inner_texts() == [arabic]
    assert page.locator("#grid").get_attribute("dir") == "rtl"
    page.locator("#outcome").select_option("")
    page.locator("#lang").select_option(ENGLISH)
    assert page.locator("#prompt").input_value() == "2"
    page.locator("#lang").select_option("")
    page.locator("#next").click()
    assert page.locator("#prompt").input_value() == "0"


def test_a_cell_tells_its_tokens_and_shares(open_page, probe):
    page = open_page(probe)
    page.locator('td[data-layer="2"][data-position="1"]').hover()
    told = page.evaluate(SUMMARY)
    tokens = sorted({token for *_, of_prompt in PROMPTS for token in of_prompt})
    assert told.startswith("Layer 2, after ଓଡ଼ିଶାର (2 of 5)")
    listed = page.locator("#cell ol").first.locator("li").all_inner_texts()
    assert [text.split("\n")[0] for text in listed] == [tokens[(1 + 2 + k) % len(tokens)] for k in range(10)]
    assert listed[0].endswith("50%") and listed[1].endswith("25%")
    assert page.locator("#cell ol").last.locator("li").all_inner_texts()[0].split() == ["Odia", "38%"]


def test_a_cell_s_language_is_told_without_its_colour(open_page, probe):
    page = open_page(probe)
    for lang, sign in ((ODIA, "or"), (ARABIC, "ar"), (ENGLISH, "en")):
        page.locator("#lang").select_option(lang)
        cells = page.locator("#grid td small").all_inner_texts()
        assert len(cells) == N_LAYERS * page.locator("#grid thead th").count() - N_LAYERS and set(cells) == {sign}
        assert page.locator("#leaders > span").all_inner_texts() == [f"{sign}{channel_name(lang)}"]


def test_the_keyboard_moves_through_a_grid_as_its_readers_do(open_page, probe):
    page = open_page(probe)
    chosen = page.locator("td.chosen")

    def place() -> list:
        return [chosen.get_attribute(f"data-{name}") for name in ("layer", "position")]

    assert place() == ["6", "4"]  # the last one, which the figures are of
    chosen.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    assert place() == ["5", "3"] and page.evaluate("document.activeElement.tagName") == "TD"
    assert chosen.get_attribute("aria-label").startswith("layer 5, position 4 of 5, after <0xE0>: ")
    assert page.locator('td[tabindex="0"]').count() == 1
    page.locator("#lang").select_option(ARABIC)
    chosen.focus()
    page.keyboard.press("ArrowRight")  # on in a text that runs to the left is back
    assert place() == ["6", "2"]


def test_what_data_says_is_shown_and_never_run(open_page, probe):
    page = open_page(probe)
    page.locator("#lang").select_option(ENGLISH)
    assert page.evaluate("window.broken") is None
    assert SCRIPT in page.locator("#text").inner_text()
    assert SCRIPT in page.locator("#grid thead").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_follows_the_system_s_mode_and_can_be_switched(open_page, probe, scheme):
    page = open_page(probe, color_scheme=scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    grounds = {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 28)"}
    other = {"light": "dark", "dark": "light"}[scheme]
    english = page.locator(f'path.line[data-channel="{ENGLISH}"]').first
    strokes = {"light": "#000000", "dark": "#F2F2F2"}
    assert page.evaluate(ground) == grounds[scheme] and english.get_attribute("stroke") == strokes[scheme]
    page.locator("#theme").click()
    assert page.evaluate(ground) == grounds[other] and english.get_attribute("stroke") == strokes[other]


LEGIBILITY = """() => {
    const linear = (part) => (part / 255 <= 0.03928 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
    const luminance = (rgb) => rgb.map(linear).reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
    const sizes = [], contrasts = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const parent = walker.currentNode.parentElement;
        if (!walker.currentNode.textContent.trim() || !parent.checkVisibility()) continue;
        sizes.push([parseFloat(getComputedStyle(parent).fontSize), parent.outerHTML.slice(0, 80)]);
    }
    for (const cell of document.querySelectorAll("#grid td")) {
        const style = getComputedStyle(cell);
        const colours = `${style.color} ${style.backgroundColor} ${style.backgroundImage}`.match(/rgb\\([^)]*\\)/g);
        const [ink, ...grounds] = colours.map((colour) => luminance(colour.match(/[\\d.]+/g).slice(0, 3).map(Number)));
        for (const ground of grounds) contrasts.push((Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05));
    }
    return [sizes.sort((a, b) => a[0] - b[0])[0], Math.min(...contrasts), document.documentElement.scrollWidth];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 2560])
def test_a_page_is_legible(open_page, probe, scheme, width):
    """No text below 11 px, no cell whose token hardly stands out (4.5:1, WCAG AA), nothing wider than the window."""
    page = open_page(probe, color_scheme=scheme, viewport={"width": width, "height": 640})
    smallest, contrast, wide = page.evaluate(LEGIBILITY)
    assert smallest[0] >= 11, smallest
    assert contrast >= 4.5 and wide <= width


def test_two_runs_stand_beside_each_other_with_their_difference(open_page, comparison):
    page = open_page(comparison)
    kinds = [figure.get_attribute("data-kind") for figure in page.locator("figure").all()]
    assert kinds == ["before", "after", "change"] * 3
    change = page.locator("figure svg").nth(2)
    box = change.bounding_box()
    change.hover(position={"x": 44 + (box["width"] - 54) / 2, "y": 60})
    english = page.locator("#tip tr").filter(has_text="English").inner_text().split("\t")
    assert [text.strip() for text in english if text.strip()] == ["English", "+10.0", "+5.0 to +15.0", "q 0.01"]
    found = page.locator("path.found")
    assert found.count() == 1 and found.get_attribute("data-channel") == ENGLISH
    assert "bloomz-560m + tuned" in page.locator("#about").inner_text()
    page.locator("#run").select_option("1")
    assert page.locator("#cell h4").all_inner_texts()[0::3] == ["before", "after"]


def test_a_run_without_a_grid_has_a_page_without_prompts(open_page, tmp_path):
    folder = made_up_run(tmp_path / "run", grid=False, stderr=np.nan)
    write_page(folder)
    page = open_page(folder)
    assert page.locator("figure").count() == 3 and page.locator("#prompts").is_hidden()


# --- without one -----------------------------------------------------------------------------------------------


def test_the_same_tables_give_the_same_page(probe, tmp_path):
    again = made_up_run(tmp_path / "run")
    write_page(again)
    first, second = ((folder / "page.html").read_bytes() for folder in (probe, again))
    assert first == second


def test_a_page_holds_the_table_s_numbers(probe):
    data = page_data([ProbeRun(probe)], ["probe"], None)
    table = ProbeRun(probe).table.set_index(["prompt_lang", "channel"])
    for lang, curves in data["curves"][0].items():
        for channel, (share, low, high, null, *_) in curves["channels"].items():
            rows = table.loc[[(lang, channel)]].sort_values("layer")
            for column, numbers in (("share", share), ("share_low", low), ("share_high", high), ("null_share", null)):
                assert numbers == pytest.approx(rows[column].to_numpy(), abs=5.1e-5)


def test_a_page_says_nothing_to_a_network_and_holds_d3_s_licence(probe):
    page = (probe / "page.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page and 'src="' not in page and "href=" not in page.split("<script>")[0]
    assert "Copyright 2010-2018 Mike Bostock" in page and "PROVIDED BY THE COPYRIGHT HOLDERS" in page


def a_large_grid(n_langs: int, n_prompts: int, n_positions: int, n_layers: int) -> Grid:
    """Random numbers: the worst case for a page's size. No prompt begins like another."""
    rng = np.random.default_rng(0)
    n_cells = n_langs * n_prompts * n_positions
    ids = rng.integers(0, 50_000, (n_cells, n_layers, 10)).astype(np.int32)
    probs, shares = (rng.random((n_cells, n_layers, k), np.float32) / k for k in (10, 5))
    prompts = []
    for number in range(n_langs * n_prompts):
        cells = list(range(number * n_positions, (number + 1) * n_positions))
        row = {"id": str(number), "prompt_lang": CHANNELS[number // n_prompts], "outcome": None, "text": "x"}
        prompts.append(row | {"token_ids": ids[cells, 0, 0].tolist(), "read": [n_positions - 1], "cells": cells})
    leading = rng.integers(0, len(CHANNELS), (n_cells, n_layers, 5)).astype(np.int16)
    tokens = {id: f"␣token{id}" for id in range(50_000)}
    return Grid(ids, probs, leading, shares, CHANNELS, tokens, prompts)


@pytest.mark.parametrize("n_positions", [150, 500])
def test_a_page_is_at_most_8_mb(tmp_path, monkeypatch, n_positions):
    """Six languages of 208 channels and 19 layers, three prompts of each at every position."""
    langs = CHANNELS[:6]
    folder = made_up_run(tmp_path / "run", grid=False)
    channels = [*flores_names(), *OTHER_CHANNELS]
    made_up_table(langs, 18, channels=channels).to_csv(folder / "language_probs.csv", index=False)
    grid = a_large_grid(6, 3, n_positions, 19)
    monkeypatch.setattr(ProbeRun, "grid", grid)
    write_page(folder)
    assert (folder / "page.html").stat().st_size < 8e6
    fit = prompts_that_fit(grid, langs, BYTES_OF_GRIDS)
    assert {row["prompt_lang"] for row in fit} == set(langs)  # some of each before a second of any
    assert len(fit) == (18 if n_positions == 150 else 8)
    words = {word for row in fit for word in row["cells"]}
    assert len(words) == n_positions * len(fit)


@pytest.mark.parametrize("seen_through", COLOUR_BLIND.values(), ids=COLOUR_BLIND)
def test_colours_on_a_dark_ground_stay_apart_to_colour_blind_eyes(seen_through):
    seen = np.array([cielab(ON_DARK[colour], seen_through) for colour in ("#000000", *COLOURS)])
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    assert distances[np.triu_indices(len(seen), 1)].min() > 12  # a just noticeable difference is about 2.3


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2."""
    rgb = np.array(to_rgb(colour))
    return float(np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def test_no_two_channels_of_a_page_have_one_colour_or_one_sign():
    """All that there can be: 204 languages and four that are none. On dark, each is seen (3:1)."""
    looks = {look["code"]: look for look in _looks([*flores_names(), *OTHER_CHANNELS])}
    for name in ("light", "dark", "sign"):
        assert len({look[name] for look in looks.values()}) == len(looks) == 208, name
    ground = luminance("#16181c")
    assert min((luminance(look["dark"]) + 0.05) / (ground + 0.05) for look in looks.values()) >= 3
    assert max(len(look["sign"]) for look in looks.values()) <= 4
    for code, sign in ((ODIA, "or"), (ENGLISH, "en"), ("ltz_Latn", "lb"), ("lus_Latn", "lus")):
        assert looks[code]["sign"] == sign
    # Odia has the colour of all figures, wherever it stands; a language that no one expects gives way to it.
    assert line_style(ODIA).color == line_style("ltz_Latn").color
    for channels in (["ltz_Latn", ODIA], [ODIA, "ltz_Latn"]):
        of_both = {look["code"]: look["light"] for look in _looks(channels)}
        assert of_both[ODIA] == line_style(ODIA).color != of_both["ltz_Latn"]


@pytest.mark.parametrize("seen_through", COLOUR_BLIND.values(), ids=COLOUR_BLIND)
@pytest.mark.parametrize("ground", ["light", "dark"])
def test_languages_of_one_colour_are_shades_that_can_be_told(ground, seen_through):
    """Three of one colour, which is as many as a page of thirty has, to every kind of eye."""
    of_colour = [code for code in flores_names() if line_style(code).color == COLOURS[0]][:3]
    seen = np.array([cielab(look[ground], seen_through) for look in _looks(of_colour)])
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    assert distances[np.triu_indices(3, 1)].min() > 8


@pytest.mark.parametrize(
    ("text", "direction"),
    [
        ("عاصمة France هي باريس", "rtl"),
        ("XQuAD: ما هي العاصمة؟", "rtl"),
        ("ଓଡ଼ିଶା", "ltr"),
        ("123", "ltr"),
        ("שלום", "rtl"),
    ],
)
def test_directions(text, direction):
    assert direction_of(text) == direction


def test_a_page_of_a_run_without_one_is_refused_in_one_line(tmp_path):
    write_json(tmp_path / "config.json", {"script": "QAtraining.py", "arguments": {}})
    assert_one_error_line(run(plot_figures.main, tmp_path, "--page"), "a run of QAtraining.py has no page", tmp_path)


def test_a_grid_of_another_run_is_refused(probe, tmp_path):
    folder = made_up_run(tmp_path / "run")
    words = json.loads((folder / GRID_WORDS).read_text(encoding="utf-8"))
    words["prompts"].pop()
    write_json(folder / GRID_WORDS, words)
    with pytest.raises(ValueError, match=r"grid.npz: top_ids is of \(13, 7\)"):
        write_page(folder)


def test_a_name_ends_no_element_of_the_page(probe, tmp_path):
    def elements_of(folder, **arguments):
        run = made_up_run(folder, ARGUMENTS | arguments)
        found = Elements()
        found.feed(write_page(run).read_text(encoding="utf-8"))
        return found

    evil = "</title><script>broken()</script><!-- &lt; \u2028"
    plain = elements_of(tmp_path / "plain", adapter="results/x")
    named = elements_of(tmp_path / "evil", adapter=f"results/{evil.replace('/', chr(0x2215))}", dataset=evil)
    assert named.tags == plain.tags and plain.tags.count("script") >= 2
    assert evil in named.title and evil not in plain.title


class Elements(HTMLParser):
    """The tags of a page in their order, and its title."""

    def __init__(self):
        super().__init__()
        self.tags, self.title = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        if self.tags[-1:] == ["title"]:
            self.title += data
