"""Leads of one model over another in evaluations, and the verdicts of the rules on quality.

A lead is significant where its interval excludes 0, or of accuracies by McNemar's test; only significant leads confirm
or refute a claim.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from retbench.papers.claims import AheadRule, Claim, CrossesRule, NearRule, SlicesRule, Verdict
from retbench.papers.papers import find_number
from retbench.records.record import Record
from retbench.report.claim_rules import ClaimFinding, decided
from retbench.report.document_comparisons import Folders, compare
from retbench.report.points import ModelInstance, instance_of, scores_of, task_point_of, trained_length
from retbench.report.wording import describe_difference
from retbench.stats.paired import Estimate
from retbench.units import format_percent, format_size, format_tokens


class QualityLead(NamedTuple):
    """Lead of a challenger over a reference in one evaluation, above 0 where the challenger is better.

    `is_significant` is None where too few documents give no interval.
    """

    records: tuple[Record, Record]
    lead: float
    is_significant: bool | None
    trained_len: int | None = None
    """Sequence length of the training, of both models the shorter one; None where it is not known."""

    @property
    def is_beyond(self) -> bool:
        """True of a perplexity at a longer context than that of the training, where models extrapolate."""
        record = self.records[0]
        is_longer = self.trained_len is not None and record.point.context_len > self.trained_len
        return is_longer and scores_of(record.workload) == "text"


def find_leads(
    rule: AheadRule | CrossesRule,
    records: Sequence[Record],
    folders: Folders,
    trainings: Sequence[Record] = (),
) -> dict[ModelInstance, list[QualityLead]]:
    """Compare both sides wherever they may be compared; by size and seed."""
    found: dict[ModelInstance, list[QualityLead]] = {}
    for mine, theirs in _pairs(rule, records):
        lead = _lead(mine, theirs, folders)
        if lead is not None:
            lengths = [trained_length(side, trainings) for side in lead.records]
            shortest = min((length for length in lengths if length is not None), default=None)
            found.setdefault(instance_of(mine), []).append(lead._replace(trained_len=shortest))
    return found


def _pairs(
    rule: AheadRule | CrossesRule | SlicesRule, records: Sequence[Record]
) -> Iterator[tuple[Record, Record]]:
    """Yield each record of the challenger with the reference's of the same task point, size and seed."""
    references = {(task_point_of(r), instance_of(r)): r for r in records if rule.reference.has(r)}
    for record in records:
        theirs = references.get((task_point_of(record), instance_of(record)))
        if theirs is not None and rule.challenger.has(record):
            yield record, theirs


def _lead(mine: Record, theirs: Record, folders: Folders) -> QualityLead | None:
    """Return the lead of one record over another; None where they may not be compared."""
    found = compare(mine, theirs, folders)
    if found.ratio is not None:
        low, high = found.ratio.low, found.ratio.high
        is_significant = None if low is None or high is None else not low <= 1 <= high
        return QualityLead((mine, theirs), 1 - found.ratio.value, is_significant)
    pair = found.accuracies.get("acc") or found.accuracies.get("contains")
    if pair is not None:
        return QualityLead((mine, theirs), pair.difference, pair.is_significant)
    return None


def judge_ahead(rule: AheadRule, leads: Sequence[QualityLead]) -> ClaimFinding:
    """Judge whether the challenger is ahead at every evaluation within the length of the training.

    `reproduced` takes every task and context of the claim, and significant leads at half of the evaluations or more;
    `partly` takes a significant lead, and no more evaluations in which the challenger is significantly behind.
    """
    within = [each for each in leads if not each.is_beyond]
    if len(within) < len(leads):
        lengths = sorted({each.trained_len for each in leads if each.is_beyond and each.trained_len})
        beyond = f"longer than the {', '.join(map(format_tokens, lengths))} tokens of the training"
        if not within:
            return ClaimFinding("not_testable", f"no evaluation counts: {beyond}")
        finding = judge_ahead(rule, within)
        return finding._replace(
            measured=f"{finding.measured}; {len(leads) - len(within)} not counted: {beyond}"
        )
    ahead = [each for each in leads if each.lead > 0]
    sure = [each for each in ahead if each.is_significant]
    behind = [each for each in leads if each.lead < 0 and each.is_significant]
    values = [each.lead for each in leads]
    text = (
        f"ahead at {len(ahead)} of {len(leads)} evaluations, significantly at {len(sure)}, significantly behind at "
        f"{len(behind)}; {_lead_words(min(values), max(values))}"
    )
    if all(each.is_significant is None for each in leads):
        return ClaimFinding("not_testable", text, ("too few documents for an interval",))
    if not sure or len(behind) > len(sure):
        return ClaimFinding("not_reproduced" if behind else "not_testable", text)
    points = [each.records[0].point for each in leads]
    has_tasks = rule.workload == "perplexity" or {point.task for point in points} >= set(rule.tasks)
    is_complete = has_tasks and {point.context_len for point in points} >= set(rule.context_lens)
    is_whole = is_complete and len(ahead) == len(leads) and 2 * len(sure) >= len(leads)
    return ClaimFinding("reproduced" if is_whole else "partly", text)


def _lead_words(low: float, high: float) -> str:
    """Format the least and the largest lead: 'lead -1.0 % to 2.0 %', or 'behind by 5.3 % to 6.3 %'."""
    words, ends = ("behind by", (-high, -low)) if high < 0 else ("lead", (low, high))
    return f"{words} {' to '.join(dict.fromkeys(map(format_percent, ends)))}"


def judge_crossing(
    small: Mapping[str, Sequence[QualityLead]], large: Mapping[str, Sequence[QualityLead]]
) -> ClaimFinding:
    """Judge whether the challenger is behind at the small sizes and ahead at the large ones."""
    behind, ahead = ([each for leads in sizes.values() for each in leads] for sizes in (small, large))
    as_claimed = [each.lead < 0 for each in behind if each.is_significant]
    as_claimed += [each.lead > 0 for each in ahead if each.is_significant]
    num_leads = len(behind) + len(ahead)
    means = _mean_lead(behind), _mean_lead(ahead)
    if not as_claimed:
        verdict: Verdict = "not_testable"
    elif all(as_claimed):
        verdict = "reproduced" if len(as_claimed) == num_leads else "partly"
    else:
        verdict = "partly" if means[0] < 0 < means[1] else "not_reproduced"
    at_small, at_large = (
        f"{format_percent(mean)} at {', '.join(map(format_size, sizes))}"
        for mean, sizes in zip(means, (small, large), strict=True)
    )
    significance = f"significantly different at {len(as_claimed)} of {num_leads} evaluations"
    return ClaimFinding(verdict, f"mean lead {at_small}, {at_large}, {significance}")


def _mean_lead(leads: Sequence[QualityLead]) -> float:
    return sum(each.lead for each in leads) / len(leads)


def judge_near(claim: Claim, rule: NearRule, value: float) -> ClaimFinding:
    """Judge whether a metric is what the paper prints."""
    is_near = abs(value / claim.printed - 1) <= rule.tolerance
    printed = f"the paper {claim.printed:.4g}, within {format_percent(rule.tolerance)}"
    return decided(is_near, f"{value:.4g}", printed)


class SlicesPair(NamedTuple):
    """Two records that are compared, the challenger's first, and the differences of their slices."""

    records: tuple[Record, Record]
    slices: Mapping[str, Estimate]
    reference_gain: Estimate
    """The reference's own gain of a repeated pair: above 0 where it recalls."""

    @property
    def text(self) -> str:
        """Both differences, and the reference's gain where its interval is not above 0."""
        text = (
            f"{describe_difference(self.slices['hit_nats'])} nats per word on repeated pairs, "
            f"{describe_difference(self.slices['first_nats'])} on new ones"
        )
        gain = self.reference_gain
        if gain.low is None or gain.low > 0:
            return text
        own = describe_difference(gain)
        return f"{text}; the reference is not shown to recall, its gain of a repeated pair is {own}"


def find_slice_pairs(
    rule: SlicesRule, records: Sequence[Record], folders: Folders
) -> dict[ModelInstance, list[SlicesPair]]:
    """Compare both sides wherever they may be compared; by size and seed."""
    found: dict[ModelInstance, list[SlicesPair]] = {}
    for mine, theirs in _pairs(rule, records):
        made = compare(mine, theirs, folders)
        if {"hit_nats", "first_nats"} <= made.slices.keys() and made.reference_gain is not None:
            pair = SlicesPair((mine, theirs), made.slices, made.reference_gain)
            found.setdefault(instance_of(mine), []).append(pair)
    return found


def judge_slices(claim: Claim, pairs: Sequence[SlicesPair]) -> ClaimFinding:
    """Judge whether the challenger is behind on repeated pairs, and there more than on new ones, in every evaluation.

    Being further behind on repeated pairs than on new ones is a smaller gain of a repeated pair. Only intervals decide,
    and only where the reference recalls: where neither model does, neither recalls less.
    """
    text = "; ".join(pair.text for pair in pairs)
    if all(pair.reference_gain.low is None for pair in pairs):
        return ClaimFinding("not_testable", text, ("too few documents for an interval",))
    # Above 0 as claimed: the loss on repeated pairs, and the gain that is lacking.
    ends = [
        end
        for pair in pairs
        if pair.reference_gain.low is not None and pair.reference_gain.low > 0
        for one, sign in ((pair.slices["hit_nats"], 1), (pair.slices["hit_gain_nats"], -1))
        if one.low is not None and one.high is not None
        for end in [sorted((sign * one.low, sign * one.high))]
    ]
    printed = " and ".join(f"{find_number(place).value:.3g}" for place in claim.numbers)
    shown, refuted = [low > 0 for low, _ in ends], [high < 0 for _, high in ends]
    verdict: Verdict = "not_reproduced" if any(refuted) else "not_testable"
    if any(shown):
        verdict = "reproduced" if all(shown) else "partly"
    return ClaimFinding(verdict, text, (f"the paper {printed} nats per token",))
