"""What the measurements on a link mean: passed, failed or not run, with the reason in one line.

Plain data and functions of it. Runs nothing.
"""

from dataclasses import dataclass

from deploy.compare.bits import Comparison
from deploy.compare.budget import Budgets, Errors, OutputErrors, TopOne
from deploy.compare.tolerance import Excess, Tolerance
from deploy.verify.verdict import Observed, Requirement, Status, figures


@dataclass(frozen=True, kw_only=True)
class Side:
    """A stage, as far as a link needs to know it."""

    name: str
    absent: str | None
    broken: str | None
    errors: OutputErrors
    budgets: Budgets | None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that was measured on a link."""

    required: Requirement
    sides: tuple[Side, Side]
    source: tuple[Side, Side] | None
    """The stage whose errors set the budget, and the float64 evaluation. None without a budget."""
    comparison: Comparison
    top_one: TopOne
    tolerance: Tolerance | None = None
    beyond: Excess | None = None
    infinity_allowed: bool = False
    """Whether an infinity on which all sides agree is an answer like any other."""

    @property
    def target(self) -> Side:
        return self.sides[1]


def judged(evidence: Evidence) -> tuple[Status, Observed | None, str]:
    """The verdict on a link."""
    observed = _observed(evidence)
    status, reason = _status(evidence, observed)
    return status, observed, reason


def _observed(evidence: Evidence) -> Observed | None:
    comparison = evidence.comparison
    if not comparison.num_values:
        return None
    if comparison.bitwise:
        return "bitwise"
    if comparison.failures:
        return "outside"
    if evidence.required == "tolerance":
        return "tolerance" if evidence.beyond is not None and not evidence.beyond.count else "outside"
    allowed = evidence.target.budgets
    inside = allowed is not None and allowed.covers(evidence.target.errors)
    return "budget" if inside and evidence.top_one.all_ties else "outside"


def _status(evidence: Evidence, observed: Observed | None) -> tuple[Status, str]:
    needed = [*evidence.sides, *(evidence.source or ())] if evidence.required == "budget" else [*evidence.sides]
    absent = [side.absent for side in needed if side.absent]
    broken = [side.broken for side in needed if side.broken]
    if absent:
        return "not run", absent[0]
    if broken or evidence.comparison.failures:
        return "failed", "; ".join(broken or [failure.message for failure in evidence.comparison.failures])
    if reason := _not_finite(evidence):
        return "failed", reason
    if observed in ("bitwise", evidence.required):
        return "passed", ""
    return "failed", _difference(evidence)


def _not_finite(evidence: Evidence) -> str | None:
    for side in evidence.sides:
        errors = side.errors.whole
        if errors.nonfinite_apart:
            return (
                f"{side.name}: {errors.nonfinite} output values are NaN or infinite, {errors.nonfinite_apart} of them only there and not in float64"
            )
        if number := errors.nonfinite - (errors.infinite_alike if evidence.infinity_allowed else 0):
            return f"{side.name}: {number} output values are NaN or infinite, in float64 too: such an answer says nothing"
    if evidence.source is None and (number := _without_number(evidence)):
        return f"{number} output values are NaN or infinite: such an answer says nothing"
    return None


def _without_number(evidence: Evidence) -> int:
    return sum(output.nan if evidence.infinity_allowed else output.nonfinite for output in evidence.comparison.outputs)


def _difference(evidence: Evidence) -> str:
    found = figures(evidence.comparison)
    if evidence.required == "bitwise":
        return f"required bitwise, but {found}"
    if evidence.required == "tolerance":
        assert evidence.beyond is not None
        name, index = evidence.beyond.first or ("", ())
        return f"{evidence.beyond.count} values are beyond {evidence.tolerance}, the first is {name}{list(index)}; {found}"
    return f"{_outside(evidence)}; {found}"


def _outside(evidence: Evidence) -> str:
    allowed, errors = evidence.target.budgets, evidence.target.errors
    name = allowed.tightest(errors) if allowed is not None else None
    if allowed is None or name is None or allowed.outputs.get(name) is None:
        return _without_budget(evidence, name)
    if not allowed.covers(errors):
        return f"{_of(name, errors)}the error against float64 is {errors.outputs[name]}, the budget is {allowed.outputs[name]}"
    changes = evidence.top_one.num_changes
    return f"{changes - evidence.top_one.num_ties} of {changes} changes of the first class are not ties"


def _without_budget(evidence: Evidence, name: str | None) -> str:
    assert evidence.source is not None
    source = evidence.source[0]
    errors: Errors = source.errors.outputs.get(name or "", source.errors.whole)
    found = f"the error of {source.name} against float64 is {errors}, the largest output {errors.largest_output:.3g}"
    return f"{_of(name, source.errors)}no budget: {found}"


def _of(name: str | None, errors: OutputErrors) -> str:
    """The prefix that names the output, if there are several."""
    return f"{name}: " if name is not None and len(errors.outputs) > 1 else ""
