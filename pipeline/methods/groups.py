"""Rules that leave the gradients alone: all parameters alike, with L2 decay on all of them or on the weights only."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from pipeline.methods.base import ParameterGroup, TrainingRules


class OneGroup(TrainingRules):
    """One learning rate. `decay_on` "weights" leaves biases and scales, whatever has fewer than two dimensions, without decay."""

    def __init__(self, graph: nn.Module, weight_decay: float, decay_on: Literal["all", "weights"] = "all") -> None:
        decayed = tuple(p for p in graph.parameters() if decay_on == "all" or p.dim() > 1)
        kept = {id(parameter) for parameter in decayed}
        others = tuple(p for p in graph.parameters() if id(p) not in kept)
        groups = (
            ParameterGroup(name="all" if decay_on == "all" else "weights", parameters=decayed, weight_decay=weight_decay),
            ParameterGroup(name="biases and scales", parameters=others),
        )
        self._groups = tuple(group for group in groups if group.parameters)

    @property
    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return self._groups
