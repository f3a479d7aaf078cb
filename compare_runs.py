"""What changed from one run to another over the same examples, and what of it is more than chance?

    python compare_runs.py results/BASE results/TUNED

Both are folders of finished runs of QAinference.py, or both of probe_logit_lens.py. Every example is compared with
itself. Intervals (95%) and p (sign flips and Hall's t) are over contexts: they speak of these two checkpoints alone.

    python compare_runs.py results/BASE results/TUNED --null results/SHUFFLED_1 results/SHUFFLED_2 results/SHUFFLED_3

compares with what models differ by when nothing that is claimed sets them apart: runs, over the same examples, of A
with noise in its weights, of A tuned on answers of other questions, of other seeds of A's tuning. Intervals and p are
then of what the change from A to B exceeds the null runs' changes from A by, and take in how much these runs differ
(random effects, `utils.uncertainty.against_null`). At least three; five or more find more.

Two runs of answers give scores.csv: the change of each score in each language, with cut_f1 (F1 of the answer's first
tokens, as many as the gold one has: content without form), holds_gold (is the gold answer in the answer?) and
char_f1_beyond_chance (char F1 less that with other contexts' gold answers), and outcomes.csv: how many questions became
right or wrong. Two probes give changes.csv: the change of every channel's share
at every layer, channels.csv: of every channel over its layers, each with q, its false discovery rate over all rows of a
prompt language (Benjamini and Hochberg), a heat map a prompt language, and page.html: both side by side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from utils import command_line
from utils.answers.predictions import OUTCOMES, PREDICTIONS, outcome, rows_by_language
from utils.answers.scores import (
    CHAR_F1_BEYOND_CHANCE,
    CUT_F1,
    HOLDS_GOLD,
    OVERGENERATION,
    SCORES,
    char_f1_beyond_chance,
    cut_f1,
)
from utils.command_line import seed
from utils.data.examples import OWN_TEXTS, data_files, load_examples
from utils.languages import short_code
from utils.lens.probe_runs import INFLUENCE, PAGE, PER_PROMPT, PROBABILITIES, PROMPTS, ProbeRun
from utils.runs import (
    CONFIG,
    METRICS,
    RunDirectory,
    configuration,
    default_output_dir,
    read_configuration,
    require_finished,
    sha256_of_file,
    write_table,
)
from utils.uncertainty import (
    FALSE_DISCOVERY_RATE,
    FEWEST_CONTEXTS,
    FEWEST_NULLS,
    against_null,
    benjamini_hochberg,
    channel_p,
    fewest_discoveries,
    least_p,
    mean_interval,
    mean_p,
    paired_changes,
    simes,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SCRIPT = "compare_runs.py"
ANSWERS, PROBE = "QAinference.py", "probe_logit_lens.py"
TWO_ALONE = (
    "These two checkpoints alone: intervals and p are over contexts; models with nothing but noise in their weights or "
    "another seed differ as well, and only --null DIR... takes that in."
)
BESIDE_NULLS = "Beside {} null runs: intervals and p are of what the change exceeds theirs by, over runs and contexts."
ROWS = {ANSWERS: (PREDICTIONS,), PROBE: (PROBABILITIES, PER_PROMPT, INFLUENCE, PROMPTS)}
MEASURES = (*SCORES, CUT_F1, HOLDS_GOLD, OVERGENERATION, CHAR_F1_BEYOND_CHANCE)
N_SHOWN = 5
# Of shares beside null runs. Copies of a model with noise in their weights found up to eleven changes among 3,952 cells
# without it, of at most .006, where a few runs had all next to nothing; shares are not known to a thousandth.
LEAST_SPREAD = 0.002


def main(argv: Sequence[str] | None = None) -> int:
    return command_line.run(compare, parse_args(argv))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, metavar="A", help="folder of a finished run")
    parser.add_argument("after", type=Path, metavar="B", help="folder of another one over the same examples")
    parser.add_argument("--seed", type=seed, default=42, help="of the drawn sign flips")
    parser.add_argument(
        "--null", type=Path, nargs="+", default=[], metavar="DIR", help="runs like A but for chance, to compare B with"
    )
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
    for path in args.null:
        if (other := configuration_of(path)["script"]) != script:
            raise ValueError(f"--null {path}: a run of {other}, not of {script}")
    if args.null and len(set(args.null)) < FEWEST_NULLS:
        raise ValueError(f"--null: {len(set(args.null))} runs; at least {FEWEST_NULLS} say how much runs differ")
    nulls = [(f"null {number}", path) for number, path in enumerate(args.null, 1)]
    inputs = {
        side: {name: sha256_of_file(path / name) for name in ROWS[script]}
        for side, path in (("before", args.before), ("after", args.after), *nulls)
    }
    names = [path.resolve().name for path in (args.before, args.after)]
    if script == ANSWERS:
        compare_kind, report = compare_answers, report_answers
    else:
        compare_kind, report = compare_probes, report_probes
    print(BESIDE_NULLS.format(len(args.null)) if args.null else TWO_ALONE)
    tables = compare_kind(args, before)
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
    config = read_configuration(path)
    if config["script"] not in ROWS:
        raise ValueError(f"{path}: a run of {config['script']}; choose runs of {' or '.join(ROWS)}")
    if missing := [name for name in (*ROWS[config["script"]], METRICS) if not (path / name).is_file()]:
        raise ValueError(f"{path}: the run is not finished: no {', no '.join(missing)} in it")
    require_finished(path)
    needed = ("dataset", "langs", "split", "source_lang") if config["script"] == PROBE else ()
    if not isinstance(config["inputs"].get("data_sha256", {}), dict):
        raise ValueError(f"{path / CONFIG}: not the configuration of a run: data_sha256 has no names of files")
    if absent := [name for name in needed if name not in config["arguments"]]:
        raise ValueError(f"{path / CONFIG}: not the configuration of a probe: no {', '.join(absent)}")
    return config


def paths_of(args: argparse.Namespace) -> list[Path]:
    return [args.before, args.after, *args.null]


def common_languages(args: argparse.Namespace, langs_of: Mapping[Path, Collection[str]]) -> list[str]:
    """The languages of both runs, in the first one's order; those of one alone are named. Null runs must have them."""
    before, after = langs_of[args.before], langs_of[args.after]
    langs = [lang for lang in before if lang in after]
    if not langs:
        raise ValueError(f"no language in both: {args.before} has {', '.join(before)}; {args.after} {', '.join(after)}")
    for path in (args.before, args.after):
        if alone := [lang for lang in langs_of[path] if lang not in langs]:
            print(f"in {path} alone, so left out: {', '.join(alone)}")
    for path in args.null:
        if missing := [lang for lang in langs if lang not in langs_of[path]]:
            raise ValueError(f"--null {path}: no {', '.join(missing)} in it; it has {', '.join(langs_of[path])}")
    return langs


def require_same_ids(one: Path, other: Path, lang: str, before: list[str], after: list[str]) -> None:
    if before != after:
        odd = sorted(set(before) ^ set(after))
        what = f"{odd[0]!r} is in one alone" if odd else "their order differs"
        raise ValueError(
            f"{one} and {other} have other examples in {lang}: {what} "
            f"({len(before)} and {len(after)}); run both with the same --dataset, --split and --limit"
        )


def compare_answers(args: argparse.Namespace, before: dict) -> dict[str, pd.DataFrame]:
    import numpy as np
    import pandas as pd

    rows = {path: rows_by_language(path / PREDICTIONS) for path in paths_of(args)}
    scores, outcomes = [], []
    for lang in common_languages(args, rows):
        of_lang = [of_run[lang] for of_run in rows.values()]
        for path, run in zip(rows, of_lang):
            require_same_ids(args.before, path, lang, *([row["id"] for row in side] for side in (of_lang[0], run)))
            for one, other in zip(of_lang[0], run):
                if any(one[field] != other[field] for field in ("context", "question", "answers")):
                    raise ValueError(f"{args.before} and {path}: id {one['id']!r} in {lang} is not the same question")
        contexts = [row["context"] for row in of_lang[0]]
        values = [np.array(measures_of(run, lang)) for run in of_lang]  # [question, measure] of each run
        changes = paired_changes(values[0], values[1], contexts, args.seed)
        if args.null:
            changes |= beside_null(values, contexts)
        beyond = values[1] - 2 * values[0]
        low, high = mean_interval(beyond, contexts)
        doubled = {"double_low": low, "double_high": high, "double_p": mean_p(beyond, contexts, args.seed)}
        n = {"n": len(contexts), "n_contexts": len(set(contexts))}
        scores.append(pd.DataFrame({"lang": lang, "score": MEASURES, **changes, **doubled, **n}))
        right = [[bool(row["scores"]["multilingual_exact_match"]) for row in run] for run in of_lang[:2]]
        counts = dict.fromkeys(OUTCOMES, 0)
        for one, other in zip(*right):
            counts[outcome(one, other)] += 1
        outcomes.append({"lang": lang, **counts})
    return {"scores.csv": pd.concat(scores, ignore_index=True), "outcomes.csv": pd.DataFrame(outcomes)}


def measures_of(rows: list[dict], lang: str) -> list[list[float]]:
    """MEASURES of each scored prediction of a language: its scores, its F1 once it is cut, whether it has the gold
    answer in it, whether it has more than that, and char F1 beyond chance.
    """
    measures = []
    for row, beyond_chance in zip(rows, char_f1_beyond_chance(rows, lang)):
        scores = row["scores"]
        over = scores["miss"] == OVERGENERATION
        holds_gold = over or scores["multilingual_exact_match"] == 1
        cut = cut_f1(row["prediction"], row["answers"], lang)
        measures.append([*(scores[metric] for metric in SCORES), cut, float(holds_gold), float(over), beyond_chance])
    return measures


def beside_null(values: list[np.ndarray], contexts: list, least_spread: float = 0) -> dict[str, np.ndarray]:
    """null_change, excess, low, high, p of a change beside the null runs' (`against_null`).

    values: [example, ...] of A, B and each null run.
    """
    import numpy as np

    change, *of_nulls = (run - values[0].astype(np.float64) for run in values[1:])
    nulls = np.stack(of_nulls)
    return {"null_change": nulls.mean(axis=(0, 1)), **against_null(change, nulls, contexts, least_spread)}


def report_answers(tables: dict[str, pd.DataFrame]) -> None:
    """A row a language: both F1 and EM before and after, the change with its interval and p."""
    import numpy as np
    import pandas as pd

    cells = {}
    for row in tables["scores.csv"].itertuples():
        change = f"{100 * row.change:+.1f}"
        if beside := hasattr(row, "excess"):
            change += f", {100 * row.excess:+.1f} over the null's"
        if not np.isnan(row.low):
            change += f" [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
        name = row.score.replace("exact_match", "EM").replace("f1", "F1").replace("_", " ")
        cells[short_code(row.lang), name.replace("multilingual", "multi")] = (
            f"{100 * row.before:.1f} -> {100 * row.after:.1f}: {change}, p {row.p:.2g}"
        )
    table = pd.Series(cells).unstack(sort=False)
    print(table.T.to_string())
    print(tables["outcomes.csv"].set_index("lang").to_string())
    about = (
        "what it is over the null runs' with its 95% interval, p over runs"
        if beside
        else "95% interval, p of sign flips and Hall's t"
    )
    print(f"scores in per cent; the change, {about}; {counts_of(tables['scores.csv'])}; right: multi EM")


def counts_of(table: pd.DataFrame) -> str:
    """How many examples and contexts a language has, and why there is no interval where there is none."""
    n, contexts = (f"{table[name].min():,}" for name in ("n", "n_contexts"))
    few = table["n_contexts"].min() < FEWEST_CONTEXTS
    return f"n = {n} in {contexts} contexts" + (f" (an interval needs {FEWEST_CONTEXTS} contexts)" if few else "")


def matrix_of(inputs: dict) -> dict:
    """What a run's matrix was made from. How its tokenizer was named says nothing: its checksum is there too."""
    return {key: value for key, value in (inputs.get("token_languages") or {}).items() if key != "tokenizer"}


def compare_probes(args: argparse.Namespace, before: dict) -> dict[str, pd.DataFrame]:
    import pandas as pd

    for path in (args.after, *args.null):
        inputs = configuration_of(path)["inputs"]
        if matrix_of(before["inputs"]) != matrix_of(inputs):
            raise ValueError(f"{args.before} and {path} were read with different --token_languages")
        of_before, of_other = (of_run.get("data_sha256", {}) for of_run in (before["inputs"], inputs))
        if other := [name for name in of_before if of_other.get(name, of_before[name]) != of_before[name]]:
            raise ValueError(f"{args.before} and {path} were run on different data: {other[0]} has changed")
    probes = {path: ProbeRun(path) for path in paths_of(args)}
    # Each run's shares are its own: what each prompt adds to them has their mean, and their sampling error.
    influence = [probe.influence for probe in probes.values()]
    first = probes[args.before]
    for path, probe in probes.items():
        if probe.channels != first.channels or probe.influence.shape[1:] != first.influence.shape[1:]:
            raise ValueError(
                f"{args.before} and {path} have other layers or channels: {first.influence.shape[1:]} "
                f"and {probe.influence.shape[1:]}"
            )
    require_data_of_run(args.before, before)
    context_of = contexts_of(before["arguments"])
    langs = common_languages(args, {path: list(dict.fromkeys(p.prompts["prompt_lang"])) for path, p in probes.items()})
    cells, channels = [], []
    for lang in tqdm(langs, desc="comparing", unit="language", leave=False, disable=None):
        of_lang = [probe.prompts[probe.prompts["prompt_lang"] == lang] for probe in probes.values()]
        for path, table in zip(probes, of_lang):
            require_same_ids(args.before, path, lang, of_lang[0]["id"].tolist(), table["id"].tolist())
        contexts = [context_of[lang, id] for id in of_lang[0]["id"]]
        values = [run[table.index] for run, table in zip(influence, of_lang)]  # [prompt, layer, channel] of each run
        of_cells, of_channels = changes_of_probes(values, contexts, first.channels, args.seed)
        n = {"n": len(contexts), "n_contexts": len(set(contexts))}
        cells.append(of_cells.assign(prompt_lang=lang, **n))
        channels.append(of_channels.assign(prompt_lang=lang, **n))
    beside = ["null_change", "excess"] if args.null else []
    columns = ["prompt_lang", "layer", "channel", "before", "after", "change", *beside]
    columns += ["low", "high", "p", "q", "n", "n_contexts"]
    return {
        "changes.csv": pd.concat(cells, ignore_index=True)[columns],
        "channels.csv": pd.concat(channels, ignore_index=True)[["prompt_lang", "channel", *columns[1:2], *columns[3:]]],
    }


def changes_of_probes(
    values: list[np.ndarray], contexts: list, names: list[str], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(a row a layer and channel, a row a channel over its layers), with q over all rows of each.

    values: [prompt, layer, channel] of A, B and each null run. A channel's row is that of the layer with the least p,
    and there with the greatest change; its p is of all its layers together: `channel_p`'s, or with null runs by Simes.
    """
    import numpy as np
    import pandas as pd

    differences = values[1].astype(np.float64) - values[0]
    p, of_channel = channel_p(differences, contexts, seed)
    low, high = mean_interval(differences, contexts)
    measured = {"before": values[0].mean(axis=0, dtype=np.float64), "after": values[1].mean(axis=0, dtype=np.float64)}
    measured |= {"change": differences.mean(axis=0), "low": low, "high": high, "p": p}
    if len(values) > 2:
        measured |= beside_null(values, contexts, LEAST_SPREAD)
        of_channel = simes(measured["p"])
    n_layers, n_channels = p.shape
    layers, channels = np.repeat(np.arange(n_layers), n_channels), names * n_layers
    cells = pd.DataFrame({"layer": layers, "channel": channels, **{k: v.ravel() for k, v in measured.items()}})
    by_evidence = cells.assign(size=-cells["change"].abs()).sort_values(["p", "size"], kind="stable")
    strongest = by_evidence.drop_duplicates("channel").set_index("channel").loc[names].drop(columns="size")
    strongest = strongest.assign(p=of_channel, q=benjamini_hochberg(of_channel)).reset_index()
    return cells.assign(q=benjamini_hochberg(cells["p"].to_numpy())), strongest


def require_data_of_run(path: Path, config: dict) -> None:
    """Raises ValueError where a data file is no longer the one that the run read: contexts are read from it again."""
    arguments = config["arguments"]
    files = data_files(arguments["dataset"], arguments["langs"], arguments["split"], arguments["source_lang"])
    for file in files:
        if config["inputs"].get("data_sha256", {}).get(file.name) != sha256_of_file(file):
            raise ValueError(f"{path}: {file} is not the file that the run read; run the probe again on this one")


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
    channels = tables["channels.csv"]
    for lang, table in tables["changes.csv"].groupby("prompt_lang", sort=False):
        of_lang = channels[channels["prompt_lang"] == lang]
        found = table[table["q"] <= FALSE_DISCOVERY_RATE]
        n_found = (of_lang["q"] <= FALSE_DISCOVERY_RATE).sum()
        print(
            f"prompts in {short_code(lang)}, {counts_of(table)}: {len(found)} of {len(table)} cells changed, and "
            f"{n_found} of {len(of_lang)} channels over their layers (false discovery rate {FALSE_DISCOVERY_RATE:.0%})"
        )
        if "excess" not in table:
            print(f"  {attainable(int(table['n_contexts'].iloc[0]), len(table), len(of_lang))}")
        measure = "excess" if "excess" in table else "change"
        for name, sign in (("fall", 1), ("rise", -1)):
            of_sign = found[sign * found[measure] < 0].sort_values(measure, ascending=sign > 0, kind="stable")
            for row in of_sign.drop_duplicates("channel").head(N_SHOWN).itertuples():
                change, low = getattr(row, measure), row.low
                interval = f" [{low:+.3f}, {row.high:+.3f}]" if low == low else ""
                print(
                    f"  {name} {short_code(row.channel):8} layer {row.layer:2}: {row.before:.3f} -> {row.after:.3f} "
                    f"({change:+.3f}{interval}, q {row.q:.2g})"
                )


def attainable(n_contexts: int, n_cells: int, n_channels: int) -> str:
    """What sign flips of so many contexts can find at all."""
    p = least_p(n_contexts)
    cells, channels = (
        f"{min(1, p * n_tests):.2g} ({fewest_discoveries(n_contexts, n_tests)} must have it before any is found)"
        for n_tests in (n_cells, n_channels)
    )
    return f"the least p is {p:.2g}, so the least q of a cell alone is {cells}, of a channel alone {channels}"


if __name__ == "__main__":
    sys.exit(main())
