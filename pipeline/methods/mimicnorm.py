"""MimicNorm: filters centred after each step, scaled residual branches, one norm over the logits.

Centring is a projection outside the graph, for all layers at once. The scales act on weights. Only
the last norm uses batch statistics.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.fx import GraphModule, Node

from export.graph import Convolution, Parts, ResidualUnit, find_parts
from export.graph.layers import derived
from export.graph.parts import remove_norms
from export.graph.rewriting import finish, replace_layer
from pipeline.config.methods import MimicnormOptions
from pipeline.methods.branches import BranchScale, chains_to_joins, last_convolutions, last_shortcut_convolutions
from pipeline.methods.last_norm import normalise_logits
from pipeline.methods.method import Method, OneGroup, RewrittenGraph, Stacks
from pipeline.methods.new_layers import he_normal, he_normal_fan_out, seen_by_zero_mean, with_bias, xavier_normal

_CODE_GAIN = math.sqrt(1.4)
_CODE_GAIN_PER_CONVOLUTION = 1.2


class MimicnormRules(OneGroup):
    """L2 decay, and the centring of weights after each step."""

    def __init__(self, graph: nn.Module, options: MimicnormOptions, centred: list[nn.Parameter]) -> None:
        super().__init__(graph, options.weight_decay, options.decay_on)
        self._centred = Stacks(centred)

    @torch.no_grad()
    def project(self) -> None:
        """Subtract from each filter its mean."""
        for filters in self._centred:
            means = torch.stack(list(filters)).mean((2, 3, 4), keepdim=True)
            torch._foreach_sub_(list(filters), list(means.unbind()))


class Mimicnorm(Method):
    """The rewrite: no norms, biases, scales on the last weights of branches, a norm over the
    logits."""

    def __init__(self, options: MimicnormOptions) -> None:
        self.options = options

    def rewrite(self, graph: GraphModule, generator: torch.Generator) -> RewrittenGraph:
        parts = find_parts(graph)
        joined = chains_to_joins(graph, parts) if self.options.joined_scale == "code" else []
        scales = self._scales(parts, joined)
        he_drawn = _compensated_by_scales(parts, scales, joined)
        remove_norms(graph, parts.norms)
        centred: list[nn.Parameter] = []
        for layer in parts.convolutions:
            weight = self._initial_weight(layer, generator, plain=layer.node in he_drawn)
            parameter = _put_in_place(graph, layer, weight, scales.get(layer.node))
            if self._is_centred(layer):
                centred.append(parameter)
        if self.options.last_norm:
            normalise_logits(graph, parts.classifier)
        rules = MimicnormRules(finish(graph), self.options, centred)
        rules.project()
        return RewrittenGraph(graph, rules)

    def _is_centred(self, layer: Convolution) -> bool:
        if not self.options.weight_mean or not isinstance(layer.module, nn.Conv2d) or _is_depthwise(layer):
            return False
        return layer.module.weight[0].numel() > 50 if self.options.centred == "wide" else layer.module.groups == 1

    def _initial_weight(self, layer: Convolution, generator: torch.Generator, *, plain: bool) -> torch.Tensor:
        shape = layer.module.weight.shape
        if layer.kind == "classifier":
            return xavier_normal(shape, generator)
        weight = self._drawn(layer, generator)
        if self.options.gain == "paper":
            return weight * (1 / seen_by_zero_mean(layer.slope)) if self._is_centred(layer) else weight
        return weight if plain or _is_depthwise(layer) or layer.kind == "linear" else weight * _CODE_GAIN

    def _drawn(self, layer: Convolution, generator: torch.Generator) -> torch.Tensor:
        """Draw He's weights by the fan that the options name."""
        shape = layer.module.weight.shape
        if not isinstance(layer.module, nn.Conv2d):
            return he_normal(shape, generator, layer.slope)
        if self.options.fan == "out":
            return he_normal_fan_out(shape, generator, layer.module.groups, layer.slope)
        return he_normal(shape, generator, layer.slope) * math.sqrt(shape[1] / max(shape[1], self.options.fan_channels))

    def _scales(self, parts: Parts, joined: Sequence[Sequence[Convolution]]) -> dict[Node, float]:
        """Return the initial scale of each convolution that has one."""
        scales = {layers[0].node: _code_scale(layers) for layers in joined}
        if self.options.shortcut_scale is not None:
            scales |= dict.fromkeys(last_shortcut_convolutions(parts.units), self.options.shortcut_scale)
        if self.options.branch_scale != "none":
            for number, (node, unit) in enumerate(last_convolutions(parts.units).items(), start=1):
                scales[node] = self._branch_scale(unit, number)
        return scales

    def _branch_scale(self, unit: ResidualUnit, number: int) -> float:
        if self.options.branch_scale == "paper":
            return 1 / math.sqrt(number)
        return _code_scale(unit.branch) / number


def _code_scale(layers: Sequence[Convolution]) -> float:
    num_convolutions = sum(not _is_depthwise(layer) for layer in layers)
    return float(_CODE_GAIN_PER_CONVOLUTION**num_convolutions)


def _compensated_by_scales(parts: Parts, scales: dict[Node, float], joined: Sequence[Sequence[Convolution]]) -> set[Node]:
    """Return the convolutions that the authors draw with plain He variance.

    These are scaled branches, their shortcuts, and the first layer in front of them.
    """
    scaled = [unit for node, unit in last_convolutions(parts.units).items() if node in scales]
    layers = [layer for unit in scaled for layer in unit.branch + unit.shortcut] + [layer for each in joined for layer in each]
    first = [layer for layer in parts.convolutions if layers and layer.kind == "first"]
    return {layer.node for layer in layers + first}


def _put_in_place(graph: GraphModule, layer: Convolution, weight: torch.Tensor, scale: float | None) -> nn.Parameter:
    """Replace the layer and return the parameter that holds its filters."""
    if scale is None:
        plain = nn.Parameter(weight)
        replace_layer(graph, layer.node, with_bias(layer.module, plain))
        return plain
    scaled = BranchScale(weight, scale)
    replace_layer(graph, layer.node, derived(layer.module, scaled))
    return scaled.weight


def _is_depthwise(layer: Convolution) -> bool:
    return layer.kind == "depthwise"
