"""The rules that can be read off the sources: which way imports run, and that every module says what it is for."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("pipeline", "export", "deploy")
SOURCES = [path.relative_to(ROOT) for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]
OF_EXPORT_FOR_DEPLOY = ("errors", "files", "bundle", "interruption", "tensorrt")
"""What of `export` needs no torch."""
PIPELINE = (
    *("config", "run_folder", "data", "networks", "graph", "methods", "training", "training_graph", "progress", "exact_training"),
    *("bundle", "verification", "request", "importing", "plan", "run", "reproduction", "cli"),
)
"""The rooms of `pipeline`, each of which may import those before it. Only the command line imports `reproduction`."""
DEPLOY = {
    "runners": (),
    "compare": ("runners",),
    "certificate": ("runners",),
    "sandbox": ("runners", "compare"),
    "verify": ("runners", "compare", "certificate", "sandbox"),
    "report": ("runners", "compare", "certificate", "sandbox", "verify"),
}
"""The rooms of `deploy`, and those that each may import."""


def modules() -> frozenset[str]:
    return frozenset(_dotted(path) for path in SOURCES)


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, package: str, known: frozenset[str]) -> Iterator[str]:
    """Every module of ours that a module imports, wherever in it the import stands."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        yield from (name for name in names if name.split(".")[0] in OURS)


def may_import(importer: str, name: str) -> bool:
    """Whether one module of ours may import another; both dotted."""
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
    package = importer if importer in {_dotted(path.parent) for path in SOURCES} else importer.rpartition(".")[0]
    return sorted({name for name in imported(ast.parse(source), package, known) if not may_import(importer, name)})


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {(path.parts[0], path.parts[1].removesuffix(".py")) for path in SOURCES}
    assert {room for package, room in rooms if package == "pipeline"} - {"__init__", "__main__"} == set(PIPELINE)
    assert {room for package, room in rooms if package == "deploy"} - {"__init__"} == set(DEPLOY)
    assert {package for package, _ in rooms} == set(OURS)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_run_one_way(path: Path) -> None:
    assert forbidden((ROOT / path).read_text(encoding="utf-8"), _dotted(path), modules()) == []


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("source", "importer", "found"),
    [
        ("import pipeline", "export.onnx", ["pipeline"]),
        ("from pipeline.config import Config", "export.onnx", ["pipeline.config"]),
        ("def f():\n    from deploy import runners", "export.onnx", ["deploy.runners"]),
        ("from export import layers, bundle", "deploy.runners.base", ["export.layers"]),
        ("from export.fold import fold", "deploy.verify.run", ["export.fold"]),
        ("from ..export import fold", "deploy.verify.run", ["deploy.export"]),
        ("from ...export import fold", "deploy.verify.run", ["export.fold"]),
        ("from export.errors import UsageError\nimport export.bundle", "deploy.verify.run", []),
        ("from deploy.verify.run import run_chain", "deploy.report.page", []),
        ("from deploy.report.page import report_html", "deploy.verify.run", ["deploy.report.page"]),
        ("from deploy.verify.run import run_chain", "deploy.compare.bits", ["deploy.verify.run"]),
        ("from pipeline.bundle import make", "pipeline.training.loop", ["pipeline.bundle.make"]),
        ("from pipeline.training import train", "pipeline.bundle.make", []),
        ("from pipeline.reproduction import plan", "pipeline.run", ["pipeline.reproduction.plan"]),
        ("from pipeline.reproduction import plan", "pipeline.cli.reproduce", []),
        ("import torch, onnx\nfrom deploy.runners import base\nfrom export.fold import y", "pipeline.cli.train", []),
        ("import exporter\nfrom deployed import x", "export.onnx", []),
    ],
)
def test_the_walk_finds_what_is_forbidden(source: str, importer: str, found: list[str]) -> None:
    assert forbidden(source, importer, modules()) == found
