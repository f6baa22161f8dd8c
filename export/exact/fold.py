"""The fold of a grid graph: every weight and bias as the integers they are, and the plain graph back from those integers.

Takes a calibrated grid graph. Nothing is rounded here: the integers are exact, and so is their product with a power of two.
"""

from collections.abc import Mapping

import torch
from torch.fx import GraphModule

from export.exact.rewrite import GridGraph
from export.fold import fold

Tensors = Mapping[str, torch.Tensor]


def integers_of(grid: GridGraph) -> dict[str, torch.Tensor]:
    """Per layer: weight as int8, bias as int32, the step of each filter's weights and the unit of its sums."""
    tensors: dict[str, torch.Tensor] = {}
    for layer in grid.layers:
        weight, bias = layer.weights.integers()
        tensors |= {
            f"{layer.name}.weight": weight.to(torch.int8),
            f"{layer.name}.bias": bias.to(torch.int32),
            f"{layer.name}.step": layer.weights.step.clone(),
            f"{layer.name}.unit": layer.weights.unit.clone(),
        }
    return tensors


def folded_from_integers(grid: GridGraph, integers: Tensors) -> GraphModule:
    """The plain graph that runs with these integers."""
    folded = fold(grid.graph)
    for layer in grid.layers:
        weight, bias, step, unit = (integers[f"{layer.name}.{part}"] for part in ("weight", "bias", "step", "unit"))
        folded.get_parameter(f"{layer.name}.weight").copy_(weight.float() * step.view(-1, *[1] * (weight.dim() - 1)))
        folded.get_parameter(f"{layer.name}.bias").copy_(bias.float() * unit)
    return folded
