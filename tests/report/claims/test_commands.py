"""The command of each claim is enough for a verdict: its cells have the claim's scale and its whole range."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from report.synthetic_records import GPU, Maker
from report.synthetic_scores import ScoreMaker, answer_better
from retbench.architectures import costs
from retbench.cli import load_command
from retbench.config.evaluation import PerplexitySpec, RecallSlicesSpec, ZeroshotSpec
from retbench.config.experiment import Experiment, Profile
from retbench.config.experiment_files import load_experiment
from retbench.measure.devices import Device
from retbench.mixers.softmax_attention import SoftmaxAttention
from retbench.papers.claims import (
    Claim,
    CrossesRule,
    NearRule,
    QualityRule,
    RatioRule,
    Side,
    SlicesRule,
    load_claims,
)
from retbench.papers.explanations import YOCO_FFN, YOCO_KV_HEADS
from retbench.papers.papers import find_datasheet
from retbench.planning import plan
from retbench.planning.plan import Plan, make_plan
from retbench.records.record import Metric, Record, WeightsInfo
from retbench.report.claims.judge import judge
from retbench.report.claims.judged import Scope
from retbench.report.results import Results, load_results

RETNET, TRANSFORMER = Side(architecture="retnet"), Side(architecture="transformer")
CLAIMS = {claim.name: claim for claim in load_claims()}
TESTABLE = {name: claim for name, claim in CLAIMS.items() if claim.rule and not claim.awaits}
OF_QUALITY = [name for name, claim in TESTABLE.items() if isinstance(claim.rule, QualityRule)]
OF_COST = [name for name in TESTABLE if name not in OF_QUALITY]
LARGE = replace(GPU, memory_bytes=1e15)
"""The paper's GPU, on which nothing runs out of memory."""


def commands_of(text: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The verb and the options of every `retbench ...` in a claim's command."""
    for words in (text or "").replace("torchrun --nproc-per-node 8 -m ", "").split(" && "):
        if words:
            name, verb, *arguments = shlex.split(words)
            assert name == "retbench"
            yield verb, load_command(verb).make_context(verb, arguments).params


def experiment_of(options: dict[str, Any]) -> tuple[Experiment, Profile]:
    """Return the experiment of a command, and its profile."""
    name = options["profile"] or "cpu"
    experiment = load_experiment(options["experiment"], options["overrides"] or (), profile=name)
    return experiment.of_profile(name), experiment.profile(name)


@pytest.mark.parametrize("name", [*OF_COST, *OF_QUALITY])
def test_every_command_of_a_claim_exists(name: str) -> None:
    claim = CLAIMS[name]
    for verb, options in [*commands_of(claim.command), *commands_of(claim.strong_command)]:
        experiment, _ = experiment_of(options)
        assert verb == "train" or not claim.experiments or experiment.name in claim.experiments


# ---- costs -----------------------------------------------------------------------------------------------------------


def as_it_ran(arguments: dict[str, Any]) -> dict[str, Any]:
    """Gives a Transformer of `auto` the kernel of a GPU, and one of `reference` plain attention."""
    workload, backend = arguments["workload"], arguments["settings"]["backend"]
    if arguments["model"].architecture == "transformer":
        kind = workload if workload in ("prefill", "training") else "decode"
        arguments["backend"][kind] = "sdpa:flash" if backend == "auto" else backend
    return arguments


def planned(options: dict[str, Any]) -> Plan:
    """The plan of a command."""
    return make_plan(
        options["experiment"],
        profile=options["profile"] or "paper",
        device=None,
        overrides=options["overrides"] or (),
    )


def measured(options: dict[str, Any], gpu: str) -> list[Record]:
    """Return the records that a command would make on the claim's GPU, an A100 or an H100."""
    made = planned(options)
    maker = Maker(
        replace(LARGE, name=LARGE.name.replace("A100", gpu), processor=LARGE.processor.replace("A100", gpu)),
        change=as_it_ran,
    )
    return [
        maker.record_of(made.experiment.name, cell, number)
        for cell in made.cells
        for number in range(made.rounds_of(cell))
    ]


@pytest.mark.parametrize(
    ("name", "scope"),
    [*((name, "paper") for name in OF_COST), *((name, "strong") for name in OF_COST if CLAIMS[name].strong)],
)
def test_the_command_of_a_cost_decides_its_claim(
    name: str, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "find_device", lambda asked: Device("cuda:0", 80 * 10**9))
    claim = CLAIMS[name]
    ((_, options),) = commands_of(claim.command if scope == "paper" else claim.strong_command)
    judged = judge(
        claim,
        Results(tuple(measured(options, claim.scale.hardware[0] if claim.scale.hardware else "A100")), ()),
    )
    found = [row for row in judged.rows if row.scope == scope]
    assert found
    assert all(row.num_records for row in found)
    assert all(row.finding.verdict != "not_testable" or "--set rounds=" in row.finding.text for row in found)


@pytest.mark.parametrize("name", ["yoco_memory", "yoco_prefill"])
def test_yoco_at_1m_tokens_has_the_papers_heads_and_says_the_memory_of_the_transformer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "find_device", lambda asked: Device("cuda:0", 80 * 10**9))
    claim = CLAIMS[name]
    assert isinstance(claim.rule, RatioRule)
    ((_, options),) = commands_of(claim.command)
    wanted = claim.rule.workload, claim.rule.batch_size, claim.rule.context_len
    cells = {
        cell.model_name: cell
        for cell in planned(options).cells
        if (cell.workload, cell.point.batch_size, cell.point.context_len) == wanted
    }
    needed = {}
    for model in ("yoco", "transformer_gqa"):
        config, dtype = cells[model].model, cells[model].settings.dtype
        heads = {mixer.num_kv_heads for mixer in config.mixers if isinstance(mixer, SoftmaxAttention)}
        assert heads == {YOCO_KV_HEADS} == {claim.scale.config["num_kv_heads"]}
        assert config.ffn is not None
        assert config.ffn.ffn_dim == YOCO_FFN == claim.scale.config["ffn_dim"]
        needed[model] = costs.weight_bytes(config, dtype) + costs.state_bytes(config, dtype, 1, wanted[2] + 1)
    assert needed["transformer_gqa"] / needed["yoco"] == pytest.approx(10.54, abs=0.01)
    assert claim.needs is not None
    assert f"the Transformer takes {needed['transformer_gqa'] / 1e9:.1f} GB" in claim.needs
    assert find_datasheet("h100-80gb").usable_bytes < needed["transformer_gqa"]
    assert needed["transformer_gqa"] < find_datasheet("h200").usable_bytes


@pytest.mark.parametrize("lacking", ["models.yoco.", "models.transformer_gqa."])
def test_yoco_with_other_key_value_heads_on_either_side_is_not_as_in_the_paper(
    lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "find_device", lambda asked: Device("cuda:0", 80 * 10**9))
    claim = CLAIMS["yoco_memory"]
    ((_, options),) = commands_of(claim.command)
    options["overrides"] = [each for each in options["overrides"] if not each.startswith(lacking)]
    judged = judge(claim, Results(tuple(measured(options, "H100")), ()))
    assert [(row.scope, bool(row.num_records)) for row in judged.rows] == [
        ("paper", False),
        ("elsewhere", True),
    ]


# ---- quality ---------------------------------------------------------------------------------------------------------


def trained_by(
    options: dict[str, Any], training: dict[str, Any] | None = None
) -> tuple[dict[str, tuple[int | None, ...]], int | None]:
    """Seeds by size of the models that a command measures, and the tokens that each has seen; None of a checkpoint."""
    experiment, profile = experiment_of(options)
    if profile.trained_by:
        name, _, trained_as = profile.trained_by.partition("/")
        profile = load_experiment(name, (training or {}).get("overrides") or (), profile=trained_as).profile(
            trained_as
        )
    spec = profile.training
    if spec is None:
        assert all(entry.checkpoint for entry in experiment.models.values())
        return {entry.size: (None,) for entry in experiment.models.values() if entry.size}, None
    num_steps = max(spec.steps_of(size) for size in spec.sizes)
    return {size: spec.seeds_of(size) for size in spec.sizes}, num_steps * spec.tokens_per_step


def side_of(experiment: Experiment, side: Side) -> tuple[str, str | None]:
    """The name of the one model of an experiment that a side is about, and the checkpoint that it has."""
    ((name, entry),) = [
        (name, entry)
        for name, entry in experiment.models.items()
        if side.name in (None, name) and entry.architecture == side.architecture
    ]
    return name, entry.checkpoint


def asked(maker: ScoreMaker, spec: PerplexitySpec | RecallSlicesSpec | ZeroshotSpec) -> None:
    """Makes the records of every question of a workload."""
    if isinstance(spec, ZeroshotSpec):
        for shots in spec.num_fewshot:
            maker.zeroshots(shots, spec.tasks)
        return
    if isinstance(spec, RecallSlicesSpec):
        for corpus in spec.corpora:
            for num_bytes in spec.document_bytes:
                maker.slices(corpus, num_bytes)
        return
    for corpus in spec.corpora:
        for protocol, lengths in spec.protocols.items():
            for context_len in lengths:
                maker.perplexities(corpus, protocol, context_len)


def answered(
    options: dict[str, Any],
    claim: Claim,
    folder: Path,
    training: dict[str, Any] | None = None,
    num_tokens: int | None = None,
) -> Results:
    """Return the records that a command would make if the claim held; the maker's RetNet is the challenger.

    With `num_tokens` the models have seen so many, whatever the command says.
    """
    rule = claim.rule
    assert isinstance(rule, QualityRule)
    sides = (RETNET, TRANSFORMER) if isinstance(rule, NearRule) else (rule.challenger, rule.reference)
    experiment, profile = experiment_of(options)
    (workload,) = profile.workloads.specs
    spec = getattr(profile.workloads, workload)
    seeds, trained_on = trained_by(options, training)

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        model = arguments["model"]
        side = sides[model.name == "transformer"]
        name, checkpoint = side_of(experiment, side)
        weights = model.weights and model.weights.model_copy(update={"num_tokens": num_tokens or trained_on})
        if checkpoint:
            weights = WeightsInfo(source=checkpoint, fingerprint="0123456789ab", format="fla")
        update = {"name": name, "architecture": side.architecture, "weights": weights}
        arguments["model"] = model.model_copy(update=update)
        arguments["experiment"] = experiment.name
        arguments["settings"] |= {"limit": spec.limit, "dtype": profile.dtype}
        if isinstance(spec, ZeroshotSpec):
            arguments["point"] = arguments["point"].model_copy(update={"context_len": spec.context_len[0]})
        if isinstance(rule, NearRule):
            arguments["metrics"] = {rule.metric: Metric(unit="ratio", value=claim.printed)}
        return arguments

    behind = rule.behind_at if isinstance(rule, CrossesRule) else ()
    bits = {
        "retnet": {size: 1.1 if size in behind else 0.9 for size in seeds},
        "transformer": dict.fromkeys(seeds, 1.0),
    }
    if isinstance(rule, SlicesRule):
        bits = {"retnet": dict.fromkeys(seeds, 1.1), "transformer": dict.fromkeys(seeds, 1.0)}
    maker = ScoreMaker(folder, seeds=seeds, bits=bits, change=change, change_rows=answer_better)
    asked(maker, spec)
    return load_results(maker.write())


@pytest.mark.parametrize("name", OF_QUALITY)
def test_the_command_of_quality_decides_its_claim(name: str, tmp_path: Path) -> None:
    claim = CLAIMS[name]
    *before, (_, options) = commands_of(claim.command)
    training = before[0][1] if before else None
    judged = judge(claim, answered(options, claim, tmp_path, training))
    if claim.scale.text is None:
        assert judged.verdict == "reproduced"
    else:  # no corpus of this package is the paper's text
        assert judged.verdict == "not_testable"
        measured = [row for row in judged.rows if row.num_records]
        assert {(row.scope, row.finding.verdict) for row in measured} == {("elsewhere", "reproduced")}
        assert all(f"not on {claim.scale.text}" in row.conditions for row in measured)
        assert judged.rows[0].conditions.endswith(f"on {claim.scale.text}")


@pytest.mark.parametrize(
    "name", [name for name in OF_QUALITY if "retbench train" in (TESTABLE[name].command or "")]
)
def test_models_that_have_seen_few_tokens_decide_no_claim(name: str, tmp_path: Path) -> None:
    claim = CLAIMS[name]
    (_, training), (_, options) = commands_of(claim.command)
    judged = judge(claim, answered(options, claim, tmp_path, training, num_tokens=10_000_000))
    assert judged.verdict == "not_testable"
    assert {row.scope for row in judged.rows if row.num_records} == {"elsewhere"}
