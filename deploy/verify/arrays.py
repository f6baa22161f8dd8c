"""Named arrays in files (.npz, .npy, .safetensors), read row by row, so that memory does not grow with them.

Takes paths. Never unpickles. A file that is not what it claims is a UsageError in one line.
"""

import json
import math
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from deploy.verify.compare import Array
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
class Kept(ABC):
    """An array in a file."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @abstractmethod
    def opened(self) -> AbstractContextManager[IO[bytes]]:
        """The file, standing at the first value."""

    def rows(self, at_once: int) -> Iterator[Array]:
        """The array in pieces of so many rows."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        with self.opened() as file:
            for start in range(0, self.shape[0], at_once):
                number = min(at_once, self.shape[0] - start)
                yield _native(np.frombuffer(_exactly(file, number * row, self.path), self.dtype)).reshape(number, *self.shape[1:])

    def whole(self) -> Array:
        """All of it, also where it has no rows."""
        with self.opened() as file:
            return _native(np.frombuffer(_exactly(file, math.prod(self.shape) * self.dtype.itemsize, self.path), self.dtype)).reshape(self.shape)


@dataclass(frozen=True)
class _KeptInNpy(Kept):
    member: str | None
    """The name within an archive; None for a file of its own."""

    def opened(self) -> AbstractContextManager[IO[bytes]]:
        with ExitStack() as stack:
            file = stack.enter_context(_npy_file(self.path, self.member, stack))
            _npy_head(file, self.path)
            kept = stack.pop_all()
        return _Handed(file, kept)


@dataclass(frozen=True)
class _KeptInSafetensors(Kept):
    offset: int

    def opened(self) -> AbstractContextManager[IO[bytes]]:
        file = self.path.open("rb")
        file.seek(self.offset)
        return file


class _Handed(AbstractContextManager[IO[bytes]]):
    """A file whose archive is closed with it."""

    def __init__(self, file: IO[bytes], stack: ExitStack) -> None:
        self._file, self._stack = file, stack

    def __enter__(self) -> IO[bytes]:
        return self._file

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def kept_in(path: Path) -> dict[str, Kept]:
    """The arrays of a file, by name; that of a .npy file has the file's."""
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


def batches_of(arrays: Mapping[str, Kept], at_once: int) -> Iterator[dict[str, Array]]:
    """All of them side by side, so many rows at once."""
    for parts in zip(*(kept.rows(at_once) for kept in arrays.values()), strict=True):
        yield dict(zip(arrays, parts, strict=True))


def _in_npz(path: Path) -> Iterator[tuple[str, Kept]]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    for member in names:
        if not member.endswith(".npy"):
            raise ValueError(f"it holds {member!r}, which is no array")
        with ExitStack() as stack:
            shape, dtype = _npy_head(_npy_file(path, member, stack), path)
        yield member.removesuffix(".npy"), _KeptInNpy(path, dtype, shape, member)


def _in_npy(path: Path) -> Kept:
    with path.open("rb") as file:
        shape, dtype = _npy_head(file, path)
    return _KeptInNpy(path, dtype, shape, None)


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


def _in_safetensors(path: Path) -> Iterator[tuple[str, Kept]]:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > _LARGEST_HEAD:
            raise ValueError(f"its head claims {size} bytes")
        head = json.loads(file.read(size))
    if not isinstance(head, dict):
        raise ValueError("its head is no JSON object")
    for name, entry in head.items():
        if name != "__metadata__":
            dtype, shape = _ST_TYPES[entry["dtype"]], tuple(int(each) for each in entry["shape"])
            start, end = entry["data_offsets"]
            if end - start != math.prod(shape) * dtype.itemsize or start < 0 or min(shape, default=0) < 0:
                raise ValueError(f"{name!r} claims {end - start} bytes for its shape")
            yield name, _KeptInSafetensors(path, dtype, shape, 8 + size + start)


def _native(values: Array) -> Array:
    """In this machine's order of bytes: bits are compared as they lie there."""
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
