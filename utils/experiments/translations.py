"""How good a translated training set is: answers that are spans of their context, what is left of it, chrF."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from sacrebleu.metrics import CHRF

from utils.answers.scores import is_span
from utils.data.examples import DATASETS_DIR, Example, load_examples, splits_of

COLUMNS = ["training", "lang", "n", "spans", "characters", "of_english", "second", "chrf"]


def quality(sets: dict[str, tuple[str, str, str]], datasets_dir: Path = DATASETS_DIR) -> pd.DataFrame:
    """A row a training set: COLUMNS. sets: name -> (data set, language, split).

    spans: share of answers that are literally in their context; characters: mean length of a context; of_english:
    that length as a share of the English set's, for the same ids; chrf: chrF2 (Popovic 2015; sacrebleu's, from 0 to
    100) of its contexts, questions and answers against those of `second`, the set that another translator made of
    the same texts. NaN where there is no English set, or no second one.
    """
    rows = []
    for name, (dataset, lang, split) in sets.items():
        examples = load_examples(dataset, [lang], split, datasets_dir=datasets_dir)
        english = _english(dataset, datasets_dir)
        common = [example for example in examples if example.id in english]
        second = second_translation(dataset, lang, split, datasets_dir)
        rows.append(
            {
                "training": name,
                "lang": examples[0].lang,
                "n": len(examples),
                "spans": float(np.mean([bool(is_span(example.answers, example.context)) for example in examples])),
                "characters": _characters(examples),
                "of_english": _characters(common) / _characters([english[e.id] for e in common]) if common else np.nan,
                "second": second or "",
                "chrf": chrf(examples, load_examples(dataset, [lang], second, datasets_dir=datasets_dir))
                if second
                else np.nan,
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def second_translation(dataset: str, lang: str, split: str, datasets_dir: Path = DATASETS_DIR) -> str | None:
    """The split that another translator made of the same texts: en2de_train for en2de_nllb_train, and back."""
    direction = re.match(r"(\w+?2\w+?)(_nllb)?_train$", split)
    if not direction:
        return None
    other = f"{direction[1]}_train" if direction[2] else f"{direction[1]}_nllb_train"
    return other if other in splits_of(dataset, lang, datasets_dir) else None


def chrf(examples: list[Example], references: list[Example]) -> float:
    """chrF2 of every text against the same one in `references`, 0 to 100; each context counts once.

    Raises ValueError where an id has no reference.
    """
    of_id = {reference.id: reference for reference in references}
    if missing := [example.id for example in examples if example.id not in of_id]:
        raise ValueError(f"no second translation of example {missing[0]}")
    pairs = dict.fromkeys(
        (ours, theirs)
        for example in examples
        for ours, theirs in zip(_texts(example), _texts(of_id[example.id]), strict=True)
    )
    return CHRF().corpus_score([ours for ours, _ in pairs], [[theirs for _, theirs in pairs]]).score


def _texts(example: Example) -> tuple[str, ...]:
    return (example.context, example.question, example.answers[0])


def _characters(examples: list[Example]) -> float:
    return float(np.mean([len(example.context) for example in examples]))


def _english(dataset: str, datasets_dir: Path) -> dict[str, Example]:
    if "train" not in splits_of(dataset, "en", datasets_dir):
        return {}
    return {example.id: example for example in load_examples(dataset, ["en"], "train", datasets_dir=datasets_dir)}
