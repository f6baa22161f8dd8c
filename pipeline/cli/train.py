"""`pipeline train` and `pipeline train-export`: their options.

Takes arguments; makes requests.
"""

from pathlib import Path

import click

from pipeline.cli import options
from pipeline.cli.console import Console


@click.command("train")
@options.config
@options.out
@options.overrides
@options.resume
@options.dry_run
@options.as_json
@click.pass_obj
def train(console: Console, config: Path, out: Path | None, overrides: tuple[str, ...], resume: bool | None, dry_run: bool) -> None:
    """Train and keep checkpoints; export comes later."""
    from pipeline.config import load_config

    loaded = load_config(config, overrides)  # before heavier imports, so that a mistake in the config is reported at once
    from pipeline.run_folder import RunFolder
    from pipeline.run_request import Start, TrainRequest

    request = TrainRequest(config=loaded, folder=RunFolder(options.run_folder(config, out)), start=Start.of_option(resume))
    options.carry_out(request, console, dry_run=dry_run)


@click.command("train-export")
@options.config
@options.out
@options.overrides
@options.resume
@options.required
@options.dry_run
@options.as_json
@click.pass_obj
def train_export(
    console: Console, config: Path, out: Path | None, overrides: tuple[str, ...], resume: bool | None, required: tuple[str, ...], dry_run: bool
) -> None:
    """Train, fold, export and verify: from a config to a bundle."""
    from pipeline.config import load_config

    loaded = load_config(config, overrides)
    from pipeline.run_folder import RunFolder
    from pipeline.run_request import Start, TrainExportRequest

    folder, start = RunFolder(options.run_folder(config, out)), Start.of_option(resume)
    request = TrainExportRequest(config=loaded, folder=folder, start=start, required=required)
    options.carry_out(request, console, dry_run=dry_run)
