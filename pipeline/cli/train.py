"""`pipeline train` and `pipeline train-export`: their options."""

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
def train(console: Console, config: Path, out: Path | None, overrides: tuple[str, ...], resume: bool | None) -> None:
    """Train and keep checkpoints; export comes later."""
    from pipeline.config import load_config

    loaded = load_config(config, overrides)
    from pipeline import run

    outcome = run.train(loaded, options.run_folder(config, out), resume, console)
    console.result(outcome.facts, outcome.text)


@click.command("train-export")
@options.config
@options.out
@options.overrides
@options.resume
@options.required
@options.as_json
@click.pass_obj
def train_export(
    console: Console, config: Path, out: Path | None, overrides: tuple[str, ...], resume: bool | None, required: tuple[str, ...]
) -> None:
    """Train, fold, export and verify: from a config to a bundle."""
    from pipeline.config import load_config

    loaded = load_config(config, overrides)  # before torch is imported: a mistake in the config is said at once
    from pipeline import run

    outcome = run.train_export(loaded, options.run_folder(config, out), resume, required, console)
    console.result(outcome.facts, outcome.text)
    outcome.raise_failure()
