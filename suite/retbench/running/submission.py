"""Submissions of a command to a cluster through submitit: what was submitted, and the state of its jobs.

<out>/jobs/<submission>/submission.json   the command of each job, and the ids of the jobs
<out>/jobs/<submission>/shard-<i>.json    the state of a shard's job, which the job writes
<out>/jobs/<submission>/                  logs and pickles of submitit
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
from pydantic import ValidationError, model_validator

from retbench.errors import ConfigError, RetbenchError, UnsupportedError, shown
from retbench.files import write_atomic
from retbench.records.record import utc_now
from retbench.records.store import new_run_id
from retbench.running.cluster_job import (
    Cluster,
    JobNote,
    Resources,
    ShardJob,
    State,
    load_submitit,
    read_note,
    torchrun_words,
    write_note,
)
from retbench.strict import Strict

JOBS = "jobs"
"""Folder of the submissions, below that of the results."""

ENDED = frozenset({"done", "failed", "interrupted", "cancelled", "lost"})
"""States of jobs that do nothing any more."""

_END_WAIT_S = 30.0
"""Time that a cancelled job has to end in by itself."""
_START_S = 0.1
"""Wait for the words of a process that has just been started."""
_POLL_S = 1.0
"""Time between two readings of the states of jobs that are waited for."""


class Submission(Strict):
    """Jobs that were submitted at one time, one per shard."""

    submitted_at: str
    cluster: Cluster
    commands: tuple[tuple[str, ...], ...]
    """Words of the command of each shard."""
    job_ids: tuple[str, ...]

    @model_validator(mode="after")
    def _check_ids(self) -> Self:
        if len(self.job_ids) != len(self.commands):
            raise ValueError(f"{len(self.commands)} commands have {len(self.job_ids)} job ids")
        return self


@dataclass(frozen=True)
class JobRow:
    """A job as `retbench jobs` shows it."""

    folder: Path
    number: int
    """Number of the shard, from 1."""
    job_id: str
    cluster: Cluster
    command: str
    state: State
    submitted_at: str
    starts: int
    log: Path | None
    """File with the stderr of its command; None for `debug`, whose jobs write to that of the command itself."""


def submit(cluster: Cluster, commands: Sequence[Sequence[str]], out: Path, resources: Resources) -> Path:
    """Submit one job per command, note them, and return the folder of the submission.

    Jobs of `debug` run one after the other in this process before it returns.

    Raises:
        UnsupportedError: submitit is not installed, or there is no Slurm here.
        RetbenchError: sbatch refused the jobs.
        StorageError: the submission cannot be noted; no job is left.
    """
    folder = (out / JOBS / new_run_id()).absolute()
    with _refusals():
        executor = _executor(cluster, folder, resources)
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [
            ShardJob(tuple(words), folder, number, resources, os.environ.get("CUDA_VISIBLE_DEVICES"))
            for number, words in enumerate(commands, start=1)
        ]
        # The jobs begin at the end of the batch.
        with _closed_streams() if cluster == "local" else nullcontext(), executor.batch():
            submitted = [executor.submit(job) for job in jobs]
    note = Submission(
        submitted_at=utc_now(),
        cluster=cluster,
        commands=tuple(map(tuple, commands)),
        job_ids=tuple(str(job.job_id) for job in submitted),
    )
    try:
        write_atomic(folder / "submission.json", note.model_dump_json(indent=2).encode())
    except BaseException:  # jobs that are not noted can be neither listed nor cancelled
        _end_jobs(cluster, folder, note.job_ids)
        raise
    if cluster == "debug":
        for job in submitted:
            # `exception` sets no variables, and `results` would open a debugger.
            with load_submitit("submitit.helpers").environment_variables(SUBMITIT_DEBUG_JOB_ID=job.job_id):
                job.exception()  # its state says what came of it
    return folder


@contextmanager
def _closed_streams() -> Iterator[None]:
    """Give what is started in the block none of our streams, which it would keep open for as long as it runs."""
    kept = [os.dup(number) for number in range(3)]
    null = os.open(os.devnull, os.O_RDWR)
    try:
        for number in range(3):
            os.dup2(null, number)
        yield
    finally:
        for number, copy in enumerate(kept):
            os.dup2(copy, number)
        for descriptor in (null, *kept):
            os.close(descriptor)


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise the errors of submitit and of sbatch as errors of ours."""
    errors = load_submitit("submitit.core.utils")
    try:
        yield
    except (errors.FailedJobError, errors.FailedSubmissionError) as error:
        raise RetbenchError(f"the jobs were not submitted: {error}") from error


def _executor(cluster: Cluster, folder: Path, resources: Resources) -> Any:
    """Return submitit's executor of a cluster."""
    submitit = load_submitit()
    if cluster == "debug":
        return submitit.DebugExecutor(folder)
    if cluster == "slurm":
        try:
            executor = submitit.SlurmExecutor(folder, max_num_timeout=resources.requeues(cluster))
        except RuntimeError as error:
            raise UnsupportedError(
                f"--cluster slurm: {error} Submit from a login node of the cluster, or use --cluster local."
            ) from error
        executor.update_parameters(**resources.sbatch(f"retbench-{folder.name[-6:]}"))
        return executor
    executor = submitit.LocalExecutor(folder, max_num_timeout=resources.requeues(cluster))
    executor.update_parameters(timeout_min=resources.limit_min(cluster), signal_delay_s=resources.delay_s)
    return executor


def script(cluster: Cluster, commands: Sequence[Sequence[str]], out: Path, resources: Resources) -> str:
    """Return what would be submitted: the sbatch script with the command of each job, or the commands of the jobs."""
    shown_words = [shlex.join(words) for words in commands]
    if resources.nodes * resources.processes_per_node > 1:
        launched = [torchrun_words(words, resources, "NODE", "FIRST_NODE", "PORT") for words in commands]
        shown_words = list(map(shlex.join, launched))
    if cluster != "slurm":
        return "\n".join(shown_words)
    make = load_submitit("submitit.slurm.slurm")._make_sbatch_string
    folder = (out / JOBS / "SUBMISSION").absolute()
    runner = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    count = len(commands) if len(commands) > 1 else None
    text = make(command=runner, folder=folder, map_count=count, **resources.sbatch("retbench"))
    tasks = [f"# task {number}: {words}" for number, words in enumerate(shown_words)]
    return "\n".join([str(text).rstrip(), "", "# which runs", *tasks])


def list_jobs(out: Path) -> tuple[list[JobRow], list[RetbenchError]]:
    """Return the jobs of every submission below the results, the oldest first, and an error per damaged submission."""
    rows: list[JobRow] = []
    problems: list[RetbenchError] = []
    for path in sorted(out.glob(f"{JOBS}/*/submission.json")):
        try:
            rows += jobs_of(path.parent)
        except RetbenchError as error:
            problems.append(error)
    return rows, problems


def jobs_of(folder: Path) -> list[JobRow]:
    """Return the jobs of one submission with their states.

    Raises:
        RetbenchError: a file of the submission cannot be read.
    """
    path = folder / "submission.json"
    try:
        found = Submission.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RetbenchError(
            f"{shown(str(path))}: cannot be read: {error.strerror}. Permit it to be read, or remove its folder."
        ) from error
    except ValidationError as error:
        raise RetbenchError(
            f"{shown(str(path))}: is not a submission. Remove its folder: what its jobs measured is not in it."
        ) from error
    queue = _slurm_queue(found.job_ids) if found.cluster == "slurm" else {}
    rows = []
    for number, (words, job_id) in enumerate(zip(found.commands, found.job_ids, strict=True), start=1):
        note = read_note(folder, number)
        rows.append(
            JobRow(
                folder=folder,
                number=number,
                job_id=job_id,
                cluster=found.cluster,
                command=shlex.join(words),
                state=_state_of(found.cluster, folder, job_id, note, queue),
                submitted_at=found.submitted_at,
                starts=note.starts if note else 0,
                log=None if found.cluster == "debug" else folder / f"{job_id}_0_log.err",
            )
        )
    return rows


def _state_of(
    cluster: Cluster, folder: Path, job_id: str, note: JobNote | None, queue: dict[str, str] | None
) -> State:
    """Return the state of a job: what it wrote last, unless it is not there any more."""
    state: State = note.state if note else "pending"
    if state in ENDED:
        return state
    if cluster == "slurm":
        if queue is None:
            return state  # there is no Slurm here to ask
        return state if job_id in queue else "lost"
    return state if cluster == "local" and _find_controller(job_id, folder) else "lost"


def _slurm_queue(job_ids: Sequence[str]) -> dict[str, str] | None:
    """Return the state of each queued or running job of some, as Slurm gives it; None where Slurm cannot be asked."""
    arrays = ",".join(sorted({job_id.partition("_")[0] for job_id in job_ids}))
    command = ["squeue", "--noheader", "--array", "--format", "%i %T", "--jobs", arrays]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    return {job: state for job, _, state in (line.partition(" ") for line in done.stdout.splitlines())}


def _find_controller(job_id: str, folder: Path) -> psutil.Process | None:
    """Return submitit's process of a local job, if it lives on this machine; its words end with the folder."""
    try:
        process = psutil.Process(int(job_id))
        words = process.cmdline()
        if not words:  # for an instant of its start a process has none; a thread of the kernel never has any
            time.sleep(_START_S)
            words = process.cmdline()
        lives = process.status() != psutil.STATUS_ZOMBIE and Path(words[-1]).name == folder.name
    except (psutil.Error, ValueError, IndexError):
        return None
    return process if lives else None


def cancel(out: Path, job_id: str) -> None:
    """End a job that was submitted below the results, or all jobs of an array; what is measured stays.

    Raises:
        ConfigError: there is no such job, or it has ended.
        UnsupportedError: the job is one of Slurm, and there is no Slurm here.
        RetbenchError: Slurm refused.
    """
    rows, _ = list_jobs(out)
    named = [row for row in rows if job_id in (row.job_id, row.job_id.partition("_")[0])]
    going = [row for row in named if row.state not in ENDED]
    if not going:
        known = ", ".join(row.job_id for row in rows if row.state not in ENDED) or "none"
        found = f"has ended ({named[-1].state})" if named else f"is no job of {out}"
        raise ConfigError(f"--cancel {shown(job_id)}: {found}. Jobs that can be cancelled: {known}.")
    if going[0].cluster == "slurm":
        _scancel([row.job_id for row in going])
    for row in going:
        # Written before its command has ended, which the job would note: it keeps this state.
        note = JobNote(state="cancelled", starts=row.starts, changed_at=utc_now())
        write_note(row.folder, row.number, note)
        if row.cluster == "local":
            _end_jobs("local", row.folder, [row.job_id])


def _end_jobs(cluster: Cluster, folder: Path, job_ids: Sequence[str]) -> None:
    """End the jobs of a submission; those of `debug` have not begun before it is noted."""
    if cluster == "slurm":
        _scancel(job_ids)
    elif cluster == "local":
        for job_id in job_ids:
            if controller := _find_controller(job_id, folder):
                _end_tree(controller)


def _scancel(job_ids: Sequence[str]) -> None:
    """Have Slurm end jobs."""
    try:
        done = subprocess.run(["scancel", *job_ids], capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError as error:
        raise UnsupportedError(
            "--cancel: there is no scancel here. Cancel the job on a login node of the cluster."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise RetbenchError("--cancel: scancel gave no answer within 60 s. Try again.") from error
    if done.returncode:
        raise RetbenchError(f"--cancel: scancel refused: {done.stderr.strip() or 'no reason is given'}.")


def _end_tree(controller: psutil.Process) -> None:
    """End a local job: by SIGTERM, which the job passes on to its command, and by SIGKILL what is left."""
    with suppress(psutil.NoSuchProcess):
        tree = [controller, *controller.children(recursive=True)]
        controller.terminate()
        for process in psutil.wait_procs(tree, timeout=_END_WAIT_S)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def wait_for(folder: Path) -> list[JobRow]:
    """Return the jobs of a submission once all have ended."""
    while True:
        rows = jobs_of(folder)
        if all(row.state in ENDED for row in rows):
            return rows
        time.sleep(_POLL_S)
