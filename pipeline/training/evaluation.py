"""Loss and accuracy of a graph on a split, as the graph will be deployed: evaluation mode, float32, contiguous.

The folded graph is compared in this precision and layout, so the figures are those of the function that is shipped.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.training.batches import Batch

BATCH_SIZE = 256
_SMALL_IMAGE, _FOR_SMALL_IMAGES_ON_CUDA = 64, 2048
"""A GPU that gets few pixels at a time waits for the launches."""


@dataclass(frozen=True)
class Evaluation:
    """Means over a split."""

    loss: float
    accuracy: float


def evaluation_batch_size(device: torch.device, image_width: int) -> int:
    """How many images to evaluate at once."""
    return _FOR_SMALL_IMAGES_ON_CUDA if device.type == "cuda" and image_width <= _SMALL_IMAGE else BATCH_SIZE


def evaluate(graph: nn.Module, batches: Iterable[Batch], device: torch.device, between: Callable[[], None] = lambda: None) -> Evaluation:
    """Leaves the graph in evaluation mode and contiguous. `between` is called before each batch and may raise."""
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
