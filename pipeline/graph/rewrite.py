"""The changes that methods make to the parts of a graph. Each leaves a graph that runs once `finish` was called."""

from collections.abc import Iterable

from torch import nn
from torch.fx import GraphModule, Node

from export.graphs import bypass
from export.operations import step_at
from pipeline.graph.parts import Norm, ResidualUnit


def remove_norms(graph: GraphModule, norms: Iterable[Norm]) -> None:
    """Let the readers of each norm read what the norm read."""
    for norm in norms:
        bypass(graph, norm.node)
        graph.delete_submodule(norm.name)


def readers_in(units: list[ResidualUnit], *, on_shortcut: bool) -> list[Node]:
    """Who reads the common start of these units: their branches, and their shortcuts where asked."""
    return [node for node in units[0].start.users if any(_reads_at_start(unit, node, on_shortcut) for unit in units)]


def is_relu_for(graph: GraphModule, reader: Node) -> bool:
    """Whether a node reads a ReLU that nothing else reads."""
    (before,) = reader.all_input_nodes
    step = step_at(graph, before)
    return len(before.users) == 1 and step.kind == "rectifier" and isinstance(step.as_layer(), nn.ReLU)


def _reads_at_start(unit: ResidualUnit, node: Node, on_shortcut: bool) -> bool:
    return node in (unit.inside if on_shortcut else unit.inside_branch)
