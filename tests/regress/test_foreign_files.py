"""Baselines and projects that anybody may have written: whatever they hold, only the project's errors come of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regress.test_compare import write
from report.synthetic_records import CPU
from retbench.errors import RetbenchError
from retbench.regress.baseline import content_hash, read_baseline, write_hashed
from retbench.regress.compare import compare_with_baseline, spread_between
from retbench.regress.decide import format_value
from retbench.regress.machine_independent import (
    Quantity,
    compare_quantities,
    read_quantities,
    write_quantities,
)
from retbench.regress.record_sets import RecordSet, load_record_set
from retbench.regress.render import FORMATS, render
from retbench.regress.revisions import read_dependencies

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 10**18, 2**63, 2**64, 2**70, 10**400])
    | st.floats()
    | st.sampled_from([5e-324, 1e-300, 1e308, 1.7976931348623157e308])
    | st.text(max_size=8)
    | st.sampled_from(["\x1b[31m", "../x", "n" * 300, "\ud800", "retnet", "decode", "count"])
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


EDITS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 99), min_size=1, max_size=7),
        st.sampled_from(["replace", "remove", "add"]),
        st.text(max_size=5),
        ANYTHING,
    ),
    max_size=3,
)
"""Edits of a file: the place (the number of the entry at each level), the kind of edit, and its name and value."""


def edit(content: Any, edits: list[tuple[list[int], str, str, Any]]) -> Any:
    """Return JSON with values replaced, added or removed."""
    content = json.loads(json.dumps(content))
    for path, action, name, value in edits:
        node, last = content, None
        for number in path:
            below = node[last] if last is not None else node
            if not isinstance(below, dict | list) or not below:
                break
            node = below
            last = list(node)[number % len(node)] if isinstance(node, dict) else number % len(node)
        if last is None:
            break
        if action == "remove":
            del node[last]
        elif action == "add" and isinstance(node, dict):
            node[name] = value
        else:
            node[last] = value
    return content


def put(path: Path, content: Any, damage: bytes) -> None:
    """Write a file whose hash fits its content, if it can have one."""
    if isinstance(content, dict):
        content.pop("content_sha256", None)
        content = {"content_sha256": content_hash(content), **content}
    path.write_bytes(json.dumps(content).encode() + damage)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RecordSet:
    return load_record_set(write(tmp_path_factory.mktemp("records") / "run.jsonl", CPU))


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory, run: RecordSet) -> Path:
    """A baseline of eight runs, which decides something."""
    from retbench.regress.baseline import make_baseline, make_run

    window = make_baseline(run, "new")
    runs = [make_run(run).model_copy(update={"run_id": str(number)}) for number in range(8)]
    path = tmp_path_factory.mktemp("baselines") / "baseline.json"
    write_hashed(path, window.model_copy(update={"runs": tuple(runs)}).model_dump(mode="json"))
    return path


DAMAGE = st.just(b"") | st.binary(max_size=3)


def use_baseline(path: Path, run: RecordSet) -> None:
    """Everything that `retbench compare` and `retbench baseline show` do with a baseline."""
    try:
        found = read_baseline(path)
        for point, value, deviation in spread_between(found.runs):
            assert format_value(point, value)
            assert str(point)
            assert deviation is None or deviation >= 0
        report = compare_with_baseline(str(path), found, run)
    except RetbenchError:
        return
    for form in FORMATS:
        text = render(report, form, strict=True)
        assert "\x1b" not in text


def fuzz_baselines(path: Path, run: RecordSet, max_examples: int) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    mutant = path.with_name("mutant.json")

    @settings(max_examples=max_examples, suppress_health_check=list(HealthCheck))
    @given(edits=EDITS, damage=DAMAGE)
    def check(edits: Any, damage: bytes) -> None:
        put(mutant, edit(content, edits), damage)
        use_baseline(mutant, run)

    check()


def fuzz_quantities(folder: Path, max_examples: int) -> None:
    quantities = {
        "retnet/parameters": Quantity(kind="count", value=1),
        "retnet/peak": Quantity(kind="peak", value=10),
        "retnet/loss": Quantity(kind="loss", value=1.5, limit=1e-9),
        "retnet/check": Quantity(kind="error", value=1e-6, limit=1e-3),
        "retnet/tokens": Quantity(kind="tokens", tokens=(1, 2), leads=(0.1, 0.2), limit=0.01),
    }
    path = folder / "exact.json"
    write_quantities(path, quantities, "2.13.0", "for tests")
    content = json.loads(path.read_text(encoding="utf-8"))

    @settings(max_examples=max_examples, suppress_health_check=list(HealthCheck))
    @given(edits=EDITS, damage=DAMAGE)
    def check(edits: Any, damage: bytes) -> None:
        put(path, edit(content, edits), damage)
        try:
            report = compare_quantities("name", read_quantities(path), quantities, "2.13.0")
        except RetbenchError:
            return
        for form in FORMATS:
            assert "\x1b" not in render(report, form, strict=True)

    check()


PROJECTS = st.sampled_from(
    [
        "project = {value}",
        "[project]\ndependencies = {value}",
        '[project]\ndependencies = [{value}, "torch>=2"]',
        "[[project]]\ndependencies = {value}",
        "{value}",
    ]
)
VALUES = (
    ANYTHING.map(lambda value: json.dumps(value))
    | st.text(max_size=20)
    | st.text(max_size=20).map(lambda text: json.dumps(text))
    | st.sampled_from(["[" * 3000, "1" * 5000, '"-r/etc/passwd"', '"a @ file:///etc"', "inf", "1979-05-27"])
)


def fuzz_projects(folder: Path, max_examples: int) -> None:
    @settings(max_examples=max_examples, suppress_health_check=list(HealthCheck))
    @given(
        text=st.builds(lambda project, value: project.replace("{value}", value), PROJECTS, VALUES),
        damage=DAMAGE,
    )
    def check(text: str, damage: bytes) -> None:
        (folder / "pyproject.toml").write_bytes(text.encode("utf-8", "surrogatepass") + damage)
        try:
            found = read_dependencies(folder)
        except RetbenchError:
            return
        assert not any(one.startswith(("-", ".", "/")) or "file:" in one for one in found)

    check()


def test_a_baseline_of_anything(baseline: Path, run: RecordSet) -> None:
    fuzz_baselines(baseline, run, 40)


def test_quantities_of_anything(tmp_path: Path) -> None:
    fuzz_quantities(tmp_path, 100)


def test_a_project_of_anything(tmp_path: Path) -> None:
    fuzz_projects(tmp_path, 200)


@pytest.mark.slow
def test_ten_thousand_baselines_of_anything(baseline: Path, run: RecordSet, tmp_path: Path) -> None:
    fuzz_baselines(baseline, run, 10_000)
    fuzz_quantities(tmp_path, 10_000)


@pytest.mark.slow
def test_ten_thousand_projects_of_anything(tmp_path: Path) -> None:
    fuzz_projects(tmp_path, 10_000)
