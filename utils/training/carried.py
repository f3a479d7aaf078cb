"""Accumulations that go on from one epoch into the next, as transformers' Trainer 4.44 has them.

There an optimizer step followed every `accumulate` batches, counted over the whole training; today's Trainer makes
one at each epoch's end too, of whatever batches are left. So today's is given all epochs as one: a row of batches in
which the fourth batch after a step is always the next step's, and a callback that tells it where the epochs end.
"""

from collections.abc import Callable, Iterator
from itertools import islice

from transformers import TrainerCallback

from utils.training.recipe import Recipe


class CarriedBatches:
    """A batch sampler: the batches of all epochs that a process reads, up to the last one that a step needs.

    order_of_epoch: epoch, from 0 -> the numbers of all texts in its order. An epoch's last batch may be a short one.
    """

    def __init__(
        self, recipe: Recipe, n_texts: int, order_of_epoch: Callable[[int], list[int]], rank: int, n_processes: int
    ):
        self.recipe, self.order_of_epoch = recipe, order_of_epoch
        self.rank, self.n_processes = rank, n_processes
        self.n_steps = recipe.epoch_ends(n_texts, n_processes)[-1]

    def __len__(self) -> int:
        return self.n_steps * self.recipe.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._all(), self.rank, len(self) * self.n_processes, self.n_processes)

    def _all(self) -> Iterator[list[int]]:
        size = self.recipe.batch_size
        for epoch in range(self.recipe.epochs):
            order = self.order_of_epoch(epoch)
            yield from (order[start : start + size] for start in range(0, len(order), size))


class EpochEnds(TrainerCallback):
    """Counts the epochs in the texts' own terms, and saves and evaluates where each one ends.

    The weights at an epoch's end are those of the last step before it, so a checkpoint there has no gradients to keep:
    what goes on from it reads the batches after that step again.
    """

    def __init__(self, recipe: Recipe, n_texts: int, n_processes: int, evaluates: bool):
        self.ends = set(recipe.epoch_ends(n_texts, n_processes))
        n_batches = -(-n_texts // recipe.batch_size)
        self.epochs_a_step = recipe.accumulate * n_processes / n_batches
        self.evaluates = evaluates

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = state.global_step * self.epochs_a_step
        if state.global_step in self.ends:
            control.should_save = True
            control.should_evaluate = self.evaluates
