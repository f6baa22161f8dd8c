"""Weight normalisation: w = (g / |v|) v for every convolution, and dropout in the branches.

There is no other normalisation. What is trained is what is deployed, except for dropout. The
gradient clipping that goes with it belongs to training.
"""

import torch
from torch import nn
from torch.fx import GraphModule

from export.graph import Dropout, Parts, find_parts
from export.graph.layers import Derivation, WeightAndBias, derived
from export.graph.parts import remove_norms
from export.graph.rewriting import finish, insert_in_front, replace_layer
from pipeline.config.methods import WeightnormOptions
from pipeline.methods.branches import last_convolutions
from pipeline.methods.method import Method, OneGroup, RewrittenGraph
from pipeline.methods.new_layers import drawn, per_filter, with_bias


class NormedWeights(Derivation):
    """w_f = (g_f / |v_f|) v_f.

    It starts at g = |v|, so that the layer starts as it was drawn.
    """

    def __init__(self, direction: torch.Tensor) -> None:
        super().__init__()
        self.direction = nn.Parameter(direction)
        self.gain = nn.Parameter(_norm_of_filters(direction))
        self.bias = nn.Parameter(torch.zeros(direction.shape[0]))

    def forward(self) -> WeightAndBias:
        return self.direction * per_filter(self.gain / _norm_of_filters(self.direction), self.direction), self.bias

    def filters_and_scale(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.direction, self.gain / _norm_of_filters(self.direction)


def _norm_of_filters(direction: torch.Tensor) -> torch.Tensor:
    """Compute |v|, for all uses.

    A fused kernel and a written-out formula need not have the same bits.
    """
    return torch.linalg.vector_norm(direction.flatten(1), dim=1)


class Weightnorm(Method):
    """The rewrite: no norms; weight-normalised convolutions with biases; dropout.

    The dropout is in front of the last convolution of each branch.
    """

    def __init__(self, options: WeightnormOptions) -> None:
        self.options = options

    def rewrite(self, graph: GraphModule, generator: torch.Generator) -> RewrittenGraph:
        parts = find_parts(graph)
        self._insert_dropout(graph, parts)
        remove_norms(graph, parts.norms)
        for layer in parts.convolutions:
            weight, is_plain = drawn(layer, generator), layer.kind in ("classifier", "linear")
            replace_layer(graph, layer.node, with_bias(layer.module, weight) if is_plain else derived(layer.module, NormedWeights(weight)))
        return RewrittenGraph(finish(graph), OneGroup(graph, self.options.weight_decay, self.options.decay_on))

    def _insert_dropout(self, graph: GraphModule, parts: Parts) -> None:
        if self.options.dropout == 0:
            return
        for number, end in enumerate(last_convolutions(parts.units), start=1):
            insert_in_front(graph, end, f"branch_dropout_{number}", Dropout(self.options.dropout))
