"""The table of perplexity in an experiment: the protocols that it may name, and what is refused."""

from pathlib import Path

import pytest

from retbench.config.evaluation import PerplexitySpec
from retbench.config.experiment_files import load_experiment
from retbench.errors import ConfigError

EXPERIMENT = """\
title = "Reading"
source = "none; made for tests"
expect = "It is read."

[models.retnet]
architecture = "retnet"

[models.transformer]
architecture = "transformer"

[profiles.smoke]
size = "300k"
[profiles.smoke.workloads.perplexity]
corpora = ["python"]
"""


def read_spec(folder: Path, lines: str) -> PerplexitySpec:
    path = folder / "reading.toml"
    path.write_text(EXPERIMENT + lines, encoding="utf-8")
    spec = load_experiment(str(path)).profile("smoke").workloads.perplexity
    assert spec is not None
    return spec


def read(folder: Path, lines: str) -> dict[str, tuple[int, ...]]:
    return dict(read_spec(folder, lines).protocols)


def test_each_protocol_has_context_lengths_of_its_own(tmp_path: Path) -> None:
    found = read(
        tmp_path, "protocols = { whole = [8192], strided = [1024, 2048], last = [512] }\nstride = 512"
    )
    assert found == {"whole": (8192,), "strided": (1024, 2048), "last": (512,)}


@pytest.mark.parametrize(
    ("lines", "strides"),
    [
        ("protocols = { strided = [64] }", [32]),
        ("protocols = { strided = [1, 65], whole = [64] }", [1, 32, None]),
        ("protocols = { strided = [64, 128] }\nstride = 48", [48, 48]),
    ],
)
def test_the_stride_is_half_the_context_unless_it_is_given(
    tmp_path: Path, lines: str, strides: list[int | None]
) -> None:
    assert [point.stride for point in read_spec(tmp_path, lines).points()] == strides


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "protocols"),
        ("protocols = {}", "protocols"),
        ("protocols = { whole = [] }", "protocols.whole"),
        ("protocols = { whole = [0] }", "protocols.whole"),
        ("protocols = { hole = [8] }", "'hole'"),
        ("protocols = { whole = [8, 8] }", "stands in it twice"),
        ("protocols = { strided = [64] }\nstride = 65", "more than the context of 64"),
        ("protocols = { whole = [64] }\nstride = 32", "without the protocol 'strided' it does nothing"),
        ("protocols = { last = [128] }", "its context lengths are more than 128 and at most 2048"),
        ("protocols = { last = [512, 4096] }", "its context lengths are more than 128 and at most 2048"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, lines)
    assert message in str(refused.value)
    assert "workloads.perplexity" in str(refused.value)
