"""What every section of a config shares: it is frozen, strict about types, and refuses keys it does not know."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A group of options. Strict, because `epochs: "3"` or `flip: 1` is a slip that should be said, not guessed at."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)
