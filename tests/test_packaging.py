"""The wheel works from an empty folder: everything that is read at run time is inside."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def succeed(*words: str | Path, cwd: Path) -> str:
    """Stdout of a command that must succeed, without the paths that this process finds packages by."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    succeed(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("retbench-*.whl")
    return path


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`retbench` in a fresh environment that has the wheel, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    succeed(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # A path in a .pth file lends the packages of a folder, but not what its own .pth files point to: the
    # installed retbench is the wheel's, never the checkout's.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "bin" / "retbench"


def test_the_wheel_holds_everything_that_is_read_at_run_time(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {path.name for path in (ROOT / "experiments").glob("*.toml")}
    assert {f"retbench/experiments/{name}" for name in shipped} <= names
    data = {
        path.relative_to(ROOT / "suite").as_posix()
        for path in (ROOT / "suite" / "retbench").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {*data, "retbench/baselines/exact.json"} <= names
    assert not {
        name for name in names if name.split("/")[0] not in {"retbench"} and ".dist-info/" not in name
    }


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_source_distribution_holds_every_file_of_the_repository(tmp_path: Path) -> None:
    succeed(
        sys.executable, "-m", "pip", "install", "--quiet", "--target", tmp_path, "hatchling", cwd=tmp_path
    )
    build = (
        "import sys; sys.path.insert(0, sys.argv[1]); import hatchling.build as b; b.build_sdist(sys.argv[1])"
    )
    succeed(sys.executable, "-c", build, tmp_path, cwd=ROOT)
    (path,) = tmp_path.glob("retbench-*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {*succeed("git", "ls-files", cwd=ROOT).splitlines()} <= held


def test_the_installed_program_runs_from_an_empty_folder(program: Path, tmp_path: Path) -> None:
    assert "latency" in succeed(program, "list", cwd=tmp_path)
    checked = succeed(program, "check", cwd=tmp_path)
    assert f"first:  {program.parents[1]}" in checked, "the baseline of the wheel"
    assert "fixed weights" in checked.splitlines()[-1]
    words = ["--profile", "smoke", "--device", "cpu", "--limit", "1", "--set", "size=1m", "--set", "rounds=1"]
    assert "### memory" in succeed(program, "run", "memory", *words, cwd=tmp_path)
    assert "index.html" in succeed(program, "report", cwd=tmp_path)
    assert (tmp_path / "reports" / "index.html").is_file()
