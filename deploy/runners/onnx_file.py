"""Reads an ONNX file, refuses one that reaches outside itself, and cuts it at inner tensors.

Takes a path; returns the bytes that were checked, so that exactly these bytes are run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.runners.runner import Point, TensorSpec
from export.errors import DamagedError, UsageError

if TYPE_CHECKING:
    import onnx  # slow to import, and only needed when a file is opened

OWN_DOMAINS = frozenset({"", "ai.onnx"})
_AS_ONE_FILE = "torch.onnx.export(..., external_data=False), or onnx.save(onnx.load(THIS_FILE), ONE_FILE)"
COMPARABLE = frozenset(
    {"bool", "bfloat16", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float16", "float32", "float64"}
)
"""The types that inputs and outputs may have: their values have an order and a distance."""
LARGEST_FILE = 2**31 - 1
"""What protobuf can hold. A larger model keeps its tensors in other files."""


def checked_bytes(path: Path) -> bytes:
    """The content of a model file that needs no other file."""
    require_size(path)
    content = path.read_bytes()
    model = _parsed(path, content)
    for tensor in _tensors(model.graph):
        if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
            raise DamagedError(f"{path}: tensor {tensor.name!r} is external data, kept in another file; export it as one file: {_AS_ONE_FILE}")
    foreign = sorted({each.domain for each in model.opset_import} - OWN_DOMAINS)
    if foreign or model.functions:
        found = f"operations of {', '.join(map(repr, foreign))}" if foreign else f"functions of its own ({model.functions[0].name!r})"
        raise DamagedError(f"{path} holds {found}; expected ONNX's own operations only; export it again without them")
    return content


def require_size(path: Path) -> None:
    """Raise if the file does not exist or is larger than an ONNX file can be."""
    if not path.is_file():
        raise UsageError(f"{path} is not a file; give the path of an ONNX model")
    if path.stat().st_size > LARGEST_FILE:
        raise DamagedError(f"{path} has {path.stat().st_size} bytes, an ONNX file has at most {LARGEST_FILE}; export it again")


def shapes_of(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of a model. Weights listed among the inputs do not count."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in weights), tuple(map(_spec, model.graph.output))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        raise UsageError(f"{value.name} is not a tensor with a known number of axes; export the model with shapes")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    if dtype not in COMPARABLE:
        what = "texts" if kind.elem_type == onnx.TensorProto.STRING else f"{dtype} values"
        raise UsageError(f"{value.name} holds {what}, expected one of {', '.join(sorted(COMPARABLE))}; export the model without it")
    return TensorSpec(value.name, dtype, tuple(_size(dimension) for dimension in kind.shape.dim))


def _size(dimension: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return int(dimension.dim_value) if dimension.HasField("dim_value") else dimension.dim_param or None


def _parsed(path: Path, content: bytes) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise DamagedError(f"{path} is not an ONNX file: {error}; export it again") from error
    if not model.graph.node:
        raise DamagedError(f"{path} is not an ONNX model: its graph has no node; export it again")
    return model


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor, including those in attributes and inner graphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


LAYER = "layer"
"""The metadata key under which our own files keep the module that a node belongs to."""
_SCOPES = "pkg.torch.onnx.name_scopes"
_FX_NODE = re.compile(r"%(\w+) :")


def points_of(model: onnx.ModelProto) -> tuple[Point, ...]:
    """Every tensor that a node of the graph computes, in order. Constants do not count."""
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
    import onnx
    from onnx.utils import Extractor

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


def squaring_model() -> bytes:
    """y = x x for 2 x 2 matrices. It is small enough to try a runtime with, and has to compute."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "square", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
