"""A model for tests of the server: a runner in Python whose outputs are known; it can fail."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deploy.compare.bits import Array
from deploy.runners.runner import Runner, TensorSpec
from deploy.server.model import LoadedModel
from deploy.server.protocol import ModelSpec, TensorShape

SHAPE, CLASSES = (1, 2, 2), 3
SPEC = ModelSpec(
    name="stub",
    input=TensorShape("image", "uint8", SHAPE),
    output=TensorShape("logits", "float32", (CLASSES,)),
    labels=("ant", "bee", "cat"),
    max_rows=16,
    platform="onnx_stub",
)


class StubRunner(Runner):
    """Sums, and the same times other factors. `before` is called with the rows of each batch."""

    name = "stub"
    inputs = (TensorSpec("image", "uint8", (None, *SHAPE)),)
    outputs = (TensorSpec("logits", "float32", (None, CLASSES)),)

    def __init__(self, before: Callable[[Array], None] = lambda rows: None) -> None:
        self._before = before
        self.batches: list[int] = []
        self.closed = False

    @property
    def facts(self) -> Mapping[str, object]:
        return {"runtime": "stub"}

    def _run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        rows = batch["image"]
        self.batches.append(len(rows))
        self._before(rows)
        return {"logits": expected(rows)}

    def close(self) -> None:
        self.closed = True


def expected(rows: Array) -> Array:
    sums = rows.reshape(len(rows), -1).astype(np.float32).sum(axis=1, keepdims=True)
    return sums * np.array([1, -2, 0.5], np.float32)


def stub_model(*runners: Runner, **other: Any) -> LoadedModel:
    chosen = {"max_batch_size": 8, "labels": SPEC.labels, "sha256": "0" * 64, **other}
    return LoadedModel(
        spec=SPEC,
        form="exact",
        runtime="stub",
        batching="exact",
        runners=list(runners) or [StubRunner()],
        verified=True,
        why="a stub",
        **chosen,
    )


def images(number: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (number, *SHAPE), dtype=np.uint8)


class Gate:
    """Holds workers back until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, rows: Array) -> None:
        self.reached.set()
        assert self.opened.wait(20)
