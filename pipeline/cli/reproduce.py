"""`pipeline reproduce` and `pipeline compare`: their options.

Takes arguments; `pipeline.reproduction` does the work.
"""

from pathlib import Path

import click

from pipeline.cli import options
from pipeline.cli.console import Console


@click.command("reproduce")
@click.argument("table", required=False)
@click.option("--list", "list_asked", is_flag=True, help="Show the tables with the data, epochs and runs that each needs.")
@click.option("--rows", "rows", multiple=True, metavar="NAMES", help="Only these rows, by name or pattern, separated by commas. Repeatable.")
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Runs of each row.  [default: as many as in the paper]")
@click.option("--epochs", type=click.IntRange(1), metavar="N", help="Train for N epochs, with the schedule in proportion. Every output says so.")
@click.option("--data", metavar="DIR", type=click.Path(path_type=Path), help="The data set's folder, or DIR/train/CLASS/* and DIR/test/CLASS/*.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="The folder for runs and tables.  [default: runs/TABLE]")
@options.overrides
@options.as_json
@click.pass_obj
def reproduce(
    console: Console,
    table: str | None,
    list_asked: bool,
    rows: tuple[str, ...],
    seeds: int | None,
    epochs: int | None,
    data: Path | None,
    out: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Run a table of a paper and show its figures next to ours."""
    from deploy.runners.runtimes import require_torch

    if list_asked:
        _list(console)
        return
    if table is None:
        raise click.UsageError("give a table, or --list to see the tables")
    from pipeline.config.shipped import configs_folder
    from pipeline.reproduction.planned_runs import PlanRequest, planned, table_by_name

    folder = out or Path("runs") / table
    names = tuple(name.strip() for some in rows for name in some.split(","))
    asked = PlanRequest(rows=names, num_seeds=seeds, epochs=epochs, data=data, overrides=overrides)
    plan = planned(table_by_name(table), asked, configs_folder(), folder)  # before torch is imported, so that a mistake is reported at once
    require_torch("this command")
    from pipeline.reproduction import commands

    outcome = commands.reproduce(plan, folder, console)
    console.result(outcome.facts, outcome.text)
    outcome.raise_failure()


def _list(console: Console) -> None:
    from pipeline.config.shipped import configs_folder
    from pipeline.reproduction.papers import TABLES
    from pipeline.reproduction.planned_runs import listing

    facts, text = listing(TABLES.values(), configs_folder())
    console.result({"tables": facts}, text)


@click.command("compare")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write the table and pictures here as well.")
@options.as_json
@click.pass_obj
def compare(console: Console, runs: tuple[Path, ...], out: Path | None) -> None:
    """Compare any runs side by side, grouped by their config without the seed."""
    from deploy.runners.runtimes import require_torch

    require_torch("this command")
    from pipeline.reproduction import commands

    outcome = commands.compare(runs, out)
    console.result(outcome.facts, outcome.text)
