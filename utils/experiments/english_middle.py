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

import pandas as pd

from utils.languages import ENGLISH
from utils.lens.probe_runs import ProbeRun, lens_name
from utils.uncertainty import Z_95, standard_error

LAYERS = range(8, 17)
LEAST = 0.10


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
    column = probe.channels.index(channel)
    prompts = probe.prompts[probe.prompts["prompt_lang"].isin(prompt_langs)]
    of_prompts = probe.influence[prompts.index][:, list(LAYERS), column].mean(axis=1)
    by_id = prompts.assign(value=of_prompts).pivot_table(index="id", columns="prompt_lang", values="value")
    by_id = by_id[prompt_langs].dropna()
    clusters = [context_of[prompt_langs[0], id] for id in by_id.index]
    share = by_id.mean(axis=1).to_numpy()
    cells = probe.cells(prompt_langs[0])
    null = cells[(cells["channel"] == channel) & cells["layer"].isin(LAYERS)]["null_share"].mean()
    middle, margin = share.mean() - null, Z_95 * standard_error(share, clusters)
    return Excess(
        float(middle), float(middle - margin), float(middle + margin), float(share.mean()), float(null), len(share)
    )


def table_of(runs: list[Path], context_of: dict) -> pd.DataFrame:
    """A row a probe: its lens, which prompts count, the excess of English and of the lens's own language.

    own_*: the same of the one language that a lens was fitted on, in prompts in others; NaN for other lenses.
    """
    rows = []
    for run in runs:
        probe = ProbeRun(Path(run))
        seen = probe.lens.get("langs", [])
        alone = seen[0] if len(seen) == 1 else None
        langs = [lang for lang in dict.fromkeys(probe.prompts["prompt_lang"]) if lang not in (ENGLISH, alone)]
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
