"""Scales on residual branches, written on the weight and bias of the convolution that ends the branch, so that folding keeps the bits."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.fx import Node

from export.derived import Derivation, WeightAndBias
from pipeline.graph import Convolution, ResidualUnit


class BranchScaled(Derivation):
    """W = s V and b = s c with one learned scalar s for the whole layer."""

    def __init__(self, weight: torch.Tensor, initial_scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(weight.shape[0]))
        self.scale = nn.Parameter(torch.tensor(float(initial_scale)))

    def forward(self) -> WeightAndBias:
        return self.weight * self.scale, self.bias * self.scale

    def filters_and_scale(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.weight, self.scale.abs().expand(self.weight.shape[0])


def last_convolutions(units: Iterable[ResidualUnit]) -> dict[Node, ResidualUnit]:
    """The units whose branches end in a convolution, by that convolution's node, in the order of the graph."""
    ends = ((_ends_in(unit.branch, unit.branch_end), unit) for unit in units)
    return {layer.node: unit for layer, unit in ends if layer is not None}


def last_shortcut_convolutions(units: Iterable[ResidualUnit]) -> list[Node]:
    """The convolutions in which shortcuts end, in the order of the graph."""
    ends = (_ends_in(unit.shortcut, unit.shortcut_end) for unit in units)
    return [layer.node for layer in ends if layer is not None]


def _ends_in(layers: tuple[Convolution, ...], end: Node) -> Convolution | None:
    """The convolution whose output, alone or through its norm, is `end`; None where the way ends otherwise or others read it too."""
    for layer in layers:
        last = layer.node if layer.norm is None else layer.norm.node
        if last is end and len(end.users) == 1:
            return layer
    return None
