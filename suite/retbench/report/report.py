"""The report: one self-contained page, the same as Markdown, and the figures, all from records.

Both templates render one model of the page, `ReportPage`. The same records give the same bytes: nothing in it depends
on when or where it was written.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from retbench.architectures.registry import title_of
from retbench.files import check_writable, write_atomic
from retbench.records.record import Record
from retbench.report import diagnostics, html, provenance
from retbench.report.claim_tables import describe_result, make_claim_section
from retbench.report.claims import judge_claims
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
from retbench.report.tables import Contents, contents_of, cost_table, quality_table
from retbench.report.wording import section_title

BlockKind = Literal[
    "text",
    "warning",
    "conditions",
    "sentences",
    "findings",
    "table",
    "figures",
    "verdicts",
    "claims",
    "commands",
]
"""Kinds of blocks: the templates have a branch for each."""


class Block(NamedTuple):
    """One part of a section; the content is text, sentences, findings, a table, figures or claims, as the kind says."""

    kind: BlockKind
    content: Any
    title: str = ""


class Section(NamedTuple):
    """One section of the page; the name is its anchor."""

    name: str
    title: str
    blocks: list[Block]


class ReportPage(NamedTuple):
    """Everything that both templates show."""

    title: str
    conditions: str
    sections: list[Section]
    drawings: list[Drawing]


def write_report(results: Path, out: Path) -> list[Path]:
    """Write `index.html`, `report.md` and `figures/` into a folder and return the paths of all files.

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
    figures = out / "figures"
    paths = [path for drawing in page.drawings for path in save_drawing(drawing, figures)]
    svgs = {
        drawing.name: Markup(html.inline_svg((figures / f"{drawing.name}.svg").read_text("utf-8"), drawing))
        for drawing in page.drawings
    }
    templates = _templates()
    for name in ("index.html", "report.md"):
        text = templates.get_template(f"{name}.j2").render(page=page, svgs=svgs, colours=html.colour_rules())
        write_atomic(out / name, text.encode())
        paths.append(out / name)
    return paths


def make_page(results: Results) -> ReportPage:
    """Return the contents of the report: claims on all records, the rest on the newest comparable ones."""
    contents = contents_of(select(results.records, folders=results.folders))
    records = contents.selection.records
    evaluations = contents.evaluations
    costs = make_drawings(contents.selection) if contents.sweeps else []
    quality = draw_scores(evaluations) if evaluations else []
    claims = make_claim_section(judge_claims(results), [*costs, *quality])
    limitations = _limitations(contents, results.problems)
    sections = [
        Section("verdicts", "Verdicts", [Block("verdicts", claims)]),
        _findings(contents, has_limitations=limitations.blocks[0].title != ""),
        *(_cost_sections(contents, costs) if contents.sweeps else []),
        *([_quality_section(evaluations, quality)] if evaluations else []),
        Section("claims", "Claims in detail", [Block("claims", claims)]),
        *_matching_sections(records),
        Section("environment", "Environment", [Block("table", provenance.environment_table(records))]),
        limitations,
        _commands(records),
    ]
    titles = dict.fromkeys(title_of(record.model.architecture) for record in records)
    return ReportPage(
        f"{', '.join(titles)}: benchmark report", _conditions(contents), sections, [*costs, *quality]
    )


def _conditions(contents: Contents) -> str:
    """Return the conditions of the first models measured; of quality without costs, those of each family."""
    sweeps = contents.sweeps
    if not sweeps:
        return "; ".join(contents.evaluations.conditions if contents.evaluations else [])
    records = [record for sweep in sweeps if sweep.models == sweeps[0].models for record in sweep.records]
    return provenance.describe_conditions(records, sweeps[0].models)


def _findings(contents: Contents, *, has_limitations: bool) -> Section:
    evaluations = contents.evaluations
    found = [*find_costs(contents.sweeps), *(find_quality(evaluations) if evaluations else [])]
    nothing = "No two models were measured at the same point, so there is nothing to compare."
    blocks = [Block("findings", found) if found else Block("warning", nothing)]
    if has_limitations:
        blocks.append(
            Block("warning", "Some results are missing, failed or noisy: see [limitations](#limitations).")
        )
    return Section("findings", "Key findings", blocks)


def _cost_sections(contents: Contents, drawings: list[Drawing]) -> list[Section]:
    """Return the figures, and the tables of every experiment, one per workload."""
    groups: dict[str, list[Any]] = {}
    for sweep in contents.sweeps:
        groups.setdefault(sweep.experiment, []).append(sweep)
    tables = [
        Block("table", table, section_title(experiment, workload))
        for experiment, sweeps in groups.items()
        for workload, table in readable_tables(cost_table(sweeps)).items()
    ]
    figures = Block("figures", drawings) if drawings else Block("text", "These workloads have no figure.")
    return [Section("figures", "Figures", [figures]), Section("tables", "Tables", tables)]


def _quality_section(evaluations: Evaluations, drawings: list[Drawing]) -> Section:
    """Return the figures and tables of quality, the origin of the weights, and refused comparisons."""
    experiments = sorted({record.experiment for record in evaluations.records})
    blocks = [
        *(Block("conditions", line) for line in evaluations.conditions),
        Block("figures", drawings),
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


def _commands(records: Sequence[Record]) -> Section:
    commands = dict.fromkeys(record.command for record in sorted(records, key=started))
    sources = provenance.source_table(records)
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
        "code_block": code_block,
        "markdown": markdown_table,
        "prose": html.prose,
        "result": describe_result,
        "text": markdown_text,
    }
    environment.filters.update(filters)
    return environment
