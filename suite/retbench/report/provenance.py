"""Provenance of the numbers: how models are matched, which kernels executed, the equivalence checks, the environment.

Each table is a frame of text with a column per model; where the models differ, the last column says so.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import pandas as pd

from retbench.architectures.recorded import config_facts
from retbench.records.dates import dates_of, started
from retbench.records.record import GateCheck, ModelInfo, ReadRate, Record, median_curve
from retbench.report.lineup import Lineup, is_matched
from retbench.report.points import is_final
from retbench.report.results import Results, set_of
from retbench.report.tables.aligned_text import NONE
from retbench.report.tables.cells import TableCell
from retbench.report.wording import bind_units, device_name, range_of
from retbench.units import (
    format_bytes,
    format_count,
    format_items,
    format_percent,
    format_rate,
    format_tokens,
)
from retbench.workloads.workload import WORKLOADS

DIFFERS = "differs"
BY_DESIGN = "by architecture"
BY_HARNESS = "by the harness"
"""The models were brought to their depth in different ways: a state by reading text, a cache by filling it. Or some
trainings were interrupted; a training continues exactly where it stopped."""
_MOST_COUNTS = 4
"""Models whose parameters have room in one line."""

_OWN_SETTINGS = frozenset({"backend", "chunk_size", "samples per round"})
_HARNESS_FACTS = ("state_source", "kv_fill", "processes_in_turn")
_OWN_FACTS = (
    *("kv_", "timed_", "chunk_size", "energy_steps", "trials", "evaluation"),
    *("compile_s", "compile_error", "cuda_graph_error", "learning_rate", "best_rate_is"),
)
"""First words of executed facts that belong to an architecture, follow from its speed, are found by its tuning or are
measured, like the kernel of a workload and the fingerprint of a training: not unfair where the models differ."""


def describe_conditions(records: Sequence[Record], models: Lineup | None = None) -> str:
    """Return device, dtype, code and date of comparable records in one line; of costs also threads and parameters.

    Args:
        records: The records.
        models: Their models, where they are of cost.
    """
    latest = max(records, key=started)
    key = set_of(latest)
    parts = [
        device_name(latest),
        str(key.dtype),
        *(_cost_conditions(latest, records, models) if models else ()),
        f"retbench {key.code_revision}",
        f"torch {key.torch_version}",
        dates_of([latest]),
    ]
    return bind_units(" · ".join(parts))


def _cost_conditions(latest: Record, records: Sequence[Record], models: Lineup) -> list[str]:
    key = set_of(latest)
    params = {record.model.name: record.model.num_params_nonembedding for record in records}
    limits = [limit for r in records if isinstance(limit := r.settings.get("memory_limit_bytes"), int)]
    counts = [
        f"{models.labels[name]} {format_count(params[name])}" for name in models.models if name in params
    ]
    if len(counts) > _MOST_COUNTS:
        counts = [f"{range_of(params.values(), format_count)} in {len(counts)} models"]
    return [
        *([format_items(key.threads, "thread")] if key.threads else []),
        *describe_steps(records),
        *([f"memory limit {format_bytes(min(limits))}"] if limits else []),
        f"parameters without embedding: {', '.join(counts)}",
    ]


def step_words(backend: Mapping[str, Any]) -> list[str]:
    """Return how a step ran, by the backend of its record: 'eager', or 'compiled', 'CUDA graphs' or both."""
    ways = (("compile", "compiled"), ("cuda_graph", "CUDA graphs"))
    return [words for name, words in ways if backend.get(name)] or ["eager"]


def describe_steps(records: Sequence[Record]) -> list[str]:
    """Return how steps ran: 'compiled', 'eager', or of each workload where they differ; nothing where none is timed."""
    by_way: dict[str, dict[str, None]] = {}
    for record in records:
        if isinstance(record.backend.get("compile"), bool):
            ran = " in ".join(step_words(record.backend))
            by_way.setdefault(ran, {})[record.workload.replace("_", " ")] = None
    if len(by_way) == 1:
        return [*by_way]
    return [f"{ran}: {', '.join(names)}" for ran, names in sorted(by_way.items())]


def match_table(records: Sequence[Record], models: Lineup) -> pd.DataFrame:
    """Return configurations and parameters of the models in adjacent columns."""
    infos = {record.model.name: record.model for record in records}
    facts = {
        name: {"architecture": info.architecture, "variant": info.variant, **config_facts(info)}
        for name, info in infos.items()
    }
    names = dict.fromkeys(name for of_model in facts.values() for name in of_model)
    rows = [[name, *(str(facts[model].get(name, NONE)) for model in models.models)] for name in names]
    counts = {"parameters": "num_params", "parameters without embedding and head": "num_params_nonembedding"}
    for heading, field in counts.items():
        rows.append([heading, *(f"{getattr(infos[model], field):,}" for model in models.models)])
    return pd.DataFrame(rows, columns=["fact", *(models.labels[model] for model in models.models)])


def mismatch_sentence(records: Sequence[Record], models: Lineup) -> str:
    """Return how far the parameters of the models differ, and which configuration fields are equal."""
    if len(models.models) < 2:
        return f"Only one model was measured: {', '.join(models.labels.values())}."
    infos = {record.model.name: record.model for record in records if is_matched(record)}
    refused = "".join(
        f" {models.labels[name]} is not compared with the {models.labels[str(models.reference)]}: {reason}."
        for name, reason in models.refusals.items()
    )
    if not infos:
        return f"No model here is matched: {', '.join(models.labels.values())}."
    if len(infos) < 2:
        return f"Only one matched model was measured: {models.labels[next(iter(infos))]}.{refused}"
    counts = [info.num_params_nonembedding for info in infos.values()]
    low, high = min(counts), max(counts)
    configs = [config_facts(info) for info in infos.values()]
    same = [
        name for name, value in configs[0].items() if all(config.get(name) == value for config in configs)
    ]
    share = format_percent((high - low) / high if high else 0)  # a record may state that there are none
    return (
        f"Parameters without embedding and head differ by {high - low:,} ({share} of the larger). "
        f"The models share: {', '.join(same) or 'nothing'}.{refused}"
    )


def executed_table(records: Sequence[Record], models: Lineup) -> pd.DataFrame:
    """Return settings and executed kernels of one experiment and workload per model, with differences flagged."""
    facts: dict[str, dict[str, list[object]]] = {}
    lengths: dict[tuple[str, str, object], set[int]] = {}
    for record in records:
        mine = facts.setdefault(record.model.name, {})
        executed = {f"executed: {name}": value for name, value in record.backend.items()}
        for name, value in {**record.settings, **executed}.items():
            if name == "learning_rates" and not is_final(record):
                continue  # a run of the grid does not depend on the others, and a grid may be widened later
            plain = json.dumps(value) if isinstance(value, list | dict) else value
            mine.setdefault(name, []).append(plain)
            lengths.setdefault((record.model.name, name, plain), set()).add(record.point.context_len)
        mine.setdefault("rounds", []).append(record.round)
        mine.setdefault("samples per round", []).extend(
            len(metric.samples) for metric in record.metrics.values() if metric.samples
        )
    present = [model for model in models.models if model in facts]
    rows = []
    for name in dict.fromkeys(name for mine in facts.values() for name in mine):
        ran = name.removeprefix("executed: ")
        values = [
            _kernels({value: lengths[model, name, value] for value in facts[model].get(name, [])})
            if ran in WORKLOADS
            else _summary(name, facts[model].get(name, []))
            for model in present
        ]
        is_kernel = ran in WORKLOADS or ran == "training_fingerprint"
        is_own = name in _OWN_SETTINGS or (ran != name and (is_kernel or ran.startswith(_OWN_FACTS)))
        is_harness = ran != name and ran.startswith(_HARNESS_FACTS)
        reason = BY_HARNESS if is_harness else BY_DESIGN if is_own else DIFFERS
        rows.append([name, *values, "" if len(set(values)) == 1 else reason])
    return pd.DataFrame(rows, columns=["fact", *(models.labels[model] for model in present), "difference"])


def _kernels(lengths: Mapping[object, Set[int]]) -> str:
    """Return the kernels of a workload; of several, each with the context lengths at which it ran."""
    if len(lengths) < 2:
        return _summary("", list(lengths))
    places = sorted((sorted(of_one), str(kernel)) for kernel, of_one in lengths.items())
    return "; ".join(f"{kernel} ({', '.join(map(format_tokens, of_one))})" for of_one, kernel in places)


def _summary(name: str, values: Sequence[object]) -> str:
    """Return the values of one fact over all records of a model, in a few words."""
    if not values:
        return NONE
    if name == "rounds":
        return str(len(set(values)))
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        return NONE if distinct[0] is None else str(distinct[0])
    numbers = _numbers(distinct)
    return f"{min(numbers):,} to {max(numbers):,}" if numbers else "; ".join(sorted(map(str, distinct)))


def _numbers(values: Sequence[object]) -> list[float]:
    """Return the values if all are numbers, else nothing."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return numbers if len(numbers) == len(values) else []


def checks_of(records: Iterable[Record]) -> Iterator[tuple[ModelInfo, str, GateCheck]]:
    """Yield the equivalence checks of records, each with its model and its dtype."""
    for record in records:
        if record.gate:
            for check in record.gate.checks:
                yield record.model, record.gate.dtype, check


def share_of_limit(check: GateCheck) -> float:
    """Return the error of a check over its limit."""
    return math.inf if math.isnan(check.error) else check.error / check.limit


def equivalence_table(records: Sequence[Record], models: Lineup) -> pd.DataFrame:
    """Return the largest error of each equivalence check over all records, with its limit."""
    worst: dict[tuple[str, str, int, str], tuple[float, float]] = {}
    for info, dtype, check in checks_of(records):
        key = (info.name, check.name, check.length, dtype)
        error = math.inf if math.isnan(check.error) else check.error
        if key not in worst or error > worst[key][0]:
            worst[key] = (error, check.limit)
    rows = [
        [
            models.labels[model],
            name,
            TableCell(f"{length:,}", length),
            dtype,
            TableCell(f"{error:.1e}", error),
            TableCell(f"{limit:g}", limit),
            "equal" if error <= limit else "NOT EQUAL",
        ]
        for (model, name, length, dtype), (error, limit) in worst.items()
    ]
    columns = ["model", "check", "tokens", "dtype", "error", "limit", "verdict"]
    return pd.DataFrame(rows, columns=columns, dtype=object).sort_values(
        "model", kind="stable", ignore_index=True
    )


def equivalence_sentence(records: Sequence[Record]) -> str:
    """Return how many equivalence checks passed, with the one that is nearest to its limit."""
    worst: dict[tuple[object, ...], GateCheck] = {}
    for model, dtype, check in checks_of(records):
        key = (model.name, model.size, check.name, check.length, dtype)
        worst[key] = max(worst.get(key, check), check, key=share_of_limit)
    if not worst:
        return "No record here holds an equivalence check."
    nearest = max(worst.values(), key=share_of_limit)
    failed = sum(not check.passed for check in worst.values())
    count = (
        f"{failed} of {len(worst)} equivalence checks failed"
        if failed
        else f"All {len(worst)} equivalence checks passed"
    )
    return f"{count}; worst error {nearest.error:.1e}, limit {nearest.limit:.0e}."


def matching_sentence(groups: Iterable[Sequence[Record]]) -> str:
    """Return by how much the parameters of compared models differ at most, or that no two are matched.

    An experiment may allow any mismatch, so that compared models need not be matched.
    """
    shares = []
    for members in groups:
        matched = {record.model.name: record.model for record in members if is_matched(record)}
        counts = [model.num_params_nonembedding for model in matched.values()]
        if len(counts) > 1:
            shares.append((max(counts) - min(counts)) / max(counts))
    if not shares:
        return "No two models are matched in parameters."
    largest = format_percent(max(shares))
    return f"Parameters without embedding and head differ by at most {largest} between compared models."


def environment_table(records: Sequence[Record]) -> pd.DataFrame:
    """Return every fact of the environment; one that changed between records with its range or number of values."""
    facts: dict[str, list[object]] = {}
    for record in sorted(records, key=started):
        for name, value in flatten(record.environment):
            facts.setdefault(name, []).append(value)
    ceilings = [record.ceilings for record in records if record.ceilings]
    rows = []
    if ceilings:
        bandwidths = [ceiling.read_bandwidth_bytes_per_s for ceiling in ceilings]
        products = [ceiling.matmul_flops_per_s for ceiling in ceilings]
        rows.append(
            ["measured read bandwidth", range_of(bandwidths, lambda value: format_rate(value, "B/s"))]
        )
        curves = [ceiling.read_curve for ceiling in ceilings]
        rows.append(["read bandwidth by size", _by_size(curves)])
        rows.append(
            ["measured matrix product", range_of(products, lambda value: format_rate(value, "FLOP/s"))]
        )
    rows += [[name, _changing(name, values)] for name, values in facts.items()]
    return pd.DataFrame(rows, columns=["fact", "value"])


def _by_size(curves: Sequence[Sequence[ReadRate]]) -> str:
    """Return the median bandwidth by size; in words what records without one compare with."""
    found = [
        f"{format_rate(rate.bytes_per_s, 'B/s')} of {format_bytes(rate.footprint_bytes)}"
        for rate in median_curve(curves)
    ]
    without = sum(not curve for curve in curves)
    if without:
        found.append(
            f"{without} of {len(curves)} records have one bandwidth for every size, far beyond the caches"
        )
    return ", ".join(found)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, object]]:
    """Yield the leaves of nested facts with dotted names; a list is one leaf, as JSON with two decimal digits."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            rounded = [round(item, 2) if isinstance(item, float) else item for item in value]
            yield f"{prefix}{name}", json.dumps(rounded)
        else:
            yield f"{prefix}{name}", value


def _changing(name: str, values: Sequence[object]) -> str:
    """Return one value, a range of numbers, or the latest of several values with their number."""
    distinct = list(dict.fromkeys(values))
    numbers = _numbers(distinct)
    if name.endswith("_bytes") and numbers:
        return range_of(numbers, format_bytes)
    if len(distinct) == 1:
        return str(distinct[0])
    if numbers:
        return f"{min(numbers)} to {max(numbers)}"
    return f"{distinct[-1]} (the latest of {len(distinct)} values)"


def source_table(records: Sequence[Record], results: Results) -> pd.DataFrame:
    """Return the record files behind the report, with their paths below the results folder."""
    counts = Counter(results.source_of(record).path for record in records)
    rows = [[path, TableCell(str(count), count)] for path, count in sorted(counts.items())]
    return pd.DataFrame(rows, columns=["file below the results folder", "records used"], dtype=object)
