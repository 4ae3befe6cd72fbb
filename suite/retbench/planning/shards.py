"""Shards of a plan: parts that are carried out apart, on other hardware or at another time.

Copying the results of all shards into one folder merges them. What is compared within a measurement session stays
together: of costs all models at one size and batch size, in all rounds and at all context lengths.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from retbench.config.experiment import Experiment
from retbench.errors import ConfigError, shown
from retbench.planning.cells import CHECKPOINT_SIZE, Cell
from retbench.units import format_items
from retbench.workloads.workload import is_cost

Item = TypeVar("Item")

MAX_SHARDS = 10_000


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return the shard that a text such as '2/8' names; ConfigError for one that cannot be."""
        match = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
        number, count = map(int, match.groups()) if match else (0, 0)
        if not 1 <= number <= count <= MAX_SHARDS:
            raise ConfigError(
                f"--shard {shown(text)} is not a shard. Give NUMBER/COUNT with a number from 1 to the count, such as "
                f"2/8, and a count of at most {MAX_SHARDS:,}."
            )
        return cls(number, count)

    def part_of(self, items: Sequence[Item], unit: Callable[[Item], Hashable]) -> list[Item]:
        """Return the items of this shard, in their order: those of every `count`-th unit.

        Args:
            items: Everything there is to do.
            unit: Gives what an item belongs to; items of one unit are in one shard.
        """
        units = list(dict.fromkeys(map(unit, items)))
        mine = set(units[self.number - 1 :: self.count])
        return [item for item in items if unit(item) in mine]


def unit_of(cell: Cell) -> Hashable:
    """Return what a cell is measured with: costs by size and batch size, quality by size, seed and task."""
    size, weights = cell.under_test.size, cell.under_test.weights
    if is_cost(cell.workload):
        return "cost", size, cell.point.batch_size
    return "quality", size, weights.info.seed if weights else None, cell.point.task or cell.workload


def count_parts(experiment: Experiment, profile_name: str, *, training: bool) -> int | None:
    """Return the number of parts of a run or a training; None where models or tasks on the disk decide it."""
    experiment = experiment.of_profile(profile_name)
    profile = experiment.profile(profile_name)
    spec = profile.training
    if training:
        if spec is None:
            return None
        if spec.has_grid:
            return sum(model.checkpoint is None for model in experiment.models.values())
        return sum(len(spec.seeds_of(size)) for size in spec.sizes)
    if spec or profile.trained_by or not all(map(is_cost, profile.workloads.specs)):
        return None
    return len(
        {
            (model.size or (profile.size if model.checkpoint is None else CHECKPOINT_SIZE), point.batch_size)
            for model in experiment.models.values()
            for name, table in profile.workloads.specs.items()
            if model.workloads is None or name in model.workloads
            for point in table.points()
        }
    )


def describe_units(cells: Sequence[Cell]) -> str:
    """Return the number of parts that a plan can be split into, in words."""
    count = format_items(len({unit_of(cell) for cell in cells}), "part")
    return f"{count}, by size and batch size for costs, and by size, seed and task for quality"
