"""Accuracy and loss of a graph on a split, and a running average of its weights.

Takes a graph and batches and changes neither. The average may be evaluated in place of the weights.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

from pipeline.config.sections import ModelEma
from pipeline.training.protocols import Batch

BATCH_SIZE = 256
_SMALL_IMAGE, _FOR_SMALL_IMAGES_ON_CUDA = 64, 2048
"""A GPU that gets few pixels at a time waits for kernel launches, so it gets more images."""


@dataclass(frozen=True)
class Evaluation:
    """Means over a split."""

    loss: float
    accuracy: float


def evaluation_batch_size(device: torch.device, image_width: int) -> int:
    """Return how many images to evaluate at once."""
    return _FOR_SMALL_IMAGES_ON_CUDA if device.type == "cuda" and image_width <= _SMALL_IMAGE else BATCH_SIZE


def evaluate(graph: nn.Module, batches: Iterable[Batch], device: torch.device, between: Callable[[], None] = lambda: None) -> Evaluation:
    """Evaluate the graph; it is left in evaluation mode and contiguous.

    `between` is called before each batch and may raise.
    """
    graph.eval().to(memory_format=torch.contiguous_format)
    sums, num_samples = torch.zeros(2, dtype=torch.float64, device=device), 0
    for images, labels in batches:
        between()
        sums += _batch_sums(graph, images.to(device, non_blocking=True), labels.to(device, non_blocking=True))
        num_samples += len(labels)
    loss, num_correct = sums.tolist()
    return Evaluation(loss / num_samples, num_correct / num_samples)


@torch.no_grad()
def _batch_sums(graph: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = graph(images)
    return torch.stack((F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()))


@final
class WeightAverage:
    """avg <- decay avg + (1 - decay) w for every parameter and statistic.

    The average starts at the values after the first step.
    """

    def __init__(self, graph: GraphModule, options: ModelEma) -> None:
        self.graph = copy.deepcopy(graph).eval().requires_grad_(False)
        self._options = options

    @torch.no_grad()
    def update(self, graph: nn.Module, num_steps_done: int) -> None:
        """Add the weights after a step; `num_steps_done` counts the earlier steps."""
        decay = decay_after(num_steps_done, self._options)
        averages, values = _state(self.graph), _state(graph)
        floating = [(mean, value) for mean, value in zip(averages, values, strict=True) if mean.is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in floating], [value.detach() for _, value in floating], 1 - decay)
        for mean, value in zip(averages, values, strict=True):
            if not mean.is_floating_point():  # an integer, such as a count of batches, is copied
                mean.copy_(value)

    @torch.no_grad()
    def copy_into(self, graph: nn.Module) -> None:
        """Give a graph the averages as its weights."""
        for value, mean in zip(_state(graph), _state(self.graph), strict=True):
            value.copy_(mean)


def decay_after(num_steps_done: int, options: ModelEma) -> float:
    """Return the share of itself that the average keeps at a step.

    It is 0 at the first step, when there is no average yet.
    """
    if num_steps_done == 0:
        return 0.0
    return min(options.decay, (1 + num_steps_done) / (10 + num_steps_done)) if options.warmup else options.decay


def _state(graph: nn.Module) -> list[torch.Tensor]:
    """Return the tensors; they are looked up each time because a change of memory layout replaces
    buffers."""
    return [*graph.parameters(), *graph.buffers()]
