import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from retbench.errors import StorageError
from retbench.run import locks
from retbench.run.locks import LOCK_DIR_VARIABLE, catch_signals, lock_dir, timing_lock

HOLD = """
import sys, time
from retbench.run.locks import timing_lock
with timing_lock("retbench run other", wait=lambda holder: None):
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
        with timing_lock("retbench run a", wait=give_up):
            assert (own_lock / "holder.json").exists()
        assert not (own_lock / "holder.json").exists()


def test_another_process_waits_and_learns_who_holds_it(own_lock: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(GaveUp) as caught, timing_lock("retbench run a", wait=give_up):
                pass
            assert f"process {process.pid}, `retbench run other`, since 2" in str(caught.value)
            asked: list[str] = []

            def kill_at_third(holder: str) -> None:
                asked.append(holder)
                if len(asked) == 3:
                    os.kill(process.pid, signal.SIGKILL)
                    process.wait()

            with timing_lock("retbench run a", wait=kill_at_third):  # the kernel released it
                assert len(asked) == 3
        finally:
            process.kill()


def test_a_holder_that_cannot_be_read_is_still_a_holder(own_lock: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            (own_lock / "holder.json").write_text("[tor", encoding="utf-8")
            with pytest.raises(GaveUp, match="another run"), timing_lock("retbench run a", wait=give_up):
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
        timing_lock("a", wait=give_up),
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
        timing_lock("a", wait=give_up),
    ):
        pass
    assert not list(own_lock.iterdir())


def test_a_usual_folder_that_others_can_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LOCK_DIR_VARIABLE)
    monkeypatch.setattr(locks, "lock_dir", lambda: tmp_path / "usual")
    with timing_lock("a", wait=give_up):
        pass
    (tmp_path / "usual").chmod(0o755)
    with pytest.raises(StorageError, match="its mode 755"), timing_lock("a", wait=give_up):
        pass


def test_the_holder_is_not_written_through_a_link(own_lock: Path, tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.write_text("mine", encoding="utf-8")
    own_lock.mkdir(mode=0o700)
    for name in ("holder.json", f"holder.{os.getpid()}"):
        (own_lock / name).symlink_to(treasure)
    with timing_lock("retbench run a", wait=give_up):
        assert "retbench run a" in (own_lock / "holder.json").read_text(encoding="utf-8")
    assert treasure.read_text(encoding="utf-8") == "mine"
