"""The report: a page with the answer, a page with its evidence, both as Markdown, and the figures, all from records.

All templates render one model of the report, `ReportPage`. The same records give the same bytes: nothing in it depends
on when or where it was written.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from retbench.files import check_writable, write_atomic
from retbench.report import provenance
from retbench.report.claims.judge import judge_claims
from retbench.report.claims.tables import details_markdown, groups_markdown, make_claim_section
from retbench.report.claims.words import describe_paper, describe_sources
from retbench.report.contents import Contents, contents_of
from retbench.report.evidence import Block, Section, evidence_sections, summarise_evidence
from retbench.report.figures.catalogue import make_drawings
from retbench.report.figures.drawing import Drawing, save_drawing
from retbench.report.figures.looks import colour_rules
from retbench.report.figures.svg import inline_svgs
from retbench.report.findings.answer import Answer, find_answer
from retbench.report.origins import select_by_origin
from retbench.report.results import Results, load_results
from retbench.report.tables.compact import cost_tables, quality_tables
from retbench.report.tables.formats import html_cells, html_text, markdown_table
from retbench.report.tables.markdown import code_block, escape_markdown, markdown_text

_NO_FILES = (
    "The figures are in evidence.html. To write them to files as well: "
    "`retbench report --results results/published --out FOLDER`."
)
"""Sentence on figures of published records, where the reader has records, too."""


class ReportPage(NamedTuple):
    """Everything that the templates show.

    Attributes:
        answer: First lines of the first page.
        conditions: Conditions of the first models measured.
        first: Figure beside the answer; None without figures.
        sections: Sections of the first page.
        evidence: Sections of the second page.
        drawings: Figures that are written to files, too.
        other_drawings: Figures of published records beside the reader's own, which are on the second page alone.
        models: Label of each model that is drawn on the first page, by its name.
        others: Address and title of each further set of records, whose sections are on the second page.
    """

    answer: Answer
    conditions: str
    first: Drawing | None
    sections: list[Section]
    evidence: list[Section]
    drawings: list[Drawing]
    other_drawings: list[Drawing]
    models: Mapping[str, str]
    others: list[tuple[str, str]]


class WrittenReport(NamedTuple):
    """A report on the disk: its answer, the paths of all its files, and a sentence per line that cannot be read."""

    answer: Answer
    paths: list[Path]
    problems: tuple[str, ...]


def write_report(results: Path, out: Path) -> WrittenReport:
    """Write `index.html`, `evidence.html`, `report.md` and `figures/` into a folder.

    The files in `figures/` are those of the reader's own records, or of the published ones where there are no others.

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
    drawings = [*page.drawings, *page.other_drawings]
    svgs = {drawing.name: inline_svgs(drawing, f"f{number}-") for number, drawing in enumerate(drawings)}
    templates = _templates()
    for name in ("index.html", "evidence.html", "report.md"):
        text = templates.get_template(f"{name}.j2").render(page=page, svgs=svgs, colours=colour_rules())
        write_atomic(out / name, text.encode())
        paths.append(out / name)
    return WrittenReport(page.answer, paths, found.problems)


class _Origin(NamedTuple):
    """The reader's own records, or the published ones, ready to be shown."""

    contents: Contents
    drawings: list[Drawing]

    def has_files_beside(self, first: "_Origin") -> bool:
        """Return whether its figures are written to files: not those of published records beside the reader's own."""
        return self.contents.selection.is_published == first.contents.selection.is_published


def make_page(results: Results) -> ReportPage:
    """Return the contents of the report: claims on all records, the rest on the newest comparable ones by origin."""
    origins = _origins(results)
    main = origins[0].contents
    first = next(iter(origins[0].drawings), None)
    claims = make_claim_section(judge_claims(results), origins[0].drawings)
    evidence = [_evidence(origin, results, origins[0]) for origin in origins]
    summary: list[Block] = []
    others: list[tuple[str, str]] = []
    for origin, sections in zip(origins, evidence, strict=True):
        title = origin.contents.selection.title if len(origins) > 1 else ""
        lines = summarise_evidence(origin.contents.selection.records, sections)
        if origin is not origins[0]:
            others.append((f"evidence.html#{sections[0].name}", title))
        summary.append(Block("summary", lines if origin is origins[0] else lines[:2], title))
    return ReportPage(
        answer=find_answer(main),
        conditions=_conditions(main),
        first=first,
        sections=[
            *([_figures(origins[0], first)] if origins[0].drawings[1:] else []),
            Section("claims", "Claims of the papers", [Block("claims", claims)]),
            _tables(main),
            Section("checks", "Checks and limitations", summary),
        ],
        evidence=[
            Section("details", "Claims in detail", [Block("details", claims)]),
            *(s for e in evidence for s in e),
        ],
        drawings=_drawings(origins, has_files=True),
        other_drawings=_drawings(origins, has_files=False),
        models=main.labels,
        others=others,
    )


def _drawings(origins: Sequence[_Origin], *, has_files: bool) -> list[Drawing]:
    """Return the figures that are written to files, or those that are not."""
    found = (one for one in origins if one.has_files_beside(origins[0]) == has_files)
    return [drawing for origin in found for drawing in origin.drawings]


def _origins(results: Results) -> list[_Origin]:
    """Return the selections with their figures, each of which has a name that no other has, for its files."""
    found: list[_Origin] = []
    taken = set[str]()
    for selection in select_by_origin(results):
        contents = contents_of(selection)
        drawings, earlier = [], {*taken}
        for drawing in make_drawings(contents):
            name = f"{selection.anchor}_{drawing.name}" if drawing.name.lower() in earlier else drawing.name
            drawings.append(replace(drawing, name=_free_name(name, taken)))
            taken.add(drawings[-1].name.lower())
        found.append(_Origin(contents, drawings))
    return found


def _free_name(name: str, taken: Container[str]) -> str:
    """Return a name, numbered if it is taken in any case: the experiments `a b` and `A-b` have the same."""
    numbered = (f"{name}-{number}" for number in count(2))
    return next(each for each in chain([name], numbered) if each.lower() not in taken)


def _evidence(origin: _Origin, results: Results, first: _Origin) -> list[Section]:
    """Return the sections of one origin on the second page.

    Those after the first origin have names and titles that say so. Their figures and tables are here too, so that the
    first page stays short.
    """
    sections = evidence_sections(origin.contents, results)
    if origin is first:
        return sections
    name, title = origin.contents.selection.anchor, origin.contents.selection.title
    sections.insert(0, _tables(origin.contents))
    notes = [] if origin.has_files_beside(first) else [Block("text", _NO_FILES)]
    blocks = [*notes, Block("figures", origin.drawings)]
    figures = [Section(name, "Figures", blocks)] if origin.drawings else []
    named = (one._replace(name=f"{one.name}-{name}") for one in sections)
    return [one._replace(records=title) for one in (*figures, *named)]


def _figures(origin: _Origin, first: Drawing | None) -> Section:
    """Return the figures of an origin but for the one beside the answer."""
    others = [drawing for drawing in origin.drawings if drawing is not first]
    return Section(
        origin.contents.selection.anchor, origin.contents.selection.title, [Block("figures", others)]
    )


def _tables(contents: Contents) -> Section:
    """Return the primary metric of every workload."""
    quality = quality_tables(contents.evaluations) if contents.evaluations else []
    return Section("tables", "Tables", [Block("compact", [*cost_tables(contents.sweeps), *quality])])


def _conditions(contents: Contents) -> str:
    """Return the conditions of the first models measured; of quality without costs, those of each family."""
    sweeps = contents.sweeps
    if not sweeps:
        return "; ".join(contents.evaluations.conditions if contents.evaluations else [])
    records = [record for sweep in sweeps if sweep.models == sweeps[0].models for record in sweep.records]
    return provenance.describe_conditions(records, sweeps[0].models)


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
        "cells": html_cells,
        "claim_details": details_markdown,
        "claim_groups": groups_markdown,
        "code_block": code_block,
        "markdown": markdown_table,
        "paper": describe_paper,
        "prose": html_text,
        "sources": describe_sources,
        "text": markdown_text,
    }
    environment.filters.update(filters)
    return environment
