"""The paper's values stand beside records of its size and device, and beside no others."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from report.synthetic_records import CPU, GPU, Machine, Maker
from retbench.papers.papers import find_number, load_papers
from retbench.records.record import Record
from retbench.report.figure6 import PaperPoint, keep_comparable, paper_points

LETTERS = ("a", "b", "c")
H100 = replace(GPU, processor="NVIDIA H100 80GB HBM3")
SMALL_A100 = replace(GPU, processor="NVIDIA A100-SXM4-40GB")


def memory(
    machine: Machine, change: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> list[Record]:
    return Maker(machine, change=change or (lambda arguments: arguments)).memory((2048, 8192), (8,))


def fewer_key_heads(arguments: dict[str, Any]) -> dict[str, Any]:
    """Grouped queries, which the paper's parameters of attention leave no room for."""
    model = arguments["model"]
    if model.architecture == "retnet":
        return arguments
    config = model.config | {"num_kv_heads": model.config["num_heads"] // 4}
    return arguments | {"model": model.model_copy(update={"config": config})}


def test_every_value_is_that_of_the_papers_file() -> None:
    sheets = load_papers()["retnet"].sheets
    names = ("figure6a", "figure6b", "figure6c_transformer", "figure6c_retnet")
    places = [point.number.place for letter in LETTERS for point in paper_points(letter)]
    assert places == [
        f"retnet/{name}/{row}/{column}"
        for name in names
        for row in sheets[name].rows
        for column in sheets[name].columns
    ]
    for point in (point for letter in LETTERS for point in paper_points(letter)):
        assert point.number == find_number(point.number.place)


def test_points_stand_where_the_paper_has_them() -> None:
    def at(points: list[PaperPoint], *place: object) -> list[float]:
        return [p.number.value for p in points if (p.architecture, p.batch_size, p.context_len) == place]

    assert at(paper_points("a"), "transformer", 8, 8192) == [47.3e9]
    assert at(paper_points("b"), "retnet", 8, 2048) == [310.8]
    assert at(paper_points("c"), "transformer", 8, 8192) == pytest.approx([0.35, 0.38])
    assert at(paper_points("c"), "retnet", 1, 8192) == pytest.approx([0.025, 0.03])


@pytest.mark.parametrize("letter", LETTERS)
def test_a_machine_and_a_size_of_the_paper_have_its_values(letter: str) -> None:
    assert keep_comparable(paper_points(letter), memory(GPU)) == paper_points(letter)


@pytest.mark.parametrize("machine", [CPU, H100, SMALL_A100, replace(GPU, size="1.3b")])
@pytest.mark.parametrize("letter", LETTERS)
def test_another_machine_or_size_has_none(letter: str, machine: Machine) -> None:
    assert keep_comparable(paper_points(letter), memory(machine)) == []


def test_grouped_queries_contradict_the_papers_transformer_alone() -> None:
    kept = keep_comparable(paper_points("a"), memory(GPU, fewer_key_heads))
    assert {point.architecture for point in kept} == {"retnet"}


def test_what_failed_has_none() -> None:
    def fail(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"status": "failed", "metrics": {}}

    assert keep_comparable(paper_points("a"), memory(GPU, fail)) == []
