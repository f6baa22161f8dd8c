"""Cuts a link at an inner tensor: the same chain in small, on one batch.

This is the only place where forms are cut. Takes a chain and one of its links. Knows no kind of
form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deploy.compare.bits import Arrays
from deploy.runners.forms import Form, RenamedForm
from deploy.runners.runner import Runner
from deploy.verify.course import one_pass
from deploy.verify.links import Chain, Link, Record, Stage
from deploy.verify.place import CutResult, Pairing, Places, paired, pairings_of
from export.errors import SamegraphError

BEFORE, AFTER, SOURCE, FLOAT64 = "before", "after", "source of the budget", "float64"


def cut_link(chain: Chain, link: Link, batch: Arrays) -> "CutLink":
    """Cut a link of a chain, so that it can be examined on a batch."""
    before, after = (chain.form(end) for end in (link.from_, link.to))
    before, after = before.named_like(after), after.named_like(before)
    budget = link.required == "budget"
    source = chain.source.named_like(after) if budget and chain.source is not None else None
    float64 = chain.reference.form.named_like(after) if budget and chain.reference is not None else None
    assert link.pairs is not None
    found = link.pairs(before.points, after.points)
    names = {each.point.name: each.before for each in (paired(source.points, after.points) if source is not None else found)}
    return CutLink(
        chain=chain,
        link=link,
        batch=batch,
        before=before,
        after=after,
        source=source,
        float64=float64,
        found=pairings_of(after.points, {each.point.name: each.before for each in found if each.point.name in names}),
        names=names,
    )


@dataclass(frozen=True, kw_only=True)
class CutLink(Places):
    """Both forms of a link and, if it has a budget, what the budget rests on."""

    chain: Chain
    link: Link
    batch: Arrays
    before: Form
    after: Form
    source: Form | None
    """The form whose error sets the budget. None if that is `before`."""
    float64: Form | None
    found: Sequence[Pairing]
    names: Mapping[str, str]
    """The names of the second form's tensors in the budget's source and its float64 evaluation."""

    def pairings(self) -> Sequence[Pairing]:
        return self.found

    def at(self, pairing: Pairing) -> CutResult | None:
        point = pairing.point.name
        stages = [self._stage(BEFORE, self.before, point, pairing.before), self._stage(AFTER, self.after, point, point)]
        if self.source is not None:
            stages.append(self._stage(SOURCE, self.source, point, self.names[point]))
        chain = Chain(
            stages=tuple(stages),
            links=(Link(BEFORE, AFTER, self.link.required, self.link.tolerance),),
            reference=self._stage(FLOAT64, self.float64, point, self.names[point]) if self.float64 is not None else None,
            training=SOURCE if self.source is not None else BEFORE,
            uncertain=self.chain.uncertain,
            infinity_allowed=True,
        )
        try:
            verdict = one_pass(chain, lambda: [self.batch], Record())
        except SamegraphError:  # a graph that cannot be cut there
            return None
        errors = {each.stage: each for each in verdict.errors}
        return CutResult(verdict.links[0], errors.get(BEFORE), errors.get(AFTER))

    def _stage(self, name: str, form: Form, point: str, theirs: str) -> Stage:
        cut = CutForm(runtime="cut", precision=form.precision, whole=form, theirs=theirs, batch=self.batch)
        renamed = cut if theirs == point else RenamedForm.of(cut, {point: theirs}, ())
        return Stage(name=name, form=renamed, invariance_required=None)


@dataclass(frozen=True, kw_only=True)
class CutForm(Form):
    """A form up to one of its inner tensors."""

    whole: Form
    theirs: str
    """The tensor's name in the form."""
    batch: Arrays = field(repr=False)

    def open(self) -> Runner:
        return self.whole.until(self.theirs, self.batch)
