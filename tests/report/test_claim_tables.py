"""Claims in the order in which they are read, and in the report: verdicts, rows, numbers, doubts, command and runs."""

import html
import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from report.synthetic_records import CPU, GPU, Maker, write_results
from retbench.papers.claims import load_claims
from retbench.records.record import Gate, GateCheck, Record
from retbench.report.claim_tables import (
    ClaimEntry,
    ClaimGroup,
    ClaimSection,
    make_claim_section,
)
from retbench.report.claims import judge_claims
from retbench.report.frames import Results, load_results
from retbench.report.report import write_report


def groups_of(records: list[Record]) -> list[ClaimGroup]:
    return make_claim_section(judge_claims(Results(tuple(records), ()))).groups


def names_in(group: ClaimGroup) -> list[str]:
    return [entry.name for entry in group.entries]


def test_every_claim_is_in_one_group_and_the_title_counts_them() -> None:
    groups = groups_of(Maker(CPU).latency())
    names = list(chain.from_iterable(names_in(group) for group in groups))
    assert sorted(names) == sorted(claim.name for claim in load_claims())
    assert all(group.title.endswith(f" ({len(group.entries)})") for group in groups)


def test_measured_claims_come_before_the_others() -> None:
    groups = groups_of(Maker(CPU).latency())
    known = [group.known for group in groups]
    assert known == ["decided", "measured", *["open"] * (len(groups) - 2)]
    assert names_in(groups[0]) == ["equal_forms"]
    assert {"latency_ratio", "latency_level", "throughput_ratio"} <= set(names_in(groups[1]))


def test_claims_without_records_are_grouped_by_what_they_need() -> None:
    found = {group.title.rpartition(" (")[0]: names_in(group) for group in groups_of([])}
    hardware, training, yet, never = found.values()
    assert "needs the paper's hardware, A100 80GB" in next(iter(found))
    assert {"memory_ratio", "training_speed"} <= set(hardware)
    assert {"perplexity_by_size", "zero_shot", "ablation_decay"} <= set(training)
    assert yet == ["equal_forms", "public_retnet", "public_transformer", "independent_lambada"]
    assert never == ["training_large", "other_architectures"]


def test_a_group_keeps_the_order_of_the_file() -> None:
    order = [claim.name for claim in load_claims()]
    for group in groups_of(Maker(CPU).memory()):
        assert names_in(group) == sorted(names_in(group), key=order.index)


# ---- the section of the report ---------------------------------------------------------------------------------------


def section_of(records: Iterable[Record]) -> ClaimSection:
    return make_claim_section(judge_claims(Results(tuple(records), ())), [])


def entry_of(name: str, records: Iterable[Record]) -> ClaimEntry:
    (entry,) = [
        entry for group in section_of(records).groups for entry in group.entries if entry.name == name
    ]
    return entry


def read_texts(folder: Path) -> tuple[str, str]:
    """Page and Markdown of a report, as they are read."""
    page, markdown = ((folder / name).read_text(encoding="utf-8") for name in ("index.html", "report.md"))
    return html.unescape(re.sub(r"</?span>", "", page)).replace("\u00a0", " "), markdown


@pytest.fixture(scope="module")
def texts(
    tmp_path_factory: pytest.TempPathFactory, cpu_records: list[Record], gpu_records: list[Record]
) -> tuple[str, str]:
    """Page and Markdown of the records of two machines, one of them of the paper's kind."""
    folder = tmp_path_factory.mktemp("claims")
    write_report(write_results(folder / "in", [*cpu_records, *gpu_records]), folder)
    return read_texts(folder)


def test_without_a_verdict_it_says_what_is_missing_and_which_command_makes_it() -> None:
    entry = entry_of("latency_ratio", [])
    assert (entry.verdict, entry.seen, entry.missing) == ("not testable", [], "needs one A100 of 80 GB")
    assert entry.command is not None
    assert entry.command.startswith("retbench run latency --profile paper")


def test_what_no_run_can_tell_has_a_reason_and_no_command() -> None:
    entry = entry_of("other_architectures", [])
    assert "not among the models here" in entry.missing
    assert entry.command is None
    assert [row.command for row in entry.rows] == [None]


def test_a_verdict_stands_with_its_numbers_and_misses_nothing(gpu_records: list[Record]) -> None:
    entry = entry_of("memory_ratio", gpu_records)
    assert (entry.verdict, entry.missing, entry.command) == ("partly", "", None)
    (seen,) = entry.seen
    assert seen.verdict == "", "it stands beside the claim already"
    assert "A100" in seen.text
    assert "the paper 3.4×" in seen.text


def test_another_machine_is_seen_beside_what_is_missing(cpu_records: list[Record]) -> None:
    entry = entry_of("memory_ratio", cpu_records)
    assert entry.verdict == "not testable"
    (seen,) = entry.seen
    assert seen.text.startswith("other conditions: 25m, AMD EPYC 9B14")
    assert seen.verdict in ("reproduced", "partly", "not reproduced")
    assert entry.missing == "needs one A100 of 80 GB"


def test_forms_that_differ_are_seen_though_others_agree() -> None:
    def differ(arguments: dict[str, Any]) -> dict[str, Any]:
        check = GateCheck(name="recurrent = parallel", length=7, error=0.5, limit=1e-4)
        return arguments | {"gate": Gate(passed=False, dtype="bfloat16", checks=(check,))}

    wrong, right = Maker(GPU, change=differ).latency((1024,), (8,)), Maker(CPU).latency((1024,))
    for records in ([*wrong, *right], [*right, *wrong]):
        entry = entry_of("equal_forms", records)
        assert entry.verdict == "not reproduced"
        assert "largest error 0.5 (recurrent = parallel, 7 tokens)" in entry.seen[0].text


def test_records_that_do_not_decide_are_seen_and_the_command_stands() -> None:
    """One round of the paper's own conditions has no interval."""
    graphless = Maker(replace(GPU, started=GPU.started + timedelta(days=1)))
    records = [record for record in graphless.latency(batch_sizes=(8,)) if record.round == 0]
    entry = entry_of("latency_level", records)
    assert entry.verdict == "not testable"
    assert [seen.verdict for seen in entry.seen] == ["undecided"]
    assert entry.missing == ""
    assert entry.command == "retbench run latency --profile paper"


def test_every_row_names_conditions_command_and_runs(
    cpu_records: list[Record], gpu_records: list[Record]
) -> None:
    rows = entry_of("memory_ratio", [*cpu_records, *gpu_records]).rows
    assert [row.conditions.partition(":")[0] for row in rows] == [
        "as in the paper",
        "strong Transformer",
        "other conditions",
    ]
    assert [row.records for row in rows] == ["12 in 20260102T030405Z", "none", "12 in 20260102T030405Z"]
    assert "--set models.transformer.num_kv_heads=8" in (rows[1].command or "")


def test_the_papers_numbers_stand_with_how_they_came_to_be_and_their_doubts() -> None:
    entry = entry_of("latency_level_over_batch", [])
    assert entry.numbers[0].endswith(": 25 ms (read off by others)")
    assert any("others read these off by eye" in doubt for doubt in entry.doubts)
    assert any("not stated: dtype" in doubt for doubt in entry_of("latency_ratio", []).doubts)


def test_verdicts_come_first_and_each_leads_to_its_claim(texts: tuple[str, str]) -> None:
    page = texts[0]
    first = page.partition("<main>")[2].partition("</section>")[0]
    assert re.search(r"32 claims under the papers' own conditions: \d+ reproduced, ", first)
    anchors = re.findall(r'href="#(claim-\w+)"', first)
    assert sorted(anchors) == sorted(f"claim-{claim.name}" for claim in load_claims())
    assert re.findall(r'<article id="(claim-\w+)"', page) == anchors


def test_page_and_markdown_say_the_same_of_every_claim(
    tmp_path: Path, cpu_records: list[Record], gpu_records: list[Record]
) -> None:
    root = write_results(tmp_path / "in", [*cpu_records, *gpu_records])
    write_report(root, tmp_path)
    texts = read_texts(tmp_path)
    for group in section_of(load_results(root).records).groups:
        assert all(text.count(group.title) == 2 for text in texts)
        for entry in group.entries:
            seen = [one.text for one in entry.seen]
            for text in texts:
                assert text.count(entry.statement) >= 2
                for line in [*seen, *entry.numbers, *entry.doubts, entry.missing, entry.command or ""]:
                    assert line in text


def test_a_claim_leads_to_the_figures_of_its_experiments(texts: tuple[str, str]) -> None:
    article = texts[0].partition('<article id="claim-memory_ratio">')[2].partition("</article>")[0]
    assert re.findall(r'href="#(\w+)"', article) == ["memory_batch8", "memory_latency_figure6"]


def test_a_folder_of_failures_damage_and_duplicates_still_has_every_claim(tmp_path: Path) -> None:
    def fail(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"status": "failed", "metrics": {}, "gate": None, "error": "signal 9"}

    broken = Maker(CPU, change=fail).latency((1024, 8192))
    root = write_results(tmp_path / "in", [*broken, *broken, *Maker(CPU).memory((1024,))])
    with open(next((root / CPU.name / "latency").iterdir()), "ab") as file:
        file.write(b'{"schema_version": 0}\n{"schema_version": 1, "run\n')
    write_report(root, tmp_path / "out")
    for text in read_texts(tmp_path / "out"):
        assert "32 claims under the papers' own conditions: 1 reproduced, 31 not testable." in text
        assert "schema_version is 0 and this retbench reads 1" in text
        assert re.search(
            r"undecided(</strong>)?, other conditions: 25m, .*: retnet at batch 1, 8K: failed", text
        )
