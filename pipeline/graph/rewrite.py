"""The few changes that methods make to a graph. Each leaves a graph that runs once `finish` was called."""

from collections.abc import Iterable

from torch import nn
from torch.fx import GraphModule, Node

from pipeline.graph.parts import Norm, ResidualUnit


def replace_layer(graph: GraphModule, node: Node, layer: nn.Module) -> None:
    """Put another layer at a node's place; it keeps the name."""
    graph.set_submodule(str(node.target), layer)


def remove_norms(graph: GraphModule, norms: Iterable[Norm]) -> None:
    """Let the readers of each norm read what the norm read."""
    for norm in norms:
        bypass(graph, norm.node)
        graph.delete_submodule(norm.name)


def bypass(graph: GraphModule, node: Node) -> None:
    """Take a node with one input out of the graph; its module stays, for whoever has taken it over."""
    (before,) = node.all_input_nodes
    node.replace_all_uses_with(before)
    graph.graph.erase_node(node)


def insert_at_start(graph: GraphModule, units: list[ResidualUnit], name: str, layer: nn.Module, *, on_shortcut: bool) -> None:
    """Put a layer where residual units of the same start begin; their branches read through it, their shortcuts where asked."""
    start = units[0].start
    readers = [node for node in start.users if any(_reads_at_start(unit, node, on_shortcut) for unit in units)]
    graph.add_submodule(name, layer)
    with graph.graph.inserting_after(start):
        inserted = graph.graph.call_module(name, (start,))
    for reader in readers:
        reader.replace_input_with(start, inserted)


def insert_in_front(graph: GraphModule, node: Node, name: str, layer: nn.Module) -> None:
    """Put a layer between a node of one input and that input; other readers of the input read it as before."""
    (before,) = node.all_input_nodes
    graph.add_submodule(name, layer)
    with graph.graph.inserting_before(node):
        inserted = graph.graph.call_module(name, (before,))
    node.replace_input_with(before, inserted)


def finish(graph: GraphModule) -> GraphModule:
    """Drop what nothing reads any more and compile the graph."""
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()
    return graph


def _reads_at_start(unit: ResidualUnit, node: Node, on_shortcut: bool) -> bool:
    return node in (unit.inside if on_shortcut else unit.inside_branch)
