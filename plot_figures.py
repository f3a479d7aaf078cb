"""Redraws the figures of finished probe runs from their tables; loads no model.

    python plot_figures.py results/RUN
    python plot_figures.py published

RUN is a folder that probe_logit_lens.py wrote. RUN/figures/ gets, as PNG and as PDF, an overview of all the
prompt languages and, for each of them, the probabilities of the languages that matter against the layer
(lines_LANG) and as a heat map (heatmap_LANG). `published` draws the curves that the paper's authors published for
bloomz-7b1 tuned on German, into results/published/.
"""

import argparse
import sys
from pathlib import Path

from utils.command_line import run
from utils.figures import PROBABILITIES, draw_probe_run, draw_published, require_files
from utils.results import CONFIG, METRICS, PROJECT_DIR

PUBLISHED = Path("published")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished probe run, or `published`"
    )
    return run(plot, parser.parse_args(argv))


def plot(args):
    for run_dir in args.runs:
        if run_dir != PUBLISHED:
            require_files(run_dir, CONFIG, PROBABILITIES, METRICS)
    for run_dir in args.runs:
        drawn = draw_published(PROJECT_DIR / "results" / PUBLISHED) if run_dir == PUBLISHED else draw_probe_run(run_dir)
        for path in drawn:
            print(path)
            print(path.with_suffix(".pdf"))


if __name__ == "__main__":
    sys.exit(main())
