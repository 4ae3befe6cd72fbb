"""Quality as tables: one row a reading in base units, then the models side by side for people."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from report.synthetic_scores import KIN, SEEDS, TASKS, ScoreMaker, evaluations_of
from retbench.records.record import Metric, Record
from retbench.report.evaluations import Evaluations
from retbench.report.points import learning_rate
from retbench.report.tables.experiments import QUALITY_LEAD, quality_table
from retbench.report.tables.readable import readable_tables
from retbench.report.wording import format_p
from retbench.units import format_count


@pytest.fixture(scope="module")
def frame(scores: Evaluations) -> pd.DataFrame:
    return quality_table(scores, "quality")


@pytest.fixture(scope="module")
def tables(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {name: table.frame for name, table in readable_tables(frame).items()}


def row_of(frame: pd.DataFrame, record: Record) -> Any:
    """The row of a record's subject and question."""
    mine = frame[
        (frame["model"] == record.model.name)
        & (frame["workload"] == record.workload)
        & (frame["task"] == record.point.task)
        & (frame["size"] == record.model.size)
        & (frame["seed"] == (record.model.weights.seed if record.model.weights else None))
        & (frame["context_len"] == record.point.context_len)
    ]
    for field in ("protocol", "num_fewshot"):
        if getattr(record.point, field) is not None:
            mine = mine[mine[field] == getattr(record.point, field)]
    if record.workload == "training_run":
        mine = mine[
            (mine["role"] == record.backend["role"]) & (mine["learning_rate"] == learning_rate(record))
        ]
    assert len(mine) == 1
    return mine.iloc[0]


def test_every_reading_is_one_row_with_its_metrics_in_base_units(
    frame: pd.DataFrame, scores: Evaluations
) -> None:
    assert len(frame) == len(scores.records)
    for record in scores.records:
        row = row_of(frame, record)
        for name, metric in record.metrics.items():
            assert row[name] == metric.value, (name, record.point)
    assert {str(frame[name].dtype) for name in frame.columns if name not in QUALITY_LEAD} == {"float64"}


def test_comparisons_stand_on_the_challengers_row_alone(frame: pd.DataFrame, scores: Evaluations) -> None:
    theirs = frame[frame["model"] == "transformer"]
    assert theirs["bits_per_byte_ratio"].isna().all()
    assert theirs["reference"].isna().all()
    for c in scores.comparisons:
        record = scores.sides(c)[0]
        assert record is not None
        row = row_of(frame, record)
        assert row["reference"] == "transformer"
        if c.ratio is not None:
            column = f"bits_per_{'token' if c.point.protocol == 'last' else 'byte'}_ratio"
            assert (row[column], row[f"{column}_low"]) == (c.ratio.value, c.ratio.low)
        for metric, pair in c.accuracies.items():
            assert row[f"{metric}_difference"] == pair.difference
            assert row[f"{metric}_mcnemar_p"] == pair.p_value


def test_losses_of_the_models_stand_side_by_side(
    tables: dict[str, pd.DataFrame], frame: pd.DataFrame
) -> None:
    table = tables["perplexity"]
    points = 6  # two corpora: whole at two lengths, and the last tokens
    assert len(table) == points * sum(map(len, SEEDS.values()))
    assert list(dict.fromkeys(table["size"])) == ["1M", "6M", "25M"]
    (line,) = table[
        (table["corpus"] == "wikitext-103") & (table["protocol"] == "whole") & (table["context"] == "8K")
        & (table["size"] == "1M") & (table["seed"] == "1")
    ].to_dict(orient="records")  # fmt: skip
    mine = frame[
        (frame["task"] == "wikitext-103") & (frame["protocol"] == "whole") & (frame["context_len"] == 8192)
        & (frame["size"] == "1m") & (frame["seed"] == 1)
    ].set_index("model")  # fmt: skip
    for model in ("retnet", "transformer"):
        assert line[f"nats/token, {model}"] == f"{mine.loc[model, 'nats_per_token']:.4f}"
        assert line[f"bits/byte, {model}"] == f"{mine.loc[model, 'bits_per_byte']:.4f}"
        assert line[f"word perplexity, {model}"] == f"{mine.loc[model, 'word_perplexity']:.4g}"
    ratio = [mine.loc["retnet", f"bits_per_byte_ratio{end}"] for end in ("", "_low", "_high")]
    assert line["ratio of bits/byte"] == "{:.3f} [{:.3f}, {:.3f}]".format(*ratio)
    in_tokens = table["protocol"] == "last"
    assert set(table.loc[in_tokens, "ratio of bits/byte"]) == {"–"}
    assert set(table.loc[~in_tokens, "ratio of bits/token"]) == {"–"}
    assert all(" [" in text for text in table.loc[in_tokens, "ratio of bits/token"])


def test_accuracies_have_their_error_difference_and_test(
    tables: dict[str, pd.DataFrame], frame: pd.DataFrame
) -> None:
    table = tables["zeroshot"]
    assert set(table["shots"]) == {"0", "4"}
    (line,) = table[
        (table["task"] == "piqa") & (table["shots"] == "0") & (table["size"] == "25M")
    ].to_dict(orient="records")  # fmt: skip
    (mine,) = frame[
        (frame["task"] == "piqa") & (frame["num_fewshot"] == 0) & (frame["size"] == "25m")
        & (frame["model"] == "retnet")
    ].to_dict(orient="records")  # fmt: skip
    assert line["retnet"] == f"{100 * mine['acc']:.1f} ± {100 * mine['acc_stderr']:.1f} %"
    ends = [100 * mine[f"acc_difference{end}"] for end in ("", "_low", "_high")]
    assert line["difference, points"] == "{:+.1f} [{:+.1f}, {:+.1f}]".format(*ends)
    assert line["McNemar p"] == format_p(mine["acc_mcnemar_p"])
    (perplexity,) = table[
        (table["task"] == "lambada_openai") & (table["metric"] == "perplexity") & (table["shots"] == "0")
        & (table["size"] == "25M")
    ].to_dict(orient="records")  # fmt: skip
    assert perplexity["difference, points"] == "–"  # it is no share


def test_scores_of_a_text_have_their_error_and_their_last_zeros(tmp_path: Path) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        values = {
            "bits_per_byte": ("bits", 1.2345, 0.0321),
            "word_perplexity": ("ratio", 27.4, 2.0),
            "byte_perplexity": ("ratio", 2.51e7, 8.04e5),
        }
        for name, (unit, value, error) in values.items():
            arguments["metrics"][name] = Metric(unit=unit, value=value)
            arguments["metrics"][f"{name}_stderr"] = Metric(unit=unit, value=error)
        return arguments

    maker = ScoreMaker(tmp_path, seeds={"1m": (0,)}, change=change)
    maker.zeroshots(0, ("wikitext",))
    table = readable_tables(quality_table(evaluations_of(maker), "quality"))["zeroshot"].frame
    shown = table.set_index("metric")["retnet"]
    assert shown["bits_per_byte"] == "1.2345 ± 0.0321"
    assert shown["word_perplexity"] == "27.40 ± 2.0"
    assert shown["byte_perplexity"] == "2.510e+07 ± 804,000"


def test_the_papers_average_is_over_its_own_tasks(
    tables: dict[str, pd.DataFrame], frame: pd.DataFrame
) -> None:
    table = tables["zeroshot"]
    means = table[table["task"].str.startswith("mean of")]
    assert set(means["task"]) == {"mean of hellaswag, copa, piqa"}  # lambada is not in the paper's Table 3
    assert len(means) == 2 * sum(map(len, SEEDS.values()))
    (line,) = means[(means["size"] == "6M") & (means["shots"] == "4")].to_dict(orient="records")
    mine = frame[
        (frame["size"] == "6m") & (frame["num_fewshot"] == 4) & (frame["model"] == "transformer")
        & frame["task"].isin(["hellaswag", "copa", "piqa"])
    ]  # fmt: skip
    assert line["transformer"] == f"{100 * mine['acc'].mean():.1f} %"


def test_the_papers_average_is_that_of_one_context(tmp_path: Path) -> None:
    share = {512: 20, 1024: 30}

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        value = share[arguments["point"].context_len] / 100
        return arguments | {"metrics": {"acc": Metric(unit="ratio", value=value)}}

    maker = ScoreMaker(tmp_path, seeds={"1m": (0,)}, change=change)
    for context_len in share:
        maker.zeroshots(0, ["piqa", "copa"], context_len)
    table = readable_tables(quality_table(evaluations_of(maker), "quality"))["zeroshot"].frame
    means = table[table["task"].str.startswith("mean of")]
    assert means[["context", "retnet"]].to_numpy().tolist() == [["512", "20.0 %"], ["1K", "30.0 %"]]


def test_trainings_are_listed_the_grid_first(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["training_run"]
    assert list(table["run"]) == ["tuning"] * 6 + ["final"] * 10
    assert list(table["learning rate"][:6]) == ["0.001", "0.002", "0.004"] * 2
    assert set(table["tokens"]) == {"20.0 M"}


def test_losses_of_trainings_are_by_token_of_a_text_and_by_answer_of_a_task(
    tables: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    def on_a_task(arguments: dict[str, Any]) -> dict[str, Any]:
        settings = {name: value for name, value in arguments["settings"].items() if "tokenizer" not in name}
        return arguments | {"settings": settings}

    assert "validation loss, nats/token" in tables["training_run"]
    maker = ScoreMaker(tmp_path, change=on_a_task)
    maker.trainings()
    table = readable_tables(quality_table(evaluations_of(maker), "quality"))["training_run"].frame
    assert "validation loss, nats/answer" in table
    assert "validation loss, nats/token" not in table


def failing(arguments: dict[str, Any]) -> dict[str, Any]:
    """RetNet at 8K ran out of memory; the Transformer at 2K was not asked."""
    if (arguments["model"].name, arguments["point"].context_len) == ("retnet", 8192):
        return arguments | {"status": "oom", "error": "out of memory", "metrics": {}, "series": {}}
    return arguments


def test_what_failed_or_was_not_asked_says_so(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0,)}, change=failing)
    maker.perplexities("litbank/original", "whole", 2048)
    maker.perplexities("litbank/original", "whole", 8192)
    maker.records = [r for r in maker.records if (r.model.name, r.point.context_len) != ("transformer", 2048)]
    table = readable_tables(quality_table(evaluations_of(maker), "quality"))["perplexity"].frame
    assert list(table["nats/token, retnet"])[1:] == ["out of memory"]
    assert list(table["nats/token, transformer"])[:1] == ["not measured"]
    assert "ratio of bits/byte" not in table


def test_another_tokenizer_is_named_where_nats_a_token_cannot_be_compared(tmp_path: Path) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["model"].name == "retnet":
            arguments["settings"] |= {"tokenizer": "gpt2", "tokenizer_fingerprint": "another"}
        return arguments

    maker = ScoreMaker(tmp_path, seeds={"1m": (0,)}, change=change)
    maker.perplexities("litbank/original", "whole", 2048)
    (line,) = readable_tables(quality_table(evaluations_of(maker), "quality"))["perplexity"].frame.to_dict(
        "records"
    )
    assert line["nats/token, retnet"].endswith(" (gpt2)")
    assert line["nats/token, transformer"].endswith(" (bytes)")
    assert "(" not in line["bits/byte, retnet"]


def test_many_models_have_a_row_each_with_parameters_and_state(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (0, 1)}, bits=KIN)
    maker.perplexities("litbank/original", "whole", 2048)
    maker.perplexities("litbank/original", "whole", 8192)
    frame = quality_table(evaluations_of(maker), "quality")
    table = readable_tables(frame)["perplexity"].frame
    assert len(table) == len(KIN) * 2 * 2
    assert not [name for name in table if any(model in str(name) for model in KIN)]
    at_2k = (table["seed"] == "1") & (table["context"] == "2K")
    lines = {line["model"]: line for line in table[at_2k].to_dict(orient="records")}
    assert set(lines) == set(KIN)
    for model, line in lines.items():
        (mine,) = frame[
            (frame["model"] == model) & (frame["seed"] == 1) & (frame["context_len"] == 2048)
        ].to_dict(orient="records")  # fmt: skip
        assert line["bits/byte"] == f"{mine['bits_per_byte']:.4f}"
        assert line["parameters"] == format_count(mine["num_params_nonembedding"])
        if model == "transformer":
            assert line["ratio of bits/byte"] == "–"
        else:
            ratio = [mine[f"bits_per_byte_ratio{end}"] for end in ("", "_low", "_high")]
            assert line["ratio of bits/byte"] == "{:.3f} [{:.3f}, {:.3f}]".format(*ratio)


def test_the_state_is_that_after_the_context(tmp_path: Path) -> None:
    """A key-value cache of 2,048 tokens takes 8 MiB in float32; a retention state does not grow."""
    maker = ScoreMaker(tmp_path, seeds={"1m": (0,)}, bits=KIN)
    maker.perplexities("litbank/original", "whole", 2048)
    maker.perplexities("litbank/original", "whole", 8192)
    frame = quality_table(evaluations_of(maker), "quality").set_index(["model", "context_len"])["state_bytes"]
    assert frame["transformer", 2048] == 2 * 4 * 128 * 2048 * 4
    assert frame["transformer", 8192] == 4 * frame["transformer", 2048]
    assert frame["retnet", 8192] == frame["retnet", 2048] > 0


def test_columns_that_tell_nothing_are_left_out(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"1m": (None,)})  # public weights, of no seed of ours
    maker.zeroshots(0)
    table = readable_tables(quality_table(evaluations_of(maker), "quality"))["zeroshot"].frame
    assert "seed" not in table
    assert set(table["task"]) >= set(TASKS)


@pytest.mark.parametrize(
    ("p_value", "text"),
    [(0.0, "< 0.0001"), (9.99e-5, "< 0.0001"), (1e-4, "0.0001"), (0.0312, "0.031"), (1.0, "1")],
)
def test_a_p_value_is_not_more_exact_than_it_is_worth(p_value: float, text: str) -> None:
    assert format_p(p_value) == text
