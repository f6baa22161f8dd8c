"""The float64 evaluation of ONNX files agrees with PyTorch in double, and nothing stays narrow."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from programs import exported, small_net, write_onnx_of
from torch.nn import functional as F

from deploy.runners.onnx_file import cut_at, points_of
from deploy.runners.onnx_float64 import NoFloat64Error, OnnxFloat64Runner
from export.errors import UsageError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 9, 9)).astype(np.float32)


def one_node(
    operation: str, rank: int = 4, weights: dict[str, np.ndarray] | None = None, kind: int = TensorProto.FLOAT, **attributes: Any
) -> onnx.ModelProto:
    weights = weights or {}
    node = helper.make_node(operation, ["x", *weights], ["y"], **attributes)
    ends = [helper.make_tensor_value_info(name, kind, ["n", *([None] * (rank - 1))]) for name in ("x", "y")]
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], [numpy_helper.from_array(value, name) for name, value in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("optimize", [True, False])
def test_a_network_is_the_network_in_double(tmp_path: Path, optimize: bool) -> None:
    model = onnx.load(write_onnx_of(tmp_path / "net.onnx", exported(small_net()), optimize=optimize))
    x = X[:, :, :8, :8]
    found = OnnxFloat64Runner(model).run({"x": x})["linear"]
    with torch.inference_mode():
        expected = small_net().double()(torch.tensor(x).double()).numpy()
    assert found.dtype == np.float64
    # The exporter's optimiser folds the norm into the convolution in float32, which changes the
    # function by rounding.
    assert np.abs(found - expected).max() < (1e-6 if optimize else 1e-11)  # an attribute such as the epsilon of a norm is a float32


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"pads": [1, 2, 0, 1], "strides": [2, 1]}, lambda x, w, b: F.conv2d(F.pad(x, (2, 1, 1, 0)), w, b, (2, 1))),
        ({"dilations": [2, 1]}, lambda x, w, b: F.conv2d(x, w, b, dilation=(2, 1))),
        ({"auto_pad": "SAME_UPPER"}, lambda x, w, b: F.conv2d(F.pad(x, (1, 1, 1, 1)), w, b)),
    ],
)
def test_convolution(attributes: dict[str, Any], expected: Any) -> None:
    weights = {"w": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32), "b": RNG.normal(size=4).astype(np.float32)}
    found = OnnxFloat64Runner(one_node("Conv", weights=weights, **attributes)).run({"x": X})["y"]
    wanted = expected(torch.tensor(X).double(), *(torch.tensor(value).double() for value in weights.values()))
    assert np.abs(found - wanted.numpy()).max() < 1e-13


@pytest.mark.parametrize(
    ("filters", "groups", "axes"),
    [(6, 3, 2), (3, 3, 2), (6, 1, 1), (4, 1, 3), (4, 2, 1)],
    ids=["two filters a channel", "depthwise", "one axis", "three axes", "groups"],
)
def test_convolution_in_groups_and_of_other_axes(filters: int, groups: int, axes: int) -> None:
    channels = 4 if groups == 2 else 3
    x = RNG.normal(size=(2, channels, *[6] * axes)).astype(np.float32)
    w = RNG.normal(size=(filters, channels // groups, *[3] * axes)).astype(np.float32)
    convolution = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[axes]
    found = OnnxFloat64Runner(one_node("Conv", 2 + axes, {"w": w}, group=groups, pads=[1] * 2 * axes, strides=[2] * axes)).run({"x": x})["y"]
    wanted = convolution(torch.tensor(x).double(), torch.tensor(w).double(), None, 2, 1, 1, groups).numpy()
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-13


@pytest.mark.parametrize(
    ("operation", "attributes", "expected"),
    [
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, lambda x: F.max_pool2d(x, 3, 2, 1)),
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True)),
        ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2]}, lambda x: F.avg_pool2d(x, 3, 2)),
        (
            "AveragePool",
            {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
            lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        ),
        (
            "AveragePool",
            {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
            lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=True),
        ),
        ("GlobalAveragePool", {}, lambda x: x.mean(dim=(2, 3), keepdim=True)),
    ],
)
def test_pooling(operation: str, attributes: dict[str, Any], expected: Any) -> None:
    found = OnnxFloat64Runner(one_node(operation, **attributes)).run({"x": X})["y"]
    assert found.dtype == np.float64
    assert np.abs(found - expected(torch.tensor(X).double()).numpy()).max() < 1e-14


def test_casts_and_constants_are_widened() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Constant", [], ["third"], value_float=1 / 3),
        helper.make_node("Mul", ["wide", "third"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n"]), helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])]
    model = helper.make_model(helper.make_graph(nodes, "casts", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 20)])
    found = OnnxFloat64Runner(model).run({"x": np.array([7], np.uint8)})["y"]
    assert (found.dtype, found[0]) == (np.dtype(np.float64), 7 * float(np.float32(1 / 3)))


def test_what_stays_narrow_is_no_float64_evaluation() -> None:
    model = one_node("DequantizeLinear", 1, {"scale": np.array(0.5, np.float32)}, TensorProto.INT8)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    runner = OnnxFloat64Runner(model)
    found = runner.run({"x": np.array([3], np.int8)})["y"]
    assert found.dtype == np.float64
    for operation, reason in (("Concat", "drawn is computed in float32"), ("Mul", "Input type mismatch")):
        stays = one_node("Relu", 1)
        stays.graph.ClearField("node")
        attributes: dict[str, Any] = {"axis": 0} if operation == "Concat" else {}
        drawn = helper.make_node("RandomNormal", [], ["drawn"], shape=[1])
        stays.graph.node.extend([drawn, helper.make_node(operation, ["x", "drawn"], ["y"], **attributes)])
        with pytest.raises(NoFloat64Error, match=rf"{reason}.*state --max-ulp or --atol and --rtol"):
            OnnxFloat64Runner(stays).run({"x": np.array([3.0], np.float32)})


def test_an_operation_that_nobody_knows_has_none() -> None:
    with pytest.raises(NoFloat64Error, match="no float64 evaluation"):
        OnnxFloat64Runner(one_node("Frobnicate"))


class TestCut:
    def model(self, tmp_path: Path) -> onnx.ModelProto:
        return onnx.load(write_onnx_of(tmp_path / "net.onnx", exported(small_net())))

    def test_points_have_operation_inputs_and_layer(self, tmp_path: Path) -> None:
        points = points_of(self.model(tmp_path))
        assert [(p.operation, p.layer) for p in points] == [
            ("Conv", "norm"),
            ("Relu", ""),
            ("Conv", "second"),
            ("Add", ""),
            ("Relu", ""),
            ("ReduceMean", ""),
            ("Gemm", "classifier"),
        ]
        assert points[3].inputs == (points[2].name, points[1].name)

    def test_a_prefix_computes_that_tensor(self, tmp_path: Path) -> None:
        model = self.model(tmp_path)
        second = points_of(model)[2].name
        prefix = cut_at(model, second)
        onnx.checker.check_model(prefix, full_check=True)
        assert [node.op_type for node in prefix.graph.node] == ["Conv", "Relu", "Conv"]
        net = small_net().double()
        with torch.inference_mode():
            expected = net.second(torch.relu(net.norm(net.conv(torch.tensor(X[:, :, :8, :8]).double())))).numpy()
        assert np.abs(OnnxFloat64Runner(prefix).run({"x": X[:, :, :8, :8]})[second] - expected).max() < 1e-6
        with pytest.raises(UsageError, match="cannot be cut there"):
            cut_at(model, "nowhere")


def test_a_weight_among_the_inputs_is_no_input() -> None:
    model = one_node("Conv", weights={"w": np.ones((1, 3, 1, 1), np.float32)})
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 3, 1, 1]))
    assert [spec.name for spec in OnnxFloat64Runner(model).inputs] == ["x"]
