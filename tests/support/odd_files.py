"""Small ONNX files with inputs and outputs of every kind.

Several outputs, whole numbers, texts, single values, nothing at all.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

End = tuple[str, int, list[str | int]]
Ends = Sequence[End]
X: End = ("x", TensorProto.FLOAT, ["N", 4])
NOTHING: Mapping[str, Any] = {}
WEIGHT = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def node(operation: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operation, inputs, [output], **attributes)


def write(path: Path, nodes: list[onnx.NodeProto], outputs: Ends, inputs: Ends = (X,), constants: Mapping[str, Any] = NOTHING) -> Path:
    """A model of these nodes. Constants are arrays or NumPy scalars."""
    given, made = ([helper.make_tensor_value_info(*each) for each in some] for some in (inputs, outputs))
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "odd", given, made, kept)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def scores_and_class(path: Path, *, largest: bool = True, moved: float = 0.0) -> Path:
    """Four outputs: scores, a class, large numbers that say nothing, and which scores are above 0.

    The class is that of the largest score, or of the smallest.
    """
    nodes = [
        node("MatMul", ["x", "weight"], "product"),
        node("ArgMax" if largest else "ArgMin", ["product"], "class", axis=1, keepdims=0),
        node("Add", ["product", "moved"], "scores"),
        node("Mul", ["product", "million"], "large"),
        node("Greater", ["product", "zero"], "above"),
    ]
    outputs: Ends = [
        ("scores", TensorProto.FLOAT, ["N", 3]),
        ("class", TensorProto.INT64, ["N"]),
        ("large", TensorProto.FLOAT, ["N", 3]),
        ("above", TensorProto.BOOL, ["N", 3]),
    ]
    constants = {"weight": WEIGHT, "moved": np.float32(moved), "million": np.float32(1e6), "zero": np.float32(0)}
    return write(path, nodes, outputs, constants=constants)
