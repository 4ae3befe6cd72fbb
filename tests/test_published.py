"""The committed records: they are read, they name no folder of a machine, and the pages say what they say."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from retbench.cli import app
from retbench.records import read_records

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "results" / "published"
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUALITY = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")


def test_every_record_is_read() -> None:
    records, problems = read_records(PUBLISHED)
    assert problems == []
    assert {record.workload for record in records} >= {"decode", "memory", "training_run", "perplexity"}
    assert all(record.status == "ok" or record.workload == "decode" for record in records)
    assert {record.status for record in records} == {"ok", "oom"}, "the throughput's cache fills its memory"


def test_the_documents_of_every_score_are_there() -> None:
    records, _ = read_records(PUBLISHED)
    files = [record.documents.file for record in records if record.documents]
    assert files
    assert {path.name for path in PUBLISHED.rglob("*.documents.jsonl.gz")} == set(files)


def test_no_record_names_a_folder() -> None:
    for path in PUBLISHED.rglob("*.jsonl"):
        assert not re.search(
            r'[" =]/(?:home|root|work|tmp|mnt|data|Users)\b', path.read_text(encoding="utf-8")
        ), path


def test_the_readme_has_the_claims_of_the_records() -> None:
    (block,) = re.findall(r"<!-- begin claims: .* -->\n(.*?)<!-- end claims -->", README, flags=re.DOTALL)
    told = CliRunner().invoke(app, ["claims", "--format", "short", "--results", str(PUBLISHED)])
    assert told.exit_code == 0, told.output
    assert block == told.stdout, "README.md is out of date: make pages"


def test_the_page_on_quality_has_the_tables_of_the_records() -> None:
    (block,) = re.findall(r"<!-- begin output: quality -->(.*?)<!-- end output -->", QUALITY, flags=re.DOTALL)
    rows = [line for line in block.splitlines() if re.match(r"\| (?!:-)", line)]
    assert len(rows) > 20
    told = CliRunner().invoke(app, ["table", "quality", "--results", str(PUBLISHED)])
    assert told.exit_code == 0, told.output
    assert [row for row in rows if row not in told.stdout.splitlines()] == []


@pytest.mark.parametrize("figure", re.findall(r"!\[[^]]*\]\(([^)]+)\)", QUALITY))
def test_every_figure_of_the_page_is_drawn_by_the_report(figure: str, tmp_path: Path) -> None:
    """By its name: what is in it changes with matplotlib."""
    told = CliRunner().invoke(app, ["report", "--results", str(PUBLISHED), "--out", str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert Path(figure).name in {path.name for path in tmp_path.rglob("*.svg")}
