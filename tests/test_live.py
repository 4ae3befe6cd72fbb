"""Whole checks against a slower copy: the copy is slower, and what a check must say of it is judged."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import aa, live
from retbench.planning.plan import make_plan
from retbench.regress.report import CheckReport, DecidedItem
from retbench.regress.revisions import working_tree
from retbench.stats.sequential import Verdict

ROOT = Path(__file__).parents[1]

# A clock that only the script moves: by 0.1 s in each pass through the model, and by 1 ms whenever it is read.
TIME_A_STEP = """
import time, torch
from retbench.architectures.retnet import retnet_config
from retbench.models.build import build_model
from retbench.ops.linear import RowProducts
config = retnet_config(
    d_model=32, num_heads=2, value_dim=64, ffn_dim=32, num_layers=1, vocab_size=16
)
model = build_model(config, dtype=torch.float32, device="cpu", seed=0, backend="recurrent", products=RowProducts())
inner = model.features
clock_s = 0.0

def read_clock():
    global clock_s
    clock_s += 0.001
    return clock_s

def take_a_tenth(*given, **named):
    global clock_s
    clock_s += 0.1
    return inner(*given, **named)

time.perf_counter, model.features = read_clock, take_a_tenth
tokens, state = torch.zeros(1, 1, dtype=torch.int64), model.init_state(1, 8)
with torch.inference_mode():
    since = time.perf_counter()
    model(tokens, state)
    step_s = time.perf_counter() - since
    since = time.perf_counter()
    model(torch.zeros(1, 2, dtype=torch.int64), state)
    prompt_s = time.perf_counter() - since
print(step_s, prompt_s)
"""


def report(**verdicts: Verdict) -> CheckReport:
    """One on two curves of each workload named, with these verdicts."""
    items = tuple(
        DecidedItem(f"{workload} of {model}", "curve", verdict, "passed", workload=workload)
        for workload, verdict in verdicts.items()
        for model in ("retnet", "transformer")
    )
    return CheckReport("a", "b", "in turn", items)


@pytest.mark.slow
def test_a_slower_copy_takes_its_share_longer_for_a_step_and_not_for_a_prompt(tmp_path: Path) -> None:
    copy = live.slowed(working_tree(ROOT), tmp_path, 2.0)
    messages = subprocess.run(
        [copy.python, "-c", TIME_A_STEP],
        env=copy.variables,
        capture_output=True,
        text=True,
        check=True,
    )
    step_s, prompt_s = map(float, messages.stdout.split())
    assert step_s > 0.3 > prompt_s > 0.1
    assert copy.code != working_tree(ROOT).code


def test_a_slower_copy_is_found_where_both_decode_curves_are_slower() -> None:
    assert live.says_slower(report(decode="regressed", prefill="same"))
    assert not live.says_slower(report(decode="inconclusive", prefill="regressed"))
    assert not live.says_slower(report(prefill="regressed"))


def test_a_false_alarm_is_anything_that_moved() -> None:
    assert live.says_nothing(report(decode="same", prefill="inconclusive"))
    assert not live.says_nothing(report(decode="same", prefill="improved"))
    assert not live.says_nothing(report(decode="regressed", prefill="same"))
    assert not live.says_nothing(report()), "nothing was compared"


@pytest.mark.parametrize(
    "arguments", [["--checks", "0"], ["--slower", "-1"], ["--slower", "5", "--workload", "prefill"]]
)
def test_what_cannot_be_checked_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        live.main(arguments)


@pytest.mark.slow
def test_a_copy_twice_as_slow_is_found(
    tiny_experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = make_plan(str(tiny_experiment), profile="smoke", device="cpu", overrides=("threads=1",))
    monkeypatch.setattr(aa, "make_plan", lambda *_, **__: tiny)
    assert live.main(["--checks", "1", "--slower", "100", "--workload", "decode"]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["holds"]
    assert len(line["curves"]) == 2
