"""MobileNetV2 for small images.

The paper's inverted residuals, with stride 1 in the stem and in the second stage.
"""

import torch
from torch import nn
from torch.nn import functional as F

_STEM, _LAST = 32, 1280
_STAGES = (  # expansion, channels, blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expands by 1x1, filters by depthwise 3x3, and reduces by a linear 1x1.

    The result is added to the input where the shape stays the same.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = None if expansion == 1 else nn.Sequential(nn.Conv2d(in_channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6())
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = x if self.expand is None else self.expand(x)
        branch = F.relu6(self.bn1(self.depthwise(branch)))
        branch = self.bn2(self.project(branch))
        return branch + x if self.adds else branch


class MobileNetV2(nn.Module):
    """Seven stages between a 3x3 stem and a 1x1 convolution of 1280 filters."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _STEM, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        channels, blocks = _STEM, list[nn.Module]()
        for expansion, out_channels, num_blocks, first_stride in _STAGES:
            for stride in (first_stride, *[1] * (num_blocks - 1)):
                blocks.append(InvertedResidual(channels, out_channels, stride, expansion))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(channels, _LAST, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(_LAST)
        self.classifier = nn.Linear(_LAST, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(F.relu6(self.bn1(self.conv1(x))))
        x = F.relu6(self.bn2(self.conv2(x)))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
