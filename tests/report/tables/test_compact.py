"""The tables of the first page: a row per context, a column per model, and the ratio as an advantage."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from report.synthetic_records import SMALL, Maker
from report.synthetic_scores import KIN, ScoreMaker, evaluations_of
from retbench.records.record import Record
from retbench.report.evaluations import Evaluations, make_evaluations
from retbench.report.results import load_results
from retbench.report.selection import select
from retbench.report.sweeps import make_sweeps
from retbench.report.tables.compact import CompactTable, cost_tables, quality_tables
from retbench.report.tables.experiments import quality_table


def tables_of(records: list[Record]) -> dict[str, CompactTable]:
    """Compact tables by the beginning of their caption."""
    return {table.caption.partition(",")[0]: table for table in cost_tables(make_sweeps(select(records)))}


def test_a_row_per_context_has_both_models_and_their_ratio(cpu_records: list[Record]) -> None:
    tables = tables_of(cpu_records)
    decode = tables["latency: decode"]
    assert decode.caption == "latency: decode, time per token, batch 1"
    assert list(decode.frame.columns) == ["context", "RetNet", "Transformer", "RetNet vs. Transformer"]
    assert decode.column_models == (None, "retnet", "transformer", "retnet")
    assert decode.frame["context"].to_list() == ["1K", "2K", "4K", "8K", "16K", "32K"]
    assert decode.frame.iloc[-1, -1].startswith("4.49× faster [4.40, 4.58]")
    assert decode.frame.iloc[0, -1].startswith("1.22× slower [")
    assert tables["memory"].frame.iloc[-1].to_list() == ["32K", "110 MiB", "874 MiB", "7.94× less memory"]


def test_batch_sizes_have_a_column_where_they_differ_and_failures_their_reason(
    swept_records: list[Record],
) -> None:
    tables = tables_of(swept_records)
    decode = tables["throughput: decode"].frame
    assert list(decode.columns[:2]) == ["batch", "context"]
    assert len(decode) == 14
    last = decode.iloc[-1].to_list()
    assert last[:2] == ["64", "4K"]
    assert "out of memory" in last
    assert last[-1] == "–"
    largest = tables["throughput: largest_batch"]
    assert "batch 1" not in largest.caption
    assert "more sequences" in largest.frame.iloc[-1, -1]


def test_many_models_have_a_row_each(training_records: list[Record]) -> None:
    (table,) = cost_tables(make_sweeps(select(training_records)))
    assert list(table.frame.columns) == ["model", "2K", "3K", "4K", "6K", "8K", "vs. fused Transformer"]
    assert table.row_models == (
        "retnet_chunkwise",
        "retnet_parallel",
        "transformer_fused",
        "transformer_plain",
    )
    assert set(table.column_models) == {None}
    assert table.frame.iloc[0, -1].endswith(" at 8K")
    assert table.frame.iloc[2, -1] == "–"


def test_one_context_alone_keeps_its_heading() -> None:
    (table,) = cost_tables(make_sweeps(select(Maker(SMALL).memory((2048,)))))
    assert table.frame.columns[0] == "context"
    assert table.frame["context"].to_list() == ["2K"]


def test_tables_of_quality_have_the_primary_metric_only(scores: Evaluations) -> None:
    tables = {table.caption.partition(",")[0]: table for table in quality_tables(scores)}
    assert {*tables} == {"quality: perplexity", "quality: zeroshot"}
    texts, answers = tables["quality: perplexity"], tables["quality: zeroshot"]
    assert "bits/byte" in texts.caption
    assert {"RetNet", "Transformer", "ratio of bits/byte"} <= {*texts.frame.columns}
    assert not [name for name in texts.frame.columns if "nats" in name]
    assert "task" in answers.frame
    assert "McNemar p" not in answers.frame
    assert answers.column_models[list(answers.frame.columns).index("RetNet")] == "retnet"


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_seeds_have_a_column_where_there_are_several(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": seeds}, num_documents=12)
    maker.trainings()
    maker.perplexities("wikitext-103", "whole", 2048)
    maker.perplexities("wikitext-103", "whole", 4096)
    found = load_results(maker.write())
    evaluations = make_evaluations(select(found.records, folders=found.folders))
    assert evaluations
    (table,) = quality_tables(evaluations)
    assert ("seed" in table.frame) == (len(seeds) > 1)
    assert ("seed 0" in table.caption) == (len(seeds) == 1)


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_many_models_have_a_table_per_corpus_and_context(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": seeds}, num_documents=12, bits=KIN)
    maker.perplexities("wikitext-103", "whole", 2048)
    maker.perplexities("wikitext-103", "whole", 8192)
    short, long = quality_tables(evaluations_of(maker))
    assert "2K" in short.caption
    assert "8K" in long.caption
    assert ("seed 0" in short.caption) == (len(seeds) == 1)
    assert short.row_models == ("retnet", "retnet_wide", "transformer", "transformer_gqa")
    losses = ["bits/byte, seed 0", "bits/byte, seed 1"] if len(seeds) > 1 else ["bits/byte"]
    assert list(short.frame)[:4] == ["model", "parameters", "state or cache", losses[0]]
    assert {*losses} < {*short.frame}
    assert len(short.frame.columns) == 3 + 2 * len(seeds), "a loss and its ratio per seed"
    states = {table.frame["state or cache"].iloc[2] for table in (short, long)}
    assert states == {"8.00 MiB", "32.0 MiB"}, "a cache grows with the context"


def test_a_model_without_a_record_has_dashes_beside_the_means_of_the_others(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0, 1, 2)}, num_documents=12, bits=KIN)
    maker.perplexities("wikitext-103", "whole", 2048)
    maker.perplexities("wikitext-103", "whole", 8192)
    maker.records = [r for r in maker.records if (r.model.name, r.point.context_len) != ("retnet_wide", 8192)]
    _, long = quality_tables(evaluations_of(maker))
    assert long.row_models == ("retnet", "retnet_wide", "transformer", "transformer_gqa")
    assert list(long.frame["bits/byte"] == "–") == [False, True, False, False]


def test_a_mean_of_fewer_seeds_than_the_others_says_of_how_many(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0, 1, 2)}, num_documents=12, bits=KIN)
    maker.perplexities("wikitext-103", "whole", 2048)
    lacking = ("retnet_wide", 2)
    maker.records = [
        r
        for r in maker.records
        if (r.model.name, r.model.weights and r.model.weights.seed) != lacking or r.workload != "perplexity"
    ]
    (table,) = quality_tables(evaluations_of(maker))
    for column in ("bits/byte", "ratio of bits/byte"):
        cells = [str(cell) for cell in table.frame[column] if cell != "–"]
        assert [cell.endswith("] (2 of 3 seeds)") for cell in cells][:3] == [False, True, False]


def test_records_without_a_protocol_have_their_means_too(tmp_path: Path) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {"point": arguments["point"].model_copy(update={"protocol": None})}

    maker = ScoreMaker(tmp_path, seeds={"1m": (0, 1, 2)}, num_documents=12, bits=KIN, change=change)
    maker.perplexities("wikitext-103", "whole", 2048)
    (table,) = quality_tables(evaluations_of(maker))
    assert "mean of 3 seeds" in table.caption
    assert "–" not in set(table.frame["bits/byte"])


def test_three_seeds_are_a_mean_with_an_interval_over_them(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0, 1, 2)}, num_documents=12, bits=KIN)
    maker.perplexities("wikitext-103", "whole", 2048)
    evaluations = evaluations_of(maker)
    (small,) = quality_tables(evaluations)
    assert "1M, mean of 3 seeds" in small.caption
    assert list(small.frame) == ["model", "parameters", "state or cache", "bits/byte", "ratio of bits/byte"]
    rows = quality_table(evaluations, evaluations.records[0].experiment)
    own = rows[(rows["model"] == "retnet") & (rows["size"] == "1m")]
    mean, low, high = map(float, re.findall(r"[\d.]+", small.frame["bits/byte"].iloc[0]))
    assert mean == pytest.approx(own["bits_per_byte"].mean(), abs=6e-4)
    assert high - mean == pytest.approx(4.303 * own["bits_per_byte"].sem(), abs=2e-3)
    assert mean - low == pytest.approx(high - mean, abs=2e-3)
    ratio, *_ = map(float, re.findall(r"[\d.]+", small.frame["ratio of bits/byte"].iloc[0]))
    assert ratio == pytest.approx(math.exp(np.log(own["bits_per_byte_ratio"]).mean()), abs=6e-4)
    assert small.frame["ratio of bits/byte"].iloc[2] == "–", "the reference"
