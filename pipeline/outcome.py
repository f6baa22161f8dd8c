"""What a command found, and how it fails."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from export.errors import NotTheSameError


@dataclass(frozen=True)
class Outcome:
    """What a command found, as data and as text; `failure` is the sentence that makes it fail, `unwritten` what the disk refused."""

    facts: Mapping[str, JsonValue]
    text: str
    failure: str | None = None
    interrupted: bool = False
    unwritten: OSError | None = None

    def raise_failure(self) -> None:
        """To be called once the result has been given out."""
        if self.failure is not None:
            raise NotTheSameError(self.failure if self.unwritten is None else f"{self.failure}; nor could the report be written: {self.unwritten}")
        if self.unwritten is not None:
            raise self.unwritten
        if self.interrupted:
            raise KeyboardInterrupt
