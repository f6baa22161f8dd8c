"""Ctrl-C is noted, or raised, or both. Handlers that were set before are put back."""

import os
import signal
import threading
from contextlib import suppress

import pytest

from export.interruption import Interruption, interruptible


def test_the_first_signal_is_noted_and_the_second_one_stops() -> None:
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_is_noted_where_nobody_asks() -> None:
    with Interruption() as interruption:
        pass
    assert not interruption.asked


def test_only_the_named_signals_are_noted() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) == before
    with Interruption(signal.SIGINT, signal.SIGTERM) as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.asked
    assert signal.getsignal(signal.SIGTERM) == before


def test_at_once_the_first_signal_stops_and_is_noted() -> None:
    with Interruption(at_once=True) as interruption, suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it did not stop")
    assert interruption.asked


def test_outside_the_main_thread_nothing_is_noted_and_nothing_fails() -> None:
    found: list[bool] = []

    def work() -> None:
        with Interruption() as interruption, interruptible():
            found.append(interruption.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_ctrl_c_that_is_lost_is_raised_at_the_end() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible(), suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_fails_after_ctrl_c_is_no_error() -> None:
    def fail_after_ctrl_c() -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise RuntimeError("half done")

    with pytest.raises(KeyboardInterrupt), interruptible():
        fail_after_ctrl_c()
    with pytest.raises(ValueError, match="its own"), interruptible():
        raise ValueError("its own")


def test_whoever_listens_already_goes_on_listening() -> None:
    with Interruption() as outer, interruptible():
        signal.raise_signal(signal.SIGINT)
    assert outer.asked
