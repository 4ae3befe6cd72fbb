"""Fixtures of all tests: settings of property tests, own locks and CPUs, a small experiment file, a browser."""

import gc
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from retbench.measure import allocator, machine, products
from retbench.ops import precision
from retbench.records.record import Ceilings, ReadRate, utc_now
from retbench.running.process import Worker, start_worker
from tests.browsing import open_browser

EVERY_CPU = machine.allowed_cpus()

# Machines are noisy, so no deadlines. A change is judged by the same examples each time; `make test-long` draws others.
settings.register_profile("retbench", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("search", settings.get_profile("retbench"), derandomize=False)
settings.load_profile("retbench")

LONG_FILES = (
    "tests/running/test_own_model.py",
    "tests/running/test_runner.py",
    "tests/training/test_processes.py",
    "tests/workloads/test_largest_batch.py",
    "tests/workloads/test_training.py",
)
"""Files near the end of the order that take many seconds: one core would wait for the other."""

KNOWN_PRODUCTS = dict.fromkeys(
    (
        *("slice_width", "batches", "onednn_rows", "onednn_prompts"),
        *(
            f"attention_from, {shared}{dtype}"
            for shared in ("", "shared, ")
            for dtype in ("float64", "float32", "bfloat16", "float16")
        ),
    ),
    0,
)
"""Outcomes of the trials of `measure.products` that leave all products to torch."""

KNOWN_CEILINGS = Ceilings(
    read_bandwidth_bytes_per_s=1e12,
    matmul_flops_per_s=1e15,
    read_curve=(ReadRate(footprint_bytes=2**28, bytes_per_s=1e12, kernel="dot", measured_at=utc_now()),),
)
"""Ceilings above those of any CPU: no cell of a test exceeds them."""

TINY_EXPERIMENT = """\
title = "Tiny"
source = "none; made for tests"
expect = "It runs."

[models.retnet]
architecture = "retnet"

[models.transformer]
architecture = "transformer"

[profiles.smoke]
size = "100k"
rounds = 1
warmup_s = 0.0
min_steps = 2
[profiles.smoke.workloads.decode]
context_len = [64, 128]
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the long files first and all others in their own order; skip tests for a GPU where torch finds none."""
    items.sort(key=lambda item: item.nodeid.partition("::")[0] not in LONG_FILES)
    if not torch.cuda.is_available():
        # By the marker alone: a test that lacks it fails here, and gpu-check, which goes by it too, leaves none out.
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_sessionstart() -> None:
    """Keep freed memory, as every process does that measures."""
    allocator.keep_freed_memory()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the tests without the garbage collector, which would scan them again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Spare the garbage collector the thousands of tests, which it would scan for every measurement of memory."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _frozen_imports() -> Iterator[None]:
    """Spare the garbage collector what a module's tests import, too: a later test took 18 s in place of 3."""
    yield
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the interpreter collect everything as it ends."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def _own_lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs of the tests take turns with each other, but do not wait for a run outside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETBENCH_LOCK_DIR", str(tmp_path_factory.mktemp("lock")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _unflushed() -> Iterator[None]:
    """Leave files in the kernel's memory, where every process finds them: no test takes the power away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _known_products() -> None:
    """Multiply few rows in this process by torch, which counts the operations of its own products only.

    To time all methods takes seconds, and which one is faster is chance.
    """
    products.agree(KNOWN_PRODUCTS)


@pytest.fixture(scope="module")
def given_products() -> Iterator[None]:
    """Give the workers of runs that are not about it the same outcomes, as if an earlier run had found them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retbench.running.runner.products_on_disk", lambda *_: dict(KNOWN_PRODUCTS))
        yield


def give_ceilings(patch: pytest.MonkeyPatch) -> None:
    """Give the first worker of a run that is not about ceilings what later workers get: seconds of reading memory."""

    def start(*job: Any, ceilings: Ceilings | None, **more: Any) -> Worker:
        return start_worker(*job, ceilings=ceilings or KNOWN_CEILINGS, **more)

    patch.setattr("retbench.running.runner.start_worker", start)


@pytest.fixture(scope="module")
def given_ceilings() -> Iterator[None]:
    """Give ceilings to all runs of a module from here on."""
    with pytest.MonkeyPatch.context() as patch:
        give_ceilings(patch)
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_cores() -> None:
    """Two halves of the suite side by side share no core: each runs, and so times, as if it were alone."""
    worker, num_workers = os.environ.get("PYTEST_XDIST_WORKER"), os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if worker and num_workers and hasattr(os, "sched_setaffinity"):
        mine = machine.allowed_cores()[int(worker.removeprefix("gw")) :: int(num_workers)]
        if mine:  # what the tests start inherits it
            machine.bind_process(cpu for core in mine for cpu in core)
            torch.set_num_threads(len(mine))


@pytest.fixture
def every_core() -> Iterator[None]:
    """For a test that is about several cores: all that there are, whatever share of them the tests have."""
    before = machine.allowed_cpus()
    machine.bind_process(EVERY_CPU)
    yield
    machine.bind_process(before)


@pytest.fixture(autouse=True, scope="session")
def _heed_interrupts() -> None:
    """A shell starts its background jobs with SIGINT ignored, and what they start ignores it too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _unpinned() -> Iterator[None]:
    """A command that is run in this process pins it: afterwards it has its threads, variables and denormals back."""
    threads, variables = torch.get_num_threads(), dict(os.environ)
    yield
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_experiment(tmp_path: Path) -> Path:
    """An experiment of four cells that takes seconds."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_EXPERIMENT, encoding="utf-8")
    return path


@pytest.fixture
def one_model(tiny_experiment: Path) -> Path:
    """The same with its RetNet alone, for what is not about a pair: a model takes two more processes."""
    text = tiny_experiment.read_text(encoding="utf-8")
    transformer = '[models.transformer]\narchitecture = "transformer"\n'
    assert transformer in text
    tiny_experiment.write_text(text.replace(transformer, ""), encoding="utf-8")
    return tiny_experiment


@pytest.fixture(scope="module")
def _without_pictures() -> Iterator[None]:
    """For tests of pages and data: every figure is drawn for the page, and its files, SVG and PNG, are not written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retbench.report.figures.drawing.save_figure", lambda figure, stem: [])
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium for one module: its event loop bars every other one in this process."""
    yield from open_browser()


@pytest.fixture
def narrow_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of 16 bits by torch, as on a GPU, also where this CPU would widen them."""
    monkeypatch.setattr(precision, "NARROW_PRODUCTS", frozenset((torch.bfloat16, torch.float16)))
