"""Multiplicative noise around 1, which exists in training only.

Includes a ReLU that applies the noise at no cost in memory.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from export.graph.layers import FoldableLayer, TrainingKind, TrainingPart


class Noise(TrainingPart):
    """x -> x u with u uniform around 1; one draw per sample and channel, or per value."""

    kind: ClassVar[TrainingKind] = "noise"

    def __init__(self, amplitude: float, *, per_element: bool) -> None:
        super().__init__()
        self.amplitude, self.per_element = amplitude, per_element

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor_for(x) if self.acts else x

    def factor_for(self, x: torch.Tensor) -> torch.Tensor:
        """Draw u once, shaped to broadcast over x."""
        shape = x.shape if self.per_element else x.shape[:2] + (1,) * (x.dim() - 2)
        return torch.empty(shape, dtype=x.dtype, device=x.device).uniform_(1 - self.amplitude, 1 + self.amplitude)

    @property
    def summary(self) -> str:
        drawn = "value" if self.per_element else "sample and channel"
        return f"multiplies by a uniform factor in 1 +- {self.amplitude}, one per {drawn}"


class NoisyReLU(FoldableLayer):
    """A ReLU whose only reader is the noise, as one layer.

    It keeps one tensor for the backward pass instead of two.
    """

    def __init__(self, noise: Noise) -> None:
        super().__init__()
        if not 0 < noise.amplitude < 1:
            raise ValueError(f"the factor must stay above 0 for the sign to survive, got amplitude {noise.amplitude}")
        self.noise = noise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.noise.acts:
            return F.relu(x)
        result: torch.Tensor = _ReLUTimes.apply(x, self.noise.factor_for(x))
        return result

    def evaluated(self) -> nn.Module:
        return nn.ReLU()

    def folded(self) -> nn.Module:
        return self.evaluated()


class _ReLUTimes(torch.autograd.Function):
    """relu(x) u.

    As u > 0, the product is positive exactly where the ReLU is, so the backward pass needs only the
    product.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        factor = _spread(factor, x)
        result = torch.relu(x).mul_(factor)
        ctx.save_for_backward(result, factor)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        result, factor = ctx.saved_tensors
        (gradient,) = gradients
        return torch.ops.aten.threshold_backward(gradient, result, 0).mul_(factor), None


def _spread(factor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Repeat a factor per channel over a row of pixels.

    In channels_last memory such a factor would be read in runs of one pixel; spread over a row it
    is read in long runs.
    """
    if factor.shape == x.shape or x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last) or x.is_contiguous():
        return factor
    return factor.expand(-1, -1, 1, x.shape[3]).contiguous(memory_format=torch.channels_last)
