"""Results of a folder: what is read, what is said of the rest, and what tells comparable sets apart."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from report.synthetic_records import one, write_results
from retbench.errors import RecordError
from retbench.records.record import Record
from retbench.report.frames import observations, results_frame
from retbench.report.results import by_parts, load_results, set_of
from retbench.report.selection import describe_count, select


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


def test_one_damaged_line_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text('{"schema_version": 0}\n', encoding="utf-8")
    with pytest.raises(RecordError, match="1 line that cannot"):
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


def test_values_of_parts_are_remembered_and_the_oldest_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retbench.report.results._MAX_REMEMBERED", 2)
    asked: list[int] = []

    @by_parts
    def first_of(part: list[int]) -> int:
        asked.append(part[0])
        return part[0]

    parts = [[number] for number in range(3)]
    assert [first_of(part) for part in (*parts, *parts[1:], parts[0])] == [0, 1, 2, 1, 2, 0]
    assert asked == [0, 1, 2, 0]
