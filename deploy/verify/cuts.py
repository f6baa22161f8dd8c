"""A link at one of its inner tensors: the same chain in small, on one batch.

Takes ways to open both stages up to a tensor. Knows no kind of graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploy.compare.bits import Arrays
from deploy.compare.budget import Precision
from deploy.compare.tolerance import Tolerance
from deploy.runners.base import RenamedRunner, Runner
from deploy.verify.links import Chain, Link, Record, Stage
from deploy.verify.place import CutResult, Pairing, Places
from deploy.verify.run import run_chain
from deploy.verify.verdict import Requirement
from export.errors import SamegraphError

BEFORE, AFTER, SOURCE, FLOAT64 = "before", "after", "source of the budget", "float64"


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A stage that can be opened up to a tensor."""

    open: Callable[[Pairing], Runner]
    precision: Precision = "float32"
    output: Callable[[Pairing], str]
    """What the stage calls the tensor."""


@dataclass(frozen=True, kw_only=True)
class CutPlaces(Places):
    """Both stages of a link, and where it has a budget what that rests on."""

    found: Sequence[Pairing]
    batch: Arrays
    before: Cut
    after: Cut
    source: Cut | None = None
    """The stage whose error sets the budget; None where that is `before`."""
    float64: Cut | None = None
    required: Requirement
    tolerance: Tolerance | None = None
    doubtful: bool = False

    def pairings(self) -> Sequence[Pairing]:
        return self.found

    def at(self, pairing: Pairing) -> CutResult | None:
        stages = [_stage(BEFORE, self.before, pairing), _stage(AFTER, self.after, pairing)]
        if self.source is not None:
            stages.append(_stage(SOURCE, self.source, pairing))
        chain = Chain(
            stages=tuple(stages),
            links=(Link(BEFORE, AFTER, self.required, self.tolerance),),
            reference=_stage(FLOAT64, self.float64, pairing) if self.float64 else None,
            training=SOURCE if self.source else BEFORE,
            doubtful=self.doubtful,
            infinity_allowed=True,
        )
        try:
            verdict = run_chain(chain, lambda: [self.batch], Record())
        except SamegraphError:  # a graph that cannot be cut there
            return None
        errors = {each.stage: each for each in verdict.errors}
        return CutResult(verdict.links[0], errors.get(BEFORE), errors.get(AFTER))


def _stage(name: str, cut: Cut, pairing: Pairing) -> Stage:
    def opened() -> Runner:
        theirs = cut.output(pairing)
        names = {} if theirs == pairing.point.name else {pairing.point.name: theirs}
        return RenamedRunner(cut.open(pairing), names)

    return Stage(name=name, runtime="cut", device="cpu", precision=cut.precision, open=opened, invariance_required=None)
