"""The table of operations.

Each way of writing an operation leads to its row. A graph's file has no operators but those of its
rows. A new row is all that a new kind of layer takes.
"""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from graphs import DEFAULTS, NUM_CLASSES, images, rewrite, scatter, step
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

from export.errors import UsageError
from export.exact.grid import GridBits
from export.exact.rewrite import grid_graph
from export.graph import operations, trace
from export.graph.fold import fold
from export.graph.layers import Normalise, training_only_parts_off
from export.graph.operations import OPERATIONS, Kind, NoRole, Operation, walk
from export.onnx import onnx_from_graph

SHAPE = (3, 8, 8)
Middle = Callable[[torch.Tensor], torch.Tensor]


class WithMiddle(nn.Module):
    """A network with a given middle, which keeps 8 channels."""

    def __init__(self, middle: Middle) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 8, 3, padding=1), middle, nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.middle(self.first(x)))
        return self.last(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Reshaped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.reshape(x, (-1, 8, 8, 8))


def plain_graph(middle: Middle) -> GraphModule:
    return fold(trace(WithMiddle(middle), Normalise((128.0,) * 3, (64.0,) * 3), SHAPE, 10))


def _shuffled(x: torch.Tensor) -> torch.Tensor:
    batch, channels, height, width = x.size()
    return x.view(batch, 2, x.shape[1] // 2, height, width).transpose(1, 2).contiguous().reshape(batch, channels, height, width)


AROUND: set[Kind] = {"image", "pixels", "layer", "rectifier", "global average", "flattening", "output"}
WRITTEN: dict[str, tuple[Middle, set[Kind]]] = {
    "nn.ReLU": (nn.Sequential(nn.ReLU()), set()),
    "torch.relu": (torch.relu, set()),
    ".relu()": (lambda x: x.relu(), set()),
    "nn.ReLU6": (nn.Sequential(nn.ReLU6()), set()),
    "F.relu6": (F.relu6, set()),
    "+": (lambda x: x + F.relu(x), {"addition"}),
    "torch.add": (lambda x: torch.add(x, F.relu(x)), {"addition"}),
    ".add_()": (lambda x: F.relu(x).add_(x), {"addition"}),
    "chunk and cat": (lambda x: torch.cat((x.chunk(2, 1)[1], torch.chunk(x, 2, 1)[0]), 1), {"split", "part", "concatenation"}),
    "nn.MaxPool2d": (nn.Sequential(nn.MaxPool2d(3, 2, 1)), {"max pool"}),
    "F.max_pool2d": (lambda x: F.max_pool2d(x, kernel_size=2, ceil_mode=True), {"max pool"}),
    "nn.AvgPool2d": (nn.Sequential(nn.AvgPool2d(2)), {"average pool"}),
    "F.avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1), {"average pool"}),
    "nn.AdaptiveAvgPool2d": (nn.Sequential(nn.AdaptiveAvgPool2d(4)), {"adaptive pool"}),
    "F.adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (4, 2)), {"adaptive pool"}),
    "mean in two steps": (lambda x: x.mean([2, 3]).view(-1, 8, 1, 1), {"reshaping"}),
    "torch.mean": (lambda x: torch.mean(x, (2, 3), keepdim=True), {"mean"}),
    "nn.ZeroPad2d": (nn.Sequential(nn.ZeroPad2d((1, 0, 0, 1))), {"padding"}),
    "F.pad": (lambda x: F.pad(x, (1, 0, -1, 1)), {"padding"}),
    "shuffled channels": (_shuffled, {"size", "part", "reshaping", "transposition", "copy"}),
    "nn.Flatten": (nn.Sequential(nn.Flatten(2), Reshaped()), {"reshaping"}),
    "a slice": (lambda x: x[:, :, 1:, ::2], {"part"}),
    "nn.Dropout and nn.Identity": (nn.Sequential(nn.Dropout(0.5), nn.Identity()), set()),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_each_way_of_writing_an_operation_leads_to_its_row_and_its_operators(how: str) -> None:
    middle, kinds = WRITTEN[how]
    graph = plain_graph(middle)
    steps = list(walk(graph))
    assert {step.kind for step in steps} == AROUND | kinds
    allowed = {name for step in steps if step.operation for name in step.operation.onnx}
    file = onnx.load_from_string(onnx_from_graph(graph, SHAPE, {}))
    assert {node.op_type for node in file.graph.node} <= allowed


def test_no_two_rows_claim_one_way_of_writing() -> None:
    for column in ("modules", "functions", "methods"):
        written = [each for row in OPERATIONS for each in getattr(row, column)]
        assert written
        assert len(written) == len(set(written)), column
    modules = [each for row in OPERATIONS for each in row.modules]
    assert not [(one, other) for one in modules for other in modules if one is not other and issubclass(one, other)]


def test_a_row_without_a_form_on_the_grid_says_why() -> None:
    reasons = [row.grid.why for row in OPERATIONS if isinstance(row.grid, NoRole)]
    assert reasons
    assert all(reasons)


@pytest.mark.parametrize(
    "function",
    [F.relu6, lambda x: F.max_pool2d(x, 2, padding=1), lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), torch.relu],
)
def test_a_function_is_the_layer_that_it_is_told_as(function: Middle) -> None:
    graph = plain_graph(function)
    step = list(walk(graph))[3]
    x = torch.randn(2, 8, 6, 6)
    assert step.layer is None
    assert torch.equal(step.as_layer()(x), function(x))


class Residual(nn.Module):
    """One residual unit of layers, norms and a given kind of layer."""

    def __init__(self, kind: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, NUM_CLASSES)
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), kind(), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.branch(x))
        return self.last(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


NEW: dict[str, tuple[Callable[[], nn.Module], Operation]] = {
    "ChannelShuffle": (
        lambda: nn.ChannelShuffle(2),
        Operation(kind="transposition", modules=(nn.ChannelShuffle,), onnx=("Reshape", "Transpose"), grid=NoRole("nobody wrote one")),
    ),
    "Hardtanh": (
        lambda: nn.Hardtanh(0.0, 1.0),
        Operation(kind="rectifier", modules=(nn.Hardtanh,), onnx=("Clip", "Constant"), grid=NoRole("its bounds are on no grid")),
    ),
    "PReLU": (
        lambda: nn.PReLU(init=0.25),
        Operation(kind="rectifier", modules=(nn.PReLU,), onnx=("PRelu",), slope=lambda layer: layer.weight.item(), grid=NoRole("its slope rounds")),
    ),
}


EXPORTED = ("czmig", "fixup", "groupnorm")
"""Exporting takes seconds: plain layers, layers with their own scalars, layers that do not fold."""


def _traced(kind: Callable[[], nn.Module]) -> GraphModule:
    torch.manual_seed(0)
    return trace(Residual(kind), Normalise((128.0,) * 3, (64.0,) * 3), SHAPE, NUM_CLASSES)


@pytest.mark.parametrize("name", NEW)
def test_one_row_is_all_that_a_new_kind_of_layer_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the row, the layer is refused by name.

    With the row, every method, the fold and the exporter take it. The grid gives the row's reason.
    """
    kind, row = NEW[name]
    with pytest.raises(UsageError, match=f"{name} at network.branch.2.* is not a plain layer"):
        _traced(kind)
    monkeypatch.setattr(operations, "OPERATIONS", (*OPERATIONS, row))
    for method, options in DEFAULTS.items():
        training = rewrite(_traced(kind), options)
        step(training, images(4, SHAPE), rate=1e-3)
        scatter(training)
        folded, batch = fold(training.graph), images(16, SHAPE, seed=1)
        with torch.no_grad(), training_only_parts_off(training.graph.train()):
            in_training = training.graph(batch)
        with torch.no_grad():
            assert torch.equal(in_training, training.graph.eval()(batch)), method
            assert torch.equal(in_training, folded(batch)), method
        if method in EXPORTED:
            session = onnxruntime.InferenceSession(onnx_from_graph(folded, SHAPE, {}), providers=["CPUExecutionProvider"])
            (logits,) = session.run(None, {"image": batch.numpy()})
            # A loose bound against gross faults, as in test_onnx.py. test_every_pair.py checks the
            # operations of the table against the derived bound.
            assert np.abs(logits - in_training.numpy()).max() < 1e-4, method
    assert isinstance(row.grid, NoRole)
    with pytest.raises(UsageError, match=f"{name} has no form there: {row.grid.why}; set exact.enabled: false"):
        grid_graph(rewrite(_traced(kind), DEFAULTS["nonorm"]).graph, SHAPE, GridBits())
