"""How torchrun launched this process, as its environment tells; one process where nothing is told. Without torch."""

import os
from dataclasses import dataclass

from retbench.errors import ConfigError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """The place of a process among those that were launched together.

    Attributes:
        rank: Among all, from 0.
        world_size: Processes in all.
        local_rank: Among those of this machine, from 0.
        local_world_size: Processes of this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def from_environment(cls) -> "Launch":
        """What torchrun has set.

        Raises:
            ConfigError: there are several processes, and some of what torchrun tells each of them is missing.
        """
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return cls()
        missing = [name for name in _VARIABLES if name not in os.environ]
        if missing:
            raise ConfigError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {', '.join(missing)} is not set. Start the processes "
                "with torchrun, or unset WORLD_SIZE to train in one."
            )
        numbers = {name: os.environ[name] for name in _VARIABLES[:4]}
        try:
            rank, world_size, local_rank, local_world_size = map(int, numbers.values())
        except ValueError as error:
            raise ConfigError(
                f"{numbers} are not all whole numbers. Start the processes with torchrun."
            ) from error
        return cls(rank, world_size, local_rank, local_world_size)

    def command(self, words: str) -> str:
        """A command line as it is launched: `retbench train ...` as torchrun would."""
        if self.world_size == 1:
            return words
        nodes = self.world_size // self.local_world_size
        return f"torchrun --nnodes {nodes} --nproc-per-node {self.local_world_size} -m {words}"
