"""The committed records: they are read, they name no folder of a machine, and the pages say what they say."""

import re
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from retbench.cli import app
from retbench.records.store import read_records

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "results" / "published"
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUALITY = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")


def test_every_record_is_read() -> None:
    records, problems = read_records(PUBLISHED)
    assert problems == []
    assert all(record.pair_id for record in records if record.schema_version < 3), "they keep what they say"
    assert {record.workload for record in records} >= {"decode", "memory", "training_run", "perplexity"}
    assert all(record.status == "ok" or record.workload in ("decode", "training") for record in records)
    assert {record.status for record in records} == {"ok", "oom"}, (
        "a cache and a matrix of scores fill their memory"
    )


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


def output(page: str, name: str) -> str:
    """What a page shows of the output of commands."""
    (block,) = re.findall(rf"<!-- begin output: {name}.*?-->(.*?)<!-- end output -->", page, flags=re.DOTALL)
    return str(block)


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row of Markdown tables, headings too."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if re.match(r"\| (?!:-)", line)
    ]


def test_the_page_on_quality_has_the_tables_of_the_records() -> None:
    rows = rows_of(output(QUALITY, "quality"))
    assert len(rows) > 20
    told = CliRunner().invoke(app, ["table", "quality", "--results", str(PUBLISHED)])
    assert told.exit_code == 0, told.output
    assert [row for row in rows if row not in rows_of(told.stdout)] == []


def test_the_readme_has_rows_of_the_records_with_fewer_columns() -> None:
    rows = rows_of(output(README, "the tables"))
    assert len(rows) == 10
    told = [
        row
        for name in ("latency", "memory")
        for row in rows_of(
            CliRunner()
            .invoke(app, ["table", name, "--results", str(PUBLISHED)], catch_exceptions=False)
            .stdout
        )
    ]
    for row in rows:
        # Each cell is looked for behind the one before it, so that the order counts.
        full = [iter(row_told) for row_told in told]
        assert any(all(cell in cells for cell in row) for cells in full), f"README.md is out of date: {row}"


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the figures that the report draws of the committed records."""
    out = tmp_path_factory.mktemp("page")
    told = CliRunner().invoke(app, ["report", "--results", str(PUBLISHED), "--out", str(out)])
    assert told.exit_code == 0, told.output
    return out / "figures"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "docs" / "quality.md"], ids=lambda page: page.stem
)
def test_every_figure_of_a_page_shows_the_records(page: Path, figures: Path) -> None:
    """By its data: how it is drawn changes with matplotlib."""
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert shown
    for figure in shown:
        kept = page.parent / figure
        assert kept.is_file()
        data, drawn = (pd.read_csv(path) for path in (kept.with_suffix(".csv"), figures / f"{kept.stem}.csv"))
        pd.testing.assert_frame_equal(data, drawn)
