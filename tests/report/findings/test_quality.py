"""The headline on quality falls as the numbers do: better, worse, level, or too few documents to tell."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from report.synthetic_scores import SEEDS, ScoreMaker, answer_better, evaluations_of
from retbench.report.evaluations import Evaluations
from retbench.report.findings.costs import KeyFinding
from retbench.report.findings.quality import find_quality
from retbench.units import format_size

CORPUS = "litbank/original"


def found(maker: ScoreMaker) -> list[KeyFinding]:
    return find_quality(evaluations_of(maker))


def losses(folder: Path, ratios: Mapping[str, float], **fields: Any) -> KeyFinding:
    """The finding where RetNet's bits per token are so many times the Transformer's, by size, within about 1 %."""
    bits = {"transformer": dict.fromkeys(ratios, 1.5), "retnet": {s: 1.5 * r for s, r in ratios.items()}}
    maker = ScoreMaker(folder, bits=bits, **({"seeds": dict.fromkeys(ratios, (0,))} | fields))
    maker.perplexities(CORPUS, "last", 2048)
    (finding,) = found(maker)
    return finding


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ({"1m": 0.9}, "RetNet is better."),
        ({"1m": 1.1}, "the Transformer is better."),
        (
            {"1m": 0.9, "6m": 0.9, "25m": 0.9},
            "RetNet is better at every size. No crossover is shown from 1M to 25M.",
        ),
        (
            {"1m": 1.1, "6m": 1.1, "25m": 0.9},
            "the Transformer is better at 1M and 6M; RetNet is better at 25M. RetNet becomes the better one between "
            "6M and 25M.",
        ),
        (
            {"1m": 0.9, "6m": 1.1},
            "RetNet is better at 1M; the Transformer is better at 6M. RetNet becomes the worse one between 1M and 6M.",
        ),
        (
            {"1m": 0.9, "6m": 1.1, "25m": 0.9},
            "RetNet is better at 1M and 25M; the Transformer is better at 6M. The order changes between 1M and 6M and "
            "between 6M and 25M.",
        ),
    ],
)
def test_the_better_model_is_named_and_where_it_changes(
    tmp_path: Path, ratios: dict[str, float], words: str
) -> None:
    finding = losses(tmp_path, ratios)
    few = f" Another seed may differ: fewer than 3 trainings at {', '.join(map(format_size, ratios))}."
    assert finding.text.replace(" and ", ", ").endswith(f": {words}{few}".replace(" and ", ", "))
    assert finding.text.startswith("RetNet's bits per token on litbank/original (last, 2K) are ")
    per_parameter = r"(, \d+ per parameter)?" if len(ratios) == 1 else ""
    assert re.search(rf"trained on 20\.0 M tokens{per_parameter} \(95 % CI over 60 documents\)", finding.text)
    last = list(ratios.values())[-1]
    lead = re.fullmatch(r"([\d.]+) % (fewer|more) bits per token", finding.lead)
    assert lead is not None
    assert lead[2] == ("fewer" if last < 1 else "more")
    assert float(lead[1]) == pytest.approx(100 * abs(last - 1), abs=2)
    shown = [float(value) for value in re.findall(r"(\d\.\d{3}) \[", finding.text)]
    assert shown == pytest.approx(list(ratios.values()), rel=0.02)


def test_equal_losses_show_no_difference(tmp_path: Path) -> None:
    shared: dict[int, list[dict[str, Any]]] = {}

    def same(model: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The Transformer's rows are RetNet's, alternately a little more and a little less."""
        if model == "retnet":
            shared[len(rows)] = rows
            return rows
        return [
            {**row, "nll_nats": row["nll_nats"] * (1.01 if number % 2 else 0.99)}
            for number, row in enumerate(shared[len(rows)])
        ]

    maker = ScoreMaker(tmp_path, seeds={"1m": (0,)}, change_rows=same)
    maker.perplexities(CORPUS, "last", 2048)
    (finding,) = found(maker)
    assert finding.lead == "no significant difference"
    assert "not significant" in finding.text


def test_few_documents_tell_nothing(tmp_path: Path) -> None:
    finding = losses(tmp_path, {"1m": 0.5}, num_documents=2)
    assert "(no interval: 2 documents)" in finding.text
    assert "95 %" not in finding.text
    assert "too few documents" in finding.text


def by_seed(folder: Path, factors: Sequence[float]) -> KeyFinding:
    """The finding where RetNet's losses by seed are multiplied by these factors; the Transformer's stay alike."""
    left = list(factors)

    def change(model: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        factor = left.pop(0) if model == "retnet" else 1.0
        return [{**row, "nll_nats": factor * row["nll_nats"]} for row in rows]

    bits = {"retnet": {"1m": 1.5}, "transformer": {"1m": 1.5}}
    seeds = {"1m": tuple(range(len(factors)))}
    maker = ScoreMaker(folder, seeds=seeds, bits=bits, change_rows=change)
    maker.perplexities(CORPUS, "last", 2048)
    (finding,) = found(maker)
    return finding


def test_two_seeds_that_disagree_are_reported_one_by_one(tmp_path: Path) -> None:
    finding = by_seed(tmp_path, [1.25, 0.8])
    assert "at 1M (seeds 0 and 1)" in finding.text
    assert ": the Transformer is better at 1M seed 0; RetNet is better at 1M seed 1." in finding.text
    assert re.fullmatch(
        r"[\d.]+ % fewer to [\d.]+ % more bits per token", finding.lead
    )  # a range, never a mean


@pytest.mark.parametrize(
    ("factors", "verdict", "lead"),
    [
        ([0.9, 0.92, 0.91], "RetNet is better", "9.0 % fewer bits per token"),
        ([1.1, 1.09, 1.11], "the Transformer is better", "10.0 % more bits per token"),
        # Each differs clearly over documents, and the trainings differ as much from each other.
        ([0.9, 1.02, 0.95], "the difference is not significant", "no significant difference"),
    ],
)
def test_from_three_seeds_on_the_interval_over_trainings_decides(
    tmp_path: Path, factors: Sequence[float], verdict: str, lead: str
) -> None:
    finding = by_seed(tmp_path, factors)
    shown = re.search(
        r"seeds 0, 1 and 2; together ([\d.]+) \[([\d.]+), ([\d.]+)\], 95 % CI over seeds", finding.text
    )
    assert shown is not None
    logs = [math.log(factor) for factor in factors]
    center, half = mean(logs), 4.3027 * stdev(logs) / math.sqrt(3)
    expected = [math.exp(center + side * half) for side in (0, -1, 1)]
    assert list(map(float, shown.groups())) == pytest.approx(expected, rel=0.02)
    assert finding.text.endswith(f": {verdict}.")
    assert re.sub(r"[\d.]+", "#", finding.lead) == re.sub(r"[\d.]+", "#", lead)


@pytest.mark.parametrize(
    ("right", "lead"),
    [
        # Of 300 questions RetNet answers 30 more than the Transformer from each seed, about; then from one seed fewer.
        ((180, 183, 177), "better at 1, worse at 0 of 1 task"),
        ((120, 117, 123), "better at 0, worse at 1 of 1 task"),
        ((180, 183, 120), "no significant difference on 1 task"),
    ],
)
def test_from_three_seeds_on_the_interval_over_trainings_decides_on_tasks(
    tmp_path: Path, right: Sequence[int], lead: str
) -> None:
    left = list(right)

    def change(model: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        count = left.pop(0) if model == "retnet" else 150
        return [row | {"acc": int(number < count)} for number, row in enumerate(rows)]

    maker = ScoreMaker(tmp_path, seeds={"1m": (0, 1, 2)}, change_rows=change)
    maker.zeroshots(0, ["piqa"])
    (finding,) = found(maker)
    assert finding.lead == lead
    assert "at 1M, seeds 0, 1 and 2, contexts of 2K tokens: " in finding.text
    differences = [(count - 150) / 3 for count in right]
    center, half = mean(differences), 4.3027 * stdev(differences) / math.sqrt(3)
    shown = re.search(
        r"piqa \(([-+.\d]+) points \[([-+.\d]+), ([-+.\d]+)\], 95 % CI over seeds\)", finding.text
    )
    assert (shown is None) == lead.startswith("no")
    if shown:
        assert list(map(float, shown.groups())) == pytest.approx(
            [center, center - half, center + half], abs=0.06
        )


def test_contexts_are_not_taken_for_seeds(tmp_path: Path) -> None:
    """RetNet answers one question more in each of three contexts, by one training."""

    def change(model: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row | {"acc": int(number < 50 + (model == "retnet"))} for number, row in enumerate(rows)]

    maker = ScoreMaker(tmp_path, seeds={"1m": (0,)}, change_rows=change)
    for context_len in (512, 1024, 2048):
        maker.zeroshots(0, ["piqa", "copa"], context_len)
    findings = found(maker)
    assert [finding.lead for finding in findings] == ["no significant difference on 2 tasks"] * 3
    for finding, length in zip(findings, ("512", "1K", "2K"), strict=True):
        assert finding.text.startswith(f"0-shot, 2 tasks at 1M seed 0, contexts of {length} tokens: ")


def test_the_whole_headline(scores: Evaluations) -> None:
    findings = find_quality(scores)
    beyond = [
        finding for finding in findings if finding.text.startswith("Beyond the training length of 2K tokens")
    ]
    assert [finding.lead for finding in beyond] == [
        "loss -0.03 vs +0.36 nats per token from 2K to 8K",
        "loss -0.03 vs +0.40 nats per token from 2K to 8K",
    ]
    # Contexts of 8K are longer than the 2K of the training, those of `last` are not.
    extrapolated = [finding for finding in findings if "models extrapolate" in finding.text]
    assert all("8K)" in finding.text for finding in extrapolated)
    assert len(extrapolated) == 2
    assert all(finding.lead.endswith(" beyond the trained length") for finding in extrapolated)
    record = next(
        r
        for r in scores.records
        if (r.model.name, r.model.size, r.point.task) == ("transformer", "25m", CORPUS)
        and r.point.context_len == 8192
    )
    series = record.series["loss_by_position"]
    early, late = (series.y[series.x.index(length)] for length in (2048, 8192))
    assert f"from {early:.3f} to {late:.3f} for the Transformer." in beyond[0].text
    zero_shot = [finding for finding in findings if "-shot, 4 tasks at 25M seed 0" in finding.text]
    assert [finding.lead for finding in zero_shot] == [
        "better at 1, worse at 0 of 4 tasks",
        "no significant difference on 4 tasks",
    ]
    assert "RetNet is better at piqa (" in zero_shot[0].text
    assert "about 0.2 are expected by chance" in zero_shot[0].text
    assert "at chance on copa and hellaswag." in zero_shot[0].text
    assert len(findings) == 4 + len(beyond) + len(zero_shot)


@pytest.mark.parametrize("names", [{}, {"retnet": "transformer", "transformer": "retnet"}])
def test_each_mean_over_the_papers_tasks_stands_beside_its_own_model(
    tmp_path: Path, names: Mapping[str, str]
) -> None:
    """RetNet answers three of four questions rightly, the Transformer two of four, whatever the models are called."""

    def rename(arguments: dict[str, Any]) -> dict[str, Any]:
        name = arguments["model"].name
        arguments["model"] = arguments["model"].model_copy(update={"name": names.get(name, name)})
        return arguments

    maker = ScoreMaker(tmp_path, seeds={"1m": (0,)}, change=rename, change_rows=answer_better)
    maker.zeroshots(0)
    (finding,) = found(maker)
    assert finding.text.endswith(
        "Mean over the paper's tasks that both have (hellaswag, copa, piqa): RetNet 75.0 %, Transformer 50.0 %."
    )


def test_models_that_were_trained_at_the_whole_length_have_nothing_beyond(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds=SEEDS)
    maker.trainings()
    maker.perplexities(CORPUS, "whole", 2048)
    assert not [finding for finding in found(maker) if finding.text.startswith("Beyond")]


def test_without_a_transformer_nothing_is_compared(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0,)})
    maker.perplexities(CORPUS, "whole", 2048)
    maker.zeroshots(0)
    maker.records = [record for record in maker.records if record.model.name == "retnet"]
    assert found(maker) == []
