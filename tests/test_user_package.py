"""A user's package adds an architecture and a workload through entry points, and every command takes them."""

import json
import sysconfig
import venv
from pathlib import Path

import pytest

from test_packaging import succeed, wheel

__all__ = ["wheel"]

pytestmark = pytest.mark.slow
PACKAGE = Path(__file__).parents[1] / "examples" / "min_gru"
EXPERIMENT = str(PACKAGE / "min_gru.toml")
RUN = ("run", EXPERIMENT, "--profile", "smoke", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with retbench, the user's package, and the dependencies of this environment."""
    folder = tmp_path_factory.mktemp("user")
    venv.create(folder, with_pip=True)
    install = (folder / "bin" / "python", "-m", "pip", "install", "--no-deps")
    succeed(*install, "--no-index", wheel, cwd=folder)
    succeed(*install, PACKAGE, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def measured(folder: Path) -> Path:
    """The folder in which the user's experiment was measured."""
    succeed(folder / "bin" / "retbench", *RUN, cwd=folder)
    return folder


def retbench(folder: Path, *words: str) -> str:
    return succeed(folder / "bin" / "retbench", *words, cwd=folder)


def test_it_is_listed_and_its_forms_are_checked(folder: Path) -> None:
    listed = json.loads(retbench(folder, "list", "--models", "--json"))["models"]
    (mine,) = (one for one in listed if one["name"] == "min_gru")
    assert mine["backends"] == ["chunkwise", "recurrent"]
    checks = json.loads(retbench(folder, "verify", "min_gru", "--size", "1m", "--json"))
    assert checks["passed"]
    assert "recurrent = chunkwise" in {check["name"] for check in checks["checks"]}


def test_it_is_measured_beside_the_shipped_ones_and_in_hybrids(measured: Path) -> None:
    rows = json.loads(retbench(measured, "table", "min_gru", "--format", "json"))
    found = {(row["model"], row["workload"], row["context_len"]) for row in rows if row["status"] == "ok"}
    models, workloads = ("min_gru", "transformer", "mixed"), ("decode", "embedding")
    assert found == {(model, name, length) for model in models for name in workloads for length in (64, 128)}
    assert all(row["embed_s"] > 0 for row in rows if row["workload"] == "embedding")
    again = retbench(measured, *RUN)  # nothing is left to measure, and the table is the same
    assert "embedding" in again
    assert len(list((measured / "results").rglob("*.jsonl"))) == 1


def test_the_report_shows_both_under_their_titles(measured: Path) -> None:
    retbench(measured, "report")
    page = (measured / "reports" / "index.html").read_text(encoding="utf-8")
    assert "minGRU" in page
    assert "Embedding latency" in page


def test_it_is_predicted_and_its_equivalence_is_part_of_the_check(folder: Path) -> None:
    found = json.loads(
        retbench(folder, "predict", "min_gru", "--size", "1.3b", "--context", "8192", "--json")
    )
    assert [one["model"] for one in found["predictions"]] == ["min_gru", "transformer"]
    assert all(one["at_best_s"] > 0 for one in found["predictions"])
    checked = retbench(folder, "check")
    assert "min_gru/parameters" in checked


def test_records_of_a_package_that_is_not_installed_are_still_shown(measured: Path) -> None:
    """A laptop may have retbench alone: the table is made from records."""
    names = ("uninstall", "--yes", "min-gru")
    succeed(measured / "bin" / "python", "-m", "pip", *names, cwd=measured)
    try:
        rows = json.loads(retbench(measured, "table", "min_gru", "--format", "json"))
        assert {row["model"] for row in rows} == {"min_gru", "transformer", "mixed"}
        retbench(measured, "report", "--out", "elsewhere")
        assert "min_gru" in (measured / "elsewhere" / "index.html").read_text(encoding="utf-8")
    finally:
        succeed(measured / "bin" / "python", "-m", "pip", "install", "--no-deps", PACKAGE, cwd=measured)


def test_a_broken_package_is_named(folder: Path) -> None:
    (module,) = folder.glob("lib/python*/site-packages/min_gru/architecture.py")
    source = module.read_text(encoding="utf-8")
    module.write_text("raise RuntimeError('broken on purpose')\n", encoding="utf-8")
    try:
        with pytest.raises(AssertionError, match="broken on purpose"):
            retbench(folder, "list", "--models")
    finally:
        module.write_text(source, encoding="utf-8")
