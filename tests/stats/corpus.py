"""Rounds of identical code measured on a real machine, played back as if they were measured now."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retbench.regress.items import MeasurementPoint, Times, combine_blocks

LOADED_CORES = 0.5
"""Least number of cores kept busy by other processes at which a round counts as one of a loaded machine."""

PATH = Path(__file__).parent / "aa_rounds.jsonl.gz"
BLOCK = 4
"""Rounds that follow each other are drawn together, so that what lasts longer than one round is kept."""


def read_corpus(path: Path = PATH, *, num_blocks: int | None = None) -> dict[bool, list[Times]]:
    """The rounds by whether other processes loaded a core, of all blocks of each or of the first so many."""
    rounds: dict[bool, list[Times]] = {False: [], True: []}
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        entry = json.loads(line)
        rounds[entry["busy_cores"] >= LOADED_CORES].append(
            {
                MeasurementPoint("latency", workload, model, batch_size, context_len): combine_blocks(
                    blocks[:num_blocks]
                )
                for workload, model, batch_size, context_len, blocks in entry["points"]
            }
        )
    return rounds


@dataclass
class Replay:
    """A source of rounds drawn from a corpus in blocks; which side is called the first is drawn once for all of them.

    Exchanged anew in every round, a side that is always slower would be so in half of them, and never be found.

    Attributes:
        rounds: The corpus, in the order measured.
        rng: Of the draws.
        factor: What the second side's decode times are multiplied by.
    """

    rounds: Sequence[Times]
    rng: np.random.Generator
    factor: float = 1.0
    _next: int = 0
    _left: int = 0

    def __post_init__(self) -> None:
        self._swapped = bool(self.rng.integers(2))

    def measure(self, points: frozenset[MeasurementPoint]) -> Times:
        if self._left == 0:
            self._next, self._left = int(self.rng.integers(len(self.rounds))), BLOCK
        times = self.rounds[self._next % len(self.rounds)]
        self._next, self._left = self._next + 1, self._left - 1
        return {point: self._pair(point, times[point]) for point in points if point in times}

    def _pair(self, point: MeasurementPoint, pair: tuple[float, float]) -> tuple[float, float]:
        first, second = (pair[1], pair[0]) if self._swapped else pair
        return first, second * (self.factor if point.workload == "decode" else 1.0)

    def has_budget(self) -> bool:
        return True
