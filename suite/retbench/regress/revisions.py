"""Two revisions of the code, each where its workers can run: the checkout as it is, and another commit beside it.

The other commit gets a git worktree. Where its dependencies are those of the checkout it shares the installed ones, for
they are what is already here; where they are not, it gets an environment of its own for what is not here, which is kept
for the next time.
"""

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import retbench
from retbench.errors import ConfigError, UnsupportedError
from retbench.regress.programs import Stop, run_program
from retbench.run.protocol import VERSION

Talk = Callable[[str], None]

_APART = "Measure both with `retbench run`, each where it runs, then use `retbench compare`."
"""What to do where a side cannot be set up here."""

_ASK = """
import json, retbench
from retbench.measure.environment import code_revision
try:
    from retbench.run.protocol import VERSION
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
    return _revision("the working tree", root, Path(sys.executable), Stop())


@contextmanager
def commit(root: Path, ref: str, talk: Talk, stop: Stop | None = None) -> Iterator[Revision]:
    """A commit of the checkout in a worktree, which is gone when the block ends.

    Args:
        root: The checkout.
        ref: A commit, branch or tag.
        talk: Told how its dependencies come to be.
        stop: Ends that; None where nothing does.

    Raises:
        Interrupted: the user ended it.
        ConfigError: there is no such commit, or it holds no retbench.
        UnsupportedError: its code does not run here, its workers cannot take turns with these, or git or pip failed.
    """
    stop = stop or Stop()
    found = _resolve(root, ref)
    with tempfile.TemporaryDirectory(prefix="retbench-check-") as folder:
        tree = Path(folder) / "tree"
        _git(root, "worktree", "add", "--quiet", "--detach", str(tree), found)
        try:
            if not (tree / "suite" / "retbench").is_dir():
                raise ConfigError(f"--against {ref}: that commit has no suite/retbench. Give a later one.")
            python = _interpreter(root, tree, talk, stop)
            yield _revision(f"{ref} ({found[:10]})", tree, python, stop)
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def _resolve(root: Path, ref: str) -> str:
    """The hash of a commit; of a branch that only the remote has too, as in a checkout that a job made.

    Raises:
        ConfigError: there is none.
        UnsupportedError: git cannot tell.
    """
    for name in (ref, f"origin/{ref}"):
        words = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        if found := _git(root, *words, quiet=True):
            return found
    raise ConfigError(
        f"--against {ref}: there is no such commit in {root}. Give a commit, branch or tag; in a shallow clone, fetch "
        "it first (`git fetch --depth 1 origin REF`, then --against FETCH_HEAD)."
    )


def _revision(name: str, root: Path, python: Path, stop: Stop) -> Revision:
    """A revision, once it is found to be what will run.

    Raises:
        UnsupportedError: it will not, or its workers cannot take turns with these.
    """
    source = root / "suite"
    done = run_program([str(python), "-P", "-c", _ASK], {**_variables(), "PYTHONPATH": str(source)}, stop)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnsupportedError(f"{name}: its code cannot be imported here: {last}. {_APART}")
    told = json.loads(done.stdout.splitlines()[-1])
    if not Path(told["file"]).resolve().is_relative_to(source.resolve()):
        raise UnsupportedError(
            f"{name}: Python imports retbench from {told['file']} and not from {source}. {_APART}"
        )
    if told["protocol"] != VERSION:
        raise UnsupportedError(
            f"{name}: its workers speak version {told['protocol']} of the protocol and these {VERSION}, so they cannot "
            f"take turns. {_APART}"
        )
    return Revision(name, source, python, told["code"])


def _interpreter(root: Path, tree: Path, talk: Talk, stop: Stop) -> Path:
    """The Python with the dependencies of a commit.

    An environment of its own has on top of everything that is installed here what the commit asks for and is not: what
    both can use is the same on both sides, or nothing could be compared.

    Raises:
        UnsupportedError: it cannot be made.
    """
    mine, theirs = (_dependencies(folder) for folder in (root, tree))
    if mine == theirs:
        talk("both revisions ask for the same dependencies: the base uses the installed ones")
        return Path(sys.executable)
    installed = sorted({f"{one.name}=={one.version}" for one in distributions()})
    folder = _environments() / _hash([*theirs, *installed, sys.prefix, sys.version])
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / "complete").exists():
        talk(f"the base asks for other dependencies: installing those that are not here in {folder}")
        with tempfile.TemporaryDirectory(prefix="retbench-check-") as scratch:
            # Programs that are killed leave what they have in the folder for such things.
            variables = {**_variables(), "TMPDIR": scratch}
            _create_environment(folder, variables, stop)
            words = [str(python), "-m", "pip", "install", "--quiet", *theirs]
            done = run_program(words, variables, stop)
        if done.returncode:
            raise UnsupportedError(
                f"the base's dependencies cannot be installed: {done.stderr.strip()[-500:]}. {_APART}"
            )
        (folder / "complete").touch()
    return python


def _create_environment(folder: Path, variables: Mapping[str, str], stop: Stop) -> None:
    """An empty environment that sees the packages of this one behind its own."""
    words = [sys.executable, "-P", "-m", "venv", "--copies", "--clear", str(folder)]
    done = run_program(words, variables, stop)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-500:]
        raise UnsupportedError(
            f"{folder}: no environment can be made for the base: {said}. Python's venv module needs ensurepip "
            "(python3-venv on Debian) and a folder it may write to; XDG_CACHE_HOME moves it."
        )
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    shared = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (own / "checkout.pth").write_text("\n".join(shared) + "\n", encoding="utf-8")


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


def _git(root: Path, *words: str, quiet: bool = False) -> str:
    """What git prints.

    Args:
        root: The checkout.
        words: The command.
        quiet: It was told to be quiet: exit code 1, or failing without a word, says no, and the answer is empty.

    Raises:
        UnsupportedError: there is no git, or it failed.
    """
    done = subprocess.run(
        ["git", "-C", str(root), *words],
        env=_variables(),
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # Ctrl-C would leave half a worktree, or half of one removed
    )
    says_no = quiet and (done.returncode == 1 or not done.stderr.strip())
    if done.returncode and not says_no:
        raise UnsupportedError(f"git {' '.join(words[:2])}: {done.stderr.strip()}")
    return "" if done.returncode else done.stdout.strip()


def _variables() -> dict[str, str]:
    """The environment without what git tells a hook: which repository it serves, and the index of the commit to be.

    With these, git would put the base's files into that commit. How git is configured stays, as it does when git goes
    into a submodule.

    Raises:
        UnsupportedError: there is no git.
    """
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--local-env-vars"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise UnsupportedError("--against takes git, which is not installed.") from error
    local = set(done.stdout.split()) - {"GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT"}
    return {name: value for name, value in os.environ.items() if name not in local}
