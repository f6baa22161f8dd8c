"""docs/architecture.md tells of every room, its picture is current, and the functions of its walks
exist."""

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

from docs.draw_architecture import drawn, laid_out
from docs.rooms import DEPLOY, PIPELINE, ROOT, Imports, imports_of_modules, imports_of_rooms, without_detours

PICTURE = ROOT / "docs" / "architecture.svg"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def imports() -> Imports:
    return imports_of_rooms(imports_of_modules())


def test_the_picture_is_current(imports: Imports) -> None:
    assert PICTURE.read_text(encoding="utf-8") == drawn(imports), "draw it again: make architecture"


@pytest.mark.parametrize(("room", "other"), [("pipeline.networks", "pipeline.config"), ("deploy.certificate", "export.tensorrt")])
def test_the_picture_shows_an_import_that_is_new(imports: Imports, room: str, other: str) -> None:
    """Also where a chain of other imports implies it and no line is drawn for it."""
    assert other not in imports[room]
    assert drawn({**imports, room: imports[room] | {other}}) != drawn(imports)


def test_the_picture_shows_an_import_that_is_gone(imports: Imports) -> None:
    assert "export.errors" in imports["pipeline.cli"]
    assert drawn({**imports, "pipeline.cli": imports["pipeline.cli"] - {"export.errors"}}) != drawn(imports)


def test_an_import_is_seen_wherever_it_stands() -> None:
    modules = {"pipeline.data.svhn": frozenset({"export.errors"}), "export.errors": frozenset[str](), "pipeline": frozenset({"export"})}
    assert imports_of_rooms(modules) == {"pipeline.data": {"export.errors"}, "export.errors": frozenset()}


def test_lines_that_others_imply_are_left_out() -> None:
    imports = {"a": frozenset("bcd"), "b": frozenset("c"), "c": frozenset("d"), "d": frozenset[str]()}
    assert without_detours(imports) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": frozenset()}


def test_a_room_stands_above_all_that_it_imports(imports: Imports) -> None:
    rows = {spot.room: spot.row for row in laid_out(imports) for spot in row if spot.room}
    assert rows.keys() == imports.keys()
    assert all(rows[room] < rows[other] for room, others in imports.items() for other in others)


def test_nothing_in_the_picture_overlaps(imports: Imports) -> None:
    for row in laid_out(imports):
        for left, right in pairwise(row):
            assert left.x + left.width / 2 < right.x - right.width / 2


def test_every_room_is_listed_and_no_other(imports: Imports) -> None:
    listed = re.findall(r"^\| `((?:pipeline|export|deploy)/\w+)(?:\.py|/)` \| \S", PAGE, flags=re.MULTILINE)
    assert sorted(listed) == sorted(room.replace(".", "/") for room in imports)


def test_the_order_of_the_rules_is_the_order_that_is_held() -> None:
    rules = " ".join(PAGE.split("\n## Rules for imports\n")[1].split("\n## ")[0].split())
    assert " < ".join(f"`{room}`" for room in PIPELINE) in rules
    assert all(f"`{room}`" in rules for room in DEPLOY)


WALKS = PAGE.split("\n## Four walks\n")[1].split("\n## ")[0]
STATIONS = re.findall(r"^\d+\. `([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+) \w", WALKS, flags=re.MULTILINE)


def test_there_are_four_walks_with_a_station_a_line() -> None:
    assert [len(re.findall(r"^\d+\. ", walk, flags=re.MULTILINE)) >= 8 for walk in WALKS.split("\n### ")[1:]] == [True] * 4
    assert len(STATIONS) == len(re.findall(r"^\d+\. ", WALKS, flags=re.MULTILINE))


@pytest.mark.parametrize(("path", "names"), STATIONS)
def test_a_station_of_a_walk_exists(path: str, names: str) -> None:
    assert set(re.findall(r"`([^`]+)`", names)) <= _defined(ROOT / path)


def _defined(path: Path) -> set[str]:
    """Functions, classes, and methods as Class.method."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    methods = {
        f"{node.name}.{inner.name}"
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for inner in node.body
        if isinstance(inner, ast.FunctionDef)
    }
    return found | methods
