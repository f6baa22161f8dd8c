"""Layers in the two forms that methods put into a graph: plain ones with a bias, and ones on a derived weight."""

import torch
from torch import nn

from export.derived import Derivation, DerivedConv2d, DerivedLinear
from pipeline.graph import Convolution
from pipeline.methods.initialisation import he_normal, xavier_normal


def with_bias(layer: nn.Conv2d | nn.Linear, weight: torch.Tensor) -> nn.Conv2d | nn.Linear:
    """The plain layer with this weight and a bias of zeros."""
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    layer.bias = nn.Parameter(torch.zeros(weight.shape[0]))
    return layer


def initialise_as_written(layer: Convolution, generator: torch.Generator) -> None:
    """Draw the weight of a layer that stays as it is, and set its bias, where it has one, to zero."""
    draw = xavier_normal if layer.kind == "classifier" else he_normal
    layer.module.weight = nn.Parameter(draw(layer.module.weight.shape, generator))
    if layer.module.bias is not None:
        nn.init.zeros_(layer.module.bias)


def derived(like: nn.Conv2d | nn.Linear, derivation: Derivation) -> DerivedConv2d | DerivedLinear:
    """The operation of `like` on a derived weight."""
    return DerivedConv2d(like, derivation) if isinstance(like, nn.Conv2d) else DerivedLinear(derivation)
