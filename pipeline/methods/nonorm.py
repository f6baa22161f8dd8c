"""Every normalisation removed: plain convolutions with biases, He initialisation. A comparison row, and the cost that other methods add to."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.fx import GraphModule

from pipeline.config.methods import NonormOptions
from pipeline.graph import find_parts
from pipeline.graph.rewrite import finish, remove_norms, replace_layer
from pipeline.methods.base import Method, ParameterGroup, Rewritten, TrainingRules
from pipeline.methods.initialisation import he_normal, xavier_normal


class OneGroup(TrainingRules):
    """All parameters alike, with L2 decay."""

    def __init__(self, graph: nn.Module, weight_decay: float) -> None:
        self._groups = (ParameterGroup(name="all", parameters=tuple(graph.parameters()), weight_decay=weight_decay),)

    @property
    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return self._groups


class Nonorm(Method):
    """Plain layers only; what is trained is what is deployed."""

    def __init__(self, options: NonormOptions) -> None:
        self.options = options

    def rewrite(self, graph: GraphModule, generator: torch.Generator) -> Rewritten:
        parts = find_parts(graph)
        remove_norms(graph, parts.norms)
        for layer in parts.convolutions:
            draw = xavier_normal if layer.kind == "classifier" else he_normal
            replace_layer(graph, layer.node, _with_bias(layer.module, draw(layer.module.weight.shape, generator)))
        return Rewritten(finish(graph), OneGroup(graph, self.options.weight_decay))


def _with_bias(layer: nn.Conv2d | nn.Linear, weight: torch.Tensor) -> nn.Module:
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(torch.zeros(weight.shape[0]))
    return layer
