"""What goes to the terminal: results to standard output, everything else to standard error.

Under `--json` standard output holds one JSON object, whatever a library prints: file descriptor 1 is turned to standard
error for as long as the command runs.
"""

import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import click


class Progress(ABC):
    """How far a long piece of work is."""

    @abstractmethod
    def advance(self, steps: int = 1) -> None:
        """So many steps more are done."""

    @abstractmethod
    def line(self, text: str) -> None:
        """The latest figures, once an epoch."""


class Console:
    """The one way by which commands speak; keeps the result of a `--json` run until its end."""

    def __init__(self, json_to: int | None = None) -> None:
        self._json_to = json_to
        self._facts: dict[str, object] = {}

    @classmethod
    def for_arguments(cls, arguments: Sequence[str]) -> "Console":
        """Known before the arguments are parsed, so that a mistake in them is reported as JSON too."""
        return cls(_output_turned_to_errors() if "--json" in arguments else None)

    def result(self, facts: Mapping[str, object], text: str) -> None:
        """What the command found: as JSON where that was asked for, else as text. Once a command."""
        if self._json_to is None:
            click.echo(text)
        self._facts = dict(facts)

    def say(self, text: str) -> None:
        """A line for whoever watches."""
        click.echo(text, err=True)

    def error(self, text: str) -> None:
        """The line that says why the command fails, without line breaks of its own."""
        line = "".join(sign if sign.isprintable() else " " for sign in text)  # names in a file may hold what moves a terminal
        click.echo(f"{click.style('error:', fg='red', bold=True)} {' '.join(line.split())}", err=True)

    def close(self, error: Mapping[str, object] | None) -> None:
        """Under `--json`, write the one object: the result, and the error where there was one."""
        if self._json_to is not None:
            whole = self._facts if error is None else {**self._facts, "error": error}
            sys.stdout.flush()
            os.dup2(self._json_to, 1)  # back, so that whoever looks at descriptor 1 sees whether its reader has left
            _write_all(1, (json.dumps(whole, ensure_ascii=False, default=str) + "\n").encode(errors="backslashreplace"))
            os.dup2(2, 1)  # what libraries print while the interpreter ends is no result either

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Progress]:
        """A bar on a terminal; elsewhere only the lines."""
        if not _is_terminal():
            yield _Lines(title)
            return
        from pipeline.cli.bar import bar

        with bar(title, total) as shown:
            yield shown


class _Lines(Progress):
    def __init__(self, title: str) -> None:
        self.title = title

    def advance(self, steps: int = 1) -> None:
        return

    def line(self, text: str) -> None:
        click.echo(f"{self.title}: {text}", err=True)


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _output_turned_to_errors() -> int:
    """Send file descriptor 1 to standard error; returns where standard output was."""
    sys.stdout.flush()
    original = os.dup(1)
    os.dup2(2, 1)
    return original


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
