"""Fixup: no normalisation, branches that start at zero, and scalar biases and multipliers.

The scalars replace the shifts and scales of the norms. What is trained is what is deployed. A
scalar is part of a layer's weight and bias wherever that is the same function. In front of zero
padding it is not, so there it keeps a node of its own.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.fx import GraphModule, Node

from export.graph import Convolution, Parts, ResidualUnit, find_parts
from export.graph.layers import Derivation, ScalarBias, WeightAndBias, derived
from export.graph.operations import walk
from export.graph.parts import remove_norms
from export.graph.rewriting import finish, insert_between, insert_in_front, replace_layer
from pipeline.config.methods import FixupOptions
from pipeline.methods.branches import ends_of_all_branches
from pipeline.methods.method import Method, ParameterGroup, RewrittenGraph, TrainingRules
from pipeline.methods.new_layers import he_normal_fan_out


class FixupWeights(Derivation):
    """s conv(x + a) + b, as W = s V with the bias a sum(W) + b.

    The scalars s, a and b are optional, and so is a bias per class.
    """

    def __init__(self, weight: torch.Tensor, *, scaled: bool, biased_before: bool, biased_behind: bool, per_output: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.scale = nn.Parameter(torch.ones(())) if scaled else None
        self.bias_before = nn.Parameter(torch.zeros(())) if biased_before else None
        self.bias_behind = nn.Parameter(torch.zeros(())) if biased_behind else None
        self.bias = nn.Parameter(torch.zeros(weight.shape[0])) if per_output else None

    def forward(self) -> WeightAndBias:
        weight = self.weight if self.scale is None else self.weight * self.scale
        parts: list[torch.Tensor] = [] if self.bias is None else [self.bias]
        if self.bias_before is not None:
            parts.append(self.bias_before * weight.flatten(1).sum(1))
        if self.bias_behind is not None:
            parts.append(self.bias_behind.expand(weight.shape[0]))
        return weight, sum(parts[1:], parts[0]) if parts else None

    def filters_and_scale(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.weight, None if self.scale is None else self.scale.abs().expand(self.weight.shape[0])


class FixupRules(TrainingRules):
    """L2 decay, and a smaller learning rate for biases and multipliers."""

    def __init__(self, graph: nn.Module, options: FixupOptions) -> None:
        weights = tuple(parameter for parameter in graph.parameters() if parameter.dim() > 1)
        others = tuple(parameter for parameter in graph.parameters() if parameter.dim() <= 1)
        decay = options.weight_decay if options.decay_on == "all" else 0.0
        self._groups = (
            ParameterGroup(name="weights", parameters=weights, weight_decay=options.weight_decay),
            ParameterGroup(name="biases and multipliers", parameters=others, rate_share=options.slow_share, weight_decay=decay),
        )

    @property
    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return self._groups


class Fixup(Method):
    """The rewrite: no norms, a scalar before each convolution and ReLU, a multiplier per branch.

    The multiplier is at the end of the branch.
    """

    def __init__(self, options: FixupOptions) -> None:
        self.options = options

    def rewrite(self, graph: GraphModule, generator: torch.Generator) -> RewrittenGraph:
        parts = find_parts(graph)
        ends = ends_of_all_branches(parts, "fixup")
        shares = _shares_of_he(ends)
        for layer in parts.convolutions:  # first, while every unit still begins at the node where it was found
            if self._is_biased_before(layer) and _pads(layer):
                _insert_in_front_of_padding(graph, layer, parts)
        remove_norms(graph, parts.norms)
        biased_behind = _biased_behind(graph, parts, ends)
        for layer in parts.convolutions:
            derivation = FixupWeights(
                _drawn(layer, generator, shares.get(layer.node, 1.0)),
                scaled=layer.node in ends,
                biased_before=self._is_biased_before(layer) and not _pads(layer),
                biased_behind=layer.node in biased_behind,
                per_output=layer is parts.classifier,
            )
            replace_layer(graph, layer.node, derived(layer.module, derivation))
        return RewrittenGraph(finish(graph), FixupRules(graph, self.options))

    def _is_biased_before(self, layer: Convolution) -> bool:
        return layer.kind != "first" or self.options.first_layer_bias


def _shares_of_he(ends: dict[Node, ResidualUnit]) -> dict[Node, float]:
    """Return the share of He's deviation of each convolution in a branch.

    It is L^(-1 / (2m - 2)) for m convolutions in the branch and L branches in all. The last
    convolution starts at zero.
    """
    shares: dict[Node, float] = {}
    for end, unit in ends.items():
        inner = [layer.node for layer in unit.branch if layer.node is not end]
        shares |= {node: len(ends) ** (-1 / (2 * len(inner))) for node in inner}
    return shares | dict.fromkeys(ends, 0.0)


def _drawn(layer: Convolution, generator: torch.Generator, share: float) -> torch.Tensor:
    shape = layer.module.weight.shape
    if share == 0.0 or layer.kind == "classifier":
        return torch.zeros(shape)
    groups = layer.module.groups if isinstance(layer.module, nn.Conv2d) else 1
    return he_normal_fan_out(shape, generator, groups, layer.slope) * share


def _pads(layer: Convolution) -> bool:
    return isinstance(layer.module, nn.Conv2d) and any(layer.module.padding)


def _insert_in_front_of_padding(graph: GraphModule, layer: Convolution, parts: Parts) -> None:
    """Insert the bias as a node of its own in front of a convolution that pads.

    A shortcut that drops pixels and has no layer of its own reads the branch's biased input, as in
    the authors' code.
    """
    (before,) = layer.node.all_input_nodes
    readers = [layer.node]
    for unit in parts.units:
        if unit.start is before and layer in unit.branch and not unit.shortcut:
            readers += [node for node in before.users if node in unit.inside - unit.inside_branch - {unit.add}]
    insert_between(graph, before, readers, f"bias_before_{layer.node.name}", ScalarBias())


def _biased_behind(graph: GraphModule, parts: Parts, ends: dict[Node, ResidualUnit]) -> set[Node]:
    """Return the convolutions whose own bias serves as the bias in front of a ReLU.

    Every other ReLU gets a node for it.
    """
    layers = {layer.node for layer in parts.convolutions}
    end_of = {unit.add: node for node, unit in ends.items()}
    found: set[Node] = set()
    for rectifier in [step.node for step in walk(graph) if step.kind == "rectifier"]:
        (before,) = rectifier.all_input_nodes
        source = end_of.get(before, before)
        if source in layers and len(before.users) == 1:
            found.add(source)
        else:
            insert_in_front(graph, rectifier, f"bias_before_{rectifier.name}", ScalarBias())
    return found
