"""Notes Ctrl-C during work that must not stop half-way; the work itself chooses when to stop.

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
    """Notes, while it is entered, whether somebody asked to stop.

    The first signal only sets `asked`; a second one stops at once. With `at_once`, the first one
    stops at once too, and is noted as well. Outside the main thread nothing can be noted.
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
    """Raise a Ctrl-C again at the end of code that loses it, as PyTorch does in its callbacks."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # another handler is set, or Ctrl-C is ignored
        yield
        return
    with Interruption(at_once=True) as interruption:
        try:
            yield
        except Exception:
            if not interruption.asked:  # otherwise the error may stem from the interruption, which is raised below
                raise
    if interruption.asked:
        raise KeyboardInterrupt
