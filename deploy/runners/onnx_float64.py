"""Evaluates an ONNX file in float64: the function that it defines, without a runtime's rounding.

Takes a model. ONNX's reference evaluator runs it, with faster NumPy products for its slow parts.
Knows no runtime.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import RuntimeContextError, RuntimeTypeError
from onnx.reference.ops.op_average_pool import AveragePool_19 as ReferenceAveragePool
from onnx.reference.ops.op_conv import Conv as ReferenceConv
from onnx.reference.ops.op_max_pool import MaxPool as ReferenceMaxPool

from deploy.runners.onnx_file import shapes_of
from deploy.runners.runner import Array, Runner, TensorSpec
from export.errors import UsageError

_NARROW = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_CASTS = ("to", "dtype")


class OnnxFloat64Runner(Runner):
    """One model, in which every float is a float64."""

    def __init__(self, model: onnx.ModelProto, name: str = "float64 evaluation") -> None:
        self.name = name
        self.inputs, outputs = shapes_of(model)
        self.outputs = tuple(_wide(spec) for spec in outputs)
        try:
            self._evaluator: ReferenceEvaluator | None = ReferenceEvaluator(_widened(model), new_ops=[Conv, MaxPool, AveragePool])
        except (NotImplementedError, RuntimeContextError) as error:
            raise no_float64(error) from error

    @property
    def facts(self) -> Mapping[str, object]:
        return {"runtime": "onnx.reference", "version": onnx.__version__, "device": "cpu", "precision": "float64"}

    def close(self) -> None:
        self._evaluator = None

    def _run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        if self._evaluator is None:
            raise RuntimeError(f"{self.name} is closed")
        try:
            with np.errstate(all="ignore"):
                found = self._evaluator.run(None, {name: _wide_array(rows) for name, rows in batch.items()}, intermediate=True)
        except (RuntimeContextError, RuntimeTypeError, NotImplementedError, TypeError) as error:
            raise no_float64(error) from error
        assert isinstance(found, dict)
        for name, value in found.items():
            if isinstance(value, np.ndarray | np.generic) and _is_narrow(np.asarray(value)):
                raise no_float64(f"{name} is computed in {value.dtype.name}")
        return {spec.name: np.array(found[spec.name]) for spec in self.outputs}


class NoFloat64Error(UsageError):
    """A model that has no evaluation in float64 here."""


def no_float64(reason: object) -> NoFloat64Error:
    """The error in one line, with what a user can do."""
    text = " ".join(str(reason).split())[:160]
    return NoFloat64Error(f"the reference has no float64 evaluation ({text}), so no budget can be derived; state --max-ulp or --atol and --rtol")


def _widened(model: onnx.ModelProto) -> onnx.ModelProto:
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    _widen(wide.graph)
    return wide


def _widen(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _NARROW:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in graph.node:
        for attribute in list(node.attribute):
            _widen_attribute(node, attribute)


def _widen_attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> None:
    if attribute.name in _CASTS and attribute.i in _NARROW:
        attribute.i = TensorProto.DOUBLE
    elif attribute.name in ("value_float", "value_floats"):
        values = np.float64(attribute.f) if attribute.name == "value_float" else np.array(attribute.floats, np.float64)
        node.attribute.remove(attribute)
        node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(np.asarray(values))))
    elif attribute.type == onnx.AttributeProto.TENSOR:
        _widen_tensor(attribute.t)
    for inner in (attribute.g, *attribute.graphs):
        _widen(inner)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _NARROW:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def _wide(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, "float64" if spec.dtype in ("float16", "bfloat16", "float32") else spec.dtype, spec.shape)


def _wide_array(rows: Array) -> Array:
    return rows.astype(np.float64) if _is_narrow(rows) else np.ascontiguousarray(rows)


def _is_narrow(rows: Array) -> bool:
    return rows.dtype.name in ("float16", "bfloat16", "float32")


class Conv(ReferenceConv):
    """Convolution as one product of matrices per place of the kernel. ONNX's own is slow.

    It is used where the padding is stated.
    """

    def _run(self, X, W, B=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, pads=None, strides=None):  # type: ignore[no-untyped-def] # noqa: N803
        if not _is_stated(auto_pad):
            return super()._run(X, W, B, auto_pad, dilations, group, kernel_shape, pads, strides)  # type: ignore[no-untyped-call]
        window = _Window(_padded(X, pads, 0.0), W.shape[2:], strides, dilations)
        total = _convolved(window, W, group or 1)
        return (total if B is None else total + B.reshape(1, -1, *[1] * (X.ndim - 2)),)


class MaxPool(ReferenceMaxPool):
    """Max pooling, one place of the kernel after another.

    It is used where only the values are requested and the padding is stated.
    """

    def _run(  # type: ignore[no-untyped-def,override]
        self, x, auto_pad=None, ceil_mode=None, dilations=None, kernel_shape=None, pads=None, storage_order=None, strides=None
    ):
        if not _is_stated(auto_pad) or ceil_mode or len(self.onnx_node.output) != 1 or x.dtype != np.float64:
            return super()._run(  # type: ignore[no-untyped-call]
                x,
                auto_pad=auto_pad,
                ceil_mode=ceil_mode,
                dilations=dilations,
                kernel_shape=kernel_shape,
                pads=pads,
                storage_order=storage_order,
                strides=strides,
            )
        window = _Window(_padded(x, pads, -np.inf), kernel_shape, strides, dilations)
        return (reduce(np.maximum, window.shifted()).copy(),)


class AveragePool(ReferenceAveragePool):
    """Average pooling, one place of the kernel after another.

    It is used where padding is either absent or counted.
    """

    def _run(  # type: ignore[no-untyped-def,override]
        self, x, auto_pad=None, ceil_mode=None, dilations=None, kernel_shape=None, pads=None, strides=None, count_include_pad=None
    ):
        if not _is_stated(auto_pad) or ceil_mode or (any(pads or ()) and not count_include_pad):
            return super()._run(  # type: ignore[no-untyped-call]
                x,
                auto_pad=auto_pad,
                ceil_mode=ceil_mode,
                dilations=dilations,
                kernel_shape=kernel_shape,
                pads=pads,
                strides=strides,
                count_include_pad=count_include_pad,
            )
        window = _Window(_padded(x, pads, 0.0), kernel_shape, strides, dilations)
        return (reduce(np.add, window.shifted()) / math.prod(kernel_shape),)


class _Window:
    """What a kernel sees of padded images, one place of the kernel after another.

    There are as many views as places, each of the size of the output.
    """

    def __init__(self, values: Array, kernel: Sequence[int], strides: Sequence[int] | None, dilations: Sequence[int] | None) -> None:
        axes = len(kernel)
        self._values, self._kernel = values, tuple(kernel)
        self._strides, self._dilations = strides or [1] * axes, dilations or [1] * axes
        reaches = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, self._dilations, strict=True)]
        self.sizes = tuple((length - reach) // stride + 1 for length, reach, stride in zip(values.shape[2:], reaches, self._strides, strict=True))

    def places(self) -> Iterator[tuple[int, ...]]:
        """The places of the kernel."""
        yield from np.ndindex(self._kernel)

    def at(self, place: tuple[int, ...]) -> Array:
        """What this place of the kernel covers, for every place of the output."""
        axes = zip(place, self._dilations, self._strides, self.sizes, strict=True)
        return self._values[:, :, *(slice(at * dilation, at * dilation + (size - 1) * stride + 1, stride) for at, dilation, stride, size in axes)]

    def shifted(self) -> Iterator[Array]:
        """The views of all places."""
        return map(self.at, self.places())


def _convolved(window: _Window, weights: Array, groups: int) -> Array:
    """The sum over the places of the kernel. One channel per group needs no product of matrices."""
    filters, channels = weights.shape[:2]
    by_group = weights.reshape(groups, filters // groups, channels, *weights.shape[2:])
    total: Array = np.zeros(())
    for place in window.places():
        seen, weight = window.at(place), by_group[(slice(None),) * 3 + place]
        if channels == 1:
            found = seen[:, :, None] * weight.reshape(1, groups, filters // groups, *[1] * len(place))
        else:
            found = weight @ seen.reshape(len(seen), groups, channels, -1)
        total = total + found
    return total.reshape(len(total), filters, *window.sizes)


def _is_stated(auto_pad: str | None) -> bool:
    return auto_pad in (None, "", "NOTSET")


def _padded(values: Array, pads: Sequence[int] | None, filling: float) -> Array:
    """Pad the images. ONNX lists the starts of all axes first, then the ends."""
    if not any(pads or ()):
        return values
    half = len(pads or ()) // 2
    widths = [(0, 0), (0, 0), *zip((pads or ())[:half], (pads or ())[half:], strict=True)]
    return np.pad(values, widths, constant_values=filling)
