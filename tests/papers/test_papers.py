"""The printed numbers of the papers are complete and sourced, and their arithmetic is right."""

from collections.abc import Iterable

import pytest

from retbench.architectures.sizes import SIZES
from retbench.errors import ConfigError
from retbench.papers.papers import Number, Sheet, find_number, load_papers, parse_paper

PAPERS = load_papers()
SHEETS = [(paper, sheet) for paper in PAPERS for sheet in PAPERS[paper].sheets]


def sheet_of(paper: str, sheet: str) -> Sheet:
    return PAPERS[paper].sheets[sheet]


def half_digit(values: Iterable[float]) -> float:
    """Half of the last digit that numbers are printed with, and a hair: 0.0051 of 66.07 and 69.5."""
    return 0.51 * min(10.0 ** -len(f"{value:.10f}".rstrip("0").partition(".")[2]) for value in values)


def row(place: str) -> tuple[float, ...]:
    paper, sheet, name = place.split("/")
    return sheet_of(paper, sheet).rows[name]


def test_the_papers_are_there() -> None:
    of_retnet, of_recall = {"retnet", "yoco", "mamba", "gla", "gated_deltanet", "mom"}, {"zoology", "jrt"}
    assert set(PAPERS) == {*of_retnet, *of_recall, "mamba2", "deltanet"}
    assert {f"table{n}" for n in (2, 5, 6, 7, 8)} <= PAPERS["retnet"].sheets.keys()


@pytest.mark.parametrize(("paper", "name"), SHEETS)
def test_every_number_is_found_with_its_source(paper: str, name: str) -> None:
    sheet = sheet_of(paper, name)
    for place in (f"{paper}/{name}/{row}/{column}" for row in sheet.rows for column in sheet.columns):
        number = find_number(place)
        assert f"arXiv:{PAPERS[paper].arxiv}" in number.source
        assert number.source.endswith(sheet.source)
        assert number.unit in {"bytes", "s", "tokens/s", "ratio", "nats", "count"}
        assert number.value > 0


@pytest.mark.parametrize(("paper", "name"), SHEETS)
def test_sizes_are_named_ones(paper: str, name: str) -> None:
    assert sheet_of(paper, name).conditions.size in {None, *SIZES}


@pytest.mark.parametrize(("paper", "name"), SHEETS)
def test_averages_are_the_means_of_their_columns(paper: str, name: str) -> None:
    sheet = sheet_of(paper, name)
    for column, parts in sheet.averages.items():
        printed = [values[sheet.columns.index(column)] for values in sheet.rows.values()]
        for average, values in zip(printed, sheet.rows.values(), strict=True):
            mean = sum(values[sheet.columns.index(part)] for part in parts) / len(parts)
            assert average == pytest.approx(mean, abs=half_digit(printed)), column


@pytest.mark.parametrize(("paper", "name"), [(p, n) for p, n in SHEETS if sheet_of(p, n).ratios])
def test_ratios_are_those_of_their_rows(paper: str, name: str) -> None:
    sheet = sheet_of(paper, name)
    for row_name, ratio in sheet.ratios.items():
        sides = zip(row(f"{paper}/{ratio.top}"), row(f"{paper}/{ratio.bottom}"), strict=True)
        quotients = [top / bottom for top, bottom in sides]
        expected = [100 * (1 - q) if ratio.saved else q for q in quotients]
        printed = sheet.rows[row_name]
        assert printed == pytest.approx(expected, abs=half_digit(printed))


def test_average_columns_are_declared() -> None:
    """A column that calls itself an average is held to it, but where single tasks are not given."""
    for paper, name in SHEETS:
        sheet = sheet_of(paper, name)
        if len(sheet.columns) > 1:
            assert {c for c in sheet.columns if c.startswith("average")} == sheet.averages.keys(), name


@pytest.mark.parametrize(
    ("what", "top", "bottom"),
    [
        ("memory", "figure6a/transformer/8192", "figure6a/retnet/8192"),
        ("throughput", "figure6b/retnet/8192", "figure6b/transformer/8192"),
        ("latency", "figure6c_transformer/8192/8", "figure6c_retnet/8192/8"),
    ],
)
def test_the_labels_of_figure_1_are_ratios_of_figure_6_at_8k(what: str, top: str, bottom: str) -> None:
    """The latency is that of batch 8: at batch 1 the same figure gives 4.1 times."""
    label = find_number(f"retnet/figure1_labels/{what}/value").value
    ratio = find_number(f"retnet/{top}").value / find_number(f"retnet/{bottom}").value
    assert label == pytest.approx(ratio, abs=0.051)


@pytest.mark.parametrize(("row", "batch_size", "ratio"), [(8192, 8, 15.6), (8192, 1, 4.1), (1024, 1, 2.2)])
def test_the_latency_ratio_depends_on_batch_and_length(row: int, batch_size: int, ratio: float) -> None:
    assert find_number(f"retnet/figure6c_ratio/{row}/{batch_size}").value == pytest.approx(ratio, abs=0.05)


def test_retnet_passes_the_transformer_between_two_sizes() -> None:
    pairs = zip(row("retnet/figure5/retnet"), row("retnet/figure5/transformer"), strict=True)
    assert [round(mine - theirs, 2) for mine, theirs in pairs] == [0.60, -0.30, -0.70]


def test_no_value_of_figures_5_and_6_is_from_a_bitmap() -> None:
    sheets = PAPERS["retnet"].sheets
    kinds = {sheet.kind for name, sheet in sheets.items() if name.startswith(("figure5", "figure6"))}
    assert kinds == {"vector", "derived"}
    assert {sheets[f"figure6{letter}"].kind for letter in ("a", "b", "c_retnet", "c_transformer")} == {
        "vector"
    }


def test_the_order_of_mambas_figure_4_at_its_smallest_size() -> None:
    sheet = sheet_of("mamba", "figure4_2k")
    order = sorted(sheet.rows, key=lambda name: sheet.rows[name][0])
    assert order == ["mamba", "transformer++", "retnet", "h3", "transformer", "rwkv4", "hyena"]


def test_yocos_difference_is_that_of_its_rows() -> None:
    retnet, transformer = row("yoco/table5/retnet"), row("yoco/table5/transformer")
    differences = [mine - theirs for mine, theirs in zip(retnet, transformer, strict=True)]
    assert row("yoco/table5_difference/retnet") == pytest.approx(differences, abs=1e-9)


def test_what_is_derived_of_figure_6_follows_from_it() -> None:
    lengths = [int(column) for column in sheet_of("retnet", "figure6a").columns]
    memory = [value * 1e9 for value in row("retnet/figure6a/transformer")]
    mean_x, mean_y = sum(lengths) / 7, sum(memory) / 7
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(lengths, memory, strict=True)) / sum(
        (x - mean_x) ** 2 for x in lengths
    )
    assert find_number("retnet/figure6a_slope/transformer/value").value == pytest.approx(slope, rel=0.005)
    cache = find_number("retnet/cache_per_token/cache/6.7b").value
    assert find_number("retnet/figure6a_batch/batch_size/value").value == round(slope / cache)
    above = (
        sum(row("retnet/figure6a/retnet")) / 7
        - find_number("retnet/figure6a_weights/weights/value").value / 1e9
    )
    assert row("retnet/figure6a_state/figure")[0] == pytest.approx(above, abs=0.02)
    state = 8 * find_number("retnet/state_per_sequence/state/6.7b").value
    assert find_number("retnet/figure6a_state/two_byte_state/value").value == pytest.approx(state, rel=0.005)


def test_every_derivation_in_words_is_tested_above() -> None:
    in_words = {name for paper, name in SHEETS if sheet_of(paper, name).derivation}
    assert in_words == {
        "figure6a_slope",
        "figure6a_batch",
        "figure6a_state",
        "state_per_sequence",
        "cache_per_token",
        "table5_difference",
    }


@pytest.mark.parametrize("column", sheet_of("retnet", "table2").columns)
def test_state_and_cache_follow_from_the_shapes(column: str) -> None:
    layers, width = (
        find_number(f"retnet/table2/{name}/{column}").value for name in ("num_layers", "d_model")
    )
    state = find_number(f"retnet/state_per_sequence/state/{column}").value
    assert state == pytest.approx(2 * layers * width * 512, rel=1e-3)
    assert find_number(f"retnet/cache_per_token/cache/{column}").value == 2 * 2 * layers * width


def test_units_are_base_units() -> None:
    assert find_number("retnet/figure6a/transformer/8192") == Number(
        "retnet/figure6a/transformer/8192",
        pytest.approx(47.286e9),
        "bytes",
        "47.286 GB",
        "RetNet (arXiv:2307.08621) Figure 6(a)",
        "vector",
        "memory of inference",
        sheet_of("retnet", "figure6a").conditions,
        sheet_of("retnet", "figure6a").doubts,
        f"RetNet (arXiv:2307.08621): {load_papers()['retnet'].origin}",
    )
    assert find_number("retnet/figure6c_transformer/8192/8").value == pytest.approx(0.3777)
    assert find_number("retnet/table3_zero_shot/retnet/copa").value == pytest.approx(0.77)


@pytest.mark.parametrize(
    ("place", "printed"),
    [
        ("retnet/figure1_labels/latency/value", "15.6x"),
        ("retnet/text_memory/saved/value", "70 %"),
        ("retnet/table8/retnet/512", "13.09"),
        ("retnet/figure6b/retnet/8192", "310.3 words/s"),
    ],
)
def test_a_number_is_known_as_it_is_printed(place: str, printed: str) -> None:
    assert find_number(place).printed == printed


@pytest.mark.parametrize(
    ("place", "hint"),
    [
        ("retnett/table8/retnet/512", "Did you mean 'retnet'"),
        ("retnet/table9/retnet/512", "Did you mean 'table"),
        ("retnet/table8/retnets/512", "Did you mean 'retnet'"),
        ("retnet/table8/retnet/513", "Did you mean '512'"),
        ("retnet/table8", "PAPER/SHEET/ROW/COLUMN"),
    ],
)
def test_a_number_that_is_not_there_is_an_error_with_a_hint(place: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        find_number(place)


GOOD = """
title = "T"
arxiv = "1"
origin = "t"
[sheets.a]
source = "Table 1"
kind = "printed"
metric = "m"
unit = "x"
columns = ["p", "q"]
rows.one = [1, 2]
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[1, 2]", "[1, 2, 3]", "3 numbers for 2 columns"),
        ('unit = "x"', 'unit = "furlong"', "unit is 'furlong'"),
        ('kind = "printed"', 'kind = "derived"', "derived sheet has ratios or a derivation"),
        ('kind = "printed"', 'kind = "guessed"', "kind"),
        ('metric = "m"', 'metrics = "m"', "Did you mean 'metric'"),
        ("rows.one = [1, 2]", 'rows.one = [1, 2]\naverages.r = ["p"]', "not a column"),
        ("rows.one = [1, 2]", "rows.one = [1, ", "not valid TOML"),
        (
            'kind = "printed"',
            'kind = "derived"\nratios.one = { top = "a/two", bottom = "a/one" }',
            "not a SHEET/ROW of this file",
        ),
    ],
)
def test_a_file_that_is_wrong_is_refused(old: str, new: str, message: str) -> None:
    assert parse_paper("good", GOOD).sheets["a"].rows["one"] == (1, 2)
    with pytest.raises(ConfigError, match=message):
        parse_paper("bad", GOOD.replace(old, new, 1))
