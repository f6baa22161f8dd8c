"""Which test files of a tree can reach a module, nearest first.

Reads sources only. The test file of the module's own name comes first, then those that import it
directly, then those that reach it over more imports. Files that no import leads to the module come
last, because a test may run it in a process of its own.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.house.trees import PACKAGES


class ImportGraph:
    """The imports between all modules and tests of a tree."""

    def __init__(self, root: Path) -> None:
        paths = [path for folder in (*PACKAGES, "tests", "benchmarks", "docs") for path in sorted((root / folder).rglob("*.py"))]
        files = {path.relative_to(root).as_posix(): path for path in paths}
        self._names = {_module(file): file for file in files}
        self._imports = {file: self._imported(path.read_text("utf-8")) for file, path in files.items()}
        fixtures = [file for file in files if file.endswith("conftest.py")]
        self._tests = [file for file in files if Path(file).name.startswith("test_")]
        for file in self._tests:
            self._imports[file] += [each for each in fixtures if Path(each).parent in Path(file).parents]

    def tests_by_distance(self, file: str) -> list[str]:
        """Return every test file, in the order in which to run them after a change of `file`."""
        distances = self._distances(file)
        stem = Path(file).stem
        words = {test: Path(test).stem.removeprefix("test_") for test in self._tests}
        far = len(self._imports)

        def order(test: str) -> tuple[bool, bool, int, int, str]:
            same_folder = Path(test).parent == Path("tests", file).parent
            return not (words[test] == stem and same_folder), stem not in words[test], distances.get(test, far), len(self._imports[test]), test

        return sorted(self._tests, key=order)

    def _distances(self, file: str) -> Mapping[str, int]:
        importers: dict[str, list[str]] = {}
        for importer, imported in self._imports.items():
            for each in imported:
                importers.setdefault(each, []).append(importer)
        distances, ring = {file: 0}, [file]
        while ring:
            ring = list(dict.fromkeys(each for known in ring for each in importers.get(known, []) if each not in distances))
            distances |= dict.fromkeys(ring, max(distances.values()) + 1)
        return distances

    def _imported(self, source: str) -> list[str]:
        return list(dict.fromkeys(self._names[name] for name in _imported_names(ast.parse(source)) if name in self._names))


def _module(file: str) -> str:
    """Return the name by which a file is imported; support of tests is on the path itself."""
    parts = Path(file).with_suffix("").parts
    if parts[:2] == ("tests", "support"):
        parts = parts[2:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the modules that a source may import, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
