"""Base class of the sections of a configuration."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a configuration: it does not change once it is read, and knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
