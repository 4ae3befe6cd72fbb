"""`retbench claims` as a user meets it."""

import json
import re
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from report.synthetic_records import CPU, SMALL, Maker, write_results
from retbench.cli import app
from retbench.papers.claims import load_claims


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
    assert not any("reproduced" in line for line in out.splitlines() if line.startswith("|"))


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


def headlines_of(results: Path) -> dict[str, tuple[str, str]]:
    """What the short table says under the paper's conditions and elsewhere, by the claim's statement."""
    code, out, _ = run("--results", str(results), "--format", "short")
    assert code == 0
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in out.splitlines()]
    assert len(rows[0]) == 4
    return {row[0]: (row[2], row[3]) for row in rows[2:]}


def test_the_short_table_has_the_headlines_with_what_other_conditions_show(tmp_path: Path) -> None:
    records = [*Maker(CPU).latency(), *Maker(CPU).memory(), *Maker(SMALL).throughput()]
    rows = headlines_of(write_results(tmp_path / "results", records))
    headlines = [claim.statement for claim in load_claims() if claim.headline]
    assert list(rows) == headlines
    assert 10 <= len(headlines) <= 15
    paper, elsewhere = rows["At 8K RetNet's latency is 15.6 times lower than the Transformer's"]
    assert paper == "not testable"
    assert re.match(
        r"partly at 25m, AMD EPYC 9B14, .*× \[.*\] at batch 1, 8K; the paper 15.6× \(one of 2\)", elsewhere
    )
    assert rows["RetNet is ahead in all seven zero-shot tasks at 6.7B"] == ("not testable", "–")


def test_what_was_measured_comes_first(tmp_path: Path) -> None:
    results = write_results(tmp_path / "results", Maker(CPU).latency())
    out = run("--results", str(results))[1]
    titles = [line.removeprefix("### ") for line in out.splitlines() if line.startswith("###")]
    assert titles[0] == "Decided under the paper's conditions (1)"
    assert re.match(r"Measured, not decided \(\d+\)", titles[1])
    assert all(title.startswith("Not ") for title in titles[2:])
    first, second = (out.partition(title)[2].partition("###")[0] for title in titles[:2])
    assert "recurrent forms are equivalent" in first
    assert "At 8K RetNet's latency" in second


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
