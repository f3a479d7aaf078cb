"""How much English do the middle layers speak under each lens, and is it the lens or the model?

    python fit_lens.py --model gemma-3-270m --lens tuned --langs hi --output_dir results/tuned-hi
    python probe_logit_lens.py --model gemma-3-270m --output_dir results/plain
    python probe_logit_lens.py --model gemma-3-270m --lens results/tuned-hi --output_dir results/read-tuned-hi
    python benchmarks/english_in_the_middle.py results/plain results/read-tuned-hi --output_dir results/english

All are of the same prompts; one is the plain lens's. The rule of the verdict stands in
utils/experiments/english_middle.py. Writes english.csv, by_layer.csv and english.png, and prints a row a lens and a
verdict a kind of lens.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.command_line import run
from utils.data.examples import load_examples
from utils.experiments.english_middle import LAYERS, LEAST, by_layer, table_of, verdict
from utils.figures.lenses import draw_english
from utils.languages import short_code
from utils.lens.probe_runs import ProbeRun
from utils.runs import write_table


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="finished probes of the same prompts")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="D")
    return run(compare, parser.parse_args(argv))


def compare(args) -> None:
    asked = ProbeRun(args.runs[0]).arguments
    examples = load_examples(asked["dataset"], asked["langs"], asked["split"], source_lang=asked["source_lang"])
    context_of = {(example.lang, example.id): getattr(example, "context", example.id) for example in examples}
    table, layers = table_of(args.runs, context_of), by_layer(args.runs, context_of)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    write_table(args.output_dir / "english.csv", table)
    write_table(args.output_dir / "by_layer.csv", layers)
    for path in draw_english(layers, args.output_dir / "english", (LAYERS[0], LAYERS[-1])):
        print(path)
    print(f"English in layers {LAYERS[0]} to {LAYERS[-1]}, above its null; shown where the interval is above {LEAST}:")
    for row in table.itertuples():
        langs = " ".join(map(short_code, row.prompt_langs.split()))
        found = {True: "shown", False: "not shown", None: "can't tell"}[row.shown]
        numbers = f"{row.excess:+.2f} [{row.low:+.2f}, {row.high:+.2f}] = {row.share:.2f} - {row.null:.2f}"
        print(f"  {row.lens:32} prompts in {langs:15} {numbers}  {found}")
    for kind in [kind for kind in table["kind"].unique() if kind != "logit"]:
        print(f"{kind} lenses: {verdict(table[table['kind'].isin(['logit', kind])])}")


if __name__ == "__main__":
    sys.exit(main())
