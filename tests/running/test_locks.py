import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from retbench.errors import StorageError
from retbench.running import locks
from retbench.running.locks import LOCK_DIR_VARIABLE, catch_signals, lock_dir, timing_lock

HOLD = """
import sys, time
from retbench.running.locks import timing_lock
with timing_lock("retbench run other", "cpu", wait=lambda holder: None):
    print("held", flush=True)
    time.sleep(600)
"""


class GaveUp(Exception):  # noqa: N818
    pass


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(LOCK_DIR_VARIABLE, str(tmp_path / "lock"))
    return tmp_path / "lock"


def give_up(holder: str) -> None:
    raise GaveUp(holder)


def test_the_lock_is_taken_and_given_back(own_lock: Path) -> None:
    for _ in range(2):
        with timing_lock("retbench run a", "cpu", wait=give_up):
            assert len([*own_lock.glob("holder-*.json")]) == 1
        assert not [*own_lock.glob("holder-*.json")]


def test_another_process_waits_and_learns_who_holds_it(own_lock: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(GaveUp) as caught, timing_lock("retbench run a", "cpu", wait=give_up):
                pass
            assert f"process {process.pid}, `retbench run other`, since 2" in str(caught.value)
            asked: list[str] = []

            def kill_at_third(holder: str) -> None:
                asked.append(holder)
                if len(asked) == 3:
                    os.kill(process.pid, signal.SIGKILL)
                    process.wait()

            with timing_lock("retbench run a", "cpu", wait=kill_at_third):  # the kernel released it
                assert len(asked) == 3
        finally:
            process.kill()


def test_a_holder_that_cannot_be_read_is_still_a_holder(own_lock: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            (note,) = own_lock.glob("holder-*.json")
            note.write_text("[tor", encoding="utf-8")
            with (
                pytest.raises(GaveUp, match="another run"),
                timing_lock("retbench run a", "cpu", wait=give_up),
            ):
                pass
        finally:
            process.kill()


def test_a_folder_that_cannot_be_made_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv(LOCK_DIR_VARIABLE, str(tmp_path / "file"))
    with (
        pytest.raises(StorageError, match=f"name another one in {LOCK_DIR_VARIABLE}"),
        timing_lock("a", "cpu", wait=give_up),
    ):
        pass


def test_the_lock_does_not_move_with_the_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOCK_DIR_VARIABLE)
    usual = lock_dir()
    monkeypatch.setenv("TMPDIR", "/somewhere/else")
    assert lock_dir() == usual


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_caught_and_then_handled_as_before(number: signal.Signals) -> None:
    def before(*_: object) -> None:
        pytest.fail("the earlier handler ran")

    outside = signal.signal(number, before)  # under nohup, say, a hangup is ignored
    calls: list[int] = []
    try:
        with catch_signals(lambda: calls.append(1)):
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, outside)
    assert calls == [1, 1]


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    calls: list[int] = []
    try:
        with catch_signals(lambda: calls.append(1)):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert calls == []


def test_another_thread_than_the_main_one_changes_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside: list[object] = []

    def body() -> None:
        with catch_signals(lambda: None):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert inside == [before]


def make_link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "elsewhere")


def make_open(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def make_foreign(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)


@pytest.mark.parametrize(
    "make",
    [
        make_link,
        make_open,
        pytest.param(
            make_foreign,
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away"),
        ),
    ],
)
def test_a_folder_that_others_can_write_to_is_refused(own_lock: Path, make: Callable[[Path], None]) -> None:
    make(own_lock)
    with (
        pytest.raises(StorageError, match=f"name another one in {LOCK_DIR_VARIABLE}"),
        timing_lock("a", "cpu", wait=give_up),
    ):
        pass
    assert not list(own_lock.iterdir())


def test_a_usual_folder_that_others_can_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LOCK_DIR_VARIABLE)
    monkeypatch.setattr(locks, "lock_dir", lambda: tmp_path / "usual")
    with timing_lock("a", "cpu", wait=give_up):
        pass
    (tmp_path / "usual").chmod(0o755)
    with pytest.raises(StorageError, match="its mode 755"), timing_lock("a", "cpu", wait=give_up):
        pass


def test_the_note_of_a_killed_holder_is_removed_and_no_link_is_followed(
    own_lock: Path, tmp_path: Path
) -> None:
    treasure = tmp_path / "treasure"
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    (note,) = own_lock.glob("holder-*.json")
    note.rename(treasure)
    note.symlink_to(treasure)
    with timing_lock("retbench run a", "cpu", wait=give_up):
        (own,) = own_lock.glob("holder-*.json")
        assert "retbench run a" in own.read_text(encoding="utf-8")
    assert "retbench run other" in treasure.read_text(encoding="utf-8")


@pytest.fixture
def machine_of_four(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """Four cores with two GPUs, the second near the last two; returns the CPUs that the process was bound to."""
    bound: list[set[int]] = []
    cores = {str(cpu): [cpu] for cpu in range(4)}
    monkeypatch.setattr(locks, "cores_by_name", lambda: cores)
    monkeypatch.setattr(locks, "bind_process", lambda cpus: bound.append(set(cpus)))
    monkeypatch.setattr(locks, "allowed_cpus", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(locks, "device_uuid", lambda device: f"uuid-{device[-1]}")
    monkeypatch.setattr(locks.nvml, "count_gpus", lambda: 2)
    monkeypatch.setattr(locks.nvml, "near_cpus", lambda uuid: {2, 3} if uuid == "uuid-1" else {0, 1})
    return bound


def test_runs_on_two_gpus_do_not_wait_and_share_no_core(machine_of_four: list[set[int]]) -> None:
    with timing_lock("a", "cuda:1", wait=give_up), timing_lock("b", "cuda:0", wait=give_up):
        assert machine_of_four == [{2, 3}, {0, 1}]
        for device in ("cuda:0", "cuda:1", "cpu"):
            with pytest.raises(GaveUp, match=r"`[ab]`"), timing_lock("c", device, wait=give_up):
                pass
    assert machine_of_four[2:] == [{0, 1, 2, 3}] * 2
    with timing_lock("d", "cpu", wait=give_up):
        assert len(machine_of_four) == 4  # a run on all cores is not bound


def test_a_gpu_waits_for_cores_and_takes_far_ones(machine_of_four: list[set[int]]) -> None:
    with timing_lock("a", "cuda:0", wait=give_up, threads=3):
        assert machine_of_four == [{0, 1, 2}]
        with pytest.raises(GaveUp, match="`a`"), timing_lock("b", "cuda:1", wait=give_up):
            pass
    with timing_lock("a", "cuda:0", wait=give_up, num_gpus=2):  # all cores: it need not be bound
        assert machine_of_four[1:] == [{0, 1, 2, 3}]
        with pytest.raises(GaveUp), timing_lock("b", "cuda:1", wait=give_up):
            pass


def test_hardware_threads_of_one_core_are_not_two_core_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "cores_by_name", lambda: {"0,64": [0]})
    with timing_lock("a", "cpu", wait=give_up):
        monkeypatch.setattr(locks, "cores_by_name", lambda: {"0,64": [64], "1,65": [65]})
        with pytest.raises(GaveUp, match="`a`"), timing_lock("b", "cpu", wait=give_up):
            pass
        monkeypatch.setattr(locks, "cores_by_name", lambda: {"1,65": [65]})
        with timing_lock("b", "cpu", wait=give_up):
            pass
