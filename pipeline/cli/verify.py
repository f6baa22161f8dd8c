"""`pipeline verify`: its options."""

from pathlib import Path

import click

from pipeline.cli import options
from pipeline.cli.console import Console


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--require", "required", multiple=True, metavar="RUNTIME", help="Fail where it cannot run. Repeatable.")
@options.as_json
@click.pass_obj
def command(console: Console, bundle: Path, required: tuple[str, ...]) -> None:
    """Check, link by link, that a bundle's models give the same outputs."""
    from pipeline import run  # type: ignore[attr-defined]  # comes with the command's line in COMMANDS

    outcome = run.verify(bundle, required, console)
    console.result(outcome.facts, outcome.text)
