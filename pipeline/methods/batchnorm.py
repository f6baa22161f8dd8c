"""The network as it is written, with batch normalisation.

In evaluation each norm acts on its layer's weight, so that folding keeps the bits. A norm that
follows no convolution becomes a 1x1 depthwise convolution in evaluation.
"""

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

from export.errors import UsageError
from export.graph import Norm, find_parts
from export.graph.layers import Derivation, DerivedConv2d, FoldableLayer, WeightAndBias, derived
from export.graph.rewriting import bypass, finish, replace_layer
from pipeline.config.methods import BatchnormOptions
from pipeline.methods.method import Method, OneGroup, RewrittenGraph
from pipeline.methods.new_layers import initialise_as_written, per_filter
from pipeline.methods.statistics import Moments, Statistics

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
_OF_A_NORM = "batch statistics of a BatchNorm"


class BatchStatistics(Statistics):
    """Normalises by the batch's own mean and variance.

    Where it does not act, the layer in front uses the stored statistics, on its weight.
    """

    def __init__(self, norm: BatchNorm, summary: str = _OF_A_NORM) -> None:
        super().__init__()
        self._norm = (norm,)  # in a tuple, so that the norm is not registered here: its layer owns it
        self._summary = summary

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (norm,) = self._norm
        if not self.acts:
            return x
        if self.pooled is None:
            return norm(x)
        self.pooled.add(x)
        return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)

    def store(self, moments: Moments) -> None:
        (norm,) = self._norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(moments.mean)
        norm.running_var.copy_(moments.variance)

    @property
    def summary(self) -> str:
        return self._summary


class NormInWeight(Derivation):
    """The weight and bias of a layer, with the running statistics of its norm applied."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, norm: BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.norm = norm

    def forward(self) -> WeightAndBias:
        mean, factor = self.norm.running_mean, self._factor()
        assert mean is not None
        bias = -mean * factor if self.bias is None else (self.bias - mean) * factor
        if self.norm.bias is not None:
            bias = bias + self.norm.bias
        return self.weight * per_filter(factor, self.weight), bias

    def filters_and_scale(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.weight, self._factor().abs()

    def output_variance(self) -> torch.Tensor | None:
        return self.norm.running_var

    def _factor(self) -> torch.Tensor:
        assert self.norm.running_var is not None
        factor = torch.rsqrt(self.norm.running_var + self.norm.eps)
        return factor if self.norm.weight is None else factor * self.norm.weight


class NormedLayer(FoldableLayer):
    """A convolution or linear layer and the norm after it, as one layer."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, norm: BatchNorm, statistics: str = _OF_A_NORM) -> None:
        super().__init__()
        derivation = NormInWeight(layer.weight, layer.bias, norm)
        self.operation = derived(layer, derivation)
        self.statistics = BatchStatistics(norm, statistics)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.statistics.acts:
            return self.operation(x)
        derivation = self.operation.derivation
        assert isinstance(derivation, NormInWeight)
        return self.statistics(self.operation.run(x, derivation.weight, derivation.bias))

    def evaluated(self) -> nn.Module:
        return self.operation

    def folded(self) -> nn.Module:
        return self.operation.folded()


class LoneNorm(FoldableLayer):
    """A norm that follows no layer of its own.

    In evaluation it is a 1x1 depthwise convolution with a weight of ones.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        channels = norm.num_features
        ones = nn.Parameter(torch.ones(channels, 1, 1, 1), requires_grad=False)
        shape = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        self.operation = DerivedConv2d(shape, NormInWeight(ones, None, norm))
        self.statistics = BatchStatistics(norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.statistics(x) if self.statistics.acts else self.operation(x)
        return normed

    def evaluated(self) -> nn.Module:
        return self.operation

    def folded(self) -> nn.Module:
        return self.operation.folded()


class Batchnorm(Method):
    """The baseline.

    Training uses batch statistics, so its training graph differs from the deployed one.
    """

    def __init__(self, options: BatchnormOptions) -> None:
        self.options = options

    def rewrite(self, graph: GraphModule, generator: torch.Generator) -> RewrittenGraph:
        parts = find_parts(graph)
        for layer in parts.convolutions:
            if self.options.initial_weights == "drawn":
                initialise_as_written(layer, generator)
            if layer.norm is not None:
                replace_layer(graph, layer.node, NormedLayer(layer.module, _with_statistics(layer.norm)))
                bypass(graph, layer.norm.node)
                graph.delete_submodule(layer.norm.name)  # the layer owns it now; under two names it would be stored twice
        for norm in parts.norms:
            if norm.follows is None:
                replace_layer(graph, norm.node, _alone(norm))
        return RewrittenGraph(finish(graph), OneGroup(graph, self.options.weight_decay))


def _with_statistics(norm: Norm) -> BatchNorm:
    if norm.module.running_mean is None:
        raise UsageError(f"norm {norm.name!r} keeps no running statistics, so it has no form in evaluation; set track_running_stats=True")
    return norm.module


def _alone(norm: Norm) -> LoneNorm:
    module = _with_statistics(norm)
    if not isinstance(module, nn.BatchNorm2d):
        raise UsageError(f"norm {norm.name!r} follows no linear layer; put it directly behind one")
    return LoneNorm(module)
