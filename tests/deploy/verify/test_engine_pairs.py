"""A TensorRT engine as a side of a pair: its record is checked first, its precision widens nothing.

Without a GPU the engine is not available. Where an engine runs, it is the recording fake of the
driver, whose "network" answers with the first pixel of each sample.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from in_process import HereHost
from odd_files import node, write
from onnx import TensorProto
from recorded_driver import GPU, RecordedDriver, RecordedEngine, recorded_tensorrt

from deploy.compare.tolerance import Tolerance
from deploy.verify.pair import verify_pair
from deploy.verify.request import PairRequest
from export.errors import DamagedError, NotHereError, SamegraphError, UsageError
from export.files import sha256_of
from export.tensorrt.record import EngineRecord, Machine, Shapes, Source, Tensor

PLAN = b"ftrt" + bytes(60)
MACHINE = Machine(gpu=GPU.name, capability=GPU.capability, driver="999.1", cuda="13.0", system="Linux x86_64")
RECORD = EngineRecord(
    format_version=1,
    plan=sha256_of(PLAN),
    plan_size=len(PLAN),
    onnx=Source(name="model.onnx", sha256="ab" * 32),
    precision="float32",
    flavour="tensorrt",
    version="11.4.0.106",
    built_on=MACHINE,
    flags={"TF32": False},
    tactic_sources=[],
    version_compatible=False,
    gpus="same",
    inputs=[Tensor(name="image", dtype="uint8", shape=[None, 1, 4, 4])],
    outputs=[Tensor(name="logits", dtype="float32", shape=[None, 5])],
    profile={"image": Shapes(least=[1, 1, 4, 4], best=[4, 1, 4, 4], most=[16, 1, 4, 4])},
    build_seconds=1.0,
    timing_cache=None,
    messages=[],
    layers=None,
)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PairRequest:
    """The first pixel as five logits, in ONNX and in an engine."""
    monkeypatch.setattr("deploy.verify.sides.HostProcess", HereHost)
    nodes = [
        node("Slice", ["image", "from", "to", "axes"], "pixel"),
        node("Reshape", ["pixel", "column"], "flat"),
        node("Cast", ["flat"], "number", to=TensorProto.FLOAT),
        node("Tile", ["number", "times"], "logits"),
    ]
    constants = {"from": np.array([0, 0]), "to": np.array([1, 1]), "axes": np.array([2, 3]), "column": np.array([-1, 1]), "times": np.array([1, 5])}
    ends = [("image", TensorProto.UINT8, list[str | int](["N", 1, 4, 4])), ("logits", TensorProto.FLOAT, list[str | int](["N", 5]))]
    (tmp_path / "it.plan").write_bytes(PLAN)
    (tmp_path / "it.json").write_bytes(RECORD.to_bytes())
    return PairRequest(reference=write(tmp_path / "net.onnx", nodes, ends[1:], ends[:1], constants), candidate=tmp_path / "it.plan", samples="40")


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = RecordedDriver()
    monkeypatch.setattr("deploy.runners.tensorrt.CudaDriver", lambda: driver)
    monkeypatch.setitem(sys.modules, "tensorrt", recorded_tensorrt("tensorrt", RECORD.version, RecordedEngine(RECORD, driver)))


@pytest.mark.usefixtures("on_a_gpu")
def test_an_engine_is_a_candidate_in_batches_that_it_takes(pair: PairRequest) -> None:
    verdict = verify_pair(pair)
    (link,) = verdict.links
    assert (link.status, link.runtime, link.device, link.samples) == ("passed", "tensorrt", "cuda", 40)
    assert verdict.stages["candidate"]["batch_sizes"] == [1, 16]
    assert set(verdict.files.values()) >= {sha256_of(PLAN)}
    assert {check.check for check in verdict.invariance if check.stage == "candidate" and check.status == "passed"} >= {"alone", "batches"}


@pytest.mark.usefixtures("on_a_gpu")
def test_as_the_reference_it_has_no_float64(pair: PairRequest) -> None:
    turned = replace(pair, reference=pair.candidate, candidate=pair.reference)
    with pytest.raises(UsageError, match=r"it\.plan has no evaluation in float64"):
        verify_pair(turned)
    assert verify_pair(replace(turned, tolerance=Tolerance(max_ulp=0))).passed


@pytest.mark.usefixtures("on_a_gpu")
def test_an_engine_in_less_than_was_asked_for_has_no_wider_budget(pair: PairRequest) -> None:
    pair.candidate.with_suffix(".json").write_bytes(RECORD.model_copy(update={"precision": "tf32"}).to_bytes())
    budgets = [verify_pair(each).links[0].budget for each in (pair, replace(pair, precision="tf32"))]
    assert [each and each.max for each in budgets] == [2**-16, 2**-3]


@pytest.mark.parametrize(
    ("spoil", "error", "found"),
    [
        (lambda plan: plan.with_suffix(".json").unlink(), UsageError, r"it\.plan has no it\.json beside it, the record of what it was built from"),
        (lambda plan: plan.write_bytes(PLAN[:20]), DamagedError, "has 20 bytes, its record says 64"),
        (lambda plan: plan.write_bytes(PLAN[:-1] + b"?"), DamagedError, "has 64 bytes and sha256 .*, its record says 64"),
        (lambda plan: os.truncate(plan, 2**40), DamagedError, "has 1099511627776 bytes, its record says 64"),
        (lambda plan: os.truncate(plan.with_suffix(".json"), 2**40), DamagedError, r"it\.json is not the record of an engine: it has 1099511627776"),
        (lambda plan: plan.with_suffix(".json").write_text("{}"), DamagedError, "is not the record of an engine"),
    ],
)
def test_a_bad_engine_is_one_line(pair: PairRequest, spoil: Callable[[Path], object], error: type[SamegraphError], found: str) -> None:
    spoil(pair.candidate)
    with pytest.raises(error, match=found):
        verify_pair(pair)


def test_where_nothing_could_run_the_runtime_is_not_here(pair: PairRequest) -> None:
    """Nothing was shown to differ, so the exit code is that of a missing runtime."""
    with pytest.raises(NotHereError, match=r"tensorrt|NVIDIA"):
        verify_pair(pair)
