"""Runs test files of a tree on a machine that may be busy, and says whether they hang.

Takes a tree and the arguments of pytest. No clock decides: a run hangs if one test uses more
processor time than any test needs, or if none of its threads is ready to run for minutes.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.house.trees import Tree

MOST_CPU_SECONDS = 300.0
"""How much processor time may pass between the ends of two tests."""
MOST_IDLE_SECONDS = 120.0
"""How long nothing may be ready to run."""
HEAVY = ("torch", "torchvision", "torch.onnx", "onnxscript", "onnx", "onnxruntime", "sklearn.datasets", "scipy.stats", "pydantic", "PIL.Image")
"""What is imported once, for all runs."""
_TICKS = os.sysconf("SC_CLK_TCK")
_POLL = 0.2


@dataclass(frozen=True)
class TestRun:
    """How a run of tests ended."""

    __test__ = False  # pytest takes the name for a class of tests

    code: int | None
    """The exit code; None if the run hung and was stopped."""
    output: str

    @property
    def failed(self) -> bool:
        return self.code != 0

    @property
    def first_failure(self) -> str:
        """The first test that failed, or an empty text."""
        lines = [line.split() for line in self.output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        return lines[0][1] if lines else ""

    @property
    def in_work(self) -> str:
        """The test that had begun and not ended, or an empty text."""
        words = (self.output.splitlines() or [""])[-1].split()
        return words[0] if words and "::" in words[0] and len(words) == 1 else ""


class Tests:
    """The tests of a tree, run in forks of one warm process."""

    __test__ = False

    def __init__(self, tree: Tree) -> None:
        self._output = tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace")  # noqa: SIM115  # closed by `close`
        command = [sys.executable, str(Path(__file__).with_name("warm.py")), *HEAVY]
        self._server = subprocess.Popen(command, cwd=tree.root, env=tree.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def close(self) -> None:
        self._server.communicate()
        self._output.close()

    def run(self, tests: Sequence[str]) -> TestRun:
        """Run test files or single tests, up to the first failure."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        arguments = ["-x", "-v", "--tb=short", "--no-header", "-p", "no:cacheprovider", *tests]
        self._server.stdin.write(json.dumps({"arguments": arguments, "output": self._output.name}) + "\n")
        self._server.stdin.flush()
        session = int(self._server.stdout.readline())
        hangs = self._hangs(session)
        with suppress(ProcessLookupError):
            os.killpg(session, signal.SIGKILL)  # including what the tests left running
        code = int(self._server.stdout.readline())
        return TestRun(None if hangs else code, Path(self._output.name).read_text("utf-8", errors="replace"))

    def _hangs(self, session: int) -> bool:
        """Wait for the end of a run, and return whether it was waited for in vain."""
        written, used_before, idle_since = 0, 0.0, time.monotonic()
        while True:
            time.sleep(_POLL)
            used, is_ready, has_ended = _state_of(session)
            if has_ended:
                return False
            size = Path(self._output.name).stat().st_size  # a sign for each test that has ended
            if size != written:
                written, used_before = size, used
            if is_ready or size != written:
                idle_since = time.monotonic()
            if used - used_before > MOST_CPU_SECONDS or time.monotonic() - idle_since > MOST_IDLE_SECONDS:
                return True


def _state_of(session: int) -> tuple[float, bool, bool]:
    """Return the processor seconds of a session, whether any of its threads is ready to run, and
    whether its first process has ended."""
    used, is_ready, has_ended = 0.0, False, True
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = _fields_of(process)
            if int(fields[3]) != session:
                continue
            used += sum(map(int, fields[11:15])) / _TICKS  # its own, and its children's that have ended
            if int(process.name) == session:
                has_ended = fields[0] in "ZX"
            is_ready = is_ready or any(_fields_of(thread)[0] in "RD" for thread in process.glob("task/*"))
    return used, is_ready, has_ended


def _fields_of(process: Path) -> list[str]:
    """Return the fields of `stat` behind the name, which may hold anything."""
    return (process / "stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
