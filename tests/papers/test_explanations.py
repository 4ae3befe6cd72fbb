"""Which of the paper's numbers of cost follow from closed forms."""

import pytest

from retbench.papers.explanations import Explanation, explain_paper, explain_steps, published_models
from retbench.papers.papers import find_datasheet, find_number, load_papers
from retbench.planning.prediction import OperatorCount

FOUND = explain_paper()
STEPS = explain_steps({name: OperatorCount(total=500, products=100) for name in published_models()})


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
        name: [each.verdict for length in (2048, 4096, 8192) for each in of(f"figure6c_{name}/{length}/8")]
        for name in ("retnet", "transformer")
    }
    assert verdicts == {"retnet": ["explained"], "transformer": ["unexplained"] * 3}


@pytest.mark.parametrize(
    ("sheet", "rows"),
    [
        ("retnet/figure6b", ["retnet", "transformer"]),
        ("retnet/figure6c_retnet", ["8192"]),
        ("retnet/figure6c_transformer", ["1024", "2048", "4096", "8192"]),
        ("mamba/decode_throughput", ["transformer_1.3b"]),
    ],
)
def test_every_published_step_of_a_known_model_is_split(sheet: str, rows: list[str]) -> None:
    paper, name = sheet.split("/")
    columns = load_papers()[paper].sheets[name].columns
    found = [each.place for each in STEPS if each.place.startswith(f"{sheet}/")]
    assert found == [f"{sheet}/{row}/{column}" for row in rows for column in columns]


def test_a_published_step_is_bound_launches_and_remainder() -> None:
    (found,) = [each for each in STEPS if each.place == "retnet/figure6b/retnet/8192"]
    assert found.step_s == pytest.approx(8 / 310.3)
    assert found.launches_s == pytest.approx(500 * find_datasheet("a100-80gb").kernel_s)
    assert found.bound_s == pytest.approx(8.68e-3, rel=0.01)
    assert found.bound_s + found.launches_s + found.remainder_s == pytest.approx(found.step_s)
    (uncounted,) = [each for each in explain_steps(None) if each.place == found.place]
    assert uncounted.remainder_s == pytest.approx(found.step_s - found.bound_s)


def test_no_step_is_shorter_than_its_device_permits() -> None:
    assert len(STEPS) == 14 + 40 + 6
    assert all(each.remainder_s > 0.5 * each.step_s for each in STEPS)


def test_every_point_of_the_memory_figure_is_compared() -> None:
    columns = load_papers()["retnet"].sheets["figure6a"].columns
    for row in ("retnet", "transformer"):
        assert [len(of(f"figure6a/{row}/{column}")) for column in columns] == [1] * 7


def test_a_number_and_its_analytical_value_have_one_unit() -> None:
    (slope,) = of("figure6a_slope/transformer/value")
    assert (find_number(slope.place).printed, slope.derived_text) == ("4.213 MB", "4.194 MB")


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
    assert len(rates) == 12
    assert {each.verdict for each in rates} == {"allowed"}
    assert all(each.printed < each.derived for each in rates)


def test_plain_attention_is_a_weak_baseline() -> None:
    (plain,) = of("table4_throughput/transformer/6.7b")
    (fused,) = of("table4_throughput/transformer_flash/6.7b")
    assert plain.printed / plain.derived < 0.06 < 0.25 < fused.printed / fused.derived
