"""Claims in the order in which they are read: each in one group, what was measured first."""

from itertools import chain

from report.synthetic_records import CPU, Maker
from retbench.records.record import Record
from retbench.report.claim_groups import Group, group_claims
from retbench.report.claim_types import load_claims
from retbench.report.claims import judge_claims
from retbench.report.frames import Results


def groups_of(records: list[Record]) -> list[Group]:
    return group_claims(judge_claims(Results(tuple(records), ())))


def names_in(group: Group) -> list[str]:
    return [each.claim.name for each in group.members]


def test_every_claim_is_in_one_group_and_the_title_counts_them() -> None:
    groups = groups_of(Maker(CPU).latency())
    names = list(chain.from_iterable(names_in(group) for group in groups))
    assert sorted(names) == sorted(claim.name for claim in load_claims())
    assert all(group.title.endswith(f" ({len(group.members)})") for group in groups)


def test_measured_claims_come_before_the_others() -> None:
    groups = groups_of(Maker(CPU).latency())
    known = [group.known for group in groups]
    assert known == ["decided", "measured", *["open"] * (len(groups) - 2)]
    assert names_in(groups[0]) == ["equal_forms"]
    assert {"latency_ratio", "latency_level", "throughput_ratio"} <= set(names_in(groups[1]))


def test_claims_without_records_are_told_apart_by_what_they_need() -> None:
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
