"""Turn a network written the ordinary way into a graph of plain layers: raw pixels in, logits out.

Takes any `nn.Module` that torch.fx can trace. Refuses, by name, each node that is not a plain
layer.
"""

import operator
from typing import ClassVar, cast

import torch
from torch import nn
from torch.fx import GraphModule, Node, Tracer
from torch.nn import functional as F

from export.errors import UsageError
from export.graph.layers import GlobalAveragePool, Normalise, TrainingKind, TrainingPart
from export.graph.operations import Step, walk
from export.graph.rewriting import image_size_of, note_shapes, output_of, replace_layer, shape_of


class Dropout(TrainingPart):
    """Inverted dropout that can be switched off without leaving training mode."""

    kind: ClassVar[TrainingKind] = "dropout"

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
        return module_qualified_name == "normalise" or isinstance(m, GlobalAveragePool) or super().is_leaf_module(m, module_qualified_name)


def trace(network: nn.Module, normalise: Normalise, image_shape: tuple[int, int, int], num_classes: int) -> GraphModule:
    """Return the network as a graph in training mode, with the shape of every value noted on its
    node."""
    network.train()
    graph = _traced(_FromPixels(normalise, network))
    _refuse_unknown_nodes(graph)
    _require_one_output(graph)
    _make_functional(graph)
    _make_dropout_switchable(graph)
    _pool_in_two_steps(graph)
    note_shapes(graph, image_shape)
    _require_pools_that_divide(graph)
    _require_logits(graph, num_classes)
    return graph


def _refuse_unknown_nodes(graph: GraphModule) -> None:
    """Raise for the first node that is not a plain layer."""
    for step in walk(graph):
        if step.operation is None:
            place = "" if step.layer is None else f" at {step.node.target}"
            raise UsageError(
                f"node {step.node.name!r} ({step.spoken}{place}) is not a plain layer that can be trained, folded and exported with the "
                "same bits; use convolution, linear, ReLU, pooling, add, concatenate, pad or reshape (docs/adding.md)"
            )
        if isinstance(step.layer, nn.Conv2d):
            _refuse_other_padding(step.layer, str(step.node.target))


def _refuse_other_padding(layer: nn.Conv2d, name: str) -> None:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        found = f"padding={layer.padding!r}, padding_mode={layer.padding_mode!r}"
        raise UsageError(f"the convolution at {name} has {found}, expected numbers and zeros; give it padding=(HEIGHT, WIDTH) in pixels")


def _pool_in_two_steps(graph: GraphModule) -> None:
    for step in walk(graph):
        if not _pools_to_one_pixel(step):
            continue
        node, name = step.node, f"global_pool_{step.node.name}"
        graph.add_submodule(name, GlobalAveragePool())
        with graph.graph.inserting_before(node):
            pooled = graph.graph.call_module(name, (node.args[0],))
            if step.kind == "mean":
                pooled = graph.graph.call_function(torch.flatten, (pooled, 1))
        node.replace_all_uses_with(pooled)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()


def _pools_to_one_pixel(step: Step) -> bool:
    arguments = step.node.args[1:]
    if isinstance(step.layer, nn.AdaptiveAvgPool2d):
        arguments = (step.layer.output_size,)
    if step.kind == "adaptive pool":
        return arguments in ((1,), ((1, 1),))
    return step.node.target == "mean" and arguments in (([2, 3],), ((2, 3),), ([-2, -1],)) and not step.node.kwargs


def _traced(whole: nn.Module) -> GraphModule:
    tracer = _PlainLayerTracer()
    try:
        return GraphModule(whole, tracer.trace(whole))
    except (torch.fx.proxy.TraceError, TypeError, NotImplementedError, RuntimeError) as error:
        raise UsageError(
            f"the network cannot be traced: {str(error).splitlines()[0]}; its forward must not branch on the values of its tensors"
        ) from error


def _require_one_output(graph: GraphModule) -> None:
    returned = output_of(graph).args[0]
    if not isinstance(returned, Node):
        raise UsageError(f"the network returns {type(returned).__name__}, not one tensor of logits; return the logits alone")


def _make_functional(graph: GraphModule) -> None:
    """Make operations that write into their input write elsewhere.

    A rewrite may give that input a second reader, which must not see the change.
    """
    for step in walk(graph):
        if step.node.target is operator.iadd:
            step.node.target = operator.add
        elif step.node.target == "add_":
            step.node.target = "add"
        elif step.node.kwargs.get("inplace"):  # torch.nn.functional passes it by name, however it was given
            step.node.update_kwarg("inplace", False)
        elif step.kind == "rectifier" and step.layer is not None:
            step.layer.inplace = False  # type: ignore[assignment]  # an attribute of the layer, not a submodule
    graph.recompile()


def _make_dropout_switchable(graph: GraphModule) -> None:
    for step in walk(graph):
        if isinstance(step.layer, nn.Dropout):
            replace_layer(graph, step.node, Dropout(step.layer.p))
    graph.recompile()


def _require_pools_that_divide(graph: GraphModule) -> None:
    """Refuse an adaptive pool whose output does not divide its input.

    Only a pool that divides is a plain pool; no runtime has the other kind.
    """
    for step in walk(graph):
        if step.kind != "adaptive pool":
            continue
        before, after = image_size_of(step.node.all_input_nodes[0]), image_size_of(step.node)
        if any(pixels % out for pixels, out in zip(before, after, strict=True)):
            raise UsageError(
                f"node {step.node.name!r} pools {' x '.join(map(str, before))} pixels to {' x '.join(map(str, after))}, which does not divide; "
                "choose another data.image_size, or pool to 1 x 1"
            )


def _require_logits(graph: GraphModule, num_classes: int) -> None:
    (logits,) = output_of(graph).all_input_nodes
    shape = tuple(shape_of(logits))
    if shape != (2, num_classes):
        raise UsageError(f"the network returns {shape} for 2 images of {num_classes} classes; expected (2, {num_classes})")
