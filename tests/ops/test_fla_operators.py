"""The operators of flash-linear-attention itself: its naive ones, and two of its kernels under Triton's interpreter."""

import importlib.util
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from retbench.models.equivalence import relative_error
from retbench.ops.linear_operator import Readout, linear_chunkwise, linear_parallel, linear_recurrent

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("fla") is None,
    reason="flash-linear-attention is not installed: the extra `peers`",
)

FORMS = {
    "recurrent": linear_recurrent,
    "parallel": linear_parallel,
    "chunkwise": partial(linear_chunkwise, chunk_size=16),
}
IN_INTERPRETER = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver


class Pretended:
    '''What flash-linear-attention asks a driver for as it is imported; the interpreter needs none.'''

    class utils:
        get_device_properties = staticmethod(lambda index: SIZES)

    get_current_target = lambda self: GPUTarget("cpu", 0, 32)
    get_current_device = lambda self: 0
    get_active_torch_device = lambda self: torch.device("cpu")
    get_device_interface = lambda self: torch.cpu
    get_device_properties = lambda self, index=0: SIZES
    get_current_stream = lambda self, device: 0
    get_benchmarker = lambda self: lambda call, quantiles=None, **options: (call(), [1.0] * 3)[1]
    get_empty_cache_for_benchmark = lambda self: torch.empty(1)
    clear_cache = lambda self, cache: None
    launcher_cls = lambda self, *given: None


SIZES = {"multiprocessor_count": 8, "max_shared_mem": 232448}
driver.set_active(Pretended())

from retbench.mixers.rwkv.kernels import KERNELS
from retbench.models.equivalence import relative_error
from retbench.ops.kernels import gla_fla_recurrent
from retbench.ops.linear_operator import Readout, linear_recurrent

random = torch.Generator().manual_seed(0)
q, k, v = torch.randn(3, 1, 37, 2, 16, generator=random)
decay, bonus = -torch.rand(1, 37, 2, 16, generator=random), torch.randn(2, 16, generator=random)
state = torch.randn(1, 2, 16, 16, generator=random)
readout = Readout(bonus)
for kernel, options in ((gla_fla_recurrent, {}), (KERNELS["fla_recurrent"], {"readout": readout})):
    found = kernel(q, k, v, decay, state.clone(), **options)
    expected = linear_recurrent(q, k, v, decay, state, **options)
    print(*(relative_error(one, other) < 1e-5 for one, other in zip(found, expected, strict=True)))
"""


@pytest.mark.filterwarnings("ignore:.*Triton is not supported", "ignore:Flash Attention is not installed")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("decay", ["scalar", "channel", "bonus"])
def test_forms_compute_what_the_naive_operators_compute(decay: str, form: str) -> None:
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

    random = torch.Generator().manual_seed(0)
    q, k, rates = torch.randn(3, 2, 67, 3, 16, generator=random)
    v, bonus = torch.randn(2, 67, 3, 8, generator=random), torch.randn(3, 16, generator=random)
    log_decay, readout = -3 * rates.sigmoid(), Readout()
    if decay == "bonus":  # its tensors have the heads first
        heads_first = [x.transpose(1, 2) for x in (q, k, v, log_decay)]
        expected = naive_recurrent_rwkv6(*heads_first, bonus, scale=16**-0.5)[0].transpose(1, 2)
        readout = Readout(bonus)
    elif decay == "channel":
        expected = naive_recurrent_gla(q, k, v, log_decay)[0]
    else:
        log_decay = log_decay[..., 0]
        expected = naive_recurrent_simple_gla(q, k, v, log_decay)[0]
    found, _ = FORMS[form](16**-0.5 * q, k, v, log_decay, readout=readout)
    assert relative_error(found, expected) < 1e-5


@pytest.mark.slow
def test_two_kernels_compute_it_under_the_interpreter() -> None:
    """The chunkwise kernels do not run there: Triton's interpreter lacks what they call."""
    done = subprocess.run(
        [sys.executable, "-c", IN_INTERPRETER],
        env={**os.environ, "TRITON_INTERPRET": "1", "FLA_CACHE_RESULTS": "0"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["True"] * 4, done.stderr
