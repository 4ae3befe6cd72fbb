"""Cells of the page: text, and the number by which a column is sorted."""

import pandas as pd
import pytest

from retbench.records.record import Record
from retbench.report.diagnostics import failure_table
from retbench.report.evaluations import Evaluations
from retbench.report.selection import select
from retbench.report.sweeps import make_sweeps
from retbench.report.tables.compact import cost_tables
from retbench.report.tables.experiments import cost_table, quality_table
from retbench.report.tables.formats import html_cells
from retbench.report.tables.readable import readable_tables
from retbench.report.trainings import weights_table


def keys_of(table: pd.DataFrame, heading: str) -> dict[str, float | None]:
    """The sort key of each text of a column."""
    at = list(table.columns).index(heading)
    cells = (row[at] for row in html_cells(table))
    return {text: None if key is None else float(key) for text, key in cells}


def test_a_column_is_sorted_in_base_units_whatever_units_it_is_written_in(gpu_records: list[Record]) -> None:
    frame = cost_table(make_sweeps(select(gpu_records, "latency")))
    keys = keys_of(readable_tables(frame)["prefill"].frame, "time to first token")
    units = {text.split()[-1] for text in keys}
    assert {"ms", "s"} <= units
    assert sorted(key for key in keys.values() if key) == pytest.approx(
        sorted(frame["ttft_s"].dropna()), rel=1e-5
    )


def test_a_cell_without_a_value_has_no_sort_key(gpu_records: list[Record]) -> None:
    table = readable_tables(cost_table(make_sweeps(select(gpu_records, "memory"))))["memory"].frame
    keys = keys_of(table, "weights + state + workspace")
    assert keys.pop("out of memory") is None
    assert None not in keys.values()


def test_lengths_sizes_and_scores_have_the_number_that_they_show(scores: Evaluations) -> None:
    table = readable_tables(quality_table(scores, "quality"))["zeroshot"].frame
    assert keys_of(table, "size")["6M"] > keys_of(table, "size")["1M"]  # type: ignore[operator]
    for text, key in keys_of(table, "transformer").items():
        assert (key is None) == (text == "–")
        if key is not None and "%" in text:
            assert 100 * key == pytest.approx(float(text.split()[0]), abs=0.06)
    assert set(keys_of(table, "metric").values()) == {None}


def test_ratios_are_sorted_by_their_value_and_not_by_their_words(swept_records: list[Record]) -> None:
    (table,) = (t for t in cost_tables(make_sweeps(select(swept_records))) if "decode" in t.caption)
    keys = keys_of(table.frame, table.frame.columns[-1])
    assert keys.pop("–") is None
    for text, key in keys.items():
        assert key is not None
        assert ("faster" in text.partition("[")[0]) == (key < 1)
    assert keys_of(table.frame, "batch")["64"] == 64


def test_tables_of_the_evidence_have_numbers_too(scores: Evaluations, gpu_records: list[Record]) -> None:
    assert all(key and key > 1e5 for key in keys_of(weights_table(scores), "tokens").values())
    assert set(keys_of(failure_table(gpu_records), "batch").values()) <= {1.0, 8.0}
    assert all(key and key >= 1024 for key in keys_of(failure_table(gpu_records), "context").values())
