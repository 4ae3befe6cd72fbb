"""The processes that train one model together: how torchrun launched them, and how they agree.

A single process uses the same interface, so that the code of training is the same for one process and for many.
Nothing here imports torch unless there are several processes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from retbench.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """Rank of this process and number of processes, in all and on this machine; ranks count from 0."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def from_environment(cls) -> "Launch":
        """Read the variables that torchrun sets; without them there is one process.

        Raises:
            ConfigError: there are several processes, and a variable is missing or not a number.
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
        """Return the command line that launches `words` in the same way: `retbench train ...` by torchrun."""
        if self.world_size == 1:
            return words
        nodes = self.world_size // self.local_world_size
        return f"torchrun --nnodes {nodes} --nproc-per-node {self.local_world_size} -m {words}"


class OtherRankFailedError(Exception):
    """An error ended another process, which reports it; this process only has to end too."""


class Ranks:
    """The processes that train together; one by default, which then has nobody to wait for.

    Attributes:
        rank: Rank of this process, from 0.
        size: Number of processes, in torch's default group.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def leads(self) -> bool:
        """True in the first process, which prints and writes the files that are written once."""
        return self.rank == 0

    def lead(self, call: Callable[[], T]) -> T:
        """Call `call` in the first process and return its result in all; every process calls this.

        Raises:
            OtherRankFailedError: the call raised an error, which the first process raises itself.
        """
        if not self.leads:
            while (message := self._broadcast(None)) == "wait":
                pass
            is_error, value = message
            if is_error:
                raise OtherRankFailedError
            return value  # type: ignore[no-any-return]
        try:
            result = call()
        except BaseException:
            self._broadcast((True, None))
            raise
        self._broadcast((False, result))
        return result

    def hold_on(self) -> None:
        """Keep the other processes waiting; called within `lead` every few minutes if the call has to wait."""
        self._broadcast("wait")

    def together(self, call: Callable[[], T]) -> T:
        """Call `call` in every process and return its result once all have returned.

        Raises:
            OtherRankFailedError: the call failed in a lower rank; the lowest that failed raises its own error.
        """
        result, error = None, None
        try:
            result = call()
        except Exception as raised:  # raised below, once the other processes have been informed
            error = raised
        failed = self.gather(error is not None)
        if not any(failed):
            return result  # type: ignore[return-value]
        if error is not None and not any(failed[: self.rank]):
            raise error
        raise OtherRankFailedError from error

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        if self.size == 1:
            return flag
        import torch
        import torch.distributed as dist

        found = torch.tensor(int(flag))
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def mean(self, value: "Tensor") -> "Tensor":
        """Return the mean of a tensor over the processes."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        total = value.clone()
        dist.all_reduce(total)
        return total / self.size

    def gather(self, value: T) -> list[T]:
        """Return the value of every process, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def _broadcast(self, value: Any) -> Any:
        """Return the first process's value."""
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


ALONE = Ranks()


@contextmanager
def joined(launch: Launch, *, on_cpu: bool) -> Iterator[Ranks]:
    """Yield the group of the launched processes; the block ends once it has ended in all of them.

    Messages use gloo, and tensors on a GPU use NCCL. After an error the group is not closed: other processes may not
    answer any more, and this process is about to end.

    Raises:
        UnsupportedError: there is no GPU for this process, and `on_cpu` is not set.
    """
    if launch.world_size == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    use_cuda = not on_cpu and torch.cuda.is_available()
    if use_cuda:
        num_gpus = torch.cuda.device_count()
        if launch.local_rank >= num_gpus:
            raise UnsupportedError(
                f"process {launch.local_rank} of this machine has no GPU: {launch.local_world_size} processes were "
                f"started, there are {num_gpus} GPUs, and each process takes one of its own. Use --nproc-per-node "
                f"{num_gpus}, or --device cpu."
            )
        torch.cuda.set_device(launch.local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo")
    yield Ranks(launch.rank, launch.world_size)
    dist.barrier()
    dist.destroy_process_group()
