"""What the loop tells whoever watches: a terminal, a test. Knows no terminal."""

from typing import Protocol

from pipeline.training.metrics import EpochRecord


class Watcher(Protocol):
    """Called by the loop; must return quickly. Epochs and steps count from 1."""

    def run_started(self, num_epochs: int, steps_per_epoch: int, steps_done: int) -> None: ...

    def statistics_frozen(self, step: int, test_accuracy: float) -> None: ...

    def epoch_started(self, epoch: int) -> None: ...

    def step_done(self, epoch: int, step_in_epoch: int, loss: float) -> None: ...

    def epoch_done(self, record: EpochRecord) -> None: ...


class Silent:
    """Watches and says nothing."""

    def run_started(self, num_epochs: int, steps_per_epoch: int, steps_done: int) -> None:
        return

    def statistics_frozen(self, step: int, test_accuracy: float) -> None:
        return

    def epoch_started(self, epoch: int) -> None:
        return

    def step_done(self, epoch: int, step_in_epoch: int, loss: float) -> None:
        return

    def epoch_done(self, record: EpochRecord) -> None:
        return
