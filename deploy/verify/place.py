"""Finds where a failed link begins to fail: the first tensor outside whose inputs are all inside.

Takes a graph's inner tensors and a way to run both stages up to one of them. Each tensor is the
end of a run of its own, so that a runtime optimises the graph in front of it as in the whole.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from deploy.compare.budget import Budget
from deploy.runners.runner import Point
from deploy.verify.verdict import InnerError, LinkVerdict, Place, PlaceInput, StageErrors


@dataclass(frozen=True)
class CutResult:
    """A link at one tensor, and its stages' distances from float64 there, if measured."""

    link: LinkVerdict
    before: StageErrors | None = None
    after: StageErrors | None = None


@dataclass(frozen=True)
class Pairing:
    """A tensor that both stages compute."""

    point: Point
    """The tensor in the second stage. Its inputs are the nearest tensors that both stages have."""
    before: str
    """The tensor's name in the first stage."""


class Places(ABC):
    """A way to cut the two stages of a link."""

    @abstractmethod
    def pairings(self) -> Sequence[Pairing]:
        """The tensors that both stages compute, in the order of the second stage."""

    @abstractmethod
    def at(self, pairing: Pairing) -> CutResult | None:
        """The link at one tensor, on a batch that fails. None if it cannot be run there."""


def find_place(places: Places, worst_sample: int, outputs: Collection[str] = ()) -> Place | None:
    """The place, or None if no tensor could be compared.

    `outputs` are the outputs that failed, by their names in the first stage.
    """
    search = _Search(places, _leading_to(outputs, places.pairings()))
    guilty = search.guilty()
    if guilty is None:
        return search.behind_the_last(worst_sample)
    return search.described(guilty, worst_sample)


class _Search:
    """One search, and the results that it has seen."""

    def __init__(self, places: Places, pairings: Sequence[Pairing]) -> None:
        self._places = places
        self._pairings = {each.point.name: each for each in pairings}
        self._names = list(self._pairings)
        self._seen: dict[str, CutResult | None] = {}

    def guilty(self) -> str | None:
        """The first failing tensor, found by bisection.

        It halves the graph until a failing tensor is right behind one that does not fail, then
        follows failing inputs.
        """
        low, high = -1, self._last_comparable()
        if high < 0 or not self._fails(self._names[high]):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            if self._fails(self._names[middle]):
                high = middle
            else:
                low = middle
        return self._followed_back(self._names[high])

    def described(self, name: str, worst_sample: int) -> Place:
        pairing = self._pairings[name]
        found = self._known(name)
        link, errors = found.link, found.after
        return Place(
            tensor=name,
            reference_tensor=pairing.before,
            operation=pairing.point.operation,
            layer=pairing.point.layer,
            reason=link.reason,
            max_abs=_distance(link),
            error=errors.max if errors else None,
            allowed=_allowed(link.budget),
            inputs=tuple(self._input(each) for each in pairing.point.inputs if self._at(each) is not None),
            worst_sample=worst_sample,
            runs=len(self._seen),
        )

    def behind_the_last(self, worst_sample: int) -> Place | None:
        """The last tensor, if all that could be compared is inside: the failure is behind it."""
        inside = [name for name in self._names if self._seen.get(name) is not None]
        if not inside:
            return None
        described = self.described(inside[-1], worst_sample)
        return replace(described, behind=True, reason="every tensor that both stages have is inside up to here: the difference arises behind it")

    def _last_comparable(self) -> int:
        places = range(len(self._names) - 1, -1, -1)
        return next((place for place in places if self._at(self._names[place]) is not None), -1)

    def _followed_back(self, name: str) -> str:
        """Follow failing inputs back.

        Bisection assumes that everything behind a failing tensor fails. A failing input shows that
        this did not hold.
        """
        followed = {name}
        while failing := [each for each in self._pairings[name].point.inputs if each not in followed and self._fails(each)]:
            name = failing[0]
            followed.add(name)
        return name

    def _fails(self, name: str) -> bool:
        found = self._at(name)
        return found is not None and found.link.status == "failed"

    def _known(self, name: str) -> CutResult:
        found = self._at(name)
        assert found is not None
        return found

    def _at(self, name: str) -> CutResult | None:
        """The comparison at a tensor.

        None if nothing was compared there: if shapes or dtypes differ, it is not the same tensor.
        """
        if name not in self._seen:
            found = self._places.at(self._pairings[name])
            self._seen[name] = found if found is not None and found.link.outputs else None
        return self._seen[name]

    def _input(self, name: str) -> PlaceInput:
        found = self._known(name)
        link, errors = found.link, found.after
        inside = link.status == "passed"
        return PlaceInput(tensor=name, max_abs=_distance(link), error=errors.max if errors else None, allowed=_allowed(link.budget), inside=inside)


def growth(places: Places, most: int = 12) -> tuple[InnerError, ...]:
    """Both stages' errors at tensors spread evenly over the graph, including the last."""
    pairings = [each for each in places.pairings() if each.point.inputs] or list(places.pairings())
    chosen = sorted({round(i * (len(pairings) - 1) / max(1, most - 1)) for i in range(most)}) if pairings else []
    return tuple(error for place in chosen if (error := _inner_error(places, pairings[place])) is not None)


def _inner_error(places: Places, pairing: Pairing) -> InnerError | None:
    found = places.at(pairing)
    if found is None or found.before is None or found.after is None or not found.link.outputs:
        return None
    point = pairing.point
    return InnerError(
        tensor=point.name,
        operation=point.operation,
        layer=point.layer,
        before=found.before.max,
        after=found.after.max,
        allowed=_allowed(found.link.budget),
    )


def paired(ours: Sequence[Point], theirs: Sequence[Point]) -> list[Pairing]:
    """The inner tensors that are the same in two graphs, judged by names, layers and operations."""
    found = _by_name(ours, theirs)
    found |= {name: before for name, before in _by_layer(ours, theirs).items() if name not in found and before not in found.values()}
    if 2 * len(found) < len(theirs) and [each.operation for each in ours] == [each.operation for each in theirs]:
        found = {b.name: a.name for a, b in zip(ours, theirs, strict=True)}
    return pairings_of(theirs, found)


def pairings_of(theirs: Sequence[Point], found: Mapping[str, str]) -> list[Pairing]:
    """The tensors in `found`, which gives their names in the first stage."""
    nearest = _nearest(theirs, found)
    inputs = {point.name: tuple(dict.fromkeys(name for each in point.inputs for name in nearest.get(each, ()))) for point in theirs}
    return [Pairing(replace(point, inputs=inputs[point.name]), found[point.name]) for point in theirs if point.name in found]


def _leading_to(outputs: Collection[str], pairings: Sequence[Pairing]) -> Sequence[Pairing]:
    """The first of these outputs and what it is computed from.

    If none of them is among the tensors, all tensors.
    """
    end = next((each for each in pairings if each.before in outputs), None)
    if end is None:
        return pairings
    wanted = {end.point.name}
    for each in reversed(pairings):
        if each.point.name in wanted:
            wanted.update(each.point.inputs)
    return [each for each in pairings if each.point.name in wanted]


def _by_name(ours: Sequence[Point], theirs: Sequence[Point]) -> dict[str, str]:
    layers = {point.name: point.layer for point in ours}
    alike = [point.name for point in theirs if point.name in layers and (not point.layer or layers[point.name] in ("", point.layer))]
    return {name: name for name in alike}


def _by_layer(ours: Sequence[Point], theirs: Sequence[Point]) -> dict[str, str]:
    """The last tensor of each module that both graphs know."""
    last_ours, last_theirs = ({point.layer: point.name for point in points if point.layer} for points in (ours, theirs))
    return {name: last_ours[layer] for layer, name in last_theirs.items() if layer in last_ours}


def _nearest(points: Sequence[Point], kept: Collection[str]) -> dict[str, tuple[str, ...]]:
    """For each tensor, the nearest kept tensors that it is computed from. A kept one is its own."""
    nearest: dict[str, tuple[str, ...]] = {}
    for point in points:
        before = dict.fromkeys(name for each in point.inputs for name in nearest.get(each, ()))
        nearest[point.name] = (point.name,) if point.name in kept else tuple(before)
    return nearest


def _distance(link: LinkVerdict) -> float:
    assert link.max_abs is not None  # a known result has been compared
    return link.max_abs


def _allowed(budget: Budget | None) -> float | None:
    return budget.max if budget else None
