"""The one interface to whatever runs a model: inputs, outputs, facts, and inner tensors to cut at.

Takes arrays by name. Knows no runtime: a runtime is a file next to this one and a row in
`runtimes.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from export.errors import DamagedError, SamegraphError, UsageError

Array = NDArray[Any]
Precision = Literal["float64", "float32", "tf32", "float16", "bfloat16"]
Error = TypeVar("Error", bound=SamegraphError)
_SAMPLES = "number of samples"


@dataclass(frozen=True)
class TensorSpec:
    """An input or output."""

    name: str
    dtype: str
    """NumPy's name for the type."""
    shape: tuple[int | str | None, ...]
    """A name is a free size, the same wherever it occurs. None is a free size without a name."""

    def __str__(self) -> str:
        sizes = " x ".join("N" if size is None else str(size) for size in self.shape)
        return f"{self.name} ({self.dtype}, {sizes or 'a single value'})"

    @property
    def batched(self) -> bool:
        """Whether the first axis is free. As a rule it counts samples."""
        return bool(self.shape) and not isinstance(self.shape[0], int)

    def allows(self, array: Array) -> bool:
        """Whether an array fits this input or output."""
        return (
            array.dtype.name == self.dtype
            and array.ndim == len(self.shape)
            and all(size == got or not isinstance(size, int) for size, got in zip(self.shape, array.shape, strict=True))
        )


@dataclass(frozen=True)
class Finding:
    """Whether something can be used here, a line that says so, and the facts behind it."""

    here: bool
    detail: str
    facts: dict[str, Any] = field(default_factory=dict)


class Runner(ABC):
    """A model, loaded and ready.

    Sessions and device memory are allocated on creation and freed by `close`.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    @abstractmethod
    def facts(self) -> Mapping[str, object]:
        """What runs: runtime, version, device, providers, flags, threads; in JSON's types."""

    @property
    def batch_sizes(self) -> range | None:
        """How many samples may be run at once. None means any number."""
        return None

    @abstractmethod
    def _run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch that was checked.

        Its arrays may be read-only or strided. The outputs must not share memory with it.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what was allocated."""

    @final
    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch. Inputs are checked before the runtime gets them, outputs afterwards."""
        self._check_input(batch)
        outputs = self._run(batch)
        _check(self.name, "output", self.outputs, outputs, DamagedError)
        return outputs

    @final
    def __enter__(self) -> Self:
        return self

    @final
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _check_input(self, batch: Mapping[str, Array]) -> None:
        _check(self.name, "input", self.inputs, batch, UsageError)
        for what, sizes in _free_sizes(self.inputs, batch).items():
            if len(set(sizes.values())) > 1:
                raise UsageError(f"{self.name}: inputs differ in their {what}, {sizes}; give all the same")
            if 0 in sizes.values():
                raise UsageError(f"{self.name}: got 0 as the {what}, expected at least 1")
        allowed = self.batch_sizes
        samples = _free_sizes(self.inputs, batch).get(_SAMPLES, {}).values()
        if allowed is not None and (outside := [size for size in samples if size not in allowed]):
            raise UsageError(f"{self.name}: got a batch of {outside[0]} samples, expected {allowed[0]} to {allowed[-1]}; split it, or build for more")


def _free_sizes(specs: Sequence[TensorSpec], batch: Mapping[str, Array]) -> dict[str, dict[str, int]]:
    """The sizes that must agree: by what they count, then by input."""
    found: dict[str, dict[str, int]] = {}
    for spec in specs:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str):
                found.setdefault(f"size {size!r}", {})[f"{spec.name}[{axis}]"] = batch[spec.name].shape[axis]
            elif size is None and axis == 0:
                found.setdefault(_SAMPLES, {})[spec.name] = len(batch[spec.name])
    return found


def _check(runner: str, what: str, specs: Sequence[TensorSpec], arrays: Mapping[str, Array], error: type[Error]) -> None:
    names = [spec.name for spec in specs]
    if sorted(arrays) != sorted(names):
        raise error(f"{runner}: got {what}s {sorted(arrays)}, expected {sorted(names)}; names must match exactly")
    for spec in specs:
        array = arrays[spec.name]
        if not isinstance(array, np.ndarray):
            raise error(f"{runner}: {what} {spec.name} is a {type(array).__name__}, expected a NumPy array")
        if not spec.allows(array):
            sizes = " x ".join(map(str, array.shape))
            raise error(f"{runner}: {what} {spec.name} is {array.dtype.name}, {sizes}; expected {spec}")


@dataclass(frozen=True)
class Point:
    """A tensor that an operation of a graph computes."""

    name: str
    operation: str
    inputs: tuple[str, ...]
    """The points that it is computed from. The graph's inputs and weights do not count."""
    layer: str = ""
    """The module of the network that the operation belongs to, if known."""


class RenamedRunner(Runner):
    """A runner under other names. `names` maps the caller's names to the runner's; others stay."""

    def __init__(self, inner: Runner, names: Mapping[str, str]) -> None:
        self._inner = inner
        self._theirs = dict(names)
        ours = {theirs: own for own, theirs in names.items()}
        self.name = inner.name
        self.inputs = tuple(replace(spec, name=ours.get(spec.name, spec.name)) for spec in inner.inputs)
        self.outputs = tuple(replace(spec, name=ours.get(spec.name, spec.name)) for spec in inner.outputs)
        self._ours = ours

    @property
    def facts(self) -> Mapping[str, object]:
        return {**self._inner.facts, **({"names": self._theirs} if self._theirs else {})}

    def close(self) -> None:
        self._inner.close()

    def _run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        found = self._inner.run({self._theirs.get(name, name): rows for name, rows in batch.items()})
        return {self._ours.get(name, name): rows for name, rows in found.items()}


class RecordedRunner(Runner):
    """Gives recorded outputs. `rows` gives the next rows of every output."""

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
