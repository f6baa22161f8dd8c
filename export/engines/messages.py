"""What TensorRT says while it works: kept, so that an error can repeat it, and never printed.

TensorRT has one logger per process and ignores every later one; so there is one here for each of its two modules.
"""

import functools
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_KEPT = 1000
_LONGEST = 400
_NOISE = re.compile(r"catchCudaError|^ModelImporter\.cpp:\d+: (While parsing|---)")
"""Said beside every other error where there is no GPU, or a part of a longer message."""
_PLACE = re.compile(r"\s*In \w[^()]* at /_src/\S+:\d+\)?")
"""Where in NVIDIA's sources it happened."""


class Messages:
    """The messages of one piece of work."""

    def __init__(self) -> None:
        self._said: deque[tuple[str, str]] = deque(maxlen=_KEPT)

    def add(self, severity: str, text: str) -> None:
        self._said.append((severity, text))

    @property
    def warnings(self) -> list[str]:
        return self._of("WARNING")

    @property
    def errors(self) -> list[str]:
        """Errors, without those that only accompany others."""
        found = self._of("ERROR", "INTERNAL_ERROR")
        return [text for text in found if not _NOISE.search(text)] or found

    def __str__(self) -> str:
        """All errors on one line; a failure that says nothing has only its warnings."""
        line = "; ".join(self.errors or self.warnings) or "no reason given"
        return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."

    def _of(self, *severities: str) -> list[str]:
        texts = (" ".join(_PLACE.sub("", text).split()) for severity, text in self._said if severity in severities)
        return list(dict.fromkeys(texts))


@contextmanager
def listening(module: ModuleType) -> Iterator[Messages]:
    """Collect what a TensorRT says while this lasts."""
    logger, heard = logger_of(module), Messages()
    logger.listeners.append(heard)
    try:
        yield heard
    finally:
        logger.listeners.remove(heard)


@functools.cache
def logger_of(module: ModuleType) -> Any:
    """The logger to be given to whatever of this module wants one."""
    base: Any = module.ILogger

    class Logger(base):  # type: ignore[misc]  # the class is known once the module is loaded
        def __init__(self) -> None:
            base.__init__(self)
            self.listeners: list[Messages] = []

        def log(self, severity: Any, text: str) -> None:
            if severity.name not in ("INFO", "VERBOSE"):
                for listener in tuple(self.listeners):
                    listener.add(severity.name, text)

    return Logger()
