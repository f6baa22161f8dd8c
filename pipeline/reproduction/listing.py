"""The tables that can be reproduced, and what each needs. Reads the configs of their rows; needs no torch."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from pydantic import JsonValue

from export.errors import UsageError
from pipeline.papers import TABLES, Table
from pipeline.reproduction.plan import config_of

_BESIDE_THE_PACKAGE = Path(__file__).parents[2] / "configs"


def configs_folder() -> Path:
    """The configs of this checkout, or those in the folder where the command runs."""
    for folder in (_BESIDE_THE_PACKAGE, Path("configs")):
        if (folder / "schema.json").is_file():
            return folder
    raise UsageError("the configs of the tables are not here: an installed package has none; run this in a checkout of the sources")


def table_by_name(name: str) -> Table:
    """A table of the papers."""
    if name in TABLES:
        return TABLES[name]
    near = difflib.get_close_matches(name, TABLES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(TABLES)}"
    raise UsageError(f"no table {name!r}, {hint}")


def needs_of(table: Table, configs: Path) -> dict[str, JsonValue]:
    """Data set, epochs, rows and runs of one table."""
    rows: list[JsonValue] = [row.name for row in table.rows if not row.by_name_only]
    by_name: list[JsonValue] = [row.name for row in table.rows if row.by_name_only]
    epochs: list[JsonValue] = [*sorted({config_of(row, configs).training.epochs for row in table.rows})]
    return {
        "table": table.name,
        "title": table.title,
        "data": table.images.name,
        "epochs": epochs,
        "runs": table.num_runs,
        "rows": rows,
        "rows_by_name_only": by_name,
    }


def listing(tables: Iterable[Table], configs: Path) -> tuple[list[JsonValue], str]:
    """As data and as text."""
    needs = [needs_of(table, configs) for table in tables]
    lines = [f"{'table':18} {'data':16} {'epochs':>12} {'rows':>5} {'runs':>5}  title"]
    for each in needs:
        epochs, rows = each["epochs"], each["rows"]
        assert isinstance(epochs, list)
        assert isinstance(rows, list)
        spoken = ", ".join(map(str, epochs))
        lines.append(f"{each['table']:18} {each['data']:16} {spoken:>12} {len(rows):5} {each['runs']:5}  {each['title']}")
    return [*needs], "\n".join(lines)
