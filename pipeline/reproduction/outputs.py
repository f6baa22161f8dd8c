"""Where a result is written: NAME.md, NAME.csv, NAME.json, and its pictures as SVG and PNG. Each file whole or not at all."""

import json
from pathlib import Path

from export.errors import UsageError
from export.files import make_folder, write_file
from pipeline.reproduction.charts import charts_of, sheet_of
from pipeline.reproduction.drawing import png, svg
from pipeline.reproduction.result import Result
from pipeline.reproduction.writing import csv_text, json_facts, markdown


def require_same_table(name: str, folder: Path) -> None:
    """What another table left in the folder is not written over."""
    path = folder / "table.json"
    try:
        there = json.loads(path.read_bytes())["table"] if path.is_file() else name
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no table of reproduce; choose another --out") from error
    if there != name:
        raise UsageError(f"{folder} holds the table {there}, asked for is {name}; choose another --out")


def write_outputs(result: Result, folder: Path) -> tuple[Path, ...]:
    """Write all of it; the paths, tables first."""
    make_folder(folder)
    contents = {
        "table.md": markdown(result).encode(),
        "table.csv": csv_text(result).encode(),
        "table.json": (json.dumps(json_facts(result), indent=2, ensure_ascii=False) + "\n").encode(),
    }
    for chart in charts_of(result):
        sheet = sheet_of(chart)
        contents |= {f"{chart.name}.svg": svg(sheet), f"{chart.name}.png": png(sheet)}
    for name, content in contents.items():
        write_file(folder / name, content)
    return tuple(folder / name for name in contents)
