"""Files that many tests need are made once for all, even in several processes.

A test that changes such a file works on a copy.
"""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


class MadeOnce:
    """Files and folders that live as long as the test run."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder

    @classmethod
    def of_this_run(cls, factory: pytest.TempPathFactory) -> "MadeOnce":
        """In the folder that the processes of pytest-xdist share."""
        own = factory.getbasetemp()
        return cls((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "made_once")

    def path(self, name: str, make: Callable[[Path], object]) -> Path:
        """The file or folder of this name. The first to ask makes it; others wait meanwhile."""
        place, whole = self._folder / name, self._folder / f"{name}.whole"
        with (self._folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                shutil.rmtree(place, ignore_errors=True)  # left over from a failed attempt
                make(place)
                whole.touch()
        return place
