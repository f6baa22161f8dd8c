"""The rooms of the three packages, their order, and the imports between them, read off the sources.

A room is a folder or a module at the top of a package. Runs none of the code that it reads.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = ("pipeline", "export", "deploy")
SOURCES = [path.relative_to(ROOT) for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]
PIPELINE = (
    *("config", "run_folder", "data", "networks", "methods", "training", "training_graph", "exact_training"),
    *("bundle", "run_request", "importing", "plan", "run", "reproduction", "cli"),
)
"""The rooms of `pipeline`, each of which may import those before it. Only the command line imports
`reproduction`."""
DEPLOY = {
    "progress": (),
    "runners": (),
    "compare": ("runners",),
    "certificate": ("runners",),
    "predict": ("runners",),
    "sandbox": ("runners", "compare"),
    "verify": ("progress", "runners", "compare", "certificate", "sandbox"),
    "report": ("progress", "runners", "compare", "certificate", "sandbox", "verify"),
    "server": ("runners", "compare", "predict", "report"),
}
"""The rooms of `deploy`, and those that each may import."""
OF_EXPORT_FOR_DEPLOY = ("errors", "files", "bundle", "interruption", "preprocess", "tensorrt")
"""What of `export` needs no torch."""
_NO_ROOMS = ("__init__", "__main__")
Imports = Mapping[str, frozenset[str]]
"""What imports -> what it imports."""


def modules() -> frozenset[str]:
    """Every module of the three packages, dotted."""
    return frozenset(map(dotted, SOURCES))


def dotted(path: Path) -> str:
    """The name by which a file is imported."""
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


@cache
def imports_of_modules() -> Imports:
    """Of every module, what it imports of ours."""
    known = modules()
    trees = {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in SOURCES}
    return {dotted(path): frozenset(imported(tree, ".".join(path.parts[:-1]), known)) for path, tree in trees.items()}


def room_of(name: str) -> str:
    """The room that a module is in, as `package.room`; a package itself is none."""
    return ".".join(name.split(".")[:2])


def imports_of_rooms(imports: Imports) -> Imports:
    """Of every room, which other rooms its modules import."""
    rooms = {room_of(name) for name in imports if "." in name and name.split(".")[1] not in _NO_ROOMS}
    found = {room: set[str]() for room in sorted(rooms)}
    for importer, names in imports.items():
        if (room := room_of(importer)) in found:
            found[room].update({room_of(name) for name in names} & rooms - {room})
    return {room: frozenset(others) for room, others in found.items()}


def without_detours(imports: Imports) -> Imports:
    """Only those imports that no chain of others implies."""
    beyond = {room: frozenset[str]().union(*(_reachable(other, imports) for other in others)) for room, others in imports.items()}
    return {room: others - beyond[room] for room, others in imports.items()}


def _reachable(room: str, imports: Imports) -> frozenset[str]:
    """What a room imports, and what that imports, and so on."""
    others = imports[room]
    return others.union(*(_reachable(other, imports) for other in others))
