"""What changed from one run to another over the same examples, and what of it is more than chance?

    python compare_runs.py results/BASE results/TUNED

Both are folders of finished runs of QAinference.py, or both of probe_logit_lens.py. Every example is compared with
itself. Intervals (95%) are a bootstrap's over contexts; p is a sign-flip test's over contexts. Two runs of answers
give scores.csv: the change of each score in each language, and outcomes.csv: how many questions became right or
wrong. Two probes give changes.csv: the change of every channel's share at every layer, q its false discovery rate over
layers and channels (Benjamini and Hochberg), a heat map a prompt language, and page.html: both side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from utils import command_line
from utils.answers.predictions import OUTCOMES, PREDICTIONS, outcome, rows_by_language
from utils.answers.scores import SCORES
from utils.data.examples import OWN_TEXTS, load_examples
from utils.languages import short_code
from utils.lens.probe_runs import INFLUENCE, PAGE, PER_PROMPT, PROBABILITIES, PROMPTS, ProbeRun
from utils.runs import CONFIG, METRICS, RunDirectory, configuration, default_output_dir, sha256_of_file, write_table
from utils.uncertainty import FALSE_DISCOVERY_RATE, benjamini_hochberg, paired_changes

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SCRIPT = "compare_runs.py"
ANSWERS, PROBE = "QAinference.py", "probe_logit_lens.py"
ROWS = {ANSWERS: (PREDICTIONS,), PROBE: (PROBABILITIES, PER_PROMPT, INFLUENCE, PROMPTS)}
N_SHOWN = 5


def main(argv: Sequence[str] | None = None) -> int:
    return command_line.run(compare, parse_args(argv))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, metavar="A", help="folder of a finished run")
    parser.add_argument("after", type=Path, metavar="B", help="folder of another one over the same examples")
    parser.add_argument("--seed", type=int, default=42, help="of the bootstrap and of the drawn sign flips")
    parser.add_argument("--output_dir", type=Path, metavar="D")
    parser.add_argument("--overwrite", action="store_true", help="remove the comparison that --output_dir holds")
    return parser.parse_args(argv)


def compare(args: argparse.Namespace) -> None:
    from utils.figures.page import write_comparison_page
    from utils.figures.tuning import draw_changes

    before, after = (configuration_of(path) for path in (args.before, args.after))
    script = before["script"]
    if script != after["script"]:
        raise ValueError(f"{args.before} is a run of {script} and {args.after} one of {after['script']}")
    inputs = {
        side: {name: sha256_of_file(path / name) for name in ROWS[script]}
        for side, path in (("before", args.before), ("after", args.after))
    }
    names = [path.resolve().name for path in (args.before, args.after)]
    if script == ANSWERS:
        compare_kind, report = compare_answers, report_answers
    else:
        compare_kind, report = compare_probes, report_probes
    tables = compare_kind(args, before, after)
    output_dir = args.output_dir or default_output_dir("compare", args, *names)
    run = RunDirectory(output_dir, configuration(SCRIPT, args, inputs), args.overwrite)
    if not run.finished:
        for name, table in tables.items():
            write_table(run.path / name, table)
        if script == PROBE:
            draw_changes(tables["changes.csv"], run.path / "figures" / "changes", f"{names[0]} → {names[1]}")
            write_comparison_page(run.path, args.before, args.after, tables["changes.csv"])
        run.finish({"script": script, "rows": {name: len(table) for name, table in tables.items()}})
    report(tables)
    print(f"tables: {run.path}")
    if script == PROBE:
        print(f"page, for any browser: {run.path / PAGE}")


def configuration_of(path: Path) -> dict:
    """What a finished run's configuration says. Raises ValueError for anything else."""
    if not (path / CONFIG).is_file():
        raise ValueError(f"{path}: no run of {' or '.join(ROWS)}: no {CONFIG} in it")
    config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    if config.get("script") not in ROWS:
        raise ValueError(f"{path}: a run of {config.get('script')}; choose runs of {' or '.join(ROWS)}")
    if missing := [name for name in (*ROWS[config["script"]], METRICS) if not (path / name).is_file()]:
        raise ValueError(f"{path}: the run is not finished: no {', no '.join(missing)} in it")
    return config


def common_languages(args: argparse.Namespace, before: Iterable[str], after: Iterable[str]) -> list[str]:
    """The languages of both runs, in the first one's order; those of one alone are named."""
    langs = [lang for lang in before if lang in after]
    if not langs:
        raise ValueError(f"no language in both: {args.before} has {', '.join(before)}; {args.after} {', '.join(after)}")
    for path, found in ((args.before, before), (args.after, after)):
        if alone := [lang for lang in found if lang not in langs]:
            print(f"in {path} alone, so left out: {', '.join(alone)}")
    return langs


def require_same_ids(args: argparse.Namespace, lang: str, before: list[str], after: list[str]) -> None:
    if before != after:
        odd = sorted(set(before) ^ set(after))
        what = f"{odd[0]!r} is in one alone" if odd else "their order differs"
        raise ValueError(
            f"{args.before} and {args.after} have other examples in {lang}: {what} "
            f"({len(before)} and {len(after)}); run both with the same --dataset, --split and --limit"
        )


def compare_answers(args: argparse.Namespace, before: dict, after: dict) -> dict[str, pd.DataFrame]:
    import numpy as np
    import pandas as pd

    rows = [rows_by_language(path / PREDICTIONS) for path in (args.before, args.after)]
    scores, outcomes = [], []
    for lang in common_languages(args, *rows):
        pair = [of_lang[lang] for of_lang in rows]
        require_same_ids(args, lang, *([row["id"] for row in side] for side in pair))
        for one, other in zip(*pair):
            if any(one[field] != other[field] for field in ("context", "question", "answers")):
                raise ValueError(f"{args.before} and {args.after}: id {one['id']!r} in {lang} is not the same question")
        contexts = [row["context"] for row in pair[0]]
        one, other = (np.array([[row["scores"][metric] for metric in SCORES] for row in side]) for side in pair)
        changes = paired_changes(one, other, contexts, args.seed)
        n = {"n": len(contexts), "n_contexts": len(set(contexts))}
        scores.append(pd.DataFrame({"lang": lang, "score": SCORES, **changes, **n}))
        right = [[bool(row["scores"]["multilingual_exact_match"]) for row in side] for side in pair]
        counts = dict.fromkeys(OUTCOMES, 0)
        for one, other in zip(*right):
            counts[outcome(one, other)] += 1
        outcomes.append({"lang": lang, **counts})
    return {"scores.csv": pd.concat(scores, ignore_index=True), "outcomes.csv": pd.DataFrame(outcomes)}


def report_answers(tables: dict[str, pd.DataFrame]) -> None:
    """A row a language: both F1 and EM before and after, the change with its interval and p."""
    import numpy as np
    import pandas as pd

    cells = {}
    for row in tables["scores.csv"].itertuples():
        change = f"{100 * row.change:+.1f}"
        if not np.isnan(row.low):
            change += f" [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
        name = row.score.replace("exact_match", "EM").replace("f1", "F1").replace("_", " ")
        cells[short_code(row.lang), name.replace("multilingual", "multi")] = (
            f"{100 * row.before:.1f} -> {100 * row.after:.1f}: {change}, p {row.p:.2g}"
        )
    table = pd.Series(cells).unstack(sort=False)
    print(table.T.to_string())
    print(tables["outcomes.csv"].set_index("lang").to_string())
    print("scores in per cent; change with its 95% interval over contexts, p of sign flips; right: multi EM")


def compare_probes(args: argparse.Namespace, before: dict, after: dict) -> dict[str, pd.DataFrame]:
    import pandas as pd

    if before["inputs"]["token_languages"] != after["inputs"]["token_languages"]:
        raise ValueError(f"{args.before} and {args.after} were read with different --token_languages")
    of_before, of_after = (config["inputs"]["data_sha256"] for config in (before, after))
    if other := [name for name in of_before if of_after.get(name, of_before[name]) != of_before[name]]:
        raise ValueError(f"{args.before} and {args.after} were run on different data: {other[0]} has changed")
    probes = [ProbeRun(path) for path in (args.before, args.after)]
    # Each run's shares are its own: what each prompt adds to them has their mean, and their sampling error.
    probs = [probe.influence for probe in probes]
    if probes[0].channels != probes[1].channels or probs[0].shape[1:] != probs[1].shape[1:]:
        raise ValueError(
            f"{args.before} and {args.after} have other layers or channels: {probs[0].shape[1:]} "
            f"and {probs[1].shape[1:]}"
        )
    prompts = [probe.prompts for probe in probes]
    context_of = contexts_of(before["arguments"])
    langs = common_languages(args, *(list(dict.fromkeys(table["prompt_lang"])) for table in prompts))
    tables = []
    for lang in tqdm(langs, desc="comparing", unit="language", leave=False, disable=None):
        of_lang = [table[table["prompt_lang"] == lang] for table in prompts]
        require_same_ids(args, lang, *(table["id"].tolist() for table in of_lang))
        contexts = [context_of[lang, id] for id in of_lang[0]["id"]]
        one, other = (side[table.index] for side, table in zip(probs, of_lang))  # [prompt, layer, channel]
        layers = [
            changes_of_layer(args, one[:, i], other[:, i], contexts, probes[0].channels).assign(layer=i)
            for i in range(one.shape[1])
        ]
        table = pd.concat(layers, ignore_index=True).assign(prompt_lang=lang, n=len(contexts))
        tables.append(table.assign(q=benjamini_hochberg(table["p"].to_numpy())))
    columns = ["prompt_lang", "layer", "channel", "before", "after", "change", "low", "high", "p", "q", "n"]
    return {"changes.csv": pd.concat(tables, ignore_index=True)[columns]}


def changes_of_layer(
    args: argparse.Namespace, before: np.ndarray, after: np.ndarray, contexts: list, channels: list[str]
) -> pd.DataFrame:
    """before, after: [prompt, channel]."""
    import pandas as pd

    return pd.DataFrame({"channel": channels, **paired_changes(before, after, contexts, args.seed)})


def contexts_of(arguments: dict) -> dict[tuple[str, str], str]:
    """(language, id) -> context, or the id itself where a set has no contexts."""
    if arguments["dataset"] == OWN_TEXTS:
        return {(label, label): label for label in arguments["langs"]}
    examples = load_examples(
        arguments["dataset"], arguments["langs"], arguments["split"], source_lang=arguments["source_lang"]
    )
    return {(example.lang, example.id): getattr(example, "context", example.id) for example in examples}


def report_probes(tables: dict[str, pd.DataFrame]) -> None:
    """For each prompt language the channels that fall and rise most, at the layer where they do."""
    for lang, table in tables["changes.csv"].groupby("prompt_lang", sort=False):
        found = table[table["q"] <= FALSE_DISCOVERY_RATE]
        print(
            f"prompts in {short_code(lang)}: {len(found)} of {len(table)} cells changed "
            f"(false discovery rate {FALSE_DISCOVERY_RATE:.0%})"
        )
        for name, sign in (("fall", 1), ("rise", -1)):
            of_sign = found[sign * found["change"] < 0]
            strongest = of_sign.loc[
                of_sign.groupby("channel")["change"].transform(lambda c: c.abs().max()) == of_sign["change"].abs()
            ]
            strongest = strongest.sort_values("change", ascending=sign > 0).drop_duplicates("channel").head(N_SHOWN)
            for row in strongest.itertuples():
                print(
                    f"  {name} {short_code(row.channel):8} layer {row.layer:2}: {row.before:.3f} -> {row.after:.3f} "
                    f"({row.change:+.3f} [{row.low:+.3f}, {row.high:+.3f}], q {row.q:.2g})"
                )


if __name__ == "__main__":
    sys.exit(main())
