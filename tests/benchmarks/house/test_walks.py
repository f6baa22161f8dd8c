"""Walks through the code: what is recorded of a tree of three files, and how a walk is counted."""

from pathlib import Path

import pytest

from benchmarks.house.trees import Call, Tree, recorded_calls, traced
from benchmarks.house.walks import WALKS, Figures, figures, first_calls, missed_targets, shown, stations, table

FILES = {
    "pipeline/__init__.py": "",
    "pipeline/__main__.py": """
import subprocess, sys, threading
from export.writer import Writer, write
from pipeline.parts.one import one

def main():
    one()
    write([one() for _ in range(3)])
    Writer().save()
    thread = threading.Thread(target=one)
    thread.start()
    thread.join()
    import deploy.late
    subprocess.run([sys.executable, "-c", "import deploy.late; deploy.late.host()"], check=True)

main()
""",
    "pipeline/parts/__init__.py": "",
    "pipeline/parts/one.py": "def one():\n    return 1\n",
    "export/__init__.py": "",
    "export/writer.py": "def write(values):\n    check()\n\ndef check():\n    pass\n\nclass Writer:\n    def save(self):\n        check()\n",
    "deploy/__init__.py": "",
    "deploy/late.py": "def at_import():\n    pass\n\nat_import()\n\ndef host():\n    pass\n",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    root = tmp_path_factory.mktemp("tree")
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    return Tree.at(root)


def calls_of(tree: Tree, folder: Path, within: str | None = None) -> list[Call]:
    done = tree.python("-m", "pipeline", cwd=folder, environment=traced(tree, folder, within))
    assert done.returncode == 0, done.stderr
    return recorded_calls(folder)


def test_functions_methods_threads_and_child_processes_are_recorded_and_imports_are_not(tree: Tree, tmp_path: Path) -> None:
    calls = calls_of(tree, tmp_path)
    called = [(call.caller and call.caller[1], call.callee[1]) for call in calls]
    assert set(called) >= {(None, "main"), ("main", "one"), ("main", "write"), ("write", "check"), ("Writer.save", "check"), (None, "one")}
    assert called[-1] == (None, "host")  # in a process of its own, and last by the clock
    assert not {"at_import", "<module>", "Writer"} & {callee for _, callee in called}
    assert len(called) == len(set(called))


def test_of_a_part_only_what_happens_inside_is_recorded(tree: Tree, tmp_path: Path) -> None:
    calls = calls_of(tree, tmp_path, "export/writer.py:write")
    assert [call.callee[1] for call in calls] == ["write", "check"]


def test_a_walk_goes_from_function_to_function_through_methods_and_comprehensions(tree: Tree, tmp_path: Path) -> None:
    walked = stations(calls_of(tree, tmp_path))
    main, one = ("pipeline/__main__.py", "main"), ("pipeline/parts/one.py", "one")
    write, check = ("export/writer.py", "write"), ("export/writer.py", "check")
    assert walked == [main, main, one, main, write, write, check, check, one, ("deploy/late.py", "host")]


def test_the_figures_of_a_walk() -> None:
    names = ["pipeline/a.py", "pipeline/b.py", "export/c.py", "pipeline/a.py", "pipeline/parts/d.py", "export/c.py", "deploy/e.py"]
    calls = [Call(None, (name, "f")) for name in names]
    assert figures([(name, "f") for name in names], calls) == Figures(files=5, folders=5, back=2, packages=4)
    assert figures([], []) == Figures(0, 0, 0, 0)
    assert first_calls([Call(None, ("a.py", "f")), Call(("a.py", "f"), ("a.py", "g")), Call(("a.py", "g"), ("a.py", "f"))]) == [
        ("a.py", "f"),
        ("a.py", "g"),
    ]


def test_a_walk_is_shown_with_its_changes_of_folder() -> None:
    walked = [("pipeline/a.py", "f"), ("pipeline/b.py", "g"), ("export/c.py", "h"), ("export/c.py", "i"), ("pipeline/a.py", "f")]
    assert shown(walked).split("\n") == ["  > pipeline/a.py: f", "  = pipeline/b.py: g", "  > export/c.py: h, i", "  < pipeline/a.py: f"]


def test_a_target_that_is_missed_is_named() -> None:
    before = {"walks": {name: {"back": 20} for name in WALKS}}
    good = {name: Figures(50, 30, 10, walk.most_packages) for name, walk in WALKS.items()}
    assert missed_targets(before, good) == []
    bad = {**good, "a": Figures(50, 30, 11, 9)}
    assert missed_targets(before, bad) == [
        "config -> trained checkpoint: 9 changes of package, at most 8 are planned",
        "config -> trained checkpoint: 11 ways back, at most 10 are planned, half of those before",
    ]
    assert "| 50 (57) | 30 (67) | 11 (58) | 9 (18) |" in table(bad)
