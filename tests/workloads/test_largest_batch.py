"""The largest batch: the search with made-up limits, and real workers under a real one."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.architectures import costs
from retbench.errors import UnsupportedError
from retbench.ops.linear import RowProducts
from retbench.planning.cells import Cell
from retbench.planning.plan import make_plan
from retbench.records.record import Record
from retbench.records.store import read_records
from retbench.running.runner import run_plan
from retbench.workloads import largest_batch
from retbench.workloads.context import Context
from retbench.workloads.largest_batch import RESOLUTION, find_largest

from .conftest import make_cell

LIMIT_BYTES = 100_000_000

EXPERIMENT = f"""
title = "Tiny"
source = "none; made for tests"
expect = "It runs."

[models.MODEL]
architecture = "MODEL"

[profiles.smoke]
size = "1m"
rounds = 1
warmup_s = 0.0
min_steps = 1
threads = 1
memory_limit_bytes = {LIMIT_BYTES}
[profiles.smoke.workloads.largest_batch]
context_len = [256, 2048]
[profiles.smoke.workloads.decode]
context_len = [2048]
batch_size = [1, 16]
"""


@given(st.integers(min_value=0, max_value=10**6))
def test_what_is_found_fits_and_a_step_more_does_not(largest: int) -> None:
    found, step = find_largest(lambda batch: batch <= largest)
    assert found <= largest < found + step
    assert step <= max(1, found // RESOLUTION)


def test_a_batch_is_doubled_and_then_the_gap_is_halved() -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= 11

    assert find_largest(fits) == (11, 1)
    assert tried == [1, 2, 4, 8, 16, 12, 10, 11]


def test_without_a_limit_on_a_cpu_it_is_unsupported(context_of: Callable[[Cell], Context]) -> None:
    with pytest.raises(UnsupportedError, match=r"needs a limit of the memory.*--set memory_limit_bytes="):
        largest_batch.measure(context_of(make_cell("retnet", "largest_batch", 64)))


def test_trials_multiply_by_torchs_products_which_fail_by_an_error(
    context_of: Callable[[Cell], Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, seen = context_of(make_cell("retnet", "largest_batch", 64)), []
    context.model.set_row_products(RowProducts(batches=True, slice_width=1, onednn_rows=64))
    monkeypatch.setattr(largest_batch, "_headroom_bytes", lambda context: 10**9)
    monkeypatch.setattr(
        largest_batch,
        "_step",
        lambda context, batch_size: seen.append(context.model.weight_product) or batch_size < 3,
    )
    assert largest_batch.measure(context).metrics["largest_batch"].value == 2
    assert set(seen) == {"torch"}


MODELS = [pytest.param("retnet", marks=pytest.mark.slow), "transformer"]


@pytest.fixture(scope="module")
def out_of(
    given_products: None, given_ceilings: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Returns the results of the run of a model under a limit."""

    @cache
    def measure(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        path = folder / "tiny.toml"
        path.write_text(EXPERIMENT.replace("MODEL", name), encoding="utf-8")
        plan = make_plan(str(path), profile="smoke", device="cpu")
        run_plan(plan, folder / "out", fresh=False, notify=lambda _event: None)
        return folder / "out"

    return measure


def records_in(out: Path) -> list[Record]:
    """Return the records of the run."""
    found, problems = read_records(out)
    assert not problems
    return [one for one in found if one.experiment == "tiny"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps the limit")
@pytest.mark.parametrize("name", MODELS)
def test_the_batch_found_is_the_closed_forms_within_a_step(out_of: Callable[[str], Path], name: str) -> None:
    records = records_in(out_of(name))
    mine = {one.point.context_len: one for one in records if one.workload == "largest_batch"}
    assert {length: one.status for length, one in mine.items()} == {256: "ok", 2048: "ok"}
    for one in mine.values():
        value = {metric: item.value for metric, item in one.metrics.items()}
        assert value["memory_limit_bytes"] == LIMIT_BYTES
        # What was freed since the limit was set may be taken as well.
        assert 0.8 * LIMIT_BYTES < value["available_bytes"] <= 1.05 * LIMIT_BYTES
        # What a step needs beside the state is written down as a little less than torch takes: one part in 100.
        tolerance = value["largest_batch_step"] + 0.01 * value["expected_largest_batch"]
        assert abs(value["largest_batch"] - value["expected_largest_batch"]) <= tolerance
        assert one.point.batch_size == 1
        assert one.backend["trials"]
    ratio = mine[256].metrics["largest_batch"].value / mine[2048].metrics["largest_batch"].value
    assert ratio == pytest.approx(1 if name == "retnet" else 8, rel=0.15)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps the limit")
@pytest.mark.parametrize("name", MODELS)
def test_decoding_is_held_to_the_limit_and_ends_where_the_memory_does(
    out_of: Callable[[str], Path], name: str
) -> None:
    records = records_in(out_of(name))
    decoded = {one.point.batch_size: one for one in records if one.workload == "decode"}
    assert {size: one.status for size, one in decoded.items()} == {
        1: "ok",
        16: "ok" if name == "retnet" else "oom",
    }
    assert all(one.settings["memory_limit_bytes"] == LIMIT_BYTES for one in records)
    if name == "transformer":
        assert str(decoded[16].error).startswith("out of memory: ")
        config = make_cell("transformer", "decode", 2048).model
        assert costs.largest_batch(config, "float32", LIMIT_BYTES, 2048) < 16


@pytest.mark.parametrize(
    ("room", "reason"),
    [
        (6_000_000, "not even one sequence of 2,048 tokens"),
        (-2_000_000, "'transformer' cannot be built in so much. Give more"),
    ],
)
def test_less_memory_than_one_sequence_or_the_model_needs_is_out_of_memory(
    out_of: Callable[[str], Path], tmp_path: Path, room: int, reason: str
) -> None:
    """The equivalence check of the run above holds here too."""
    out = out_of("transformer")
    path = tmp_path / f"less{room}.toml"
    alone = EXPERIMENT.partition("[profiles.smoke.workloads.decode]")[0]
    path.write_text(alone.replace("MODEL", "transformer"), encoding="utf-8")
    limit = costs.weight_bytes(make_cell("transformer", "memory", 1).model, "float32") + room
    plan = make_plan(
        str(path),
        profile="smoke",
        device="cpu",
        overrides=[f"memory_limit_bytes={limit}", "workloads.largest_batch.context_len=[2048]"],
    )
    assert run_plan(plan, out, fresh=False, notify=lambda _event: None).counts == {"oom": 1}
    (found,) = (one for one in read_records(out)[0] if one.experiment == path.stem)
    assert str(found.error).startswith("out of memory: ")
    assert reason in str(found.error)
