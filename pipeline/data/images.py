"""Images of a data set, in memory or in files that worker processes decode.

Takes indices and yields batches in order. Workers see only what they are sent and must not raise:
they return errors.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, cast, final

import torch
from torch.utils.data import DataLoader, Dataset

from export.errors import DamagedError, UsageError
from pipeline.data.decoding import Decoder, DecodeRequest, UnreadableImage

Request = TypeVar("Request")
Result = TypeVar("Result")


@final
class WorkerPool(Generic[Request, Result]):
    """Worker processes that stay alive from one `read` to the next.

    Only one `read` may run at a time. With no workers, this process reads.
    """

    def __init__(self, read: Callable[[Sequence[Request]], Result], workers: int, *, pinned: bool = False) -> None:
        self._chunks: list[list[Request]] = []
        self._loader = DataLoader(
            _Requests(read),
            batch_sampler=self._chunks,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pinned,
            # A forked worker may inherit a lock that a thread of this process holds.
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
            # Its own generator: without one, a loader draws from torch's global random numbers and
            # so changes them.
            generator=torch.Generator(),
        )

    def read(self, chunks: Sequence[list[Request]]) -> Iterator[Result]:
        """Yield one result per chunk, in order."""
        self._chunks[:] = chunks
        results = cast("Iterator[Result]", iter(self._loader))
        for _ in chunks:
            yield _next(results)


@final
class _Requests(Dataset[object], Generic[Request]):
    """What a worker receives; the loader passes requests in place of indices."""

    def __init__(self, read: Callable[[Sequence[Request]], object]) -> None:
        self._read = read

    def __getitems__(self, wanted: Sequence[Request]) -> object:
        return self._read(wanted)

    def __getitem__(self, wanted: Request) -> object:
        return self._read([wanted])


def _as_it_is(result: object) -> object:
    return result


def _next(results: Iterator[Result]) -> Result:
    try:
        return next(results)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        # The one thing that a worker cannot return as a value is that it was killed.
        reason = " ".join(str(error).split())
        raise UsageError(f"a process that reads images died, often for want of memory; lower data.workers ({reason})") from error


Shape = tuple[int, int, int]
"""Channels, height, width."""
Draws = torch.Tensor | None
"""One random number (int64, on the CPU) per requested image, which selects a part of it. None: read
images as for testing."""
_SECONDS_A_FILE, _SECONDS_A_PIXEL = 1e-4, 1e-8
"""What one process needs to decode a file, roughly; measured on JPEG files of 32 x 32 and of
several megapixels."""
_SECONDS_FOR_WORKERS = 20.0
"""A pass over the files that takes longer than this is worth starting workers, which takes about
three seconds each."""


class Images(ABC):
    """A fixed number of uint8 images of one shape."""

    @property
    @abstractmethod
    def num_images(self) -> int: ...

    @property
    @abstractmethod
    def shape(self) -> Shape: ...

    @abstractmethod
    def batches(self, order: torch.Tensor, batch_size: int, device: torch.device, draws: Draws = None) -> Iterator[torch.Tensor]:
        """Yield the images with these indices (int64, on the CPU) on the device.

        The last batch may be smaller.
        """

    @property
    def num_bytes(self) -> int:
        """The memory that they take as one tensor."""
        channels, height, width = self.shape
        return self.num_images * channels * height * width


@final
class MemoryImages(Images):
    """Images in one uint8 tensor, on the device or on the host."""

    def __init__(self, pixels: torch.Tensor) -> None:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            raise ValueError(f"images are uint8, N x C x H x W; got {pixels.dtype}, {tuple(pixels.shape)}")
        self.pixels = pixels

    @property
    def num_images(self) -> int:
        return self.pixels.shape[0]

    @property
    def shape(self) -> Shape:
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def batches(self, order: torch.Tensor, batch_size: int, device: torch.device, draws: Draws = None) -> Iterator[torch.Tensor]:
        there = order.to(self.pixels.device)
        for start in range(0, len(order), batch_size):
            yield self.pixels[there[start : start + batch_size]].to(device)


@final
class FileImages(Images):
    """Images in files, decoded by worker processes each time they are requested."""

    def __init__(self, paths: tuple[str, ...], decoder: Decoder, workers: int, num_file_pixels: int) -> None:
        self._paths, self._decoder, self._workers, self._num_file_pixels = paths, decoder, workers, num_file_pixels
        self._idle: list[WorkerPool[DecodeRequest, torch.Tensor | UnreadableImage]] = []

    @property
    def num_images(self) -> int:
        return len(self._paths)

    @property
    def paths(self) -> tuple[str, ...]:
        return self._paths

    @property
    def shape(self) -> Shape:
        return self._decoder.recipe.shape

    def batches(self, order: torch.Tensor, batch_size: int, device: torch.device, draws: Draws = None) -> Iterator[torch.Tensor]:
        paths = [self._paths[index] for index in order.tolist()]
        wanted = [DecodeRequest(path) for path in paths] if draws is None else list(map(DecodeRequest, paths, draws.tolist()))
        chunks = [wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)]
        # A pool serves one loop at a time and is kept for the next epoch, because starting its
        # processes takes seconds.
        pool = self._idle.pop() if self._idle else self._pool(pinned=device.type == "cuda")
        try:
            for decoded in pool.read(chunks):
                if isinstance(decoded, UnreadableImage):
                    raise DamagedError(decoded.message)
                yield decoded.to(device, non_blocking=True)
        finally:
            self._idle.append(pool)

    def for_one_pass(self) -> "FileImages":
        """Return the same images for a single pass, with workers only if that is faster."""
        seconds = self.num_images * _SECONDS_A_FILE + self._num_file_pixels * _SECONDS_A_PIXEL
        workers = self._workers if seconds > _SECONDS_FOR_WORKERS else 0
        return FileImages(self._paths, self._decoder, workers, self._num_file_pixels)

    def _pool(self, *, pinned: bool) -> WorkerPool[DecodeRequest, torch.Tensor | UnreadableImage]:
        return WorkerPool(self._decoder, self._workers, pinned=pinned)
