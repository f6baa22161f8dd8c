"""What every rewrite of a traced graph needs: the shapes of its values, and a few changes.

A changed graph runs only after `finish` has been called.
"""

import contextlib
import io
from collections.abc import Iterable

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import ShapeProp

from export.errors import UsageError


def note_shapes(graph: GraphModule, image_shape: tuple[int, int, int]) -> None:
    """Write the shape of every value, for a batch of 2, into the nodes' `meta`.

    The graph runs once for this; its parameters and buffers keep their values.
    """
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    image = torch.zeros((2, *image_shape), dtype=torch.uint8, device=next(graph.buffers()).device)
    try:
        # ShapeProp prints a traceback before it raises.
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            ShapeProp(graph).propagate(image)
    except RuntimeError as error:
        raise UsageError(
            f"the network cannot run on images of {' x '.join(map(str, image_shape))}: {_first_cause(error)}; "
            "choose a network made for this size, or set data.image_size"
        ) from error
    graph.load_state_dict(before)  # in training mode, a run moves the running statistics of norms


def output_of(graph: GraphModule) -> Node:
    """The node that returns the logits."""
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    return output


def shape_of(node: Node) -> torch.Size:
    """The shape of the node's value for a batch of two."""
    return node.meta["tensor_meta"].shape


def image_size_of(node: Node) -> tuple[int, int]:
    """Height and width of the node's value."""
    height, width = shape_of(node)[2:]
    return height, width


def holds_values(node: Node) -> bool:
    """Whether the node's result is values, rather than a size used in calculations."""
    meta = node.meta.get("tensor_meta")
    return meta is not None and not isinstance(meta, int)


def replace_layer(graph: GraphModule, node: Node, layer: nn.Module) -> None:
    """Put another layer in a node's place, under the same name."""
    graph.set_submodule(str(node.target), layer)


def bypass(graph: GraphModule, node: Node) -> None:
    """Take a node with one input out of the graph. Its module stays: another node may use it."""
    (before,) = node.all_input_nodes
    node.replace_all_uses_with(before)
    graph.graph.erase_node(node)


def insert_between(graph: GraphModule, start: Node, readers: Iterable[Node], name: str, layer: nn.Module) -> Node:
    """Put a layer behind a node. The given readers read through it; the others read as before."""
    graph.add_submodule(name, layer)
    with graph.graph.inserting_after(start):
        inserted = graph.graph.call_module(name, (start,))
    inserted.meta = dict(start.meta)  # the inserted layer keeps the shape
    for reader in readers:
        reader.replace_input_with(start, inserted)
    return inserted


def insert_in_front(graph: GraphModule, node: Node, name: str, layer: nn.Module) -> Node:
    """Put a layer between a node with one input and that input; other readers read as before."""
    (before,) = node.all_input_nodes
    graph.add_submodule(name, layer)
    with graph.graph.inserting_before(node):
        inserted = graph.graph.call_module(name, (before,))
    inserted.meta = dict(before.meta)
    node.replace_input_with(before, inserted)
    return inserted


def finish(graph: GraphModule) -> GraphModule:
    """Drop what nothing reads any more, and compile the graph."""
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()
    return graph


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0]
