"""The handling of freed memory by glibc, in new processes, because its settings cannot be read back."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from retbench.measure import machine
from retbench.measure.allocator import with_huge_pages
from retbench.measure.environment import worker_environment
from tests.measure.forked import as_worker, run_forked

GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

HUGE_PAGES = machine.read_text(Path("/sys/kernel/mm/transparent_hugepage/enabled")) or ""
ON_REQUEST = pytest.mark.skipif(
    "[madvise]" not in HUGE_PAGES,
    reason=f"the kernel does not give huge pages on request: {HUGE_PAGES.strip()}",
)

PRELUDE = """
import resource
import torch
from retbench.measure.allocator import (
    keep_freed_memory, keep_small_freed_memory, keeps_freed_memory, return_free_pages, return_freed_memory,
    uses_huge_pages
)
from retbench.measure.machine import status_bytes

def faults_of(call):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def step():  # 200 MB in blocks of 40 MB, which glibc takes from the kernel one by one, by its own rules
    blocks = [torch.ones(10**7) for _ in range(5)]
"""


def run(code: str, **variables: str) -> str:
    """Return what code prints in a process that the settings of glibc in some variables hold for, and no others."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    if not variables and environment == os.environ:
        return run_forked(PRELUDE + code)
    done = subprocess.run(
        [sys.executable, "-c", as_worker(PRELUDE + code)],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@GLIBC
def test_a_step_after_the_first_two_needs_no_page_of_the_kernel_where_freed_memory_is_kept() -> None:
    # What was free before the first step, and is split by it, can cost the second one a block.
    code = "keep_freed_memory()\nstep()\nstep()\nprint(faults_of(step) <= 8, keeps_freed_memory())"
    assert run(code) == "True True"


@GLIBC
@ON_REQUEST
def test_a_worker_on_a_cpu_computes_in_huge_pages() -> None:
    asked, unasked = worker_environment(1, "cpu"), worker_environment(1, "cuda:0")
    code = """
print(uses_huge_pages())
for keep in (keep_freed_memory, return_freed_memory, keep_small_freed_memory):
    keep()
    print(uses_huge_pages())
"""
    assert run(code, **asked).split() == ["True"] * 4
    assert run(code, **unasked | {"GLIBC_TUNABLES": ""}).split() == ["False"] * 4


@ON_REQUEST
@pytest.mark.parametrize(
    ("owned", "tunable", "found"),
    [
        (True, "", "True"),
        pytest.param(True, "glibc.malloc.hugetlb=0", "False", marks=pytest.mark.slow),
        pytest.param(False, "", "False", marks=pytest.mark.slow),
    ],
)
def test_a_program_of_its_own_that_becomes_a_worker_computes_in_huge_pages_unless_asked_otherwise(
    owned: bool, tunable: str, found: str
) -> None:
    code = (
        "import sys, torch\nfrom retbench.measure import allocator, machine\n"
        + ("allocator.own_process()\n" if owned else "")
        + "from retbench.measure.environment import become_worker\nbecome_worker(1, 'cpu')\n"
        "print(sys.argv[1:], len(machine.allowed_cpus()), allocator.uses_huge_pages())"
    )
    words = ["--only", "two words"]
    done = subprocess.run(
        [sys.executable, "-c", as_worker(code), *words],
        env=os.environ | {"GLIBC_TUNABLES": tunable},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"{words} {len(machine.allowed_cpus())} {found}"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.top_pad=1", "glibc.malloc.top_pad=1:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", None),
        ("glibc.malloc.check=1:glibc.malloc.hugetlb=2", None),
    ],
)
def test_huge_pages_are_asked_for_beside_the_users_settings(given: str | None, found: str | None) -> None:
    variables = {} if given is None else {"GLIBC_TUNABLES": given}
    assert with_huge_pages(variables).get("GLIBC_TUNABLES") == found


@GLIBC
def test_by_its_own_rules_glibc_takes_large_blocks_from_the_kernel_every_time() -> None:
    assert run("step()\nprint(faults_of(step) > 50, keeps_freed_memory())") == "True False"


@GLIBC
@pytest.mark.parametrize(
    "variables",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"},
    ],
    ids=["trim", "mmap", "tunables"],
)
def test_settings_of_the_user_are_left_as_they_are(variables: dict[str, str]) -> None:
    assert run("keep_freed_memory()\nprint(keeps_freed_memory())", **variables) == "False"


@GLIBC
def test_memory_that_the_user_keeps_is_not_returned_where_it_is_limited() -> None:
    variables = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
    code = """
for call in (return_freed_memory, keep_small_freed_memory):
    call()
    print(keeps_freed_memory())
"""
    assert run(code, **variables).split() == ["True", "True"]


@GLIBC
def test_what_is_kept_goes_back_between_measurements_and_later_memory_is_kept_again() -> None:
    code = """
keep_freed_memory()
step()
kept = status_bytes("VmRSS")
return_free_pages()
print(kept - status_bytes("VmRSS") > 150e6, faults_of(step) > 50, faults_of(step) <= 8)
"""
    assert run(code) == "True True True"


@GLIBC
def test_what_is_kept_goes_back_at_once_and_from_then_on_where_that_is_asked_for() -> None:
    code = """
keep_freed_memory()
step()
kept = status_bytes("VmRSS")
return_freed_memory()
print(kept - status_bytes("VmRSS") > 150e6)
step()
print(faults_of(step) > 50, keeps_freed_memory())
"""
    assert run(code).split() == ["True", "True", "False"]


@GLIBC
def test_where_memory_is_limited_small_blocks_stay_and_large_ones_go_back() -> None:
    code = """
def small_step():
    blocks = [torch.ones(5 * 10**5) for _ in range(5)]

keep_freed_memory()
return_freed_memory()
keep_small_freed_memory()
for _ in range(3):  # its blocks may take other places of the heap the second time
    small_step()
print(faults_of(small_step) <= 8)
step()
print(faults_of(step) > 50)
"""
    assert run(code).split() == ["True", "True"]


@GLIBC
def test_where_memory_is_limited_caches_leave_no_gaps_between_what_stays() -> None:
    code = """
keep_freed_memory()
return_freed_memory()
keep_small_freed_memory()
caches, kept = [], []
for _ in range(12):
    caches.append(torch.ones(4 * 10**6))
    kept.append(torch.ones(1000))
before = status_bytes("VmData")
caches.clear()
print(before - status_bytes("VmData") > 150e6)
"""
    assert run(code) == "True"
