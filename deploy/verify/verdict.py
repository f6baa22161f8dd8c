"""The verdict on a chain of links: the content of `verification.json`, and what failed in words.

Plain frozen data. Knows neither how it was measured nor how it is shown.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Literal

from deploy.compare.bits import Comparison, FirstDifference, OutputComparison
from deploy.compare.budget import Budget, TopOneChange, share_used
from deploy.compare.tolerance import Tolerance

Requirement = Literal["bitwise", "budget", "tolerance"]
Observed = Literal["bitwise", "budget", "tolerance", "outside"]
Status = Literal["passed", "failed", "not run"]
FORMAT_VERSION = 1
"""The format of verification.json. Code for this number would misunderstand another one."""
Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class PlaceInput:
    """A tensor that the tensor at a place is computed from."""

    tensor: str
    max_abs: float
    error: float | None
    allowed: float | None
    inside: bool


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a link begins to fail: the first tensor outside its limit with all inputs inside."""

    tensor: str
    """Its name in the link's second stage."""
    reference_tensor: str
    """Its name in the link's first stage."""
    operation: str
    layer: str
    """The module of the network, if known."""
    reason: str
    max_abs: float
    error: float | None
    """The largest distance from float64, if the link has a budget."""
    allowed: float | None
    inputs: tuple[PlaceInput, ...]
    worst_sample: int
    runs: int
    """How many tensors were tried."""
    behind: bool = False
    """Whether this is the last comparable tensor and it is inside: the failure is behind it."""


@dataclass(frozen=True, kw_only=True)
class InnerError:
    """How far both stages of a link are from float64 at an inner tensor."""

    tensor: str
    operation: str
    layer: str
    before: float
    after: float
    allowed: float | None
    """What is allowed for the second stage."""


@dataclass(frozen=True, kw_only=True)
class WorstSample:
    """A sample on which the two stages of a link are farthest apart."""

    sample: int
    output: str
    max_abs: float
    """Infinite if only one side has a number."""
    before: tuple[tuple[int, float], ...]
    """The classes with the highest scores at the first stage, highest first.

    It is empty if the output has no classes.
    """
    after: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class LinkVerdict:
    """Whether two neighbouring stages are the same function.

    `runtime` and `device` are those of the second stage.
    """

    from_: str
    to: str
    runtime: str
    device: str
    required: Requirement
    observed: Observed | None
    """None if nothing was compared."""
    status: Status
    reason: str
    """Empty if the link passed."""
    samples: int
    outputs: tuple[OutputComparison, ...]
    max_ulp: int | None
    max_abs: float | None
    """None if nothing was compared, which is not a distance of 0."""
    budget: Budget | None
    """How far the second stage may be from float64, at the output that uses most of its budget.

    How far it is, is in the verdict's `errors`.
    """
    tolerance: Tolerance | None
    """What a human chose to allow, if no budget could be derived or another was wanted."""
    top1_changes: int
    ties: int
    changes: tuple[TopOneChange, ...]
    """Some of the samples whose first class changed: those with the widest margins."""
    first_difference: FirstDifference | None
    worst: tuple[WorstSample, ...]
    """Farthest apart first. Empty if all bits are equal."""
    place: Place | None
    """Searched for if the link failed and both stages can be cut."""
    growth: tuple[InnerError, ...]
    """From the first layers to the last, if requested."""


@dataclass(frozen=True, kw_only=True)
class StageErrors:
    """How far an output of a stage is from float64, over the samples evaluated in float64."""

    stage: str
    output: str
    samples: int
    """The first samples, and all others whose distance from float64 these did not bound."""
    max: float
    rms: float
    budget: Budget | None


@dataclass(frozen=True, kw_only=True)
class InvarianceVerdict:
    """Whether a sample's outputs stay the same, whatever runs with it and however it is run."""

    stage: str
    check: str
    settings: tuple[str, ...]
    """What was varied, in words."""
    required: Requirement
    observed: Observed | None
    status: Status
    reason: str
    samples: int
    max_ulp: int | None
    max_abs: float | None
    """None if nothing was compared."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples that were run: their hash, their number, and how they were made."""

    sha256: str
    count: int
    how: tuple[str, ...]


TrainingKind = Literal["noise", "dropout", "statistics", "mixup", "precision"]
"""What the part does. "precision" is not part of the graph: it is how training steps computed."""


@dataclass(frozen=True, kw_only=True)
class TrainingOnlyPart:
    """A part that acts in training only.

    It was switched off for the comparison, unless training itself had switched it off.
    """

    name: str
    kind: TrainingKind
    what: str
    off_since_step: int | None = None
    """The step after which training did without it. None if it acted to the end."""


@dataclass(frozen=True, kw_only=True)
class FrozenStatistics:
    """Training without batch statistics, from `since_step` to the last step.

    The accuracies are shares of the test set.
    """

    since_step: int
    last_step: int
    accuracy_before: float
    accuracy_recomputed: float
    accuracy_at_end: float


@dataclass(frozen=True, kw_only=True)
class NotFoldablePart:
    """A part that no plain layer can compute. It is deployed as it was trained."""

    name: str
    what: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The content of `verification.json`."""

    links: tuple[LinkVerdict, ...]
    errors: tuple[StageErrors, ...]
    invariance: tuple[InvarianceVerdict, ...]
    environment: Mapping[str, object]
    stages: Mapping[str, Mapping[str, object]]
    """What ran, by stage: runtime, version, device, flags, threads."""
    files: Mapping[str, str]
    samples: Samples
    training_only: tuple[TrainingOnlyPart, ...]
    interrupted: bool = False
    """Whether the user stopped it.

    Samples were left out of the comparison, or the search for a failure's place was not finished.
    """
    not_foldable: tuple[NotFoldablePart, ...] = ()
    frozen_statistics: FrozenStatistics | None = None

    @property
    def passed(self) -> bool:
        """At least one link passed, no check failed, and all samples were compared."""
        return any(link.status == "passed" for link in self.links) and not self.failed and not self.interrupted

    @property
    def word(self) -> Literal["pass", "fail", "incomplete"]:
        """The verdict in one word. What failed before an interruption has failed."""
        return "fail" if self.failed else "incomplete" if self.interrupted else "pass" if self.passed else "fail"

    @property
    def failed(self) -> tuple[LinkVerdict | InvarianceVerdict, ...]:
        checks: list[LinkVerdict | InvarianceVerdict] = [*self.links, *self.invariance]
        return tuple(check for check in checks if check.status == "failed")

    def to_json(self) -> dict[str, Json]:
        """The content of `verification.json`. NaN and infinity, which JSON lacks, become words."""
        content = _json(self)
        assert isinstance(content, dict)
        return {"verdict": self.word, "format_version": FORMAT_VERSION, **content}


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdicts on several chains of one model as one. All ran on the same samples."""
    first = verdicts[0]
    return replace(
        first,
        links=tuple(link for each in verdicts for link in each.links),
        errors=tuple(error for each in verdicts for error in each.errors),
        invariance=tuple(check for each in verdicts for check in each.invariance),
        stages={name: facts for each in verdicts for name, facts in each.stages.items()},
        interrupted=any(each.interrupted for each in verdicts),
    )


ENOUGH = 16
"""How many times as much an output must vary between samples as it may be off.

If it varies less, it shows hardly any fault.
"""


def weak_outputs(verdict: Verdict) -> dict[str, float]:
    """Outputs that hardly depend on the samples, and how far each varies.

    A fault in front of such an output would not show. An output needs several samples to count.
    """
    allowed = {(each.stage, each.output): each.budget.max for each in verdict.errors if each.budget}
    outputs = [(output, ENOUGH * allowed.get((link.to, output.name), 0.0)) for link in verdict.links for output in link.outputs]
    return {output.name: output.spread for output, least in outputs if output.num_samples > 1 and output.spread <= least}


def weakness(name: str, spread: float) -> str:
    """The sentence about such an output."""
    return f"{name} hardly depends on the samples (it varies by {spread:.3g}): a fault in front of what makes it constant would not show"


def tightest(errors: Iterable[StageErrors], stage: str) -> StageErrors | None:
    """Of a stage's outputs, the one that uses most of its budget."""
    return max((each for each in errors if each.stage == stage), key=share, default=None)


def share(errors: StageErrors) -> float:
    """How much of its budget an output uses. Infinite if it has none."""
    if errors.budget is None:
        return math.inf
    return share_used((errors.max, errors.rms), (errors.budget.max, errors.budget.rms))


def failed_outputs(verdict: Verdict, link: LinkVerdict) -> list[str]:
    """The outputs of a failed link that are outside their budgets.

    If no budget was required, or none is exceeded, the outputs with different bits.
    """
    outside = [each.output for each in verdict.errors if each.stage == link.to and share(each) > 1] if link.required == "budget" else []
    return outside or [output.name for output in link.outputs if output.different_bits]


def failure_sentence(verdict: Verdict) -> str:
    """One line on the first failure, with its figures; for NotTheSameError."""
    if not verdict.failed:
        return "; ".join(["no link passed", *(f"{x.from_} -> {x.to} {x.status}: {x.reason}" for x in verdict.links)])
    first, others = verdict.failed[0], len(verdict.failed) - 1
    place = f"{first.from_} -> {first.to}" if isinstance(first, LinkVerdict) else f"{first.check} of {first.stage}"
    more = f"; and {others} more failed" if others else ""
    return f"{place} failed: {reason_with_place(first)}{more}"


def place_words(place: Place) -> str:
    """The place in a few words."""
    layer = f" of {place.layer}" if place.layer else ""
    return f"{'behind ' if place.behind else ''}{place.operation}{layer} ({place.tensor})"


def reason_with_place(failed: LinkVerdict | InvarianceVerdict) -> str:
    """Why it failed, and where the failure begins."""
    place = failed.place if isinstance(failed, LinkVerdict) else None
    return failed.reason + (f"; it begins {'' if place.behind else 'at '}{place_words(place)}" if place else "")


def figures(comparison: Comparison) -> str:
    """How far apart the two sides were, in a few words."""
    found = f"{comparison.different_bits} of {comparison.num_values} values have different bits"
    size = f"max_ulp {comparison.max_ulp}, max_abs {comparison.max_abs:.3g}"
    first = comparison.first_difference
    if first is None:
        return f"{found}, {size}"
    return f"{found}, {size}, first at {first.output}{list(first.index)}: {first.values[0]!r} against {first.values[1]!r}"


def one_line(error: Exception, limit: int = 300) -> str:
    """An exception of a runtime as part of a sentence."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= limit else text[:limit] + "..."


def _json(value: object) -> Json:
    if is_dataclass(value):
        return {field.name.rstrip("_"): _json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no form in JSON")
