"""Whether any two forms of a model are the same function: `--reference A --candidate B`.

Takes the user's request, and decides what the link must hold. How forms are opened and compared
is decided elsewhere.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deploy.compare.bits import Arrays
from deploy.compare.inputs import SampleSource, samples_for
from deploy.progress import Console, comparing
from deploy.runners.forms import Form, OpenedForm, RenamedForm
from deploy.runners.runner import TensorSpec
from deploy.runners.runtimes import RUNTIMES
from deploy.sandbox.process import HostError, Limits
from deploy.verify.links import Chain, Link, Record, Stage, selected
from deploy.verify.request import PairRequest
from deploy.verify.run_chain import run_chain
from deploy.verify.sides import PairSide, RecordingSide, begin_side
from deploy.verify.verdict import Requirement, Verdict
from deploy.verify.worst import rows_of, worst_samples
from export.errors import NotHereError, UsageError

_STATE = "state what may differ with --max-ulp, or with --atol and --rtol"
REFERENCE, CANDIDATE, FLOAT64 = "reference", "candidate", "float64 evaluation"


@dataclass(frozen=True)
class PairResult:
    """A verdict, and the inputs of the samples that it lists as the worst."""

    verdict: Verdict
    rows: Mapping[int, Arrays]


def verify_pair(pair: PairRequest) -> Verdict:
    """The verdict on a pair."""
    return compare_pair(pair).verdict


def compare_pair(pair: PairRequest, console: Console | None = None) -> PairResult:
    """Run both forms on the samples and judge the link between them; show how far it is."""
    if pair.bitwise and pair.tolerance:
        raise UsageError("--require bitwise and a tolerance exclude each other; drop one of them")
    if pair.precision and (pair.bitwise or pair.tolerance):
        raise UsageError("--precision scales the derived budget, but a requirement other than that budget was given; drop one of them")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = [begin_side(pair.reference, True, folder, pair.limits, stack), begin_side(pair.candidate, False, folder, _limits(pair), stack)]
        reference, candidate = (side() for side in sides)
        matched = _MatchedForms(pair, reference, candidate)
        given = matched.samples()
        (chain,) = selected([matched.chain(_budget_source(pair, reference, given))], pair)
        record = Record(
            files={f"{REFERENCE} {reference.path.name}": reference.sha256, f"{CANDIDATE} {candidate.path.name}": candidate.sha256},
            samples_made=(given.description,),
        )
        watch = comparing(console, given.num_batches) if console else iter
        verdict = run_chain(chain, given.batches, record, require=pair.require, inside=pair.inside, watch=watch)
        if not verdict.interrupted and all(link.status == "not run" for link in verdict.links):
            raise NotHereError(verdict.links[0].reason)
        return PairResult(verdict, rows_of(given.batches(), worst_samples(verdict)))


def _budget_source(pair: PairRequest, reference: PairSide, given: SampleSource) -> Stage | None:
    """The float64 evaluation, tried on a batch. Without it the user must state what is allowed."""
    if pair.tolerance or pair.bitwise:
        return None
    (form,) = reference.forms(("onnxruntime-cpu",), ()).values()
    wide = form.float64()
    if wide is None:
        raise UsageError(f"{reference.name} has no evaluation in float64 to derive a budget from; {_STATE}, or --require bitwise")
    try:
        runner = wide.open()
        runner.run(next(given.batches()))
    except HostError as error:
        raise UsageError(f"the float64 evaluation of {reference.name} failed ({error}), so there is no budget; {_STATE}") from error
    opened = OpenedForm(runtime=str(runner.facts["runtime"]), precision="float64", form=wide, runner=runner)
    return Stage(name=FLOAT64, form=opened, invariance_required=None)


class _MatchedForms:
    """Two forms whose inputs and outputs have been matched."""

    def __init__(self, pair: PairRequest, reference: PairSide, candidate: PairSide) -> None:
        self._pair, self._reference, self._candidate = pair, reference, candidate
        self._refuse_unknown_names()
        self._inputs = self._common_inputs()
        self._require_outputs_by_name()

    def samples(self) -> SampleSource:
        """The samples that both forms run on."""
        if isinstance(self._reference, RecordingSide) and isinstance(self._candidate, RecordingSide):
            return _numbers_of_rows(self._reference, self._candidate, self._pair.batch_size)
        if self._pair.samples is None:
            raise UsageError("nothing says what to compare on; add --samples with a file of inputs, a folder of such files, or a number")
        given = samples_for(self._inputs, self._pair.samples, self._batch_size, self._pair.sizes, self._pair.seed)
        for form in (self._reference, self._candidate):
            if isinstance(form, RecordingSide) and form.num_rows != given.num_samples:
                raise UsageError(f"{form.name} holds outputs of {form.num_rows} samples, not of {given.num_samples}; give those it was recorded on")
        return given

    def chain(self, float64: Stage | None) -> Chain:
        """The reference, and a link from it to the candidate in each runtime."""
        (form,) = self._reference.forms(("onnxruntime-cpu",), self._inputs).values()
        first = self._stage(REFERENCE, self._reference, form)
        candidates = self._candidate.forms(self._pair.runtimes, self._inputs)
        names = {name: CANDIDATE if len(candidates) == 1 else f"{CANDIDATE}, {name}" for name in candidates}
        others = [self._stage(names[name], self._candidate, self._of_candidate(form)) for name, form in candidates.items()]
        links = tuple(Link(REFERENCE, stage.name, self._required, self._pair.tolerance) for stage in others)
        return Chain(stages=(first, *others), links=links, reference=float64, training=REFERENCE, uncertain=True, infinity_allowed=True)

    @property
    def _batch_size(self) -> int:
        """The largest batch that both sides take, up to the requested size."""
        limits = [form.largest_batch for form in (self._reference, self._candidate)]
        return min(self._pair.batch_size, *(limit for limit in limits if limit is not None), self._pair.batch_size)

    @property
    def _required(self) -> Requirement:
        return "tolerance" if self._pair.tolerance else "bitwise" if self._pair.bitwise else "budget"

    def _stage(self, name: str, side: PairSide, form: Form) -> Stage:
        is_checked = not isinstance(side, RecordingSide)  # a recording cannot be run again
        return Stage(
            name=name,
            form=form,
            batched=self._pair.batched,
            invariance_required=self._required if is_checked else None,
            invariance_tolerance=self._pair.tolerance if is_checked else None,
        )

    def _of_candidate(self, form: Form) -> Form:
        """The candidate under the reference's names, with the precision that was requested of it.

        A file that computes in a lower precision must not widen its own budget.
        """
        form = replace(form, precision=self._pair.precision or self._reference.precision)
        return RenamedForm.of(form, self._pair.names, self._candidate.inputs or ()) if self._pair.names else form

    def _refuse_unknown_names(self) -> None:
        for ours, theirs in self._pair.names.items():
            for form, name in ((self._reference, ours), (self._candidate, theirs)):
                known = [spec.name for spec in (*(form.inputs or ()), *form.outputs)]
                if name not in known:
                    raise UsageError(f"--map {ours}={theirs}: {form.name} has no {name!r}, only {', '.join(known)}; write REFERENCE=CANDIDATE")

    def _common_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that both take. A size that one of them fixes is fixed."""
        ours, theirs = self._reference.inputs, self._renamed(self._candidate.inputs)
        if ours == () or theirs == ():
            raise UsageError(f"{self._reference.name if ours == () else self._candidate.name} takes no input, so no sample reaches it")
        if ours is None or theirs is None:
            return ours or theirs or (TensorSpec("row", "int64", (None,)),)
        if sorted(spec.name for spec in ours) != sorted(spec.name for spec in theirs):
            raise self._other_names()
        by_name = {spec.name: spec for spec in theirs}
        return tuple(_common(spec, by_name[spec.name], self._reference.name, self._candidate.name) for spec in ours)

    def _require_outputs_by_name(self) -> None:
        """Raise if each side has outputs that the other lacks: nothing says which ones match.

        An output that only one side has is a finding.
        """
        if all(_of_one_side(self._reference.outputs, self._renamed(self._candidate.outputs) or ())):
            raise self._other_names()

    def _renamed(self, specs: tuple[TensorSpec, ...] | None) -> tuple[TensorSpec, ...] | None:
        ours = {theirs: own for own, theirs in self._pair.names.items()}
        return None if specs is None else tuple(replace(spec, name=ours.get(spec.name, spec.name)) for spec in specs)

    def _other_names(self) -> UsageError:
        """The error about inputs and outputs together, so that one correction is enough."""
        told, maps = [], []
        for what, ours, theirs in (
            ("inputs", self._reference.inputs, self._renamed(self._candidate.inputs)),
            ("outputs", self._reference.outputs, self._renamed(self._candidate.outputs)),
        ):
            here, there = _of_one_side(ours or (), theirs or ())
            if ours is not None and theirs is not None and (here or there):
                told.append(f"the {what} are {[spec.name for spec in ours]} and {[spec.name for spec in theirs]}")
                maps += [f"--map {one}={other}" for one, other in zip(here or ["A"], there or ["B"], strict=False)]
        return UsageError(f"{', '.join(told)}; names must match: say which belong together, as in {' '.join(maps)}")


def _of_one_side(ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec]) -> tuple[list[str], list[str]]:
    """The names that only one of the two sides has."""
    one, other = ([spec.name for spec in specs] for specs in (ours, theirs))
    return [name for name in one if name not in other], [name for name in other if name not in one]


def _limits(pair: PairRequest) -> Limits:
    """No memory limit on a GPU: CUDA reserves more memory than a limit would allow."""
    on_gpu = any(RUNTIMES[name].device == "cuda" for name in pair.runtimes if name in RUNTIMES)
    return replace(pair.limits, gibibytes=0) if on_gpu else pair.limits


def _common(one: TensorSpec, other: TensorSpec, name: str, other_name: str) -> TensorSpec:
    sizes = [b if isinstance(b, int) else a for a, b in zip(one.shape, other.shape, strict=False)]
    conflict = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(one.shape, other.shape, strict=False))
    if one.dtype != other.dtype or len(one.shape) != len(other.shape) or conflict:
        raise UsageError(f"{name} takes {one}, {other_name} takes {other}; the same samples cannot be given to both")
    return TensorSpec(one.name, one.dtype, tuple(sizes))


def _numbers_of_rows(one: RecordingSide, other: RecordingSide, batch_size: int) -> SampleSource:
    """Row numbers as samples: two recordings are compared row by row, without the samples."""
    if one.num_rows != other.num_rows:
        raise UsageError(f"{one.name} holds outputs of {one.num_rows} samples, {other.name} of {other.num_rows}; record both on the same samples")
    return SampleSource.of_array("row", np.arange(one.num_rows), batch_size, f"{one.num_rows} rows of two recordings")
