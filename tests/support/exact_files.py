"""Exact ONNX files for tests: those that `export.exact` writes, and small ones made by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from graphs import DEFAULTS, images, rewritten
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.exact.calibration import calibrate
from export.exact.dialects import exact_onnx, exact_tensorrt_onnx
from export.exact.grid import GridBits, GridGraph
from export.exact.rewrite import grid_graph

Array = NDArray[Any]
PIXEL_STEP = 2.0**-6
DIALECTS = {"unsigned": exact_onnx, "signed": exact_tensorrt_onnx}


def calibrated(network: str, image_shape: tuple[int, int, int], method: str = "batchnorm") -> GridGraph:
    """A network with random weights on the grid."""
    grid = grid_graph(rewritten(network, image_shape, DEFAULTS[method]).graph.eval(), image_shape, GridBits())
    calibrate(grid, lambda: [images(8, image_shape)])
    return grid


def changed(content: bytes, change: Callable[[onnx.GraphProto], None]) -> bytes:
    """A file with one change in its graph."""
    model = onnx.load_model_from_string(content)
    change(model.graph)
    return model.SerializeToString()


def add_constant(graph: onnx.GraphProto, name: str, value: Array) -> None:
    graph.initializer.append(numpy_helper.from_array(value, name))


def constant_of(graph: onnx.GraphProto, name: str) -> Array:
    (tensor,) = (each for each in graph.initializer if each.name == name)
    return numpy_helper.to_array(tensor).copy()


def set_constant(graph: onnx.GraphProto, name: str, value: Array) -> None:
    (tensor,) = (each for each in graph.initializer if each.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


class Sketch:
    """A graph that is assembled node by node. Each call returns the name of its result."""

    def __init__(self, channels: int = 1, size: int = 4) -> None:
        self.shape = channels, size, size
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def constant(self, name: str, value: Array | np.generic) -> str:
        self.constants[name] = np.asarray(value)
        return name

    def node(self, operation: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        node = helper.make_node(operation, list(inputs), [name], name=name, **attributes)
        if node not in self.nodes:
            self.nodes.append(node)
        return name

    def pixels(self, step: float = PIXEL_STEP) -> str:
        """The image as multiples of a step, from -128 to 127."""
        return self.dequantised("image", step, 128)

    def dequantised(self, name: str, step: float, zero_point: int) -> str:
        return self.node("DequantizeLinear", [name, self._step(step), self._byte(zero_point)], f"{name}_float")

    def quantised(self, x: str, step: float, zero_point: int, largest: int | None = None) -> str:
        """Through bytes and back to float32. `largest` clips the bytes."""
        name = self.node("QuantizeLinear", [x, self._step(step), self._byte(zero_point)], f"{x}_byte")
        if largest is not None:
            name = self.node("Clip", [name, "", self._byte(largest)], f"{x}_clip")
        return self.dequantised(name, step, zero_point)

    def layer(self, x: str, name: str, weights: NDArray[np.int8], bias: Sequence[int], input_step: float, step: float = 2.0**-6) -> str:
        """A convolution without padding, or a linear layer, with integer weights of one step."""
        filters = len(weights)
        self.constant(f"{name}.weight", weights.astype(np.int8))
        self.constant(f"{name}.step", np.full(filters, step, np.float32))
        self.constant(f"{name}.bias", np.array(bias, np.int32))
        self.constant(f"{name}.unit", np.full(filters, step * input_step, np.float32))
        weight = self.node("DequantizeLinear", [f"{name}.weight", f"{name}.step"], f"{name}_weight", axis=0)
        offset = self.node("DequantizeLinear", [f"{name}.bias", f"{name}.unit"], f"{name}_bias", axis=0)
        if weights.ndim == 2:
            return self.node("Gemm", [x, weight, offset], name, transB=1)
        return self.node("Conv", [x, weight, offset], name)

    def flattened(self, x: str, features: int) -> str:
        return self.node("Reshape", [x, self.constant(f"{x}_shape", np.array([-1, features], np.int64))], f"{x}_flat")

    def content(self, logits: str) -> bytes:
        """The file with this value as its output."""
        nodes = [*self.nodes, helper.make_node("Identity", [logits], ["logits"], name="logits")]
        graph = helper.make_graph(
            nodes,
            "main",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *self.shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model).SerializeToString()  # states the output's shape

    def _step(self, value: float) -> str:
        return self.constant(f"step_{value!r}", np.float32(value))

    def _byte(self, value: int) -> str:
        return self.constant(f"byte_{value}", np.uint8(value))


BOTH_WAYS = np.array([[126, -126], [-126, 126]], np.int8).reshape(2, 2, 1, 1)
"""Sums that reach far beyond 8 bits, up and down."""


def joined(clipped_at_0: bool, other: str) -> bytes:
    """A branch straight from a layer, joined with another value.

    `other` is what the branch reads ("identity") or another layer's branch ("projection").
    """
    step, sketch = 2.0**-5, Sketch(2)
    stem = sketch.layer(sketch.pixels(), "stem", np.array([[64, 0], [0, 64]], np.int8).reshape(2, 2, 1, 1), [1, 1], PIXEL_STEP, step)
    x = sketch.quantised(stem, step, 0, 127)
    terms = [sketch.quantised(sketch.layer(x, "branch", BOTH_WAYS, [1, 1], step), step, 128), x]
    if other == "projection":
        terms[1] = sketch.quantised(sketch.layer(x, "projection", -BOTH_WAYS, [1, 1], step), step, 128)
    result = sketch.quantised(sketch.node("Add", terms, "join"), step, *((0, 127) if clipped_at_0 else (128,)))
    return sketch.content(sketch.flattened(result, 2 * 16))
