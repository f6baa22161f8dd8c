"""Wide ResNets (Zagoruyko and Komodakis).

Three stages of pre-activation blocks of two 3x3 convolutions, few of them and wide.
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.networks.families import Builder


class WideBlock(nn.Module):
    """Norm and ReLU precede each convolution; where the width changes, the shortcut is a 1x1
    convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.projection = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = F.relu(self.bn1(x))
        branch = self.conv1(activated)
        branch = self.conv2(F.relu(self.bn2(branch)))
        return branch + (x if self.projection is None else self.projection(activated))


class WideResNet(nn.Module):
    """`width` planes in the first stage, then twice and four times as many.

    `stem` is the number of planes in front of them.
    """

    def __init__(self, blocks_per_stage: int, stem: int, width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, stem, 3, 1, 1, bias=False)
        self.stages = nn.Sequential(
            _stage(stem, width, 1, blocks_per_stage),
            _stage(width, 2 * width, 2, blocks_per_stage),
            _stage(2 * width, 4 * width, 2, blocks_per_stage),
        )
        self.bn = nn.BatchNorm2d(4 * width)
        self.classifier = nn.Linear(4 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.stages(self.conv1(x))))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def _stage(in_channels: int, out_channels: int, stride: int, num_blocks: int) -> nn.Sequential:
    first = WideBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(WideBlock(out_channels, out_channels, 1) for _ in range(num_blocks - 1)))


def by_depth_and_width(depth: int, width: int) -> Builder:
    """Return the builder of WRN-depth-width of its paper.

    It has 6 n + 4 layers with n blocks per stage, 16 planes in the stem, and 16 times the width in
    the first stage.
    """
    blocks_per_stage, rest = divmod(depth - 4, 6)
    if rest or blocks_per_stage < 1:
        nearest = 6 * max(1, round((depth - 4) / 6)) + 4
        raise ValueError(f"a depth is 6 n + 4, such as 16, 22, 28 or 40, got {depth}; the nearest is wrn-{nearest}-{width}")
    return partial(WideResNet, blocks_per_stage, 16, 16 * width)
