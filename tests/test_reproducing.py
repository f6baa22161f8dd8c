"""The tables that docs/reproducing.md lists are those there are, with what they need."""

import re
from pathlib import Path

from pipeline.reproduction.papers import TABLES
from pipeline.reproduction.plan import needs_of

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_document() -> None:
    listed = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if re.match(r"\| `[a-z]+-\w+` \|", line)]
    expected = []
    for table in TABLES.values():
        needs = needs_of(table, ROOT / "configs")
        epochs, rows = needs["epochs"], needs["rows"]
        assert isinstance(epochs, list)
        assert isinstance(rows, list)
        how = f"{table.num_runs}, {table.statistic if table.runs_stated else 'number not stated'}"
        expected.append([f"`{table.name}`", table.images.name, ", ".join(map(str, epochs)), str(len(rows)), how])
    assert [cells[:5] for cells in listed] == expected


def test_the_commands_of_the_document_name_what_there_is() -> None:
    for name in re.findall(r"pipeline reproduce (\w+-\w+)", TEXT):
        assert name in TABLES
