"""EquiNorm: each filter is shifted and scaled by the means of its input channels.

Its output then has mean 0 and a positive part of mean 1. Training uses the means of the batch,
evaluation running ones. Both act on the weight, as does the affine, so that folding keeps the bits.
"""

import math

import torch
from torch import nn
from torch.fx import GraphModule, Node

from export.errors import UsageError
from export.graph import Convolution, Normalise, Parts, find_parts
from export.graph.layers import Derivation, DerivedConv2d, FoldableLayer, WeightAndBias
from export.graph.operations import walk
from export.graph.parts import remove_norms
from export.graph.rewriting import finish, image_size_of, replace_layer
from pipeline.config.methods import EquinormOptions
from pipeline.methods.method import Method, OneGroup, RewrittenGraph
from pipeline.methods.new_layers import drawn, he_normal_fan_out, per_filter, with_bias, with_both_signs
from pipeline.methods.statistics import Moments, Statistics


class BalancedWeights(Derivation):
    """W = gamma s (w + b), with b and s from the means of the input channels, and beta as the
    bias."""

    running_means: torch.Tensor

    def __init__(self, weight: torch.Tensor, num_channels: int, pixel_ratio: float, options: EquinormOptions) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.gain = nn.Parameter(torch.ones(weight.shape[0]))
        self.bias = nn.Parameter(torch.zeros(weight.shape[0]))
        self.register_buffer("running_means", torch.ones(num_channels))
        self.pixel_ratio = pixel_ratio
        self.two_pass, self.eps = options.form == "two_pass", options.eps

    def forward(self) -> WeightAndBias:
        return self.balanced_by(self.running_means)

    def balanced_by(self, means: torch.Tensor) -> WeightAndBias:
        """Return weight and bias for inputs whose channels have these means."""
        seen = self._seen_by_each_filter(means)
        kernel_pixels = self.weight.shape[2] * self.weight.shape[3]
        over_channels = (seen * self.weight.sum((2, 3))).sum(1)
        shift = -over_channels / (kernel_pixels * seen.sum(1)).clamp_min(self.eps)
        shifted = self.weight + per_filter(shift, self.weight)
        positive_part = (seen * self._positive_part(shifted, shift)).sum(1)
        scale = self.gain * self.pixel_ratio / positive_part.clamp_min(self.eps)
        return shifted * per_filter(scale, self.weight), self.bias

    def _seen_by_each_filter(self, means: torch.Tensor) -> torch.Tensor:
        """Return the means of the channels that each filter reads: all of them, or those of its
        group."""
        groups = means.shape[0] // self.weight.shape[1]
        return means.view(groups, -1).repeat_interleave(self.weight.shape[0] // groups, dim=0)

    def _positive_part(self, shifted: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Return the sum of the positive values per filter and channel."""
        if self.two_pass:
            return shifted.clamp_min(0).sum((2, 3))
        positive = (self.weight > 0).to(self.weight.dtype)
        return (self.weight * positive).sum((2, 3)) + shift.unsqueeze(1) * positive.sum((2, 3))


class InputStatistics(Statistics):
    """The channel means of the batch; where it does not act, the stored means are used."""

    def __init__(self, derivation: BalancedWeights, options: EquinormOptions) -> None:
        super().__init__()
        self._derivation = (derivation,)  # in a tuple, so that it is not registered here: the convolution owns it
        self.momentum = options.statistics_momentum
        self.one_in, self.differentiated = 4 if options.statistics == "first_quarter" else 1, options.differentiate_statistics

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the means of the batch, and move the running means towards them."""
        running = self._running_means
        means = x[: self.num_seen(len(x))].mean((0, 2, 3), dtype=running.dtype)
        if self.pooled is not None:
            self.pooled.add(x)
        else:
            with torch.no_grad():
                running.lerp_(means, self.momentum)
        return means if self.differentiated else means.detach()

    def store(self, moments: Moments) -> None:
        self._running_means.copy_(moments.mean)

    @property
    def _running_means(self) -> torch.Tensor:
        (derivation,) = self._derivation
        return derivation.running_means

    @property
    def summary(self) -> str:
        return f"channel means of {'a quarter of ' if self.one_in == 4 else ''}the batch, in the filters"


class BalancedConv2d(FoldableLayer):
    """A convolution whose filters are balanced by the means of its input."""

    def __init__(self, layer: nn.Conv2d, derivation: BalancedWeights, statistics: InputStatistics) -> None:
        super().__init__()
        self.operation = DerivedConv2d(layer, derivation)
        self.statistics = statistics

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.statistics.acts:
            return self.operation(x)
        derivation = self.operation.derivation
        assert isinstance(derivation, BalancedWeights)
        return self.operation.run(x, *derivation.balanced_by(self.statistics(x)))

    def evaluated(self) -> nn.Module:
        return self.operation

    def folded(self) -> nn.Module:
        return self.operation.folded()


class Equinorm(Method):
    """The rewrite: no norms, and balanced convolutions.

    The mean of the input is no longer subtracted, because inputs must not be negative.
    """

    def __init__(self, options: EquinormOptions) -> None:
        self.options = options

    def rewrite(self, graph: GraphModule, generator: torch.Generator) -> RewrittenGraph:
        parts = find_parts(graph)
        remove_norms(graph, parts.norms)
        _refuse_negative_inputs(graph, parts)
        for layer in graph.modules():
            if isinstance(layer, Normalise):
                layer.mean.zero_()
        plain = self._plain_layers(parts)
        for convolution in parts.convolutions:
            layer = self._plain(convolution, generator) if convolution.node in plain else self._balanced(convolution, generator)
            replace_layer(graph, convolution.node, layer)
        return RewrittenGraph(finish(graph), OneGroup(graph, self.options.weight_decay, self.options.decay_on))

    def _plain_layers(self, parts: Parts) -> set[Node]:
        """Return linear layers, the classifier, and shortcuts if the options say so."""
        on_shortcuts = {layer.node for unit in parts.units for layer in unit.shortcut} if self.options.shortcuts == "plain" else set()
        return on_shortcuts | {each.node for each in parts.convolutions if each.kind == "classifier" or isinstance(each.module, nn.Linear)}

    @staticmethod
    def _plain(layer: Convolution, generator: torch.Generator) -> nn.Module:
        return with_bias(layer.module, drawn(layer, generator))

    def _balanced(self, layer: Convolution, generator: torch.Generator) -> nn.Module:
        module, shape = layer.module, layer.module.weight.shape
        assert isinstance(module, nn.Conv2d)
        dims = (1, 2, 3) if self.options.resample_signs == "filter" else (2, 3)
        weight = with_both_signs(he_normal_fan_out(shape, generator), dims, generator)
        derivation = BalancedWeights(weight, module.in_channels, _pixel_ratio(layer.node, module), self.options)
        return BalancedConv2d(module, derivation, InputStatistics(derivation, self.options))


def _pixel_ratio(node: Node, module: nn.Conv2d) -> float:
    """Return output pixels times stride squared per input pixel; 1 if the sizes divide."""
    before, after = (math.prod(image_size_of(each)) for each in (node.all_input_nodes[0], node))
    return math.prod(module.stride) * after / before


def _refuse_negative_inputs(graph: GraphModule, parts: Parts) -> None:
    """Refuse convolutions whose inputs may be negative.

    A mean of values of both signs says nothing about their size, so filters cannot be balanced by
    it.
    """
    never_negative = _never_negative(graph)
    for layer in parts.convolutions:
        if isinstance(layer.module, nn.Conv2d) and layer.kind != "classifier" and layer.node.all_input_nodes[0] not in never_negative:
            raise UsageError(
                f"method equinorm needs inputs that are never negative, and those of convolution {layer.name!r} can be; "
                "put a ReLU in front of it, or choose another method"
            )


def _never_negative(graph: GraphModule) -> set[Node]:
    found: set[Node] = set()
    for step in walk(graph):
        if (step.kind == "rectifier" and step.slope == 0) or (step.kind != "layer" and all(before in found for before in step.node.all_input_nodes)):
            found.add(step.node)
    return found
