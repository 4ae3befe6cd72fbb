"""Records that the runner wrote: they fit the JSON Schema, and the analysis makes its tables and report of them."""

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

from jsonschema import Draft202012Validator

from retbench.analysis.frames import load_results
from retbench.analysis.report import write_report
from retbench.analysis.tables import build_table, render


def test_what_a_run_leaves_behind_is_understood(tiny_experiment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    command = [
        sys.executable,
        "-m",
        "retbench",
        "run",
        str(tiny_experiment),
        "--profile",
        "smoke",
        "--out",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr

    schema = json.loads((resources.files("retbench") / "record.schema.json").read_text(encoding="utf-8"))
    validator = Draft202012Validator(schema)
    (path,) = folder.rglob("*.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4
    for line in lines:
        validator.validate(json.loads(line))

    results = load_results(folder)
    assert results.problems == ()
    table = build_table(results.records, "tiny")
    assert list(table["context_len"]) == [64, 128, 64, 128]
    assert (table["tpot_s"] > 0).all()
    assert "| retnet | 1 | 64 |" in render(table, "md")
    write_report(folder, tmp_path / "reports")
    page = (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")
    assert 'aria-label="Time per output token.' in page
    assert '<td class="differs">' not in page
