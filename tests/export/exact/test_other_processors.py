"""ONNX Runtime on emulated processors: kernels without VNNI saturate in 16 bits, or lack AVX.

Kernels without VNNI add pairs of products in saturating 16 bits. The emulator takes seconds per
network. If it is not installed (Debian: qemu-user), nothing here runs, and pytest says so.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from exact_files import DIALECTS, PIXEL_STEP, Sketch, calibrated
from graphs import images
from integer_evaluator import evaluate
from numpy.typing import NDArray

from deploy.certificate.walk import certificate_of
from export.graph.fold import fold

EMULATOR = shutil.which("qemu-x86_64")
PROCESSORS = ("Haswell", "Nehalem")
"""AVX2 without VNNI; SSE4.2 without AVX."""
SATURATING = ("Haswell",)
"""The processors on which ONNX Runtime's kernels use the saturating instruction."""
SHAPE = (3, 16, 16)
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="not run: the emulated processors are x86-64, and this one is not"),
    pytest.mark.skipif(EMULATOR is None, reason="not run: qemu-x86_64 is not installed; Debian has it in qemu-user"),
]

RUN = """
import sys
from pathlib import Path
import numpy, onnxruntime
folder = Path(sys.argv[1])
for model in sorted(folder.glob("*.onnx")):
    for level in sys.argv[2:]:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = onnxruntime.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"image": numpy.load(model.with_suffix(".images.npy"))})
        numpy.save(folder / f"{model.stem}.{level}.npy", logits)
"""

Logits = NDArray[np.float32]
Found = dict[tuple[str, str], Logits]
Files = Mapping[str, tuple[bytes, NDArray[np.uint8], Logits]]
Emulated = tuple[str, Found]


def run_emulated(folder: Path, processor: str) -> Found:
    """The logits of every file at every level, by name and level."""
    assert EMULATOR is not None
    command = [EMULATOR, "-cpu", processor, sys.executable, "-c", RUN, str(folder), *LEVELS]
    # Whoever fixed OpenBLAS's kernels for this processor did not mean the emulated one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return {(model.stem, level): np.load(folder / f"{model.stem}.{level}.npy") for model in folder.glob("*.onnx") for level in LEVELS}


def eight_bits_on_pixels() -> bytes:
    """A first layer with 8-bit weights although pixels are signed. All that it sees is white."""
    sketch = Sketch(1, 8)
    weights = np.full((8, 1, 3, 3), 126, np.int8)
    weights[:, :, 1] = -126
    sums = sketch.layer(sketch.pixels(), "first", weights, [1] * 8, PIXEL_STEP, 2.0**-8)
    return sketch.content(sketch.quantised(sums, 2.0**-4, 0, 127))


@pytest.fixture(scope="module")
def files() -> Files:
    """Each file, images for it, and the logits that it must give."""
    torch.manual_seed(0)
    grid, batch = calibrated("resnet20", SHAPE), images(2, SHAPE, seed=1)
    with torch.no_grad():
        logits = fold(grid.graph)(batch).numpy()
    networks = {name: (write(grid, SHAPE, 10, {}), batch.numpy(), logits) for name, write in DIALECTS.items()}
    white, content = np.full((2, 1, 8, 8), 255, np.uint8), eight_bits_on_pixels()
    return {**networks, "too wide": (content, white, evaluate(content, white))}


@pytest.fixture(scope="module", params=PROCESSORS)
def emulated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, files: Files) -> Emulated:
    folder = tmp_path_factory.mktemp(request.param)
    for name, (content, batch, _) in files.items():
        (folder / f"{name}.onnx").write_bytes(content)
        np.save(folder / f"{name}.images.npy", batch)
    return request.param, run_emulated(folder, request.param)


def test_the_exact_file_has_the_same_bits_on_every_processor(files: Files, emulated: Emulated) -> None:
    processor, found = emulated
    wanted = files["unsigned"][2]
    assert wanted.std() > 0
    for level in LEVELS:
        assert found["unsigned", level].tobytes() == wanted.tobytes(), (processor, level)


def test_the_file_for_tensorrt_has_them_without_optimisations(files: Files, emulated: Emulated) -> None:
    assert emulated[1]["signed", "ORT_DISABLE_ALL"].tobytes() == files["signed"][2].tobytes()


@pytest.mark.parametrize(("name", "holds"), [("too wide", False), ("signed", True)])
def test_what_the_certificate_calls_unsafe_has_other_bits_where_pairs_saturate(
    tmp_path: Path, files: Files, emulated: Emulated, name: str, holds: bool
) -> None:
    """8-bit weights on a signed input, and TensorRT's file, whose bytes are 128 to 255 here."""
    processor, found = emulated
    path = tmp_path / "model.onnx"
    path.write_bytes(files[name][0])
    certificate = certificate_of(path)
    assert (certificate.holds, certificate.to_json()["int16_pairs_safe"]) == (holds, False)
    if processor in SATURATING:
        assert found[name, "ORT_ENABLE_ALL"].tobytes() != files[name][2].tobytes()
