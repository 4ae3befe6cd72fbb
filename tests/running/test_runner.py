"""Whole runs with real workers; faults are injected from outside, into the worker's process."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
import pytest
import torch

from retbench.errors import ConfigError, RetbenchError, StorageError
from retbench.measure import machine
from retbench.measure.environment import machine_name
from retbench.planning.plan import Plan, make_plan
from retbench.planning.shards import Shard
from retbench.records.documents import write_documents
from retbench.records.record import Record
from retbench.records.store import append_record, read_records
from retbench.report.latest import keep_latest
from retbench.report.results import session_of
from retbench.running import events
from retbench.running.events import RunSummary
from retbench.running.locks import LOCK_DIR_VARIABLE, timing_lock
from retbench.running.runner import count_on_disk, run_plan
from tests.conftest import KNOWN_CEILINGS, KNOWN_PRODUCTS, give_ceilings
from tests.running.observer import Act, Observer

HEADER = 'title = "Tiny"\nsource = "none"\nexpect = "It runs."\n'
RETNET = '[models.retnet]\narchitecture = "retnet"\n'
TRANSFORMER = '[models.transformer]\narchitecture = "transformer"\n'
ANOTHER = "another"
"""Folder of the records of an experiment that a test only takes the checks of."""
PROFILE = '[profiles.smoke]\nsize = "25k"\nrounds = 1\nwarmup_s = 0.0\nmin_steps = 2\nthreads = 1\n'


@pytest.fixture(autouse=True)
def own_lock(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOCK_DIR_VARIABLE, str(tmp_path_factory.mktemp("lock")))


def write_experiment(folder: Path, *parts: str) -> Path:
    path = folder / "tiny.toml"
    path.write_text(HEADER + "".join(parts), encoding="utf-8")
    return path


def plan_for(path: Path, *overrides: str) -> Plan:
    return make_plan(str(path), profile="smoke", device="cpu", overrides=overrides)


def with_steps(number: int) -> str:
    """The profile with as many timed steps in a cell, so that it outlasts what happens to it; 250 take 0.1 s."""
    return PROFILE.replace("min_steps = 2", f"min_steps = {number}")


def grid(workload: str, *lengths: int) -> str:
    return f"[profiles.smoke.workloads.{workload}]\ncontext_len = {list(lengths)}\n"


def records_in(folder: Path) -> list[Record]:
    """Return the records of the experiment of a test."""
    files = [path for path in folder.rglob("*.jsonl") if path.parent.name != ANOTHER]
    read = [read_records(path) for path in sorted(files)]
    assert not any(problems for _, problems in read)
    return [record for found, _ in read for record in found]


def hidden_in(out: Path) -> list[str]:
    """Names of everything that is not a result."""
    return sorted(path.name for path in out.rglob(".*"))


def keys(records: list[Record]) -> list[tuple[str, str, int, int]]:
    return sorted((one.model.name, one.workload, one.point.context_len, one.round) for one in records)


def no_workers() -> bool:
    """Return whether all workers among our descendants have ended; other tests leave the server of their forks."""
    children = psutil.Process().children(recursive=True)
    found = [child for child in children if child.status() != "zombie"]
    return all("multiprocessing" in " ".join(child.cmdline()) for child in found)


@dataclass(frozen=True)
class Whole:
    """A run of both models through every workload."""

    plan: Plan
    out: Path
    result: RunSummary
    observer: Observer


pytestmark = pytest.mark.usefixtures("given_products")


@pytest.fixture(scope="module")
def whole(given_products: None, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Its ceilings are measured; the runs after it are given some."""
    folder = tmp_path_factory.mktemp("whole")
    inference = (grid("decode", 8, 16), grid("prefill", 9), grid("memory", 8))
    path = write_experiment(folder, RETNET, TRANSFORMER, PROFILE, *inference, grid("training", 12))
    plan, out, observer = plan_for(path), folder / "out", Observer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOCK_DIR_VARIABLE, str(folder / "lock"))
        patch.setattr(machine, "busy_ratio", lambda: 0.1)
        result = run_plan(plan, out, fresh=False, notify=observer)
    return Whole(plan, out, result, observer)


def known_out(whole: Whole, folder: Path, model: str = "transformer") -> Path:
    """A folder of results with a record of another experiment.

    Its model is not checked again, and the Transformer, whose caches are filled, needs no preparation then.
    """
    known = next(one for one in records_in(whole.out) if one.model.name == model)
    quiet = known.environment | {"load_average": [0.0, 0.0, 0.0]}  # else what it found would not hold here
    path = folder / "out" / machine_name("cpu") / ANOTHER / "records.jsonl"
    append_record(path, known.model_copy(update={"environment": quiet}))
    return folder / "out"


@pytest.fixture
def checked_out(whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results in which the Transformer was checked for another experiment: no worker has to prepare it.

    Nor has one to measure ceilings.
    """
    give_ceilings(monkeypatch)
    return known_out(whole, tmp_path)


def test_a_run_measures_every_cell_and_a_second_one_nothing(
    whole: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out, result, observer = whole.plan, whole.out, whole.result, whole.observer
    assert result.counts == {"ok": 10}
    assert (result.skipped, result.interrupted) == ({}, False)
    records = records_in(out)
    assert result.path is not None
    assert {one.environment["machine"] for one in records} == {result.path.parent.parent.name}
    assert result.path.parent.name == "tiny"
    assert {one.run_id for one in records} == {result.path.stem}
    assert keys(records) == sorted(
        (cell.model_name, cell.workload, cell.point.context_len, 0) for cell in plan.cells
    )
    assert {one.cell_id for one in records} == {cell.cell_id for cell in plan.cells}
    curves = [set(one.ceilings.read_curve) for one in records if one.ceilings]
    assert len(curves) == 10
    assert len(set.intersection(*curves)) >= 4, "the first worker's curve serves both models"
    for one in records:
        assert one.num_rounds == 1
        assert one.gate is not None
        assert one.gate.passed
        assert one.environment["text"]
        assert one.environment["threads"] == 1
        assert one.environment["flush_denormal"]
        if one.workload in {"decode", "prefill"}:
            assert one.absent["energy_per_token_j"] == "the device is a CPU"
        assert one.command == plan.command
    assert hidden_in(out) == []
    assert observer.kinds() == {
        "RunPlanned": 1,
        "Preparing": 2,
        "GateChecked": 2,
        "Streaming": 3,
        "RoundStarted": 1,
        "CellStarted": 10,
        "CellDone": 10,
        "RunFinished": 1,
    }
    assert observer.received[-1] == events.RunFinished(result, events.RunProgress(10, 10, 0))

    assert not observer.of(events.MachineBusy)

    again = Observer()
    monkeypatch.setattr(machine, "busy_ratio", lambda: 0.6)
    assert run_plan(plan, out, fresh=False, notify=again) == RunSummary(
        {}, {"ok": 10}, None, interrupted=False
    )
    assert [type(event) for event in again.received] == [events.RunPlanned, events.RunFinished]
    assert len(records_in(out)) == 10
    assert [count_on_disk(plan, out, fresh=fresh) for fresh in (False, True)] == [10, 0]


class Faults:
    """Kills the first worker, and injects each kind of fault at one cell, the first time that the cell is started."""

    def __init__(self) -> None:
        self.first = True
        self.left = {8: self.crash, 16: self.hang, 32: self.kill, 2000: self.starve}

    def __call__(self, event: events.RunEvent) -> None:
        if isinstance(event, events.Preparing) and self.first:
            self.first = False
            self.kill(event.pid)
        if isinstance(event, events.CellStarted):
            fault = self.left.pop(event.cell.point.context_len, None)
            if fault is not None:
                fault(event.pid)

    def crash(self, pid: int) -> None:
        os.kill(pid, signal.SIGSEGV)

    def hang(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)

    def starve(self, pid: int) -> None:
        """Little more address space than it has now: the next large tensor, and every prefill needs some, fails."""
        size = psutil.Process(pid).memory_info().vms + 2**20
        resource.prlimit(pid, resource.RLIMIT_AS, (size, size))

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def faulty(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, RunSummary, Observer]:
    """A sweep in which a worker crashes, one hangs, one runs out of memory, one is killed, and so was the first."""
    folder = tmp_path_factory.mktemp("faulty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOCK_DIR_VARIABLE, str(folder / "lock"))
        give_ceilings(patch)
        steps = with_steps(500) + "timeout_s = 5.0\n"
        lengths = grid("decode", 8, 16, 32, 40) + grid("prefill", 2000) + "batch_size = [16]\n"
        path = write_experiment(folder, TRANSFORMER, steps, lengths)
        observer = Observer(Faults())
        out = known_out(whole, folder, "retnet")
        result = run_plan(plan_for(path), out, fresh=False, notify=observer)
    return path, out, result, observer


def by_length(records: list[Record]) -> dict[int, Record]:
    return {one.point.context_len: one for one in records}


def test_a_run_continues_whatever_happens_to_its_workers(
    faulty: tuple[Path, Path, RunSummary, Observer],
) -> None:
    _, out, result, observer = faulty
    records = records_in(out)
    errors = [record.error for record in records]
    assert result.counts == {"failed": 2, "timeout": 1, "oom": 1, "ok": 1}, errors
    found = by_length(records)
    assert {length: one.status for length, one in found.items()} == {
        8: "failed",
        16: "timeout",
        32: "failed",
        40: "ok",
        2000: "oom",
    }
    assert "was ended by SIGSEGV" in str(found[8].error)
    assert "timeout_s = 5" in str(found[16].error)
    assert "out of memory" in str(found[2000].error)
    assert "SIGKILL; no out-of-memory counter rose" in str(found[32].error)
    assert (
        found[2000].environment["memory_limit_bytes"] >= found[2000].environment["memory_available_bytes"] > 0
    )
    assert found[40].metrics["tpot_s"].samples
    assert not any(one.metrics for length, one in found.items() if length != 40)
    assert observer.kinds()["WorkerEnded"] == 4
    assert observer.kinds()["Preparing"] == 2  # a prepare worker that is killed once costs nothing
    assert no_workers()


def test_what_failed_is_tried_again_and_nothing_else(
    faulty: tuple[Path, Path, RunSummary, Observer], monkeypatch: pytest.MonkeyPatch
) -> None:
    give_ceilings(monkeypatch)
    path, out, _, _ = faulty
    before = len(records_in(out))
    observer = Observer()
    result = run_plan(plan_for(path), out, fresh=False, notify=observer)
    assert result == RunSummary({"ok": 3}, {"ok": 1, "oom": 1}, result.path, interrupted=False)
    tried = [
        event.cell.point.context_len for event in observer.received if isinstance(event, events.CellStarted)
    ]
    assert sorted(tried) == [8, 16, 32]
    assert len(records_in(out)) == before + 3


@pytest.mark.skipif(
    torch.version.cuda is not None, reason="a PyTorch with CUDA cannot be loaded in so little memory"
)
def test_running_out_of_memory_before_any_cell_is_no_outcome_of_the_cells(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, TRANSFORMER, RETNET, PROFILE, grid("memory", 8))
    prepared: list[str] = []

    def starve_the_second(event: events.RunEvent) -> None:
        if isinstance(event, events.Preparing):
            prepared.append(event.model_name)
            if len(prepared) >= 2:
                resource.prlimit(event.pid, resource.RLIMIT_AS, (2**29, 2**29))

    out = tmp_path / "out"
    result = run_plan(plan_for(path), out, fresh=False, notify=Observer(starve_the_second))
    assert result.counts == {"ok": 1, "unsupported": 1}
    (starved,) = (one for one in records_in(out) if one.status == "unsupported")
    assert starved.model.name == prepared[1]
    assert str(starved.error).startswith(
        f"before any cell of '{prepared[1]}' was tried, the worker ran out of memory"
    )


def stop_at(cell_number: int) -> Act:
    """Stops the run by a signal when so many cells have been started."""
    started = 0

    def act(event: events.RunEvent) -> None:
        nonlocal started
        if isinstance(event, events.CellStarted):
            started += 1
            if started == cell_number:
                os.kill(event.pid, signal.SIGSTOP)  # so that it does not end before the signal is met
                os.kill(os.getpid(), signal.SIGTERM)

    return act


def test_a_signal_ends_the_run_and_keeps_what_is_measured(tmp_path: Path, checked_out: Path) -> None:
    path = write_experiment(tmp_path, TRANSFORMER, PROFILE, grid("prefill", 8, 16, 24))
    observer = Observer(stop_at(2))
    result = run_plan(plan_for(path), checked_out, fresh=False, notify=observer)
    assert result.interrupted
    assert result.counts == {"ok": 1}
    (record,) = records_in(checked_out)
    assert not observer.of(events.Preparing), "the other experiment's check holds, and nothing is streamed"
    assert record.gate is not None
    assert record.gate.run_id is not None
    assert no_workers()


def test_a_signal_before_anything_is_measured(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, TRANSFORMER, PROFILE, grid("prefill", 8))

    def stop_at_once(event: events.RunEvent) -> None:
        if isinstance(event, events.Preparing):
            os.kill(os.getpid(), signal.SIGINT)

    observer = Observer(stop_at_once)
    result = run_plan(plan_for(path), tmp_path / "out", fresh=False, notify=observer)
    assert result == RunSummary(interrupted=True)
    assert observer.received[-1] == events.RunFinished(result, events.RunProgress(0, 1))
    assert no_workers()


DRIVER = """
import json
import sys
from pathlib import Path
from retbench.planning.plan import make_plan
from retbench.records.record import Ceilings
from retbench.running import runner

def notify(event):
    print(type(event).__name__, getattr(event, "pid", ""), flush=True)

ceilings, products = Ceilings.model_validate_json(sys.argv[3]), json.loads(sys.argv[4])
start = runner.start_worker
runner.start_worker = lambda *job, **more: start(*job, **{**more, "ceilings": more["ceilings"] or ceilings})
runner.products_on_disk = lambda *_: products
plan = make_plan(sys.argv[1], profile="smoke", device="cpu")
runner.run_plan(plan, Path(sys.argv[2]), fresh=False, notify=notify)
"""
"""Gets ceilings and outcomes of trials as the runs in this process do."""


@pytest.fixture
def drive() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a run in a separate process, which prints its events to stdout."""
    started: list[subprocess.Popen[str]] = []

    def begin(path: Path, out: Path, preexec_fn: Callable[[], None] | None = None) -> subprocess.Popen[str]:
        given = KNOWN_CEILINGS.model_dump_json(), json.dumps(KNOWN_PRODUCTS)
        command = [sys.executable, "-c", DRIVER, str(path), str(out), *given]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=preexec_fn)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], kind: str, times: int = 1) -> str:
    """The rest of the line of the event called `kind` when it has come so many times."""
    assert process.stdout is not None
    for line in process.stdout:
        name, _, rest = line.partition(" ")
        if name == kind:
            times -= 1
            if not times:
                return rest
    raise AssertionError(f"the run ended before {kind}")


def test_a_killed_run_leaves_no_worker_loses_nothing_and_repeats_nothing(
    tmp_path: Path, checked_out: Path, drive: Callable[[Path, Path], subprocess.Popen[str]]
) -> None:
    cells = grid("decode", *range(100, 108))
    path, out = write_experiment(tmp_path, RETNET, with_steps(250), cells), checked_out
    killed = drive(path, out)
    worker = psutil.Process(int(wait_for(killed, "CellStarted", times=4)))
    killed.kill()
    killed.wait()
    worker.wait(timeout=10)
    (file,) = out.rglob("tiny/*.jsonl")
    before = records_in(out)
    assert 3 <= len(before) < 8
    with open(file, "ab") as torn:  # what a kill in the middle of a write leaves
        torn.write(file.read_bytes().splitlines()[0][:700])
    states = list(out.rglob("*.safetensors"))
    assert len(states) == 8

    observer = Observer()
    result = run_plan(plan_for(path), out, fresh=False, notify=observer)
    assert result.counts == {"ok": 8 - len(before)}
    assert sum(result.skipped.values()) == len(before)
    assert observer.kinds()["Streaming"] == 0  # the states that the killed run had stored were good
    after, problems = read_records(file.parent)
    assert len(problems) == 1
    assert keys(after) == sorted(set(keys(after)))
    assert len(after) == 8
    assert hidden_in(out) == []


@pytest.mark.slow
def test_two_runs_that_share_only_their_folder_leave_each_other_s_states_alone(
    tmp_path: Path, drive: Callable[[Path, Path], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_experiment(tmp_path, RETNET, with_steps(100), grid("decode", *range(100, 106)))
    out = tmp_path / "out"
    other = drive(path, out)
    wait_for(other, "CellStarted")
    monkeypatch.setenv(LOCK_DIR_VARIABLE, str(tmp_path / "another lock"))  # as in another container
    assert run_plan(plan_for(path), out, fresh=True, notify=Observer()).counts == {"ok": 6}
    other.communicate(timeout=120)
    assert Counter(one.status for one in records_in(out)) == {"ok": 12}
    assert hidden_in(out) == []


def on_cores(cpus: list[int]) -> Callable[[], None]:
    """Return a function that binds a new process to some CPUs, as `taskset` does."""
    return lambda: os.sched_setaffinity(0, cpus)


@pytest.mark.slow
@pytest.mark.usefixtures("every_core")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux, for core sets")
def test_two_runs_on_two_core_sets_do_not_wait_and_share_no_core(
    tmp_path: Path, drive: Callable[..., subprocess.Popen[str]]
) -> None:
    cores = machine.allowed_cores()
    if len(cores) < 2:
        pytest.skip("needs two cores")
    path = write_experiment(tmp_path, TRANSFORMER, PROFILE, grid("decode", *range(100, 106)))
    outs = [tmp_path / "one", tmp_path / "two"]
    runs = [drive(path, out, preexec_fn=on_cores(core)) for out, core in zip(outs, cores[:2], strict=True)]
    for run in runs:
        assert "WaitingForLock" not in run.communicate(timeout=300)[0]
    found = [records_in(out) for out in outs]
    assert [len(records) for records in found] == [6, 6]
    # A run that holds its locks has an id of that time: each had them before the other one ended.
    begun = [f"{datetime.strptime(one[0].run_id[:16], '%Y%m%dT%H%M%SZ'):%Y-%m-%dT%H:%M:%S}" for one in found]
    assert max(begun) < min(one[-1].started_at for one in found)
    for records, core in zip(found, cores[:2], strict=True):
        assert {tuple(one.environment["allowed_cpus"]) for one in records} == {tuple(core)}
        assert {one.environment["variables"]["OMP_PLACES"] for one in records} == {f"{{{core[0]}}}"}


@pytest.mark.slow
def test_a_requeued_shard_never_pairs_rounds_across_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is interrupted in its second round, between its two models, and continues on another node."""
    two_rounds = PROFILE.replace("rounds = 1", "rounds = 2")
    grids = grid("decode", 8) + "batch_size = [1, 2]\n"
    path = write_experiment(tmp_path, RETNET, TRANSFORMER, two_rounds, grids)
    plan, out = plan_for(path).part(Shard(1, 2)), tmp_path / "out"
    assert plan is not None
    assert {(cell.model_name, cell.point.batch_size) for cell in plan.cells} == {
        ("retnet", 1),
        ("transformer", 1),
    }
    monkeypatch.setenv(machine.NODE_VARIABLE, "gpu-07")
    first = machine.node_id()
    assert run_plan(plan, out, fresh=False, notify=Observer(stop_at(4))).counts == {"ok": 3}
    (left,) = out.rglob(".run-*")
    assert left.name.endswith(first)
    monkeypatch.setenv(machine.NODE_VARIABLE, "gpu-08")
    second = machine.node_id()
    assert run_plan(plan, out, fresh=False, notify=Observer()).counts == {"ok": 4}
    assert left.exists()  # another node may be using it
    records = records_in(out)
    assert Counter(one.environment["node_id"] for one in records) == {first: 3, second: 4}
    kept = keep_latest(records)  # no round of a model is beside one of another node
    assert len(kept) == 4
    assert {one.environment["node_id"] for one in kept} == {second}
    assert len({session_of(one) for one in kept}) == 1  # rounds are paired within a session
    monkeypatch.setenv(machine.NODE_VARIABLE, "gpu-07")
    assert run_plan(plan, out, fresh=False, notify=Observer()).counts == {"ok": 2}
    assert hidden_in(out) == []


@pytest.mark.slow
def test_what_a_dead_run_left_is_removed_and_results_are_kept(tmp_path: Path) -> None:
    path, out = write_experiment(tmp_path, TRANSFORMER, PROFILE, grid("prefill", 8)), tmp_path / "out"
    plan = plan_for(path)
    result = run_plan(plan, out, fresh=False, notify=Observer())
    assert result.path is not None
    folder, kept = result.path.parent, write_documents(result.path.parent, "dead-cell", [{"a": 1}])
    record = records_in(out)[0].model_copy(update={"run_id": "dead", "documents": kept})
    append_record(folder / "dead.jsonl", record)
    (folder / ".run-dead").mkdir()
    left = [".run-dead/a.safetensors", ".draft-dead-x.documents.jsonl.gz", "dead-x.documents.jsonl.gz"]
    left.append(".draft-older-x.documents.jsonl.gz")  # of a run whose folder is gone
    for name in left:
        (folder / name).write_bytes(b"left")
    before = {path for path in out.rglob("*") if path.name not in "".join(left)}
    assert run_plan(plan, out, fresh=False, notify=Observer()).counts == {}
    assert set(out.rglob("*")) == before
    assert hidden_in(out) == []


@pytest.mark.slow
def test_an_interrupted_run_with_fresh_goes_on_with_the_same_command(tmp_path: Path) -> None:
    path, out = write_experiment(tmp_path, TRANSFORMER, PROFILE, grid("prefill", 8, 16, 24)), tmp_path / "out"
    plan = plan_for(path)
    run_plan(plan, out, fresh=False, notify=Observer())
    counts = [
        run_plan(plan, out, fresh=True, notify=Observer(act)).counts
        for act in (stop_at(2), stop_at(2), None, None)
    ]
    assert counts == [{"ok": 1}, {"ok": 1}, {"ok": 1}, {"ok": 3}]
    assert hidden_in(out) == []


@pytest.mark.slow
def test_a_prepare_worker_that_dies_twice_costs_what_cannot_be_measured(tmp_path: Path) -> None:
    larger = PROFILE.replace("25k", "1m")  # which is streamed for seconds
    path = write_experiment(tmp_path, RETNET, larger, grid("decode", 8, 64, 30000), grid("prefill", 8))
    pids: list[int] = []

    def kill_while_it_streams(event: events.RunEvent) -> None:
        if isinstance(event, events.Preparing):
            pids.append(event.pid)
        if isinstance(event, events.Streaming) and event.num_tokens > 63:
            with suppress(ProcessLookupError):
                os.kill(pids[-1], signal.SIGKILL)

    out = tmp_path / "out"
    result = run_plan(plan_for(path, "rounds=2"), out, fresh=False, notify=Observer(kill_while_it_streams))
    assert result.counts == {"ok": 6, "failed": 2}
    assert {one.point.context_len for one in records_in(out) if one.status == "failed"} == {30000}
    assert run_plan(plan_for(path, "rounds=2"), out, fresh=False, notify=Observer()).counts == {"ok": 2}


FINDER = """
import importlib.abc, importlib.machinery, os, resource, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "MODULE":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            change(module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""
CEILINGS = """
def change(module):
    real = module.measure_ceilings
    def measure_ceilings(*args):
        FAULT
        return real(*args)
    module.measure_ceilings = measure_ceilings
"""
A_TENTH_OFF = """
def change(module):
    real = module.linear_parallel
    module.linear_parallel = lambda *args: (real(*args)[0] * 1.1, real(*args)[1])
"""


def change_module(folder: Path, module: str, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every worker change a module when it imports it."""
    (folder / "sitecustomize.py").write_text(FINDER.replace("MODULE", module) + change, encoding="utf-8")
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def inject(folder: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every worker suffer a fault before it measures its ceilings."""
    change_module(folder, "retbench.measure.ceilings", CEILINGS.replace("FAULT", fault), monkeypatch)


@pytest.mark.slow
def test_out_of_memory_before_a_cell_begins_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write_experiment(tmp_path, TRANSFORMER, PROFILE, grid("prefill", 8, 16)), tmp_path / "out"
    with monkeypatch.context() as patch:
        # Room for everything but the buffer whose reading is timed, of 256 MiB or more.
        limit = "__import__('retbench.measure.machine').measure.machine.status_bytes('VmData') + 2**26"
        inject(tmp_path, f"resource.setrlimit(resource.RLIMIT_DATA, ({limit}, -1))", patch)
        result = run_plan(plan_for(path), out, fresh=False, notify=Observer())
    assert result.counts == {"unsupported": 2}
    assert all("out of memory" in str(one.error) for one in records_in(out))
    assert run_plan(plan_for(path), out, fresh=False, notify=Observer()).counts == {"ok": 2}


@pytest.mark.slow
def test_a_worker_that_is_killed_once_before_its_first_cell_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = write_experiment(tmp_path, TRANSFORMER, PROFILE, grid("prefill", 8, 16)), tmp_path / "out"
    flag = tmp_path / "killed"
    fault = (
        f"if not os.path.exists({str(flag)!r}): os.mkdir({str(flag)!r}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    inject(tmp_path, fault, monkeypatch)
    assert run_plan(plan_for(path), out, fresh=False, notify=Observer()).counts == {"ok": 2}
    assert flag.exists()


def test_a_second_run_waits_unless_it_is_interrupted_and_skips_what_the_first_has_done(
    tmp_path: Path, checked_out: Path, drive: Callable[[Path, Path], subprocess.Popen[str]]
) -> None:
    path, out = write_experiment(tmp_path, TRANSFORMER, PROFILE, grid("memory", 8, 16)), checked_out
    plan, first = plan_for(path), drive(path, out)
    wait_for(first, "RoundStarted")

    def stop(event: events.RunEvent) -> None:
        if isinstance(event, events.WaitingForLock):
            os.kill(os.getpid(), signal.SIGINT)

    stopped = run_plan(plan, tmp_path / "other", fresh=False, notify=Observer(stop))
    assert stopped == RunSummary(interrupted=True)
    observer = Observer()
    result = run_plan(plan, out, fresh=False, notify=observer)
    assert result == RunSummary({}, {"ok": 2}, None, interrupted=False)
    waiting = observer.received[0]
    assert isinstance(waiting, events.WaitingForLock)
    assert f"process {first.pid}" in waiting.holder
    assert observer.kinds() == {"WaitingForLock": 1, "RunPlanned": 1, "RunFinished": 1}
    assert len(records_in(out)) == 2
    with timing_lock("another run", "cpu", wait=pytest.fail):  # one that has nothing to measure does not wait
        assert run_plan(plan, out, fresh=False, notify=Observer(stop)) == result


def test_a_full_disk_is_a_clear_error_and_what_was_there_is_intact(tmp_path: Path, checked_out: Path) -> None:
    path = write_experiment(tmp_path, TRANSFORMER, PROFILE, grid("prefill", 8, 16, 24))
    done: list[int] = []

    def fill_after_first(event: events.RunEvent) -> None:
        if isinstance(event, events.CellDone):
            done.append(event.cell.point.context_len)
        if isinstance(event, events.CellStarted) and done:
            (file,) = (path for path in checked_out.rglob("*.jsonl") if path.parent.name != ANOTHER)
            room = file.stat().st_size + 100
            resource.prlimit(event.pid, resource.RLIMIT_FSIZE, (room, room))

    with pytest.raises(
        StorageError, match=r"could not be written: File too large\. Everything before it is intact"
    ):
        run_plan(plan_for(path), checked_out, fresh=False, notify=Observer(fill_after_first))
    assert done
    assert [one.point.context_len for one in records_in(checked_out)] == done
    assert no_workers()


def test_records_are_not_written_through_a_link(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, RETNET, PROFILE, "", grid("prefill", 8))
    plan, out, elsewhere = plan_for(path), tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    out.mkdir()
    (out / machine_name(plan.settings.device)).symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="a link leads to"):
        run_plan(plan, out, fresh=False, notify=Observer())
    assert list(elsewhere.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, TRANSFORMER, PROFILE, grid("prefill", 8))
    (tmp_path / "out").write_text("in the way", encoding="utf-8")
    observer = Observer()
    with pytest.raises(ConfigError, match="cannot be written to: Not a directory"):
        run_plan(plan_for(path), tmp_path / "out", fresh=False, notify=observer)
    assert observer.kinds() == {}


@pytest.mark.parametrize("variable", ["RETBENCH_CACHE", "TORCHINDUCTOR_CACHE_DIR"])
def test_compiled_code_that_cannot_be_written_is_refused_with_the_variable_that_moves_it(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_experiment(tmp_path, TRANSFORMER, PROFILE, grid("decode", 8))
    (tmp_path / "cache").write_text("in the way", encoding="utf-8")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch sets it when it compiles
    monkeypatch.setenv(variable, str(tmp_path / "cache"))
    observer = Observer()
    with pytest.raises(ConfigError, match=rf"cannot be written to: .*{variable}"):
        run_plan(plan_for(path, "compile=true"), tmp_path / "out", fresh=False, notify=observer)
    assert observer.kinds() == {}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_really_full_disk(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, TRANSFORMER, PROFILE, grid("prefill", *range(8, 40)))
    out = tmp_path / "out"
    out.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(out)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk: {mounted.stderr.decode()}")
    try:
        with pytest.raises(StorageError, match="No space left on device"):
            run_plan(plan_for(path), out, fresh=False, notify=Observer())
        kept = records_in(out)
        assert 0 < len(kept) < 32
        assert no_workers()
    finally:
        subprocess.run(["umount", str(out)], check=True)


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A memory control group with room for little more than torch; skips where none can be made."""
    parent = Path("/sys/fs/cgroup/memory")
    own = next(
        (
            line.split(":")[2]
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if ":memory:" in line
        ),
        None,
    )
    if own is None or os.geteuid() != 0:
        pytest.skip("needs root and version 1 of control groups")
    group = parent / own.lstrip("/") / f"retbench-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group: {error}")
    yield group
    for _ in range(100):
        try:
            group.rmdir()
            break
        except OSError:
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/vmstat").exists(), reason="needs Linux")
def test_a_worker_that_the_kernel_kills_for_memory_is_out_of_memory(
    tmp_path: Path, small_group: Path
) -> None:
    lengths = grid("decode", 8, 20000) + "batch_size = [16]\n"
    path = write_experiment(tmp_path, TRANSFORMER, PROFILE, lengths)

    def confine(event: events.RunEvent) -> None:
        if isinstance(event, events.CellStarted) and event.cell.point.context_len == 20000:
            (small_group / "memory.limit_in_bytes").write_text(str(64 * 2**20), encoding="ascii")
            (small_group / "cgroup.procs").write_text(str(event.pid), encoding="ascii")

    result = run_plan(plan_for(path), tmp_path / "out", fresh=False, notify=Observer(confine))
    assert result.counts == {"ok": 1, "oom": 1}
    found = by_length(records_in(tmp_path / "out"))
    assert "(oom_kill rose in" in str(found[20000].error)


def test_a_failed_equivalence_check_is_recorded_and_nothing_is_timed(
    tmp_path: Path, checked_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_module(tmp_path, "retbench.mixers.module", A_TENTH_OFF, monkeypatch)
    path = write_experiment(tmp_path, RETNET, PROFILE, "", grid("prefill", 8, 16)).rename(
        tmp_path / "failing.toml"
    )
    observer = Observer()
    result = run_plan(plan_for(path, "rounds=2"), checked_out, fresh=False, notify=observer)
    assert result.counts == {"gate_failed": 4}
    for one in records_in(checked_out):
        assert not one.metrics
        assert one.gate is not None
        assert not one.gate.passed
        assert "'retnet' are not equivalent" in str(one.error)
    assert observer.kinds()["CellStarted"] == 0


def test_what_this_machine_lacks_is_unsupported_in_every_round(
    tmp_path: Path, checked_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note that other processes keep the machine busy comes before anything is tried."""
    monkeypatch.setattr(machine, "busy_ratio", lambda: 0.6)
    path = write_experiment(tmp_path, TRANSFORMER + 'backend = "flash"\n', PROFILE, grid("prefill", 8))
    observer = Observer()
    result = run_plan(plan_for(path, "rounds=2"), checked_out, fresh=False, notify=observer)
    assert [event.ratio for event in observer.of(events.MachineBusy)] == [0.6]
    assert isinstance(observer.received[1], events.MachineBusy)
    assert result.counts == {"unsupported": 2}
    assert all("flash" in str(one.error) for one in records_in(checked_out))


def test_a_python_that_cannot_start_workers_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch is broken')\n", encoding="utf-8")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    )
    path = write_experiment(tmp_path, TRANSFORMER, PROFILE, grid("prefill", 8))
    with pytest.raises(RetbenchError, match=r"no worker can start on this machine(.|\n)*libtorch is broken"):
        run_plan(plan_for(path), tmp_path / "out", fresh=False, notify=Observer())
    assert records_in(tmp_path / "out") == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_decode_is_replayed_from_graphs_at_its_depth(tmp_path: Path, dtype: str) -> None:
    grids = (grid("decode", 8, 300), grid("prefill", 300), grid("memory", 300))
    path = write_experiment(tmp_path, RETNET, TRANSFORMER, PROFILE, *grids)
    # The heads of 25m are those of the paper's sizes, for which fla's kernels are compiled and tuned once for all.
    overrides = ["cuda_graph=true", f"size={'6m' if dtype == 'float32' else '25m'}"]
    plan = make_plan(str(path), profile="smoke", device="cuda", dtype=dtype, overrides=overrides)
    out = tmp_path / "out"
    result = run_plan(plan, out, fresh=False, notify=Observer())
    records = records_in(out)
    assert result.counts == {"ok": 8}, [one.error for one in records if one.error]
    for one in records:
        assert one.gate is not None
        assert one.gate.passed
        assert one.environment["gpu"]["name"]
        assert one.environment["gpu_state"]["after"]["sm_clock_hz"] > 0
        if one.workload == "memory":
            assert one.metrics["device_peak_bytes"].value > one.metrics["peak_bytes"].value * 0.99
            continue
        assert one.backend["cuda_graph"] is (one.workload == "decode")
        assert ("energy_per_token_j" in one.metrics) != ("energy_per_token_j" in one.absent)
        assert 0 < one.metrics["roofline_ratio"].value < 1.2
