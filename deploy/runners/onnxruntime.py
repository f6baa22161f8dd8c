"""Runs an ONNX file in ONNX Runtime, on the requested provider and on no other.

Takes a path. The file must need no other file (`onnx_file`). Knows no bundle.
"""

import contextlib
import ctypes
import importlib
import math
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from deploy.runners.onnx_file import checked_bytes, squaring_model
from deploy.runners.runner import Array, Finding, Runner, TensorSpec
from export.errors import DamagedError, NotHereError, UsageError

ProviderName = Literal["onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-tensorrt"]
Optimisation = Literal["none", "basic", "extended", "all"]

_LEVELS: dict[Optimisation, str] = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_BFLOAT16, _ONNX_BFLOAT16 = "bfloat16", 16
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    **{f"tensor({name})": name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
    "tensor(bool)": "bool",
}


_NO_TENSORRT = "install TensorRT libraries"
"""What ONNX Runtime says if its TensorRT provider finds no libraries.

Any other provider that cannot load is dropped in silence.
"""
OF_SHAPES = frozenset(
    {
        *("Add", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Greater", "Identity", "Less", "Max"),
        *("Min", "Mod", "Mul", "Not", "Range", "ReduceProd", "Reshape", "Shape", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
    }
)
"""What ONNX Runtime runs on the CPU beside any other provider: it computes sizes, not values."""


@dataclass(frozen=True)
class _Provider:
    name: str
    device: str
    options: Mapping[str, str]
    remedy: str
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that its libraries must read, because there is no option for them."""


_PROVIDERS: dict[ProviderName, _Provider] = {
    "onnxruntime-cpu": _Provider("CPUExecutionProvider", "cpu", {}, "reinstall onnxruntime-gpu"),
    "onnxruntime-cuda": _Provider(
        "CUDAExecutionProvider",
        "cuda",
        # One algorithm for all: a search by timing picks a different one each time, and any
        # search may pick Winograd or FFT, whose sums are not exact.
        {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"},
        "it needs an NVIDIA GPU with its driver, onnxruntime-gpu, and CUDA 13 with cuDNN 9, which torch's wheels bring",
    ),
    "onnxruntime-tensorrt": _Provider(
        "TensorrtExecutionProvider",
        "cuda",
        # Nothing is kept from one session to the next: otherwise an engine that nobody verified
        # would be used unnoticed.
        {"trt_engine_cache_enable": "0", "trt_timing_cache_enable": "0", "trt_fp16_enable": "0", "trt_bf16_enable": "0", "trt_int8_enable": "0"},
        "it needs what onnxruntime-cuda needs, and the libraries of the TensorRT that this ONNX Runtime was built for (10 for 1.31)",
        {"NVIDIA_TF32_OVERRIDE": "0"},
    ),
}


class OnnxRuntimeRunner(Runner):
    """One session on one file."""

    def __init__(
        self,
        path: Path,
        provider: ProviderName = "onnxruntime-cpu",
        *,
        optimisation: Optimisation = "all",
        threads: int = 0,
    ) -> None:
        self.name = f"{provider} ({optimisation})"
        self._provider = _PROVIDERS[provider]
        self._optimisation = optimisation
        self._threads = threads
        runtime = _onnxruntime()
        self._version: str = runtime.__version__
        self._session = self._opened(runtime, path)
        self._present: list[str] = self._session.get_providers()
        self._nodes = _operations_by_provider(self._session)
        self._refuse_fallback()
        self.inputs = tuple(_spec(node, path) for node in self._session.get_inputs())
        self.outputs = tuple(_spec(node, path) for node in self._session.get_outputs())

    @property
    def facts(self) -> Mapping[str, object]:
        return {
            "runtime": "onnxruntime",
            "version": self._version,
            "device": self._provider.device,
            "providers": self._present,
            "nodes": self._nodes,
            "flags": {
                "graph_optimization_level": _LEVELS[self._optimisation],
                "use_deterministic_compute": True,
                **self._provider.options,
                **self._provider.environment,
            },
            "threads": self._threads or "all cores",
        }

    def close(self) -> None:
        self._session = None

    def _run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        if self._session is None:
            raise RuntimeError(f"{self.name} is closed")
        names = [spec.name for spec in self.outputs]
        if any(spec.dtype == _BFLOAT16 for spec in (*self.inputs, *self.outputs)):
            given = {name: _value_of(rows) for name, rows in batch.items()}
            return dict(zip(names, map(_array_of, self._session.run_with_ort_values(names, given)), strict=True))
        return dict(zip(names, self._session.run(names, dict(batch)), strict=True))

    def _opened(self, runtime: Any, path: Path) -> Any:
        wanted = self._provider
        self._refuse_unless_in(runtime.get_available_providers())
        if wanted.device == "cuda":
            _load_cuda_libraries(runtime)
        os.environ.update(wanted.environment)
        try:
            session = _session(runtime, path, self._session_options(runtime), (wanted.name, dict(wanted.options)))
        except RuntimeError as error:
            if _NO_TENSORRT not in str(error):
                raise
            raise NotHereError(f"{self.name} was requested, but the libraries of TensorRT are not available; {wanted.remedy}") from error
        self._refuse_unless_in(session.get_providers())
        session.disable_fallback()
        return session

    def _refuse_fallback(self) -> None:
        """Refuse a GPU session that computes anything but shapes on the CPU."""
        for provider, operations in self._nodes.items():
            fell_back = sorted(set(operations) - OF_SHAPES)
            if provider != self._provider.name and fell_back:
                raise NotHereError(f"{self.name} was requested, but {', '.join(fell_back)} would run on {provider}; {self._provider.remedy}")

    def _session_options(self, runtime: Any) -> Any:
        options = runtime.SessionOptions()
        options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, _LEVELS[self._optimisation])
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 4  # failures are raised; the log would only repeat them
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if self._provider.device == "cuda":  # otherwise it turns weights and biases into integers that GPU kernels do not take
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        return options

    def _refuse_unless_in(self, present: list[str]) -> None:
        if self._provider.name not in present:
            raise NotHereError(f"{self.name} was requested, but ONNX Runtime has only {', '.join(present)} here; {self._provider.remedy}")


def _onnxruntime() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise NotHereError(f"ONNX Runtime cannot be imported ({error}); pip install onnxruntime-gpu") from error


def _load_cuda_libraries(runtime: Any) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # it prints the libraries that it does not find
        runtime.preload_dlls()


def _session(runtime: Any, path: Path, options: Any, provider: tuple[str, dict[str, str]]) -> Any:
    content = checked_bytes(path)
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    try:
        return runtime.InferenceSession(content, options, providers=[provider], enable_fallback=0)
    except (state.InvalidProtobuf, state.InvalidGraph, state.InvalidArgument) as error:
        raise DamagedError(f"{path} is not a model for ONNX Runtime {runtime.__version__}: {_line(error)}") from error


def _operations_by_provider(session: Any) -> dict[str, dict[str, int]]:
    """The provider of every node, as counts of operations."""
    found: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return {provider: dict(sorted(counts.items())) for provider, counts in sorted(found.items())}


def _value_of(rows: Array) -> Any:
    """The value for ONNX Runtime. NumPy has no bfloat16 of its own, so it is passed as bits."""
    values = _onnxruntime().OrtValue
    rows = np.ascontiguousarray(rows)
    if rows.dtype.name == _BFLOAT16:
        return values.ortvalue_from_numpy_with_onnx_type(rows.view(np.uint16), _ONNX_BFLOAT16)
    return values.ortvalue_from_numpy(rows)


def _array_of(value: Any) -> Array:
    if value.element_type() != _ONNX_BFLOAT16:
        array: Array = value.numpy()
        return array
    bits = (ctypes.c_uint16 * math.prod(value.shape())).from_address(value.data_ptr())
    return np.frombuffer(bits, np.uint16).copy().view(ml_dtypes.bfloat16).reshape(value.shape())


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _spec(node: Any, path: Path) -> TensorSpec:
    if node.type not in _DTYPES:
        raise UsageError(f"{path}: {node.name} is a {node.type}, expected one of {', '.join(_DTYPES)}")
    return TensorSpec(node.name, _DTYPES[node.type], tuple(d if isinstance(d, int | str) else None for d in node.shape))


def probe(provider: ProviderName) -> Finding:
    """Open a session on a tiny model, see which provider it got, and let it compute."""
    runtime, name = _onnxruntime(), _PROVIDERS[provider].name
    if name not in runtime.get_available_providers():
        return Finding(False, "not part of this ONNX Runtime")
    if _PROVIDERS[provider].device == "cuda":
        runtime.preload_dlls()
    session = runtime.InferenceSession(squaring_model(), providers=[name])
    got = session.get_providers()
    (square,) = session.run(None, {"x": np.full((2, 2), 3, np.float32)})
    right = bool((square == 18).all())
    here = got[0] == name and right
    detail = "loads and computes" if here else "listed, but does not load" if right else "computes wrongly"
    return Finding(here, detail, {"session_providers": got})
