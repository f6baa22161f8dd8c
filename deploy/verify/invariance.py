"""Whether the result for a sample depends on the sample alone, whatever else runs or is set.

Takes a runner, its variants (the same stage opened with other settings) and one batch that it has
run. Knows no runtime.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from deploy.compare.bits import Arrays, Comparator
from deploy.compare.budget import Budgets, ErrorMeter
from deploy.compare.tolerance import Tolerance, ToleranceMeter
from deploy.runners.forms import Variant
from deploy.runners.runner import Runner
from deploy.verify.verdict import InvarianceVerdict, Observed, Requirement, Status, figures, one_line
from export.errors import NotHereError, UsageError

Run = Callable[[Arrays], Arrays]

RERUN, ALONE, BATCHES, PARTIAL, DUPLICATED, LAYOUT = "rerun", "alone", "batches", "partial", "duplicated", "layout"
PROFILE = "profile"
"""The check of a stage that was made for certain batch sizes: all must give the same."""
OF_EVERY_STAGE = (RERUN, ALONE, BATCHES, PARTIAL, DUPLICATED, LAYOUT)
"""The checks that need nothing but another input. A variant adds its own check."""
OF_BATCHES = (ALONE, BATCHES, PARTIAL, DUPLICATED)
"""The checks that need a batch of free size."""
NUM_ALONE = 8
NUM_DUPLICATED = 2
NUM_IN_BATCHES = 31
BATCH_SIZES = (3, 7)
"""Neither divides the number of samples that are cut into them, so the last batch is smaller."""


@dataclass
class _Check:
    """One of the checks while it is running."""

    comparator: Comparator = field(default_factory=Comparator)
    errors: ErrorMeter = field(default_factory=ErrorMeter)
    from_the_stage: ErrorMeter = field(default_factory=ErrorMeter)
    beyond: ToleranceMeter | None = None
    settings: list[str] = field(default_factory=list)
    samples: set[int] = field(default_factory=set)
    apart: str | None = None
    """The first setting that gave other bits."""
    raised: str | None = None
    absent: str | None = None

    def take_in(self, expected: Arrays, found: Arrays) -> None:
        """Compare two sets of outputs that must be the same."""
        self.comparator.update(expected, found)
        self.from_the_stage.update(expected, found)
        if self.beyond is not None:
            self.beyond.update(expected, found)


@dataclass(frozen=True)
class _Trial:
    """Rows of the batch that are run together."""

    check: str
    setting: str
    rows: np.ndarray


class InvarianceMeter:
    """Runs the variants of one batch.

    Each row of a variant is a row of the batch, so its outputs are known.
    """

    def __init__(
        self, variants: Sequence[Variant] = (), tolerance: Tolerance | None = None, *, batched: bool = True, profile: Sequence[int] = ()
    ) -> None:
        """`profile`: further batch sizes to try. Samples are repeated if there are too few."""
        self._variants = tuple(variants)
        self._batched = batched
        self._profile = tuple(profile)
        self._checks = {name: _Check(beyond=ToleranceMeter(tolerance) if tolerance else None) for name in checks_of(variants, profile)}

    def update(self, runner: Runner, batch: Arrays, outputs: Arrays, reference: Arrays | None) -> None:
        """Compare every variant's outputs with the batch's, and measure them against float64."""
        batch_seen = _RunBatch(batch, outputs, reference)
        for trial in self._trials(runner, batch_seen.size):
            self._compare(trial, runner.run, batch_seen)
        everything = np.arange(batch_seen.size)
        strided = _RunBatch({name: _strided(rows) for name, rows in batch.items()}, outputs, reference, as_it_is=True)
        self._compare(_Trial(LAYOUT, "strided input", everything), runner.run, strided)
        for variant in self._variants:
            self._open(variant, _Trial(variant.check, variant.setting, everything), batch_seen)

    def verdicts(self, stage: str, required: Requirement, budgets: Budgets | None, *, stage_outside: bool = False) -> tuple[InvarianceVerdict, ...]:
        """The verdict on every check.

        A check passes if every bit is equal. If only a budget is required, it also passes if every
        variant is within it. `stage_outside` says that the stage itself is outside its budget, and
        so are its variants. The budget is then applied to their distance from the stage.
        """
        checks = {name: replace(check, errors=check.from_the_stage) if stage_outside else check for name, check in self._checks.items()}
        return tuple(_verdict(stage, name, check, required, budgets) for name, check in checks.items())

    def _trials(self, runner: Runner, size: int) -> Iterator[_Trial]:
        yield _Trial(RERUN, "the batch again", np.arange(size))
        if reason := _why_not_in_other_batches(runner) if self._batched else "the first axis does not count samples":
            self._absent((*OF_BATCHES, *([PROFILE] if self._profile else [])), reason)
            return
        if size == 1:
            self._absent((ALONE, BATCHES, PARTIAL), "there is one sample")
        else:
            yield from _smaller_batches(size)
        for row in range(min(size, NUM_DUPLICATED)):
            yield _Trial(DUPLICATED, f"{max(size, 2)} copies of a sample", np.full(max(size, 2), row))
        for number in self._profile:
            yield _Trial(PROFILE, f"a batch of {number}", np.arange(number) % size)

    def _absent(self, names: Sequence[str], reason: str) -> None:
        for name in names:
            self._checks[name].absent = reason

    def _open(self, variant: Variant, trial: _Trial, seen: "_RunBatch") -> None:
        check = self._checks[variant.check]
        try:
            with variant.open() as runner:
                self._compare(trial, runner.run, seen)
        except NotHereError as error:
            check.absent = f"{variant.setting}: {error}"
        except Exception as error:
            check.raised = check.raised or f"{variant.setting} could not be opened: {one_line(error)}"

    def _compare(self, trial: _Trial, run: Run, seen: "_RunBatch") -> None:
        check = self._checks[trial.check]
        try:
            found = run(seen.input(trial.rows))
        except UsageError as error:  # the runner does not take such batches, and says so
            check.absent = str(error)
            return
        except Exception as error:  # whatever a runtime raises is a finding
            check.raised = check.raised or f"{trial.setting}: {one_line(error)}"
            return
        if trial.setting not in check.settings:
            check.settings.append(trial.setting)
        check.take_in(seen.rows(seen.outputs, trial.rows), found)
        if trial.check == DUPLICATED:
            check.take_in(_rows(found, np.zeros_like(trial.rows), len(trial.rows)), found)
        if seen.reference is not None:
            check.errors.update(seen.rows(seen.reference, trial.rows), found)
        check.samples.update(trial.rows.tolist())
        if check.apart is None and not check.comparator.result.bitwise:
            check.apart = trial.setting


@dataclass(frozen=True)
class _RunBatch:
    """A batch that was run, and its outputs."""

    batch: Arrays
    outputs: Arrays
    reference: Arrays | None
    as_it_is: bool = False
    """Whether the batch is passed on with the memory layout that it has."""

    @property
    def size(self) -> int:
        return max((len(rows) for rows in self.batch.values() if rows.ndim), default=0)

    def input(self, rows: np.ndarray) -> Arrays:
        return self.batch if self.as_it_is else self.rows(self.batch, rows)

    def rows(self, arrays: Arrays, rows: np.ndarray) -> Arrays:
        return _rows(arrays, rows, self.size)


def checks_of(variants: Sequence[Variant], profile: Sequence[int] = ()) -> tuple[str, ...]:
    """The names of all checks, each once."""
    return tuple(dict.fromkeys((*OF_EVERY_STAGE, *([PROFILE] if profile else []), *(variant.check for variant in variants))))


def not_run(
    stage: str, variants: Sequence[Variant], required: Requirement, reason: str, profile: Sequence[int] = ()
) -> tuple[InvarianceVerdict, ...]:
    """The checks of a stage that ran nothing."""
    return tuple(_judged(stage, name, _Check(), required, None, "not run", reason) for name in checks_of(variants, profile))


def _why_not_in_other_batches(runner: Runner) -> str | None:
    specs = (*runner.inputs, *runner.outputs)
    if not all(spec.batched for spec in specs):
        return "the size of the batch is fixed"
    names = sorted({str(spec.shape[0]) for spec in specs if spec.shape[0] is not None})
    return f"first axes of several meanings: {', '.join(names)}" if len(names) > 1 else None


def _smaller_batches(size: int) -> Iterator[_Trial]:
    for row in range(min(size, NUM_ALONE)):
        yield _Trial(ALONE, "a sample alone", np.array([row]))
    for at_once in BATCH_SIZES:
        for start in range(0, min(size, NUM_IN_BATCHES), at_once):
            yield _Trial(BATCHES, f"batches of {at_once}", np.arange(start, min(start + at_once, size, NUM_IN_BATCHES)))
    yield _Trial(PARTIAL, f"a batch of {size - 1} after one of {size}", np.arange(size - 1))


def _strided(rows: np.ndarray) -> np.ndarray:
    """The same values in another order in memory: neighbours are along the first axis. A single
    value has no order."""
    if not rows.ndim:
        return rows
    return np.asfortranarray(rows) if rows.ndim > 1 else np.repeat(rows, 2)[::2]


def _rows(arrays: Arrays, rows: np.ndarray, size: int) -> Arrays:
    """These rows of every array. An output that does not have a row per sample stays as it is."""
    return {name: value[rows] if value.ndim and len(value) == size else value for name, value in arrays.items()}


def _verdict(stage: str, name: str, check: _Check, required: Requirement, budgets: Budgets | None) -> InvarianceVerdict:
    if name == RERUN:
        required = "bitwise"  # what changes in the same batch was drawn, or read from uninitialised memory
    comparison = check.comparator.result
    if check.raised is not None:
        return _judged(stage, name, check, required, None, "failed", check.raised)
    if check.absent is not None and not comparison.num_values:
        return _judged(stage, name, check, required, None, "not run", check.absent)
    observed = _observed(check, budgets)
    if observed in ("bitwise", required):
        return _judged(stage, name, check, required, observed, "passed", "")
    return _judged(stage, name, check, required, observed, "failed", _reason(check, required, budgets))


def _observed(check: _Check, budgets: Budgets | None) -> Observed:
    comparison = check.comparator.result
    if comparison.bitwise or comparison.failures:
        return "bitwise" if comparison.bitwise else "outside"
    if check.beyond is not None:
        return "outside" if check.beyond.result.count else "tolerance"
    return "budget" if budgets is not None and budgets.covers(check.errors.measured) else "outside"


def _reason(check: _Check, required: Requirement, budgets: Budgets | None) -> str:
    comparison = check.comparator.result
    if comparison.failures:
        return "; ".join(failure.message for failure in comparison.failures)
    place = f"{figures(comparison)} (with {check.apart})"
    if required == "bitwise":
        return f"required bitwise, but {place}"
    if check.beyond is not None:
        return f"{check.beyond.result.count} values are beyond the tolerance; {place}"
    errors = check.errors.measured
    name = budgets.tightest(errors) if budgets else None
    budget = budgets.outputs.get(name) if budgets and name is not None else None
    allowed = "no budget could be derived" if budget is None else f"the budget is {budget}"
    return f"the error against float64 is {errors.outputs.get(name or '', errors.whole)}, {allowed}; {place}"


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
        settings=tuple(check.settings),
        required=required,
        observed=observed,
        status=status,
        reason=reason,
        samples=len(check.samples),
        max_ulp=comparison.max_ulp if comparison.outputs else None,
        max_abs=comparison.max_abs if comparison.outputs else None,
    )
