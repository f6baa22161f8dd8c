"""Whether the tests catch as many single changes to the code after a restructuring as before.

    python -m benchmarks.house.mutations draw --tree TREE --out MUTATIONS.json
        [--number 200] [--seed 0]
    python -m benchmarks.house.mutations run --tree TREE --mutations MUTATIONS.json
        --out RESULTS.jsonl [--only ID ...] [--files N] [--renamed NAMES.json]
    python -m benchmarks.house.mutations compare BEFORE.jsonl AFTER.jsonl [--out FILE.json]

`draw` writes changes to operators, constants and conditions, drawn from the tree before. `run`
makes one change after the other in a copy of the tree and runs its test files, nearest to the
changed module first, until one fails. It takes hours and continues where it was stopped. --files N
stops after the nearest N test files; the result says so. `compare` looks at the changes that were
run in both trees and exits with 1 if one was caught before and is not caught after.

A failure counts only if the same test fails again by itself and passes without the change, so that
a busy machine catches nothing.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from benchmarks.environment import environment
from benchmarks.house.mutating import AREAS, Mutation, NotPlacedError, drawn, functions_of, mutated, placed
from benchmarks.house.nearness import ImportGraph
from benchmarks.house.test_runs import TestRun, Tests
from benchmarks.house.trees import Tree

Json = dict[str, Any]
Status = Literal["caught", "escaped", "not placed"]

_NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "runs", "*.egg-info")
_BATCHES = (1, 3, 10)
"""How many test files are run in a process. The first is alone, because most changes are caught
there; then come more at a time, and the rest together."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("draw")
    draw.add_argument("--number", type=int, default=200)
    draw.add_argument("--seed", type=int, default=0)
    run = commands.add_parser("run")
    run.add_argument("--mutations", type=Path, required=True)
    run.add_argument("--only", action="append", type=int, help="Only the change of this number. Repeatable.")
    run.add_argument("--files", type=int, help="Run this many test files at most.  [default: all]")
    run.add_argument("--renamed", type=Path, help="A JSON object: functions of the tree of the draw -> their names in this one.")
    for command in (draw, run):
        command.add_argument("--tree", type=Path, required=True)
        command.add_argument("--out", type=Path, required=True)
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    match options.command:
        case "draw":
            return _draw(options)
        case "run":
            return _run(options)
        case _:
            return _compare(options)


def _draw(options: argparse.Namespace) -> int:
    tree = Tree(options.tree.resolve())
    found = drawn(tree.root, options.number, options.seed)
    content = {"commit": tree.commit, "seed": options.seed, "mutations": [asdict(each) for each in found]}
    _write_whole(options.out, json.dumps(content, indent=1) + "\n")
    for area in AREAS:
        print(f"{area}: {sum(each.area == area for each in found)}")
    return 0


def read_mutations(path: Path) -> list[Mutation]:
    """Return what `draw` wrote."""
    return [Mutation(**{**each, "words": tuple(each["words"])}) for each in json.loads(path.read_bytes())["mutations"]]


def _write_whole(path: Path, text: str) -> None:
    """Write a file that a later call reads; it never holds half of the text."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


@contextmanager
def copied(tree: Tree) -> Iterator[Tree]:
    """Yield a copy of a tree, in which files may be changed."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "tree").resolve()
        shutil.copytree(tree.root, root, ignore=_NOT_COPIED, symlinks=True)
        yield Tree.at(root)


def _run(options: argparse.Namespace) -> int:
    tree = Tree.at(options.tree)
    commit = tree.commit
    renamed = json.loads(options.renamed.read_bytes()) if options.renamed else {}
    before = read_results(options.out) if options.out.exists() else []
    _write_whole(options.out, "".join(json.dumps(line) + "\n" for line in before))  # without a half line that a kill may have left
    done = {line["id"] for line in before}
    wanted = [each for each in _spread(read_mutations(options.mutations)) if each.id not in done and (not options.only or each.id in options.only)]
    with copied(tree) as changed, copied(tree) as unchanged, closing(Trial(changed, unchanged, renamed, options.files)) as trial:
        for number, mutation in enumerate(wanted, start=1):
            result = {**trial.of(mutation), "commit": commit}
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{number}/{len(wanted)} {mutation.area}, {mutation.function}: {result['status']} {result['by']}", flush=True)
    return 0


def _spread(mutations: Sequence[Mutation]) -> list[Mutation]:
    """Return the changes in an order in which any first part of them is of all areas."""
    place: dict[str, int] = {}
    turns = {}
    for each in mutations:
        turns[each.id] = place[each.area] = place.get(each.area, -1) + 1
    return sorted(mutations, key=lambda each: turns[each.id])


class Trial:
    """Tries changes in one copy of a tree; the other stays as it is."""

    def __init__(self, tree: Tree, unchanged: Tree, renamed: Mapping[str, str], most_files: int | None = None) -> None:
        self._tree, self._renamed, self._most_files = tree, renamed, most_files
        self._functions = [function for path in tree.sources for function in functions_of(_name(tree, path), path.read_text("utf-8"))]
        self._imports = ImportGraph(tree.root)
        self._tests, self._tests_unchanged = Tests(tree), Tests(unchanged)
        self._known: dict[str, bool] = {}
        """Whether a test passes without a change."""

    def close(self) -> None:
        self._tests.close()
        self._tests_unchanged.close()

    def of(self, mutation: Mutation) -> Json:
        """Make a change, run tests until one fails, undo the change, and return the result."""
        started = time.monotonic()

        def result(status: Status, by: str, place: str = "", files: int = 0) -> Json:
            told = {"id": mutation.id, "area": mutation.area, "function": mutation.function, "line": mutation.line, "old": mutation.old}
            ran = {"files_run": files, "seconds": round(time.monotonic() - started, 1)}
            return {**told, "new": mutation.new, "status": status, "by": by, "place": place, **ran}

        try:
            place = placed(self._functions, mutation, self._renamed)
            path = self._tree.root / place.function.file
            source = path.read_text("utf-8")
            changed = mutated(source, place, mutation.new)
        except (NotPlacedError, SyntaxError) as error:
            return result("not placed", str(error))
        where = f"{place.function.file}:{place.start[0]}"
        every = self._imports.tests_by_distance(place.function.file)
        files = every[: self._most_files]
        try:
            _replace(path, changed)
            number, caught = self._caught_by(files)
        finally:
            _replace(path, source)
        return result("caught", caught, where, number) if caught else result("escaped", f"{len(files)} of {len(every)} test files", where, number)

    def _caught_by(self, files: Sequence[str]) -> tuple[int, str]:
        """Return how many test files were run, and the first test that fails because of the change;
        an empty text if none does."""
        left, number = list(files), 0
        for size in (*_BATCHES, len(left)):
            batch, left = left[:size], left[size:]
            number += len(batch)
            if batch and (caught := self._caught_in(batch)):
                return number, caught
        return number, ""

    def _caught_in(self, batch: Sequence[str]) -> str:
        """Return the first test of some files that fails because of the change."""
        left, not_counted = list(batch), set[str]()
        while left:
            run = self._tests.run([*left, *(f"--deselect={test}" for test in sorted(not_counted))])
            if not run.failed or run.code == _NOTHING_LEFT:
                break
            test = run.first_failure or run.in_work or left[0]
            if self._fails_again(test, run) and self._passes_unchanged(test):
                return f"{'no end of ' if run.code is None else ''}{test}"
            if test in not_counted or test in left:  # a file that cannot be read
                left.remove(test.partition("::")[0])
            not_counted.add(test)
        return ""

    def _fails_again(self, test: str, run: TestRun) -> bool:
        return run.code is None or self._tests.run([test]).failed

    def _passes_unchanged(self, test: str) -> bool:
        if test not in self._known:
            self._known[test] = not self._tests_unchanged.run([test]).failed
        return self._known[test]


_NOTHING_LEFT = 5
"""The exit code of pytest if all tests were deselected."""


def _name(tree: Tree, path: Path) -> str:
    return path.relative_to(tree.root).as_posix()


def _replace(path: Path, source: str) -> None:
    """Write a source file and remove its compiled form.

    A compiled form of a file with the same second and size would be used for the new text.
    """
    path.write_text(source, encoding="utf-8")
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def read_results(path: Path) -> list[Json]:
    """Return what `run` wrote; a line that was cut off is left out."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _compare(options: argparse.Namespace) -> int:
    before, after = read_results(options.before), read_results(options.after)
    both = {each["id"] for each in before} & {each["id"] for each in after}
    before, after = ([each for each in results if each["id"] in both] for results in (before, after))
    print(table(before, after))
    worse = escapes(before, after)
    print("\n".join(worse) or "everything that was caught before is caught after")
    if options.out:
        content = {"environment": environment(), "compared": len(both), "lost": worse, "before": before, "after": after}
        _write_whole(options.out, json.dumps(content, indent=1) + "\n")
    return 1 if worse or not before else 0


def escapes(before: Sequence[Json], after: Sequence[Json]) -> list[str]:
    """Return a line for each change that was caught before and is not known to be caught after."""
    now = {each["id"]: each for each in after}
    lines = []
    for each in before:
        found = now.get(each["id"], {"status": "not run", "by": "", "place": ""})
        if each["status"] == "caught" and found["status"] != "caught":
            how = " ".join(f"{found['status']} {found['by']}".split())
            change = f"{each['old']!r} -> {each['new']!r} in {each['line']!r}"
            lines.append(f"{each['id']}: {each['function']}: {change}: caught before by {each['by']}, after: {how}")
    return lines


def table(before: Sequence[Json], after: Sequence[Json]) -> str:
    """Return how many were caught, by area."""
    rows = ["| area | changes | caught before | caught after | not placed after |", "|---|--:|--:|--:|--:|"]
    for area in [*AREAS, ""]:
        old, new = ([each for each in found if not area or each["area"] == area] for found in (before, after))
        lost = sum(each["status"] == "not placed" for each in new)
        rows.append(f"| {area or 'all'} | {len(old)} | {_share(old)} | {_share(new)} | {lost} |")
    return "\n".join(rows)


def _share(results: Sequence[Json]) -> str:
    caught = sum(each["status"] == "caught" for each in results)
    return f"{caught} ({caught / len(results):.0%})" if results else "0"


if __name__ == "__main__":
    sys.exit(main())
