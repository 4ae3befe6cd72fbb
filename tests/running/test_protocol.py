from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.errors import RetbenchError, UnsupportedError
from retbench.planning.plan import Plan
from retbench.records.record import Ceilings, Gate, GateCheck
from retbench.running.protocol import (
    Checked,
    Done,
    Ended,
    Failed,
    Hello,
    Job,
    Measured,
    Message,
    Refused,
    RunInfo,
    Started,
    Streamed,
    decode,
    encode,
)

GATE = Gate(
    passed=True, dtype="float32", checks=(GateCheck(name="a = b", length=17, error=1e-6, limit=1e-4),)
)
RUN = RunInfo(run_id="r", experiment="e", profile="p", command="retbench run e", code_revision="0+src.1")


@pytest.mark.parametrize(
    "message",
    [
        Hello(environment={"machine": "m", "versions": {"torch": "2"}}),
        Checked(gate=GATE),
        Streamed(num_tokens=1, total_tokens=3),
        Refused(cells=(0, 2), status="oom", error="no room\nfor it"),
        Started(index=4),
        Done(index=4, status="failed", error="ü"),
        Measured(ceilings=Ceilings(read_bandwidth_bytes_per_s=1.5, matmul_flops_per_s=2.5)),
        Failed(kind="StorageError", message="full"),
        Ended(),
    ],
)
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    sent = encode(message)
    assert sent.startswith(b"\n")  # whatever was printed before without an end of line stays apart
    assert sent.endswith(b"\n")
    assert sent.strip().count(b"\n") == 0
    assert decode(sent.strip()) == message


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("UnsupportedError", UnsupportedError),
        ("RetbenchError", RetbenchError),
        ("KernelsMissing", RetbenchError),  # of a user's package, or of another revision
        ("Iterable", RetbenchError),
        ("shown", RetbenchError),
    ],
)
def test_a_workers_error_is_raised_as_what_it_was(kind: str, expected: type[RetbenchError]) -> None:
    error = Failed(kind=kind, message="no kernel. Install one.").error()
    assert type(error) is expected
    assert str(error) == "no kernel. Install one."


@given(st.binary(max_size=200))
def test_noise_is_no_message(noise: bytes) -> None:
    assert decode(noise) is None


@pytest.mark.parametrize("line", [b'{"event": "unheard_of"}', b'{"event": "ended", "more": 1}', b"[]", b"17"])
def test_json_that_is_no_message_is_noise(line: bytes) -> None:
    assert decode(line) is None


def test_a_job_survives_the_pipe(plan_of: Callable[..., Plan]) -> None:
    job = Job(
        task="measure",
        run=RUN,
        cells=plan_of().cells,
        round=2,
        gate=GATE,
        records_path=Path("/r/a.jsonl"),
        states_dir=Path("/r/.states"),
        parent_pid=7,
    )
    assert Job.model_validate_json(job.model_dump_json()) == job
