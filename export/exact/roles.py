"""What the nodes of a plain graph do to values on the grid, and which nodes read those values.

Reads the table of operations. Takes a node of a graph without training parts; knows neither steps
nor files.
"""

from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule, Node

from export.errors import UsageError
from export.graph.layers import pair
from export.graph.operations import NoRole, Role, step_at
from export.graph.rewriting import holds_values, image_size_of


def role_of(graph: GraphModule, node: Node) -> Role:
    """What the node does. A node without a role cannot go onto the grid, and the error names it."""
    step = step_at(graph, node)
    role = NoRole("") if step.operation is None else step.operation.grid
    if isinstance(role, NoRole):
        raise off_the_grid(node, f"{step.spoken} has no form there{f': {role.why}' if role.why else ''}")
    return "shape" if role == "move" and not holds_values(node) else role


def off_the_grid(node: Node, why: str) -> UsageError:
    """The error that says why a network has no exact form."""
    return UsageError(f"node {node.name!r} cannot go onto the exact grid: {why}; set exact.enabled: false, or change the network there")


def ceiling_of(graph: GraphModule, node: Node) -> float:
    """The largest value that a rectifier lets pass."""
    return 6.0 if isinstance(step_at(graph, node).as_layer(), nn.ReLU6) else float("inf")


@dataclass(frozen=True)
class Window:
    """The pixels that an average is taken over."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @property
    def is_one_pixel(self) -> bool:
        """Whether the average is the value itself."""
        return self.kernel == self.stride == (1, 1)


def window_of(graph: GraphModule, node: Node) -> Window:
    """The window of an average pool. A pool whose count changes at the border is refused."""
    pool = step_at(graph, node).as_layer()
    if isinstance(pool, nn.AdaptiveAvgPool2d):
        before, after = image_size_of(node.all_input_nodes[0]), image_size_of(node)
        kernel = (before[0] // after[0], before[1] // after[1])
        return Window(kernel, kernel, (0, 0))
    assert isinstance(pool, nn.AvgPool2d)
    window = Window(pair(pool.kernel_size), pair(pool.stride), pair(pool.padding))
    if pool.ceil_mode or pool.divisor_override is not None or (window.padding != (0, 0) and not pool.count_include_pad):
        raise off_the_grid(node, "its average covers a different number of pixels at the border than inside")
    return window


def only_reader_through_moves(graph: GraphModule, node: Node) -> Node | None:
    """The only node that reads a value, past nodes that only move it; None if there are several."""
    while len(node.users) == 1:
        (node,) = node.users
        if role_of(graph, node) != "move":
            return node
    return None


def reaches_output(graph: GraphModule, node: Node) -> bool:
    reader = only_reader_through_moves(graph, node)
    return reader is not None and role_of(graph, reader) == "output"
