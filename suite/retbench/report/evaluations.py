"""Quality in the report: evaluations and trainings, and every comparison between models that they allow."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from retbench.records.record import Record
from retbench.report.document_comparisons import DocumentComparison, Folders, compare
from retbench.report.lineup import Lineup, lineup
from retbench.report.points import (
    ModelInstance,
    TaskPoint,
    group,
    instance_of,
    is_final,
    scores_of,
    task_point_of,
    trained_length,
)
from retbench.report.provenance import describe_conditions
from retbench.report.selection import Selection
from retbench.units import format_tokens
from retbench.workloads.workload import WORKLOADS, Scores, replicate_of

_NEEDED: Mapping[Scores, Set[str]] = {"recall": {"acc", "state_bytes"}, "lengths": {"acc"}}
"""Metrics without which a record has no place in the figures of what it scores."""


@dataclass(frozen=True)
class Evaluations:
    """Records of quality that are comparable, and the comparisons of their models.

    Attributes:
        records: One per (task point, model, instance); of trainings also one per learning rate of the grid.
        models: All models, so that a model looks the same everywhere.
        comparisons: One per model and reference with a value at the same task point and instance.
        trainings: Final trainings of all records, of any age and machine.
    """

    records: tuple[Record, ...]
    models: Lineup
    comparisons: tuple[DocumentComparison, ...] = ()
    trainings: tuple[Record, ...] = ()

    def task_points(self, replicate: str | None = None) -> list[TaskPoint]:
        """Return the task points in the order in which they are shown, of one kind of replicate or all."""
        found = {
            task_point_of(record)
            for record in self.records
            if replicate is None or replicate_of(record) == replicate
        }
        return sorted(found, key=_display_order)

    def at(self, point: TaskPoint) -> list[Record]:
        """Return the records of a task point."""
        return [record for record in self.records if task_point_of(record) == point]

    def measured(self, point: TaskPoint) -> list[Record]:
        """Return the records of a task point that have a value."""
        needed = _NEEDED.get(scores_of(point.workload), set())
        return [one for one in self.at(point) if one.status == "ok" and needed <= one.metrics.keys()]

    def scored(self, what: Scores) -> list[TaskPoint]:
        """Return the measured task points of the workloads that score this."""
        return [p for p in self.task_points("document") if scores_of(p.workload) == what and self.measured(p)]

    def longest_texts(self) -> list[TaskPoint]:
        """Return the task point of the longest measured context of each corpus and protocol."""
        found = self.scored("text")
        return list({(p.experiment, p.task, p.protocol): p for p in found}.values())

    def groups(self, what: Scores) -> list[list[TaskPoint]]:
        """Return the measured task points that score this, those of a figure together.

        They are of one experiment, workload and number of few-shot examples, and of needles of one haystack.
        """

        def figure(point: TaskPoint) -> tuple[object, ...]:
            haystack = point.task if what == "needles" else None
            return point.experiment, point.workload, point.num_fewshot, haystack

        return list(group(self.scored(what), figure).values())

    def instances(self, records: Sequence[Record]) -> list[ModelInstance]:
        """Return sizes from the smallest to the largest, each with its seeds."""
        params: dict[str, int] = {}
        for record in records:
            size = record.model.size
            params[size] = max(params.get(size, 0), record.model.num_params_nonembedding)
        found = {instance_of(record) for record in records}
        return sorted(found, key=lambda s: (params[s.size], s.size, -1 if s.seed is None else s.seed))

    def sizes(self, records: Sequence[Record]) -> list[str]:
        """Return sizes from the smallest to the largest."""
        return list(dict.fromkeys(instance.size for instance in self.instances(records)))

    def compared(self, point: TaskPoint, model: str | None = None) -> list[DocumentComparison]:
        """Return the comparisons of a task point that have a number, from the smallest size up."""
        order = self.instances(self.at(point))
        chosen = [
            c for c in self.comparisons if c.point == point and c.refusal is None and model in (None, c.model)
        ]
        return sorted(chosen, key=lambda c: order.index(c.instance))

    def sides(self, made: DocumentComparison) -> tuple[Record, Record]:
        """Return the records that are compared, the reference's last."""
        found = {r.model.name: r for r in self.at(made.point) if instance_of(r) == made.instance}
        return found[made.model], found[made.reference]

    def trained_length(self, records: Sequence[Record]) -> int | None:
        """Return the sequence length of the training of all these models; None if unknown or not one number."""
        lengths = {trained_length(record, self.trainings) for record in records}
        return lengths.pop() if len(lengths) == 1 else None

    def extrapolation_note(self, records: Sequence[Record]) -> str:
        """Return a sentence where the records' contexts are longer than the sequences of the training; else nothing."""
        trained = self.trained_length(records)
        if trained is None or max(record.point.context_len for record in records) <= trained:
            return ""
        return f" Beyond the {format_tokens(trained)} tokens of the training, models extrapolate."

    @property
    def refusals(self) -> list[str]:
        """One sentence per reason for which two models are not compared, with the task points."""
        places: dict[tuple[str, str, str], list[str]] = {}
        for c in self.comparisons:
            if c.refusal is not None:
                where = f"{c.point.title} {c.instance.title}"
                places.setdefault((c.model, c.reference, c.refusal), []).append(where)
        labels = self.models.labels
        return [
            f"{labels[model]} and the {labels[reference]} at {'; '.join(where)}: {refusal}."
            for (model, reference, refusal), where in places.items()
        ]

    @property
    def conditions(self) -> list[str]:
        """Conditions of the evaluations and of the trainings, one line each."""
        families = group(sorted(self.records, key=replicate_of), replicate_of)
        return list(dict.fromkeys(describe_conditions(family) for family in families.values()))


def _display_order(point: TaskPoint) -> tuple[object, ...]:
    workloads = [*WORKLOADS, point.workload]
    rest = (point.experiment, point.task or "", point.protocol or "", point.num_fewshot or 0)
    last = (point.context_len, point.num_pairs or 0, point.stride or 0, point.workload)
    return workloads.index(point.workload), *rest, *last


def make_evaluations(selection: Selection) -> Evaluations | None:
    """Return the records of quality of a selection with their comparisons; None where it has none."""
    records = selection.quality
    if not records:
        return None
    models = lineup(records)
    return Evaluations(
        records=records,
        models=models,
        comparisons=tuple(_compare_all(records, models, selection.folders)),
        trainings=tuple(
            record for record in selection.everything if replicate_of(record) == "seed" and is_final(record)
        ),
    )


def _compare_all(records: Sequence[Record], models: Lineup, folders: Folders) -> Iterator[DocumentComparison]:
    """Compare each model with the reference of the same size and seed, at every task point."""
    measured = {
        (task_point_of(record), instance_of(record), record.model.name): record
        for record in records
        if replicate_of(record) == "document" and record.status == "ok"
        if scores_of(record.workload) not in {"recall", "lengths"}
    }
    for (point, instance, model), mine in measured.items():
        theirs = measured.get((point, instance, str(models.reference)))
        if model != models.reference and theirs is not None:
            yield compare(mine, theirs, folders)
