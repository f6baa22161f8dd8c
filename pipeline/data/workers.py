"""Worker processes that read what is wanted, batch by batch and in order.

Takes a picklable function of some of it; workers see nothing else, and must not raise: they return errors.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, cast, final

import torch
from torch.utils.data import DataLoader, Dataset

from export.errors import UsageError

Request = TypeVar("Request")
Result = TypeVar("Result")


@final
class WorkerPool(Generic[Request, Result]):
    """Processes that stay alive from one `read` to the next; one `read` at a time. No workers: this process reads."""

    def __init__(self, read: Callable[[Sequence[Request]], Result], workers: int, *, pinned: bool = False) -> None:
        self._chunks: list[list[Request]] = []
        self._loader = DataLoader(
            _Reading(read),
            batch_sampler=self._chunks,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pinned,
            # A forked worker may inherit a lock that a thread of this process holds.
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
            # Its own generator: a loader without one draws from, and so changes, torch's global random numbers.
            generator=torch.Generator(),
        )

    def read(self, chunks: Sequence[list[Request]]) -> Iterator[Result]:
        """One result per chunk, in order."""
        self._chunks[:] = chunks
        results = cast("Iterator[Result]", iter(self._loader))
        for _ in chunks:
            yield _next(results)


@final
class _Reading(Dataset[object], Generic[Request]):
    """What is sent to a worker; the loader takes what is wanted for its indices."""

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
        # The one thing a worker cannot return as a value: that it was killed.
        reason = " ".join(str(error).split())
        raise UsageError(f"a process that reads images died, often for want of memory; lower data.workers ({reason})") from error
