"""The float16 form of a file has the intended types, no other change, and fits float16's budget."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exported_files import ExportedFiles
from graphs import DEFAULTS, images, rewritten
from onnx import TensorProto, numpy_helper
from onnx_files import random_weights, write_onnx

from deploy.compare.budget import ErrorMeter, budget
from deploy.runners.onnxruntime import OnnxRuntimeRunner
from export.errors import UsageError
from export.graph.fold import fold
from export.onnx import onnx_from_graph
from export.tensorrt.float16 import float16_onnx

SHAPE = (3, 16, 16)
NAMES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}


def file_of(network: str, exported_files: ExportedFiles) -> bytes:
    return exported_files.file_of(fold(rewritten(network, SHAPE, DEFAULTS["batchnorm"]).graph.eval()), SHAPE)


def types_of(content: bytes) -> list[tuple[str, str]]:
    """Every operation on floating-point numbers, with the type of its result."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.value_info, *model.graph.output]}
    return [(node.op_type, NAMES[types[node.output[0]]]) for node in model.graph.node if types[node.output[0]] in NAMES]


def test_normalisation_means_and_logits_stay_float32(exported_files: ExportedFiles) -> None:
    types = types_of(float16_onnx(file_of("resnet20", exported_files)))
    assert types[:4] == [("Cast", "float32"), ("Sub", "float32"), ("Div", "float32"), ("Cast", "float16")]
    assert types[-5:] == [("Cast", "float32"), ("ReduceMean", "float32"), ("ReduceMean", "float32"), ("Reshape", "float32"), ("Gemm", "float32")]
    assert {kind for _, kind in types[4:-5]} == {"float16"}
    assert [name for name, _ in types].count("Cast") == 3


@pytest.mark.parametrize("network", ["squeezenet", "shufflenetv2_x0_5", "preactresnet18", "small"])
def test_every_convolution_but_a_last_one_is_float16(network: str, exported_files: ExportedFiles) -> None:
    types = types_of(float16_onnx(file_of(network, exported_files) if network != "small" else small()))
    weighted = [kind for name, kind in types if name in ("Conv", "Gemm")]
    assert weighted == ["float16"] * (len(weighted) - 1) + ["float32"]
    assert {kind for name, kind in types if name == "ReduceMean"} <= {"float32"}


@cache
def small() -> bytes:
    return onnx_from_graph(fold(rewritten("small", (1, 8, 8), DEFAULTS["czmig"]).graph.eval()), (1, 8, 8), {"classes": "[]"})


def test_weights_are_rounded_once_and_nothing_else_changes() -> None:
    """Input, outputs, metadata and opset stay. Weights of float16 layers are rounded to nearest."""
    before, after = onnx.load_model_from_string(small()), onnx.load_model_from_string(float16_onnx(small()))
    assert (before.opset_import, before.ir_version, before.metadata_props) == (after.opset_import, after.ir_version, after.metadata_props)
    assert (before.graph.input, before.graph.output) == (after.graph.input, after.graph.output)
    originals = {each.name: numpy_helper.to_array(each) for each in before.graph.initializer}
    halves = [each for each in after.graph.initializer if each.data_type == TensorProto.FLOAT16]
    assert halves
    for half in halves:
        array = numpy_helper.to_array(half)
        assert np.array_equal(array, originals[half.name.removesuffix("_float16")].astype(np.float16))
    assert [node.op_type for node in after.graph.node if node.op_type != "Cast"] == [
        node.op_type for node in before.graph.node if node.op_type != "Cast"
    ]


def test_the_same_bytes_each_time() -> None:
    assert float16_onnx(small()) == float16_onnx(small())


@pytest.mark.parametrize("network", ["resnet20", "squeezenet"])
def test_it_runs_within_the_budget_of_float16_and_outside_that_of_float32(network: str, exported_files: ExportedFiles, tmp_path: Path) -> None:
    """Compared with the float32 file, whose own error is a thousandth of the errors in question."""
    content, batch = file_of(network, exported_files), {"image": images(8, SHAPE).numpy()}
    outputs: dict[str, Any] = {}
    for name, data in {"float32": content, "float16": float16_onnx(content)}.items():
        (tmp_path / f"{name}.onnx").write_bytes(data)
        with OnnxRuntimeRunner(tmp_path / f"{name}.onnx", optimisation="none", threads=1) as runner:
            outputs[name] = runner.run(batch)
    meter, training = ErrorMeter(), ErrorMeter()
    meter.update(outputs["float32"], outputs["float16"])
    one_ulp = {"logits": np.nextafter(outputs["float32"]["logits"], np.float32(np.inf))}
    training.update(outputs["float32"], one_ulp)
    allowed, too_little = (budget(training.result, "float32", precision) for precision in ("float16", "float32"))
    assert allowed is not None
    assert too_little is not None
    assert allowed.covers(meter.result)
    assert not too_little.covers(meter.result)


def test_a_weight_beyond_float16_is_refused(tmp_path: Path) -> None:
    weights = random_weights()
    huge = weights.first.copy()
    huge[0, 0] = 70000.0
    path = write_onnx(tmp_path / "huge.onnx", weights.changed(first=huge))
    with pytest.raises(UsageError, match="first holds 7e\\+04, float16 ends at 65504; build float32"):
        float16_onnx(path.read_bytes())


def test_a_network_of_one_layer_is_refused() -> None:
    model = onnx.load_model_from_string(small())
    first = next(index for index, node in enumerate(model.graph.node) if node.op_type == "Conv")
    kept = list(model.graph.node)[: first + 1]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.output[0].name = kept[-1].output[0]
    with pytest.raises(UsageError, match="has 1 layers with weights"):
        float16_onnx(model.SerializeToString())
