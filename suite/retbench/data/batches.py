"""What a model is trained on at each step: rows of packed tokens, a pure function of the seed and the step."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from retbench.data.packed import PackedTokens
from retbench.errors import ConfigError


@lru_cache(maxsize=4)  # two sides of a pair, each at most between two epochs
def epoch_order(num_rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of the rows in an epoch, a permutation of range(num_rows).

    The ranks of a bit generator's raw output: numpy promises the same of it in every version, but not of its shuffles.
    """
    keys = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(num_rows)
    return np.argsort(keys, kind="stable")


class Batches:
    """The batches of a training run, reached by their step: a resumed run goes on with the same ones.

    The stream is cut into rows of seq_len + 1 tokens that do not overlap; a row may cross from one document into the
    next, with the end-of-text token between them. In an epoch every row comes once, in an order drawn from (seed,
    epoch); a batch may take the last rows of an epoch and the first of the next. Tokens after the last whole row, fewer
    than seq_len + 1, are left out. Nothing hangs on the model: all models of a comparison read the same.

    Args:
        packed: The stream.
        batch_size: Rows of a step, over all ranks.
        seq_len: Tokens that are predicted in a row; its inputs are row[:-1], its targets row[1:].
        seed: Of the order, 0 or more.

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
        """Rows of an epoch."""
        if self.num_rows < batch_size:
            raise ConfigError(
                f"a batch takes {batch_size} x {seq_len + 1:,} = {batch_size * (seq_len + 1):,} tokens and the split "
                f"'{packed.split}' of '{packed.header.corpus}' has {len(packed):,}. Use a smaller batch_size or "
                "seq_len, or a larger corpus."
            )
        self._rows = packed.tokens[: self.num_rows * (seq_len + 1)].reshape(self.num_rows, seq_len + 1)

    @property
    def tokens_per_step(self) -> int:
        """Tokens that are predicted in a step, over all ranks."""
        return self.batch_size * self.seq_len

    def epoch(self, step: int) -> int:
        """The epoch, from 0, of the first row of a step."""
        return step * self.batch_size // self.num_rows

    def row_numbers(self, step: int) -> list[int]:
        """The rows of a step, in its order: row r is tokens[r * (seq_len + 1) : (r + 1) * (seq_len + 1)].

        Raises:
            ConfigError: the step is negative.
        """
        if step < 0:
            raise ConfigError(f"step is {step}; steps are counted from 0.")
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [
            int(epoch_order(self.num_rows, self.seed, place // self.num_rows)[place % self.num_rows])
            for place in places
        ]

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
        """The rows of a step, or those of one rank: together, in order, the ranks' rows are the step's.

        Args:
            step: From 0.
            rank: Of the process.
            world_size: Processes; each gets as many rows.

        Returns:
            (batch_size / world_size, seq_len + 1) int64, on the CPU.

        Raises:
            ConfigError: the step is negative, there is no such rank, or the batch cannot be shared out evenly.
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
