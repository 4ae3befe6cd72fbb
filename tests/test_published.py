"""The committed records: they are read, they name no folder of a machine, and the pages say what they say."""

import json
import re
import shlex
from functools import cache
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from markupsafe import Markup
from PIL import Image
from typer.testing import CliRunner

from benchmarks.page_picture import HEIGHT, WIDTH, answer_of
from retbench.cli import app
from retbench.config.experiment_files import load_experiment
from retbench.records.record import Record
from retbench.records.store import read_records
from retbench.stats.intervals import geometric_interval
from retbench.units import format_bytes
from retbench.workloads.workload import WORKLOADS
from tests.browsing import SCREENS, check_light

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "results" / "published"
ELEVEN = PUBLISHED / "intel-xeon-2-cores"
"""Results of `kin_quality` without latent attention, which was trained later and elsewhere."""
LATENT = PUBLISHED / "amd-epyc-family-26-model-2-stepping-1-2-cores"
"""Results of `kin_quality` with latent attention and, once more, the Transformer."""
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUALITY = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
FIXED_STATES = ("retnet", "gated_retnet", "linear", "gla", "mamba2", "rwkv6")
KIN = (ROOT / "docs" / "kin.md").read_text(encoding="utf-8")
RECALL = (ROOT / "docs" / "recall.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """The committed records, read once."""
    records, problems = read_records(PUBLISHED)
    assert problems == []
    return records


def test_every_record_is_read(records: list[Record]) -> None:
    declared = {(known.name, one.name): one.unit for known in WORKLOADS.values() for one in known.metrics}
    for record in records:
        assert [
            name
            for name, metric in record.metrics.items()
            if metric.unit != declared.get((record.workload, name), metric.unit)
        ] == []
    assert all(record.pair_id for record in records if record.schema_version < 3), "they keep what they say"
    assert {record.workload for record in records} >= {"decode", "memory", "training_run", "perplexity"}
    assert all(record.status == "ok" or record.workload in ("decode", "training") for record in records)
    assert {record.status for record in records} == {"ok", "oom"}, (
        "a cache and a matrix of scores fill their memory"
    )


def test_the_commands_of_the_records_are_valid_today(records: list[Record]) -> None:
    commands = {record.command for record in records}
    for command in commands:
        words = shlex.split(command)
        options = list(pairwise(words))
        (profile,) = [value for option, value in options if option == "--profile"]
        overrides = [value for option, value in options if option == "--set"]
        assert load_experiment(words[2], overrides, profile=profile).name == words[2]


def test_the_documents_of_every_score_are_there(records: list[Record]) -> None:
    files = [record.documents.file for record in records if record.documents]
    assert files
    assert {path.name for path in PUBLISHED.rglob("*.documents.jsonl.gz")} == set(files)


def test_no_record_names_a_folder() -> None:
    for path in PUBLISHED.rglob("*.jsonl"):
        assert not re.search(
            r'[" =]/(?:home|root|work|tmp|mnt|data|Users)\b', path.read_text(encoding="utf-8")
        ), path


def test_the_readme_has_the_claims_of_the_records() -> None:
    (block,) = re.findall(r"<!-- begin claims: .* -->\n(.*?)<!-- end claims -->", README, flags=re.DOTALL)
    result = CliRunner().invoke(app, ["claims", "--format", "short", "--results", str(PUBLISHED)])
    assert result.exit_code == 0, result.output
    assert block == result.stdout, "README.md is out of date: make pages"


def output(page: str, name: str) -> str:
    """Return the output of a command that a page shows."""
    (block,) = re.findall(rf"<!-- begin output: {name} .*?-->(.*?)<!-- end output -->", page, flags=re.DOTALL)
    return str(block)


def summary(page: str, name: str = "") -> list[str]:
    """Return the bullets of a summary of measured numbers."""
    (block,) = re.findall(
        rf"<!-- begin summary: {name}.*?-->(.*?)<!-- end summary -->", page, flags=re.DOTALL
    )
    return [" ".join(bullet.split()) for bullet in block.split("\n- ")[1:]]


def numbers_of(bullet: str) -> list[str]:
    """Return the numbers of a bullet, without those of names (RWKV-6) and of sizes (3M)."""
    return re.findall(r"(?<![\d.-])\d[\d.]*\b(?![KM\d])", bullet)


def ends(values: list[float], digits: int) -> list[str]:
    """Return the lowest and the highest value as text, once if they read the same."""
    return list(dict.fromkeys(f"{value:.{digits}f}" for value in (min(values), max(values))))


def percent(row: "pd.Series[float]") -> str:
    """Return an accuracy with its interval, as the tables of docs/recall.md have it."""
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * row[["value", "low", "high"]]))


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row of Markdown tables, headings too."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if re.match(r"\| (?!:-)", line)
    ]


@cache
def table_rows(experiment: str, root: Path = PUBLISHED) -> list[dict[str, Any]]:
    """Return the rows of the table of an experiment; reading all records and their documents takes a second."""
    result = CliRunner().invoke(app, ["table", experiment, "--results", str(root), "--format", "json"])
    assert result.exit_code == 0, result.output
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return rows


def test_a_table_says_where_models_are_that_it_lacks() -> None:
    result = CliRunner().invoke(app, ["table", "kin_quality", "--results", str(PUBLISHED), "--format", "csv"])
    assert result.exit_code == 0
    (line,) = (one for one in result.stderr.splitlines() if one.startswith("elsewhere: "))
    named, command = re.fullmatch(r"elsewhere: (.*)\. To show them: `retbench (.*)`", line).groups()
    frame = pd.read_csv(StringIO(result.stdout))
    there = CliRunner().invoke(app, [*shlex.split(command), "--format", "csv"])
    assert set(named.split(", ")) == set(pd.read_csv(StringIO(there.stdout))["model"]) - set(frame["model"])
    assert set(frame["model"]) == {"transformer", "mla"}
    assert "elsewhere" not in there.stderr


@pytest.mark.parametrize(
    ("page", "experiment", "fewest"),
    [(QUALITY, "quality", 20), (RECALL, "recall_slices", 5), (RECALL, "needle", 12)],
)
def test_a_page_has_the_tables_of_the_records(page: str, experiment: str, fewest: int) -> None:
    rows = rows_of(output(page, experiment))
    assert len(rows) >= fewest
    result = CliRunner().invoke(app, ["table", experiment, "--results", str(PUBLISHED)])
    assert result.exit_code == 0, result.output
    assert [row for row in rows if row not in rows_of(result.stdout)] == []


def test_the_page_on_recall_has_the_accuracies_of_the_figure() -> None:
    exactly = dict.fromkeys(("value", "low", "high"), float)  # older pandas reads numbers to 15 digits or so
    points = pd.read_csv(ROOT / "docs" / "mqar_mqar_frontier.csv", converters=exactly)
    expected = []
    for (size, model), own in points.groupby(["size", "model"]):
        by_pairs = own.set_index("num_pairs")
        shown = [percent(by_pairs.loc[count]) for count in (2, 4, 8)]
        first = own.iloc[0]
        state, rate = format_bytes(first["state_bytes"]), str(first["learning_rate"])
        expected.append([model, str(size).upper(), state, rate, *shown])
    assert len(expected) == 24
    assert set(points["num_seeds"]) == {3}
    assert sorted(rows_of(output(RECALL, "mqar"))[1:]) == sorted(expected)


def test_the_page_on_recall_has_the_learning_rates_of_the_figure() -> None:
    runs = pd.read_csv(ROOT / "docs" / "mqar_training_run_mqar_32_rates.csv")
    grids = {
        (size, model): dict(zip(own["learning_rate"], 100 * own["value"], strict=True))
        for (size, model), own in runs.groupby(["size", "model"])
    }
    near = {
        model: sum(value >= max(grid.values()) - 10 for value in grid.values())
        for (size, model), grid in grids.items()
        if size == "25k"
    }
    width32, width64, coarse = summary(RECALL, "rates")
    assert set(map(len, grids.values())) == {5}
    assert f"at {near['transformer']} of the 5 rates" in width32
    assert set(width32.rpartition(": ")[2].rstrip(".").split(", ")) == {m for m, n in near.items() if n == 1}
    falling = {m for (size, m), g in grids.items() if size == "100k" and g[0.008] < max(g.values()) - 35}
    assert set(width64.rpartition(": ")[2].rstrip(".").split(", ")) == falling
    based = grids["25k", "based"]
    found = [
        max(based[rate] for rate in (0.0005, 0.002, 0.008)),
        max(based.values()),
        100 * (1 / 2 + 1 / 4 + 1 / 8) / 3,
    ]
    assert re.findall(r"\d+(?= %)", coarse) == [f"{value:.0f}" for value in found]
    dip = grids["25k", "retnet_no_decay"]
    assert dip[0.002] < min(dip[0.001], dip[0.004]) - 10


def test_the_page_on_recall_has_the_accuracies_by_distance_of_the_figure() -> None:
    points = pd.read_csv(ROOT / "docs" / "mqar_mqar_mqar_32_8_distance.csv")
    shares = {
        (size, model): dict(zip(own["distance_tokens"], 100 * own["value"], strict=True))
        for (size, model), own in points.groupby(["size", "model"])
    }
    assert len(shares) == 24
    window, width64, width32 = summary(RECALL, "distance")
    windows = [shares[size, "sliding_window"] for size in ("25k", "100k")]
    within, beyond = (
        {f"{of[distance]:.0f}" for of in windows for distance in found} for found in ((4, 8, 16), (32,))
    )
    assert numbers_of(window) == ["16", *within, *beyond, f"{100 / 8:g}"]
    falls = [of[16] - of[32] for (size, model), of in shares.items() if size == "100k"]
    *others, mamba2, sliding_window = sorted(falls)
    assert numbers_of(width64)[-1] == f"{max(others):.1f}"
    assert mamba2 == shares["100k", "mamba2"][16] - shares["100k", "mamba2"][32]
    assert sliding_window > 90
    retnet, without, transformer = (
        shares["25k", name] for name in ("retnet", "retnet_no_decay", "transformer")
    )
    found = [f"{of[distance]:.0f}" for of in (retnet, without) for distance in (16, 32)]
    assert numbers_of(width32)[1:] == [*found, "99"]
    assert min(transformer[distance] for distance in (16, 32)) > 99
    assert min(retnet, key=lambda distance: retnet[distance]) == 4


def test_rare_questions_are_counted_on_the_page_on_recall(records: list[Record]) -> None:
    counts = {
        record.series["acc_by_distance"].counts
        for record in records
        if record.workload == "mqar" and record.point.num_pairs == 8
    }
    ((near, *further),) = counts
    assert f"{near} of the {near + sum(further):,}. There RetNet at width 32 is at its worst." in " ".join(
        RECALL.split()
    )


def test_the_marked_rates_are_those_of_the_final_runs(records: list[Record]) -> None:
    runs = pd.read_csv(ROOT / "docs" / "mqar_training_run_mqar_32_rates.csv").query("is_best")
    finals = {
        (record.model.name, record.model.size, record.backend["learning_rate"])
        for record in records
        if (record.experiment, record.workload) == ("mqar", "training_run")
        and record.backend["role"] == "final"
    }
    assert set(zip(runs["model"], runs["size"], runs["learning_rate"], strict=True)) == finals
    assert len(finals) == 24


RETNETS = ("retnet_no_decay", "retnet", "gated_retnet")
LENGTH_TASKS = ("copy", "induction", "selective_copy")
GUESS = 100 / 26
"""Accuracy of a guess among the symbols of these tasks, in percent."""


def test_the_page_on_recall_has_the_accuracies_by_length_of_the_figure() -> None:
    points = pd.read_csv(ROOT / "docs" / "length_recall_length_recall_40k.csv").set_index("length_ratio")
    expected = [
        [task, model, *(percent(own.loc[ratio]) for ratio in (1, 2, 4, 8, 16))]
        for (task, model), own in points.groupby(["task", "model"])
    ]
    assert len(expected) == 21
    assert set(points["num_seeds"]) == {3}
    assert sorted(rows_of(output(RECALL, "length_recall"))[1:]) == sorted(expected)


def mean_accuracies() -> dict[tuple[str, str, int], float]:
    """Return the mean accuracy in percent by task, model and length over the trained length."""
    points = pd.read_csv(ROOT / "docs" / "length_recall_length_recall_40k.csv")
    return {(row.task, row.model, int(row.length_ratio)): 100 * row.value for row in points.itertuples()}


def test_the_summary_of_lengths_has_the_accuracies_of_the_figure() -> None:
    means, beyond = mean_accuracies(), (2, 4, 8, 16)
    learnt = sorted({model for _, model, _ in means} - {"mamba2"})

    def at(task: str, ratio: int, *models: str) -> list[float]:
        return [means[task, model, ratio] for model in models]

    def along(model: str) -> list[str]:
        return [f"{means['induction', model, ratio]:.0f}" for ratio in beyond]

    copying, induction, window, selecting, *_ = map(numbers_of, summary(RECALL, "lengths"))
    best, second, third, *_ = sorted(at("copy", 2, *learnt), reverse=True)
    assert [best, second] == at("copy", 2, "rwkv6", "transformer")
    assert copying == [
        *ends(at("copy", 1, "transformer", "sliding_window"), 1),
        *ends(at("copy", 1, *RETNETS, "rwkv6"), 0),
        *(f"{value:.0f}" for value in (best, second, third)),
        f"{GUESS:.1f}",
    ]
    assert induction == [
        *ends(at("induction", 1, *learnt), 1),
        *map(str, beyond),
        *(number for model in ("rwkv6", "retnet", "transformer") for number in along(model)),
        "4",
    ]
    within = [f"{100 / ratio + GUESS * (1 - 1 / ratio):.0f}" for ratio in beyond]
    assert window == ["32", *along("sliding_window"), *within]
    assert min(at("selective_copy", 1, *(model for model in learnt if model != "rwkv6"))) >= 99
    assert selecting == [
        f"{means['selective_copy', 'rwkv6', 1]:.0f}",
        "99",
        *(f"{value:.0f}" for value in at("selective_copy", 2, "rwkv6", "sliding_window", "transformer")),
        *ends(at("selective_copy", 2, *RETNETS), 0),
        f"{100 / 4 + GUESS * 3 / 4:.0f}",
    ]
    for task in LENGTH_TASKS:
        assert means[task, "transformer", 1] >= 99, "else the report gives no verdict"
        assert all(max(at(task, ratio, *learnt)) == means[task, "rwkv6", ratio] for ratio in (2, 4))


def test_the_summary_of_lengths_has_the_learning_rates_of_the_figure() -> None:
    means = mean_accuracies()
    runs = pd.read_csv(ROOT / "docs" / "length_recall_training_run_length_recall_32_rates.csv")
    tuned = {(row.model, row.learning_rate): 100 * row.value for row in runs.itertuples()}
    best = dict(runs.loc[runs["is_best"], ["model", "learning_rate"]].itertuples(index=False))
    points = pd.read_csv(ROOT / "docs" / "length_recall_length_recall_40k.csv")
    assert set(zip(points["model"], points["learning_rate"], strict=True)) == set(best.items())
    assert runs["learning_rate"].nunique() == 6
    *_, unlearnt, rates = map(numbers_of, summary(RECALL, "lengths"))
    assert unlearnt == [
        f"{max(value for (model, _), value in tuned.items() if model == 'mamba2'):.1f}",
        f"{GUESS:.1f}",
        *ends([means[task, "mamba2", 1] for task in LENGTH_TASKS], 0),
    ]
    assert best["sliding_window"] == best["transformer"]
    assert best["retnet"] == best["gated_retnet"]
    no_decay, retnet, gated, rwkv6 = (f"{tuned[model, 0.008]:.0f}" for model in (*RETNETS, "rwkv6"))
    assert gated == rwkv6
    named = [f"{best[model]:g}" for model in ("transformer", "retnet_no_decay", "retnet", "rwkv6")]
    assert rates == [*named, "0.008", no_decay, retnet, gated]


def test_seeds_are_ahead_in_induction_as_the_page_on_recall_says() -> None:
    seeds: dict[str, list[float]] = {}
    for row in table_rows("length_recall"):
        if (row["task"], row["context_len"]) == ("induction", 4 * 32):
            seeds.setdefault(row["model"], []).append(row["acc"])
    assert set(map(len, seeds.values())) == {3}
    for model in ("rwkv6", "retnet", "retnet_no_decay"):
        assert min(seeds[model]) > max(seeds["transformer"])


def fewer_over_seeds(corpus: str, size: str) -> list[str]:
    """Return RetNet's difference in bits per byte at a size, with the ends of the interval over seeds: '1 % fewer'."""
    ratios = [  # those of the page's table are rounded
        row["bits_per_byte_ratio"]
        for row in table_rows("quality")
        if (row["model"], row["task"], row["protocol"], row["size"])
        == ("retnet", corpus, "strided", size.lower())
    ]
    assert len(ratios) == 3
    found = geometric_interval(ratios)
    ends = [end for end in (found.value, found.high, found.low) if end is not None]
    return [f"{100 * abs(1 - end):.0f} % {'more' if end > 1 else 'fewer'}" for end in ends]


def test_the_summary_of_quality_has_the_numbers_of_the_records() -> None:
    novels, articles, extrapolated, *_ = summary(QUALITY)
    beyond = numbers_of(extrapolated)
    for text, corpus in ((novels, "litbank/original"), (articles, "wikitext-103")):
        found = re.findall(r"\d+ % (?:more|fewer)", text.replace(" bits per byte", ""))
        assert found == [words for size in ("300K", "1M") for words in fewer_over_seeds(corpus, size)]
    losses = pd.read_csv(
        ROOT / "docs" / "quality_perplexity_litbank-original_whole_4096_by_position.csv"
    ).query("size == '1m'")
    at = losses.set_index(["model", "position"])["value"]
    assert beyond == [
        *(number for position in (1024, 4096) for number in ends(list(at["transformer", position]), 2)),
        *(number for position in (1024, 4096) for number in ends(list(at["retnet", position]), 2)),
    ]


def test_the_page_on_quality_names_the_parameters_of_the_trained_models(records: list[Record]) -> None:
    trained = [
        record for record in records if (record.experiment, record.workload) == ("quality", "training_run")
    ]
    counts = {record.model.num_params_nonembedding for record in trained}
    (named,) = re.findall(r"pairs of ([\d., and]+) million parameters", QUALITY)
    assert set(re.findall(r"\d\.\d", named)) == {f"{count / 1e6:.1f}" for count in counts}


def write_report(out: Path) -> Path:
    """Write the report of the committed records."""
    result = CliRunner().invoke(app, ["report", "--results", str(PUBLISHED), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def drawn_report(_without_pictures: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report."""
    return write_report(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def report(_without_pictures: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report with the data of its figures, which are not drawn into the pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retbench.report.report.inline_svgs", lambda drawing, prefix: [Markup("<svg/>")])
        return write_report(tmp_path_factory.mktemp("page"))


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("size", SCREENS, ids=str)
def test_the_page_of_the_records_is_short_and_light(
    browser: Any, drawn_report: Path, size: tuple[int, int]
) -> None:
    assert check_light(browser, drawn_report / "index.html", size) <= (10_000 if size[0] == 1440 else 20_000)


@pytest.mark.parametrize(
    "caption",
    [
        "kin: decode, time per token",
        "kin: memory, weights",
        "kin: prefill, time to first token",
        "kin: throughput, tokens/s",
        "kin: training, time per step",
        "kin_quality: perplexity, bits/byte, litbank/original, strided, 512, 300K",
        "kin_quality: perplexity, bits/byte, litbank/original, strided, 512, 1M",
        "kin_quality: perplexity, bits/byte, wikitext-103, strided, 512, 300K",
        "kin_quality: perplexity, bits/byte, wikitext-103, strided, 512, 1M",
    ],
)
def test_the_page_on_kin_has_the_tables_of_the_report(report: Path, caption: str) -> None:
    markdown = (report / "report.md").read_text(encoding="utf-8")
    _, table, *_ = markdown[markdown.index(f"**{caption}") :].split("\n\n")
    assert table in KIN


def test_the_page_on_kin_has_the_qualities_of_the_records() -> None:
    rows = [row for row in table_rows("kin_quality", ELEVEN) if row["workload"] == "perplexity"]
    num_seeds = {"300k": 3, "1m": 1}
    novels, articles = "litbank/original", "wikitext-103"

    def of_seeds(model: str, corpus: str, protocol: str, column: str, size: str = "300k") -> list[float]:
        key = (model, corpus, protocol, size)
        found = [
            row[column] for row in rows if (row["model"], row["task"], row["protocol"], row["size"]) == key
        ]
        assert len(found) == num_seeds[size]
        return found

    def percents(model: str, corpus: str) -> list[str]:
        """Return by how many percent a model's bits per byte in windows differ from the Transformer's, over seeds."""
        ratios = of_seeds(model, corpus, "strided", "bits_per_byte_ratio")
        return ends([100 * abs(1 - ratio) for ratio in ratios], 0)

    def bits(model: str, protocol: str) -> list[str]:
        return ends(of_seeds(model, novels, protocol, "bits_per_byte"), 2)

    def of_1m(model: str, digits: int) -> list[str]:
        """Return the same of the one seed of size 1M, on novels and on articles."""
        return [
            f"{100 * abs(1 - ratio):.{digits}f}"
            for corpus in (novels, articles)
            for ratio in of_seeds(model, corpus, "strided", "bits_per_byte_ratio", "1m")
        ]

    ahead, retnets, longer, spread, behind, *larger = map(numbers_of, summary(KIN, "compared"))
    assert ahead == [
        number
        for corpus in (novels, articles)
        for model in ("mamba2", "rwkv6")
        for number in percents(model, corpus)
    ]
    assert retnets == [
        percents("retnet", novels)[-1],
        *percents("retnet", articles),
        *percents("gated_retnet", novels),
        *percents("gated_retnet", articles),
    ]
    assert longer == [
        number
        for model in ("transformer", "retnet")
        for protocol in ("strided", "whole")
        for number in bits(model, protocol)
    ]
    assert spread == bits("transformer_gqa", "strided")
    assert behind == percents("linear", novels)
    leads = [
        number for model in ("mamba2", "rwkv6", "gla", "gated_retnet", "retnet") for number in of_1m(model, 1)
    ]
    lengths = [
        number
        for model in ("transformer", "transformer_gqa", "retnet", "yoco")
        for protocol in ("strided", "whole")
        for number in ends(of_seeds(model, novels, protocol, "bits_per_byte", "1m"), 2)
    ]
    assert larger == [leads, of_1m("linear", 0), lengths]
    windows = [row for row in rows if row["size"] == "1m" and row["protocol"] == "strided"]
    losers = {row["model"] for row in windows if (row["bits_per_byte_ratio"] or 0) >= 1}
    assert losers == {"linear"}
    level = [
        (row["model"], row["task"])
        for row in windows
        if (row["bits_per_byte_ratio_low"] or 1) < 1 < (row["bits_per_byte_ratio_high"] or 1)
    ]
    assert level == [("transformer_gqa", articles)]
    by_bits = sorted(windows, key=lambda row: row["bits_per_byte"])
    for corpus in (novels, articles):
        leaders = [row["model"] for row in by_bits if row["task"] == corpus][:2]
        assert set(leaders) == {"mamba2", "rwkv6"}

    def excluded(corpus: str) -> set[str]:
        """Return the models whose ratio differs from 1, as the tables write its interval over the seeds."""
        models = {row["model"] for row in rows} - {"transformer"}
        found = {m: geometric_interval(of_seeds(m, corpus, "strided", "bits_per_byte_ratio")) for m in models}
        return {
            m
            for m, one in found.items()
            if one.high and one.low and not round(one.low, 3) <= 1 <= round(one.high, 3)
        }

    on_articles, on_novels = excluded(articles), excluded(novels)
    assert on_articles == {"mamba2", "rwkv6", "linear"}
    assert on_novels == on_articles | {"gated_retnet", "gla"}
    for corpus in (novels, articles):
        assert (
            round(geometric_interval(of_seeds("yoco", corpus, "strided", "bits_per_byte_ratio")).high or 0, 3)
            == 1
        )


def test_the_page_on_kin_has_the_qualities_of_latent_attention(report: Path) -> None:
    shown = rows_of(output(KIN, "kin_quality"))
    assert len(shown) == 1 + 2 * 4
    markdown = (report / "report.md").read_text(encoding="utf-8")
    _, table, *_ = markdown[markdown.index("**kin_quality: perplexity, bits/byte**") :].split("\n\n")
    assert [row for row in shown if row not in rows_of(table)] == []

    def by_model(root: Path, column: str) -> dict[tuple[str, str, str, int], float]:
        return {
            (row["model"], row["task"], row["size"], row["seed"]): row[column]
            for row in table_rows("kin_quality", root)
            if row["protocol"] == "strided"
        }

    here, there = (by_model(root, "bits_per_byte") for root in (LATENT, ELEVEN))
    gains: dict[tuple[str, str], list[float]] = {}
    moves: dict[str, list[float]] = {}
    for (model, *place), bits in here.items():
        task, size, _ = place
        if model == "transformer":
            moves.setdefault(task, []).append(100 * abs(bits / there[model, *place] - 1))
        else:
            gains.setdefault((task, size), []).append(100 * (bits / here["transformer", *place] - 1))
    novels, articles = "litbank/original", "wikitext-103"
    latent, again = map(numbers_of, summary(KIN, "latent attention"))
    assert max(gains[novels, "300k"]) < 0 < min(gains[novels, "1m"])
    assert min(gains[articles, "300k"]) < 0 < max(gains[articles, "300k"])
    assert latent == [
        *ends([-gain for gain in gains[novels, "300k"]], 1),
        *(f"{abs(one(gains[articles, '300k'])):.1f}" for one in (min, max)),
        *(f"{gains[task, '1m'][0]:.1f}" for task in (novels, articles)),
    ]
    assert again == [*ends(moves[novels], 1), *ends(moves[articles], 1)]
    caches = by_model(LATENT, "state_bytes")
    shares = {caches["mla", *place] / caches["transformer", *place] for _, *place in caches}
    assert shares == {3 / 8}


def test_the_page_on_kin_says_what_the_hybrid_is(records: list[Record]) -> None:
    layers: dict[str, set[tuple[int, int]]] = {}
    decays: dict[str, set[str]] = {}
    for record in records:
        if record.model.name in ("hybrid", "retnet") and record.experiment in ("kin", "kin_quality"):
            blocks = record.model.config["blocks"]
            attention = sum(block["count"] for block in blocks if block["mixer"]["mixer"] == "attention")
            layers.setdefault(f"{record.experiment}/{record.model.name}", set()).add(
                (attention, sum(block["count"] for block in blocks))
            )
            decays.setdefault(f"{record.experiment}/{record.model.name}", set()).update(
                block["mixer"]["decay"] for block in blocks if block["mixer"]["mixer"] == "retention"
            )
    shown = " ".join(KIN.split())
    assert layers["kin/hybrid"] == {(1, 6)}
    assert "one in six where costs are measured" in shown
    assert layers["kin_quality/hybrid"] == {(1, 3), (1, 4)}
    assert "the hybrid has one attention in three or four layers" in shown
    assert (decays["kin_quality/hybrid"], decays["kin_quality/retnet"]) == ({"eq8"}, {"paper"})
    assert "RetNet has the decays of its paper's code" in shown


def test_the_page_on_kin_has_the_ratios_of_the_records() -> None:
    rows = {(row["workload"], row["model"], row["context_len"]): row for row in table_rows("kin")}
    models = {model for _, model, _ in rows}
    shown = " ".join(KIN.split())

    def ratio(workload: str, model: str, context_len: int) -> float:
        """Return how many times as good as the Transformer's a model's primary metric is."""
        return float(rows[workload, model, context_len]["ratio_to_reference"])

    def time(model: str, context_len: int) -> float:
        return float(rows["decode", model, context_len]["tpot_s"])

    fixed = [model for model in models if model in FIXED_STATES]
    drifts = [time(model, deep) / time(model, 1024) for model in fixed for deep in (4096, 16384)]
    assert len(drifts) == 12
    assert f"at 4K and 16K it is {min(drifts):.2f} to {max(drifts):.2f} of that at 1K" in shown
    assert f"{time('transformer', 16384) / time('retnet', 16384):.0f}" == "6"
    assert "takes six times as long at 16K as RetNet" in shown
    assert "is the slowest at every length" in shown
    for context_len in (1024, 4096, 16384):
        assert max(models, key=lambda model: time(model, context_len)) == "mla"
    moved = {name: rows["decode", name, 16384]["bytes_per_step"] for name in models}
    for name, of_time, of_bytes in (
        ("transformer_gqa", "takes {:.2f} of the time at 16K", "and moves {:.2f} of the bytes"),
        ("mla", "{:.2f} of its time there", "{:.2f} of the Transformer's at 16K"),
    ):
        assert of_time.format(time(name, 16384) / time("transformer", 16384)) in shown
        assert of_bytes.format(moved[name] / moved["transformer"]) in shown
    batch = {model: rows["throughput", model, 4096]["tokens_per_s"] for model in models}
    assert sorted(models, key=lambda model: -batch[model])[:2] == ["gla", "linear"]
    leads = [ratio("throughput", model, 4096) for model in ("gla", "linear")]
    assert "{:.1f} and {:.1f} times those of the Transformer".format(*leads) in shown
    prompts = {model: rows["prefill", model, 2048]["ttft_s"] for model in models}
    by_time = sorted(prompts, key=lambda model: prompts[model])
    assert (by_time[0], by_time[-1]) == ("yoco", "mamba2")
    steps = {
        model: rows["training", model, 256]["step_s"] / rows["training", "transformer", 256]["step_s"]
        for model in models - {"transformer"}
    }
    assert f"takes it {steps.pop('mamba2'):.2f} of the Transformer's time" in shown
    assert f"follows with {steps.pop('rwkv6'):.2f}" in shown
    assert f"train at {min(steps.values()):.2f} to {max(steps.values()):.2f} of the Transformer's" in shown


def test_the_readme_has_the_answer_of_the_records(report: Path) -> None:
    (block,) = re.findall(r"<!-- begin answer: .* -->\n(.*?)<!-- end answer -->", README, flags=re.DOTALL)
    answer = answer_of((report / "report.md").read_text(encoding="utf-8"))
    assert block.strip() == answer, "README.md is out of date: make pages"
    assert re.search(r"Decode: [\d.]+× faster at 32K", answer)


def test_the_picture_of_the_report_shows_the_answer_of_the_records(report: Path) -> None:
    path = ROOT / "docs" / "page.png"
    with Image.open(path) as picture:
        picture.load()
        text = picture.info
        size = picture.size
    answer = answer_of((report / "report.md").read_text(encoding="utf-8"))
    assert text["Description"] == answer, "docs/page.png is out of date: make picture"
    assert size == (WIDTH, HEIGHT) == (1440, 900)
    assert path.stat().st_size < 200_000


def test_every_figure_of_a_page_shows_the_records(report: Path) -> None:
    """By its data: how it is drawn changes with matplotlib."""
    shown = [
        figure for page in (QUALITY, KIN, RECALL) for figure in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)
    ]
    assert len(shown) >= 3
    for figure in shown:
        kept = ROOT / "docs" / figure
        assert kept.is_file()
        data, drawn = (
            pd.read_csv(path) for path in (kept.with_suffix(".csv"), report / "figures" / f"{kept.stem}.csv")
        )
        pd.testing.assert_frame_equal(data, drawn)
