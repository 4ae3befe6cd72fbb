"""Equivalence checks on disk: which hold for a plan, and what a run does with one."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from retbench.measure.environment import machine_name
from retbench.planning.plan import Plan, make_plan
from retbench.records.record import Gate, Record, utc_now
from retbench.records.store import append_record, read_records
from retbench.running import events, gates
from retbench.running.gates import gates_on_disk
from retbench.running.locks import LOCK_DIR_VARIABLE
from retbench.running.resume import identities_here
from retbench.running.runner import run_plan
from tests.running.observer import Observer

EXPERIMENT = """title = "{name}"
source = "none"
expect = "It runs."
[models.{name}]
architecture = "retnet"
[profiles.smoke]
size = "25k"
rounds = 1
warmup_s = 0.0
min_steps = 2
threads = 1
[profiles.smoke.workloads.{workload}]
context_len = [{length}]
"""

PlanOf = Callable[..., Plan]

pytestmark = pytest.mark.usefixtures("given_products", "given_ceilings")


@pytest.fixture(autouse=True)
def own_lock(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCK_DIR_VARIABLE, str(tmp_path_factory.mktemp("lock")))


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory: pytest.TempPathFactory) -> PlanOf:
    """Makes the plan of one workload of a RetNet of 25K parameters, in an experiment with a name of its own."""
    folder = tmp_path_factory.mktemp("experiments")

    def make(name: str, workload: str, *overrides: str, length: int = 16) -> Plan:
        path = folder / f"{name}.toml"
        text = EXPERIMENT.format(name=name, workload=workload, length=length)
        path.write_text(text, encoding="utf-8")
        return make_plan(str(path), profile="smoke", device="cpu", overrides=overrides)

    return make


def run(plan: Plan, out: Path) -> tuple[Observer, list[Record]]:
    """Runs a plan; its events, and the records it has written."""
    observer = Observer()
    result = run_plan(plan, out, fresh=False, notify=observer)
    assert set(result.counts) == {"ok"}
    assert result.path is not None
    records, problems = read_records(result.path)
    assert not problems
    return observer, records


def stop_when_checked(event: events.RunEvent) -> None:
    """Stop the run by a signal."""
    if isinstance(event, events.GateChecked):
        os.kill(os.getpid(), signal.SIGINT)


def test_another_experiment_takes_the_check_of_the_same_model(
    plan_of: PlanOf, tmp_path: Path, checked: Record
) -> None:
    """Only its states are streamed; a fresh run checks the model anew."""
    assert checked.gate is not None
    assert checked.gate.run_id is None
    append_record(tmp_path / machine_name("cpu") / "first" / "records.jsonl", checked)
    plan = plan_of("second", "decode")
    observer, (record,) = run(plan, tmp_path)
    assert [event.checks for event in observer.of(events.Preparing)] == [False]
    assert len(observer.of(events.GateChecked)) == 1
    assert observer.of(events.Streaming)
    assert record.gate == checked.gate.model_copy(update={"run_id": checked.run_id})
    third = held(plan_of("third", "prefill", length=17), tmp_path / "some", record)
    assert third == {"third": record.gate}, "the run that checked it, not the one that took the check over"
    again = Observer(stop_when_checked)
    assert run_plan(plan, tmp_path, fresh=True, notify=again).interrupted
    assert [event.checks for event in again.of(events.Preparing)] == [True]
    assert [event.gate.run_id for event in again.of(events.GateChecked)] == [None]


@pytest.fixture(scope="module")
def checked(
    given_products: None, given_ceilings: None, plan_of: PlanOf, tmp_path_factory: pytest.TempPathFactory
) -> Record:
    """The record of a model that has passed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOCK_DIR_VARIABLE, str(tmp_path_factory.mktemp("lock")))
        _, (record,) = run(plan_of("first", "prefill"), tmp_path_factory.mktemp("measured"))
    return record


def held(plan: Plan, folder: Path, *records: Record) -> dict[str, Gate]:
    """The checks that hold for a plan among some records."""
    for record in records:
        append_record(folder / "records.jsonl", record)
    return gates_on_disk(folder, plan.cells, identities_here(plan.cells))


def test_the_newest_check_of_the_model_holds(plan_of: PlanOf, tmp_path: Path, checked: Record) -> None:
    later = checked.model_copy(update={"run_id": "later", "started_at": utc_now()})
    found = held(plan_of("second", "memory"), tmp_path / "some", later, checked)
    assert {label: gate.run_id for label, gate in found.items()} == {"second": "later"}
    assert held(plan_of("second", "memory"), tmp_path / "none") == {}


@pytest.mark.parametrize(
    "override",
    ["seed=1", "dtype=bfloat16", "size=40k", "models.second.backend=parallel"],
)
def test_the_check_of_another_model_does_not_hold(
    plan_of: PlanOf, tmp_path: Path, checked: Record, override: str
) -> None:
    assert held(plan_of("second", "memory"), tmp_path / "some", checked)
    assert not held(plan_of("second", "memory", override), tmp_path / "some")


@pytest.mark.parametrize("fact", ["code_revision", "model_code", "versions", "machine", "node_id"])
def test_a_check_elsewhere_or_of_other_code_does_not_hold(
    plan_of: PlanOf, tmp_path: Path, checked: Record, fact: str
) -> None:
    other = {"torch": "0.1"} if fact == "versions" else "other"
    changed = checked.model_copy(update={"environment": {**checked.environment, fact: other}})
    assert not held(plan_of("second", "memory"), tmp_path / "some", changed)
    workload = checked.model_copy(update={"environment": {**checked.environment, "workload_code": "other"}})
    assert held(plan_of("second", "memory"), tmp_path / "some", workload), "a check runs no workload"


def test_a_check_that_failed_or_is_too_short_does_not_hold(
    plan_of: PlanOf, tmp_path: Path, checked: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checked.gate is not None
    failed = checked.model_copy(update={"gate": checked.gate.model_copy(update={"passed": False})})
    assert not held(plan_of("second", "memory"), tmp_path / "failed", failed)
    unchecked = checked.model_copy(update={"gate": None})
    assert not held(plan_of("second", "memory"), tmp_path / "unchecked", unchecked)
    empty = checked.model_copy(update={"gate": checked.gate.model_copy(update={"checks": ()})})
    assert not held(plan_of("second", "memory"), tmp_path / "empty", empty)
    deepest = max(check.length for check in checked.gate.checks)
    assert held(plan_of("second", "memory", length=deepest), tmp_path / "some", checked)
    assert not held(plan_of("second", "memory", length=deepest + 1), tmp_path / "some")
    monkeypatch.setitem(gates.GATE_DEPTH, "cpu", deepest)
    assert held(plan_of("second", "memory", length=deepest + 1), tmp_path / "some"), "no check goes deeper"


def test_each_model_of_a_plan_has_its_own_check(plan_of: PlanOf, tmp_path: Path, checked: Record) -> None:
    plan, other = plan_of("second", "memory"), plan_of("third", "memory", "seed=1")
    both = replace(plan, cells=(*plan.cells, *other.cells))
    assert list(held(both, tmp_path / "some", checked)) == ["second"]
