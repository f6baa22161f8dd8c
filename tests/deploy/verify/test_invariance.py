"""The invariance checks on plain functions: which variants run, and what is compared with what.

Each check finds its fault.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from deploy.compare.bits import Arrays
from deploy.compare.budget import Budget, Budgets
from deploy.runners.forms import Variant
from deploy.runners.runner import Array, Runner, TensorSpec
from deploy.verify.invariance import OF_BATCHES, OF_EVERY_STAGE, PROFILE, InvarianceMeter, _strided, not_run
from deploy.verify.verdict import InvarianceVerdict, Requirement
from export.errors import NotHereError, UsageError

WIDE = Budgets({"y": Budget(100.0, 100.0)})
Function = Callable[[Arrays], dict[str, Array]]


def numbered(size: int) -> dict[str, Array]:
    return {"x": np.arange(2 * size, dtype=np.float32).reshape(size, 2)}


def doubled(batch: Arrays) -> dict[str, Array]:
    return {"y": batch["x"] * 2}


class Runs(Runner):
    """A function as a runner."""

    def __init__(self, function: Function, batch: int | None = None) -> None:
        self.name = "function"
        self.inputs = (TensorSpec("x", "float32", (batch, 2)),)
        self.outputs = (TensorSpec("y", "float32", (batch, 2)),)
        self._function = function

    @property
    def facts(self) -> Mapping[str, object]:
        return {}

    def _run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        return self._function(batch)

    def close(self) -> None:
        return


def checked(
    function: Function,
    *variants: Variant,
    size: int = 16,
    required: Requirement = "bitwise",
    budget: Budgets | None = WIDE,
    fixed: bool = False,
) -> dict[str, InvarianceVerdict]:
    batch = numbered(size)
    meter = InvarianceMeter(variants)
    meter.update(Runs(function, size if fixed else None), batch, doubled(batch), doubled(batch))
    return {verdict.check: verdict for verdict in meter.verdicts("stage", required, budget)}


def statuses(found: Mapping[str, InvarianceVerdict]) -> dict[str, str]:
    return {name: verdict.status for name, verdict in found.items()}


def all_but(**others: str) -> dict[str, str]:
    return {**dict.fromkeys(OF_EVERY_STAGE, "passed"), **others}


def variant(function: Function, check: str = "threads", setting: str = "1 thread") -> Variant:
    return Variant(check=check, setting=setting, open=lambda: Runs(function))


def test_which_rows_are_run_together() -> None:
    seen: list[list[int]] = []

    def run(batch: Arrays) -> dict[str, Array]:
        seen.append([int(x) // 2 for x in batch["x"][:, 0]])
        return doubled(batch)

    found = checked(run, size=10)
    whole, threes = list(range(10)), [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert seen == [whole, *([row] for row in range(8)), *threes, whole[:7], whole[7:], whole[:9], [0] * 10, [1] * 10, whole]
    assert {name: (v.observed, v.samples, v.settings) for name, v in found.items()} == {
        "rerun": ("bitwise", 10, ("the batch again",)),
        "alone": ("bitwise", 8, ("a sample alone",)),
        "batches": ("bitwise", 10, ("batches of 3", "batches of 7")),
        "partial": ("bitwise", 9, ("a batch of 9 after one of 10",)),
        "duplicated": ("bitwise", 2, ("10 copies of a sample",)),
        "layout": ("bitwise", 10, ("strided input",)),
    }


def test_a_profile_is_tried_at_its_sizes_with_copies_where_samples_are_too_few() -> None:
    seen: list[list[int]] = []

    def run(batch: Arrays) -> dict[str, Array]:
        seen.append([int(x) // 2 for x in batch["x"][:, 0]])
        return doubled(batch)

    meter = InvarianceMeter(profile=(2, 8))
    meter.update(Runs(run), numbered(3), doubled(numbered(3)), None)
    (found,) = (each for each in meter.verdicts("stage", "bitwise", None) if each.check == PROFILE)
    assert (found.status, found.settings, found.samples) == ("passed", ("a batch of 2", "a batch of 8"), 3)
    assert [0, 1] in seen
    assert [0, 1, 2, 0, 1, 2, 0, 1] in seen


def test_another_result_at_one_size_of_the_profile_is_found() -> None:
    meter = InvarianceMeter(profile=(1, 64, 100))
    meter.update(Runs(moved(lambda x: len(x) == 64)), numbered(16), doubled(numbered(16)), None)
    found = {each.check: each for each in meter.verdicts("stage", "bitwise", None)}
    assert statuses(found) == all_but(profile="failed")
    assert "(with a batch of 64)" in found[PROFILE].reason


def test_the_profile_of_a_stage_that_did_not_run() -> None:
    assert [each.check for each in not_run("stage", (), "bitwise", "why", (1, 2)) if each.check == PROFILE] == [PROFILE]
    meter = InvarianceMeter(profile=(1, 2))
    meter.update(Runs(doubled, 4), numbered(4), doubled(numbered(4)), None)
    found = {each.check: each for each in meter.verdicts("stage", "bitwise", None)}
    assert (found[PROFILE].status, found[PROFILE].reason) == ("not run", "the size of the batch is fixed")


def test_the_strided_input_is_strided_and_equal() -> None:
    strides = []

    def run(batch: Arrays) -> dict[str, Array]:
        strides.append(batch["x"].flags.c_contiguous)
        return doubled(batch)

    assert checked(run)["layout"].status == "passed"
    assert strides.count(False) == 1


def test_a_single_value_keeps_its_shape() -> None:
    for rows in (np.array(3.0), np.arange(4), np.arange(6).reshape(2, 3)):
        found = _strided(rows)
        assert found.shape == rows.shape
        assert np.array_equal(found, rows)


def moved(when: Callable[[Array], object]) -> Function:
    """Doubles its input, and moves the last value if the input is of some kind."""

    def run(batch: Arrays) -> dict[str, Array]:
        outputs = doubled(batch)
        if when(batch["x"]):
            outputs["y"][-1, -1] += np.float32(0.5)
        return outputs

    return run


@pytest.mark.parametrize(
    ("when", "failed"),
    [
        (lambda x: len(x) == 1, {"alone": "failed", "batches": "failed"}),  # 31 samples in threes leave one
        (lambda x: len(x) == 7, {"batches": "failed"}),
        (lambda x: len(x) == 3 and x[0, 0] > 6, {"batches": "failed"}),
        (lambda x: len(x) == 30, {"partial": "failed"}),
        (lambda x: len(x) == 31 and np.ptp(x[:, 0]) == 0, {"duplicated": "failed"}),
        (lambda x: not x.flags.c_contiguous, {"layout": "failed"}),
    ],
    ids=["alone", "batches of 7", "a later batch of 3", "partial", "duplicated", "layout"],
)
def test_each_check_finds_its_fault(when: Callable[[Array], object], failed: dict[str, str]) -> None:
    assert statuses(checked(moved(when), size=31)) == all_but(**failed)


def test_what_changes_from_run_to_run() -> None:
    runs: list[Any] = []

    def drifts(batch: Arrays) -> dict[str, Array]:
        runs.append(None)
        return moved(lambda x: len(runs) == 1)(batch)

    found = checked(drifts, required="budget")
    assert statuses(found) == all_but(rerun="failed")
    assert found["rerun"].required == "bitwise"
    assert "(with the batch again)" in found["rerun"].reason


def test_copies_of_a_sample_must_be_alike_even_within_the_batch() -> None:
    def by_place(batch: Arrays) -> dict[str, Array]:
        outputs = doubled(batch)
        if np.ptp(batch["x"][:, 0]) == 0 and len(batch["x"]) > 1:
            outputs["y"] += np.float32(0.25) * (np.arange(len(batch["x"])) % 2)[:, None].astype(np.float32)
        return outputs

    assert statuses(checked(by_place))["duplicated"] == "failed"


class TestVariants:
    def test_of_the_same_check_share_a_verdict_that_names_the_first_that_differs(self) -> None:
        off = moved(lambda x: True)
        found = checked(doubled, variant(doubled), variant(off, setting="3 threads"), variant(doubled, "optimisation", "none"))
        assert statuses(found) == all_but(threads="failed", optimisation="passed")
        assert found["threads"].settings == ("1 thread", "3 threads")
        assert found["threads"].reason.endswith("(with 3 threads)")

    def test_join_a_check_of_every_stage(self) -> None:
        found = checked(doubled, variant(doubled, "layout", "channels last"))
        assert found["layout"].settings == ("strided input", "channels last")

    def test_within_the_budget_where_that_is_required(self) -> None:
        off = variant(moved(lambda x: True))
        found = checked(doubled, off, required="budget", budget=Budgets({"y": Budget(0.5, 0.5)}))["threads"]
        assert (found.status, found.observed, found.max_abs) == ("passed", "budget", 0.5)
        assert checked(doubled, off, required="budget", budget=Budgets({"y": Budget(0.4, 0.4)}))["threads"].status == "failed"

    def test_that_cannot_be_opened_is_a_finding(self) -> None:
        def refuses() -> Runner:
            raise ValueError("no such level")

        found = checked(doubled, Variant(check="optimisation", setting="extended", open=refuses))["optimisation"]
        assert (found.status, found.reason) == ("failed", "extended could not be opened: ValueError: no such level")

    def test_that_is_not_here_is_not_run(self) -> None:
        def absent() -> Runner:
            raise NotHereError("no such device")

        alone = checked(doubled, Variant(check="threads", setting="GPU", open=absent))["threads"]
        assert (alone.status, alone.reason, alone.samples, alone.max_ulp, alone.max_abs) == ("not run", "GPU: no such device", 0, None, None)
        beside = checked(doubled, Variant(check="threads", setting="GPU", open=absent), variant(doubled))["threads"]
        assert (beside.status, beside.settings) == ("passed", ("1 thread",))

    def test_are_closed(self) -> None:
        closed = []

        class Closes(Runs):
            def close(self) -> None:
                closed.append(True)

        checked(doubled, Variant(check="threads", setting="1", open=lambda: Closes(doubled)))
        assert closed == [True]


def test_a_fixed_batch_is_said_and_not_passed() -> None:
    found = checked(doubled, size=4, fixed=True)
    assert statuses(found) == all_but(**dict.fromkeys(OF_BATCHES, "not run"))
    assert {found[name].reason for name in OF_BATCHES} == {"the size of the batch is fixed"}


def test_first_axes_that_mean_different_things_are_no_batch() -> None:
    runner = Runs(doubled)
    runner.outputs = (TensorSpec("y", "float32", ("pairs", 2)),)
    for name, status in (("batch", "not run"), ("pairs", "passed")):
        runner.inputs = (TensorSpec("x", "float32", (name, 2)),)
        meter = InvarianceMeter()
        meter.update(runner, numbered(4), doubled(numbered(4)), None)
        found = {verdict.check: verdict for verdict in meter.verdicts("stage", "bitwise", None)}
        assert {found[check].status for check in OF_BATCHES} == {status}
    assert found["rerun"].status == "passed"


def test_one_sample_has_no_smaller_batch() -> None:
    found = checked(doubled, size=1)
    assert statuses(found) == all_but(alone="not run", batches="not run", partial="not run")
    assert found["duplicated"].settings == ("2 copies of a sample",)


def test_another_dtype_is_outside_any_budget() -> None:
    class Wide(Runs):
        def __init__(self, function: Function) -> None:
            super().__init__(function)
            self.outputs = (TensorSpec("y", "float64", (None, 2)),)

    batch = numbered(4)
    meter = InvarianceMeter()
    meter.update(Wide(lambda given: {"y": given["x"].astype(np.float64) * 2}), batch, doubled(batch), doubled(batch))
    verdict = meter.verdicts("stage", "budget", WIDE)[0]
    assert (verdict.status, verdict.observed, verdict.reason) == ("failed", "outside", "y: float32 and float64")


def test_what_is_raised_is_a_finding() -> None:
    def wants_several(batch: Arrays) -> dict[str, Array]:
        if len(batch["x"]) == 1:
            raise ValueError("batch of 1")
        return doubled(batch)

    found = checked(wants_several)
    assert statuses(found) == all_but(alone="failed", batches="failed")
    assert found["alone"].reason == "a sample alone: ValueError: batch of 1"


def test_a_batch_that_a_stage_is_not_for_is_not_run() -> None:
    def for_two_or_more(batch: Arrays) -> dict[str, Array]:
        if len(batch["x"]) == 1:
            raise UsageError("exported for 2 or more")
        return doubled(batch)

    found = checked(for_two_or_more)
    assert statuses(found) == all_but(alone="not run")
    assert found["alone"].reason == "exported for 2 or more"


def test_variants_of_a_stage_outside_its_budget_are_measured_from_the_stage() -> None:
    """A wrong file may give a sample the same wrong answer each time, or it may not.

    Whether it is wrong is another question.
    """
    batch, far = numbered(16), {"y": numbered(16)["x"] * 2 + 50}

    def found(size_of_the_move: float, *, stage_outside: bool) -> str:
        def run(given: Arrays) -> dict[str, Array]:
            return {"y": given["x"] * 2 + 50 + np.float32(size_of_the_move if len(given["x"]) == 15 else 0)}

        meter = InvarianceMeter()
        meter.update(Runs(run), batch, far, doubled(batch))
        budgets = Budgets({"y": Budget(0.5, 0.5)})
        verdicts = {verdict.check: verdict for verdict in meter.verdicts("stage", "budget", budgets, stage_outside=stage_outside)}
        return verdicts["partial"].status

    assert (found(0.25, stage_outside=True), found(0.75, stage_outside=True), found(0.25, stage_outside=False)) == ("passed", "failed", "failed")


def test_without_a_budget_only_bits_pass() -> None:
    found = checked(moved(lambda x: len(x) == 15), required="budget", budget=None)
    assert statuses(found) == all_but(partial="failed")
    assert "no budget could be derived" in found["partial"].reason


def test_nothing_measured_never_passes() -> None:
    assert {v.status for v in InvarianceMeter().verdicts("stage", "budget", WIDE)} == {"failed"}
    expected = [(check, "not run", "why") for check in (*OF_EVERY_STAGE, "threads")]
    assert [(v.check, v.status, v.reason) for v in not_run("stage", [variant(doubled)], "budget", "why")] == expected
