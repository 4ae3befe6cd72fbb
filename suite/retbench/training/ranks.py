"""The processes that train one model together: what they agree on, and what the first of them does for all.

A process alone has nobody to agree with, so that the code of training is the same for one and for many. Nothing here
imports torch before there are several.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from retbench.errors import UnsupportedError
from retbench.training.launch import Launch

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class OtherRankFailedError(Exception):
    """An error ended another of the processes, which tells of it; this one has only to end too."""


class Ranks:
    """One process alone.

    Attributes:
        rank: Of this process, from 0.
        size: How many there are.
    """

    rank = 0
    size = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that prints, and writes what is written once."""
        return self.rank == 0

    def lead(self, call: Callable[[], T]) -> T:
        """What `call` returns to the first process, which alone calls it; to be called by all.

        Raises:
            OtherRankFailedError: it raised an error there; in the first process, that error.
        """
        return call()

    def hold_on(self) -> None:
        """Keep the others waiting: inside of `lead`, at least every few minutes while the call has to wait."""

    def together(self, call: Callable[[], T]) -> T:
        """What `call` returns to this process, once it has returned in all.

        Raises:
            OtherRankFailedError: it raised an error in a process before this; in the first where it did, that error.
        """
        return call()

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag

    def mean(self, value: "Tensor") -> "Tensor":
        """Mean over the processes of a tensor of one shape."""
        return value

    def gather(self, value: T) -> list[T]:
        """The value of every process, by rank."""
        return [value]


ALONE = Ranks()


class _Group(Ranks):
    """Several processes in torch's default group."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def lead(self, call: Callable[[], T]) -> T:
        if not self.leads:
            while (told := self._share(None)) == "wait":
                pass
            is_error, value = told
            if is_error:
                raise OtherRankFailedError
            return value  # type: ignore[no-any-return]
        try:
            result = call()
        except BaseException:
            self._share((True, None))
            raise
        self._share((False, result))
        return result

    def hold_on(self) -> None:
        self._share("wait")

    def together(self, call: Callable[[], T]) -> T:
        result, error = None, None
        try:
            result = call()
        except Exception as raised:  # told below, once the others know
            error = raised
        failed = self.gather(error is not None)
        if not any(failed):
            return result  # type: ignore[return-value]
        if error is not None and not any(failed[: self.rank]):
            raise error
        raise OtherRankFailedError from error

    def any(self, flag: bool) -> bool:
        import torch
        import torch.distributed as dist

        found = torch.tensor(int(flag))
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def mean(self, value: "Tensor") -> "Tensor":
        import torch.distributed as dist

        total = value.clone()
        dist.all_reduce(total)
        return total / self.size

    def gather(self, value: T) -> list[T]:
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def _share(self, value: Any) -> Any:
        """The first process's value."""
        import torch
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


@contextmanager
def joined(launch: Launch, *, on_cpu: bool) -> Iterator[Ranks]:
    """The processes that were launched together, until the block ends in all of them.

    Messages go by gloo, tensors on a GPU by NCCL. After an error nothing is closed: others may not answer any more,
    and the process is about to end.

    Args:
        launch: The place of this process.
        on_cpu: Whether no GPU is to be used.

    Raises:
        UnsupportedError: there is no GPU for this process.
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
    yield _Group(launch.rank, launch.world_size)
    dist.barrier()
    dist.destroy_process_group()
