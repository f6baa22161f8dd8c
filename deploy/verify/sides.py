"""What `--reference` and `--candidate` may name: a model file, a bundle, or recorded outputs.

Takes paths; returns the forms of each. A model is copied first, so that the bytes that are hashed
are the bytes that run. After that only a host process touches it.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

from deploy.compare.inputs import SUFFIXES as RECORDED
from deploy.compare.inputs import StoredArray, batches_of, kept_in
from deploy.runners.forms import PRECISIONS_OF_ENGINES, Form, RecordingForm
from deploy.runners.onnx_file import require_size
from deploy.runners.runner import Array, Precision, TensorSpec
from deploy.runners.runtimes import FILE_RUNTIMES, RUNTIMES, TORCH, RunOptions
from deploy.sandbox.file_kinds import RECORD, SUFFIXES, Kind, Opening
from deploy.sandbox.process import Contents, HostProcess, Limits, SandboxedForm
from export.bundle import MANIFEST, MODEL, open_bundle
from export.errors import NotHereError, UsageError
from export.tensorrt.record import EngineRecord, read_record, require_the_size
from export.tensorrt.runtime import FLAVOURS

_PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float16", "float32", "float64")
_EXPECTED = f"a model ({', '.join(SUFFIXES)}), a bundle, or recorded outputs ({', '.join(RECORDED)})"


@dataclass(frozen=True, kw_only=True)
class PairSide(ABC):
    """One side of a pair: a file and what it states about itself."""

    path: Path
    sha256: str
    inputs: tuple[TensorSpec, ...] | None
    """None if any inputs will do."""
    outputs: tuple[TensorSpec, ...]
    precision: Precision
    """The lowest precision that it computes in."""
    largest_batch: int | None = None
    """None if any size will do."""

    @property
    def name(self) -> str:
        """Its name in the verdict."""
        return self.path.name

    @abstractmethod
    def forms(self, runtimes: Sequence[str], inputs: tuple[TensorSpec, ...]) -> dict[str, Form]:
        """The file in each runtime that it runs in: the requested ones, if it leaves a choice."""


@dataclass(frozen=True, kw_only=True)
class ModelSide(PairSide):
    """A model in a file, opened in a host process."""

    kind: Kind
    copy: Path
    contents: Contents = field(repr=False)
    host: HostProcess = field(repr=False)
    is_reference: bool
    """Others are measured against it, so it runs without optimisation and in one runtime."""
    engine: EngineRecord | None = None

    def forms(self, runtimes: Sequence[str], inputs: tuple[TensorSpec, ...]) -> dict[str, Form]:
        return {name: self._form(name) for name in self._runtimes(runtimes)}

    def _runtimes(self, requested: Sequence[str]) -> Sequence[str]:
        if self.engine is not None:
            return (FLAVOURS[self.engine.flavour].runtime,)
        if self.kind == "pt2":
            return (TORCH,)
        for name in requested:
            if name not in FILE_RUNTIMES:
                raise NotHereError(f"runtime {name!r} was requested, but this version runs {', '.join(FILE_RUNTIMES)}; choose one of these")
        return ("onnxruntime-cpu",) if self.is_reference else requested

    def _form(self, runtime: str) -> SandboxedForm:
        row = RUNTIMES[runtime]
        return SandboxedForm(
            runtime=runtime,
            device=row.device,
            precision=self.precision,
            options=RunOptions(optimisation="none" if self.is_reference else "all"),
            choices=row.choices,
            host=self.host,
            opening=Opening(kind=self.kind, path=str(self.copy), runtime=runtime),
            contents=self.contents,
        )


@dataclass(frozen=True, kw_only=True)
class RecordingSide(PairSide):
    """Recorded outputs."""

    kept: Mapping[str, StoredArray]

    @property
    def num_rows(self) -> int:
        """The number of samples that the outputs are of."""
        return next(iter(self.kept.values())).shape[0]

    def forms(self, runtimes: Sequence[str], inputs: tuple[TensorSpec, ...]) -> dict[str, Form]:
        form = RecordingForm(precision=self.precision, name=self.name, inputs=inputs, outputs=self.outputs, rows=self._reader)
        return {form.runtime: form}

    def _reader(self) -> Callable[[int], Mapping[str, Array]]:
        return _Reader(self.kept).next


class _Reader:
    """Reads the rows of several arrays side by side, as many as requested."""

    def __init__(self, kept: Mapping[str, StoredArray]) -> None:
        self._kept = kept
        self._rows: Iterator[dict[str, Array]] | None = None
        self._size = 0

    def next(self, number: int) -> dict[str, Array]:
        if self._rows is None:
            self._rows, self._size = batches_of(self._kept, number), number
        found = next(self._rows, None) or {name: kept.whole()[:0] for name, kept in self._kept.items()}
        return {name: rows[:number] for name, rows in found.items()}


def begin_side(path: Path, is_reference: bool, folder: Path, limits: Limits, stack: ExitStack) -> Callable[[], PairSide]:
    """Start the process for what a path names. Calling the result returns the side.

    This way two processes can start at the same time. `folder` is private, and exists until `stack`
    is closed.
    """
    if path.is_dir():
        return _bundle(path, is_reference, folder, limits, stack)
    if not path.is_file():
        raise UsageError(f"{path} {'is not a file' if path.exists() else 'does not exist'}; give {_EXPECTED}")
    if path.suffix in RECORDED:
        return partial(_recording, path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} is of no kind that can be compared; give {_EXPECTED}")
    if path.suffix == ".onnx":
        require_size(path)  # before it is copied
    copy = folder / f"{len(list(folder.iterdir()))}{path.suffix}"
    if SUFFIXES[path.suffix] == "engine":
        return _engine(path, copy, limits, stack)
    shutil.copyfile(path, copy)
    return _model(path, copy, is_reference, limits, stack)


def _engine(path: Path, copy: Path, limits: Limits, stack: ExitStack) -> Callable[[], ModelSide]:
    record_file = path.with_suffix(RECORD)
    if not record_file.is_file():
        raise UsageError(f"{path} has no {record_file.name} beside it, the record of what it was built from and for; give an engine of a bundle")
    record = read_record(record_file)
    require_the_size(record, path.stat().st_size, str(path))  # before it is copied
    shutil.copyfile(path, copy)
    shutil.copyfile(record_file, copy.with_suffix(RECORD))
    side = _model(path, copy, False, replace(limits, gibibytes=0), stack)  # no limit: CUDA reserves more memory than a limit would allow
    return lambda: replace(side(), precision=PRECISIONS_OF_ENGINES[record.precision], largest_batch=record.batches[-1], engine=record)


def _bundle(path: Path, is_reference: bool, folder: Path, limits: Limits, stack: ExitStack) -> Callable[[], PairSide]:
    if not (path / MANIFEST).is_file():
        raise UsageError(f"{path} is a folder without {MANIFEST}, so no bundle; give a bundle or a file")
    copy = folder / f"{len(list(folder.iterdir()))}.onnx"
    copy.write_bytes(open_bundle(path).read(MODEL))
    return _model(path / MODEL, copy, is_reference, limits, stack)


def _model(path: Path, copy: Path, is_reference: bool, limits: Limits, stack: ExitStack) -> Callable[[], ModelSide]:
    return partial(_look, path, copy, is_reference, stack.enter_context(HostProcess(limits, {str(copy): str(path)})))


def _look(path: Path, copy: Path, is_reference: bool, host: HostProcess) -> ModelSide:
    kind = SUFFIXES[copy.suffix]
    contents = host.contents(kind, copy)
    return ModelSide(
        path=path,
        sha256=_hash(copy),
        inputs=contents.inputs,
        outputs=contents.outputs,
        precision=next((each for each in _PRECISIONS if each in contents.floats), "float32"),
        kind=kind,
        copy=copy,
        contents=contents,
        host=host,
        is_reference=is_reference,
    )


def _recording(path: Path) -> RecordingSide:
    kept = kept_in(path)
    if not kept or len({each.shape[:1] for each in kept.values()}) > 1 or () in {each.shape for each in kept.values()}:
        shapes = {name: each.shape for name, each in kept.items()}
        raise UsageError(f"{path} holds {shapes}; expected outputs whose first axis counts the same samples")
    outputs = tuple(TensorSpec(name, each.dtype.name, (None, *each.shape[1:])) for name, each in kept.items())
    floats = {each.dtype.name for each in kept.values()}
    precision: Precision = next((each for each in _PRECISIONS if each in floats), "float32")
    return RecordingSide(path=path, sha256=_hash(path), inputs=None, outputs=outputs, precision=precision, kept=kept)


def _hash(path: Path) -> str:
    whole = sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            whole.update(piece)
    return whole.hexdigest()
