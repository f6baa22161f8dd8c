"""When the batch statistics of a run are recomputed and frozen, and what must hold for that. Knows no method, only that graphs have such parts."""

from dataclasses import dataclass

from torch import nn

from export.errors import UsageError
from pipeline.config.sections import Training
from pipeline.methods.statistics import statistics_parts


@dataclass(frozen=True)
class FreezingMoment:
    """That the statistics are frozen: after which step, and what the network scored right after they were recomputed."""

    step: int
    test_accuracy: float


def require_usable_statistics(graph: nn.Module, options: Training, batch_size: int) -> None:
    """Refuse, before training, batches that have no statistics of their own, and freezing where there is nothing to freeze."""
    parts = statistics_parts(graph).values()
    for part in parts:
        if part.num_seen(batch_size) < 2:
            raise UsageError(
                f"training steps on {batch_size} {'image' if batch_size == 1 else 'images'} have no use for {part.summary}: those of a single image "
                f"say nothing of others; set data.batch_size to {2 * part.one_in} or more, or choose a method without batch statistics"
            )
    if not parts and options.freeze_statistics.epochs:
        raise UsageError(
            f"training.freeze_statistics.epochs is {options.freeze_statistics.epochs}, and this method has no batch statistics on this network: "
            "its training graph is the deployed one from the first step; set it to 0"
        )
