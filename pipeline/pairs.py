"""`pipeline verify --reference A --candidate B`: from the words of the command line to a verification of a pair.

Takes what was typed. How two forms are compared is `deploy.verify.pair`'s business.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.hosting.process import Limits
from deploy.verify.budget import Precision
from deploy.verify.compare import Arrays
from deploy.verify.pair import Pair, compare_pair
from deploy.verify.selection import BITWISE
from deploy.verify.tolerance import Tolerance
from export.errors import UsageError
from pipeline.pictures import pictures_of
from pipeline.verified import Verification
from pipeline.watching import Console, shown


@dataclass(frozen=True, kw_only=True)
class Typed:
    """The options of a pair, as they were typed."""

    reference: Path
    candidate: Path
    samples: str | None
    maps: tuple[str, ...]
    sizes: tuple[str, ...]
    runtimes: tuple[str, ...]
    max_ulp: int | None
    atol: float | None
    rtol: float | None
    precision: Precision | None
    required: tuple[str, ...]
    only: str | None
    batched: bool
    inside: bool
    memory_limit: float
    time_limit: float

    @property
    def pair(self) -> Pair:
        """What they mean."""
        states_tolerance = any(each is not None for each in (self.max_ulp, self.atol, self.rtol))
        return Pair(
            reference=self.reference,
            candidate=self.candidate,
            samples=self.samples,
            names=_each_once([_split(text, "--map", "REFERENCE=CANDIDATE") for text in self.maps]),
            runtimes=self._runtimes,
            tolerance=Tolerance(max_ulp=self.max_ulp, atol=self.atol, rtol=self.rtol) if states_tolerance else None,
            precision=self.precision,
            bitwise=BITWISE in self.required,
            sizes={name: _positive(text, name) for name, text in (_split(text, "--size", "NAME=NUMBER") for text in self.sizes)},
            batched=self.batched,
            inside=self.inside,
            only=self.only,
            require=tuple(name for name in self.required if name != BITWISE),
            limits=Limits(gibibytes=self.memory_limit, seconds=self.time_limit),
        )

    @property
    def _runtimes(self) -> tuple[str, ...]:
        if self.runtimes and self.candidate.suffix and self.candidate.suffix != ".onnx" and not self.candidate.is_dir():
            raise UsageError(f"--runtime says what an ONNX candidate is run in, {self.candidate.name} is none; drop it")
        return tuple(dict.fromkeys(self.runtimes)) or ("onnxruntime-cpu",)


def compare(typed: Typed, console: Console) -> Verification:
    """Run both forms and judge the link between them."""

    def with_progress(batches: Iterable[Arrays], number: int) -> Iterator[Arrays]:
        return shown(console, batches, "comparing", number)

    compared = compare_pair(typed.pair, with_progress)
    facts = {"reference": typed.reference.name, "candidate": typed.candidate.name}
    return Verification(compared.verdict, (), (), facts, pictures=pictures_of(compared.rows))


def _split(text: str, option: str, form: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise UsageError(f"{option} {text!r} is not of the form {form}")
    return left, right


def _each_once(pairs: list[tuple[str, str]]) -> dict[str, str]:
    for side in zip(*pairs, strict=True):
        if twice := [name for name in side if side.count(name) > 1]:
            raise UsageError(f"--map names {twice[0]!r} twice on one side; map every name to one other")
    return dict(pairs)


def _positive(text: str, name: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--size {name}={text} is no size; give a whole number of at least 1")
    return int(text)
