"""The curves that the paper's authors published, beside those of the same cells run here."""

from pathlib import Path

import numpy as np
import pandas as pd

from utils.lens.probe_runs import ProbeRun
from utils.runs import METRICS, PROJECT_DIR

# Their optimizer step -> its epoch: four batches to a step and 26 to an epoch, so the 60th ends with batch 240.
EPOCH_OF_STEP = {0: 0, 13: 2, 26: 4, 39: 6, 52: 8, 60: 9.2}
N_PROMPTS = 150
# Their loop over layers reuses the prompt counter, so that each prompt moves the mean by a constant share.
WEIGHT = 1 / 30
PUBLISHED_CURVES = PROJECT_DIR / "datasets" / "published" / "bloomz7b1_de_lens.csv.gz"


def published_mean(values: np.ndarray) -> np.ndarray:
    """[prompt, ...] -> [...]: the mean of their script, with weights that sum to one.

    mean_k = mean_(k-1) + (x_k - mean_(k-1)) / 30 from mean_0 = 0, divided by 1 - (29/30)^n: the prompts' order counts.
    """
    weights = WEIGHT * (1 - WEIGHT) ** np.arange(len(values) - 1, -1, -1)
    return np.tensordot(weights / weights.sum(), values.astype(np.float64), axes=1)


def overlay(runs: dict[int, list[Path]]) -> pd.DataFrame:
    """source (published or here), prompt_lang, step, layer, channel, prob: every cell that both have.

    runs: optimizer step -> folders of finished probes, of which those that are there are read. The published curves are
    divided by what their weights sum to. Raises ValueError for a model with other layers, or probes of another kind of
    matrix.
    """
    theirs = read_published()
    theirs["prob"] /= 1 - (1 - WEIGHT) ** N_PROMPTS
    parts = []
    for step in EPOCH_OF_STEP:
        for run in runs.get(step, []):
            if (run / METRICS).exists():
                parts.append(_curves(run).assign(step=step))
    if not parts:
        raise ValueError("none of the probes of the published cells is there")
    ours = pd.concat(parts, ignore_index=True)
    if (here := ours["layer"].max()) != (there := theirs["layer"].max()):
        raise ValueError(f"the published curves are of bloomz-7b1, with {there} layers; this model has {here}")
    keys = ["prompt_lang", "step"]
    common = theirs.merge(ours[keys].drop_duplicates(), on=keys)
    columns = ["source", *keys, "layer", "channel", "prob"]
    return pd.concat([common.assign(source="published"), ours.assign(source="here")], ignore_index=True)[columns]


def _curves(run: Path) -> pd.DataFrame:
    """prompt_lang, layer, channel, prob of a probe's prompts, in their order, with the published weights."""
    probe = ProbeRun(run)
    tables = []
    for lang, rows in probe.prompts.groupby("prompt_lang", sort=False):
        cells = probe.cells(lang)[["prompt_lang", "layer", "channel"]]
        tables.append(cells.assign(prob=published_mean(probe.per_prompt[rows.index]).ravel()))
    return pd.concat(tables, ignore_index=True)


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """prompt_lang, step, total_variation (mean over layers), last_layer, r_of_changes; table: `overlay`'s.

    total_variation: half the sum over channels of |here - published|, 0 to 1. r_of_changes: the correlation over
    layers and channels of what changed since step 0, NaN there and where nothing changes.
    """
    wide = table.pivot_table(index=["prompt_lang", "step", "layer", "channel"], columns="source", values="prob")
    wide = wide.fillna(0.0)  # a channel that the other side doesn't have
    distance = (wide["here"] - wide["published"]).abs().groupby(["prompt_lang", "step", "layer"]).sum() / 2
    rows = []
    for (lang, step), of_step in distance.groupby(["prompt_lang", "step"]):
        changes = _changes(wide.loc[lang], step)
        rows.append((lang, step, of_step.mean(), of_step.iloc[-1], changes))
    return pd.DataFrame(rows, columns=["prompt_lang", "step", "total_variation", "last_layer", "r_of_changes"])


def _changes(cells: pd.DataFrame, step: int) -> float:
    steps = cells.index.get_level_values("step")
    if step == 0 or 0 not in steps:
        return np.nan
    change = cells.loc[step] - cells.loc[0]
    if (change.std() == 0).any():
        return np.nan
    return float(np.corrcoef(change["here"], change["published"])[0, 1])


def read_published(path: Path = PUBLISHED_CURVES) -> pd.DataFrame:
    """prompt_lang, step, layer, channel, prob of the paper's authors; every channel at every layer, 0 where left out.

    Their `prob` is the share here, as langid's reading is; nulls, intervals and numbers of tokens are NaN.
    """
    table = pd.read_csv(path, keep_default_na=False)
    cells = table.set_index(["prompt_lang", "step", "layer", "channel"])["prob"].unstack(fill_value=0.0)
    return with_no_nulls(cells.stack().rename("prob").reset_index())


def with_no_nulls(table: pd.DataFrame) -> pd.DataFrame:
    """Published curves with language_probs.csv's columns: `prob` is the share, and the rest of them are NaN."""
    missing = dict.fromkeys(("share_low", "share_high", "null_share", "tokens"), np.nan)
    return table.assign(share=table["prob"], **missing)
