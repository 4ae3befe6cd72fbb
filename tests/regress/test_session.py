"""Two revisions in one session, with real workers: the source as it is, and copies of it with a change."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import retbench
from retbench.errors import NotComparableError
from retbench.measure.machine import usable_cores
from retbench.planning.plan import Plan, make_plan
from retbench.records.record import Gate
from retbench.regress.interleaved import InterleavedCheck, timed_plan
from retbench.regress.record_sets import RecordSet, are_interleaved
from retbench.regress.render import write_report
from retbench.regress.report import CheckReport
from retbench.regress.revisions import Revision, working_tree
from retbench.regress.session import InterleavedSession, SessionLimits
from retbench.stats.sequential import DecisionRules
from tests.conftest import KNOWN_PRODUCTS

ROOT = Path(retbench.__file__).parents[2]
EXPERIMENT = """\
title = "Tiny"
source = "none; made for tests"
expect = "It runs."

[models.retnet]
architecture = "retnet"

[profiles.smoke]
size = "1m"
rounds = 1
warmup_s = 0.0
min_steps = 2
threads = 1
[profiles.smoke.workloads.decode]
context_len = [64]
[profiles.smoke.workloads.prefill]
context_len = [32, 64]
[profiles.smoke.workloads.memory]
context_len = [64]
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    path = tmp_path / "tiny.toml"
    path.write_text(EXPERIMENT, encoding="utf-8")
    return timed_plan(make_plan(str(path), profile="smoke", device="cpu"), 1)


def changed(folder: Path, module: str, old: str | None, new: str) -> Revision:
    """A copy of the source with one passage replaced; None appends to the module."""
    source = folder / "changed" / "suite"
    shutil.copytree(ROOT / "suite", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    path = source / "retbench" / module
    text = path.read_text(encoding="utf-8")
    assert old is None or text.count(old) == 1
    path.write_text(text + new if old is None else text.replace(old, new), encoding="utf-8")
    return replace(working_tree(folder / "changed"), name="a changed copy")


def failing_prefill(folder: Path, error: str) -> Revision:
    """A copy of the source whose prefill of 64 tokens raises an error."""
    return changed(folder, "workloads/prefill.py", None, FAILING_PREFILL.format(error=error))


FAILING_PREFILL = """
import dataclasses


def _failing(context):
    if context.cell.point.context_len == 64:
        raise {error}
    return measure(context)


WORKLOAD = dataclasses.replace(WORKLOAD, measure=_failing)
"""
FAILING_SET_UP = """

def measure_ceilings(*_, **__):
    raise MemoryError("no memory for it")
"""


def check(plan: Plan, head: Revision, folder: Path, *, max_rounds: int = 3) -> CheckReport:
    limits = SessionLimits(max_rounds=max_rounds, blocks=1)
    return InterleavedCheck(plan, folder, print, limits, DecisionRules()).measure((working_tree(ROOT), head))


@pytest.mark.parametrize(("asked", "threads"), [(None, max(1, usable_cores() - 1)), (1, 1)])
def test_a_core_is_left_to_the_rest_of_the_machine(tmp_path: Path, asked: int | None, threads: int) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(
        EXPERIMENT.replace("threads = 1\n", f"threads = {asked}\n" if asked else ""), encoding="utf-8"
    )
    plan = make_plan(str(path), profile="smoke", device="cpu")
    assert plan.settings.threads == (asked or usable_cores())
    assert {cell.settings.threads for cell in timed_plan(plan, 1).cells} == {threads}


@pytest.mark.parametrize(("blocks", "steps"), [(1, 10), (4, 3), (10, 1), (11, 1)])
def test_the_steps_of_a_cell_are_shared_out_among_its_sample_blocks(
    tmp_path: Path, blocks: int, steps: int
) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(EXPERIMENT, encoding="utf-8")
    overrides = ("min_steps=10", "warmup_s=0.5")
    plan = make_plan(str(path), profile="smoke", device="cpu", overrides=overrides)
    for cell in timed_plan(plan, blocks).cells:
        assert cell.settings.min_steps == steps
        assert cell.settings.warmup_s * blocks == pytest.approx(0.5)


def pretend_checked(session: InterleavedSession) -> None:
    """Pass the equivalence checks, for cells that need no streamed state and so no preparation.

    What the workers of that find out of products is known, too.
    """
    session._products |= KNOWN_PRODUCTS
    for side in session.sides:
        side.gates["retnet"] = Gate(passed=True, dtype="float32", checks=())


def test_both_sides_are_measured_in_turn(plan: Plan, tmp_path: Path) -> None:
    """Prompts alone, which need no preparation: the slow tests have decode steps too."""
    assert {cell.workload for cell in plan.cells} == {"decode", "prefill"}
    code = working_tree(ROOT)
    messages: list[str] = []
    session = InterleavedSession(
        plan, (code, code), tmp_path / "run", SessionLimits(blocks=2), messages.append
    )
    pretend_checked(session)
    prompts = sorted(point for point in session.points if point.workload == "prefill")
    assert session.measure(frozenset(prompts)).keys() == set(prompts)
    assert session.measure(frozenset(prompts[:1])).keys() == set(prompts[:1])
    sides = [RecordSet("", tuple(side.records())) for side in session.sides]
    assert are_interleaved(*sides)
    for side in sides:
        assert [len(values) for values in side.values().values()] == [2, 1]
        assert len(side.records) == 2 * (2 + 1)
        assert {record.environment["code_revision"] for record in side.records} == {code.code}
        curves = [set(record.ceilings.read_curve) for record in side.records if record.ceilings]
        assert len(set.intersection(*curves)) >= 5, "one read curve serves all workers of a side"
    first, second = ([record.started_at for record in side.records] for side in sides)
    # Twice two cells: each on one side and then the other, and the second time the other way round.
    order = [side for _, side in sorted([(one, 0) for one in first[:4]] + [(one, 1) for one in second[:4]])]
    ahead, behind = order[0], 1 - order[0]
    assert order == [ahead, behind] * 2 + [behind, ahead] * 2
    assert session.missing() == []
    assert messages[-1].startswith("round 2: 1 points")


def test_a_budget_that_is_over_begins_no_round(plan: Plan, tmp_path: Path) -> None:
    code = working_tree(ROOT)
    assert not InterleavedSession(
        plan, (code, code), tmp_path, SessionLimits(budget_s=1e-9), print
    ).has_budget()
    assert InterleavedSession(plan, (code, code), tmp_path, SessionLimits(budget_s=600), print).has_budget()


@pytest.mark.slow
def test_a_point_that_fails_on_the_head_alone_is_a_regression(plan: Plan, tmp_path: Path) -> None:
    head = failing_prefill(tmp_path, "RuntimeError('broken')")
    report = check(plan, head, tmp_path / "records")
    assert [(str(one.point), one.kind) for one in report.missing] == [
        ("prefill of retnet, batch 1, 64", "broken")
    ]
    assert "broken" in report.missing[0].reason
    assert {item.name for item in report.items} == {
        "decode of retnet, batch 1, 64",
        "prefill of retnet, batch 1, 32",
    }
    assert report.exit_code(strict=False) == 1
    (kept,) = (tmp_path / "records").iterdir()  # without the states that were streamed
    assert sorted(path.relative_to(kept).as_posix() for path in kept.rglob("*")) == [
        "base",
        "base/records.jsonl",
        "head",
        "head/records.jsonl",
    ]


@pytest.mark.slow
def test_a_point_that_fails_costs_the_others_no_round(plan: Plan, tmp_path: Path) -> None:
    head = failing_prefill(tmp_path, "RuntimeError('broken')")
    prompts = tuple(cell for cell in plan.cells if cell.workload == "prefill")
    session = InterleavedSession(
        replace(plan, cells=prompts),
        (working_tree(ROOT), head),
        tmp_path / "run",
        SessionLimits(blocks=3),
        print,
    )
    found = session.measure(frozenset(session.points))
    assert [point.context_len for point in found] == [32]
    assert [one.kind for one in session.missing()] == ["broken"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("module", "fault", "lengths"),
    [
        ("workloads/prefill.py", FAILING_PREFILL.format(error="MemoryError('no memory for it')"), {64}),
        ("running/tasks.py", FAILING_SET_UP, {32, 64}),
    ],
    ids=["a cell", "the set-up"],
)
def test_what_fails_on_both_sides_is_the_fault_of_neither(
    plan: Plan, tmp_path: Path, seed: int, module: str, fault: str, lengths: set[int]
) -> None:
    """Whichever side the seed has asked first."""
    code = changed(tmp_path, module, None, fault)
    settings = plan.settings.model_copy(update={"seed": seed})
    prompts = tuple(
        cell.model_copy(update={"settings": settings}) for cell in plan.cells if cell.workload == "prefill"
    )
    session = InterleavedSession(
        replace(plan, cells=prompts), (code, code), tmp_path / "run", SessionLimits(blocks=2), print
    )
    pretend_checked(session)
    found = session.measure(frozenset(session.points))
    assert {point.context_len for point in found} == {32, 64} - lengths
    assert {(one.point.context_len, one.kind) for one in session.missing()} == {
        (length, "both") for length in lengths
    }


@pytest.mark.slow
def test_modes_that_disagree_are_not_comparable_on_the_base_and_reported_on_the_head(
    plan: Plan, tmp_path: Path
) -> None:
    start = "    error = float(largest"
    base = changed(tmp_path, "models/equivalence.py", start, start.replace("float(", "9 + float("))
    session = InterleavedSession(
        plan, (base, working_tree(ROOT)), tmp_path / "run", SessionLimits(blocks=1), print
    )
    with pytest.raises(
        NotComparableError,
        match=r"The base cannot be measured\. a changed copy: the execution modes of retnet",
    ):
        session.prepare()
    report = check(plan, base, tmp_path / "other")
    assert {str(one.point) for one in report.missing} == {
        "decode of retnet, batch 1, 64",
        "prefill of retnet, batch 1, 32",
        "prefill of retnet, batch 1, 64",
    }
    assert all("execution modes of retnet are not equivalent" in one.reason for one in report.missing)
    assert report.exit_code(strict=False) == 1
    write_report(report, tmp_path / "report", strict=False)
    assert "error 9" in (tmp_path / "report" / "check.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_time_too_short_for_a_verdict_is_not_passed(plan: Plan, tmp_path: Path) -> None:
    code = working_tree(ROOT)
    limits = SessionLimits(max_rounds=5, blocks=1, budget_s=1e-3)
    report = InterleavedCheck(plan, tmp_path, print, limits, DecisionRules()).measure((code, code))
    assert report.exit_code(strict=False) == 3
    assert any("give a longer budget" in note for note in report.notes)


@pytest.mark.slow
def test_sides_that_run_something_else_are_not_compared(plan: Plan, tmp_path: Path) -> None:
    head = changed(
        tmp_path, "workloads/decode.py", '"streamed prefill of real text{repeated}"', '"zeros{repeated}"'
    )
    report = check(plan, head, tmp_path / "records")
    assert [str(one) for one in report.comparability_keys] == [
        "ran.state_source: streamed prefill of real text | zeros"
    ]
    assert report.exit_code(strict=False) == 3
    assert not report.items


@pytest.mark.slow
def test_a_head_that_is_much_slower_is_found(plan: Plan, tmp_path: Path) -> None:
    """Work that makes a decode step several times as long as it was."""
    start = "        length = tokens.shape[1]\n        if state is not None:\n            state.require_room(length)\n"
    work = "        for _ in range(99 * (tokens.shape[1] == 1)):\n            torch.rand(99, 99) @ torch.rand(99, 99)\n"
    head = changed(tmp_path, "models/decoder.py", start, work + start)
    report = check(plan, head, tmp_path / "records", max_rounds=5)
    assert report.exit_code(strict=False) == 1
    assert any(line.startswith("decode of retnet slower at 64") for line in report.sentences)
