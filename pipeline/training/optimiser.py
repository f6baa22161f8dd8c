"""The parts of an optimiser's step: learning rate and momentum by schedule, gradient clipping.

Takes the training options. A schedule is a function of the progress of a run.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never, final

from torch import nn
from torch.fx import GraphModule

from export.graph.parts import trained_layers
from pipeline.config.sections import CYCLE_EPOCHS, NoClipping, NormClipping, Schedule
from pipeline.config.sections import AdaptiveClipping as AdaptiveOptions
from pipeline.config.sections import Clipping as ClippingOptions
from pipeline.methods.method import AdaptiveClipping

_SHARE_OF_ONE_CYCLE = 0.9


@dataclass(frozen=True)
class Moment:
    """A step of a run; steps are counted from 0, over all epochs."""

    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def epochs_done(self) -> int:
        """The number of epochs before this step."""
        return self.step // self.steps_per_epoch

    @property
    def epoch(self) -> float:
        """The number of epochs before this step, including the part of the running one."""
        return self.step / self.steps_per_epoch

    @property
    def progress(self) -> float:
        """0 at the first step, just below 1 at the last."""
        return self.step / (self.epochs * self.steps_per_epoch)


def rate_share(moment: Moment, options: Schedule) -> float:
    """Return the learning rate of this step as a share of `training.learning_rate`."""
    return _warm_up(moment, options) * SCHEDULES[options.name](moment, options)


def _warm_up(moment: Moment, options: Schedule) -> float:
    """Return the share of the warm-up, which rises in equal parts.

    The first step already has one part; the last step of the warm-up has all.
    """
    steps = round(options.warmup_epochs * moment.steps_per_epoch)
    return min(1.0, (moment.step + 1) / steps) if steps else 1.0


def _constant(_moment: Moment, _options: Schedule) -> float:
    return 1.0


def _multistep(moment: Moment, options: Schedule) -> float:
    passed = sum(moment.epochs_done >= milestone for milestone in options.milestones)
    return float(options.factor**passed)


def _linear(moment: Moment, options: Schedule) -> float:
    return _between(1.0, options.last, moment.progress)


def _cosine(moment: Moment, options: Schedule) -> float:
    return _between(options.last, 1.0, (1 + math.cos(math.pi * moment.progress)) / 2)


def _monotonic(moment: Moment, options: Schedule) -> float:
    return _between(1.0, options.last, moment.epochs_done / moment.epochs)


def _cyclic(moment: Moment, options: Schedule) -> float:
    place = moment.epoch / (options.cycle_epochs or CYCLE_EPOCHS) % 1.0
    return _between(options.last, 1.0, _height(place))


def _one_cycle(moment: Moment, options: Schedule) -> float:
    """Go up from the foot and down to it, then on to `last`, which is reached at the end of the
    run."""
    length = _one_cycle_epochs(moment, options)
    if moment.epoch <= length:
        return _between(options.cycle_foot, 1.0, _height(moment.epoch / length))
    return _between(options.cycle_foot, options.last, (moment.epoch - length) / (moment.epochs - length))


def _momentum_of_one_cycle(moment: Moment, options: Schedule) -> float:
    """Return the momentum, which moves the other way: it is least where the rate is largest."""
    foot, top = options.cycle_momentum
    length = _one_cycle_epochs(moment, options)
    if moment.epoch <= length:
        return _between(foot, top, _height(moment.epoch / length))
    return foot if options.momentum_after_cycle is None else options.momentum_after_cycle


def _one_cycle_epochs(moment: Moment, options: Schedule) -> float:
    return options.cycle_epochs or _SHARE_OF_ONE_CYCLE * moment.epochs


def _height(place: float) -> float:
    """Return the height of a triangle, from 0 to 1 and back."""
    return 1 - abs(2 * place - 1)


def _points(moment: Moment, options: Schedule) -> float:
    return _on_the_line(moment, options.rate_points)


def momentum(moment: Moment, options: Schedule, constant: float) -> float:
    """Return the momentum of this step."""
    if options.momentum_points:
        return _on_the_line(moment, options.momentum_points)
    return _momentum_of_one_cycle(moment, options) if options.name == "one_cycle" else constant


def _between(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def _on_the_line(moment: Moment, points: Sequence[tuple[float, float]]) -> float:
    epoch = moment.epoch
    if epoch <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in itertools.pairwise(points):
        if epoch <= right:
            return _between(low, high, (epoch - left) / (right - left))
    return points[-1][1]


SCHEDULES: dict[str, Callable[[Moment, Schedule], float]] = {
    "constant": _constant,
    "multistep": _multistep,
    "linear": _linear,
    "cosine": _cosine,
    "monotonic": _monotonic,
    "cyclic": _cyclic,
    "one_cycle": _one_cycle,
    "points": _points,
}


class Clipping(ABC):
    """Changes the gradients in place."""

    @abstractmethod
    def __call__(self, epoch: int) -> None:
        """Clip once per step; epochs count from 0."""


def clipping(graph: GraphModule, options: ClippingOptions) -> Clipping:
    """Return the clipping that the options request."""
    match options:
        case NoClipping():
            return _None()
        case NormClipping():
            return _Norm([each for each in graph.parameters() if each.requires_grad], options)
        case AdaptiveOptions():
            return _Adaptive(graph, options)
        case _:
            assert_never(options)


def threshold(options: NormClipping, epoch: int) -> float:
    """Return the largest norm in an epoch, counted from 0."""
    log_factor = 1 + math.log(1 + epoch)
    match options.growth:
        case "constant":
            return options.threshold
        case "times_log":
            return options.threshold * log_factor
        case "plus_log":
            return options.threshold + math.log(1 + epoch)
        case "over_log":
            return options.threshold / log_factor


@final
class _None(Clipping):
    def __call__(self, epoch: int) -> None:
        return


@final
class _Norm(Clipping):
    def __init__(self, parameters: list[nn.Parameter], options: NormClipping) -> None:
        self._parameters, self._options = parameters, options

    def __call__(self, epoch: int) -> None:
        nn.utils.clip_grad_norm_(self._parameters, threshold(self._options, epoch), foreach=True)


@final
class _Adaptive(Clipping):
    def __init__(self, graph: GraphModule, options: AdaptiveOptions) -> None:
        classifier = trained_layers(graph)[-1].module
        kept = set() if options.classifier else {id(each) for each in classifier.parameters()}
        clipped = (each for each in graph.parameters() if each.requires_grad and id(each) not in kept)
        self._clip = AdaptiveClipping(clipped, options.threshold, options.eps)

    def __call__(self, epoch: int) -> None:
        self._clip()
