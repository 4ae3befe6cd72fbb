import subprocess
import sys

import pytest

from retbench.errors import ConfigError
from retbench.workloads import FINDS_BATCH, STREAMED, WORKLOADS, check_workload, load_workload


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_can_measure(name: str) -> None:
    check_workload(name, [1], where="test")
    assert callable(load_workload(name))


def test_an_unknown_workload_is_named_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"x\.toml: unknown workload 'decod'. Did you mean 'decode'\?"):
        check_workload("decod", [1], where="x.toml")


def test_a_batch_size_that_is_to_be_found_cannot_be_given() -> None:
    check_workload("largest_batch", [1], where="x.toml")
    with pytest.raises(
        ConfigError, match=r"x\.toml: batch_size is \[1, 8\] in workload 'largest_batch', which"
    ):
        check_workload("largest_batch", [1, 8], where="x.toml")


def test_streamed_workloads_and_those_that_find_a_batch_exist() -> None:
    assert WORKLOADS.keys() >= STREAMED | FINDS_BATCH


def test_the_registry_imports_no_torch() -> None:
    code = "import sys, retbench.workloads; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
