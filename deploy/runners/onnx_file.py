"""Reads an ONNX file and refuses one that reaches outside itself: tensors kept in other files, operations of foreign domains.

Takes a path; returns the bytes that were checked, so that these and no others are run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.runners.base import TensorSpec
from export.errors import DamagedError, UsageError

if TYPE_CHECKING:
    import onnx  # takes long to import, and only a file that is opened needs it

OWN_DOMAINS = frozenset({"", "ai.onnx"})
_AS_ONE_FILE = "torch.onnx.export(..., external_data=False), or onnx.save(onnx.load(THIS_FILE), ONE_FILE)"
COMPARABLE = frozenset(
    {"bool", "bfloat16", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float16", "float32", "float64"}
)
"""Types of inputs and outputs: those whose values have an order and a distance."""
LARGEST_FILE = 2**31 - 1
"""What protobuf can hold; a larger model keeps its tensors elsewhere."""


def checked_bytes(path: Path) -> bytes:
    """The content of a model file that stands for itself."""
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
    """Raise where there is no file, or one that is larger than such a model can be."""
    if not path.is_file():
        raise UsageError(f"{path} is not a file; give the path of an ONNX model")
    if path.stat().st_size > LARGEST_FILE:
        raise DamagedError(f"{path} has {path.stat().st_size} bytes, an ONNX file has at most {LARGEST_FILE}; export it again")


def shapes_of(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs of a model; weights that are listed among the inputs are none."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in weights), tuple(map(_spec, model.graph.output))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        raise UsageError(f"{value.name} is no tensor with a known number of axes; export the model with shapes")
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
    """Every tensor, those in attributes and inner graphs included."""
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
