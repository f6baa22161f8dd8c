"""What each node of a plain graph does to values on the grid: sums them, rectifies them, averages them, or only moves them.

Takes a node of a graph without training parts; knows neither steps nor files.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from export.errors import UsageError
from export.layers import DerivedConv2d, DerivedLinear, GlobalAveragePool, Normalise

Role = Literal["image", "pixels", "layer", "add", "rectify", "average", "global average", "move", "shape", "output"]
LAYERS = (nn.Conv2d, nn.Linear, DerivedConv2d, DerivedLinear)
_MODULES: dict[type[nn.Module], Role] = {
    Normalise: "pixels",
    **dict.fromkeys(LAYERS, "layer"),
    nn.ReLU: "rectify",
    nn.ReLU6: "rectify",
    nn.AvgPool2d: "average",
    nn.AdaptiveAvgPool2d: "average",
    GlobalAveragePool: "global average",
    nn.MaxPool2d: "move",
    nn.ZeroPad2d: "move",
    nn.Flatten: "move",
}
_FUNCTIONS: dict[Callable[..., Any], Role] = {
    operator.add: "add",
    torch.add: "add",
    F.relu: "rectify",
    torch.relu: "rectify",
    F.relu6: "rectify",
    F.avg_pool2d: "average",
    F.adaptive_avg_pool2d: "average",
    F.max_pool2d: "move",
    F.pad: "move",
    torch.cat: "move",
    torch.flatten: "move",
    torch.reshape: "move",
    torch.transpose: "move",
    torch.chunk: "move",
    operator.getitem: "move",
    operator.floordiv: "shape",
    getattr: "shape",
}
_METHODS: dict[str, Role] = {
    "add": "add",
    "relu": "rectify",
    "size": "shape",
    **dict.fromkeys(("flatten", "view", "reshape", "chunk", "transpose", "contiguous"), "move"),
}


def role_of(graph: GraphModule, node: Node) -> Role:
    """What the node does; whatever has no row here cannot go onto the grid, and is named."""
    role: Role | None = None
    match node.op:
        case "placeholder":
            role = "image"
        case "output":
            role = "output"
        case "call_module":
            role = _MODULES.get(type(graph.get_submodule(str(node.target))))
        case "call_function" if callable(node.target):
            role = _FUNCTIONS.get(node.target)
        case "call_method":
            role = _METHODS.get(str(node.target))
    if role is None:
        raise off_the_grid(node, f"{_spoken(graph, node)} has no form there")
    return "shape" if role == "move" and not _moves_values(node) else role


def off_the_grid(node: Node, why: str) -> UsageError:
    """Why a network has no exact form."""
    return UsageError(f"node {node.name!r} cannot go onto the exact grid: {why}; set exact.enabled: false, or change the network there")


def ceiling_of(graph: GraphModule, node: Node) -> float:
    """The largest value that a rectifier lets pass."""
    clipped = isinstance(graph.get_submodule(str(node.target)), nn.ReLU6) if node.op == "call_module" else node.target is F.relu6
    return 6.0 if clipped else float("inf")


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
    """The window of an average pool; refused where its count changes at the border."""
    before, after = (shape_of(each)[2:] for each in (node.all_input_nodes[0], node))
    if "adaptive" in str(node.target) or (node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), nn.AdaptiveAvgPool2d)):
        kernel = (before[0] // after[0], before[1] // after[1])
        return Window(kernel, kernel, (0, 0))
    pool = graph.get_submodule(str(node.target)) if node.op == "call_module" else _pool_from_call(node)
    assert isinstance(pool, nn.AvgPool2d)
    window = Window(_pair(pool.kernel_size), _pair(pool.stride), _pair(pool.padding))
    if pool.ceil_mode or pool.divisor_override is not None or (window.padding != (0, 0) and not pool.count_include_pad):
        raise off_the_grid(node, "its average is over another number of pixels at the border than inside")
    return window


def shape_of(node: Node) -> tuple[int, ...]:
    """The shape of the node's value for a batch of two."""
    return tuple(node.meta["tensor_meta"].shape)


def only_reader_through_moves(graph: GraphModule, node: Node) -> Node | None:
    """Who alone reads a value, whatever moves it on the way; None where several do."""
    while len(node.users) == 1:
        (node,) = node.users
        if role_of(graph, node) != "move":
            return node
    return None


def reaches_output(graph: GraphModule, node: Node) -> bool:
    reader = only_reader_through_moves(graph, node)
    return reader is not None and role_of(graph, reader) == "output"


def _pool_from_call(node: Node) -> nn.AvgPool2d:
    return nn.AvgPool2d(*node.args[1:], **node.kwargs)  # type: ignore[arg-type]  # the function's arguments, under the same names


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _moves_values(node: Node) -> bool:
    """Whether the result is values and not a size that is reckoned with."""
    meta = node.meta.get("tensor_meta")
    return meta is not None and not isinstance(meta, int)


def _spoken(graph: GraphModule, node: Node) -> str:
    if node.op == "call_module":
        return type(graph.get_submodule(str(node.target))).__name__
    return getattr(node.target, "__name__", str(node.target))
