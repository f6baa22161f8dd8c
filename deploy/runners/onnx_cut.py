"""The inner tensors of an ONNX graph, and the model up to one of them.

Takes a model that was checked. A prefix has that one tensor as its output, so a runtime optimises it as it optimises the whole.
"""

import ast
import re

import onnx
from onnx.utils import Extractor

from deploy.runners.cut import Point
from export.errors import UsageError

LAYER = "layer"
"""The node metadata in which our own files keep the module of the network that a node belongs to."""
_SCOPES = "pkg.torch.onnx.name_scopes"
_FX_NODE = re.compile(r"%(\w+) :")


def points_of(model: onnx.ModelProto) -> tuple[Point, ...]:
    """Every tensor that a node of the graph computes, in order; constants are none."""
    made: dict[str, tuple[str, ...]] = {}
    points = []
    for node in model.graph.node:
        before = tuple(dict.fromkeys(name for each in node.input for name in made.get(each, ())))
        if node.op_type == "Constant":
            continue
        points += [Point(name, node.op_type, before, _layer(node)) for name in node.output if name]
        made.update({name: (name,) for name in node.output if name})
    return tuple(points)


def cut_at(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model up to one of its tensors, which becomes the only output."""
    inferred = onnx.shape_inference.infer_shapes(model)
    known = {value.name: value for value in (*inferred.graph.value_info, *inferred.graph.output)}
    if name not in known:
        raise UsageError(f"the shape of {name!r} is not known, so the graph cannot be cut there")
    prefix = Extractor(inferred).extract_model([value.name for value in model.graph.input if not _is_weight(model, value.name)], [name])
    prefix.ir_version = model.ir_version
    del prefix.graph.value_info[:]
    return prefix


def _is_weight(model: onnx.ModelProto, name: str) -> bool:
    return any(tensor.name == name for tensor in model.graph.initializer)


def _layer(node: onnx.NodeProto) -> str:
    notes = {each.key: each.value for each in node.metadata_props}
    if LAYER in notes:
        return notes[LAYER]
    try:
        scopes = ast.literal_eval(notes.get(_SCOPES, "[]"))
    except (ValueError, SyntaxError):
        return ""
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""
