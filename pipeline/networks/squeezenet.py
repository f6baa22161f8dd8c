"""SqueezeNet with simple bypass, for small images.

A 3x3 stem, eight fire modules, and as classifier a 1x1 convolution in front of the average.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Fire(nn.Module):
    """Squeezes to few channels by 1x1, then expands by 1x1 and 3x3 side by side."""

    def __init__(self, in_channels: int, squeezed: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.squeeze = nn.Conv2d(in_channels, squeezed, 1, bias=False)
        self.bn_squeeze = nn.BatchNorm2d(squeezed)
        self.expand1 = nn.Conv2d(squeezed, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.expand3 = nn.Conv2d(squeezed, half, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn_squeeze(self.squeeze(x)))
        return torch.cat((F.relu(self.bn1(self.expand1(x))), F.relu(self.bn3(self.expand3(x)))), 1)


class SqueezeNet(nn.Module):
    """The network; fire 3, 5 and 7 have a bypass that adds their input to their output."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 96, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(96)
        self.fire2 = Fire(96, 16, 128)
        self.fire3 = Fire(128, 16, 128)
        self.fire4 = Fire(128, 32, 256)
        self.fire5 = Fire(256, 32, 256)
        self.fire6 = Fire(256, 48, 384)
        self.fire7 = Fire(384, 48, 384)
        self.fire8 = Fire(384, 64, 512)
        self.fire9 = Fire(512, 64, 512)
        self.classifier = nn.Conv2d(512, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fire2(F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2))
        x = F.max_pool2d(self.fire4(self.fire3(x) + x), 2)
        x = self.fire6(self.fire5(x) + x)
        x = F.max_pool2d(self.fire8(self.fire7(x) + x), 2)
        return torch.flatten(F.adaptive_avg_pool2d(self.classifier(self.fire9(x)), 1), 1)
