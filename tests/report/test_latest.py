"""The record that counts: the latest with a result, of one node."""

import pytest

from report.synthetic_records import on_node, one
from retbench.records.dates import started
from retbench.records.record import Metric, Record
from retbench.report.frames import observations
from retbench.report.latest import keep_latest, on_one_node


def timed(seconds: float, started_at: str, status: str = "ok", run_id: str = "") -> Record:
    """A record of a run of its own, unless `run_id` names one."""
    metrics = {"tpot_s": Metric(unit="s", value=seconds)} if status == "ok" else {}
    return one(metrics=metrics, started_at=started_at, status=status, run_id=run_id or started_at)


def latest(records: list[Record]) -> list[tuple[str, float | None]]:
    """Status and time of the records that count."""
    return [
        (record.status, record.metrics["tpot_s"].value if record.metrics else None)
        for record in keep_latest(records)
    ]


def kept_on(records: list[Record]) -> list[tuple[str, int, str]]:
    return sorted(
        (record.model.name, record.round, str(record.environment["node_id"]))
        for record in keep_latest(records)
    )


def test_a_later_failed_check_counts_and_another_later_failure_does_not() -> None:
    earlier = timed(2.0, "2026-01-01T00:00:00Z")
    for status, counts in (
        ("gate_failed", ("gate_failed", None)),
        ("failed", ("ok", 2.0)),
        ("oom", ("ok", 2.0)),
    ):
        assert latest([earlier, timed(1.0, "2026-01-02T00:00:00Z", status)]) == [counts]


def test_the_rounds_of_a_point_are_of_one_node() -> None:
    whole = [on_node("a", model, number, "1") for model in ("retnet", "transformer") for number in range(3)]
    part = [on_node("b", "retnet", number, "2") for number in range(2)]
    assert {node for *_, node in kept_on([*whole, *part])} == {"a"}
    more = [on_node("b", "transformer", number, "2") for number in range(3)]
    assert {node for *_, node in kept_on([*whole, *part, *more])} == {"a"}  # which has 6 rounds, and b 5
    last = on_node("b", "retnet", 2, "3")
    assert {node for *_, node in kept_on([*whole, *part, *more, last])} == {"b"}  # as many, and later


def test_equal_nodes_and_gpus_are_told_apart_and_a_model_of_one_node_is_kept() -> None:
    rounds = [on_node("a", "retnet", number, "1") for number in range(2)]
    again = [on_node("a", "retnet", number, "2", gpu_uuid="GPU-1") for number in range(2)]
    assert {record.run_id for record in keep_latest([*rounds, *again])} == {"2"}
    other = on_node("b", "transformer", 0, "3")
    assert kept_on([*rounds, other]) == [("retnet", 0, "a"), ("retnet", 1, "a"), ("transformer", 0, "b")]


def test_scores_of_a_workload_that_is_not_installed_are_kept_of_every_node() -> None:
    costs = [
        on_node(node, "retnet", 0, run).model_copy(update={"workload": "riddles"})
        for node, run in (("a", "1"), ("b", "2"))
    ]
    point = costs[0].point.model_copy(update={"task": "riddles"})
    scores = [record.model_copy(update={"point": point}) for record in costs]
    assert on_one_node(costs) == costs[1:]
    assert on_one_node(scores) == scores


def test_the_latest_that_is_ok_counts() -> None:
    first, second = timed(1.0, "2026-01-01T00:00:00Z"), timed(2.0, "2026-01-01T00:00:01Z")
    failed = timed(0.0, "2026-01-01T00:00:02Z", status="timeout")
    for order in ([first, second, failed], [failed, second, first]):
        assert latest(order) == [("ok", 2.0)]


def test_where_none_is_ok_the_latest_failure_counts() -> None:
    records = [
        timed(0.0, "2026-01-01T00:00:01Z", status="failed"),
        timed(0.0, "2026-01-01T00:00:00Z", status="oom"),
    ]
    assert latest(records) == [("failed", None)]
    assert observations(records)["metric"].isna().all()


def test_of_one_run_the_record_that_was_written_last_counts_whatever_its_clock_said() -> None:
    moments = ["2026-01-01T00:00:09Z", "2099-01-01T00:00:00Z", "2026-01-01T00:00:03Z"]
    records = [timed(number, text, run_id="one") for number, text in enumerate(moments, start=1)]
    assert latest(records) == [("ok", 3.0)]
    other = timed(4.0, "2026-01-01T00:00:05Z", run_id="another")
    assert latest([*records, other]) == [("ok", 3.0)], "its run was still going on at :09"


def test_times_in_other_zones_are_compared_as_moments() -> None:
    early, late = timed(1.0, "2026-01-01T02:00:00+02:00"), timed(2.0, "2026-01-01T00:00:01Z")
    assert latest([late, early]) == [("ok", 2.0)]


EDGES = ["yesterday", "", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2099-01-01T00:00:00Z"]


@pytest.mark.parametrize("text", EDGES)
def test_a_time_that_is_none_or_in_the_future_loses_against_any_other(text: str) -> None:
    assert started(timed(1.0, text)).year == 1
    other = timed(2.0, "2020-01-01T00:00:00")
    assert latest([timed(1.0, text), other]) == latest([other, timed(1.0, text)]) == [("ok", 2.0)]
