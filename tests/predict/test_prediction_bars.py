"""The bars of the cost model: what they list, and that a line holds both sides."""

import pytest

from benchmarks.peers.outcomes import Limit
from benchmarks.predict import __main__ as command
from benchmarks.predict import decode
from benchmarks.predict.bars import BARS
from retbench.architectures.registry import named_specs
from retbench.planning import rate_curves, step_rates
from retbench.units import MIB


def test_the_list_names_every_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(BARS)


def test_an_unknown_bar_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--only", "decode-25"]) == 2
    assert "Did you mean 'decode-25m'" in capsys.readouterr().err


def test_a_line_per_model_and_depth_holds_predicted_and_measured_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rate_curves, "_WARMUP_S", 0.0)
    monkeypatch.setattr(rate_curves, "_NUM_SAMPLES", 1)
    monkeypatch.setattr(step_rates, "footprints_of", lambda device: [4 * MIB])
    monkeypatch.setattr(decode, "WARMUP_S", 0.0)
    monkeypatch.setattr(decode, "NUM_STEPS", 1)
    monkeypatch.setattr(decode, "DEPTHS", (64, 128))
    lines = list(decode.decode(2, "1m", low=0.8, high=1.25))
    architectures = dict.fromkeys(spec.architecture for spec in named_specs().values())
    assert [line.bar for line in lines] == [
        f"decode-1m: {name} at {depth}" for name in architectures for depth in (64, 128)
    ]
    for line in lines:
        assert line.ours > 0
        assert line.theirs > 0
        assert line.ratio == pytest.approx(line.ours / line.theirs)
        assert line.limit == Limit(0.8, 1.25)
