"""The exactness certificate: the content of `certificate.json`, and a table for people.

Plain frozen data. Knows neither how a file is read (`walk`) nor what wrote it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

FORMAT = 1
EXACT_BELOW = 2**24
"""Every integer below this is a float32, and so is every sum of such integers that stays below."""
WHOLE_BELOW = 2**31
"""Quantisers may go through 32-bit integers before they clip."""
WIDEST_STEP = 2**16
"""The part of 24 bits that an 8-bit code leaves, in units of the sum that is rounded."""
TF32_BITS = 11
"""The significant bits that TF32 keeps of a number."""
INT16_PAIRS = 2**15 - 1
"""Where 16-bit kernels saturate the sum of two products."""
Operation = Literal["Conv", "Gemm", "ReduceMean", "ReduceSum"]
Ties = Literal["impossible", "possible"]


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer or pooled sum.

    Integers are counted in steps. Sums are in the layer's unit: input step times weight step.
    """

    name: str
    operation: Operation
    input_step: float
    input_low: int
    input_high: int
    weight_step_min: float | None
    """None for a pooled sum, which has no weights."""
    weight_step_max: float | None
    largest_weight: int | None
    largest_sum: int
    """The largest absolute value of a sum over any subset of a filter's terms, bias included."""
    plain_bound: int
    """The same from absolute values of weights alone. Larger if inputs are never negative."""
    accumulator_bits: int
    """What integer kernels need, whatever they do with a zero point.

    If sums are exact in float32, 32 bits are always enough.
    """
    int16_pairs_safe: bool | None
    """Whether kernels may add pairs of products in saturating 16 bits.

    None if no such kernel can serve the layer.
    """
    tf32_safe: bool
    """Whether inputs and weights fit TF32's 11 significant bits."""
    output_step: float | None
    """None if the sum is not rounded."""
    ties: Ties | None
    """Whether a sum can lie half-way between two output steps. None if it is not rounded."""

    @property
    def bits(self) -> int:
        return self.largest_sum.bit_length()

    @property
    def headroom_bits(self) -> float:
        """How many times the sums could double and stay exact. Negative if they are not exact."""
        return _headroom(self.largest_sum)

    @property
    def plain_headroom_bits(self) -> float:
        return _headroom(self.plain_bound)

    def to_json(self) -> dict[str, object]:
        return {
            **asdict(self),
            "bits": self.bits,
            "headroom_bits": self.headroom_bits,
            "plain_headroom_bits": self.plain_headroom_bits,
        }


@dataclass(frozen=True, kw_only=True)
class JoinRow:
    """An addition of two values of one step."""

    name: str
    step: float
    low: int
    high: int
    output_step: float | None
    rounds: bool
    """Whether its result can be anything but a multiple of the step it is stored with."""
    without_branch_quantiser: Literal["the same", "may differ"] | None
    """What a runtime gives that adds a branch before the branch is clipped to 8 bits.

    None if no branch comes straight from a layer.
    """

    @property
    def bits(self) -> int:
        return max(abs(self.low), abs(self.high)).bit_length()

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "bits": self.bits}


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a node cannot be certified, and what would fix it."""

    node: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.node!r} {self.reason}; {self.remedy}"


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What was found in a file. It holds if nothing was refused."""

    sha256: str
    layers: tuple[LayerRow, ...]
    joins: tuple[JoinRow, ...]
    refusals: tuple[Refusal, ...]

    @property
    def holds(self) -> bool:
        return not self.refusals and bool(self.layers)

    @property
    def tightest(self) -> LayerRow | None:
        """The layer with the least room."""
        return max(self.layers, key=lambda row: row.largest_sum, default=None)

    @property
    def failure(self) -> str:
        """One line on why it does not hold."""
        if not self.refusals:
            return "no certificate: the graph has no layer"
        more = f"; and {len(self.refusals) - 1} more" if len(self.refusals) > 1 else ""
        return f"no certificate: {self.refusals[0]}{more}"

    def to_json(self) -> dict[str, Any]:
        """The content of `certificate.json`."""
        return {
            "format": FORMAT,
            "verdict": "holds" if self.holds else "refused",
            "model_sha256": self.sha256,
            "exact_below": EXACT_BELOW,
            "least_headroom_bits": self.tightest.headroom_bits if self.tightest else None,
            "tf32_safe": _all(row.tf32_safe for row in self.layers),
            "int16_pairs_safe": _all(row.int16_pairs_safe is not False for row in self.layers),
            "without_branch_quantisers": _all(row.without_branch_quantiser != "may differ" for row in self.joins),
            "layers": [row.to_json() for row in self.layers],
            "joins": [row.to_json() for row in self.joins],
            "refusals": [asdict(refusal) for refusal in self.refusals],
        }


def as_table(certificate: Certificate) -> str:
    """The certificate for a terminal: a line per layer, then what holds and what does not."""
    head = ("layer", "input", "largest sum", "bits", "room", "plain room", "16-bit pairs", "TF32", "ties")
    lines = _aligned([head, *map(_cells, certificate.layers)])
    return "\n".join([*lines, "", *_summary(certificate)])


def _cells(row: LayerRow) -> tuple[str, ...]:
    pairs = {True: "safe", False: "NOT SAFE", None: "-"}[row.int16_pairs_safe]
    room, plain = f"{row.headroom_bits:.2f}", f"{row.plain_headroom_bits:.2f}"
    tf32 = "safe" if row.tf32_safe else "keep off"
    return (row.name, f"{row.input_low}..{row.input_high}", str(row.largest_sum), str(row.bits), room, plain, pairs, tf32, row.ties or "-")


def _summary(certificate: Certificate) -> list[str]:
    if not certificate.holds:
        return ["refused:", *(f"  {refusal}" for refusal in certificate.refusals)] if certificate.refusals else [certificate.failure]
    return [
        f"every sum is exact in float32 and int32 in any order, {_tightest(certificate)}",
        "no rounding can be a tie, no join rounds",
        *_reservations(certificate),
    ]


def _tightest(certificate: Certificate) -> str:
    row = certificate.tightest
    assert row is not None
    return f"with {row.headroom_bits:.2f} bits to spare in {row.name!r}, which has the least"


def _reservations(certificate: Certificate) -> list[str]:
    wide = [row.name for row in certificate.layers if not row.tf32_safe]
    clipped = [row.name for row in certificate.joins if row.without_branch_quantiser == "may differ"]
    paired = [row.name for row in certificate.layers if row.int16_pairs_safe is False]
    return [
        *([f"TF32 has to be off: it would round what {_named(wide)} multiplies"] if wide else []),
        *([f"not for kernels that add pairs of products in 16 bits: {_named(paired)}"] if paired else []),
        *([f"a runtime must clip both branches to 8 bits in front of {_named(clipped)}"] if clipped else []),
    ]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in rows]


def _headroom(largest: int) -> float:
    return round(math.log2(EXACT_BELOW) - math.log2(max(largest, 1)), 2)


def _all(checks: Iterable[bool]) -> bool:
    return all(checks)
