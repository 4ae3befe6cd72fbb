"""The figures of quality: what each shows of the scores, its caption and the data behind it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import pandas as pd

from retbench.records.record import Record
from retbench.report import score_curves, style
from retbench.report.document_comparisons import DocumentComparison
from retbench.report.drawings import Drawing
from retbench.report.evaluations import Evaluations, chance, describe_rates
from retbench.report.points import (
    TaskPoint,
    accuracy,
    instance_of,
    instance_row,
    is_final,
    task_point_of,
)
from retbench.report.provenance import describe_conditions
from retbench.report.score_curves import Answer, Curve, Exam, Panel
from retbench.report.size_figures import draw_bits, draw_figure5
from retbench.report.wording import POINTS, file_stem, format_p
from retbench.stats.paired import proportion_interval
from retbench.units import format_tokens

_MOST_PANELS = 4
"""Sizes that have room side by side."""


def draw_scores(scores: Evaluations) -> list[Drawing]:
    """Every figure that the scores allow, in the order of the report."""
    trainings = scores.task_points("seed")
    with style.house_style():
        return [
            *(each for question in trainings for each in draw_figure5(scores, question)),
            *(
                each
                for question in scores.longest_texts()
                for each in (*draw_bits(scores, question), *_by_position(scores, question))
            ),
            *(each for group in scores.task_groups() for each in _answers(scores, group)),
            *(each for question in trainings for each in _learning(scores, question)),
        ]


def deepest(scores: Evaluations) -> list[TaskPoint]:
    """Of each corpus and protocol the question of the longest context that has a value."""
    asked = [q for q in scores.task_points("perplexity") if scores.measured(q)]
    return list({(q.experiment, q.task, q.protocol): q for q in asked}.values())


def exams(scores: Evaluations) -> list[list[TaskPoint]]:
    """Tasks with the same examples before the question, together."""
    groups: dict[tuple[str, int | None], list[TaskPoint]] = {}
    for question in scores.task_points("zeroshot"):
        if scores.measured(question):
            groups.setdefault((question.experiment, question.num_fewshot), []).append(question)
    return list(groups.values())


def _by_position(scores: Evaluations, question: TaskPoint) -> Iterator[Drawing]:
    """Loss along the documents, a panel a size."""
    for part, records in _fitting(scores, _with_series(scores, question, "loss_by_position")):
        yield _positions(scores, question, records, part)


def _positions(scores: Evaluations, question: TaskPoint, records: Sequence[Record], part: str) -> Drawing:
    """Loss along the documents, of some sizes."""
    title, conditions = "Loss along the document", describe_conditions(records)
    panels = _panels(scores, records, "loss_by_position")
    beyond = (
        "" if not any(panel.trained_len for panel in panels) else " The dashed line is the length trained at."
    )
    return Drawing(
        name=question.stem(f"by_position{part}"),
        experiments=(question.experiment,),
        title=title,
        caption=f"Nats per token by the position of the token in its document, {question.title}; each "
        f"point is the mean of the positions since the one before it, a line a seed.{beyond}",
        conditions=conditions,
        figure=score_curves.draw_positions(
            panels, scores.models, title, f"nats per token, {question.title}", conditions
        ),
        data=_series_data(records, "loss_by_position"),
    )


def _learning(scores: Evaluations, question: TaskPoint) -> Iterator[Drawing]:
    """Validation loss along the final trainings, a panel a size."""
    finals = [record for record in _with_series(scores, question, "validation_loss_nats") if is_final(record)]
    for part, records in _fitting(scores, finals):
        yield _curves(scores, question, records, part)


def _with_series(scores: Evaluations, question: TaskPoint, name: str) -> list[Record]:
    """The readings of a question that have a series with any point."""
    return [r for r in scores.measured(question) if name in r.series and r.series[name].x]


def _fitting(scores: Evaluations, records: Sequence[Record]) -> Iterator[tuple[str, list[Record]]]:
    """Records of as many sizes as one figure has room for, and what to add to its name from the second on."""
    sizes = scores.sizes(records)
    for start in range(0, len(sizes), _MOST_PANELS):
        shown = sizes[start : start + _MOST_PANELS]
        part = f"_{start // _MOST_PANELS + 1}" if start else ""
        yield part, [record for record in records if record.model.size in shown]


def _curves(scores: Evaluations, question: TaskPoint, records: Sequence[Record], part: str) -> Drawing:
    """Validation loss along the final trainings of some sizes."""
    title, conditions = "Learning curves", describe_conditions(records)
    corpus = question.task or "its own text"
    about = f"sequences of {format_tokens(question.context_len)}, {corpus}"
    return Drawing(
        name=question.stem(f"learning{part}"),
        experiments=(question.experiment,),
        title=title,
        caption=f"Loss on the validation split of {corpus} while the models learn from its training split, in "
        f"sequences of {format_tokens(question.context_len)}; a line a seed. {describe_rates(scores, records)}",
        conditions=conditions,
        figure=score_curves.draw_training(
            _panels(scores, records, "validation_loss_nats"),
            scores.models,
            title,
            f"validation loss, nats per token; {about}",
            conditions,
        ),
        data=_series_data(records, "validation_loss_nats"),
    )


def _panels(scores: Evaluations, records: Sequence[Record], series: str) -> list[Panel]:
    """A panel a size, with a curve a model and seed."""
    panels = []
    for size in scores.sizes(records):
        mine = [record for record in records if record.model.size == size]
        mine.sort(
            key=lambda record: (scores.models.models.index(record.model.name), instance_of(record).seed_word)
        )
        curves = [Curve(r.model.name, r.series[series].x, r.series[series].y) for r in mine]
        panels.append(Panel(size, tuple(curves), scores.trained_length(mine)))
    return panels


def _series_data(records: Sequence[Record], series: str) -> pd.DataFrame:
    """The points of a series of each record."""
    rows = []
    for record in records:
        values = record.series[series]
        counts = values.counts or (1,) * len(values.x)
        for x, y, count in zip(values.x, values.y, counts, strict=True):
            row = {"metric": series, "unit": values.unit, values.x_name: x, "value": y, "count": count}
            rows.append(instance_row(record) | row)
    return pd.DataFrame(rows)


def _answers(scores: Evaluations, questions: Sequence[TaskPoint]) -> Iterator[Drawing]:
    """Accuracy in each task at the largest size that two models or more answered at."""
    records = [r for q in questions for r in scores.measured(q) if accuracy(r)]
    sizes = [
        size
        for size in scores.sizes(records)
        if len({record.model.name for record in records if record.model.size == size}) > 1
    ]
    if not sizes:
        return
    largest = [record for record in records if record.model.size == sizes[-1]]
    rows = [
        instance_row(record)
        | {"task": record.point.task, "metric": "acc", "unit": "ratio"}
        | asdict(_answer(record))
        | {"num_documents": (accuracy(record) or (0, 0))[1], "chance": chance(record.point.task, "acc")}
        for record in largest
    ]
    made = [_exam(scores, question, largest) for question in questions]
    shots = questions[0].num_fewshot or 0
    title, conditions = f"Accuracy, {shots}-shot", describe_conditions(largest)
    yield Drawing(
        name=f"{file_stem(questions[0].experiment)}_zeroshot_{shots}shot",
        experiments=(questions[0].experiment,),
        title=title,
        caption=f"Share of right answers (acc) of the models of {sizes[-1]}, {shots}-shot, with Wilson's 95 % "
        "interval over the questions. The grey tick is what guessing reaches. Beside it: the difference in percentage "
        "points, paired over the questions, and the p-value of McNemar's exact test.",
        conditions=conditions,
        figure=score_curves.draw_answers(
            [exam for exam in made if exam.answers],
            scores.models,
            (title, f"%, models of {sizes[-1]}; bars: 95 % interval over questions", conditions),
        ),
        data=pd.DataFrame(rows),
    )


def _answer(record: Record) -> Answer:
    """An accuracy with its interval."""
    value, count = accuracy(record) or (0.0, 1)  # figures show only those that have one
    return Answer(record.model.name, value, *proportion_interval(round(value * count), count))


def _exam(scores: Evaluations, question: TaskPoint, records: Sequence[Record]) -> Exam:
    """The answers to a task, by model and seed."""
    mine = [record for record in records if task_point_of(record) == question]
    mine.sort(
        key=lambda record: (scores.models.models.index(record.model.name), instance_of(record).seed_word)
    )
    size, challengers = records[0].model.size, scores.models.challengers
    notes = [
        (f"{scores.models.labels[model]} " if len(challengers) > 1 else "") + _note(comparison)
        for model in challengers  # in the order of their dots
        for comparison in scores.compared(question, model)
        if comparison.instance.size == size and "acc" in comparison.accuracies
    ]
    return Exam(
        task=str(question.task),
        answers=tuple(_answer(record) for record in mine),
        chance=chance(question.task, "acc"),
        note="\n".join(notes),
    )


def _note(comparison: DocumentComparison) -> str:
    pair = comparison.accuracies["acc"]
    p_value = format_p(pair.p_value)
    return f"{POINTS * pair.difference:+.1f}, p {p_value if p_value.startswith('<') else f'= {p_value}'}"
