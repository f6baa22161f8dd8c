"""One look at one runtime, run as a script in a process of its own: a runtime that crashes or chatters stays in there.

`python -P probes.py NAME` prints {finding: {here, detail, facts}} as JSON. Imports nothing of this project, nor
anything heavy before a look begins.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Finding:
    """Whether something can be used here, a line that says so, and the facts behind it."""

    here: bool
    detail: str
    facts: dict[str, Any] = field(default_factory=dict)


Findings = dict[str, Finding]


def look_at_torch() -> Findings:
    """PyTorch, and the GPUs that it really computes on."""
    import torch

    built_for = torch.version.cuda
    facts = {"version": torch.__version__, "cuda": built_for}
    line = f"{torch.__version__}, built for {f'CUDA {built_for}' if built_for else 'the CPU only'}"
    return {"torch": Finding(True, line, facts), "cuda": _cuda(torch)}


def _cuda(torch: Any) -> Finding:
    if not torch.cuda.is_available():
        return Finding(False, "PyTorch finds no NVIDIA GPU", {"gpus": []})
    driver = _driver()
    gpus = [_gpu(torch, index) for index in range(torch.cuda.device_count())]
    lines = [f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, capability {gpu['capability']}" for gpu in gpus]
    return Finding(bool(gpus), "; ".join(lines) + f"; driver {driver}", {"gpus": gpus, "driver": driver})


def _gpu(torch: Any, index: int) -> dict[str, Any]:
    (torch.ones(2, device=f"cuda:{index}") + 1).cpu()  # raises where this PyTorch has no code for the device
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
    }


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.split()
    return lines[0] if lines else None


def look_at_onnxruntime() -> Findings:
    """ONNX Runtime, and what it claims to offer."""
    import onnxruntime

    listed = onnxruntime.get_available_providers()
    detail = f"{onnxruntime.__version__}, lists {', '.join(name.removesuffix('ExecutionProvider') for name in listed)}"
    return {"onnxruntime": Finding(True, detail, {"version": onnxruntime.__version__, "listed_providers": listed})}


def look_at_provider(name: str, provider: str) -> Findings:
    """An execution provider: a session on a tiny model says which one it got, and has to compute with it."""
    import numpy as np
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        return {name: Finding(False, "not part of this ONNX Runtime")}
    if provider != "CPUExecutionProvider":
        onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(_squaring_model(), providers=[provider])
    got = session.get_providers()
    (square,) = session.run(None, {"x": np.full((2, 2), 3, np.float32)})
    right = bool((square == 18).all())
    here = got[0] == provider and right
    detail = "loads and computes" if here else "listed, but does not load" if right else "computes wrongly"
    return {name: Finding(here, detail, {"session_providers": got})}


def _squaring_model() -> bytes:
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "square", [x], [y])
    model: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    return model


def look_at_openvino() -> Findings:
    """OpenVINO: it compiles a tiny model for the CPU, and has to compute with it."""
    import numpy as np
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(_squaring_model()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    right = bool((model({"x": np.full((2, 2), 3, np.float32)})[0] == 18).all())
    detail = f"{openvino.__version__}, " + ("loads and computes" if right else "computes wrongly")
    return {"openvino-cpu": Finding(right, detail, {"version": openvino.__version__, "devices": core.available_devices})}


def look_at_tensorrt(name: str, module: str) -> Findings:
    """TensorRT or TensorRT-RTX: it builds an engine of one layer, and can or cannot make it ready to run."""
    trt: Any = importlib.import_module(module)
    logger = trt.Logger(trt.Logger.WARNING)
    plan = _tiny_plan(trt, logger)
    runs = plan is not None and _runs(trt, logger, plan)
    detail = f"{trt.__version__}, " + ("builds and runs engines" if runs else "builds engines, cannot run them" if plan else "cannot build engines")
    return {name: Finding(runs, detail, {"version": trt.__version__, "builds": plan is not None, "runs": runs})}


def _tiny_plan(trt: Any, logger: Any) -> Any:
    builder = trt.Builder(logger)
    network = builder.create_network()
    relu = network.add_activation(network.add_input("x", trt.float32, (1, 4)), trt.ActivationType.RELU)
    network.mark_output(relu.get_output(0))
    return builder.build_serialized_network(network, builder.create_builder_config())


def _runs(trt: Any, logger: Any, plan: Any) -> bool:
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    return engine is not None and engine.create_execution_context() is not None


LOOKS: dict[str, Callable[[], Findings]] = {
    "torch": look_at_torch,
    "onnxruntime": look_at_onnxruntime,
    "onnxruntime-cpu": partial(look_at_provider, "onnxruntime-cpu", "CPUExecutionProvider"),
    "onnxruntime-cuda": partial(look_at_provider, "onnxruntime-cuda", "CUDAExecutionProvider"),
    "onnxruntime-tensorrt": partial(look_at_provider, "onnxruntime-tensorrt", "TensorrtExecutionProvider"),
    "openvino-cpu": look_at_openvino,
    "tensorrt": partial(look_at_tensorrt, "tensorrt", "tensorrt"),
    "tensorrt-rtx": partial(look_at_tensorrt, "tensorrt-rtx", "tensorrt_rtx"),
}


def _main(name: str) -> None:
    answers_to = os.dup(1)
    os.dup2(2, 1)  # whatever a runtime prints is noise, not the answer
    try:
        findings = LOOKS[name]()
    except ModuleNotFoundError as error:
        findings = {name: Finding(False, f"no module {error.name}")}
    except Exception as error:  # a runtime that is broken is what this looks for
        findings = {name: Finding(False, f"{type(error).__name__}: {error}")}
    answer = {found: asdict(finding) for found, finding in findings.items()}
    os.write(answers_to, json.dumps(answer).encode())


if __name__ == "__main__":
    _main(sys.argv[1])
