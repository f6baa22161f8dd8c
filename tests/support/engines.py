"""Small engines for tests, built by TensorRT-RTX's real builder, and watchers of builds."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper
from onnx_files import random_weights, write_onnx

from export.tensorrt.builder import Batches, Engine, EngineRequest, engine_from_onnx
from export.tensorrt.runtime import FLAVOURS

RTX = FLAVOURS["rtx"]
BATCHES = Batches(1, 4, 16)
WANTED = EngineRequest(precision="float32", batches=BATCHES)


class Counts:
    """A watcher that adds up the steps."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def advance(self, steps: int = 1) -> None:
        self.steps.append(steps)


def perceptron(folder: Path) -> bytes:
    """A small ONNX file with the contract of the graph."""
    return write_onnx(folder / "perceptron.onnx", random_weights()).read_bytes()


def built(folder: Path, wanted: EngineRequest = WANTED) -> Engine:
    return engine_from_onnx(RTX, perceptron(folder), "model.onnx", wanted, Counts())


def one_node(operation: str, *, domain: str = "", sizes: tuple[str | int, ...] = ("N", 4), name: str = "") -> bytes:
    """A file of one node."""
    node = helper.make_node(operation, ["x"], ["y"], name=name, domain=domain)
    ends = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(sizes)), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", [ends[0]], [ends[1]])
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
