"""The learning rate from step to step, as pure functions of where the run is. A new schedule: one function, one row."""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.config.sections import Schedule


@dataclass(frozen=True)
class Moment:
    """A step of a run; steps are counted from 0 over all epochs."""

    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def epochs_done(self) -> int:
        """How many epochs lie behind this step."""
        return self.step // self.steps_per_epoch


def rate_share(moment: Moment, options: Schedule) -> float:
    """The learning rate of this step as a share of `training.learning_rate`."""
    return _warm_up(moment, options) * SCHEDULES[options.name](moment, options)


def _warm_up(moment: Moment, options: Schedule) -> float:
    """Rises in equal parts: the first step already has one of them, the last step of the warm-up has all."""
    steps = round(options.warmup_epochs * moment.steps_per_epoch)
    return min(1.0, (moment.step + 1) / steps) if steps else 1.0


def _constant(_moment: Moment, _options: Schedule) -> float:
    return 1.0


def _multistep(moment: Moment, options: Schedule) -> float:
    passed = sum(moment.epochs_done >= milestone for milestone in options.milestones)
    return float(options.factor**passed)


SCHEDULES: dict[str, Callable[[Moment, Schedule], float]] = {
    "constant": _constant,
    "multistep": _multistep,
}
