"""Finished runs of an experiment -> REPORT.md, its tables and figures, with a verdict on each claim."""

from pathlib import Path

import numpy as np
import pandas as pd

from utils.answers.scores import CHAR_F1_BEYOND_CHANCE, CUT_F1, HOLDS_GOLD
from utils.experiments import claims
from utils.experiments.claims import beside_nulls, judged, points
from utils.experiments.drawings import draw_all
from utils.experiments.elsewhere import MISSING, Elsewhere
from utils.experiments.presets import Experiment, is_finished
from utils.experiments.suppression import F1, apart_from_nulls, correlation, language_names, suppression
from utils.experiments.tables import SCORED, extremes, lengths, pairs, seeds, transfer
from utils.figures.looks import counts
from utils.languages import channel_name, language_name, short_code
from utils.outside import markdown
from utils.runs import write_atomically, write_table
from utils.uncertainty import FALSE_DISCOVERY_RATE, FEWEST_CONTEXTS, FEWEST_NULLS, FEWEST_SETS

EM, SQUAD_F1 = "multilingual_exact_match", "squad_f1"
BEYOND_CHANCE = "char F1 beyond chance"

# What each claim says, and what would refute it.
CLAIMS = {
    "a": (
        "Tuning lowers interfering languages inside the model, and thereby lifts the target.",
        "the interfering languages rise; or fall where F1, or the odds of becoming right, fall too",
    ),
    "b": (
        "About a hundred machine-translated examples of another language more than double a low-resource "
        "language's score.",
        "the change is smaller than the base's score",
    ),
    "c": (
        "Tuning on the target language itself hurts, by overgeneration.",
        "F1 rises in that language, or falls with less overgeneration",
    ),
    "d": ("Tuning on a high-resource language doesn't always help.", "F1 rises in every other language"),
    "e": ("Better translations transfer better.", "F1 rises less the more answers are spans of their contexts"),
}


def write_report(
    experiment: Experiment, quality: pd.DataFrame, missing: list[dict], elsewhere: Elsewhere | None = None
) -> Path:
    """REPORT.md, a table for each of its sections and figures/ in the experiment's folder, from what is there.

    quality: `translations.quality`'s. missing: `plan.missing_of`'s. elsewhere: a report of the same experiment, from
    which come the rows and figures of the sets of which more has run there.
    """
    experiment.save()
    scores = transfer(experiment)
    tables = {
        "transfer.csv": scores,
        "lengths.csv": lengths(experiment),
        "extremes.csv": extremes(experiment),
        "suppression.csv": suppression(experiment, scores),
        "pairs.csv": pairs(experiment),
        MISSING: pd.DataFrame(missing, columns=["step", "name", "training", "reason"]),
    }
    names = []
    if elsewhere:
        names = elsewhere.better_known(experiment, tables[MISSING])
        tables = {name: elsewhere.joined(name, table, experiment, names) for name, table in tables.items()}
    scores = tables["transfer.csv"]
    tables |= {"seeds.csv": seeds(experiment, scores, SCORED), "quality.csv": quality}
    for name, table in tables.items():
        write_table(experiment.folder / name, table)
    figures = draw_all(experiment.folder)
    if elsewhere:
        figures = elsewhere.with_figures(figures, experiment, names)
    text = "\n\n".join(
        part
        for part in (
            *_introduction(experiment, tables["suppression.csv"], names),
            *_claims(experiment, tables),
            *_transfer(experiment, scores, figures),
            *_beyond_nulls(experiment, scores),
            *_seeds(experiment, tables),
            *_form(experiment, scores, tables["lengths.csv"]),
            *_curves(figures),
            *_outcomes(figures),
            *_extremes(experiment, tables["extremes.csv"], figures),
            *_suppression(experiment, tables["suppression.csv"], figures),
            *_quality(tables),
            *_confounds(tables),
            *_missing(tables[MISSING]),
        )
        if part
    )
    path = experiment.folder / "REPORT.md"
    write_atomically(path, lambda file: file.write((text + "\n").encode("utf-8")))
    return path


def _introduction(experiment, falls, elsewhere=()):
    repeats = experiment.repeat_of
    sets = ", ".join(f"`{name}`" for name in experiment.training if name not in experiment.control_of | repeats)
    controls = ", ".join(f"`{name}`" for name in experiment.control_of if name not in repeats) or "none"
    yield f"# What tuning {markdown(experiment.model_name)} on one language does to others"
    n_nulls = falls["null_runs"].max() if len(falls) else 0
    tunings = "one tuning of each set. "
    if repeats:
        tunings = "the first tuning of each set, which further seeds stand beside where the report says so. "
    yield f"**This speaks of these checkpoints alone:** {tunings}" + (
        f"What is beyond null runs is compared with {n_nulls} tunings on answers of other questions, or fewer."
        if n_nulls
        else f"With {FEWEST_NULLS} or more tunings on answers of other questions (`--nulls 5`), falls inside the model "
        "and gains would be compared with what any tuning does."
    )
    yield (
        f"Training sets: {sets}; controls: {controls}. Scores are in per cent; brackets hold 95% intervals over "
        f"contexts, none with fewer than {FEWEST_CONTEXTS}, and every change is paired by question. Intervals and p "
        "are of one cell each; q (false discovery rate) and the verdicts take the number of cells into account."
    )
    if elsewhere:
        yield (
            f"Rows and figures of {', '.join(f'`{name}`' for name in elsewhere)} come from another report of this "
            "experiment (`--join`): each is compared with the base and the null runs that ran beside it."
        )


def _claims(experiment, tables):
    cells = claims.cells_by_claim(experiment, tables)
    found = {letter: judged(cells[letter]) for letter in CLAIMS}
    verdicts = {letter: claims.overall(found[letter], letter in claims.ONE_CELL_IS_ENOUGH) for letter in CLAIMS}
    yield "## Claims, by rules that were fixed before the run"
    rows = []
    for letter, (claim, refuted_by) in CLAIMS.items():
        cell = claims.telling(cells[letter])
        effect = f"{cell.where}: {cell.measured}" if cell else "no such cell was run"
        rows.append((f"({letter}) {claim}", refuted_by, effect, verdicts[letter]))
    yield _markdown(pd.DataFrame(rows, columns=["claim", "refuted where", "the surest of its cells", "verdict"]))
    yield (
        "Controls and further seeds take no part; a change that is not larger than the spread of its set's seeds "
        "counts as none, and what lifts, in (a) and (b), must lift by more than tunings on answers of other questions "
        "do, where there are such. Every cell is tested for and against its claim, and a claim is wrongly supported or "
        "refuted in any of its cells in at most 5% of experiments (Holm). (b) and (d) say that something happens: one "
        "cell is enough. The others say what usually does: there must be more cells for them than against."
    )
    for letter, (claim, _) in CLAIMS.items():
        yield f"**({letter}) {claim}** Here: {verdicts[letter]}."
        table = pd.DataFrame(found[letter], columns=["training set -> language", "measured", "verdict"])
        yield _markdown(table) if len(table) else "No such cell was run."


def _transfer(experiment, table, figures):
    yield "## Transfer: F1 after tuning, and its change"
    table = table[table["training"].isin(experiment.sets)]
    for score, title in ((F1, "multilingual F1"), (SQUAD_F1, "SQuAD F1"), (EM, "multilingual exact match")):
        of_score = table[table["score"] == score]
        if of_score.empty:
            continue
        yield f"{title}, {counts(of_score)} a cell:"
        yield _scores_by_language(of_score)
    yield _pictures(figures, "transfer")


def _scores_by_language(of_score):
    """The base's score in each language, then each set's with its change."""
    after = [f"{100 * row.after:.1f} ({points(row.change, row.low, row.high)})" for row in of_score.itertuples()]
    return _by_language(
        of_score.assign(cell=after), "base", [f"{100 * value:.1f}" for value in _firsts(of_score, "before")]
    )


def _firsts(of_score, column):
    """A value that is the same for every set: one a language."""
    return of_score.drop_duplicates(["dataset", "lang"])[column]


def _by_language(cells, name, values):
    """Texts of `cell`, training set x language, under a first row of that name and these values."""
    columns = [f"{short_code(row.lang)}, {row.dataset}" for row in cells.itertuples()]
    wide = _wide(cells.assign(column=columns), "training")
    first = pd.DataFrame([list(values)], index=[name], columns=wide.columns)
    return _markdown(pd.concat([first, wide]).rename_axis("training").reset_index())


def _beyond_nulls(experiment, table):
    """What each change of a score exceeds the null runs' by; scores of content beside F1."""
    table = table[table["training"].isin(experiment.sets) & (table["null_runs"] > 0)]
    if table.empty:
        return
    yield "## Beyond what a tuning on answers of other questions changes"
    yield (
        f"Such tunings can learn the form of the task, and not what is asked: {table['null_runs'].max()} null runs. "
        "Brackets hold 95% intervals over runs and contexts (random effects); so few runs make them wide. They may "
        "unlearn what the base could do, so that a gain is a rise above both: the base, and these."
    )
    for score, title in (
        (F1, "multilingual F1"),
        (CUT_F1, "F1 of the cut answer"),
        (CHAR_F1_BEYOND_CHANCE, BEYOND_CHANCE),
    ):
        of_score = table[table["score"] == score]
        if of_score.empty:
            continue
        cells = [points(row.excess, row.excess_low, row.excess_high) for row in of_score.itertuples()]
        changes = [f"{100 * value:+.1f}" for value in _firsts(of_score, "null_change")]
        yield f"{title}, points: the null runs' mean change, and what each set's exceeds it by:"
        yield _by_language(of_score.assign(cell=cells), "null runs", changes)


def _seeds(experiment, tables):
    if not experiment.repeat_of:
        return
    yield "## Seeds: what the same training does with another one"
    table = tables["seeds.csv"]
    table = table[table["score"] == F1]
    if table.empty:
        yield "No set was tuned twice yet."
        return
    yield (
        "Change of multilingual F1 in points, of tunings that differ by their seed alone, beside the first one's "
        "interval over contexts. What is not larger than the spread of its seeds is no finding."
    )
    first = tables["transfer.csv"].set_index(["training", *SCORED])
    rows = []
    for row in table.itertuples():
        of_first = first.loc[(row.training, row.dataset, row.lang, row.score)]
        larger = abs(of_first["change"]) > row.spread
        rows.append(
            (
                row.training,
                f"{short_code(row.lang)}, {row.dataset}",
                row.n_seeds,
                points(of_first["change"], of_first["low"], of_first["high"]),
                f"{100 * row.lowest:+.1f} to {100 * row.highest:+.1f}",
                f"{100 * row.spread:.1f}",
                "yes" if larger else "no",
            )
        )
    columns = ["training", "language, set", "seeds", "first seed", "all seeds", "spread", "larger than the spread"]
    yield _markdown(pd.DataFrame(rows, columns=columns))


def _curves(figures):
    yield "## Which language each layer speaks, before tuning and after each probed epoch"
    yield _pictures(figures, "epochs") or "No probe was run."


def _outcomes(figures):
    pictures = _pictures(figures, "outcomes")
    if pictures:
        yield "## The same by outcome: which questions became right, or wrong, by exact match"
        yield pictures


def _extremes(experiment, table, figures):
    yield f"## What falls and what rises inside (false discovery rate {FALSE_DISCOVERY_RATE:.0%})"
    yield _pictures(figures, "changes")
    table = table[table["training"].isin(experiment.sets)]
    are_compared = any(
        is_finished(experiment.changes_beside_nulls(experiment.probe(name, experiment.last_epoch, dataset)))
        for name in experiment.sets
        for dataset in experiment.probes
    )
    if are_compared:
        yield (
            "The change is what it exceeds the null runs' by, and its interval is over runs and contexts; null runs "
            "are not shown. With few of them hardly any cell of so many can be found."
        )
        table = table[~table["training"].isin(experiment.nulls)]
    if table.empty:
        yield "No channel at any layer."
        return
    rows = [
        (
            row.training,
            f"{language_name(row.prompt_lang)}, {row.dataset}",
            channel_name(row.channel),
            row.layer,
            f"{row.before:.3f} -> {row.after:.3f}",
            f"{row.beyond:+.3f}" + ("" if pd.isna(row.low) else f" [{row.low:+.3f}, {row.high:+.3f}]"),
        )
        for row in table.itertuples()
    ]
    yield _markdown(pd.DataFrame(rows, columns=["training", "prompts", "channel", "layer", "share", "change"]))


def _suppression(experiment, table, figures):
    yield "## Does suppression explain gain?"
    if table.empty:
        yield "No model was both probed and asked in one language."
        return
    yield (
        "Interfering languages: the two, other than the prompt's, that peak highest above their nulls in the upper "
        "half of the layers, by the mean of the base and the tuned model, so that falls and rises are as likely where "
        "nothing was learnt; their shares there together, mean over layers. Odds: of becoming right for a question "
        "that the base gets wrong, where the interfering languages fall by a standard deviation more (logistic, a "
        "jackknife over contexts). " + _of_nulls(table)
    )
    rows = [
        (
            row.training,
            language_name(row.lang),
            language_names(row.channels),
            f"{row.before:.3f} -> {row.after:.3f} ({row.change:+.3f}{beside_nulls(row)})",
            "-" if pd.isna(row.p) else f"{row.p:.2g}",
            points(row.gain, row.gain_low, row.gain_high),
            "-" if pd.isna(row.odds_ratio) else f"x{row.odds_ratio:.2f} [{row.odds_low:.2f}, {row.odds_high:.2f}]",
            f"{row.newly_right} / {row.both_wrong}",
        )
        for row in table.itertuples()
    ]
    columns = ["training", "prompts in", "interfering", "their shares", "p", "F1", "odds"]
    columns.append("newly right / both wrong")
    yield _markdown(pd.DataFrame(rows, columns=columns))
    compared = apart_from_nulls(table, experiment.nulls)
    r, p, n = correlation(compared[~compared["training"].isin(experiment.repeat_of)])
    without = " and null runs not" if len(compared) < len(table) else ""
    tested = f"(p {p:.2g})" if p == p else f"(fewer than {FEWEST_SETS} sets: no test)"
    yield (
        "Correlation of the fall with the change of F1, over training sets and languages, both from their mean in a "
        f"language: {'nothing varies' if np.isnan(r) else f'{r:+.2f} {tested}'}. Models tuned: {n}, controls among "
        f"them{without}, from {table['n_contexts'].min()} contexts; p is of the orders of the models."
    )
    yield _pictures(figures, "gains")


def _of_nulls(table):
    if not table["null_runs"].max():
        return (
            "No null runs, so intervals and p are of these checkpoints alone: copies of one model with nothing but "
            "noise in their weights differ as surely as this."
        )
    return (
        "Intervals and p are of what the change exceeds the null runs' by, each of these in the languages that the "
        "same rule chooses for it (random effects over runs)."
    )


def _quality(tables):
    yield "## Quality of the training data, and controls"
    gains = tables["transfer.csv"]
    gains = gains[gains["score"] == F1].groupby("training", sort=False)["change"].mean()
    rows = [
        (
            row.training,
            f"{row.spans:.0%}",
            f"{row.characters:.0f}",
            "-" if pd.isna(row.of_english) else f"{row.of_english:.0%}",
            "-" if pd.isna(row.chrf) else f"{row.chrf:.1f} ({row.second})",
            "-" if row.training not in gains.index else f"{100 * gains[row.training]:+.1f}",
        )
        for row in tables["quality.csv"].itertuples()
    ]
    columns = ["training", "answers that are spans", "characters a context", "of the English", "chrF", "mean F1 change"]
    yield _markdown(pd.DataFrame(rows, columns=columns))
    yield "chrF: against the set in brackets, another translator's of the same texts. Change: mean over all languages."
    table = tables["pairs.csv"]
    of_score = table[table["score"] == F1]
    if len(of_score):
        yield "Change of multilingual F1 from one training set to another, paired by question:"
        cells = of_score.assign(
            pair=of_score["against"] + " -> " + of_score["training"],
            cell=[points(row.change, row.low, row.high) for row in of_score.itertuples()],
            column=[f"{short_code(row.lang)}, {row.dataset}" for row in of_score.itertuples()],
        )
        yield _markdown(_wide(cells, "pair").rename_axis("training").reset_index())


def _wide(cells, rows):
    """Texts of `cell`, rows x `column`, both in the order in which they come; a dash where there is none."""
    wide = cells.pivot(index=rows, columns="column", values="cell").fillna("-")
    return wide.loc[list(dict.fromkeys(cells[rows])), list(dict.fromkeys(cells["column"]))]


def _form(experiment, scores, table):
    yield "## Form and content of answers"
    if table.empty:
        yield "No model has answered."
        return
    yield (
        "A model that writes on gains F1 from any tuning that teaches where to stop. The cut answer is the first "
        "tokens of the written one, as many as the gold answer has, so that where it stops plays no part; an answer "
        "holds the gold one where it has its tokens in it, with or without more. Chance is the char F1 with gold "
        "answers of other contexts, which whoever writes the script has."
    )
    titles = {CUT_F1: "F1 of the cut answer", HOLDS_GOLD: "Answers that hold the gold one, %"}
    for score, title in (titles | {CHAR_F1_BEYOND_CHANCE: BEYOND_CHANCE}).items():
        of_score = scores[(scores["score"] == score) & scores["training"].isin(experiment.sets)]
        if len(of_score):
            yield f"{title}, and the change, {counts(of_score)} a cell:"
            yield _scores_by_language(of_score)
    yield "How long the answers are:"
    rows = [
        (
            row.training,
            short_code(row.lang),
            row.dataset,
            f"{row.tokens_beyond_gold:.1f}",
            f"{100 * row.overgeneration:.1f}",
            f"{100 * row.stopped_by_length:.1f}",
            row.n,
        )
        for row in table[~table["training"].isin(experiment.repeat_of)].itertuples()
    ]
    columns = ["training", "language", "set", "tokens beyond gold", "overgenerated, %", "cut by the limit, %", "n"]
    yield _markdown(pd.DataFrame(rows, columns=columns))


def _confounds(tables):
    yield "## Confounds"
    quality = tables["quality.csv"].set_index("training")
    short = quality["of_english"].dropna()
    names = ", ".join(f"`{name}` {share:.0%}" for name, share in quality["spans"].items())
    shortened = ", ".join(f"`{name}` {share:.0%}" for name, share in short.items())
    yield "\n".join(
        f"- {line}"
        for line in (
            "**The end token.** The paper's script takes it out of the loss, so its models are never taught to stop, "
            "and longer answers may be that. Here it is in the loss but for the controls named `masked_end`.",
            f"**Answers that aren't spans.** A set whose answers are not in their contexts teaches something else than "
            f"pointing. Spans: {names}.",
            "**Truncated contexts.** Some translations lack the end of their contexts, and with it answers"
            + (
                f"; mean length as a share of the English: {shortened} (languages differ in length too)"
                if shortened
                else ""
            )
            + ". The controls named `truncated` cut the same way and nothing else.",
            "**English as a default.** With `--token_languages langid`, as in the paper, text that langid has no "
            "evidence for is English to it, so a fall of English can be a fall of such tokens. The matrix of these "
            "probes is made from a parallel corpus, where such tokens are channels of their own.",
            "**The form of an answer.** A base model that writes on after the answer gains from any tuning that "
            "teaches where to stop, whatever its language: see form and content above beside every gain.",
        )
    )


def _missing(missing):
    if len(missing):
        yield "## What has not run"
        names = missing.groupby(["step", "reason"], sort=False)["name"].agg(", ".join)
        yield _markdown(names.reset_index()[["step", "name", "reason"]])


def _pictures(figures, kind):
    return "\n\n".join(f"![{path.stem}]({path.as_posix()})" for path in figures if path.stem.startswith(kind))


def _markdown(table: pd.DataFrame) -> str:
    rows = [list(table), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(markdown, row)) + " |" for row in rows)
