"""The records of one side of a session, read while its workers write them."""

from pathlib import Path

import pytest

from report.synthetic_records import CPU, Maker
from retbench.errors import RecordError
from retbench.records.store import append_record
from retbench.regress.items import MeasurementPoint
from retbench.regress.revisions import Revision
from retbench.regress.session import SessionSide


@pytest.fixture
def side(tmp_path: Path) -> SessionSide:
    return SessionSide(Revision("the base", tmp_path, tmp_path, "c"), tmp_path)


def test_records_are_read_once_as_they_come(side: SessionSide) -> None:
    assert side.records() == []
    written = Maker(CPU).latency((1024,))
    for record in written[:4]:
        append_record(side.records_path, record)
    assert side.records() == written[:4]
    for record in written[4:]:
        append_record(side.records_path, record)
    assert side.records() == written
    point = MeasurementPoint("latency", "decode", "retnet", 1, 1024)
    expected = {
        record.round: [record.metrics["tpot_s"].value]
        for record in written
        if (record.model.name, record.workload) == ("retnet", "decode")
    }
    assert {number: side.values(number)[point] for number in expected} == expected


def test_what_a_worker_left_half_written_is_no_record(side: SessionSide) -> None:
    first, second = Maker(CPU).latency((1024,))[:2]
    append_record(side.records_path, first)
    with open(side.records_path, "ab") as file:
        file.write(second.model_dump_json().encode()[:100])
    assert side.records() == [first]
    append_record(side.records_path, second)
    assert side.records() == [first, second]


def test_records_of_a_schema_that_is_not_known_are_an_error(side: SessionSide) -> None:
    newer = Maker(CPU).latency((1024,))[0].model_copy(update={"schema_version": 99})
    append_record(side.records_path, newer)
    with pytest.raises(RecordError, match="schema_version is 99"):
        side.records()
