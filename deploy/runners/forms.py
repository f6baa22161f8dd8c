"""The forms of a model behind one interface: opened as they are, varied, in float64, or cut.

Takes paths, files that were read, or rows. PyTorch's forms are next to their runners: importing
this module imports no runtime.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from deploy.runners.onnx_file import checked_bytes, cut_at, points_of
from deploy.runners.runner import Array, Point, Precision, RecordedRunner, RenamedRunner, Runner, TensorSpec
from deploy.runners.runtimes import AS_IT_IS, RUNTIMES, TORCH, Choice, RunOptions, open_file, other_runs
from deploy.runners.tensorrt import EngineFile, open_engine
from export.errors import NotHereError, UsageError
from export.tensorrt.record import EnginePrecision
from export.tensorrt.runtime import FLAVOURS

if TYPE_CHECKING:
    import onnx

PRECISIONS_OF_ENGINES: Mapping[EnginePrecision, Precision] = {"float32": "float32", "tf32": "tf32", "float16": "float16", "exact": "float32"}
BUILDS = "builds"
"""The check that a second build of an engine gives the same as the first."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The same form under another setting of its runtime, which must not change the results."""

    check: str
    """What is set: "threads", "layout", "optimisation"."""
    setting: str
    """The setting in words: "1 thread"."""
    open: Callable[[], Runner]


@dataclass(frozen=True, kw_only=True)
class Form(ABC):
    """A form of the model."""

    runtime: str
    device: str = "cpu"
    precision: Precision = "float32"
    """The precision that was requested. Budgets follow from it."""
    options: RunOptions = AS_IT_IS
    choices: tuple[Choice, ...] = ()
    """The settings that can be varied when it runs."""

    @abstractmethod
    def open(self) -> Runner:
        """Open it as it is."""

    def variants(self) -> tuple[Variant, ...]:
        """The same form in every other way that its runtime may run it."""
        return tuple(
            Variant(check=other.choice, setting=other.setting, open=replace(self, options=other.options).open)
            for other in other_runs(self.choices, self.options)
        )

    def float64(self) -> Form | None:
        """Its evaluation in float64, or None if it has none."""
        return None

    @property
    def points(self) -> Sequence[Point]:
        """Its inner tensors, in the order of computation."""
        return ()

    def until(self, point: str, batch: Mapping[str, Array]) -> Runner:
        """Open it up to an inner tensor, which becomes the only output.

        `batch` is a batch that the cut form can be tried on.
        """
        raise UsageError(f"{self.runtime} shows no inner tensor {point!r}")

    def named_like(self, other: Form) -> Form:
        """This form with its inner tensors named as in the other form, if that is possible."""
        return self


@dataclass(frozen=True, kw_only=True)
class OnnxForm(Form):
    """An ONNX file in a runtime that opens files."""

    path: Path
    require: Callable[[onnx.ModelProto], None] | None = None
    """Raises if the file is not what it should be. It is called before anything runs."""

    def open(self) -> Runner:
        if self.require is not None:
            self.require(self.model)
        return open_file(self.runtime, self.path, self.options)

    def float64(self) -> Form:
        return OnnxFloat64Form(runtime=self.runtime, precision="float64", path=self.path)

    @cached_property
    def model(self) -> onnx.ModelProto:
        import onnx

        return onnx.load_model_from_string(checked_bytes(self.path))

    @property
    def points(self) -> Sequence[Point]:
        return points_of(self.model)

    def until(self, point: str, batch: Mapping[str, Array]) -> Runner:
        with tempfile.NamedTemporaryFile(suffix=".onnx") as prefix:
            Path(prefix.name).write_bytes(cut_at(self.model, point).SerializeToString())
            return open_file(self.runtime, Path(prefix.name), self.options)


@dataclass(frozen=True, kw_only=True)
class OnnxFloat64Form(OnnxForm):
    """An ONNX file as the function that it defines. No runtime takes part."""

    def open(self) -> Runner:
        return _float64(self.model)

    def until(self, point: str, batch: Mapping[str, Array]) -> Runner:
        return _float64(cut_at(self.model, point))


def _float64(model: onnx.ModelProto) -> Runner:
    from deploy.runners.onnx_float64 import OnnxFloat64Runner  # takes long to import, and few need it

    return OnnxFloat64Runner(model)


def onnx_form(path: Path, runtime: str, *, optimisation: bool = True, require: Callable[[onnx.ModelProto], None] | None = None) -> OnnxForm:
    """A file in a runtime, with all optimisations or none."""
    row = RUNTIMES[runtime]
    options = RunOptions(optimisation="all" if optimisation else "none")
    return OnnxForm(runtime=runtime, device=row.device, options=options, choices=row.choices, path=path, require=require)


@dataclass(frozen=True, kw_only=True)
class EngineForm(Form):
    """An engine of TensorRT with its record."""

    file: EngineFile
    second: EngineFile | None = None
    """Another build of the engine, which must give the same."""

    def open(self) -> Runner:
        return open_engine(self.file)

    def variants(self) -> tuple[Variant, ...]:
        second = self.second
        return () if second is None else (Variant(check=BUILDS, setting="a second build", open=lambda: open_engine(second)),)


def engine_form(file: EngineFile, second: EngineFile | None = None) -> EngineForm:
    """The engine, in the TensorRT that it was built for."""
    runtime = FLAVOURS[file.record.flavour].runtime
    precision = PRECISIONS_OF_ENGINES[file.record.precision]
    return EngineForm(runtime=runtime, device="cuda", precision=precision, file=file, second=second)


@dataclass(frozen=True, kw_only=True)
class RecordingForm(Form):
    """Recorded outputs. They can be read once per opening, and nothing can be run again."""

    runtime: str = "recorded"
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    rows: Callable[[], Callable[[int], Mapping[str, Array]]]
    """Starts reading; returns a function that gives the next rows of every output."""

    def open(self) -> Runner:
        return RecordedRunner(self.inputs, self.outputs, self.rows(), name=self.name)


@dataclass(frozen=True, kw_only=True)
class MissingForm(Form):
    """A form that is not available here, and why."""

    reason: str

    def open(self) -> Runner:
        raise NotHereError(self.reason)


@dataclass(frozen=True, kw_only=True)
class OpenedForm(Form):
    """A form that has already been opened to try it. Opening it again would cost as much."""

    form: Form
    runner: Runner = field(repr=False)

    def open(self) -> Runner:
        return self.runner

    @property
    def points(self) -> Sequence[Point]:
        return self.form.points

    def until(self, point: str, batch: Mapping[str, Array]) -> Runner:
        return self.form.until(point, batch)


@dataclass(frozen=True, kw_only=True)
class RenamedForm(Form):
    """A form with other names of inputs and outputs: `names` maps the caller's to the form's."""

    inner: Form
    names: Mapping[str, str]
    inputs: tuple[TensorSpec, ...] = field(default=())
    """The form's own inputs. In a form that is cut, only inputs have other names."""

    @classmethod
    def of(cls, inner: Form, names: Mapping[str, str], inputs: Sequence[TensorSpec]) -> Self:
        """Wrap `inner`, keeping its runtime, device and precision."""
        return cls(runtime=inner.runtime, device=inner.device, precision=inner.precision, inner=inner, names=names, inputs=tuple(inputs))

    def open(self) -> Runner:
        return RenamedRunner(self.inner.open(), self.names)

    def variants(self) -> tuple[Variant, ...]:
        return tuple(replace(variant, open=_renamed(variant.open, self.names)) for variant in self.inner.variants())

    @property
    def points(self) -> Sequence[Point]:
        return self.inner.points

    def until(self, point: str, batch: Mapping[str, Array]) -> Runner:
        inputs = {spec.name for spec in self.inputs}
        return RenamedRunner(self.inner.until(point, batch), {ours: theirs for ours, theirs in self.names.items() if theirs in inputs})


def _renamed(opened: Callable[[], Runner], names: Mapping[str, str]) -> Callable[[], Runner]:
    return lambda: RenamedRunner(opened(), names)


def torch_choices(device: str) -> tuple[Choice, ...]:
    """The settings that can be varied when PyTorch runs a module; only a CPU has threads."""
    return tuple(choice for choice in RUNTIMES[TORCH].choices if choice != "threads" or device == "cpu")
