"""Texts to fit a lens on, and fits that go on where they were stopped."""

import time
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load, save
from tqdm import tqdm

from utils.lens.jacobian import SKIPPED, text_jacobians
from utils.lens.lenses import LOGIT, JacobianLens, TunedLens
from utils.lens.tuned import Moments, Sample, TunedFit, drawn_positions, kl_to_last, sample_of
from utils.models.families import LensModel
from utils.models.hidden_states import Prompt, encode, hidden_states
from utils.runs import write_atomically

# The last fifth of each language's sentences is for the loss on held-out text.
HELD_OUT = 0.2
# Positions of a text in the steps of descent, and in the loss on held-out text.
SAMPLED_POSITIONS, HELD_OUT_POSITIONS = 16, 4
TEXTS_OF_A_BATCH = 16
CHECKPOINTS = "checkpoints"
SECONDS_BETWEEN_SAVES = 30.0

Texts = list[tuple[str, list[int]]]  # (language, token ids)


def texts_of(
    model: LensModel, sentences: dict[str, list[str]], n_tokens: int, limit: int, n_held_out: int
) -> tuple[Texts, Texts]:
    """Texts to fit on and held-out ones, at most `limit` and `n_held_out`, dealt out over the languages in turn.

    Each has n_tokens tokens, the begin token included: consecutive sentences, cut. Sentences of one number are held
    out in all languages, so no held-out text is a translation of another's in a parallel corpus.
    Raises ValueError for a language whose sentences are too few for a text of either kind.
    """
    fitted: list[Texts] = []
    held_out: list[Texts] = []
    for code, of_lang in sentences.items():
        n_fitted = len(of_lang) - max(1, round(HELD_OUT * len(of_lang)))
        for part, kept, n in ((of_lang[:n_fitted], fitted, limit), (of_lang[n_fitted:], held_out, n_held_out)):
            kept.append([(code, ids) for ids in _cut(model, part, n_tokens, n)])
            if not kept[-1]:
                raise ValueError(
                    f"{code}: {len(part)} of its {len(of_lang)} sentences give no text of {n_tokens} tokens"
                )
    return _dealt_out(fitted)[:limit], _dealt_out(held_out)[:n_held_out]


def _cut(model: LensModel, sentences: list[str], n_tokens: int, most: int) -> list[list[int]]:
    texts: list[list[int]] = []
    text = ""
    for sentence in sentences:
        if len(texts) == most:
            break
        text = f"{text} {sentence}" if text else sentence
        ids = encode(model.tokenizer, text)
        if len(ids) >= n_tokens:
            texts.append(ids[:n_tokens])
            text = ""
    return texts


def _dealt_out(parts: list[Texts]) -> Texts:
    return [text for turn in zip_longest(*parts) for text in turn if text is not None]


def fit_jacobian(run: Path, model: LensModel, texts: Texts) -> JacobianLens:
    """The mean of the texts' Jacobians, added up text after text; texts of SKIPPED + 1 tokens or fewer can't be.

    Raises ValueError where a Jacobian is not finite.
    """
    n_layers, width = len(model.layers), model.width
    checkpoint = _Checkpoint(run, "jacobian")
    state = checkpoint.read() or {"sums": torch.zeros(n_layers, width, width), "done": torch.tensor(0)}
    for i in tqdm(
        range(int(state["done"]), len(texts)),
        desc="fitting",
        unit="text",
        disable=None,
        total=len(texts),
        initial=int(state["done"]),
    ):
        found = text_jacobians(model, texts[i][1], SKIPPED)
        if not found.isfinite().all():
            raise ValueError(
                f"a Jacobian of a text in {texts[i][0]} is not finite in {model.dtype}; try --dtype float32"
            )
        state["sums"] += found.float().cpu()
        state["done"] += 1
        checkpoint.write_now_and_then(lambda: state)
    return JacobianLens(state["sums"] / len(texts))


def fit_tuned(run: Path, model: LensModel, texts: Texts, n_steps: int, seed: int) -> tuple[TunedLens, list[float]]:
    """The tuned lens, and the loss of each step in nats (on a part of the vocabulary)."""
    fit = TunedFit(model, *_collected(run, model, texts, seed), n_steps, seed)
    checkpoint = _Checkpoint(run, "steps")
    losses: list[float] = []
    if state := checkpoint.read():
        losses = state.pop("losses").tolist()
        fit.restore(state, len(losses))
    bar = tqdm(
        range(len(losses), n_steps), desc="fitting", unit="step", disable=None, total=n_steps, initial=len(losses)
    )
    for _ in bar:
        losses.append(fit.step())
        bar.set_postfix_str(f"loss {losses[-1]:.3f}")
        checkpoint.write_now_and_then(lambda: {**fit.state(), "losses": torch.tensor(losses, dtype=torch.float64)})
    return fit.lens(), losses


def _collected(run: Path, model: LensModel, texts: Texts, seed: int) -> tuple[Moments, Sample]:
    """Moments over all positions of the texts but their first ones; a sample of SAMPLED_POSITIONS of each."""
    generator = torch.Generator().manual_seed(seed)
    sampled = [drawn_positions(ids, SAMPLED_POSITIONS, generator).positions for _, ids in texts]
    checkpoint = _Checkpoint(run, "states")
    state = {name: tensor.to(model.device) for name, tensor in (checkpoint.read() or {}).items()}
    done = int(state.get("done", 0))
    moments = Moments.none(len(model.layers), model.width, model.device)
    if done:
        moments = Moments(*(state[name] for name in Moments.__dataclass_fields__))
    parts = [Sample(*(state[name] for name in Sample.__dataclass_fields__))] if done else []

    def reached(done: int) -> dict[str, torch.Tensor]:
        return {**vars(moments), **vars(_joined(parts)), "done": torch.tensor(done)}

    with tqdm(total=len(texts), initial=done, desc="reading", unit="text", disable=None) as bar:
        for start in range(done, len(texts), TEXTS_OF_A_BATCH):
            batch = [ids for _, ids in texts[start : start + TEXTS_OF_A_BATCH]]
            states = hidden_states(model, [Prompt(ids, list(range(1, len(ids)))) for ids in batch])
            moments.add(states)
            of_texts = states.split([len(ids) - 1 for ids in batch])
            some = [of_text[[p - 1 for p in sampled[start + i]]] for i, of_text in enumerate(of_texts)]
            parts.append(sample_of(model, torch.cat(some)))
            bar.update(len(batch))
            checkpoint.write_now_and_then(partial(reached, start + len(batch)))
    checkpoint.write(reached(len(texts)))
    return moments, _joined(parts)


def _joined(parts: list[Sample]) -> Sample:
    return Sample(*(torch.cat([getattr(part, name) for part in parts]) for name in Sample.__dataclass_fields__))


def held_out_loss(model: LensModel, texts: Texts, lens: Callable, seed: int) -> pd.DataFrame:
    """lang, layer, kl_logit, kl_lens, n: KL of the last layer from the plain and from this lens, in bits, the mean
    over n drawn positions of the held-out texts, over the whole vocabulary.
    """
    generator = torch.Generator().manual_seed(seed)
    prompts = [drawn_positions(ids, HELD_OUT_POSITIONS, generator) for _, ids in texts]
    tables = []
    with tqdm(total=len(texts), desc="held-out loss", unit="text", leave=False, disable=None) as bar:
        for (lang, _), prompt in zip(texts, prompts):
            states = hidden_states(model, [prompt])
            of_lenses = {
                name: kl_to_last(model, states, used).cpu() for name, used in (("kl_logit", LOGIT), ("kl_lens", lens))
            }
            for kl_logit, kl_lens in zip(*of_lenses.values()):
                columns = {"layer": range(len(kl_logit)), "kl_logit": kl_logit, "kl_lens": kl_lens}
                tables.append(pd.DataFrame(columns).assign(lang=lang))
            bar.update()
    table = pd.concat(tables, ignore_index=True)
    groups = table.groupby(["lang", "layer"], sort=False)
    return groups.mean().assign(n=groups.size()).reset_index()


class _Checkpoint:
    """Tensors on the disk that a fit goes on from."""

    def __init__(self, run: Path, name: str):
        self.path = run / CHECKPOINTS / f"{name}.safetensors"
        self._written_at = time.monotonic()

    def read(self) -> dict[str, torch.Tensor] | None:
        return load(self.path.read_bytes()) if self.path.exists() else None

    def write_now_and_then(self, state: Callable[[], dict[str, torch.Tensor]]) -> None:
        if time.monotonic() - self._written_at > SECONDS_BETWEEN_SAVES:
            self.write(state())

    def write(self, state: dict[str, torch.Tensor]) -> None:
        self.path.parent.mkdir(exist_ok=True)
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
        write_atomically(self.path, lambda file: file.write(content))
        self._written_at = time.monotonic()
