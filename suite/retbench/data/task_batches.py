"""Training batches of a synthetic task: fresh examples at every step, by (task, split, index)."""

import numpy as np
import torch

from retbench.config.synthetic import LengthRecallTask, MqarTask, NeedleTask, TaskSpec
from retbench.data.batches import IGNORED, Examples
from retbench.data.length_examples import make_length_examples
from retbench.data.needle_examples import make_needle_examples
from retbench.data.synthetic import Array, make_examples

SEED_STRIDE = 2**40
"""Indices between the training examples of two seeds; no run is as long."""


class SyntheticBatches:
    """The training batches of a task by step: fresh examples, whose kinds take turns.

    Args:
        task: The task.
        batch_size: Examples per step, over all ranks.
        seq_len: Tokens per example.
        seed: Seed of the run; two seeds have no example in common.
    """

    def __init__(self, task: TaskSpec, *, batch_size: int, seq_len: int, seed: int) -> None:
        self.batch_size = batch_size
        self._task, self._seq_len = task, seq_len
        self._first = seed * SEED_STRIDE
        self._kept: tuple[int, Examples] | None = None

    def examples(self, step: int, rank: int = 0, world_size: int = 1) -> Examples:
        """Return the examples of a step, from 0, for one rank; the ranks' examples in order are the whole step's."""
        assert self.batch_size % world_size == 0
        share = self.batch_size // world_size
        inputs, targets, answers_only = self._whole(step)
        mine = slice(rank * share, (rank + 1) * share)
        return Examples(inputs[mine], targets[mine], answers_only)

    def num_targets(self, step: int) -> int:
        """Return the number of answers of a step, over all ranks."""
        return int((self._whole(step).targets != IGNORED).sum())

    def _whole(self, step: int) -> Examples:
        """Return the examples of a step; those of the last step that was asked for are kept."""
        if self._kept is None or self._kept[0] != step:
            start = self._first + step * self.batch_size
            examples = mixed_examples(self._task, "train", self._seq_len, start=start, count=self.batch_size)
            self._kept = (step, examples)
        return self._kept[1]


def mixed_examples(task: TaskSpec, split: str, seq_len: int, *, start: int, count: int) -> Examples:
    """Return the examples at the positions start .. start + count - 1 of a task, whose kinds take turns."""
    num_kinds = len(task.kinds)
    inputs = np.empty((count, seq_len), dtype=np.int64)
    targets = np.empty_like(inputs)
    for turn in range(num_kinds):
        offset = (turn - start) % num_kinds
        places = slice(offset, count, num_kinds)
        number = len(range(offset, count, num_kinds))
        if number:
            first = (start + offset) // num_kinds
            inputs[places], targets[places] = _examples_of_kind(task, turn, split, seq_len, first, number)
    return Examples(torch.from_numpy(inputs), torch.from_numpy(targets), answers_only=True)


def _examples_of_kind(
    task: TaskSpec, turn: int, split: str, seq_len: int, start: int, count: int
) -> tuple[Array, Array]:
    """Return examples of the kind that has a turn."""
    match task:
        case MqarTask():
            return make_examples(task, split, task.num_pairs[turn], seq_len, start=start, count=count)
        case LengthRecallTask():
            return make_length_examples(task, split, task.tasks[turn], seq_len, start=start, count=count)
        case NeedleTask():
            return make_needle_examples(split, seq_len, start=start, count=count)
