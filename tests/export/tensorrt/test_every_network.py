"""Every network of the project in float32 and exact is parsed and built by TensorRT-RTX.

Only parser and builder are tested: nothing is run. Networks with more or wider copies of the same
blocks are marked slow and are not also built in float16. Of those that differ only in depth, the
shallowest and the deepest are built. torch's exporter takes most of the time.
`../test_every_pair.py` runs files of the same forms, so that they are made once for both.
"""

import pytest
from engines import RTX, Counts
from exact_files import calibrated
from exported_files import ExportedFiles, Shape
from graphs import DEFAULTS, rewritten
from torchvision.models import list_models

from export.exact.dialects import exact_tensorrt_onnx
from export.graph.fold import fold
from export.tensorrt.builder import Batches, EngineRequest, engine_from_onnx
from export.tensorrt.float16 import float16_onnx
from export.tensorrt.record import EnginePrecision, EngineRecord
from pipeline.networks import FAMILIES, NETWORKS

pytest.importorskip("tensorrt_rtx", reason="not run: tensorrt-rtx is not installed")
OF_A_FAMILY = {"wrn-DEPTH-WIDTH": "wrn-10-2"}
TORCHVISION = ("resnet18", "squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v2")
"""One of each kind that this project takes. Our networks of the same kinds have the same layers."""
LARGE = frozenset(
    {
        *("resnet110", "resnet34", "resnet50", "resnet101", "vgg11", "vgg16", "wrn20", "shufflenetv2_x1_0"),
        *("preactresnet34", "preactresnet50", "preactresnet152"),
    }
)
BETWEEN = frozenset({"resnet32", "resnet44", "resnet56", "preactresnet101"})
NAMES = [*(name for name in NETWORKS if name not in BETWEEN), *OF_A_FAMILY.values(), *(f"torchvision:{name}" for name in TORCHVISION)]
WANTED = Batches(1, 8, 64)


def shape_of(name: str) -> Shape:
    if name == "small":
        return 1, 8, 8
    if name == "torchvision:squeezenet1_1":
        return 3, 48, 48
    return (3, 32, 32) if name.startswith(("vgg", "torchvision")) else (3, 16, 16)


def file_of(name: str, precision: EnginePrecision, exported_files: ExportedFiles) -> bytes:
    shape = shape_of(name)
    if precision == "exact":
        return exact_tensorrt_onnx(calibrated(name, shape), shape, 10, {})
    content = exported_files.file_of(fold(rewritten(name, shape, DEFAULTS["batchnorm"]).graph.eval()), shape)
    return float16_onnx(content) if precision == "float16" else content


PRECISIONS: tuple[EnginePrecision, ...] = ("float32", "float16", "exact")


def test_the_table_is_complete() -> None:
    assert set(OF_A_FAMILY) == {family.form for family in FAMILIES}
    assert set(NETWORKS) >= LARGE | BETWEEN
    assert len(CASES) == 3 * len(NAMES) - len(LARGE)
    assert set(TORCHVISION) <= set(list_models())


def built(name: str, precision: EnginePrecision, content: bytes) -> EngineRecord:
    record = engine_from_onnx(RTX, content, f"{name}.onnx", EngineRequest(precision=precision, batches=WANTED), Counts()).record
    assert record.flags["TF32"] is False
    assert record.inputs[0].shape == [None, *shape_of(name)]
    assert record.outputs[0].shape == [None, 10]
    assert record.messages == []
    return record


def marked(name: str, precision: EnginePrecision) -> object:
    return pytest.param(name, precision, marks=pytest.mark.slow if name in LARGE else (), id=f"{name}-{precision}")


CASES = [marked(name, precision) for name in NAMES for precision in PRECISIONS if name not in LARGE or precision != "float16"]


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_its_file_is_parsed_and_an_engine_built(name: str, precision: EnginePrecision, exported_files: ExportedFiles) -> None:
    record = built(name, precision, file_of(name, precision, exported_files))
    assert record.precision == precision
    assert record.batches == range(1, 65)
