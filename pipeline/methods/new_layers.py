"""Layers that methods put into a graph, and the random draws that their weights start from.

Takes plain layers and a generator. Knows no particular network.
"""

import math

import torch
from torch import nn

from export.graph import Convolution


def with_bias(layer: nn.Conv2d | nn.Linear, weight: torch.Tensor) -> nn.Conv2d | nn.Linear:
    """Return the plain layer with this weight and a bias of zeros."""
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    layer.bias = nn.Parameter(torch.zeros(weight.shape[0]))
    return layer


def initialise_as_written(layer: Convolution, generator: torch.Generator) -> None:
    """Draw the weight of a layer that stays as it is, and set its bias, if it has one, to zero."""
    layer.module.weight = nn.Parameter(drawn(layer, generator))
    if layer.module.bias is not None:
        nn.init.zeros_(layer.module.bias)


def drawn(layer: Convolution, generator: torch.Generator) -> torch.Tensor:
    """Draw a weight by He's rule with fan-in, or a classifier's weight by Glorot's rule."""
    shape = layer.module.weight.shape
    return xavier_normal(shape, generator) if layer.kind == "classifier" else he_normal(shape, generator, layer.slope)


def unit_uniform(shape: torch.Size, generator: torch.Generator, mean_dims: tuple[int, ...] = ()) -> torch.Tensor:
    """Draw uniform filters of L2 norm 1.

    If `mean_dims` are given, the mean over them is removed first.
    """
    weight = torch.empty(shape).uniform_(-1.0, 1.0, generator=generator)
    if mean_dims:
        weight -= weight.mean(mean_dims, keepdim=True)
    return weight / per_filter(weight.flatten(1).norm(dim=1), weight)


def he_normal(shape: torch.Size, generator: torch.Generator, slope: float = 0.0) -> torch.Tensor:
    """Draw from a normal distribution with variance 2 / ((1 + a^2) fan_in).

    The layer reads a rectifier of slope a; a ReLU has slope 0.
    """
    return torch.empty(shape).normal_(0.0, math.sqrt(2.0 / ((1 + slope**2) * shape[1:].numel())), generator=generator)


def he_normal_fan_out(shape: torch.Size, generator: torch.Generator, groups: int = 1, slope: float = 0.0) -> torch.Tensor:
    """Draw from a normal distribution with variance 2 / ((1 + a^2) fan_out)."""
    return torch.empty(shape).normal_(0.0, math.sqrt(2.0 * groups / ((1 + slope**2) * shape[0] * shape[2:].numel())), generator=generator)


def seen_by_zero_mean(slope: float) -> float:
    """Return the share of the root mean square that a filter of zero mean sees: the deviation.

    The value is that of a normal variable after a rectifier of slope a. Its mean square is (1 +
    a^2) / 2 and its mean is (1 - a) / sqrt(2 pi).
    """
    return math.sqrt(1 - (1 - slope) ** 2 / (math.pi * (1 + slope**2)))


def with_both_signs(weight: torch.Tensor, dims: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Draw the signs again wherever all values over `dims` have the same sign.

    A single value can have only one sign and is left alone.
    """
    if math.prod(weight.shape[dim] for dim in dims) == 1:
        return weight
    while True:
        num_positive = (weight > 0).sum(dims, keepdim=True)
        alike = (num_positive == 0) | (num_positive == math.prod(weight.shape[dim] for dim in dims))
        if not alike.any():
            return weight
        signs = 2 * torch.randint(0, 2, weight.shape, generator=generator) - 1
        weight = torch.where(alike, weight.abs() * signs, weight)


def xavier_normal(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Draw from a normal distribution with variance 2 / (fan_in + fan_out)."""
    fan_in, fan_out = shape[1:].numel(), shape[0] * shape[2:].numel()
    return torch.empty(shape).normal_(0.0, math.sqrt(2.0 / (fan_in + fan_out)), generator=generator)


def per_filter(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return one value per output filter, shaped to broadcast over the weight."""
    return values.view(-1, *([1] * (weight.dim() - 1)))
