"""Revisions whose workers can run here: the checkout as it is, and one of its commits in a git worktree.

A commit with the dependencies of the checkout uses the installed packages. Any other commit gets a virtual environment
that adds the packages that are not installed. It is kept for the next check.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from filelock import FileLock, Timeout
from packaging.requirements import InvalidRequirement, Requirement

import retbench
from retbench.errors import ConfigError, UnsupportedError, shown
from retbench.files import cache_dir, storing
from retbench.parsing import parse_toml
from retbench.running.locks import Interrupted
from retbench.running.protocol import VERSION

if sys.platform != "win32":
    import fcntl

Notify = Callable[[str], None]
"""Receives progress messages."""

_POLL_S = 0.1
_PREFIX = "retbench-check-"
"""Prefix of the temporary folder of a check, which holds the git worktree."""
_ADVICE = "Measure both with `retbench run`, each where it runs, then use `retbench compare`."

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
    """Code that can be measured: its source folder, a Python with its dependencies, and its code revision."""

    name: str
    source: Path
    python: Path
    code: str

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of its workers."""
        return {"PYTHONPATH": str(self.source)}


class StopRequest:
    """The user's request to stop, which long operations check between two steps."""

    def __init__(self) -> None:
        self._is_made = False

    def make(self) -> None:
        """Request a stop; safe inside a signal handler."""
        self._is_made = True

    def check(self) -> None:
        """Raise Interrupted if a stop was requested."""
        if self._is_made:
            raise Interrupted

    def run(self, words: Sequence[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a program and capture its output.

        It runs in a new process session, so that Ctrl-C ends it only through this request: Interrupted is raised,
        and the program and its children are killed.
        """
        with subprocess.Popen(
            words,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            while True:
                try:
                    stdout, stderr = process.communicate(timeout=_POLL_S)
                except subprocess.TimeoutExpired:
                    if self._is_made:
                        os.killpg(process.pid, signal.SIGKILL)
                        raise Interrupted from None
                else:
                    self.check()
                    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


def checkout_root() -> Path:
    """Return the checkout that this package runs from."""
    root = Path(retbench.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        raise ConfigError(
            f"--against compares a checkout with one of its commits, and retbench runs from {root}, which is none. "
            "Run it from a checkout (`pip install -e .`), or measure both and use `retbench compare`."
        )
    return root


def working_tree(root: Path) -> Revision:
    """Return the checkout as it is, with uncommitted changes."""
    return _revision("the working tree", root, Path(sys.executable), StopRequest())


@contextmanager
def commit(root: Path, ref: str, notify: Notify, stop: StopRequest | None = None) -> Iterator[Revision]:
    """Check out a commit, branch or tag in a worktree, which is removed when the block ends.

    Its code runs here, and its dependencies may be installed. Worktrees that killed checks left are removed.

    Raises:
        Interrupted: the user requested a stop.
        ConfigError: there is no such commit, or it holds no retbench.
        UnsupportedError: its code does not run here, its workers use another protocol, or git or pip failed.
    """
    stop = stop or StopRequest()
    found = _resolve(root, ref)
    _remove_leftovers(root)
    with _locked_folder() as folder:
        tree = folder / "tree"
        _git(root, "worktree", "add", "--quiet", "--detach", str(tree), found)
        try:
            if not (tree / "suite" / "retbench").is_dir():
                raise ConfigError(
                    f"--against {shown(ref)}: that commit has no suite/retbench. Give a later one."
                )
            python = _interpreter(root, tree, notify, stop)
            yield _revision(f"{ref} ({found[:10]})", tree, python, stop)
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


@contextmanager
def _locked_folder() -> Iterator[Path]:
    """Yield a new temporary folder, which is locked until it is removed or this process has ended."""
    if sys.platform == "win32":  # which cannot lock a folder
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
            yield Path(name)
        return
    draft = Path(tempfile.mkdtemp(prefix="retbench-draft-"))
    descriptor = os.open(draft, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    # Another check may remove a folder of this name that is not locked.
    folder = draft.rename(draft.with_name(draft.name.replace("retbench-draft-", _PREFIX)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _remove_leftovers(root: Path) -> None:
    """Remove the folders of checks that were killed, and their worktrees in this repository."""
    lines = _git(root, "worktree", "list", "--porcelain").splitlines()
    trees = [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]
    trees = [tree for tree in trees if tree.parent.name.startswith(_PREFIX)]
    for folder in {*Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"), *(tree.parent for tree in trees)}:
        if _is_left_over(folder):
            shutil.rmtree(folder, ignore_errors=True)
    for tree in trees:
        if not tree.exists():
            _git(root, "worktree", "remove", "--force", str(tree))


def _is_left_over(folder: Path) -> bool:
    """Return whether a folder is this user's, and no process has locked it."""
    if sys.platform == "win32":
        return False
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_uid == os.getuid()
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _resolve(root: Path, ref: str) -> str:
    """Return the hash of a commit; a branch may exist on the remote only, as in the checkout of a CI job."""
    for name in (ref, f"origin/{ref}"):
        words = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        if found := _git(root, *words, quiet=True):
            return found
    raise ConfigError(
        f"--against {shown(ref)}: there is no such commit in {root}. Give a commit, branch or tag; in a shallow clone, "
        "fetch it first (`git fetch --depth 1 origin REF`, then --against FETCH_HEAD)."
    )


def _revision(name: str, root: Path, python: Path, stop: StopRequest) -> Revision:
    """Return a revision after checking that its code runs."""
    source = root / "suite"
    done = stop.run([str(python), "-P", "-c", _ASK], {**_variables(), "PYTHONPATH": str(source)})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnsupportedError(f"{name}: its code cannot be imported here: {last}. {_ADVICE}")
    found = json.loads(done.stdout.splitlines()[-1])
    if not Path(found["file"]).resolve().is_relative_to(source.resolve()):
        raise UnsupportedError(
            f"{name}: Python imports retbench from {found['file']} and not from {source}. {_ADVICE}"
        )
    if found["protocol"] != VERSION:
        raise UnsupportedError(
            f"{name}: its workers use another protocol: version {found['protocol'] or 'unknown'}, here {VERSION}. "
            f"{_ADVICE}"
        )
    return Revision(name, source, python, found["code"])


def _interpreter(root: Path, tree: Path, notify: Notify, stop: StopRequest) -> Path:
    """Return the Python with the dependencies of a commit.

    A new environment sees everything that is installed here and adds the rest. Both sides must share what they can, or
    nothing could be compared.
    """
    mine, theirs = (read_dependencies(folder) for folder in (root, tree))
    if mine == theirs:
        notify("both revisions have the same dependencies: the base uses the installed ones")
        return Path(sys.executable)
    installed = sorted({f"{one.name}=={one.version}" for one in distributions()})
    parts = "\n".join([*theirs, *installed, sys.prefix, sys.version])
    folder = cache_dir() / "environments" / hashlib.sha256(parts.encode()).hexdigest()[:16]
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    with storing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with _holding(FileLock(folder.with_suffix(".lock")), stop):  # another check may need the same environment
        if not (folder / "complete").exists():
            notify(f"the base has other dependencies: installing the missing ones in {folder}")
            # Killed programs leave their files in the folder of the worktree, which is removed.
            variables = {**_variables(), "TMPDIR": str(tree.parent)}
            _create_environment(folder, variables, stop)
            _install([str(python), "-m", "pip", "install", "--quiet", "--", *theirs], variables, stop)
            (folder / "complete").touch()
    return python


@contextmanager
def _holding(lock: FileLock, stop: StopRequest) -> Iterator[None]:
    """Hold a lock, which another process may have for minutes."""
    while not lock.is_locked:
        stop.check()
        with suppress(Timeout):
            lock.acquire(timeout=_POLL_S)
    try:
        yield
    finally:
        lock.release()


def _install(command: Sequence[str], variables: Mapping[str, str], stop: StopRequest) -> None:
    """Install the dependencies of the base."""
    done = stop.run(command, variables)
    if done.returncode:
        said = done.stderr.strip()[-500:]
        raise UnsupportedError(f"the base's dependencies cannot be installed: {said}. {_ADVICE}")


def _create_environment(folder: Path, variables: Mapping[str, str], stop: StopRequest) -> None:
    """Create an empty environment that sees the packages of this one after its own."""
    done = stop.run([sys.executable, "-P", "-m", "venv", "--copies", "--clear", str(folder)], variables)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-500:]
        raise UnsupportedError(
            f"{folder}: no environment can be made for the base: {said}. Python's venv module needs ensurepip "
            "(python3-venv on Debian) and a folder it may write to; RETBENCH_CACHE moves it."
        )
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    shared = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (own / "checkout.pth").write_text("\n".join(shared) + "\n", encoding="utf-8")


def read_dependencies(folder: Path) -> list[str]:
    """Return the dependencies of a revision, sorted.

    Raises:
        ConfigError: its pyproject.toml cannot be read, or a dependency is not a requirement of PEP 508, which pip could
            take for an option, or names a file.
    """
    path = folder / "pyproject.toml"
    try:
        found = parse_toml(path.read_text(encoding="utf-8"))["project"]["dependencies"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: it states no dependencies: {shown(str(error))}.") from error
    if not isinstance(found, list):
        raise ConfigError(f"{path}: project.dependencies is {shown(found)}, and must be a list.")
    return sorted(_requirement(one, path) for one in found)


def _requirement(text: object, path: Path) -> str:
    """Return a dependency as pip reads it."""
    try:
        requirement = Requirement(text) if isinstance(text, str) else None
    except InvalidRequirement:
        requirement = None
    if requirement is None or not (requirement.url or "https:").startswith(("https:", "git+https:")):
        raise ConfigError(
            f"{path}: the dependency {shown(text)} is neither a name with versions (PEP 508) nor an https URL. "
            "Change it, or give another commit."
        )
    return str(requirement)


def _git(root: Path, *words: str, quiet: bool = False) -> str:
    """Return the output of git; where `quiet`, a failure without a message means "no", and the output is empty."""
    done = subprocess.run(
        ["git", "-C", str(root), *words],
        env=_variables(),
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # Ctrl-C would leave a worktree half made or half removed
    )
    says_no = quiet and (done.returncode == 1 or not done.stderr.strip())
    if done.returncode and not says_no:
        raise UnsupportedError(f"git {' '.join(words[:2])}: {done.stderr.strip()}")
    return "" if done.returncode else done.stdout.strip()


def _variables() -> dict[str, str]:
    """Return the environment without the variables that git sets for a hook.

    They name the repository and the index of the pending commit, into which git would put the base's files. Git's
    configuration stays, as for a submodule.
    """
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--local-env-vars"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise UnsupportedError("--against needs git, which is not installed.") from error
    local = set(done.stdout.split()) - {"GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT"}
    return {name: value for name, value in os.environ.items() if name not in local}
