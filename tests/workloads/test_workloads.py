import subprocess
import sys

import pytest

from retbench.config.experiment import Workloads
from retbench.workloads import FINDS_BATCH, STREAMED, WORKLOADS, load_workload


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_can_measure(name: str) -> None:
    assert callable(load_workload(name))


def test_the_registry_is_what_a_profile_may_have() -> None:
    assert WORKLOADS.keys() <= Workloads.model_fields.keys()


def test_streamed_workloads_and_those_that_find_a_batch_exist() -> None:
    assert WORKLOADS.keys() >= STREAMED | FINDS_BATCH


def test_the_registry_imports_no_torch() -> None:
    code = "import sys, retbench.workloads; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
