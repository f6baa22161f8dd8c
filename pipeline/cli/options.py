"""Arguments and options that several commands share, so that each is the same everywhere.

Also runs the request that the options describe.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.console import Console

if TYPE_CHECKING:
    from pipeline.run_request import EngineExportRequest, RunRequest

as_json = click.option(
    "--json", is_flag=True, expose_value=False, help="Write one JSON object to standard output, everything else to standard error."
)  # read by `Console.for_arguments`, before the arguments are parsed

config = click.argument("config", type=click.Path(path_type=Path))

out = click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="The run folder.  [default: runs/CONFIG's name]")

overrides = click.option("--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override a value of the config. Repeatable.")

required = click.option(
    "--require", "required", multiple=True, metavar="RUNTIME", help="Fail with exit code 4 if this runtime cannot run. Repeatable."
)

required_or_bitwise = click.option(
    "--require",
    "required",
    multiple=True,
    metavar="RUNTIME|bitwise",
    help="Fail with exit code 4 if this runtime cannot run; 'bitwise': with 3 if a bit differs. Repeatable.",
)

resume = click.option("--resume/--fresh", default=None, help="Continue the run in the folder, or replace it.")

dry_run = click.option("--dry-run", is_flag=True, help="Print what would be done and change nothing.")


def carry_out(request: RunRequest | EngineExportRequest, console: Console, *, dry_run: bool) -> None:
    """Carry out a request, or only print what would be done.

    Requests that can be refused without torch are refused before torch is imported.
    """
    request.require_possible()
    from deploy.runners.runtimes import require_torch

    require_torch("this command")
    from pipeline import run

    outcome = run.dry_run(request, console) if dry_run else run.carry_out(request, console)
    console.result(outcome.facts, outcome.text)
    outcome.raise_failure()


def run_folder(config_path: Path, chosen: Path | None) -> Path:
    """Return the folder of a run of this config."""
    return chosen or Path("runs") / config_path.stem
