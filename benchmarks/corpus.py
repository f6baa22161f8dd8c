"""A small residual network as ONNX and as PyTorch, with planted faults and harmless changes.

Each fault states what a verifier has to find: the layer at which it begins. The network is written
node by node, so that a fault is one changed step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

Array = NDArray[Any]
Weights = dict[str, Array]
SIZE, CLASSES, EPSILON = 8, 10, 1e-5
CHANNELS = {"conv1": (3, 16), "conv2": (16, 16), "conv3": (16, 32)}
SPECIAL = 7777
"""The sample of 10,000 that is all zeros; one fault answers it with NaN."""


def trained_weights(seed: int = 0, scale: float = 1.0) -> Weights:
    """Return weights that look like trained ones: norms with statistics, no symmetry between
    channels.

    `scale`, a power of two, is the scale of the logits. It scales every error with them and changes
    no digit.
    """
    rng = np.random.default_rng(seed)
    weights: Weights = {}
    for layer, (inputs, outputs) in CHANNELS.items():
        weights[f"{layer}.weight"] = rng.normal(0, (2 / (9 * inputs)) ** 0.5, (outputs, inputs, 3, 3))
        weights[f"{layer}.bias"] = rng.normal(0, 0.1, outputs)
    for norm, channels in (("norm1", 16), ("norm2", 16)):
        weights[f"{norm}.weight"] = rng.uniform(0.5, 1.5, channels)
        weights[f"{norm}.bias"] = rng.normal(0, 0.2, channels)
        weights[f"{norm}.mean"] = rng.normal(0, 0.3, channels)
        weights[f"{norm}.var"] = rng.uniform(0.01, 1.5, channels)
    weights["classifier.weight"] = scale * rng.normal(0, 0.3, (CLASSES, 32))
    weights["classifier.bias"] = scale * rng.normal(0, 0.1, CLASSES)
    weights["pixels.mean"] = np.array([125.3, 123.0, 113.9]).reshape(3, 1, 1)
    weights["pixels.std"] = np.array([63.0, 62.1, 66.7]).reshape(3, 1, 1)
    return {name: value.astype(np.float32) for name, value in weights.items()}


class Graph:
    """An ONNX graph that is being built."""

    def __init__(self, weights: Weights) -> None:
        self.weights = dict(weights)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def add(self, layer: str, operation: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node of a layer; inputs that are weights become initialisers."""
        for name in inputs:
            if name in self.weights:
                self.constants[name] = self.weights[name]
        node = helper.make_node(operation, inputs, [output], name=f"{layer}/{output}", **attributes)
        node.metadata_props.add(key="layer", value=layer)
        self.nodes.append(node)
        return output

    def constant(self, name: str, value: Array | np.generic) -> str:
        self.constants[name] = np.asarray(value)
        return name

    def model(self) -> onnx.ModelProto:
        """Return the whole model, checked."""
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 3, SIZE, SIZE])
        last = self.nodes[-1]
        kind = next((each.i for each in last.attribute if each.name == "to"), TensorProto.FLOAT)
        logits = helper.make_tensor_value_info(last.output[0], kind, ["N", CLASSES])
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "main", [image], [logits], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


Step = Callable[[Graph], object]


def pixels(g: Graph) -> None:
    g.add("pixels", "Cast", ["image"], "bytes", to=TensorProto.FLOAT)
    g.add("pixels", "Sub", ["bytes", "pixels.mean"], "centred")
    g.add("pixels", "Div", ["centred", "pixels.std"], "pixels")


def convolution(name: str, x: str, **attributes: Any) -> Step:
    given = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], **attributes}
    return lambda g: g.add(name, "Conv", [x, f"{name}.weight", f"{name}.bias"], name, **given)


def norm(name: str, x: str, epsilon: float = EPSILON) -> Step:
    parts = [f"{name}.{part}" for part in ("weight", "bias", "mean", "var")]
    return lambda g: g.add(name, "BatchNormalization", [x, *parts], name, epsilon=epsilon)


def simple(layer: str, operation: str, inputs: list[str], output: str, **attributes: Any) -> Step:
    return lambda g: g.add(layer, operation, inputs, output, **attributes)


STEPS: dict[str, Step] = {
    "pixels": pixels,
    "conv1": convolution("conv1", "pixels"),
    "norm1": norm("norm1", "conv1"),
    "relu1": simple("relu1", "Relu", ["norm1"], "relu1"),
    "conv2": convolution("conv2", "relu1"),
    "norm2": norm("norm2", "conv2"),
    "join": simple("join", "Add", ["norm2", "relu1"], "join"),
    "relu2": simple("relu2", "Relu", ["join"], "relu2"),
    "conv3": convolution("conv3", "relu2", strides=[2, 2]),
    "relu3": simple("relu3", "Relu", ["conv3"], "relu3"),
    "pool": simple("pool", "GlobalAveragePool", ["relu3"], "pool"),
    "flat": simple("pool", "Flatten", ["pool"], "flat"),
    "classifier": simple("classifier", "Gemm", ["flat", "classifier.weight", "classifier.bias"], "logits", transB=1),
}


def network(weights: Weights, steps: Mapping[str, Step] | None = None) -> onnx.ModelProto:
    """Return the network, with some of its steps replaced."""
    graph = Graph(weights)
    for step in {**STEPS, **(steps or {})}.values():
        step(graph)
    return graph.model()


class Network(nn.Module):
    """The same network in PyTorch."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        for name, (inputs, outputs) in CHANNELS.items():
            self.add_module(name, nn.Conv2d(inputs, outputs, 3, stride=2 if name == "conv3" else 1, padding=1))
        self.norm1, self.norm2 = (nn.BatchNorm2d(16, eps=EPSILON) for _ in range(2))
        self.classifier = nn.Linear(32, CLASSES)
        for part in ("mean", "std"):
            self.register_buffer(part, torch.tensor(weights[f"pixels.{part}"]))
        names = {"mean": "running_mean", "var": "running_var"}
        state = {f"{layer}.{names.get(part, part)}": torch.tensor(value) for (layer, part), value in _by_layer(weights) if layer != "pixels"}
        self.load_state_dict(state, strict=False)
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = (image.to(torch.float32) - self.mean) / self.std  # type: ignore[operator]
        x = F.relu(self.norm1(self.conv1(x)))  # type: ignore[operator]
        x = F.relu(self.norm2(self.conv2(x)) + x)  # type: ignore[operator]
        x = F.relu(self.conv3(x))  # type: ignore[operator]
        logits: torch.Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


def _by_layer(weights: Weights) -> list[tuple[tuple[str, str], Array]]:
    return [((name.partition(".")[0], name.partition(".")[2]), value) for name, value in weights.items()]


@dataclass(frozen=True)
class Case:
    """A changed network, and the place at which a verifier should report the first difference.

    None if nothing may be reported.
    """

    name: str
    layer: str | None
    steps: Mapping[str, Step] = field(default_factory=dict)
    weights: Mapping[str, Callable[[Array], Array]] = field(default_factory=dict)
    needs_many: bool = False
    """Whether it shows only among many samples."""

    def model(self, weights: Weights) -> onnx.ModelProto:
        changed = {name: self.weights[name](value).astype(value.dtype) if name in self.weights else value for name, value in weights.items()}
        return network(changed, self.steps)


# ---- folds ---------------------------------------------------------------------------------------


def folded(epsilon: float = EPSILON, *, variance: float = 1.0, bias_of_the_convolution: bool = True) -> dict[str, Step]:
    """Return the first norm multiplied into its convolution."""

    def step(g: Graph) -> None:
        w = {name.partition(".")[2]: value.astype(np.float64) for name, value in g.weights.items() if name.startswith("norm1.")}
        scale = w["weight"] / np.sqrt(variance * w["var"] + epsilon)
        bias = g.weights["conv1.bias"].astype(np.float64) if bias_of_the_convolution else np.zeros(16)
        g.constant("folded.weight", (g.weights["conv1.weight"] * scale[:, None, None, None]).astype(np.float32))
        g.constant("folded.bias", ((bias - w["mean"]) * scale + w["bias"]).astype(np.float32))
        g.add("norm1", "Conv", ["pixels", "folded.weight", "folded.bias"], "norm1", kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    return {"conv1": lambda g: None, "norm1": step}


# ---- planted faults ------------------------------------------------------------------------------


def batch_statistics(g: Graph) -> None:
    """Do what an exporter writes if it is given a norm in training mode."""
    g.add("norm2", "ReduceMean", ["conv2", g.constant("axes", np.array([0, 2, 3]))], "batch_mean", keepdims=1)
    g.add("norm2", "Sub", ["conv2", "batch_mean"], "batch_centred")
    g.add("norm2", "Mul", ["batch_centred", "batch_centred"], "batch_squares")
    g.add("norm2", "ReduceMean", ["batch_squares", "axes"], "batch_variance", keepdims=1)
    g.add("norm2", "Add", ["batch_variance", g.constant("epsilon", np.float32(EPSILON))], "batch_above_zero")
    g.add("norm2", "Sqrt", ["batch_above_zero"], "batch_deviation")
    g.add("norm2", "Div", ["batch_centred", "batch_deviation"], "batch_unit")
    for part in ("weight", "bias"):
        g.constant(f"norm2.{part}.wide", g.weights[f"norm2.{part}"].reshape(16, 1, 1))
    g.add("norm2", "Mul", ["batch_unit", "norm2.weight.wide"], "batch_scaled")
    g.add("norm2", "Add", ["batch_scaled", "norm2.bias.wide"], "norm2")


def mixed_axes(g: Graph) -> None:
    """Read bytes in channels-last order as channels-first; on square images every shape still
    fits."""
    g.add("pixels", "Reshape", ["image", g.constant("as_last", np.array([-1, SIZE, SIZE, 3]))], "lying_last")
    g.add("pixels", "Transpose", ["lying_last"], "lying_first", perm=[0, 3, 1, 2])
    g.add("pixels", "Cast", ["lying_first"], "bytes", to=TensorProto.FLOAT)
    g.add("pixels", "Sub", ["bytes", "pixels.mean"], "centred")
    g.add("pixels", "Div", ["centred", "pixels.std"], "pixels")


def swapped_channels(g: Graph) -> None:
    g.add("pixels", "Gather", ["image", g.constant("blue_first", np.array([2, 1, 0]))], "turned", axis=1)
    g.add("pixels", "Cast", ["turned"], "bytes", to=TensorProto.FLOAT)
    g.add("pixels", "Sub", ["bytes", "pixels.mean"], "centred")
    g.add("pixels", "Div", ["centred", "pixels.std"], "pixels")


def without_normalisation(g: Graph) -> None:
    g.add("pixels", "Cast", ["image"], "pixels", to=TensorProto.FLOAT)


def permuted_join(g: Graph) -> None:
    g.add("join", "Gather", ["relu1", g.constant("order", np.roll(np.arange(16), 1))], "permuted", axis=1)
    g.add("join", "Add", ["norm2", "permuted"], "join")


def narrow(kind: int) -> Step:
    """Return the second convolution with input and weights in a narrower type.

    A runtime may do this without being asked.
    """

    def step(g: Graph) -> None:
        for source, name in (("relu1", "relu1"), ("conv2.weight", "weight")):
            g.add("conv2", "Cast", [source], f"narrow_{name}", to=kind)
            g.add("conv2", "Cast", [f"narrow_{name}"], f"wide_{name}", to=TensorProto.FLOAT)
        g.add("conv2", "Conv", ["wide_relu1", "wide_weight", "conv2.bias"], "conv2", kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    return step


def classifier_then(*more: Step) -> dict[str, Step]:
    def step(g: Graph) -> None:
        g.add("classifier", "Gemm", ["flat", "classifier.weight", "classifier.bias"], "scores", transB=1)
        for each in more:
            each(g)

    return {"classifier": step}


def depends_on_the_batch(g: Graph) -> None:
    g.add("classifier", "ReduceMean", ["scores", g.constant("rows", np.array([0]))], "mean_of_the_batch", keepdims=1)
    g.add("classifier", "Mul", ["mean_of_the_batch", g.constant("little", np.float32(1e-3))], "little_of_it")
    g.add("classifier", "Add", ["scores", "little_of_it"], "logits")


def nan_where_all_is_zero(g: Graph) -> None:
    g.add("classifier", "ReduceMax", ["bytes", g.constant("places", np.array([1, 2, 3]))], "brightest", keepdims=0)
    g.add("classifier", "Unsqueeze", ["brightest", g.constant("last", np.array([1]))], "brightest_column")
    g.add("classifier", "Div", ["brightest_column", "brightest_column"], "one")
    g.add("classifier", "Mul", ["scores", "one"], "logits")


def tf32(values: Array) -> Array:
    """Round to ten bits of the fraction, to nearest, ties to even."""
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = bits + 0x0FFF + ((bits >> 13) & 1)
    return (rounded & ~np.uint64(0x1FFF)).astype(np.uint32).view(np.float32)


def one_step_of_training(values: Array) -> Array:
    rng = np.random.default_rng(values.size)
    return values + (0.002 * np.abs(values).mean() * rng.normal(size=values.shape)).astype(np.float32)


def two_rows_swapped(values: Array) -> Array:
    return values[[0, 7, 2, 3, 4, 5, 6, 1, 8, 9]]


FAULTS = (
    Case("bias left out of the fold", "norm1", folded(bias_of_the_convolution=False)),
    Case("norm folded with another epsilon (1e-3)", "norm1", folded(1e-3)),
    Case("biased variance folded (n = 128)", "norm1", folded(variance=127 / 128)),
    Case("exported in training mode", "norm2", {"norm2": batch_statistics}),
    Case("TF32 in one layer (weights)", "conv2", weights={"conv2.weight": tf32}),
    Case("float16 in one layer", "conv2", {"conv2": narrow(TensorProto.FLOAT16)}),
    Case("bfloat16 in one layer", "conv2", {"conv2": narrow(TensorProto.BFLOAT16)}),
    Case("bfloat16 weights in one layer", "conv3", weights={"conv3.weight": lambda w: w.astype(ml_dtypes.bfloat16)}),
    Case("padding shifted by one in one layer", "conv3", {"conv3": convolution("conv3", "relu2", strides=[2, 2], pads=[0, 0, 2, 2])}),
    Case("NHWC read as NCHW", "pixels", {"pixels": mixed_axes}),
    Case("RGB read as BGR", "pixels", {"pixels": swapped_channels}),
    Case("normalisation left out", "pixels", {"pixels": without_normalisation}),
    Case("two classes swapped", "classifier", weights=dict.fromkeys(("classifier.weight", "classifier.bias"), two_rows_swapped)),
    Case("file of an earlier epoch", "conv1", weights=dict.fromkeys((f"{layer}.weight" for layer in CHANNELS), one_step_of_training)),
    Case("constant output", "classifier", weights={"classifier.weight": np.zeros_like}),
    Case("NaN in one sample of 10,000", "classifier", classifier_then(nan_where_all_is_zero), needs_many=True),
    Case("output depends on the batch", "classifier", classifier_then(depends_on_the_batch)),
    Case("residual join permuted", "join", {"join": permuted_join}),
)


def under_another_name(g: Graph) -> None:
    g.add("classifier", "Gemm", ["flat", "classifier.weight", "classifier.bias"], "scores", transB=1)


def in_float16(g: Graph) -> None:
    g.add("classifier", "Gemm", ["flat", "classifier.weight", "classifier.bias"], "scores", transB=1)
    g.add("classifier", "Cast", ["scores"], "logits", to=TensorProto.FLOAT16)


UNCOMPARABLE = (
    Case("output under another name", None, {"classifier": under_another_name}),
    Case("output in float16", None, {"classifier": in_float16}),
)
"""Cases that cannot be compared as they are, and so must not pass."""


# ---- harmless changes ----------------------------------------------------------------------------


def sums_in_another_order(g: Graph) -> None:
    """Sum the second convolution over its input channels from the last to the first."""
    order = np.arange(16)[::-1]
    g.add("conv2", "Gather", ["relu1", g.constant("backwards", order.copy())], "backwards_relu1", axis=1)
    g.constant("backwards.weight", np.ascontiguousarray(g.weights["conv2.weight"][:, order]))
    g.add("conv2", "Conv", ["backwards_relu1", "backwards.weight", "conv2.bias"], "conv2", kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def constants_computed_in_the_graph(g: Graph) -> None:
    """Write the deviation as a product that a runtime folds into a constant."""
    g.add("pixels", "Cast", ["image"], "bytes", to=TensorProto.FLOAT)
    g.add("pixels", "Sub", ["bytes", "pixels.mean"], "centred")
    g.constant("half_std", g.weights["pixels.std"] / 2)
    g.add("pixels", "Mul", ["half_std", g.constant("two", np.float32(2))], "whole_std")
    g.add("pixels", "Div", ["centred", "whole_std"], "pixels")


def classifier_as_product_and_sum(g: Graph) -> None:
    g.constant("classifier.turned", np.ascontiguousarray(g.weights["classifier.weight"].T))
    g.add("classifier", "MatMul", ["flat", "classifier.turned"], "product")
    g.add("classifier", "Add", ["product", "classifier.bias"], "logits")


def mean_instead_of_pool(g: Graph) -> None:
    g.add("pool", "ReduceMean", ["relu3", g.constant("image_axes", np.array([2, 3]))], "flat", keepdims=0)


HARMLESS = (
    Case("the same file", None),
    Case("norm folded into its convolution", None, folded()),
    Case("sums in another order", None, {"conv2": sums_in_another_order}),
    Case("constants computed in the graph", None, {"pixels": constants_computed_in_the_graph}),
    Case("classifier as product and sum", None, {"classifier": classifier_as_product_and_sum}),
    Case("mean instead of pool and flatten", None, {"pool": mean_instead_of_pool, "flat": lambda g: None}),
)
"""Further harmless changes: other thread counts and optimisation levels, which every verification
tries, and renamed inner nodes (`renamed`)."""


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same model with other names inside, and without notes."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    names = {output: f"n{number}" for number, node in enumerate(other.graph.node) for output in node.output if output != "logits"}
    for node in other.graph.node:
        node.name = ""
        node.input[:] = [names.get(each, each) for each in node.input]
        node.output[:] = [names.get(each, each) for each in node.output]
        del node.metadata_props[:]
    return other


def images(number: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return smooth images with noise; the one at SPECIAL, if there are enough images, is all
    zeros."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 236, (number, 3, 2, 2))
    smooth = coarse.repeat(SIZE // 2, axis=2).repeat(SIZE // 2, axis=3)
    found: NDArray[np.uint8] = np.clip(smooth + rng.integers(-20, 20, (number, 3, SIZE, SIZE)), 0, 255).astype(np.uint8)
    if number > SPECIAL:
        found[SPECIAL] = 0
    return found
