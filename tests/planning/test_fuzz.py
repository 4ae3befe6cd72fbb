"""Experiment files and `--set` of any content: there is a plan with estimates, or an error says what is wrong."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retbench.config.experiment_files import list_experiments
from retbench.errors import RetbenchError
from retbench.planning.plan import make_plan
from retbench.records.record import Ceilings
from retbench.running import estimates

LONG = 10_000
BASES = tuple(
    list_experiments()[name].read_text(encoding="utf-8") for name in ("latency", "memory", "throughput")
)
LINES = sorted({line for text in BASES for line in text.splitlines() if line and not line.startswith("#")})
KEYS = sorted({line.partition("=")[0].strip() for line in LINES if "=" in line})
NAMES = ["a/b", "../up", "/etc", "..", "", " ", "-x", "x" * 5000, "\x1b[2J", "\ud800", "é", "a.b", "'", '"']
VALUES = [
    *("0", "-1", "1", "2", "true", "0.5", "1e300", "-1e300", "inf", "nan", "16777216", "16777217"),
    *(str(number) for number in (10**9, 10**18, 2**63 - 1, 2**63, 2**64, 10**30)),
    *("9" * 5000, "[" * 1000, "[" * 70 + "]" * 70, "{a=" * 70 + "1" + "}" * 70, "[]", "{}", "[[1]]"),
    *("[1, 2]", "[1000000000000000000]", "['a', 1]", "{a = 1}", "1979-05-27T07:32:00Z", "07:32:00"),
    *('"retnet"', '"../../x"', '"\\u0000"', "'\x1b[2J'", f'"{"x" * 5000}"', '"1m"', '"70b"', '"float64"'),
    *('"chunkwise"', '["retention"]', '[{mixer = "attention", num_kv_heads = 7}]', "bare", "\udcff", "="),
]
PATHS = [
    *(
        "rounds",
        "seed",
        "threads",
        "warmup_s",
        "min_steps",
        "timeout_s",
        "memory_limit_bytes",
        "size",
        "dtype",
    ),
    *("workloads.decode.context_len", "workloads.decode.batch_size", "workloads.largest_batch.context_len"),
    *("models.retnet.ffn_dim", "models.retnet.chunk_size", "models.retnet.head_dim", "models.retnet.variant"),
    *("models.retnet.pattern", "models.retnet.checkpoint", "models.retnet.backend", "models.x", "trained_by"),
    *(
        "training.num_tokens",
        "training.sizes",
        "training",
        "workloads",
        "models",
        "profiles",
        "allow_mismatch",
    ),
]


@st.composite
def experiment_files(draw: st.DrawFn) -> str:
    """A shipped file in which some lines are replaced, doubled, removed, or of any content."""
    lines = draw(st.sampled_from(BASES)).splitlines()
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(lines) - 1))
        key, sign, _ = lines[place].partition("=")
        name = draw(st.sampled_from(NAMES))
        lines[place] = draw(
            st.one_of(
                st.sampled_from([f"{key}{sign}{value}" if sign else value for value in VALUES]),
                st.sampled_from([f"{other} = {value}" for other in KEYS for value in VALUES[:12]]),
                st.sampled_from(
                    [f'[models."{name}"]', f'[profiles."{name}"]', f"[{name}]", f'"{name}" = 1', ""]
                ),
                st.sampled_from(LINES),
                st.text(max_size=40),
            )
        )
    return "\n".join(lines)


items = st.builds(
    "{}={}".format,
    st.one_of(st.sampled_from(PATHS), st.sampled_from(NAMES), st.text(max_size=30)),
    st.one_of(st.sampled_from(VALUES), st.text(max_size=30), st.integers().map(str), st.floats().map(str)),
)


def plan_and_estimate(path: str, overrides: list[str]) -> None:
    """Nothing but an error of this package may be raised, with a message that a terminal can show."""
    try:
        plan = make_plan(path, profile="smoke", device="cpu", overrides=overrides)
        assert len({cell.model_dump_json() for cell in plan.cells}) == len(plan.cells)
        assert plan.num_measurements
        estimates.estimate(plan)
    except RetbenchError as error:
        message = str(error)
        assert message.replace("\n", "").replace("\xa0", "").isprintable(), ascii(message)
        assert len(message) < 20_000


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "mutant.toml"


@pytest.fixture(autouse=True)
def _no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings = Ceilings(read_bandwidth_bytes_per_s=1e10, matmul_flops_per_s=1e11)
    monkeypatch.setattr(estimates, "_measure_ceilings", lambda _plan: (ceilings, {}))


def check_file(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    plan_and_estimate(str(file), [])


def check_overrides(overrides: list[str]) -> None:
    plan_and_estimate("latency", overrides)


some = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
many = settings(some, max_examples=LONG)
overrides = st.lists(items, min_size=1, max_size=2)

test_no_experiment_file_gives_a_traceback = some(given(text=experiment_files())(check_file))
test_no_override_gives_a_traceback = some(given(overrides=overrides)(check_overrides))
test_no_experiment_file_of_many = pytest.mark.slow(many(given(text=experiment_files())(check_file)))
test_no_override_of_many = pytest.mark.slow(many(given(overrides=overrides)(check_overrides)))
