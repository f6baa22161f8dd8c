"""Part of a training step as one CUDA graph: captured once, then replayed. The kernels are the same, so are their bits; the time to launch them
one by one is gone. Takes a computation on a batch; knows no training.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch


class Computed(NamedTuple):
    """What a batch came to, on the device; the gradients stand in the parameters."""

    loss: torch.Tensor
    num_correct: torch.Tensor
    penalty: torch.Tensor | None


Computation = Callable[[torch.Tensor, torch.Tensor], Computed]


class Replay:
    """A computation for batches of one shape. What it allocates stays in place, and so do the results, which the next replay overwrites.

    The computation must have run once before, one by one: libraries choose their algorithms then, which a capture does not allow.
    """

    def __init__(self, compute: Computation, images: torch.Tensor, labels: torch.Tensor) -> None:
        self._images, self._labels = images.clone(), labels.clone()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads of the process may allocate and copy meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._computed = compute(self._images, self._labels)

    def fits(self, images: torch.Tensor, labels: torch.Tensor) -> bool:
        """Whether it was captured for such a batch."""
        return images.shape == self._images.shape and images.stride() == self._images.stride() and labels.shape == self._labels.shape

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> Computed:
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._computed
