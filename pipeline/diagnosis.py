"""What a trainer wants to see of a graph's weights: filter norms, distance from zero mean, scales, layer by layer."""

from collections.abc import Iterator, Mapping

import torch
from torch.fx import GraphModule

from deploy.verify.report import filter_figures
from export.derived import DerivedConv2d, DerivedLinear
from export.fold import fold
from pipeline.graph import find_parts


@torch.no_grad()
def filter_figures_of(graph: GraphModule) -> Iterator[Mapping[str, object]]:
    """The figures of every convolution and linear layer, in the order of the graph."""
    for layer in find_parts(fold(graph)).convolutions:
        trained = graph.get_submodule(layer.name)
        weight, scale = layer.module.weight, None
        if isinstance(trained, (DerivedConv2d, DerivedLinear)):
            weight, scale = trained.derivation.filters_and_scale()
        yield filter_figures(layer.name, layer.kind, weight.cpu().numpy(), None if scale is None else scale.cpu().numpy())
