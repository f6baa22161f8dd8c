"""Runs a chain and examines what failed: the verdict, and the place where each failure begins.

Takes a chain and batches. Knows no particular runtime.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace

from deploy.compare.bits import Arrays
from deploy.compare.samples import num_samples
from deploy.verify.course import Watch, one_pass
from deploy.verify.cuts import cut_link
from deploy.verify.invariance import PARTIAL
from deploy.verify.links import Batches, Chain, Link, Record
from deploy.verify.place import find_place, growth
from deploy.verify.verdict import LinkVerdict, Verdict, failed_outputs

NUM_SAMPLES_INSIDE = 8


def run_chain(chain: Chain, batches: Batches, record: Record, *, require: Collection[str] = (), inside: bool = False, watch: Watch = iter) -> Verdict:
    """The verdict on a chain; see `one_pass`.

    `inside`: also measure the errors at inner tensors, for the last link that has a budget.
    """
    verdict = one_pass(chain, batches, record, require, watch)
    return verdict if verdict.interrupted else _looked_into(verdict, chain, batches, inside=inside)


def _looked_into(verdict: Verdict, chain: Chain, batches: Batches, *, inside: bool) -> Verdict:
    """The verdict with the place of each failure and the requested inner errors.

    Ctrl-C ends this early.
    """
    try:
        verdict = _placed(verdict, chain, batches)
        return _with_growth(verdict, chain, batches) if inside else verdict
    except KeyboardInterrupt:
        return replace(verdict, interrupted=True)


def _placed(verdict: Verdict, chain: Chain, batches: Batches) -> Verdict:
    """The verdict, with the place where each failed link begins to fail."""
    links = []
    for found, link in zip(verdict.links, chain.links, strict=True):
        links.append(_with_place(found, link, chain, batches, failed_outputs(verdict, found), few=_takes_fewer(verdict, found)))
    return replace(verdict, links=tuple(links))


def _with_place(found: LinkVerdict, link: Link, chain: Chain, batches: Batches, outputs: Collection[str], *, few: bool) -> LinkVerdict:
    if found.status != "failed" or link.pairs is None or not found.worst:
        return found
    sample = next((each.sample for each in found.worst if each.output in outputs), found.worst[0].sample)
    batch, row = batch_with(batches(), sample)
    place = None
    for given in (_few_of(batch, row), batch) if few else (batch,):
        place = find_place(cut_link(chain, link, given), sample, outputs)
        if place is not None and not place.behind:
            break
    return replace(found, place=place)


def _takes_fewer(verdict: Verdict, link: LinkVerdict) -> bool:
    """Whether both stages have been seen to take a smaller batch."""
    seen = {check.stage for check in verdict.invariance if check.check == PARTIAL and check.status != "not run"}
    return {link.from_, link.to} <= seen


def _few_of(batch: Arrays, row: int) -> Arrays:
    """A few samples including the worst, because every tensor on the way takes a run.

    If they show nothing, all samples are taken.
    """
    start = max(0, min(row, num_samples(batch) - NUM_SAMPLES_INSIDE))
    return {name: rows[start : start + NUM_SAMPLES_INSIDE] for name, rows in batch.items()}


def _with_growth(verdict: Verdict, chain: Chain, batches: Batches) -> Verdict:
    """The verdict with inner errors, measured on a few samples.

    A few are enough: float64 is slow, and the errors of all samples are of one kind.
    """
    links = list(verdict.links)
    able = [
        place
        for place, link in enumerate(chain.links)
        if link.required == "budget" and _shows_tensors(chain, link) and links[place].status != "not run"
    ]
    if not able:
        return verdict
    first = next(iter(batches()))
    found = growth(cut_link(chain, chain.links[able[-1]], {name: rows[:NUM_SAMPLES_INSIDE] if rows.ndim else rows for name, rows in first.items()}))
    links[able[-1]] = replace(links[able[-1]], growth=found)
    return replace(verdict, links=tuple(links))


def _shows_tensors(chain: Chain, link: Link) -> bool:
    return link.pairs is not None and all(chain.form(end).points for end in (link.from_, link.to))


def batch_with(batches: Iterable[Arrays], sample: int) -> tuple[Arrays, int]:
    """The batch that holds a sample, counted over all batches, and the sample's place in it."""
    for batch in batches:
        number = num_samples(batch)
        if sample < number:
            return batch, sample
        sample -= number
    raise ValueError(f"there is no sample {sample} more")
