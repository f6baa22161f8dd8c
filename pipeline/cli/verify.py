"""`pipeline verify`: its options."""

from pathlib import Path

import click

from pipeline.cli import certificate as certificates
from pipeline.cli import options
from pipeline.cli.console import Console


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@certificates.option
@options.required
@click.option("--network", metavar="MODULE:FUNCTION", help="Let the bundle's network be built by this code of yours. A bundle alone runs no code.")
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), help="Write verification.json and report.html here.")
@options.as_json
@click.pass_obj
def command(
    console: Console, bundle: Path | None, certificate: Path | None, required: tuple[str, ...], network: str | None, report: Path | None
) -> None:
    """Check, link by link, that a bundle's models give the same outputs."""
    if (bundle is None) == (certificate is None):
        raise click.UsageError("give either a bundle or --certificate FILE.onnx")
    if certificate is not None:
        certificates.show(console, certificate)
    elif bundle is not None:
        _check(console, bundle, required, network, report)


def _check(console: Console, bundle: Path, required: tuple[str, ...], network: str | None, report: Path | None) -> None:
    from pipeline import run
    from pipeline.verification import Asked

    outcome = run.verify(bundle, Asked(required=required, network=network), report, console)
    console.result(outcome.facts, outcome.text)
    outcome.raise_failure()
