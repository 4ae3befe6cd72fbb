"""Conditions that the tests of all mixers share."""

import pytest

from retbench.measure import products
from tests.measure.outcomes import ROW_OUTCOMES

OUTCOMES = (*ROW_OUTCOMES, "attention_from, bfloat16", "attention_from, float64")


@pytest.fixture(autouse=True)
def _torch_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch counts the operations of its own products only, and which product a process finds faster is chance."""
    monkeypatch.setattr(products, "_found", dict.fromkeys(OUTCOMES, 0))
