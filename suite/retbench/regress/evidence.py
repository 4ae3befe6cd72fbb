"""The rounds of two sides, and the change of an item that they show: in pairs, in two sessions, or after a baseline."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import ClassVar

from retbench.regress.items import (
    ComparedItem,
    MeasurementPoint,
    Pair,
    Times,
    Values,
    is_timed,
    paired_changes,
)
from retbench.stats.intervals import LogRatio, predicted_from, unpaired
from retbench.units import format_items

Rounds = Sequence[Values]

MIN_RUNS = 8
"""With fewer runs their spread is too uncertain to predict the next one: nothing is decided."""


@dataclass(frozen=True)
class Evidence(ABC):
    """The rounds of a second side, which is judged, and of a first one.

    Attributes:
        sides: The values of each round of the first side, and of the second.
        in_turn: Both sides were measured in turn, so that only the code moves a time.
    """

    sides: tuple[Rounds, Rounds]
    in_turn: ClassVar[bool] = False

    @property
    def shared_points(self) -> list[MeasurementPoint]:
        """The points that both sides have in some round."""
        first, second = ({point for values in rounds for point in values} for rounds in self.sides)
        return sorted(first & second)

    @property
    def compared_sides(self) -> tuple[Rounds, Rounds]:
        """The rounds that changes compare."""
        return self.sides

    def values_of(self, item: ComparedItem) -> Pair | None:
        """Return the geometric means of an item on both sides, over the rounds that its change compares."""
        first, second = (item.log_values(rounds) for rounds in self.compared_sides)
        return (math.exp(fmean(first)), math.exp(fmean(second))) if first and second else None

    @abstractmethod
    def change_of(self, item: ComparedItem) -> LogRatio | None:
        """Estimate the change of an item from all rounds; None if they do not show it."""

    def lack_of(self, item: ComparedItem) -> str | None:
        """Return what is missing for a verdict on an item; None if nothing is."""
        return None


@dataclass(frozen=True)
class PairedEvidence(Evidence):
    """Rounds that were measured in turn: each is a pair.

    Attributes:
        pairs: The times of each round that both sides have.
    """

    pairs: Sequence[Times]
    in_turn = True

    @property
    def compared_sides(self) -> tuple[Rounds, Rounds]:
        """The rounds of the pairs."""
        first, second = (
            [{point: pair[side] for point, pair in times.items()} for times in self.pairs] for side in (0, 1)
        )
        return first, second

    def change_of(self, item: ComparedItem) -> LogRatio | None:
        """Estimate the change from the ratios of the pairs."""
        return paired_changes([item], self.pairs).get(item)


@dataclass(frozen=True)
class UnpairedEvidence(Evidence):
    """Rounds of two measurement sessions, which are independent."""

    def change_of(self, item: ComparedItem) -> LogRatio | None:
        """Estimate the change from the means of both sessions."""
        logs = [item.log_values(side) for side in self.sides]
        if not all(logs):
            return None
        found = unpaired(*logs)
        # A count needs no second round: its only round has no noise.
        is_count = not is_timed(item.workload) and found.degrees <= 0
        return replace(found, degrees=1.0) if is_count else found


@dataclass(frozen=True)
class BaselineEvidence(Evidence):
    """Rounds of one run after those of the accepted runs of a baseline.

    Attributes:
        runs: The rounds of each accepted run, oldest run first.
    """

    runs: Sequence[Rounds]

    @classmethod
    def of(cls, runs: Sequence[Rounds], new: Rounds) -> "BaselineEvidence":
        """Return a new run after accepted ones; the newest of those come first on the first side."""
        return cls(([values for rounds in reversed(runs) for values in rounds], new), runs)

    def change_of(self, item: ComparedItem) -> LogRatio | None:
        """Compare the mean of the run with the prediction from the means of the accepted runs."""
        history = [fmean(logs) for rounds in self.runs if (logs := item.log_values(rounds))]
        new = item.log_values(self.sides[1])
        return replace(predicted_from(history, fmean(new)), num_rounds=len(new)) if history and new else None

    def lack_of(self, item: ComparedItem) -> str | None:
        """Return that there are too few runs, or too few rounds in the new one."""
        num_runs = sum(bool(item.log_values(rounds)) for rounds in self.runs)
        if num_runs < MIN_RUNS:
            return f"a verdict needs {MIN_RUNS} runs, and the baseline has {num_runs}"
        found, needed = self.count_rounds(item)
        # Fewer rounds scatter more than the runs whose spread predicts this one. A count does not scatter.
        return describe_rounds(found, needed) if is_timed(item.workload) and found < needed else None

    def count_rounds(self, item: ComparedItem) -> tuple[int, int]:
        """Return how many rounds of the run have an item, and how many of the accepted run that has most."""
        return len(item.log_values(self.sides[1])), max(len(item.log_values(rounds)) for rounds in self.runs)


def describe_rounds(found: int, needed: int) -> str:
    """Return that a run has another number of rounds than the baseline."""
    return f"{format_items(found, 'round')}, the runs of the baseline have {needed}"
