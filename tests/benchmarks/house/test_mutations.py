"""Single changes to code: the possible ones, their draw, and the comparison of results.

They are drawn and made in the same way in a tree whose files have moved.
"""

import ast
import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.house import mutating, mutations, test_runs
from benchmarks.house.mutating import Mutation, NotPlacedError, drawn, functions_of, mutated, mutations_of, placed
from benchmarks.house.mutations import Trial, copied, escapes, main, read_mutations, read_results, table
from benchmarks.house.nearness import ImportGraph
from benchmarks.house.test_runs import Tests
from benchmarks.house.trees import Tree

SOURCE = '''
LIMIT = 3


def first(values: list[int], most: int = 7) -> int:
    """Not 1 of these 2 is a change."""
    if len(values) > 2 and not most:  # 3 of them
        raise ValueError(f"{len(values) + 1} values, 1 too many")
    total: int = -values[0] + (values[1] * 2)
    total += 1
    assert total > 0
    return total if "ä" in "ää" else (total) // 4


class Sum:
    def first(self) -> float:
        def inner() -> float:
            return 0.5

        return inner() + self.rest

    @property
    def rest(self) -> bool:
        return True
'''
Json = dict[str, Any]


def changes(source: str = SOURCE) -> list[Mutation]:
    return mutations_of("fold", "export/fold.py", source)


def test_every_kind_of_change_is_there_and_nothing_that_only_words_or_types() -> None:
    found = [(each.function, each.kind, each.old, each.new) for each in changes()]
    assert found == [
        ("first", "condition", "len ( values ) > 2 and not most", "not (len(values) > 2 and not most)"),
        ("first", "logic", "and", "or"),
        ("first", "comparison", ">", ">="),
        ("first", "constant", "2", "3"),
        ("first", "logic", "not", ""),
        ("first", "arithmetic", "+", "-"),
        ("first", "arithmetic", "-", ""),
        ("first", "constant", "0", "1"),
        ("first", "arithmetic", "*", "/"),
        ("first", "constant", "1", "2"),
        ("first", "constant", "2", "3"),
        ("first", "arithmetic", "+=", "-="),
        ("first", "constant", "1", "2"),
        ("first", "comparison", "in", "not in"),
        ("first", "arithmetic", "//", "*"),
        ("first", "constant", "4", "5"),
        ("Sum.first", "arithmetic", "+", "-"),
        ("Sum.first.<locals>.inner", "constant", "0.5", "1.0"),
        ("Sum.rest", "constant", "True", "False"),
    ]


def test_every_change_is_one_edit_in_its_line_and_makes_another_program() -> None:
    functions = functions_of("export/fold.py", SOURCE)
    texts = set()
    for each in changes():
        changed = mutated(SOURCE, placed(functions, each), each.new)
        ast.parse(changed)
        different = [(old, new) for old, new in zip(SOURCE.splitlines(), changed.splitlines(), strict=True) if old != new]
        assert [old.strip() for old, _ in different] == [each.line]
        texts.add(changed)
    assert len(texts) == len(changes())


MOVED = '''
class Before:
    def first(self, values):
        if len(values) > 2 and not most:
            return 0


def inner():
    return 0.5


class Sum:
    def start(self) -> float:
        def inner() -> float:
            return 0.5

        return inner() + self.rest


def first(values: list[int], most: int = 7) -> int:
    """In other words."""
    if (
        len(values) > 2
        and not most
    ):
        raise TooManyError(values)
    total: int = -values[0] + (values[1] * 2)
    return total if "ä" in "ää" else (total) // 4
'''


def test_a_change_is_found_again_where_its_function_has_moved() -> None:
    functions = functions_of("export/layers/folding.py", MOVED)
    by_old = {(each.function, each.old): each for each in changes()}
    with pytest.raises(NotPlacedError, match="no function first has the line"):
        placed(functions, by_old["first", "+="])
    for key, line in (
        (("first", "*"), "total: int = -values[0] + (values[1] / 2)"),
        (("first", "//"), 'return total if "ä" in "ää" else (total) * 4'),
    ):
        place = placed(functions, by_old[key])
        assert line in mutated(MOVED, place, by_old[key].new)
        assert place.function.name == "first"


def test_a_line_is_the_same_however_it_is_laid_out() -> None:
    one_line = "def f(a, b):\n    return a + b * 2\n"
    several = "def f(a, b):\n    return (  # why\n        a\n        + b\n        * 2\n    )\n"
    (plus, *_) = mutations_of("fold", "a.py", several)
    assert (plus.line, plus.words, plus.old) == ("+ b", ("+", "b"), "+")
    assert mutated(one_line, placed(functions_of("b.py", one_line), plus), plus.new) == "def f(a, b):\n    return a - b * 2\n"


def test_a_function_with_another_name_is_found_by_its_line_if_that_is_long_enough_and_one() -> None:
    functions = functions_of("a.py", MOVED)
    plus = next(each for each in changes() if each.function == "Sum.first")
    assert placed(functions, plus).function.name == "Sum.start"
    half = next(each for each in changes() if each.function == "Sum.first.<locals>.inner")
    with pytest.raises(NotPlacedError, match="too short"):
        placed(functions, half)
    assert placed(functions, half, {"Sum.first.<locals>.inner": "Sum.start.<locals>.inner"}).start[0] == 15
    twice = functions_of("a.py", MOVED) + functions_of("b.py", MOVED)
    with pytest.raises(NotPlacedError, match=r"at 2 places: a\.py:\d+, b\.py:\d+"):
        placed(twice, plus)


def test_of_two_functions_of_a_name_that_with_the_same_words_is_taken() -> None:
    other = SOURCE.replace("total += 1", "total += 1\n    total = total")
    functions = functions_of("b/one.py", other) + functions_of("c/two.py", SOURCE)
    assert placed(functions, changes()[0]).function.file == "c/two.py"
    # no function with the same words: the file of the same name
    functions = functions_of("b/fold.py", other) + functions_of("c/two.py", other)
    assert placed(functions, changes()[0]).function.file == "b/fold.py"


def test_a_change_that_changes_nothing_is_refused() -> None:
    constant = changes()[-1]
    with pytest.raises(NotPlacedError, match="changes nothing"):
        mutated(SOURCE, placed(functions_of("export/fold.py", SOURCE), constant), "True")


TREE = {
    "pipeline/__init__.py": "",
    "export/__init__.py": "",
    "deploy/__init__.py": "",
    "export/fold.py": """def fold(x):
    if x > 1:
        x = x * 2
    while x > 9:
        x = x - 1
    return x


def alone(x):
    return x + 1
""",
    "tests/test_a.py": "from export.fold import fold\n\ndef test_small():\n    assert fold(0) == 0\n",
    "tests/test_b.py": "from export.fold import fold\n\ndef test_large():\n    assert fold(3) == 6\n    assert fold(20) == 9\n",
    "tests/test_alone.py": "def test_nothing():\n    pass\n",
    "tests/test_slow.py": "import time\nfrom export.fold import fold\n\ndef test_waits():\n    time.sleep(3)\n",
    "tests/test_c.py": "from export.fold import fold\n\ndef test_wrong():\n    assert fold(3) == 7\n",
}


@pytest.fixture(scope="module", autouse=True)
def nothing_heavy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_runs, "HEAVY", ())
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    for name, content in TREE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def test_the_draw_is_the_same_for_a_seed_and_even_over_the_areas(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "two.py").write_text("def f(x):\n    return x + 1\n", encoding="utf-8")
    monkeypatch.setattr(mutating, "AREAS", {"large": ("one.py",), "small": ("two.py",)})
    found = drawn(tmp_path, 10, seed=1)
    assert [each.area for each in found] == ["large"] * 8 + ["small"] * 2
    assert [each.id for each in found] == list(range(10))
    assert found == drawn(tmp_path, 10, seed=1)
    assert found != drawn(tmp_path, 10, seed=2)
    assert len(set(found)) == 10


def test_what_is_drawn_from_real_code_is_found_in_it_and_makes_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Path(mutations.__file__).parents[2]
    files = {str(path): (path.relative_to(tree).as_posix(),) for path in sorted((tree / "export").rglob("*.py"))}
    monkeypatch.setattr(mutating, "AREAS", files)
    found = drawn(tree, 100, seed=0)
    functions = [each for (path,) in files.values() for each in functions_of(path, (tree / path).read_text("utf-8"))]
    for each in found:
        place = placed(functions, each)
        assert (place.function.file, place.function.name) == (each.file, each.function)
        mutated((tree / each.file).read_text("utf-8"), place, each.new)


def change(line: str, old: str) -> Mutation:
    found = mutations_of("fold", "export/fold.py", TREE["export/fold.py"])
    return next(each for each in found if (each.line, each.old) == (line, old))


@pytest.fixture(scope="module")
def trial(root: Path) -> Iterator[Trial]:
    with copied(Tree(root)) as changed, copied(Tree(root)) as unchanged, closing(Trial(changed, unchanged, {})) as trial:
        yield trial


def test_the_nearest_test_files_come_first(root: Path) -> None:
    (root / "tests/far").mkdir()
    (root / "tests/export").mkdir()
    (root / "tests/far/test_over_two.py").write_text("from pipeline.two import two\n", encoding="utf-8")
    (root / "pipeline/two.py").write_text("def two():\n    from export import fold\n", encoding="utf-8")
    (root / "tests/export/test_fold.py").write_text("import subprocess\n", encoding="utf-8")
    try:
        found = ImportGraph(root).tests_by_distance("export/fold.py")
    finally:
        shutil.rmtree(root / "tests/far")
        shutil.rmtree(root / "tests/export")
        (root / "pipeline/two.py").unlink()
    direct = ["tests/test_a.py", "tests/test_b.py", "tests/test_c.py", "tests/test_slow.py"]
    assert found == ["tests/export/test_fold.py", *direct, "tests/far/test_over_two.py", "tests/test_alone.py"]


def test_a_change_is_caught_by_a_test_that_fails_because_of_it(trial: Trial) -> None:
    caught = trial.of(change("x = x * 2", "2"))
    assert (caught["status"], caught["by"], caught["place"]) == ("caught", "tests/test_b.py::test_large", "export/fold.py:3")
    escaped = trial.of(change("if x > 1:", ">"))
    assert (escaped["status"], escaped["by"]) == ("escaped", "5 of 5 test files")  # test_c fails without a change, so it says nothing


def test_a_change_that_cannot_be_made_is_told(trial: Trial, root: Path) -> None:
    gone = Mutation(**{**vars(change("x = x * 2", "2")), "function": "other", "words": ("x",)})
    assert trial.of(gone)["status"] == "not placed"
    assert (root / "export/fold.py").read_text(encoding="utf-8") == TREE["export/fold.py"]


def test_what_does_not_end_is_caught_and_a_slow_machine_is_not(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_runs, "MOST_CPU_SECONDS", 2.0)
    endless = trial.of(change("x = x - 1", "-"))
    assert (endless["status"], endless["by"]) == ("caught", "no end of tests/test_b.py::test_large")


def test_what_waits_for_nothing_is_stopped(trial: Trial, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_runs, "MOST_IDLE_SECONDS", 1.0)
    monkeypatch.setattr(test_runs, "MOST_CPU_SECONDS", 60.0)
    with closing(Tests(Tree(root))) as tests:
        run = tests.run(["tests/test_slow.py"])
    assert (run.code, run.in_work) == (None, "tests/test_slow.py::test_waits")


def test_a_failure_that_does_not_come_again_catches_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCE", str(tmp_path / "once"))
    with copied(Tree(root)) as changed, copied(Tree(root)) as unchanged:
        for tree in (changed, unchanged):
            for file in ("test_b.py", "test_c.py", "test_slow.py"):
                (tree.root / "tests" / file).unlink()
            (tree.root / "tests/test_a.py").write_text(FAILS_ONCE, encoding="utf-8")
        with closing(Trial(changed, unchanged, {})) as trial:
            assert trial.of(change("x = x * 2", "2"))["status"] == "escaped"
    assert (tmp_path / "once").exists()


FAILS_ONCE = """import os
from pathlib import Path

from export.fold import fold


def test_once():
    once = Path(os.environ["ONCE"])
    if not once.exists():
        once.touch()
        assert fold is None
"""


def test_what_was_drawn_is_read_back_and_what_was_run_is_not_run_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutating, "AREAS", {"fold": ("export/fold.py",)})
    monkeypatch.setattr(Tree, "commit", "0" * 40)
    words = ("--tree", str(root), "--out")
    assert main(["draw", *words, str(tmp_path / "drawn.json"), "--number", "5"]) == 0
    assert read_mutations(tmp_path / "drawn.json") == drawn(root, 5, seed=0)
    run = ["run", *words, str(tmp_path / "results.jsonl"), "--mutations", str(tmp_path / "drawn.json"), "--files", "1"]
    assert main([*run, "--only", "3"]) == 0
    with (tmp_path / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": 4, "st')  # a run that was killed
    assert [each["id"] for each in read_results(tmp_path / "results.jsonl")] == [3]
    assert main(run) == 0
    assert sorted(each["id"] for each in read_results(tmp_path / "results.jsonl")) == [0, 1, 2, 3, 4]


def test_any_first_part_of_a_run_has_changes_of_all_areas() -> None:
    first = changes()[0]
    lots = [Mutation(**{**vars(first), "id": index, "area": area}) for index, area in enumerate(["a", "a", "b", "b", "b", "c"])]
    assert [each.id for each in mutations._spread(lots)] == [0, 2, 5, 1, 3, 4]


def outcome(number: int, status: str) -> Json:
    told = {"id": number, "area": "fold", "function": "fold", "line": "x > 1", "old": ">", "new": ">=", "by": "tests/test_a.py::test"}
    return {**told, "status": status, "place": "", "seconds": 1.0}


def test_what_was_caught_before_must_be_caught_after() -> None:
    before = [outcome(0, "caught"), outcome(1, "escaped"), outcome(2, "caught"), outcome(3, "caught"), outcome(4, "caught")]
    assert escapes(before, [*before[::-1], outcome(9, "escaped")]) == []
    after = [outcome(0, "caught"), outcome(1, "caught"), outcome(2, "escaped"), outcome(3, "not placed")]
    assert [line.partition(":")[0] for line in escapes(before, after)] == ["2", "3", "4"]
    assert escapes(before, after)[2].endswith("caught before by tests/test_a.py::test, after: not run")
    assert "| fold | 5 | 4 (80%) | 2 (50%) | 1 |" in table(before, after)


def test_comparing_with_nothing_fails(tmp_path: Path) -> None:
    for name, results in (("empty", []), ("before", [outcome(0, "caught")]), ("after", [outcome(0, "escaped")])):
        (tmp_path / name).write_text("".join(json.dumps(each) + "\n" for each in results), encoding="utf-8")
    assert main(["compare", str(tmp_path / "before"), str(tmp_path / "before")]) == 0
    assert main(["compare", str(tmp_path / "before"), str(tmp_path / "after")]) == 1
    assert main(["compare", str(tmp_path / "empty"), str(tmp_path / "empty")]) == 1
