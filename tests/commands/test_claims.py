"""`retbench claims` as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from analysis.synthetic_records import CPU, Maker, write_results
from retbench.cli import app


def run(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    result = CliRunner().invoke(app, ["claims", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_without_results_every_claim_says_what_it_needs(tmp_path: Path) -> None:
    code, out, err = run("--results", str(tmp_path / "none"))
    assert code == 0
    assert "no claim is tested" in err
    assert "not testable." in out.splitlines()[0]
    assert "reproduced" not in out


def test_records_and_what_cannot_be_read(tmp_path: Path) -> None:
    results = write_results(tmp_path / "results", Maker(CPU).latency() + Maker(CPU).memory())
    (path,) = results.rglob("latency/*.jsonl")
    with path.open("a", encoding="utf-8") as file:
        file.write('{"schema_version": 0}\n{"torn')
    code, out, err = run("--results", str(results), "--format", "json")
    assert code == 0
    assert "schema_version is 0" in err
    assert "torn line" in err
    claims = {each["name"]: each for each in json.loads(out)["claims"]}
    assert claims["memory_level"]["verdict"] == "not_testable"
    elsewhere = [row for row in claims["memory_level"]["rows"] if row["scope"] == "elsewhere"]
    assert [row["verdict"] for row in elsewhere] == ["reproduced"]
    assert claims["equal_forms"]["verdict"] == "reproduced"


def test_an_unknown_format_is_an_error() -> None:
    code, out, err = run("--format", "html")
    assert (code, out) == (2, "")
    assert "unknown format 'html'" in err


def test_claims_need_no_torch(tmp_path: Path) -> None:
    results = write_results(tmp_path, Maker(CPU).latency(lengths=(1024, 2048)))
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['matplotlib'] = None; "
        f"from retbench.cli import app; app(['claims', '--results', {str(results)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "claims under the papers' own conditions" in done.stdout
