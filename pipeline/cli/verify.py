"""`pipeline verify`: its options."""

from pathlib import Path

import click

from pipeline.cli import options
from pipeline.cli.console import Console


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@options.required
@click.option("--network", metavar="MODULE:FUNCTION", help="Let the bundle's network be built by this code of yours. A bundle alone runs no code.")
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), help="Write verification.json and report.html here.")
@options.as_json
@click.pass_obj
def command(console: Console, bundle: Path, required: tuple[str, ...], network: str | None, report: Path | None) -> None:
    """Check, link by link, that a bundle's models give the same outputs."""
    from pipeline import run
    from pipeline.verification import Asked

    outcome = run.verify(bundle, Asked(required=required, network=network), report, console)
    console.result(outcome.facts, outcome.text)
    outcome.raise_failure()
