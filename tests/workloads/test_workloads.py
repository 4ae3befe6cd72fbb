"""The registry of workloads, with those of users' packages, and what a profile says of them."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retbench.config import experiment as config
from retbench.config.evaluation import GridSpec
from retbench.config.experiment_files import load_experiment
from retbench.errors import ConfigError, RetbenchError
from retbench.planning.plan import make_plan
from retbench.records.record import Ceilings, Metric
from retbench.workloads import workload as registry
from retbench.workloads.workload import (
    WORKLOADS,
    Measurement,
    MetricSpec,
    Workload,
    collect_workloads,
    find_workload,
)

ORDER = [
    "decode",
    "prefill",
    "memory",
    "throughput",
    "training",
    "largest_batch",
    "perplexity",
    "zeroshot",
    "mqar",
    "needle",
    "recall_slices",
    "length_recall",
    "training_run",
]


def test_the_workloads_come_in_the_order_of_lists() -> None:
    assert list(WORKLOADS) == ORDER


@pytest.mark.parametrize("name", ORDER)
def test_every_workload_can_measure_and_has_a_primary_metric(name: str) -> None:
    found = find_workload(name)
    assert (found.measure is None) == (found.spec is None) == (name == "training_run")
    assert found.primary == found.metrics[0]
    assert len(found.code) == 12
    assert len({metric.name for metric in found.metrics}) == len(found.metrics)


def test_workloads_are_distinguished_by_their_code() -> None:
    assert len({found.code for found in WORKLOADS.values()}) == len(WORKLOADS)


def test_an_unknown_workload_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown workload 'prefil'\. Did you mean 'prefill'"):
        find_workload("prefil")


def test_the_registry_imports_no_torch() -> None:
    code = (
        "import sys; from retbench.workloads.workload import WORKLOADS; [one.code for one in WORKLOADS.values()]; "
        "from retbench.config.experiment_files import load_experiment; load_experiment('latency'); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def users_workload() -> Workload:
    return Workload(
        name="chat",
        title="Chat turns",
        metrics=(
            MetricSpec("turn_s", "time per turn", True, has_interval=True, better="faster"),
            MetricSpec("turns", "turns", optional=True, unit="count"),
        ),
        quantity="time per turn",
        measure=lambda context: Measurement({}),
        modules=("json",),
    )


def seconds(value: float, *samples: float) -> Metric:
    return Metric(unit="s", value=value, samples=samples)


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (None, "returned None"),
        ({"turn_s": seconds(1)}, r"returned \{'turn_s'.*Return a Measurement"),
        (Measurement({"turn_s": 0.5}), "'turn_s' is 0.5.*Make it a Metric"),  # type: ignore[dict-item]
        (Measurement({"turn_s": seconds(-0.5)}), "'turn_s' has -0.5 s"),
        (
            Measurement({"turn_s": Metric(unit="ms", value=3)}),
            "'turn_s' has the unit 'ms', and its name states s",
        ),
        (
            Measurement({"turn_s": seconds(1), "turns": Metric(unit="ratio", value=3)}),
            "'turns' has the unit 'ratio', and its MetricSpec declares count",
        ),
        (Measurement({"turn_s": seconds(1, 2, 0)}), "'turn_s' has 0 s"),
        (Measurement({"turns_s": seconds(1)}), "'turn_s' is missing; measured are turns_s"),
        (Measurement({}, absent={"turns_s": "no turns"}), "'turn_s' is missing; measured are none"),
    ],
)
def test_what_is_no_measurement_of_every_metric_is_refused(returned: Any, reason: str) -> None:
    with pytest.raises(RetbenchError, match=f"workload 'chat': .*{reason}"):
        replace(users_workload(), measure=lambda context: returned).run(None)


def test_a_workload_without_metrics_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"workload 'chat' has no metrics"):
        replace(users_workload(), metrics=())


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        ({"name": "turns"}, "'turns' has no unit, and its name states none.*unit=\"ratio\""),
        ({"name": "turn_s", "unit": "ms"}, "'turn_s' has the unit 'ms', and its name states s"),
    ],
)
def test_a_metric_is_declared_with_a_unit(unit: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"workload 'chat': the metric {reason}"):
        replace(users_workload(), metrics=(MetricSpec(heading="turns", **unit),))


@pytest.mark.parametrize(
    "found",
    [Measurement({"turn_s": seconds(1, 2), "other": seconds(1)}), Measurement({}, absent={"turn_s": "none"})],
)
def test_a_metric_is_measured_or_absent_and_an_optional_one_may_be_missing(found: Measurement) -> None:
    metrics = (*users_workload().metrics, MetricSpec("turn_j", "J", optional=True))
    assert replace(users_workload(), metrics=metrics, measure=lambda context: found).run(None) is found


@pytest.mark.parametrize("given", [-1, None, float("inf")])
def test_an_estimate_is_a_number_of_seconds(given: Any) -> None:
    workload = replace(users_workload(), estimate=lambda cell, ceilings: given)
    ceilings = Ceilings(read_bandwidth_bytes_per_s=1, matmul_flops_per_s=1)
    with pytest.raises(ConfigError, match=f"workload 'chat': `estimate` returned {given}"):
        workload.estimate_seconds(None, ceilings)


def entry_point(load: Callable[[], Any]) -> SimpleNamespace:
    package = SimpleNamespace(name="someones-workloads")
    return SimpleNamespace(
        name="chat", value="someones.chat:WORKLOAD", module="someones.chat", dist=package, load=load
    )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Installs a package with one workload, as far as the registry sees."""

    def install(load: Callable[[], Any]) -> None:
        def entry_points(*, group: str, **_: object) -> list[SimpleNamespace]:
            return [entry_point(load)] if group == "retbench.workloads" else []

        monkeypatch.setattr(metadata, "entry_points", entry_points)
        registry.WORKLOADS.__dict__.pop("_found", None)
        config._tables_type.cache_clear()

    yield install
    registry.WORKLOADS.__dict__.pop("_found", None)
    config._tables_type.cache_clear()


def test_a_users_workload_works_in_a_profile(
    installed: Callable[[Callable[[], Any]], None], tiny_experiment: Path
) -> None:
    installed(users_workload)
    assert list(WORKLOADS) == [*ORDER, "chat"]
    overrides = ["workloads.chat.context_len=[32]", "workloads.chat.batch_size=[2]"]
    plan = make_plan(str(tiny_experiment), profile="smoke", device="cpu", overrides=overrides)
    cells = [cell for cell in plan.cells if cell.workload == "chat"]
    assert [(cell.model_name, cell.point.batch_size, cell.point.context_len) for cell in cells] == [
        ("retnet", 2, 32),
        ("transformer", 2, 32),
    ]
    assert plan.profile.workloads.specs.keys() == {"decode", "chat"}
    with pytest.raises(ConfigError, match=r"workloads\] has no field 'chats'. Did you mean 'chat'"):
        load_experiment(str(tiny_experiment), ["workloads.chats.context_len=[32]"], profile="smoke")


def raise_import_error() -> None:
    raise ImportError("No module named 'someones'")


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (raise_import_error, "No module named 'someones'"),
        (lambda: "text", "it is a str"),
        (lambda: find_workload("decode"), "its name 'decode' is taken"),
    ],
)
def test_a_broken_package_is_named(
    installed: Callable[[Callable[[], Any]], None], load: Callable[[], Any], reason: str
) -> None:
    decode = find_workload("decode")
    installed((lambda: decode) if "taken" in reason else load)
    with pytest.raises(ConfigError, match=r"package 'someones-workloads'.*pip uninstall") as caught:
        collect_workloads()
    assert reason in str(caught.value)


def test_a_workload_that_measures_nothing_is_refused_before_a_run(
    installed: Callable[[Callable[[], Any]], None],
) -> None:
    installed(lambda: replace(users_workload(), measure=None))
    with pytest.raises(ConfigError, match=r"workload 'chat' has no function `measure`"):
        collect_workloads()


def test_what_a_profile_has_is_open_to_look_up() -> None:
    workloads = load_experiment("latency", ()).profile("smoke").workloads
    assert list(workloads.specs) == ["decode", "prefill"]
    assert isinstance(workloads.specs["decode"], GridSpec)
    assert [one.name for one in workloads.registered] == ["decode", "prefill"]
