"""The search for a place, on graphs with known faults.

It takes few runs, goes through branches, and passes what cannot be compared.
"""

from collections.abc import Collection, Mapping, Sequence

import pytest

from deploy.compare.bits import OutputComparison
from deploy.runners.runner import Point
from deploy.verify.place import CutResult, Pairing, Places, find_place, paired, pairings_of
from deploy.verify.verdict import LinkVerdict, Status


def points(graph: Mapping[str, Sequence[str]]) -> list[Point]:
    return [Point(name, "Op", tuple(inputs)) for name, inputs in graph.items()]


def compared(status: Status, outputs: tuple[OutputComparison, ...]) -> LinkVerdict:
    return LinkVerdict(
        from_="before",
        to="after",
        runtime="cut",
        device="cpu",
        required="bitwise",
        observed=None,
        status=status,
        reason="other bits" if status == "failed" else "",
        samples=1,
        outputs=outputs,
        max_ulp=0,
        max_abs=0.5,
        budget=None,
        tolerance=None,
        top1_changes=0,
        ties=0,
        changes=(),
        first_difference=None,
        worst=(),
        place=None,
        growth=(),
    )


OUTPUT = OutputComparison("x", "float32", 1, 1, 0, 0.0, 0.0, 0, 0, 0, 0, 0, (1,))


class Known(Places):
    """A graph of which it is known what fails and what cannot be compared."""

    def __init__(self, graph: Mapping[str, Sequence[str]], failing: Collection[str], apart: Collection[str] = ()) -> None:
        self.found = [Pairing(point, f"{point.name}'") for point in points(graph)]
        self.failing, self.apart = failing, apart
        self.tried: list[str] = []

    def pairings(self) -> Sequence[Pairing]:
        return self.found

    def at(self, pairing: Pairing) -> CutResult | None:
        self.tried.append(pairing.point.name)
        if pairing.point.name in self.apart:
            return CutResult(compared("failed", ()))
        return CutResult(compared("failed" if pairing.point.name in self.failing else "passed", (OUTPUT,)))


def chain(number: int) -> dict[str, list[str]]:
    return {f"t{i}": [f"t{i - 1}"] if i else [] for i in range(number)}


@pytest.mark.parametrize("first", [0, 1, 37, 63])
def test_the_first_of_a_chain_in_few_runs(first: int) -> None:
    known = Known(chain(64), {f"t{i}" for i in range(first, 64)})
    place = find_place(known, 7)
    assert place is not None
    assert (place.tensor, place.reference_tensor, place.worst_sample, place.reason) == (f"t{first}", f"t{first}'", 7, "other bits")
    assert [(each.tensor, each.inside) for each in place.inputs] == ([(f"t{first - 1}", True)] if first else [])
    assert place.runs == len(known.tried) <= 9
    assert len(set(known.tried)) == len(known.tried)


DIAMOND = {"stem": [], "left": ["stem"], "right": ["stem"], "deep": ["right"], "join": ["left", "deep"], "out": ["join"]}


@pytest.mark.parametrize(
    ("failing", "place"),
    [({"left", "join", "out"}, "left"), ({"right", "deep", "join", "out"}, "right"), ({"deep", "join", "out"}, "deep"), ({"join", "out"}, "join")],
)
def test_a_branch_that_stays_right_does_not_mislead(failing: set[str], place: str) -> None:
    found = find_place(Known(DIAMOND, failing), 0)
    assert found is not None
    assert found.tensor == place
    assert all(each.inside for each in found.inputs)


def test_what_cannot_be_compared_is_passed_over() -> None:
    found = find_place(Known(chain(8), {f"t{i}" for i in range(3, 8)}, apart={"t7", "t5"}), 0)
    assert found is not None
    assert found.tensor == "t3"


def test_behind_everything_that_can_be_compared() -> None:
    found = find_place(Known(chain(4), set()), 0)
    assert found is not None
    assert (found.tensor, found.reason) == ("t3", "every tensor that both stages have is inside up to here: the difference arises behind it")
    assert find_place(Known(chain(4), set(), apart=chain(4)), 0) is None
    assert find_place(Known({}, set()), 0) is None


def test_graphs_that_go_in_circles_end() -> None:
    known = Known({"a": ["b"], "b": ["a"]}, {"a", "b"})
    assert find_place(known, 0) is not None


class TestPaired:
    def test_by_name_where_the_layers_agree(self) -> None:
        ours = [Point("a", "conv", (), "one"), Point("b", "relu", ("a",), "two"), Point("c", "add", ("b",), "")]
        theirs = [Point("a", "Conv", (), "one"), Point("b", "Relu", ("a",), "three"), Point("c", "Add", ("b",), "three")]
        assert [(each.point.name, each.before) for each in paired(ours, theirs)] == [("a", "a"), ("c", "c")]

    def test_by_the_last_tensor_of_a_layer(self) -> None:
        ours = [Point("conv2d", "conv2d", (), "conv"), Point("batch_norm", "batch_norm", ("conv2d",), "bn")]
        theirs = [Point("getitem", "Conv", (), "bn"), Point("more", "Identity", ("getitem",), "bn")]
        assert [(each.point.name, each.before) for each in paired(ours, theirs)] == [("more", "batch_norm")]

    def test_by_order_where_nothing_but_names_differs(self) -> None:
        ours, theirs = ([Point(f"{side}{i}", f"Op{i}", ()) for i in range(5)] for side in "ab")
        assert [(each.point.name, each.before) for each in paired(ours, theirs)] == [(f"b{i}", f"a{i}") for i in range(5)]
        assert paired(ours[:4], theirs) == []

    def test_inputs_are_the_nearest_tensors_that_both_have(self) -> None:
        found = {each.point.name: each.point.inputs for each in pairings_of(points(DIAMOND), {"stem": "s", "left": "l", "out": "o"})}
        assert found == {"stem": (), "left": ("stem",), "out": ("left", "stem")}
