"""A process that has imported the heavy libraries and forks to run tests, so that each run starts
at once.

Run by `test_runs` with a tree first on the path and the names of those libraries. Takes one JSON
object a line: the arguments of pytest and the file for its output. Answers with the child's process
id and, when it has ended, its exit code. Imports nothing of the tree itself: each child sees the
tree as it is on disk.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest


def main() -> None:
    """Serve requests until standard input ends."""
    for name in sys.argv[1:]:
        with suppress(ImportError):
            __import__(name)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(request["arguments"], request["output"])
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(arguments: list[str], output: str) -> None:
    os.setsid()  # so that everything that the tests start is found and ended with them
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in ((nothing, 0), (written, 1), (written, 2)):
        os.dup2(descriptor, target)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # the server's own has been read ahead
    sys.argv = ["pytest", *arguments]
    code = 1
    try:
        code = int(pytest.main(arguments))
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path[0] = str(Path.cwd())
    main()
