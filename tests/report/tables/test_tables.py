"""Tables: base units for machines, readable units for people, and a status wherever there is no value."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from report.synthetic_records import CPU, Maker, with_mixer
from retbench.cli import app
from retbench.errors import ConfigError, RecordError
from retbench.records.record import Metric, Record
from retbench.report import lineup
from retbench.report.contents import contents_of
from retbench.report.selection import select
from retbench.report.tables.experiments import table_of
from retbench.report.tables.formats import FORMATS, render


def build_table(records: Sequence[Record], experiment: str) -> pd.DataFrame:
    """The table of an experiment's newest comparable records."""
    return table_of(contents_of(select(records, experiment)), experiment)


def render_table(records: Sequence[Record], experiment: str, form: str) -> str:
    """The same table as a command prints it."""
    contents = contents_of(select(records, experiment))
    return render(table_of(contents, experiment), form, contents.labels)


def test_one_row_a_model_workload_batch_and_length(cpu_records: list[Record]) -> None:
    table = build_table(cpu_records, "latency")
    assert len(table) == 2 * 6 + 2 * 2
    assert not table.duplicated(["model", "workload", "batch_size", "context_len"]).any()
    assert set(table["status"]) == {"ok"}
    assert set(table["rounds_ok"]) == set(table["rounds"]) == {5}


def test_values_are_those_of_the_records_in_base_units(cpu_records: list[Record]) -> None:
    rows = build_table(cpu_records, "memory").to_dict(orient="records")
    by_point = {(row["model"], row["context_len"]): row for row in rows}
    for record in (r for r in cpu_records if r.workload == "memory"):
        row = by_point[record.model.name, record.point.context_len]
        for name in ("peak_bytes", "weight_bytes", "state_bytes", "workspace_bytes", "expected_state_bytes"):
            assert row[name] == record.metrics[name].value


def test_the_command_names_a_cache_that_is_copied_at_every_token(
    cpu_records: list[Record], tmp_path: Path
) -> None:
    def printed(cache: str) -> str:
        folder = tmp_path / cache
        folder.mkdir()
        lines = []
        for record in (record for record in cpu_records if record.workload == "memory"):
            fields = {} if record.model.name != "transformer" or cache == "preallocated" else {"cache": cache}
            model = record.model.model_copy(update={"config": with_mixer(record.model.config, **fields)})
            lines.append(record.model_copy(update={"model": model}).model_dump_json())
        (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return CliRunner().invoke(app, ["table", "memory", "--results", str(folder)]).stderr

    assert "unusual: transformer copies its key-value cache at every token" in printed("concat")
    assert "unusual" not in printed("preallocated")


def test_the_ratio_is_the_challengers_and_of_the_first_metric(cpu_records: list[Record]) -> None:
    table = build_table(cpu_records, "memory")
    wide = table.pivot(index="context_len", columns="model", values="peak_bytes")
    mine = table[table["model"] == "retnet"].set_index("context_len")["ratio_to_reference"]
    assert mine.to_list() == pytest.approx((wide["retnet"] / wide["transformer"]).to_list())
    assert table[table["model"] == "transformer"]["ratio_to_reference"].isna().all()
    assert table["reference"].dropna().to_list() == ["transformer"] * len(mine)


def test_the_heading_of_the_ratio_names_another_baseline(
    cpu_records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineup, "is_baseline", lambda architecture: architecture == "retnet")
    text = render_table(cpu_records, "memory", "md")
    assert "memory ratio to RetNet" in text
    assert "Transformer" not in text
    table = build_table(cpu_records, "memory").set_index("model")
    assert set(table.loc["transformer", "reference"]) == {"retnet"}
    assert (table.loc["transformer", "ratio_to_reference"] > 1).all()


def test_an_interval_surrounds_its_value(cpu_records: list[Record]) -> None:
    table = build_table(cpu_records, "latency")
    decode = table[table["workload"] == "decode"]
    for name in ("tpot_s", "roofline_ratio"):
        assert (decode[f"{name}_low"] < decode[name]).all()
        assert (decode[name] < decode[f"{name}_high"]).all()


def test_csv_reads_back_as_the_table(cpu_records: list[Record], gpu_records: list[Record]) -> None:
    for records in (cpu_records, gpu_records):
        table = build_table(records, "latency")
        back = pd.read_csv(io.StringIO(render(table, "csv")))
        pd.testing.assert_frame_equal(back, table, check_dtype=False)


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-2+3", "@SUM(A1)"])
def test_no_cell_of_csv_is_a_formula(name: str) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        metrics = {"loss_nats": Metric(unit="nats", value=-2.5), name: Metric(unit="nats", value=1.0)}
        model = arguments["model"].model_copy(update={"name": name})
        return arguments | {"workload": name, "metrics": metrics, "model": model}

    text = render(build_table(Maker(CPU, change=change).memory(lengths=(1024,)), "memory"), "csv")
    header, *rows = csv.reader(io.StringIO(text))
    assert f"'{name}" in header
    assert rows[0][:2] == [f"'{name}"] * 2
    assert rows[0][header.index("loss_nats")] == "-2.5"
    assert not [cell for row in [header, *rows] for cell in row if cell.startswith(("=", "+", "@"))]


@pytest.mark.parametrize(
    "command", [*(["table", "memory", "--format", form] for form in FORMATS), ["claims"]]
)
def test_no_control_character_of_a_folder_reaches_the_terminal(tmp_path: Path, command: list[str]) -> None:
    clear = "\x1b[2J\x9b\u202e"
    records = Maker(CPU).memory(lengths=(1024, 2048))
    lines = [
        record.model_dump_json().replace("retnet", f"ret{json.dumps(clear)[1:-1]}net") for record in records
    ]
    (tmp_path / f"run{clear}.jsonl").write_text(
        "\n".join([*lines, f'{{"{clear}', f'{{"schema_version": "{clear}"}}']), encoding="utf-8"
    )
    done = CliRunner().invoke(app, [*command, "--results", str(tmp_path)])
    assert done.exit_code == 0
    assert done.stderr.count("run\\x1b[2J\\x9b\\u202e.jsonl:") == 2
    assert done.output.replace("\n", "").replace("\t", "").replace("\u00a0", " ").isprintable()


def test_json_is_a_list_of_rows_with_null_for_what_is_not_defined(cpu_records: list[Record]) -> None:
    table = build_table(cpu_records, "latency")
    rows = json.loads(render(table, "json"))
    assert [row["context_len"] for row in rows] == table["context_len"].to_list()
    prefill = next(row for row in rows if row["workload"] == "prefill")
    assert prefill["tpot_s"] is None
    assert prefill["ttft_s"] == table[table["workload"] == "prefill"]["ttft_s"].iloc[0]


def test_markdown_has_readable_units_and_a_table_a_workload(cpu_records: list[Record]) -> None:
    text = render_table(cpu_records, "latency", "md")
    assert text.startswith(
        "### decode\n\n| model | batch | context | time per token | time ratio to Transformer |"
    )
    assert "\n### prefill\n" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| retnet | 1 | 32K |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[3] == "9.32 [9.17, 9.46] ms"
    assert cells[4] == "0.223 [0.218, 0.227]"
    assert cells[-1] == "5 of 5"


def test_training_has_a_ratio_of_times_to_fused_attention_at_every_length(
    training_records: list[Record],
) -> None:
    table = build_table(training_records, "training_cost")
    fused = table["model"] == "transformer_fused"
    assert table[fused]["ratio_to_reference"].isna().all()
    for name in ("ratio_to_reference", "step_s"):
        rows = table[~fused]
        assert ((rows[f"{name}_low"] < rows[name]) & (rows[name] < rows[f"{name}_high"])).all()
    parts = ["weight_bytes", "gradient_bytes", "optimizer_bytes", "workspace_bytes"]
    assert (table[parts].sum(axis=1) == table["peak_bytes"]).all()
    text = render_table(training_records, "training_cost", "md")
    assert "| context | time per step | time ratio to fused Transformer | tokens/s | peak memory |" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| retnet_chunkwise | 1 | 8K |")]
    assert "| 1.24 [1.22, 1.26] s | 0.204 [0.200, 0.208] | 6.61 [6.53, 6.69] k | 564 MiB |" in row


def test_an_interval_over_two_units_names_both() -> None:
    def spread(arguments: dict[str, Any]) -> dict[str, Any]:
        seconds = 0.0009 * 1.5 ** arguments["round"]
        return arguments | {"metrics": {"tpot_s": Metric(unit="s", value=seconds)}}

    records = [r for r in Maker(CPU, change=spread).latency(lengths=(1024,)) if r.workload == "decode"]
    text = render(build_table(records, "latency"), "md")
    assert "| 2.02 ms [914 µs, 4.49 ms] |" in text


def test_latex_is_a_booktabs_tabular_without_raw_specials(cpu_records: list[Record]) -> None:
    text = render(build_table(cpu_records, "latency"), "latex")
    assert text.count(r"\begin{tabular}{lrrr") == text.count(r"\end{tabular}") == 2
    assert text.count(r"\toprule") == 2
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(rows) == 16 + 2
    assert all("%" not in row.replace(r"\%", "") and "_" not in row.replace(r"\_", "") for row in rows)


@pytest.mark.parametrize("form", FORMATS)
def test_a_failed_cell_shows_its_status_and_never_a_zero_or_a_blank(
    gpu_records: list[Record], form: str
) -> None:
    text = render(build_table(gpu_records, "latency"), form)
    word = "out of memory" if form in ("md", "latex") else "oom"
    assert text.count(word) == 2
    for line in text.splitlines():
        if word in line and form != "json":
            cells = line.replace("\\\\", "").replace("&", "|").replace(",", "|").strip("| ").split("|")
            assert all(cell.strip() not in ("", "0", "0.0", "nan") for cell in cells if cell != "0")


def test_all_points_failed_still_makes_a_table() -> None:
    def fail(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"status": "gate_failed", "metrics": {}, "error": "the forms disagree"}

    records = Maker(CPU, change=fail).memory()
    text = render(build_table(records, "memory"), "md")
    assert text.count("forms disagree") == 12
    assert "weights + state + workspace" in text


def test_a_point_that_only_the_other_model_has_is_missing(cpu_records: list[Record]) -> None:
    records = [
        r
        for r in cpu_records
        if (r.model.name, r.workload, r.point.context_len) != ("transformer", "decode", 4096)
    ]
    table = build_table(records, "latency")
    row = table[(table["model"] == "transformer") & (table["context_len"] == 4096)].iloc[0]
    assert (row["status"], row["rounds_ok"], row["rounds"]) == ("missing", 0, 5)
    assert "| transformer | 1 | 4K | not measured |" in render(table, "md")


def test_some_failed_rounds_are_counted_beside_the_value(cpu_records: list[Record]) -> None:
    records = [
        r.model_copy(update={"status": "timeout", "metrics": {}})
        if r.round == 4 and r.workload == "decode"
        else r
        for r in cpu_records
    ]
    text = render(build_table(records, "latency"), "md")
    assert text.count("4 of 5") == 12


def test_a_workload_that_is_not_known_here_shows_what_it_measured() -> None:
    def other(arguments: dict[str, Any]) -> dict[str, Any]:
        metrics = {"loss_nats": Metric(unit="nats", value=2.5)}
        return arguments | {"workload": "recall", "metrics": metrics}

    table = build_table(Maker(CPU, change=other).memory(lengths=(1024,)), "memory")
    assert list(table["loss_nats"]) == [2.5, 2.5]
    assert "recall" in render(table, "csv")
    assert "| model | batch | context | loss_nats | rounds |" in render(table, "md")
    assert "| retnet | 1 | 1K | 2.500 | 1 of 1 |" in render(table, "md")


def test_an_unknown_workload_may_have_records_of_cost_and_of_quality() -> None:
    def other(arguments: dict[str, Any]) -> dict[str, Any]:
        task = "piqa" if arguments["model"].name == "retnet" else None
        point = arguments["point"].model_copy(update={"task": task})
        return arguments | {
            "workload": "recall",
            "point": point,
            "metrics": {"acc": Metric(unit="ratio", value=0.5)},
        }

    table = build_table(Maker(CPU, change=other).memory(lengths=(1024,)), "memory")
    assert len(table) == 2
    text = render(table, "md")
    assert "1 of 1" in text
    assert "piqa" in text


def test_an_unknown_workload_that_failed_says_so() -> None:
    def fail(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"workload": "recall", "status": "failed", "metrics": {}}

    text = render(build_table(Maker(CPU, change=fail).memory(lengths=(1024,)), "memory"), "md")
    assert "| retnet | 1 | 1K | failed | 0 of 1 |" in text


def test_mistakes_are_answered_with_the_nearest_name(cpu_records: list[Record]) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'memory'"):
        build_table(cpu_records, "memroy")
    with pytest.raises(ConfigError, match=r"--format: unknown table format 'markdown'"):
        render(build_table(cpu_records, "memory"), "markdown")
    with pytest.raises(RecordError):
        build_table([], "memory")


def test_energy_is_shown_where_there_is_a_counter_and_leaves_no_trace_where_not(
    cpu_records: list[Record],
) -> None:
    def count_energy(arguments: dict[str, Any]) -> dict[str, Any]:
        joules = 0.5 + arguments["round"] / 100
        energy = {
            "energy_per_token_j": Metric(unit="J", value=joules),
            "power_w": Metric(unit="W", value=300.0),
        }
        return arguments | {"metrics": arguments["metrics"] | energy, "absent": {}}

    table = build_table(Maker(CPU, change=count_energy).latency(), "latency")
    text = render(table, "md")
    assert "| energy per token | power |" in text
    assert "mJ |" in text
    assert "| 300 W |" in text
    assert (table["energy_per_token_j_low"] < table["energy_per_token_j"]).all()
    assert not {"energy_per_token_j", "power_w"} & set(build_table(cpu_records, "latency").columns)


def test_batch_sizes_follow_each_other_where_they_are_what_is_swept(swept_records: list[Record]) -> None:
    table = build_table(swept_records, "throughput")
    decode = table[table["workload"] == "decode"]
    assert list(decode["batch_size"]) == [1, 2, 4, 8, 16, 32, 64] * 4
    assert list(decode["context_len"]) == [1024] * 7 + [4096] * 7 + [1024] * 7 + [4096] * 7
    measured = decode[decode["status"] == "ok"]
    assert (measured["tokens_per_s_low"] < measured["tokens_per_s"]).all()
    assert (measured["tokens_per_s"] < measured["tokens_per_s_high"]).all()
    assert measured["tokens_per_s"].to_list() == pytest.approx(
        (measured["batch_size"] / measured["tpot_s"]).to_list()
    )


def test_the_largest_batch_is_shown_with_its_analytical_value(swept_records: list[Record]) -> None:
    text = render_table(swept_records, "throughput", "md").partition("### largest_batch\n\n")[2]
    assert text.startswith(
        "| model | context | largest batch | ratio to Transformer | resolution | analytical |"
    )
    assert "| retnet | 4K | 140 | 17.5 | 4 | 140 | 954 MiB |" in text
    assert "| transformer | 4K | 8 | – | 1 | 8 | 954 MiB |" in text
