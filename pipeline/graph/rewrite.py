"""The few changes that methods make to a graph. Each leaves a graph that runs once `finish` was called."""

from collections.abc import Iterable

from torch import nn
from torch.fx import GraphModule, Node

from export.operations import RELUS
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


def insert_between(graph: GraphModule, start: Node, readers: Iterable[Node], name: str, layer: nn.Module) -> Node:
    """Put a layer behind a node; the given readers of the node read it through the layer, the others as before."""
    graph.add_submodule(name, layer)
    with graph.graph.inserting_after(start):
        inserted = graph.graph.call_module(name, (start,))
    inserted.meta = dict(start.meta)  # what is put between keeps the shape
    for reader in readers:
        reader.replace_input_with(start, inserted)
    return inserted


def readers_in(units: list[ResidualUnit], *, on_shortcut: bool) -> list[Node]:
    """Who reads the common start of these units: their branches, and their shortcuts where asked."""
    return [node for node in units[0].start.users if any(_reads_at_start(unit, node, on_shortcut) for unit in units)]


def is_relu_for(graph: GraphModule, reader: Node) -> bool:
    """Whether a node reads a ReLU that nothing else reads."""
    (before,) = reader.all_input_nodes
    is_module = before.op == "call_module" and isinstance(graph.get_submodule(str(before.target)), nn.ReLU)
    return len(before.users) == 1 and (is_module or before.target in RELUS)


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
