"""Two revisions of the code, each where its workers can run: the checkout as it is, and another commit beside it.

The other commit gets a git worktree. Where its dependencies are those of the checkout it shares the installed ones, for
they are what is already here; where they are not, it gets an environment of its own, which is kept for the next time.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import retbench
from retbench.errors import ConfigError, RetbenchError, UnsupportedError
from retbench.running.protocol import VERSION

Talk = Callable[[str], None]

_ASK = """
import json, retbench
from retbench.measure.environment import code_revision
try:
    from retbench.running.protocol import VERSION
except ImportError:
    VERSION = None
print(json.dumps({"file": retbench.__file__, "code": code_revision(), "protocol": VERSION}))
"""


@dataclass(frozen=True)
class Revision:
    """Code that can be measured.

    Attributes:
        name: What it is called.
        source: The folder that its package is imported from.
        python: The interpreter with its dependencies.
        code: Its code revision, as records state it.
    """

    name: str
    source: Path
    python: Path
    code: str

    @property
    def variables(self) -> dict[str, str]:
        """What its workers need in their environment."""
        return {"PYTHONPATH": str(self.source)}


def checkout_root() -> Path:
    """The checkout that this package runs from.

    Raises:
        ConfigError: it runs from no git checkout.
    """
    root = Path(retbench.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        raise ConfigError(
            f"--against compares a checkout with one of its commits, and retbench runs from {root}, which is none. "
            "Run it from a checkout (`pip install -e .`), or measure both and use `retbench compare`."
        )
    return root


def working_tree(root: Path) -> Revision:
    """The checkout as it is, changes that are not committed included."""
    return _revision("the working tree", root, Path(sys.executable))


@contextmanager
def commit(root: Path, ref: str, talk: Talk) -> Iterator[Revision]:
    """A commit of the checkout in a worktree, which is gone when the block ends.

    Args:
        root: The checkout.
        ref: A commit, branch or tag.
        talk: Told how its dependencies come to be.

    Raises:
        ConfigError: there is no such commit, or it holds no retbench.
        UnsupportedError: its workers cannot take turns with these.
        RetbenchError: git or pip failed.
    """
    found = _git(
        root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}", check=False
    )
    if not found:
        raise ConfigError(
            f"--against {ref}: there is no such commit in {root}. Give a commit, branch or tag; in a shallow clone, "
            "fetch it first (`git fetch origin main`)."
        )
    with tempfile.TemporaryDirectory(prefix="retbench-check-") as folder:
        tree = Path(folder) / "tree"
        _git(root, "worktree", "add", "--quiet", "--detach", str(tree), found)
        try:
            if not (tree / "suite" / "retbench").is_dir():
                raise ConfigError(f"--against {ref}: that commit has no suite/retbench. Give a later one.")
            yield _revision(f"{ref} ({found[:10]})", tree, _interpreter(root, tree, talk))
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def _revision(name: str, root: Path, python: Path) -> Revision:
    """A revision, once it is found to be what will run."""
    source = root / "suite"
    done = subprocess.run(
        [str(python), "-P", "-c", _ASK],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RetbenchError(f"{name}: its code cannot be imported: {last}")
    told = json.loads(done.stdout.splitlines()[-1])
    if not Path(told["file"]).resolve().is_relative_to(source.resolve()):
        raise RetbenchError(f"{name}: Python imports retbench from {told['file']} and not from {source}.")
    if told["protocol"] != VERSION:
        raise UnsupportedError(
            f"{name}: its workers speak version {told['protocol']} of the protocol and these {VERSION}, so they cannot "
            "take turns. Measure both with `retbench run`, then use `retbench compare`."
        )
    return Revision(name, source, python, told["code"])


def _interpreter(root: Path, tree: Path, talk: Talk) -> Path:
    """The Python with the dependencies of a commit."""
    mine, theirs = (_dependencies(folder) for folder in (root, tree))
    if mine == theirs:
        talk("both revisions ask for the same dependencies: the base uses the installed ones")
        return Path(sys.executable)
    folder = _environments() / _hash([*theirs, sys.version])
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / "complete").exists():
        talk(f"the base asks for other dependencies: installing them in {folder}")
        venv.create(folder, with_pip=True, clear=True)
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", *theirs],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RetbenchError(f"the base's dependencies cannot be installed: {done.stderr.strip()[-500:]}")
        (folder / "complete").touch()
    return python


def _dependencies(folder: Path) -> list[str]:
    """What a revision asks for, sorted."""
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return sorted(project["dependencies"])
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"{folder}: its pyproject.toml does not say what it depends on: {error}."
        ) from error


def _environments() -> Path:
    """Where environments are kept: the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retbench" / "environments"


def _hash(words: list[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def _git(root: Path, *words: str, check: bool = True) -> str:
    """What git prints; empty where it fails and that is no error."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UnsupportedError("--against takes git, which is not installed.") from error
    if done.returncode and check:
        raise RetbenchError(f"git {' '.join(words[:2])}: {done.stderr.strip()}")
    return done.stdout.strip() if done.returncode == 0 else ""
