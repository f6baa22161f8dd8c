"""When batch statistics are recomputed and frozen, and what must hold for that.

Knows no method, only that graphs have such parts.
"""

from dataclasses import dataclass

from torch import nn

from export.errors import UsageError
from pipeline.config.sections import Training
from pipeline.methods.statistics import statistics_parts


@dataclass(frozen=True)
class FreezingMoment:
    """The moment at which the statistics were frozen.

    `step` is the number of steps before it, and the accuracy is that right after the statistics
    were recomputed.
    """

    step: int
    test_accuracy: float


def require_usable_statistics(graph: nn.Module, options: Training, batch_size: int) -> None:
    """Refuse, before training, statistics that cannot work.

    These are batches too small to have statistics of their own, and freezing where there is nothing
    to freeze.
    """
    parts = statistics_parts(graph).values()
    for part in parts:
        if part.num_seen(batch_size) < 2:
            raise UsageError(
                f"training steps on {batch_size} {'image' if batch_size == 1 else 'images'} cannot use {part.summary}: those of a single image "
                f"say nothing about others; set data.batch_size to {2 * part.one_in} or more, or choose a method without batch statistics"
            )
    if not parts and options.freeze_statistics.epochs:
        raise UsageError(
            f"training.freeze_statistics.epochs is {options.freeze_statistics.epochs}, but this method has no batch statistics on this network: "
            "its training graph is the deployed one from the first step; set it to 0"
        )
