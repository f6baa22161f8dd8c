"""What many tests need is made once for all of them, also where they run in several processes. Whoever changes it takes a copy."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


class MadeOnce:
    """Files and folders that live as long as the run of the tests."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder

    @classmethod
    def of_this_run(cls, factory: pytest.TempPathFactory) -> "MadeOnce":
        """In the folder that the processes of pytest-xdist have in common."""
        own = factory.getbasetemp()
        return cls((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "made_once")

    def path(self, name: str, make: Callable[[Path], object]) -> Path:
        """The file or folder of this name. The first who asks makes it; whoever asks meanwhile waits."""
        place, whole = self._folder / name, self._folder / f"{name}.whole"
        with (self._folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                shutil.rmtree(place, ignore_errors=True)  # what one left whose making failed
                make(place)
                whole.touch()
        return place
