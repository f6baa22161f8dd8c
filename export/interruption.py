"""Ctrl-C while something must not be torn in the middle: the signal is noted, and whoever works stops where it is right to.

Knows nothing of the work. Needs no torch.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import final


@final
class Interruption:
    """Whether somebody asked to stop, noted while it is entered. The first signal only sets `asked`; a second one stops at once.

    `at_once`: the first one stops at once too, and is noted all the same. Outside the main thread nothing can be noted.
    """

    def __init__(self, *signals: signal.Signals, at_once: bool = False) -> None:
        self.asked = False
        self._signals, self._at_once = signals or (signal.SIGINT,), at_once
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in self._signals}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # it came from signal.signal
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        stops, self.asked = self.asked or self._at_once, True
        if stops:
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """For code that loses a Ctrl-C, as PyTorch does while its own code calls back: it is raised once more at the end."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # somebody else listens already, or nobody shall
        yield
        return
    with Interruption(at_once=True) as interruption:
        try:
            yield
        except Exception:
            if not interruption.asked:
                raise
    if interruption.asked:
        raise KeyboardInterrupt
