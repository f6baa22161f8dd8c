"""Every normalisation removed: plain convolutions with biases and He initialisation.

A row for comparison; it has the least cost, to which other methods add.
"""

import torch
from torch.fx import GraphModule

from export.graph import find_parts
from export.graph.parts import remove_norms
from export.graph.rewriting import finish, replace_layer
from pipeline.config.methods import NonormOptions
from pipeline.methods.method import Method, OneGroup, RewrittenGraph
from pipeline.methods.new_layers import drawn, with_bias


class Nonorm(Method):
    """Plain layers only; what is trained is what is deployed."""

    def __init__(self, options: NonormOptions) -> None:
        self.options = options

    def rewrite(self, graph: GraphModule, generator: torch.Generator) -> RewrittenGraph:
        parts = find_parts(graph)
        remove_norms(graph, parts.norms)
        for layer in parts.convolutions:
            replace_layer(graph, layer.node, with_bias(layer.module, drawn(layer, generator)))
        return RewrittenGraph(finish(graph), OneGroup(graph, self.options.weight_decay))
