"""`retbench predict` as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from report.synthetic_records import CPU, GPU, Maker, matched_pair, write_results
from retbench.architectures import costs
from retbench.cli import app
from retbench.papers.papers import load_datasheets


def run(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    result = CliRunner().invoke(app, ["predict", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def found(*words: str) -> dict[str, Any]:
    code, out, err = run(*words, "--json")
    assert code == 0, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_the_papers_point_on_the_papers_device() -> None:
    answer = found("retnet", "--context", "8192", "--batch", "8")
    retnet, transformer = answer["predictions"]
    assert (retnet["model"], transformer["model"]) == ("retnet", "transformer")
    assert answer["step_s_is"] == "at_best"
    config = matched_pair("6.7b")["retnet"]
    assert retnet["step_s"] == costs.decode_bytes(config, "bfloat16", 8, 8192) / 2.039e12
    assert transformer["state_bytes"] == 8 * 8193 * 524_288
    assert transformer["memory_bytes"] > 3 * retnet["memory_bytes"]
    (crossover,) = answer["crossovers"]
    assert 900 < crossover["context_len"] < 1200


@pytest.mark.parametrize(
    ("model", "title"), [("mla", "MLA Transformer"), ("mamba2", "Mamba-2"), ("retnet", "RetNet")]
)
def test_the_crossover_names_the_model_that_was_asked_for(model: str, title: str) -> None:
    _, out, _ = run(model, "--context", "1K")
    assert f"{title}'s step is shorter" in out


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
    assert "not known" in run("retnet", "--ceilings", str(results), "--dtype", "float32")[1]


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
    (weights,) = [line for line in out.splitlines() if line.startswith("| figure6a_weights")]
    assert "13.46 GB" in weights
    assert "explained" in weights
    unexplained = [line for line in out.splitlines() if " unexplained " in line]
    assert sum(line.startswith("| yoco/") for line in unexplained) == 6
    assert len(unexplained) == 14
    *table, _, legend = out.splitlines()
    assert len(json.loads(run("--paper", "--json")[1])["explanations"]) == len(table) - 2
    assert legend.startswith("explained: within 5 %, a point of Figure 6(a) within 0.2 GB")


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
    assert "RetNet's step is shorter from" in done.stdout


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
    assert answer["step_s_is"] == "expected"
    assert answer["ceilings"] is None
    assert all(each["step_s"] > 0 for each in answer["predictions"])
