"""ONNX files of folded graphs, for tests that do not test the exporter.

The exporter takes seconds, so it runs once for each form of a graph. Graphs that differ only in
weights, and in which layers have biases, share a file, each with its own weights in it.
`tests/export/test_every_pair.py` shows that nothing is lost by this.
"""

import copy
import hashlib
from pathlib import Path

import onnx
import torch
from made_once import MadeOnce
from onnx import numpy_helper
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from export.graph.operations import step_at
from export.onnx import onnx_from_graph

Shape = tuple[int, int, int]
LAYERS = (nn.Conv2d, nn.Linear)


class ExportedFiles:
    """The files of the forms requested so far, without weights."""

    def __init__(self, made_once: MadeOnce) -> None:
        self._made_once = made_once

    def file_of(self, folded: GraphModule, shape: Shape) -> bytes:
        """The folded graph as an ONNX file.

        If layers of another kind have weights, the file comes from the exporter itself, because the
        names of such weights are lost.
        """
        if any(not isinstance(layer, LAYERS) for layer in folded.modules() if [*layer.parameters(recurse=False)]):
            return onnx_from_graph(folded, shape, {})

        def make(path: Path) -> None:
            path.write_bytes(without_weights(onnx_from_graph(as_template(folded), shape, {}), folded))

        name = hashlib.sha256(repr((shape, form_of(folded))).encode()).hexdigest()
        return with_weights(self._made_once.path(f"{name}.onnx", make).read_bytes(), folded)


def form_of(folded: GraphModule) -> object:
    """What decides the nodes of a folded graph's file.

    This is the layers in order, what they read, sizes and constants; not weights and biases.
    """
    position = {node: number for number, node in enumerate(folded.graph.nodes)}
    return tuple(
        (_kind(folded, node), tuple(position[each] for each in node.all_input_nodes), _constants(folded, node)) for node in folded.graph.nodes
    )


def _kind(folded: GraphModule, node: Node) -> str:
    step = step_at(folded, node)
    if step.kind == "rectifier":
        return repr(step.as_layer()).replace(", inplace=True", "").replace("inplace=True", "")
    return f"{node.target} {_layer(folded, node)}" if node.op == "call_module" else str(node.target)


def _layer(folded: GraphModule, node: Node) -> str:
    return _without_bias(folded.get_submodule(str(node.target))) if node.op == "call_module" else str(node.target)


def _without_bias(layer: nn.Module) -> str:
    return repr(layer).replace(", bias=False", "").replace(", bias=True", "")


def _constants(folded: GraphModule, node: Node) -> str:
    """The constants of a node. A rectifier has none: a file does not know if it works in place."""
    return "" if step_at(folded, node).kind == "rectifier" else str(map_arg((node.args, node.kwargs), lambda _: None))


def as_template(folded: GraphModule) -> GraphModule:
    """A copy in which every layer has a bias, and no two tensors are equal or zero.

    So the exporter leaves nothing out and merges nothing.
    """
    template, generator = copy.deepcopy(folded), torch.Generator().manual_seed(0)
    for layer in template.modules():
        if isinstance(layer, LAYERS):
            layer.bias = nn.Parameter(torch.empty(layer.weight.shape[0]), requires_grad=False)
    for tensor in template.state_dict().values():
        tensor.uniform_(1, 2, generator=generator)
    return template


def without_weights(file: bytes, folded: GraphModule) -> bytes:
    """The file without the values of weights, biases and normalisation.

    With them, the largest files would fill hundreds of megabytes.
    """
    model = onnx.load_model_from_string(file)
    for tensor in model.graph.initializer:
        if tensor.name in folded.state_dict() or _is_bias(tensor.name, folded):
            tensor.ClearField("raw_data")
    return model.SerializeToString(deterministic=True)


def with_weights(file: bytes, folded: GraphModule) -> bytes:
    """The file with the weights of this folded graph, and zeros for the biases that it lacks."""
    model, weights = onnx.load_model_from_string(file), folded.state_dict()
    missing = set(weights) - {tensor.name for tensor in model.graph.initializer}
    assert not missing, f"the file has no place for {missing}"
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name].numpy(), tensor.name))
        elif _is_bias(tensor.name, folded):
            tensor.CopyFrom(numpy_helper.from_array(torch.zeros(*tensor.dims).numpy(), tensor.name))
    return model.SerializeToString(deterministic=True)


def _is_bias(name: str, folded: GraphModule) -> bool:
    layer, _, end = name.rpartition(".")
    return end == "bias" and layer in dict(folded.named_modules()) and isinstance(folded.get_submodule(layer), LAYERS)
