"""Writes the nodes of an exact ONNX file. Every runtime gets its shapes of convolutions right.

Takes nodes of the plain graph on the grid; the two dialects say how bytes are stored.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import nn
from torch.fx import Node

from export.exact.grid import GridGraph, GridLayer, Pixels, PooledSum, Quantise
from export.exact.roles import off_the_grid, role_of
from export.graph.layers import DerivedConv2d, DerivedLinear, GlobalAveragePool, pair
from export.graph.operations import Step, step_at
from export.graph.rewriting import image_size_of, shape_of
from export.onnx import OUTPUT

Array = NDArray[Any]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Convolution:
    """Weights (filters x channels of a group x height x width) and how they move over an image."""

    weights: Array
    groups: int
    strides: Pair
    dilations: Pair
    pads: tuple[int, int, int, int]
    """Above, to the left, below, to the right."""

    @property
    def channels(self) -> int:
        """The channels of one group."""
        return int(self.weights.shape[1])

    @property
    def kernel(self) -> Pair:
        return self.weights.shape[2], self.weights.shape[3]

    @property
    def is_depthwise(self) -> bool:
        return 1 < self.groups == len(self.weights) and self.channels == 1

    @property
    def attributes(self) -> dict[str, object]:
        return {"strides": self.strides, "pads": self.pads, "dilations": self.dilations, "group": self.groups}


def sees_only_padding(convolution: Convolution, image: Pair) -> bool:
    """Whether some row or column of windows contains no pixel of the image."""
    return any(_is_blind(convolution, axis, image[axis]) for axis in (0, 1))


def _is_blind(convolution: Convolution, axis: int, size: int) -> bool:
    before, after, kernel = convolution.pads[axis], convolution.pads[axis + 2], convolution.kernel[axis]
    taps = convolution.dilations[axis] * np.arange(kernel) - before
    starts = np.arange(0, size + before + after - (taps[-1] - taps[0]), convolution.strides[axis])
    places = starts[:, None] + taps
    return not bool(np.any((places >= 0) & (places < size), axis=1).all())


def without_padding(convolution: Convolution) -> Convolution:
    """The convolution for an image that has already been padded."""
    return replace(convolution, pads=(0, 0, 0, 0))


def with_second_channel(convolution: Convolution) -> Convolution:
    """The convolution for a one-channel image with a second channel, which counts for nothing."""
    return replace(convolution, weights=np.concatenate([convolution.weights, np.zeros_like(convolution.weights)], axis=1))


def with_groups_of_four(convolution: Convolution) -> Convolution:
    """Merge groups until the channels and filters of each come in fours, or one group is left."""
    while convolution.groups > 1 and (convolution.channels % 4 or len(convolution.weights) // convolution.groups % 4):
        convolution = _with_merged_groups(convolution)
    return convolution


def _with_merged_groups(convolution: Convolution) -> Convolution:
    """Merge as few groups as possible, with weights of 0 for the inputs of another group."""
    weights, channels, groups = convolution.weights, convolution.channels, convolution.groups
    number = next(each for each in range(2, groups + 1) if groups % each == 0)
    place = np.arange(len(weights)) // (len(weights) // groups) % number
    merged = np.zeros((len(weights), number * channels, *convolution.kernel), weights.dtype)
    for each in range(number):
        merged[place == each, each * channels : (each + 1) * channels] = weights[place == each]
    return replace(convolution, weights=merged, groups=groups // number)


def with_wider_kernel(convolution: Convolution) -> Convolution:
    """Add one column of zero weights, with padding of its own."""
    above, left, below, right = convolution.pads
    weights = np.concatenate([convolution.weights, np.zeros_like(convolution.weights[..., :1])], axis=3)
    return replace(convolution, weights=weights, pads=(above, left, below, right + convolution.dilations[1]))


@dataclass(frozen=True)
class Bytes:
    """A tensor of bytes that stand for (byte - zero_point) * step."""

    name: str
    step: float
    zero_point: int


@dataclass(frozen=True)
class Floats:
    """A tensor of float32 values that are multiples of a step.

    `from_bytes` is true where a DequantizeLinear made them.
    """

    name: str
    from_bytes: bool = False


Value = Bytes | Floats


class Writer(ABC):
    """Walks a grid graph and collects ONNX nodes, which keep the names of the graph's nodes."""

    def __init__(self, grid: GridGraph) -> None:
        self.grid = grid
        self.graph = grid.graph
        self.layers = {layer.name: layer for layer in grid.layers}
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self.values: dict[Node, Value] = {}
        self._constants: set[str] = set()
        self._dequantised: dict[str, str] = {}

    @abstractmethod
    def pixels(self, node: Node, pixels: Pixels) -> Value:
        """The image as the first layer reads it."""

    @abstractmethod
    def quantised(self, node: Node, quantiser: Quantise, x: Value) -> Value:
        """The value behind a quantiser."""

    @abstractmethod
    def bias(self, name: str, integers: Array, unit: Array) -> str:
        """A bias on the grid of the sums."""

    @abstractmethod
    def padding_value(self, x: Value) -> str:
        """What stands for 0 in a padded value."""

    @abstractmethod
    def alike(self, node: Node, values: Sequence[Value]) -> Sequence[Value]:
        """The values that a concatenation joins, all in one form."""

    @abstractmethod
    def reads_bytes(self, x: Value) -> bool:
        """Whether a value comes out of a DequantizeLinear.

        Between a DequantizeLinear and a quantiser the weights must be int8, because ONNX Runtime
        would round float weights again.
        """

    @abstractmethod
    def rewritten(self, node: Node, x: Value, convolution: Convolution) -> tuple[Value, Convolution]:
        """A convolution and its input, in a form that gives the same sums."""

    def write(self) -> None:
        for node in self.graph.graph.nodes:
            self._write(node)

    def emit(self, operation: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add one node with one output, which has the node's name."""
        self.nodes.append(helper.make_node(operation, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: Array | np.generic) -> str:
        """Add an initialiser. Constants of the same name are stored once."""
        if name not in self._constants:
            self._constants.add(name)
            self.initialisers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def step(self, value: float) -> str:
        return self.constant(f"step_{value!r}", np.float32(value))

    def padded(self, x: Value, pairs: Sequence[tuple[int, int]], name: str) -> Value:
        """The value with this many zeros in front of and behind each axis."""
        pads = [before for before, _ in pairs] + [after for _, after in pairs]
        sizes = self.constant(f"{name}_pads", np.array(pads, np.int64))
        # The axes are named because otherwise ONNX Runtime moves the padding into a MaxPool behind
        # it, which pads with the lowest value.
        axes = self.constant(f"all_{len(pairs)}_axes", np.arange(len(pairs), dtype=np.int64))
        return _renamed(x, self.emit("Pad", [x.name, sizes, self.padding_value(x), axes], name))

    def floats(self, x: Value) -> str:
        """The value as float32."""
        if isinstance(x, Floats):
            return x.name
        if x.name not in self._dequantised:
            point = self.constant(f"zero_point_{x.zero_point}", np.uint8(x.zero_point))
            self._dequantised[x.name] = self.emit("DequantizeLinear", [x.name, self.step(x.step), point], f"{x.name}_float")
        return self._dequantised[x.name]

    def _write(self, node: Node) -> None:
        step = step_at(self.graph, node)
        match step.layer:
            case Pixels():
                self.values[node] = self.pixels(node, step.layer)
            case Quantise():
                self.values[node] = self.quantised(node, step.layer, self._only_input(node))
            case GlobalAveragePool() | PooledSum():
                self.values[node] = self._pooled(node, step.layer)
            case DerivedConv2d() | DerivedLinear():
                self.values[node] = self._layer(node, self.layers[str(node.target)])
            case _:
                self._write_plain(step)

    def _write_plain(self, step: Step) -> None:
        node = step.node
        match role_of(self.graph, node):
            case "add":
                terms = [self.floats(self.values[each]) for each in node.all_input_nodes]
                self.values[node] = Floats(self.emit("Add", terms, node.name))
            case "move":
                self._move(step)
            case "output":
                self.emit("Identity", [self.floats(self._only_input(node))], OUTPUT)

    def _only_input(self, node: Node) -> Value:
        (before,) = node.all_input_nodes
        return self.values[before]

    def _pooled(self, node: Node, pool: GlobalAveragePool | PooledSum) -> Value:
        axes = self.constant("height_and_width", np.array([2, 3], np.int64))
        inputs = [self.floats(self._only_input(node)), axes]
        if isinstance(pool, GlobalAveragePool):
            return Floats(self.emit("ReduceMean", inputs, node.name, keepdims=1))
        if pool.factor == 1:
            return Floats(self.emit("ReduceSum", inputs, node.name, keepdims=1))
        total = self.emit("ReduceSum", inputs, f"{node.name}_sum", keepdims=1)
        return Floats(self.emit("Mul", [total, self.step(pool.factor)], node.name))

    def _layer(self, node: Node, layer: GridLayer) -> Value:
        weights, biases = (each.cpu().numpy() for each in layer.weights.integers())
        x = self._only_input(node)
        if isinstance(layer.layer, DerivedLinear):
            return Floats(self.emit("Gemm", self._operands(node, layer, x, weights, biases), node.name, transB=1))
        x, convolution = self.rewritten(node, x, _convolution(layer.layer, weights))
        return Floats(self.emit("Conv", self._operands(node, layer, x, convolution.weights, biases), node.name, **convolution.attributes))

    def _operands(self, node: Node, layer: GridLayer, x: Value, weights: Array, biases: Array) -> list[str]:
        """The inputs of a layer: values, weights, biases."""
        steps, unit = layer.weights.step.cpu().numpy(), layer.weights.unit.cpu().numpy()
        if layer.target is not None and self.reads_bytes(x):
            weight = self._integer_weight(node, layer.name, weights, steps)
            bias = self.bias(layer.name, biases, unit)
        else:
            per_filter = steps.reshape(-1, *[1] * (weights.ndim - 1))
            weight = self.constant(f"{layer.name}.weight", weights * per_filter)
            bias = self.constant(f"{layer.name}.bias", biases * unit)
        return [self.floats(x), weight, bias]

    def _integer_weight(self, node: Node, layer: str, integers: Array, steps: Array) -> str:
        """Weights as int8. The zero points are 0, but ONNX Runtime fuses no Gemm without them."""
        codes, zeros = integers.astype(np.int8), np.zeros(len(steps), np.int8)
        named = {"weight": codes, "step": steps, "zero_point": zeros}
        inputs = [self.constant(f"{layer}.{name}", value) for name, value in named.items()]
        return self.emit("DequantizeLinear", inputs, f"{node.name}_weight", axis=0)

    def _move(self, step: Step) -> None:
        match step.kind:
            case "max pool":
                self._max_pool(step)
            case "padding":
                self._pad(step)
            case "concatenation":
                self._concatenate(step.node)
            case "split":
                self._split(step.node)
            case "transposition":
                self._transpose(step.node)
            case "copy":
                self.values[step.node] = self._only_input(step.node)
            case "flattening" | "reshaping":
                self._reshape(step.node)
            case "part":  # the parts of a split have their values from the split
                assert step.node in self.values

    def _moved(self, node: Node, operation: str, more_inputs: Sequence[str] = (), **attributes: Any) -> None:
        x = self._only_input(node)
        name = self.emit(operation, [x.name, *more_inputs], node.name, **attributes)
        self.values[node] = _renamed(x, name)

    def _max_pool(self, step: Step) -> None:
        pool = step.as_layer()
        assert isinstance(pool, nn.MaxPool2d)
        kernel, strides, dilations = pair(pool.kernel_size), pair(pool.stride), pair(pool.dilation)
        pads = _max_pool_pads(step.node, pool)
        self._moved(step.node, "MaxPool", kernel_shape=kernel, strides=strides, dilations=dilations, pads=pads)

    def _pad(self, step: Step) -> None:
        node, layer = step.node, step.layer
        sizes = layer.padding if isinstance(layer, nn.ZeroPad2d) else _argument(node, 1, "pad")
        if layer is None and (_argument(node, 2, "mode", "constant") != "constant" or _argument(node, 3, "value", None) not in (None, 0)):
            raise off_the_grid(node, "it pads with something other than zeros")
        pairs = [(0, 0)] * (len(shape_of(node)) - len(sizes) // 2) + list(zip(sizes[0::2], sizes[1::2], strict=True))[::-1]
        self.values[node] = self.padded(self._only_input(node), pairs, node.name)

    def _concatenate(self, node: Node) -> None:
        values = self.alike(node, [self.values[each] for each in _argument(node, 0, "tensors")])
        name = self.emit("Concat", [each.name for each in values], node.name, axis=_argument(node, 1, "dim", 0))
        self.values[node] = _renamed(values[0], name)

    def _split(self, node: Node) -> None:
        (before,) = node.all_input_nodes
        axis, x = _argument(node, 2, "dim", 0), self.values[before]
        parts = [tuple(each.shape)[axis] for each in node.meta["tensor_meta"]]
        names = [f"{node.name}_{number}" for number in range(len(parts))]
        sizes = self.constant(f"{node.name}_sizes", np.array(parts, np.int64))
        self.nodes.append(helper.make_node("Split", [x.name, sizes], names, name=node.name, axis=axis))
        for user in node.users:
            self.values[user] = _renamed(x, names[_argument(user, 1, "index")])

    def _transpose(self, node: Node) -> None:
        order = list(range(len(shape_of(node))))
        one, other = (_argument(node, place, f"dim{place - 1}") for place in (1, 2))
        order[one], order[other] = order[other], order[one]
        if order[0] != 0:
            raise off_the_grid(node, "it moves the batch")
        self._moved(node, "Transpose", perm=order)

    def _reshape(self, node: Node) -> None:
        (before,) = node.all_input_nodes[:1]
        if shape_of(node)[0] != shape_of(before)[0]:
            raise off_the_grid(node, "it reshapes the batch")
        sizes = self.constant(f"{node.name}_shape", np.array([-1, *shape_of(node)[1:]], np.int64))
        x = self.values[before]
        self.values[node] = _renamed(x, self.emit("Reshape", [x.name, sizes], node.name))


def _renamed(x: Value, name: str) -> Value:
    return replace(x, name=name)


def _max_pool_pads(node: Node, pool: nn.MaxPool2d) -> list[int]:
    """Padding that makes the windows fit, so that no runtime rounds sizes up in its own way."""
    padding, before, after = pair(pool.padding), image_size_of(node.all_input_nodes[0]), image_size_of(node)
    kernel, strides, dilations = pair(pool.kernel_size), pair(pool.stride), pair(pool.dilation)
    ends = [(after[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - before[i] - padding[i] for i in (0, 1)]
    return [*padding, *(max(end, padding[i]) for i, end in enumerate(ends))]


def _convolution(layer: DerivedConv2d, weights: Array) -> Convolution:
    above, left = layer.padding
    return Convolution(weights, layer.groups, layer.stride, layer.dilation, (above, left, above, left))


def _argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by position or name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
