"""Which edits change the identity of the source that measured, tried on copies of the package."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import retbench
from retbench.measure import source
from retbench.measure.source import find_source, import_closure, parse_module, part_hash, shared_hash

PACKAGE = Path(retbench.__file__).parent
REPORT = """
from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.measure import environment
from retbench.measure.source import part_hash
from retbench.workloads.workload import find_workload
print(environment.code_revision())
print(environment._git_commit()[1])
print(find_workload("decode").code, find_workload("memory").code, find_workload("training").code)
print(*(part_hash(resolve_model(named_specs()[name], "1m").modules) for name in ("retnet", "transformer")))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package that may be edited."""
    ignore = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(PACKAGE, tmp_path_factory.mktemp("copy") / "retbench", ignore=ignore))


Identity = tuple[str, ...]


def identity(copy: Path) -> Identity:
    """Code revision, codes of the workloads decode, memory and training, and of the models retnet and transformer."""
    variables = os.environ | {"PYTHONPATH": str(copy.parent)}
    command = [sys.executable, "-c", REPORT]
    done = subprocess.run(
        command, env=variables, cwd=copy.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    revision, reason, workloads, models = done.stdout.splitlines()
    assert reason == "not run from a git checkout"
    return revision, *workloads.split(), *models.split()


@pytest.fixture(scope="module")
def before(copy: Path) -> Identity:
    return identity(copy)


@pytest.fixture
def edit(copy: Path) -> Iterator[Callable[[str, str], None]]:
    """Writes files of the copy; afterwards they are as they were."""
    originals: dict[Path, str | None] = {}

    def write(place: str, text: str) -> None:
        path = copy / place
        originals.setdefault(path, path.read_text(encoding="utf-8") if path.exists() else None)
        path.write_text(text, encoding="utf-8")

    yield write
    for path, text in originals.items():
        path.unlink() if text is None else path.write_text(text, encoding="utf-8")


def test_the_revision_is_the_version_and_a_hash(before: Identity) -> None:
    assert re.fullmatch(rf"{re.escape(retbench.__version__)}\+src\.[0-9a-f]{{12}}", before[0])
    assert before[0].endswith(shared_hash())


def test_comments_and_docstrings_do_not_count(
    copy: Path, before: Identity, edit: Callable[[str, str], None]
) -> None:
    for place in ("models/build.py", "workloads/decode.py", "measure/clock.py"):
        text = (copy / place).read_text(encoding="utf-8")
        assert '"""' in text
        edit(place, re.sub(r'"""[A-Z]', '"""Reworded. X', text).replace("\n\n\ndef ", "\n\n\n# New.\ndef "))
    assert identity(copy) == before


@pytest.mark.parametrize(
    ("place", "changed"),
    [
        ("report/__init__.py", ()),
        ("architectures/brand_new.py", ()),
        ("workloads/decode.py", (1,)),
        pytest.param("workloads/memory.py", (2,), marks=pytest.mark.slow),
        ("measure/clock.py", (0,)),
        pytest.param("ops/linear.py", (0,), marks=pytest.mark.slow),
        ("ops/attention.py", (0,)),
        ("mixers/attention/module.py", (5,)),
        pytest.param("mixers/retention/module.py", (4,), marks=pytest.mark.slow),
    ],
)
def test_an_edit_changes_the_identity_of_what_runs_it(
    copy: Path, before: Identity, edit: Callable[[str, str], None], place: str, changed: tuple[int, ...]
) -> None:
    path = copy / place
    edit(place, (path.read_text(encoding="utf-8") if path.exists() else "") + "\nADDED = 1\n")
    after = identity(copy)
    assert tuple(part for part in range(6) if before[part] != after[part]) == changed


def test_a_new_workload_changes_nothing_of_others(
    copy: Path, before: Identity, edit: Callable[[str, str], None]
) -> None:
    source = (copy / "workloads" / "memory.py").read_text(encoding="utf-8")
    edit("workloads/another.py", source.replace('"memory"', '"another"'))
    assert identity(copy) == before


def test_imports_inside_functions_are_followed_and_those_for_types_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "someones"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "entry.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from someones import types_only\n"
        "def f():\n    from . import helper\n    import json\n"
    )
    (folder / "helper.py").write_text("from .deep.inner import x\n")
    (folder / "types_only.py").touch()
    (folder / "deep").mkdir()
    (folder / "deep" / "__init__.py").touch()
    (folder / "deep" / "inner.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = import_closure(["someones.entry"], skip_parts=False)
    assert found.keys() == {
        "someones",
        "someones.entry",
        "someones.helper",
        "someones.deep",
        "someones.deep.inner",
    }


def test_a_module_is_found_without_importing_it() -> None:
    assert find_source("retbench.running.worker") == PACKAGE / "running" / "worker.py"
    assert find_source("retbench.running") == PACKAGE / "running" / "__init__.py"
    assert find_source("retbench.running.nothing") is None
    assert find_source("no_such_package.module") is None


@pytest.mark.parametrize(
    ("source", "registered"),
    [
        ("WORKLOAD = Workload()", True),
        ("ARCHITECTURE: Architecture = Architecture()", True),
        ("def f():\n    WORKLOAD = Workload()", False),
        ('WORKLOAD = "training_run"', False),
    ],
)
def test_a_part_is_known_by_the_name_that_it_assigns(source: str, registered: bool) -> None:
    assert parse_module(source.encode()).is_registered is registered


def test_hashes_are_taken_over_from_a_process_that_runs_the_same_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "changing.py"
    module.write_text("x = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(source, "_found", {})
    expected = shared_hash(), part_hash(("changing",))
    found = source.found_hashes()

    monkeypatch.setattr(source, "_found", {})
    source.take_over(found)
    with monkeypatch.context() as patch:
        patch.setattr(source, "import_closure", lambda *_, **__: pytest.fail("parsed once more"))
        assert (shared_hash(), part_hash(("changing",))) == expected

    monkeypatch.setattr(source, "_found", {})
    module.write_text("x = 2\n", encoding="utf-8")
    source._content_hash.cache_clear()
    source.take_over(found)
    assert source._found == {}
