"""Frames: exact columns and types, and the costs of every node."""

import pytest

from report.synthetic_records import on_node
from retbench.records.record import Record
from retbench.report.frames import OBSERVATION_COLUMNS, observations, results_frame
from retbench.report.results import Results
from retbench.report.selection import select


def test_a_frame_has_the_costs_of_every_node_and_a_report_says_what_it_leaves_out() -> None:
    rounds = [on_node("a", "retnet", number, "1") for number in range(3)]
    others = [on_node("b", "retnet", number, "2") for number in range(2)]
    again = on_node("a", "retnet", 0, "3")
    frame = results_frame(Results((*rounds, *others, again), ()))
    times = frame[frame["metric"] == "tpot_s"]
    assert sorted(zip(times["session"], times["round"], strict=True)) == [
        ("1@a", 1), ("1@a", 2), ("2@b", 0), ("2@b", 1), ("3@a", 0)
    ]  # fmt: skip
    assert select([*rounds, *others]).left_out == (
        "2 records are of another node or GPU; the rounds of a cell are those of one.",
    )


@pytest.mark.parametrize("some", [True, False])
def test_columns_and_types_are_declared_and_kept(cpu_records: list[Record], some: bool) -> None:
    records = cpu_records if some else []
    frame = observations(records)
    assert list(frame.columns) == list(OBSERVATION_COLUMNS)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == OBSERVATION_COLUMNS
    assert bool(len(frame)) == some


def test_one_row_a_cell_round_and_metric(cpu_records: list[Record]) -> None:
    frame = observations(cpu_records)
    assert len(frame) == sum(len(record.metrics) for record in cpu_records)
    key = ["experiment", "workload", "model", "batch_size", "context_len", "session", "round", "metric"]
    assert not frame.duplicated(key).any()
    row = frame[(frame["metric"] == "tpot_s")].iloc[0]
    assert (row["unit"], row["status"]) == ("s", "ok")
    assert row["value"] == cpu_records[0].metrics["tpot_s"].value
