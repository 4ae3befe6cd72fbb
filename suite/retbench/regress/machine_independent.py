"""Machine-independent checks: quantities of the code are compared with those that were accepted."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import FiniteFloat
from pydantic_core import from_json, to_json

from retbench.records.record import AnyFloat
from retbench.regress.baseline import ACCEPT, read_hashed, write_hashed
from retbench.regress.report import CheckReport, DecidedItem, Outcome
from retbench.strict import Strict

SCHEMA_VERSION = 1
FILE_NAME = "exact.json"
"""Name of the file of accepted quantities in the folder of baselines."""

ACCEPT_EXACT = f"{ACCEPT} exact"
"""Command that makes that file anew."""

Status = Literal["equal", "changed", "not compared", "not in the baseline", "not measured"]

_OUTCOMES: dict[str, Outcome] = {"equal": "passed", "changed": "failure", "not compared": "skipped"}


class Quantity(Strict):
    """One machine-independent quantity.

    Attributes:
        kind: How it is compared. A count must be equal. A peak of tensor bytes must be equal under the same minor
            version of torch, whose operators allocate differently between versions. A loss must agree within `limit`,
            relative. An error of the equivalence check must not exceed its own `limit`, and a baseline holds only its
            name. Tokens must be equal up to the first that leads by no more than `limit`.
        value: The number; None for tokens.
        limit: See `kind`.
        tokens: Greedy tokens.
        leads: Lead of each token over the next likely one, divided by the rms of the logits.
    """

    kind: Literal["count", "peak", "loss", "error", "tokens"]
    value: int | AnyFloat | None = None
    limit: FiniteFloat | None = None
    tokens: tuple[int, ...] = ()
    leads: tuple[FiniteFloat, ...] = ()

    def __str__(self) -> str:
        if self.kind == "tokens":
            return " ".join(map(str, self.tokens[:6])) + (" …" if len(self.tokens) > 6 else "")
        if self.value is None:
            return "–"
        return format(self.value, {"loss": ".12g", "error": ".1e"}.get(self.kind, ","))

    @property
    def content(self) -> Any:
        """The value or the tokens as JSON-able data; a number that is not finite is a text, as in records."""
        found = self.tokens if self.kind == "tokens" else self.value
        return from_json(to_json(found, inf_nan_mode="strings"))


Quantities = dict[str, Quantity]


class AcceptedQuantities(Strict):
    """Quantities that were accepted, and the version of torch that they came from."""

    schema_version: int = SCHEMA_VERSION
    reason: str
    torch_version: str
    quantities: Quantities


def compare_quantities(
    name: str, accepted: AcceptedQuantities, measured: Mapping[str, Quantity], torch_version: str
) -> CheckReport:
    """Compare the quantities of this code with the accepted ones in the file `name`.

    A model of which nothing was accepted yet, such as one of a user's package, must pass its equivalence checks; the
    rest of it is not compared.
    """
    minor, accepted_minor = (
        text.split("+")[0].split(".")[:2] for text in (torch_version, accepted.torch_version)
    )
    models = {one.partition("/")[0] for one in accepted.quantities}  # a name is MODEL/QUANTITY
    names = dict.fromkeys([*accepted.quantities, *measured])
    items = [
        _decide(
            one,
            accepted.quantities.get(one),
            measured.get(one),
            same_torch=minor == accepted_minor,
            is_new=one.partition("/")[0] not in models,
        )
        for one in names
    ]
    return CheckReport(
        first=f"{name} (torch {accepted.torch_version}: {accepted.reason})",
        second=f"this code (torch {torch_version})",
        method="machine-independent quantities of small models with fixed weights",
        items=tuple(items),
        quantities=True,
    )


def _decide(
    name: str, accepted: Quantity | None, measured: Quantity | None, *, same_torch: bool, is_new: bool
) -> DecidedItem:
    """Compare one quantity; of a model that `is_new`, of which nothing was accepted, only the equivalence checks."""
    status: Status
    if is_new and measured is not None and measured.kind == "error":
        accepted = Quantity(kind="error")
    expected, found = ("–" if one is None else str(one) for one in (accepted, measured))
    contents = [None if one is None else one.content for one in (accepted, measured)]
    if measured is None:
        status, note = "not measured", ""
    elif accepted is not None:
        status, note = _compare(accepted, measured, same_torch=same_torch)
        if measured.kind == accepted.kind == "error":
            expected = "–" if measured.limit is None else f"at most {measured.limit:.1e}"
            contents[0] = measured.limit
    elif is_new:
        status, note = "not compared", f"its model is not in the baseline: {ACCEPT_EXACT}"
    else:
        status, note = "not in the baseline", ""
    outcome = _OUTCOMES.get(status, "error")
    data = {
        "name": name,
        "kind": next(one.kind for one in (measured, accepted) if one is not None),
        "status": status,
        "expected": contents[0],
        "found": contents[1],
        "note": note,
    }
    return DecidedItem(name, "quantity", status, outcome, expected, found, note, data=data)


def _compare(accepted: Quantity, measured: Quantity, *, same_torch: bool) -> tuple[Status, str]:
    """Return the status of a quantity that both sides have, with a note."""
    is_equal, note = measured.value == accepted.value, ""
    match measured.kind:
        case kind if kind != accepted.kind:
            return "changed", f"was a {accepted.kind}"
        case "peak" if not same_torch:
            return "not compared", "the baseline is of another version of torch"
        case "tokens":
            return _compare_tokens(accepted, measured)
        case "error":  # of the baseline it only needs that the check was made
            value, limit = measured.value, measured.limit
            is_equal = value is not None and limit is not None and value <= limit
        case "loss" if measured.value is not None and accepted.value is not None:
            limit, change = accepted.limit or 0.0, abs(measured.value - accepted.value)
            is_equal = change <= limit * abs(accepted.value)
            note = f"change {change:.1e}, limit {limit * abs(accepted.value):.0e}"
    return "equal" if is_equal else "changed", note


def _compare_tokens(accepted: Quantity, measured: Quantity) -> tuple[Status, str]:
    """Compare tokens up to the first that leads by no more than the limit; those after it may differ."""
    limit, total = accepted.limit or 0.0, len(accepted.tokens)
    certain = next((index for index, lead in enumerate(accepted.leads) if lead <= limit), total)
    for index in range(certain):
        if measured.tokens[index : index + 1] != accepted.tokens[index : index + 1]:
            return "changed", f"from token {index} on"
    if certain == 0:
        return "not compared", "no token leads by more than the tolerance"
    note = f"{certain} of {total} tokens: the next leads by too little" if certain < total else ""
    return "equal", note


def shipped_path() -> Path:
    """Return the accepted quantities of the installed wheel, or of `results/baselines` in the checkout."""
    package = Path(str(resources.files("retbench")))
    packaged = package / "baselines" / FILE_NAME
    return packaged if packaged.is_file() else package.parents[1] / "results" / "baselines" / FILE_NAME


def write_quantities(path: Path, quantities: Quantities, torch_version: str, reason: str) -> None:
    """Accept quantities; of the errors of the equivalence check only the names are kept."""
    kept = {
        name: Quantity(kind="error") if quantity.kind == "error" else quantity
        for name, quantity in quantities.items()
    }
    accepted = AcceptedQuantities(reason=reason, torch_version=torch_version, quantities=kept)
    content: dict[str, Any] = accepted.model_dump(mode="json", exclude_defaults=True)
    write_hashed(path, {"schema_version": SCHEMA_VERSION, **content})


def read_quantities(path: Path) -> AcceptedQuantities:
    """Read accepted quantities."""
    return read_hashed(path, AcceptedQuantities, SCHEMA_VERSION, ACCEPT_EXACT)
