"""The invariance checks on plain functions: which variants are run, and what is compared with what."""

import numpy as np
import pytest

from deploy.verify.budget import Budget
from deploy.verify.compare import Arrays
from deploy.verify.invariance import CHECKS, InvarianceMeter, not_run

BATCH = {"x": np.arange(12, dtype=np.float32).reshape(6, 2)}
WIDE = Budget(100.0, 100.0)


def doubled(batch: Arrays) -> Arrays:
    return {"y": batch["x"] * 2, "version": np.array(3)}


def test_variants_are_the_batch_its_samples_and_their_copies() -> None:
    seen = []

    def run(batch: Arrays) -> Arrays:
        seen.append(batch["x"][:, 0].tolist())
        return doubled(batch)

    meter = InvarianceMeter()
    meter.update(run, BATCH, doubled(BATCH), doubled(BATCH))
    assert seen == [[0, 2, 4, 6, 8, 10], [0], [2], [4], [6], [8], [10], [0] * 6, [2] * 6]
    verdicts = meter.verdicts("stage", "bitwise", None)
    assert [(v.check, v.status, v.observed, v.samples) for v in verdicts] == [
        ("rerun", "passed", "bitwise", 6),
        ("alone", "passed", "bitwise", 6),
        ("duplicated", "passed", "bitwise", 2),
    ]


def test_another_dtype_is_outside_any_budget() -> None:
    def wider(batch: Arrays) -> Arrays:
        return {name: value.astype(np.float64) for name, value in doubled(batch).items()}

    meter = InvarianceMeter()
    meter.update(wider, BATCH, doubled(BATCH), doubled(BATCH))
    verdict = meter.verdicts("stage", "budget", WIDE)[0]
    assert (verdict.status, verdict.observed) == ("failed", "outside")
    assert verdict.reason == "y: float32 and float64; version: int64 and float64"


def test_what_is_raised_is_a_finding() -> None:
    def alone_only(batch: Arrays) -> Arrays:
        if len(batch["x"]) == 1:
            raise ValueError("batch of 1")
        return doubled(batch)

    meter = InvarianceMeter()
    meter.update(alone_only, BATCH, doubled(BATCH), doubled(BATCH))
    found = {v.check: (v.status, v.reason) for v in meter.verdicts("stage", "bitwise", None)}
    assert found["alone"] == ("failed", "ValueError: batch of 1")
    assert found["rerun"] == found["duplicated"] == ("passed", "")


@pytest.mark.parametrize("budget", [None, Budget(0.5, 0.5)])
def test_outside_the_budget_or_without_one(budget: Budget | None) -> None:
    meter = InvarianceMeter()
    meter.update(lambda batch: {"y": batch["x"] * 2 + 1, "version": np.array(3)}, BATCH, doubled(BATCH), doubled(BATCH))
    assert {v.status for v in meter.verdicts("stage", "budget", budget)} == {"failed"}
    assert {v.observed for v in meter.verdicts("stage", "budget", WIDE)} == {"budget"}


def test_nothing_measured_never_passes() -> None:
    assert {v.status for v in InvarianceMeter().verdicts("stage", "budget", WIDE)} == {"failed"}
    assert [(v.check, v.status, v.reason) for v in not_run("stage", "budget", "why")] == [(check, "not run", "why") for check in CHECKS]
