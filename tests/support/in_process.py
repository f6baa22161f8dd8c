"""A stand-in for a host process, which answers the same requests in this process.

It is for tests of what is requested, not of how a host process is isolated.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.runners.runner import Runner
from deploy.sandbox.file_kinds import Kind, Opening
from deploy.sandbox.opening import contents_of, open_form
from deploy.sandbox.process import Contents, HostError, Limits, contents_from
from export.errors import SamegraphError


class HereHost:
    """Offers what `HostProcess` offers."""

    def __init__(self, limits: Limits, known_as: Mapping[str, str] | None = None) -> None:
        self.limits, self.known_as = limits, known_as

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        return

    def contents(self, kind: Kind, path: Path) -> Contents:
        return contents_from(contents_of(kind, path))

    def open(self, opening: Opening) -> Runner:
        try:
            return open_form(opening)
        except SamegraphError:
            raise
        except Exception as error:
            raise HostError(f"{type(error).__name__}: {error}") from error
