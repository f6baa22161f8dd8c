"""What `--reference` and `--candidate` may name: a model file, a bundle, or recorded outputs; and how each becomes stages.

Takes paths. Models are copied first (the bytes that are hashed are the bytes that run) and then only touched in a host process.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from deploy.compare.budget import Precision
from deploy.compare.inputs import SUFFIXES as RECORDED
from deploy.compare.inputs import StoredArray, batches_of, kept_in
from deploy.runners.base import Array, RecordedRunner, Runner, TensorSpec
from deploy.runners.onnx_file import require_size
from deploy.runners.table import FILE_RUNTIMES, RunOptions
from deploy.sandbox.forms import RECORD, SUFFIXES, TORCH, Kind, Opening
from deploy.sandbox.process import Contents, HostProcess, Limits
from deploy.verify.invariance import Variant
from deploy.verify.links import file_variants, torch_variants
from export.bundle import MANIFEST, open_bundle
from export.errors import NotHereError, UsageError
from export.tensorrt.record import EnginePrecision, EngineRecord, read_record, require_the_size
from export.tensorrt.runtime import FLAVOURS

_OF_ENGINES: Mapping[EnginePrecision, Precision] = {"float32": "float32", "tf32": "tf32", "float16": "float16", "exact": "float32"}
_PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float16", "float32", "float64")
_MODEL = "model.onnx"
_EXPECTED = f"a model ({', '.join(SUFFIXES)}), a bundle, or recorded outputs ({', '.join(RECORDED)})"


@dataclass(frozen=True, kw_only=True)
class Form(ABC):
    """One side of a pair."""

    path: Path
    sha256: str
    inputs: tuple[TensorSpec, ...] | None
    """None where any will do."""
    outputs: tuple[TensorSpec, ...]
    precision: Precision
    """The narrowest that it computes in."""

    largest_batch: int | None = None
    """None where any size will do."""

    @property
    def name(self) -> str:
        """What it is called in the verdict."""
        return self.path.name

    @abstractmethod
    def runtimes(self, asked: Sequence[str]) -> tuple[str, ...]:
        """The runtimes that it is run in."""

    @abstractmethod
    def open(self, runtime: str, inputs: tuple[TensorSpec, ...]) -> Runner:
        """Open it as it is."""

    @abstractmethod
    def variants(self, runtime: str) -> tuple[Variant, ...] | None:
        """The same under other settings; None where it cannot be run again at all."""

    @abstractmethod
    def open_float64(self) -> Runner | None:
        """Its evaluation in float64, where it has one."""

    @abstractmethod
    def open_until(self, point: str, runtime: str, *, float64: bool) -> Runner:
        """Up to one of its inner tensors."""


@dataclass(frozen=True, kw_only=True)
class Model(Form):
    """A model in a file, in a host process."""

    kind: Kind
    copy: Path
    contents: Contents
    host: HostProcess = field(repr=False)
    plainly: bool
    """Whether it runs without optimisation, being what others are measured against."""

    def runtimes(self, asked: Sequence[str]) -> tuple[str, ...]:
        if self.kind == "pt2":
            return (TORCH,)
        for name in asked:
            if name not in FILE_RUNTIMES:
                raise NotHereError(f"runtime {name!r} was asked for, this version runs {', '.join(FILE_RUNTIMES)}; ask for one of these")
        return ("onnxruntime-cpu",) if self.plainly else tuple(asked)

    def open(self, runtime: str, inputs: tuple[TensorSpec, ...]) -> Runner:
        return self._opened(runtime, self._options)

    def variants(self, runtime: str) -> tuple[Variant, ...]:
        if self.kind == "onnx":
            return file_variants(runtime, self._options, lambda options: self._opened(runtime, options))
        return torch_variants("cpu", self._opened_program)

    def open_float64(self) -> Runner | None:
        if self.precision == "float64":
            return None  # it is its own evaluation: there is no error of its own to derive a budget from
        return self.host.open(Opening(kind=self.kind, path=str(self.copy), runtime=TORCH, float64=True))

    def open_until(self, point: str, runtime: str, *, float64: bool) -> Runner:
        options = self._options
        return self.host.open(
            Opening(kind=self.kind, path=str(self.copy), runtime=runtime, until=point, float64=float64, optimisation=options.optimisation)
        )

    @property
    def _options(self) -> RunOptions:
        return RunOptions(optimisation="none" if self.plainly else "all")

    def _opened(self, runtime: str, options: RunOptions) -> Runner:
        return self.host.open(
            Opening(kind=self.kind, path=str(self.copy), runtime=runtime, threads=options.threads, optimisation=options.optimisation)
        )

    def _opened_program(self, *, threads: int = 0, channels_last: bool = False) -> Runner:
        return self.host.open(Opening(kind=self.kind, path=str(self.copy), runtime=TORCH, threads=threads, channels_last=channels_last))


@dataclass(frozen=True, kw_only=True)
class Engine(Form):
    """An engine of TensorRT with its record, in a host process."""

    copy: Path
    record: EngineRecord
    host: HostProcess = field(repr=False)

    def runtimes(self, asked: Sequence[str]) -> tuple[str, ...]:
        return (FLAVOURS[self.record.flavour].runtime,)

    def open(self, runtime: str, inputs: tuple[TensorSpec, ...]) -> Runner:
        return self.host.open(Opening(kind="engine", path=str(self.copy), runtime=runtime))

    def variants(self, runtime: str) -> tuple[Variant, ...]:
        return ()

    def open_float64(self) -> None:
        return None

    def open_until(self, point: str, runtime: str, *, float64: bool) -> Runner:
        raise UsageError(f"{self.name} is an engine, which has no inner tensors to run up to")


@dataclass(frozen=True, kw_only=True)
class Recording(Form):
    """Outputs that were written down."""

    kept: Mapping[str, StoredArray]

    @property
    def num_rows(self) -> int:
        """How many samples the outputs are of."""
        return next(iter(self.kept.values())).shape[0]

    def runtimes(self, asked: Sequence[str]) -> tuple[str, ...]:
        return ("recorded",)

    def open(self, runtime: str, inputs: tuple[TensorSpec, ...]) -> Runner:
        return RecordedRunner(inputs, self.outputs, _Reader(self.kept).next, name=self.name)

    def variants(self, runtime: str) -> None:
        return None

    def open_float64(self) -> None:
        return None

    def open_until(self, point: str, runtime: str, *, float64: bool) -> Runner:
        raise UsageError(f"{self.name} holds outputs only")


class _Reader:
    """Reads the rows of several arrays side by side, as many as are asked for."""

    def __init__(self, kept: Mapping[str, StoredArray]) -> None:
        self._kept = kept
        self._rows: Iterator[dict[str, Array]] | None = None
        self._size = 0

    def next(self, number: int) -> dict[str, Array]:
        if self._rows is None:
            self._rows, self._size = batches_of(self._kept, number), number
        found = next(self._rows, None) or {name: kept.whole()[:0] for name, kept in self._kept.items()}
        return {name: rows[:number] for name, rows in found.items()}


def form_of(path: Path, plainly: bool, folder: Path, limits: Limits, stack: ExitStack) -> Form:
    """What a path names. `folder` is private, and there until `stack` is closed."""
    if path.is_dir():
        return _bundle(path, plainly, folder, limits, stack)
    if not path.is_file():
        raise UsageError(f"{path} {'is not a file' if path.exists() else 'does not exist'}; give {_EXPECTED}")
    if path.suffix in RECORDED:
        return _recorded(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} is of no kind that can be compared; give {_EXPECTED}")
    if path.suffix == ".onnx":
        require_size(path)  # before it is copied
    copy = folder / f"{len(list(folder.iterdir()))}{path.suffix}"
    if SUFFIXES[path.suffix] == "engine":
        return _engine(path, copy, limits, stack)
    shutil.copyfile(path, copy)
    return _model(path, copy, plainly, limits, stack)


def _engine(path: Path, copy: Path, limits: Limits, stack: ExitStack) -> Engine:
    beside = path.with_suffix(RECORD)
    if not beside.is_file():
        raise UsageError(f"{path} has no {beside.name} beside it, the record of what it was built from and for; give an engine of a bundle")
    record = read_record(beside)
    require_the_size(record, path.stat().st_size, str(path))  # before it is copied
    shutil.copyfile(path, copy)
    shutil.copyfile(beside, copy.with_suffix(RECORD))
    without_limit = replace(limits, gibibytes=0)  # CUDA reserves more than any file may have
    host = stack.enter_context(HostProcess(without_limit, {str(copy): str(path)}))
    contents = host.contents("engine", copy)
    return Engine(
        path=path,
        sha256=_hash(copy),
        inputs=contents.inputs,
        outputs=contents.outputs,
        precision=_OF_ENGINES[record.precision],
        largest_batch=record.batches[-1],
        copy=copy,
        record=record,
        host=host,
    )


def _bundle(path: Path, plainly: bool, folder: Path, limits: Limits, stack: ExitStack) -> Form:
    if not (path / MANIFEST).is_file():
        raise UsageError(f"{path} is a folder without {MANIFEST}, so no bundle; give a bundle or a file")
    copy = folder / f"{len(list(folder.iterdir()))}.onnx"
    copy.write_bytes(open_bundle(path).read(_MODEL))
    return _model(path / _MODEL, copy, plainly, limits, stack)


def _model(path: Path, copy: Path, plainly: bool, limits: Limits, stack: ExitStack) -> Model:
    host = stack.enter_context(HostProcess(limits, {str(copy): str(path)}))
    kind = SUFFIXES[copy.suffix]
    contents = host.contents(kind, copy)
    return Model(
        path=path,
        sha256=_hash(copy),
        inputs=contents.inputs,
        outputs=contents.outputs,
        precision=next((each for each in _PRECISIONS if each in contents.floats), "float32"),
        kind=kind,
        copy=copy,
        contents=contents,
        host=host,
        plainly=plainly,
    )


def _recorded(path: Path) -> Recording:
    kept = kept_in(path)
    if not kept or len({each.shape[:1] for each in kept.values()}) > 1 or () in {each.shape for each in kept.values()}:
        shapes = {name: each.shape for name, each in kept.items()}
        raise UsageError(f"{path} holds {shapes}; expected outputs whose first axis counts the same samples")
    outputs = tuple(TensorSpec(name, each.dtype.name, (None, *each.shape[1:])) for name, each in kept.items())
    floats = {each.dtype.name for each in kept.values()}
    precision: Precision = next((each for each in _PRECISIONS if each in floats), "float32")
    return Recording(path=path, sha256=_hash(path), inputs=None, outputs=outputs, precision=precision, kept=kept)


def _hash(path: Path) -> str:
    whole = sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            whole.update(piece)
    return whole.hexdigest()
