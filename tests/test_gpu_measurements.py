"""Measurements on a new GPU besides the experiments, tried on a CPU: layouts of weights, counts of kernels, facts."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import ceilings, facts, kernel_census
from benchmarks.gpu.weight_layout import LAYOUTS, Product, compare, measure, shapes_at
from retbench.cli.env import DTYPES
from retbench.measure import product_trials
from retbench.models.build import build_model
from retbench.ops import fused
from retbench.ops.linear import Linear
from retbench.records.record import Ceilings

CPU = torch.device("cpu")
CEILINGS = Ceilings(read_bandwidth_bytes_per_s=2e10, matmul_flops_per_s=1e11)


def test_the_shapes_are_those_of_the_products_of_both_models() -> None:
    expected = set()
    for one in kernel_census.models_at("1m", "latency").values():
        model = build_model(one.model, dtype=torch.float32, device="cpu", seed=0, backend=one.backend)
        expected |= {
            (part.in_features, part.out_features) for part in model.modules() if isinstance(part, Linear)
        }
    found = set(shapes_at("1m"))
    # Gate and up projections of a feed-forward may be one product in the model.
    assert {shape for shape in expected if shape not in found} <= {(d, 2 * w) for d, w in found}
    assert found <= expected | {(d, w // 2) for d, w in expected}


def test_a_layout_is_measured_by_the_bytes_of_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_trials, "_cache_bytes", lambda device: 10_000)
    monkeypatch.setattr(product_trials, "_LAYOUT_WARMUP_S", 0.0)
    for layout in LAYOUTS:
        found = measure("1m", (48, 32), 2, layout, device=CPU, num_steps=2)
        assert (found.layout, found.weight_bytes) == (layout, 48 * 32 * 4)
        assert found.bandwidth_bytes_per_s > 0


def test_layouts_are_compared_by_the_time_of_all_shapes() -> None:
    rates = {("out,in", 100): 10.0, ("in,out", 100): 5.0, ("out,in", 300): 10.0, ("in,out", 300): 30.0}
    products = [Product("1m", 1, 1, 1, layout, size, rate) for (layout, size), rate in rates.items()]
    assert compare(products) == {"size": "1m", "rows": 1, "in,out / out,in": 0.75, "faster": "in,out"}


SUMMARY = """Processing [census.sqlite] with [cuda_gpu_kern_sum.py]...

"Time (%)","Total Time (ns)","Instances","Avg (ns)","Name"
60.0,6000,40,150.0,"void gemv<float, 4>(int)"
40.0,4000,80,50.0,"rms_norm"
"""


def test_kernels_are_counted_per_layer_and_step() -> None:
    assert kernel_census.count(SUMMARY, 4) == {
        "kernels_per_layer": 3.0,
        "instances_per_step": {"void gemv<float, 4>(int)": 4.0, "rms_norm": 8.0},
    }
    with pytest.raises(ValueError, match="lists no kernel"):
        kernel_census.count("SKIPPED: no kernel data", 4)


def test_without_nsys_the_census_is_not_supported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert kernel_census.main(["--device", "cpu"]) == 3
    assert "nsys (NVIDIA Nsight Systems) is not installed" in capsys.readouterr().out


NSYS = """#!/bin/sh
if [ "$1" = stats ]; then cat "$(dirname "$0")/summary"; else echo "$@" >> "$(dirname "$0")/calls"; fi
"""


@pytest.mark.parametrize("experiment", kernel_census.EXPERIMENTS)
def test_each_model_is_replayed_under_nsys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], experiment: str
) -> None:
    nsys = tmp_path / "nsys"
    nsys.write_text(NSYS, encoding="utf-8")
    nsys.chmod(0o755)
    (tmp_path / "summary").write_text(SUMMARY, encoding="utf-8")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert kernel_census.main(["--size", "6m", "--experiment", experiment]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {line["model"] for line in lines} == kernel_census.models_at("6m", experiment).keys()
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert all("--cuda-graph-trace=node" in call and "--replay" in call for call in calls)
    assert all(call.endswith(f"--size 6m --device cuda --experiment {experiment}") for call in calls)
    assert len(calls) == len(lines)


@pytest.mark.parametrize(("reason", "code"), [(None, 0), ("Triton needs a C compiler", 1)])
def test_the_facts_of_a_gpu_fail_where_the_fused_operators_cannot_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reason: str | None, code: int
) -> None:
    asked: list[tuple[torch.device, torch.dtype]] = []
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(facts, "torch_facts", dict)
    monkeypatch.setattr(fused, "missing_reason", lambda *given: asked.append(given) or reason)
    assert facts.main() == code
    assert asked == [(torch.device("cuda:0"), torch.bfloat16)]
    assert (
        capsys.readouterr().out.splitlines()[-1] == f"fused operators of decode steps: {reason or 'usable'}"
    )


def test_facts_need_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert facts.main() == 0
    driver, torch_facts = capsys.readouterr().out.splitlines()
    assert driver == "nvidia-smi is not installed"
    assert json.loads(torch_facts)["torch"] == torch.__version__


def test_the_ceilings_are_printed_with_the_environment_and_no_kernel_is_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("RETBENCH_LOCK_DIR", str(tmp_path))
    monkeypatch.setattr(ceilings, "become_worker", lambda device: 1)
    monkeypatch.setattr("retbench.measure.ceilings.measure_ceilings", lambda device, dtype, curve: CEILINGS)
    monkeypatch.setattr("retbench.models.build.build_model", None)  # what has a backend is a model
    assert ceilings.main(["--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["environment"]["threads"] == 1
    assert printed["ceilings"] == dict.fromkeys(DTYPES, json.loads(CEILINGS.model_dump_json()))
    assert ceilings.main(["--device", "cuda:99"]) == 3
    assert "--device cuda:99: " in capsys.readouterr().err
