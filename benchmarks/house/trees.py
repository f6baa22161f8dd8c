"""A tree of this repository: what it consists of, and how its own code is run.

Takes a folder, such as the tree before or after a change. Code of a tree runs in a process of its
own with the tree first on its path. It fails if the code does not come from there.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("pipeline", "export", "deploy")
TRACED = Path(__file__).parent / "traced"
_WHERE = f"import {', '.join(PACKAGES)}; print(*(each.__file__ for each in ({', '.join(PACKAGES)})), sep='\\n')"


@dataclass(frozen=True)
class Call:
    """The first call from one function to another; each is a file and a qualified name.

    The caller is None if it does not belong to the tree.
    """

    caller: tuple[str, str] | None
    callee: tuple[str, str]


@dataclass(frozen=True)
class Tree:
    """A folder that holds the three packages."""

    root: Path

    @classmethod
    def at(cls, folder: Path) -> "Tree":
        """Return the tree in a folder, after checking that its code is what runs."""
        tree = cls(folder.resolve())
        with tempfile.TemporaryDirectory() as elsewhere:
            done = tree.python("-c", _WHERE, cwd=Path(elsewhere))
        if done.returncode or not all(Path(line).is_relative_to(tree.root) for line in done.stdout.split()):
            raise RuntimeError(f"{folder}: its code is not what runs with it on the path: {done.stdout}{done.stderr}")
        return tree

    @property
    def commit(self) -> str:
        """The commit that is checked out, and whether the packages have changed since."""
        changed = self._git("status", "--porcelain", "--", *PACKAGES)
        return self._git("rev-parse", "HEAD") + (" with changes" if changed else "")

    def _git(self, *arguments: str) -> str:
        return subprocess.run(["git", "-C", str(self.root), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    @property
    def sources(self) -> list[Path]:
        """Return the Python files of the packages, in order."""
        return sorted(path for package in PACKAGES for path in (self.root / package).rglob("*.py"))

    @property
    def digest(self) -> str:
        """A hash of everything in the packages and of the configs.

        Two trees with the same hash run the same code.
        """
        content = hashlib.sha256()
        for path in sorted(path for name in (*PACKAGES, "configs") for path in (self.root / name).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                content.update(f"{path.relative_to(self.root)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        return content.hexdigest()

    def environment(self, more: Mapping[str, str] | None = None, *, path: Sequence[Path] = ()) -> dict[str, str]:
        """Return the variables of a process that runs this tree.

        They select one thread and no GPU, so that two runs have the same bits.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRACED_", "PYTHON", "PYTEST_"))}
        ours = {"PYTHONPATH": os.pathsep.join(map(str, [*path, self.root])), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return {**kept, **ours, **(more or {})}

    def python(self, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run Python with this tree first on its path; `cwd` must not hold packages of the same
        names."""
        given = self.environment() if environment is None else environment
        return subprocess.run([sys.executable, *arguments], cwd=cwd, env=given, capture_output=True, text=True, errors="replace", check=False)


def traced(tree: Tree, folder: Path, within: str | None = None) -> dict[str, str]:
    """Return the variables that make processes record the tree's calls in a folder.

    This includes child processes.
    """
    more = {"TRACED_TREE": str(tree.root), "TRACED_INTO": str(folder), **({"TRACED_WITHIN": within} if within else {})}
    return tree.environment(more, path=(TRACED,))


def recorded_calls(folder: Path) -> list[Call]:
    """Return what all traced processes wrote, in order of time.

    All processes of a machine share one clock.
    """
    lines: list[tuple[int, list[str] | None, list[str]]] = []
    for path in sorted(folder.glob("*.jsonl")):
        # A process that was killed may have left half a line at the end.
        lines += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    lines.sort(key=lambda line: line[0])
    return [Call(None if caller is None else (caller[0], caller[1]), (callee[0], callee[1])) for _, caller, callee in lines]
