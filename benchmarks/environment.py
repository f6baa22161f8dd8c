"""Where a figure was measured: hardware and versions, for the head of every result file.

Also the one function that writes such a file.
"""

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from deploy.verify.environment import cpu_model

_PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime-gpu", "onnxruntime", "openvino", "numpy", "pillow")
RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, object]:
    """Return hardware and versions of this process."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_model(),
        "cpu_bfloat16": sorted(name for name, here in torch.cpu.get_capabilities().items() if here is True and "bf16" in name),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    """Return the version; None if the package is not installed, since not every figure needs all of
    them."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write_result(name: str, result: Mapping[str, object]) -> Path:
    """Write `results/<name>.json`, with the environment in it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), **result}, indent=2) + "\n")
    return path
