"""The running average of a graph's weights and statistics, kept as a second graph: what is evaluated and deployed in place of the first.

torch.optim.swa_utils does the same and waits for the device at each step.
"""

import copy
from typing import final

import torch
from torch import nn
from torch.fx import GraphModule

from pipeline.config.sections import ModelEma


@final
class WeightAverage:
    """avg <- decay avg + (1 - decay) w for every parameter and statistic; the first step's values begin it."""

    def __init__(self, graph: GraphModule, options: ModelEma) -> None:
        self.graph = copy.deepcopy(graph).eval().requires_grad_(False)
        self._options = options

    @torch.no_grad()
    def update(self, graph: nn.Module, num_steps_done: int) -> None:
        """Take in the weights after a step; `num_steps_done` counts the earlier ones."""
        decay = decay_after(num_steps_done, self._options)
        averages, values = _state(self.graph), _state(graph)
        floating = [(mean, value) for mean, value in zip(averages, values, strict=True) if mean.is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in floating], [value.detach() for _, value in floating], 1 - decay)
        for mean, value in zip(averages, values, strict=True):
            if not mean.is_floating_point():  # a count
                mean.copy_(value)

    @torch.no_grad()
    def copy_into(self, graph: nn.Module) -> None:
        """Give a graph the averages for its weights."""
        for value, mean in zip(_state(graph), _state(self.graph), strict=True):
            value.copy_(mean)


def decay_after(num_steps_done: int, options: ModelEma) -> float:
    """What the average keeps of itself at a step. Nothing at the first: then there is no average yet."""
    if num_steps_done == 0:
        return 0.0
    return min(options.decay, (1 + num_steps_done) / (10 + num_steps_done)) if options.warmup else options.decay


def _state(graph: nn.Module) -> list[torch.Tensor]:
    """Looked up each time: a change of the memory layout replaces buffers."""
    return [*graph.parameters(), *graph.buffers()]
