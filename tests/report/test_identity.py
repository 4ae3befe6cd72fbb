"""Records do not depend on the other models of their experiment; models of different sessions are compared unpaired."""

import io
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from retbench.records.record import Record
from retbench.report.contents import Contents, contents_of
from retbench.report.findings.costs import find_costs
from retbench.report.results import load_results
from retbench.report.selection import select
from retbench.report.tables.experiments import RATIO, UNPAIRED, table_of
from retbench.report.tables.formats import render
from retbench.report.tables.readable import readable_tables

PUBLISHED = Path(__file__).parents[2] / "results" / "published"
EXPERIMENT = "latency"


@pytest.fixture(scope="module")
def published() -> list[Record]:
    return [record for record in load_results(PUBLISHED).records if record.experiment == EXPERIMENT]


def third_model(
    records: list[Record], *, size: float = 1.0, run_id: str = "20261126T230000Z"
) -> list[Record]:
    """Records of a model of an architecture that is not installed here, twice as fast as the Transformer."""
    made = []
    for record in records:
        if record.model.name != "transformer":
            continue
        info = record.model.model_copy(
            update={
                "name": "linear",
                "architecture": "linear_attention",
                "num_params_nonembedding": round(size * record.model.num_params_nonembedding),
                "config": {"d_model": 512, "feature_map": "elu + 1"},
            }
        )
        metrics = {
            name: metric.model_copy(update={"value": metric.value / 2}) if name.endswith("_s") else metric
            for name, metric in record.metrics.items()
        }
        own = {"model": info, "metrics": metrics, "cell_id": f"{record.cell_id[:-1]}x"}
        other = {"run_id": run_id, "pair_id": "another", "started_at": "2026-11-26T23:00:00Z"}
        made.append(record.model_copy(update=own | other))
    return made


def contents(records: list[Record]) -> Contents:
    return contents_of(select(records, EXPERIMENT))


def rows_of(table: pd.DataFrame, model: str) -> pd.DataFrame:
    return table[table["model"] == model].reset_index(drop=True)


def test_a_third_model_leaves_every_published_record_in_the_table(published: list[Record]) -> None:
    before = table_of(contents(published), EXPERIMENT)
    selection = select([*published, *third_model(published)], EXPERIMENT)
    assert {id(record) for record in published} <= {id(record) for record in selection.records}
    assert selection.left_out == ()
    after = table_of(contents_of(selection), EXPERIMENT)
    assert UNPAIRED not in before
    for model in ("retnet", "transformer"):
        assert rows_of(after[before.columns], model).equals(rows_of(before, model))
    assert len(rows_of(after, "linear")) == len(rows_of(before, "transformer"))


def test_models_of_different_sessions_have_an_unpaired_ratio(published: list[Record]) -> None:
    found = contents([*published, *third_model(published)])
    table = table_of(found, EXPERIMENT)
    mine = rows_of(table, "linear")
    assert mine[RATIO].to_list() == pytest.approx([0.5] * len(mine))
    assert mine[UNPAIRED].all()
    assert not rows_of(table, "retnet")[UNPAIRED].any()
    assert (mine[f"{RATIO}_low"] < 0.5).all()
    assert (mine[f"{RATIO}_high"] > 0.5).all()
    readable = readable_tables(table, found.labels)["decode"].frame.set_index("model")[
        "time ratio to Transformer"
    ]
    assert all(text.endswith("(unpaired)") for text in readable["linear"])
    assert not any("unpaired" in text for text in readable["retnet"])
    texts = [f.text for f in find_costs(found.sweeps) if "linear_attention is 2.00× faster" in f.text]
    assert texts
    assert all("unpaired" in text for text in texts)
    columns = pd.read_csv(io.StringIO(render(table, "csv"))).columns
    assert UNPAIRED in columns


def test_a_ratio_of_fewer_rounds_than_have_a_value_says_so(published: list[Record]) -> None:
    def is_torn(record: Record) -> bool:
        return record.model.name == "transformer" and (record.round, record.point.context_len) == (0, 1024)

    torn = [
        record.model_copy(update={"run_id": "continued"}) if is_torn(record) else record
        for record in published
    ]
    found = contents(torn)
    readable = readable_tables(table_of(found, EXPERIMENT), found.labels)["decode"].frame
    num_rounds = len({record.round for record in published})
    assert Counter(readable["rounds"]) == {
        f"{num_rounds} of {num_rounds}": len(readable) - 1,
        f"{num_rounds} of {num_rounds} ({num_rounds - 1} paired)": 1,
    }


def test_models_of_one_session_stay_paired(published: list[Record]) -> None:
    found = third_model(published, run_id=published[0].run_id)
    table = table_of(contents([*published, *found]), EXPERIMENT)
    assert UNPAIRED not in table
    mine = rows_of(table, "linear")
    assert (mine[f"{RATIO}_high"] / mine[f"{RATIO}_low"]).to_list() == pytest.approx([1.0] * len(mine))


def test_a_model_of_another_parameter_count_is_shown_and_not_compared(published: list[Record]) -> None:
    found = contents([*published, *third_model(published, size=1.02)])
    mine = rows_of(table_of(found, EXPERIMENT), "linear")
    assert mine["tpot_s"].notna().any()
    assert mine[RATIO].isna().all()
    (refusal,) = found.refusals
    assert refusal.startswith("linear_attention and the Transformer in latency: the models are not matched")
    assert not [f for f in find_costs(found.sweeps) if "linear" in f.text]
