"""What makers state of devices, as data: for a prediction where there is no such device to measure."""

import tomllib
from functools import cache
from importlib import resources

from pydantic import Field, RootModel, ValidationError

from retbench.config.experiment import Dtype
from retbench.errors import ConfigError, UnsupportedError, unknown_name
from retbench.records.record import Ceilings
from retbench.strict import Strict, explain


class Datasheet(Strict):
    """One device."""

    title: str
    source: str
    memory_bytes: int = Field(ge=1)
    read_bandwidth_bytes_per_s: float = Field(gt=0)
    matmul_flops_per_s: dict[Dtype, float]
    """Dense products, by dtype."""

    def ceilings(self, dtype: str) -> Ceilings:
        """The stated ceilings at a dtype; UnsupportedError where the datasheet has none."""
        for name, flops in self.matmul_flops_per_s.items():
            if name == dtype:
                return Ceilings(
                    read_bandwidth_bytes_per_s=self.read_bandwidth_bytes_per_s, matmul_flops_per_s=flops
                )
        raise UnsupportedError(
            f"the datasheet of {self.title} has no rate of products in {dtype}. "
            f"Give one of {', '.join(self.matmul_flops_per_s)}."
        )


class _Datasheets(RootModel[dict[str, Datasheet]]):
    """The file."""


@cache
def load_datasheets() -> dict[str, Datasheet]:
    """Every device that there is a datasheet of, by name; ConfigError where the file is not what it should be."""
    text = (resources.files("retbench.papers") / "datasheets.toml").read_text(encoding="utf-8")
    try:
        return _Datasheets.model_validate(tomllib.loads(text)).root
    except ValidationError as error:
        raise ConfigError(explain(error, _Datasheets, "datasheets.toml")) from error


def find_datasheet(name: str) -> Datasheet:
    """The datasheet of a device; ConfigError with a suggestion when there is none."""
    sheets = load_datasheets()
    if name not in sheets:
        raise unknown_name("device", name, [*sheets, "cpu", "cuda"], where="--device")
    return sheets[name]
