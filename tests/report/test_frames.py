"""Frames: exact columns and types, the record that counts, and nothing pooled that must not be."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from report.synthetic_records import Maker, write_results
from retbench.errors import RecordError
from retbench.records.dates import started
from retbench.records.record import Metric, Record
from retbench.report.frames import (
    OBSERVATION_COLUMNS,
    Results,
    keep_latest,
    load_results,
    observations,
    on_one_node,
    results_frame,
    set_of,
)
from retbench.report.selection import describe_count, select


def one(**changes: Any) -> Record:
    """The first RetNet decode record, with some fields replaced."""
    record = Maker().record("latency", "retnet", "decode", 1, 1024, 0)
    return record.model_copy(update=changes)


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


def on_node(node: str, model: str, number: int, run: str, **fields: Any) -> Record:
    """A record of a run on a node, started in the order of the runs' names."""
    found = Maker().record("latency", model, "decode", 1, 1024, number)
    environment = {**found.environment, "node_id": node, **fields}
    return found.model_copy(
        update={"run_id": run, "started_at": f"2026-01-0{run}T00:00:00Z", "environment": environment}
    )


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


def test_no_such_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"there is no such file or folder.*retbench run latency"):
        load_results(tmp_path / "nowhere")


def test_an_empty_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"holds no record.*retbench run latency"):
        load_results(tmp_path)


def test_a_folder_of_damaged_lines_names_the_first(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text(
        '{"schema_version": 1, "ru\n{"schema_version": 0}\n', encoding="utf-8"
    )
    with pytest.raises(RecordError, match=r"2 lines that cannot.*run\.jsonl:1: not a whole JSON object"):
        load_results(tmp_path)


def test_results_keep_records_and_problems(results: Path, cpu_records: list[Record]) -> None:
    (results / "old.jsonl").write_text('{"schema_version": 0}\n', encoding="utf-8")
    loaded = load_results(results)
    assert len(loaded.records) == len(cpu_records)
    assert len(loaded.problems) == 1
    assert "old.jsonl:1: schema_version is 0" in loaded.problems[0]


def test_a_copy_of_a_file_adds_no_record(results: Path, cpu_records: list[Record]) -> None:
    shutil.copytree(results, results / "published" / "copy")
    loaded = load_results(results)
    assert len(loaded.records) == len(cpu_records)
    assert not loaded.source_of(loaded.records[0]).is_published


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


@pytest.mark.parametrize(
    ("text", "words", "time"),
    [
        (
            "2099-01-01T00:00:00Z",
            "are dated in the future, up to 2099-01-01",
            pd.Timestamp("2099-01-01", tz="UTC"),
        ),
        ("yesterday", "have a started_at that is no time, such as 'yesterday'", None),
    ],
)
def test_records_of_the_future_or_without_a_date_are_named_with_their_file(
    results: Path, cpu_records: list[Record], text: str, words: str, time: pd.Timestamp | None
) -> None:
    update = {"started_at": text, "run_id": "later"}
    write_results(results, [record.model_copy(update=update) for record in cpu_records[:2]])
    loaded = load_results(results)
    (problem,) = loaded.problems
    assert problem.startswith(f"{results}/epyc-9b14-2c/latency/later.jsonl: 2 of its records {words}")
    assert not {"later"} & {record.run_id for record in select(loaded.records).records}
    alone = load_results(results / "epyc-9b14-2c" / "latency" / "later.jsonl")
    moments = results_frame(alone)["started_at"]
    assert moments.isna().all() if time is None else (moments == time).all()
    assert "0001" not in describe_count(alone.records)


DIFFERENCES: dict[str, dict[str, Any]] = {
    "machine": {"environment": {"machine": "other"}},
    "code_revision": {"environment": {"code_revision": "0.2.0+src.0"}},
    "torch_version": {"environment": {"versions": {"torch": "2.6.0", "python": "3.11.9"}}},
    "python_version": {"environment": {"versions": {"torch": "2.13.0", "python": "3.12.0"}}},
    "library_versions": {
        "environment": {"versions": {"torch": "2.13.0", "python": "3.11.9", "fla-core": "0.4.1"}}
    },
    "dtype": {"settings": {"dtype": "bfloat16"}},
    "threads": {"settings": {"threads": 1}},
    "device": {"settings": {"device": "cuda:0"}},
}


@pytest.mark.parametrize("field", DIFFERENCES)
def test_what_differs_is_never_pooled(field: str) -> None:
    here = one()
    changes = {
        name: {**getattr(here, name), **value} if isinstance(value, dict) else value
        for name, value in DIFFERENCES[field].items()
    }
    there = here.model_copy(update=changes)
    assert getattr(set_of(here), field) != getattr(set_of(there), field)
    assert len(observations([here, there])) == 2 * len(here.metrics)


def test_facts_that_are_not_recorded_are_missing_not_made_up() -> None:
    assert set(asdict(set_of(one(environment={}, settings={}))).values()) == {None}


def test_what_only_reads_counters_keeps_nothing_apart() -> None:
    here = one()
    versions = {**here.environment["versions"], "nvidia-ml-py": "13.590.44"}
    assert set_of(one(environment={**here.environment, "versions": versions})) == set_of(here)
