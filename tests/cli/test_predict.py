"""`retbench predict` as a user meets it."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from report.synthetic_records import CPU, GPU, Maker, matched_pair, write_results
from retbench.architectures import costs
from retbench.cli import targets
from retbench.papers.papers import find_datasheet, load_datasheets
from retbench.planning import step_rates
from retbench.planning.prediction import StepRates
from retbench.records.record import interpolate
from retbench.units import MIB, format_bytes, format_rate
from tests.cli.conftest import invoke

CURVE = ((64 * MIB, 60e9), (256 * MIB, 30e9))
"""Read bandwidth by footprint."""


run = partial(invoke, "predict")


def found(*words: str) -> dict[str, Any]:
    code, out, err = run(*words, "--json")
    assert code == 0, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_the_papers_point_on_the_papers_device() -> None:
    answer = found("retnet", "--context", "8192", "--batch", "8")
    retnet, transformer = answer["predictions"]
    assert (retnet["model"], transformer["model"]) == ("retnet", "transformer")
    config = matched_pair("6.7b")["retnet"]
    assert retnet["at_best_s"] == costs.decode_bytes(config, "bfloat16", 8, 8192) / 2.039e12
    assert transformer["state_bytes"] == 8 * 8193 * 524_288
    assert transformer["memory_bytes"] > 3 * retnet["memory_bytes"]
    at_best, expected = answer["crossovers"]
    assert (at_best["time"], expected["time"]) == ("at_best", "expected")
    assert 900 < at_best["context_len"] < 1200


def test_a_datasheet_has_the_time_at_best_and_with_the_kernels_of_a_step() -> None:
    answer = found("hybrid", "--size", "25M", "--device", "h100-80gb", "--context", "1K")
    hybrid, transformer = answer["predictions"]
    assert hybrid["at_best_s"] == pytest.approx(17.5e-6, rel=0.01)
    kernel_s = find_datasheet("h100-80gb").kernel_s
    for each in (hybrid, transformer):
        launches_s = answer["operators"][each["model"]]["total"] * kernel_s
        assert each["expected_s"] == pytest.approx(each["at_best_s"] + launches_s)
        assert each["tokens_per_s"] == pytest.approx(1 / each["expected_s"])
    _, out, _ = run("hybrid", "--size", "25M", "--device", "h100-80gb", "--context", "1K")
    assert "time per token at best | expected time per token" in out
    assert f"{answer['operators']['hybrid']['total']} (hybrid)" in out
    assert "an assumption" in out
    assert "batch 1, at best: Hybrid's step" in out
    assert "batch 1, expected: Hybrid's step" in out


@pytest.mark.parametrize(
    ("model", "title"), [("mla", "MLA Transformer"), ("mamba2", "Mamba-2"), ("retnet", "RetNet")]
)
def test_the_crossover_names_the_model_that_was_asked_for(model: str, title: str) -> None:
    _, out, _ = run(model, "--context", "1K")
    assert f"{title}'s step is shorter" in out


def test_a_model_that_is_ahead_in_short_contexts_only_is_said_to_be() -> None:
    words = ("mla", "--size", "1.3b", "--kv-heads", "1", "--context", "1,1K")
    answer = found(*words)
    mla, mla_1k, other, other_1k = (each["at_best_s"] for each in answer["predictions"])
    assert (mla < other, mla_1k < other_1k) == (True, False)
    at_best = answer["crossovers"][0]
    assert at_best["context_len"] is None
    assert 1 <= at_best["ahead_to"] < 1024
    _, out, _ = run(*words)
    assert f"at best: MLA Transformer's step is shorter up to {at_best['ahead_to']} tokens of context" in out


def test_a_batch_that_does_not_fit_has_no_time() -> None:
    code, out, _ = run("transformer", "--context", "32768", "--batch", "8")
    (line,) = [line for line in out.splitlines() if line.startswith("| transformer")]
    assert code == 0
    assert "out of memory" in line
    assert line.split()[-2] == "4"


def test_grouped_queries_move_the_crossover() -> None:
    full, grouped = (
        found("retnet", "--context", "1024", *words)["crossovers"][0]["context_len"]
        for words in ((), ("--kv-heads", "8"))
    )
    assert grouped == pytest.approx(4 * full, rel=0.02)


def test_ceilings_come_from_records(tmp_path: Path) -> None:
    results = write_results(tmp_path, Maker(CPU).latency(lengths=(1024, 2048)))
    answer = found("retnet", "--ceilings", str(results), "--size", "25m")
    assert answer["dtype"] == "float32"
    assert answer["device"] == CPU.name
    assert answer["ceilings"]["read_bandwidth_bytes_per_s"] == pytest.approx(CPU.bandwidth)
    assert answer["memory_bytes"] is None
    assert answer["predictions"][0]["expected_s"] is None
    _, out, _ = run("retnet", "--ceilings", str(results), "--dtype", "float32")
    assert "not known" in out
    assert "B/s read at every footprint" in out
    assert "the records have no cost per operator" in out


def test_the_records_of_a_gpu_have_the_cost_of_a_kernel_of_its_datasheet(tmp_path: Path) -> None:
    def named(arguments: dict[str, Any]) -> dict[str, Any]:
        facts = {**arguments["environment"], "gpu": {"name": "NVIDIA A100-SXM4-80GB"}}
        return {**arguments, "environment": facts}

    results = write_results(tmp_path, Maker(GPU, change=named).latency(lengths=(1024,)))
    answer = found("retnet", "--ceilings", str(results), "--size", "25m", "--context", "1K")
    retnet = answer["predictions"][0]
    launches_s = answer["operators"]["retnet"]["total"] * find_datasheet("a100-40gb").kernel_s
    assert retnet["expected_s"] == pytest.approx(retnet["at_best_s"] + launches_s)


def test_records_without_a_read_curve_leave_that_of_the_others(tmp_path: Path) -> None:
    """The header states the bandwidth at the footprint of the steps, and how many records have no curve."""
    curve = [{"footprint_bytes": size, "bytes_per_s": rate, "kernel": "dot"} for size, rate in CURVE]

    def with_curve(arguments: dict[str, Any]) -> dict[str, Any]:
        older = arguments["round"] == 0 and arguments["model"].name == "retnet"
        ceilings = arguments["ceilings"].model_dump() | {"read_curve": [] if older else curve}
        return {**arguments, "ceilings": ceilings}

    results = write_results(tmp_path, Maker(CPU, change=with_curve).latency(lengths=(1024,)))
    answer = found("retnet", "--ceilings", str(results), "--size", "25m", "--context", "1K")
    sizes = [rate["footprint_bytes"] for rate in answer["ceilings"]["read_curve"]]
    assert sizes == [size for size, _ in CURVE]
    assert "2 of them with one bandwidth for every footprint" in answer["source"]
    moved = answer["predictions"][0]["moved_bytes"]
    _, out, _ = run("retnet", "--ceilings", str(results), "--size", "25m", "--context", "1K")
    bandwidth = format_rate(interpolate(CURVE, moved), "B/s")
    assert f"{bandwidth} of {format_bytes(moved)}" in out


@pytest.mark.parametrize("faster", [1.0, 2.0])
def test_recorded_steps_that_read_faster_than_the_curve_of_their_run_are_stated(
    tmp_path: Path, faster: float
) -> None:
    """The curve is measured once per run: on a shared machine its steps may be faster than "at best"."""

    def with_own_rate(arguments: dict[str, Any]) -> dict[str, Any]:
        size = (100 if arguments["model"].name == "retnet" else 120) * MIB
        rates = sorted([*CURVE, (size, faster * interpolate(CURVE, size))])
        curve = [{"footprint_bytes": each, "bytes_per_s": rate, "kernel": "dot"} for each, rate in rates]
        return {**arguments, "ceilings": arguments["ceilings"].model_dump() | {"read_curve": curve}}

    results = write_results(tmp_path, Maker(CPU, change=with_own_rate).latency(lengths=(1024,)))
    answer = found("retnet", "--ceilings", str(results), "--size", "25m", "--context", "1K")
    words = "their steps had 2 times the bandwidth of the curve"
    assert (words in answer["source"]) is (faster == 2.0)
    assert [rate["footprint_bytes"] for rate in answer["ceilings"]["read_curve"]] == [
        size for size, _ in CURVE
    ]


def test_records_at_another_dtype_are_refused(tmp_path: Path) -> None:
    results = write_results(tmp_path, Maker(GPU).latency(lengths=(1024, 2048)))
    code, _, err = run("retnet", "--ceilings", str(results), "--dtype", "float32")
    assert code == 2
    assert "has ceilings at float32" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("retnets",), 2, "Did you mean 'retnet'"),
        (("retnet", "--device", "h100"), 2, "unknown device 'h100'"),
        (("retnet", "--size", "7b"), 2, "unknown size '7b'"),
        (("retnet", "--dtype", "bf17"), 2, "unknown dtype 'bf17'"),
        (("retnet", "--dtype", "float64"), 3, "no rate of products in float64"),
        (("retnet", "--batch", "0"), 2, "--batch"),
        (("retnet", "--context", "9" * 400), 2, "--context"),
        (("retnet", "--context", "-1"), 2, "--context"),
        (("retnet", "--kv-heads", "7"), 2, "does not divide the 32 query heads"),
        ((), 2, "give either MODEL or --paper"),
        (("retnet", "--paper"), 2, "give either MODEL or --paper"),
        (("--paper", "--size", "13b"), 2, "leave out --size"),
        (("retnet", "--compile"), 2, "--device cpu or cuda"),
        (("retnet", "--ceilings", "nowhere", "--device", "h200"), 2, "leave out --device"),
        (("retnet", "--kv-heads", "0"), 2, "--kv-heads"),
        (("retnet", "--ceilings", "nowhere"), 2, "no results at 'nowhere'"),
    ],
)
def test_an_impossible_request_is_refused(words: tuple[str, ...], code: int, message: str) -> None:
    exit_code, out, err = run(*words)
    assert exit_code == code
    assert message in err
    assert out == ""


def test_the_papers_numbers_next_to_the_analytical_ones() -> None:
    code, out, _ = run("--paper")
    assert code == 0
    lines = out.splitlines()
    (weights,) = [line for line in lines if "Figure 6(a), weights: 13.464 GB" in line]
    assert "13.41 GB" in weights
    assert "| explained |" in weights
    unexplained = [line for line in lines if " unexplained " in line]
    assert sum(line.startswith("| YOCO ") for line in unexplained) == 6
    assert not re.search(r"\w+/(retnet|transformer|value)", out)
    answer = json.loads(run("--paper", "--json")[1])
    assert len([line for line in lines if line.startswith("|")]) == sum(map(len, answer.values())) + 4
    assert lines[-1].startswith("explained: within 5 %, a point of Figure 6(a) within 0.2 GB")
    (slowest,) = [line for line in lines if "8K, 8: 377.7 ms" in line and "| 377.70 ms |" in line]
    (step,) = [each for each in answer["steps"] if each["place"] == "retnet/figure6c_transformer/8192/8"]
    parts = [f"{1e3 * step[name]:.2f} ms" for name in ("bound_s", "launches_s", "remainder_s")]
    assert f"| {' | '.join(parts)} (" in slowest
    assert step["bound_s"] + step["launches_s"] + step["remainder_s"] == pytest.approx(0.3777)


def test_a_step_that_is_shorter_than_one_that_does_not_fit_is_so_by_time_alone() -> None:
    _, out, _ = run("retnet", "--size", "13b", "--batch", "64", "--context", "8192")
    assert "out of memory" in out
    assert "compares times only" in out


def test_the_help_names_every_datasheet() -> None:
    _, out, _ = run("--help")
    assert all(name in out for name in load_datasheets())


def test_a_datasheet_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from retbench.cli import app; "
        "app(['predict', 'retnet', '--context', '1024'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "at best: RetNet's step is shorter from" in done.stdout
    assert "No expected time: PyTorch, which counts the kernels of a step, is not installed." in done.stdout


RATES = StepRates(
    products=((4 * MIB, 60e9), (256 * MIB, 20e9)),
    attention=((4 * MIB, 50e9), (256 * MIB, 15e9)),
    recurrence=((4 * MIB, 30e9), (256 * MIB, 10e9)),
    matmul_flops_per_s=150e9,
    shared_key_flops_per_s=((2, 40e9), (32, 80e9)),
    operator_s=5e-6,
    product_s=((4 * MIB, 2e-6), (256 * MIB, 9e-6)),
)


@pytest.mark.parametrize(("busy", "warned"), [(0.8, True), (0.1, False)])
def test_a_measured_device_states_its_facts_and_a_busy_machine(
    busy: float, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "become_worker", lambda device: 1)
    monkeypatch.setattr("retbench.measure.machine.busy_ratio", lambda: busy)
    monkeypatch.setattr(step_rates, "measure_step_rates", lambda *given, **options: RATES)
    words = ("retnet", "--device", "cpu", "--size", "25m", "--context", "1K")
    _, out, err = run(*words)
    assert ("other processes use 80.0 % of the processors" in err) == warned
    assert "Measured: products 60.0 GB/s (4.00 MiB) to 20.0 GB/s (256 MiB); attention 50.0 GB/s" in out
    shared = "40.0 GFLOP/s (2 of a key) to 80.0 GFLOP/s (32 of a key)"
    assert f"products 150 GFLOP/s; queries that share keys {shared}; 5.00 µs per operator (" in out
    assert "; 2.00 µs (4.00 MiB) to 9.00 µs (256 MiB) more per product (retnet " in out
    answer = found(*words)
    assert answer["rates"]["product_s"] == [[4 * MIB, 2e-6], [256 * MIB, 9e-6]]
    assert answer["operators"]["retnet"]["total"] > answer["operators"]["transformer"]["total"] > 50
    assert answer["predictions"][0]["at_best_s"] is None


@pytest.mark.slow
def test_this_cpu_is_measured_operator_by_operator(tmp_path: Path) -> None:
    words = [
        "predict",
        "retnet",
        "--device",
        "cpu",
        "--size",
        "1m",
        "--context",
        "64",
        "--context",
        "256",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "retbench", *words], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["ceilings"] is None
    assert answer["rates"]["matmul_flops_per_s"] > 0
    assert all(each["expected_s"] > 0 for each in answer["predictions"])


def test_a_model_with_its_own_number_of_key_heads_takes_no_other() -> None:
    code, _, error = run("transformer-mqa", "--kv-heads", "8", "--size", "25m")
    assert code == 2
    assert "--kv-heads 8: the model 'transformer-mqa' is one with its own number" in error


def test_a_prediction_of_compiled_steps_names_the_variable_of_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("in the way", encoding="utf-8")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch sets it when it compiles
    monkeypatch.setenv("RETBENCH_CACHE", str(tmp_path / "cache"))
    code, stdout, stderr = invoke("predict", "retnet", "--size", "1M", "--device", "cpu", "--compile")
    assert (code, stdout) == (2, "")
    assert "RETBENCH_CACHE" in stderr
