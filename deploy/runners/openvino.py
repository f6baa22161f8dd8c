"""Runs an ONNX file in OpenVINO on the CPU, in float32 unless the file says integers.

Takes a path. The file must need no other file (`onnx_file`). Knows no bundle.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runners.onnx_file import checked_bytes, shapes_of, squaring_model
from deploy.runners.runner import Array, Finding, Runner
from export.errors import DamagedError, NotHereError

NAME = "openvino-cpu"
_DEVICE = "CPU"
_HINTS = {
    "INFERENCE_PRECISION_HINT": "f32",  # otherwise a processor with bfloat16 or float16 uses it
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # otherwise values are rounded to 8 bits in front of int8 matrices
    "NUM_STREAMS": 1,
}


class OpenVinoRunner(Runner):
    """One compiled model of one file."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        self.name = NAME
        runtime = _openvino()
        self._version: str = runtime.__version__
        content = checked_bytes(path)
        self.inputs, self.outputs = shapes_of(_parsed(content))
        self._model = _compiled(runtime, path, content, {**_HINTS, **({"INFERENCE_NUM_THREADS": threads} if threads else {})})
        self._flags = {name: self._model.get_property(name) for name in _HINTS}
        self._require_float32(runtime)

    @property
    def facts(self) -> Mapping[str, object]:
        return {
            "runtime": "openvino",
            "version": self._version,
            "device": "cpu",
            "providers": list(self._property("EXECUTION_DEVICES")),
            "flags": {**self._flags, "INFERENCE_PRECISION_HINT": "f32"},
            "threads": self._property("INFERENCE_NUM_THREADS"),
        }

    def close(self) -> None:
        self._model = None

    def _run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        if self._model is None:
            raise RuntimeError(f"{self.name} is closed")
        found = self._model({name: np.ascontiguousarray(array) for name, array in batch.items()})
        return {spec.name: np.array(found[spec.name]) for spec in self.outputs}

    def _property(self, name: str) -> Any:
        if self._model is None:
            raise RuntimeError(f"{self.name} is closed")
        return self._model.get_property(name)

    def _require_float32(self, runtime: Any) -> None:
        """Read back the precision: to OpenVINO the request is only a hint."""
        if self._flags["INFERENCE_PRECISION_HINT"] != runtime.Type.f32:
            found = self._flags["INFERENCE_PRECISION_HINT"]
            raise NotHereError(f"{self.name} was requested in float32, but OpenVINO {self._version} computes in {found} here; use onnxruntime-cpu")


def _openvino() -> Any:
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise NotHereError(f"OpenVINO cannot be imported ({error}); pip install 'samegraph[openvino]'") from error


def _parsed(content: bytes) -> Any:
    import onnx

    return onnx.load_model_from_string(content)


def _compiled(runtime: Any, path: Path, content: bytes, hints: Mapping[str, object]) -> Any:
    core = runtime.Core()
    if _DEVICE not in core.available_devices:
        raise NotHereError(f"{NAME} was requested, but OpenVINO has only {', '.join(core.available_devices)} here; reinstall openvino")
    try:
        return core.compile_model(core.read_model(content), _DEVICE, dict(hints))
    except RuntimeError as error:
        raise DamagedError(f"{path} is not a model for OpenVINO {runtime.__version__}: {' '.join(str(error).split())}") from error


def probe() -> Finding:
    """Compile a tiny model for the CPU, and let it compute."""
    runtime = _openvino()
    core = runtime.Core()
    model = core.compile_model(core.read_model(squaring_model()), _DEVICE, {"INFERENCE_PRECISION_HINT": "f32"})
    right = bool((model({"x": np.full((2, 2), 3, np.float32)})[0] == 18).all())
    detail = f"{runtime.__version__}, " + ("loads and computes" if right else "computes wrongly")
    return Finding(right, detail, {"version": runtime.__version__, "devices": core.available_devices})
