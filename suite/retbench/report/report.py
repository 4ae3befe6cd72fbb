"""The report: a page with the answer, a page with its evidence, both as Markdown, and the figures, all from records.

All templates render one model of the report, `ReportPage`. The same records give the same bytes: nothing in it depends
on when or where it was written.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from retbench.files import check_writable, write_atomic
from retbench.records.record import Record
from retbench.report import diagnostics, html, provenance
from retbench.report.answer import Answer, find_answer
from retbench.report.claim_tables import claim_table, describe_result, make_claim_section
from retbench.report.claims import judge_claims
from retbench.report.compact_tables import cost_tables, quality_tables
from retbench.report.evaluations import Evaluations, weights_table
from retbench.report.figures import make_drawings
from retbench.report.findings import find_costs
from retbench.report.formats import (
    code_block,
    escape_markdown,
    markdown_table,
    markdown_text,
    readable_tables,
)
from retbench.report.frames import Results, load_results, started
from retbench.report.overlaps import overlap_sentences
from retbench.report.points import group, lineup, measures_cost
from retbench.report.quality_findings import find_quality
from retbench.report.score_figures import draw_scores
from retbench.report.selection import matched_groups, select
from retbench.report.style import Drawing, save_drawing
from retbench.report.svg import inline_svgs
from retbench.report.sweeps import CostSweep
from retbench.report.tables import Contents, contents_of, cost_table, quality_table
from retbench.report.wording import section_title

BlockKind = Literal[
    "text",
    "warning",
    "sentences",
    "findings",
    "table",
    "compact",
    "figures",
    "claims",
    "details",
    "commands",
    "summary",
]
"""Kinds of blocks: the templates have a branch for each."""


class Block(NamedTuple):
    """One part of a section; the content is text, sentences, findings, a table, figures or claims, as the kind says."""

    kind: BlockKind
    content: Any
    title: str = ""


class Section(NamedTuple):
    """One section of a page; the name is its anchor."""

    name: str
    title: str
    blocks: list[Block]


class SummaryLine(NamedTuple):
    """One sentence on a section of the second page."""

    text: str
    section: str
    title: str


class ReportPage(NamedTuple):
    """Everything that the templates show.

    Attributes:
        answer: First lines of the first page.
        conditions: Conditions of the first models measured.
        first: Figure beside the answer; None without figures.
        sections: Sections of the first page.
        evidence: Sections of the second page.
        drawings: All figures.
        models: Label of each model that is drawn, by its name.
    """

    answer: Answer
    conditions: str
    first: Drawing | None
    sections: list[Section]
    evidence: list[Section]
    drawings: list[Drawing]
    models: Mapping[str, str]


def write_report(results: Path, out: Path) -> list[Path]:
    """Write `index.html`, `evidence.html`, `report.md` and `figures/` into a folder and return the paths of all files.

    Args:
        results: A record file, or a folder of them.
        out: The folder; it is created if need be, and files of an earlier report are overwritten.

    Raises:
        RecordError: there is nothing to report on; the message says what to run.
        ConfigError: the folder cannot be written to.
        StorageError: a file cannot be written.
    """
    found = load_results(results)
    check_writable(out, "--out")
    page = make_page(found)
    paths = [path for drawing in page.drawings for path in save_drawing(drawing, out / "figures")]
    svgs = {drawing.name: inline_svgs(drawing, f"f{number}-") for number, drawing in enumerate(page.drawings)}
    templates = _templates()
    for name in ("index.html", "evidence.html", "report.md"):
        text = templates.get_template(f"{name}.j2").render(page=page, svgs=svgs, colours=html.colour_rules())
        write_atomic(out / name, text.encode())
        paths.append(out / name)
    return paths


def make_page(results: Results) -> ReportPage:
    """Return the contents of the report: claims on all records, the rest on the newest comparable ones."""
    contents = contents_of(select(results.records, folders=results.folders))
    records, evaluations = contents.selection.records, contents.evaluations
    drawings = make_drawings(contents.selection) if contents.sweeps else []
    drawings += draw_scores(evaluations) if evaluations else []
    claims = make_claim_section(judge_claims(results), drawings)
    published = {record.experiment for record in records if results.source_of(record).is_published}
    own = [drawing for drawing in drawings if not published & {*drawing.experiments}]
    first = next(iter(own or drawings), None)
    evidence = [
        _findings(contents),
        Section("details", "Claims in detail", [Block("details", claims)]),
        *_full_tables(contents),
        *_matching_sections(records),
        Section("environment", "Environment", [Block("table", provenance.environment_table(records))]),
        _limitations(contents, results.problems),
        _commands(records, results),
    ]
    sections = [
        *_figure_sections(
            [drawing for drawing in own if drawing is not first], "measured", "Measured on this machine"
        ),
        *_figure_sections(
            [d for d in drawings if d not in own and d is not first], "published", "Published results"
        ),
        Section("claims", "Claims of the papers", [Block("claims", claims)]),
        _compact_tables(contents),
        Section("checks", "Checks and limitations", [Block("summary", _summary(records, evidence))]),
    ]
    return ReportPage(
        answer=find_answer(contents),
        conditions=_conditions(contents),
        first=first,
        sections=sections,
        evidence=evidence,
        drawings=drawings,
        models=_labels(contents),
    )


def _labels(contents: Contents) -> dict[str, str]:
    """Return the label of every model that figures and tables show."""
    lineups = [sweep.models for sweep in contents.sweeps]
    lineups += [contents.evaluations.models] if contents.evaluations else []
    return {name: found.labels[name] for found in reversed(lineups) for name in found.models}


def _conditions(contents: Contents) -> str:
    """Return the conditions of the first models measured; of quality without costs, those of each family."""
    sweeps = contents.sweeps
    if not sweeps:
        return "; ".join(contents.evaluations.conditions if contents.evaluations else [])
    records = [record for sweep in sweeps if sweep.models == sweeps[0].models for record in sweep.records]
    return provenance.describe_conditions(records, sweeps[0].models)


def _figure_sections(drawings: list[Drawing], name: str, title: str) -> list[Section]:
    return [Section(name, title, [Block("figures", drawings)])] if drawings else []


def _compact_tables(contents: Contents) -> Section:
    """Return the tables of the first page: the primary metric of every workload."""
    tables = cost_tables(contents.sweeps)
    tables += quality_tables(contents.evaluations) if contents.evaluations else []
    return Section("tables", "Tables", [Block("compact", tables)])


def _findings(contents: Contents) -> Section:
    evaluations = contents.evaluations
    found = [*find_costs(contents.sweeps), *(find_quality(evaluations) if evaluations else [])]
    nothing = "No two models were measured at the same point, so there is nothing to compare."
    return Section("findings", "Findings", [Block("findings", found) if found else Block("warning", nothing)])


def _full_tables(contents: Contents) -> list[Section]:
    """Return every metric of every workload, with the conditions and weights of the evaluations."""
    groups: dict[str, list[CostSweep]] = {}
    for sweep in contents.sweeps:
        groups.setdefault(sweep.experiment, []).append(sweep)
    costs = [
        Block("table", table, section_title(experiment, workload))
        for experiment, sweeps in groups.items()
        for workload, table in readable_tables(cost_table(sweeps)).items()
    ]
    found = [Section("all-tables", "Tables of all metrics", costs)] if costs else []
    return [*found, *([_quality_section(contents.evaluations)] if contents.evaluations else [])]


def _quality_section(evaluations: Evaluations) -> Section:
    """Return the tables of quality, the origin of the weights, and refused comparisons."""
    experiments = sorted({record.experiment for record in evaluations.records})
    blocks = [
        Block("sentences", evaluations.conditions, "Conditions"),
        Block("table", weights_table(evaluations), "Evaluated models"),
        Block("sentences", overlap_sentences(evaluations), "Evaluated on training text"),
        *(
            Block("table", table, section_title(experiment, workload))
            for experiment in experiments
            for workload, table in readable_tables(quality_table(evaluations, experiment)).items()
        ),
        Block("sentences", evaluations.refusals, "Not compared"),
    ]
    return Section("quality", "Quality", [block for block in blocks if len(block.content)])


def _summary(records: Sequence[Record], evidence: Sequence[Section]) -> list[SummaryLine]:
    """Return one line per section of the second page that supports the numbers of the first."""
    titles = {section.name: section for section in evidence}
    executed = [table for block in titles["executed"].blocks for table in block.content.get("difference", [])]
    num_differing = executed.count(provenance.DIFFERS)
    agree = "All models ran with the same settings, apart from those of their architecture."
    differing = f"{num_differing} settings differ that should be equal."
    limitations = [block for block in titles["limitations"].blocks if block.title]
    counts = ", ".join(f"{block.title.lower()} {len(block.content)}" for block in limitations)
    runs = len({record.run_id for record in records})
    texts = {
        "equivalence": provenance.equivalence_sentence(records),
        "matching": provenance.matching_sentence(matched_groups(records)),
        "executed": differing if num_differing else agree,
        "limitations": f"Limitations, by number: {counts}." if counts else "No limitations.",
        "environment": "Hardware, software and load of each run.",
        "commands": f"{len(records):,} records of {runs} run{'' if runs == 1 else 's'}: commands and files.",
        "all-tables": "Every metric with its intervals and rounds.",
        "findings": "All findings in sentences.",
    }
    return [SummaryLine(text, name, titles[name].title) for name, text in texts.items() if name in titles]


def _matching_sections(records: Sequence[Record]) -> list[Section]:
    """Return how the models are matched, which kernels executed, and the equivalence checks."""
    matching: list[Block] = []
    checks: list[Block] = []
    groups = matched_groups(records)
    by_experiment = group(records, lambda record: record.experiment)
    lineups = {experiment: lineup(mine) for experiment, mine in by_experiment.items()}
    for members in groups:
        models = lineup(members)
        title = _group_title(members) if len(groups) > 1 else ""
        matching.append(Block("text", provenance.mismatch_sentence(members, models), title))
        matching.append(Block("table", provenance.match_table(members, models)))
        table = provenance.equivalence_table(members, models)
        missing = Block("warning", "No record here holds an equivalence check.", title)
        checks.append(Block("table", table, title) if len(table) else missing)
    ordered = sorted(records, key=lambda r: (not measures_cost(r), r.experiment, r.workload))
    executed = [
        Block("table", provenance.executed_table(mine, lineups[key[0]]), section_title(*key))
        for key, mine in group(ordered, lambda record: (record.experiment, record.workload)).items()
    ]
    return [
        Section("matching", "Model matching", matching),
        Section("executed", "Executed kernels", executed),
        Section("equivalence", "Equivalence checks", checks),
    ]


def _group_title(records: Sequence[Record]) -> str:
    """Return the experiments of matched models, and the size where they are of quality."""
    sizes = {record.model.size for record in records if not measures_cost(record)}
    return ", ".join([*sorted({record.experiment for record in records}), *sorted(sizes)])


def _limitations(contents: Contents, problems: Sequence[str]) -> Section:
    """Return everything that is missing, failed, noisy, disturbed, unavailable, left out or unreadable."""
    selection, evaluations = contents.selection, contents.evaluations
    records = selection.records
    missing = diagnostics.missing_sentences(records, contents.sweeps)
    missing += diagnostics.missing_evaluations(evaluations) if evaluations else []
    refused = [] if evaluations and evaluations.refusals == contents.refusals else contents.refusals
    blocks = [
        Block("table", diagnostics.failure_table(records), "Failed"),
        Block("sentences", missing, "Missing"),
        Block("sentences", refused, "Not compared"),
        Block("sentences", diagnostics.noisy_sentences(contents.sweeps), "Noisy"),
        Block("sentences", diagnostics.disturbance_sentences(selection.costs), "Disturbed"),
        Block("sentences", diagnostics.absent_sentences(records), "Not available here"),
        Block("sentences", selection.left_out, "Left out"),
        Block("sentences", problems, "Files with problems"),
    ]
    found = [block for block in blocks if len(block.content)]
    none = Block("text", "None: every point of every round has a value, and nothing was left out.")
    return Section("limitations", "Limitations", found or [none])


def _commands(records: Sequence[Record], results: Results) -> Section:
    commands = dict.fromkeys(record.command for record in sorted(records, key=started))
    sources = provenance.source_table(records, results)
    return Section(
        "commands", "Commands", [Block("commands", [*commands, "retbench report"]), Block("table", sources)]
    )


def _templates() -> Environment:
    """Return the templates; an undefined name in one is an error, and only HTML is escaped."""
    environment = Environment(
        loader=PackageLoader("retbench.report", "templates"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Any] = {
        "cell": escape_markdown,
        "cells": html.cells,
        "claim_table": claim_table,
        "code_block": code_block,
        "markdown": markdown_table,
        "prose": html.prose,
        "result": describe_result,
        "text": markdown_text,
    }
    environment.filters.update(filters)
    return environment
