"""The owner's side of a host process: starts it, limits it, and reports how it failed.

A crash, a silence or an error becomes a finding. Takes paths and openings; returns runners whose
work is done in the process.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deploy.runners.forms import Form
from deploy.runners.runner import Array, Point, Runner, TensorSpec
from deploy.runners.runtimes import AS_IT_IS, TORCH
from deploy.sandbox.file_kinds import OF_OURS, OUT_OF_MEMORY, Kind, Opening
from deploy.sandbox.wire import ClosedError, LateError, Message, receive, send
from export.errors import DamagedError, SamegraphError, UsageError

_ROOT = Path(__file__).parents[2]
_LEAST_GIBIBYTES, _MOST_GIBIBYTES, _MOST_SECONDS = 1, 2**20, 10**8


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a host process may use."""

    gibibytes: float = 16
    """Memory for data. 0 means no limit, which CUDA needs."""
    seconds: float = 600
    """The time for one request: opening a file, or running one batch."""

    def __post_init__(self) -> None:
        if not (self.gibibytes == 0 or _LEAST_GIBIBYTES <= self.gibibytes <= _MOST_GIBIBYTES):
            raise UsageError(f"--memory-limit {self.gibibytes:g}: a runtime alone takes {_LEAST_GIBIBYTES} GiB; give that or more, or 0 for no limit")
        if not 0 < self.seconds <= _MOST_SECONDS:
            raise UsageError(f"--time-limit {self.seconds:g} is not a time to wait; give seconds, at most {_MOST_SECONDS}")


class HostError(Exception):
    """What went wrong in a host process, in one line."""


@dataclass(frozen=True)
class Contents:
    """What a file states about itself."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    floats: tuple[str, ...]
    points: tuple[Point, ...]


class HostProcess:
    """One process for one file, and for all the ways in which that file is run."""

    def __init__(self, limits: Limits, known_as: Mapping[str, str] | None = None) -> None:
        """`known_as` maps the paths of files to the names that messages use instead."""
        self._limits = limits
        self._known_as = dict(known_as or {})
        self._number = 0
        theirs_in, self._requests = os.pipe()
        self._answers, theirs_out = os.pipe()
        memory = int(limits.gibibytes * 2**30)
        command = [sys.executable, "-m", "deploy.sandbox.host", str(theirs_in), str(theirs_out), str(memory)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))}
        try:
            self._process = subprocess.Popen(
                command,
                pass_fds=(theirs_in, theirs_out),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # failures are answered; what a runtime prints is not a result
                env=environment,
                start_new_session=True,  # the owner handles Ctrl-C
            )
        finally:
            os.close(theirs_in)
            os.close(theirs_out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process. It exits when its owner is gone; if it does not, it is killed."""
        for descriptor in (self._requests, self._answers):
            with suppress(OSError):
                os.close(descriptor)
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def contents(self, kind: Kind, path: Path) -> Contents:
        """Parse a file. A crash of the process means that the file is damaged."""
        try:
            return contents_from(self.ask(Message({"do": "look", "kind": kind, "path": str(path)})).head["contents"])
        except HostError as error:
            raise DamagedError(f"{self._in_words_of_the_user(str(path))} could not be read: {error}") from error

    def open(self, opening: Opening) -> Runner:
        """A runner that runs in the process."""
        self._number += 1
        answer: Any = self.ask(Message({"do": "open", "number": self._number, "opening": opening.to_json()})).head
        return HostedRunner(self, self._number, answer)

    def ask(self, message: Message) -> Message:
        """Send one request and return its answer."""
        try:
            send(self._requests, message)
            answer = receive(self._answers, self._limits.seconds)
        except LateError as error:
            self._process.kill()
            raise HostError(f"no answer within {self._limits.seconds:g} s; allow more with --time-limit") from error
        except (ClosedError, ValueError, KeyError, TypeError) as error:
            raise HostError(self._how_it_ended()) from error
        except KeyboardInterrupt:
            self._process.kill()  # otherwise its answer would be taken for the next one
            raise
        if "error" in answer.head:
            raise self._error(str(answer.head["error"]), self._in_words_of_the_user(str(answer.head["message"])))
        return answer

    def _in_words_of_the_user(self, message: str) -> str:
        for path, name in self._known_as.items():
            message = message.replace(path, name)
        return message

    def _error(self, kind: str, message: str) -> SamegraphError | HostError:
        if kind == MemoryError.__name__:
            return HostError(self._too_little_memory)
        return OF_OURS[kind](message) if kind in OF_OURS else HostError(message)

    @property
    def _too_little_memory(self) -> str:
        if not self._limits.gibibytes:
            return "it needs more memory than this machine gives; use a machine with more"
        return f"it needs more memory than the {self._limits.gibibytes:g} GiB it may have; allow more with --memory-limit"

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return "its process sent nonsense"
        if code == OUT_OF_MEMORY:
            return self._too_little_memory
        if code >= 0:
            return f"its process ended with code {code}"
        return f"its process crashed ({signal.Signals(-code).name})"


class HostedRunner(Runner):
    """A runner in a host process."""

    def __init__(self, host: HostProcess, number: int, description: Mapping[str, Any]) -> None:
        self.name = str(description["name"])
        self.inputs, self.outputs = _specs(description["inputs"]), _specs(description["outputs"])
        self._facts: Mapping[str, object] = description["facts"]
        self._host, self._number = host, number

    @property
    def facts(self) -> Mapping[str, object]:
        return self._facts

    def _run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        return dict(self._host.ask(Message({"do": "run", "number": self._number}, batch)).arrays)

    def close(self) -> None:
        with suppress(HostError, OSError):
            self._host.ask(Message({"do": "close", "number": self._number}))


@dataclass(frozen=True, kw_only=True)
class SandboxedForm(Form):
    """A form in an untrusted file. Whatever is done with it is done in its host process."""

    host: HostProcess = field(repr=False)
    opening: Opening
    contents: Contents = field(repr=False)

    def open(self) -> Runner:
        return self.host.open(self._opening)

    def float64(self) -> Form | None:
        if self.precision == "float64" or self.opening.kind == "engine":
            return None  # in float64 it would be compared with itself: it has no error to derive a budget from
        opening = replace(self.opening, float64=True, runtime=TORCH)
        return replace(self, precision="float64", opening=opening, choices=(), options=AS_IT_IS)

    @property
    def points(self) -> Sequence[Point]:
        return self.contents.points

    def until(self, point: str, batch: Mapping[str, Array]) -> Runner:
        return self.host.open(replace(self._opening, until=point))

    @property
    def _opening(self) -> Opening:
        return replace(self.opening, options=self.options)


def contents_from(found: Any) -> Contents:
    """The contents of a file, as they arrive from the process."""
    points = tuple(Point(each["name"], each["operation"], tuple(each["inputs"]), each["layer"]) for each in found["points"])
    return Contents(_specs(found["inputs"]), _specs(found["outputs"]), tuple(found["floats"]), points)


def _specs(found: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(str(name), str(dtype), tuple(shape)) for name, dtype, shape in found)
