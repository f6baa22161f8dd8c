"""What a server counts: whole numbers in memory that all processes of a server share.

Each process writes its own row; whoever is asked adds the rows up. Takes numbers; knows no
requests.
"""

import mmap
from bisect import bisect_left
from collections.abc import Mapping, Sequence

OUTCOMES = ("ok", "invalid", "rejected", "expired", "failed", "cancelled")
PROTOCOLS = ("http", "grpc")
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The bounds of the histograms of time."""
_SIZES = tuple(2**power for power in range(11))
_STAGES = ("queue", "compute", "request")
_GAUGES = ("ready", "requests_waiting", "rows_waiting", "connections", "busy_workers")
_SUMS = ("rows", "batches", "padded_rows", "retries", "rechecked", "recheck_different", "swaps", "refused_bundles", "last_inference_ms")
_NAMES = (
    *(f"{protocol}.{outcome}" for protocol in PROTOCOLS for outcome in OUTCOMES),
    *(f"{stage}.{part}" for stage in _STAGES for part in ("count", "ns", *(f"le{index}" for index in range(len(SECONDS) + 1)))),
    *(f"size.{size}" for size in _SIZES),
    *(f"size.{size}.ns" for size in _SIZES),
    *("fail.ns", "encode.ns", "decode.ns"),
    *_GAUGES,
    *_SUMS,
)
_PLACE = {name: index for index, name in enumerate(_NAMES)}
_BOUNDS_NS = tuple(int(bound * 1e9) for bound in SECONDS)


class Counts:
    """The counters of one process, in memory that its parent made."""

    def __init__(self, processes: int = 1, process: int = 0, shared: mmap.mmap | None = None) -> None:
        self.memory = shared if shared is not None else mmap.mmap(-1, processes * len(_NAMES) * 8)
        self._all = memoryview(self.memory).cast("q")
        self.processes = processes
        self._row = self._all[process * len(_NAMES) : (process + 1) * len(_NAMES)]

    def of_process(self, process: int) -> "Counts":
        """Return the row of another process; a process that starts again starts from its row."""
        return Counts(self.processes, process, self.memory)

    def add(self, name: str, number: int = 1) -> None:
        self._row[_PLACE[name]] += number

    def set(self, name: str, number: int) -> None:
        self._row[_PLACE[name]] = number

    def time(self, stage: str, nanoseconds: int) -> None:
        """Note how long something took."""
        row, place = self._row, _PLACE[f"{stage}.count"]
        row[place] += 1
        row[place + 1] += nanoseconds
        row[place + 2 + bisect_left(_BOUNDS_NS, nanoseconds)] += 1

    def batch(self, rows: int, nanoseconds: int) -> None:
        """Note a batch that was computed."""
        row = self._row
        size = 1 << max(0, (min(rows, _SIZES[-1]) - 1).bit_length())
        row[_PLACE[f"size.{size}"]] += 1
        row[_PLACE[f"size.{size}.ns"]] += nanoseconds
        row[_PLACE["batches"]] += 1
        row[_PLACE["rows"]] += rows

    def clear_gauges(self) -> None:
        """Forget the state of a process that is gone; its sums stay."""
        for name in _GAUGES:
            self.set(name, 0)

    def totals(self) -> Mapping[str, int]:
        """Return the sums over all processes."""
        width = len(_NAMES)
        return {name: sum(self._all[index::width]) for name, index in _PLACE.items()}

    def least(self, name: str) -> int:
        """Return the smallest value of any process."""
        return min(self._all[_PLACE[name] :: len(_NAMES)])


def bucket_counts(totals: Mapping[str, int], stage: str) -> Sequence[tuple[str, int]]:
    """Return a histogram as bounds in seconds and numbers up to each."""
    found, so_far = [], 0
    for index, bound in enumerate((*map(str, SECONDS), "+Inf")):
        so_far += totals[f"{stage}.le{index}"]
        found.append((bound, so_far))
    return found


def batch_sizes(totals: Mapping[str, int]) -> Mapping[int, tuple[int, int]]:
    """Return how many batches of up to each size there were, and the nanoseconds they took."""
    return {size: (totals[f"size.{size}"], totals[f"size.{size}.ns"]) for size in _SIZES if totals[f"size.{size}"]}
