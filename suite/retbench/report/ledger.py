"""How a pair is matched, what ran on each side, and where: the tables that let a reader judge if it was fair.

Each is a frame of text with a column a model; where the sides differ, the last column says so.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from retbench.records.record import Record
from retbench.report.frames import started
from retbench.report.points import Lineup
from retbench.units import format_bytes, format_percent, format_rate

DIFFERS = "differs"
BY_DESIGN = "by architecture"

_OWN_FACTS = frozenset(
    {
        "backend",
        "chunk_size",
        "ran: prefill",
        "ran: decode",
        "ran: training",
        "ran: kv_capacity",
        "ran: kv_fill",
        "ran: kv_fill_key_std",
        "ran: kv_fill_value_std",
        "ran: state_source",
        "ran: energy_steps",
        "ran: timed_steps",
        "ran: timed_calls",
        "ran: trials",
        "ran: evaluation",
        "ran: training_fingerprint",
        "ran: chunk_size",
        "samples a round",
    }
)
"""What an architecture brings with it, or what follows from its speed: no unfairness where the sides differ."""


def match_table(records: Sequence[Record], models: Lineup) -> pd.DataFrame:
    """Shapes and parameters of the models side by side."""
    infos = {record.model.name: record.model for record in records}
    names = dict.fromkeys(
        name for info in infos.values() for name in ("architecture", "variant", *info.config)
    )
    rows = [[name, *(str(infos[model].config.get(name, "–")) for model in models.models)] for name in names]
    counts = {"parameters": "num_params", "parameters without embedding and head": "num_params_nonembedding"}
    for heading, field in counts.items():
        rows.append([heading, *(f"{getattr(infos[model], field):,}" for model in models.models)])
    return pd.DataFrame(rows, columns=["fact", *(models.labels[model] for model in models.models)])


def mismatch_sentence(records: Sequence[Record], models: Lineup) -> str:
    """How far apart the parameters of the models are, and which shapes they share."""
    infos = {record.model.name: record.model for record in records}
    if len(infos) < 2:
        return f"Only one model was measured: {', '.join(models.labels.values())}."
    counts = [info.num_params_nonembedding for info in infos.values()]
    low, high = min(counts), max(counts)
    configs = [info.config for info in infos.values()]
    same = [
        name for name, value in configs[0].items() if all(config.get(name) == value for config in configs)
    ]
    return (
        f"Parameters without embedding and head differ by {high - low:,} ({format_percent((high - low) / high)} of "
        f"the larger). The same on both sides: {', '.join(same) or 'nothing'}."
    )


def ran_table(records: Sequence[Record], models: Lineup) -> pd.DataFrame:
    """Settings and what ran, side by side, of the records of one experiment and workload; differences are flagged."""
    facts: dict[str, dict[str, list[object]]] = {}
    for record in records:
        ran = {f"ran: {name}": value for name, value in record.backend.items()}
        merged: dict[str, object] = {**record.settings, **ran}
        mine = facts.setdefault(record.model.name, {})
        for name, value in merged.items():
            plain = json.dumps(value) if isinstance(value, list | dict) else value
            mine.setdefault(name, []).append(plain)
        mine.setdefault("rounds", []).append(record.round)
        mine.setdefault("samples a round", []).extend(
            len(metric.samples) for metric in record.metrics.values() if metric.samples
        )
    present = [model for model in models.models if model in facts]
    names = list(dict.fromkeys(name for mine in facts.values() for name in mine))
    rows = []
    for name in names:
        sides = [_summary(name, facts[model].get(name, [])) for model in present]
        note = "" if len(set(sides)) == 1 else BY_DESIGN if name in _OWN_FACTS else DIFFERS
        rows.append([name, *sides, note])
    return pd.DataFrame(rows, columns=["fact", *(models.labels[model] for model in present), "difference"])


def _summary(name: str, values: Sequence[object]) -> str:
    """The values of one fact over all records of a model, in a few words."""
    if not values:
        return "–"
    if name == "rounds":
        return str(len(set(values)))
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        return "–" if distinct[0] is None else str(distinct[0])
    numbers = [value for value in distinct if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(distinct):
        return f"{min(numbers):,} to {max(numbers):,}"
    return "; ".join(str(value) for value in distinct)


def gate_table(records: Sequence[Record], models: Lineup) -> pd.DataFrame:
    """The largest error of each equality check over all records, with its limit."""
    worst: dict[tuple[str, str, int, str], tuple[float, float]] = {}
    for record in records:
        for check in record.gate.checks if record.gate else ():
            key = (record.model.name, check.name, check.length, record.gate.dtype if record.gate else "")
            error = check.error if check.error == check.error else float("inf")
            if key not in worst or error > worst[key][0]:
                worst[key] = (error, check.limit)
    rows = [
        [
            models.labels[model],
            name,
            f"{length:,}",
            dtype,
            f"{error:.1e}",
            f"{limit:.0e}",
            _verdict(error, limit),
        ]
        for (model, name, length, dtype), (error, limit) in worst.items()
    ]
    columns = ["model", "check", "tokens", "dtype", "error", "limit", "verdict"]
    return pd.DataFrame(rows, columns=columns).sort_values("model", kind="stable", ignore_index=True)


def _verdict(error: float, limit: float) -> str:
    return "equal" if error <= limit else "NOT EQUAL"


def environment_table(records: Sequence[Record]) -> pd.DataFrame:
    """Every fact of the environment; of one that changed from record to record, its range or how many values."""
    facts: dict[str, list[object]] = {}
    for record in sorted(records, key=started):
        for name, value in flatten(record.environment):
            facts.setdefault(name, []).append(value)
    ceilings = [record.ceilings for record in records if record.ceilings]
    rows = []
    if ceilings:
        bandwidths = [ceiling.read_bandwidth_bytes_per_s for ceiling in ceilings]
        products = [ceiling.matmul_flops_per_s for ceiling in ceilings]
        rows.append(["measured read bandwidth", _range(bandwidths, lambda value: format_rate(value, "B/s"))])
        rows.append(["measured matrix product", _range(products, lambda value: format_rate(value, "FLOP/s"))])
    rows += [[name, _changing(name, values)] for name, values in facts.items()]
    return pd.DataFrame(rows, columns=["fact", "value"])


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, object]]:
    """The leaves of nested facts with dotted names; lists are leaves."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _listed(value) if isinstance(value, list) else value


def _listed(values: Sequence[object]) -> str:
    """A list as JSON; what is measured in it, such as a load, to two digits."""
    return json.dumps([round(value, 2) if isinstance(value, float) else value for value in values])


def _changing(name: str, values: Sequence[object]) -> str:
    """One value, a range of numbers, or the latest of several and how many there were."""
    distinct = list(dict.fromkeys(values))
    if name.endswith("_bytes") and all(isinstance(value, int) for value in distinct):
        return _range([float(str(value)) for value in distinct], format_bytes)
    if len(distinct) == 1:
        return str(distinct[0])
    numbers = [value for value in distinct if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(distinct):
        return f"{min(numbers)} to {max(numbers)}"
    return f"{distinct[-1]} (the latest of {len(distinct)} values)"


def _range(values: Sequence[float], describe: Callable[[float], str]) -> str:
    low, high = describe(min(values)), describe(max(values))
    return low if low == high else f"{low} to {high}"
