import ast
import itertools
import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.mathtext import MathTextParser

import plot_figures
from utils.figures import grids, layers, lenses, neurons, tuning
from utils.figures.layers import draw_probe_run, heatmap_figure, lines_figure, overview_figure
from utils.figures.looks import COLOURS, COMMON_LANGUAGES, INTO, IS, channels_that_matter, describe_run, line_style
from utils.figures.tuning import changes_figure, draw_changes, gains_figure, transfer_figure, tuning_figure
from utils.languages import ENGLISH, OTHER_CHANNELS, channel_name, flores_names, language_code
from utils.lens.published import read_published

PROJECT_DIR = Path(__file__).resolve().parents[2]
NULL = 0.02
ODIA, HINDI, FRENCH, WELSH, BRETON = "ory_Orya", "hin_Deva", "fra_Latn", "cym_Latn", "bre_Latn"
CHANNELS = [ENGLISH, ODIA, HINDI, FRENCH, WELSH, BRETON, *OTHER_CHANNELS]
ARGUMENTS = {"model": "bigscience/bloomz-560m", "dataset": "sample_qa", "split": "test", "position": "last"}


def made_up_table(prompt_langs=(ODIA, HINDI), n_layers=6, stderr=0.01, channels=CHANNELS, tokens=50.0) -> pd.DataFrame:
    """First unknown text, then English, with the prompt's own language at the end; Welsh is below its null."""
    depth = np.linspace(0, 1, n_layers + 1)
    rows = []
    for prompt_lang in prompt_langs:
        prob = {channel: np.full(n_layers + 1, NULL) for channel in channels}
        prob |= {"und": 0.5 * (1 - depth) + NULL, ENGLISH: 2 * depth * (1 - depth), WELSH: np.full_like(depth, 0.001)}
        prob |= {FRENCH: NULL + 0.1 * depth, BRETON: NULL + 0.2 * depth, prompt_lang: 0.6 * depth**4}
        for channel in channels:
            for layer in range(n_layers + 1):
                share = prob[channel][layer]
                ends = (share - 1.96 * stderr, share + 1.96 * stderr)
                rows.append((prompt_lang, layer, channel, share, *ends, NULL, tokens, 24))
    columns = ["prompt_lang", "layer", "channel", "share", "share_low", "share_high", "null_share", "tokens", "n"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def finished_run(tmp_path):
    """Function from made_up_table's arguments to a finished run's folder."""

    def write(name="run", **changes) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(
            json.dumps({"script": "probe_logit_lens.py", "arguments": ARGUMENTS}), encoding="utf-8"
        )
        made_up_table(**changes).to_csv(folder / "language_probs.csv", index=False)
        (folder / "metrics.json").write_text("{}", encoding="utf-8")
        return folder

    return write


def in_new_process(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_DIR, capture_output=True, text=True, check=True
    ).stdout


# --- a language looks the same everywhere ----------------------------------------------------------------------


def test_styles_do_not_depend_on_the_process():
    codes = [ENGLISH, ODIA, WELSH, BRETON, "und"]
    code = f"from utils.figures.looks import line_style; print([line_style(code) for code in {codes}])"
    assert in_new_process(code).strip() == str([line_style(code) for code in codes])


def test_all_languages_and_other_channels_look_different():
    channels = [*flores_names(), *OTHER_CHANNELS]
    assert len({line_style(channel) for channel in channels}) == len(channels) == 208


def test_common_languages_are_known_and_carry_no_marker():
    common = [code for codes in COMMON_LANGUAGES.values() for code in codes.split()]
    assert set(common) < set(flores_names()) and len(common) == 3 * len(COLOURS)
    assert not any(line_style(code).marker for code in [ENGLISH, *common])
    assert line_style(WELSH).marker and line_style(BRETON).marker


@pytest.mark.parametrize(
    "languages",
    ["en hi or ru de zh", "en es de el ru tr ar vi th zh hi ro", "en as bn gu hi kn ml mr or pa ta te ur"],
)
def test_languages_of_one_data_set_have_colours_of_their_own(languages):
    codes = [language_code(language) for language in languages.split()]
    assert len({line_style(code).color for code in codes}) == len(codes)


# Linear RGB as eyes without one kind of cone see it: Machado, Oliveira and Fernandes 2009, severity 1.
COLOUR_BLIND = {
    "none": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
XYZ_OF_RGB = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def cielab(colour: str, seen_through) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ_OF_RGB @ np.clip(np.array(seen_through) @ linear, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen_through", COLOUR_BLIND.values(), ids=COLOUR_BLIND)
def test_colours_stay_apart_to_colour_blind_eyes(seen_through):
    seen = np.array([cielab(colour, seen_through) for colour in ("#000000", *COLOURS)])
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    assert distances[np.triu_indices(len(seen), 1)].min() > 15  # a just noticeable difference is about 2.3


# --- the channels that matter ----------------------------------------------------------------------------------


def test_own_language_and_english_always_matter():
    table = made_up_table([ODIA]).assign(share=0.0)
    assert channels_that_matter(table, [ODIA, ENGLISH], 8, 0.01) == [ODIA, ENGLISH]


def test_channels_come_by_their_excess_and_none_from_below_the_null():
    table = made_up_table([ODIA])
    assert channels_that_matter(table, [ODIA, ENGLISH], 8, 0.01) == [ODIA, ENGLISH, BRETON, FRENCH, "und"]
    assert channels_that_matter(table, [ODIA, ENGLISH], 3, 0.01) == [ODIA, ENGLISH, BRETON, "und"]


def test_a_language_of_a_token_or_two_does_not_matter():
    table = made_up_table([ODIA])
    table.loc[table["channel"].isin([BRETON, "und"]), "tokens"] = 1.5
    assert channels_that_matter(table, [ODIA, ENGLISH], 8, 0.01) == [ODIA, ENGLISH, FRENCH, "und"]


def test_a_prompt_language_without_a_channel_is_no_channel():
    table = made_up_table([HINDI], channels=[channel for channel in CHANNELS if channel != HINDI])
    assert channels_that_matter(table, [HINDI, ENGLISH], 8, 0.01)[0] == ENGLISH
    assert lines_figure(table, HINDI).get_suptitle().startswith("The prompt is in Hindi")
    translated = lines_figure(table, HINDI, says=INTO)
    assert translated.get_suptitle().startswith("The prompt asks for a translation into Hindi")
    own = lines_figure(table.assign(prompt_lang="text-1"), "text-1", says=IS)
    assert own.get_suptitle().startswith("The prompt is text-1")


# --- what is in a figure ---------------------------------------------------------------------------------------


def test_lines_have_the_tables_numbers_their_null_and_their_band():
    figure = lines_figure(made_up_table(), ODIA)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    shown = [ODIA, ENGLISH, BRETON, FRENCH, "und"]
    assert set(lines) == {*shown, *(f"null of {channel}" for channel in shown)}
    assert lines[ENGLISH].get_xydata()[3] == pytest.approx([3, 0.5])
    assert set(lines[f"null of {ENGLISH}"].get_ydata()) == {NULL}
    assert lines[f"null of {ENGLISH}"].get_color() == lines[ENGLISH].get_color() == line_style(ENGLISH).color
    assert lines[ODIA].get_linewidth() > lines[ENGLISH].get_linewidth()
    band = figure.axes[0].collections[shown[::-1].index(ENGLISH)].get_paths()[0].vertices
    assert sorted(set(band[band[:, 0] == 3][:, 1].round(6))) == [0.4804, 0.5196]  # 0.5 +- 1.96 * 0.01


def test_a_curve_that_its_null_explains_is_faint():
    table = made_up_table()
    lines = {line.get_label(): line for line in lines_figure(table, ODIA).axes[0].lines}
    assert lines[ENGLISH].get_alpha() == 1
    english = table["channel"] == ENGLISH
    table.loc[english, "null_share"] = table.loc[english, "share_low"] + 1e-6
    lines = {line.get_label(): line for line in lines_figure(table, ODIA).axes[0].lines}
    assert lines[ENGLISH].get_alpha() < 0.5 and lines[ODIA].get_alpha() == 1


def test_a_share_of_few_tokens_is_crossed():
    table = made_up_table()
    table.loc[(table["channel"] == FRENCH) & (table["layer"] == 4), "tokens"] = 1.2
    axes = lines_figure(table, ODIA).axes[0]
    (crosses,) = [line for line in axes.lines if line.get_label() == "few tokens"]
    assert list(crosses.get_xdata()) == [4] and crosses.get_color() == line_style(FRENCH).color
    crosses = heatmap_figure(table, ODIA).axes[0].collections[1].get_offsets()
    assert crosses.tolist() == [[4, 3.5]]  # French is the fourth row


def test_one_cluster_has_no_band():
    figure = lines_figure(made_up_table(stderr=np.nan), ODIA)
    assert not any(len(band.get_paths()) for band in figure.axes[0].collections)
    assert "95% interval" not in [text.get_text() for text in figure.legends[0].get_texts()]


def test_heatmap_shows_the_share_above_the_null():
    figure = heatmap_figure(made_up_table(), ODIA)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["Odia", "English", BRETON, "French", "unknown text"]
    cells = figure.axes[0].collections[0].get_array()
    assert cells.shape == (5, 7)
    assert cells[1, 3] == pytest.approx(0.5 - NULL)
    assert cells[4, 0] == pytest.approx(0.5)


@pytest.mark.parametrize("n_prompt_langs", [1, 2, 5, 13])
@pytest.mark.parametrize("n_layers", [4, 80])
def test_overview_has_a_panel_a_prompt_language_and_a_legend_that_covers_none(n_prompt_langs, n_layers):
    prompt_langs = [language_code(code) for code in "or hi en as bn gu kn ml mr pa ta te ur".split()][:n_prompt_langs]
    table = made_up_table(prompt_langs, n_layers, channels=list(dict.fromkeys([*CHANNELS, *prompt_langs])))
    figure = overview_figure(table, "bloomz-560m on sample_qa")
    figure.draw_without_rendering()
    assert [axes.get_title() for axes in figure.axes] == [f"prompt in {channel_name(code)}" for code in prompt_langs]
    legend = figure.legends[0].get_window_extent()
    covered = [axes.get_title() for axes in figure.axes if axes.get_tightbbox().overlaps(legend)]
    assert not covered and not figure._suptitle.get_window_extent().overlaps(legend)
    assert figure.bbox.y0 <= legend.y0 and legend.y1 <= figure.bbox.y1 and legend.x1 <= figure.bbox.x1


def test_descriptions_of_runs():
    table = made_up_table()
    plain = ARGUMENTS | {"prompt": "plain", "adapter": None}
    assert describe_run(plain, table) == "bloomz-560m on sample_qa test, last prompt token, n = 24 a language"
    adapted = ARGUMENTS | {"adapter": "results/QAtraining-or", "position": "answer", "prompt": "short_span"}
    one = table[table["prompt_lang"] == ODIA].assign(n=1190)
    expected = "bloomz-560m + QAtraining-or on sample_qa test, short_span prompt, answer tokens, n = 1,190"
    assert describe_run(adapted, one) == expected


# --- a run's figures -------------------------------------------------------------------------------------------


def test_a_run_is_drawn_as_png_and_pdf(finished_run, capsys):
    folder = finished_run()
    assert plot_figures.main([str(folder)]) == 0
    names = ["overview", "lines_or", "heatmap_or", "lines_hi", "heatmap_hi"]
    files = [str(folder / "figures" / f"{name}.{suffix}") for name in names for suffix in ("png", "pdf")]
    assert capsys.readouterr().out.split() == files
    assert sorted(map(str, (folder / "figures").iterdir())) == sorted(files)
    assert all(Path(file).read_bytes().startswith((b"\x89PNG", b"%PDF")) for file in files)


FORMULA = r"$x_$ \frac{ $$ % ^ &"


def test_a_run_s_name_is_no_formula_whatever_the_reader_s_own_settings(finished_run, monkeypatch):
    folder = finished_run(prompt_langs=[ODIA], n_layers=4)
    config = {"script": "probe_logit_lens.py", "arguments": ARGUMENTS | {"model": f"a/{FORMULA}", "adapter": FORMULA}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    titles = []

    def save(figure, path):
        titles.append(figure.get_suptitle())
        return really(figure, path)

    really = layers.save_figure
    monkeypatch.setattr(layers, "save_figure", save)
    monkeypatch.setattr(MathTextParser, "parse", lambda *args, **kwargs: pytest.fail("a formula"))
    with matplotlib.rc_context({"text.usetex": True, "text.parse_math": True}):
        paths = draw_probe_run(folder)
    assert len(titles) == len(paths) == 3
    assert all(f"{FORMULA} + {FORMULA} on sample_qa" in title.replace("\n", " ") for title in titles)


def test_a_token_with_a_dollar_sign_is_shown_as_it_is():
    assert grids._cut("$x$") == "$x$" and len(grids._cut("$" * 99)) == grids.CHARACTERS_SHOWN


@pytest.mark.parametrize("module", [grids, layers, lenses, neurons, tuning], ids=lambda module: module.__name__)
def test_what_writes_figures_draws_in_our_style(module):
    """In which no text is a formula. What is drawn by another function of ours is in that one's style."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}

    def calls(node):
        return {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}

    styled = {name for name, node in functions.items() if "in_our_style" in map(ast.unparse, node.decorator_list)}
    inner = {name for node in functions.values() for name in calls(node) if name in functions}
    writing = {name for name, node in functions.items() if "save_figure" in calls(node)}
    assert writing <= styled | inner | {"draw_grid"}  # which draw_probe_run calls, and a test


def test_the_same_tables_give_the_same_bytes(finished_run):
    runs = [finished_run(name, prompt_langs=[ODIA], n_layers=4) for name in ("first", "second")]
    for run in runs:
        draw_probe_run(run)
    first, second = ([path.read_bytes() for path in sorted((run / "figures").iterdir())] for run in runs)
    assert len(first) == 6 and first == second


@pytest.mark.parametrize("name", ["config.json", "language_probs.csv", "metrics.json"])
def test_an_unfinished_run_is_refused_in_one_line(finished_run, capsys, name):
    folder = finished_run()
    (folder / name).unlink()
    assert plot_figures.main([str(folder)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and str(folder) in message and f"no {name}" in message
    assert not (folder / "figures").exists()


def test_a_folder_that_is_no_run_is_refused_in_one_line(finished_run, capsys):
    folder = finished_run()
    for content, says in (
        ("{", "not JSON"),
        ('{"script": "QAinference.py"}', "a run of QAinference.py has no figures"),
    ):
        (folder / "config.json").write_text(content, encoding="utf-8")
        assert plot_figures.main([str(folder)]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and str(folder) in message and says in message


def test_a_run_is_drawn_before_its_metrics_are_written(finished_run):
    folder = finished_run(prompt_langs=[ODIA], n_layers=4)
    (folder / "metrics.json").unlink()
    assert [path.stem for path in draw_probe_run(folder)] == ["overview", "lines_or", "heatmap_or"]


def test_a_table_without_a_column_is_refused(finished_run):
    folder = finished_run()
    made_up_table().drop(columns="null_share").to_csv(folder / "language_probs.csv", index=False)
    with pytest.raises(ValueError, match="no column null_share"):
        draw_probe_run(folder)


def test_drawing_loads_no_model_library_and_no_pyplot(finished_run):
    folder = finished_run(prompt_langs=[ODIA], n_layers=4)
    code = f"import sys, plot_figures; assert plot_figures.main([{str(folder)!r}]) == 0; print(*sys.modules)"
    loaded = set(in_new_process(code).split())
    assert "utils.figures.layers" in loaded
    assert not loaded & {"torch", "transformers", "matplotlib.pyplot"}


# --- the paper's own curves, and changes -----------------------------------------------------------------------


def test_the_published_curves_are_those_that_are_known_of_them():
    table = read_published()
    assert sorted(table["step"].unique()) == [0, 13, 26, 39, 52, 60] and table["channel"].nunique() == 94
    assert sorted(table["layer"].unique()) == list(range(31)) and set(table["prompt_lang"]) == {
        ODIA,
        "deu_Latn",
        ENGLISH,
    }
    assert len(table) == 3 * 6 * 31 * 94
    cells = table.set_index(["prompt_lang", "layer", "step", "channel"])["prob"]
    last = cells[ODIA, 30]
    for channel, before, after in [
        (ENGLISH, 0.398, 0.365),
        ("ben_Beng", 0.271, 0.038),
        (ODIA, 0.103, 0.362),
        ("zho_Hans", 0.101, 0.168),
    ]:
        assert (round(last[0, channel], 3), round(last[60, channel], 3)) == (before, after)
    # What is suppressed is Bengali, and most of it by step 13.
    falls = (last[60] - last[0]).sort_values()
    assert falls.index[0] == "ben_Beng"
    assert last[0, "ben_Beng"] - last[13, "ben_Beng"] > 0.75 * (last[0, "ben_Beng"] - last[60, "ben_Beng"])
    # A moving average of weight 1/30 that started at zero.
    sums = table.groupby(["prompt_lang", "step", "layer"])["prob"].sum()
    assert sums.mean() == pytest.approx(1 - (29 / 30) ** 150, abs=1e-4)


def test_the_published_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(plot_figures, "PROJECT_DIR", tmp_path)
    assert plot_figures.main(["published"]) == 0
    names = sorted(path.name for path in (tmp_path / "results" / "published").iterdir())
    assert names == [f"published_{lang}.{suffix}" for lang in ("de", "en", "or") for suffix in ("pdf", "png")]
    figure = tuning_figure(read_published(), ODIA, "step")
    assert [axes.get_title() for axes in figure.axes] == ["before tuning", *(f"step {n}" for n in (13, 26, 39, 52, 60))]
    for axes in figure.axes:
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert {ODIA, ENGLISH, "ben_Beng", "zho_Hans"} <= lines.keys()
    assert lines[ODIA].get_ydata()[-1] == pytest.approx(0.362, abs=5e-4)


def test_a_figure_of_changes_has_the_greatest_and_marks_those_that_are_no_chance(tmp_path):
    table = made_up_table(prompt_langs=(ODIA,)).assign(q=1.0)
    table["change"] = np.where(table["channel"] == FRENCH, -0.2 * table["layer"] / 6, 0.0)
    table.loc[(table["channel"] == FRENCH) & (table["layer"] >= 4), "q"] = 0.01
    figure = changes_figure(table, ODIA, "one → other")
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [channel_name(code) for code in (ODIA, ENGLISH, FRENCH)]
    dots = axes.collections[1].get_offsets()
    assert sorted(map(tuple, dots.tolist())) == [(layer, 2.5) for layer in (4, 5, 6)]
    assert axes.collections[0].get_array().reshape(3, 7)[2].tolist() == pytest.approx([-0.2 * i / 6 for i in range(7)])
    assert "n = 24" in figure.get_suptitle()
    paths = draw_changes(table.assign(change=0.0), tmp_path / "figures" / "changes", "nothing")
    assert [path.name for path in paths] == ["changes_or.png"] and paths[0].stat().st_size > 5000


def test_a_figure_of_transfer_says_each_change_and_score():
    rows = [("or", ODIA, 0.02, 0.06, 0.04, 0.01, 0.07), ("or", HINDI, 0.1, 0.05, -0.05, -0.1, 0.01)]
    rows += [("de", HINDI, 0.1, 0.02, -0.08, -0.1, -0.01)]
    table = pd.DataFrame(rows, columns="training lang before after change low high".split())
    table = table.assign(n=24, n_contexts=12, null_runs=0, excess_low=float("nan"), excess_high=float("nan"))
    axes = transfer_figure(table).axes[0]
    texts = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "+4.0*\n6.0", (1, 0): "-5.0\n5.0", (1, 1): "-8.0*\n2.0"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["Odia", "Hindi"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["or", "de"]
    beside_nulls = table.assign(null_runs=3, excess_low=[-0.01, -0.2, -0.1], excess_high=[0.05, -0.02, 0.02])
    figure = transfer_figure(beside_nulls)
    texts = [text.get_text().split("\n")[0] for text in figure.axes[0].texts]
    assert texts == ["+4.0", "-5.0", "-8.0"] and "beyond null runs too" in figure.axes[1].get_ylabel()
    both = beside_nulls.assign(excess_low=[0.01, -0.2, float("nan")], excess_high=[0.05, -0.02, float("nan")])
    both = both.assign(high=[0.07, -0.01, -0.01], null_runs=[3, 3, 0])
    texts = [text.get_text().split("\n")[0] for text in transfer_figure(both).axes[0].texts]
    assert texts == ["+4.0*", "-5.0*", "-8.0"]  # the last one is a null run's


def test_names_of_close_points_cover_neither_each_other_nor_a_point():
    names = ["or", "en2ru_nllb", "en", "de"]
    table = pd.DataFrame({"training": names, "lang": ODIA, "channels": ENGLISH, "null_change": -0.01})
    table = table.assign(change=[-0.26, -0.272, -0.262, -0.255], low=-0.5, high=0.1, null_runs=3)
    table = table.assign(gain=[0.06, 0.0633, 0.0605, 0.062], gain_low=0.01, gain_high=0.1, n=60, n_contexts=10)
    axes = gains_figure(table).axes[0]
    assert [text.get_text() for text in axes.texts] == names
    places = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(places, 2))
    marks = axes.transData.transform(list(zip(-0.01 - table["change"], 100 * table["gain"])))
    assert not any(place.contains(*mark) for place in places for mark in marks)
    assert "null" in axes.get_xlabel()
    alone = gains_figure(table.assign(null_runs=0, null_change=float("nan"))).axes[0]
    assert [text.get_text() for text in alone.texts] == names and "null" not in alone.get_xlabel()


def test_names_that_would_meet_on_one_line_are_not_read_as_one():
    table = pd.DataFrame({"training": ["en2ru_nllb", "en"], "lang": ODIA, "channels": ENGLISH, "null_change": -0.01})
    table = table.assign(change=[-0.2, -0.26], low=-0.5, high=0.1, null_runs=3, n=60, n_contexts=10)
    axes = gains_figure(table.assign(gain=0.06, gain_low=0.01, gain_high=0.1)).axes[0]
    first, second = (text.get_window_extent() for text in axes.texts)
    assert second.x0 - first.x1 > 4 or second.y0 >= first.y1 or second.y1 <= first.y0
