"""OpenVINO restricted to the kernels of lesser processors gives the same bits.

The networks are those that once differed there, and those of the project.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from exact_files import calibrated
from graphs import images
from numpy.typing import NDArray
from random_networks import CLASSES, Form, Head, on_grid
from torch import nn

from export.exact.dialects import exact_onnx
from export.exact.grid import GridGraph
from export.graph.fold import fold

SETS = ("AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Sets of instructions. Those that this processor lacks are not used."""
RUN = """
import sys
from pathlib import Path
import numpy
from deploy.runners.openvino import OpenVinoRunner
for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    with OpenVinoRunner(path, threads=1) as runner:
        numpy.save(path.with_suffix(".found.npy"), runner.run({"image": numpy.load(path.with_suffix(".images.npy"))})["logits"])
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="not run: openvino is not installed"),
]


def grouped(channels: int, filters: int, groups: int, kernel: int, activation_bits: int) -> GridGraph:
    """A grouped convolution that gives signed values, or rectified ones of 8 bits."""
    size = 6 - kernel
    front = nn.Sequential(nn.Conv2d(2, channels, 1), nn.ReLU())
    layer: nn.Module = nn.Conv2d(channels, filters, kernel, groups=groups)
    if activation_bits == 8:
        layer = nn.Sequential(layer, nn.ReLU())
    form = Form((2, 5, 5), 128.0, (front, layer), Head("flat", filters, size), activation_bits)
    return on_grid(form, seed=1)


GROUPED = {f"grouped {'-'.join(map(str, sizes))}": sizes for sizes in [(4, 8, 2, 1, 7), (6, 48, 2, 3, 7), (6, 3, 3, 1, 8)]}
"""Channels, filters, groups, kernel, bits of activations."""
NETWORKS = ("resnet20", "shufflenetv2_x0_5", "mobilenetv2", "squeezenet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def wanted(folder: Path) -> Mapping[str, NDArray[np.float32]]:
    """The logits that each file in the folder must give."""
    torch.manual_seed(0)
    grids = {name: grouped(*sizes) for name, sizes in GROUPED.items()} | {name: calibrated(name, (3, 32, 32), "mimicnorm") for name in NETWORKS}
    return {name: _written(folder, name, grid) for name, grid in grids.items()}


def _written(folder: Path, name: str, grid: GridGraph) -> NDArray[np.float32]:
    shape = tuple(next(iter(grid.graph.graph.nodes)).meta["tensor_meta"].shape)[1:]
    batch = images(3, shape, seed=1)
    (folder / f"{name}.onnx").write_bytes(exact_onnx(grid, shape, CLASSES if name in GROUPED else 10, {}))
    np.save(folder / f"{name}.images.npy", batch.numpy())
    with torch.no_grad():
        logits: NDArray[np.float32] = fold(grid.graph)(batch).numpy()
    return logits


@pytest.mark.parametrize("instructions", SETS)
def test_openvino_has_the_same_bits_with_every_set_of_instructions(
    folder: Path, wanted: Mapping[str, NDArray[np.float32]], instructions: str
) -> None:
    command = [sys.executable, "-c", RUN, str(folder)]
    done = subprocess.run(command, env={**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    differing = {name for name, logits in wanted.items() if np.load(folder / f"{name}.found.npy").tobytes() != logits.tobytes()}
    assert differing == set()
    assert all(logits.std() > 0 for logits in wanted.values())
