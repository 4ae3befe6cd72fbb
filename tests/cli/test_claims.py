"""`retbench claims` as a user meets it."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from report.synthetic_records import CPU, SMALL, Maker, write_results
from retbench.papers.claims import load_claims
from tests.cli.conftest import invoke

run = partial(invoke, "claims")


def test_without_results_every_claim_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run()
    assert code == 0
    assert "no claim is tested" in err
    assert "not testable." in out.splitlines()[0]
    assert not any("reproduced" in line for line in out.splitlines() if line.startswith("|"))


def test_results_that_were_named_and_are_not_there_are_an_error(tmp_path: Path) -> None:
    code, out, err = run("--results", str(tmp_path / "none"))
    assert (code, out) == (2, "")
    assert "there is no such file or folder" in err


def test_records_and_what_cannot_be_read(tmp_path: Path) -> None:
    results = write_results(tmp_path / "results", Maker(CPU).latency() + Maker(CPU).memory())
    (path,) = results.rglob("latency/*.jsonl")
    with path.open("a", encoding="utf-8") as file:
        file.write('{"schema_version": 0}\n{"torn')
    code, out, err = run("--results", str(results), "--json")
    assert code == 0
    assert "schema_version is 0" in err
    assert "torn line" in err
    claims = {each["name"]: each for each in json.loads(out)["claims"]}
    assert claims["memory_level"]["verdict"] == "not_testable"
    elsewhere = [row for row in claims["memory_level"]["rows"] if row["scope"] == "elsewhere"]
    assert [row["verdict"] for row in elsewhere] == ["reproduced"]
    assert claims["equal_forms"]["verdict"] == "reproduced"


def headlines_of(results: Path) -> dict[str, tuple[str, str, str]]:
    """The paper's number, the result here and the verdict in the short table, by the claim's statement."""
    code, out, _ = run("--results", str(results), "--format", "short")
    assert code == 0
    rows = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in out.splitlines()]
    assert rows[0] == ["claim", "paper", "here", "verdict"]
    return {row[0]: (row[1], row[2], row[3]) for row in rows[2:]}


def test_the_short_table_has_the_headlines_with_what_other_conditions_show(tmp_path: Path) -> None:
    records = [*Maker(CPU).latency(), *Maker(CPU).memory(), *Maker(SMALL).throughput()]
    rows = headlines_of(write_results(tmp_path / "results", records))
    headlines = [claim.statement for claim in load_claims() if claim.headline]
    assert list(rows) == headlines
    assert len(headlines) == 5
    paper, here, verdict = rows["At 8K RetNet decodes in 3.4 times less memory than the Transformer"]
    assert paper == "3.4x at batch 8, 8K; 6.7B, one A100-80GB"
    assert re.match(r"\d\.\d+× at batch 1, 8K \(25M, AMD EPYC 9B14", here)
    assert verdict.endswith(", other conditions")
    assert rows["RetNet is behind the Transformer at 1.3B and ahead from 2.7B on"][1:] == ("", "not testable")


def test_the_summary_comes_first_and_then_what_was_measured(tmp_path: Path) -> None:
    results = write_results(tmp_path / "results", Maker(CPU).latency())
    out = run("--results", str(results))[1]
    lines = out.splitlines()
    assert re.match(
        r"\d+ claims under the papers' own conditions: 1 reproduced, \d+ not testable\. \d+ of", lines[0]
    )
    titles = [line.removeprefix("### ") for line in lines if line.startswith("###")]
    assert titles[0] == "Decided under the paper's conditions (1)"
    assert all(title.startswith(("Needs ", "No run ")) for title in titles[1:-3])
    assert titles[-3:] == [
        "Evidence",
        "Where the papers' numbers were read",
        "Not stated by the papers, or doubtful",
    ]
    decided, second = (out.partition(title)[2].partition("###")[0] for title in titles[:2])
    assert "recurrent forms are equivalent" in decided
    assert "`retbench run EXPERIMENT --profile paper`" in second
    first_row = [line for line in second.splitlines() if line.startswith("| ")][2]
    assert "other conditions" in first_row, "measured claims come first"


@pytest.mark.parametrize("width", [60, 80, 140])
def test_on_a_terminal_the_columns_fit_its_width(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retbench.cli.layout.terminal_width", lambda: width)
    monkeypatch.setattr("retbench.cli.claims.terminal_width", lambda: width)
    results = write_results(tmp_path / "results", Maker(CPU).latency())
    code, out, _ = run("--results", str(results), "--format", "text")
    assert code == 0
    assert max(map(len, out.splitlines())) <= width
    assert "|" not in out
    assert "claims under the papers" in out.splitlines()[0]
    heads = [line.split() for line in out.splitlines() if line.startswith("claim ")]
    assert ("paper" in heads[0]) == (width == 140)
    assert "…" not in out


def test_what_retbench_lacks_is_said_once_per_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = run()[1]
    assert out.count("Workloads that retbench does not have yet") == 1
    assert out.count("`retbench run EXPERIMENT --profile paper`, where EXPERIMENT is memory") == 1


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
