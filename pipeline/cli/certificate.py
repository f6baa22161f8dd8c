"""`pipeline verify --certificate FILE.onnx`: what can be proved of a file by looking at its numbers alone. Runs nothing of it."""

from pathlib import Path

import click

from export.errors import NotTheSameError
from pipeline.cli.console import Console

option = click.option(
    "--certificate",
    type=click.Path(path_type=Path),
    metavar="FILE.onnx",
    help="Instead of a bundle: prove from an exact file alone that no sum in it depends on its order.",
)


def show(console: Console, path: Path) -> None:
    """The table, or under --json the content of certificate.json; NotTheSameError where the certificate does not hold."""
    from deploy.verify.certificate import as_table
    from deploy.verify.certifying import certificate_of

    certificate = certificate_of(path)
    console.result(certificate.to_json(), as_table(certificate))
    if not certificate.holds:
        raise NotTheSameError(f"{path}: {certificate.failure}")
