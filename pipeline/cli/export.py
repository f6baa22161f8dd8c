"""`pipeline export`: its options."""

from pathlib import Path

import click

from pipeline.cli import options
from pipeline.cli.console import Console


@click.command("export")
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@options.as_json
@click.pass_obj
def command(console: Console, run_folder: Path) -> None:
    """Fold, export and verify a training run's last checkpoint."""
    from pipeline import run  # type: ignore[attr-defined]  # comes with the command's line in COMMANDS

    outcome = run.export(run_folder, console)
    console.result(outcome.facts, outcome.text)
