"""A real Slurm on this machine, alone for the test: a sweep of two shards, of which one is killed and requeued."""

import json
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retbench.measure.machine import NODE_VARIABLE
from retbench.records.store import read_records
from retbench.running.submission import ENDED, list_jobs

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "sinfo", "srun")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs Slurm: {', '.join(MISSING)} not found"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start Slurm's daemons"),
]
pytest.importorskip("submitit", reason="needs submitit (the extra slurm)")

CONFIGURATION = """\
ClusterName=box
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/slurm
CredType=cred/slurm
AuthInfo=use_client_ids
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=2
MailProg=/bin/true
SlurmctldParameters=preempt_send_user_signal
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
EXPERIMENT = """\
title = "Tiny"
source = "none; made for tests"
expect = "It runs."
[models.retnet]
architecture = "retnet"
[models.transformer]
architecture = "transformer"
[profiles.smoke]
size = "1m"
rounds = 2
warmup_s = 0.0
min_steps = 2
threads = 1
[profiles.smoke.workloads.decode]
batch_size = [1, 2]
context_len = [16, 24, 32]
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A controller and a node of two CPUs; the daemons end with the test."""
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    text = CONFIGURATION.format(host=platform.node(), folder=folder, ports=free_ports(2))
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n", encoding="utf-8")
    (folder / "slurm.key").write_bytes(secrets.token_bytes(1024))
    (folder / "slurm.key").chmod(0o600)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
    daemons = []
    try:
        for name in ("slurmctld", "slurmd"):
            log = (folder / f"{name}.out").open("wb")
            daemons.append(subprocess.Popen([name, "-D"], stdout=log, stderr=log))
            log.close()
        wait_until(lambda: " idle" in output_of("sinfo", "--noheader", "--format", "%n %t"), 120)
        yield
        subprocess.run(["scancel", "--user", "root"], check=True)  # of a test that failed
        wait_until(lambda: not queue().strip(), 60)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(timeout=60)


def output_of(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def wait_until(holds: Callable[[], object], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.5)


def queue() -> str:
    return output_of("squeue", "--noheader", "--array", "--format", "%i %T")


def records_of(out: Path, batch_size: int) -> int:
    return sum(record.point.batch_size == batch_size for record in read_records(out)[0])


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("kill", ["requeue", "preempt"])
def test_a_sweep_of_two_shards_survives_the_end_of_one(tmp_path: Path, kill: str) -> None:
    (tmp_path / "tiny.toml").write_text(EXPERIMENT, encoding="utf-8")
    out = tmp_path / "out"
    words = ["--shards", "2", "--timeout-min", "60", "--json", "--setup", f"export {NODE_VARIABLE}=box"]
    words += ["run", str(tmp_path / "tiny.toml"), "--profile", "smoke", "--device", "cpu", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "retbench", "submit", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    jobs = [row["job_id"] for row in json.loads(done.stdout)["jobs"]]
    assert jobs[1] == jobs[0].replace("_0", "_1")
    # Both may use both CPUs, so they take turns: the one that measures first is killed in the midst of it.
    wait_until(lambda: any(records_of(out, batch_size) > 0 for batch_size in (1, 2)), 600)
    victim = 0 if records_of(out, 1) else 1
    assert records_of(out, victim + 1) < 12
    if kill == "requeue":  # as after the fault of a node: Slurm ends the job, and starts it again
        subprocess.run(["scontrol", "requeue", jobs[victim]], check=True)
    else:  # the job ends its run itself, and requeues itself
        for number in ("SIGTERM", "SIGUSR2"):
            subprocess.run(["scancel", "--signal", number, jobs[victim]], check=True)
    wait_until(lambda: f"{jobs[victim]} PENDING" in queue() or list_jobs(out)[0][victim].starts == 2, 120)
    # Slurm delays a requeued job by two minutes.
    at_once = ["scontrol", "update", f"jobid={jobs[victim]}", "StartTime=now"]
    subprocess.run(at_once, check=False, capture_output=True)
    wait_until(lambda: all(row.state in ENDED for row in list_jobs(out)[0]), 900)
    rows, _ = list_jobs(out)
    assert [row.state for row in rows] == ["done", "done"], [row.log.read_text() for row in rows]
    assert [row.starts for row in rows] == ([2, 1] if victim == 0 else [1, 2])
    records, problems = read_records(out)
    assert not problems
    found = Counter(
        (one.model.name, one.point.batch_size, one.point.context_len, one.round) for one in records
    )
    assert len(found) == 2 * 2 * 3 * 2
    assert set(found.values()) == {1}
    assert {one.status for one in records} == {"ok"}
    assert len({one.environment["node_id"] for one in records}) == 1
