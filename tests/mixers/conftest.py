"""Conditions that the tests of all mixers share."""

import pytest

from retbench.measure import products
from tests.measure.outcomes import ROW_OUTCOMES

OUTCOMES = (
    *ROW_OUTCOMES,
    *(f"attention_from, {what}" for what in ("bfloat16", "float64", "shared, bfloat16", "shared, float64")),
)


@pytest.fixture(autouse=True)
def _torch_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch counts the operations of its own products only, and which product a process finds faster is chance."""
    monkeypatch.setattr(products, "_found", dict.fromkeys(OUTCOMES, 0))
