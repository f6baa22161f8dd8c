"""Verdicts for tests of what is written about them, on small chains that really ran."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from onnx_files import IMAGE, LOGITS, Perceptron, pixels, random_weights
from opened import OpenedBy

from deploy.runners.runner import Array, Runner
from deploy.runners.torch import TorchRunner
from deploy.verify.links import Chain, Link, Record, Stage
from deploy.verify.run_chain import run_chain
from deploy.verify.verdict import Verdict
from export.errors import NotHereError

WEIGHTS = random_weights()
IMAGES = pixels(12)
Alter = Callable[[dict[str, Array]], dict[str, Array]]


class Altered(Runner):
    """The network, with changed outputs."""

    def __init__(self, alter: Alter) -> None:
        self.name, self.inputs, self.outputs = "altered", (IMAGE,), (LOGITS,)
        self._inner = TorchRunner(Perceptron(WEIGHTS), [IMAGE], [LOGITS])
        self._alter = alter

    @property
    def facts(self) -> Mapping[str, object]:
        return {"runtime": "altered"}

    def _run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        return self._alter(self._inner.run(batch))

    def close(self) -> None:
        return


def absent() -> Runner:
    raise NotHereError("there is no GPU")


def verdict_of(alter: Alter = lambda outputs: outputs) -> Verdict:
    """The verdict on a link to the altered network, and on one to a runtime that is missing."""

    def stage(name: str, open_: Callable[[], Runner], precision: str = "float32") -> Stage:
        return Stage(name=name, form=OpenedBy(runtime=name, precision=precision, opener=open_))  # type: ignore[arg-type]

    chain = Chain(
        stages=(
            stage("training graph", lambda: TorchRunner(Perceptron(WEIGHTS), [IMAGE], [LOGITS])),
            stage("ONNX file", lambda: Altered(alter)),
            stage("cuda", absent),
        ),
        links=(Link("training graph", "ONNX file", "budget"), Link("ONNX file", "cuda", "budget")),
        reference=stage("float64 evaluation", lambda: TorchRunner(Perceptron(WEIGHTS), [IMAGE], [LOGITS], precision="float64"), "float64"),
        training="training graph",
    )

    def batches() -> Iterator[dict[str, Array]]:
        yield {"image": IMAGES}

    return run_chain(chain, batches, Record(files={"model.onnx": "ab" * 32}, samples_made=("12 images",)))


def off_by_one(outputs: dict[str, Array]) -> dict[str, Array]:
    return {"logits": outputs["logits"] + np.float32(1)}


def not_a_number(outputs: dict[str, Array]) -> dict[str, Array]:
    return {"logits": outputs["logits"] * np.float32(np.nan)}
