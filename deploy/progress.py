"""What a command shows while it runs, and how it ends: progress, and its result as data and text.

Interfaces and plain data; the terminal itself belongs to the command line.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pydantic import JsonValue

from export.errors import NotTheSameError

Item = TypeVar("Item")


class Progress(Protocol):
    """Shows the progress of a long piece of work."""

    def advance(self, steps: int = 1) -> None: ...

    def line(self, text: str) -> None: ...


class Console(Protocol):
    """Shows what a command is doing."""

    def say(self, text: str) -> None: ...

    def progress(self, title: str, total: int) -> AbstractContextManager[Progress]: ...


def shown(console: Console, items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Pass items on, and show how many have been passed."""
    with console.progress(what, total) as progress:
        for item in items:
            yield item
            progress.advance()


def comparing(console: Console, num_batches: int) -> Callable[[Iterable[Item]], Iterator[Item]]:
    """What shows a comparison while batches pass."""
    return lambda batches: shown(console, batches, "comparing", num_batches)


@dataclass(frozen=True)
class Outcome:
    """What a command found, as data and as text.

    `failure` is the sentence that makes it fail; `unwritten` is the error of a report that could
    not be written.
    """

    facts: Mapping[str, JsonValue]
    text: str
    failure: str | None = None
    interrupted: bool = False
    unwritten: OSError | None = None

    def raise_failure(self) -> None:
        """Raise the failure; call this after the result has been printed."""
        if self.failure is not None:
            raise NotTheSameError(self.failure if self.unwritten is None else f"{self.failure}; nor could the report be written: {self.unwritten}")
        if self.unwritten is not None:
            raise self.unwritten
        if self.interrupted:
            raise KeyboardInterrupt
