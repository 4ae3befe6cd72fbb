"""Claims get their verdicts from records: every verdict of every rule, and nothing confirmed by another scale."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from report.synthetic_records import CPU, GPU, TRAINER, Maker, with_mixer, write_results
from report.synthetic_scores import ScoreMaker
from retbench.architectures.registry import architectures
from retbench.errors import ConfigError
from retbench.papers.claims import AheadRule, Side, load_claims, parse_claims
from retbench.records.record import GateCheck, Metric, Record
from retbench.report.claims.costs import describe_setup, find_setups
from retbench.report.claims.judge import judge, judge_claims
from retbench.report.claims.judged import ClaimRow, JudgedClaim
from retbench.report.claims.quality_rules import QualityLead, judge_ahead
from retbench.report.claims.tables import claims_json, claims_markdown, headlines_markdown
from retbench.report.points import trained_length
from retbench.report.results import Results, load_results
from retbench.workloads.workload import WORKLOADS

CLAIMS = {claim.name: claim for claim in load_claims()}
NOTHING = Results((), ())
Change = Callable[[dict[str, Any]], dict[str, Any]]


def verdict_of(name: str, records: Iterable[Record]) -> str:
    return judge(CLAIMS[name], Results(tuple(records), ())).verdict


def row_of(name: str, records: Iterable[Record], scope: str) -> Any:
    (row,) = [row for row in judge(CLAIMS[name], Results(tuple(records), ())).rows if row.scope == scope]
    return row


# ---- the file --------------------------------------------------------------------------------------------------------


def test_there_are_twenty_claims_of_the_retnet_paper_and_more() -> None:
    of_the_paper = [claim for claim in CLAIMS.values() if claim.source.startswith("RetNet ")]
    assert len(of_the_paper) >= 20
    assert len({claim.statement for claim in CLAIMS.values()}) == len(CLAIMS)


@pytest.mark.parametrize("judged", judge_claims(NOTHING), ids=lambda judged: judged.claim.name)
def test_without_records_nothing_is_confirmed_and_everything_says_what_it_needs(judged: JudgedClaim) -> None:
    assert judged.verdict == "not_testable"
    for row in judged.rows:
        assert row.finding.verdict == "not_testable"
        assert row.num_records == 0
        assert row.finding.text
        assert (row.command is None) == (judged.claim.command is None)


GOOD = """
[a]
statement = "s"
source = "RetNet Figure 1"
numbers = ["retnet/figure1_labels/latency/value"]
rule = { kind = "ratio", workload = "decode", metric = "tpot_s", better = "lower", batch_size = 1, context_len = 8, \
  challenger = "a", reference = "b" }
needs = "n"
command = "retbench run latency"
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "ratio"', 'kind = "rati"', "rule"),
        ('source = "RetNet Figure 1"', 'sources = "x"', "Did you mean 'source'"),
        ('needs = "n"\n', "", "says what it needs"),
        ("numbers = [", "experiments = [", "compared with a printed number"),
        ("figure1_labels", "figure1_label", "Did you mean 'figure1_labels'"),
        ('command = "', 'strong = ["fused"]\ncommand = "', "second verdict and its command"),
        (
            'needs = "n"',
            'needs = "n"\nawaits = { architectures = ["b"] }',
            "that can be tested, and no other",
        ),
        ('needs = "n"', 'needs = "n"\nawaits = {}', "neither a workload nor an architecture"),
        ('needs = "n"', 'needs = "n"\nuntestable = "x"', "a rule, the parts that it awaits, or the reason"),
    ],
)
def test_a_claim_that_is_wrong_is_refused(old: str, new: str, message: str) -> None:
    assert parse_claims(GOOD)[0].printed == 15.6
    with pytest.raises(ConfigError, match=message):
        parse_claims(GOOD.replace(old, new, 1))


# ---- costs -----------------------------------------------------------------------------------------------------------


def times(
    factor: float, *, of: str = "transformer", where: Callable[[Any], bool] = lambda point: True
) -> Change:
    """Makes the decode steps of a model so many times as long."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["model"].name == of and arguments["status"] == "ok" and where(arguments["point"]):
            metrics = dict(arguments["metrics"])
            for name, power in (("tpot_s", 1), ("tokens_per_s", -1)):
                if name in metrics:
                    metrics[name] = Metric(unit=metrics[name].unit, value=metrics[name].value * factor**power)
            arguments["metrics"] = metrics
        return arguments

    return change


def shaken(arguments: dict[str, Any]) -> dict[str, Any]:
    """Makes RetNet's rounds disagree beyond 2K."""
    factor = 3 if arguments["round"] % 2 else 1 / 3
    return times(factor, of="retnet", where=lambda point: point.context_len > 2048)(arguments)


def starved(of: str = "transformer", *, batch_sizes: Sequence[int] = (1, 8)) -> Change:
    """Makes a model run out of memory at 8K."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        point = arguments["point"]
        if arguments["model"].name == of and point.context_len == 8192 and point.batch_size in batch_sizes:
            arguments |= {"status": "oom", "error": "out of memory", "metrics": {}}
        return arguments

    return change


def ran(attention: str, *, graphs: bool, kv_heads: int | None = None) -> Change:
    """Makes the Transformer one that ran so; no prompt is read from a graph."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        settings, workload = {**arguments["settings"], "cuda_graph": graphs}, arguments["workload"]
        arguments["backend"] = {**arguments["backend"], "cuda_graph": graphs and workload == "decode"}
        if arguments["model"].architecture == "transformer":
            arguments["backend"][workload] = attention
            settings["backend"] = attention.partition(":")[0]
            if kv_heads:
                config = with_mixer(arguments["model"].config, num_kv_heads=kv_heads)
                arguments["model"] = arguments["model"].model_copy(update={"config": config})
        arguments["settings"] = settings
        arguments["cell_id"] += f"-{attention}"
        return arguments

    return change


def together(*changes: Change) -> Change:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        for each in changes:
            arguments = each(arguments)
        return arguments

    return change


PLAIN = ran("reference", graphs=False)
STRONG = ran("sdpa:flash", graphs=True, kv_heads=8)
LENGTHS = (1024, 2048, 4096, 8192)


def latency(*changes: Change, machine: Any = GPU, batch_sizes: tuple[int, ...] = (8,)) -> list[Record]:
    return Maker(machine, change=together(*changes)).latency(lengths=LENGTHS, batch_sizes=batch_sizes)


@pytest.mark.parametrize(
    ("factor", "verdict"), [(6.5, "reproduced"), (1.0, "partly"), (0.2, "not_reproduced")]
)
def test_a_ratio_is_held_against_the_printed_one(factor: float, verdict: str) -> None:
    """The made-up Transformer takes 2.6 times as long as RetNet; the paper prints 15.6."""
    assert verdict_of("latency_ratio", latency(PLAIN, times(factor))) == verdict


def unsteady(factor: float) -> Change:
    """Makes the Transformer's decode steps so many times as long and as short in turn, round by round."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        return times(factor if arguments["round"] % 2 else 1 / factor)(arguments)

    return change


def test_an_interval_that_holds_no_advantage_and_a_large_one_tells_nothing() -> None:
    row = row_of("latency_ratio", latency(PLAIN, unsteady(4)), "paper")
    assert row.finding.verdict == "not_testable"
    assert row.finding.text.endswith("`retbench run latency --profile cpu --set rounds=10`")


def test_an_interval_that_reaches_the_printed_advantage_does_not_reproduce_it() -> None:
    """The made-up advantage is about 7; the interval of these rounds goes beyond the printed 15.6."""
    row = row_of("latency_ratio", latency(PLAIN, times(3), unsteady(2)), "paper")
    low, high = map(float, row.finding.text.partition("[")[2].partition("]")[0].split(", "))
    assert low > 1
    assert high > 15.6
    assert row.finding.verdict == "not_testable"
    assert "too wide for a verdict" in row.finding.text
    assert "--set rounds=10`" in row.finding.text


def test_a_value_beyond_the_printed_advantage_with_an_interval_that_is_not_has_no_verdict() -> None:
    row = row_of("latency_ratio", latency(PLAIN, times(7), unsteady(1.3)), "paper")
    assert float(row.finding.text.partition("×")[0]) > 15.6
    assert row.finding.verdict == "not_testable"


def is_retnet(**config: Any) -> Change:
    """Gives RetNet another configuration; a backend and a chunk size are settings."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["model"].architecture == "retnet":
            settings = {name: config[name] for name in ("backend", "chunk_size") if name in config}
            parts = {name: value for name, value in config.items() if name not in settings}
            arguments["settings"] = {**arguments["settings"], **settings}
            arguments["cell_id"] += str(config)
            model = arguments["model"]
            arguments["model"] = model.model_copy(update={"config": with_mixer(model.config, **parts)})
        return arguments

    return change


@pytest.mark.parametrize("lack", [{"decay": "gated"}, {"swish_gate": False}, {"head_norm": "none"}])
def test_a_retnet_that_lacks_a_part_is_none_that_a_claim_of_cost_is_about(lack: dict[str, Any]) -> None:
    judged = judge(CLAIMS["latency_ratio"], Results(tuple(latency(PLAIN, times(9), is_retnet(**lack))), ()))
    assert judged.verdict == "not_testable"
    assert not any(row.num_records for row in judged.rows)


def test_what_of_a_retnet_is_not_the_usual_is_in_the_conditions() -> None:
    (row,) = judge(
        CLAIMS["latency_level"], Results(tuple(latency(is_retnet(chunk_size=64, decay="paper"))), ())
    ).rows
    assert "decay paper, chunk size 64" in row.conditions


def test_the_claim_has_two_answers() -> None:
    records = [*latency(PLAIN, times(6.5)), *latency(STRONG, times(0.6))]
    judged = judge(CLAIMS["throughput_ratio"], Results(tuple(records), ()))
    assert judged.verdict == "reproduced"
    found = {row.scope: row.finding.verdict for row in judged.rows}
    assert found == {"paper": "reproduced", "strong": "partly"}
    assert "plain attention + multi-head attention" in judged.rows[0].conditions
    assert "fused attention + grouped-query attention + CUDA graphs" in judged.rows[1].conditions


def test_attention_by_products_is_neither_plain_nor_fused() -> None:
    decoded = ran("products", graphs=True, kv_heads=8)
    judged = judge(CLAIMS["latency_ratio"], Results(tuple(latency(decoded, times(9))), ()))
    found = {row.scope: row for row in judged.rows if row.num_records}
    assert found.keys() == {"elsewhere"}
    assert "attention by products + grouped-query attention" in found["elsewhere"].conditions
    assert "plain" not in found["elsewhere"].conditions


def test_a_strong_transformer_alone_leaves_the_papers_row_open() -> None:
    judged = judge(CLAIMS["latency_ratio"], Results(tuple(latency(STRONG, times(9))), ()))
    assert judged.verdict == "not_testable"
    assert [row.finding.verdict for row in judged.rows] == ["not_testable", "reproduced"]
    assert judged.rows[0].command == CLAIMS["latency_ratio"].command


def concatenating(arguments: dict[str, Any]) -> dict[str, Any]:
    """Makes the Transformer's cache one that is copied at every token."""
    if arguments["model"].architecture == "transformer":
        config = with_mixer(arguments["model"].config, cache="concat")
        arguments["model"] = arguments["model"].model_copy(update={"config": config})
        arguments["cell_id"] += "-concat"
    return arguments


def test_a_transformer_whose_cache_is_concatenated_is_never_the_strong_one() -> None:
    fused = ran("sdpa:flash", graphs=True, kv_heads=8)
    judged = judge(CLAIMS["latency_ratio"], Results(tuple(latency(fused, concatenating, times(9))), ()))
    found = {row.scope: row for row in judged.rows if row.num_records}
    assert found.keys() == {"elsewhere"}
    assert found["elsewhere"].conditions.endswith("CUDA graphs or compiled + concat cache")


def test_the_papers_plain_transformer_may_concatenate_and_says_so() -> None:
    judged = judge(CLAIMS["latency_ratio"], Results(tuple(latency(PLAIN, concatenating, times(9))), ()))
    assert (judged.rows[0].scope, judged.rows[0].finding.verdict) == ("paper", "reproduced")
    assert "plain attention + multi-head attention + concat cache" in judged.rows[0].conditions


def test_how_prompts_were_read_does_not_say_how_tokens_were_decoded() -> None:
    records = latency(STRONG, times(9))
    prompts_first = sorted(records, key=lambda record: record.workload, reverse=True)
    assert prompts_first[0].workload == "prefill"
    judged = judge(CLAIMS["latency_ratio"], Results(tuple(prompts_first), ()))
    assert [(row.scope, row.finding.verdict) for row in judged.rows] == [
        ("paper", "not_testable"),
        ("strong", "reproduced"),
    ]


def test_a_small_model_on_a_cpu_confirms_nothing_and_has_a_row_of_its_own() -> None:
    records = latency(times(20), machine=CPU, batch_sizes=(1, 8))
    for name in ("latency_ratio", "throughput_ratio", "latency_level", "latency_grows"):
        judged = judge(CLAIMS[name], Results(tuple(records), ()))
        assert judged.verdict == "not_testable", name
        assert [row.finding.verdict for row in judged.rows if row.scope == "elsewhere"] == ["reproduced"], (
            name
        )
        assert "25M" in judged.rows[-1].conditions


def test_another_dtype_than_the_papers_is_elsewhere() -> None:
    records = latency(PLAIN, times(6.5), machine=replace(GPU, dtype="float32"))
    judged = judge(CLAIMS["latency_ratio"], Results(tuple(records), ()))
    assert judged.verdict == "not_testable"
    assert "bfloat16 or float16" in judged.rows[0].conditions
    assert [row.conditions.split(", ")[2] for row in judged.rows if row.scope == "elsewhere"] == ["float32"]


def test_a_slice_of_the_papers_gpu_is_elsewhere() -> None:
    machine = replace(GPU, processor="NVIDIA A100-SXM4-80GB MIG 3g.40gb")
    judged = judge(CLAIMS["latency_ratio"], Results(tuple(latency(PLAIN, times(6.5), machine=machine)), ()))
    assert judged.verdict == "not_testable"
    assert [row.finding.verdict for row in judged.rows if row.scope == "elsewhere"] == ["reproduced"]


def test_elsewhere_the_nearest_point_is_taken_and_named() -> None:
    row = row_of("latency_ratio", latency(machine=CPU, batch_sizes=(1,)), "elsewhere")
    assert "at batch 1, 8K" in row.finding.text


def test_at_the_papers_scale_only_its_own_point_counts() -> None:
    assert verdict_of("latency_ratio", latency(PLAIN, times(20), batch_sizes=(1,))) == "not_testable"


def test_a_time_of_one_round_has_no_verdict() -> None:
    records = [record for record in latency(PLAIN, times(9)) if record.round == 0]
    row = row_of("latency_ratio", records, "paper")
    assert row.finding.verdict == "not_testable"
    assert "without an interval" in row.finding.text
    assert verdict_of("latency_level", records) == "not_testable"


def test_a_transformer_that_is_out_of_memory_has_no_ratio() -> None:
    row = row_of("latency_ratio", latency(PLAIN, starved()), "paper")
    assert row.finding.verdict == "not_testable"
    assert row.finding.text == "transformer at batch 8, 8K: out of memory"


def test_elsewhere_a_point_out_of_memory_gives_way_to_the_nearest_below_and_is_named() -> None:
    row = row_of("latency_ratio", latency(PLAIN, starved(), times(20), machine=CPU), "elsewhere")
    assert row.finding.verdict == "reproduced"
    assert "at batch 8, 4K; the paper 15.6×; transformer at batch 8, 8K: out of memory" in row.finding.text


def test_of_two_runs_that_read_alike_the_newest_stands() -> None:
    older = Maker(GPU, change=together(PLAIN, times(9))).latency(lengths=LENGTHS, batch_sizes=(8,))
    later = [
        record.model_copy(
            update={"started_at": record.started_at.replace("2026-01", "2026-02"), "run_id": "later"}
        )
        for record in latency(PLAIN, times(0.2))
    ]
    row = row_of("latency_ratio", [*older, *later], "paper")
    assert (row.finding.verdict, row.run_ids) == ("not_reproduced", ("later",))


def test_a_newer_run_that_is_undecided_is_not_hidden_by_an_older_one_that_decides() -> None:
    later = [
        record.model_copy(
            update={"started_at": record.started_at.replace("2026-01", "2026-02"), "run_id": "later"}
        )
        for record in latency(PLAIN, unsteady(4))
    ]
    judged = judge(CLAIMS["latency_ratio"], Results((*latency(PLAIN, times(9)), *later), ()))
    assert judged.verdict == "not_testable"
    assert [row.run_ids for row in judged.rows if row.scope == "paper"] == [("later",)]


def test_equal_times_refute_a_large_advantage_though_1_is_in_their_interval() -> None:
    """The made-up Transformer takes 2.6 times as long as RetNet at the claim's point."""
    row = row_of("latency_ratio", latency(PLAIN, times(1 / 2.6), unsteady(1.2)), "paper")
    low, high = map(float, row.finding.measured.partition("[")[2].partition("]")[0].split(", "))
    assert low < 1 < high
    assert row.finding.verdict == "not_reproduced"


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (times(1.0), "reproduced"),
        (times(1.3, of="retnet", where=lambda point: point.context_len > 2048), "not_reproduced"),
        (times(1.045, of="retnet", where=lambda point: point.context_len > 2048), "not_testable"),
        (times(3, of="retnet", where=lambda point: point.context_len in (2048, 4096)), "not_reproduced"),
    ],
)
def test_level_is_an_equivalence_test_at_every_length(change: Change, verdict: str) -> None:
    assert verdict_of("latency_level", latency(change)) == verdict


def test_a_length_that_is_apart_is_named() -> None:
    hump = times(3, of="retnet", where=lambda point: point.context_len == 2048)
    assert " at 2K" in row_of("latency_level", latency(hump), "paper").finding.text


def test_a_session_is_no_growth_with_the_length() -> None:
    """A later session, in which everything takes longer, adds the longest context; nothing depends on the length."""
    slower = times(1.3, of="retnet", where=lambda point: point.context_len == LENGTHS[-1])
    records = [
        record.model_copy(
            update={"run_id": "later" if record.point.context_len == LENGTHS[-1] else "earlier"}
        )
        for record in latency(slower, machine=CPU)
    ]
    finding = row_of("latency_level", records, "elsewhere").finding
    assert finding.verdict == "reproduced"
    assert "from 1K to 4K" in finding.measured


def test_a_level_that_noise_hides_takes_more_rounds() -> None:
    row = row_of("latency_level", latency(shaken), "paper")
    assert row.finding.verdict == "not_testable"
    assert "--set rounds=10`" in row.finding.text


@pytest.mark.parametrize("given", ["--set rounds=5", "--set 'rounds = 5'"])
def test_the_command_for_more_rounds_sets_their_number_once(given: str) -> None:
    command = f"retbench run latency --profile paper {given} --set threads=2"
    records = [record.model_copy(update={"command": command}) for record in latency(shaken)]
    text = row_of("latency_level", records, "paper").finding.text
    assert "`retbench run latency --profile paper --set threads=2 --set rounds=10`" in text


def test_more_rounds_are_more_than_were_measured_where_few_can_be_compared() -> None:
    fewer = [record for record in latency(shaken) if record.point.context_len < 8192 or record.round > 2]
    assert "--set rounds=10`" in row_of("latency_level", fewer, "paper").finding.text


def test_level_over_the_batch() -> None:
    """The made-up RetNet takes 1.25 times as long for 8 sequences as for one; the claim allows 1.2."""
    records = latency(batch_sizes=(1, 8))
    row = row_of("latency_level_over_batch", records, "paper")
    assert row.finding.measured.startswith(
        "1.25× [1.21, 1.28] from 1 to 8 sequences at 8K, a line rises 1.248×"
    )
    assert row.finding.verdict == "not_reproduced"
    faster = times(0.9, of="retnet", where=lambda point: point.batch_size == 8)
    assert verdict_of("latency_level_over_batch", latency(faster, batch_sizes=(1, 8))) == "reproduced"


@pytest.mark.parametrize("name", ["latency_level", "latency_grows"])
def test_at_the_papers_scale_a_range_is_whole_and_its_batch_the_papers(name: str) -> None:
    records = latency(PLAIN)
    assert verdict_of(name, records) == "reproduced"
    assert (
        verdict_of(name, [record for record in records if record.point.context_len < 8192]) == "not_testable"
    )
    assert verdict_of(name, latency(PLAIN, batch_sizes=(4,))) == "not_testable"


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (times(1.0), "reproduced"),
        (times(0.5, where=lambda point: point.context_len == 4096), "partly"),
        (times(0.01, where=lambda point: point.context_len == 8192), "not_reproduced"),
    ],
)
def test_growth_is_a_rise_at_every_length(change: Change, verdict: str) -> None:
    assert verdict_of("latency_grows", latency(PLAIN, change)) == verdict


def test_growth_is_distinguished_from_noise_by_the_rounds_that_lengths_share() -> None:
    records = latency(PLAIN)
    row = row_of("latency_grows", [record for record in records if record.round == 0], "paper")
    assert row.finding.verdict == "not_testable"
    assert row.finding.text.startswith("one round: ")
    apart = {1024: 0, 2048: 1, 4096: 0, 8192: 1}
    scattered = [record for record in records if apart[record.point.context_len] == record.round]
    assert verdict_of("latency_grows", scattered) == "not_testable"

    def disturb(arguments: dict[str, Any]) -> dict[str, Any]:
        """Make the rounds at the longest context by turns so much longer and shorter that nothing can be concluded."""
        factor = 4 if arguments["round"] % 2 else 1 / 4
        return times(factor, where=lambda point: point.context_len == 8192)(arguments)

    row = row_of("latency_grows", latency(PLAIN, disturb), "paper")
    assert row.finding.verdict == "not_testable"
    assert "--set rounds=10`" in row.finding.text


def memory(change: Change = lambda arguments: arguments) -> list[Record]:
    return Maker(GPU, change=change).memory(lengths=LENGTHS, batch_sizes=(8,))


def bytes_of(name: str, factor: Callable[[Any], float], *, of: str) -> Change:
    """Makes a number of bytes so many times as large."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["model"].name == of:
            metric = arguments["metrics"][name]
            value = round(metric.value * factor(arguments["point"]))
            arguments["metrics"] = {**arguments["metrics"], name: Metric(unit="bytes", value=value)}
        return arguments

    return change


def test_bytes_are_counted_and_one_round_decides() -> None:
    """A 4-byte state beside 2-byte weights: the ratio is 3.0 where the paper has 3.4."""
    assert verdict_of("memory_ratio", memory()) == "partly"
    assert (
        verdict_of("memory_ratio", memory(bytes_of("peak_bytes", lambda _: 1.2, of="transformer")))
        == "reproduced"
    )
    assert verdict_of("memory_saved", memory(bytes_of("peak_bytes", lambda _: 0.2, of="transformer"))) == (
        "not_reproduced"
    )
    assert verdict_of("memory_level", memory()) == "reproduced"
    grown = bytes_of("peak_bytes", lambda point: point.context_len, of="retnet")
    assert verdict_of("memory_level", memory(grown)) == "not_reproduced"
    assert verdict_of("memory_linear", memory()) == "reproduced"
    squared = bytes_of("peak_bytes", lambda point: point.context_len, of="transformer")
    assert verdict_of("memory_linear", memory(squared)) == "partly"


def test_a_share_is_held_against_the_printed_one() -> None:
    assert verdict_of("memory_above_weights", memory()) == "not_reproduced"
    small = bytes_of("state_bytes", lambda _: 0.1, of="retnet")
    assert verdict_of("memory_above_weights", memory(small)) == "reproduced"


def test_training_is_distinguished_by_attention() -> None:
    records = Maker(TRAINER).training()
    plain = judge(CLAIMS["training_speed"], Results(tuple(records), ()))
    flash = judge(CLAIMS["training_speed_flash"], Results(tuple(records), ()))
    assert [row.conditions.split(", ")[3] for row in plain.rows if row.scope == "elsewhere"] == [
        "plain attention + multi-head attention",
        "fused attention + multi-head attention",
    ]
    (row,) = [row for row in flash.rows if row.scope == "elsewhere"]
    assert "fused attention" in row.conditions
    assert flash.verdict == "not_testable"
    assert verdict_of("training_memory_linear", records) == "not_testable"


@pytest.mark.parametrize(
    ("dtype", "chunk_size", "scope"),
    [("bfloat16", 512, "paper"), ("bfloat16", 128, "elsewhere"), ("float32", 512, "elsewhere")],
)
def test_the_papers_training_is_of_chunks_of_512_in_16_bits(dtype: str, chunk_size: int, scope: str) -> None:
    a100 = replace(GPU, size="1.3b", trains=True, memory_bytes=8e11, dtype=dtype)
    records = Maker(a100, change=is_retnet(chunk_size=chunk_size)).training(lengths=(2048, 4096, 8192))
    rows = judge(CLAIMS["training_memory_linear"], Results(tuple(records), ())).rows
    assert {row.scope for row in rows if row.num_records} == {scope}


def break_forms(arguments: dict[str, Any]) -> dict[str, Any]:
    """Makes RetNet's forms differ."""
    if arguments["model"].name == "retnet":
        check = GateCheck(name="chunkwise = parallel", length=9, error=1.0, limit=1e-4)
        gate = arguments["gate"].model_copy(update={"passed": False, "checks": (check,)})
        arguments |= {"gate": gate, "status": "gate_failed", "metrics": {}, "error": "forms differ"}
    return arguments


def called(name: str) -> Change:
    """Gives RetNet another name."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["model"].name == "retnet":
            arguments["model"] = arguments["model"].model_copy(update={"name": name})
            arguments["cell_id"] += name
        return arguments

    return change


def test_forms_that_differ_in_a_newer_run_refute_an_older_one() -> None:
    newer = replace(CPU, started=datetime(2026, 2, 1, tzinfo=UTC))
    records = [*latency(machine=CPU), *latency(break_forms, machine=newer)]
    assert verdict_of("equal_forms", records) == "not_reproduced"


@pytest.mark.parametrize("other", [is_retnet(backend="fla"), is_retnet(chunk_size=32), called("second")])
def test_forms_that_differ_are_not_hidden_by_a_newer_run_of_another_way(other: Change) -> None:
    newer = replace(CPU, started=datetime(2026, 2, 1, tzinfo=UTC))
    broken = latency(break_forms, other, machine=CPU)
    assert verdict_of("equal_forms", [*broken, *latency(machine=newer)]) == "not_reproduced"


def test_forms_that_differ_anywhere_are_not_one_function() -> None:
    assert verdict_of("equal_forms", latency(machine=CPU)) == "reproduced"
    row = row_of("equal_forms", latency(break_forms, machine=CPU), "paper")
    assert row.finding.verdict == "not_reproduced"
    assert "chunkwise = parallel, 9 tokens" in row.finding.text
    newer = Maker(replace(GPU, started=datetime(2026, 2, 1, tzinfo=UTC))).latency(lengths=LENGTHS)
    assert verdict_of("equal_forms", [*latency(break_forms, machine=CPU), *newer]) == "not_reproduced"


def test_a_newer_run_that_decides_nothing_does_not_hide_one_that_does() -> None:
    newer = Maker(
        replace(GPU, started=datetime(2026, 2, 1, tzinfo=UTC), torch_version="2.14.0"), change=PLAIN
    )
    undecided = [r for r in newer.latency(lengths=LENGTHS, batch_sizes=(8,)) if r.round == 0]
    assert verdict_of("latency_ratio", undecided) == "not_testable"
    older = latency(together(PLAIN, times(6.5)), machine=replace(GPU, name="another"))
    judged = judge(CLAIMS["latency_ratio"], Results((*undecided, *older), ()))
    assert judged.verdict == "reproduced"


def setup_words(failing: str | None) -> str:
    """Return the words of the only setup of a pair, all of whose cells of one model failed."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["model"].name != failing:
            return arguments
        return arguments | {"status": "oom", "metrics": {}, "backend": {}}

    records = Maker(CPU, change=change).memory()
    [setup] = find_setups(records, Side(architecture="retnet"), Side(architecture="transformer"))
    return describe_setup(setup.records)


def test_how_a_transformer_ran_is_said_where_one_did() -> None:
    assert "multi-head attention" in setup_words(failing=None)
    assert "multi-head attention" not in setup_words(failing="transformer")
    assert "multi-head attention" in setup_words(failing="retnet")


# ---- quality ---------------------------------------------------------------------------------------------------------


def scored(folder: Path, make: Callable[[ScoreMaker], object], change: Change, **fields: Any) -> Results:
    maker = ScoreMaker(folder, change=change, **fields)
    make(maker)
    return load_results(maker.write())


def as_model(**changes: Any) -> Change:
    """Gives every model another size, name or training."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        model = arguments["model"]
        weights = model.weights.model_copy(update=changes.get("weights", {}))
        sizes, names = changes.get("sizes", {}), changes.get("names", {})
        update = {
            "weights": weights,
            "size": sizes.get(model.size, model.size),
            "name": names.get(model.name, model.name),
            **changes.get("model", {}),
        }
        arguments["model"] = model.model_copy(update=update)
        arguments["experiment"] = changes.get("experiment", arguments["experiment"])
        return arguments

    return change


TRAINED = {"num_tokens": 100_000_000_000}
WITHOUT_GATE = as_model(
    experiment="ablations",
    names={"transformer": "no_swish_gate"},
    sizes={"25m": "200m"},
    weights=TRAINED,
    model={"architecture": "retnet"},
)
"""The Transformer of the made-up pair stands for RetNet without its gate."""


def ask_last(maker: ScoreMaker) -> None:
    for context_len in (512, 1024, 2048):
        maker.perplexities("litbank/original", "last", context_len)


@pytest.mark.parametrize(("size", "verdict"), [("25m", "reproduced"), ("1m", "not_reproduced")])
def test_ahead_is_judged_document_by_document(size: str, verdict: str, tmp_path: Path) -> None:
    """The made-up RetNet is ahead at 25m and behind at 1m; here each stands for 6.7B."""
    change = as_model(sizes={size: "6.7b"}, weights=TRAINED)
    results = scored(tmp_path, ask_last, change, seeds={size: (0,)})
    assert judge(CLAIMS["perplexity_by_context"], results).verdict == verdict


def test_a_handful_of_documents_has_no_verdict(tmp_path: Path) -> None:
    change = as_model(sizes={"25m": "6.7b"}, weights=TRAINED)
    results = scored(tmp_path, ask_last, change, seeds={"25m": (0,)}, num_documents=5)
    judged = judge(CLAIMS["perplexity_by_context"], results)
    assert judged.rows[0].finding.verdict == "not_testable"
    assert judged.rows[0].finding.text.endswith("too few documents for an interval")


def level() -> Callable[[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """Makes the Transformer lose a little more than RetNet on every second document, a little less on the others."""
    last: list[dict[str, Any]] = []

    def change_rows(model: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if model == "retnet":
            last[:] = rows
            return rows
        return [
            {**row, "nll_nats": row["nll_nats"] * (1.01 if number % 2 else 0.99)}
            for number, row in enumerate(last)
        ]

    return change_rows


def test_no_difference_that_is_shown_is_no_verdict(tmp_path: Path) -> None:
    def ask(maker: ScoreMaker) -> None:
        ask_last(maker)
        maker.perplexities("litbank/original", "whole", 2048)

    seeds = dict.fromkeys(("1m", "25m"), (0,))
    results = scored(tmp_path, ask, as_model(), seeds=seeds, change_rows=level())
    for name in ("perplexity_by_context", "perplexity_by_size"):
        rows = [row for row in judge(CLAIMS[name], results).rows if row.num_records]
        assert {row.finding.verdict for row in rows} == {"not_testable"}, name
        assert all(
            "significantly at 0" in row.finding.text or "different at 0 of" in row.finding.text
            for row in rows
        )


def test_a_model_that_has_seen_less_is_elsewhere(tmp_path: Path) -> None:
    results = scored(tmp_path, ask_last, as_model(sizes={"25m": "6.7b"}), seeds={"25m": (0,)})
    judged = judge(CLAIMS["perplexity_by_context"], results)
    assert judged.verdict == "not_testable"
    assert judged.rows[1].finding.verdict == "reproduced"
    assert judged.rows[1].conditions == "6.7B, trained on 20.0 M tokens, seed 0"


def test_scores_of_an_older_machine_are_not_forgotten(tmp_path: Path) -> None:
    change = as_model(sizes={"25m": "6.7b"}, weights=TRAINED)
    older = ScoreMaker(tmp_path, change=change, seeds={"25m": (0,)}, code_revision="0.0.9")
    ask_last(older)
    older.write()
    later = datetime(2026, 2, 1, tzinfo=UTC)
    newer = ScoreMaker(tmp_path, change=as_model(), seeds={"1m": (0,)}, started=later)
    ask_last(newer)
    judged = judge(CLAIMS["perplexity_by_context"], load_results(newer.write()))
    assert judged.verdict == "reproduced"
    assert [row.conditions.split(",")[0] for row in judged.rows] == ["6.7B", "1M"]


def test_one_context_is_not_all_three(tmp_path: Path) -> None:
    def ask(maker: ScoreMaker) -> None:
        maker.perplexities("litbank/original", "last", 2048)

    change = as_model(sizes={"25m": "6.7b"}, weights=TRAINED)
    judged = judge(CLAIMS["perplexity_by_context"], scored(tmp_path, ask, change, seeds={"25m": (0,)}))
    assert judged.verdict == "partly"
    assert judged.rows[0].finding.text.startswith("ahead at 1 of 1 evaluation, significantly at 1")


def test_a_part_of_the_tasks_is_not_all_of_them(tmp_path: Path) -> None:
    """Three of the seven tasks are measured, and RetNet is ahead at one."""
    change = as_model(sizes={"25m": "6.7b"}, weights=TRAINED)
    results = scored(tmp_path, lambda maker: maker.zeroshots(0), change, seeds={"25m": (0,)})
    judged = judge(CLAIMS["zero_shot"], results)
    assert judged.verdict == "partly"
    assert "of 3 evaluations, significantly at 1" in judged.rows[0].finding.text
    assert judge(CLAIMS["four_shot"], results).verdict == "not_testable"


def test_a_crossing_is_behind_at_first_and_ahead_at_last(tmp_path: Path) -> None:
    def ask(maker: ScoreMaker) -> None:
        maker.perplexities("litbank/original", "whole", 2048)

    names = {"1m": "1.3b", "6m": "2.7b", "25m": "6.7b"}
    seeds = dict.fromkeys(names, (0,))
    results = scored(tmp_path / "a", ask, as_model(sizes=names, weights=TRAINED), seeds=seeds)
    judged = judge(CLAIMS["perplexity_by_size"], results)
    assert judged.verdict == "partly"  # at the size that stands for 2.7B it is still behind
    assert "at 1.3B" in judged.rows[0].finding.text
    assert "at 2.7B, 6.7B" in judged.rows[0].finding.text
    small = judge(CLAIMS["perplexity_by_size"], scored(tmp_path / "b", ask, as_model(), seeds=seeds))
    assert small.verdict == "not_testable"
    assert small.rows[1].finding.verdict == "not_testable"
    assert "these sizes do not span the crossing between 1.3B and 2.7B" in small.rows[1].finding.measured
    assert small.rows[1].conditions == "1M to 25M, trained on 20.0 M tokens"


def with_params(arguments: dict[str, Any]) -> dict[str, Any]:
    """Makes models of 1m as large as 200M, and those of 25m as large as 13B."""
    model = arguments["model"]
    params = {"1m": 200_000_000, "25m": 13_000_000_000}[model.size]
    arguments["model"] = model.model_copy(update={"num_params_nonembedding": params})
    return arguments


def test_other_sizes_on_either_side_of_a_crossing_show_it(tmp_path: Path) -> None:
    def ask(maker: ScoreMaker) -> None:
        maker.perplexities("litbank/original", "whole", 2048)

    results = scored(tmp_path, ask, with_params, seeds={"1m": (0,), "25m": (0,)})
    judged = judge(CLAIMS["perplexity_by_size"], results)
    assert judged.verdict == "not_testable"
    assert [(row.scope, row.finding.verdict) for row in judged.rows if row.num_records] == [
        ("elsewhere", "reproduced")
    ]


def test_beyond_the_trained_length_is_another_question(tmp_path: Path) -> None:
    def ask(maker: ScoreMaker) -> None:
        maker.perplexities("litbank/original", "whole", 8192)

    results = scored(tmp_path, ask, as_model(), seeds={"1m": (0,), "25m": (0,)})
    assert [row.scope for row in judge(CLAIMS["perplexity_by_size"], results).rows] == ["paper"]


def trained_at(context_len: int) -> Change:
    """Makes RetNet with and without its gate, both trained on sequences of so many tokens."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["workload"] == "training_run":
            place = {"context_len": context_len}
            arguments["point"] = arguments["point"].model_copy(update=place)
        return WITHOUT_GATE(arguments)

    return change


@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        (
            (512,),
            "ahead at 1 of 1 evaluation, significantly at 1, significantly behind at 0; lead 1.0 % of the loss; "
            "another seed may differ",
        ),
        (
            (512, 2048),
            "ahead at 1 of 1 evaluation, significantly at 1, significantly behind at 0; lead 1.0 % of the loss; "
            "1 not counted: longer than the 512 tokens of the training; another seed may differ",
        ),
        ((2048,), "no evaluation counts: longer than the 512 tokens of the training"),
        ((8192,), None),
    ],
)
def test_a_perplexity_beyond_the_trained_length_never_counts(
    lengths: tuple[int, ...], text: str | None, tmp_path: Path
) -> None:
    """Beyond 2K the claim covers no record, whatever the length of the training."""

    def ask(maker: ScoreMaker) -> None:
        maker.trainings()
        for context_len in lengths:
            maker.perplexities("litbank/original", "whole", context_len)

    results = scored(tmp_path, ask, trained_at(512), seeds={"25m": (0,)})
    rows = [row for row in judge(CLAIMS["ablation_swish_gate"], results).rows if row.num_records]
    assert [row.finding.measured for row in rows] == ([text] if text else [])
    assert [row.finding.decides for row in rows] == ([512 in lengths] if text else [])


def test_a_crossing_beyond_the_trained_length_is_none(tmp_path: Path) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["workload"] == "training_run":
            arguments["point"] = arguments["point"].model_copy(update={"context_len": 512})
        return with_params(arguments)

    def ask(maker: ScoreMaker) -> None:
        maker.trainings()
        maker.perplexities("litbank/original", "whole", 2048)

    results = scored(tmp_path, ask, change, seeds={"1m": (0,), "25m": (0,)})
    assert not any(row.num_records for row in judge(CLAIMS["perplexity_by_size"], results).rows)


def test_the_trained_length_is_that_of_the_same_weights_before_that_of_a_namesake(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"25m": (0,)})
    one = maker.trainings()[-1]
    assert one.model.weights
    weights = one.model.weights.model_copy(update={"fingerprint": "another"})
    model, point = (
        one.model.model_copy(update={"weights": weights}),
        one.point.model_copy(update={"context_len": 512}),
    )
    namesake = one.model_copy(update={"model": model, "point": point})
    assert trained_length(one, [one, namesake]) == one.point.context_len == 2048
    assert trained_length(one, [namesake]) == 512
    assert trained_length(one, []) is None


def test_leads_beyond_the_trained_length_do_not_reproduce_a_claim(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path, seeds={"25m": (0,)})
    maker.perplexities("litbank/original", "whole", 512)
    maker.perplexities("litbank/original", "whole", 2048)
    short, long = ((maker.records[place], maker.records[place + 1]) for place in (0, 2))
    rule = CLAIMS["ablation_swish_gate"].rule
    assert isinstance(rule, AheadRule)
    within = [QualityLead(short, lead, 0.4, 512) for lead in (0.004, 0.002)]
    beyond = [QualityLead(long, lead, 0.001, 512) for lead in (0.45, 0.40)]
    assert judge_ahead(rule, within).verdict == "not_testable"
    assert judge_ahead(rule, [*within, *beyond]).verdict == "not_testable"


def test_chance_confirms_a_claim_of_seven_evaluations_in_one_of_twenty_and_one_sure_lead_does(
    tmp_path: Path,
) -> None:
    maker = ScoreMaker(tmp_path, seeds={"25m": (0,)})
    maker.perplexities("litbank/original", "whole", 2048)
    rule, draw = CLAIMS["ablation_swish_gate"].rule, np.random.default_rng(3)
    assert isinstance(rule, AheadRule)
    sides = tuple(maker.records[:2])
    decided = 0
    for _ in range(2000):
        drawn = zip(draw.normal(size=7), draw.uniform(size=7), strict=True)
        leads = [QualityLead(sides, float(lead), float(p_value)) for lead, p_value in drawn]
        decided += judge_ahead(rule, leads).verdict != "not_testable"
    assert 0.03 < decided / 2000 < 0.065
    sure = [QualityLead(sides, 0.02, p_value) for p_value in (1e-10, *[0.6] * 6)]
    assert judge_ahead(rule, sure).verdict == "partly"


def test_every_claim_on_perplexity_names_its_longest_context() -> None:
    rules = [claim.rule for claim in CLAIMS.values()]
    ahead = [rule for rule in rules if isinstance(rule, AheadRule) and rule.workload == "perplexity"]
    assert all(rule.context_lens or rule.longest_context for rule in ahead)


def test_a_claim_on_wikitext_is_not_judged_on_another_text(tmp_path: Path) -> None:
    """The made-up RetNet stands for Gated Linear Attention, and the Transformer for RetNet."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        model = arguments["model"]
        names = {"retnet": "gla", "transformer": "retnet"}
        update = {"architecture": names[model.architecture], "name": names[model.name]}
        arguments["model"] = model.model_copy(update=update)
        return as_model(sizes={"25m": "1.3b"}, weights=TRAINED)(arguments)

    for corpus, verdict in (("litbank/original", "not_testable"), ("wikitext-103", "reproduced")):
        results = scored(
            tmp_path / corpus,
            lambda maker, corpus=corpus: maker.perplexities(corpus, "whole", 2048),
            change,
            seeds={"25m": (0,)},
        )
        assert judge(CLAIMS["gla_retnet"], results).verdict == verdict


def test_no_crossing_is_found_where_the_order_is_the_other(tmp_path: Path) -> None:
    def ask(maker: ScoreMaker) -> None:
        maker.perplexities("litbank/original", "whole", 2048)

    swapped = {"retnet": "transformer", "transformer": "retnet"}

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        arguments = as_model(names=swapped)(with_params(arguments))
        architecture = swapped[arguments["model"].architecture]
        arguments["model"] = arguments["model"].model_copy(update={"architecture": architecture})
        return arguments

    results = scored(tmp_path, ask, change, seeds={"1m": (0,), "25m": (0,)})
    (row,) = [row for row in judge(CLAIMS["perplexity_by_size"], results).rows if row.scope == "elsewhere"]
    assert row.finding.verdict == "not_reproduced"


def test_an_ablation_is_held_against_the_whole(tmp_path: Path) -> None:
    results = scored(tmp_path, ask_last, WITHOUT_GATE, seeds={"25m": (0,)})
    assert judge(CLAIMS["ablation_swish_gate"], results).verdict == "reproduced"
    assert judge(CLAIMS["ablation_decay"], results).verdict == "not_testable"


def test_an_interval_over_seeds_is_seen_rather_than_one_seed_nearer_to_the_claim(tmp_path: Path) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        return as_model(sizes={"200m": "125m"})(WITHOUT_GATE(arguments))

    results = scored(tmp_path, ask_last, change, seeds={"25m": (0,), "1m": (0, 1, 2)})
    judged = judge(CLAIMS["ablation_swish_gate"], results)
    (result,) = judged.results
    assert result.conditions.startswith("1M, ")
    assert result.conditions.endswith("seeds 0, 1, 2")
    assert judged.result_lines[0].endswith("seeds 0, 1, 2; one of 2 results)")


def without_gate_by_seed(folder: Path, factors: Sequence[float]) -> ClaimRow:
    """The row of the gate's claim where the whole RetNet loses so many times as much as it would, by seed."""
    left = list(factors)

    def lose(model: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        factor = left.pop(0) if model == "retnet" else 1
        return [{**row, "nll_nats": factor * row["nll_nats"]} for row in rows]

    def ask(maker: ScoreMaker) -> None:
        maker.perplexities("litbank/original", "whole", 2048)

    seeds = {"25m": tuple(range(len(factors)))}
    results = scored(folder, ask, WITHOUT_GATE, seeds=seeds, change_rows=lose)
    judged = judge(CLAIMS["ablation_swish_gate"], results)
    (row,) = judged.rows
    assert judged.verdict == row.finding.verdict
    assert row.num_records == 2 * len(factors)
    return row


@pytest.mark.parametrize(
    ("factors", "verdict", "counted"),
    [
        ((1, 1), "reproduced", "2 of 2"),
        ((1, 2), "partly", "1 of 2"),
        ((2, 2), "not_reproduced", "0 of 2"),
    ],
)
def test_each_of_two_seeds_counts_and_not_the_newest_alone(
    factors: tuple[int, ...], verdict: str, counted: str, tmp_path: Path
) -> None:
    row = without_gate_by_seed(tmp_path, factors)
    assert row.finding.verdict == verdict
    assert row.conditions == "200M, trained on 100 B tokens, seeds 0, 1"
    assert row.finding.text.startswith(f"reproduced at {counted} seeds; seed 0: ahead at ")


@pytest.mark.parametrize(
    ("factors", "verdict", "words"),
    [
        ((1, 1, 1), "reproduced", "ahead at 1 of 1 evaluation, significantly at 1"),
        (
            (2, 2, 2),
            "not_reproduced",
            "ahead at 0 of 1 evaluation, significantly at 0, significantly behind at 1",
        ),
        # Over its documents each seed differs clearly, and the seeds disagree.
        (
            (1, 1, 2),
            "not_testable",
            "ahead at 0 of 1 evaluation, significantly at 0, significantly behind at 0",
        ),
    ],
)
def test_from_three_seeds_on_their_interval_decides_a_claim(
    factors: tuple[int, ...], verdict: str, words: str, tmp_path: Path
) -> None:
    row = without_gate_by_seed(tmp_path, factors)
    assert row.finding.verdict == verdict
    assert row.conditions == "200M, trained on 100 B tokens, seeds 0, 1, 2"
    assert row.finding.text.startswith(words)


def public_retnet(value: float, *, context_len: int = 2048, limit: int | None = None) -> Change:
    """Makes every task WikiText, read by the public RetNet with such a perplexity by word."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        arguments = as_model(experiment="checkpoints", weights={"source": "fla-hub/retnet-1.3B-100B"})(
            arguments
        )
        place = {"task": "wikitext", "context_len": context_len}
        arguments["point"] = arguments["point"].model_copy(update=place)
        arguments["metrics"] = {"word_perplexity": Metric(unit="ratio", value=value)}
        arguments["settings"] |= {"limit": limit}
        return arguments

    return change


@pytest.mark.parametrize(("value", "verdict"), [(18.9, "reproduced"), (19.5, "not_reproduced")])
def test_near_is_within_the_tolerance(value: float, verdict: str, tmp_path: Path) -> None:
    results = scored(tmp_path, lambda maker: maker.zeroshots(0), public_retnet(value), seeds={"25m": (0,)})
    assert judge(CLAIMS["public_retnet"], results).verdict == verdict
    assert judge(CLAIMS["public_transformer"], results).verdict == "not_testable"


@pytest.mark.parametrize(
    ("short", "words"),
    [
        ({"limit": 50}, "50 documents"),
        ({"context_len": 1024}, "at 1K"),
        ({"limit": 9, "context_len": 512}, "9 documents at 512"),
    ],
)
def test_a_part_of_the_documents_or_of_the_context_decides_nothing(
    short: dict[str, int], words: str, tmp_path: Path
) -> None:
    """Nor does it take the place of an older reading of the whole."""
    results = scored(
        tmp_path, lambda maker: maker.zeroshots(0), public_retnet(25.0, **short), seeds={"25m": (0,)}
    )
    judged = judge(CLAIMS["public_retnet"], results)
    assert judged.verdict == "not_testable"
    (row,) = [row for row in judged.rows if row.num_records]
    assert (row.scope, row.finding.verdict) == ("elsewhere", "not_reproduced")
    assert row.conditions == f"fla-hub/retnet-1.3B-100B, {words}"
    earlier = ScoreMaker(
        tmp_path, change=public_retnet(18.9), seeds={"25m": (0,)}, started=datetime(2025, 1, 1, tzinfo=UTC)
    )
    earlier.zeroshots(0)
    judged = judge(CLAIMS["public_retnet"], load_results(earlier.write()))
    assert judged.verdict == "reproduced"
    assert [row.finding.verdict for row in judged.rows] == ["reproduced", "not_reproduced"]


@pytest.mark.parametrize(("sources", "is_decided"), [("fla-hub/{}-1.3B-100B", True), ("quality/{}", False)])
def test_only_the_public_checkpoints_decide_what_others_found_of_them(
    sources: str, is_decided: bool, tmp_path: Path
) -> None:
    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        source = {"source": sources.format(arguments["model"].architecture)}
        return as_model(experiment="checkpoints", sizes={"25m": "fla-1.3b"}, weights=source)(arguments)

    results = scored(tmp_path, lambda maker: maker.zeroshots(0), change, seeds={"25m": (0,)})
    rows = [row for row in judge(CLAIMS["independent_lambada"], results).rows if row.num_records]
    assert bool(rows) is is_decided


# ---- how they are printed --------------------------------------------------------------------------------------------


def test_the_table_counts_the_verdicts_and_marks_what_is_elsewhere() -> None:
    judged = judge_claims(Results((*memory(), *latency(machine=CPU)), ()))
    text = claims_markdown(judged)
    first, _, legend, _, title, *_ = text.splitlines()
    own, others = first.split(". ")
    counted = sum(int(part.split()[0]) for part in own.partition(": ")[2].split(", "))
    assert counted == len(CLAIMS)
    elsewhere = sum(int(part.split()[0]) for part in others.partition(": ")[2].rstrip(".").split(", "))
    assert 0 < elsewhere < counted
    assert legend.startswith("Only records under a paper's own conditions decide a claim")
    assert title.startswith("### Decided under the paper's conditions (")
    short, evidence = text.partition("### Evidence")[::2]
    assert {line.count(" | ") for line in short.splitlines() if line.startswith("| ")} == {3}
    assert {line.count(" | ") for line in evidence.splitlines() if line.startswith("| ")} == {5}
    assert "- RetNet (arXiv:2307.08621) Figure 1: not stated: dtype, batch," in text
    assert all("there)" in line for line in evidence.splitlines() if "| other conditions: " in line)
    assert "`retbench run training_cost --profile paper" in text


def test_json_names_what_the_paper_does_not_state() -> None:
    found = {each["name"]: each for each in claims_json(judge_claims(NOTHING))}
    label, ratio = found["latency_ratio"]["numbers"]
    assert (label["value"], label["unit"], label["kind"]) == (15.6, "ratio", "printed")
    assert (ratio["value"], ratio["kind"]) == (pytest.approx(15.6, abs=0.05), "derived")
    assert {"dtype", "attention kernel"} <= set(label["not_stated"])
    assert found["latency_ratio"]["rows"][0]["command"].startswith("retbench run latency")


def headline(words: str, records: Iterable[Record]) -> tuple[str, str]:
    """Result and verdict in the row of a headline."""
    rows = headlines_markdown(judge_claims(Results(tuple(records), ()))).splitlines()
    (row,) = [row for row in rows if words in row]
    _, _, here, verdict = [cell.strip() for cell in row[2:-2].split(" | ")]
    return here, verdict


def test_the_headlines_have_both_answers_in_one_row() -> None:
    records = [*latency(PLAIN, times(6.5)), *latency(STRONG, times(0.6))]
    here, verdict = headline("RetNet's latency is 15.6 times lower", records)
    assert verdict == "reproduced"
    plain, strong = here.split("; ", maxsplit=1)
    assert re.match(r"\d+\.\d× \[.*\] at batch 8, 8K \(6.7B, NVIDIA A100-SXM4-80GB, eager\)", plain)
    assert re.match(r"strong Transformer: \d", strong)
    assert strong.endswith("(6.7B, NVIDIA A100-SXM4-80GB, CUDA graphs; partly)")


def test_the_headline_of_flash_attention_is_not_of_plain_attention() -> None:
    """Two ways of attention were trained with; the claim of 7 times is about plain attention, that of 1.15 is not."""
    judged = {each.claim.name: each for each in judge_claims(Results(tuple(Maker(TRAINER).training()), ()))}
    plain, fused = judged["training_speed"].rows, judged["training_speed_flash"].rows
    assert "plain attention + multi-head attention" in {row.conditions.split(", ")[-1] for row in plain}
    assert {row.conditions.split(", ")[-1] for row in fused if row.num_records} == {
        "fused attention + multi-head attention"
    }


# ---- origin of the records -------------------------------------------------------------------------------------------


def folder_of(folder: Path, own: Iterable[Record], published: Iterable[Record]) -> Results:
    """Return the records of a clone: the user's, and those that come with the project."""
    write_results(folder, own)
    write_results(folder / "published", published)
    return load_results(folder)


UNDECIDED = together(PLAIN, unsteady(4))
EARLIER = datetime(2025, 1, 1, tzinfo=UTC)


def test_own_records_that_decide_nothing_come_before_published_ones_that_do(tmp_path: Path) -> None:
    own, published = (
        latency(UNDECIDED, machine=replace(CPU, started=EARLIER)),
        latency(times(6.5), machine=CPU),
    )
    judged = judge(CLAIMS["latency_ratio"], folder_of(tmp_path, own, published))
    assert [(row.verdict_words, row.is_published) for row in judged.results] == [
        ("undecided", False),
        ("reproduced", True),
    ]
    assert judged.verdict_cell == "undecided, other conditions"
    mine, theirs = judged.result_lines
    assert "published" not in mine
    assert re.match(r"published: \d", theirs)
    assert theirs.endswith("; reproduced, other conditions)")


def test_a_published_result_with_the_value_and_the_verdict_of_the_users_own_is_left_out(
    tmp_path: Path,
) -> None:
    own = latency(times(6.5), machine=replace(CPU, started=EARLIER))
    results = folder_of(tmp_path / "same", own, latency(times(6.5), machine=CPU))
    judged = judge(CLAIMS["latency_ratio"], results)
    assert [row.is_published for row in judged.rows[2:]] == [False, True]
    assert [row.is_published for row in judged.results] == [False]
    other = folder_of(tmp_path / "other", own, latency(times(7.5), machine=CPU))
    assert [row.is_published for row in judge(CLAIMS["latency_ratio"], other).results] == [False, True]


def shown(name: str, *runs: Iterable[Record]) -> tuple[str, str]:
    """Return the only result of a claim's short row: what was measured, and its verdict."""
    (row,) = judge(CLAIMS[name], Results(tuple(record for run in runs for record in run), ())).results
    return row.finding.measured, row.verdict_words


def test_the_result_at_the_claims_own_point_is_shown_though_a_nearby_one_decides() -> None:
    shorter = Maker(CPU, change=together(ran("sdpa:flash", graphs=False), times(20)))
    at_point = latency(ran("sdpa:flash", graphs=True), unsteady(4), machine=CPU, batch_sizes=(1,))
    runs = shorter.latency(lengths=(1024, 2048, 4096), batch_sizes=(1,)), at_point
    measured, verdict = shown("latency_ratio_batch_1", *runs)
    assert measured.endswith("at batch 1, 8K")
    assert verdict == "undecided"
    assert shown("latency_ratio_batch_1", runs[0])[1] == "reproduced"


def test_the_result_that_covers_the_claims_range_is_shown_though_a_part_of_it_decides() -> None:
    part = Maker(CPU, change=ran("sdpa:flash", graphs=False)).latency(lengths=(1024, 4096), batch_sizes=(8,))
    part = [record.model_copy(update={"experiment": "throughput"}) for record in part]
    whole = latency(ran("sdpa:flash", graphs=True), shaken, machine=CPU, batch_sizes=(1,))
    measured, verdict = shown("latency_level", part, whole)
    assert "from 1K to 8K at batch 1" in measured
    assert verdict == "undecided"
    assert shown("latency_level", part)[1] == "reproduced"


def test_another_baseline_than_the_claims_is_not_shown_for_its_point() -> None:
    records = Maker(TRAINER, change=starved("transformer_plain")).training(lengths=(4096, 8192))
    judged = judge(CLAIMS["training_speed"], Results(tuple(records), ()))
    fused = [row for row in judged.rows if "fused attention" in row.conditions and row.num_records]
    assert "at batch 1, 8K" in fused[0].finding.measured
    assert "at batch 1, 4K" in shown("training_speed", records)[0]


def test_the_nearest_point_has_the_fewest_doublings_of_batch_and_context() -> None:
    row = row_of(
        "latency_ratio", latency(starved(batch_sizes=(8,)), machine=CPU, batch_sizes=(1, 8)), "elsewhere"
    )
    assert "at batch 8, 4K" in row.finding.measured


def test_a_result_on_throughput_says_that_it_is_not_independent_of_latency() -> None:
    row = row_of("throughput_ratio", latency(PLAIN), "paper")
    assert "not independent of the claims on latency" in row.finding.text


def test_own_and_published_records_are_never_one_result(tmp_path: Path) -> None:
    """RetNet of one and the Transformer of the other make no ratio, though machine and versions agree."""
    runs = [latency(times(6.5), machine=machine) for machine in (CPU, replace(CPU, started=EARLIER))]
    own, published = (
        [record for record in run if record.model.name == name]
        for run, name in zip(runs, ("retnet", "transformer"), strict=True)
    )
    assert judge(CLAIMS["latency_ratio"], folder_of(tmp_path, own, published)).results == []


def test_a_published_verdict_under_the_papers_conditions_is_still_one(tmp_path: Path) -> None:
    results = folder_of(tmp_path, latency(UNDECIDED, machine=CPU), latency(PLAIN, times(6.5)))
    judged = judge(CLAIMS["latency_ratio"], results)
    assert (judged.verdict, judged.verdict_cell) == ("reproduced", "reproduced")
    assert [row.is_published for row in judged.results] == [False, True]


def test_the_evidence_names_the_files_below_the_results_folder(tmp_path: Path) -> None:
    results = folder_of(tmp_path, latency(UNDECIDED, machine=CPU), latency(PLAIN, times(6.5)))
    rows = [row for row in judge(CLAIMS["latency_ratio"], results).rows if row.records]
    paths = [row.record_words.partition(" in ")[2] for row in rows]
    assert [path.startswith("published/") for path in paths] == [True, False]
    assert all((tmp_path / path).is_file() for path in paths)


# ---- what retbench lacks ---------------------------------------------------------------------------------------------


def test_nothing_that_a_claim_awaits_exists() -> None:
    """Once it does, the claim needs a rule and a command in place of the name."""
    for claim in CLAIMS.values():
        if claim.awaits:
            assert not set(claim.awaits.workloads) & set(WORKLOADS), claim.name
            assert not set(claim.awaits.architectures) & set(architectures()), claim.name


@pytest.mark.parametrize(
    "paper", ["Mamba ", "Mamba-2 ", "Gated Linear", "DeltaNet ", "Gated DeltaNet ", "YOCO "]
)
def test_the_papers_of_the_kin_have_claims(paper: str) -> None:
    assert [claim for claim in CLAIMS.values() if claim.source.startswith(paper)]


def test_a_claim_says_which_workload_it_awaits() -> None:
    (row,) = judge(CLAIMS["recall_mean"], NOTHING).rows
    assert row.finding.text == "needs the workload based_tasks, which retbench does not have yet"
    assert row.command is None


def test_a_claim_on_an_architecture_of_another_package_is_judged_on_its_records(tmp_path: Path) -> None:
    """The made-up RetNet stands for Mamba, and the Transformer for RetNet."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        model = arguments["model"]
        names = {"retnet": "mamba", "transformer": "retnet"}
        update = {"architecture": names[model.architecture], "name": names[model.name]}
        arguments["model"] = model.model_copy(update=update)
        return arguments

    def ask(maker: ScoreMaker) -> None:
        maker.perplexities("litbank/original", "whole", 2048)

    judged = judge(CLAIMS["mamba_retnet"], scored(tmp_path, ask, change, seeds={"25m": (0,)}))
    assert judged.verdict == "not_testable"
    assert [(row.scope, row.finding.verdict) for row in judged.rows] == [
        ("paper", "not_testable"),
        ("elsewhere", "reproduced"),
    ]


# ---- the latency ratio and its conditions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "factor", "verdict"),
    [("latency_ratio", 6.5, "reproduced"), ("latency_ratio_batch_1", 6.5, "reproduced")],
)
def test_the_latency_claims_are_of_one_batch_each(name: str, factor: float, verdict: str) -> None:
    claim = CLAIMS[name]
    batch_size = claim.rule.batch_size  # type: ignore[union-attr]
    records = latency(PLAIN, times(factor), batch_sizes=(1, 8))
    assert verdict_of(name, records) == verdict
    others = [record for record in records if record.point.batch_size != batch_size]
    assert verdict_of(name, others) == "not_testable", "another batch decides nothing"


def test_a_saving_of_rounds_too_different_for_an_interval_is_undecided() -> None:
    """An end of the ratio is 0 in a double, and the saving has no end then."""

    def wild(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["model"].architecture == "retnet":
            value = 1e150 if arguments["round"] else 1e-150
            arguments["metrics"] = arguments["metrics"] | {"peak_bytes": Metric(unit="bytes", value=value)}
        return arguments

    records = [one for one in Maker(TRAINER, change=wild).training() if one.round < 2]
    rows = judge(CLAIMS["training_memory_flash"], Results(tuple(records), ())).rows
    (row,) = [row for row in rows if row.records]
    assert row.finding.verdict == "not_testable"
    assert "-inf %" in row.finding.measured


def test_more_memory_is_not_a_saving_below_zero() -> None:
    def heavier(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["model"].architecture == "retnet" and "peak_bytes" in arguments["metrics"]:
            metric = arguments["metrics"]["peak_bytes"]
            metrics = arguments["metrics"] | {"peak_bytes": Metric(unit="bytes", value=metric.value * 20)}
            arguments["metrics"] = metrics
        return arguments

    row = row_of("memory_saved", Maker(CPU, change=heavier).memory(), "elsewhere")
    assert re.match(r"\d+\.\d % more at batch 1", row.finding.measured)
