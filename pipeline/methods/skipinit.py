"""SkipInit: no normalisation, and one learned scale per residual branch that starts small.

A deep network then starts as its shortcuts. The scale acts on the weight and bias of the branch's
last convolution. What is trained is what is deployed, except for dropout.
"""

import math

import torch
from torch.fx import GraphModule

from export.graph import Dropout, find_parts
from export.graph.layers import derived
from export.graph.parts import remove_norms
from export.graph.rewriting import finish, insert_in_front, replace_layer
from pipeline.config.methods import SkipinitOptions
from pipeline.methods.branches import BranchScale, ends_of_all_branches
from pipeline.methods.method import Method, OneGroup, RewrittenGraph
from pipeline.methods.new_layers import drawn, with_bias


class Skipinit(Method):
    """The rewrite: no norms, biases, and a scale at the end of each branch."""

    def __init__(self, options: SkipinitOptions) -> None:
        self.options = options

    def rewrite(self, graph: GraphModule, generator: torch.Generator) -> RewrittenGraph:
        parts = find_parts(graph)
        scaled = ends_of_all_branches(parts, "skipinit")
        scale = 0.0 if self.options.initial_scale == "zero" else 1 / math.sqrt(len(scaled))
        remove_norms(graph, parts.norms)
        for layer in parts.convolutions:
            weight = drawn(layer, generator)
            in_place = derived(layer.module, BranchScale(weight, scale)) if layer.node in scaled else with_bias(layer.module, weight)
            replace_layer(graph, layer.node, in_place)
        if self.options.dropout > 0:
            insert_in_front(graph, parts.classifier.node, "classifier_dropout", Dropout(self.options.dropout))
        return RewrittenGraph(finish(graph), OneGroup(graph, self.options.weight_decay, self.options.decay_on))
