"""Where a result is written: NAME.md, NAME.csv, NAME.json, and its pictures as SVG and PNG. Each file whole or not at all."""

import json
from pathlib import Path

from export.files import make_folder, write_file
from pipeline.reproduction.charts import charts_of, sheet_of
from pipeline.reproduction.drawing import png, svg
from pipeline.reproduction.result import Result
from pipeline.reproduction.writing import csv_text, json_facts, markdown


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
