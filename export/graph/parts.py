"""The parts of a traced network: convolutions with their norms, residual units, the classifier.

Takes a traced graph; also holds the changes that methods make to it. Each change leaves a graph
that runs once `finish` has been called. Knows neither methods nor particular networks.
"""

import math
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.fx import GraphModule, Node

from export.errors import UsageError
from export.graph.fold import fold
from export.graph.layers import Derivation, LayerKind, filter_kind
from export.graph.operations import step_at, walk
from export.graph.rewriting import bypass, image_size_of, output_of


@dataclass(frozen=True)
class Norm:
    """A batch normalisation.

    `follows` is the layer whose output only this norm reads; None if there is no such layer.
    """

    node: Node
    module: nn.BatchNorm1d | nn.BatchNorm2d
    follows: Node | None

    @property
    def name(self) -> str:
        return str(self.node.target)


@dataclass(frozen=True)
class Convolution:
    """A convolution or linear layer, what kind it is, and the norm that follows it."""

    node: Node
    module: nn.Conv2d | nn.Linear
    kind: LayerKind
    norm: Norm | None
    slope: float
    """The share of negative values that the rectifiers in front of it let pass. 0 if there is no
    rectifier, as with a ReLU."""

    @property
    def name(self) -> str:
        return str(self.node.target)


@dataclass(frozen=True)
class ResidualUnit:
    """A residual unit: `add` joins `branch_end` and `shortcut_end`, which both start from
    `start`."""

    start: Node
    add: Node
    branch_end: Node
    shortcut_end: Node
    branch: tuple[Convolution, ...]
    shortcut: tuple[Convolution, ...]

    @cached_property
    def inside(self) -> frozenset[Node]:
        """Every node between start and add, without start but with add."""
        return frozenset({self.add} | self.inside_branch | _between(self.start, self.shortcut_end))

    @cached_property
    def inside_branch(self) -> frozenset[Node]:
        """Every node of the branch, without start."""
        return frozenset(_between(self.start, self.branch_end))


@dataclass(frozen=True)
class Parts:
    """The parts of one graph, in the order of computation."""

    convolutions: tuple[Convolution, ...]
    norms: tuple[Norm, ...]
    units: tuple[ResidualUnit, ...]
    classifier: Convolution

    @property
    def units_by_start(self) -> dict[Node, list[ResidualUnit]]:
        """The units by their start; several units share a start where additions are nested."""
        grouped: dict[Node, list[ResidualUnit]] = {}
        for unit in self.units:
            grouped.setdefault(unit.start, []).append(unit)
        return grouped


def find_parts(graph: GraphModule) -> Parts:
    """Find the parts of a traced network."""
    norms = _norms(graph)
    convolutions = _convolutions(graph, norms)
    return Parts(convolutions, norms, _residual_units(graph, convolutions), convolutions[-1])


def _norms(graph: GraphModule) -> tuple[Norm, ...]:
    found: list[Norm] = []
    for step in walk(graph):
        if step.kind == "norm":
            assert isinstance(step.layer, (nn.BatchNorm1d, nn.BatchNorm2d))
            found.append(Norm(step.node, step.layer, _layer_before(graph, step.node)))
    _refuse_second_use(norm.node for norm in found)
    return tuple(found)


def _layers(graph: GraphModule) -> dict[Node, nn.Conv2d | nn.Linear]:
    found: dict[Node, nn.Conv2d | nn.Linear] = {}
    for step in walk(graph):
        if step.kind == "layer":
            assert isinstance(step.layer, (nn.Conv2d, nn.Linear))
            found[step.node] = step.layer
    _refuse_second_use(found)
    if not found:
        raise UsageError("the network has no convolution and no linear layer; there is nothing to train")
    return found


def _refuse_second_use(nodes: Iterable[Node]) -> None:
    seen: set[str] = set()
    for node in nodes:
        if str(node.target) in seen:
            raise UsageError(f"layer {node.target!r} is used at more than one place; give each place a layer of its own")
        seen.add(str(node.target))


def _layer_before(graph: GraphModule, norm: Node) -> Node | None:
    (before,) = norm.all_input_nodes
    return before if len(before.users) == 1 and step_at(graph, before).kind == "layer" else None


def _convolutions(graph: GraphModule, norms: tuple[Norm, ...]) -> tuple[Convolution, ...]:
    layers = _layers(graph)
    norm_after = {norm.follows: norm for norm in norms if norm.follows is not None}
    slopes = {step.node: step.slope for step in walk(graph) if step.kind == "rectifier"}
    classifier = _classifier(graph, layers)
    has_layer_before = _nodes_after(layers)

    def found(node: Node, kind: LayerKind) -> Convolution:
        return Convolution(node, layers[node], kind, norm_after.get(node), _slope_in_front(node, slopes, layers))

    others = [found(node, _kind(module, node in has_layer_before)) for node, module in layers.items() if node is not classifier]
    return (*others, found(classifier, "classifier"))


def _slope_in_front(layer: Node, slopes: Mapping[Node, float], layers: Container[Node]) -> float:
    """Return the slope of the rectifiers whose values a layer reads.

    For several rectifiers it is the root of the mean square.
    """
    squares = [slopes[node] ** 2 for node in _nearest_in_front(layer, lambda node: node in slopes or node in layers) if node in slopes]
    return math.sqrt(math.fsum(squares) / len(squares)) if squares else 0.0  # fsum: the order of a set varies, and a plain sum depends on it


def _nearest_in_front(node: Node, stops: Callable[[Node], bool]) -> set[Node]:
    """Return, for each path back from a node, the first node at which to stop."""
    found: set[Node] = set()
    seen: set[Node] = set()
    waiting: list[Node] = list(node.all_input_nodes)
    while waiting:
        before = waiting.pop()
        if before in seen:
            continue
        seen.add(before)
        if stops(before):
            found.add(before)
        else:
            waiting.extend(before.all_input_nodes)
    return found


def _kind(module: nn.Conv2d | nn.Linear, has_layer_before: bool) -> LayerKind:
    return filter_kind(module) if has_layer_before or isinstance(module, nn.Linear) else "first"


def _classifier(graph: GraphModule, layers: Container[Node]) -> Node:
    """Return the one layer that has no other layer after it, on every path to the output."""
    last = _nearest_in_front(output_of(graph), lambda node: node in layers)
    if len(last) != 1:
        names = ", ".join(sorted(str(node.target) for node in last)) or "none"
        raise UsageError(f"the network's output must come from one classifier layer, found {names}; join them before a last linear layer")
    return last.pop()


def _nodes_after(layers: Collection[Node]) -> set[Node]:
    (graph,) = {node.graph for node in layers}
    after: set[Node] = set()
    for node in graph.nodes:
        if any(before in layers or before in after for before in node.all_input_nodes):
            after.add(node)
    return after


def _residual_units(graph: GraphModule, convolutions: tuple[Convolution, ...]) -> tuple[ResidualUnit, ...]:
    dominator = _immediate_dominators(graph)
    layer_at = {convolution.node: convolution for convolution in convolutions}
    return tuple(_unit(step.node, dominator[step.node], layer_at) for step in walk(graph) if step.kind == "addition")


def _unit(add: Node, start: Node, layer_at: dict[Node, Convolution]) -> ResidualUnit:
    if len(add.all_input_nodes) != 2:
        raise UsageError(f"node {add.name!r} adds {add.args[1:]} to {add.args[0]}; an addition must join two different values of the graph")
    ends = add.all_input_nodes
    layers = [tuple(layer_at[node] for node in add.graph.nodes if node in _between(start, end) and node in layer_at) for end in ends]
    weights = [(len(found), sum(layer.module.weight.numel() for layer in found)) for found in layers]
    if weights[0] == weights[1]:
        raise UsageError(f"node {add.name!r} joins two paths of equal length from {start.name!r}; branch and shortcut cannot be told apart")
    branch, shortcut = (0, 1) if weights[0] > weights[1] else (1, 0)
    return ResidualUnit(start, add, ends[branch], ends[shortcut], layers[branch], layers[shortcut])


def _immediate_dominators(graph: GraphModule) -> dict[Node, Node]:
    """Map each node to the nearest other node that every path from the image to it passes
    through."""
    # The nodes of a graph are in topological order, so one pass finds every dominator.
    dominator: dict[Node, Node] = {}
    position = {node: number for number, node in enumerate(graph.graph.nodes)}
    for node in graph.graph.nodes:
        inputs = [before for before in node.all_input_nodes if before.op != "get_attr"]
        if not inputs:
            continue
        meeting = inputs[0]
        for other in inputs[1:]:
            while meeting is not other:
                if position[meeting] > position[other]:
                    meeting = dominator[meeting]
                else:
                    other = dominator[other]  # noqa: PLW2901 - this walks up the tree
        dominator[node] = meeting
    return dominator


def _between(start: Node, end: Node) -> set[Node]:
    """Return the nodes on the paths from start to end, without start, and with end unless it is
    start."""
    found: set[Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node is start or node in found:
            continue
        found.add(node)
        waiting.extend(node.all_input_nodes)
    return found


@dataclass(frozen=True)
class TrainedLayer:
    """A convolution or linear layer as it is trained."""

    name: str
    kind: LayerKind
    module: nn.Module

    def filters_and_scale(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the filters before a learned scale per filter, and that scale; None if there is no
        scale."""
        if (derivation := self._derivation) is not None:
            return derivation.filters_and_scale()
        assert isinstance(self.module, (nn.Conv2d, nn.Linear))
        return self.module.weight, None

    def output_variance(self) -> torch.Tensor | None:
        """Return the running variance per filter that the layer divides by; None if it has no
        norm."""
        return None if self._derivation is None else self._derivation.output_variance()

    @property
    def _derivation(self) -> Derivation | None:
        return next((each for each in self.module.modules() if isinstance(each, Derivation)), None)


def trained_layers(graph: GraphModule) -> tuple[TrainedLayer, ...]:
    """Return every convolution and linear layer in the order of computation, the classifier
    last."""
    found = find_parts(fold(graph)).convolutions
    return tuple(TrainedLayer(layer.name, layer.kind, graph.get_submodule(layer.name)) for layer in found)


def starts_of_units(graph: GraphModule, *, where_images_shrink: bool) -> list[Node]:
    """Return the nodes at which residual units begin, in the order of computation.

    These are all units, or only those that make images smaller.
    """
    units = find_parts(fold(graph)).units
    names = [unit.start.name for unit in units if not where_images_shrink or _num_pixels(unit.start) > _num_pixels(unit.add)]
    return [node for node in graph.graph.nodes if node.name in names]


def _num_pixels(node: Node) -> int:
    return math.prod(image_size_of(node))


def remove_norms(graph: GraphModule, norms: Iterable[Norm]) -> None:
    """Let the readers of each norm read the input of the norm."""
    for norm in norms:
        bypass(graph, norm.node)
        graph.delete_submodule(norm.name)


def readers_in(units: list[ResidualUnit], *, on_shortcut: bool) -> list[Node]:
    """Return the readers of the common start of these units.

    These are their branches, and their shortcuts if requested.
    """
    return [node for node in units[0].start.users if any(_reads_at_start(unit, node, on_shortcut) for unit in units)]


def is_relu_for(graph: GraphModule, reader: Node) -> bool:
    """Return whether a node reads a ReLU that nothing else reads."""
    (before,) = reader.all_input_nodes
    step = step_at(graph, before)
    return len(before.users) == 1 and step.kind == "rectifier" and isinstance(step.as_layer(), nn.ReLU)


def _reads_at_start(unit: ResidualUnit, node: Node, on_shortcut: bool) -> bool:
    return node in (unit.inside if on_shortcut else unit.inside_branch)
