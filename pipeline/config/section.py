"""The base of every section: frozen, strict about types, and without unknown keys."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A group of options.

    It is strict because `epochs: "3"` or `flip: 1` is a slip to report, not to guess at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)
