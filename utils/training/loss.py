"""Cross-entropy over a large vocabulary in chunks, so that no array of logits is kept whole."""

import torch
from torch.nn.functional import linear
from transformers.modeling_outputs import CausalLMOutput

from utils.models.families import LensModel
from utils.training.cpu import product
from utils.training.texts import NOT_IN_THE_LOSS

# Bytes of one chunk of logits, in float32; below cpu.LARGEST_KEPT.
CHUNK_BYTES = 6 * 2**20


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum over positions of -log softmax(head(states))[label], and its gradient, a chunk of the vocabulary at a time.

    The gradient of log sum exp is the mean of the unembedding's rows under the softmax: attention, with these rows as
    keys and values. So one pass with a running maximum gives both (Milakov and Gimelshein 2018; Rabe and Staats 2021),
    and no logit is kept or computed again. The unembedding is frozen.
    """

    @staticmethod
    def forward(ctx, states, labels, model, n_rows):
        weight, bias = model.unembedding.weight, model.unembedding.bias
        top = torch.full((len(states), 1), -torch.inf, dtype=torch.float32, device=states.device)
        total = torch.zeros_like(top)
        gradient = torch.zeros_like(states, dtype=torch.float32)
        # Under autocast the unembedding's products have another dtype than the states.
        label_raw = linear(states[:1], weight[:1]).new_zeros(len(states))
        for start in range(0, len(weight), n_rows):
            rows = weight[start : start + n_rows]
            raw = product(states, rows, None if bias is None else bias[start : start + n_rows])
            here = (labels >= start) & (labels < start + len(rows))
            label_raw[here] = raw[here, labels[here] - start]
            raw, logits = _after_unembedding(model, raw)
            higher = torch.maximum(top, logits.detach().amax(dim=1, keepdim=True))
            exps = logits.detach().sub_(higher).exp_()
            (by_raw,) = torch.autograd.grad(logits, raw, exps)
            shrink = (top - higher).exp_()
            total = total * shrink + exps.sum(dim=1, keepdim=True)
            gradient.mul_(shrink).add_(product(by_raw, rows.T))
            top = higher
        label_raw, label_logits = _after_unembedding(model, label_raw)
        (by_label,) = torch.autograd.grad(label_logits, label_raw, torch.ones_like(label_logits))
        gradient.div_(total).sub_(by_label[:, None] * weight[labels])
        ctx.save_for_backward(gradient.to(states.dtype))
        return (top + total.log()).sum() - label_logits.detach().sum()

    @staticmethod
    def backward(ctx, by_loss):
        (gradient,) = ctx.saved_tensors
        return gradient * by_loss, None, None, None


@torch.enable_grad()
def _after_unembedding(model: LensModel, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The unembedding's products, now with a gradient of their own, and the family's logits of them in float32."""
    raw = raw.requires_grad_()
    return raw, model.family.after_unembedding(raw, model.config).float()


def chunked_loss(model: LensModel, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over positions. states: [position, width], final-normed; labels: [position]."""
    return _ChunkedCrossEntropy.apply(states, labels, model, CHUNK_BYTES // (4 * max(1, len(states))) or 1)


def install_chunked_loss(model: LensModel) -> None:
    """Make the model's own forward pass compute `chunked_loss` at the positions in the loss, and no logits."""

    def forward(input_ids, attention_mask=None, labels=None, num_items_in_batch=None, **unused):
        states = model.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        predicted = labels[:, 1:] != NOT_IN_THE_LOSS
        loss = chunked_loss(model, states[:, :-1][predicted], labels[:, 1:][predicted])
        return CausalLMOutput(loss=loss / (predicted.sum() if num_items_in_batch is None else num_items_in_batch))

    model.causal_lm.forward = forward
