"""Whether the tests catch as many single changes to the code after a restructuring as before.

    python -m benchmarks.house.mutations draw --tree TREE --out MUTATIONS.json
        [--number 200] [--seed 0]
    python -m benchmarks.house.mutations map --tree TREE --out MAP.json [--only tests/FILE.py ...]
    python -m benchmarks.house.mutations run --tree TREE --mutations MUTATIONS.json --map MAP.json
        --out RESULTS.jsonl [--only ID ...]
    python -m benchmarks.house.mutations compare BEFORE.jsonl AFTER.jsonl

`draw` writes changes to operators, constants and conditions, drawn from the tree before. `map` runs
each test file by itself and writes which functions it runs, including those in child processes;
each tree has its own map. `run` makes one change after the other in a copy of the tree and runs the
test files that run the changed function, fastest first, until one fails. A run that takes much
longer than for the map is a failure too. `compare` exits with 1 if a change that was caught before
is not caught after. Only one process at a time; `map` and `run` take hours and continue where they
were stopped.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.house.mutating import AREAS, Function, Mutation, NotPlacedError, drawn, functions_of, mutated, placed
from benchmarks.house.trees import Tree, recorded_calls, traced

Json = dict[str, Any]
Status = Literal["caught", "escaped", "not placed"]

_NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "runs", "*.egg-info")
_SMALLEST_LIMIT, _SLOWER = 120, 4
"""The least time limit in seconds, and how many times the time of the map tests may take. After
that they count as hanging."""
_BATCHES = (1, 3, 10)
"""How many test files are run in a process. The first is alone, because most changes are caught
there; then come more at a time, and the rest together."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("draw")
    draw.add_argument("--number", type=int, default=200)
    draw.add_argument("--seed", type=int, default=0)
    mapping = commands.add_parser("map")
    mapping.add_argument("--only", action="append", help="Only this test file. Repeatable.")
    run = commands.add_parser("run")
    run.add_argument("--mutations", type=Path, required=True)
    run.add_argument("--map", type=Path, required=True)
    run.add_argument("--only", action="append", type=int, help="Only the change of this number. Repeatable.")
    run.add_argument("--renamed", type=Path, help="A JSON object: functions of the tree of the draw -> their names in this one.")
    run.add_argument("--patience", type=float, metavar="SECONDS", help="Leave out test files once those in front of them take so long together.")
    for command in (draw, mapping, run):
        command.add_argument("--tree", type=Path, required=True)
        command.add_argument("--out", type=Path, required=True)
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args(arguments)
    if options.command != "compare":
        options.out.parent.mkdir(parents=True, exist_ok=True)
    match options.command:
        case "draw":
            return _draw(options)
        case "map":
            return _map(options)
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


@dataclass(frozen=True)
class PytestRun:
    """How a run of test files ended."""

    code: int | None
    """The exit code; None if the run was stopped because it took too long."""
    seconds: float
    output: str


def pytest_run(tree: Tree, files: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> PytestRun:
    """Run test files of a tree, up to the first failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *files]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:  # not a pipe: a process that a test starts may keep it open
        process = subprocess.Popen(
            command,
            cwd=tree.root,
            env=dict(tree.environment() if environment is None else environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code: int | None = None
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # including what the tests left running
            process.wait()
        output.seek(0)
        return PytestRun(code, time.monotonic() - started, output.read())


def _map(options: argparse.Namespace) -> int:
    tree = Tree.at(options.tree)
    content: Json = {"digest": tree.digest, "tests": {}}
    if options.out.exists():
        content = json.loads(options.out.read_bytes())
        if content["digest"] != tree.digest:
            raise SystemExit(f"{options.out} is the map of another tree; name another file")
    names = sorted(path.relative_to(tree.root).as_posix() for path in (tree.root / "tests").rglob("test_*.py"))
    wanted = [name for name in names if (not options.only or name in options.only) and name not in content["tests"]]
    with copied(tree) as copy:
        for number, name in enumerate(wanted, start=1):
            content["tests"][name] = mapped(copy, name)
            _write_whole(options.out, json.dumps(content, indent=1) + "\n")
            told = content["tests"][name]
            print(f"{number}/{len(wanted)} {name}: {len(told['functions'])} functions, {told['seconds']:.0f} s, code {told['code']}", flush=True)
    return 0


def mapped(tree: Tree, file: str, most_seconds: float = 7200) -> Json:
    """Return which functions a test file runs, how long that takes, and how it ends."""
    with tempfile.TemporaryDirectory() as folder:
        done = pytest_run(tree, [file], most_seconds, traced(tree, Path(folder)))
        functions = sorted({":".join(call.callee) for call in recorded_calls(Path(folder))})
    if done.code != 0:  # tracing is slow, and some tests measure time
        done = pytest_run(tree, [file], most_seconds)
    return {"seconds": round(done.seconds, 2), "code": done.code, "functions": functions}


def _run(options: argparse.Namespace) -> int:
    tree, map_ = Tree.at(options.tree), json.loads(options.map.read_bytes())
    if map_["digest"] != tree.digest:
        raise SystemExit(f"{options.map} is the map of another tree; make one of this tree with map")
    renamed = json.loads(options.renamed.read_bytes()) if options.renamed else {}
    before = read_results(options.out) if options.out.exists() else []
    _write_whole(options.out, "".join(json.dumps(line) + "\n" for line in before))  # without a half line that a kill may have left
    done = {line["id"] for line in before}
    wanted = [each for each in read_mutations(options.mutations) if each.id not in done and (not options.only or each.id in options.only)]
    with copied(tree) as copy:
        functions = [function for path in copy.sources for function in functions_of(_name(copy, path), path.read_text("utf-8"))]
        for number, mutation in enumerate(wanted, start=1):
            result = tried(copy, functions, mutation, map_["tests"], renamed, options.patience)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{number}/{len(wanted)} {mutation.area}, {mutation.function}: {result['status']} {result['by']}", flush=True)
    return 0


def _name(tree: Tree, path: Path) -> str:
    return path.relative_to(tree.root).as_posix()


def tried(
    tree: Tree, functions: Sequence[Function], mutation: Mutation, tests: Json, renamed: Mapping[str, str], patience: float | None = None
) -> Json:
    """Make a change, run the tests that matter, undo the change, and return the result."""
    started = time.monotonic()

    def result(status: Status, by: str, place: str = "") -> Json:
        told = {"id": mutation.id, "area": mutation.area, "function": mutation.function, "line": mutation.line, "old": mutation.old}
        return {**told, "new": mutation.new, "status": status, "by": by, "place": place, "seconds": round(time.monotonic() - started, 1)}

    try:
        place = placed(functions, mutation, renamed)
        path = tree.root / place.function.file
        source = path.read_text("utf-8")
        changed = mutated(source, place, mutation.new)
    except (NotPlacedError, SyntaxError) as error:
        return result("not placed", str(error))
    where = f"{place.function.file}:{place.start[0]}"
    files = files_for(place.function, tests, patience)
    if not files:
        return result("escaped", "no test file runs the function", where)
    try:
        _replace(path, changed)
        caught = caught_by(tree, files)
    finally:
        _replace(path, source)
    return result("caught", caught, where) if caught else result("escaped", f"{len(files)} test files passed", where)


def _replace(path: Path, source: str) -> None:
    """Write a source file and remove its compiled form.

    A compiled form of a file with the same second and size would be used for the new text.
    """
    path.write_text(source, encoding="utf-8")
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def files_for(function: Function, tests: Json, patience: float | None = None) -> list[tuple[str, float]]:
    """Return the test files that run a function and pass without a change, fastest first.

    Each has the seconds that it took.
    """
    name = f"{function.file}:{function.name}"
    found = sorted((facts["seconds"], file) for file, facts in tests.items() if facts["code"] == 0 and name in facts["functions"])
    chosen: list[tuple[str, float]] = []
    together = 0.0
    for seconds, file in found:
        together += seconds
        if patience is None or together <= patience or not chosen:
            chosen.append((file, seconds))
    return chosen


def caught_by(tree: Tree, files: Sequence[tuple[str, float]]) -> str:
    """Return the first test that fails, or an empty text."""
    left = list(files)
    for size in (*_BATCHES, len(left)):
        batch, left = left[:size], left[size:]
        if not batch:
            break
        limit = max(_SMALLEST_LIMIT, _SLOWER * sum(seconds for _, seconds in batch))
        done = pytest_run(tree, [file for file, _ in batch], limit)
        if done.code is None:
            return f"no end within {limit:.0f} s of {batch[0][0]}{f' and {len(batch) - 1} more' if len(batch) > 1 else ''}"
        if done.code != 0:
            failed = [line for line in done.output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
            return " ".join(failed[0].split()[1:2]) if failed else f"exit code {done.code} of {batch[0][0]}"
    return ""


def read_results(path: Path) -> list[Json]:
    """Return what `run` wrote; a line that was cut off is left out."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _compare(options: argparse.Namespace) -> int:
    before, after = read_results(options.before), read_results(options.after)
    print(table(before, after))
    worse = escapes(before, after)
    print("\n".join(worse) or "everything that was caught before is caught after")
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
