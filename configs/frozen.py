"""Base class of configurations and of stored records."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of what is read from files: immutable, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
