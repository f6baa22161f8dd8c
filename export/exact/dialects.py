"""A grid graph as ONNX, in two dialects with the same integers.

One dialect is for kernels on unsigned bytes, the other for TensorRT's parser. Takes a calibrated
grid graph; returns the file's bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch.fx import Node

from export.exact.grid import GridGraph, Pixels, Quantise
from export.exact.writer import (
    Array,
    Bytes,
    Convolution,
    Floats,
    Value,
    Writer,
    sees_only_padding,
    with_groups_of_four,
    with_second_channel,
    with_wider_kernel,
    without_padding,
)
from export.graph.rewriting import image_size_of
from export.onnx import INPUT, IR_VERSION, OPSET, OUTPUT

_LARGEST_INT8 = 127


def exact_onnx(grid: GridGraph, image_shape: tuple[int, int, int], num_classes: int, metadata: Mapping[str, str]) -> bytes:
    """For ONNX Runtime and OpenVINO.

    Bytes are unsigned, with zero point 0 behind a ReLU and 128 elsewhere. Biases are int32.
    """
    return _file(_UnsignedBytes(grid), image_shape, num_classes, metadata)


def exact_tensorrt_onnx(grid: GridGraph, image_shape: tuple[int, int, int], num_classes: int, metadata: Mapping[str, str]) -> bytes:
    """For TensorRT's parser. Bytes are signed with zero point 0, biases float32 on that grid."""
    return _file(_SignedBytes(grid), image_shape, num_classes, metadata)


def _file(writer: "Writer", image_shape: tuple[int, int, int], num_classes: int, metadata: Mapping[str, str]) -> bytes:
    writer.write()
    graph = helper.make_graph(
        writer.nodes,
        "main",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", *image_shape])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", num_classes])],
        writer.initialisers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="samegraph")
    helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


class _UnsignedBytes(Writer):
    """Values are bytes wherever they are not being summed."""

    def pixels(self, node: Node, pixels: Pixels) -> Value:
        return Bytes(INPUT, pixels.step.item(), int(pixels.offset.item()))

    def quantised(self, node: Node, quantiser: Quantise, x: Value) -> Value:
        zero_point = 128 if quantiser.signed else 0
        point = self.constant(f"zero_point_{zero_point}", np.uint8(zero_point))
        step = quantiser.step.item()
        if quantiser.signed:
            return Bytes(self.emit("QuantizeLinear", [self.floats(x), self.step(step), point], node.name), step, zero_point)
        if quantiser.high == 255 and not isinstance(x, Bytes):  # the type itself clips at 255
            return Bytes(self.emit("QuantizeLinear", [self.floats(x), self.step(step), point], node.name), step, zero_point)
        whole = self.emit("QuantizeLinear", [self.floats(x), self.step(step), point], f"{node.name}_byte")
        # The clip acts on the bytes: in front of the quantiser it would prevent the fused kernels.
        # Between two roundings it stays even where it clips nothing: without it ONNX Runtime merges
        # the two into one rounding with a step of its own.
        largest = self.constant(f"largest_{quantiser.high}", np.uint8(quantiser.high))
        return Bytes(self.emit("Clip", [whole, "", largest], node.name), step, zero_point)

    def bias(self, name: str, integers: Array, unit: Array) -> str:
        codes = self.constant(f"{name}.bias", integers.astype(np.int32))
        return self.emit("DequantizeLinear", [codes, self.constant(f"{name}.unit", unit)], f"{name}_bias", axis=0)

    def padding_value(self, x: Value) -> str:
        if isinstance(x, Floats):
            return self.constant("zero", np.float32(0))
        return self.constant(f"zero_point_{x.zero_point}", np.uint8(x.zero_point))

    def alike(self, node: Node, values: Sequence[Value]) -> Sequence[Value]:
        bytes_ = [each for each in values if isinstance(each, Bytes)]
        if len({each.zero_point for each in bytes_}) == 1:
            return values
        return [self._with_zero_point_128(node, number, each) for number, each in enumerate(bytes_)]

    def _with_zero_point_128(self, node: Node, number: int, x: Bytes) -> Bytes:
        if x.zero_point == 128:
            return x
        point = self.constant("zero_point_128", np.uint8(128))
        name = self.emit("QuantizeLinear", [self.floats(x), self.step(x.step), point], f"{node.name}_signed_{number}")
        return Bytes(name, x.step, 128)

    def reads_bytes(self, x: Value) -> bool:
        return isinstance(x, Bytes)

    def rewritten(self, node: Node, x: Value, convolution: Convolution) -> tuple[Value, Convolution]:
        """Replace the shapes that OpenVINO's kernels get wrong or cannot run. Found by trying."""
        image, one_column = image_size_of(node.all_input_nodes[0]), image_size_of(node)[1] == 1
        if sees_only_padding(convolution, image):
            above, left, below, right = convolution.pads
            x = self.padded(x, [(0, 0), (0, 0), (above, below), (left, right)], f"{node.name}_padded")
            convolution = without_padding(convolution)
        if convolution.is_depthwise:
            return x, convolution
        convolution = with_groups_of_four(convolution)
        if convolution.channels == 1 and convolution.kernel != (1, 1) and x.name != INPUT:
            x = replace(x, name=self.emit("Concat", [x.name, x.name], f"{node.name}_twice", axis=1))
            convolution = with_second_channel(convolution)
        if convolution.groups > 1 and convolution.kernel[1] == 1 and one_column:
            convolution = with_wider_kernel(convolution)
        return x, convolution


class _SignedBytes(Writer):
    """Values are float32 between a DequantizeLinear and the next QuantizeLinear."""

    def pixels(self, node: Node, pixels: Pixels) -> Value:
        offset, step = int(pixels.offset.item()), pixels.step.item()
        whole = self.emit("Cast", [INPUT], f"{node.name}_cast", to=TensorProto.FLOAT)
        centred = self.emit("Sub", [whole, self.constant("offset", np.float32(offset))], f"{node.name}_centred")
        x = self.emit("Mul", [centred, self.step(step)], node.name)
        return self._through_bytes(x, step) if offset == 128 else Floats(x)

    def quantised(self, node: Node, quantiser: Quantise, x: Value) -> Value:
        name = self.floats(x)
        if quantiser.high > _LARGEST_INT8:
            return self._rounded(node, quantiser, name)
        if not quantiser.signed and quantiser.high < _LARGEST_INT8:
            least, largest = self.constant("zero", np.float32(0)), self.step(quantiser.high * quantiser.step.item())
            name = self.emit("Clip", [name, least, largest], f"{node.name}_clip")
        elif not quantiser.signed:
            name = self.emit("Relu", [name], f"{node.name}_relu")
        return self._through_bytes(name, quantiser.step.item())

    def _rounded(self, node: Node, quantiser: Quantise, name: str) -> Floats:
        """Round in float32 the values that an int8 cannot hold."""
        step, bounds = quantiser.step.item(), (quantiser.low, quantiser.high)
        scaled = self.emit("Mul", [name, self.step(1 / step)], f"{node.name}_scaled")
        limits = [self.constant(f"bound_{bound}", np.float32(bound)) for bound in bounds]
        clipped = self.emit("Clip", [scaled, *limits], f"{node.name}_clip")  # before rounding, so that only small numbers are rounded
        rounded = self.emit("Round", [clipped], f"{node.name}_rounded")
        return Floats(self.emit("Mul", [rounded, self.step(step)], node.name))

    def _through_bytes(self, name: str, step: float) -> Floats:
        """Quantise to int8 and back. An int8 saturates at 127 by itself."""
        point = self.constant("zero_point", np.int8(0))
        codes = self.emit("QuantizeLinear", [name, self.step(step), point], f"{name}_byte")
        return Floats(self.emit("DequantizeLinear", [codes, self.step(step), point], f"{name}_grid"), from_bytes=True)

    def bias(self, name: str, integers: Array, unit: Array) -> str:
        return self.constant(f"{name}.bias", integers * unit)

    def padding_value(self, x: Value) -> str:
        return self.constant("zero", np.float32(0))

    def alike(self, node: Node, values: Sequence[Value]) -> Sequence[Value]:
        return values

    def reads_bytes(self, x: Value) -> bool:
        return isinstance(x, Floats) and x.from_bytes

    def rewritten(self, node: Node, x: Value, convolution: Convolution) -> tuple[Value, Convolution]:
        return x, convolution
