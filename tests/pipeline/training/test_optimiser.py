"""The rate at each step, against figures written out by hand."""

import numpy as np
import pytest

from pipeline.config.sections import Schedule
from pipeline.training.optimiser import SCHEDULES, Moment, momentum, rate_share


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


def test_linear_cosine_and_monotonic_fall_to_the_last_share() -> None:
    assert _shares(Schedule(name="linear", last=0.5), 2, 2) == [1.0, 0.875, 0.75, 0.625]
    assert _shares(Schedule(name="monotonic"), 2, 2) == [1.0, 1.0, 0.5, 0.5]
    expected = 0.2 + 0.8 * (1 + np.cos(np.pi * np.arange(8) / 8)) / 2
    assert np.abs(np.array(_shares(Schedule(name="cosine", last=0.2), 2, 4)) - expected).max() < 1e-15


def test_cyclic_goes_up_and_down() -> None:
    assert _shares(Schedule(name="cyclic", cycle_epochs=2.0, last=0.5), 4, 2) == [0.5, 0.75, 1.0, 0.75] * 2
    assert _shares(Schedule(name="cyclic"), 10, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 0.8, 0.6, 0.4, 0.2], abs=1e-15)


def test_points_are_joined_by_straight_lines() -> None:
    """The one cycle of thirty epochs: 0.1 to 0.5 and back, then a hundred times lower; momentum the other way round."""
    options = Schedule(
        name="points",
        rate_points=((1, 0.2), (13, 1.0), (26, 0.2), (30, 0.002)),
        momentum_points=((1, 0.95), (13, 0.85), (26, 0.95), (27, 0.85)),
    )
    shares = _shares(options, 31, 2)
    assert [shares[2 * epoch] for epoch in (0, 1, 13, 26, 30)] == pytest.approx([0.2, 0.2, 1.0, 0.2, 0.002], abs=1e-15)
    assert shares[14] == pytest.approx(0.2 + 0.8 * 6 / 12, abs=1e-15)
    momenta = [momentum(Moment(2 * epoch, 2, 31), options, 0.9) for epoch in (0, 7, 13, 26, 30)]
    assert momenta == pytest.approx([0.95, 0.9, 0.85, 0.95, 0.85], abs=1e-15)
    assert momentum(Moment(0, 2, 31), Schedule(name="constant"), 0.9) == 0.9


THIRTY_EPOCHS = Schedule(name="one_cycle", cycle_epochs=26.0, cycle_foot=0.2, last=0.002, momentum_after_cycle=0.85)
"""EquiNorm's, of a rate of 0.5: five-fold up to epoch 13, five-fold down to 26, a hundred-fold down over the rest."""


def test_one_cycle_is_the_thirty_epochs_of_equinorm() -> None:
    steps_per_epoch = 390
    steps = np.arange(30 * steps_per_epoch)
    epochs = steps / steps_per_epoch
    rates = np.interp(epochs, [0, 13, 26, 30], [0.1, 0.5, 0.1, 0.001])
    assert np.abs(0.5 * np.array(_shares(THIRTY_EPOCHS, 30, steps_per_epoch)) - rates).max() < 1e-15
    momenta = np.where(epochs <= 26, np.interp(epochs, [0, 13, 26], [0.95, 0.85, 0.95]), 0.85)
    found = [momentum(Moment(int(step), steps_per_epoch, 30), THIRTY_EPOCHS, 0.9) for step in steps]
    assert np.abs(np.array(found) - momenta).max() < 1e-15


def test_one_cycle_by_default_takes_nine_tenths_of_the_run_and_ends_at_the_momentum_of_its_feet() -> None:
    options = Schedule(name="one_cycle", cycle_foot=0.5)
    assert _shares(options, 10, 1) == pytest.approx(np.interp(range(10), [0, 4.5, 9], [0.5, 1, 0.5]))
    momenta = [momentum(Moment(step, 2, 10), options, 0.9) for step in (0, 9, 18, 19)]
    assert momenta == pytest.approx([0.95, 0.85, 0.95, 0.95], abs=1e-15)


def test_points_of_the_momentum_come_before_the_cycles_own() -> None:
    options = Schedule(name="one_cycle", momentum_points=((0, 0.5),))
    assert momentum(Moment(5, 1, 10), options, 0.9) == 0.5


def test_a_cycle_as_long_as_the_run_has_nothing_behind_it() -> None:
    assert _shares(Schedule(name="one_cycle", cycle_epochs=4.0, cycle_foot=0.0), 4, 1) == [0.0, 0.5, 1.0, 0.5]


def test_every_schedule_of_the_config_has_a_row() -> None:
    named = Schedule.model_json_schema()["properties"]["name"]["enum"]
    assert sorted(named) == sorted(SCHEDULES)
