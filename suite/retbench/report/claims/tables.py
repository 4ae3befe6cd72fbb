"""Judged claims by group, as the rows of a short table, as Markdown and as JSON."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import pandas as pd

from retbench.papers.claims import Verdict
from retbench.papers.papers import Number, find_number
from retbench.report.claims.cost_rules import TOLERANCE
from retbench.report.claims.judged import JudgedClaim, spell
from retbench.report.claims.words import (
    describe_need,
    describe_needed,
    describe_paper,
    describe_sources,
    list_limitations,
    list_origins,
)
from retbench.report.comparisons import LEVEL_MARGIN
from retbench.report.tables.formats import markdown_table
from retbench.report.tables.markdown import markdown_text

if TYPE_CHECKING:
    from retbench.report.figures.drawing import Drawing  # imports matplotlib

LEGEND = (
    "Only records under a paper's own conditions decide a claim; records of other conditions are listed with it and "
    "decide nothing. An advantage is reproduced if its whole interval reaches "
    f"{100 * (1 - TOLERANCE):.0f} % of the printed one, and partly reproduced if the whole interval is an advantage, "
    "but a smaller one. It is not reproduced if its interval has 1 in it and leaves room for at most "
    f"{100 * TOLERANCE:.0f} % of the printed one. A cost is the same at every length if its 90 % interval lies within "
    f"{100 * LEVEL_MARGIN:.0f} %; all other intervals are of 95 %. A claim is undecided where the interval is too "
    "wide, or where the records say nothing about it. A perplexity at a longer context than the training's does not "
    "count."
)
"""Meaning of the verdicts."""


class ClaimGroup(NamedTuple):
    """Claims that need the same for a verdict, the measured ones first."""

    title: str
    needed: str
    """Requirements that all of them share, in one line of Markdown; empty for decided claims."""
    claims: list[JudgedClaim]

    @property
    def heading(self) -> str:
        """Title with the number of claims."""
        return f"{self.title} ({len(self.claims)})"

    @property
    def shown(self) -> list[JudgedClaim]:
        """Claims that have a row in a short table: those that are decided or have results."""
        return [judged for judged in self.claims if judged.results or not self.needed]


class ClaimSection(NamedTuple):
    """Everything that is shown about claims: counts of verdicts, their legend, and the claims by group."""

    counts: str
    legend: str
    groups: list[ClaimGroup]
    drawings: "Sequence[Drawing]"
    """Figures of the report, to which the claims refer."""

    @property
    def origins_title(self) -> str:
        """Heading of the origins."""
        return "Where the papers' numbers were read"

    @property
    def origins(self) -> list[str]:
        """The origin of the numbers of each paper."""
        return list_origins(judged.claim for group in self.groups for judged in group.claims)

    def figures_of(self, judged: JudgedClaim) -> "list[Drawing]":
        """Return the figures of the same experiments as a claim."""
        named = set(judged.claim.experiments)
        return [drawing for drawing in self.drawings if named & set(drawing.experiments)]


def make_claim_section(judged: Sequence[JudgedClaim], drawings: "Sequence[Drawing]" = ()) -> ClaimSection:
    """Group the claims: decided ones first, and then the others by what a verdict needs.

    Args:
        judged: The claims.
        drawings: The report's figures, to which the claims refer.
    """
    groups: dict[tuple[int, str], list[JudgedClaim]] = {}
    for each in judged:
        key = (-1, "Decided under the paper's conditions") if each.is_decided else describe_need(each.claim)
        groups.setdefault(key, []).append(each)
    found = []
    for (rank, title), members in sorted(groups.items(), key=lambda item: item[0][0]):
        members = sorted(members, key=lambda each: not each.results)
        needed = describe_needed([each.claim for each in members]) if rank >= 0 else ""
        found.append(ClaimGroup(title, needed, members))
    return ClaimSection(_count_verdicts(judged), LEGEND, found, drawings)


def _count_verdicts(judged: Sequence[JudgedClaim]) -> str:
    """Return how many claims have each verdict under the papers' conditions, and how many others under other ones."""
    decided = Counter(each.verdict_words for each in judged)
    undecided = [each for each in judged if not each.is_decided]
    elsewhere = Counter(each.results[0].verdict_words for each in undecided if each.results)
    line = f"{len(judged)} claims under the papers' own conditions: {_list_counts(decided)}."
    if elsewhere:
        some = f"{sum(elsewhere.values())} of the {len(undecided)} that these do not decide"
        line += f" {some} have results under other conditions: {_list_counts(elsewhere)}."
    return line


def _list_counts(counts: Counter[str]) -> str:
    verdicts = [*map(spell, get_args(Verdict)), "undecided"]
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in verdicts if counts[verdict])


def claim_table(judged: Sequence[JudgedClaim]) -> pd.DataFrame:
    """Return claims as text: claim, paper, here, verdict."""
    rows = [
        [each.claim.statement, describe_paper(each.claim), "; ".join(each.result_lines), each.verdict_cell]
        for each in judged
    ]
    return pd.DataFrame(rows, columns=["claim", "paper", "here", "verdict"])


def headlines_markdown(judged: Sequence[JudgedClaim]) -> str:
    """Return a table of the headlines: claim, the paper's number, what was measured, verdict."""
    return markdown_table(claim_table([each for each in judged if each.claim.headline])) + "\n"


def claims_markdown(judged: Sequence[JudgedClaim]) -> str:
    """Return the counts of the verdicts, a short table per group, and then all evidence."""
    section = make_claim_section(judged)
    lines = [section.counts, "", section.legend, "", groups_markdown(section), ""]
    lines += ["### Evidence", "", markdown_table(_evidence_table(section))]
    for title, found in (
        (section.origins_title, section.origins),
        ("Not stated by the papers, or doubtful", list_limitations(each.claim for each in judged)),
    ):
        lines += ["", f"### {title}", "", *(f"- {line}" for line in found)] if found else []
    return "\n".join(lines) + "\n"


def groups_markdown(section: ClaimSection) -> str:
    """Return a heading per group, what its claims need, and the short table of all its claims."""
    blocks = []
    for group in section.groups:
        blocks += [f"### {group.heading}", *([markdown_text(group.needed)] if group.needed else [])]
        blocks.append(markdown_table(claim_table(group.claims)))
    return "\n\n".join(blocks)


def _evidence_table(section: ClaimSection) -> pd.DataFrame:
    """Return a row per claim and conditions; the claim and its source are in its first row."""
    found = []
    for each in (each for group in section.groups for each in group.claims):
        lead = each.claim.statement, each.claim.source
        for row in each.rows:
            needed = f": `{row.command}`" if row.command and not row.records else ""
            measured = row.finding.text + needed
            found.append([*lead, row.conditions_cell, row.verdict_cell, measured, row.record_words])
            lead = "", ""
    columns = ["claim", "source", "conditions", "verdict", "measured, or needed", "records"]
    return pd.DataFrame(found, columns=columns)


def details_markdown(section: ClaimSection) -> str:
    """Return each claim under a heading: verdict, a table of its evidence, the paper's numbers; then their origins."""
    lines = []
    for group in section.groups:
        lines += [f"### {group.heading}", ""]
        for each in group.claims:
            lines += [f"#### {markdown_text(each.claim.statement)}", ""]
            lines += [f"**{each.verdict_words}** ({each.claim.source})", ""]
            lines += [markdown_table(_detail_table(each)), ""]
            lines += [*(f"- {markdown_text(line)}" for line in describe_sources(each.claim)), ""]
    lines += [
        f"### {section.origins_title}",
        "",
        *(f"- {markdown_text(line)}" for line in section.origins),
        "",
    ]
    return "\n".join(lines)


def _detail_table(judged: JudgedClaim) -> pd.DataFrame:
    """Return a row per conditions, with the command that made or would make the records."""
    rows = [
        [
            row.conditions_cell,
            row.verdict_cell,
            row.finding.text,
            f"`{row.command}`" if row.command else "none",
            row.record_words,
        ]
        for row in judged.rows
    ]
    columns = ["conditions", "verdict", "measured, or still needed", "command", "records"]
    return pd.DataFrame(rows, columns=columns)


def claims_json(judged: Sequence[JudgedClaim]) -> list[dict[str, Any]]:
    """Return every claim with its numbers, verdict and rows, in base units."""
    return [
        {
            **each.claim.model_dump(include={"name", "statement", "source"}),
            "verdict": each.verdict,
            "numbers": [_number_json(find_number(place)) for place in each.claim.numbers],
            "rows": [
                {
                    "scope": row.scope,
                    "conditions": row.conditions,
                    **row.finding._asdict(),
                    "command": row.command,
                    "num_records": row.num_records,
                    "run_ids": list(row.run_ids),
                }
                for row in each.rows
            ],
        }
        for each in judged
    ]


def _number_json(number: Number) -> dict[str, Any]:
    fields = {name: getattr(number, name) for name in ("place", "value", "unit", "kind", "source", "origin")}
    return fields | {"not_stated": list(number.conditions.not_stated), "doubts": list(number.doubts)}
