"""Batches that float64 is not evaluated on: only those that cannot change the verdict."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_files import IMAGE, LOGITS, Perceptron, pixels, random_weights
from opened import OpenedBy
from verdicts import Altered

from deploy.compare.budget import Budgets, ErrorMeter, OutputErrors, budgets, first_class_changes, is_covered
from deploy.runners.runner import Array, Runner
from deploy.runners.torch import TorchRunner
from deploy.verify import course
from deploy.verify.links import Chain, Link, Record, Stage
from deploy.verify.run_chain import run_chain
from deploy.verify.verdict import Verdict

FACTOR = 4.0
small = st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=6)


def measured(*pairs: tuple[np.ndarray, np.ndarray]) -> OutputErrors:
    meter = ErrorMeter()
    for float64, outputs in pairs:
        meter.update({"y": float64}, {"y": outputs})
    return meter.measured


@settings(max_examples=300, deadline=None)
@given(truth=small, training=small, more_truth=small, more_training=small, more_apart=small)
def test_what_is_covered_is_within_the_budget_whatever_float64_is(
    truth: list[float], training: list[float], more_truth: list[float], more_training: list[float], more_apart: list[float]
) -> None:
    """The bound on the largest error holds for any float64 values of a batch that was left out.

    It follows from the triangle inequality.
    """
    f, t, more_f, more_t = (np.array(each, np.float64) for each in (truth, training, more_truth, more_training))
    known = measured((f, t))
    stage = more_t + FACTOR * known.whole.max * np.array(more_apart, np.float64)
    if not is_covered({"y": more_t}, {"y": stage}, known, FACTOR):
        return
    whole = budgets(measured((f, t), (more_f, more_t)), "float32", "float32")
    allowed = whole.outputs["y"]
    assert allowed is not None
    assert np.abs(stage - more_f).max() <= allowed.max * (1 + 1e-12)


@pytest.mark.parametrize(
    ("outputs", "covered"),
    [
        ([1.0, 2.0], True),
        ([1.0, 2.0 + 3 * 2**-10], True),
        ([1.0, 2.0 + 3.1 * 2**-10], False),
        ([1.0 + 3 * 2**-10, 2.0 + 3 * 2**-10], False),  # each is covered, but not both together
        ([1.0, np.nan], False),
        ([1.0, np.inf], False),
    ],
)
def test_how_near_is_near_enough(outputs: list[float], covered: bool) -> None:
    known = measured((np.zeros(2), np.array([2**-10, 0.0])))
    assert is_covered({"y": np.array([1.0, 2.0])}, {"y": np.array(outputs)}, known, FACTOR) is covered


def test_what_both_overflow_alike_is_not_covered() -> None:
    known, same = measured((np.zeros(2), np.zeros(2))), {"y": np.array([1.0, np.inf])}
    assert not is_covered(same, same, known, FACTOR)


def test_whole_numbers_are_equal_or_not_covered() -> None:
    known = measured((np.array([1, 2]), np.array([1, 5])))
    assert is_covered({"y": np.array([3, 4])}, {"y": np.array([3, 4])}, known, FACTOR)
    assert not is_covered({"y": np.array([3, 4])}, {"y": np.array([3, 5])}, known, FACTOR)


@pytest.mark.parametrize("outputs", [{}, {"z": np.zeros(2)}, {"y": np.zeros(3)}, {"y": np.zeros(2, np.float32)}])
def test_what_cannot_be_paired_is_not_covered(outputs: dict[str, np.ndarray]) -> None:
    assert not is_covered({"y": np.zeros(2)}, outputs, measured((np.zeros(2), np.zeros(2))), FACTOR)


def test_another_first_class() -> None:
    a, b = np.array([[1.0, 2.0], [3.0, 1.0]]), np.array([[1.0, 2.0], [0.5, 1.0]])
    assert first_class_changes({"y": a}, {"y": b})
    assert not first_class_changes({"y": a}, {"y": a + 1})
    assert not first_class_changes({"y": a}, {"z": b})


class TestInAChain:
    WEIGHTS = random_weights()
    IMAGES = pixels(40)

    @pytest.fixture(autouse=True)
    def few_in_any_case(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(course, "NUM_IN_FLOAT64", 16)

    def verdict(self, alter: Callable[[dict[str, Array]], dict[str, Array]]) -> tuple[Verdict, list[int]]:
        evaluated: list[int] = []

        class Counting(TorchRunner):
            def _run(self, batch: object) -> dict[str, Array]:
                found = super()._run(batch)  # type: ignore[arg-type]
                evaluated.append(len(found["logits"]))
                return found

        def stage(name: str, open_: Callable[[], Runner]) -> Stage:
            precision = "float64" if name == "float64" else "float32"
            return Stage(name=name, form=OpenedBy(runtime="torch", precision=precision, opener=open_), invariance_required=None)  # type: ignore[arg-type]

        chain = Chain(
            stages=(stage("training", lambda: TorchRunner(Perceptron(self.WEIGHTS), [IMAGE], [LOGITS])), stage("runtime", lambda: Altered(alter))),
            links=(Link("training", "runtime", "budget"),),
            reference=stage("float64", lambda: Counting(Perceptron(self.WEIGHTS), [IMAGE], [LOGITS], precision="float64")),
            training="training",
        )

        def batches() -> Iterator[dict[str, Array]]:
            for start in range(0, 40, 8):
                yield {"image": self.IMAGES[start : start + 8]}

        return run_chain(chain, batches, Record()), evaluated

    def test_the_first_are_evaluated_and_the_rest_are_bounded(self) -> None:
        verdict, evaluated = self.verdict(lambda outputs: {"logits": np.nextafter(outputs["logits"], np.float32(0))})
        assert (verdict.passed, evaluated) == (True, [8, 8])
        assert {each.samples for each in verdict.errors} == {16}
        assert (verdict.links[0].samples, verdict.samples.count) == (40, 40)

    def test_a_fault_among_the_rest_is_found_with_its_sample(self) -> None:
        calls: list[int] = []

        def late(outputs: dict[str, Array]) -> dict[str, Array]:
            calls.append(1)
            if len(calls) == 4:
                outputs["logits"][5, 1] += np.float32(1e-3)
            return outputs

        verdict, evaluated = self.verdict(late)
        (link,) = verdict.links
        assert (link.status, link.observed, evaluated) == ("failed", "outside", [8, 8, 8])
        assert link.worst[0].sample == 29

    def test_a_change_of_the_first_class_is_weighed_in_float64_and_at_its_sample(self) -> None:
        calls: list[int] = []

        def swapped(outputs: dict[str, Array]) -> dict[str, Array]:
            calls.append(1)
            if len(calls) == 5:
                row = outputs["logits"][2]
                first, second = np.argsort(-row)[:2]
                row[[first, second]] = row[[second, first]]
            return outputs

        verdict, evaluated = self.verdict(swapped)
        assert evaluated == [8, 8, 8]
        assert [change.sample for change in verdict.links[0].changes] == [34]


def test_budgets_of_nothing_cover_nothing() -> None:
    assert not Budgets({}).covers(measured())
