"""Finds the parts of a training graph, in which a method has replaced layers and added others, by way of its folded form.

Folding keeps the names of nodes and layers, and leaves the plain layers that `find_parts` knows. Knows no method.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import GraphModule, Node

from export.derived import Derivation
from export.fold import fold
from pipeline.graph.parts import Kind, find_parts


@dataclass(frozen=True)
class TrainedLayer:
    """A convolution or linear layer as it is trained."""

    name: str
    kind: Kind
    module: nn.Module

    def filters_and_scale(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The filters before a learned scale per filter, and that scale; None where there is none."""
        if (derivation := self._derivation) is not None:
            return derivation.filters_and_scale()
        assert isinstance(self.module, (nn.Conv2d, nn.Linear))
        return self.module.weight, None

    def output_variance(self) -> torch.Tensor | None:
        """The running variance per filter that the layer divides by; None where it has no norm."""
        return None if self._derivation is None else self._derivation.output_variance()

    @property
    def _derivation(self) -> Derivation | None:
        return next((each for each in self.module.modules() if isinstance(each, Derivation)), None)


def trained_layers(graph: GraphModule) -> tuple[TrainedLayer, ...]:
    """Every convolution and linear layer in the order of computation, the classifier last."""
    found = find_parts(fold(graph)).convolutions
    return tuple(TrainedLayer(layer.name, layer.kind, graph.get_submodule(layer.name)) for layer in found)


def starts_of_units(graph: GraphModule, *, where_images_shrink: bool) -> list[Node]:
    """The nodes at which residual units begin, in the order of computation; all, or those of units that make images smaller."""
    units = find_parts(fold(graph)).units
    names = [unit.start.name for unit in units if not where_images_shrink or _pixels(unit.start) > _pixels(unit.add)]
    return [node for node in graph.graph.nodes if node.name in names]


def _pixels(node: Node) -> int:
    return node.meta["tensor_meta"].shape[2:].numel()
