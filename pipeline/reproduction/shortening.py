"""Fewer epochs than a config has, by one rule: every time that is counted in epochs is multiplied by new / old.

Milestones and frozen epochs are then rounded to whole ones; a milestone at the start, at the end or on the one before it is left out. What does
not scale, because no time of the config says it, is said in a note.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from pipeline.config import Config, parse_config
from pipeline.config.sections import CYCLE_EPOCHS, Schedule


@dataclass(frozen=True)
class Shortened:
    """A config of fewer epochs, and what had to change beyond the proportion."""

    config: Config
    notes: tuple[str, ...]


def shortened(config: Config, epochs: int) -> Shortened:
    """The config with so many epochs; one that has no more of them stays as it is."""
    training = config.training
    if training.epochs <= epochs:
        return Shortened(config, ())
    share = Fraction(epochs, training.epochs)
    milestones = _milestones(training.schedule.milestones, share, epochs)
    values = config.model_dump()
    values["training"]["epochs"] = epochs
    values["training"]["freeze_statistics"]["epochs"] = min(round(training.freeze_statistics.epochs * share), epochs - 1)
    values["training"]["schedule"] |= _times(training.schedule, share) | {"milestones": milestones}
    short = parse_config(values, "the shortened config")
    return Shortened(short, (*_lost(training.schedule, milestones), *_never_frozen(config, short), *_unscaled(config)))


def _times(schedule: Schedule, share: Fraction) -> dict[str, object]:
    """What may fall between epochs. Exact until it is a float again, so that a time at the end stays there."""

    def scaled(time: float) -> float:
        return float(Fraction(time) * share)

    cycle = schedule.cycle_epochs or (CYCLE_EPOCHS if schedule.name == "cyclic" else None)
    return {
        "warmup_epochs": scaled(schedule.warmup_epochs),
        "cycle_epochs": None if cycle is None else scaled(cycle),
        "rate_points": tuple((scaled(epoch), rate) for epoch, rate in schedule.rate_points),
        "momentum_points": tuple((scaled(epoch), momentum) for epoch, momentum in schedule.momentum_points),
    }


def _milestones(milestones: Sequence[int], share: Fraction, epochs: int) -> tuple[int, ...]:
    scaled = {round(milestone * share) for milestone in milestones}
    return tuple(sorted(milestone for milestone in scaled if 0 < milestone < epochs))


def _lost(schedule: Schedule, kept: Sequence[int]) -> tuple[str, ...]:
    if len(kept) == len(schedule.milestones):
        return ()
    return (f"{len(schedule.milestones) - len(kept)} of {len(schedule.milestones)} drops of the rate left out, too few epochs for them",)


def _never_frozen(config: Config, short: Config) -> tuple[str, ...]:
    if not config.training.freeze_statistics.epochs or short.training.freeze_statistics.epochs:
        return ()
    return ("no epoch is left for frozen statistics, so they are never frozen",)


def _unscaled(config: Config) -> tuple[str, ...]:
    growing = config.training.clip.name == "norm" and config.training.clip.growth != "constant"
    return ("the clipping threshold goes by the number of the epoch and is that of the first ones",) if growing else ()
