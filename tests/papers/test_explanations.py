"""Which of the paper's numbers of cost follow from closed forms."""

import pytest

from retbench.papers.explanations import Explanation, explain_paper
from retbench.papers.papers import find_number

FOUND = explain_paper()


def of(place: str) -> list[Explanation]:
    return [each for each in FOUND if each.place == f"retnet/{place}"]


@pytest.mark.parametrize(
    ("place", "derived", "within"),
    [
        ("figure6a_weights/weights/value", 13.4e9, 0.01),
        ("figure6a_slope/transformer/value", 4.19e6, 0.002),
        ("figure1_labels/memory/value", 3.30, 0.002),
        ("text_memory/saved/value", 0.697, 0.002),
    ],
)
def test_what_is_derivable_is_explained(place: str, derived: float, within: float) -> None:
    (found,) = of(place)
    assert found.verdict == "explained"
    assert found.derived == pytest.approx(derived, rel=within)
    assert found.printed == find_number(found.place).value


@pytest.mark.parametrize(
    "place",
    [
        "figure6a/transformer/2048",
        "figure6a/transformer/8192",
        "figure6a/retnet/8192",
        "figure6a_state/figure/value",
        "text_above_weights/retnet/value",
        "figure1_labels/throughput/value",
        "figure1_labels/latency/value",
    ],
)
def test_what_the_paper_leaves_open_is_said(place: str) -> None:
    (found,) = of(place)
    assert found.verdict == "unexplained"
    assert found.note


def test_latency_and_throughput_agree_for_retnet_alone() -> None:
    verdicts = {
        name: [each.verdict for each in of(f"figure6c_{name}/8192/8")] for name in ("retnet", "transformer")
    }
    assert verdicts == {"retnet": ["allowed", "explained"], "transformer": ["allowed", "unexplained"]}


def test_the_memory_of_yoco_is_one_cache_and_something_that_is_not_stated() -> None:
    """9.38 times less at 1M tokens: the Transformer's memory follows, and YOCO's is printed 1.8 GB larger."""
    longest = "figure7/advantage/1048576"
    explained, alone = sorted(
        (each for each in FOUND if each.place == f"yoco/{longest}"), key=lambda each: each.derived
    )
    assert explained.verdict == "explained"
    assert explained.derived == pytest.approx(9.48, abs=0.01)
    assert alone.verdict == "unexplained"
    assert alone.derived == pytest.approx(11.1, abs=0.05)
    (memory,) = [each for each in FOUND if each.place == "yoco/text_memory/yoco/1048576"]
    assert memory.printed - memory.derived == pytest.approx(1.8e9, abs=0.05e9)


def test_no_throughput_exceeds_its_device() -> None:
    rates = [each for each in FOUND if each.unit == "tokens/s"]
    assert len(rates) == 16
    assert {each.verdict for each in rates} == {"allowed"}
    assert all(each.printed < each.derived for each in rates)


def test_plain_attention_is_a_weak_baseline() -> None:
    (plain,) = of("table4_throughput/transformer/6.7b")
    (fused,) = of("table4_throughput/transformer_flash/6.7b")
    assert plain.printed / plain.derived < 0.06 < 0.25 < fused.printed / fused.derived
