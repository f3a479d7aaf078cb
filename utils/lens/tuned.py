"""Fits the tuned lens: an affine map a layer, so that what it reads is close to what the last layer says.

Belrose et al. 2023, "Eliciting latent predictions from transformers with the tuned lens": at each layer l the loss is

    KL(softmax(head(final_norm(h_L))) || softmax(head(final_norm(h_l + A_l h_l + b_l))))

The whole vocabulary at every layer, position and step would cost hours on a CPU. So the maps start from the solution of
a least-squares problem, and each step of descent computes the loss on a part of the vocabulary (`sampled_kl`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch.nn.functional import linear

from utils.lens import reading
from utils.lens.lenses import TunedLens
from utils.models.families import LensModel
from utils.models.hidden_states import Prompt

# Ridge of the least squares, in variances of each coordinate: toward A = 0, the logit lens.
RIDGE = 0.03
POSITIONS_OF_A_STEP = 128
LIKELY_TOKENS = 16  # of each position's last layer, all in every loss
OTHER_TOKENS = 2048  # drawn from the rest for each step
LEARNING_RATE = 2e-4
# Positions of a chunk when the whole vocabulary is computed.
CHUNK = 128


@dataclass(frozen=True)
class Sample:
    """Positions of texts. states: [position, layer, width]; likely: [position, LIKELY_TOKENS], the last layer's
    likeliest tokens; log_total: [position], the log of its softmax's normaliser.
    """

    states: torch.Tensor
    likely: torch.Tensor
    log_total: torch.Tensor


def drawn_positions(ids: list[int], n: int, generator: torch.Generator) -> Prompt:
    """n positions of a text, but none is the first: attention rests there, and its states are like no others."""
    order = torch.randperm(len(ids) - 1, generator=generator)[:n] + 1
    return Prompt(ids, sorted(order.tolist()))


@torch.inference_mode()
def sample_of(model: LensModel, states: torch.Tensor) -> Sample:
    """States [position, layer, width] with what the last layer says there."""
    likely, totals = [], []
    for chunk in states[:, -1].split(CHUNK):
        z = reading.logits(model, chunk)
        likely.append(z.topk(min(LIKELY_TOKENS, z.shape[-1]), dim=-1).indices)
        totals.append(z.logsumexp(dim=-1))
    return Sample(states, torch.cat(likely), torch.cat(totals))


@dataclass
class Moments:
    """Weighted sums over positions, enough for `least_squares`; in float64, and of any number of texts.

    A position's weight is 1 / mean square of h_L there: the final norm divides by it.
    below: [layer, width] of h_l; last: [width] of h_L; squares: [layer, width, width] of h_l h_l'; products: the same
    of h_L h_l'; last_squares: [width] of each coordinate of h_L; weight: [].
    """

    weight: torch.Tensor
    below: torch.Tensor
    last: torch.Tensor
    squares: torch.Tensor
    products: torch.Tensor
    last_squares: torch.Tensor

    @classmethod
    def none(cls, n_layers: int, width: int, device) -> "Moments":
        shapes = ((), (n_layers, width), (width,), (n_layers, width, width), (n_layers, width, width), (width,))
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def add(self, states: torch.Tensor) -> None:
        """states: [position, layer, width], the last layer among them."""
        last = states[:, -1].float()
        weights = 1 / last.square().mean(dim=1)
        weighted = last * weights[:, None]
        self.weight += weights.sum()
        self.last += weighted.sum(dim=0)
        self.last_squares += (weighted * last).sum(dim=0)
        for layer in range(states.shape[1] - 1):
            of_layer = states[:, layer].float()
            self.below[layer] += (of_layer * weights[:, None]).sum(dim=0)
            self.squares[layer] += (of_layer * weights[:, None]).T @ of_layer
            self.products[layer] += weighted.T @ of_layer


class TunedFit:
    """The maps while they are fitted; `state` and `restore` let a run that was stopped go on.

    In whitened coordinates, x = S (h - mean), all directions of a layer's states are as easy to learn:
    h + A h + b = h + scale * (B x) + c, with B and c fitted by Adam and `scale` the spread of h_L's coordinates.
    """

    def __init__(self, model: LensModel, moments: Moments, sample: Sample, n_steps: int, seed: int):
        self.model, self.sample, self.n_steps, self.seed = model, sample, n_steps, seed
        variances = moments.last_squares / moments.weight - (moments.last / moments.weight).square()
        self.scale = variances.clamp(min=1e-12).sqrt().float()
        starts = [least_squares(moments, layer) for layer in range(len(moments.below))]
        self.means = torch.stack([start.mean for start in starts])  # [layer, width]
        self.whitenings = torch.stack([start.whitening for start in starts])  # [layer, width, width]
        maps = torch.stack([start.map for start in starts]) / self.scale[:, None]
        shifts = torch.stack([start.shift for start in starts]) / self.scale
        self.maps = torch.nn.Parameter(maps)  # B: [layer, width, width]
        self.shifts = torch.nn.Parameter(shifts)  # c / scale: [layer, width]
        self.optimizer = torch.optim.Adam([self.maps, self.shifts], lr=LEARNING_RATE, betas=(0.9, 0.98))
        self.step_number = 0

    def step(self) -> float:
        """One step of descent; returns the loss in nats, the mean over layers and positions."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step_number)
        rows = torch.randint(len(self.sample.states), (POSITIONS_OF_A_STEP,), generator=generator)
        rows = rows.to(self.sample.states.device)
        # The rate falls to zero, so that the last steps average out what sampling adds.
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - self.step_number / self.n_steps)
        states = self.sample.states[rows].float()
        tokens = drawn_tokens(self.model, self.sample.likely[rows], generator)
        target = tokens.log_probs(self.model, states[:, -1], self.sample.log_total[rows])
        self.optimizer.zero_grad()
        total = 0.0
        for layer in range(states.shape[1] - 1):  # one at a time: the graph of one is kept, not of all
            loss = tokens.kl(self.model, target, self.moved(states[:, layer], layer))
            loss.backward(inputs=[self.maps, self.shifts])
            total += float(loss.detach())
        self.optimizer.step()
        self.step_number += 1
        return total / (states.shape[1] - 1)

    def moved(self, states: torch.Tensor, layer: int) -> torch.Tensor:
        """[position, width] of a layer -> the last layer's coordinates."""
        white = (states - self.means[layer]) @ self.whitenings[layer].T
        return states + self.scale * (white @ self.maps[layer].T + self.shifts[layer])

    def lens(self) -> TunedLens:
        with torch.no_grad():
            matrices = self.scale[:, None] * (self.maps @ self.whitenings)  # A = scale B S
            biases = self.scale * self.shifts - torch.einsum("lij,lj->li", matrices, self.means)
        return TunedLens(matrices, biases=biases)

    def state(self) -> dict[str, torch.Tensor]:
        moments = [self.optimizer.state.get(parameter, {}) for parameter in (self.maps, self.shifts)]
        of_adam = {
            f"{name}_{i}": torch.as_tensor(value)
            for i, of_parameter in enumerate(moments)
            for name, value in of_parameter.items()
        }
        return {"maps": self.maps.detach(), "shifts": self.shifts.detach(), **of_adam}

    def restore(self, state: dict[str, torch.Tensor], step_number: int) -> None:
        self.step_number = step_number
        with torch.no_grad():
            self.maps.copy_(state["maps"])
            self.shifts.copy_(state["shifts"])
        for i, parameter in enumerate((self.maps, self.shifts)):
            names = ("step", "exp_avg", "exp_avg_sq")
            if f"step_{i}" in state:
                device = parameter.device
                self.optimizer.state[parameter] = {
                    name: state[f"{name}_{i}"].clone().to(device if name != "step" else "cpu") for name in names
                }


@dataclass(frozen=True)
class _Start:
    mean: torch.Tensor
    whitening: torch.Tensor
    map: torch.Tensor
    shift: torch.Tensor


def least_squares(moments: Moments, layer: int) -> _Start:
    """The affine map of a layer's states that is closest to the last layer's, a ridge regression:

        min over A, b of  sum_i w_i |h_L,i - h_i - A h_i - b|^2 + RIDGE sum_i w_i |A D|^2,    D^2 = variances of h

    Solved by the Cholesky factor K of C + RIDGE D^2, C the weighted covariance of h: A = map @ whitening with
    whitening = K^-1.
    """
    mean, mean_last = moments.below[layer] / moments.weight, moments.last / moments.weight
    covariance = moments.squares[layer] / moments.weight - torch.outer(mean, mean)
    with_last = moments.products[layer] / moments.weight - torch.outer(mean_last, mean)  # of h_L with h
    shrunk = covariance + torch.diag(RIDGE * covariance.diagonal().clamp(min=1e-12))
    factor = torch.linalg.cholesky(shrunk)
    whitening = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)
    mapping = (with_last - covariance) @ whitening.T
    return _Start(*(tensor.float() for tensor in (mean, whitening, mapping, mean_last - mean)))


@dataclass(frozen=True)
class DrawnTokens:
    """A part of the vocabulary that stands for the whole: its rows of the unembedding (and of its bias, where there is
    one), [token, width], and the log of how many tokens each stands for, [token].
    """

    rows: torch.Tensor
    bias: torch.Tensor | None
    log_weights: torch.Tensor

    def logits(self, model: LensModel, states: torch.Tensor) -> torch.Tensor:
        normed = model.final_norm(states.to(model.dtype))
        return model.family.after_unembedding(linear(normed, self.rows, self.bias), model.config).float()

    @torch.no_grad()
    def log_probs(self, model: LensModel, last: torch.Tensor, log_total: torch.Tensor) -> torch.Tensor:
        """log of the last layer's probabilities of these tokens, [position, token]; log_total: over all of them."""
        return self.logits(model, last) - log_total[:, None]

    def kl(self, model: LensModel, target: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """KL(target || what is read of states), the mean over positions, in nats, without bias but in the
        normaliser: a token that was drawn counts for all those that were not.
        """
        z = self.logits(model, states)
        log_q = z - (z + self.log_weights).logsumexp(dim=-1, keepdim=True)
        weighted = (target + self.log_weights).exp()
        return (weighted * (target - log_q)).sum(dim=-1).mean()


def drawn_tokens(model: LensModel, likely: torch.Tensor, generator: torch.Generator) -> DrawnTokens:
    """All of `likely`, and OTHER_TOKENS of the rest of the vocabulary, drawn evenly; each once."""
    sure = likely.unique()
    drawn = torch.randint(model.n_tokens, (OTHER_TOKENS,), generator=generator).unique().to(sure.device)
    others = drawn[~torch.isin(drawn, sure)]
    n_rest = model.n_tokens - len(sure)
    log_weight = torch.log(torch.tensor(max(n_rest, 1) / max(len(others), 1)))
    weights = torch.cat([torch.zeros(len(sure)), log_weight.expand(len(others))])
    ids = torch.cat([sure, others])
    weight, bias = cast(torch.Tensor, model.unembedding.weight).detach(), getattr(model.unembedding, "bias", None)
    return DrawnTokens(weight[ids], None if bias is None else bias.detach()[ids], weights.to(ids.device))


@torch.inference_mode()
def kl_to_last(model: LensModel, states: torch.Tensor, lens: Callable) -> torch.Tensor:
    """KL of the last layer from what the lens reads, in bits, whole vocabulary: [position, layer].

    states: [position, layer, width] of `hidden_states`.
    """
    found = []
    for chunk in states.split(max(1, CHUNK // states.shape[1])):
        log_q = torch.log_softmax(reading.logits(model, lens(chunk)), dim=-1)  # [position, layer, vocab]
        log_p = log_q[:, -1:]
        found.append((log_p.exp() * (log_p - log_q)).sum(dim=-1))
    return torch.cat(found).clamp(min=0) / torch.log(torch.tensor(2.0))
