"""The samples that a model is run on: from files, or drawn at random; cut into batches that the model takes.

Takes the model's inputs. What does not fit them is one line that says so.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.runners.base import TensorSpec
from deploy.verify.arrays import SUFFIXES, Kept, batches_of, kept_in
from deploy.verify.compare import Array, is_float
from export.errors import UsageError


@dataclass(frozen=True)
class Given:
    """Batches, as often as they are asked for, and how they were made."""

    batches: Callable[[], Iterator[dict[str, Array]]]
    num_batches: int
    num_samples: int
    description: str


def samples_for(inputs: Sequence[TensorSpec], asked: str, batch_size: int, sizes: Mapping[str, int], seed: int = 0) -> Given:
    """What `--samples` says: a file, a folder of files, or a number of random samples."""
    _refuse_unknown_sizes(inputs, sizes)
    if asked.isdecimal():
        return random_samples(inputs, int(asked), batch_size, sizes, seed)
    if sizes:
        raise UsageError(f"--size is of random samples, and {asked} has sizes of its own; drop it")
    path = Path(asked)
    if not asked or not path.exists():
        raise UsageError(f"--samples: {asked!r} is neither a file, nor a folder, nor a number")
    return samples_in(inputs, path, batch_size)


def samples_in(inputs: Sequence[TensorSpec], path: Path, batch_size: int) -> Given:
    """The samples of a file, or of every file of a folder."""
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
    beside = f" (beside them and not used: {', '.join(unused)})" if unused else ""
    return Given(batches, sum(file.num_batches for file in found), number, f"{number} samples from {where}{beside}")


def random_samples(inputs: Sequence[TensorSpec], number: int, batch_size: int, sizes: Mapping[str, int], seed: int = 0) -> Given:
    """Samples from NumPy's PCG64: bytes uniform, other integers 0 or 1, floats standard normal, truth values fair."""
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
    return Given(batches, num_batches, drawn, f"{drawn} random samples: NumPy's PCG64, seed {seed}; {what}")


class _FileOfSamples:
    """One file, checked against the inputs before anything is run."""

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


def _check(path: Path, spec: TensorSpec, kept: Kept) -> None:
    sizes = " x ".join(map(str, kept.shape)) or "a single value"
    fits = len(kept.shape) == len(spec.shape) and all(
        want == got or not isinstance(want, int) for want, got in zip(spec.shape[1:], kept.shape[1:], strict=True)
    )
    if kept.dtype.name != spec.dtype or not fits:
        raise UsageError(f"{path}: {spec.name!r} is {kept.dtype.name}, {sizes}; the model takes {spec}")


def _is_fixed(inputs: Sequence[TensorSpec]) -> bool:
    return any(spec.shape and isinstance(spec.shape[0], int) for spec in inputs)


def _at_once(inputs: Sequence[TensorSpec], batch_size: int) -> int:
    """The size of a batch: the model's own where it has one."""
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
