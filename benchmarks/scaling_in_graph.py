"""Whether the recipe's scaling can be a part of an ONNX file, with the same pixels everywhere.

    python -m benchmarks.scaling_in_graph [--rounds 5]

For images of one fixed size, both passes are matrix products with integer weights. Three ways to
compute them are compared with `export.preprocess` to the bit, and timed beside it: in int32, in
float64, and in float32 with the weights split into three parts so small that every sum is an exact
integer. Writes results/scaling_in_graph.json.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from benchmarks.environment import write_result
from export.preprocess import as_pixels, framed, recipe_for

SIZES = ((61, 40, 32), (40, 61, 32), (500, 375, 224), (375, 500, 224), (1600, 1200, 224))
"""Width and height of the image, and the side of the result."""
BITS = 22
WAYS = {"int32": TensorProto.INT32, "float64": TensorProto.DOUBLE, "float32 in three parts": TensorProto.FLOAT}
Array = NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(write_result("scaling_in_graph", {"rounds": rounds, "cases": [measured(*size, rounds) for size in SIZES]}))


def measured(width: int, height: int, side: int, rounds: int) -> dict[str, object]:
    """Return for each way and runtime whether the pixels are the same, and the median time."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image, recipe = Image.fromarray(pixels), recipe_for((3, side, side))
    fed = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
    wanted = as_pixels(framed(image, recipe))
    runs: dict[str, Callable[[], Array]] = {}
    for way in WAYS:
        file = model_file(width, height, side, way)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        compiled = openvino.Core().compile_model(openvino.Core().read_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        runs[f"{way}, onnxruntime"] = lambda session=session: session.run(None, {"image": fed})[0][0]  # type: ignore[misc]
        runs[f"{way}, openvino"] = lambda compiled=compiled: compiled(fed)[0][0]  # type: ignore[misc]
    different = {name: int((run() != wanted).sum()) for name, run in runs.items()}
    runs["Pillow"] = lambda: as_pixels(framed(image, recipe))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - started))
    medians = {name: round(statistics.median(each), 3) for name, each in times.items()}
    found: dict[str, object] = {"image": f"{width} x {height}", "result": f"{side} x {side}", "different_values": different, "milliseconds": medians}
    print(found)
    return found


def model_file(width: int, height: int, side: int, way: str) -> bytes:
    """Return an ONNX file that scales the centre square of images of this size."""
    kind = WAYS[way]
    shorter = min(width, height)
    across = weights(width, (width - shorter) / 2, shorter, side).T
    down = weights(height, (height - shorter) / 2, shorter, side)
    graph = _Graph(kind)
    product = graph.in_three_parts if kind == TensorProto.FLOAT else graph.at_once
    graph.node("Cast", ["image"], "values", to=kind)
    product("values", across, "wide", from_left=False)
    product("wide", down, "scaled", from_left=True)
    graph.node("Cast", ["scaled"], "pixels", to=TensorProto.UINT8)
    ends = [("image", [1, 3, height, width]), ("pixels", [1, 3, side, side])]
    infos = [helper.make_tensor_value_info(name, TensorProto.UINT8, shape) for name, shape in ends]
    made = helper.make_graph(graph.nodes, "scaling", infos[:1], infos[1:], graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()


class _Graph:
    """Nodes and constants, in one arithmetic."""

    def __init__(self, kind: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._dtype = helper.tensor_dtype_to_np_dtype(kind)
        self._whole = kind == TensorProto.INT32

    def node(self, operation: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operation, inputs, [output], **attributes))
        return output

    def constant(self, value: Array | float, name: str) -> str:
        self.constants.append(numpy_helper.from_array(np.array(value, self._dtype), name))
        return name

    def at_once(self, source: str, matrix: Array, target: str, *, from_left: bool) -> None:
        """(2^21 + the product) >> 22."""
        factor = self.constant(matrix, f"{target}_weights")
        total = self.node("MatMul", [factor, source] if from_left else [source, factor], f"{target}_sum")
        self.node("Add", [total, self.constant(2 ** (BITS - 1), f"{target}_half")], f"{target}_raised")
        self.shifted(f"{target}_raised", BITS, target)

    def in_three_parts(self, source: str, matrix: Array, target: str, *, from_left: bool) -> None:
        """The same with w = w0 + 2^8 w1 + 2^16 w2, where no sum reaches 2^24."""
        parts = [matrix & 255, matrix >> 8 & 255, matrix >> 16]
        assert 255 * max(part.sum(axis=1 if from_left else 0).max() for part in parts) + 2**17 < 2**24
        carried = ""
        for place, part in enumerate(parts):
            name = f"{target}_{place}"
            factor = self.constant(part, f"{name}_weights")
            total = self.node("MatMul", [factor, source] if from_left else [source, factor], f"{name}_sum")
            if carried:
                total = self.node("Add", [total, carried], f"{name}_carried")
            if place < 2:
                carried = self.shifted(total, 8, f"{name}_high")
        raised = self.node("Add", [total, self.constant(2 ** (BITS - 17), f"{target}_half")], f"{target}_raised")
        self.shifted(raised, BITS - 16, target)

    def shifted(self, source: str, bits: int, target: str) -> str:
        """Return the whole part of a division by a power of two."""
        power = self.constant(2**bits, f"{target}_power")
        if self._whole:
            return self.node("Div", [source, power], target)
        return self.node("Floor", [self.node("Div", [source, power], f"{target}_quotient")], target)


def weights(length: int, start: float, covered: float, size: int) -> NDArray[np.int64]:
    """Return the integer weights that docs/images.md describes: new by old pixels."""
    scale = covered / size
    support = max(scale, 1.0)
    found = np.zeros((size, length), np.int64)
    for place in range(size):
        centre = start + (place + 0.5) * scale
        first, last = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), length)
        triangle = [max(0.0, 1.0 - abs((x + 0.5 - centre) * (1.0 / support))) for x in range(first, last)]
        found[place, first:last] = [math.floor(0.5 + each / sum(triangle) * 2**BITS) for each in triangle]
    return found


if __name__ == "__main__":
    main()
