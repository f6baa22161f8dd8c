"""Where a link that failed begins to fail: the first tensor outside what is allowed whose inputs are all inside.

Takes a graph's inner tensors and a way to run both stages up to one of them. Each tensor is the end of a run of its own, so
that a runtime optimises the graph in front of it as it optimises the whole.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from deploy.compare.budget import Budget
from deploy.runners.runner import Point
from deploy.verify.verdict import InnerError, LinkVerdict, Place, PlaceInput, StageErrors


@dataclass(frozen=True)
class CutResult:
    """A link at one tensor, and how far its stages are from float64 there, where that was measured."""

    link: LinkVerdict
    before: StageErrors | None = None
    after: StageErrors | None = None


@dataclass(frozen=True)
class Pairing:
    """One tensor that both stages compute."""

    point: Point
    """As the second stage has it; its inputs are the nearest tensors that both have."""
    before: str
    """What the first stage calls it."""


class Places(ABC):
    """How the two stages of a link are cut."""

    @abstractmethod
    def pairings(self) -> Sequence[Pairing]:
        """The tensors that both compute, in the order of the second stage."""

    @abstractmethod
    def at(self, pairing: Pairing) -> CutResult | None:
        """The link as it is at one of them, on a batch that fails; None where it cannot be run there."""


def find_place(places: Places, worst_sample: int, outputs: Collection[str] = ()) -> Place | None:
    """The place, or None where no tensor could be compared. `outputs` are those that failed, as the first stage calls them."""
    search = _Search(places, _leading_to(outputs, places.pairings()))
    guilty = search.guilty()
    if guilty is None:
        return search.behind_the_last(worst_sample)
    return search.described(guilty, worst_sample)


class _Search:
    """One search, and what it has seen."""

    def __init__(self, places: Places, pairings: Sequence[Pairing]) -> None:
        self._places = places
        self._pairings = {each.point.name: each for each in pairings}
        self._names = list(self._pairings)
        self._seen: dict[str, CutResult | None] = {}

    def guilty(self) -> str | None:
        """Halve the graph until a failing tensor stands right behind one that does not fail, then follow failing inputs."""
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
        """Everything that could be compared is inside: what differs comes behind it."""
        inside = [name for name in self._names if self._seen.get(name) is not None]
        if not inside:
            return None
        described = self.described(inside[-1], worst_sample)
        return replace(described, behind=True, reason="every tensor that both stages have is inside up to here: what differs comes behind it")

    def _last_comparable(self) -> int:
        places = range(len(self._names) - 1, -1, -1)
        return next((place for place in places if self._at(self._names[place]) is not None), -1)

    def _followed_back(self, name: str) -> str:
        """Halving takes for granted that what fails goes on failing; an input that fails shows that it did not."""
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
        """What was compared there; where shapes or dtypes differ, nothing was, and the two are not the same tensor."""
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
    """Both stages' errors at tensors spread evenly over the graph, its last one among them."""
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
    """Which inner tensors of two graphs are the same, as far as their names, layers and operations tell."""
    found = _by_name(ours, theirs)
    found |= {name: before for name, before in _by_layer(ours, theirs).items() if name not in found and before not in found.values()}
    if 2 * len(found) < len(theirs) and [each.operation for each in ours] == [each.operation for each in theirs]:
        found = {b.name: a.name for a, b in zip(ours, theirs, strict=True)}
    return pairings_of(theirs, found)


def pairings_of(theirs: Sequence[Point], found: Mapping[str, str]) -> list[Pairing]:
    """The tensors that are in `found`, which says what the first stage calls them."""
    nearest = _nearest(theirs, found)
    inputs = {point.name: tuple(dict.fromkeys(name for each in point.inputs for name in nearest.get(each, ()))) for point in theirs}
    return [Pairing(replace(point, inputs=inputs[point.name]), found[point.name]) for point in theirs if point.name in found]


def _leading_to(outputs: Collection[str], pairings: Sequence[Pairing]) -> Sequence[Pairing]:
    """What the first of these outputs is computed from, and itself; everything, where none of them is among the tensors."""
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
    """The last tensor of each module of the network that both graphs know."""
    last_ours, last_theirs = ({point.layer: point.name for point in points if point.layer} for points in (ours, theirs))
    return {name: last_ours[layer] for layer, name in last_theirs.items() if layer in last_ours}


def _nearest(points: Sequence[Point], kept: Collection[str]) -> dict[str, tuple[str, ...]]:
    """For each tensor the kept ones that it is computed from, with nothing kept in between; a kept one is its own."""
    nearest: dict[str, tuple[str, ...]] = {}
    for point in points:
        before = dict.fromkeys(name for each in point.inputs for name in nearest.get(each, ()))
        nearest[point.name] = (point.name,) if point.name in kept else tuple(before)
    return nearest


def _distance(link: LinkVerdict) -> float:
    assert link.max_abs is not None  # what is known was compared
    return link.max_abs


def _allowed(budget: Budget | None) -> float | None:
    return budget.max if budget else None
