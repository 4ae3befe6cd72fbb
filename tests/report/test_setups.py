"""What is said of how a claim's records were run."""

from typing import Any

from report.synthetic_records import CPU, Maker
from retbench.report.claim_types import Side
from retbench.report.setups import find_setups


def setup_words(failing: str | None) -> str:
    """The words of the only setup of a pair, all of whose cells of one model failed."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments["model"].name != failing:
            return arguments
        return arguments | {"status": "oom", "metrics": {}, "backend": {}}

    records = Maker(CPU, change=change).memory()
    [setup] = find_setups(records, Side(architecture="retnet"), Side(architecture="transformer"))
    return setup.words


def test_how_a_transformer_ran_is_said_where_one_did() -> None:
    assert "all key heads" in setup_words(failing=None)
    assert "all key heads" not in setup_words(failing="transformer")
    assert "all key heads" in setup_words(failing="retnet")
