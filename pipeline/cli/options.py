"""The arguments and options that several commands share, so that each reads the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.console import Console

if TYPE_CHECKING:
    from pipeline.run_request import EngineExportRequest, RunRequest

as_json = click.option(
    "--json", is_flag=True, expose_value=False, help="One JSON object on standard output, all else on standard error."
)  # read by `Console.for_arguments`, before the arguments are parsed

config = click.argument("config", type=click.Path(path_type=Path))

out = click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="The run folder.  [default: runs/CONFIG's name]")

overrides = click.option("--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override a value of the config. Repeatable.")

required = click.option(
    "--require", "required", multiple=True, metavar="RUNTIME", help="Fail with exit code 4 where this runtime cannot run. Repeatable."
)

required_or_bitwise = click.option(
    "--require",
    "required",
    multiple=True,
    metavar="RUNTIME|bitwise",
    help="Fail with exit code 4 where this runtime cannot run; 'bitwise': with 3 where a bit differs. Repeatable.",
)

resume = click.option("--resume/--fresh", default=None, help="Continue the run that is in the folder, or replace it.")

dry_run = click.option("--dry-run", is_flag=True, help="Print what would be done, and change nothing.")


def carry_out(request: RunRequest | EngineExportRequest, console: Console, *, dry_run: bool) -> None:
    """Refuse what needs no torch to be refused, before torch is imported; then do what was requested, or only say what that would be."""
    request.require_possible()
    from deploy.runners.runtimes import require_torch

    require_torch("this command")
    from pipeline import run

    outcome = run.dry_run(request, console) if dry_run else run.carry_out(request, console)
    console.result(outcome.facts, outcome.text)
    outcome.raise_failure()


def run_folder(config_path: Path, chosen: Path | None) -> Path:
    """Where a run of this config goes."""
    return chosen or Path("runs") / config_path.stem
