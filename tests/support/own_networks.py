"""A user's own networks, for layers that no network of the project has."""

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["leaky"]


class _LeakyUnit(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(channels), nn.LeakyReLU(0.1, inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))) + self.shortcut(x), 0.2)


class Leaky(nn.Module):
    """Residual units with a LeakyReLU of each slope, written in each way."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.units = nn.Sequential(_LeakyUnit(16, 16, 1), _LeakyUnit(16, 32, 2), _LeakyUnit(32, 32, 1))
        self.classifier = nn.Linear(32, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.units(F.leaky_relu(self.bn(self.stem(x)), inplace=True))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def leaky(num_classes: int, in_channels: int) -> nn.Module:
    return Leaky(num_classes, in_channels)
