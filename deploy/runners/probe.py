"""Looks at what a runtime needs, in a process of its own: a crash or output stays in there.

`python -m deploy.runners.probe NAME` prints {finding: {here, detail, facts}} as JSON. Nothing
heavy is imported before a look begins.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from deploy.runners.runner import Finding
from deploy.runners.runtimes import RUNTIMES, TORCH
from export.errors import NotHereError

Findings = dict[str, Finding]
CUDA, ONNXRUNTIME = "cuda", "onnxruntime"


def look_at_torch() -> Findings:
    """PyTorch, and the GPUs that it can really compute on."""
    import torch

    built_for = torch.version.cuda
    facts = {"version": torch.__version__, "cuda": built_for}
    line = f"{torch.__version__}, built for {f'CUDA {built_for}' if built_for else 'the CPU only'}"
    return {TORCH: Finding(True, line, facts), CUDA: _cuda(torch)}


def _cuda(torch: Any) -> Finding:
    if not torch.cuda.is_available():
        return Finding(False, "PyTorch finds no NVIDIA GPU", {"gpus": []})
    driver = _driver()
    gpus = [_gpu(torch, index) for index in range(torch.cuda.device_count())]
    lines = [f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, capability {gpu['capability']}" for gpu in gpus]
    return Finding(bool(gpus), "; ".join(lines) + f"; driver {driver}", {"gpus": gpus, "driver": driver})


def _gpu(torch: Any, index: int) -> dict[str, Any]:
    (torch.ones(2, device=f"cuda:{index}") + 1).cpu()  # raises if this PyTorch has no code for the device
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
    """ONNX Runtime, and the providers that it lists."""
    import onnxruntime

    listed = onnxruntime.get_available_providers()
    detail = f"{onnxruntime.__version__}, lists {', '.join(name.removesuffix('ExecutionProvider') for name in listed)}"
    return {ONNXRUNTIME: Finding(True, detail, {"version": onnxruntime.__version__, "listed_providers": listed})}


LOOKS: dict[str, tuple[str, ...]] = {
    TORCH: (TORCH, CUDA),
    ONNXRUNTIME: (ONNXRUNTIME,),
    **{name: (name,) for name, runtime in RUNTIMES.items() if runtime.probe is not None},
}
"""Each look, and the findings that it gives: every runtime, and what several of them need."""
_SHARED: dict[str, Callable[[], Findings]] = {TORCH: look_at_torch, ONNXRUNTIME: look_at_onnxruntime}


def look_at(name: str) -> Findings:
    """Try it. An exception is a finding too."""
    probe = RUNTIMES[name].probe if name in RUNTIMES else None
    try:
        return {name: probe()} if probe is not None else _SHARED[name]()
    except ModuleNotFoundError as error:
        return {name: Finding(False, f"no module {error.name}")}
    except NotHereError as error:
        return {name: Finding(False, _why(error))}
    except Exception as error:  # a broken runtime is what this looks for
        return {name: Finding(False, f"{type(error).__name__}: {error}")}


def _why(error: NotHereError) -> str:
    """What is missing, without the advice, which the table gives."""
    cause = error.__cause__
    return f"no module {cause.name}" if isinstance(cause, ModuleNotFoundError) else str(error).partition(";")[0]


def main(name: str) -> None:
    """Write the answer to standard output, which holds nothing else."""
    answers_to = os.dup(1)
    os.dup2(2, 1)  # what a runtime prints is not part of the answer
    answer = {found: asdict(finding) for found, finding in look_at(name).items()}
    os.write(answers_to, json.dumps(answer).encode())


if __name__ == "__main__":
    main(sys.argv[1])
