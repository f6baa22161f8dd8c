"""How far a build is: TensorRT's progress monitor, turned into steps for whoever watches."""

from types import ModuleType
from typing import Any, Protocol


class Watcher(Protocol):
    """Whoever watches a build."""

    def advance(self, steps: int = 1) -> None: ...


PARTS = 100
"""How many steps a build has for whoever watches."""


class Course:
    """A build's way from 0 to PARTS. Phases nest; the steps of the outermost one count."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._outermost: str | None = None
        self._steps, self._done = 1, 0
        self.interrupted = False
        """Whether the user did, while TensorRT was on top of the stack; it must not meet the exception."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        if parent is None and self._outermost is None:
            self._outermost, self._steps = phase, max(steps, 1)

    def step(self, phase: str, step: int) -> None:
        if phase == self._outermost:
            self._reach(PARTS * (step + 1) // self._steps)

    def finish(self, phase: str) -> None:
        if phase == self._outermost:
            self._reach(PARTS)

    def _reach(self, place: int) -> None:
        place = min(place, PARTS)
        if place > self._done:
            steps, self._done = place - self._done, place
            self._watcher.advance(steps)


def monitor_of(module: ModuleType, course: Course) -> Any:
    """TensorRT's side of it, to be given to a builder's config."""
    base: Any = module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]  # the class is known once the module is loaded
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            course.start(phase, parent, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                course.step(phase, step)
            except KeyboardInterrupt:
                course.interrupted = True
            return not course.interrupted

        def phase_finish(self, phase: str) -> None:
            course.finish(phase)

    return Monitor()
