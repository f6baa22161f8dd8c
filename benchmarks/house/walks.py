"""How far a reader walks through the code to follow a run: files, changes of folder and package.

    python -m benchmarks.house.walks --tree TREE [--out FILE.json] [--before FILE.json]
        [--show WALK] [--writer FILE:FUNCTION]

Four runs of the tree's own commands are traced, in all threads and child processes, without code
that runs on import. A walk is the sequence of calls from function to function in the order in which
each pair first occurs: the file of the caller, then the file of the called function, with repeats
merged. Methods are not stations of a walk, but the functions they call are. An inner function
belongs to the outer one. `files` counts all files in which code ran.

Of several definitions this one was chosen because it is close to the figures counted by hand. The
result also has those of another one: every function and method at its first call, which moving code
into classes does not improve. --before checks the targets (changes of package, half of the returns
to a folder) and exits with 1 if one is missed.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.house.trees import Call, Tree, recorded_calls, traced

SHORT = ("training.epochs=1", "training.schedule={name: constant}", "exact.epochs=1", "verify.samples=64")
SET = tuple(part for value in SHORT for part in ("--set", value))


@dataclass(frozen=True)
class Walk:
    """A run to be traced, with the figures counted by hand and the planned ones."""

    title: str
    command: tuple[str, ...]
    """The words after `pipeline`; TREE, RUN and REPORT stand for folders."""
    exit_code: int
    by_hand: "Figures"
    """The figures of the plan, for the tree before the change."""
    most_packages: int
    """The most changes of package after the change."""
    from_writer: bool = False
    """Whether to trace only what happens inside the function that writes a bundle's files."""


@dataclass(frozen=True)
class Figures:
    """The length of a walk."""

    files: int
    folders: int
    """Changes of folder."""
    back: int
    """Changes of folder back into one that the walk had left."""
    packages: int
    """Changes between pipeline, export and deploy."""


# The two files belong to one bundle but are not the same function. Looking for the place at which
# they part is a part of that walk. So is the report, because the walk that was counted by hand goes
# into its folder.
_PAIR = ("--reference", "RUN/bundle/model.onnx", "--candidate", "RUN/bundle/model.exact.onnx", "--samples", "40", "--report", "REPORT/pair")
WALKS = {
    "a": Walk("config -> trained checkpoint", ("train", "TREE/configs/quickstart.yaml", "--out", "RUN", *SET), 0, Figures(57, 67, 58, 18), 8),
    "b": Walk("trained graph -> model.exact.onnx in a bundle", ("export", "RUN"), 0, Figures(23, 30, 25, 28), 12, from_writer=True),
    "c": Walk("verify BUNDLE -> verdict and report", ("verify", "RUN/bundle", "--report", "REPORT/bundle"), 0, Figures(78, 122, 110, 81), 30),
    "d": Walk("verify --reference --candidate -> verdict", ("verify", *_PAIR), 3, Figures(47, 52, 46, 24), 10),
}
"""The walks in this order, because each needs what the one before it left."""

WRITERS = ("pipeline/staging.py:write_bundle_files", "pipeline/bundle/make.py:write_bundle_files")
"""What writes a bundle's files: the first entry whose file exists. A tree of another shape adds a
line or names it with --writer."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tree", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--before", type=Path, help="What this script wrote for the tree before the change.")
    parser.add_argument("--show", choices=WALKS, action="append", default=[], help="Print every station of this walk. Repeatable.")
    parser.add_argument("--writer", metavar="FILE:FUNCTION", help="What writes a bundle's files, where the script does not know it.")
    options = parser.parse_args(arguments)
    tree = Tree.at(options.tree)
    calls = traced_walks(tree, options.writer or writer_of(tree))
    found = {name: (figures(stations(each), each), figures(first_calls(each), each)) for name, each in calls.items()}
    for name in options.show:
        print(f"{WALKS[name].title}\n{shown(stations(calls[name]))}\n")
    print(table({name: walked for name, (walked, _) in found.items()}))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result(tree.commit, found), indent=2) + "\n", encoding="utf-8")
    if options.before is None:
        return 0
    missed = missed_targets(json.loads(options.before.read_bytes()), {name: walked for name, (walked, _) in found.items()})
    print("\n".join(missed) or "all targets are met")
    return 1 if missed else 0


def writer_of(tree: Tree) -> str:
    """Return what writes a bundle's files in this tree."""
    here = [writer for writer in WRITERS if _defines(tree.root / writer.partition(":")[0], writer.partition(":")[2])]
    if not here:
        raise SystemExit(f"none of {', '.join(WRITERS)} is in {tree.root}; name what writes a bundle's files with --writer")
    return here[0]


def _defines(path: Path, function: str) -> bool:
    return path.is_file() and f"def {function.rpartition('.')[2]}(" in path.read_text(encoding="utf-8")


def traced_walks(tree: Tree, writer: str) -> dict[str, list[Call]]:
    """Return the calls of each walk."""
    calls = {}
    with tempfile.TemporaryDirectory() as work:
        for name, walk in WALKS.items():
            into = Path(work, f"calls-{name}")
            into.mkdir()
            words = [word.replace("TREE", str(tree.root)).replace("RUN", f"{work}/run").replace("REPORT", f"{work}/report") for word in walk.command]
            done = tree.python("-m", "pipeline", *words, cwd=Path(work), environment=traced(tree, into, writer if walk.from_writer else None))
            if done.returncode != walk.exit_code:
                raise SystemExit(f"{walk.title}: exit code {done.returncode}, expected {walk.exit_code}\n{done.stdout}\n{done.stderr}")
            calls[name] = recorded_calls(into)
            if not calls[name]:
                raise SystemExit(f"{walk.title}: no function of the tree was seen{f' inside of {writer}' if walk.from_writer else ''}")
    return calls


Station = tuple[str, str]
"""A file and a function in it."""


def stations(calls: Iterable[Call]) -> list[Station]:
    """Return where a reader goes who follows each call between functions once.

    The reader goes to the caller, then to the called function.
    """
    seen: set[tuple[Station | None, Station]] = set()
    walked: list[Station] = []
    for call in calls:
        caller, callee = None if call.caller is None else outermost(call.caller), outermost(call.callee)
        if (caller, callee) in seen or caller == callee or not is_function(callee):
            continue
        seen.add((caller, callee))
        walked += [caller, callee] if caller is not None and is_function(caller) else [callee]
    return walked


def first_calls(calls: Iterable[Call]) -> list[Station]:
    """Return every function and every method, at its first call."""
    return list(dict.fromkeys(call.callee for call in calls))


def outermost(station: Station) -> Station:
    """Return the function that contains a function, lambda or comprehension.

    Some versions of Python make functions of comprehensions and some do not.
    """
    return station[0], station[1].partition(".<locals>")[0]


def is_function(station: Station) -> bool:
    """Return whether it is a named function of a module; methods have a dot, lambdas a bracket."""
    return not set(station[1]) & {".", "<"}


def figures(walked: Iterable[Station], calls: Iterable[Call]) -> Figures:
    """Return how long a walk is."""
    folders = [str(Path(path).parent) for path, _ in walked]
    changes = [(before, after) for before, after in pairwise(folders) if before != after]
    been, back = set(folders[:1]), 0
    for _, after in changes:
        back += after in been
        been.add(after)
    packages = sum(_package(before) != _package(after) for before, after in changes)
    return Figures(len({call.callee[0] for call in calls}), len(changes), back, packages)


def _package(folder: str) -> str:
    return Path(folder).parts[0]


def shown(walked: Sequence[Station]) -> str:
    """Return one line per file of the walk, with what is called in it.

    The sign is > for a new folder, < for one that the walk had left, and = for the same one.
    """
    lines: list[tuple[str, list[str]]] = []
    for path, function in walked:
        if not lines or lines[-1][0] != path:
            lines.append((path, []))
        if function not in lines[-1][1]:
            lines[-1][1].append(function)
    been: set[Path] = set()
    told, last = [], None
    for path, functions in lines:
        folder = Path(path).parent
        sign = "=" if folder == last else "<" if folder in been else ">"
        told.append(f"  {sign} {path}: {', '.join(functions)}")
        been.add(folder)
        last = folder
    return "\n".join(told)


def table(found: dict[str, Figures]) -> str:
    """Return one line per walk; in brackets are the figures counted by hand in the tree before."""
    rows = ["| walk | files | changes of folder | back into one left | changes of package |", "|---|--:|--:|--:|--:|"]
    for name, walked in found.items():
        pairs = zip(asdict(walked).values(), asdict(WALKS[name].by_hand).values(), strict=True)
        rows.append(f"| {WALKS[name].title} | {' | '.join(f'{ours} ({by_hand})' for ours, by_hand in pairs)} |")
    return "\n".join(rows)


def result(commit: str, found: dict[str, tuple[Figures, Figures]]) -> dict[str, Any]:
    """Return what is written."""
    walks = {
        name: {
            "title": WALKS[name].title,
            **asdict(walked),
            "by_hand_before": asdict(WALKS[name].by_hand),
            "most_packages": WALKS[name].most_packages,
            "every_function_at_its_first_call": asdict(every),
        }
        for name, (walked, every) in found.items()
    }
    return {"environment": environment(), "commit": commit, "walks": walks}


def missed_targets(before: dict[str, Any], found: dict[str, Figures]) -> list[str]:
    """Return one line per missed target.

    The ways back are compared with those of the tree before, measured by the same script.
    """
    missed = []
    for name, walked in found.items():
        walk, most_back = WALKS[name], before["walks"][name]["back"] // 2
        if walked.packages > walk.most_packages:
            missed.append(f"{walk.title}: {walked.packages} changes of package, at most {walk.most_packages} are planned")
        if walked.back > most_back:
            missed.append(f"{walk.title}: {walked.back} ways back, at most {most_back} are planned, half of those before")
    return missed


if __name__ == "__main__":
    sys.exit(main())
