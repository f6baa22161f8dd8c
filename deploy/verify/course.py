"""One pass over the samples: runs every form of a chain on the same batches, judges every link.

Takes a chain and batches. Knows no particular runtime.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack

from deploy.compare.bits import Arrays, Comparator
from deploy.compare.budget import Budget, Budgets, ErrorMeter, Errors, TopOneMeter, budgets, factor_of, first_class_changes, is_covered
from deploy.compare.samples import SampleHash
from deploy.compare.tolerance import ToleranceMeter
from deploy.runners.runner import Runner
from deploy.verify.environment import environment
from deploy.verify.invariance import InvarianceMeter, not_run
from deploy.verify.judging import Evidence, Side, judged
from deploy.verify.links import Batches, Chain, Link, Record, Stage
from deploy.verify.verdict import InvarianceVerdict, LinkVerdict, Samples, StageErrors, Verdict, one_line
from deploy.verify.worst import WorstMeter
from export.errors import NotHereError, SamegraphError
from export.interruption import Interruption

NUM_IN_FLOAT64 = 500
"""How many samples are evaluated in float64 in any case."""


Watch = Callable[[Iterable[Arrays]], Iterator[Arrays]]
"""Passes batches on, and may show how many have passed."""


def one_pass(chain: Chain, batches: Batches, record: Record, require: Collection[str] = (), watch: Watch = iter) -> Verdict:
    """Run every stage once per batch and judge every link.

    NotHereError if a runtime in `require` is not available. Ctrl-C ends the pass. The verdict then
    covers what was compared until then, says so, and is not a pass.
    """
    _refuse_unknown(require, chain)
    with ExitStack() as stack:
        running = {stage.name: _RunningStage(stage, stack, require) for stage in chain.everything}
        course = _Course(chain, running)
        with Interruption() as interruption:
            for batch in watch(batches()):
                course.step(batch)
                if interruption.asked:
                    break
        return course.verdict(record, interrupted=interruption.asked)


class _RunningStage:
    """A running stage: open, absent (not on this machine) or broken (it raised)."""

    def __init__(self, stage: Stage, stack: ExitStack, require: Collection[str]) -> None:
        self.stage = stage
        self.absent: str | None = None
        self.broken: str | None = None
        self.facts: Mapping[str, object] = {}
        self.errors = ErrorMeter()
        self.invariance: InvarianceMeter | None = None
        self._runner: Runner | None = None
        try:
            self._runner = stack.enter_context(stage.form.open())
            self.facts = self._runner.facts
        except NotHereError as error:
            if stage.form.runtime in require:
                raise
            self.absent = str(error)
        except SamegraphError:
            raise  # a damaged file or a wrong option ends the command with its own exit code
        except Exception as error:
            self.broken = f"{stage.name} could not be opened: {one_line(error)}"

    def run(self, batch: Arrays) -> Arrays | None:
        """The outputs. None from the moment when the stage raised."""
        if self._runner is None or self.broken is not None:
            return None
        try:
            return self._runner.run(batch)
        except Exception as error:  # whatever a runtime raises is a finding about its links
            self.broken = f"{self.stage.name} raised {one_line(error)}"
            return None

    def measure(self, batch: Arrays, outputs: Arrays, reference: Arrays | None) -> None:
        """Measure against float64.

        The first batch also serves to check that samples do not depend on their batch.
        """
        if reference is not None:
            self.errors.update(reference, outputs)
        if self.invariance is None and self._runner is not None and self.stage.invariance_required is not None:
            self.invariance = InvarianceMeter(
                self.stage.form.variants(), self.stage.invariance_tolerance, batched=self.stage.batched, profile=self.stage.profile
            )
            self.invariance.update(self._runner, batch, outputs, reference)


class _RunningLink:
    """A link during the pass."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.comparator = Comparator()
        self.top_one = TopOneMeter()
        self.beyond = ToleranceMeter(link.tolerance) if link.tolerance else None
        self.worst = WorstMeter()

    def update(self, outputs: Mapping[str, Arrays | None], scores: Arrays | None) -> None:
        """Take in the outputs of one batch.

        `scores` say how far apart two classes are: in float64, or else at the link's own first
        stage. They are None if no first class changes.
        """
        a, b = outputs[self.link.from_], outputs[self.link.to]
        if a is None or b is None:
            return
        self.comparator.update(a, b)
        self.worst.update(a, b)
        if scores is None:
            self.top_one.skip(a)
        else:
            self.top_one.update(scores, a, b)
        if self.beyond is not None:
            self.beyond.update(a, b)


class _Course:
    """The state of one pass over the samples."""

    def __init__(self, chain: Chain, running: dict[str, _RunningStage]) -> None:
        self._chain = chain
        self._running = running
        self._reference = running[chain.reference.name] if chain.reference else None
        self._training = running[chain.training]
        self._links = [_RunningLink(link) for link in chain.links]
        self._samples = SampleHash()

    def step(self, batch: Arrays) -> None:
        self._samples.update(batch)
        outputs = {stage.name: self._running[stage.name].run(batch) for stage in self._chain.stages}
        reference = self._reference.run(batch) if self._reference and self._needs_float64(outputs) else None
        for stage in self._chain.stages:
            found = outputs[stage.name]
            if found is not None:
                self._running[stage.name].measure(batch, found, reference)
        for link in self._links:
            link.update(outputs, reference if self._reference else outputs[link.link.from_])

    def _needs_float64(self, outputs: Mapping[str, Arrays | None]) -> bool:
        """Whether a batch needs float64: the first do, and any whose errors they do not bound."""
        training = outputs[self._training.stage.name]
        known = self._training.errors.measured
        if training is None or self._samples.num_samples <= NUM_IN_FLOAT64 or not known.whole.valid:
            return True
        for stage in self._chain.stages:
            found = outputs[stage.name]
            if found is not None and not is_covered(training, found, known, factor_of(self._training.stage.form.precision, stage.form.precision)):
                return True
        pairs = ((outputs[link.link.from_], outputs[link.link.to]) for link in self._links)
        return any(a is not None and b is not None and first_class_changes(a, b) for a, b in pairs)

    def verdict(self, record: Record, *, interrupted: bool) -> Verdict:
        stages = [self._running[stage.name] for stage in self._chain.stages]
        return Verdict(
            links=tuple(self._link_verdict(link) for link in self._links),
            errors=tuple(errors for stage in stages for errors in self._stage_errors(stage)),
            invariance=tuple(check for stage in stages for check in self._invariance(stage)),
            environment=environment(),
            stages={name: stage.facts for name, stage in self._running.items()},
            files=dict(record.files),
            samples=Samples(sha256=self._samples.hexdigest, count=self._samples.num_samples, how=record.samples_made),
            training_only=record.training_only,
            interrupted=interrupted,
            not_foldable=record.not_foldable,
            frozen_statistics=record.frozen_statistics,
        )

    def _budgets(self, stage: Stage) -> Budgets | None:
        if self._reference is None or self._training.broken or self._reference.broken:
            return None
        return budgets(self._training.errors.measured, self._training.stage.form.precision, stage.form.precision, uncertain=self._chain.uncertain)

    def _stage_errors(self, running: _RunningStage) -> Iterator[StageErrors]:
        allowed = self._budgets(running.stage)
        for name, errors in running.errors.measured.outputs.items():
            if errors.num_values:
                own = allowed.outputs.get(name) if allowed else None
                yield StageErrors(stage=running.stage.name, output=name, samples=errors.num_samples, max=errors.max, rms=errors.rms, budget=own)

    def _invariance(self, running: _RunningStage) -> tuple[InvarianceVerdict, ...]:
        required = running.stage.invariance_required
        if required is None:
            return ()
        if running.invariance is None:
            reason = running.absent or running.broken or "there was no batch"
            return not_run(running.stage.name, running.stage.form.variants(), required, reason, running.stage.profile)
        allowed = self._budgets(running.stage)
        stage_outside = allowed is not None and not allowed.covers(running.errors.measured)
        return running.invariance.verdicts(running.stage.name, required, allowed, stage_outside=stage_outside)

    def _link_verdict(self, running: _RunningLink) -> LinkVerdict:
        link, target = running.link, self._running[running.link.to]
        evidence = self._evidence(running)
        status, observed, reason = judged(evidence)
        comparison, top_one = evidence.comparison, evidence.top_one
        return LinkVerdict(
            from_=link.from_,
            to=link.to,
            runtime=target.stage.form.runtime,
            device=target.stage.form.device,
            required=link.required,
            observed=observed,
            status=status,
            reason=reason,
            samples=comparison.num_samples,
            outputs=comparison.outputs,
            max_ulp=comparison.max_ulp if comparison.outputs else None,
            max_abs=comparison.max_abs if comparison.outputs else None,
            budget=_tightest(evidence.target),
            tolerance=link.tolerance,
            top1_changes=top_one.num_changes,
            ties=top_one.num_ties,
            changes=top_one.changes,
            first_difference=comparison.first_difference,
            worst=running.worst.result,
            place=None,
            growth=(),
        )

    def _evidence(self, running: _RunningLink) -> Evidence:
        link = running.link
        comparison = running.comparator.result
        excused = self._excused(link) if self._reference else {output.name: output.max_abs for output in comparison.outputs}
        return Evidence(
            required=link.required,
            sides=(self._side(self._running[link.from_]), self._side(self._running[link.to])),
            source=(self._side(self._training), self._side(self._reference)) if self._reference else None,
            comparison=comparison,
            top_one=running.top_one.result(excused),
            tolerance=link.tolerance,
            beyond=running.beyond.result if running.beyond else None,
            infinity_allowed=self._chain.infinity_allowed,
        )

    def _side(self, running: _RunningStage) -> Side:
        return Side(
            name=running.stage.name,
            absent=running.absent,
            broken=running.broken,
            errors=running.errors.measured,
            budgets=self._budgets(running.stage),
        )

    def _excused(self, link: Link) -> dict[str, float]:
        """For each output, the larger error of the two stages, as far as budgets allow it.

        A stage outside its budget excuses no change.
        """
        found: dict[str, float] = {}
        for name in (link.from_, link.to):
            allowed = self._budgets(self._running[name].stage)
            for output, errors in self._running[name].errors.measured.outputs.items():
                found[output] = max(found.get(output, 0.0), _excused(errors, allowed.outputs.get(output) if allowed else None))
        return found


def _excused(errors: Errors, allowed: Budget | None) -> float:
    return min(errors.max, allowed.max) if allowed else 0.0


def _tightest(side: Side) -> Budget | None:
    name = side.budgets.tightest(side.errors) if side.budgets else None
    return side.budgets.outputs.get(name) if side.budgets and name is not None else None


def _refuse_unknown(require: Collection[str], chain: Chain) -> None:
    missing = sorted(set(require) - {stage.form.runtime for stage in chain.stages})
    if missing:
        present = ", ".join(sorted({stage.form.runtime for stage in chain.stages}))
        advice = "of two files, add it with --runtime; of a bundle, export it again with it in verify.runtimes, or build an engine for it"
        raise NotHereError(f"{', '.join(missing)} must run, but the chain has only {present}; {advice}")
