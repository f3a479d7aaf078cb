"""Figures of language_neurons.py: experts by layer, overlaps, what steering changes, probes, concepts."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.figures.looks import line_style
from utils.figures.style import draw_title, in_our_style, save_figure
from utils.languages import channel_name, short_code
from utils.runs import CONFIG

# The set size of a figure that shows one: the run's largest that is not above this.
SHOWN_K = 1000
CONDITIONS = {
    "base": ("#5A5A5A", "--"),
    "centred": ("#0072B2", "-."),
    "expert": ("#D55E00", "-"),
    "random": ("#009E73", ":"),
}
CONDITION_NAMES = {
    "base": "model's own",
    "centred": "means taken away",
    "expert": "experts forced",
    "random": "random neurons forced",
}


@in_our_style
def draw_neurons(run_dir: Path) -> list[Path]:
    """Draws a run's tables into run_dir/figures as PNG and PDF; returns the PNGs."""
    run_dir = Path(run_dir)
    config = json.loads((run_dir / CONFIG).read_text(encoding="utf-8"))
    command, arguments = config["script"].split()[1], config["arguments"]
    about = f"{Path(arguments['model']).name}" + (
        f" on {' '.join(arguments['corpus'])}" if arguments.get("corpus") else ""
    )
    folder = run_dir / "figures"
    folder.mkdir(exist_ok=True)
    paths = []
    for name, figure in FIGURES[command](run_dir, about):
        paths.append(save_figure(figure, folder / name))
    return paths


def _shown_k(ks) -> int:
    """The largest that is not above SHOWN_K, or the smallest there is."""
    ks = sorted(set(ks))
    return max([k for k in ks if k <= SHOWN_K], default=ks[0])


def _lines(axes: Axes, table: pd.DataFrame, x: str, y: str, lang: str, **look) -> None:
    style = line_style(lang)
    axes.plot(table[x], table[y], color=style.color, linestyle=style.linestyle, label=channel_name(lang), **look)


def _layers(axes: Axes, label: str = "layer") -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10], integer=True))
    axes.margins(x=0.02)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, handlelength=3)


def _label_lowest(panels: np.ndarray, n: int, columns: int) -> None:
    """Panels past the n-th go; the lowest one of each column names its layers."""
    for i, axes in enumerate(panels):
        if i >= n:
            axes.remove()
        elif i + columns >= n:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("layer (0: embeddings)")


def _matrix(figure: Figure, axes: Axes, cells: pd.DataFrame, label: str, written: str = "{:.2f}", top=None) -> None:
    """A square of numbers, each written in its cell; row and column names are language codes."""
    values = cells.to_numpy(dtype=float)
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=top or np.nanmax(values))
    middle = image.get_clim()[1] / 2
    for i, j in np.ndindex(*values.shape):
        if np.isfinite(values[i, j]):
            colour = "black" if values[i, j] > middle else "white"
            axes.text(j, i, written.format(values[i, j]), ha="center", va="center", color=colour, fontsize=7)
    axes.set_xticks(range(len(cells.columns)), [short_code(lang) for lang in cells.columns])
    axes.set_yticks(range(len(cells.index)), [short_code(lang) for lang in cells.index])
    axes.tick_params(length=0)
    figure.colorbar(image, label=label, shrink=0.8)


# find


def _find_figures(run: Path, about: str):
    layers = pd.read_csv(run / "layers.csv")
    overlaps, halves = pd.read_csv(run / "overlap.csv"), pd.read_csv(run / "halves.csv")
    yield "experts", experts_figure(layers, about)
    yield "overlap", overlap_figure(overlaps, halves, about)


def experts_figure(layers: pd.DataFrame, about: str) -> Figure:
    """Where the most expert neurons of each language are: the share of a map's neurons that are among the top k."""
    column = next(name for name in layers.columns if name.startswith("among_top_"))
    modules = list(dict.fromkeys(layers["module"]))
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    panels = figure.subplots(1, len(modules), sharey=True)
    for axes, module in zip(np.atleast_1d(panels), modules):
        of_module = layers[layers["module"] == module]
        for lang, rows in of_module.groupby("language", sort=False):
            _lines(axes, rows.assign(share=rows[column] / rows["neurons"]), "layer", "share", str(lang))
        axes.set_title(module)
        _layers(axes)
    np.atleast_1d(panels)[0].set_ylim(bottom=0)  # of all panels, once all lines are there
    np.atleast_1d(panels)[0].set_ylabel("share of the map's neurons")
    draw_title(figure, f"Where the {column.removeprefix('among_top_')} most expert neurons of a language are", about)
    _legend(figure, np.atleast_1d(panels)[0])
    return figure


def overlap_figure(overlaps: pd.DataFrame, halves: pd.DataFrame, about: str) -> Figure:
    """Share of the top k that two languages have in common; on the diagonal, a language's own two halves."""
    k = _shown_k(overlaps["k"])
    table, langs = overlaps[overlaps["k"] == k], list(halves["language"])
    cells = pd.DataFrame(np.nan, index=langs, columns=langs)
    for row in table.itertuples():
        cells.loc[row.language, row.other] = cells.loc[row.other, row.language] = row.shared / k
    if (halves["k"] == k).all():
        for row in halves.itertuples():
            cells.loc[row.language, row.language] = row.shared / k
    figure = Figure(figsize=(0.55 * len(langs) + 2.6, 0.5 * len(langs) + 1.6), layout="constrained")
    _matrix(figure, figure.subplots(), cells, f"share of the top {k}", top=1)
    expected = table["expected"].iloc[0] / k
    draw_title(figure, "Neurons that two languages share", f"{about}; by chance {expected:.3f}; diagonal: two halves")
    return figure


# steer


def _steer_figures(run: Path, about: str):
    target = json.loads((run / CONFIG).read_text(encoding="utf-8"))["arguments"]["to"]
    about = f"{about}, towards {channel_name(target)}"
    yield "effects", effects_figure(run, about)
    if (run / "lens.csv").exists():
        yield "lens", lens_figure(pd.read_csv(run / "lens.csv"), target, about)


def effects_figure(run: Path, about: str) -> Figure:
    """Against k: distance of translations, retrieval, what is written, losses; experts beside the controls."""
    panels = [("alignment.csv", "cosine distance", "mean"), ("retrieval.csv", "found first", "mean")]
    panels += [("written.csv", "told to be the target", "told")] * (run / "written.csv").exists()
    panels += [("perplexity.csv", "loss, nats a token", "loss")] * (run / "perplexity.csv").exists()
    figure = Figure(figsize=(7.2, 2.6 * (len(panels) + 1) // 2), layout="constrained")
    axes_of = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False).ravel()
    for axes, (name, label, column) in zip(axes_of, panels):
        means = pd.read_csv(run / name).groupby(["condition", "k"])[column].mean().reset_index()
        ks = sorted(means["k"][means["k"] > 0].unique())
        for condition, (colour, dash) in CONDITIONS.items():
            rows = means[means["condition"] == condition].sort_values("k")
            if len(rows) == 1 and condition in ("base", "centred"):
                axes.axhline(rows[column].iloc[0], color=colour, linestyle=dash, label=CONDITION_NAMES[condition])
            elif len(rows):
                axes.plot(rows["k"], rows[column], color=colour, linestyle=dash, marker="o", markersize=3)
                axes.lines[-1].set_label(CONDITION_NAMES[condition])
        axes.set(xscale="log", xlabel="neurons forced", ylabel=label, xticks=ks)
        axes.set_xticklabels([f"{k:,}" for k in ks])
        axes.minorticks_off()
    for axes in axes_of[len(panels) :]:
        axes.remove()
    draw_title(figure, "What forcing neurons changes, mean over all languages or pairs", about)
    _legend(figure, axes_of[0])
    return figure


def lens_figure(lens: pd.DataFrame, target: str, about: str) -> Figure:
    """The target's share by layer, a panel a prompt language, with and without forced neurons."""
    k = _shown_k(lens["k"][lens["k"] > 0]) if (lens["k"] > 0).any() else 0
    langs, layers = list(dict.fromkeys(lens["prompt_lang"])), range(int(lens["layer"].max()) + 1)
    columns = min(3, len(langs))
    figure = Figure(figsize=(7.2, 2 * -(-len(langs) // columns) + 0.8), layout="constrained")
    panels = figure.subplots(-(-len(langs) // columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
    of_target = lens[lens["channel"] == target].set_index(["condition", "k", "prompt_lang", "layer"])["share"]
    for axes, lang in zip(panels, langs):
        for condition, (colour, dash) in CONDITIONS.items():
            if condition != "centred":
                size = 0 if condition == "base" else k
                shares = [of_target.get((condition, size, lang, layer), 0) for layer in layers]
                axes.plot(layers, shares, color=colour, linestyle=dash, label=CONDITION_NAMES[condition])
        axes.set_title(channel_name(lang))
        axes.set_ylim(0, 1)
        _layers(axes, "")
    _label_lowest(panels, len(langs), columns)
    figure.supylabel(f"share of {channel_name(target)}", fontsize=9)
    draw_title(figure, f"The lens at a sentence's last token, {k:,} neurons forced", about)
    _legend(figure, panels[0])
    return figure


# layers

PROBES = {
    "state": ("#D55E00", "-", "states"),
    "shuffled": ("#5A5A5A", ":", "shuffled labels"),
    "embedding": ("#0072B2", "--", "token embeddings alone"),
}


def _layers_figures(run: Path, about: str):
    accuracy = pd.read_csv(run / "accuracy.csv", keep_default_na=False)
    for number, (revision, rows) in enumerate(accuracy.groupby("revision", sort=False)):
        name = "accuracy" + (f"_{number}" if revision else "")
        yield name, accuracy_figure(rows, f"{about} {revision}".strip())
    if accuracy["revision"].nunique() > 1:
        yield "revisions", revisions_figure(accuracy, about)
    confusion = pd.read_csv(run / "confusion.csv", keep_default_na=False)
    yield "confusion", confusion_figure(confusion[confusion["revision"] == confusion["revision"].iloc[-1]], about)


def accuracy_figure(accuracy: pd.DataFrame, about: str) -> Figure:
    """Accuracy by layer with its interval, beside that on shuffled labels and on embeddings alone."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for probe, (colour, dash, label) in PROBES.items():
        rows = accuracy[accuracy["probe"] == probe].sort_values("layer")
        if probe == "embedding":
            axes.axhline(rows["accuracy"].iloc[0], color=colour, linestyle=dash, label=label)
        else:
            axes.fill_between(rows["layer"], rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
            axes.plot(rows["layer"], rows["accuracy"], color=colour, linestyle=dash, label=label)
    axes.set(ylim=(0, 1.02), ylabel="accuracy on unseen sentences")
    _layers(axes, "layer (0: embeddings)")
    draw_title(figure, "How well a linear probe tells a token's language", about)
    _legend(figure, axes)
    return figure


def revisions_figure(accuracy: pd.DataFrame, about: str) -> Figure:
    """Accuracy of the states against the checkpoint, a line for the first, middle and last layer."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    states = accuracy[accuracy["probe"] == "state"]
    revisions, last = list(dict.fromkeys(states["revision"])), int(states["layer"].max())
    for layer, colour in ((0, "#5A5A5A"), (last // 2, "#D55E00"), (last, "#0072B2")):
        rows = states[states["layer"] == layer].set_index("revision").loc[revisions]
        axes.errorbar(
            range(len(rows)),
            rows["accuracy"],
            yerr=[rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]],
            color=colour,
            marker="o",
            markersize=3,
            label=f"layer {layer}",
        )
    axes.set_xticks(range(len(revisions)), revisions, rotation=30, ha="right")
    axes.set(ylim=(0, 1.02), ylabel="accuracy on unseen sentences")
    draw_title(figure, "A linear probe over a pre-training run", about)
    _legend(figure, axes)
    return figure


def confusion_figure(confusion: pd.DataFrame, about: str) -> Figure:
    """What each language's tokens are told to be, at the first, the worst and the last layer."""
    states = confusion[confusion["probe"] == "state"]
    langs = list(dict.fromkeys(states["language"]))
    right = states[states["language"] == states["told"]].groupby("layer")["n"].sum()
    layers = sorted({0, int(right.idxmin()), int(right.index.max())})
    figure = Figure(figsize=(2.6 * len(layers) + 0.8, 0.32 * len(langs) + 1.7), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(layers)))
    for axes, layer in zip(panels, layers):
        cells = states[states["layer"] == layer].pivot(index="language", columns="told", values="n").loc[langs, langs]
        _matrix(figure, axes, cells.div(cells.sum(axis=1), axis=0), "", "{:.2f}", top=1)
        axes.set_title(f"layer {layer}")
        axes.set_xlabel("told")
    panels[0].set_ylabel("language")
    draw_title(figure, "Languages that a linear probe takes for one another", about)
    return figure


# concepts

LATENT = {
    "english": ("#000000", "-", "English name"),
    "target": ("#D55E00", "-", "name in the language asked for"),
    "third": ("#0072B2", "-", "name in a third language"),
    "english_null": ("#000000", ":", "another concept's English name"),
    "target_null": ("#D55E00", ":", "another one's in the language asked for"),
}


def _concepts_figures(run: Path, about: str):
    yield "layers", sharing_figure(pd.read_csv(run / "by_layer.csv"), about)
    yield "pairs", pairs_figure(pd.read_csv(run / "pairs.csv"), about)
    if (run / "latent.csv").exists():
        yield "latent", latent_figure(pd.read_csv(run / "latent.csv"), about)


def sharing_figure(by_layer: pd.DataFrame, about: str) -> Figure:
    """By layer: how many of a concept's experts are there, and how many of them two languages share."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(by_layer["layer"], by_layer["experts"], color="#5A5A5A")
    left.set(title="a concept's experts", ylabel="share of the top k", ylim=(0, None))
    looks = {
        "same_concept": ("#D55E00", "-", "the same concept"),
        "other_concept": ("#0072B2", "--", "two concepts"),
        "null": ("#5A5A5A", ":", "concepts dealt out anew"),
    }
    for column, (colour, dash, label) in looks.items():
        right.plot(by_layer["layer"], by_layer[column], color=colour, linestyle=dash, label=label)
    right.set(title="shared by two languages", ylim=(0, None))
    for axes in (left, right):
        _layers(axes)
    draw_title(figure, "Where the neurons of a concept are, and those that two languages share", about)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=3)
    return figure


def pairs_figure(pairs: pd.DataFrame, about: str) -> Figure:
    """What each two languages share of a concept's neurons, above what they share of different concepts'."""
    langs = list(dict.fromkeys([*pairs["language"], *pairs["other"]]))
    cells = pd.DataFrame(np.nan, index=langs, columns=langs)
    for row in pairs.itertuples():
        cells.loc[row.language, row.other] = cells.loc[row.other, row.language] = row.above_other
    figure = Figure(figsize=(0.55 * len(langs) + 2.6, 0.5 * len(langs) + 1.6), layout="constrained")
    _matrix(figure, figure.subplots(), cells, "share of the top k, above other concepts", "{:.3f}")
    draw_title(figure, "A concept's neurons that two languages share", about)
    return figure


def latent_figure(latent: pd.DataFrame, about: str) -> Figure:
    """Probability of a name's first token by layer, a panel a language asked for."""
    pairs = list(dict.fromkeys(zip(latent["source"], latent["target"])))
    columns = min(3, len(pairs))
    figure = Figure(figsize=(7.2, 2 * -(-len(pairs) // columns) + 1.4), layout="constrained")
    panels = figure.subplots(-(-len(pairs) // columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (source, target) in zip(panels, pairs):
        of_pair = latent[(latent["source"] == source) & (latent["target"] == target)]
        for name, (colour, dash, label) in LATENT.items():
            rows = of_pair[of_pair["name"] == name]
            axes.fill_between(rows["layer"], rows["low"], rows["high"], color=colour, alpha=0.12, linewidth=0)
            axes.plot(rows["layer"], rows["prob"], color=colour, linestyle=dash, label=label)
        axes.set_title(f"{channel_name(source)} to {channel_name(target)}")
        _layers(axes, "")
    panels[0].set_ylim(bottom=0)
    _label_lowest(panels, len(pairs), columns)
    figure.supylabel("probability of the name's first token", fontsize=9)
    draw_title(figure, "Asked for a name: which language's does each layer hold?", about)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=2)
    return figure


FIGURES: dict[str, Callable] = {
    "find": _find_figures,
    "steer": _steer_figures,
    "layers": _layers_figures,
    "concepts": _concepts_figures,
}
