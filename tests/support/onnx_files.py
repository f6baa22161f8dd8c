"""Tiny ONNX files with the contract of the graph.

`image` is uint8, N x C x H x W. `logits` is float32, N x classes.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deploy.runners.runner import TensorSpec

CLASSES, HIDDEN, SIZE = 5, 16, 4
IMAGE = TensorSpec("image", "uint8", (None, 1, SIZE, SIZE))
LOGITS = TensorSpec("logits", "float32", (None, CLASSES))


@dataclass(frozen=True)
class Weights:
    """Two linear layers."""

    first: NDArray[np.float32]
    bias: NDArray[np.float32]
    last: NDArray[np.float32]
    last_bias: NDArray[np.float32]
    output: str = "logits"

    def changed(self, **changes: object) -> "Weights":
        return replace(self, **changes)  # type: ignore[arg-type]


def random_weights(seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> NDArray[np.float32]:
        return rng.normal(size=shape).astype(np.float32)

    return Weights(draw(HIDDEN, SIZE * SIZE), draw(HIDDEN), draw(CLASSES, HIDDEN), draw(CLASSES))


class Perceptron(nn.Module):
    """The same function in PyTorch, pixels in."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.first = nn.Linear(SIZE * SIZE, HIDDEN)
        self.last = nn.Linear(HIDDEN, CLASSES)
        self.load_state_dict(
            {
                "first.weight": torch.tensor(weights.first),
                "first.bias": torch.tensor(weights.bias),
                "last.weight": torch.tensor(weights.last),
                "last.bias": torch.tensor(weights.last_bias),
            }
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pixels = (image.to(self.first.weight.dtype) - 128) / 64
        logits: torch.Tensor = self.last(torch.relu(self.first(pixels.flatten(1))))
        return logits


def write_onnx(path: Path, weights: Weights) -> Path:
    """The same function as a file of opset 20, IR 10."""
    nodes = [
        helper.make_node("Cast", ["image"], ["bytes"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["bytes", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "deviation"], ["pixels"]),
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("Gemm", ["flat", "first", "bias"], ["sums"], transB=1),
        helper.make_node("Relu", ["sums"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "last", "last_bias"], [weights.output], transB=1),
    ]
    constants = {
        "mean": np.float32(128),
        "deviation": np.float32(64),
        "first": weights.first,
        "bias": weights.bias,
        "last": weights.last,
        "last_bias": weights.last_bias,
    }
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info(weights.output, TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def pixels(num_samples: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (num_samples, 1, SIZE, SIZE), dtype=np.uint8)
