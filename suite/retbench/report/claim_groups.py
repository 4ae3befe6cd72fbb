"""Judged claims in the order in which they are read: what was measured first, then what verdicts on the others take."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from retbench.report.claims import Judged

Known = Literal["decided", "measured", "open"]
"""decided: there is a verdict under the paper's conditions. measured: there are records, and none decides. open: there
are none."""


@dataclass(frozen=True)
class Group:
    """Claims of which as much is known.

    Attributes:
        known: How much.
        title: The same in words, with what is missing and the number of claims.
        members: In the order of their file.
    """

    known: Known
    title: str
    members: tuple[Judged, ...]


def group_claims(judged: Sequence[Judged]) -> list[Group]:
    """Every claim in one group: the decided ones, the measured ones, and then the others by what they need."""
    members: dict[tuple[int, Known, str], list[Judged]] = {}
    for each in judged:
        members.setdefault(_place(each), []).append(each)
    return [
        Group(place[1], f"{place[2]} ({len(members[place])})", tuple(members[place]))
        for place in sorted(members)
    ]


def _place(each: Judged) -> tuple[int, Known, str]:
    """Rank, how much is known, and title of the group that a claim belongs to."""
    scale = each.claim.scale
    if each.verdict != "not_testable":
        return 0, "decided", "Decided under the paper's conditions"
    if any(row.num_records for row in each.rows):
        return 1, "measured", "Measured, not decided"
    if each.claim.rule is None:
        return 5, "open", "Not measured: no run here can tell"
    if scale.hardware:
        return 2, "open", f"Not measured: a verdict needs the paper's hardware, {' '.join(scale.hardware)}"
    if scale.num_tokens:
        return 3, "open", "Not measured: a verdict needs models trained as the paper's"
    return 4, "open", "Not measured yet"
