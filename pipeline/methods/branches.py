"""Scales on residual branches.

They act on the weight and bias of the convolution that ends the branch, so that folding keeps the
bits.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.fx import GraphModule, Node

from export.errors import UsageError
from export.graph import Convolution, Parts, ResidualUnit
from export.graph.layers import Derivation, WeightAndBias
from export.graph.operations import walk


class BranchScale(Derivation):
    """W = s V and b = s c, with one learned scalar s for the whole layer."""

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
    """Map the last convolution of each branch to its unit, in the order of the graph.

    Units whose branches end otherwise are left out.
    """
    ends = ((_ends_in(unit.branch, unit.branch_end), unit) for unit in units)
    return {layer.node: unit for layer, unit in ends if layer is not None}


def ends_of_all_branches(parts: Parts, method: str) -> dict[Node, ResidualUnit]:
    """Do the same for a method that needs every branch to end in a convolution of its own.

    Refuse a network where a branch does not, or where there is no branch.
    """
    if not parts.units:
        raise UsageError(f"method {method} scales residual branches, and the network has none; choose a residual network or another method")
    ends = last_convolutions(parts.units)
    for unit in parts.units:
        if unit not in ends.values():
            raise UsageError(
                f"method {method} scales the last convolution of each branch, and the branch that node {unit.add.name!r} adds ends in "
                f"{unit.branch_end.name!r}; end the branch in a convolution, or choose another method"
            )
    return ends


def last_shortcut_convolutions(units: Iterable[ResidualUnit]) -> list[Node]:
    """Return the convolutions that end shortcuts, in the order of the graph."""
    ends = (_ends_in(unit.shortcut, unit.shortcut_end) for unit in units)
    return [layer.node for layer in ends if layer is not None]


def chains_to_joins(graph: GraphModule, parts: Parts) -> list[tuple[Convolution, ...]]:
    """Return the layers on each path into a concatenation, last first, and on the path to the
    classifier.

    The second kind of path leads from the concatenation and leaves the classifier out. A path
    begins where others read the same value, or at another join. A network that concatenates nothing
    has none.
    """
    layer_at = {layer.node: layer for layer in parts.convolutions}
    joins = [step.node for step in walk(graph) if step.kind == "concatenation"]
    ends = [before for join in joins for before in join.all_input_nodes] + [before for before in parts.classifier.node.all_input_nodes if joins]
    ways = (tuple(layer_at[node] for node in _straight_way_to(end) if node in layer_at) for end in ends)
    return [way for way in ways if way]


def _straight_way_to(end: Node) -> Iterator[Node]:
    """Go backwards from `end` as long as each node has one input and one reader."""
    node = end
    while len(node.users) == 1 and len(node.all_input_nodes) == 1:
        yield node
        (node,) = node.all_input_nodes


def _ends_in(layers: tuple[Convolution, ...], end: Node) -> Convolution | None:
    """Return the convolution whose output, alone or through its norm, is `end`.

    None if the path ends otherwise, or if others read the output too.
    """
    for layer in layers:
        last = layer.node if layer.norm is None else layer.norm.node
        if last is end and len(end.users) == 1:
            return layer
    return None
