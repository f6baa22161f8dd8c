"""The rules that the sources show: the direction of imports, and a docstring for every module."""

import ast
import graphlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from docs.rooms import (
    DEPLOY,
    OF_EXPORT_FOR_DEPLOY,
    OURS,
    PIPELINE,
    ROOT,
    SOURCES,
    dotted,
    imported,
    imports_of_modules,
    modules,
)

SAME_NAME = {
    "__init__.py": "Python's own name for what a folder says of itself",
    "__main__.py": "Python's own name for what `python -m` runs",
    "czmig.py": "the method, and the table of the paper that it is from",
    "equinorm.py": "the method, and the figures of the paper that it is from",
    "mimicnorm.py": "the method, and the tables of the paper that it is from",
}
"""The only file names that occur more than once, and why."""
PARTICIPLES = frozenset(("known", "given", "kept", "found", "held", "read", "made", "built", "shown", "chosen", "written", "left", "run"))
"""In addition to names that end in -ed: class names of one word that say what was done to a thing,
not what it is."""


def may_import(importer: str, name: str) -> bool:
    """Return whether one module of ours may import another; both names are dotted."""
    (package, room), (other, other_room) = (_room(each) for each in (importer, name))
    if package == "export":
        return other == "export"
    if package == "deploy":
        return other_room in OF_EXPORT_FOR_DEPLOY if other == "export" else other == "deploy" and _in_order_of_deploy(room, other_room)
    if other == "pipeline" and other_room == "reproduction":
        return room in ("reproduction", "cli")
    return other != "pipeline" or room not in PIPELINE or PIPELINE.index(other_room) <= PIPELINE.index(room)


def _room(name: str) -> tuple[str, str]:
    package, _, rest = name.partition(".")
    return package, rest.partition(".")[0]


def _in_order_of_deploy(room: str, other: str) -> bool:
    return room == other or other in DEPLOY[room]


def forbidden(source: str, importer: str, known: frozenset[str]) -> list[str]:
    package = importer if importer in {dotted(path.parent) for path in SOURCES} else importer.rpartition(".")[0]
    return sorted({name for name in imported(ast.parse(source), package, known) if not may_import(importer, name)})


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {(path.parts[0], path.parts[1].removesuffix(".py")) for path in SOURCES}
    assert {room for package, room in rooms if package == "pipeline"} - {"__init__", "__main__"} == set(PIPELINE)
    assert {room for package, room in rooms if package == "deploy"} - {"__init__"} == set(DEPLOY)
    assert {package for package, _ in rooms} == set(OURS)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_run_one_way(path: Path) -> None:
    assert forbidden((ROOT / path).read_text(encoding="utf-8"), dotted(path), modules()) == []


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("source", "importer", "found"),
    [
        ("import pipeline", "export.onnx", ["pipeline"]),
        ("from pipeline.config import Config", "export.onnx", ["pipeline.config"]),
        ("def f():\n    from deploy import runners", "export.onnx", ["deploy.runners"]),
        ("from export.graph import layers\nfrom export import bundle", "deploy.runners.runner", ["export.graph.layers"]),
        ("from export.graph.fold import fold", "deploy.verify.run_chain", ["export.graph.fold"]),
        ("from ..export import fold", "deploy.verify.run_chain", ["deploy.export"]),
        ("from ...export.graph import fold", "deploy.verify.run_chain", ["export.graph.fold"]),
        ("from export.errors import UsageError\nimport export.bundle", "deploy.verify.run_chain", []),
        ("from deploy.verify.run_chain import run_chain", "deploy.report.page", []),
        ("from deploy.report.page import report_html", "deploy.verify.run_chain", ["deploy.report.page"]),
        ("from deploy.verify.run_chain import run_chain", "deploy.compare.bits", ["deploy.verify.run_chain"]),
        ("from pipeline.bundle import make", "pipeline.training.loop", ["pipeline.bundle.make"]),
        ("from pipeline.training import train", "pipeline.bundle.make", []),
        ("from pipeline.reproduction import planned_runs", "pipeline.run", ["pipeline.reproduction.planned_runs"]),
        ("from pipeline.reproduction import planned_runs", "pipeline.cli.reproduce", []),
        ("import torch, onnx\nfrom deploy.runners import base\nfrom export.graph.fold import y", "pipeline.cli.train", []),
        ("import exporter\nfrom deployed import x", "export.onnx", []),
    ],
)
def test_the_walk_finds_what_is_forbidden(source: str, importer: str, found: list[str]) -> None:
    assert forbidden(source, importer, modules()) == found


def test_a_file_name_that_occurs_twice_has_a_reason() -> None:
    counts = Counter(path.name for path in SOURCES)
    assert {name for name, count in counts.items() if count > 1} == set(SAME_NAME)


def test_a_class_is_named_for_what_it_is() -> None:
    assert [name for name in _class_names() if is_participle(name)] == []


@pytest.mark.parametrize(("name", "bare"), [("Asked", True), ("_Kept", True), ("Typed", True), ("RebuiltModel", False), ("Mixing", False)])
def test_a_bare_participle_is_told_from_a_noun(name: str, bare: bool) -> None:
    assert is_participle(name) == bare


def _class_names() -> Iterator[str]:
    for path in SOURCES:
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                yield node.name


def is_participle(name: str) -> bool:
    word = name.lstrip("_")
    return word[1:].islower() and (word.endswith("ed") or word.lower() in PARTICIPLES)


def test_no_folders_import_each_other_in_a_circle() -> None:
    imports = imports_of_modules()
    folders = {_folder(name): set[str]() for name in imports}
    for importer, names in imports.items():
        folders[_folder(importer)].update(map(_folder, names))
    assert circle(folders) == []


@pytest.mark.parametrize(
    ("imports", "found"),
    [({"a": {"b"}, "b": {"c"}}, []), ({"a": {"b"}, "b": {"c"}, "c": {"a"}}, ["a", "b", "c"]), ({"a": {"a"}}, [])],
)
def test_a_circle_is_found(imports: Mapping[str, Iterable[str]], found: list[str]) -> None:
    assert sorted(set(circle(imports))) == found


def circle(imports: Mapping[str, Iterable[str]]) -> list[str]:
    others = {folder: [each for each in found if each != folder] for folder, found in imports.items()}
    try:
        graphlib.TopologicalSorter(others).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def _folder(name: str) -> str:
    """Return the folder that a module is in.

    A module next to the rooms of its package is a room by itself.
    """
    path = ROOT / name.replace(".", "/")
    if path.is_dir() or name.count(".") < 2:
        return name
    return name.rpartition(".")[0]
