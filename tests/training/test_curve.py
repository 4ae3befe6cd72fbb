from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from retbench.training.curve import CurvePoint, write_curve
from tests.training.conftest import read_curve

numbers = st.floats(allow_nan=False)
points = st.builds(
    CurvePoint,
    step=st.integers(0),
    num_tokens=st.integers(0),
    **dict.fromkeys(
        ("train_loss_nats", "validation_loss_nats", "learning_rate", "grad_norm", "tokens_per_s"), numbers
    ),
)


@given(st.lists(points))
def test_a_curve_reads_back_exactly(curve: list[CurvePoint]) -> None:
    with TemporaryDirectory() as folder:
        write_curve(Path(folder) / "curve.csv", curve)
        assert read_curve(Path(folder) / "curve.csv") == curve
        assert [path.name for path in Path(folder).iterdir()] == ["curve.csv"]
