"""Classifiers in front of their pools, where TF32 would round the sums that a pool hands on: of logits nothing multiplies the sums.

Takes a graph whose nodes know their shapes; knows no steps.
"""

import torch
from torch import nn
from torch.fx import GraphModule, Node

from export.derived import Derivation, DerivedConv2d, DerivedLinear
from export.exact.grid import Held, OnEachPixel
from export.exact.vocabulary import only_reader_through_moves, reaches_output, role_of, shape_of

LARGEST_IN_TF32 = 2**11
"""TF32 keeps 11 bits of what it multiplies."""


def classify_each_pixel(graph: GraphModule, largest: int) -> frozenset[Node]:
    """Put classifiers in front of pools whose sums, of values up to the largest, TF32 would round; the pools. Both are linear: the function stays."""
    pools = [node for node in graph.graph.nodes if role_of(graph, node) == "global average"]
    return frozenset(node for node in pools if _has_wide_sums(node, largest) and _classified_in_front(graph, node))


def _has_wide_sums(pool: Node, largest: int) -> bool:
    height, width = shape_of(pool.all_input_nodes[0])[2:]
    return height * width * largest > LARGEST_IN_TF32


def _classified_in_front(graph: GraphModule, pool: Node) -> bool:
    """Whether a linear classifier was behind it, and now is in front."""
    reader = only_reader_through_moves(graph, pool)
    between = [] if reader is None else _moves_between(pool, reader)
    if (
        reader is None
        or role_of(graph, reader) != "layer"
        or not reaches_output(graph, reader)
        or not all(_is_flatten(graph, each) for each in between)
    ):
        return False
    linear, (before,) = graph.get_submodule(str(reader.target)), pool.all_input_nodes
    if not isinstance(linear, (DerivedLinear, nn.Linear)):
        return False
    derivation = linear.derivation if isinstance(linear, DerivedLinear) else Held(linear.weight, linear.bias)
    name = str(reader.target)
    graph.set_submodule(name, _on_each_pixel(derivation))
    reader.replace_all_uses_with(reader.all_input_nodes[0])
    graph.graph.erase_node(reader)  # first: the new node takes its name
    with graph.graph.inserting_before(pool):
        pool.replace_input_with(before, graph.graph.call_module(name, (before,)))
    graph.recompile()
    return True


def _on_each_pixel(derivation: Derivation) -> DerivedConv2d:
    num_filters, num_channels = derivation()[0].shape
    return DerivedConv2d(nn.Conv2d(num_channels, num_filters, 1, device="meta"), OnEachPixel(derivation))


def _moves_between(node: Node, reader: Node) -> list[Node]:
    found: list[Node] = []
    while (node := next(iter(node.users))) is not reader:
        found.append(node)
    return found


def _is_flatten(graph: GraphModule, node: Node) -> bool:
    """Whether it takes any number of channels to as many values."""
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), nn.Flatten)
    return node.target is torch.flatten or (node.op == "call_method" and node.target == "flatten")
