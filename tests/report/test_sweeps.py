"""Points: values and intervals from rounds, checked with made-up numbers."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from report.synthetic_records import Maker
from retbench.records.record import Metric, ModelInfo, Record
from retbench.report.comparisons import by_round
from retbench.report.frames import observations
from retbench.report.lineup import lineup
from retbench.report.sweeps import failed_points, summarise


def rounds(values: list[float], metric: str = "tpot_s", unit: str = "s") -> list[Record]:
    """One cell measured in as many rounds as there are values."""
    maker = Maker()
    return [
        maker.record("latency", "retnet", "decode", 1, 1024, number).model_copy(
            update={"metrics": {metric: Metric(unit=unit, value=value)}}
        )
        for number, value in enumerate(values)
    ]


def test_a_point_is_the_geometric_mean_with_students_interval() -> None:
    (point,) = summarise(observations(rounds([1.0, 2.0, 4.0]))).itertuples()
    half = 4.302652729911275 * math.log(2) / math.sqrt(3)  # t(2, .975)
    assert point.value == pytest.approx(2.0)
    assert point.low == pytest.approx(2.0 * math.exp(-half))
    assert point.high == pytest.approx(2.0 * math.exp(half))
    assert (point.num_rounds, point.unit, point.context_len) == (3, "s", 1024)


def test_the_interval_of_a_share_ends_at_the_ceiling() -> None:
    (point,) = summarise(observations(rounds([0.016, 0.042], "roofline_ratio", "ratio"))).itertuples()
    assert point.value == pytest.approx(math.sqrt(0.016 * 0.042))
    assert point.high == 1
    (single,) = summarise(observations(rounds([0.5], "roofline_ratio", "ratio"))).itertuples()
    assert math.isnan(float(str(single.high)))


def test_one_round_has_no_interval() -> None:
    (point,) = summarise(observations(rounds([0.1]))).itertuples()
    assert point.value == 0.1
    assert math.isnan(float(str(point.low)))


def test_bytes_that_are_the_same_each_round_are_exact() -> None:
    (point,) = summarise(observations(rounds([2147483648.0] * 5, "state_bytes", "bytes"))).itertuples()
    assert (point.value, point.low, point.high) == (2147483648.0,) * 3


def test_a_workspace_of_nothing_is_no_error() -> None:
    (point,) = summarise(observations(rounds([0.0, 0.0, 8.0], "workspace_bytes", "bytes"))).itertuples()
    assert point.value == 0.0
    assert math.isnan(float(str(point.high)))


@given(st.permutations(range(6)))
def test_the_order_of_records_does_not_matter(order: list[int]) -> None:
    records = rounds([1.0, 1.1, 1.3, 0.9, 1.05, 1.2])
    shuffled = summarise(observations([records[index] for index in order]))
    assert shuffled.equals(summarise(observations(records)))


def test_no_records_no_points() -> None:
    assert summarise(observations([])).empty


def test_rounds_and_lengths_make_a_table_with_gaps(cpu_records: list[Record]) -> None:
    decode = [r for r in cpu_records if r.workload == "decode"]
    frame = observations([r for r in decode if (r.round, r.point.context_len) != (2, 8192)])
    table = by_round(frame, "tpot_s", "retnet")
    assert table.shape == (5, 6)
    assert table.columns.astype(int).to_list() == [1024, 2048, 4096, 8192, 16384, 32768]
    gaps = table.isna()
    assert int(gaps.to_numpy().sum()) == 1
    assert bool(gaps.droplevel("session").loc[2, 8192])


def test_failed_points_are_those_without_any_value(gpu_records: list[Record]) -> None:
    failed = failed_points(observations(gpu_records))
    decode = failed[failed["workload"] == "decode"]
    assert [list(row) for row in decode[["model", "context_len", "status"]].to_numpy()] == [
        ["transformer", 16384, "oom"],
        ["transformer", 32768, "oom"],
    ]
    assert "GiB needed" in failed["error"].iloc[0]


def test_a_point_with_one_good_round_has_not_failed() -> None:
    good, bad = rounds([1.0, 1.0])
    bad = bad.model_copy(update={"status": "timeout", "metrics": {}})
    assert failed_points(observations([good, bad])).empty


def renamed(record: Record, **fields: Any) -> Record:
    info = ModelInfo.model_validate(record.model.model_dump() | fields)
    return record.model_copy(update={"model": info})


def test_transformers_stand_last_and_names_are_proper() -> None:
    retnet, transformer = (
        Maker().record("latency", name, "decode", 1, 1024, 0) for name in ("retnet", "transformer")
    )
    models = lineup([transformer, retnet])
    assert models.models == ("retnet", "transformer")
    assert models.reference == "transformer"
    assert models.challengers == ("retnet",)
    assert models.labels == {"retnet": "RetNet", "transformer": "Transformer"}


def test_two_of_a_kind_are_distinguished_and_a_stranger_keeps_its_name() -> None:
    retnet = Maker().record("latency", "retnet", "decode", 1, 1024, 0)
    models = lineup([retnet, renamed(retnet, name="wide"), renamed(retnet, name="m", architecture="mamba")])
    assert models.labels == {"m": "mamba", "retnet": "RetNet", "wide": "RetNet (wide)"}
    assert models.reference is None
    assert models.challengers == ()


def test_a_name_that_begins_or_ends_with_its_kind_is_read_as_words() -> None:
    retnet = Maker().record("latency", "retnet", "decode", 1, 1024, 0)
    names = ("gated_retnet", "retnet_chunkwise", "retnet_small_chunks")
    models = lineup([renamed(retnet, name=name) for name in names])
    assert list(models.labels.values()) == ["gated RetNet", "chunkwise RetNet", "small chunks RetNet"]
