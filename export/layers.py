"""The layers that a graph has beside PyTorch's own: pixels to network input, the mean over an image, a scalar that is added.

They stand here and not with the tracer, because fold, grid and exporter meet them too.
"""

import torch
from torch import nn


class Normalise(nn.Module):
    """Raw pixels to network input: (p - mean) / deviation, a subtraction and a division, which every runtime rounds alike."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return (image.to(self.mean.dtype) - self.mean) / self.deviation


class GlobalAveragePool(nn.Module):
    """The mean over rows, then over columns. Runtimes add up a mean one value after another: two short sums round far less than a long one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(3, keepdim=True).mean(2, keepdim=True)


class ScalarBias(nn.Module):
    """x + b with one learned b, where no layer's own bias is the same: in front of zero padding, or of a ReLU behind anything but a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bias
