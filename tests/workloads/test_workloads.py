import subprocess
import sys

import pytest

from retbench.errors import ConfigError
from retbench.workloads import STREAMED, WORKLOADS, check_workload, load_workload


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_can_measure(name: str) -> None:
    check_workload(name, where="test")
    assert callable(load_workload(name))


def test_an_unknown_workload_is_named_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"x\.toml: unknown workload 'decod'. Did you mean 'decode'\?"):
        check_workload("decod", where="x.toml")


def test_streamed_workloads_exist() -> None:
    assert WORKLOADS.keys() >= STREAMED


def test_the_registry_imports_no_torch() -> None:
    code = "import sys, retbench.workloads; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
