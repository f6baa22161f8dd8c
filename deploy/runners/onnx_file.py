"""Reads an ONNX file and refuses one that reaches outside itself: tensors kept in other files, operations of foreign domains.

Takes a path; returns the bytes that were checked, so that these and no others are run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from export.errors import DamagedError, UsageError

if TYPE_CHECKING:
    import onnx  # takes long to import, and only a file that is opened needs it

OWN_DOMAINS = frozenset({"", "ai.onnx"})
LARGEST_FILE = 2**31 - 1
"""What protobuf can hold; a larger model keeps its tensors elsewhere."""


def checked_bytes(path: Path) -> bytes:
    """The content of a model file that stands for itself."""
    if not path.is_file():
        raise UsageError(f"{path} is not a file; give the path of an ONNX model")
    if path.stat().st_size > LARGEST_FILE:
        raise DamagedError(f"{path} has {path.stat().st_size} bytes, an ONNX file has at most {LARGEST_FILE}; export it again")
    content = path.read_bytes()
    model = _parsed(path, content)
    for tensor in _tensors(model.graph):
        if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
            raise DamagedError(f"{path}: tensor {tensor.name!r} is external data, kept in another file; export it as one file")
    foreign = sorted({each.domain for each in model.opset_import} - OWN_DOMAINS)
    if foreign or model.functions:
        found = f"operations of {', '.join(map(repr, foreign))}" if foreign else f"functions of its own ({model.functions[0].name!r})"
        raise DamagedError(f"{path} holds {found}; expected ONNX's own operations only; export it again without them")
    return content


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
