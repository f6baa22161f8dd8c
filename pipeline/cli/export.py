"""`pipeline export`: its options."""

from pathlib import Path

import click

from pipeline.cli import options
from pipeline.cli.console import Console


@click.command("export")
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@options.required
@options.as_json
@click.pass_obj
def command(console: Console, run_folder: Path, required: tuple[str, ...]) -> None:
    """Fold, export and verify a training run's last checkpoint."""
    from pipeline import run

    outcome = run.export(run_folder, required, console)
    console.result(outcome.facts, outcome.text)
    outcome.raise_failure()
