"""The files of a reproduced table: Markdown, CSV, JSON.

Takes results; runs nothing. Also decides which table may overwrite the files in a folder.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.errors import UsageError
from export.files import make_folder, write_file
from pipeline.reproduction.charts import charts_of, sheet_of
from pipeline.reproduction.figures import RunFigures, Spread
from pipeline.reproduction.papers import Quantity
from pipeline.reproduction.result import Figures, Group, Result, as_printed, footnotes, spoken
from pipeline.reproduction.sheet import png, svg

Row = dict[str, str]
_HEADS: dict[Quantity, str] = {"accuracy": "test %", "train_accuracy": "training %", "memory": "peak {}", "minutes": "minutes an epoch"}
_MEMORY_DIGITS = {"MB": 0, "GB": 2}


def markdown(result: Result) -> str:
    """Return the title, the table, and the notes below it."""
    rows = [_row(result, group) for group in result.groups]
    heads = list(rows[0])
    lines = [f"# {result.title}", "", _line(heads), _line(["---"] * len(heads)), *(_line(list(row.values())) for row in rows), ""]
    lines += [f"- {each}" for each in _below(result)]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _row(result: Result, group: Group) -> Row:
    """Return the cells in the order of the columns."""
    figures = result.figures(group)
    row = dict(zip(result.columns, group.cells, strict=True))
    for quantity in result.quantities:
        row |= _cells(result, group, figures, quantity)
    row["runs"] = group.state
    if result.of_a_paper:
        row["reproduction"] = _reproduction(group)
    return row


def _cells(result: Result, group: Group, figures: Figures, quantity: Quantity) -> Row:
    head = _HEADS[quantity].format(result.memory_unit)
    papers = {f"{head}, paper": as_printed(group.printed.get(quantity), result.statistic)} if result.of_a_paper else {}
    if quantity == "accuracy":
        ours = {f"{head}, best epoch": spoken(figures.best, result.statistic), f"{head}, last epoch": spoken(figures.last, result.statistic)}
    else:
        digits = _MEMORY_DIGITS[result.memory_unit] if quantity == "memory" else 2
        ours = {f"{head}, ours": spoken(_figure(figures, quantity), result.statistic, digits)}
    return papers | ours


def _figure(figures: Figures, quantity: Quantity) -> Spread | None:
    return {"accuracy": figures.best, "train_accuracy": figures.train, "memory": figures.memory, "minutes": figures.minutes}[quantity]


def _reproduction(group: Group) -> str:
    return "no: " + "; ".join(group.shortcomings) if group.shortcomings else "yes"


def _below(result: Result) -> Iterator[str]:
    if result.of_a_paper:
        yield from _of_the_paper(result)
    yield f"Ours: {result.statistic} over the finished runs, each with a seed of its own, counted from 0."
    yield from result.notes
    yield from footnotes(result)
    if machines := _machines(result):
        yield f"Computed on: {'; '.join(machines)}."


def _of_the_paper(result: Result) -> Iterator[str]:
    if result.is_reproduction:
        yield "Every row above was run with the epochs, the number of runs and the data that the paper states."
    else:
        yield f"This is not a reproduction: {'; '.join(result.deviations)}."
    yield f"The paper's accuracy: {result.which_epoch}. Its number of runs: {result.num_runs_of_the_paper}."
    if result.left_out:
        yield f"Rows of the table that are not here: {', '.join(result.left_out)}."


def _machines(result: Result) -> list[str]:
    found = {f"{each['name']} ({each['device']}, {each['precision']}, torch {each['torch']})" for run in _runs(result) for each in run.machines}
    return sorted(found)


def _runs(result: Result) -> Iterator[RunFigures]:
    for group in result.groups:
        yield from group.runs


def csv_text(result: Result) -> str:
    """Return one line per row, with bare figures and spreads in columns of their own."""
    lines = [_csv_row(result, group) for group in result.groups]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _csv_row(result: Result, group: Group) -> dict[str, object]:
    figures = result.figures(group)
    row: dict[str, object] = {"table": result.name, "row": group.name, **dict(zip(result.columns, group.cells, strict=True))}
    if result.of_a_paper:
        row |= {"reproduction": _reproduction(group), "reading": group.reading}
    row |= {"epochs": group.epochs, "runs": len(group.finished), "runs_planned": group.num_planned, "runs_diverged": group.num_diverged}
    for quantity in result.quantities:
        if result.of_a_paper:
            printed = group.printed.get(quantity)
            row |= {f"paper_{quantity}": printed.value if printed else "", f"paper_{quantity}_spread": printed.spread if printed else ""}
        ours = {"best": figures.best, "last": figures.last} if quantity == "accuracy" else {"": _figure(figures, quantity)}
        for which, figure in ours.items():
            row |= _flat("_".join(filter(None, (which, quantity))), figure)
    return row


def _flat(name: str, figure: Spread | None) -> dict[str, object]:
    values = [None] * 3 if figure is None else [figure.middle, figure.low, figure.high]
    return dict(zip((name, f"{name}_low", f"{name}_high"), ("" if value is None else f"{value:.6g}" for value in values), strict=True))


def json_facts(result: Result) -> dict[str, Any]:
    """Return the table as JSON, including every run."""
    facts: dict[str, Any] = {"title": result.title, "table": result.name, "statistic": result.statistic, "memory_unit": result.memory_unit}
    if result.of_a_paper:
        facts |= {"reproduction": result.is_reproduction, "not_a_reproduction_because": list(result.deviations)}
        facts |= {
            "accuracy_of_the_paper": result.which_epoch,
            "runs_of_the_paper": result.num_runs_of_the_paper,
            "rows_left_out": list(result.left_out),
        }
    return facts | {"rows": [_json_row(result, group) for group in result.groups], "notes": list(result.notes)}


def _json_row(result: Result, group: Group) -> dict[str, Any]:
    facts: dict[str, Any] = {"row": group.name, "cells": dict(zip(result.columns, group.cells, strict=True)), "notes": list(group.notes)}
    if result.of_a_paper:
        facts |= {"reproduction": not group.shortcomings, "not_a_reproduction_because": list(group.shortcomings), "reading": group.reading}
        facts["paper"] = {quantity: asdict(printed) for quantity, printed in group.printed.items()}
    facts |= {"epochs": group.epochs, "runs_planned": group.num_planned, "runs_finished": len(group.finished), "runs_diverged": group.num_diverged}
    facts["ours"] = {name: None if figure is None else asdict(figure) for name, figure in vars(result.figures(group)).items()}
    return facts | {"runs": [_json_run(run) for run in group.runs]}


def _json_run(run: RunFigures) -> dict[str, Any]:
    best, last = run.best, run.last
    return {
        "folder": str(run.folder),
        "seed": run.seed,
        "epochs": len(run.records),
        "best_epoch": best and best["epoch"],
        "best_accuracy": best and best["test_accuracy"],
        "last_accuracy": last and last["test_accuracy"],
        "peak_memory_bytes": run.peak_memory_bytes,
        "minutes_per_epoch": run.minutes_per_epoch,
        "diverged": run.diverged and asdict(run.diverged),
        "machines": list(run.machines),
    }


def require_same_table(name: str, folder: Path) -> None:
    """Refuse to overwrite the files of another table in the folder."""
    path = folder / "table.json"
    try:
        there = json.loads(path.read_bytes())["table"] if path.is_file() else name
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no table of reproduce; choose another --out") from error
    if there != name:
        raise UsageError(f"{folder} holds the table {there}, expected {name}; choose another --out")


def write_outputs(result: Result, folder: Path) -> tuple[Path, ...]:
    """Write all files; return their paths, tables first."""
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
