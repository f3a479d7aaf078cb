"""Redraws the figures of finished runs from their tables; loads no model.

    python plot_figures.py results/RUN
    python plot_figures.py published

RUN is a folder that probe_logit_lens.py, compare_runs.py (of two probes), fit_lens.py, QAtraining.py or
reproduce_paper.py wrote; the figures are the ones that the script itself draws, as PNG and as PDF, in RUN/figures/
(of a training or a fit: loss.png).
`published` draws the curves that the paper's authors published for bloomz-7b1 tuned on German, into
results/published/.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.command_line import run
from utils.experiments import presets
from utils.lens.probe_runs import PROBABILITIES, require_files
from utils.runs import CONFIG, DEV_LOG, HELD_OUT_LOSS, METRICS, PROJECT_DIR, TRAIN_LOG

PUBLISHED = Path("published")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run, or `published`")
    return run(plot, parser.parse_args(argv))


def plot(args: argparse.Namespace) -> None:
    draws = [drawing(run_dir) for run_dir in args.runs]  # all are looked at before any is drawn
    for draw, run_dir in zip(draws, args.runs):
        for path in draw(run_dir):
            print(path)
            if path.with_suffix(".pdf").exists():
                print(path.with_suffix(".pdf"))


def drawing(run_dir: Path) -> Callable[[Path], list[Path]]:
    """What draws a run's figures. Raises ValueError for a folder that has none."""
    if run_dir == PUBLISHED:
        return draw_curves_of_the_paper
    require_files(run_dir, CONFIG)
    try:
        script = json.loads((run_dir / CONFIG).read_text(encoding="utf-8"))["script"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{run_dir / CONFIG}: not JSON, or no run's") from None
    if script not in DRAWINGS:
        raise ValueError(f"{run_dir}: a run of {script} has no figures; choose one of {', '.join(DRAWINGS)}")
    draw, tables = DRAWINGS[script]
    require_files(run_dir, *tables)
    return draw


def draw_curves_of_the_paper(_: Path) -> list[Path]:
    from utils.figures.tuning import draw_published

    return draw_published(PROJECT_DIR / "results" / PUBLISHED)


def draw_probe(run_dir: Path) -> list[Path]:
    from utils.figures.layers import draw_probe_run

    return draw_probe_run(run_dir)


def draw_comparison(run_dir: Path) -> list[Path]:
    import pandas as pd

    from utils.figures.tuning import draw_changes

    table = pd.read_csv(run_dir / "changes.csv", keep_default_na=False)
    arguments = json.loads((run_dir / CONFIG).read_text(encoding="utf-8"))["arguments"]
    runs = " → ".join(Path(arguments[side]).name for side in ("before", "after"))
    return draw_changes(table, run_dir / "figures" / "changes", runs)


def draw_training(run_dir: Path) -> list[Path]:
    import pandas as pd

    from utils.figures.tuning import draw_loss

    tables = [run_dir / name for name in (TRAIN_LOG, DEV_LOG)]
    log, dev = (pd.read_csv(path) if path.exists() else None for path in tables)
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
    "compare_runs.py": (draw_comparison, ("changes.csv", METRICS)),
    "fit_lens.py": (draw_fit_of_lens, (HELD_OUT_LOSS, METRICS)),
    "QAtraining.py": (draw_training, (TRAIN_LOG, METRICS)),
    "reproduce_paper.py": (draw_experiment, (presets.EXPERIMENT, "transfer.csv", "suppression.csv")),
}


if __name__ == "__main__":
    sys.exit(main())
