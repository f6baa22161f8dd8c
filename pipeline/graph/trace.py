"""From a network written the ordinary way to a graph of plain layers: raw uint8 pixels in, logits out.

Takes any `nn.Module` that torch.fx can trace; refuses, by name, each node that is not a plain layer.
"""

import contextlib
import io
import operator
from typing import cast

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node, Tracer
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from export.errors import UsageError
from export.layers import GlobalAveragePool, Normalise, TrainingPart
from export.operations import refuse_unknown_nodes


class Dropout(TrainingPart):
    """Inverted dropout that can be switched off without leaving training mode."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.probability, training=True) if self.acts else x

    @property
    def summary(self) -> str:
        return f"dropout with probability {self.probability}"


class _FromPixels(nn.Module):
    def __init__(self, normalise: Normalise, network: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", self.network(self.normalise(image)))


class _PlainLayerTracer(Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (Normalise, GlobalAveragePool)) or super().is_leaf_module(m, module_qualified_name)


def trace(network: nn.Module, normalise: Normalise, image_shape: tuple[int, int, int], num_classes: int) -> GraphModule:
    """The network as a graph, in training mode, with the shape of every value noted on its node."""
    network.train()
    graph = _traced(_FromPixels(normalise, network))
    refuse_unknown_nodes(graph)
    _require_one_output(graph.graph)
    _make_functional(graph)
    _make_dropout_switchable(graph)
    _pool_in_two_steps(graph)
    note_shapes(graph, image_shape)
    _require_pools_that_divide(graph)
    _require_logits(graph, num_classes)
    return graph


def note_shapes(graph: GraphModule, image_shape: tuple[int, int, int]) -> None:
    """Write the shape of every value, for a batch of 2, into the nodes' `meta`; the parameters and buffers stay as they are."""
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    image = torch.zeros((2, *image_shape), dtype=torch.uint8)
    try:
        # ShapeProp prints a traceback before it raises.
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            ShapeProp(graph).propagate(image)
    except RuntimeError as error:
        raise UsageError(
            f"the network cannot run on images of {' x '.join(map(str, image_shape))}: {_first_cause(error)}; "
            "choose a network made for this size, or set data.image_size"
        ) from error
    graph.load_state_dict(before)


def _pool_in_two_steps(graph: GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if _pools_to_one_pixel(graph, node):
            name = f"global_pool_{node.name}"
            graph.add_submodule(name, GlobalAveragePool())
            with graph.graph.inserting_before(node):
                pooled = graph.graph.call_module(name, (node.args[0],))
                if node.target == "mean":
                    pooled = graph.graph.call_function(torch.flatten, (pooled, 1))
            node.replace_all_uses_with(pooled)
            graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()


def _pools_to_one_pixel(graph: GraphModule, node: Node) -> bool:
    if node.op == "call_module":
        layer = graph.get_submodule(str(node.target))
        return isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1))
    if node.target is F.adaptive_avg_pool2d:
        return node.args[1:] in ((1,), ((1, 1),))
    return node.target == "mean" and node.args[1:] in (([2, 3],), ((2, 3),), ([-2, -1],)) and not node.kwargs


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0]


def _traced(whole: nn.Module) -> GraphModule:
    tracer = _PlainLayerTracer()
    try:
        return GraphModule(whole, tracer.trace(whole))
    except (torch.fx.proxy.TraceError, TypeError, NotImplementedError, RuntimeError) as error:
        raise UsageError(
            f"the network cannot be traced: {str(error).splitlines()[0]}; its forward must not branch on the values of its tensors"
        ) from error


def _require_one_output(graph: Graph) -> None:
    (output,) = (node for node in graph.nodes if node.op == "output")
    if not isinstance(output.args[0], Node):
        raise UsageError(f"the network returns {type(output.args[0]).__name__}, not one tensor of logits; return the logits alone")


def _make_functional(graph: GraphModule) -> None:
    """No operation writes into its input: a rewrite may give that input a second reader, which must not see the change."""
    for node in graph.graph.nodes:
        if node.target is operator.iadd:
            node.target = operator.add
        elif node.op == "call_method" and node.target == "add_":
            node.target = "add"
        elif node.kwargs.get("inplace"):
            node.update_kwarg("inplace", False)
    for layer in graph.modules():
        if isinstance(layer, (nn.ReLU, nn.ReLU6)):
            layer.inplace = False
    graph.recompile()


def _make_dropout_switchable(graph: GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and isinstance(layer := graph.get_submodule(node.target), nn.Dropout):
            graph.set_submodule(node.target, Dropout(layer.p))
    graph.recompile()


def _require_pools_that_divide(graph: GraphModule) -> None:
    """An adaptive pool is a plain one only where its output divides its input; no runtime has the other kind."""
    for node in graph.graph.nodes:
        if "adaptive" not in str(node.target) and not (
            node.op == "call_module" and isinstance(graph.get_submodule(node.target), nn.AdaptiveAvgPool2d)
        ):
            continue
        before, after = (tuple(each.meta["tensor_meta"].shape[2:]) for each in (node.all_input_nodes[0], node))
        if any(pixels % out for pixels, out in zip(before, after, strict=True)):
            raise UsageError(
                f"node {node.name!r} pools {' x '.join(map(str, before))} pixels to {' x '.join(map(str, after))}, which does not divide; "
                "choose another data.image_size, or pool to 1 x 1"
            )


def _require_logits(graph: GraphModule, num_classes: int) -> None:
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    shape = tuple(output.args[0].meta["tensor_meta"].shape)
    if shape != (2, num_classes):
        raise UsageError(f"the network returns {shape} for 2 images of {num_classes} classes; expected (2, {num_classes})")
