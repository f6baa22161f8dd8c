"""Terminal output: results to standard output, everything else to standard error.

Under `--json` standard output holds one JSON object, whatever a library prints: while the command
runs, file descriptor 1 is redirected to standard error.
"""

import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import click


class Progress(ABC):
    """Shows the progress of a long piece of work."""

    @abstractmethod
    def advance(self, steps: int = 1) -> None:
        """Advance by this many steps."""

    @abstractmethod
    def line(self, text: str) -> None:
        """Show the latest figures, once per epoch."""


class Console:
    """The only way in which commands print.

    It keeps the result of a `--json` run until the end.
    """

    def __init__(self, json_to: int | None = None) -> None:
        self._json_to = json_to
        self._facts: dict[str, object] = {}

    @classmethod
    def for_arguments(cls, arguments: Sequence[str]) -> "Console":
        """Return the console; it is made before the arguments are parsed.

        So a mistake in the arguments is reported as JSON too.
        """
        return cls(_output_turned_to_errors() if "--json" in arguments else None)

    def result(self, facts: Mapping[str, object], text: str) -> None:
        """Print what the command found, as JSON if requested and as text otherwise.

        Call it once per command.
        """
        if self._json_to is None:
            click.echo(text)
        self._facts = dict(facts)

    def say(self, text: str) -> None:
        """Print a line of progress for the user."""
        click.echo(text, err=True)

    def error(self, text: str) -> None:
        """Print why the command fails, as one line without line breaks of its own."""
        line = "".join(sign if sign.isprintable() else " " for sign in text)  # names in a file may contain terminal control codes
        click.echo(f"{click.style('error:', fg='red', bold=True)} {' '.join(line.split())}", err=True)

    def close(self, error: Mapping[str, object] | None) -> None:
        """Under `--json`, write the one object: the result, and the error if there was one."""
        if self._json_to is not None:
            whole = self._facts if error is None else {**self._facts, "error": error}
            sys.stdout.flush()
            os.dup2(self._json_to, 1)  # back, so that a look at descriptor 1 shows whether its reader has left
            _write_all(1, (json.dumps(whole, ensure_ascii=False, default=str) + "\n").encode(errors="backslashreplace"))
            os.dup2(2, 1)  # output of libraries while the interpreter ends is not a result either

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Progress]:
        """Yield a bar on a terminal; elsewhere only lines."""
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
    """Redirect file descriptor 1 to standard error; return a descriptor of the original standard
    output."""
    sys.stdout.flush()
    original = os.dup(1)
    os.dup2(2, 1)
    return original


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
