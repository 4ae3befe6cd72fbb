import shlex
from pathlib import Path
from typing import Any

import pytest

from retbench.errors import ConfigError, RetbenchError, UnsupportedError
from retbench.measure.devices import Device
from retbench.measure.machine import usable_cores
from retbench.planning import plan
from retbench.planning.plan import Plan, make_plan


def make(name: object, **changes: Any) -> Plan:
    return make_plan(str(name), **{"profile": "smoke", "device": "cpu", **changes})


def test_a_plan_holds_every_cell_with_its_settings(tiny_experiment: Path) -> None:
    found = make(tiny_experiment, overrides=["rounds=4", "threads=1", "seed=9"])
    assert [(cell.model_name, cell.point.context_len) for cell in found.cells] == [
        ("retnet", 64),
        ("retnet", 128),
        ("transformer", 64),
        ("transformer", 128),
    ]
    assert found.rounds == 4
    assert (found.settings.threads, found.settings.seed, found.settings.device) == (1, 9, "cpu")
    assert all(cell.settings == found.settings for cell in found.cells)


def test_threads_are_the_physical_cores_unless_they_are_set(tiny_experiment: Path) -> None:
    assert make(tiny_experiment).settings.threads == usable_cores()


def test_dtype_limit_and_device_of_the_command_line_win(tiny_experiment: Path) -> None:
    found = make(tiny_experiment, dtype="bfloat16", limit=1)
    assert {cell.settings.dtype for cell in found.cells} == {"bfloat16"}
    assert [cell.point.context_len for cell in found.cells] == [64, 64]
    assert found.profile.workloads.decode.context_len == (64,)


def test_models_that_no_workload_measures_are_refused(tiny_experiment: Path) -> None:
    names = [f'models.{name}.workloads=["prefill"]' for name in ("retnet", "transformer")]
    assert {cell.model_name for cell in make(tiny_experiment, overrides=names[:1]).cells} == {"transformer"}
    with pytest.raises(ConfigError, match=r"no model is measured by any of its workloads \(decode\)\. Add"):
        make(tiny_experiment, overrides=names)


@pytest.mark.parametrize(("compiled", "flag"), [(True, "--compile"), (False, "--no-compile")])
def test_compiling_is_a_setting_that_the_command_line_wins(
    tiny_experiment: Path, compiled: bool, flag: str
) -> None:
    assert not make(tiny_experiment).settings.compile
    assert "compile" not in make(tiny_experiment).command
    found = make(tiny_experiment, compiled=compiled, overrides=["compile=true"])
    assert found.settings.compile is compiled
    assert shlex.split(found.command)[-1] == flag


@pytest.mark.parametrize(
    ("missing", "compiles", "words"),
    [
        (None, True, "compiled with torch.compile"),
        ("there is no g++", False, "eagerly, because there is no g++"),
    ],
)
def test_a_profile_may_leave_compilation_to_the_machine(
    tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch, missing: str | None, compiles: bool, words: str
) -> None:
    monkeypatch.setattr(plan, "missing_for_compilation", lambda: missing)
    found = make(tiny_experiment, overrides=["compile=auto"])
    assert found.settings.compile is compiles
    assert words in (found.note or "")
    assert found.command.endswith("--compile" if compiles else "--no-compile")
    asked = make(tiny_experiment, overrides=["compile=auto"], compiled=not compiles)
    assert (asked.settings.compile, asked.note) == (not compiles, None)


def test_compiled_and_eager_cells_are_never_the_same(tiny_experiment: Path) -> None:
    eager, compiled = (make(tiny_experiment, compiled=each).cells for each in (False, True))
    assert not {cell.cell_id for cell in eager} & {cell.cell_id for cell in compiled}


def test_the_cpu_profile_of_latency_compiles_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "missing_for_compilation", lambda: None)
    assert make("latency", profile="cpu").settings.compile
    assert not make("latency", profile="smoke").settings.compile


@pytest.mark.parametrize("changes", [{"compiled": True}, {"overrides": ["compile=true"]}])
def test_compiling_where_nothing_decodes_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"none of its workloads \(memory\) is 'decode'"):
        make("memory", **changes)
    assert not make("memory", compiled=False).settings.compile


@pytest.mark.parametrize(
    ("overrides", "remedy"), [(["compile=true"], "--no-compile"), (["cuda_graph=true"], "cuda_graph=false")]
)
def test_a_concatenated_cache_is_neither_compiled_nor_captured(
    tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], remedy: str
) -> None:
    concat = ["models.transformer.cache=concat"]
    assert make(tiny_experiment, overrides=concat).models[1].model.concatenates
    monkeypatch.setattr(plan, "find_device", lambda name: Device("cuda:0", 10**9))
    with pytest.raises(ConfigError, match=f"model 'transformer' has cache = \"concat\".*Use .*{remedy}"):
        make(tiny_experiment, device=None, overrides=[*concat, *overrides])


def test_the_command_makes_the_same_plan_again(tiny_experiment: Path) -> None:
    overrides = ["rounds=2", "workloads.decode.context_len=[8, 16]", 'models.retnet.variant="torchscale"']
    found = make(tiny_experiment, dtype="float64", limit=1, overrides=overrides)
    words = shlex.split(found.command)
    assert words[:3] == ["retbench", "run", str(tiny_experiment)]
    options = list(zip(words[3::2], words[4::2], strict=True))
    named = dict(options[:4])
    again = make(
        words[2],
        profile=named["--profile"],
        device=named["--device"],
        dtype=named["--dtype"],
        limit=int(named["--limit"]),
        overrides=[value for flag, value in options if flag == "--set"],
    )
    assert again == found


@pytest.mark.parametrize(
    ("memory_bytes", "profile"), [(None, "cpu"), (24 * 10**9, "cpu"), (80 * 10**9, "paper")]
)
def test_the_profile_fits_the_device(
    monkeypatch: pytest.MonkeyPatch, memory_bytes: int | None, profile: str
) -> None:
    name = "cpu" if memory_bytes is None else "cuda:0"
    monkeypatch.setattr(plan, "find_device", lambda asked: Device(name, memory_bytes))
    found = make("latency", profile=None, device=None)
    assert found.profile_name == profile
    assert found.settings.device == name


def test_the_only_profile_of_an_experiment_need_not_be_named(tiny_experiment: Path) -> None:
    assert make(str(tiny_experiment), profile=None).profile_name == "smoke"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"profile": "smok"}, ConfigError, "Did you mean 'smoke'"),
        ({"dtype": "bfloat17"}, ConfigError, "--dtype: unknown dtype 'bfloat17'. Did you mean 'bfloat16'"),
        ({"limit": 0}, ConfigError, "--limit is 0"),
        ({"device": "tpu"}, ConfigError, "'cpu', 'cuda' (an NVIDIA GPU) and 'cuda:N'"),
        ({"dtype": "float16"}, UnsupportedError, "float16 on a CPU"),
        ({"overrides": ["cuda_graph=true"]}, UnsupportedError, "cuda_graph = true on a CPU"),
        ({"overrides": ["decode_operators=fused"]}, UnsupportedError, "decode_operators = 'fused' on a CPU"),
        ({"overrides": ["decode_operators=fast"]}, ConfigError, "'fused' or 'eager'"),
        ({"overrides": ["activation_checkpointing=true"]}, ConfigError, "(decode) computes gradients"),
        ({"overrides": ["threads=100000"]}, UnsupportedError, "threads is 100000"),
        (
            {"overrides": ["workloads.decod.context_len=[1]"]},
            ConfigError,
            "has no field 'decod'. Did you mean 'decode'?",
        ),
        ({"overrides": ["memory_limit_bytes=0"]}, ConfigError, "'profiles.smoke.memory_limit_bytes' is 0"),
        ({"overrides": ["models.retnet.ffn_dim=8"]}, ConfigError, "not matched"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    tiny_experiment: Path, changes: dict[str, Any], error: type[RetbenchError], message: str
) -> None:
    with pytest.raises(error) as caught:
        make(tiny_experiment, **changes)
    assert message in str(caught.value)


def test_a_training_step_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "find_device", lambda asked: Device("cuda:0", 80 * 10**9))
    with pytest.raises(ConfigError, match="cuda_graph = true, and its only workload is 'training'"):
        make("training_cost", profile="paper", overrides=["cuda_graph=true"])
    mixed = make("kin", profile="paper", overrides=["cuda_graph=true"])
    assert {"decode", "training"} <= {cell.workload for cell in mixed.cells}
