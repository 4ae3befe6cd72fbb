"""Quality as a report shows it: the newest readings, and every comparison that they allow."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from retbench.records.record import Record
from retbench.report.frames import set_of, started
from retbench.report.pairing import Comparison, Folders, compare
from retbench.report.points import Lineup, lineup
from retbench.report.readings import (
    EVALUATIONS,
    TRAINING_RUN,
    Question,
    Readings,
    Subject,
    fact,
    is_final,
    num_trained_tokens,
    question_of,
    select_readings,
    subject_of,
)
from retbench.report.scenes import bind_units, device_name, file_stem
from retbench.units import format_tokens


@dataclass(frozen=True)
class Scores:
    """Readings that may stand side by side, and the models compared.

    Attributes:
        records: One a (question, model, subject).
        models: All of them, so that a model looks the same everywhere.
        comparisons: Of each model with the reference, wherever both have a value.
        trainings: The final trainings of all records, of whatever age and machine.
        left_out: A sentence for everything that was found and is not among the records.
    """

    records: tuple[Record, ...]
    models: Lineup
    comparisons: tuple[Comparison, ...]
    trainings: tuple[Record, ...]
    left_out: tuple[str, ...]

    @property
    def experiments(self) -> tuple[str, ...]:
        """Names of the experiments, sorted."""
        return tuple(sorted({record.experiment for record in self.records}))

    def questions(self, workload: str) -> list[Question]:
        """What was asked in a workload, in the order in which it is shown."""
        asked = {question_of(record) for record in self.records if record.workload == workload}
        return sorted(
            asked, key=lambda q: (q.experiment, q.task or "", q.protocol or "", q.num_fewshot or 0, q[4])
        )

    def at(self, question: Question) -> list[Record]:
        """The readings of a question."""
        return [record for record in self.records if question_of(record) == question]

    def measured(self, question: Question) -> list[Record]:
        """The readings of a question that have a value."""
        return [record for record in self.at(question) if record.status == "ok"]

    def subjects(self, records: Sequence[Record]) -> list[Subject]:
        """Sizes from the smallest to the largest, each with its seeds."""
        params: dict[str, int] = {}
        for record in records:
            size = record.model.size
            params[size] = max(params.get(size, 0), record.model.num_params_nonembedding)
        found = {subject_of(record) for record in records}
        return sorted(found, key=lambda s: (params[s.size], s.size, -1 if s.seed is None else s.seed))

    def sizes(self, records: Sequence[Record]) -> list[str]:
        """Sizes from the smallest to the largest."""
        return list(dict.fromkeys(subject.size for subject in self.subjects(records)))

    def compared(self, question: Question, model: str | None = None) -> list[Comparison]:
        """The comparisons of a question that have a number, from the smallest size up."""
        mine = [c for c in self.comparisons if c.question == question and c.refusal is None]
        order = self.subjects(self.at(question))
        chosen = [c for c in mine if model is None or c.model == model]
        return sorted(chosen, key=lambda c: order.index(c.subject))

    def find(self, question: Question, model: str, subject: Subject) -> Record | None:
        """The reading of a subject."""
        return next(
            (r for r in self.at(question) if r.model.name == model and subject_of(r) == subject), None
        )

    def trained_length(self, records: Sequence[Record]) -> int | None:
        """Tokens of the sequences that all of these were trained on; None where not known or not one number."""
        lengths = {self._trained_length(record) for record in records}
        return lengths.pop() if len(lengths) == 1 else None

    def _trained_length(self, record: Record) -> int | None:
        weights = record.model.weights
        if weights is None:
            return None
        lengths = {
            training.point.context_len
            for training in self.trainings
            if training.model.weights
            and (
                training.model.weights.fingerprint == weights.fingerprint
                or (training.model.name, subject_of(training), num_trained_tokens(training))
                == (record.model.name, subject_of(record), weights.num_tokens)
            )
        }
        return lengths.pop() if len(lengths) == 1 else None

    @property
    def refusals(self) -> list[str]:
        """A sentence for every reason why two models are not compared, with where it holds."""
        places: dict[tuple[str, str, str], list[str]] = {}
        for c in self.comparisons:
            if c.refusal is not None:
                where = f"{question_title(c.question)} {describe_subject(c.subject)}"
                places.setdefault((c.model, c.reference, c.refusal), []).append(where)
        labels = self.models.labels
        return [
            f"{labels[model]} and the {labels[reference]} at {'; '.join(where)}: {refusal}."
            for (model, reference, refusal), where in places.items()
        ]

    @property
    def conditions(self) -> list[str]:
        """Under which evaluations and trainings ran, a line each."""
        families = [
            [r for r in self.records if r.workload in family] for family in (EVALUATIONS, (TRAINING_RUN,))
        ]
        return list(dict.fromkeys(describe_conditions(family) for family in families if family))


def make_scores(
    records: Sequence[Record], folders: Folders, everything: Sequence[Record] | None = None
) -> Scores | None:
    """The scores that some records hold; None where there are none.

    Args:
        records: Of any workload; those of cost are left aside.
        folders: Where the results of single documents lie.
        everything: Where trainings are looked up; `records` when None.
    """
    readings = select_readings(records)
    return _scores(readings, everything or records, folders) if readings.records else None


def _scores(readings: Readings, everything: Sequence[Record], folders: Folders) -> Scores:
    """Readings with their comparisons; what a model was trained at is looked up in all records."""
    models = lineup(readings.records)
    return Scores(
        records=readings.records,
        models=models,
        comparisons=tuple(_compare_all(readings.records, models, folders)),
        trainings=tuple(
            record for record in everything if record.workload == TRAINING_RUN and is_final(record)
        ),
        left_out=readings.left_out,
    )


def _compare_all(records: Sequence[Record], models: Lineup, folders: Folders) -> Iterator[Comparison]:
    """Each model with the reference of the same size and seed, at every question."""
    answers = {
        (question_of(record), subject_of(record), record.model.name): record
        for record in records
        if record.workload in EVALUATIONS and record.status == "ok"
    }
    for (question, subject, model), mine in answers.items():
        theirs = answers.get((question, subject, str(models.reference)))
        if model in models.challengers and theirs is not None:
            yield compare(mine, theirs, folders)


def describe_conditions(records: Sequence[Record]) -> str:
    """Device, dtype, code and date of records of quality, in one line."""
    latest = max(records, key=started)
    key = set_of(latest)
    parts = [
        device_name(latest),
        str(key.dtype),
        f"retbench {key.code_revision}",
        f"torch {key.torch_version}",
    ]
    return bind_units(" · ".join([*parts, started(latest).date().isoformat()]))


def describe_rates(scores: Scores, records: Sequence[Record]) -> str:
    """Where the learning rates of final trainings are from, in sentences, and which of them are at an end of a grid."""
    places: dict[str, list[str]] = {}
    for size in scores.sizes(records):
        origins = {fact(record, "tuned_at") for record in records if record.model.size == size}
        for origin in sorted(origins, key=str):
            words: dict[object, str] = {
                None: "the only one of the grid",
                size: "each model's best of the grid there",
            }
            places.setdefault(words.get(origin, f"its best at {origin}"), []).append(size)
    said = "; ".join(f"at {', '.join(sizes)} {words}" for words, sizes in places.items())
    ends = dict.fromkeys(
        f" That of {scores.models.labels[record.model.name]} at {fact(record, 'tuned_at')} is {found}."
        for record in records
        if (found := fact(record, "best_rate_is")) not in (None, "inside the grid")
    )
    return f"Learning rates: {said}.{''.join(ends)}"


def describe_subject(subject: Subject) -> str:
    """A size, and the seed where there is one: '3m', '3m seed 1'."""
    return subject.size if subject.seed is None else f"{subject.size} seed {subject.seed}"


def question_title(question: Question) -> str:
    """A question in words: 'litbank/original (whole, 8K)', 'hellaswag, 4-shot'."""
    task = question.task or question.workload
    if question.workload == "perplexity":
        return (
            f"{task} ({question.protocol or 'protocol not recorded'}, {format_tokens(question.context_len)})"
        )
    return task if question.num_fewshot is None else f"{task}, {question.num_fewshot}-shot"


def question_stem(question: Question, what: str) -> str:
    """What a figure of a question is called: unique in a report, fit for a file name."""
    parts = [
        question.experiment,
        question.workload,
        question.task,
        question.protocol,
        str(question.context_len),
    ]
    return file_stem("_".join([part for part in parts if part] + [what]))


def seed_word(subject: Subject) -> str:
    """The seed of a subject in the data of a figure."""
    return "none" if subject.seed is None else str(subject.seed)


def subject_row(record: Record) -> dict[str, object]:
    """What tells the subject of a record in the data of a figure."""
    return {"model": record.model.name, "size": record.model.size, "seed": seed_word(subject_of(record))}
