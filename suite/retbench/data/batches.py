"""Training batches: rows of packed tokens as a pure function of the seed and the step."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from retbench.data.packing import PackedTokens
from retbench.errors import ConfigError

IGNORED = -100
"""Target of a token that nothing is asked at; torch's cross-entropy ignores it by default."""


class Examples(NamedTuple):
    """Inputs of a model, and the token that it should predict at each.

    Attributes:
        inputs: (B, T) int64.
        targets: (B, T) int64.
        answers_only: Only some tokens have a target; that of the others is IGNORED.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    answers_only: bool = False

    def to(self, device: torch.device) -> "Examples":
        """Return the same examples on a device."""
        return self._replace(inputs=self.inputs.to(device), targets=self.targets.to(device))

    def parts(self, size: int) -> "list[Examples]":
        """Return the examples in parts of at most `size` rows."""
        pairs = zip(self.inputs.split(size), self.targets.split(size), strict=True)
        return [Examples(*pair, self.answers_only) for pair in pairs]


def next_tokens(rows: torch.Tensor) -> Examples:
    """Return rows (B, T + 1) as examples in which each of T tokens predicts the next."""
    return Examples(rows[:, :-1], rows[:, 1:])


@lru_cache(maxsize=4)  # two models of a pair, each at most between two epochs
def epoch_order(num_rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the order of the rows in an epoch, a permutation of range(num_rows).

    It ranks a bit generator's raw output, which numpy keeps the same in every version, unlike its shuffles.
    """
    keys = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(num_rows)
    return np.argsort(keys, kind="stable")


class Batches:
    """The batches of a training run by step, so that a resumed run continues with the same ones.

    The stream is cut into rows of seq_len + 1 tokens that do not overlap; a row may cross from one document into the
    next, with the end-of-text token between them. An epoch has every row once, in an order drawn from (seed, epoch). A
    batch may take the last rows of an epoch and the first of the next. Fewer than seq_len + 1 tokens at the end of the
    stream are left out. Batches do not depend on the model: all models of a comparison read the same.

    Args:
        packed: The stream.
        batch_size: Rows per step, over all ranks.
        seq_len: Predicted tokens per row; the inputs are row[:-1], the targets row[1:].
        seed: Seed of the order, 0 or more.

    Raises:
        ConfigError: the stream has fewer rows than one batch.
    """

    def __init__(self, packed: PackedTokens, *, batch_size: int, seq_len: int, seed: int) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self._seq_len = seq_len
        self.num_rows = len(packed) // (seq_len + 1)
        """Rows per epoch."""
        if self.num_rows < batch_size:
            raise ConfigError(
                f"a batch takes {batch_size} x {seq_len + 1:,} = {batch_size * (seq_len + 1):,} tokens and the split "
                f"'{packed.split}' of '{packed.header.corpus}' has {len(packed):,}. Use a smaller batch_size or "
                "seq_len, or a larger corpus."
            )
        self._rows = packed.tokens[: self.num_rows * (seq_len + 1)].reshape(self.num_rows, seq_len + 1)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
        """Return the rows of a step, from 0, for one rank; the ranks' rows in order are the whole step's.

        Returns:
            (batch_size / world_size, seq_len + 1) int64, on the CPU.
        """
        assert self.batch_size % world_size == 0
        share = self.batch_size // world_size
        start = step * self.batch_size + rank * share
        numbers = [
            epoch_order(self.num_rows, self.seed, position // self.num_rows)[position % self.num_rows]
            for position in range(start, start + share)
        ]
        return torch.from_numpy(self._rows[numbers].astype(np.int64))

    def examples(self, step: int, rank: int = 0, world_size: int = 1) -> Examples:
        """Return the rows of `batch` as examples."""
        return next_tokens(self.batch(step, rank, world_size))

    def num_targets(self, step: int) -> int:
        """Return the number of predicted tokens of a step, over all ranks; it is that of every step."""
        return self.batch_size * self._seq_len
