"""Energy of a workload's step, after its timed samples; where there is no counter, the reason instead."""

from collections.abc import Callable
from dataclasses import dataclass, field

from retbench.measure.power import CounterUnavailableError, measure_energy
from retbench.records.record import Metric
from retbench.workloads.context import Context, Notes
from retbench.workloads.metrics import ENERGY_METRICS, energy_metrics


@dataclass(frozen=True)
class EnergyFound:
    """Parts of a `Measurement`: metrics with a note of how many steps they are of, or reasons."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    notes: Notes = field(default_factory=dict)


def weigh_energy(
    context: Context, step: Callable[[], object], *, step_s: float, tokens_per_step: int
) -> EnergyFound:
    """Repeat `step` while the energy counter is read.

    Args:
        context: Of the cell.
        step: One step of the workload, with the same work at every call.
        step_s: What one takes.
        tokens_per_step: Tokens that one gives, or takes in, for all sequences together.
    """
    try:
        use = measure_energy(step, device=context.device, step_s=step_s)
    except CounterUnavailableError as error:
        return EnergyFound(absent=dict.fromkeys(ENERGY_METRICS, str(error)))
    return EnergyFound(energy_metrics(use, tokens_per_step), notes={"energy_steps": use.num_steps})
