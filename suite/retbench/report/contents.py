"""Contents of a selection, which tables, figures, findings and the answer show: its sweeps and its evaluations."""

from dataclasses import dataclass

from retbench.architectures.recorded import concatenates_cache
from retbench.report.evaluations import Evaluations, make_evaluations
from retbench.report.selection import Selection
from retbench.report.sweeps import CostSweep, make_sweeps


@dataclass(frozen=True)
class Contents:
    """Contents of a selection, ready to be shown.

    Attributes:
        selection: The records.
        sweeps: Their cost sweeps.
        evaluations: Their records of quality; None where there are none.
    """

    selection: Selection
    sweeps: list[CostSweep]
    evaluations: Evaluations | None

    @property
    def labels(self) -> dict[str, str]:
        """Readable name of every model that is shown, by its name."""
        lineups = [sweep.models for sweep in self.sweeps]
        lineups += [self.evaluations.models] if self.evaluations else []
        return {name: found.labels[name] for found in reversed(lineups) for name in found.models}

    @property
    def refusals(self) -> list[str]:
        """One sentence per reason for which two models are not compared."""
        costs = [
            f"{sweep.models.labels[model]} and the {sweep.models.labels[str(sweep.models.reference)]} in "
            f"{sweep.experiment}: {reason}."
            for sweep in self.sweeps
            for model, reason in sweep.models.refusals.items()
        ]
        quality = self.evaluations.refusals if self.evaluations else []
        return [*dict.fromkeys(costs), *quality]

    @property
    def unusual_caches(self) -> list[str]:
        """One sentence per model whose cache is copied at every token; the rows of a table name it only by its key."""
        infos = {record.model.name: record.model for record in self.selection.records}
        return [
            f'{name} copies its key-value cache at every token (cache = "concat"); the usual cache is '
            "preallocated."
            for name, info in infos.items()
            if concatenates_cache(info)
        ]


def contents_of(selection: Selection) -> Contents:
    """Return the sweeps and evaluations of a selection."""
    return Contents(selection, make_sweeps(selection), make_evaluations(selection))
