"""Machine-independent checks: equal on every machine, and failing where the code computes or needs something else."""

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from retbench.architectures import costs
from retbench.architectures.matching import resolve_model
from retbench.architectures.registry import named_specs
from retbench.cli import app
from retbench.errors import RecordError
from retbench.measure import products
from retbench.mixers.retention import module as retention_module
from retbench.regress import quantities as exact
from retbench.regress.baseline import content_hash
from retbench.regress.machine_independent import (
    Quantities,
    Quantity,
    compare_quantities,
    read_quantities,
    shipped_path,
    write_quantities,
)
from retbench.regress.quantities import build, fill_weights, measure_quantities, read_text
from retbench.regress.report import DecidedItem

MODELS = {name: spec for name, spec in named_specs().items() if name in {"retnet", "transformer"}}


@pytest.fixture(scope="session")
def quantities() -> Quantities:
    return measure_quantities(MODELS)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quantities: Quantities) -> Path:
    """A baseline of two models, and a command that is given what was measured of these once."""
    monkeypatch.setattr(exact, "measure_quantities", lambda specs: quantities)
    monkeypatch.setattr("retbench.architectures.registry.named_specs", lambda: MODELS)
    write_quantities(tmp_path / "exact.json", quantities, torch.__version__, "for tests")
    return tmp_path / "exact.json"


def check(baseline: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["check", "--baseline", str(baseline), *words])


def compare(
    baseline: Path, quantities: Quantities, torch_version: str = torch.__version__
) -> dict[str, DecidedItem]:
    report = compare_quantities("exact.json", read_quantities(baseline), quantities, torch_version)
    return {item.name: item for item in report.items}


def test_what_is_committed_is_what_the_code_computes(quantities: Quantities) -> None:
    accepted = read_quantities(shipped_path())
    assert {name.partition("/")[0] for name in accepted.quantities} <= named_specs().keys()
    report = compare_quantities("exact.json", accepted, quantities, torch.__version__)
    findings = [item for item in report.items if item.name.partition("/")[0] in MODELS]
    assert [one for one in findings if one.verdict not in {"equal", "not compared"}] == []
    assert {one.name for one in findings if one.verdict == "not compared"} <= {
        name for name, quantity in quantities.items() if quantity.kind == "peak"
    }


def test_weights_are_those_of_the_hash_and_no_generator() -> None:
    """The first numbers of a tensor, computed once by hand from SHAKE-256."""
    layer = torch.nn.Linear(3, 2, bias=True, dtype=torch.float64)
    fill_weights(layer)
    import hashlib

    digest = hashlib.shake_256(b"weight (2, 3)").digest(4)
    expected = int.from_bytes(digest, "little") / 2**31 - 1
    assert float(layer.weight.detach()[0, 0]) == expected  # times sqrt(3 / 3)
    before = layer.weight.detach().clone()
    torch.manual_seed(1)
    fill_weights(layer)
    assert torch.equal(layer.weight.detach(), before)
    assert float(layer.bias.detach().abs().max()) <= 0.25


def test_every_weight_counts() -> None:
    """Weights so small or alike that a part of the model does nothing would guard nothing."""
    for spec in MODELS.values():
        config = resolve_model(spec, exact.SIZE, vocab_size=exact.VOCAB_SIZE)
        model = build(config, spec, torch.float64)
        text = read_text()[:, :64]
        with torch.no_grad():
            before = model(text)
            for name, parameter in model.named_parameters():
                saved = parameter.clone()
                parameter.mul_(1.01)
                assert float((model(text) - before).abs().max()) > 1e-6, name
                parameter.copy_(saved)


def test_the_method_that_is_faster_here_does_not_change_them(
    quantities: Quantities, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = products.row_products(torch.device("cpu"), torch.float32)
    others = {
        "attention_from, float32": 0 if found.attention_from.alone else 1,
        "attention_from, shared, float32": 0 if found.attention_from.shared else 1,
        "slice_width": 0 if found.slice_width else 1,
        "batches": not found.batches,
        "onednn_rows": 0 if found.onednn_rows else 32,
        "onednn_prompts": not found.onednn_prompts,
    }
    monkeypatch.setattr(products, "_found", others)
    again = measure_quantities({"retnet": MODELS["retnet"]})
    assert again == {name: value for name, value in quantities.items() if name.startswith("retnet/")}


def test_counted_and_analytical_costs_agree(quantities: Quantities) -> None:
    for name, spec in MODELS.items():
        config = resolve_model(spec, exact.SIZE, vocab_size=exact.VOCAB_SIZE)
        assert quantities[f"{name}/parameters"].value == costs.num_params(config)
        state = costs.state_bytes(config, "float32", 1, exact.STEP_DEPTH + 2)
        assert quantities[f"{name}/bytes of a state of {exact.STEP_DEPTH + 2}"].value == state


def test_the_command_passes_on_the_code_as_it_is(few: Path, quantities: Quantities, tmp_path: Path) -> None:
    done = check(few, "--format", "json", "--out", str(tmp_path / "out"))
    assert done.exit_code == 0
    data = json.loads(done.stdout)
    assert {finding["status"] for finding in data["findings"]} == {"equal"}
    by_name = {finding["name"]: finding for finding in data["findings"]}
    for name, quantity in quantities.items():
        finding = by_name[name]
        value = list(quantity.tokens) if quantity.kind == "tokens" else quantity.value
        limit = quantity.limit if quantity.kind == "error" else value
        assert (finding["kind"], finding["expected"], finding["found"]) == (quantity.kind, limit, value)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"exact.md", "exact-report.json", "exact-junit.xml"}
    suite = ElementTree.parse(tmp_path / "out" / "exact-junit.xml").getroot()
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")


def changed_decay(patch: pytest.MonkeyPatch) -> None:
    """Every form forgets a little faster, so that the equivalence check passes and the loss changes."""
    original = retention_module.decay_schedule
    patch.setattr(retention_module, "decay_schedule", lambda *arguments: 1.001 * original(*arguments))


def changed_bytes(patch: pytest.MonkeyPatch) -> None:
    """An analytical cost counts one byte more."""
    original = costs.decode_bytes
    patch.setattr(costs, "decode_bytes", lambda *arguments: original(*arguments) + 1)


def changed_workspace(patch: pytest.MonkeyPatch) -> None:
    """A step holds a copy of what it needs."""
    from retbench.models.decoder import Decoder

    original = Decoder.features

    def wasteful(self: Any, *arguments: Any, **named: Any) -> Any:
        kept = [torch.zeros(4096) for _ in range(2)]
        found = original(self, *arguments, **named)
        del kept
        return found

    patch.setattr(Decoder, "features", wasteful)


CHANGES = {
    changed_decay: {"float64 nats per token"},
    changed_bytes: {"1m decode_bytes at 512", "6.7b decode_bytes at 8192"},
    changed_workspace: {"peak tensor bytes of a decode step at 512", "peak tensor bytes of a prompt of 512"},
}
"""Changes of the code, with the quantities that each of them changes."""


def test_each_change_of_the_code_fails(
    tmp_path: Path, quantities: Quantities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All changes are made at once, because they concern different quantities."""
    only = {"retnet": MODELS["retnet"]}
    monkeypatch.setattr("retbench.architectures.registry.named_specs", lambda: only)
    mine = {name: one for name, one in quantities.items() if name.startswith("retnet/")}
    write_quantities(tmp_path / "exact.json", mine, torch.__version__, "for tests")
    for change in CHANGES:
        change(monkeypatch)
    done = check(tmp_path / "exact.json", "--format", "json")
    assert done.exit_code == 1
    found = {one["name"] for one in json.loads(done.stdout)["findings"] if one["status"] == "changed"}
    assert found - {"retnet/greedy tokens"} == {f"retnet/{name}" for name in set().union(*CHANGES.values())}


@pytest.mark.parametrize(
    ("name", "changed", "status"),
    [
        ("parameters", {"value": 1}, "changed"),
        ("float64 nats per token", {"value": 6.0}, "changed"),
        ("float32 decode = chunkwise, 513 tokens", {"value": 1.0}, "changed"),
        ("float32 decode = chunkwise, 513 tokens", {"value": float("nan")}, "changed"),
        ("greedy tokens", {"tokens": (1, 2, 3)}, "changed"),
        ("parameters", {"kind": "peak"}, "changed"),
    ],
)
def test_every_kind_of_quantity_can_fail(
    few: Path, quantities: Quantities, name: str, changed: dict[str, Any], status: str
) -> None:
    full = f"retnet/{name}"
    one = quantities[full].model_copy(update=changed)
    found = compare(few, quantities | {full: one})[full]
    assert found.verdict == status
    json.dumps(found.data, allow_nan=False)


def test_a_loss_may_differ_by_rounding_and_no_more(few: Path, quantities: Quantities) -> None:
    name = "retnet/float64 nats per token"
    value = float(quantities[name].value or 0)
    for factor, status in ((1 + 1e-11, "equal"), (1 + 1e-8, "changed")):
        moved = quantities[name].model_copy(update={"value": value * factor})
        assert compare(few, quantities | {name: moved})[name].verdict == status


def test_tokens_count_until_one_is_hardly_ahead(tmp_path: Path) -> None:
    def tokens(*values: int, leads: tuple[float, ...] = (0.5, 0.4, 0.001, 0.6)) -> Quantities:
        return {"a/greedy tokens": Quantity(kind="tokens", tokens=values, leads=leads, limit=0.002)}

    write_quantities(tmp_path / "exact.json", tokens(1, 2, 3, 4), "2.13.0", "for tests")
    for found, status in (((1, 2, 9, 9), "equal"), ((1, 9, 3, 4), "changed"), ((1,), "changed")):
        assert compare(tmp_path / "exact.json", tokens(*found))["a/greedy tokens"].verdict == status
    write_quantities(tmp_path / "exact.json", tokens(1, 2, 3, 4, leads=(0.001,) * 4), "2.13.0", "for tests")
    assert compare(tmp_path / "exact.json", tokens(9, 9, 9, 9))["a/greedy tokens"].verdict == "not compared"


def test_peaks_of_another_torch_are_not_compared_and_said_so(few: Path, quantities: Quantities) -> None:
    found = compare(few, quantities, "1.0.0")
    peaks = {name for name, quantity in quantities.items() if quantity.kind == "peak"}
    assert {name for name, one in found.items() if one.verdict == "not compared"} == peaks
    patched = read_quantities(few).model_copy(update={"torch_version": "1.0.0"})
    write_quantities(few, patched.quantities, "1.0.0", "older")
    assert check(few).exit_code == 0
    assert check(few, "--strict").exit_code == 4


def test_a_quantity_on_one_side_alone_is_not_passed_over(few: Path, quantities: Quantities) -> None:
    without = {name: one for name, one in quantities.items() if name != "retnet/parameters"}
    assert compare(few, without)["retnet/parameters"].verdict == "not measured"
    write_quantities(few, without, torch.__version__, "one is missing")
    done = check(few)
    assert done.exit_code == 3
    assert "not in the baseline  retnet/parameters" in done.stdout


def test_a_model_of_which_nothing_was_accepted_need_only_pass_its_equivalence_checks(
    few: Path, quantities: Quantities
) -> None:
    known = {name: one for name, one in quantities.items() if not name.startswith("retnet/")}
    write_quantities(few, known, torch.__version__, "without RetNet")
    found = compare(few, quantities)
    verdicts = {
        quantities[name].kind: one.verdict for name, one in found.items() if name.startswith("retnet/")
    }
    assert verdicts["error"] == "equal"
    assert {verdict for kind, verdict in verdicts.items() if kind != "error"} == {"not compared"}
    assert check(few).exit_code == 0
    name = next(
        name for name, one in quantities.items() if one.kind == "error" and name.startswith("retnet/")
    )
    broken = quantities | {name: quantities[name].model_copy(update={"value": 1.0})}
    assert compare(few, broken)[name].verdict == "changed"


def test_an_equality_check_that_is_no_longer_made_is_reported(few: Path, quantities: Quantities) -> None:
    name = next(name for name, one in quantities.items() if one.kind == "error")
    without = {key: one for key, one in quantities.items() if key != name}
    assert compare(few, without)[name].verdict == "not measured"
    assert check(few).exit_code == 0


def test_logits_that_are_not_finite_fail_and_no_crash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quantities: Quantities
) -> None:
    original = retention_module.decay_schedule
    path = tmp_path / "exact.json"
    only = {"retnet": MODELS["retnet"]}
    mine = {name: one for name, one in quantities.items() if name.startswith("retnet/")}
    write_quantities(path, mine, torch.__version__, "for tests")
    monkeypatch.setattr(
        retention_module, "decay_schedule", lambda *arguments: math.nan * original(*arguments)
    )
    found = compare(path, measure_quantities(only))
    assert found["retnet/float64 nats per token"].verdict == "changed"
    assert found["retnet/greedy tokens"].verdict == "changed"


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (lambda path: path.write_text(path.read_text()[:-50]), 2, "not a whole JSON file"),
        (lambda path: path.write_text(path.read_text().replace("for tests", "by hand")), 2, "edited by hand"),
        (lambda path: path.unlink(), 2, "cannot be read"),
        (lambda path: _rewrite(path, {"schema_version": 7}), 3, "schema_version is 7"),
        (lambda path: _rewrite(path, {"quantities": 1}), 2, "field 'quantities'"),
    ],
    ids=["truncated", "edited", "absent", "newer", "wrong"],
)
def test_a_wrong_baseline_is_refused_before_anything_is_measured(
    few: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], code: int, words: str
) -> None:
    monkeypatch.setattr("retbench.architectures.registry.named_specs", lambda: pytest.fail("measured"))
    damage(few)
    done = check(few)
    assert done.exit_code == code
    assert words in done.stderr


def _rewrite(path: Path, change: dict[str, Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | change
    content.pop("content_sha256")
    path.write_text(json.dumps({"content_sha256": content_hash(content), **content}), encoding="utf-8")


@pytest.mark.parametrize("content", [None, "{}", '{"schema_version": 1}'])
def test_quantities_that_cannot_be_read_name_the_command_that_makes_them(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "exact.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(RecordError, match="`retbench baseline accept exact`"):
        read_quantities(path)


def test_accepting_takes_a_reason(few: Path, tmp_path: Path) -> None:
    words = ["baseline", "accept", "exact", "--folder", str(tmp_path / "new"), "--reason"]
    assert CliRunner().invoke(app, [*words, ""]).exit_code == 2
    done = CliRunner().invoke(app, [*words, "a wider decay"])
    assert done.exit_code == 0
    path = tmp_path / "new" / "exact.json"
    assert read_quantities(path).reason == "a wider decay"
    shown = CliRunner().invoke(app, ["baseline", "show", str(path)]).stdout
    assert "a wider decay" in shown
    assert "retnet/parameters" in shown
    data = json.loads(CliRunner().invoke(app, ["baseline", "show", str(path), "--json"]).stdout)
    assert data["quantities"]["retnet/parameters"] == {"kind": "count", "value": 849536}
    assert check(path).exit_code == 0


def test_an_unknown_format_is_refused(few: Path) -> None:
    done = check(few, "--format", "yaml")
    assert done.exit_code == 2
    assert "unknown format" in done.stderr
