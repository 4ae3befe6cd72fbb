"""Leads of one model over another in evaluations, and the verdicts of the rules on quality.

Only significant leads confirm or refute a claim. The p-value of a lead is that of Student's t over the trainings, from
three of them on; that of one training is of its documents: of texts by the bootstrap, of accuracies by McNemar's test
(`stats.paired`). A rule reads several evaluations, of which one in twenty differs by chance, so that Holm's procedure
decides which are significant: where models do not differ, about one verdict in twenty says that they do.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from typing import NamedTuple

from retbench.papers.claims import AheadRule, Claim, CrossesRule, NearRule, SlicesRule, Verdict
from retbench.papers.papers import find_number
from retbench.records.record import Record
from retbench.report.claims.judged import ClaimFinding, decided
from retbench.report.document_comparisons import DocumentComparison, Folders, compare
from retbench.report.points import group, instance_of, scores_of, task_point_of, trained_length
from retbench.report.wording import POINTS, describe_difference, range_of
from retbench.stats.paired import (
    MIN_SEEDS,
    SIGNIFICANT,
    Estimate,
    PairedAccuracy,
    difference_over_seeds,
    p_over_seeds,
    ratio_over_seeds,
)
from retbench.stats.sequential import reject
from retbench.units import format_percent, format_size, format_tokens


class Replicates(NamedTuple):
    """Trainings of one size that are judged together: their seeds, none of which is known for public weights."""

    size: str
    seeds: tuple[int, ...]


class QualityLead(NamedTuple):
    """Lead of a challenger over a reference in one evaluation, above 0 where the challenger is better.

    `p_value` is two-sided, against no lead; None where too few documents give none.
    """

    records: tuple[Record, ...]
    """Those of the challenger and of the reference in turn, a pair for each seed."""
    lead: float
    p_value: float | None
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
) -> dict[Replicates, list[QualityLead]]:
    """Compare both sides wherever they may be compared; by size, and by the seeds that are judged together."""
    found: dict[Replicates, list[QualityLead]] = {}
    compared = [(pair, compare(*pair, folders)) for pair in _pairs(rule, records)]
    with_number = [(pair, made) for pair, made in compared if made.ratio or _accuracy(made)]
    for of_size in group(with_number, lambda one: (one[1].point, one[1].instance.size)).values():
        for mine in [of_size] if len(of_size) >= MIN_SEEDS else [[one] for one in of_size]:
            sides = tuple(side for pair, _ in mine for side in pair)
            lengths = [trained_length(side, trainings) for side in sides]
            shortest = min((length for length in lengths if length is not None), default=None)
            lead, p_value = _lead([made for _, made in mine])
            instances = [made.instance for _, made in mine]
            seeds = tuple(sorted(one.seed for one in instances if one.seed is not None))
            found.setdefault(Replicates(instances[0].size, seeds), []).append(
                QualityLead(sides, lead, p_value, shortest)
            )
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


def _accuracy(made: DocumentComparison) -> PairedAccuracy | None:
    return made.accuracies.get("acc") or made.accuracies.get("contains")


def _lead(made: Sequence[DocumentComparison]) -> tuple[float, float | None]:
    """Return the lead of comparisons that differ in the seed only, and its p-value."""
    ratios = [one.ratio for one in made if one.ratio]
    pairs = [pair for one in made if (pair := _accuracy(one))]
    if over_seeds := ratio_over_seeds(ratios):
        return 1 - over_seeds.value, p_over_seeds([math.log(ratio.value) for ratio in ratios])
    if ratios:
        return 1 - ratios[0].value, ratios[0].p_value
    if over_seeds := difference_over_seeds(pairs):
        return over_seeds.value, p_over_seeds([pair.difference for pair in pairs])
    return pairs[0].difference, pairs[0].p_value


def _significant(p_values: Sequence[float | None]) -> list[bool]:
    """Return by Holm's procedure which p-values of one verdict are significant; None is not."""
    known = {number: p_value for number, p_value in enumerate(p_values) if p_value is not None}
    rejected = reject(known, SIGNIFICANT, dict.fromkeys(known, 1), len(known))
    return [number in rejected for number in range(len(p_values))]


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
    significant = list(compress(leads, _significant([each.p_value for each in leads])))
    sure = [each for each in significant if each.lead > 0]
    behind = [each for each in significant if each.lead < 0]
    evaluations = "evaluation" if len(leads) == 1 else "evaluations"
    text = (
        f"ahead at {len(ahead)} of {len(leads)} {evaluations}, significantly at {len(sure)}, significantly behind at "
        f"{len(behind)}; {_lead_words(leads)}"
    )
    if all(each.p_value is None for each in leads):
        return ClaimFinding("not_testable", text, ("too few documents for an interval",))
    if not sure or len(behind) > len(sure):
        return ClaimFinding("not_reproduced" if behind else "not_testable", text)
    points = [each.records[0].point for each in leads]
    has_tasks = rule.workload == "perplexity" or {point.task for point in points} >= set(rule.tasks)
    is_complete = has_tasks and {point.context_len for point in points} >= set(rule.context_lens)
    is_whole = is_complete and len(ahead) == len(leads) and 2 * len(sure) >= len(leads)
    return ClaimFinding("reproduced" if is_whole else "partly", text)


def _lead_words(leads: Sequence[QualityLead]) -> str:
    """Format the least and the largest lead: 'lead -1.0 % to 2.0 % of the loss', or 'behind by 5.3 to 6.3 points'."""
    low, high = (end(each.lead for each in leads) for end in (min, max))
    words, ends = ("behind by", (-high, -low)) if high < 0 else ("lead", (low, high))
    return f"{words} {_amount(leads, *ends)}"


def _amount(leads: Sequence[QualityLead], *values: float) -> str:
    """Format leads: of texts as a share of the loss, which is smaller than that of the perplexity, else as points."""
    if scores_of(leads[0].records[0].workload) == "text":
        return f"{range_of(values, format_percent)} of the loss"
    return f"{range_of(values, lambda value: f'{POINTS * value:.1f}')} points"


def judge_crossing(
    small: Mapping[str, Sequence[QualityLead]], large: Mapping[str, Sequence[QualityLead]]
) -> ClaimFinding:
    """Judge whether the challenger is behind at the small sizes and ahead at the large ones."""
    behind, ahead = ([each for leads in sizes.values() for each in leads] for sizes in (small, large))
    num_leads = len(behind) + len(ahead)
    is_as_claimed = [each.lead < 0 for each in behind] + [each.lead > 0 for each in ahead]
    as_claimed = list(compress(is_as_claimed, _significant([each.p_value for each in (*behind, *ahead)])))
    means = _mean_lead(behind), _mean_lead(ahead)
    if not as_claimed:
        verdict: Verdict = "not_testable"
    elif all(as_claimed):
        verdict = "reproduced" if len(as_claimed) == num_leads else "partly"
    else:
        verdict = "partly" if means[0] < 0 < means[1] else "not_reproduced"
    at_small, at_large = (
        f"{_amount(behind, mean)} at {', '.join(map(format_size, sizes))}"
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

    records: tuple[Record, ...]
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
) -> dict[Replicates, list[SlicesPair]]:
    """Compare both sides wherever they may be compared; by size and seed, which are judged one by one."""
    found: dict[Replicates, list[SlicesPair]] = {}
    for mine, theirs in _pairs(rule, records):
        made = compare(mine, theirs, folders)
        if {"hit_nats", "first_nats"} <= made.slices.keys() and made.reference_gain is not None:
            pair = SlicesPair((mine, theirs), made.slices, made.reference_gain)
            size, seed = made.instance
            found.setdefault(Replicates(size, () if seed is None else (seed,)), []).append(pair)
    return found


def judge_slices(claim: Claim, pairs: Sequence[SlicesPair]) -> ClaimFinding:
    """Judge whether the challenger is behind on repeated pairs, and there more than on new ones, in every evaluation.

    Being further behind on repeated pairs than on new ones is a smaller gain of a repeated pair. It counts only where
    the reference recalls: where neither model does, neither recalls less.
    """
    text = "; ".join(pair.text for pair in pairs)
    if all(pair.reference_gain.low is None for pair in pairs):
        return ClaimFinding("not_testable", text, ("too few documents for an interval",))
    # Whether each half of the claim lies on the side that is claimed, and its p-value.
    halves = [
        (sign * one.value > 0, one.p_value)
        for pair in pairs
        if pair.reference_gain.low is not None and pair.reference_gain.low > 0
        for one, sign in ((pair.slices["hit_nats"], 1), (pair.slices["hit_gain_nats"], -1))
        if one.p_value is not None
    ]
    printed = " and ".join(f"{find_number(place).value:.3g}" for place in claim.numbers)
    significant = [
        as_claimed
        for (as_claimed, _), is_significant in zip(halves, _significant([p for _, p in halves]), strict=True)
        if is_significant
    ]
    # To be reproduced every half must be shown, so that their errors do not add up: each is tested at the full rate.
    if halves and all(as_claimed and p_value < SIGNIFICANT for as_claimed, p_value in halves):
        verdict: Verdict = "reproduced"
    elif significant:
        verdict = "partly" if any(significant) else "not_reproduced"
    else:
        verdict = "not_testable"
    return ClaimFinding(verdict, text, (f"the paper {printed} nats per token",))
