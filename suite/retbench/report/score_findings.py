"""The headline on quality: sentences computed from the comparisons, whichever way they fall.

Each verdict is of one question; a seed is told of by itself. What an interval or test does not show is not said.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from retbench.records.record import Record, Series
from retbench.report.findings import Finding
from retbench.report.pairing import Comparison
from retbench.report.readings import Question, accuracy, num_trained_tokens
from retbench.report.score_figures import deepest, exams
from retbench.report.score_tables import POINTS, format_p
from retbench.report.scores import Scores, describe_subject, question_title
from retbench.report.tasks import chance, paper_average
from retbench.stats.intervals import CONFIDENCE
from retbench.stats.paired import Estimate, proportion_interval
from retbench.units import format_count, format_percent, format_tokens

SIGNIFICANT = 1 - CONFIDENCE
"""A p-value below it is called a difference."""


def find_scores(scores: Scores) -> list[Finding]:
    """Every finding on quality: of each corpus and protocol at its longest context, and of the tasks."""
    found = []
    for model in scores.models.challengers:
        for question in deepest(scores):
            found += _losses(scores, question, model)
            found += _beyond_training(scores, question, model)
        for questions in exams(scores):
            found += _answers(scores, questions, model)
    return found


def _losses(scores: Scores, question: Question, model: str) -> list[Finding]:
    """The ratio of bits per byte or token at every size and seed, and whether it changes sides."""
    made = [c for c in scores.compared(question, model) if c.ratio is not None]
    if not made:
        return []
    label, other = scores.models.labels[model], scores.models.labels[made[0].reference]
    by_size: dict[str, list[Comparison]] = {}
    for c in made:
        by_size.setdefault(c.subject.size, []).append(c)
    at: list[str] = []
    for size, mine in by_size.items():
        seeds = f" (seeds {_listed([str(c.subject.seed) for c in mine])})" if len(mine) > 1 else ""
        of = f" of the {other}'s" if not at else ""
        at.append(f"{_listed([_ratio(c.ratio) for c in mine if c.ratio])}{of} at {size}{seeds}")
    last = [c.ratio.value for c in by_size[made[-1].subject.size] if c.ratio]
    text = (
        f"{label}'s bits per {made[0].unit} on {question_title(question)} are {'; '.join(at)}"
        f"{_trained(scores, question, made)}{_over(made)}: {_verdict(by_size, label, other)}."
    )
    return [Finding(f"{_range(last)}×", text + _crossing(by_size, label))]


def _over(made: Sequence[Comparison]) -> str:
    """What the intervals are over; nothing where there is none."""
    counts = {c.ratio.num_documents for c in made if c.ratio and c.ratio.low is not None}
    if not counts:
        return ""
    count = counts.pop() if len(counts) == 1 else None
    return f" (95 % intervals over {f'{count:,} documents' if count else 'documents'})"


def _ratio(ratio: Estimate) -> str:
    """A ratio with its interval, or that there are too few documents for one."""
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.3f} (no interval: {ratio.num_documents} documents)"
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _range(values: Sequence[float]) -> str:
    """One value, or the range of several."""
    return "–".join(dict.fromkeys(f"{value:.3f}" for value in (min(values), max(values))))


def _listed(items: Sequence[str]) -> str:
    """Items as a sentence lists them: 'a, b and c'."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


def _trained(scores: Scores, question: Question, made: Sequence[Comparison]) -> str:
    """What the models compared were trained on, where it is one number."""
    records = [scores.find(question, c.model, c.subject) for c in made]
    tokens = {num_trained_tokens(record) for record in records if record}
    count = tokens.pop() if len(tokens) == 1 else None
    return "" if count is None else f", trained on {format_count(count)} tokens"


def _verdict(by_size: Mapping[str, Sequence[Comparison]], label: str, other: str) -> str:
    """Who is the better, as far as the intervals over documents show it."""
    places: dict[str, list[str]] = {}
    for size, mine in by_size.items():
        sides = [_side(c.ratio) for c in mine if c.ratio]
        if len(set(sides)) == 1:
            places.setdefault(sides[0], []).append(size)
        else:
            for side, c in zip(sides, mine, strict=True):
                places.setdefault(side, []).append(describe_subject(c.subject))
    words = {
        "better": f"{label} is better",
        "worse": f"the {other} is better",
        "level": "no difference is shown",
        "unclear": "there are too few documents to tell",
    }
    if len(places) == 1:
        return words[next(iter(places))] + (" at every size" if len(by_size) > 1 else "")
    return "; ".join(f"{words[side]} at {_listed(where)}" for side, where in places.items())


def _side(ratio: Estimate) -> str:
    """Which side of 1 an interval lies on; a loss below the other's is better."""
    if ratio.low is None or ratio.high is None:
        return "unclear"
    return "better" if ratio.high < 1 else "worse" if ratio.low > 1 else "level"


def _crossing(by_size: Mapping[str, Sequence[Comparison]], label: str) -> str:
    """Between which sizes, whose seeds agree, the better model changes; nothing where there is one size."""
    sizes = list(by_size)
    if len(sizes) < 2:
        return ""
    sides = {size: {_side(c.ratio) for c in mine if c.ratio} for size, mine in by_size.items()}
    clear = [(size, *sides[size]) for size in sizes if sides[size] in ({"better"}, {"worse"})]
    changes = [
        f"between {one} and {two}" for (one, before), (two, after) in pairwise(clear) if before != after
    ]
    if not changes:
        return f" No crossing is shown from {sizes[0]} to {sizes[-1]}."
    if len(changes) > 1:
        return f" The order changes {_listed(changes)}."
    return f" {label} {'overtakes' if clear[-1][1] == 'better' else 'falls behind'} {changes[0]}."


def _beyond_training(scores: Scores, question: Question, model: str) -> list[Finding]:
    """How both losses change from the positions before the training length to the last ones measured."""
    reference = str(scores.models.reference)
    for size in reversed(scores.sizes(scores.at(question))):
        mine, theirs = (_series(scores, question, name, size) for name in (model, reference))
        trained = scores.trained_length([*mine, *theirs]) if mine and theirs else None
        if trained is None:
            continue
        series = [[record.series["loss_by_position"] for record in side] for side in (mine, theirs)]
        if not all(trained in one.x and max(one.x) > trained for side in series for one in side):
            continue
        label, other = scores.models.labels[model], scores.models.labels[reference]
        end = int(max(series[0][0].x))
        (own, rise), (others, other_rise) = (_change(side, trained) for side in series)
        text = (
            f"Beyond the {format_tokens(trained)} tokens that the models of {size} were trained at, the loss on "
            f"{question_title(question)} goes, from the positions up to {format_tokens(trained)} to those up to "
            f"{format_tokens(end)}, {own} nats a token for {label} and {others} for the {other}."
        )
        return [Finding(f"{rise} against {other_rise}", text)]
    return []


def _series(scores: Scores, question: Question, model: str, size: str) -> list[Record]:
    """The readings of a model of a size that have a loss by position."""
    return [
        record
        for record in scores.at(question)
        if (record.model.name, record.model.size, record.status) == (model, size, "ok")
        and record.series.get("loss_by_position", Series(unit="", x_name="", x=(), y=())).x
    ]


def _change(side: Sequence[Series], trained: int) -> tuple[str, str]:
    """From which loss to which, and by how much, over the seeds."""
    before = [one.y[one.x.index(trained)] for one in side]
    after = [one.y[one.x.index(max(one.x))] for one in side]
    changes = [late - early for early, late in zip(before, after, strict=True)]
    lead = " to ".join(dict.fromkeys(f"{change:+z.2f}" for change in (min(changes), max(changes))))
    return f"from {_range(before)} to {_range(after)}", lead


def _answers(scores: Scores, questions: Sequence[Question], model: str) -> list[Finding]:
    """At each size and seed: tasks with a difference, tasks at chance, and the paper's average."""
    made = {question: scores.compared(question, model) for question in questions}
    subjects = list(
        dict.fromkeys(c.subject for group in made.values() for c in group if "acc" in c.accuracies)
    )
    if not subjects:
        return []
    largest = [subject for subject in subjects if subject.size == scores.sizes(_all(scores, questions))[-1]]
    found = []
    for subject in largest or subjects[-1:]:
        mine = [c for group in made.values() for c in group if c.subject == subject and "acc" in c.accuracies]
        found.append(_exam(scores, mine, questions))
    return found


def _all(scores: Scores, questions: Sequence[Question]) -> list[Record]:
    return [record for question in questions for record in scores.at(question)]


def _exam(scores: Scores, made: Sequence[Comparison], questions: Sequence[Question]) -> Finding:
    """One subject at all tasks with so many examples."""
    model, reference, subject = made[0].model, made[0].reference, made[0].subject
    label, other = scores.models.labels[model], scores.models.labels[reference]
    differ: dict[bool, list[str]] = {True: [], False: []}
    at_chance, records = [], {}
    for c in made:
        pair, task = c.accuracies["acc"], str(c.question.task)
        sides = [scores.find(c.question, name, subject) for name in (model, reference)]
        records[task] = [side for side in sides if side]
        if pair.p_value < SIGNIFICANT:
            words = f"{task} ({POINTS * pair.difference:+.1f} points, p {_p(pair.p_value)})"
            differ[pair.difference > 0].append(words)
        if len(records[task]) == 2 and all(_guesses(record) for record in records[task]):
            at_chance.append(task)
    shots = questions[0].num_fewshot or 0
    parts = [
        f"{words} {_listed(tasks)}"
        for words, tasks in (
            (f"{label} is better at", differ[True]),
            (f"the {other} is better at", differ[False]),
        )
        if tasks
    ]
    count = len(made)
    tasks_word = "task" if count == 1 else "tasks"
    expected = (
        f" ({count} tests; about {SIGNIFICANT * count:.1f} would come out so by chance)"
        if count > 1 and parts
        else ""
    )
    verdict = "; ".join(parts) + expected if parts else "no difference is shown by McNemar's exact test"
    text = f"{shots}-shot, {count} {tasks_word} at {describe_subject(subject)}: {verdict}."
    if at_chance:
        text += f" At chance on both sides: {_listed(at_chance)}."
    text += _average(records, {model: label, reference: other})
    lead = f"{len(differ[True])} to {len(differ[False])}" if parts else "no difference"
    return Finding(f"{lead} of {count}" if parts else lead, text)


def _p(p_value: float) -> str:
    words = format_p(p_value)
    return words if words.startswith("<") else f"= {words}"


def _guesses(record: Record) -> bool:
    """Whether the interval of an accuracy holds what guessing reaches."""
    level, found = chance(record.point.task, "acc"), accuracy(record)
    if level is None or found is None:
        return False
    value, count = found
    low, high = proportion_interval(round(value * count), count)
    return low <= level <= high


def _average(records: Mapping[str, Sequence[Record]], labels: Mapping[str, str]) -> str:
    """The paper's average over those of its tasks that both sides have, each beside the label of its model."""
    found = paper_average(
        {
            task: {side.model.name: side.metrics["acc"].value for side in sides}
            for task, sides in records.items()
            if len(sides) == 2
        }
    )
    if found is None:
        return ""
    tasks, means = found
    said = ", ".join(f"{label} {format_percent(means[model])}" for model, label in labels.items())
    return f" Mean over the paper's tasks that both have ({', '.join(tasks)}): {said}."
