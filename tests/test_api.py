"""The Python interface: documented columns, a run from Python, the notebook, and a light import."""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import retbench
from report.synthetic_records import CPU, Maker
from retbench.errors import ConfigError, RecordError, shown
from retbench.records.store import append_record
from retbench.report.frames import RESULT_COLUMNS

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "results.ipynb"


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys, retbench; dir(retbench); print(*(set(sys.modules) & {'torch', 'pandas', 'numpy', 'typer'}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "\n"


def test_the_functions_are_those_of_the_interface() -> None:
    assert {"load", "run", "compare"} <= set(dir(retbench))
    with pytest.raises(AttributeError, match="no attribute 'mean'"):
        _ = retbench.mean  # type: ignore[attr-defined]


def test_the_documents_explain_every_column_in_order() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE)
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == list(RESULT_COLUMNS)


def test_a_frame_has_one_row_per_value(tmp_path: Path) -> None:
    records = Maker(CPU).latency((1024, 2048))
    for record in records:
        append_record(tmp_path / "m" / "latency" / "run.jsonl", record)
    frame = retbench.load(tmp_path)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == RESULT_COLUMNS
    assert len(frame) == sum(len(record.metrics) for record in records if record.status == "ok")
    one = next(record for record in records if record.workload == "decode")
    name, metric = next(iter(one.metrics.items()))
    (row,) = frame[
        (frame["model"] == one.model.name)
        & (frame["context_len"] == one.point.context_len)
        & (frame["round"] == one.round)
        & (frame["metric"] == name)
        & (frame["workload"] == "decode")
    ].itertuples()
    assert (row.value, row.unit, row.file) == (metric.value, metric.unit, "m/latency/run.jsonl")
    assert (row.architecture, row.num_params) == (one.model.architecture, one.model.num_params)
    assert (row.executed, row.compiled) == (one.backend["decode"], one.backend["compile"])
    assert not row.is_published


def test_a_failure_has_a_row_without_a_metric_and_a_torn_line_is_a_warning(tmp_path: Path) -> None:
    record = (
        Maker(CPU)
        .latency((1024,))[0]
        .model_copy(update={"status": "failed", "error": "no luck", "metrics": {}})
    )
    path = tmp_path / "run.jsonl"
    append_record(path, record)
    with open(path, "a", encoding="utf-8") as file:
        file.write("{torn\n")
    with pytest.warns(UserWarning, match=r"run\.jsonl:2"):
        frame = retbench.load(str(path))
    assert frame[["status", "error"]].to_numpy().tolist() == [["failed", "no luck"]]
    assert pd.isna(frame["value"][0])


def test_no_records_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no results at"):
        retbench.load(tmp_path / "none")


def test_functions_are_functions_whatever_was_imported() -> None:
    importlib.import_module("retbench.running.runner")
    for name in ("compare", "load", "run"):
        assert inspect.isfunction(getattr(retbench, name))


def test_an_impossible_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown experiment"):
        retbench.run("latencyy", out=tmp_path)


@pytest.mark.parametrize("name", ["models", "overrides"])
@pytest.mark.parametrize("given", ["rounds=1", Path("mine"), {"rounds": 1}, [("rounds", 1)], 3], ids=str)
def test_what_is_no_list_of_texts_is_refused(name: str, given: object, tmp_path: Path) -> None:
    """A single text is a sequence too, of its letters."""
    arguments: dict[str, Any] = {name: given}
    with pytest.raises(ConfigError) as caught:
        retbench.run("latency", profile="smoke", device="cpu", out=tmp_path, **arguments)
    assert str(caught.value).startswith(f"{name} is {given!r}. Give a list of texts, such as {name}=['")


@pytest.mark.parametrize(
    "given",
    [
        {"limit": "3"},
        {"limit": 1.5},
        {"limit": True},
        {"shard": 2},
        {"profile": ["smoke"]},
        {"device": 0},
        {"dtype": 16},
        {"compiled": "no"},
        {"trust_remote_code": "no"},
        {"fresh": "no"},
        {"data_dir": 3},
        {"out": None},
    ],
    ids=str,
)
def test_an_argument_of_another_type_is_refused_by_its_name(given: dict[str, Any], tmp_path: Path) -> None:
    """The text "no" is true: without this it would compile, run a checkpoint's code or measure again."""
    ((name, value),) = given.items()
    with pytest.raises(ConfigError, match=rf"^{name} is {re.escape(shown(value))}\. Give "):
        retbench.run("latency", **{"profile": "smoke", "device": "cpu", "out": tmp_path, **given})


@pytest.mark.parametrize(
    "given",
    [{"rounds": "3"}, {"rounds": 9.5}, {"pairs": "2"}, {"margin": "0.1"}, {"budget_s": None}, {"notify": 1}],
)
def test_a_comparison_refuses_arguments_of_another_type(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"^{next(iter(given))} is .*\. Give a "):
        retbench.compare("true", "true", **given)


@pytest.mark.parametrize(
    "given", [{"out": ""}, {"out": "a\0b"}, {"data_dir": ""}, {"data_dir": "none"}], ids=str
)
def test_a_run_refuses_a_folder_that_the_command_refuses(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty path is the current folder; of a workload without data nothing else reads `data_dir`."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"Give "):
        retbench.run("latency", **{"profile": "smoke", "device": "cpu", "out": tmp_path, **given})
    assert not list(tmp_path.iterdir())


def test_loading_refuses_an_empty_path() -> None:
    with pytest.raises(ConfigError, match=r"path is empty"):
        retbench.load("")


def test_loading_takes_a_path() -> None:
    with pytest.raises(ConfigError, match=r"path is None\. Give a text or a path"):
        retbench.load(None)  # type: ignore[arg-type]


def test_a_folder_of_a_model_may_be_a_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown checkpoint '.*none': there is no such path"):
        retbench.run("latency", profile="smoke", device="cpu", out=tmp_path, models=[tmp_path / "none"])


@pytest.mark.slow
def test_a_run_can_be_loaded(tmp_path: Path, tiny_experiment: Path) -> None:
    summary = retbench.run(
        tiny_experiment,
        profile="smoke",
        device="cpu",
        limit=1,
        overrides=["rounds=1", "threads=1"],
        out=tmp_path,
    )
    assert not summary.interrupted
    assert set(summary.counts) == {"ok"}
    assert (
        len(retbench.load(tmp_path)[["workload", "model", "round"]].drop_duplicates()) == summary.counts["ok"]
    )


def test_the_notebook_runs_from_the_root_of_the_repository() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    check = """
assert medians.shape[0] > 1 and len(axes.lines) == medians.shape[1] > 1
settings = ["experiment", "profile", "size", "machine", "dtype", "threads", "compiled"]
assert len(decode[settings].drop_duplicates()) == 1, "a median is over rounds of equal settings"
"""
    variables = {**os.environ, "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}"],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
