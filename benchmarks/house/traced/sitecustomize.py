"""Run by every Python process that has this folder on its path: records calls between functions.

Each pair of functions of a tree is recorded once. Takes the tree in TRACED_TREE and a folder in
TRACED_INTO, which gets one file per process. TRACED_WITHIN=FILE:FUNCTION records only what happens
inside that function. Knows nothing about the use of the pairs. Uses only the standard library,
because it runs before everything else.
"""

import inspect
import json
import os
import sys
import threading
import time
from types import CodeType, FrameType

_FUNCTION, _IMPORT = 1, 2
Place = tuple[str, str]
"""A file of the tree, and a function in it by its qualified name."""


class _Stack(threading.local):
    """The functions of ours that a thread is in, and how many modules it is importing."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self.importing = 0


class _Recorder:
    def __init__(self, tree: str, folder: str, within: str | None) -> None:
        self._tree = f"{tree}{os.sep}"
        self._ours = tuple(f"{self._tree}{package}{os.sep}" for package in ("pipeline", "export", "deploy"))
        self._within, self._inside = within, 0
        self._known: dict[int, tuple[CodeType, int, Place]] = {}  # by id, with the code itself: an id is used again once its owner is gone
        self._seen: set[tuple[Place | None, Place]] = set()
        self._stack = _Stack()
        # Each line is written at once, because some processes are killed by their owners.
        self._file = os.open(f"{folder}/{os.getpid()}-{time.monotonic_ns()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event not in ("call", "return"):
            return
        _, kind, place = self._known.get(id(frame.f_code)) or self._met(frame)
        if kind == _IMPORT:
            self._stack.importing += 1 if event == "call" else -1
        elif kind == _FUNCTION and not self._stack.importing:
            if event == "call":
                self._called(place)
            else:
                self._returned(place)

    def _met(self, frame: FrameType) -> tuple[CodeType, int, Place]:
        code = frame.f_code
        ours = code.co_filename.startswith(self._ours) and code.co_filename.endswith(".py")  # templates become code objects too
        if not ours:
            kind = 0
        elif code.co_flags & inspect.CO_OPTIMIZED:
            kind = _FUNCTION
        else:  # bodies of modules and classes; the started module lasts as long as the process and imports nothing
            kind = 0 if frame.f_globals.get("__name__") == "__main__" else _IMPORT
        place = (code.co_filename.removeprefix(self._tree), code.co_qualname)
        self._known[id(code)] = code, kind, place
        return self._known[id(code)]

    def _called(self, place: Place) -> None:
        places = self._stack.places
        pair = (places[-1] if places else None, place)
        places.append(place)
        if self._within == ":".join(place):
            self._inside += 1
        if pair not in self._seen and (self._within is None or self._inside):
            self._seen.add(pair)
            os.write(self._file, (json.dumps([time.monotonic_ns(), pair[0], place]) + "\n").encode())

    def _returned(self, place: Place) -> None:
        if self._within == ":".join(place):
            self._inside -= 1
        if self._stack.places:
            self._stack.places.pop()


if "TRACED_TREE" in os.environ:
    _recorder = _Recorder(os.environ["TRACED_TREE"], os.environ["TRACED_INTO"], os.environ.get("TRACED_WITHIN"))
    threading.setprofile(_recorder)
    sys.setprofile(_recorder)
