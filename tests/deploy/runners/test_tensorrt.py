"""Engines of the real TensorRT-RTX without a GPU.

Each damaged or foreign engine is refused for what it is. A sound one is refused for lack of a GPU.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from engines import built

from deploy.runners import cuda
from deploy.runners.cuda import CudaDriver
from deploy.runners.tensorrt import EngineFile, open_engine, require_tensorrt
from export.errors import DamagedError, NotHereError
from export.tensorrt import runtime
from export.tensorrt.runtime import FLAVOURS, cuda_runtime

pytest.importorskip("tensorrt_rtx", reason="not run: tensorrt-rtx is not installed")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> EngineFile:
    made = built(tmp_path_factory.mktemp("engine"))
    return EngineFile("engines/it.plan", made.plan, made.record, made.record.onnx.sha256)


def test_a_sound_engine_asked_to_run_without_a_gpu_is_one_line_and_exit_code_4(engine: EngineFile) -> None:
    with pytest.raises(NotHereError) as caught:
        open_engine(engine)
    assert re.fullmatch(r"no NVIDIA GPU is available \(CUDA: .+\); use a machine with an NVIDIA GPU and its driver", str(caught.value))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("runtime", [flavour.runtime for flavour in FLAVOURS.values()])
def test_a_runtime_that_was_asked_for_is_not_here(runtime: str) -> None:
    with pytest.raises(NotHereError, match=r"no NVIDIA GPU is available|cannot be imported"):
        require_tensorrt(runtime)


@pytest.mark.parametrize(
    "damage",
    [lambda plan: plan[: len(plan) // 2], lambda plan: plan[:100] + bytes([plan[100] ^ 128]) + plan[101:], lambda plan: b"\0" * len(plan)],
    ids=["truncated", "a flipped byte", "zeros"],
)
def test_a_damaged_engine_is_damaged_whether_there_is_a_gpu_or_not(damage: Callable[[bytes], bytes], engine: EngineFile) -> None:
    with pytest.raises(DamagedError, match="its record says"):
        open_engine(dataclasses.replace(engine, plan=damage(engine.plan)))


def test_another_version_is_not_here_whether_there_is_a_gpu_or_not(engine: EngineFile) -> None:
    record = engine.record.model_copy(update={"version": "1.6.0.1"})
    with pytest.raises(
        NotHereError, match=r"was built for tensorrt-rtx 1\.6\.0\.1, .* is installed; build it again: pipeline export BUNDLE --tensorrt --flavour rtx"
    ):
        open_engine(dataclasses.replace(engine, record=record))


def test_every_function_of_cuda_that_the_driver_calls_exists() -> None:
    """The functions cannot be called here, but a misspelt name is found."""
    source, runtime = Path(cuda.__file__).read_text(encoding="utf-8"), cuda_runtime()
    called = set(re.findall(r'_call\("(\w+)"', source))
    assert len(called) >= 14
    assert [name for name in sorted(called) if not callable(getattr(runtime, name, None))] == []
    constants = set(re.findall(r"self\._cuda\.([\w.]+)", source))
    assert len(constants) == 4
    for path in constants:
        value = runtime
        for part in path.split("."):
            value = getattr(value, part)


def test_what_tells_the_version_of_the_driver_exists() -> None:
    """No answer from it is never an error, so a misspelt name would not be noticed."""
    nvml = pytest.importorskip("cuda.bindings.nvml", reason="not run: this cuda-bindings has no nvml")
    called = set(re.findall(r"nvml\.(\w+)\(", Path(runtime.__file__).read_text(encoding="utf-8")))
    assert len(called) == 2
    assert all(callable(getattr(nvml, name)) for name in called)


def test_the_real_driver_says_in_cudas_words_what_fails() -> None:
    driver = CudaDriver()
    for call in (lambda: driver.allocate(100), lambda: driver.allocate_pinned(100), driver.stream, driver.gpu):
        with pytest.raises(NotHereError, match=r"no NVIDIA GPU is available \(CUDA: .+\); use a machine"):
            call()
