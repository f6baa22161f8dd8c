"""The samples that a model runs on: read row by row from files, or drawn at random.

Takes the model's inputs and paths; cuts the samples into batches that the model takes. Never
unpickles. What does not fit gives an error of one line.
"""

import json
import math
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from deploy.compare.bits import Array, is_float
from deploy.runners.runner import TensorSpec
from export.errors import UsageError

SUFFIXES = (".npz", ".npy", ".safetensors")
_ST_TYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(bool),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"F{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
}
_LARGEST_HEAD = 100 * 2**20


@dataclass(frozen=True)
class StoredArray(ABC):
    """An array in a file."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @abstractmethod
    def opened(self) -> AbstractContextManager[IO[bytes]]:
        """The file, positioned at the first value."""

    def rows(self, at_once: int) -> Iterator[Array]:
        """The array in pieces of this many rows."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        with self.opened() as file:
            for start in range(0, self.shape[0], at_once):
                number = min(at_once, self.shape[0] - start)
                yield _native(np.frombuffer(_exactly(file, number * row, self.path), self.dtype)).reshape(number, *self.shape[1:])

    def whole(self) -> Array:
        """The whole array, even if it has no rows."""
        with self.opened() as file:
            return _native(np.frombuffer(_exactly(file, math.prod(self.shape) * self.dtype.itemsize, self.path), self.dtype)).reshape(self.shape)


@dataclass(frozen=True)
class _NpyArray(StoredArray):
    member: str | None
    """The name within an archive. None for a file of its own."""

    def opened(self) -> AbstractContextManager[IO[bytes]]:
        with ExitStack() as stack:
            file = stack.enter_context(_npy_file(self.path, self.member, stack))
            _npy_head(file, self.path)
            kept = stack.pop_all()
        return _FileInArchive(file, kept)


@dataclass(frozen=True)
class _SafetensorsArray(StoredArray):
    offset: int

    def opened(self) -> AbstractContextManager[IO[bytes]]:
        file = self.path.open("rb")
        file.seek(self.offset)
        return file


class _FileInArchive(AbstractContextManager[IO[bytes]]):
    """A file whose archive is closed with it."""

    def __init__(self, file: IO[bytes], stack: ExitStack) -> None:
        self._file, self._stack = file, stack

    def __enter__(self) -> IO[bytes]:
        return self._file

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def kept_in(path: Path) -> dict[str, StoredArray]:
    """The arrays of a file, by name. The array of a .npy file has the file's name."""
    if not path.is_file():
        raise UsageError(f"{path} is not a file; expected arrays in {', '.join(SUFFIXES)}")
    try:
        match path.suffix:
            case ".npz":
                return dict(_in_npz(path))
            case ".npy":
                return {path.stem: _in_npy(path)}
            case ".safetensors":
                return dict(_in_safetensors(path))
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError, RecursionError, struct.error, NotImplementedError) as error:
        raise _unreadable(path, error) from error
    raise UsageError(f"{path} is none of {', '.join(SUFFIXES)}; save the arrays with numpy.savez(FILE, name=array)")


def batches_of(arrays: Mapping[str, StoredArray], at_once: int) -> Iterator[dict[str, Array]]:
    """All arrays side by side, this many rows at once."""
    for parts in zip(*(kept.rows(at_once) for kept in arrays.values()), strict=True):
        yield dict(zip(arrays, parts, strict=True))


def _in_npz(path: Path) -> Iterator[tuple[str, StoredArray]]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    for member in names:
        if not member.endswith(".npy"):
            raise ValueError(f"it holds {member!r}, which is not an array")
        with ExitStack() as stack:
            shape, dtype = _npy_head(_npy_file(path, member, stack), path)
        yield member.removesuffix(".npy"), _NpyArray(path, dtype, shape, member)


def _in_npy(path: Path) -> StoredArray:
    with path.open("rb") as file:
        shape, dtype = _npy_head(file, path)
    return _NpyArray(path, dtype, shape, None)


def _npy_file(path: Path, member: str | None, stack: ExitStack) -> IO[bytes]:
    if member is None:
        return stack.enter_context(path.open("rb"))
    return stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open(member))


def _npy_head(file: IO[bytes], path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise UsageError(f"{path} holds Python objects, which are pickled; save numbers")
    if fortran and len(shape) > 1:
        raise UsageError(f"{path} holds an array in Fortran's order, which has no rows to read; save numpy.ascontiguousarray of it")
    return shape, dtype


def _in_safetensors(path: Path) -> Iterator[tuple[str, StoredArray]]:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > _LARGEST_HEAD:
            raise ValueError(f"its head claims {size} bytes")
        head = json.loads(file.read(size))
    if not isinstance(head, dict):
        raise ValueError("its head is not a JSON object")
    for name, entry in head.items():
        if name != "__metadata__":
            dtype, shape = _ST_TYPES[entry["dtype"]], tuple(int(each) for each in entry["shape"])
            start, end = entry["data_offsets"]
            if end - start != math.prod(shape) * dtype.itemsize or start < 0 or min(shape, default=0) < 0:
                raise ValueError(f"{name!r} claims {end - start} bytes for its shape")
            yield name, _SafetensorsArray(path, dtype, shape, 8 + size + start)


def _native(values: Array) -> Array:
    """In this machine's byte order, because bits are compared as they are in memory."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _exactly(file: IO[bytes], size: int, path: Path) -> bytes:
    try:
        content = file.read(size)
    except (zipfile.BadZipFile, EOFError) as error:
        raise _unreadable(path, error) from error
    if len(content) != size:
        raise _unreadable(path, "it ends too early")
    return content


def _unreadable(path: Path, error: object) -> UsageError:
    return UsageError(f"{path} cannot be read as {path.suffix}: {' '.join(str(error).split())[:200]}; save the arrays again")


@dataclass(frozen=True)
class SampleSource:
    """Batches, which can be requested any number of times, and how they were made."""

    batches: Callable[[], Iterator[dict[str, Array]]]
    num_batches: int
    num_samples: int
    description: str

    @classmethod
    def of_array(cls, name: str, rows: Array, batch_size: int, description: str) -> "SampleSource":
        """An array in memory as the input of that name."""

        def batches() -> Iterator[dict[str, Array]]:
            for start in range(0, len(rows), batch_size):
                yield {name: rows[start : start + batch_size]}

        return cls(batches, -(-len(rows) // batch_size), len(rows), description)

    def followed_by(self, batch: Mapping[str, Array]) -> "SampleSource":
        """The same batches and one more."""

        def batches() -> Iterator[dict[str, Array]]:
            yield from self.batches()
            yield dict(batch)

        return replace(self, batches=batches, num_batches=self.num_batches + 1)


def samples_for(inputs: Sequence[TensorSpec], asked: str, batch_size: int, sizes: Mapping[str, int], seed: int = 0) -> SampleSource:
    """The samples that `--samples` names: a file, a folder of files, or a number of random ones."""
    _refuse_unknown_sizes(inputs, sizes)
    if asked.isdecimal():
        return random_samples(inputs, int(asked), batch_size, sizes, seed)
    if sizes:
        raise UsageError(f"--size is for random samples, and {asked} has sizes of its own; drop it")
    path = Path(asked)
    if not asked or not path.exists():
        raise UsageError(f"--samples: {asked!r} is neither a file, nor a folder, nor a number")
    return samples_in(inputs, path, batch_size)


def samples_in(inputs: Sequence[TensorSpec], path: Path, batch_size: int) -> SampleSource:
    """The samples of a file, or of every file in a folder."""
    files = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"{path} holds no file of {', '.join(SUFFIXES)}; save samples there with numpy.savez(FILE, name=array)")
    found = [_FileOfSamples(inputs, file, batch_size) for file in files]

    def batches() -> Iterator[dict[str, Array]]:
        for file in found:
            yield from file.batches()

    number = sum(file.num_samples for file in found)
    where = f"{len(files)} files of {path.name}" if path.is_dir() else path.name
    unused = sorted({name for file in found for name in file.unused})
    not_used = f" (not used: {', '.join(unused)})" if unused else ""
    return SampleSource(batches, sum(file.num_batches for file in found), number, f"{number} samples from {where}{not_used}")


def random_samples(inputs: Sequence[TensorSpec], number: int, batch_size: int, sizes: Mapping[str, int], seed: int = 0) -> SampleSource:
    """Samples from NumPy's PCG64, whose values depend on the type of the input.

    Bytes are uniform, other integers 0 or 1, floats standard normal, truth values fair.
    """
    if number < 1:
        raise UsageError("--samples 0 would compare nothing; give at least 1")
    shapes = {spec.name: _row_shape(spec, sizes) for spec in inputs}
    at_once = _at_once(inputs, batch_size)

    def batches() -> Iterator[dict[str, Array]]:
        generator = np.random.Generator(np.random.PCG64(seed))
        for start in range(0, number, at_once):
            rows = at_once if _is_fixed(inputs) else min(at_once, number - start)
            yield {spec.name: _drawn(generator, spec.dtype, (rows, *shapes[spec.name]) if spec.shape else ()) for spec in inputs}

    num_batches = -(-number // at_once)
    drawn = num_batches * at_once if _is_fixed(inputs) else number
    what = "bytes uniform, other integers 0 or 1, floats standard normal, truth values fair"
    return SampleSource(batches, num_batches, drawn, f"{drawn} random samples: NumPy's PCG64, seed {seed}; {what}")


class _FileOfSamples:
    """One file, which is checked against the inputs before anything runs."""

    def __init__(self, inputs: Sequence[TensorSpec], path: Path, batch_size: int) -> None:
        self._path, self._inputs = path, inputs
        everything = kept_in(path)
        names = [spec.name for spec in inputs]
        if missing := [name for name in names if name not in everything]:
            raise UsageError(f"{path} holds {sorted(everything)}, the model takes {names}: {missing[0]!r} is missing; names must match exactly")
        self.unused = sorted(set(everything) - set(names))
        self._kept = {name: everything[name] for name in names}
        for spec in inputs:
            _check(path, spec, self._kept[spec.name])
        lengths = {name: kept.shape[0] for name, kept in self._kept.items() if kept.shape}
        if len(set(lengths.values())) > 1 and self._rows:
            raise UsageError(f"{path}: inputs differ in their number of samples, {lengths}; give all the same")
        if 0 in lengths.values():
            raise UsageError(f"{path} holds no sample; a comparison of nothing is a failure")
        self._at_once = _at_once(inputs, batch_size)
        self.num_samples = next(iter(lengths.values()), 1) if self._rows else 1
        if _is_fixed(inputs) and self._rows and self.num_samples % self._at_once:
            raise UsageError(f"{path} holds {self.num_samples} samples, the model takes {self._at_once} at once; give a multiple of {self._at_once}")
        self.num_batches = -(-self.num_samples // self._at_once) if self._rows else 1

    def batches(self) -> Iterator[dict[str, Array]]:
        if not self._rows:
            whole = {name: kept.whole() for name, kept in self._kept.items()}
            yield self._checked(whole, 0)
            return
        for number, batch in enumerate(batches_of(self._kept, self._at_once)):
            yield self._checked(batch, number * self._at_once)

    @property
    def _rows(self) -> bool:
        """Whether every input has a first axis, which then counts samples."""
        return all(spec.shape for spec in self._inputs)

    def _checked(self, batch: dict[str, Array], start: int) -> dict[str, Array]:
        for name, rows in batch.items():
            if is_float(rows.dtype) and np.isnan(rows).any():
                place = start + int(np.isnan(rows).reshape(len(rows), -1).any(axis=1).argmax()) if rows.ndim else start
                raise UsageError(f"{self._path}: sample {place} of {name!r} holds NaN; a model's answer to it says nothing")
        return batch


def _check(path: Path, spec: TensorSpec, kept: StoredArray) -> None:
    sizes = " x ".join(map(str, kept.shape)) or "a single value"
    fits = len(kept.shape) == len(spec.shape) and all(
        want == got or not isinstance(want, int) for want, got in zip(spec.shape[1:], kept.shape[1:], strict=True)
    )
    if kept.dtype.name != spec.dtype or not fits:
        raise UsageError(f"{path}: {spec.name!r} is {kept.dtype.name}, {sizes}; the model takes {spec}")


def _is_fixed(inputs: Sequence[TensorSpec]) -> bool:
    return any(spec.shape and isinstance(spec.shape[0], int) for spec in inputs)


def _at_once(inputs: Sequence[TensorSpec], batch_size: int) -> int:
    """The size of a batch: the model's own if it has one."""
    fixed = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], int)}
    if len(fixed) > 1 or 0 in fixed:
        raise UsageError(f"the model's inputs are for batches of {sorted(map(str, fixed))}; give samples as whole files that it takes")
    return next((size for size in fixed if isinstance(size, int)), batch_size)


def _refuse_unknown_sizes(inputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> None:
    free = sorted({size for spec in inputs for size in spec.shape[1:] if isinstance(size, str)})
    if unknown := [name for name in sizes if name not in free]:
        raise UsageError(f"--size {unknown[0]}={sizes[unknown[0]]}: the inputs have no such free size, only {', '.join(free) or 'none'}; drop it")


def _row_shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(_size(spec, size, sizes) for size in spec.shape[1:])


def _size(spec: TensorSpec, size: int | str | None, sizes: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    if size in sizes:
        return sizes[str(size)]
    raise UsageError(f"{spec} has a free size; say how large it is with --size {size or 'NAME'}=NUMBER, or give samples in a file")


def _drawn(generator: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype in ("int8", "uint8"):
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max, shape, dtype=np.dtype(dtype), endpoint=True)
    if np.dtype(dtype).kind in "iub":
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)
