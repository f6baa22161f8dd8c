"""Pre-activation ResNets for small images (He et al. 2016, in the form of Verma et al. 2018).

Norm and ReLU precede each convolution. A 3x3 stem of stride 1 without a norm, then four stages that
start from 64 planes; neither norm nor ReLU between the last sum and the pooling.
"""

import torch
from torch import nn
from torch.nn import functional as F


class PreActBlock(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.projection = _projection(in_channels, planes, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = F.relu(self.bn1(x))
        branch = self.conv1(activated)
        branch = self.conv2(F.relu(self.bn2(branch)))
        return branch + (x if self.projection is None else self.projection(activated))


class PreActBottleneck(nn.Module):
    """A 3x3 convolution, which has the stride, between two 1x1 convolutions."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.projection = _projection(in_channels, planes * self.expansion, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = F.relu(self.bn1(x))
        branch = self.conv1(activated)
        branch = self.conv2(F.relu(self.bn2(branch)))
        branch = self.conv3(F.relu(self.bn3(branch)))
        return branch + (x if self.projection is None else self.projection(activated))


class PreActResNet(nn.Module):
    """Stages of 64, 128, 256 and 512 planes, with the given number of blocks each."""

    def __init__(self, block: type[PreActBlock | PreActBottleneck], blocks_per_stage: tuple[int, ...], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        channels, blocks = 64, list[nn.Module]()
        for number, num_blocks in enumerate(blocks_per_stage):
            planes = 64 * 2**number
            for stride in (1 if number == 0 else 2, *[1] * (num_blocks - 1)):
                blocks.append(block(channels, planes, stride))
                channels = planes * block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.conv1(x))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d | None:
    return None if stride == 1 and in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
