"""`pipeline compare`: its options."""

from pathlib import Path

import click

from pipeline.cli import options
from pipeline.cli.console import Console


@click.command("compare")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write the table and pictures here as well.")
@options.as_json
@click.pass_obj
def command(console: Console, runs: tuple[Path, ...], out: Path | None) -> None:
    """Set any runs side by side, grouped by their config without the seed."""
    from pipeline.reproduction import commands

    outcome = commands.compare(runs, out)
    console.result(outcome.facts, outcome.text)
