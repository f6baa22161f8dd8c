"""Scaled weight standardisation with adaptive gradient clipping (NF-ResNets, NFNets).

Filters have zero mean and a set variance. What is trained is what is deployed. alpha and beta,
which scale activations in the papers, are factors on the weights next to them.
"""

import math

import torch
from torch import nn
from torch.fx import GraphModule, Node

from export.graph import Convolution, Parts, ResidualUnit, find_parts
from export.graph.layers import Derivation, WeightAndBias, derived
from export.graph.operations import walk
from export.graph.parts import remove_norms
from export.graph.rewriting import finish, replace_layer
from pipeline.config.methods import ScaledwsOptions
from pipeline.methods.branches import last_convolutions
from pipeline.methods.method import AdaptiveClipping, Method, OneGroup, RewrittenGraph
from pipeline.methods.new_layers import drawn, per_filter, seen_by_zero_mean, with_bias


class StandardisedWeights(Derivation):
    """W = gain factor / sqrt(fan_in) (V - mean) / sqrt(var + eps) over each filter.

    The bias has a factor of its own.
    """

    def __init__(self, weight: torch.Tensor, factor: float, bias_factor: float, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.gain = nn.Parameter(torch.ones(weight.shape[0]))
        self.bias = nn.Parameter(torch.zeros(weight.shape[0]))
        self.factor, self.bias_factor, self.eps = factor / math.sqrt(weight[0].numel()), bias_factor, eps

    def forward(self) -> WeightAndBias:
        variance, mean = torch.var_mean(self.weight.flatten(1), dim=1, correction=0)
        scale = self.gain * self.factor * torch.rsqrt(variance + self.eps)
        weight = (self.weight - per_filter(mean, self.weight)) * per_filter(scale, self.weight)
        return weight, self.bias * self.bias_factor


class ScaledwsRules(OneGroup):
    """L2 decay, and adaptive clipping.

    The norm of a unit's gradient is at most `clip` times that of its weights.
    """

    def __init__(self, graph: nn.Module, options: ScaledwsOptions, classifier: nn.Module) -> None:
        super().__init__(graph, options.weight_decay, options.decay_on)
        kept = set() if options.clip_classifier else {id(parameter) for parameter in classifier.parameters()}
        clipped = (parameter for parameter in graph.parameters() if id(parameter) not in kept)
        self._clip = AdaptiveClipping(clipped, options.clip, options.clip_eps) if options.clip > 0 else None

    def correct_gradients(self) -> None:
        if self._clip is not None:
            self._clip()


class Scaledws(Method):
    """The rewrite: no norms; standardised convolutions with biases; alpha and beta in their
    weights."""

    def __init__(self, options: ScaledwsOptions) -> None:
        self.options = options

    def rewrite(self, graph: GraphModule, generator: torch.Generator) -> RewrittenGraph:
        parts = find_parts(graph)
        alphas = dict.fromkeys(last_convolutions(parts.units), self.options.alpha)
        betas = _betas(graph, parts, alphas) if self.options.beta else {}
        remove_norms(graph, parts.norms)
        for layer in parts.convolutions:
            alpha, beta = alphas.get(layer.node, 1.0), betas.get(layer.node, 1.0)
            replace_layer(graph, layer.node, self._layer(layer, generator, alpha, beta))
        classifier = graph.get_submodule(parts.classifier.name)
        return RewrittenGraph(finish(graph), ScaledwsRules(graph, self.options, classifier))

    def _layer(self, layer: Convolution, generator: torch.Generator, alpha: float, beta: float) -> nn.Module:
        weight = drawn(layer, generator)
        if layer.kind in ("classifier", "linear"):
            return with_bias(layer.module, weight)
        gamma = self.options.gamma * _gamma_share(layer.slope)
        return derived(layer.module, StandardisedWeights(weight, gamma * alpha * beta, alpha, self.options.eps))


def _gamma_share(slope: float) -> float:
    """Return the gamma of a rectifier as a share of a ReLU's.

    Gamma is one over the deviation of what a rectifier passes of a normal value.
    """
    return seen_by_zero_mean(0.0) / (math.sqrt(1 + slope**2) * seen_by_zero_mean(slope))


def _betas(graph: GraphModule, parts: Parts, alphas: dict[Node, float]) -> dict[Node, float]:
    """Return 1 / sqrt(expected variance at the start of the unit) for each first convolution of a
    unit."""
    sources = {layer.node for layer in parts.convolutions} | {step.node for step in walk(graph) if step.kind == "addition"}
    alpha_of = {unit.add: alphas[node] for node, unit in last_convolutions(parts.units).items()}
    variance_behind: dict[Node, float] = {}
    betas: dict[Node, float] = {}
    for unit in parts.units:
        variance = variance_behind.get(_source(unit.start, sources), 1.0)
        betas |= dict.fromkeys(_first_convolutions(unit), 1 / math.sqrt(variance))
        variance_behind[unit.add] = (1.0 if unit.shortcut else variance) + alpha_of.get(unit.add, 1.0) ** 2
    return betas


def _source(node: Node, sources: set[Node]) -> Node:
    """Return the nearest addition, layer or join at or before the node.

    The operations between change no variance that the method takes into account.
    """
    while node not in sources and len(node.all_input_nodes) == 1:
        (node,) = node.all_input_nodes
    return node


def _first_convolutions(unit: ResidualUnit) -> list[Node]:
    """Return the convolutions of branch and shortcut that have no other convolution of the unit
    before them."""
    layers = [layer.node for layer in unit.branch + unit.shortcut]
    return [node for node in layers if not _reads_from(node, set(layers), unit.start)]


def _reads_from(node: Node, layers: set[Node], start: Node) -> bool:
    waiting = list(node.all_input_nodes)
    while waiting:
        before = waiting.pop()
        if before in layers:
            return True
        if before is not start:
            waiting.extend(before.all_input_nodes)
    return False
