"""Redraws the figures of finished runs from their tables; loads no model.

    python plot_figures.py results/RUN
    python plot_figures.py results/RUN --page
    python plot_figures.py published

RUN is a folder that probe_logit_lens.py, language_neurons.py, compare_runs.py (of two probes), fit_lens.py,
QAtraining.py or reproduce_paper.py wrote; the figures are the ones that the script itself draws, as PNG and as PDF, in
RUN/figures/ (of a training or a fit: loss.png). --page writes RUN/page.html instead, of a probe, or of a comparison of
two probes (both side by side, and what changed): one file that any browser opens, without a network. `published` draws
the curves that the paper's authors published for bloomz-7b1 tuned on German, into results/published/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.command_line import run
from utils.experiments import presets
from utils.lens.probe_runs import PROBABILITIES, require_codes, require_files
from utils.outside import read_json
from utils.runs import (
    CONFIG,
    DEV_LOG,
    HELD_OUT_LOSS,
    METRICS,
    PROJECT_DIR,
    TRAIN_LOG,
    read_configuration,
    read_table,
    require_finished,
)

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED = Path("published")
CHANGES = ("prompt_lang", "layer", "channel", "before", "after", "change", "low", "high", "p", "q", "n")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run, or `published`")
    parser.add_argument(
        "--page", action="store_true", help="RUN/page.html, to look at in a browser, instead of figures"
    )
    return run(plot, parser.parse_args(argv))


def plot(args: argparse.Namespace) -> None:
    draws = [drawing(run_dir, args.page) for run_dir in args.runs]  # all are looked at before any is drawn
    for draw, run_dir in zip(draws, args.runs):
        for path in draw(run_dir):
            print(path)
            if path.with_suffix(".pdf").exists():
                print(path.with_suffix(".pdf"))


def drawing(run_dir: Path, page: bool = False) -> Callable[[Path], list[Path]]:
    """What draws a run's figures, or its page. Raises ValueError for a folder that has none."""
    if run_dir == PUBLISHED and not page:
        return draw_curves_of_the_paper
    require_files(run_dir, CONFIG)
    config = read_json(run_dir / CONFIG)
    script = config.get("script") if isinstance(config, dict) else None
    if not isinstance(script, str):
        raise ValueError(f"{run_dir / CONFIG}: not the configuration of a run")
    drawings, what = (PAGES, "page") if page else (DRAWINGS, "figures")
    if script not in drawings:
        raise ValueError(f"{run_dir}: a run of {script} has no {what}; choose one of {', '.join(drawings)}")
    draw, tables = drawings[script]
    require_files(run_dir, *tables)
    if METRICS in tables:
        require_finished(run_dir)
    return draw


def draw_curves_of_the_paper(_: Path) -> list[Path]:
    from utils.figures.tuning import draw_published

    return draw_published(PROJECT_DIR / "results" / PUBLISHED)


def draw_probe(run_dir: Path) -> list[Path]:
    from utils.figures.layers import draw_probe_run

    return draw_probe_run(run_dir)


def draw_comparison(run_dir: Path) -> list[Path]:
    from utils.figures.tuning import draw_changes

    arguments = read_configuration(run_dir)["arguments"]
    runs = " → ".join(Path(arguments[side]).name for side in ("before", "after"))
    return draw_changes(read_changes(run_dir), run_dir / "figures" / "changes", runs)


def read_changes(run_dir: Path) -> pd.DataFrame:
    """A comparison's changes.csv. Raises ValueError for one that lacks columns, or has no channels' codes."""
    path = run_dir / "changes.csv"
    table = read_table(path, keep_default_na=False, na_values=dict.fromkeys(("low", "high", "p", "q"), ""))
    if missing := [column for column in CHANGES if column not in table]:
        raise ValueError(f"{path}: no column {', '.join(missing)}; it has {', '.join(table)}")
    require_codes(table, path)
    return table


def page_of_probe(run_dir: Path) -> list[Path]:
    from utils.figures.page import write_page

    return [write_page(run_dir)]


def page_of_comparison(run_dir: Path) -> list[Path]:
    from utils.figures.page import write_comparison_page

    arguments = read_configuration(run_dir)["arguments"]
    sides = Path(arguments["before"]), Path(arguments["after"])
    return [write_comparison_page(run_dir, *sides, read_changes(run_dir))]


def draw_neurons(run_dir: Path) -> list[Path]:
    from utils.figures import neurons

    return neurons.draw_neurons(run_dir)


def draw_ablation(run_dir: Path) -> list[Path]:
    from utils.figures import ablation

    return ablation.draw_ablation(run_dir)


def draw_training(run_dir: Path) -> list[Path]:
    from utils.figures.tuning import draw_loss

    tables = [run_dir / name for name in (TRAIN_LOG, DEV_LOG)]
    log, dev = (read_table(path) if path.exists() else None for path in tables)
    for path, table, columns in zip(tables, (log, dev), (("step", "loss", "gradient_norm"), ("step", "loss"))):
        if table is not None and not {*columns} <= {*table.select_dtypes("number")}:
            raise ValueError(f"{path}: no numbers in {', '.join(columns)}; it has {', '.join(map(str, table))}")
    draw_loss(log, run_dir / "loss.png", dev)
    return [run_dir / "loss.png"]


def draw_fit_of_lens(run_dir: Path) -> list[Path]:
    from utils.figures.lenses import draw_fit

    return draw_fit(run_dir)


def draw_experiment(run_dir: Path) -> list[Path]:
    from utils.experiments import drawings

    return [run_dir / path for path in drawings.draw_all(run_dir)]


# script -> what draws its runs' figures, and the files that it needs
DRAWINGS = {
    "probe_logit_lens.py": (draw_probe, (PROBABILITIES, METRICS)),
    "language_neurons.py find": (draw_neurons, ("layers.csv", "overlap.csv", "halves.csv", METRICS)),
    "language_neurons.py steer": (draw_neurons, ("alignment.csv", "retrieval.csv", METRICS)),
    "language_neurons.py layers": (draw_neurons, ("accuracy.csv", "confusion.csv", METRICS)),
    "language_neurons.py concepts": (draw_neurons, ("by_layer.csv", "pairs.csv", METRICS)),
    "ablate_language.py": (draw_ablation, ("changes.csv", "perplexity.csv", METRICS)),
    "compare_runs.py": (draw_comparison, ("changes.csv", METRICS)),
    "fit_lens.py": (draw_fit_of_lens, (HELD_OUT_LOSS, METRICS)),
    "QAtraining.py": (draw_training, (TRAIN_LOG, METRICS)),
    "reproduce_paper.py": (draw_experiment, (presets.EXPERIMENT, "transfer.csv", "suppression.csv")),
}

PAGES = {
    "probe_logit_lens.py": (page_of_probe, (PROBABILITIES, METRICS)),
    "compare_runs.py": (page_of_comparison, ("changes.csv", METRICS)),
}


if __name__ == "__main__":
    sys.exit(main())
