"""Runs `pipeline` commands in this process, without the seconds that importing torch takes.

The shell is the same as that of the installed command.
"""

import os
from dataclasses import dataclass

import pytest

from pipeline.cli import group
from pipeline.cli.console import Console
from pipeline.cli.ending import exit_code_of


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says why it failed. A traceback or second line is itself a failure."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


def pipeline(capfd: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """Run a command and catch what it writes."""
    capfd.readouterr()
    typed = [str(each) for each in arguments]
    standard_output = os.dup(1)  # a command with --json leaves it redirected to standard error

    def run() -> None:
        with group.make_context("pipeline", typed, obj=console) as context:
            group.invoke(context)

    console = Console.for_arguments(typed)
    try:
        code = exit_code_of(run, console)
    finally:
        os.dup2(standard_output, 1)
        os.close(standard_output)
    out, err = capfd.readouterr()
    return Done(code, out, err)
