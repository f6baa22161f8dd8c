"""The operations that a graph may consist of: a row for each, and the walk that reads the rows.

Tracing accepts what has a row. Methods, fold, exporter and exact grid ask the row what a node is.
Knows neither methods nor files.
"""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from export.graph.layers import DerivedConv2d, DerivedLinear, GlobalAveragePool, Normalise, ScalarBias, TrainingPart, UnfoldableLayer

# fmt: off
Kind = Literal[
    "image", "pixels", "layer", "norm", "rectifier", "addition", "concatenation",
    "max pool", "average pool", "adaptive pool", "global average", "mean",
    "padding", "flattening", "reshaping", "transposition", "split", "part", "copy", "size",
    "training only", "scalar bias", "unfoldable", "output",
]
# fmt: on
Role = Literal["image", "pixels", "layer", "add", "rectify", "average", "global average", "move", "shape", "output"]
"""What an operation does to values on the exact grid: sum, round, average, or only move them."""


@dataclass(frozen=True)
class NoRole:
    """Why an operation has no form on the exact grid."""

    why: str


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A row of the table."""

    kind: Kind
    """What it means to tracing, the methods and the fold."""
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Callable[..., Any], ...] = ()
    methods: tuple[str, ...] = ()
    """How it can be written: as a layer, as a function, as a method of a tensor."""
    onnx: tuple[str, ...] = ()
    """The ONNX operators that it becomes in a file."""
    slope: Callable[[Any], float] = lambda _: 0.0
    """For a rectifier that is a layer: the share of negative values that it lets pass."""
    grid: Role | NoRole


_IMAGE = Operation(kind="image", grid="image")
_OUTPUT = Operation(kind="output", onnx=("Identity",), grid="output")
OPERATIONS: tuple[Operation, ...] = (
    Operation(kind="pixels", modules=(Normalise,), onnx=("Cast", "Constant", "Sub", "Div"), grid="pixels"),
    Operation(kind="layer", modules=(nn.Conv2d, DerivedConv2d), onnx=("Conv",), grid="layer"),
    Operation(kind="layer", modules=(nn.Linear, DerivedLinear), onnx=("Gemm",), grid="layer"),
    Operation(kind="norm", modules=(nn.BatchNorm2d, nn.BatchNorm1d), grid=NoRole("a method has to fold it or take it out first")),
    Operation(kind="rectifier", modules=(nn.ReLU,), functions=(F.relu, torch.relu), methods=("relu",), onnx=("Relu",), grid="rectify"),
    Operation(kind="rectifier", modules=(nn.ReLU6,), functions=(F.relu6,), onnx=("Clip", "Constant"), grid="rectify"),
    Operation(
        kind="rectifier",
        modules=(nn.LeakyReLU,),
        functions=(F.leaky_relu,),
        onnx=("LeakyRelu",),
        slope=operator.attrgetter("negative_slope"),
        grid=NoRole("its slope takes negative values off the grid of the sums"),
    ),
    Operation(kind="addition", functions=(operator.add, operator.iadd, torch.add), methods=("add", "add_"), onnx=("Add",), grid="add"),
    Operation(kind="concatenation", functions=(torch.cat,), onnx=("Concat",), grid="move"),
    Operation(kind="max pool", modules=(nn.MaxPool2d,), functions=(F.max_pool2d,), onnx=("MaxPool",), grid="move"),
    Operation(kind="average pool", modules=(nn.AvgPool2d,), functions=(F.avg_pool2d,), onnx=("AveragePool",), grid="average"),
    Operation(
        kind="adaptive pool",
        modules=(nn.AdaptiveAvgPool2d,),
        functions=(F.adaptive_avg_pool2d,),
        onnx=("AveragePool", "GlobalAveragePool"),
        grid="average",
    ),
    Operation(kind="global average", modules=(GlobalAveragePool,), onnx=("ReduceMean",), grid="global average"),
    Operation(
        kind="mean",
        functions=(torch.mean,),
        methods=("mean",),
        onnx=("ReduceMean",),
        grid=NoRole("only x.mean([2, 3]) and average pools have one"),
    ),
    Operation(kind="padding", modules=(nn.ZeroPad2d,), functions=(F.pad,), onnx=("Pad", "Slice"), grid="move"),
    Operation(
        kind="flattening",
        modules=(nn.Flatten,),
        functions=(torch.flatten,),
        methods=("flatten",),
        onnx=("Flatten", "Reshape", "Shape", "Concat", "Squeeze"),
        grid="move",
    ),
    Operation(
        kind="reshaping",
        functions=(torch.reshape,),
        methods=("view", "reshape"),
        onnx=("Reshape", "Shape", "Gather", "Concat", "Squeeze", "Unsqueeze", "Constant"),
        grid="move",
    ),
    Operation(kind="transposition", functions=(torch.transpose,), methods=("transpose",), onnx=("Transpose",), grid="move"),
    Operation(kind="split", functions=(torch.chunk,), methods=("chunk",), onnx=("Split", "Slice"), grid="move"),
    Operation(kind="part", functions=(operator.getitem,), onnx=("Gather", "Slice", "Squeeze"), grid="move"),
    Operation(kind="copy", methods=("contiguous",), onnx=("Identity",), grid="move"),
    Operation(kind="size", functions=(getattr, operator.floordiv), methods=("size",), onnx=("Shape", "Gather", "Squeeze", "Div"), grid="shape"),
    Operation(kind="training only", modules=(TrainingPart, nn.Dropout, nn.Identity), grid=NoRole("evaluation leaves it out")),
    Operation(kind="scalar bias", modules=(ScalarBias,), onnx=("Add",), grid=NoRole("the number that it adds is not on the grid")),
    Operation(kind="unfoldable", modules=(UnfoldableLayer,), grid=NoRole("no weights can hold what it computes")),
)
"""What has no row is refused by name. Layers that cannot be folded name their own operators."""


def plain_operators() -> frozenset[str]:
    """The operators that the file of a folded graph may consist of.

    Exp, Mul, BatchNormalization and Dropout are absent. They would mean that something was not
    folded.
    """
    return frozenset(name for operation in (*OPERATIONS, _OUTPUT) for name in operation.onnx)


@dataclass(frozen=True)
class Step:
    """A node of a graph, and where they exist the layer it calls and the row of its operation."""

    node: Node
    layer: nn.Module | None
    operation: Operation | None

    @property
    def kind(self) -> Kind | None:
        return None if self.operation is None else self.operation.kind

    @property
    def spoken(self) -> str:
        """What a user would call it."""
        match self.node.op:
            case "call_module":
                return type(self.layer).__name__
            case "call_function":
                return getattr(self.node.target, "__name__", str(self.node.target))
            case "call_method":
                return f".{self.node.target}()"
            case _:
                return f"{self.node.op} {self.node.target}"

    @property
    def slope(self) -> float:
        """For a rectifier: the share of negative values that it lets pass."""
        assert self.operation is not None
        return self.operation.slope(self.as_layer())

    def as_layer(self) -> nn.Module:
        """The layer that computes the same, however the operation is written.

        This works because a function's arguments have the names of its layer's.
        """
        if self.layer is not None:
            return self.layer
        assert self.operation is not None
        return self.operation.modules[0](*self.node.args[1:], **self.node.kwargs)


def step_at(graph: GraphModule, node: Node) -> Step:
    """The step that stands for a node."""
    match node.op:
        case "placeholder":
            return Step(node, None, _IMAGE)
        case "output":
            return Step(node, None, _OUTPUT)
        case "call_module":
            layer = graph.get_submodule(str(node.target))
            return Step(node, layer, _row(lambda row: isinstance(layer, row.modules)))
        case "call_function":
            return Step(node, None, _row(lambda row: node.target in row.functions))
        case "call_method":
            return Step(node, None, _row(lambda row: node.target in row.methods))
        case _:
            return Step(node, None, None)


def walk(graph: GraphModule) -> Iterator[Step]:
    """Every node in the order of computation. The walk allows nodes to be removed and added."""
    for node in list(graph.graph.nodes):
        yield step_at(graph, node)


def _row(fits: Callable[[Operation], bool]) -> Operation | None:
    return next((row for row in OPERATIONS if fits(row)), None)
