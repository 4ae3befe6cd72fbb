"""Sentences about decided items."""

import math

from retbench.regress.decide import Decisions, with_decisions
from retbench.regress.evidence import PairedEvidence
from retbench.regress.items import MeasurementPoint, time_of
from retbench.regress.report import CheckReport
from retbench.stats.intervals import paired
from retbench.stats.sequential import Decision

POINT = MeasurementPoint("latency", "decode", "retnet", 1, 1024)


def test_a_sentence_has_the_ratio_of_its_item_and_not_of_rounds_that_came_after_the_decision() -> None:
    logs = [0.40, 0.41, 0.42]
    decided, later = paired([0.20, 0.21, 0.22]), paired(logs)
    decisions: Decisions = {time_of(POINT): Decision("regressed", decided, 0.05)}
    pairs = [{POINT: (1.0, math.exp(log))} for log in logs]
    evidence = PairedEvidence(([{POINT: 1.0}], [{POINT: 1.25}]), pairs)
    report = CheckReport(first="a", second="b", method="")
    (sentence,) = with_decisions(report, decisions, evidence).sentences
    assert f"{decided.interval().value:.3f} [" in sentence
    assert f"{later.interval().value:.3f}" not in sentence
