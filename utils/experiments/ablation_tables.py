"""What a model answers, reads and expects with a language taken away -> tables, and a verdict by a rule fixed before.

docs/ablation.md has the rule in words, and its reasons.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from utils.answers.normalisation import normaliser
from utils.answers.scores import cut_f1, f1
from utils.uncertainty import holm, paired_changes

BASE, UNTUNED, LANGUAGE, RANDOM, BYSTANDER, TARGET = "base", "untuned", "language", "random", "bystander", "target"
CONTROLS = (RANDOM, BYSTANDER, TARGET)
FEWEST_RANDOM = 5
# Of every answer: as it is scored everywhere; its content apart from where it ends; its best line.
EM, F1, CUT_F1, BEST_LINE_F1 = "exact_match", "f1", "cut_f1", "best_line_f1"
SCORES = (EM, F1, CUT_F1, "best_line_exact_match", BEST_LINE_F1)
# The target's perplexity "does not rise": the whole interval of its ratio is below this.
PERPLEXITY_MARGIN = 1.05
LEVEL = 0.05
CONDITION = ["role", "ablated", "draw", "strength"]
LIFTS, FORM_ALONE, LOWERS, NOT_SEEN = "suppression lifts", "lifts the form alone", "suppression lowers", "not seen"
UNDOES, UNDOES_FORM = "adding back undoes", "adding back undoes the form alone"
RAISES, NO_GAIN, FEW = "adding back lifts", "no gain to undo", "too few contexts"


@dataclass(frozen=True)
class Condition:
    """role: one of those above. ablated: the language; of a random control, the one that it stands beside; empty for
    the model's own. draw: which random one, from 1. strength: 0 for the model's own.
    """

    role: str
    ablated: str = ""
    draw: int = 0
    strength: float = 0.0

    @property
    def name(self) -> str:
        parts = [self.role, self.ablated, str(self.draw) if self.draw else ""]
        return "-".join([*filter(None, parts), *([f"{self.strength:.12g}"] if self.strength else [])])

    @property
    def control(self) -> str:
        """What a comparison is named by: `random 3`, `bystander`."""
        return f"{self.role} {self.draw}" if self.draw else self.role

    def asks(self, lang: str) -> bool:
        """Whether it says anything of questions in this language: a target's own ablation is its control alone."""
        return self.role != TARGET or self.ablated == lang

    @property
    def fields(self) -> dict:
        return {name: getattr(self, name) for name in CONDITION}


def conditions(
    language: str, bystander: str, targets: Sequence[str], strengths: Sequence[float], n_random: int, untuned: bool
) -> list[Condition]:
    """The model's own first, then strength by strength the language, the random ones, the bystander, the targets.

    untuned: the model without adapter too.
    """
    found = [Condition(BASE)] + [Condition(UNTUNED)] * untuned
    for strength in sorted(strengths):
        found.append(Condition(LANGUAGE, language, 0, strength))
        found += [Condition(RANDOM, language, draw, strength) for draw in range(1, n_random + 1)]
        found.append(Condition(BYSTANDER, bystander, 0, strength))
        found += [Condition(TARGET, target, 0, strength) for target in targets]
    return found


# Answers


def readings(text: str, answers: list[str], lang: str, most_tokens: int | None = None) -> dict[str, float]:
    """SCORES of a written text of one line or more, from 0 to 1, in the multilingual normalisation.

    exact_match, f1: of its first line, as everywhere. cut_f1: F1 of the first line's first tokens, as many as the gold
    answer has, or `most_tokens`: what stopping in time brings is in f1 and not in it. best_line: of the line that
    scores highest. To an unanswerable question nothing is cut.
    """
    normalised = normaliser(answers, lang)
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()] or [""]
    golds = [normalised(answer) for answer in answers or [""]]
    return {
        EM: float(normalised(lines[0]) in golds),
        F1: f1(lines[0], answers, lambda one: normalised(one).split()),
        CUT_F1: cut_f1(lines[0], answers, lang, most_tokens),
        "best_line_exact_match": max(float(normalised(line) in golds) for line in lines),
        BEST_LINE_F1: max(f1(line, answers, lambda one: normalised(one).split()) for line in lines),
    }


Answers = dict[Condition, dict[str, list[dict]]]  # language -> the rows of its questions, in one order


def answer_table(answers: Answers) -> pd.DataFrame:
    """A row a condition and question language: the mean of each of SCORES, how answers ended, in which language.

    in_ablated, in_own: shares of the answers that are told to be in the ablated and in the question's language.
    """
    rows = []
    for condition, of_lang in answers.items():
        for lang, asked in of_lang.items():
            told = [row["scores"]["answer_language"] for row in asked]
            rows.append(
                {
                    **condition.fields,
                    "lang": lang,
                    **{score: float(np.mean([row["scores"][score] for row in asked])) for score in SCORES},
                    **{
                        f"stopped_by_{how}": float(np.mean([row["stopped_by"] == how for row in asked]))
                        for how in ("line", "end", "length")
                    },
                    "tokens": float(np.mean([row["answer_tokens"] for row in asked])),
                    "in_ablated": told.count(condition.ablated) / len(told) if condition.ablated else np.nan,
                    "in_own": told.count(lang) / len(told),
                    "n": len(asked),
                    "n_contexts": len({row["context"] for row in asked}),
                }
            )
    return pd.DataFrame(rows)


def change_table(answers: Answers) -> pd.DataFrame:
    """Paired by question: a row a condition, question language, score and what it is compared with (`against`).

    Every condition against the base; the language's ablation against each control of the same strength too. Intervals
    and p over contexts (`paired_changes`).
    """
    rows = []
    for condition, of_lang in answers.items():
        for lang, asked in of_lang.items() if condition.role != BASE else ():
            contexts = [row["context"] for row in asked]
            for other in _compared(condition, answers):
                if lang not in answers[other]:
                    continue
                before, after = _score_matrix(answers[other][lang]), _score_matrix(asked)
                changes = paired_changes(before, after, contexts)
                for i, score in enumerate(SCORES):
                    row = {**condition.fields, "lang": lang, "score": score, "against": other.control}
                    row |= {name: float(values[i]) for name, values in changes.items()}
                    rows.append({**row, "n": len(asked), "n_contexts": len(set(contexts))})
    return pd.DataFrame(rows)


def _compared(condition: Condition, answers: Answers) -> list[Condition]:
    found = [Condition(BASE)]
    if condition.role == LANGUAGE:
        found += [one for one in answers if one.role in CONTROLS and one.strength == condition.strength]
    return found


def _score_matrix(rows: list[dict]) -> np.ndarray:
    return np.array([[row["scores"][score] for score in SCORES] for row in rows], dtype=np.float64)


# Perplexity and the lens


def perplexity_table(losses: dict[Condition, dict[str, np.ndarray]]) -> pd.DataFrame:
    """A row a condition and language of sentences: perplexity, loss (nats a token, each sentence weighs the same), and
    the change of the loss from the base's with its interval over sentences. losses: [sentence], NaN where none.
    """
    rows = []
    base = losses[Condition(BASE)]
    for condition, of_lang in losses.items():
        for lang, after in of_lang.items():
            known = np.isfinite(after) & np.isfinite(base[lang])
            if not known.any():
                continue
            changes = paired_changes(base[lang][known, None], after[known, None], list(range(int(known.sum()))))
            rows.append(
                {
                    **condition.fields,
                    "language": lang,
                    "perplexity": float(np.exp(after[known].mean())),
                    "loss": float(after[known].mean()),
                    **{name: float(changes[name][0]) for name in ("change", "low", "high", "p")},
                    "n": int(known.sum()),
                }
            )
    return pd.DataFrame(rows)


def lens_table(shares: dict[Condition, dict[str, np.ndarray]], channels: list[str], least: float) -> pd.DataFrame:
    """A row a condition, prompt language, layer and channel with `least` or more; shares: [layer, channel]."""
    rows = []
    for condition, of_lang in shares.items():
        for lang, found in of_lang.items():
            for layer, channel in np.argwhere(found >= least):
                row = {**condition.fields, "prompt_lang": lang, "layer": int(layer)}
                rows.append({**row, "channel": channels[channel], "share": float(found[layer, channel])})
    return pd.DataFrame(rows, columns=[*CONDITION, "prompt_lang", "layer", "channel", "share"])


# The verdict


def verdict_table(changes: pd.DataFrame, perplexity: pd.DataFrame, add_back: bool = False) -> pd.DataFrame:
    """A row a question language and strength of the language's ablation: the numbers that the rule asks for, `verdict`,
    and `because`, what it failed by.

    `suppression lifts`: F1 is above the base's and above every control's (all random ones, the bystander, the target
    itself), each with its whole 95% interval; the interval of the target's perplexity, over the base's, ends below
    PERPLEXITY_MARGIN; and the largest p of these comparisons, adjusted over the strengths (Holm), is at most LEVEL. Of
    several comparisons that must all hold, the largest p is a test of them together (Berger 1982). `lifts the form
    alone`: so it is, but not with F1 of the cut answers in the place of F1. add_back: the same with F1 falling, and
    only where the tuned model's F1 is above the untuned one's with its whole interval.
    Raises ValueError where a control is missing.
    """
    sign = -1 if add_back else 1
    rows = []
    own = changes[changes["role"] == LANGUAGE]
    for (lang, strength), of_cell in own.groupby(["lang", "strength"], sort=True):
        _require_controls(of_cell, lang, strength)
        scores = {score: _held(of_cell[of_cell["score"] == score], sign) for score in (F1, CUT_F1)}
        of_loss = _loss_row(perplexity, lang, strength)
        gain = _gain_row(changes, lang) if add_back else None
        row = {"lang": lang, "ablated": of_cell["ablated"].iloc[0], "strength": strength, **scores[F1]}
        row |= {f"cut_{name}": value for name, value in scores[CUT_F1].items() if name != "p"}
        row |= {f"perplexity_ratio{end}": np.exp(of_loss[name]) for name, end in _RATIO}
        row |= {"gain": gain["change"], "gain_low": gain["low"], "gain_high": gain["high"]} if gain else {}
        rows.append(row)
    table = pd.DataFrame(rows)
    for _, rows_of_lang in table.groupby("lang").groups.items():
        table.loc[rows_of_lang, "p_adjusted"] = holm(table.loc[rows_of_lang, "p"].to_numpy())
    told = [_verdict(row, add_back) for row in table.to_dict("records")]
    return table.assign(verdict=[verdict for verdict, _ in told], because=[because for _, because in told])


_RATIO = (("change", ""), ("low", "_low"), ("high", "_high"))


def _require_controls(of_cell: pd.DataFrame, lang, strength) -> None:
    against = set(of_cell["against"])
    n_random = sum(name.startswith(f"{RANDOM} ") for name in against)
    missing = [name for name in (BASE, BYSTANDER, TARGET) if name not in against]
    if n_random < FEWEST_RANDOM or missing:
        lacks = ", ".join([*missing, *([f"{n_random} of {FEWEST_RANDOM} random ones"] if n_random < 5 else [])])
        raise ValueError(f"no verdict for {lang} at strength {strength:g} without all controls: lacks {lacks}")


def _held(of_score: pd.DataFrame, sign: int) -> dict:
    """change, low, high from the base; over_controls: the least of sign x change over a control with its interval's
    nearest end and its name; p: the largest of all comparisons.
    """
    table = of_score.set_index("against")
    base, controls = table.loc[BASE], table.drop(index=BASE)
    ends = controls["low"] if sign > 0 else -controls["high"]
    hardest = ends.isna().idxmax() if ends.isna().any() else ends.idxmin()
    return {
        **{name: base[name] for name in ("before", "after", "change", "low", "high")},
        "hardest_control": hardest,
        "over_control": controls.loc[hardest, "change"],
        "over_control_low": controls.loc[hardest, "low"],
        "over_control_high": controls.loc[hardest, "high"],
        "p": table["p"].max(),
        "n": int(base["n"]),
        "n_contexts": int(base["n_contexts"]),
    }


def _loss_row(perplexity: pd.DataFrame, lang: str, strength: float) -> dict:
    found = perplexity[
        (perplexity["role"] == LANGUAGE) & (perplexity["strength"] == strength) & (perplexity["language"] == lang)
    ]
    if not len(found):
        return dict.fromkeys(("change", "low", "high"), np.nan)
    return found.iloc[0].to_dict()


def _gain_row(changes: pd.DataFrame, lang: str) -> dict:
    """The tuned model's F1 less the untuned one's: the untuned condition's row, turned round."""
    found = changes[(changes["role"] == UNTUNED) & (changes["lang"] == lang) & (changes["score"] == F1)]
    if not len(found):
        raise ValueError(f"no verdict for {lang}: no answers of the model without adapter")
    row = found.iloc[0]
    return {"change": -row["change"], "low": -row["high"], "high": -row["low"]}


def _verdict(row: dict, add_back: bool) -> tuple[str, str]:
    """(verdict, what the rule failed by) of one row of `verdict_table`."""
    needed = [row[name] for name in ("low", "over_control_low", "perplexity_ratio_high")]
    if add_back:
        needed.append(row["gain_low"])
    if np.isnan(needed).any():
        return FEW, "an interval needs ten contexts of questions, and ten sentences of the target"
    if add_back and not row["gain_low"] > 0:
        return NO_GAIN, "the tuned model's F1 is not above the untuned one's"
    failed = _failed(row, add_back)
    against = row["low"] if add_back else -row["high"]
    if against > 0:
        return (RAISES if add_back else LOWERS), failed
    if failed:
        return NOT_SEEN, failed
    cut = {name: row[f"cut_{name}"] for name in ("low", "high", "over_control_low", "over_control_high")}
    if not _beyond(cut, add_back):
        return (UNDOES_FORM if add_back else FORM_ALONE), "not in F1 of the cut answers"
    return (UNDOES if add_back else LIFTS), ""


def _beyond(ends: dict, add_back: bool) -> bool:
    """Both intervals, over the base and over the hardest control, on the claimed side of zero. NaN is not."""
    if add_back:
        return bool(ends["high"] < 0 and ends["over_control_high"] < 0)
    return bool(ends["low"] > 0 and ends["over_control_low"] > 0)


def _failed(row: dict, add_back: bool) -> str:
    low, over = ("high", "over_control_high") if add_back else ("low", "over_control_low")
    sign, side = (-1, "below") if add_back else (1, "above")
    if not sign * row[low] > 0:
        return f"F1 is not {side} the base's"
    if not sign * row[over] > 0:
        return f"F1 is not {side} that of the control `{row['hardest_control']}`"
    if not row["perplexity_ratio_high"] < PERPLEXITY_MARGIN:
        return f"the target's perplexity may be {row['perplexity_ratio_high']:.3g} times the base's"
    if not row["p_adjusted"] <= LEVEL:
        return f"p over comparisons and strengths is {row['p_adjusted']:.2g}"
    return ""
