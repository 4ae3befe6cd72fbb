"""Memory under glibc's allocator: in huge pages, and kept when it is freed or returned to the kernel.

Memory that comes back from the kernel is zeroed page by page. By glibc's own rules some programs spend time on that and
others do not: what is free at the end of the heap is returned, and the sizes and the order of allocations decide what
lies there. A fresh process that reads prompts may spend a fifth of its time so, and another model's process none. Every
process that times or trains keeps freed memory, whatever the model.

Many kernels give pages of 2 MiB on request only. A CPU streams weights more slowly from pages of 4 KiB: on two cores
of an AMD EPYC compiled steps of 25M took 0.72 to 0.82 of the time in huge pages, and eager ones of 125M 0.83 to 0.87.

Settings of the user's own (MALLOC_TRIM_THRESHOLD_ and the like, GLIBC_TUNABLES) are left as they are, and so is a C
library other than glibc.
"""

import ctypes
import os
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
"""Parameters of mallopt(3)."""
_TUNABLES, _HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb="
_SETTINGS = ("trim_threshold", "mmap_threshold", "mmap_max", "top_pad")
"""The same as names of environment variables and tunables of glibc."""
_NEVER_TRIM, _NO_BLOCKS = -1, 0
_SMALLEST_RETURNED_BYTES = 2**17
"""Size from which glibc returns a freed block to the kernel, by default and at first."""
_MOST_KEPT_BYTES = 2**22
"""More than 64 sequences' logits over 8,192 tokens take, and less than a cache of a few sequences of 25M."""
_KEPT_AT_END_BYTES = 2**26
"""Free bytes at the end of the heap that glibc comes to keep by its own rules, in time."""
_MOST_BLOCKS = 2**16
"""Blocks that glibc takes from the kernel one by one, by default."""
_PROBE_VALUES = 2**24
"""64 MiB of float32: more than glibc keeps by its own rules."""
_FEW_FAULTS = 8
"""A block that comes from the kernel takes one for each of 16,384 pages of 4 KiB, or 32 of 2 MiB."""


def with_huge_pages(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variable by which glibc asks for huge pages in a process that is started with it.

    A choice of the user's own stays. Versions before 2.35 and other C libraries ignore it.
    """
    tunables = variables.get(_TUNABLES, "")
    if _HUGE_PAGES in tunables:
        return {}
    return {_TUNABLES: ":".join(filter(None, (tunables, f"{_HUGE_PAGES}1")))}


_owns_process = False
"""True in a process that runs one command of ours and serves nothing else."""


def own_process() -> None:
    """Let the program of this process start again. Call this where it runs one command, and nothing was done yet."""
    global _owns_process
    _owns_process = True


def start_again_with_huge_pages() -> None:
    """Start this program anew in its process where that has glibc ask for huge pages; glibc reads variables only then.

    Nothing happens in a program that never called `own_process`, such as a notebook, or where the user has decided.
    """
    new = with_huge_pages(os.environ)
    if _owns_process and new:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | new)


def uses_huge_pages() -> bool | None:
    """Return whether a large block lies in huge pages; None where the kernel does not say."""
    import torch

    block = torch.ones(_PROBE_VALUES, dtype=torch.float32, device="cpu")
    enough_bytes = block.nbytes // 2
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    finally:
        del block
        return_free_pages()
    sizes = [int(line.split()[1]) for line in lines if line.startswith("AnonHugePages:")]
    return sum(sizes) * 1024 > enough_bytes if sizes else None


def keep_freed_memory() -> None:
    """Let freed memory of any size stay with this process; `keeps_freed_memory` tests whether it does."""
    mallopt = _mallopt()
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM)
        mallopt(_M_MMAP_MAX, _NO_BLOCKS)


def keeps_freed_memory() -> bool:
    """Return whether a large block that was freed is used again without the kernel; any allocator is tested."""
    import torch

    faults = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(_PROBE_VALUES, dtype=torch.float32, device="cpu").add_(1)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return_free_pages()
    return faults[1] <= _FEW_FAULTS


def keep_small_freed_memory() -> None:
    """Let freed blocks of up to 4 MiB stay with this process, and larger ones return to the kernel.

    For processes whose memory is limited: among the places that large blocks leave, another one may find none that is
    large enough, and all of them count towards the limit. By glibc's own rules blocks of up to 32 MiB come to stay:
    caches of 900 MB then fitted into 1 GB or not, depending on which had been there before.
    """
    _return_blocks_from(_MOST_KEPT_BYTES, _KEPT_AT_END_BYTES)


def return_freed_memory() -> None:
    """Return every large block to the kernel when it is freed, from now on, and what is free at present.

    What is kept counts towards a limit, and may be too small for the next allocation. Do not call this before timing:
    a step's temporaries would be zeroed by the kernel every time.
    """
    _return_blocks_from(_SMALLEST_RETURNED_BYTES, _SMALLEST_RETURNED_BYTES)
    return_free_pages()


def _return_blocks_from(num_bytes: int, at_end_bytes: int) -> None:
    """Have freed blocks from a size returned to the kernel, and from another one what is free at the heap's end."""
    mallopt = _mallopt()
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, _MOST_BLOCKS)
        mallopt(_M_MMAP_THRESHOLD, num_bytes)
        mallopt(_M_TRIM_THRESHOLD, at_end_bytes)


def return_free_pages() -> None:
    """Return what is free at present to the kernel; what is freed later is kept or returned as before."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Callable[..., int] | None:
    """Return a function of the C library; None where it has none of that name, as outside of glibc."""
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found


def _mallopt() -> Callable[..., int] | None:
    """Return glibc's function; None without glibc, or where the environment sets what becomes of freed memory."""
    tunables = os.environ.get(_TUNABLES, "")
    user_decides = any(
        f"MALLOC_{name.upper()}_" in os.environ or f"glibc.malloc.{name}=" in tunables for name in _SETTINGS
    )
    return None if user_decides else _function("mallopt")
