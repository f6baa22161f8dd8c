"""The two files give the bits of the graph in ONNX Runtime at every optimisation.

Writing them again gives the same bytes, and TensorRT's parser takes one of them.
"""

import importlib.util
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from graphs import DEFAULTS, images, rewritten
from torch import nn
from torch.nn import functional as F

from export.exact.calibration import calibrate
from export.exact.dialects import exact_onnx, exact_tensorrt_onnx
from export.exact.grid import GridBits, GridGraph, folded_from_integers, integers_of
from export.exact.rewrite import grid_graph
from export.graph import trace
from export.graph.fold import fold
from export.graph.layers import Normalise

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
WRITERS = [exact_onnx, exact_tensorrt_onnx]
Shape = tuple[int, int, int]


class Everything(nn.Module):
    """Each kind of node that the grid knows, once."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, padding=2, dilation=2, groups=4)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.pointwise = nn.Conv2d(24, 12, 1)
        self.hidden, self.last = nn.Linear(12 * 4, 20), nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.first(F.pad(x, (1, 0, 0, 1))))
        y = self.grouped(x)
        y = torch.cat((F.relu(y), self.depthwise(F.relu(y))), 1)  # one of them signed
        y = y.view(y.shape[0], 2, 12, y.shape[2], y.shape[3]).transpose(1, 2).contiguous().view(y.shape[0], 24, y.shape[2], y.shape[3])
        z = self.pointwise(y)
        left, right = torch.chunk(y, 2, 1)
        z = F.relu(z + left) + right
        z = F.avg_pool2d(F.max_pool2d(F.relu(z), 2, ceil_mode=True), 2)
        return self.last(F.relu(self.hidden(torch.flatten(z, 1))))


def calibrated(network: str | nn.Module, shape: Shape, bits: GridBits | None = None, mean: float = 128.0) -> GridGraph:
    if isinstance(network, str):
        graph = rewritten(network, shape, DEFAULTS["mimicnorm"]).graph
    else:
        graph = trace(network, Normalise((mean,) * shape[0], (64.0,) * shape[0]), shape, 10)
    grid = grid_graph(graph.eval(), shape, bits or GridBits())
    calibrate(grid, lambda: [images(16, shape)])
    return grid


def run(model: bytes, batch: np.ndarray[Any, np.dtype[np.uint8]], level: str, threads: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    found: np.ndarray[Any, np.dtype[np.float32]] = onnxruntime.InferenceSession(model, options).run(None, {"image": batch})[0]
    return found


CASES = {
    "small": lambda: calibrated("small", (1, 8, 8)),
    "resnet20": lambda: calibrated("resnet20", (3, 32, 32)),
    "shufflenet": lambda: calibrated("torchvision:shufflenet_v2_x0_5", (3, 64, 64)),
    "squeezenet": lambda: calibrated("torchvision:squeezenet1_1", (3, 64, 64)),
    "everything": lambda: calibrated(Everything(), (3, 14, 14)),
    "everything, 8 bits of activations": lambda: calibrated(Everything(), (3, 14, 14), GridBits(activations=8)),
    "everything, pixels from 0": lambda: calibrated(Everything(), (3, 14, 14), mean=0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_every_form_of_the_graph_has_the_same_bits(case: str) -> None:
    torch.manual_seed(0)
    grid = CASES[case]()
    classes, shape = 10, tuple(next(iter(grid.graph.graph.nodes)).meta["tensor_meta"].shape)[1:]
    batch = images(5, shape, seed=3)
    training = grid.graph.train()(batch).detach()
    folded = fold(grid.graph)
    with torch.inference_mode():
        wanted = folded(batch)
        others = [
            training,
            grid.graph.eval()(batch),
            folded(batch.to(memory_format=torch.channels_last)),
            torch.cat([folded(batch[i : i + 1]) for i in range(5)]),
            folded_from_integers(grid, integers_of(grid))(batch),
            fold(grid.graph).double()(batch).float(),
        ]
    assert wanted.std() > 0
    for other in others:
        assert torch.equal(other, wanted)
    for write in WRITERS:
        model = write(grid, shape, classes, {})
        for level in LEVELS:
            for rows in (slice(0, 5), slice(2, 3)):
                found = run(model, batch[rows].numpy(), level)
                assert np.array_equal(found.view(np.int32), wanted[rows].numpy().view(np.int32)), (write.__name__, level)


def test_the_same_graph_gives_the_same_bytes_without_a_trace_of_this_machine() -> None:
    grid = calibrated("small", (1, 8, 8))
    for write in WRITERS:
        first = write(grid, (1, 8, 8), 10, {"classes": "x"})
        assert first == write(grid, (1, 8, 8), 10, {"classes": "x"})
        model = onnx.load_model_from_string(first)
        assert (model.ir_version, [each.version for each in model.opset_import]) == (10, [20])
        assert not model.doc_string
        assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


def test_onnx_runtime_fuses_every_layer_and_join(tmp_path: Any) -> None:
    """Nothing but the classifier runs on floats.

    A Clip in front of a quantiser, or a bias in float, would prevent the fused kernels.
    """
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(exact_onnx(calibrated("resnet20", (3, 32, 32)), (3, 32, 32), 10, {}), options)
    operations = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert operations.count("QLinearConv") == 19
    assert operations.count("QLinearAdd") == 9
    assert operations.count("Conv") == 1
    assert not {"FusedConv", "Add", "Relu", "QuantizeLinear"} & set(operations)
    assert operations.count("DequantizeLinear") == 1


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="not run: tensorrt-rtx is not installed")
@pytest.mark.parametrize("case", CASES)
def test_the_parser_and_builder_of_tensorrt_rtx_take_the_file(case: str) -> None:
    import tensorrt_rtx as trt

    torch.manual_seed(0)
    grid = CASES[case]()
    shape = tuple(next(iter(grid.graph.graph.nodes)).meta["tensor_meta"].shape)[1:]
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(exact_tensorrt_onnx(grid, shape, 10, {})), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile.set_shape("image", (1, *shape), (8, *shape), (16, *shape))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    assert plan.nbytes > 1000
