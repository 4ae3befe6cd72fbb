"""The recorder of A/A rounds: a real round appended, and what is packed is what was measured."""

import json
from pathlib import Path

import pytest

from benchmarks import aa
from retbench.planning.plan import make_plan
from retbench.regress.items import MeasurementPoint
from retbench.regress.session import SessionLimits
from stats.corpus import read_corpus


def line(busy_cores: float, seconds: float) -> str:
    blocks = {
        MeasurementPoint("latency", "decode", "retnet", 1, 1024): [
            (seconds, 1.234567891 * seconds),
            (seconds, seconds),
        ]
    }
    return aa._line(blocks, busy_cores=busy_cores, code="c")


def test_what_is_packed_is_read_back(tmp_path: Path) -> None:
    source, target = tmp_path / "rounds.jsonl", tmp_path / "rounds.jsonl.gz"
    source.write_text(f"{line(0.07, 0.01)}\n{line(1.02, 0.02)}\n", encoding="utf-8")
    assert aa.main(["--rounds", "0", "--out", str(source), "--pack", str(target)]) == 0
    point = MeasurementPoint("latency", "decode", "retnet", 1, 1024)
    found = {loaded: rounds[0][point] for loaded, rounds in read_corpus(target, num_blocks=1).items()}
    assert found == {False: pytest.approx((0.01, 0.012346)), True: pytest.approx((0.02, 0.024691))}
    (both,) = read_corpus(target)[False]
    assert both[point] == pytest.approx((0.01, 0.01 * 1.2346**0.5))
    before = target.read_bytes()
    aa.pack(source, target)
    assert target.read_bytes() == before


def test_nothing_to_pack_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert aa.main(["--rounds", "0", "--out", str(tmp_path / "none"), "--pack", str(tmp_path / "x")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_a_negative_number_of_rounds_is_refused() -> None:
    with pytest.raises(SystemExit, match="2"):
        aa.main(["--rounds", "-1"])


@pytest.mark.slow
def test_rounds_are_appended_as_they_are_measured(
    tmp_path: Path, tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = make_plan(str(tiny_experiment), profile="smoke", device="cpu", limit=1, overrides=("threads=1",))
    monkeypatch.setattr(aa, "make_plan", lambda *_, **__: tiny)
    out = tmp_path / "folder" / "rounds.jsonl"
    assert aa.main(["--rounds", "1", "--load", "--out", str(out)]) == 0
    (entry,) = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert entry["busy_cores"] > 0.5
    assert [point[:4] for point in entry["points"]] == [
        ["decode", "retnet", 1, 64],
        ["decode", "transformer", 1, 64],
    ]
    assert all(len(point[4]) == SessionLimits().blocks for point in entry["points"])
    assert all(0 < seconds < 10 for point in entry["points"] for pair in point[4] for seconds in pair)
