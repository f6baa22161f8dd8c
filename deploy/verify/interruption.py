"""Ctrl-C while batches are compared: the batch under way is finished, so that every figure is of whole batches.

Knows nothing of what is compared.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The first time it is noted; whoever asks again does not want to wait."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def noted_interruption() -> Iterator[Interruption]:
    """Note Ctrl-C for a while; threads other than the main one cannot, and are interrupted as ever."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = signal.signal(signal.SIGINT, interruption.ask)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)
