"""How much English do the middle layers speak under a lens, and is that the lens or the model? The rule is fixed here.

Of each lens, over prompts in languages other than English and other than the one language that a lens was fitted on:

    excess = mean over prompts and LAYERS of (share of English - null share of English), a 95% interval over contexts

A lens shows English where the whole interval is above LEAST, and shows none where it is below. LEAST is as far as two
draws of a null were seen to differ in these layers. The English of the middle layers is
    "the model's"   where every lens that has never seen English shows it: nothing could have taught it to
    "the lens's"    where none of these shows it, and each that has seen English, or is the plain lens, does
    "can't tell"    otherwise
A lens that has never seen English may not be able to show it: "the lens's" says that English isn't seen without a lens
that looks for it, and no more.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from utils.languages import ENGLISH
from utils.lens.probe_runs import ProbeRun, lens_name
from utils.uncertainty import standard_error

LAYERS = range(8, 17)
LEAST = 0.10
Z_95 = 1.96


@dataclass(frozen=True)
class Excess:
    """A share above its null, with its 95% interval, and what both are differences of."""

    excess: float
    low: float
    high: float
    share: float
    null: float
    n: int

    @property
    def shown(self) -> bool | None:
        """Is the channel shown? None where the interval holds LEAST, or there is none."""
        return True if self.low > LEAST else False if self.high < LEAST else None


def excess_of(probe: ProbeRun, prompt_langs: list[str], channel: str, context_of: dict) -> Excess:
    """The excess of a channel over prompts in some languages, which weigh the same.

    context_of: (prompt language, id) -> context. The same question in several languages is one draw: clusters are the
    first language's contexts.
    """
    shares, clusters = _by_question(probe, dict.fromkeys(prompt_langs, channel), context_of)
    share = shares[:, list(LAYERS)].mean(axis=1)
    null = _null(probe, channel)[list(LAYERS)].mean()
    middle, margin = share.mean() - null, Z_95 * standard_error(share, clusters)
    return Excess(
        float(middle), float(middle - margin), float(middle + margin), float(share.mean()), float(null), len(share)
    )


def _by_question(probe: ProbeRun, channel_of: dict[str, str], context_of: dict) -> tuple[np.ndarray, list]:
    """([question, layer], the questions' contexts): what each question adds to a share, its prompts' mean.

    channel_of: prompt language -> the channel that is looked at in its prompts. Questions that were not read in all
    of these languages are left out.
    """
    by_lang = []
    for lang, channel in channel_of.items():
        rows = probe.prompts[probe.prompts["prompt_lang"] == lang]
        values = probe.influence[rows.index][:, :, probe.channels.index(channel)]
        by_lang.append(dict(zip(rows["id"], values.astype(np.float64))))
    ids = [id for id in by_lang[0] if all(id in values for values in by_lang)]
    first = next(iter(channel_of))
    return np.mean([[values[id] for id in ids] for values in by_lang], axis=0), [context_of[first, id] for id in ids]


def _null(probe: ProbeRun, channel: str) -> np.ndarray:
    """[layer], the null share of a channel, the same for all prompts."""
    cells = probe.cells(probe.prompts["prompt_lang"].iloc[0])
    return cells[cells["channel"] == channel].sort_values("layer")["null_share"].to_numpy()


def by_layer(runs: list[Path], context_of: dict) -> pd.DataFrame:
    """lens, kind, seen, what, layer, share, low, high, null, n: what each lens reads, the mean over the prompts that
    count. what: `english`, `prompt` (each prompt's own language) or `lens` (the one that a lens was fitted on).
    """
    tables = []
    for run in runs:
        probe = ProbeRun(Path(run))
        langs, alone = _prompts_that_count(probe)
        looked_at = {"english": dict.fromkeys(langs, ENGLISH), "prompt": {lang: lang for lang in langs}}
        if alone and alone != ENGLISH:
            looked_at["lens"] = dict.fromkeys(langs, alone)
        for what, channel_of in looked_at.items():
            shares, clusters = _by_question(probe, channel_of, context_of)
            mean, margin = shares.mean(axis=0), Z_95 * standard_error(shares, clusters)
            columns = {
                "what": what,
                "layer": range(len(mean)),
                "share": mean,
                "low": np.clip(mean - margin, 0, 1),
                "high": np.clip(mean + margin, 0, 1),
                "null": np.mean([_null(probe, channel) for channel in channel_of.values()], axis=0),
                "n": len(shares),
            }
            about = {"kind": probe.lens.get("kind", "logit"), "seen": " ".join(probe.lens.get("langs", []))}
            tables.append(pd.DataFrame({"lens": lens_name(probe.lens), **about, **columns}))
    return pd.concat(tables, ignore_index=True)


def _prompts_that_count(probe: ProbeRun) -> tuple[list[str], str | None]:
    """(the prompts' languages but English and the one that the lens was fitted on, that one)."""
    seen = probe.lens.get("langs", [])
    alone = seen[0] if len(seen) == 1 else None
    return [lang for lang in dict.fromkeys(probe.prompts["prompt_lang"]) if lang not in (ENGLISH, alone)], alone


def table_of(runs: list[Path], context_of: dict) -> pd.DataFrame:
    """A row a probe: its lens, which prompts count, the excess of English and of the lens's own language.

    own_*: the same of the one language that a lens was fitted on, in prompts in others; NaN for other lenses.
    Raises ValueError for a probe of a model without LAYERS, or without prompts that count.
    """
    rows = []
    for run in runs:
        probe = ProbeRun(Path(run))
        if (last := probe.table["layer"].max()) < LAYERS[-1]:
            raise ValueError(f"{run}: its last layer is {last}; the rule is about layers {LAYERS[0]} to {LAYERS[-1]}")
        if not _prompts_that_count(probe)[0]:
            raise ValueError(f"{run}: no prompts but those in English or in the language of its lens")
        seen, (langs, alone) = probe.lens.get("langs", []), _prompts_that_count(probe)
        english = excess_of(probe, langs, ENGLISH, context_of)
        row = {
            "lens": lens_name(probe.lens),
            "kind": probe.lens.get("kind", "logit"),
            "seen": " ".join(seen),
            "prompt_langs": " ".join(langs),
            **vars(english),
            "shown": english.shown,
        }
        if alone:
            own = vars(excess_of(probe, langs, alone, context_of))
            row |= {f"own_{name}": own[name] for name in ("excess", "low", "high")}
        rows.append(row)
    return pd.DataFrame(rows)


def verdict(table: pd.DataFrame) -> str:
    """`the model's`, `the lens's` or `can't tell`, by the rule above; table: of `table_of`, one kind of fitted lens."""
    blind = (table["kind"] != "logit") & ~table["seen"].str.contains(ENGLISH)  # fitted without any English
    without, others = table["shown"][blind].tolist(), table["shown"][~blind].tolist()
    if without and all(shown is True for shown in without):
        return "the model's"
    if without and others and all(shown is False for shown in without) and all(shown is True for shown in others):
        return "the lens's"
    return "can't tell"
