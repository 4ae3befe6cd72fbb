"""The job of a shard on a cluster, which submitit carries out, and the note of its state.

A job runs the command in its own process and ends it when it is to be requeued. The command itself finds what is
on disk, so that the requeued job continues. submitit is imported when it is first needed.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from retbench.errors import INTERRUPTED, ConfigError, RetbenchError, UnsupportedError, unknown_name
from retbench.files import write_atomic
from retbench.records.record import utc_now
from retbench.running.worker import die_with_parent
from retbench.strict import Strict

Cluster = Literal["slurm", "local", "debug"]
CLUSTERS: tuple[Cluster, ...] = get_args(Cluster)
State = Literal["pending", "running", "requeued", "done", "failed", "interrupted", "cancelled", "lost"]

_OWN_FLAGS = frozenset(
    {
        *("array", "cpus-per-task", "error", "gpus-per-node", "job-name", "nodes", "ntasks-per-node"),
        *("open-mode", "output", "signal", "time"),
    }
)
"""Flags of sbatch that follow from other options, or that submitit sets."""

_MAX_MIN = 60 * 24 * 36_525
"""Longest time limit of a job, minutes: a hundred years."""

_FIRST_PORT, _NUM_PORTS = 20_000, 40_000
"""Ports of trainings on several nodes; a job's follows from its id, so that two jobs on one node have two."""

LOCAL_STARTS = 6
"""Most starts of a job of `local`: `max_retry` of submitit's `Controller.run`."""

_POLL_S = 0.2
_SIGNAL_WAIT_S = 5.0
"""Time after the end of a command in which the signal to requeue may follow: Slurm sends SIGTERM just before it."""
_STOP_SHARE = 0.8
"""Share of the time between the signal and the limit that a command has to end in."""


def find_cluster(name: str) -> Cluster:
    """Return a cluster by its name; ConfigError for an unknown one."""
    for cluster in CLUSTERS:
        if cluster == name:
            return cluster
    raise unknown_name("cluster", name, CLUSTERS, where="--cluster")


@dataclass(frozen=True)
class Resources:
    """Resources and limits of each job of a submission.

    Attributes:
        timeout_min: Time limit of a job, minutes; without one 240 on Slurm, and none on this machine.
        nodes: Nodes of a job; more than one for a training only.
        gpus_per_node: GPUs on each node.
        cpus_per_task: Logical CPUs of each job and node; the cluster's default when None.
        processes_per_node: Processes that torchrun starts on each node; 1 runs the command without torchrun.
        array_parallelism: Most jobs that run at once; 8 when None.
        signal_delay_s: Time before the limit at which a job is told to end, seconds; 120 when None.
        max_timeouts: Number of requeues of a job after its time limit; when None 20 on Slurm, and 5 on this machine.
        flags: Further flags of sbatch; True for one without a value.
        setup: Shell commands that run first.
    """

    timeout_min: float | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int | None = None
    processes_per_node: int = 1
    array_parallelism: int | None = None
    signal_delay_s: int | None = None
    max_timeouts: int | None = None
    flags: dict[str, str | bool] = field(default_factory=dict)
    setup: tuple[str, ...] = ()

    @property
    def delay_s(self) -> int:
        """Time before the limit at which a job is told to end, seconds."""
        return 120 if self.signal_delay_s is None else self.signal_delay_s

    def limit_min(self, cluster: Cluster) -> float:
        """Return the time limit of a job, minutes: on this machine a hundred years, unless one is given."""
        if self.timeout_min is not None:
            return self.timeout_min
        return 240 if cluster == "slurm" else _MAX_MIN

    def requeues(self, cluster: Cluster) -> int:
        """Return how often a job is requeued after its time limit."""
        if self.max_timeouts is not None:
            return self.max_timeouts
        return 20 if cluster == "slurm" else LOCAL_STARTS - 1

    def check(self, cluster: Cluster) -> None:
        """Raise a ConfigError where the cluster cannot give what is asked for."""
        limit = self.limit_min(cluster)
        if limit > _MAX_MIN:
            raise ConfigError(f"--timeout-min {limit:g} is too long. Give at most {_MAX_MIN:,} minutes.")
        if limit * 60 <= self.delay_s:
            raise ConfigError(
                f"--timeout-min {limit:g} is not longer than --signal-delay-s {self.delay_s}, which is the time "
                "before the limit at which a job is told to end. Give a longer limit or a shorter delay."
            )
        if cluster == "slurm" and limit != int(limit):
            raise ConfigError(f"--timeout-min {limit:g}: Slurm counts whole minutes. Give a whole number.")
        if cluster != "slurm":
            self._check_here(cluster)
        if known := _OWN_FLAGS & self.flags.keys():
            raise ConfigError(
                f"--slurm {min(known)}=: retbench sets this flag of sbatch itself. Use the option of `retbench submit` "
                "for it, or leave it out."
            )

    def _check_here(self, cluster: Cluster) -> None:
        """Raise a ConfigError for what jobs on this machine cannot be given."""
        asked = {
            "--nodes": self.nodes > 1,
            "--gpus-per-node": self.gpus_per_node > 0,
            "--cpus-per-task": self.cpus_per_task is not None,
            "--array-parallelism": self.array_parallelism is not None,
            "--slurm": bool(self.flags),
            "--setup": bool(self.setup),
        }
        if given := [name for name, is_given in asked.items() if is_given]:
            raise ConfigError(
                f"{', '.join(given)}: options for --cluster slurm only. Jobs of --cluster {cluster} have the cores and "
                "the GPUs that this command has. Leave them out; choose cores by taskset, GPUs by "
                "CUDA_VISIBLE_DEVICES, and the processes of a training by --nproc-per-node."
            )
        limits = {
            "--timeout-min": cluster == "debug" and self.timeout_min is not None,
            "--signal-delay-s": self.signal_delay_s is not None,
            "--max-timeouts": self.max_timeouts is not None,
        }
        given = [name for name, is_given in limits.items() if is_given]
        if given and (cluster == "debug" or self.timeout_min is None):
            hint = "" if cluster == "debug" else ", or give --timeout-min"
            raise ConfigError(
                f"{', '.join(given)}: jobs of --cluster {cluster} have no time limit. Leave out{hint}."
            )
        if self.requeues(cluster) >= LOCAL_STARTS:
            raise ConfigError(
                f"--max-timeouts {self.max_timeouts}: submitit starts a job of --cluster local at most {LOCAL_STARTS} "
                f"times. Give at most {LOCAL_STARTS - 1}, or no --timeout-min, so that jobs have no time limit."
            )

    def sbatch(self, name: str) -> dict[str, Any]:
        """Return the parameters of submitit's Slurm executor."""
        given = {
            "job_name": name,
            "time": int(self.limit_min("slurm")),
            "nodes": self.nodes,
            "ntasks_per_node": 1,
            "cpus_per_task": self.cpus_per_task,
            # srun does not take the number from sbatch since Slurm 22.05.
            "srun_args": ["--cpus-per-task", str(self.cpus_per_task)] if self.cpus_per_task else None,
            "gpus_per_node": self.gpus_per_node or None,
            "signal_delay_s": self.delay_s,
            "array_parallelism": self.array_parallelism or 8,
            "setup": list(self.setup) or None,
            "additional_parameters": self.flags or None,
        }
        return {key: value for key, value in given.items() if value is not None}


class JobNote(Strict):
    """State of a job, as the job itself last wrote it."""

    state: State
    starts: int
    """Number of times that the job was started."""
    changed_at: str
    exit_code: int | None = None
    reason: str | None = None


@dataclass
class ShardJob:
    """The callable that submitit carries out: it runs the command of a shard, and ends it to be requeued."""

    words: tuple[str, ...]
    folder: Path
    number: int
    resources: Resources
    visible_gpus: str | None = None
    """CUDA_VISIBLE_DEVICES where a job of `local` was submitted, in place of which submitit sets another one."""

    def __call__(self) -> int:
        """Run the command; RetbenchError if it failed, or was cancelled before it began."""
        place = load_submitit().JobEnvironment()
        leads = place.global_rank == 0
        if place.cluster == "local":
            self._follow_controller(int(place.job_id))
        if self._is_cancelled():
            raise RetbenchError("the job was cancelled.")
        starts = (note.starts if (note := read_note(self.folder, self.number)) else 0) + 1
        self._note("running", starts, leads)
        try:
            code = self._run(place)
        except Exception as error:
            self._note("failed", starts, leads, reason=str(error))
            raise
        if code:
            state: State = "interrupted" if code == INTERRUPTED else "failed"
            self._note(state, starts, leads, exit_code=code)
            raise RetbenchError(
                f"`{shlex.join(self.words)}` ended with exit code {code}; its stderr says why."
            )
        self._note("done", starts, leads, exit_code=0)
        return code

    def checkpoint(self) -> Any:
        """End the command, which keeps what it has; return the job to requeue.

        Raises:
            RetbenchError: a job of `local` has reached its last time limit; submitit would not start it again.
        """
        self._end_command()
        note = read_note(self.folder, self.number)
        starts = note.starts if note else 1
        if load_submitit().JobEnvironment().cluster == "local" and starts > self.resources.requeues("local"):
            raise RetbenchError(
                f"the job has reached its time limit (--timeout-min {self.resources.timeout_min:g}) {starts} times "
                "and is not requeued again. Submit the same command again, which continues. Without --timeout-min a "
                "job of --cluster local has no limit."
            )
        self._note("requeued", starts, leads=True)
        return load_submitit("submitit.helpers").DelayedSubmission(self)

    def _end_command(self) -> None:
        """End the command, which keeps what it has."""
        for child in _children:
            _stop(child, _STOP_SHARE * self.resources.delay_s)

    def _follow_controller(self, pid: int) -> None:
        """End with the process that submitit controls a local job by, and end the command when that gets SIGTERM."""
        signal.signal(signal.SIGTERM, lambda *_: self._end_command())
        die_with_parent()
        if os.getppid() != pid:  # it ended before `die_with_parent`
            os._exit(1)

    def _run(self, place: Any) -> int:
        """Run the command to its end; after a failure wait for a signal to requeue, which ends this process."""
        if self.resources.nodes * self.resources.processes_per_node == 1:
            words = [sys.executable, "-P", "-m", "retbench", *self.words[1:]]
        else:
            digits = int("".join(filter(str.isdecimal, place.job_id)) or 0)
            port = str(_FIRST_PORT + digits % _NUM_PORTS)
            words = torchrun_words(self.words, self.resources, str(place.node), place.hostnames[0], port)
        # A job of `debug` has no files for its output, and stdout is for the states.
        stdout = sys.__stderr__ if place.cluster == "debug" else None
        variables = dict(os.environ)
        if place.cluster == "local":
            variables.pop("CUDA_VISIBLE_DEVICES", None)
            if self.visible_gpus is not None:
                variables["CUDA_VISIBLE_DEVICES"] = self.visible_gpus
        with subprocess.Popen(words, preexec_fn=_become_child, stdout=stdout, env=variables) as child:
            _children.append(child)
            try:
                while child.poll() is None:
                    time.sleep(_POLL_S)
                if child.returncode and not self._is_cancelled():
                    time.sleep(_SIGNAL_WAIT_S)
            finally:
                _children.remove(child)
                _stop(child, _SIGNAL_WAIT_S)
        return child.returncode

    def _note(
        self,
        state: State,
        starts: int,
        leads: bool,
        *,
        exit_code: int | None = None,
        reason: str | None = None,
    ) -> None:
        """Write the state of the job, from its first node; a job that was cancelled stays so."""
        if leads and not self._is_cancelled():
            note = JobNote(
                state=state, starts=starts, changed_at=utc_now(), exit_code=exit_code, reason=reason
            )
            write_note(self.folder, self.number, note)

    def _is_cancelled(self) -> bool:
        note = read_note(self.folder, self.number)
        return note is not None and note.state == "cancelled"


_children: list["subprocess.Popen[bytes]"] = []
"""The command of the job that this process carries out; not a part of the job, which is pickled to be requeued."""


def _become_child() -> None:
    """Ignore the signal to requeue, which is for the job alone, and never outlive the job."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    die_with_parent()


def _stop(child: "subprocess.Popen[bytes]", wait_s: float) -> None:
    """End a process by SIGTERM, and by SIGKILL if it takes longer.

    This is called from a signal handler, which may have interrupted a call of the process's own methods.
    """
    deadline = time.monotonic() + wait_s
    with suppress(ProcessLookupError):
        if not _has_ended(child.pid):
            os.kill(child.pid, signal.SIGTERM)
        while not _has_ended(child.pid):
            if time.monotonic() > deadline:
                os.kill(child.pid, signal.SIGKILL)
                return
            time.sleep(_POLL_S)


def _has_ended(pid: int) -> bool:
    """Return whether a child process has ended, without taking its exit code from whoever waits for it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def torchrun_words(
    words: Sequence[str], resources: Resources, node: str, first_host: str, port: str
) -> list[str]:
    """Return the words that start the processes of one node, of all that train together.

    Args:
        words: The command, `retbench train ...`.
        resources: Nodes, and processes on each.
        node: Number of this node, from 0.
        first_host: Name of the first node.
        port: Port on the first node where the processes meet.
    """
    where = [
        *("--nnodes", str(resources.nodes), "--nproc-per-node", str(resources.processes_per_node)),
        *("--node-rank", node, "--master-addr", first_host, "--master-port", port),
    ]
    if resources.nodes == 1:
        where = ["--standalone", "--nproc-per-node", str(resources.processes_per_node)]
    return [sys.executable, "-m", "torch.distributed.run", *where, "-m", *words]


def load_submitit(module: str = "submitit") -> Any:
    """Return a module of submitit; UnsupportedError if it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UnsupportedError(
            f"submitit is not installed ({error}). Install it: pip install 'retbench[slurm]'."
        ) from error


def _note_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number}.json"


def write_note(folder: Path, number: int, note: JobNote) -> None:
    """Write the state of the job of a shard."""
    write_atomic(_note_path(folder, number), note.model_dump_json(indent=2).encode())


def read_note(folder: Path, number: int) -> JobNote | None:
    """Return the state that the job of a shard last wrote; None if it has not begun."""
    try:
        return JobNote.model_validate_json(_note_path(folder, number).read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RetbenchError(
            f"{_note_path(folder, number)}: cannot be read: {error.strerror}. Permit it to be read, or remove it."
        ) from error
    except ValidationError as error:
        raise RetbenchError(f"{_note_path(folder, number)}: is not the state of a job. Remove it.") from error
