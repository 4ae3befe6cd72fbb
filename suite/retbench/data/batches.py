"""Training batches: rows of packed tokens as a pure function of the seed and the step."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from retbench.data.packing import PackedTokens
from retbench.errors import ConfigError


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
        ConfigError: a size is not positive, or the stream has fewer rows than one batch.
    """

    def __init__(self, packed: PackedTokens, *, batch_size: int, seq_len: int, seed: int) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("seq_len", seq_len, 1), ("seed", seed, 0)):
            if value < least:
                raise ConfigError(f"{name} is {value}; it has to be {least} or more.")
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.seed = seed
        self.num_rows = len(packed) // (seq_len + 1)
        """Rows per epoch."""
        if self.num_rows < batch_size:
            raise ConfigError(
                f"a batch takes {batch_size} x {seq_len + 1:,} = {batch_size * (seq_len + 1):,} tokens and the split "
                f"'{packed.split}' of '{packed.header.corpus}' has {len(packed):,}. Use a smaller batch_size or "
                "seq_len, or a larger corpus."
            )
        self._rows = packed.tokens[: self.num_rows * (seq_len + 1)].reshape(self.num_rows, seq_len + 1)

    @property
    def tokens_per_step(self) -> int:
        """Predicted tokens per step, over all ranks."""
        return self.batch_size * self.seq_len

    def epoch(self, step: int) -> int:
        """Return the epoch, from 0, of the first row of a step."""
        return step * self.batch_size // self.num_rows

    def row_numbers(self, step: int) -> list[int]:
        """Return the rows of a step in order: row r is tokens[r * (seq_len + 1) : (r + 1) * (seq_len + 1)].

        Raises:
            ConfigError: the step is negative.
        """
        if step < 0:
            raise ConfigError(f"step is {step}; steps are counted from 0.")
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [
            int(epoch_order(self.num_rows, self.seed, position // self.num_rows)[position % self.num_rows])
            for position in positions
        ]

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
        """Return the rows of a step for one rank; the ranks' rows in order are the whole step's.

        Args:
            step: From 0.
            rank: Rank of the process.
            world_size: Number of processes; each gets equally many rows.

        Returns:
            (batch_size / world_size, seq_len + 1) int64, on the CPU.

        Raises:
            ConfigError: the step is negative, there is no such rank, or the batch is not divisible.
        """
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} of {world_size} processes: ranks go from 0 to {world_size - 1}.")
        share, rest = divmod(self.batch_size, world_size)
        if rest:
            raise ConfigError(
                f"batch_size {self.batch_size} cannot be shared by {world_size} processes. Use a multiple."
            )
        numbers = self.row_numbers(step)[rank * share : (rank + 1) * share]
        return torch.from_numpy(self._rows[numbers].astype(np.int64))
