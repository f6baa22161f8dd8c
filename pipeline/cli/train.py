"""`pipeline train`: its options."""

from pathlib import Path

import click

from pipeline.cli import options
from pipeline.cli.console import Console


@click.command("train")
@options.config
@options.out
@options.overrides
@options.resume
@options.as_json
@click.pass_obj
def command(console: Console, config: Path, out: Path | None, overrides: tuple[str, ...], resume: bool | None) -> None:
    """Train and keep checkpoints; export comes later."""
    from pipeline.config import load_config

    loaded = load_config(config, overrides)
    from pipeline import run

    outcome = run.train(loaded, options.run_folder(config, out), resume, console)
    console.result(outcome.facts, outcome.text)
