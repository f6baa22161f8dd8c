"""CZMIG (Mean Shift Rejection): zero-mean filters and gradients, W = e^g V, no normalisation.

The training graph is the deployed graph except for the noise. The correction of gradients and the
penalty act outside the graph, on all layers at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import GraphModule, Node

from export.graph import Convolution, Parts, find_parts
from export.graph.layers import Derivation, DerivedConv2d, DerivedLinear, PlainDerivation, WeightAndBias, derived
from export.graph.parts import is_relu_for, readers_in, remove_norms
from export.graph.rewriting import bypass, finish, insert_between, replace_layer
from pipeline.config.methods import CzmigOptions
from pipeline.methods.method import Method, ParameterGroup, RewrittenGraph, Stacks, TrainingRules, gradient_of
from pipeline.methods.new_layers import per_filter, unit_uniform, xavier_normal
from pipeline.methods.noise import Noise, NoisyReLU

_SLICE_DIMS = (2, 3)
_FILTER_DIMS = (1, 2, 3)


class ExpScale(Derivation):
    """W_f = e^(g_f) V_f, with one scale per output filter."""

    def __init__(self, direction: torch.Tensor, initial_scale: float, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.direction = nn.Parameter(direction)
        self.log_scale = nn.Parameter(torch.full((direction.shape[0],), initial_scale).log())
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self) -> WeightAndBias:
        return self.direction * per_filter(self.log_scale.exp(), self.direction), self.bias

    def filters_and_scale(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.direction, self.log_scale.exp()


@dataclass(frozen=True)
class AnchoredFilters:
    """Filters that the penalty keeps at norm 1, and the weight of that penalty."""

    filters: Stacks
    strength: float


class CzmigRules(TrainingRules):
    """Two groups of learning rates, the penalty on filter norms, and the correction of gradients.

    The correction acts on the mean of each slice.
    """

    def __init__(self, graph: nn.Module, options: CzmigOptions, layers: dict[str, list[nn.Parameter]]) -> None:
        slow = layers["classifier"] + layers["bias"]
        slow_ids = {id(parameter) for parameter in slow}
        fast = [parameter for parameter in graph.parameters() if id(parameter) not in slow_ids]
        self._groups = (
            ParameterGroup(name="filters and scales", parameters=tuple(fast)),
            ParameterGroup(name="biases and classifier", parameters=tuple(slow), rate_share=options.slow_share),
        )
        anchored = (
            AnchoredFilters(Stacks(layers["anchored"]), options.luma),
            AnchoredFilters(Stacks(layers["classifier"]), options.classifier_luma),
        )
        self._anchored = tuple(each for each in anchored if each.strength > 0)
        self._corrected = Stacks(layers["corrected"])
        self._options = options

    @property
    def parameter_groups(self) -> Sequence[ParameterGroup]:
        return self._groups

    @torch.no_grad()
    def add_penalty_gradient(self) -> torch.Tensor | None:
        """Add the gradient of LUMA: strength (|V| - 1)^2 per filter, 2 strength (|V| - 1) V /
        |V|."""
        values = [self._pull_to_unit_norm(filters, each.strength) for each in self._anchored for filters in each.filters]
        return torch.stack(values).sum() if values else None

    @staticmethod
    def _pull_to_unit_norm(filters: "list[nn.Parameter]", strength: float) -> torch.Tensor:
        stacked = torch.stack([each.detach() for each in filters])
        norm = torch.linalg.vector_norm(stacked.flatten(2), dim=2)
        factor = 2 * strength * (norm - 1) / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        pull = stacked * factor.view(*factor.shape, *([1] * (stacked.dim() - 2)))
        torch._foreach_add_([gradient_of(each) for each in filters], list(pull.unbind()))
        return strength * (norm - 1).square().sum()

    @torch.no_grad()
    def correct_gradients(self) -> None:
        """Correct the gradients by CZMG.

        paper: grad - z mean. code: grad + z (grad - mean), which scales the zero-mean part up
        instead of the mean down.
        """
        z, over = self._options.zmg, _SLICE_DIMS if self._options.mean_over == "slice" else _FILTER_DIMS
        if z == 0:
            return
        for filters in self._corrected:
            gradients = [gradient_of(each) for each in filters]
            means = torch.stack(gradients).mean([dim + 1 for dim in over], keepdim=True)
            if self._options.zmg_form == "code":
                torch._foreach_mul_(gradients, 1 + z)
            torch._foreach_sub_(gradients, list((z * means).unbind()))


class Czmig(Method):
    """The rewrite: no norms; filters of zero mean and unit norm on a learned scale; noise.

    The noise is at the start of residual units.
    """

    def __init__(self, options: CzmigOptions) -> None:
        self.options = options

    def rewrite(self, graph: GraphModule, generator: torch.Generator) -> RewrittenGraph:
        parts = find_parts(graph)
        self._insert_noise(graph, parts)  # first, while every unit still begins at the node where it was found
        remove_norms(graph, parts.norms)
        for layer in parts.convolutions:
            derivation = self._derivation(layer, generator)
            replace_layer(graph, layer.node, derived(layer.module, derivation))
        return RewrittenGraph(finish(graph), CzmigRules(graph, self.options, self._parameters(graph, parts)))

    def _derivation(self, layer: Convolution, generator: torch.Generator) -> Derivation:
        weight = self._initial_weight(layer, generator)
        has_bias = self.options.biases == "all" or layer.kind in ("first", "classifier")
        bias = torch.zeros(weight.shape[0]) if has_bias else None
        is_plain = {"first": not self.options.first_layer_scaled, "classifier": not self.options.classifier_scaled}
        if is_plain.get(layer.kind, False):
            return PlainDerivation(weight, bias)
        return ExpScale(weight, self.options.initial_scale, bias)

    def _initial_weight(self, layer: Convolution, generator: torch.Generator) -> torch.Tensor:
        shape = layer.module.weight.shape
        if layer.kind == "classifier":
            return xavier_normal(shape, generator)
        return unit_uniform(shape, generator, self._initial_mean_dims(layer))

    def _initial_mean_dims(self, layer: Convolution) -> tuple[int, ...]:
        """Return the dimensions over which a filter starts with zero mean.

        A kernel of one pixel has no spatial mean.
        """
        if layer.kind == "first" and not self.options.first_layer_zero_mean:
            return ()
        if _has_extent(layer):
            return _SLICE_DIMS if self.options.mean_over == "slice" else _FILTER_DIMS
        return (1,) if layer.kind == "pointwise" and self.options.pointwise_zero_mean else ()

    def _insert_noise(self, graph: GraphModule, parts: Parts) -> None:
        if self.options.noise == 0:
            return
        for number, (start, readers) in enumerate(self._readers_of_noise(parts), start=1):
            noise = Noise(self.options.noise, per_element=self.options.noise_per == "element")
            node = insert_between(graph, start, readers, f"noise_{number}", noise)
            if is_relu_for(graph, node) and noise.amplitude < 1:
                bypass(graph, node.all_input_nodes[0])
                replace_layer(graph, node, NoisyReLU(noise))

    def _readers_of_noise(self, parts: Parts) -> list[tuple[Node, list[Node]]]:
        """Return the nodes after which noise is inserted, and the readers that read them through
        it."""
        if self.options.noise_at == "layers":
            return [(layer.node.all_input_nodes[0], [layer.node]) for layer in parts.convolutions if layer.kind != "first"]
        on_shortcut = self.options.noise_on_shortcut
        return [(start, readers_in(units, on_shortcut=on_shortcut)) for start, units in parts.units_by_start.items()]

    def _parameters(self, graph: GraphModule, parts: Parts) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by the role that the rules give them."""
        found: dict[str, list[nn.Parameter]] = {"corrected": [], "anchored": [], "classifier": [], "bias": []}
        for layer in parts.convolutions:
            weight, bias = _trained_weight_and_bias(graph, layer)
            if bias is not None:
                found["bias"].append(bias)
            for role in self._roles(layer):
                found[role].append(weight)
        return found

    def _roles(self, layer: Convolution) -> list[str]:
        """Return the roles of a layer's filters.

        Only filters with spatial extent after the first layer are corrected. The first layer is
        anchored only if the options say so.
        """
        if layer.kind == "classifier":
            return ["classifier"]
        if layer.kind == "first":
            return ["anchored"] if self.options.first_layer_luma else []
        return ["corrected", "anchored"] if _has_extent(layer) else ["anchored"]


def _has_extent(layer: Convolution) -> bool:
    return isinstance(layer.module, nn.Conv2d) and tuple(layer.module.kernel_size) != (1, 1)


def _trained_weight_and_bias(graph: GraphModule, layer: Convolution) -> tuple[nn.Parameter, nn.Parameter | None]:
    trained = graph.get_submodule(layer.name)
    assert isinstance(trained, (DerivedConv2d, DerivedLinear))
    derivation = trained.derivation
    if isinstance(derivation, ExpScale):
        return derivation.direction, derivation.bias
    assert isinstance(derivation, PlainDerivation)
    return derivation.weight, derivation.bias
