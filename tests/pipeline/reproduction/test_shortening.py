"""The one rule by which a run becomes shorter: every time in epochs by the same factor."""

import pytest

from pipeline.config import Config, parse_config
from pipeline.reproduction.planned_runs import shortened
from pipeline.training.optimiser import Moment, momentum, rate_share


def config(epochs: int, schedule: dict[str, object], **training: object) -> Config:
    values = {"epochs": epochs, "schedule": schedule, **training}
    return parse_config({"method": {"name": "batchnorm"}, "training": values})


def test_milestones_and_warm_up_in_proportion() -> None:
    short = shortened(config(150, {"name": "multistep", "milestones": [82, 112, 137], "warmup_epochs": 2}), 30)
    schedule = short.config.training.schedule
    assert short.config.training.epochs == 30
    assert schedule.milestones == (16, 22, 27)  # 16.4, 22.4, 27.4
    assert schedule.warmup_epochs == 2 / 5
    assert short.notes == ()


@pytest.mark.parametrize(("epochs", "kept", "lost"), [(4, (2, 3), 1), (2, (1,), 2), (1, (), 3)])
def test_a_milestone_without_an_epoch_of_its_own_is_left_out_and_said(epochs: int, kept: tuple[int, ...], lost: int) -> None:
    short = shortened(config(150, {"name": "multistep", "milestones": [80, 110, 135]}), epochs)
    assert short.config.training.schedule.milestones == kept
    assert short.notes == (f"{lost} of 3 drops of the rate left out, too few epochs for them",)


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "cyclic"},
        {"name": "cyclic", "cycle_epochs": 20},
        {"name": "one_cycle"},
        {"name": "one_cycle", "cycle_epochs": 27, "cycle_foot": 0.2, "last": 0.002, "momentum_after_cycle": 0.85},
        {"name": "points", "rate_points": [[0, 0.1], [10, 1], [30, 0]], "momentum_points": [[0, 0.9], [30, 0.5]]},
        {"name": "linear", "warmup_epochs": 3},
        {"name": "cosine"},
    ],
    ids=lambda schedule: "-".join(map(str, schedule.values()))[:30],
)
def test_at_the_same_share_of_the_run_rate_and_momentum_are_the_same(schedule: dict[str, object]) -> None:
    """With as many steps in all: a third of the epochs, each of three times as many steps."""
    long = config(30, schedule)
    short = shortened(long, 10).config
    assert short.training.epochs == 10
    for step in range(0, 600, 7):
        moments = [(Moment(step, 20, 30), long.training), (Moment(step, 60, 10), short.training)]
        before, after = [(rate_share(moment, each.schedule), momentum(moment, each.schedule, each.momentum)) for moment, each in moments]
        assert before == pytest.approx(after, rel=1e-12)


def test_a_time_at_the_end_stays_there() -> None:
    short = shortened(config(30, {"name": "one_cycle", "cycle_epochs": 30}), 7)
    assert short.config.training.schedule.cycle_epochs == 7


def test_what_has_no_more_epochs_stays_as_it_is() -> None:
    before = config(3, {"name": "multistep", "milestones": [2]})
    assert shortened(before, 3).config is before
    assert shortened(before, 5).config is before


@pytest.mark.parametrize(("epochs", "frozen"), [(10, 3), (3, 1), (1, 0)])
def test_frozen_epochs_in_proportion(epochs: int, frozen: int) -> None:
    """30 epochs, the last ten of them with frozen statistics."""
    short = shortened(config(30, {"name": "constant"}, freeze_statistics={"epochs": 10}), epochs)
    assert short.config.training.freeze_statistics.epochs == frozen
    assert ("never frozen" in " ".join(short.notes)) is (frozen == 0)


def test_a_threshold_by_epoch_is_said_not_to_scale() -> None:
    clip = {"name": "norm", "threshold": 5.0, "growth": "times_log"}
    assert shortened(config(9, {"name": "monotonic"}, clip=clip), 3).notes == (
        "the clipping threshold goes by the number of the epoch and is that of the first ones",
    )
    assert shortened(config(9, {"name": "monotonic"}, clip=clip | {"growth": "constant"}), 3).notes == ()
