"""Made-up records of two machines, made once."""

from pathlib import Path

import pytest

from report.synthetic_records import CPU, GPU, SMALL, TRAINER, Maker, write_results
from report.synthetic_scores import ScoreMaker
from retbench.records.record import Record
from retbench.report.evaluations import Evaluations, make_evaluations
from retbench.report.results import Results, load_results
from retbench.report.selection import select


@pytest.fixture(scope="session")
def cpu_records() -> list[Record]:
    """Latency and memory of the pair on two cores: five rounds of 16 cells, and 12 cells of memory."""
    maker = Maker(CPU)
    return maker.latency() + maker.memory()


@pytest.fixture(scope="session")
def gpu_records() -> list[Record]:
    """The same at the paper's size and a batch of 8, where the Transformer runs out of memory from 16K on."""
    maker = Maker(GPU)
    return maker.latency(batch_sizes=(8,)) + maker.memory(batch_sizes=(8,))


@pytest.fixture(scope="session")
def swept_records() -> list[Record]:
    """Throughput of the pair on two cores that may take a gigabyte: 7 batch sizes at 1K and 4K, and the largest."""
    return Maker(SMALL).throughput()


@pytest.fixture(scope="session")
def training_records() -> list[Record]:
    """Training of four models on two cores: five rounds of five lengths."""
    return Maker(TRAINER).training()


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Quality of pairs of three sizes, one of them with three seeds, read from a results folder."""
    maker = ScoreMaker(tmp_path_factory.mktemp("scored"))
    maker.everything()
    return load_results(maker.write())


@pytest.fixture(scope="session")
def scores(scored: Results) -> Evaluations:
    """Return the evaluations of those records."""
    found = make_evaluations(select(scored.records, folders=scored.folders))
    assert found is not None
    return found


@pytest.fixture
def results(tmp_path: Path, cpu_records: list[Record]) -> Path:
    """A results folder as the runner leaves it."""
    return write_results(tmp_path / "results", cpu_records)
