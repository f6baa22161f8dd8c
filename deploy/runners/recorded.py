"""Outputs that were recorded elsewhere, handed out in the order in which their samples are asked for.

Takes an iterator of outputs' rows. It has one pass, so nothing can be run again.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from deploy.runners.base import Array, Runner, TensorSpec
from export.errors import UsageError


class RecordedRunner(Runner):
    """`rows` gives the next so many rows of every output."""

    def __init__(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], rows: Callable[[int], Mapping[str, Array]], name: str = "recorded outputs"
    ) -> None:
        self.name = name
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._rows = rows

    @property
    def facts(self) -> Mapping[str, object]:
        return {"runtime": "recorded", "device": "unknown"}

    def close(self) -> None:
        return

    def _run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        number = len(next(iter(batch.values())))
        found = {name: np.array(rows) for name, rows in self._rows(number).items()}
        if any(len(rows) != number for rows in found.values()):
            raise UsageError(f"{self.name} end before the samples do; record outputs for the same samples, in the same order")
        return found
