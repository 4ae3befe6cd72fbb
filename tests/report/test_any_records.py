"""Any records that fit the schema make a report: odd names, missing facts, numbers out of place."""

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from report.synthetic_records import CPU, Maker
from retbench.records.record import Documents, Metric, ModelInfo, Point, Record, Series, WeightsInfo
from retbench.records.store import append_record
from retbench.report.contents import contents_of
from retbench.report.findings.answer import find_answer
from retbench.report.report import make_page, write_report
from retbench.report.results import Results
from retbench.report.selection import select
from retbench.report.tables.experiments import table_of
from retbench.report.tables.formats import FORMATS, render
from retbench.units import stated_unit
from retbench.workloads.workload import WORKLOADS, MetricSpec, Workload

PROTOTYPE = Maker(CPU).record("latency", "retnet", "decode", 1, 1024, 0)
METRICS = (
    "tpot_s",
    "ttft_s",
    "step_s",
    "tokens_per_s",
    "roofline_ratio",
    "peak_bytes",
    "weight_bytes",
    "state_bytes",
    "workspace_bytes",
    "bits_per_byte",
    "nats_per_token",
    "acc",
    "learning_rate",
    "validation_loss_nats",
    "num_tokens",
)

name = st.sampled_from(["retnet", "transformer", "$x_1$ & <b>|%", "../../up"])
plain = (
    st.none()
    | st.booleans()
    | st.integers(-5, 10**12)
    | st.floats(-1e6, 1e6)
    | st.text(string.printable, max_size=6)
)
facts = st.dictionaries(
    st.sampled_from(
        ["machine", "versions", "cpu_model", "gpu", "load_average", "gpu_state", "physical_cores"]
    ),
    plain
    | st.lists(plain, max_size=2)
    | st.dictionaries(st.sampled_from(["name", "torch", "after"]), plain, max_size=2),
    max_size=4,
)
models = st.builds(
    ModelInfo,
    name=name,
    architecture=st.sampled_from(["retnet", "transformer", "mamba"]),
    variant=st.just("v"),
    size=st.sampled_from(["s", "6.7b"]),
    num_params=st.integers(0, 10**10),
    num_params_nonembedding=st.integers(0, 10**10),
    config=st.just(PROTOTYPE.model.config) | st.dictionaries(st.just("d_model"), plain),
    weights=st.none()
    | st.builds(
        WeightsInfo,
        source=st.just("$x$ <b>"),
        fingerprint=st.sampled_from(["1", "2"]),
        format=st.just("retbench"),
        seed=st.none() | st.integers(0, 2),
        num_tokens=st.none() | st.integers(0, 10**12),
    ),
)
odd_records = st.builds(
    lambda **fields: PROTOTYPE.model_copy(update=fields),
    experiment=st.sampled_from(["latency", "a/b c"]),
    cell_id=st.sampled_from(["1", "2", "3"]),
    round=st.integers(0, 2),
    started_at=st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00", "never"]),
    status=st.sampled_from(["ok", "ok", "oom", "gate_failed"]),
    error=st.none() | st.text(string.printable, max_size=8),
    model=models,
    workload=st.sampled_from([*WORKLOADS, "other"]),
    point=st.builds(
        Point,
        batch_size=st.integers(1, 2),
        context_len=st.sampled_from([1, 1000, 1024, 4096]),
        task=st.sampled_from([None, "piqa", "$x_1$ & <b>|%", "../../up"]),
        protocol=st.sampled_from([None, "whole"]),
        num_fewshot=st.none() | st.integers(0, 4),
    ),
    series=st.dictionaries(
        st.sampled_from(["loss_by_position", "validation_loss_nats"]),
        st.lists(st.tuples(st.floats(1, 1e4), st.floats(-1e3, 1e3)), max_size=3).map(
            lambda points: Series(
                unit="nats", x_name="position", x=[x for x, _ in points], y=[y for _, y in points]
            )
        ),
    ),
    documents=st.none()
    | st.builds(Documents, file=st.just("x.gz"), sha256=st.just(""), num_documents=st.integers(0, 9)),
    settings=st.just(PROTOTYPE.settings)
    | st.dictionaries(st.sampled_from(["dtype", "device", "threads"]), plain | st.lists(plain, max_size=1)),
    environment=st.just(PROTOTYPE.environment) | facts,
    gate=st.sampled_from([PROTOTYPE.gate, None]),
    ceilings=st.sampled_from([PROTOTYPE.ceilings, None]),
    metrics=st.dictionaries(
        st.sampled_from(METRICS),
        st.builds(Metric, unit=st.just("s"), value=st.floats(1e-9, 1e12))
        | st.builds(Metric, unit=st.just("nats"), value=st.sampled_from([0.0, -1.0])),
    ),
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(odd_records, min_size=1, max_size=6))
def test_any_records_make_a_report_and_every_table(records: list[Record]) -> None:
    report = make_page(Results(tuple(records), ()))
    sources = report.evidence[-1].blocks[-1].content
    assert sources["records used"].astype(int).sum() <= len(records)
    assert all(line.lead for line in find_answer(contents_of(select(records))).lines)
    for experiment in {record.experiment for record in records}:
        table = table_of(contents_of(select(records, experiment)), experiment)
        assert len(table) > 0
        assert all(render(table, form).endswith("\n") for form in FORMATS)


@pytest.mark.parametrize(
    ("part", "facts"),
    [
        ("environment", {"memory_bytes": True}),
        pytest.param("environment", {"memory_bytes": "8 GiB"}, marks=pytest.mark.slow),
        ("environment", {"load_average": {"a": 1}, "versions": [1], "gpu": "none", "node_id": []}),
        pytest.param(
            "settings",
            {"memory_limit_bytes": [1], "threads": "two", "dtype": {}, "device": None},
            marks=pytest.mark.slow,
        ),
        ("backend", {"decode": 2**60, "seed": "one"}),
        pytest.param("config", {"blocks": 5, "d_model": "wide"}, marks=pytest.mark.slow),
        ("config", {"blocks": [{"mixer": {"mixer": 5}}]}),
    ],
)
def test_facts_of_another_type_are_shown_as_they_are(part: str, facts: dict[str, Any]) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        if part == "config":
            model = arguments["model"]
            return arguments | {"model": model.model_copy(update={"config": model.config | facts})}
        return arguments | {part: arguments[part] | facts}

    maker = Maker(CPU, change=change)
    records = (*maker.latency((1024, 2048)), *maker.memory((1024,)))
    assert make_page(Results(records, ())).sections
    assert len(table_of(contents_of(select(records, "latency")), "latency")) == 8


@pytest.mark.parametrize(
    "fields", [{"experiment": "../../up"}, {"experiment": "$x$ <b>", "workload": "memory"}]
)
def test_a_name_never_leads_out_of_the_folder_nor_into_the_page(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    append_record(tmp_path / "in" / "run.jsonl", PROTOTYPE.model_copy(update=fields))
    out = tmp_path / "deep" / "out"
    for path in write_report(tmp_path / "in", out).paths:
        assert path.resolve().is_relative_to(out.resolve())
    assert "<b>" not in (out / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name, known in WORKLOADS.items() if not known.measures_cost])
@pytest.mark.parametrize("metric", ["acc", "state_bytes", "guess"])
def test_a_score_without_its_companions_makes_a_report(name: str, metric: str) -> None:
    """A damaged record, or one of another version, may lack what a figure places it by."""
    documents = Documents(file="x.gz", sha256="", num_documents=3)
    update = {"workload": name, "metrics": {metric: Metric(unit="ratio", value=0.5)}, "documents": documents}
    records = [
        Maker(CPU).record("scores", model, "decode", 1, 1024, 0).model_copy(update=update)
        for model in ("retnet", "transformer")
    ]
    assert make_page(Results(tuple(records), ())).evidence


def test_scores_of_a_package_are_shown_as_answers_whatever_its_metrics_are_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = tuple(
        MetricSpec(name, name, lower_is_better=False, unit=stated_unit(name) or "ratio")
        for name in ("acc", "guess", "choice", "state_bytes")
    )
    theirs = Workload("riddles", "Riddles", metrics, "accuracy", replicate="document")
    monkeypatch.setitem(WORKLOADS.__dict__, "_found", {**WORKLOADS, "riddles": theirs})
    values = {spec.name: Metric(unit="ratio", value=0.5) for spec in metrics}
    documents = Documents(file="x.gz", sha256="", num_documents=3)
    update = {"workload": "riddles", "metrics": values, "documents": documents}
    records = [
        Maker(CPU).record("scores", model, "decode", 1, 1024, 0).model_copy(update=update)
        for model in ("retnet", "transformer")
    ]
    page = make_page(Results(tuple(records), ()))
    assert any("riddles" in str(block.content) for section in page.evidence for block in section.blocks)
