"""What a training is judged by on other questions: numbers of which more is better, and what they are read from."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import regex
import torch

from utils.data.examples import Example
from utils.languages import UNICODE_SCRIPTS, script_of
from utils.models.families import LensModel
from utils.training.texts import NOT_IN_THE_LOSS, training_text

LOSS, SCRIPT, STOP, F1 = "loss", "script", "stop", "f1"
MARKUP = regex.compile(r"<[^<>]+>")


@dataclass(frozen=True)
class Query:
    """A question with its gold answer. ids[:first] is the prompt, ids[first:-1] the answer, ids[-1] the end token.

    was_cut: the context was shortened.
    """

    ids: list[int]
    first: int
    example: Example
    was_cut: bool

    @property
    def prompt(self) -> list[int]:
        return self.ids[: self.first]


def query_of(tokenizer, example: Example, max_tokens: int) -> Query | None:
    """The question as training's texts are made, its first gold answer; None where it doesn't fit into max_tokens."""
    text = training_text(tokenizer, example, "answer", max_tokens=max_tokens)
    if text is None:
        return None
    first = next(i for i, label in enumerate(text.labels) if label != NOT_IN_THE_LOSS)
    return Query(text.ids, first, example, text.was_cut)


class Measures:
    """The differentiable measures of a model on a query, each a scalar of which more is better:

    loss    minus the mean cross-entropy of the gold answer's tokens, in nats a token; the end token is not one of them
    script  log P(tokens of the query's script) - log P(tokens of the interferer's), at the answer's first token
    stop    log P(the answer ends) after the gold answer: the end tokens, and tokens that begin with a new line

    A token is of a script where it has letters and all of them are of it; parts of characters, control tokens and
    markup (<unused7>, </td>) are of none.
    """

    def __init__(self, model: LensModel, langs: Sequence[str], interferer: str | None = None):
        """langs: the queries' languages, FLORES codes; without an interferer there is no `script`.

        Raises ValueError where a language is written in a script of the interferer's, or no token is.
        """
        self.model, self.interferer = model, interferer
        ids = [[id] for id in range(model.n_tokens)]
        pieces = model.tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
        self.ends = _on(model, [*_end_tokens(model), *_new_lines(pieces)])
        self.of_lang: dict[str, torch.Tensor] = {}
        if interferer is not None:
            for lang in langs:
                require_other_script(lang, interferer)
            self.of_lang = {lang: _on(model, tokens_of_script(pieces, lang)) for lang in {*langs, interferer}}

    def of(self, model: LensModel) -> "Measures":
        """The same of another model with the same tokenizer."""
        other = copy.copy(self)
        other.model = model
        return other

    @property
    def names(self) -> list[str]:
        return [LOSS, STOP] if self.interferer is None else [LOSS, SCRIPT, STOP]

    def __call__(self, query: Query) -> dict[str, torch.Tensor]:
        """Name -> scalar, of which `torch.autograd` can take the gradient. One pass over the query's text."""
        ids = torch.tensor([query.ids], device=self.model.device)
        states = self.model.decoder(input_ids=ids, use_cache=False).last_hidden_state[0]  # [position, width]
        logits = self.model.head(states[query.first - 1 : -1])[:, : self.model.n_tokens]  # [answer + end, vocab]
        log_probs = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
        answer = ids[0, query.first : -1]
        measured = {LOSS: log_probs[:-1].gather(1, answer[:, None]).mean()}
        if self.interferer is not None:
            own, other = self.of_lang[query.example.lang], self.of_lang[self.interferer]
            measured[SCRIPT] = log_probs[0, own].logsumexp(0) - log_probs[0, other].logsumexp(0)
        return measured | {STOP: log_probs[-1, self.ends].logsumexp(0)}


def require_other_script(lang: str, interferer: str) -> None:
    """Raises ValueError where two languages share letters, so that no token tells one from the other."""
    shared = set(UNICODE_SCRIPTS[script_of(lang)]) & set(UNICODE_SCRIPTS[script_of(interferer)])
    if shared:
        raise ValueError(
            f"--interferer {interferer}: written in {min(shared)} letters, as the queries' {lang} is; "
            "choose a language of another script"
        )


def tokens_of_script(pieces: Sequence[str], lang: str) -> list[int]:
    """Ids of the pieces that have letters, all of the language's script. Raises ValueError where there is none."""
    inside = "".join(rf"\p{{Script={script}}}" for script in UNICODE_SCRIPTS[script_of(lang)])
    own = regex.compile(rf"[{inside}]")
    letters = [[] if MARKUP.fullmatch(piece) else regex.findall(r"\p{L}", piece) for piece in pieces]
    found = [id for id, of_piece in enumerate(letters) if of_piece and all(map(own.match, of_piece))]
    if not found:
        raise ValueError(f"no token of the model is written in the script of {lang}, so `script` can't be measured")
    return found


def _new_lines(pieces: Sequence[str]) -> list[int]:
    """Pieces after which the answer's line is over with nothing more in it."""
    return [id for id, piece in enumerate(pieces) if piece.lstrip(" \t").startswith("\n")]


def _end_tokens(model: LensModel) -> list[int]:
    """The tokenizer's end token and those of the model's generation settings."""
    named = getattr(getattr(model.causal_lm, "generation_config", None), "eos_token_id", None)
    ends = {model.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    return sorted(id for id in ends if id < model.n_tokens)


def _on(model: LensModel, ids: list[int]) -> torch.Tensor:
    return torch.tensor(sorted(set(ids)), device=model.device)
