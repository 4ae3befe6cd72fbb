import pytest

from retbench.config.training import TrainingSpec
from retbench.errors import ConfigError, UnsupportedError
from retbench.training.plan import check_processes
from retbench.training.ranks import Launch, joined
from tests.training.conftest import PlanOf

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment that torchrun gives to a process."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_without_torchrun_there_is_one_process(launched: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        launched.delenv(name)
    assert Launch.from_environment() == Launch(0, 1, 0, 1)
    assert Launch.from_environment().command("retbench train x") == "retbench train x"


@pytest.mark.usefixtures("launched")
def test_torchrun_says_the_place_of_each_process() -> None:
    launch = Launch.from_environment()
    assert launch == Launch(rank=5, world_size=8, local_rank=1, local_world_size=4)
    assert launch.command("retbench train x") == "torchrun --nnodes 2 --nproc-per-node 4 -m retbench train x"


@pytest.mark.parametrize("name", sorted(TORCHRUN.keys() - {"WORLD_SIZE"}))
def test_several_processes_that_torchrun_did_not_start_are_refused(
    launched: pytest.MonkeyPatch, name: str
) -> None:
    launched.delenv(name)
    with pytest.raises(ConfigError, match=f"WORLD_SIZE is 8 and {name} is not set. Start .* with torchrun"):
        Launch.from_environment()


@pytest.mark.parametrize(("name", "value"), [("RANK", "first"), ("WORLD_SIZE", "two"), ("LOCAL_RANK", "")])
def test_numbers_that_are_none_are_refused(launched: pytest.MonkeyPatch, name: str, value: str) -> None:
    launched.setenv(name, value)
    with pytest.raises(ConfigError, match=f"'{name}': '{value}'.*not all whole numbers"):
        Launch.from_environment()


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    launch = Launch(rank=2, world_size=4, local_rank=2, local_world_size=4)
    with (
        pytest.raises(UnsupportedError, match=r"4 processes were started, there are 2 GPUs.*per-node 2"),
        joined(launch, on_cpu=False),
    ):
        pass


def test_a_batch_that_cannot_be_shared_evenly_is_refused(plan_of: PlanOf) -> None:
    spec = plan_of("training.batch_size=6").spec
    check_processes(spec, 3)
    with pytest.raises(ConfigError, match=r"batch_size is 6, and 4 processes cannot share .* multiple of 4"):
        check_processes(spec, 4)


def test_processes_do_not_share_a_compiled_model() -> None:
    spec = TrainingSpec(
        sizes=("1m",), seq_len=2, batch_size=4, num_tokens=8, learning_rates=(0.1,), compile=True
    )
    check_processes(spec, 1)
    with pytest.raises(ConfigError, match=r"models that 2 processes share are not compiled.*compile=false"):
        check_processes(spec, 2)
