"""Redraws the figures of finished probe runs from their tables; loads no model.

    python plot_figures.py results/RUN

RUN is a folder that probe_logit_lens.py wrote. RUN/figures/ gets, as PNG and as PDF, an overview of all the
prompt languages and, for each of them, the probabilities of the languages that matter against the layer
(lines_LANG) and as a heat map (heatmap_LANG).
"""

import argparse
import sys
from pathlib import Path

from utils.command_line import run
from utils.figures import PROBABILITIES, draw_probe_run, require_files
from utils.results import CONFIG, METRICS


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished probe run")
    return run(plot, parser.parse_args(argv))


def plot(args):
    for run_dir in args.runs:
        require_files(run_dir, CONFIG, PROBABILITIES, METRICS)
    for run_dir in args.runs:
        for path in draw_probe_run(run_dir):
            print(path)
            print(path.with_suffix(".pdf"))


if __name__ == "__main__":
    sys.exit(main())
