"""Exact quantities against the ones committed: what must be equal is equal, or the check fails."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import FiniteFloat

from retbench.records.record import AnyFloat
from retbench.regress.baseline import read_hashed, write_hashed
from retbench.strict import Strict

SCHEMA_VERSION = 1
Status = Literal["equal", "changed", "not compared", "not in the baseline", "not measured"]

_CHANGED, _NOT_COMPARABLE, _INCONCLUSIVE = 1, 3, 4


class Quantity(Strict):
    """One exact quantity.

    Attributes:
        kind: How it is compared. A count must be equal; so must a peak of tensor bytes where torch is of the same minor
            version, for its operators allocate what they like; a loss within `limit`, relative; an error of the gate is
            held against its own `limit`, and a baseline has its name alone; tokens must be equal until one leads by
            no more than `limit`.
        value: Of all kinds but tokens.
        limit: See `kind`.
        tokens: Greedy tokens.
        leads: How far each was ahead of the next likely one, over the rms of the logits.
    """

    kind: Literal["count", "peak", "loss", "error", "tokens"]
    value: int | AnyFloat | None = None
    limit: FiniteFloat | None = None
    tokens: tuple[int, ...] = ()
    leads: tuple[FiniteFloat, ...] = ()


Quantities = dict[str, Quantity]


class ExactBaseline(Strict):
    """Quantities that were accepted, and the versions they came from."""

    schema_version: int = SCHEMA_VERSION
    reason: str
    torch_version: str
    quantities: Quantities


@dataclass(frozen=True)
class Finding:
    """One quantity compared."""

    name: str
    status: Status
    expected: str
    found: str
    note: str = ""


def compare_exact(
    baseline: ExactBaseline, quantities: Mapping[str, Quantity], torch_version: str
) -> list[Finding]:
    """Every quantity of either side."""
    return [
        _compare(
            name,
            baseline.quantities.get(name),
            quantities.get(name),
            same_torch=minor(torch_version) == minor(baseline.torch_version),
        )
        for name in dict.fromkeys([*baseline.quantities, *quantities])
    ]


def exact_exit_code(findings: list[Finding], *, strict: bool) -> int:
    """0 all equal, 1 something changed, 3 something stands on one side alone, 4 something was not compared."""
    found = {finding.status for finding in findings}
    if "changed" in found:
        return _CHANGED
    if found & {"not in the baseline", "not measured"}:
        return _NOT_COMPARABLE
    return _INCONCLUSIVE if strict and "not compared" in found else 0


def minor(version: str) -> tuple[str, ...]:
    """Major and minor version: ("2", "13") of 2.13.0+cpu."""
    return tuple(version.split("+")[0].split(".")[:2])


def _compare(name: str, expected: Quantity | None, found: Quantity | None, *, same_torch: bool) -> Finding:
    """One quantity."""
    if found is None:
        return Finding(name, "not measured", describe_quantity(expected), "–")
    if expected is None:
        return Finding(name, "not in the baseline", "–", describe_quantity(found))
    if found.kind != expected.kind:
        return Finding(
            name, "changed", describe_quantity(expected), describe_quantity(found), f"was a {expected.kind}"
        )
    if found.kind == "error":
        return _judge_error(name, found)
    texts = describe_quantity(expected), describe_quantity(found)
    if found.kind == "peak" and not same_torch:
        return Finding(name, "not compared", *texts, "the baseline is of another version of torch")
    if found.kind == "tokens":
        return _judge_tokens(name, expected, found)
    note = ""
    equal = found.value == expected.value
    if found.kind == "loss" and found.value is not None and expected.value is not None:
        change = abs(found.value / expected.value - 1)
        equal = change <= (expected.limit or 0.0)
        note = f"relative change {change:.1e}, limit {expected.limit:.0e}"
    return Finding(name, "equal" if equal else "changed", *texts, note)


def _judge_error(name: str, found: Quantity) -> Finding:
    """An error of the gate: its limit is its own, and of the baseline it only takes that the check was made."""
    within = found.value is not None and found.limit is not None and found.value <= found.limit
    limit = "–" if found.limit is None else f"at most {found.limit:.1e}"
    return Finding(name, "equal" if within else "changed", limit, describe_quantity(found))


def _judge_tokens(name: str, expected: Quantity, found: Quantity) -> Finding:
    """Tokens up to the first that led by too little: what follows it may differ."""
    texts = describe_quantity(expected), describe_quantity(found)
    sure = _num_sure(expected)
    for index in range(sure):
        if found.tokens[index : index + 1] != expected.tokens[index : index + 1]:
            return Finding(name, "changed", *texts, f"from token {index} on")
    if sure == 0:
        return Finding(name, "not compared", *texts, "no token leads by more than the tolerance")
    note = (
        f"{sure} of {len(expected.tokens)} tokens: the next leads by too little"
        if sure < len(expected.tokens)
        else ""
    )
    return Finding(name, "equal", *texts, note)


def _num_sure(quantity: Quantity) -> int:
    """Tokens before the first that leads by no more than the tolerance."""
    for index, lead in enumerate(quantity.leads):
        if lead <= (quantity.limit or 0.0):
            return index
    return len(quantity.tokens)


def describe_quantity(quantity: Quantity | None) -> str:
    """A quantity in a few characters."""
    if quantity is None or (quantity.kind == "error" and quantity.value is None):
        return "–"
    if quantity.kind == "tokens":
        return " ".join(map(str, quantity.tokens[:6])) + (" …" if len(quantity.tokens) > 6 else "")
    if quantity.kind == "loss":
        return f"{quantity.value:.12g}"
    return f"{quantity.value:.1e}" if quantity.kind == "error" else f"{quantity.value:,}"


def write_exact(path: Path, quantities: Quantities, torch_version: str, reason: str) -> None:
    """Accept quantities as what later ones are held against; of the gate's errors, that there is such a check.

    Raises:
        StorageError: the file cannot be written.
    """
    kept = {
        name: Quantity(kind="error") if quantity.kind == "error" else quantity
        for name, quantity in quantities.items()
    }
    baseline = ExactBaseline(reason=reason, torch_version=torch_version, quantities=kept)
    content: dict[str, Any] = baseline.model_dump(mode="json", exclude_defaults=True)
    write_hashed(path, {"schema_version": SCHEMA_VERSION, **content})


def read_exact(path: Path) -> ExactBaseline:
    """Read the committed quantities.

    Raises:
        RecordError: they are not there, damaged or edited, or times of runs.
        UnsupportedError: they are of a newer schema.
    """
    return read_hashed(path, ExactBaseline, SCHEMA_VERSION)
