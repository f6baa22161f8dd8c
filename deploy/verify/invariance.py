"""Whether a stage answers for a sample and not for its neighbours: run again, alone, and beside copies of itself.

Takes a function that runs a batch, and what it returned. Knows no runtime.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from deploy.verify.budget import Budget, ErrorMeter
from deploy.verify.compare import Arrays, Comparator
from deploy.verify.verdict import InvarianceVerdict, Observed, Requirement, Status, figures, one_line

Run = Callable[[Arrays], Arrays]

CHECKS = ("rerun", "alone", "duplicated")
NUM_ALONE = 8
NUM_DUPLICATED = 2


@dataclass
class _Check:
    """One of the checks while it is under way."""

    comparator: Comparator = field(default_factory=Comparator)
    errors: ErrorMeter = field(default_factory=ErrorMeter)
    num_samples: int = 0
    raised: str | None = None


class InvarianceMeter:
    """Runs the variants of one batch. Each row of a variant is a row of the batch, so its outputs are known."""

    def __init__(self) -> None:
        self._checks = {name: _Check() for name in CHECKS}

    def update(self, run: Run, batch: Arrays, outputs: Arrays, reference: Arrays | None) -> None:
        """Compare every variant's outputs with those in the batch, and measure them against float64."""
        size = max((len(rows) for rows in batch.values()), default=0)
        for name, rows in _variants(size):
            check = self._checks[name]
            try:
                found = run(_rows(batch, rows, size))
            except Exception as error:  # whatever a runtime raises, it is a finding
                check.raised = one_line(error)
                continue
            check.comparator.update(_rows(outputs, rows, size), found)
            if name == "duplicated":
                check.comparator.update(_rows(found, np.zeros_like(rows), len(rows)), found)
            if reference is not None:
                check.errors.update(_rows(reference, rows, size), found)
            check.num_samples += len(np.unique(rows))

    def verdicts(self, stage: str, required: Requirement, budget: Budget | None) -> tuple[InvarianceVerdict, ...]:
        """Passed where every bit is equal or, if a budget is all that is required, every variant lies within it."""
        return tuple(_verdict(stage, name, check, required, budget) for name, check in self._checks.items())


def not_run(stage: str, required: Requirement, reason: str) -> tuple[InvarianceVerdict, ...]:
    """The checks of a stage that ran nothing."""
    return tuple(_judged(stage, name, _Check(), required, None, "not run", reason) for name in CHECKS)


def _variants(size: int) -> Iterator[tuple[str, np.ndarray]]:
    """The rows of the batch that each variant is made of."""
    yield "rerun", np.arange(size)
    for row in range(min(size, NUM_ALONE)):
        yield "alone", np.array([row])
    for row in range(min(size, NUM_DUPLICATED)):
        yield "duplicated", np.full(size, row)


def _rows(arrays: Arrays, rows: np.ndarray, size: int) -> Arrays:
    """These rows of every array; an output that has no row per sample stays as it is."""
    return {name: value[rows] if value.ndim and len(value) == size else value for name, value in arrays.items()}


def _verdict(stage: str, name: str, check: _Check, required: Requirement, budget: Budget | None) -> InvarianceVerdict:
    if name == "rerun":
        required = "bitwise"  # the same batch once more: whatever changes then was drawn, or read from memory that nobody set
    comparison = check.comparator.result
    if check.raised is not None:
        return _judged(stage, name, check, required, None, "failed", check.raised)
    inside = not comparison.failures and budget is not None and budget.covers(check.errors.result)
    observed: Observed = "bitwise" if comparison.bitwise else "budget" if inside else "outside"
    if observed == "bitwise" or observed == required:
        return _judged(stage, name, check, required, observed, "passed", "")
    return _judged(stage, name, check, required, observed, "failed", _reason(check, required, budget))


def _reason(check: _Check, required: Requirement, budget: Budget | None) -> str:
    comparison = check.comparator.result
    if comparison.failures:
        return "; ".join(failure.message for failure in comparison.failures)
    if required == "bitwise":
        return f"required bitwise, but {figures(comparison)}"
    allowed = "no budget could be derived" if budget is None else f"the budget is {budget}"
    return f"the error against float64 is {check.errors.result}, {allowed}; {figures(comparison)}"


def _judged(
    stage: str,
    name: str,
    check: _Check,
    required: Requirement,
    observed: Observed | None,
    status: Status,
    reason: str,
) -> InvarianceVerdict:
    comparison = check.comparator.result
    return InvarianceVerdict(
        stage=stage,
        check=name,
        required=required,
        observed=observed,
        status=status,
        reason=reason,
        samples=check.num_samples,
        max_ulp=comparison.max_ulp,
        max_abs=comparison.max_abs,
    )
