"""`pipeline init`: write a config to start from.

Takes a name and a path.
"""

from pathlib import Path

import click

from pipeline.cli import options
from pipeline.cli.console import Console


@click.command("init")
@click.argument("name", required=False)
@click.option("--list", "list_asked", is_flag=True, help="Show the configs that come with samegraph.")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="The file to write.  [default: the name's last part, in this folder]")
@options.as_json
@click.pass_obj
def init(console: Console, name: str | None, list_asked: bool, out: Path | None) -> None:
    """Write a config to start from: the quickstart's, or another shipped one by NAME."""
    if list_asked:
        if name is not None or out is not None:
            raise click.UsageError("--list only shows names: leave out NAME and --out")
        _list(console)
        return
    from pipeline.config.shipped import QUICKSTART, write_starting_config

    chosen = name or QUICKSTART
    path = out or Path(f"{chosen.rpartition('/')[2]}.yaml")
    schema = write_starting_config(chosen, path)
    text = f"config: {path}\nschema, for editors: {schema}\nnext: pipeline train-export {path}"
    console.result({"config": str(path), "schema": str(schema)}, text)


def _list(console: Console) -> None:
    from pipeline.config import load_config
    from pipeline.config.shipped import config_names, config_path

    configs = {name: load_config(config_path(name)) for name in config_names()}
    rows = [
        {"name": name, "data": each.data.name, "network": each.network.name, "method": each.method.name, "epochs": f"{each.training.epochs}"}
        for name, each in configs.items()
    ]
    heads = {key: key for key in rows[0]}
    widths = {key: max(len(row[key]) for row in (heads, *rows)) for key in heads}
    lines = ["  ".join(f"{row[key]:{width}}" for key, width in widths.items()).rstrip() for row in (heads, *rows)]
    console.result({"configs": [{**row, "epochs": configs[row["name"]].training.epochs} for row in rows]}, "\n".join(lines))
