"""The base of every typed object that is read from a file or sent between processes."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Immutable; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
