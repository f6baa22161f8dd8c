"""The rules that can be read off the sources: which way imports run, and that every module says what it is for."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("pipeline", "export", "deploy")
MAY_IMPORT = {
    "pipeline": ("pipeline", "export", "deploy"),
    "export": ("export",),
    "deploy": ("deploy", "export.bundle", "export.engines", "export.errors"),
}
SOURCES = [path.relative_to(ROOT) for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Every name of ours that a module imports, dotted, wherever in it the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (base if "." in base else f"{base}.{alias.name}" for alias in node.names)


def forbidden(source: str, package: str) -> list[str]:
    room = package.split(".", maxsplit=1)[0]
    ours = {name for name in imported(ast.parse(source), package) if name.split(".")[0] in OURS}
    return sorted(name for name in ours if not any(f"{name}.".startswith(f"{free}.") for free in MAY_IMPORT[room]))


def test_there_are_sources_of_every_room() -> None:
    assert {path.parts[0] for path in SOURCES} == set(OURS)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_run_one_way(path: Path) -> None:
    package = ".".join(path.parent.parts)
    assert forbidden((ROOT / path).read_text(encoding="utf-8"), package) == []


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("source", "package", "found"),
    [
        ("import pipeline", "export", ["pipeline"]),
        ("from pipeline.config import Config", "export", ["pipeline.config"]),
        ("def f():\n    from deploy import runners", "export", ["deploy.runners"]),
        ("from export import derived, bundle", "deploy", ["export.derived"]),
        ("import export", "deploy", ["export"]),
        ("from export.fold import fold", "deploy.verify", ["export.fold"]),
        ("from ..export import fold", "deploy.verify", []),  # deploy.export, a room's own
        ("from ...export import fold", "deploy.verify", ["export.fold"]),
        ("from export.errors import UsageError\nimport export.bundle", "deploy", []),
        ("import torch, onnx\nfrom deploy import x\nfrom export.fold import y", "pipeline.cli", []),
        ("import exporter\nfrom deployed import x", "export", []),
    ],
)
def test_the_walk_finds_what_is_forbidden(source: str, package: str, found: list[str]) -> None:
    assert forbidden(source, package) == found
