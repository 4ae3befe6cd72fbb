import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from retbench.measure import machine


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /proc, /sys/devices/system/cpu and /sys/fs/cgroup in a folder, to be filled."""
    for name, folder in (("_PROC", "proc"), ("_CPUS", "cpu"), ("_CGROUPS", "cgroup")):
        monkeypatch.setattr(machine, name, tmp_path / folder)
    return tmp_path


def test_this_machine_has_a_processor_with_cores() -> None:
    assert machine.cpu_model()
    assert 1 <= machine.usable_cores() <= len(machine.allowed_cpus()) <= (os.cpu_count() or 1)
    assert machine.physical_cores() >= 1


def test_model_is_what_the_kernel_calls_it(kernel: Path) -> None:
    write(kernel / "proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD EPYC 7763 64-Core Processor\n")
    assert machine.cpu_model() == "AMD EPYC 7763 64-Core Processor"


@pytest.mark.parametrize(
    ("cpuinfo", "generation"),
    [
        (
            "cpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nstepping\t: 1\nmicrocode\t: 0x1\n\n"
            "cpu family\t: 25\nmodel\t\t: 1\n",
            "family 25, model 1, stepping 1",
        ),
        (
            "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: 0xd40\nCPU revision\t: 1\n",
            "implementer 0x41, variant 0x1, part 0xd40, revision 1",
        ),
        ("model name\t: unknown\n", None),
    ],
)
def test_generation_is_told_by_the_numbers_of_the_design(
    cpuinfo: str, generation: str | None, kernel: Path
) -> None:
    write(kernel / "proc/cpuinfo", cpuinfo)
    assert machine.cpu_generation() == generation


def test_model_falls_back_to_the_architecture(kernel: Path) -> None:
    assert machine.cpu_model()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity_limits_the_cores() -> None:
    code = (
        "import os; from retbench.measure import machine; first = machine.allowed_cpus()[0]; "
        "os.sched_setaffinity(0, {first}); print(machine.allowed_cpus() == [first], machine.usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "1"]


def test_hardware_threads_of_a_core_are_one_core(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "allowed_cpus", lambda: [0, 1, 2, 3])
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        write(kernel / f"cpu/cpu{cpu}/topology/thread_siblings_list", siblings + "\n")
    assert machine.allowed_cores() == [[0, 2], [1, 3]]
    assert machine.usable_cores() == 2


def test_last_level_caches_add_up_over_their_instances(kernel: Path) -> None:
    for cpu in range(4):
        for index, (level, size, shared) in enumerate(
            [("1", "32K", str(cpu)), ("3", "16384K", "0-1" if cpu < 2 else "2-3")]
        ):
            folder = kernel / f"cpu/cpu{cpu}/cache/index{index}"
            write(folder / "level", level)
            write(folder / "size", size)
            write(folder / "shared_cpu_list", shared)
    assert machine.last_level_cache_bytes() == 2 * 16384 * 1024


def test_no_reported_cache_is_zero(kernel: Path) -> None:
    assert machine.last_level_cache_bytes() == 0


def test_without_a_control_group_the_limit_is_the_machine_s(kernel: Path) -> None:
    assert machine.cpu_quota() is None
    assert machine.memory_limit_bytes() == psutil.virtual_memory().total


def test_the_limits_of_the_process_count() -> None:
    code = "from retbench.measure.machine import memory_limit_bytes; print(memory_limit_bytes())"
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({2**30}, {2**30})); {code}"
    assert int(subprocess.check_output([sys.executable, "-c", limited])) == 2**30


def test_limits_of_version_2_are_the_tightest_on_the_way_up(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(kernel / "proc/self/cgroup", "0::/jobs/ours\n")
    write(kernel / "cgroup/jobs/ours/cpu.max", "max 100000\n")
    write(kernel / "cgroup/jobs/cpu.max", "250000 100000\n")
    write(kernel / "cgroup/cpu.max", "1600000 100000\n")
    write(kernel / "cgroup/jobs/ours/memory.max", "8589934592\n")
    write(kernel / "cgroup/jobs/memory.max", "max\n")
    assert machine.cpu_quota() == 2.5
    assert machine.memory_limit_bytes() == 8 * 2**30
    monkeypatch.setattr(machine, "allowed_cpus", lambda: [0, 1, 2, 3])
    assert machine.usable_cores() == 2


def test_limits_of_version_1_inside_a_container(kernel: Path) -> None:
    write(kernel / "proc/self/cgroup", "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/docker/abc\n")
    write(kernel / "cgroup/cpu,cpuacct/cpu.cfs_quota_us", "150000\n")
    write(kernel / "cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    write(kernel / "cgroup/memory/memory.limit_in_bytes", "1073741824\n")
    assert machine.cpu_quota() == 1.5
    assert machine.memory_limit_bytes() == 2**30


def test_version_1_without_limits(kernel: Path) -> None:
    write(kernel / "proc/self/cgroup", "4:memory:/\n2:cpu:/\n")
    write(kernel / "cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(kernel / "cgroup/cpu/cpu.cfs_period_us", "100000\n")
    write(kernel / "cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert machine.cpu_quota() is None
    assert machine.memory_limit_bytes() == psutil.virtual_memory().total


def test_a_quota_below_one_core_still_leaves_one(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.5)
    assert machine.usable_cores() == 1


def test_a_host_is_identified_without_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "machine-id"
    monkeypatch.setattr(machine, "_MACHINE_IDS", (path,))
    without_id = machine.node_id()  # by its name, since the last boot
    assert without_id == machine.node_id()
    found = {without_id}
    for text in ("0123456789abcdef" * 2, "fedcba9876543210" * 2):
        path.write_text(f"{text}\n", encoding="utf-8")
        found.add(machine.node_id())
        assert machine.node_id() not in text
    assert len(found) == 3
    path.write_text("uninitialized\n", encoding="utf-8")
    assert machine.node_id() == without_id
    for name in ("gpu-07", "gpu-08"):
        monkeypatch.setenv(machine.NODE_VARIABLE, name)
        found.add(machine.node_id())
        assert name not in machine.node_id()
    assert len(found) == 5
