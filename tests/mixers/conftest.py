"""Conditions that the tests of all mixers share."""

import pytest

from retbench.measure import products
from tests.measure.outcomes import ROW_OUTCOMES


@pytest.fixture(autouse=True)
def _torch_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch counts the operations of its own products only, and which product a process finds faster is chance."""
    monkeypatch.setattr(products, "_found", dict.fromkeys(ROW_OUTCOMES, 0))
