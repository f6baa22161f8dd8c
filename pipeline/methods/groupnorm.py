"""GroupNorm in place of every BatchNorm.

Mean and variance of each sample over groups of channels, in training and evaluation alike. What is
trained is what is deployed, but nothing folds: no weight can hold statistics that differ from
sample to sample.
"""

import math
from collections import Counter

import torch
from torch import nn
from torch.fx import GraphModule

from export.errors import UsageError
from export.graph import Norm, find_parts
from export.graph.layers import UnfoldableLayer
from export.graph.rewriting import finish, replace_layer, shape_of
from pipeline.config.methods import GroupnormOptions
from pipeline.methods.method import Method, OneGroup, RewrittenGraph
from pipeline.methods.new_layers import initialise_as_written


class GroupNormLayer(UnfoldableLayer):
    """y = gamma (x - mean) / sqrt(variance + eps) + beta.

    Mean and variance are those of the sample's group of channels.
    """

    def __init__(self, num_groups: int, like: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, like.num_features, like.eps, like.affine)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(x)
        return normed

    @property
    def summary(self) -> str:
        return "group normalisation, statistics of each sample"

    def written_out(self) -> nn.Module:
        return GroupNormForFiles(self.norm)

    @property
    def onnx_operations(self) -> Counter[str]:
        return Counter({"Sqrt": 1, "Mul": 2 if self.norm.affine else 1})


class GroupNormForFiles(nn.Module):
    """A GroupNorm for files, written out so that runtimes compute it accurately.

    Each mean is taken over columns, then rows, then the channels of the group. The mean is removed
    twice; the second time it is the mean of small values. A runtime that adds one value after
    another loses most where all values are nearly equal: in the maps of a white image, whose
    variance is then small against the error. Exporters would write an InstanceNormalization, in
    which ONNX Runtime is far less exact than PyTorch (`benchmarks/groupnorm.py`).
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels_of_a_group = self.norm.num_channels // self.norm.num_groups
        grouped = x.reshape(x.shape[0], self.norm.num_groups, channels_of_a_group, *x.shape[2:])
        centred = grouped - _mean_of_group(grouped)
        centred = centred - _mean_of_group(centred)
        deviation = torch.sqrt(_mean_of_group(centred * centred) + self.norm.eps)
        normed = (centred / deviation).reshape(x.shape)
        if not self.norm.affine:
            return normed
        per_channel = (-1, *[1] * (x.dim() - 2))
        return normed * self.norm.weight.view(per_channel) + self.norm.bias.view(per_channel)


def _mean_of_group(grouped: torch.Tensor) -> torch.Tensor:
    for dim in range(grouped.dim() - 1, 1, -1):
        grouped = grouped.mean(dim, keepdim=True)
    return grouped


class Groupnorm(Method):
    """The network as it is written, with its norms replaced."""

    def __init__(self, options: GroupnormOptions) -> None:
        self.options = options

    def rewrite(self, graph: GraphModule, generator: torch.Generator) -> RewrittenGraph:
        parts = find_parts(graph)
        if not parts.norms:
            raise UsageError("method groupnorm replaces norms, and the network has none; choose a network with norms, or method nonorm")
        for layer in parts.convolutions:
            initialise_as_written(layer, generator)
        for norm in parts.norms:
            replace_layer(graph, norm.node, GroupNormLayer(self._num_groups(norm), norm.module))
        return RewrittenGraph(finish(graph), OneGroup(graph, self.options.weight_decay))

    def _num_groups(self, norm: Norm) -> int:
        channels = norm.module.num_features
        wanted = _largest_divisor(channels, self.options.size)
        num_groups = wanted if self.options.group_by == "number" else channels // wanted
        if _num_values(norm) == num_groups:
            raise UsageError(
                f"norm {norm.name!r} would have {num_groups} groups of one value each, which have no variance; "
                f"set method.size so that a group has at least two of its {channels} channels"
            )
        return num_groups


def _largest_divisor(number: int, limit: int) -> int:
    return max(each for each in range(1, min(number, limit) + 1) if number % each == 0)


def _num_values(norm: Norm) -> int:
    """Return how many values a sample has at the norm."""
    return math.prod(shape_of(norm.node)[1:])
