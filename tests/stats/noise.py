"""Rounds of identical or changed code under the noise of real machines, made up.

The sizes are those that rules for regression checks were compared on: processes differ by 0.7 %, the iterations within
one are an AR(1) of 0.5 %, one sample in fifty takes 1.3 times as long, and a session shifts everything in it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retbench.regress.items import MeasurementPoint, Times

PROCESS_SD = 0.007
ITERATION_SD = 0.005
CORRELATION = 0.5
OUTLIER_SHARE = 0.02
OUTLIER_FACTOR = 1.3
SAMPLES = 30

Array = npt.NDArray[np.float64]


def log_medians(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Logarithm of the median of a process's samples, over what the code takes."""
    fresh = rng.normal(0, ITERATION_SD, size=(*shape, SAMPLES))
    noise = np.empty_like(fresh)
    noise[..., 0] = fresh[..., 0]
    for step in range(1, SAMPLES):
        noise[..., step] = CORRELATION * noise[..., step - 1] + np.sqrt(1 - CORRELATION**2) * fresh[..., step]
    noise += np.log(OUTLIER_FACTOR) * (rng.random(noise.shape) < OUTLIER_SHARE)
    return np.median(noise, axis=-1) + rng.normal(0, PROCESS_SD, size=shape)


POINTS = [
    MeasurementPoint("latency", "decode", model, 1, length)
    for model in ("retnet", "transformer")
    for length in (1024, 2048, 4096)
] + [
    MeasurementPoint("latency", "prefill", model, 1, length)
    for model in ("retnet", "transformer")
    for length in (512, 1024)
]


@dataclass
class NoisyRounds:
    """A source of rounds: what a session does is shared by both sides of a round.

    Attributes:
        rng: Of the draws.
        slow_down: Log-ratio that is added to the second side's decode times.
        session_sd: Of the shift that a round shares, and that of a time in it.
        budget: Rounds until the time is over; None for no end.
        count: Rounds measured so far.
    """

    rng: np.random.Generator
    slow_down: float = 0.0
    session_sd: float = 0.05
    budget: int | None = None
    count: int = 0

    def measure(self, points: frozenset[MeasurementPoint]) -> Times:
        self.count += 1
        ordered = sorted(points)
        values = log_medians(self.rng, (len(ordered), 2)) + self.rng.normal(
            0, self.session_sd, size=(len(ordered), 1)
        )
        times = {}
        for point, (base, head) in zip(ordered, values, strict=True):
            effect = self.slow_down if point.workload == "decode" else 0.0
            times[point] = (0.01 * float(np.exp(base)), 0.01 * float(np.exp(head + effect)))
        return times

    def has_budget(self) -> bool:
        return self.budget is None or self.count < self.budget
