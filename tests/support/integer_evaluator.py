"""Evaluates an exact ONNX file in 64-bit integers, in any rounding mode, without some quantisers.

A value is integers times powers of two. There is no floating-point arithmetic before the last line.
If the certificate of a file holds, the modes of rounding cannot differ.

A runtime may leave out the signed quantiser of a branch in front of a join. Then it adds before it
rounds and clips. The result cannot differ if the other side of the join is within 0..127 and the
result is clipped to 0..127, as for a join behind a rectified one: what was clipped above stays at
127, what was clipped below stays at 0. It can differ if the result is signed (pre-activation
networks) or the other side is (a projection on the shortcut), and a sum does exceed 8 bits.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

Integers = NDArray[np.int64]
Rounding = Literal["half to even", "half away from zero", "half up"]
ROUNDINGS: tuple[Rounding, ...] = ("half to even", "half away from zero", "half up")


@dataclass(frozen=True)
class Scaled:
    """Integers, and the exponents of the powers of two that they are multiplied by.

    The shape of the exponents broadcasts to that of the integers.
    """

    integers: Integers
    exponents: Integers

    def over(self, exponents: Integers) -> Integers:
        """The integers that belong to smaller exponents."""
        shift = self.exponents - exponents
        assert (shift >= 0).all()
        assert (np.abs(self.integers) < 2 ** (62 - np.minimum(shift, 62))).all(), "more than 62 bits"
        return self.integers << shift


Branch = tuple[str, int]
"""An addition, and which of its inputs."""


def evaluate(content: bytes, image: NDArray[np.uint8], rounding: Rounding = "half to even", without: Collection[Branch] = ()) -> NDArray[np.float32]:
    """The logits. `without` names branches that are added before their quantiser."""
    graph = onnx.load_model_from_string(content).graph
    values: dict[str, Any] = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    values[graph.input[0].name] = image.astype(np.int64)
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        inputs = [values[name] if name else None for name in node.input]
        for place in range(len(inputs)):
            if (node.output[0], place) in without:
                inputs[place] = values[_in_front_of_quantiser(makers, node.input[place])]
        results = OPERATIONS[node.op_type](rounding, node, inputs)
        values.update(zip(node.output, results if isinstance(results, list) else [results], strict=True))
    return _as_floats(values[graph.output[0].name])


def branches_of_joins(content: bytes) -> list[Branch]:
    """The branches of joins that a runtime may fuse.

    They are inputs of additions that come from a convolution through only a signed quantiser.
    """
    graph = onnx.load_model_from_string(content).graph
    makers = {name: node for node in graph.node for name in node.output}
    places = [(node, place) for node in graph.node if node.op_type == "Add" for place in (0, 1)]
    sums = [(node, place, makers.get(_in_front_of_quantiser(makers, node.input[place]))) for node, place in places]
    return [(node.output[0], place) for node, place, maker in sums if maker is not None and maker.op_type == "Conv"]


def _in_front_of_quantiser(makers: dict[str, NodeProto], name: str) -> str:
    """What a dequantised value was before quantisation. Empty if something comes in between."""
    quantiser = makers.get(makers[name].input[0])
    return str(quantiser.input[0]) if quantiser is not None and quantiser.op_type == "QuantizeLinear" else ""


Inputs = Sequence[Any]


def _as_floats(value: Scaled) -> NDArray[np.float32]:
    exact = np.ldexp(value.integers.astype(np.float64), value.exponents)
    assert np.array_equal(exact, exact.astype(np.float32)), "logits that float32 does not hold"
    return exact.astype(np.float32)


def _exponent(step: Any) -> Integers:
    mantissa, exponent = np.frexp(np.asarray(step, np.float64))
    assert (mantissa == 0.5).all(), "a step that is no power of two"
    return np.asarray(exponent, np.int64) - 1


def _scaled(numbers: Any) -> Scaled:
    """Any float32 numbers, exactly."""
    mantissa, exponents = np.frexp(np.asarray(numbers, np.float64))
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    lowest = min((int(e) - 53 + int(m & -m).bit_length() - 1 for m, e in zip(whole.ravel(), exponents.ravel(), strict=True) if m), default=0)
    return Scaled(np.ldexp(np.asarray(numbers, np.float64), -lowest).astype(np.int64), np.array(lowest))


def _sum(one: Scaled, other: Scaled) -> Scaled:
    exponents = np.minimum(one.exponents, other.exponents)
    return Scaled(one.over(exponents) + other.over(exponents), exponents)


def rounded(value: Scaled, exponent: Integers, rounding: Rounding) -> Integers:
    """The nearest multiples of 2^exponent."""
    shift = np.broadcast_to(np.clip(exponent - value.exponents, 0, 60), value.integers.shape)
    whole = value.integers >> shift
    rest, half = value.integers - (whole << shift), np.where(shift > 0, 1 << np.maximum(shift - 1, 0), 1)
    upwards = {"half to even": whole & 1, "half away from zero": (value.integers > 0).astype(np.int64), "half up": np.ones_like(whole)}
    finer = Scaled(whole + (rest > half) + (rest == half) * upwards[rounding], np.maximum(value.exponents, exponent))
    return finer.over(np.minimum(finer.exponents, exponent))


def _quantise(rounding: Rounding, _node: NodeProto, inputs: Inputs) -> Integers:
    x, step, zero_point = inputs
    limits = np.iinfo(zero_point.dtype)
    return np.clip(rounded(x, _exponent(step), rounding) + int(zero_point), limits.min, limits.max)


def _round(rounding: Rounding, _node: NodeProto, inputs: Inputs) -> Scaled:
    return Scaled(rounded(inputs[0], np.array(0), rounding), np.array(0))


def _dequantise(_rounding: Rounding, _node: NodeProto, inputs: Inputs) -> Scaled:
    codes, step, zero_point = [*inputs, None][:3]
    per_filter = (-1, *[1] * (codes.ndim - 1)) if np.size(step) > 1 else ()
    offset = 0 if zero_point is None else zero_point.astype(np.int64).reshape(per_filter)
    return Scaled(codes.astype(np.int64) - offset, _exponent(step).reshape(per_filter))


def _convolve(_rounding: Rounding, node: NodeProto, inputs: Inputs) -> Scaled:
    x, weight, bias = inputs[0], _parameter(inputs[1]), _parameter(inputs[2])
    form = _Window.of(node, weight.integers.shape[2:])
    windows = form.over(x.integers, 0)
    number, channels, height, width = windows.shape[:4]
    groups = form.groups
    columns = windows.transpose(0, 1, 4, 5, 2, 3).reshape(number, groups, -1, height * width)
    filters = weight.integers.reshape(groups, len(weight.integers) // groups, -1)
    assert channels * np.prod(windows.shape[4:]) == groups * filters.shape[2]
    sums = np.matmul(filters, columns).reshape(number, -1, height, width)
    return _with_bias(sums, x.exponents, weight, bias, (1, -1, 1, 1))


def _multiply(_rounding: Rounding, _node: NodeProto, inputs: Inputs) -> Scaled:
    x, weight, bias = inputs[0], _parameter(inputs[1]), _parameter(inputs[2])
    return _with_bias(np.matmul(x.integers, weight.integers.T), x.exponents, weight, bias, (1, -1))


def _with_bias(sums: Integers, exponents: Integers, weight: Scaled, bias: Scaled, shape: tuple[int, ...]) -> Scaled:
    assert exponents.size == 1, "inputs of several steps"
    of_weights = weight.exponents.reshape(shape) if weight.exponents.size > 1 else weight.exponents.reshape(())
    of_bias = bias.exponents.reshape(shape) if bias.exponents.size > 1 else bias.exponents.reshape(())
    return _sum(Scaled(sums, exponents.reshape(()) + of_weights), Scaled(np.broadcast_to(bias.integers.reshape(shape), sums.shape), of_bias))


def _parameter(value: Any) -> Scaled:
    return value if isinstance(value, Scaled) else _scaled(value)


@dataclass(frozen=True)
class _Window:
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int
    ceil: bool

    @classmethod
    def of(cls, node: NodeProto, kernel: Sequence[int]) -> "_Window":
        found = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        return cls(
            tuple(kernel),
            tuple(found.get("strides", (1, 1))),
            tuple(found.get("dilations", (1, 1))),
            tuple(found.get("pads", (0, 0, 0, 0))),
            found.get("group", 1),
            bool(found.get("ceil_mode", 0)),
        )

    def over(self, x: Integers, padding: int) -> Integers:
        """N x C x rows x columns x kernel."""
        sizes = [x.shape[2 + axis] + self.pads[axis] + self.pads[2 + axis] for axis in (0, 1)]
        reach = [self.dilations[axis] * (self.kernel[axis] - 1) + 1 for axis in (0, 1)]
        more = [self._more(axis, x.shape[2 + axis], sizes[axis] - reach[axis]) for axis in (0, 1)]
        pads = [(0, 0), (0, 0), *((self.pads[axis], self.pads[2 + axis] + more[axis]) for axis in (0, 1))]
        whole = np.pad(x, pads, constant_values=padding)
        windows = np.lib.stride_tricks.sliding_window_view(whole, reach, axis=(2, 3))
        return windows[:, :, :: self.strides[0], :: self.strides[1], :: self.dilations[0], :: self.dilations[1]]

    def _more(self, axis: int, size: int, left: int) -> int:
        """How far the last window reaches beyond the padding if sizes are rounded up.

        The window must begin within the image or its left padding.
        """
        stride = self.strides[axis]
        more = -left % stride if self.ceil else 0
        return 0 if left + more >= size + self.pads[axis] else more


def _max_pool(_rounding: Rounding, node: NodeProto, inputs: Inputs) -> Integers | Scaled:
    (kernel,) = (helper.get_attribute_value(each) for each in node.attribute if each.name == "kernel_shape")
    form = _Window.of(node, kernel)
    return _on_integers(lambda x: form.over(x, np.iinfo(np.int64).min).max((4, 5)), inputs[0])


def _on_integers(act: Callable[[Integers], Integers], x: Integers | Scaled) -> Any:
    if isinstance(x, Scaled):
        assert x.exponents.size == 1
        return Scaled(act(x.integers), x.exponents.reshape(()))
    return act(x)


def _pad(_rounding: Rounding, _node: NodeProto, inputs: Inputs) -> Any:
    x, pads, value, axes = [*inputs, None][:4]
    half = len(pads) // 2
    assert axes is None or axes.tolist() == list(range(half))
    widths = list(zip(pads[:half], pads[half:], strict=True))
    assert not isinstance(x, Scaled) or value == 0
    return _on_integers(lambda integers: np.pad(integers, widths, constant_values=int(value)), x)


def _concatenate(_rounding: Rounding, node: NodeProto, inputs: Inputs) -> Any:
    (axis,) = (helper.get_attribute_value(each) for each in node.attribute)
    if not isinstance(inputs[0], Scaled):
        return np.concatenate(inputs, axis)
    exponents = np.min([x.exponents for x in inputs])
    return Scaled(np.concatenate([x.over(exponents) for x in inputs], axis), exponents)


def _split(_rounding: Rounding, node: NodeProto, inputs: Inputs) -> list[Any]:
    (axis,) = (helper.get_attribute_value(each) for each in node.attribute)
    x, sizes = inputs
    parts = np.split(x.integers if isinstance(x, Scaled) else x, np.cumsum(sizes)[:-1], axis)
    return [Scaled(part, x.exponents.reshape(())) for part in parts] if isinstance(x, Scaled) else list(parts)


def _reduce(_rounding: Rounding, node: NodeProto, inputs: Inputs) -> Scaled:
    x, axes = inputs
    sums = x.integers.sum(tuple(axes), keepdims=True)
    count = x.integers.size // sums.size
    return Scaled(sums, x.exponents.reshape(()) - (_exponent(count) if node.op_type == "ReduceMean" else 0))


def _clip(_rounding: Rounding, _node: NodeProto, inputs: Inputs) -> Any:
    x, low, high = [*inputs, None][:3]
    if not isinstance(x, Scaled):
        return np.clip(x, None if low is None else int(low), None if high is None else int(high))
    for bound, choose in ((low, np.maximum), (high, np.minimum)):
        if bound is not None:
            limit = _scaled(bound)
            exponents = np.minimum(x.exponents, limit.exponents)
            x = Scaled(choose(x.over(exponents), limit.over(exponents)), exponents)
    return x


def _subtract(_rounding: Rounding, _node: NodeProto, inputs: Inputs) -> Scaled:
    return _sum(inputs[0], _scaled(-inputs[1]))


def _transpose(_rounding: Rounding, node: NodeProto, inputs: Inputs) -> Any:
    (order,) = (helper.get_attribute_value(each) for each in node.attribute)
    return _on_integers(lambda x: x.transpose(order), inputs[0])


def _scale(_rounding: Rounding, _node: NodeProto, inputs: Inputs) -> Scaled:
    return Scaled(inputs[0].integers, inputs[0].exponents + _exponent(inputs[1]))


def _reshape(_rounding: Rounding, _node: NodeProto, inputs: Inputs) -> Any:
    return _on_integers(lambda x: x.reshape(inputs[1]), inputs[0])


OPERATIONS: dict[str, Callable[[Rounding, NodeProto, Inputs], Any]] = {
    "Add": lambda _rounding, _node, inputs: _sum(*inputs),
    "Cast": lambda _rounding, _node, inputs: Scaled(inputs[0], np.array(0)),
    "Clip": _clip,
    "Concat": _concatenate,
    "Conv": _convolve,
    "DequantizeLinear": _dequantise,
    "Gemm": _multiply,
    "Identity": lambda _rounding, _node, inputs: inputs[0],
    "MaxPool": _max_pool,
    "Mul": _scale,
    "Pad": _pad,
    "QuantizeLinear": _quantise,
    "ReduceMean": _reduce,
    "ReduceSum": _reduce,
    "Relu": lambda _rounding, _node, inputs: Scaled(np.maximum(inputs[0].integers, 0), inputs[0].exponents),
    "Reshape": _reshape,
    "Round": _round,
    "Split": _split,
    "Sub": _subtract,
    "Transpose": _transpose,
}
