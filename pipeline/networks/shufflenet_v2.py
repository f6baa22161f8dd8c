"""ShuffleNetV2 for small images: the paper's units on a 3x3 stem of stride 1, without a
max-pool."""

import torch
from torch import nn
from torch.nn import functional as F

_STEM, _UNITS_PER_STAGE = 24, (4, 8, 4)


class Branch(nn.Module):
    """1x1, depthwise 3x3, 1x1, with a ReLU after the first and the last."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, 1, groups=out_channels, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv3 = nn.Conv2d(out_channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return F.relu(self.bn3(self.conv3(x)))


class Reduction(nn.Module):
    """The other half of a unit of stride 2: depthwise 3x3, 1x1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, 2, 1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))


class ReducingUnit(nn.Module):
    """Both halves read the whole input and halve its size."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduction = Reduction(in_channels, out_channels // 2)
        self.branch = Branch(in_channels, out_channels // 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return shuffled(torch.cat((self.reduction(x), self.branch(x)), 1))


class Unit(nn.Module):
    """One half of the channels passes unchanged, the other goes through the branch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = Branch(channels // 2, channels // 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, changed = torch.chunk(x, 2, 1)
        return shuffled(torch.cat((kept, self.branch(changed)), 1))


class ShuffleNetV2(nn.Module):
    """A stem, three stages and a last convolution.

    `channels` are those of the three stages and of the last convolution.
    """

    def __init__(self, channels: tuple[int, int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        *stages, last = channels
        self.conv1 = nn.Conv2d(in_channels, _STEM, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        units = list[nn.Module]()
        for before, after, num_units in zip((_STEM, *stages[:-1]), stages, _UNITS_PER_STAGE, strict=True):
            units += [ReducingUnit(before, after), *(Unit(after) for _ in range(num_units - 1))]
        self.units = nn.Sequential(*units)
        self.conv5 = nn.Conv2d(stages[-1], last, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(last)
        self.classifier = nn.Linear(last, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.units(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(self.bn5(self.conv5(x)))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def shuffled(x: torch.Tensor) -> torch.Tensor:
    """Interleave the channels of both halves."""
    batch, channels, height, width = x.size()
    x = torch.transpose(x.view(batch, 2, channels // 2, height, width), 1, 2)
    return torch.reshape(x, (batch, channels, height, width))
