"""Claims in the order in which they are read, and in the report: verdicts, rows, numbers, doubts, command and runs."""

import html
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from report.synthetic_records import CPU, GPU, Maker, write_results
from retbench.architectures.registry import architectures
from retbench.papers.claims import load_claims
from retbench.papers.papers import MODEL_TITLES, load_papers
from retbench.records.record import Gate, GateCheck, Record
from retbench.report.claims.judge import judge, judge_claims
from retbench.report.claims.judged import JudgedClaim
from retbench.report.claims.tables import ClaimGroup, claims_markdown, make_claim_section
from retbench.report.claims.words import describe_number, describe_paper, describe_sources, shorten_metric
from retbench.report.report import write_report
from retbench.report.results import Results, load_results

CLAIMS = {claim.name: claim for claim in load_claims()}


def groups_of(records: list[Record]) -> list[ClaimGroup]:
    return make_claim_section(judge_claims(Results(tuple(records), ()))).groups


def names_in(group: ClaimGroup) -> list[str]:
    return [judged.claim.name for judged in group.claims]


def test_every_claim_is_in_one_group_and_the_title_counts_them() -> None:
    groups = groups_of(Maker(CPU).latency())
    names = list(chain.from_iterable(names_in(group) for group in groups))
    assert sorted(names) == sorted(claim.name for claim in load_claims())
    assert all(group.heading == f"{group.title} ({len(group.claims)})" for group in groups)


def test_decided_claims_come_first_and_measured_ones_first_in_their_group() -> None:
    first, second, *_ = groups_of(Maker(CPU).latency())
    assert names_in(first) == ["equal_forms"]
    measured = [bool(judged.results) for judged in second.claims]
    assert measured == sorted(measured, reverse=True)
    shown = {judged.claim.name for judged in second.shown}
    assert {"latency_ratio", "latency_level", "throughput_ratio"} <= shown


def test_claims_are_grouped_by_what_they_need_and_each_group_says_it_once() -> None:
    groups = {group.title: group for group in groups_of([])}
    found = {title: set(names_in(group)) for title, group in groups.items()}
    assert {"memory_ratio", "training_speed"} <= found["Needs the paper's hardware, A100 80GB"]
    assert {"perplexity_by_size", "zero_shot", "ablation_decay"} <= found[
        "Needs models trained as in the paper"
    ]
    assert found["Needs 8.2 GB from the hub, and one GPU"] == {
        "public_retnet",
        "public_transformer",
        "independent_lambada",
    }
    assert found["Needs 5.4 GB from the hub, and one GPU"] == {"recall_fda"}
    assert found["Needs any machine"] == {"equal_forms"}
    assert "mad_deltanet" in found["Needs a workload that retbench does not have yet"]
    assert {"mamba_retnet", "mqar_attention"} <= found[
        "Needs an architecture that retbench does not have yet"
    ]
    assert {"yoco_memory", "yoco_prefill"} <= found["Needs the paper's hardware, H100 80GB"]
    assert found["No run here can decide"] == {"training_large", "yoco_throughput", "mqar_state"}
    assert all(group.needed for group in groups.values())


def test_what_a_group_needs_names_its_experiments_or_what_is_lacking() -> None:
    needed = {group.title: group.needed for group in groups_of([])}
    assert needed["Needs the paper's hardware, A100 80GB"] == (
        "A verdict needs the paper's hardware, A100 80GB: `retbench run EXPERIMENT --profile paper`, where EXPERIMENT "
        "is memory, throughput, latency or training_cost; each claim has its own options."
    )
    training = needed["Needs models trained as in the paper"]
    assert (
        "`retbench train EXPERIMENT --profile paper` and `retbench run EXPERIMENT --profile paper`"
        in training
    )
    assert needed["Needs any machine"] == "A verdict needs any machine: `retbench run latency`."
    lacking = needed["Needs a workload that retbench does not have yet"]
    assert all(name in lacking for name in ("mad", "based_tasks", "DeltaNet"))


@pytest.mark.parametrize(
    ("name", "paper"),
    [
        ("latency_ratio", "15.6x at batch 8, 8K; 6.7B, one A100-80GB"),
        ("latency_ratio_batch_1", "4.12x at batch 1, 8K; 6.7B, one A100-80GB"),
        ("latency_ratio_1k", "2.19x at batch 1, 1K; 6.7B, one A100-80GB"),
        (
            "latency_level_over_batch",
            "latency of RetNet: 23.2 ms (1), 24.2 ms (8), batch 1 to 8, 8K; 6.7B, one A100-80GB",
        ),
        ("zero_shot", "accuracy: 69.51 % (RetNet), 66.07 % (Transformer); 6.7B"),
        ("yoco_memory", "9.38x at batch 1, 1024K; yoco-3B, one H100-80GB"),
        ("ablation_decay", "perplexity: 26.05 (RetNet), 27.86 (no decay); 200M"),
        (
            "mamba_retnet",
            "perplexity: 13.36 (RetNet, 125M), 11.6 (Mamba, 125M), 7.05 (RetNet, 1.3B), 6.5 (Mamba, 1.3B)",
        ),
        (
            "perplexity_by_context",
            "perplexity of the last 128 of 2,048 tokens: 13.09 (RetNet, 512), 13.55 (Transformer, 512), "
            "11.98 (RetNet, 2K), 12.35 (Transformer, 2K); 6.7B",
        ),
        ("yoco_gated_retention", "loss: 3.6 nats (gated RetNet), 3.633 nats (RetNet); yoco-160M"),
        ("equal_forms", ""),
    ],
)
def test_the_papers_number_stands_with_its_conditions(name: str, paper: str) -> None:
    assert describe_paper(CLAIMS[name]) == paper


NO_MODELS = set(
    re.findall(
        r"\w+",
        "absolute adam_beta1 adam_beta2 advantage attention batch_size cache d_model dropout ffn_dim figure "
        "gated_scalar grad_clip head_dim_64 latency learning_rate max_len memory no_decay no_head_norm no_swish_gate "
        "num_heads num_layers num_steps recall rotary saved single_decay state throughput tokens_per_batch "
        "two_byte_state warmup_steps weight_decay weights xpos",
    )
)
"""Rows of the papers' data that are not models."""


def test_no_metric_of_the_papers_is_cut_inside_a_number() -> None:
    metrics = [sheet.metric for paper in load_papers().values() for sheet in paper.sheets.values()]
    assert any(re.search(r"\d,\d", metric) for metric in metrics)
    for metric in metrics:
        first = shorten_metric(metric)
        assert metric.startswith(first)
        assert not re.match(r"\d*[,.]?\d", metric[len(first) :]), metric


def test_every_model_in_the_papers_data_has_a_title() -> None:
    rows = {row for paper in load_papers().values() for sheet in paper.sheets.values() for row in sheet.rows}
    named = {row: re.sub(r"_[0-9.]+[mb]$", "", row) for row in rows if not row.isdecimal()}
    assert set(named.values()) > NO_MODELS
    lacking = set(named.values()) - NO_MODELS - MODEL_TITLES.keys() - architectures().keys()
    assert not lacking


def test_rows_and_columns_are_shown_by_their_titles() -> None:
    place = "yoco/table5/yoco_gated_retnet/ar_hit"
    assert "Table 5, YOCO with gated retention, AR-Hit: 1.199 nats" in describe_number(place)
    assert "Figure 6(c), 8K, 8: 24.2 ms" in describe_number("retnet/figure6c_retnet/8192/8")


def test_a_group_keeps_the_order_of_the_file() -> None:
    order = [claim.name for claim in load_claims()]
    for group in groups_of(Maker(CPU).memory()):
        measured = {judged.claim.name for judged in group.claims if judged.results}
        assert names_in(group) == sorted(
            names_in(group), key=lambda name: (name not in measured, order.index(name))
        )


# ---- the section of the report ---------------------------------------------------------------------------------------


def judged_claim(name: str, records: Iterable[Record]) -> JudgedClaim:
    return judge(CLAIMS[name], Results(tuple(records), ()))


def read_texts(folder: Path) -> tuple[str, str]:
    """Both pages in one, and the Markdown of a report, as they are read."""
    names = ("index.html", "evidence.html", "report.md")
    page, evidence, markdown = ((folder / name).read_text(encoding="utf-8") for name in names)
    return html.unescape(re.sub(r"</?span>", "", page + evidence)).replace("\u00a0", " "), markdown


@pytest.fixture(scope="module")
def reported(
    _without_pictures: None,
    tmp_path_factory: pytest.TempPathFactory,
    cpu_records: list[Record],
    gpu_records: list[Record],
) -> Path:
    """The report on the records of two machines, one of them of the paper's kind, which are in its folder `in`."""
    folder = tmp_path_factory.mktemp("claims")
    write_report(write_results(folder / "in", [*cpu_records, *gpu_records]), folder)
    return folder


@pytest.fixture(scope="module")
def texts(reported: Path) -> tuple[str, str]:
    """Page and Markdown of that report."""
    return read_texts(reported)


def test_without_a_verdict_it_says_what_is_missing_and_which_command_makes_it() -> None:
    judged = judged_claim("latency_ratio", [])
    assert (judged.verdict_cell, judged.results) == ("not testable", [])
    assert judged.rows[0].finding.text == "needs one A100 of 80 GB"
    assert judged.rows[0].command is not None
    assert judged.rows[0].command.startswith("retbench run latency --profile paper")


def test_what_no_run_can_decide_has_a_reason_and_no_command() -> None:
    (row,) = judged_claim("training_large", []).rows
    assert "tensor parallelism" in row.finding.text
    assert row.command is None


def test_a_verdict_stands_with_its_numbers(gpu_records: list[Record]) -> None:
    judged = judged_claim("memory_ratio", gpu_records)
    assert (judged.verdict, judged.verdict_cell) == ("partly", "partly")
    (line,) = judged.result_lines
    assert "; the paper 3.4×" in judged.rows[0].finding.text
    assert re.fullmatch(r"[\d.]+× at batch 8, 8K \(6.7B, NVIDIA A100-SXM4-80GB\)", line)


def test_another_machine_is_seen_beside_what_is_missing(cpu_records: list[Record]) -> None:
    judged = judged_claim("memory_ratio", cpu_records)
    assert judged.verdict == "not_testable"
    (result,) = judged.results
    assert (result.scope_words, result.short) == ("other conditions", "25M, AMD EPYC 9B14")
    assert judged.verdict_cell == f"{result.verdict_words}, other conditions"
    assert judged.rows[0].finding.text == "needs one A100 of 80 GB"


def test_forms_that_differ_are_seen_though_others_agree() -> None:
    def differ(arguments: dict[str, Any]) -> dict[str, Any]:
        check = GateCheck(name="recurrent = parallel", length=7, error=0.5, limit=1e-4)
        return arguments | {"gate": Gate(passed=False, dtype="bfloat16", checks=(check,))}

    wrong, right = Maker(GPU, change=differ).latency((1024,), (8,)), Maker(CPU).latency((1024,))
    for records in ([*wrong, *right], [*right, *wrong]):
        judged = judged_claim("equal_forms", records)
        assert judged.verdict == "not_reproduced"
        assert "largest error 0.5 (recurrent = parallel, 7 tokens)" in judged.result_lines[0]
        assert "one of 2 results" in judged.result_lines[0]


def test_of_forms_that_agree_those_are_seen_that_differ_most() -> None:
    def by(error: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
        check = GateCheck(name="recurrent = parallel", length=7, error=error, limit=1e-3)
        return lambda arguments: arguments | {"gate": Gate(passed=True, dtype="float32", checks=(check,))}

    small, large = (
        Maker(place, change=by(error)).latency((1024,)) for place, error in ((CPU, 1e-5), (GPU, 3e-5))
    )
    for records in ([*small, *large], [*large, *small]):
        judged = judged_claim("equal_forms", records)
        assert judged.verdict == "reproduced"
        assert "largest error 3e-05" in judged.result_lines[0]


def test_records_that_do_not_decide_are_seen_and_the_command_stands() -> None:
    """One round of the paper's own conditions has no interval."""
    graphless = Maker(replace(GPU, started=GPU.started + timedelta(days=1)))
    records = [record for record in graphless.latency(batch_sizes=(8,)) if record.round == 0]
    judged = judged_claim("latency_level", records)
    assert judged.verdict == "not_testable"
    assert judged.verdict_cell == "undecided, as in the paper"
    assert [row.verdict_words for row in judged.results] == ["undecided"]
    assert judged.rows[0].verdict_cell == "undecided"


def test_every_row_names_conditions_command_and_runs(
    cpu_records: list[Record], gpu_records: list[Record]
) -> None:
    rows = judged_claim("memory_ratio", [*cpu_records, *gpu_records]).rows
    assert [row.scope_words for row in rows] == ["as in the paper", "strong Transformer", "other conditions"]
    assert [row.record_words for row in rows] == [
        "12 in a100-sxm4-80gb/memory/20260102T030405Z.jsonl",
        "none",
        "12 in epyc-9b14-2c/memory/20260102T030405Z.jsonl",
    ]
    assert "--set models.transformer.num_kv_heads=8" in (rows[1].command or "")


def test_the_papers_numbers_stand_with_how_they_came_to_be_and_their_doubts() -> None:
    lines = describe_sources(CLAIMS["latency_level_over_batch"])
    assert lines[0].endswith(": 23.2 ms (decoded from the PDF)")
    assert any("not stated: dtype, position" in line for line in lines)
    assert any("no other length" in line for line in describe_sources(CLAIMS["latency_ratio_1k"]))
    assert any("not stated: dtype" in line for line in describe_sources(CLAIMS["latency_ratio"]))


def test_page_and_markdown_say_where_the_numbers_of_every_paper_were_read(texts: tuple[str, str]) -> None:
    cited = {place.partition("/")[0] for claim in load_claims() for place in claim.numbers}
    origins = [load_papers()[name].origin for name in cited]
    assert len(origins) > 5
    for text in (*texts, claims_markdown(judge_claims(Results((), ())))):
        assert [origin for origin in origins if text.count(origin) != 1] == []


def test_each_claim_of_the_short_table_leads_to_its_evidence(texts: tuple[str, str]) -> None:
    page = texts[0]
    assert re.search(r"\d+ claims under the papers' own conditions: \d+ reproduced, ", page)
    anchors = re.findall(r'href="evidence.html#(claim-\w+)"', page)
    articles = re.findall(r'<article id="(claim-\w+)"', page)
    assert sorted(articles) == sorted(f"claim-{claim.name}" for claim in load_claims())
    assert anchors == [name for name in articles if name in anchors]
    assert {"claim-equal_forms", "claim-memory_ratio"} <= set(anchors)


def test_page_and_markdown_say_the_same_of_every_claim(reported: Path, texts: tuple[str, str]) -> None:
    for judged in judge_claims(load_results(reported / "in")):
        for text in texts:
            assert text.count(judged.claim.statement) >= 2
            for line in [*judged.result_lines, *describe_sources(judged.claim)]:
                assert line in text


def test_a_claim_leads_to_the_figures_of_its_experiments(texts: tuple[str, str]) -> None:
    article = texts[0].partition('<article id="claim-memory_ratio">')[2].partition("</article>")[0]
    assert re.findall(r'href="index.html#(\w+)"', article) == ["memory_batch8", "memory_latency_figure6"]


@pytest.mark.usefixtures("_without_pictures")
def test_a_folder_of_failures_damage_and_duplicates_still_has_every_claim(tmp_path: Path) -> None:
    def fail(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"status": "failed", "metrics": {}, "gate": None, "error": "signal 9"}

    broken = Maker(CPU, change=fail).latency((1024, 8192))
    root = write_results(tmp_path / "in", [*broken, *broken, *Maker(CPU).memory((1024,))])
    with open(next((root / CPU.name / "latency").iterdir()), "ab") as file:
        file.write(b'{"schema_version": 0}\n{"schema_version": 1, "run\n')
    write_report(root, tmp_path / "out")
    for text in read_texts(tmp_path / "out"):
        num_claims = len(load_claims())
        assert (
            f"{num_claims} claims under the papers' own conditions: 1 reproduced, {num_claims - 1} not"
            in text
        )
        assert "schema_version is 0 and this retbench reads 1" in text
        assert "retnet at batch 1, 8K: failed (25M, " in text
