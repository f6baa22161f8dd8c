"""The operations a graph may consist of, and what each is.

Takes nodes of a traced graph. Knows neither methods nor files.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from export.errors import UsageError
from export.layers import FoldableLayer, TrainingPart

CONVOLUTIONS_AND_LINEAR = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)
RECTIFIERS = (nn.ReLU, nn.ReLU6)
_MODULES: tuple[type[nn.Module], ...] = (
    *CONVOLUTIONS_AND_LINEAR,
    *NORMS,
    *RECTIFIERS,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.ZeroPad2d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    FoldableLayer,
    TrainingPart,
)
RELUS: frozenset[object] = frozenset({F.relu, torch.relu, "relu"})
"""Functions, and the name of the tensor's method."""
ADDITIONS: frozenset[Callable[..., Any]] = frozenset({operator.add, operator.iadd, torch.add})
_RECTIFYING_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset({F.relu, torch.relu, F.relu6})
_FUNCTIONS: frozenset[Callable[..., Any]] = (
    ADDITIONS
    | _RECTIFYING_FUNCTIONS
    | {
        F.max_pool2d,
        F.avg_pool2d,
        F.adaptive_avg_pool2d,
        F.pad,
        torch.cat,
        torch.flatten,
        torch.mean,
        torch.transpose,
        torch.reshape,
        torch.chunk,
        operator.getitem,
        operator.floordiv,
        getattr,
    }
)
_METHODS = frozenset({"relu", "flatten", "view", "reshape", "mean", "size", "chunk", "transpose", "contiguous", "add", "add_"})


def is_addition(node: Node) -> bool:
    """Whether the node adds two values."""
    return (node.op == "call_function" and node.target in ADDITIONS) or (node.op == "call_method" and node.target in {"add", "add_"})


def is_concatenation(node: Node) -> bool:
    """Whether the node puts values side by side."""
    return node.op == "call_function" and node.target is torch.cat


def is_rectifier(graph: GraphModule, node: Node) -> bool:
    """Whether the node's values are those of a ReLU."""
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), RECTIFIERS)
    return (node.op == "call_function" and node.target in _RECTIFYING_FUNCTIONS) or (node.op == "call_method" and node.target == "relu")


def refuse_unknown_nodes(graph: GraphModule) -> None:
    """Raise for the first node that is not a plain layer."""
    for node in graph.graph.nodes:
        if not _is_known(graph, node):
            raise UsageError(
                f"node {node.name!r} ({_spoken(graph, node)}) is not a plain layer that can be trained, folded and exported with the "
                "same bits; use convolution, linear, ReLU, pooling, add, concatenate, pad or reshape (docs/adding.md)"
            )
        if node.op == "call_module":
            _refuse_other_padding(graph.get_submodule(str(node.target)), str(node.target))


def _refuse_other_padding(layer: nn.Module, name: str) -> None:
    if isinstance(layer, nn.Conv2d) and (isinstance(layer.padding, str) or layer.padding_mode != "zeros"):
        found = f"padding={layer.padding!r}, padding_mode={layer.padding_mode!r}"
        raise UsageError(f"the convolution at {name} has {found}, expected numbers and zeros; give it padding=(HEIGHT, WIDTH) in pixels")


def _is_known(graph: GraphModule, node: Node) -> bool:
    match node.op:
        case "placeholder" | "output":
            return True
        case "call_module":
            return node.target == "normalise" or isinstance(graph.get_submodule(str(node.target)), _MODULES)
        case "call_function":
            return node.target in _FUNCTIONS
        case "call_method":
            return node.target in _METHODS
        case _:
            return False


def _spoken(graph: GraphModule, node: Node) -> str:
    if node.op == "call_module":
        return f"{type(graph.get_submodule(str(node.target))).__name__} at {node.target}"
    if node.op == "call_function":
        return getattr(node.target, "__name__", str(node.target))
    return f"{node.op} {node.target}"
