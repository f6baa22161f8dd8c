"""The rate at each step, against figures written out by hand."""

import pytest

from pipeline.config.sections import Schedule
from pipeline.training.schedules import SCHEDULES, Moment, rate_share


def _shares(options: Schedule, epochs: int, steps_per_epoch: int) -> list[float]:
    return [rate_share(Moment(step, steps_per_epoch, epochs), options) for step in range(epochs * steps_per_epoch)]


def test_constant_is_constant() -> None:
    assert _shares(Schedule(name="constant"), 2, 2) == [1.0] * 4


def test_multistep_falls_after_its_milestones() -> None:
    options = Schedule(name="multistep", milestones=(1, 3), factor=0.5)
    assert _shares(options, 4, 2) == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_warm_up_rises_step_by_step_and_reaches_the_full_rate_at_its_last_step() -> None:
    options = Schedule(name="multistep", milestones=(2,), factor=0.5, warmup_epochs=1.0)
    assert _shares(options, 3, 4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5]


def test_warm_up_may_end_within_an_epoch() -> None:
    assert _shares(Schedule(name="constant", warmup_epochs=0.5), 1, 4) == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["constant", "multistep"])
def test_every_schedule_of_the_config_has_a_row(name: str) -> None:
    assert name in SCHEDULES
    assert len(SCHEDULES) == 2
