"""Two record sets compared: what may be, what has moved, what is missing, and how it is shown."""

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from report.synthetic_records import CPU, GPU, Machine, Maker, write_results
from retbench.cli import app
from retbench.errors import NotComparableError, RecordError
from retbench.records.record import Metric, Record
from retbench.records.store import append_record
from retbench.regress.compare import compare_record_sets
from retbench.regress.decide import describe_lengths
from retbench.regress.items import MeasurementPoint
from retbench.regress.record_sets import load_record_set
from retbench.regress.report import CheckReport

LENGTHS = (1024, 8192, 32768)
HEAD = replace(CPU, code_revision="0.1.0+src.ba9876543210")
LATER = replace(HEAD, started=CPU.started + timedelta(days=1))
Change = Callable[[dict[str, Any]], dict[str, Any]]
Rewrite = Callable[[Record], Record | None]


def steady(arguments: dict[str, Any], factor: float = 1.0) -> dict[str, Any]:
    """A time of 10 ms for every model and point, a tenth of a percent of noise, and what it is slowed down by."""
    noise = 1 + 0.001 * math.sin(97 * arguments["round"] + 31 * arguments["point"].context_len)
    seconds = 0.01 * noise * factor
    main = {"decode": "tpot_s", "prefill": "ttft_s"}.get(arguments["workload"])
    if main and arguments["metrics"]:
        arguments["metrics"] = {main: Metric(unit="s", value=seconds)}
    return arguments


def slower(factor: float, model: str, from_length: int = 0) -> Change:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        hit = arguments["model"].name == model and arguments["point"].context_len >= from_length
        return steady(arguments, factor if hit and arguments["workload"] == "decode" else 1.0)

    return change


def write(
    path: Path, machine: Machine, change: Change = steady, rewrite: Rewrite = lambda record: record
) -> Path:
    records = Maker(machine, change=change).latency(LENGTHS)
    for record in records:
        kept = rewrite(record)
        if kept is not None:
            append_record(path, kept)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base.jsonl", CPU)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def report_of(first: Path, second: Path) -> CheckReport:
    return compare_record_sets(load_record_set(first), load_record_set(second))


def verdicts(report: CheckReport, kind: str) -> dict[str, str]:
    return {item.name: item.verdict for item in report.items if item.kind == kind}


def failures(report: CheckReport) -> list[str]:
    return [item.name for item in report.items if item.outcome == "failure"]


def test_the_same_twice_is_the_same(base: Path, tmp_path: Path) -> None:
    done = run(base, write(tmp_path / "head.jsonl", HEAD))
    assert done.exit_code == 0
    assert "19 same" in done.stdout
    assert "0123456789ab" in done.stdout
    assert "ba9876543210" in done.stdout


def test_records_are_not_compared_with_themselves(base: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy.jsonl"
    copied.write_bytes(base.read_bytes())
    for second in (base, copied):
        done = run(base, second)
        assert done.exit_code == RecordError.exit_code
        assert "have the same records" in done.stderr


def test_methods_that_were_found_by_trial_are_told_with_what_to_do(base: Path, tmp_path: Path) -> None:
    def other(record: Record) -> Record:
        return record.model_copy(update={"backend": record.backend | {"weight_product": "1 row: batched"}})

    done = run(base, write(tmp_path / "head.jsonl", HEAD, rewrite=other))
    assert done.exit_code == NotComparableError.exit_code
    assert "the second with --fresh" in done.stdout


def test_a_slow_down_is_found_named_and_fails(base: Path, tmp_path: Path) -> None:
    head = write(tmp_path / "head.jsonl", HEAD, slower(1.12, "retnet", 8192))
    done = run(base, head)
    assert done.exit_code == 1
    assert "decode of retnet slower at 8K and above: 1.120 [1.1" in done.stdout
    found = report_of(base, head)
    assert verdicts(found, "time")["decode of retnet, batch 1, 8K"] == "regressed"
    assert verdicts(found, "time")["decode of retnet, batch 1, 1K"] == "same"
    assert verdicts(found, "ratio")["decode of retnet/transformer, batch 1, 32K"] == "regressed"


def test_an_improvement_passes_and_is_reported(base: Path, tmp_path: Path) -> None:
    done = run(base, write(tmp_path / "head.jsonl", HEAD, slower(0.9, "retnet")))
    assert done.exit_code == 0
    assert "decode of retnet faster at every length from 1K to 32K: 0.900" in done.stdout


def test_a_better_reference_is_no_regression(base: Path, tmp_path: Path) -> None:
    head = write(tmp_path / "head.jsonl", HEAD, slower(0.9, "transformer"))
    found = report_of(base, head)
    assert verdicts(found, "ratio")["decode of retnet/transformer, batch 1, 1K"] == "regressed"
    assert failures(found) == []
    assert run(base, head).exit_code == 0


def test_a_better_reference_fails_nothing_in_another_session_either(base: Path, tmp_path: Path) -> None:
    head = write(tmp_path / "head.jsonl", LATER, slower(0.9, "transformer"))
    found = report_of(base, head)
    assert verdicts(found, "time")["decode of transformer, batch 1, 1K"] == "inconclusive"
    assert verdicts(found, "ratio")["decode of retnet/transformer, batch 1, 1K"] == "inconclusive"
    assert failures(found) == []
    assert run(base, head).exit_code == 0


@pytest.mark.parametrize(
    ("session", "model", "factor"), [(0.9, "retnet", 1.1), (0.8, "retnet", 1.1), (1.1, "transformer", 0.9)]
)
def test_which_model_moved_a_ratio_is_unknown_where_the_session_moved_too(
    base: Path, tmp_path: Path, session: float, model: str, factor: float
) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        hit = arguments["model"].name == model and arguments["workload"] == "decode"
        return steady(arguments, session * (factor if hit else 1.0))

    head = write(tmp_path / "head.jsonl", LATER, change)
    done = run(base, head, "--strict")
    assert done.exit_code == 4
    notes = [line for line in done.stdout.splitlines() if "either model may have moved" in line]
    assert [line.split()[:4] for line in notes] == [
        ["inconclusive", "decode", "of", "retnet/transformer,"]
    ] * 3
    assert run(base, head, "--accept-confounders").exit_code == 1


def test_memory_does_not_depend_on_the_session(tmp_path: Path) -> None:
    def smaller(arguments: dict[str, Any]) -> dict[str, Any]:
        peak, share = (
            arguments["metrics"]["peak_bytes"],
            0.9 if arguments["model"].name == "transformer" else 1.0,
        )
        return arguments | {"metrics": {"peak_bytes": Metric(unit="bytes", value=share * peak.value)}}

    base = write_results(tmp_path / "base", Maker(CPU).memory(LENGTHS))
    head = write_results(tmp_path / "head", Maker(LATER, change=smaller).memory(LENGTHS))
    found = report_of(base, head)
    assert set(verdicts(found, "ratio").values()) == {"regressed"}
    assert found.exit_code(strict=True) == 0


def test_less_than_the_margin_is_the_same_and_the_margin_can_be_set(base: Path, tmp_path: Path) -> None:
    head = write(tmp_path / "head.jsonl", HEAD, slower(1.015, "retnet"))
    assert run(base, head).exit_code == 0
    assert run(base, head, "--margin", "0.005").exit_code == 1
    assert run(base, head, "--margin", "2").exit_code == 2


def noisy(arguments: dict[str, Any]) -> dict[str, Any]:
    return steady(arguments, 1 + 0.1 * (-1) ** arguments["round"])


def test_noise_is_inconclusive_and_says_what_would_have_been_found(base: Path, tmp_path: Path) -> None:
    head = write(tmp_path / "head.jsonl", HEAD, noisy)
    done = run(base, head)
    assert done.exit_code == 0
    assert "inconclusive" in done.stdout
    assert "% or more would have been found" in done.stdout
    assert run(base, head, "--strict").exit_code == 4


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"torch_version": "2.14.0"}, "versions.torch: 2.13.0 | 2.14.0"),
        ({"threads": 4}, "settings.threads: 2 | 4"),
        ({"dtype": "bfloat16"}, "settings.dtype: float32 | bfloat16"),
        ({"name": "other-machine"}, "machine: epyc-9b14-2c | other-machine"),
        ({"size": "6m"}, "model.d_model"),
    ],
)
def test_comparability_keys_that_differ_are_shown_and_never_pass(
    base: Path, tmp_path: Path, change: dict[str, Any], fact: str
) -> None:
    done = run(base, write(tmp_path / "head.jsonl", replace(HEAD, **change), slower(1.5, "retnet")))
    assert done.exit_code == 3
    assert f"differs: {fact}" in done.stdout
    assert "not comparable" in done.stdout
    assert "regressed" not in done.stdout


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("settings", {"compile": True}),
        ("settings", {"prompts_fingerprint": "0123"}),
        ("backend", {"decode": "sdpa:flash"}),
        ("backend", {"kv_capacity": 40000}),
        ("environment", {"flush_denormal": False}),
        ("environment", {"torch_build": {"cuda": "12.8"}}),
        ("environment", {"gpu": {"cudnn_attention": True}}),
    ],
)
def test_every_comparability_key_counts(
    base: Path, tmp_path: Path, part: str, changed: dict[str, Any]
) -> None:
    def rewrite(record: Record) -> Record:
        return record.model_copy(update={part: {**getattr(record, part), **changed}})

    found = report_of(base, write(tmp_path / "head.jsonl", HEAD, rewrite=rewrite))
    assert [name for name in changed if any(name in one.fact for one in found.comparability_keys)] == list(
        changed
    )
    assert found.exit_code(strict=False) == 3


@pytest.mark.parametrize("failed_round", [None, 4])
def test_a_comparability_key_counts_in_whatever_rounds_it_differs(
    base: Path, tmp_path: Path, failed_round: int | None
) -> None:
    def rewrite(record: Record) -> Record:
        if record.round == failed_round:
            return failed(record).model_copy(update={"backend": {}})
        changed = {"decode": "other"} if record.workload == "decode" and record.round < 4 else {}
        return record.model_copy(update={"backend": {**record.backend, **changed}})

    head = write(tmp_path / "head.jsonl", HEAD, rewrite=rewrite)
    words = ["ran.decode: recurrent | other", "ran.decode: sdpa:math | other"]
    assert sorted(str(one) for one in report_of(base, head).comparability_keys) == words
    backwards = sorted(str(one) for one in report_of(head, base).comparability_keys)
    assert backwards == ["ran.decode: other | recurrent", "ran.decode: other | sdpa:math"]


def test_what_varies_alike_on_both_sides_is_no_difference(tmp_path: Path) -> None:
    def vary(turn: int) -> Rewrite:
        def rewrite(record: Record) -> Record:
            kernel = ("sdpa:math", "sdpa:flash")[(record.round + turn) % 2]
            return record.model_copy(update={"backend": {**record.backend, "decode": kernel}})

        return rewrite

    sides = [write(tmp_path / f"{turn}.jsonl", (CPU, HEAD)[turn], rewrite=vary(turn)) for turn in (0, 1)]
    assert report_of(*sides).comparability_keys == ()


@pytest.mark.parametrize("cached", ["key", "latent"])
def test_the_scale_of_what_fills_a_cache_is_no_comparability_key(tmp_path: Path, cached: str) -> None:
    def filled(deviations: str) -> Rewrite:
        notes = {f"kv_fill_{cached}_std": deviations}
        return lambda record: record.model_copy(update={"backend": {**record.backend, **notes}})

    sides = [
        write(tmp_path / f"{index}.jsonl", code, rewrite=filled(deviations))
        for index, (code, deviations) in enumerate([(CPU, "0.645 0.631"), (HEAD, "0.644 0.631")])
    ]
    assert report_of(*sides).comparability_keys == ()


def test_another_schema_version_is_another_comparability_key(base: Path, tmp_path: Path) -> None:
    head = write(
        tmp_path / "head.jsonl", HEAD, rewrite=lambda record: record.model_copy(update={"schema_version": 1})
    )
    assert [str(one) for one in report_of(base, head).comparability_keys] == ["schema: 3 | 1"]


def with_load(load: float) -> Rewrite:
    facts = {"load_average": [load, load, load], "physical_cores": 2}
    return lambda record: record.model_copy(update={"environment": {**record.environment, **facts}})


def test_a_confounder_turns_a_moved_time_into_inconclusive(tmp_path: Path) -> None:
    base = write(tmp_path / "base.jsonl", CPU, rewrite=with_load(0.5))
    head = write(tmp_path / "head.jsonl", HEAD, slower(1.3, "retnet"), rewrite=with_load(9.0))
    done = run(base, head)
    assert done.exit_code == 0
    assert "regressed, unless this explains it: busy when a worker started" in done.stdout
    assert run(base, head, "--strict").exit_code == 4
    assert run(base, head, "--accept-confounders").exit_code == 1


def test_a_session_of_its_own_leaves_only_the_ratio_of_the_models(base: Path, tmp_path: Path) -> None:
    """A shift between sessions cannot be distinguished from a change of the code, but both models share it."""
    head = write(tmp_path / "head.jsonl", LATER, slower(1.3, "retnet"))
    found = report_of(base, head)
    assert verdicts(found, "time")["decode of retnet, batch 1, 1K"] == "inconclusive"
    assert verdicts(found, "ratio")["decode of retnet/transformer, batch 1, 1K"] == "regressed"
    assert run(base, head).exit_code == 1
    both = write(tmp_path / "both.jsonl", LATER, lambda arguments: steady(arguments, 1.3))
    undated = write(
        tmp_path / "undated.jsonl",
        LATER,
        rewrite=lambda record: record.model_copy(update={"started_at": "yesterday"}),
    )
    assert [one.second for one in report_of(base, undated).confounders] == ["yesterday"]
    assert run(base, both).exit_code == 0
    assert run(base, both, "--accept-confounders").exit_code == 1


def without(model: str, length: int) -> Rewrite:
    return lambda record: None if (record.model.name, record.point.context_len) == (model, length) else record


def test_a_point_missing_on_one_side_is_reported_and_never_passes(base: Path, tmp_path: Path) -> None:
    head = write(tmp_path / "head.jsonl", HEAD, rewrite=without("retnet", 32768))
    done = run(base, head)
    assert done.exit_code == 3
    assert "missing: decode of retnet, batch 1, 32K: not measured on the second side" in done.stdout
    assert "on the first side" in run(head, base).stdout
    assert run(head, base).exit_code == 3


def test_a_point_that_fails_now_is_a_regression(base: Path, tmp_path: Path) -> None:
    def fail(record: Record) -> Record:
        if record.point.context_len != 32768:
            return record
        return record.model_copy(
            update={"status": "oom", "error": "out of memory", "metrics": {}, "backend": {}}
        )

    head = write(tmp_path / "head.jsonl", HEAD, rewrite=fail)
    done = run(base, head)
    assert done.exit_code == 1
    assert "decode of retnet, batch 1, 32K: oom (out of memory) on the second side" in done.stdout
    fixed = run(head, base)
    assert fixed.exit_code == 0
    assert "2 failed on the first side alone" in fixed.stdout


def failing(*rounds: int, status: str = "failed", length: int = 32768) -> Rewrite:
    """RetNet fails at one length in some rounds."""

    def rewrite(record: Record) -> Record:
        point = (record.workload, record.model.name, record.point.context_len)
        if record.round not in rounds or point != ("decode", "retnet", length):
            return record
        return record.model_copy(update={"status": status, "error": "why", "metrics": {}, "backend": {}})

    return rewrite


def test_a_point_that_fails_in_some_rounds_is_reported(base: Path, tmp_path: Path) -> None:
    head = write(tmp_path / "head.jsonl", HEAD, rewrite=failing(1, 2, 4))
    done = run(base, head)
    assert done.exit_code == 1
    line = "missing: decode of retnet, batch 1, 32K: failed in 3 of 5 rounds: failed (why) on the second side"
    assert line in done.stdout
    fixed = run(head, base)
    assert fixed.exit_code == 0
    assert line.replace("second", "first") in fixed.stdout
    other = write(tmp_path / "other.jsonl", HEAD, rewrite=failing(0))
    assert run(write(tmp_path / "first.jsonl", CPU, rewrite=failing(1)), other).exit_code == 1


@pytest.mark.parametrize("rounds", [(1, 3), (0, 1, 2, 3, 4)])
def test_what_both_sides_fail_at_alike_is_reported_and_passes(
    tmp_path: Path, rounds: tuple[int, ...]
) -> None:
    base, head = (
        write(tmp_path / f"{one.code_revision}.jsonl", one, rewrite=failing(*rounds, status="oom"))
        for one in (CPU, HEAD)
    )
    done = run(base, head)
    assert done.exit_code == 0
    assert "1 failed on both sides" in done.stdout
    assert "oom (why) on both sides" in done.stdout


def test_a_point_that_one_side_alone_tried_is_reported_though_it_failed(base: Path, tmp_path: Path) -> None:
    every = failing(0, 1, 2, 3, 4)
    done = run(
        write(tmp_path / "first.jsonl", CPU, rewrite=without("retnet", 32768)),
        write(tmp_path / "head.jsonl", HEAD, rewrite=every),
    )
    assert done.exit_code == 3
    assert "missing: decode of retnet, batch 1, 32K: not measured on the first side" in done.stdout


def failed(record: Record) -> Record:
    return record.model_copy(
        update={"status": "failed", "metrics": {}, "error": "\x1b[31mno | kernel\x1b[0m\nat all"}
    )


def test_two_sides_that_measured_nothing_are_not_comparable(tmp_path: Path) -> None:
    base, head = (write(tmp_path / f"{one.code_revision}.jsonl", one, rewrite=failed) for one in (CPU, HEAD))
    done = run(base, head)
    assert done.exit_code == 3
    assert "nothing could be compared" in done.stdout
    assert "missing: decode of retnet, batch 1, 1K: failed (" in done.stdout
    assert "10 failed on both sides" in done.stdout
    suite = ElementTree.fromstring(run(base, head, "--format", "junit").stdout)
    assert [suite.get(name) for name in ("tests", "errors", "skipped")] == ["11", "1", "10"]
    (error,) = suite.iter("error")
    assert "nothing could be compared" in str(error.get("message"))


def test_ratios_that_are_left_out_are_reported(base: Path, tmp_path: Path) -> None:
    def add_another(record: Record) -> Record:
        if record.model.name == "transformer":
            model = record.model.model_copy(update={"name": "wide"})
            append_record(path, record.model_copy(update={"model": model, "cell_id": f"{record.cell_id}w"}))
        return record

    paths = []
    for machine in (HEAD, LATER):
        path = tmp_path / f"{len(paths)}.jsonl"
        paths.append(write(path, machine, rewrite=add_another))
    done = run(*paths)
    assert "decode of wide/transformer, batch 1, 1K" in done.stdout
    assert done.stdout.count("note: ratios are to transformer, and none is to wide.") == 1
    assert "none is to" not in run(base, write(tmp_path / "head.jsonl", HEAD)).stdout


def test_what_an_error_quotes_breaks_no_format(base: Path, tmp_path: Path) -> None:
    head = write(tmp_path / "head.jsonl", HEAD, rewrite=failed)
    suite = ElementTree.fromstring(run(base, head, "--format", "junit").stdout)
    assert int(suite.get("failures") or 0) == len(suite.findall("testcase")) > 0
    bullets = [line for line in run(base, head, "--format", "md").stdout.splitlines() if "kernel" in line]
    assert bullets
    assert all(line.startswith("- missing: ") and line.endswith("second side") for line in bullets)


def test_what_a_model_is_called_breaks_no_xml(tmp_path: Path) -> None:
    def renamed(record: Record) -> Record:
        return record.model_copy(update={"model": record.model.model_copy(update={"name": "\x1b[31mred"})})

    sides = (write(tmp_path / f"{one.code_revision}.jsonl", one, rewrite=renamed) for one in (CPU, HEAD))
    suite = ElementTree.fromstring(run(*sides, "--format", "junit").stdout)
    assert r"decode of \x1b[31mred, batch 1, 1K" in [case.get("name") for case in suite]


def test_where_a_scheduler_put_a_process_is_no_comparability_key(base: Path, tmp_path: Path) -> None:
    def elsewhere(record: Record) -> Record:
        variables = {**record.environment.get("variables", {}), "OMP_PLACES": "{4},{5}"}
        environment = {**record.environment, "variables": variables}
        return record.model_copy(update={"environment": environment})

    assert run(base, write(tmp_path / "head.jsonl", HEAD, rewrite=elsewhere)).exit_code == 0


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_records_of_an_impossible_time_are_left_out(base: Path, tmp_path: Path, value: float) -> None:
    head = write(tmp_path / "head.jsonl", HEAD)
    lines = [json.loads(line) for line in head.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        for metric in line["metrics"].values():
            metric["value"] = value
    head.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    done = run(base, head)
    assert done.exit_code == 2
    assert f"has {value:g} s, and a time is above 0" in done.stderr


def test_what_is_not_there_is_refused(base: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    for path, words in ((tmp_path / "nowhere", "no such file"), (empty, "holds no record")):
        done = run(base, path)
        assert done.exit_code == 2
        assert words in done.stderr
    other = write_results(
        tmp_path / "other", Maker(GPU).training([2048]) if GPU.trains else Maker(CPU).memory([64])
    )
    done = run(base, other)
    assert done.exit_code == 2
    assert "no point in common" in done.stderr


def test_memory_is_counted_and_needs_no_rounds(tmp_path: Path) -> None:
    def bigger(arguments: dict[str, Any]) -> dict[str, Any]:
        peak = arguments["metrics"]["peak_bytes"]
        return arguments | {"metrics": {"peak_bytes": Metric(unit="bytes", value=1.1 * peak.value)}}

    base = write_results(tmp_path / "base", Maker(CPU).memory(LENGTHS))
    same = write_results(tmp_path / "same", Maker(LATER).memory(LENGTHS))
    head = write_results(tmp_path / "head", Maker(LATER, change=bigger).memory(LENGTHS))
    assert run(base, same).exit_code == 0
    done = run(base, head)
    assert done.exit_code == 1
    assert "memory of retnet larger at every length from 1K to 32K: 1.100" in done.stdout
    assert "MiB" in done.stdout


@pytest.mark.parametrize(
    ("moved", "words"),
    [
        ([1024, 2048, 4096, 8192], "at every length from 1K to 8K"),
        ([4096, 8192], "at 4K and above"),
        ([1024, 2048], "at 2K and below"),
        ([8192], "at 8K"),
        ([1024, 4096], "at 1K, 4K"),
    ],
)
def test_where_a_curve_moved(moved: list[int], words: str) -> None:
    assert describe_lengths(moved, [1024, 2048, 4096, 8192]) == words


def test_every_format_says_the_same(base: Path, tmp_path: Path) -> None:
    head = write(tmp_path / "head.jsonl", HEAD, slower(1.12, "retnet", 8192))
    done = run(base, head, "--format", "json", "--out", tmp_path / "out")
    data = json.loads(done.stdout)
    assert data["exit_code"] == done.exit_code == 1
    moved = [item["item"] for item in data["items"] if item["verdict"] == "regressed"]
    written = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert written.keys() == {"check.md", "check.json", "junit.xml", "ratios.svg", "ratios.png"}
    assert json.loads(written["check.json"].read_text(encoding="utf-8")) == data
    markdown = written["check.md"].read_text(encoding="utf-8")
    suite = ElementTree.parse(written["junit.xml"]).getroot()
    failed = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    assert sorted(map(str, failed)) == sorted(moved)
    assert suite.get("tests") == "19"
    assert suite.get("failures") == str(len(moved))
    for item in moved:
        assert f"| regressed | {item} |" in markdown
    assert "slower at 8K and above" in markdown


def test_what_is_not_comparable_is_an_error_in_junit(base: Path, tmp_path: Path) -> None:
    head = write(tmp_path / "head.jsonl", replace(HEAD, torch_version="2.14.0"))
    done = run(base, head, "--format", "junit")
    assert done.exit_code == 3
    suite = ElementTree.fromstring(done.stdout)
    assert suite.get("errors") == "1"
    assert "2.14.0" in done.stdout


def test_a_report_without_ratios_leaves_no_figure_of_an_earlier_one(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("ratios.svg", "ratios.png", "mine.svg"):
        (out / name).write_text("earlier", encoding="utf-8")
    head = write(tmp_path / "head.jsonl", replace(HEAD, torch_version="2.14.0"))
    assert run(base, head, "--out", out).exit_code == 3
    assert {path.name for path in out.iterdir()} == {"check.md", "check.json", "junit.xml", "mine.svg"}


def test_an_unknown_format_is_refused(base: Path) -> None:
    done = run(base, base, "--format", "yaml")
    assert done.exit_code == 2
    assert "unknown format 'yaml'" in done.stderr


def test_a_report_that_cannot_be_written_says_so(base: Path, tmp_path: Path) -> None:
    done = run(base, write(tmp_path / "head.jsonl", HEAD), "--out", base / "below")
    assert done.exit_code in {1, 2}
    assert "base.jsonl" in done.stderr


def test_places_read_as_words() -> None:
    assert str(MeasurementPoint("latency", "decode", "retnet", 8, 1000)) == "decode of retnet, batch 8, 1000"
