"""What a lens reads: what would the model say if it stopped after this layer?

vocab_probs[l] = softmax(head(final_norm(h_l)))        l = 0 .. L

That is the logit lens (nostalgebraist 2020); the others of `lenses` put something in place of h_l.
"""

import math
from dataclasses import dataclass

import torch

from utils.lens.distributions import Distributions, Vocabulary
from utils.lens.lenses import LOGIT, Lens
from utils.models.arithmetic import head_pieces, quick_maps
from utils.models.checks import TOLERANCE, total_variation
from utils.models.families import LensModel
from utils.models.hidden_states import MAX_BATCH_TOKENS, Prompt, hidden_states
from utils.models.prefixes import NO_PASS_MORE, shared_hidden_states

# Bytes that the vocabulary-sized arrays of one step may take; the work is cut along the positions.
STEP_BYTES = 320 * 2**20
# A prompt's likeliest tokens at a layer that are kept; what is beyond them is kept by channel.
KEPT_TOKENS = 128


@dataclass(frozen=True)
class Reading:
    """What the lens reads at each layer of each prompt. Quantities of several positions are averaged.

    language_probs: [prompt, layer, channel]; entropy_bits, kl_to_final_bits: [prompt, layer];
    top1_agreement: [prompt, layer], the share of positions whose top token is the final layer's;
    top_ids, top_probs: [prompt, layer, KEPT_TOKENS], likely tokens and their mass; with several positions those of
    each, so that a token may come twice; mass 0 where there are fewer.
    vocab_prob_sums: [layer, vocab], summed over the prompts. float32.
    """

    language_probs: torch.Tensor
    entropy_bits: torch.Tensor
    kl_to_final_bits: torch.Tensor
    top1_agreement: torch.Tensor
    top_ids: torch.Tensor
    top_probs: torch.Tensor
    vocab_prob_sums: torch.Tensor


def logits(model: LensModel, states: torch.Tensor) -> torch.Tensor:
    """[..., width] -> float32 logits [..., vocab] over the tokenizer's ids; the unembedding's padding rows are cut."""
    return model.head(model.final_norm(states).to(states.device))[..., : model.n_tokens].float()


def vocab_probs(model: LensModel, states: torch.Tensor) -> torch.Tensor:
    """The equation above: [..., width] -> [..., vocab], each row summing to 1."""
    return torch.softmax(logits(model, states), dim=-1)


def by_pieces(model: LensModel, states: torch.Tensor) -> torch.Tensor:
    """`vocab_probs` with the head as `read` computes it: [layer, width] -> [layer, vocab]."""
    normed = model.final_norm(states).to(states.device)
    return torch.softmax(torch.cat([piece.logits(normed) for piece in head_pieces(model)], dim=-1), dim=-1)


@torch.inference_mode()
def mean_vocab_probs(model: LensModel, prompts: list[Prompt], at_last: LensModel | None = None) -> torch.Tensor:
    """What the plain lens reads on average over all the prompts' positions: [layer, vocab], float64, rows sum to 1.

    at_last: what reads the last layer in the model's place, where its head is another one.
    """
    total = torch.zeros(len(model.layers) + 1, model.n_tokens, dtype=torch.float64)
    for prompt in prompts:
        for state in hidden_states(model, [prompt]):
            probs = vocab_probs(model, state)
            if at_last:
                probs[-1] = vocab_probs(at_last, state[-1])
            total += probs.double().cpu()
    return total / total.sum(dim=1, keepdim=True)


@torch.inference_mode()
def read(
    model: LensModel, prompts: list[Prompt], states: torch.Tensor, token_languages: torch.Tensor | Vocabulary
) -> Reading:
    """states: [position, layer, width] of `hidden_states`, as the lens moves them; token_languages: [vocab, channel],
    or the `Vocabulary` made of it.

    language_probs[l] = vocab_probs[l] @ token_languages. Each prompt weighs the same, however many its positions.
    """
    vocabulary = token_languages if isinstance(token_languages, Vocabulary) else Vocabulary.of(model, token_languages)
    n_layers, n_channels = states.shape[1], vocabulary.n_channels
    lengths = torch.tensor([len(prompt.positions) for prompt in prompts], device=states.device)
    weights = (1 / lengths).repeat_interleave(lengths)  # [position]
    prompt_of = torch.arange(len(prompts), device=states.device).repeat_interleave(lengths)
    languages = torch.zeros(len(prompts), n_layers, n_channels, device=states.device)
    scalars = torch.zeros(len(prompts), n_layers, 3, device=states.device)  # entropy, KL, agreement
    sums = torch.zeros(n_layers, model.n_tokens, device=states.device)
    kept = min(KEPT_TOKENS, model.n_tokens)
    top_ids = torch.zeros(len(prompts), n_layers, kept, dtype=torch.int32, device=states.device)
    top_probs = torch.zeros(len(prompts), n_layers, kept, device=states.device)
    nth = torch.cat([torch.arange(int(length)) for length in lengths])  # [position], which of its prompt's it is
    arrays = 2 if len(vocabulary.pieces) == 1 else 1  # of all logits and all probabilities, or of the latter alone
    step = max(1, STEP_BYTES // (arrays * 4 * n_layers * model.n_tokens))
    scratch = vocabulary.room(min(step, len(states)) * n_layers * model.n_tokens, states.device)
    for start in range(0, len(states), step):
        chunk = slice(start, start + step)
        some = Distributions.of(vocabulary, states[chunk], scratch)
        weight = weights[chunk, None, None]
        likely_probs, likely_ids = some.likeliest(kept // int(lengths[prompt_of[chunk]].min()) or 1)
        agreement = (likely_ids[..., 0] == likely_ids[:, -1:, 0]).float()
        # Rounding can leave an entropy or a divergence a hair below zero, where neither can be.
        in_bits = [some.entropy.clamp(min=0) / math.log(2), some.kl.clamp(min=0) / math.log(2), agreement]
        languages.index_add_(0, prompt_of[chunk], weight * some.languages)
        scalars.index_add_(0, prompt_of[chunk], weight * torch.stack(in_bits, dim=-1))
        for i, prompt in enumerate(prompt_of[chunk].tolist()):
            n = max(kept // int(lengths[prompt]), 1)  # tokens of each of the prompt's positions
            slots = slice(int(nth[start + i]) * n, (int(nth[start + i]) + 1) * n)
            width = top_ids[prompt, 0, slots].shape[0]  # none is left for a position past the last slot
            top_ids[prompt, :, slots] = likely_ids[i, :, :width]
            top_probs[prompt, :, slots] = likely_probs[i, :, :width] * weights[start + i]
        some.add_to(sums, weights[chunk])
    entropy_bits, kl_to_final_bits, agreements = scalars.unbind(-1)
    sums = vocabulary.by_id(sums)
    return Reading(languages, entropy_bits, kl_to_final_bits, agreements, top_ids, top_probs, sums)


@torch.inference_mode()
def self_check(
    model: LensModel,
    prompts: list[Prompt],
    max_tokens: int = MAX_BATCH_TOKENS["cpu"],
    shares: bool = True,
    lens: Lens = LOGIT,
) -> dict[str, float]:
    """Two distances that must be nothing but rounding, on one batch of prompts; both in total variation.

    last_layer: between the lens at the last layer and the model's own next-token distribution.
    batch: between the lens at any layer for a prompt in the padded batch, as `shared_hidden_states` and `read` compute
    it in the quick arithmetic, and for the same prompt alone in the usual one; the shortest prompt, which has the most
    padding, and the longest. Raises ValueError where either is more.
    """
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    ends = sorted({by_length[0], by_length[-1]})
    up_to_last = [Prompt(prompts[i].ids[: prompts[i].positions[-1] + 1], prompts[i].positions[-1:]) for i in ends]
    last_of = torch.tensor([len(prompt.positions) for prompt in prompts]).cumsum(0) - 1  # of each prompt's positions
    with quick_maps(model):
        # In as few passes as can be, so that there is padding.
        in_batch = shared_hidden_states(model, prompts, max_tokens, shares, of_pass=NO_PASS_MORE)[last_of[ends]]
    distances = {"last_layer": 0.0, "batch": 0.0}
    for prompt, batched in zip(up_to_last, in_batch):
        alone = vocab_probs(model, lens(hidden_states(model, [prompt]))[0])  # [layer, vocab]
        ids = torch.tensor([prompt.ids], device=model.device)
        own = model.causal_lm(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1, : model.n_tokens]
        own = torch.softmax(own.float(), dim=-1)
        distances["last_layer"] = max(distances["last_layer"], total_variation(alone[-1], own))
        distances["batch"] = max(distances["batch"], total_variation(alone, by_pieces(model, lens(batched))))
    tolerance = TOLERANCE[model.dtype]
    for name, of_what in (("last_layer", "the model's own next-token distribution"), ("batch", "the prompt alone")):
        if not distances[name] <= tolerance:
            raise ValueError(
                f"self-check failed: the lens is {distances[name]:.2g} away from {of_what} (total variation; "
                f"{tolerance:.2g} is allowed in {str(model.dtype).removeprefix('torch.')}); no number of it can be used"
            )
    return distances
