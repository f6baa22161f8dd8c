"""Evaluates an ONNX file in float64: the function that the file means, apart from the rounding of any runtime.

Takes a model. ONNX's own reference evaluator runs it, with PyTorch's float64 kernels for what is slow there. Knows no runtime.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import RuntimeContextError, RuntimeTypeError
from onnx.reference.ops.op_average_pool import AveragePool_19 as ReferenceAveragePool
from onnx.reference.ops.op_conv import Conv as ReferenceConv
from onnx.reference.ops.op_max_pool import MaxPool as ReferenceMaxPool
from torch.nn import functional as F

from deploy.runners.base import Array, Runner, TensorSpec
from deploy.runners.onnx_file import shapes_of
from export.errors import UsageError

_NARROW = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_CASTS = ("to", "dtype")
_CONVOLUTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOL: dict[int, Callable[..., torch.Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class OnnxFloat64Runner(Runner):
    """One model; whatever in it is a float is a float64."""

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
            with np.errstate(all="ignore"), torch.inference_mode():
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
    """In one line, with what a user can do."""
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
    """Convolution by PyTorch, where the padding is stated."""

    def _run(self, X, W, B=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, pads=None, strides=None):  # type: ignore[no-untyped-def] # noqa: N803
        if not _is_stated(auto_pad) or X.ndim - 2 not in _CONVOLUTION:
            return super()._run(X, W, B, auto_pad, dilations, group, kernel_shape, pads, strides)  # type: ignore[no-untyped-call]
        bias = None if B is None else _tensor(B)
        convolution = _CONVOLUTION[X.ndim - 2]
        return (convolution(_padded(X, pads, 0.0), _tensor(W), bias, strides or 1, 0, dilations or 1, group or 1).numpy(),)


class MaxPool(ReferenceMaxPool):
    """Max pooling by PyTorch, where only the values are asked for and the padding is stated."""

    def _run(  # type: ignore[no-untyped-def,override]
        self, x, auto_pad=None, ceil_mode=None, dilations=None, kernel_shape=None, pads=None, storage_order=None, strides=None
    ):
        plain = _is_stated(auto_pad) and not ceil_mode and len(self.onnx_node.output) == 1 and x.dtype == np.float64
        if not plain or len(kernel_shape) not in _MAX_POOL:
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
        pool = _MAX_POOL[len(kernel_shape)]
        return (pool(_padded(x, pads, -np.inf), kernel_shape, strides or 1, 0, dilations or 1).numpy(),)


class AveragePool(ReferenceAveragePool):
    """Average pooling by PyTorch, where padding is either absent or counted."""

    def _run(  # type: ignore[no-untyped-def,override]
        self, x, auto_pad=None, ceil_mode=None, dilations=None, kernel_shape=None, pads=None, strides=None, count_include_pad=None
    ):
        plain = _is_stated(auto_pad) and not ceil_mode and (count_include_pad or not any(pads or ())) and set(dilations or (1,)) == {1}
        if not plain or len(kernel_shape) not in _AVERAGE_POOL:
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
        pool = _AVERAGE_POOL[len(kernel_shape)]
        return (pool(_padded(x, pads, 0.0), kernel_shape, strides or 1).numpy(),)


def _is_stated(auto_pad: str | None) -> bool:
    return auto_pad in (None, "", "NOTSET")


def _tensor(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(values))


def _padded(values: Array, pads: Sequence[int] | None, filling: float) -> torch.Tensor:
    """ONNX lists the starts of all axes and then their ends, PyTorch both of each axis from the last one on."""
    tensor = _tensor(values)
    if not any(pads or ()):
        return tensor
    return F.pad(tensor, list(_by_axis(pads or ())), value=filling)


def _by_axis(pads: Sequence[int]) -> Iterator[int]:
    half = len(pads) // 2
    for axis in reversed(range(half)):
        yield from (pads[axis], pads[half + axis])
