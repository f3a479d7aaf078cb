"""What a model makes of sentences: their mean states and their losses, with or without forced neurons."""

import numpy as np
import torch

from utils.models.checks import require_finite
from utils.models.families import LensModel
from utils.models.hidden_states import Prompt
from utils.models.interventions import run_decoder

# Logits of so many positions are in memory at a time.
POSITIONS_AT_ONCE = 256


def pooled_and_losses(
    model: LensModel, prompts: list[Prompt], n_losses: int, batches: list[list[int]]
) -> tuple[np.ndarray, np.ndarray]:
    """(mean last hidden states [prompt, width], losses of the first n_losses prompts), float32 and float64.

    The last hidden state is what leaves the final norm. A loss is in nats a token; both are means over the positions
    that count. A token is predicted from what stands before it; the first one of all has no loss.
    Raises ValueError for states that are not finite.
    """
    pooled: np.ndarray | None = None
    losses = np.full(min(n_losses, len(prompts)), np.nan)
    for batch in batches:
        states, counts = run_decoder(model, [prompts[i] for i in batch])
        require_finite(torch.isfinite(states[counts]).all(), "last hidden states", model.dtype)
        if pooled is None:
            pooled = np.empty((len(prompts), states.shape[-1]), dtype=np.float32)
        kept = states.float().masked_fill(~counts[..., None], 0)
        pooled[batch] = (kept.sum(dim=1) / counts.sum(dim=1, keepdim=True)).cpu().numpy()
        for i, row in zip(batch, states):
            if i < len(losses):
                losses[i] = _loss(model, prompts[i], row)
    assert pooled is not None, "no sentences"
    return pooled, losses


@torch.inference_mode()
def _loss(model: LensModel, prompt: Prompt, states: torch.Tensor) -> float:
    """Mean of -log P(token | what stands before it) over the prompt's positions; states: [position, width], normed."""
    predicted = torch.tensor([position for position in prompt.positions if position > 0], device=states.device)
    ids = torch.tensor(prompt.ids, device=states.device)
    total = 0.0
    for part in predicted.split(POSITIONS_AT_ONCE):
        logits = model.head(states[part - 1])[:, : model.n_tokens].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[part], reduction="sum"))
    return total / len(predicted) if len(predicted) else float("nan")
