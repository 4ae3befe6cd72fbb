"""Two revisions side by side: real repositories, worktrees and environments of a package that is small."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path

import numpy
import pytest
from typer.testing import CliRunner

import retbench
from retbench.cli import app
from retbench.errors import ConfigError, StorageError, UnsupportedError
from retbench.regress import interleaved, revisions
from retbench.regress.revisions import checkout_root, commit, working_tree
from retbench.running.locks import timing_lock
from retbench.running.protocol import VERSION

Repository = Callable[..., Path]


def git(root: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(
        ["git", "-C", str(root), *identity, *words], check=True, capture_output=True, text=True
    )
    return done.stdout


def write_package(
    root: Path, *, code: str = "1", protocol: str = f"VERSION = {VERSION}", needs: str = ""
) -> None:
    """A package with what is asked of retbench: its code revision and the version of its protocol."""
    files = {
        "suite/retbench/__init__.py": "",
        "suite/retbench/measure/environment.py": f"def code_revision():\n    return 'code-{code}'\n",
        "suite/retbench/running/protocol.py": protocol + "\n",
        "pyproject.toml": f'[project]\nname = "retbench"\nversion = "1"\ndependencies = [{needs}]\n',
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Makes a repository with a commit of some package, and another one checked out."""

    def make(**base: str) -> Path:
        root = tmp_path / "repository"
        root.mkdir()
        git(root, "init", "--quiet", "--initial-branch", "main")
        write_package(root, **base)
        git(root, "add", "--all")
        git(root, "commit", "--quiet", "-m", "base")
        git(root, "tag", "base")
        write_package(root, code="2")
        return root

    return make


def test_each_side_is_its_own_code_and_the_worktree_goes(repository: Repository) -> None:
    root, messages = repository(), list[str]()
    head = working_tree(root)
    with commit(root, "base", messages.append) as base:
        assert (base.code, head.code) == ("code-1", "code-2")
        assert base.source != head.source
        assert base.python == Path(sys.executable)
        assert base.name.startswith("base (")
        assert base.variables == {"PYTHONPATH": str(base.source)}
    assert not base.source.exists()
    assert len(git(root, "worktree", "list").splitlines()) == 1
    assert messages == ["both revisions have the same dependencies: the base uses the installed ones"]


def test_the_worktree_goes_after_an_error_too(repository: Repository) -> None:
    root = repository()
    with pytest.raises(ZeroDivisionError), commit(root, "base", print):
        raise ZeroDivisionError
    assert len(git(root, "worktree", "list").splitlines()) == 1


def test_a_check_inside_a_hook_leaves_the_commit_alone(repository: Repository) -> None:
    """Git tells a hook where the index of the commit is: a worktree made with it would go into the commit."""
    root = repository()
    (root / "new.txt").write_text("new\n", encoding="utf-8")
    git(root, "add", "--all")
    ask = (
        "import sys; from pathlib import Path; from retbench.regress.revisions import commit\n"
        "with commit(Path(sys.argv[1]), 'base', print) as base: print(base.code)"
    )
    hook = root / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -c "{ask}" "{root}" > messages.log\n', encoding="utf-8"
    )
    hook.chmod(0o755)
    git(root, "commit", "--all", "--quiet", "-m", "head")
    assert (root / "messages.log").read_text(encoding="utf-8").splitlines()[-1] == "code-1"
    assert git(root, "show", "HEAD:new.txt") == "new\n"
    assert "code-2" in git(root, "show", "HEAD:suite/retbench/measure/environment.py")
    assert git(root, "status", "--porcelain") == "?? messages.log\n"


@pytest.mark.slow
def test_other_dependencies_get_an_environment_that_is_kept(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETBENCH_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("tiny.py", "value = 42\n")
        file.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        file.writestr(
            "tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr("tiny-1.0.dist-info/RECORD", "tiny.py,,\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    root, messages = repository(needs='"tiny"'), list[str]()
    with commit(root, "base", messages.append) as base:
        found = subprocess.run(
            [base.python, "-c", "import tiny; print(tiny.value)"], capture_output=True, text=True, check=True
        )
        assert found.stdout == "42\n"
        ask = "import numpy, sys; print(numpy.__version__, 'retbench' in sys.modules)"
        shared = subprocess.run([base.python, "-c", ask], capture_output=True, text=True, check=True)
        assert shared.stdout == f"{numpy.__version__} False\n"  # what is installed here is there too
    assert "other dependencies" in messages[0]
    wheel.unlink()  # so that it could not be installed once more
    with commit(root, "base", messages.append) as again:
        assert again.python == base.python
    assert len(messages) == 1


# importlib's find_spec would make setuptools give distutils back to Python, whose import warns.
@pytest.mark.skipif(PathFinder.find_spec("pip") is None, reason="pip is not installed here")
def test_dependencies_that_cannot_be_had_are_reported(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the pip of this environment: an empty one takes seconds, and the test above makes one."""

    def create(folder: Path, *_: object) -> None:
        python = folder / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
        python.chmod(0o755)

    monkeypatch.setattr(revisions, "_create_environment", create)
    monkeypatch.setenv("RETBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    root = repository(needs='"gone"')
    with (
        pytest.raises(UnsupportedError, match=r"cannot be installed(.|\n)*No matching distribution"),
        commit(root, "base", print),
    ):
        pytest.fail("measured")


@pytest.mark.parametrize(
    "needs",
    [
        '"-r/etc/passwd"',
        '"--index-url=https://example.org"',
        '"./local"',
        '"/etc"',
        '"tiny @ file:///etc/passwd"',
        '"tiny @ git+file:///etc"',
        '"tiny @ http://example.org/tiny.whl"',
        '"https://example.org/tiny.whl"',
        "5",
        "[]",
        '{"tiny" = 1}',
        '""',
    ],
)
def test_a_dependency_is_a_requirement_and_no_option_of_pip(repository: Repository, needs: str) -> None:
    with (
        pytest.raises(ConfigError, match=r"pyproject\.toml: the dependency"),
        commit(repository(needs=needs), "base", print),
    ):
        pytest.fail("measured")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "project = 5",
        "project = []",
        "[project]\ndependencies = 5",
        "[project]\ndependencies = {}",
        "x = " + "[" * 5000,
        "x = 1" + "0" * 5000,
        "\x00",
    ],
)
def test_a_project_of_another_shape_is_refused(repository: Repository, text: str) -> None:
    root = repository()
    (root / "pyproject.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"pyproject\.toml"), commit(root, "base", print):
        pytest.fail("measured")


def test_what_a_killed_check_left_goes_with_the_next_one(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what another check holds, or what is not of a check, stays."""
    root, scratch = repository(), tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)
    hold = (
        "import sys, time; from pathlib import Path; from retbench.regress.revisions import commit\n"
        "with commit(Path(sys.argv[1]), 'base', print): print('held', flush=True); time.sleep(600)"
    )
    killed, running = (
        subprocess.Popen([sys.executable, "-c", hold, str(root)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    for process in (killed, running):
        assert process.stdout is not None
        with process.stdout:
            assert "held\n" in iter(process.stdout.readline, "")
    other = scratch / "retbench-check-link"
    other.symlink_to(root)
    killed.kill()
    killed.wait()
    assert len(git(root, "worktree", "list").splitlines()) == 3
    with commit(root, "base", print):
        assert (
            len(git(root, "worktree", "list").splitlines()) == 3
        )  # the checkout, that of `running`, and this one
        assert len(list(scratch.iterdir())) == 3
    running.terminate()
    running.wait()
    with commit(root, "base", print):
        pass
    assert len(git(root, "worktree", "list").splitlines()) == 1
    assert list(scratch.iterdir()) == [other]
    assert (root / "pyproject.toml").exists()


@pytest.mark.parametrize("protocol", ["VERSION = 99", ""])
def test_workers_that_cannot_take_turns_are_refused(repository: Repository, protocol: str) -> None:
    with (
        pytest.raises(UnsupportedError, match=r"another protocol(.|\n)*retbench compare"),
        commit(repository(protocol=protocol), "base", print),
    ):
        pytest.fail("measured")


def test_code_that_cannot_be_imported_is_nothing_to_compare_with(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = repository(protocol="1 / 0")
    monkeypatch.setattr(interleaved, "checkout_root", lambda: root)
    done = CliRunner().invoke(app, ["check", "--against", "base", "--device", "cpu"])
    assert done.exit_code == 3  # 1 would say that something is slower
    assert "division by zero" in done.stderr
    assert "retbench compare" in done.stderr


def test_an_environment_that_cannot_be_made_is_reported(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    monkeypatch.setenv("RETBENCH_CACHE", str(tmp_path / "cache"))
    root = repository(needs='"numpy"')
    with pytest.raises(StorageError, match="environments"), commit(root, "base", print):
        pytest.fail("measured")


def test_compiled_code_that_cannot_be_written_is_refused_before_anything_is_timed(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = repository(code="2")
    monkeypatch.setattr(interleaved, "checkout_root", lambda: root)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "a-file"))
    (tmp_path / "a-file").touch()
    words = ["check", "--against", "base", "--device", "cpu", "--set", "compile=true"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "report")])
    assert done.exit_code == 2
    assert "TORCHINDUCTOR_CACHE_DIR" in done.stderr


@pytest.mark.parametrize("ref", ["nowhere", "--help", "HEAD~5", "HEAD@{9999}", "a-file"])
def test_a_commit_that_is_not_there_is_refused(repository: Repository, ref: str) -> None:
    root = repository()
    git(root, "tag", "a-file", "HEAD:pyproject.toml")
    with pytest.raises(ConfigError, match="no such commit"), commit(root, ref, print):
        pytest.fail("measured")


def test_a_branch_that_only_the_remote_has_is_found(repository: Repository, tmp_path: Path) -> None:
    """The checkout of a job has no branch but the one that it tests."""
    origin, clone = repository(), tmp_path / "clone"
    git(origin, "branch", "before")
    git(tmp_path, "clone", "--quiet", str(origin), str(clone))
    with commit(clone, "before", print) as base:
        assert base.code == "code-1"


def test_what_git_refuses_is_no_missing_commit(repository: Repository) -> None:
    root = repository()
    (root / ".git" / "HEAD").write_text("broken", encoding="utf-8")
    with pytest.raises(UnsupportedError, match="not a git repository"), commit(root, "base", print):
        pytest.fail("measured")


def test_a_commit_without_the_package_is_refused(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "nothing")
    with pytest.raises(ConfigError, match="no suite/retbench"), commit(tmp_path, "HEAD", print):
        pytest.fail("measured")
    assert len(git(tmp_path, "worktree", "list").splitlines()) == 1


def test_code_that_is_the_same_on_both_sides_is_not_timed(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = repository(code="2")
    monkeypatch.setattr(interleaved, "checkout_root", lambda: root)
    done = CliRunner().invoke(app, ["check", "--against", "base", "--device", "cpu"])
    assert done.exit_code == 0
    assert "the code that measures is the same" in done.stdout
    assert "there is nothing to time" in done.stdout
    folder = root / "report"
    words = ["check", "--against", "base", "--device", "cpu", "--format", "json", "--out", str(folder)]
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, json.loads(done.stdout)["exit_code"]) == (0, 0)
    assert {path.name for path in folder.iterdir()} >= {"check.md", "check.json", "junit.xml"}


CHECK = """
import sys
from pathlib import Path
from retbench.regress import interleaved, revisions
from retbench.cli import app

interleaved.checkout_root = lambda: Path(sys.argv[1])
app(["check", "--against", "base", "--device", "cpu", "--out", sys.argv[2]])
"""


@pytest.mark.parametrize(
    ("needs", "mark", "number"),
    [
        ("", "checked out", signal.SIGINT),
        pytest.param('"gone"', "installing the missing ones", signal.SIGTERM, marks=pytest.mark.slow),
        ("", "waiting for", signal.SIGTERM),
    ],
)
def test_a_signal_before_anything_is_measured_leaves_nothing_behind(
    repository: Repository, tmp_path: Path, needs: str, mark: str, number: signal.Signals
) -> None:
    """While the worktree is made, as Ctrl-C in a terminal, which all processes get; later, to the check alone."""
    root, scratch = repository(needs=needs), tmp_path / "scratch"
    scratch.mkdir()
    shown = tmp_path / "shown"
    hook = root / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    wait = "sleep 1" if mark == "checked out" else "exit 0"
    hook.write_text(f'#!/bin/sh\necho "checked out" >> "{shown}"\n{wait}\n', encoding="utf-8")
    hook.chmod(0o755)
    environment = {**os.environ, "TMPDIR": str(scratch), "RETBENCH_CACHE": str(tmp_path / "cache")}
    with timing_lock("another run", "cpu", wait=pytest.fail), open(shown, "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", CHECK, str(root), str(tmp_path / "out")],
            env=environment,
            stderr=log,
            start_new_session=True,
        )
        while mark not in shown.read_text(encoding="utf-8"):
            assert process.poll() is None, shown.read_text(encoding="utf-8")
            time.sleep(0.05)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        code = process.wait(timeout=60)
    assert code == 130, shown.read_text(encoding="utf-8")
    assert "retbench: interrupted" in shown.read_text(encoding="utf-8")
    assert len(git(root, "worktree", "list").splitlines()) == 1
    assert list(scratch.iterdir()) == []


def test_an_installed_package_has_no_commits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(retbench, "__file__", str(tmp_path / "site-packages" / "retbench" / "__init__.py"))
    with pytest.raises(ConfigError, match="checkout"):
        checkout_root()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "10"], "--rounds says what is timed"),
        (["--set", "rounds=3"], "--set says what is timed"),
        (["--rounds", "0"], "--rounds says what is timed"),
        (["--margin", "0"], "--margin says what is timed"),
        (["--always"], "--always says what is timed"),
        (["--against", "HEAD", "--baseline", "x.json"], "Give one of them"),
        (["--against", "HEAD", "--rounds", "2"], "too few for an interval"),
        (["--against", "HEAD", "--budget", "0"], "a budget of 0 minutes"),
        (["--against", "HEAD", "--blocks", "0"], "0 sample blocks per round"),
        (["--against", "HEAD", "--margin", "5"], "the margin is 5"),
        (["--against", "HEAD", "--experiment", "latncy"], "Did you mean 'latency'"),
        (["--against", "HEAD", "--experiment", "memory"], "an interleaved check compares times"),
        (["--against", "no-such-commit", "--device", "cpu"], "no such commit"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_measured(words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["check", *words])
    assert done.exit_code == 2
    assert message in done.stderr
