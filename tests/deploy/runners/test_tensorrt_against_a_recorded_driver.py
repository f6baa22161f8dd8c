"""The engine runner on a recording fake of the driver. Nothing here computes a network.

Covers sizes, shapes, batches, order, cleaning up and errors.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engines import built
from onnx_files import pixels
from recorded_driver import GPU, RecordedDriver, RecordedEngine, recorded_tensorrt

from deploy.runners import tensorrt
from deploy.runners.tensorrt import EngineFile, LoadedEngine, TensorRtRunner, open_engine
from export.errors import DamagedError, NotHereError, SamegraphError, UsageError
from export.files import sha256_of
from export.tensorrt.record import EngineRecord, Machine

pytest.importorskip("tensorrt_rtx", reason="not run: tensorrt-rtx is not installed")
Change = Callable[[EngineRecord], EngineRecord]


@pytest.fixture(scope="module")
def rtx(tmp_path_factory: pytest.TempPathFactory) -> EngineFile:
    """A real engine of TensorRT-RTX for batches of 1 to 16."""
    engine = built(tmp_path_factory.mktemp("engine"))
    return EngineFile("engines/it.plan", engine.plan, engine.record, engine.record.onnx.sha256)


@pytest.fixture
def full(rtx: EngineFile) -> EngineFile:
    """What an engine of the full TensorRT would look like. Its bytes are made up."""
    plan = b"ftrt" + bytes(60)
    machine = Machine(gpu=GPU.name, capability=GPU.capability, driver="999.1", cuda="13.0", system="Linux x86_64")
    record = rtx.record.model_copy(
        update={"flavour": "tensorrt", "version": "11.4.0.106", "plan": sha256_of(plan), "plan_size": len(plan), "built_on": machine}
    )
    return EngineFile("engines/it.plan", plan, record, record.onnx.sha256)


@dataclasses.dataclass
class Stage:
    """A runner on the recorded driver."""

    driver: RecordedDriver
    engine: RecordedEngine
    module: Any
    file: EngineFile

    def open(self, *, graphs: bool = True) -> TensorRtRunner:
        return open_engine(self.file, graphs=graphs, driver=self.driver)


@pytest.fixture
def stage(full: EngineFile, monkeypatch: pytest.MonkeyPatch) -> Stage:
    driver = RecordedDriver()
    engine = RecordedEngine(full.record, driver)
    module = recorded_tensorrt("tensorrt", full.record.version, engine)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return Stage(driver, engine, module, full)


def test_buffers_have_the_size_of_the_largest_batch_and_are_allocated_once(stage: Stage) -> None:
    with stage.open() as runner:
        sizes = sorted(memory.nbytes for memory in stage.driver.memory.values())
        assert sizes == sorted([4096, 16 * 16, 16 * 5 * 4])
        assert sorted(memory.nbytes for memory in stage.driver.pinned.values()) == sorted([16 * 16, 16 * 5 * 4])
        before = set(stage.driver.memory), set(stage.driver.pinned)
        for size in (1, 16, 3):
            runner.run({"image": pixels(size)})
        assert (set(stage.driver.memory), set(stage.driver.pinned)) == before


@pytest.mark.parametrize("graphs", [True, False])
def test_rows_go_in_and_come_out_in_their_order_at_every_size(graphs: bool, stage: Stage) -> None:
    with stage.open(graphs=graphs) as runner:
        for size in (16, 1, 5, 16, 2):
            batch = pixels(size, seed=size)
            logits = runner.run({"image": batch})["logits"]
            assert logits.shape == (size, 5)
            assert np.array_equal(logits, np.repeat(batch[:, 0, :1, 0].astype(np.float32), 5, axis=1))


def test_outputs_are_the_callers_and_inputs_may_be_strided_and_read_only(stage: Stage) -> None:
    batch = np.asfortranarray(pixels(3))
    batch.setflags(write=False)
    with stage.open() as runner:
        first = runner.run({"image": batch})["logits"]
        kept = first.copy()
        runner.run({"image": 255 - batch})
        assert np.array_equal(first, kept)


def test_a_size_is_prepared_once_and_then_only_launched(stage: Stage) -> None:
    with stage.open() as runner:
        stage.driver.said.clear()
        runner.run({"image": pixels(4)})
        assert stage.driver.said == ["in 64", "run 4", "out 80", "wait", "capture in 64", "capture run 4", "capture out 80", "launch", "wait"]
        stage.driver.said.clear()
        runner.run({"image": pixels(4)})
        assert stage.driver.said == ["launch", "wait"]


def test_each_size_has_a_context_of_its_own_and_all_share_the_scratch_memory(stage: Stage) -> None:
    with stage.open() as runner:
        for size in (1, 2, 3, 2):
            runner.run({"image": pixels(size)})
        assert [context.shapes["image"][0] for context in stage.engine.contexts] == [1, 2, 3]
        assert len({context.scratch for context in stage.engine.contexts}) == 1


def test_no_more_sizes_are_kept_than_allowed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "_KEPT_SIZES", 2)
    with stage.open() as runner:
        for size in (5, 6, 5, 7):
            runner.run({"image": pixels(size)})
        assert list(runner._lanes) == [5, 7]
        assert len(stage.driver.graphs) == 2
        prepared = len(stage.engine.contexts)
        runner.run({"image": pixels(5)})
        assert len(stage.engine.contexts) == prepared


def test_workers_share_the_engine_and_nothing_else(stage: Stage) -> None:
    loaded = LoadedEngine(stage.file, stage.driver)
    with TensorRtRunner(loaded) as one, TensorRtRunner(loaded) as other:
        assert len(stage.driver.streams) == 2
        assert len(stage.module.deserialised) == 1
        for runner in (one, other):
            runner.run({"image": pixels(2)})
        addresses = [set(context.addresses.values()) for context in stage.engine.contexts]
        assert not addresses[0] & addresses[1]


def test_everything_is_given_back(stage: Stage) -> None:
    with stage.open() as runner:
        runner.run({"image": pixels(2)})
    assert stage.driver.all_given_back
    runner.close()  # closing twice is like closing once
    with pytest.raises(RuntimeError, match="is closed"):
        runner.run({"image": pixels(2)})


@pytest.mark.parametrize("number", range(5))
def test_what_was_allocated_is_given_back_where_memory_runs_out(number: int, stage: Stage) -> None:
    stage.driver.refuse_allocation_number = number
    refused = (0, 2, 4)  # device memory: scratch, input, output; the other two are the host's
    if number in refused:
        with pytest.raises(MemoryError):
            stage.open()
    else:
        stage.open().close()
    assert stage.driver.all_given_back


@pytest.mark.parametrize(("size", "words"), [(17, "got a batch of 17 samples, expected 1 to 16"), (0, "got 0 as the number of samples")])
def test_a_batch_outside_the_profile_is_refused_before_the_driver_hears_of_it(size: int, words: str, stage: Stage) -> None:
    with stage.open() as runner:
        stage.driver.said.clear()
        with pytest.raises(UsageError, match=words):
            runner.run({"image": pixels(size)})
        assert stage.driver.said == []


def test_work_that_tensorrt_refuses_is_an_error(stage: Stage) -> None:
    stage.engine.accepts_work = False
    with pytest.raises(RuntimeError, match="could not run a batch of 1"):
        stage.open()
    assert stage.driver.all_given_back


def test_an_output_of_another_shape_is_an_error(stage: Stage) -> None:
    stage.engine.extra_classes = 1
    with pytest.raises(RuntimeError, match=r"gives logits the shape \(1, 6\), expected \(1, 5\)"):
        stage.open()


def test_the_facts_name_file_device_and_flags(stage: Stage) -> None:
    with stage.open() as runner:
        facts = runner.facts
    assert (facts["runtime"], facts["version"], facts["device"], facts["capability"]) == ("tensorrt", "11.4.0.106", "NVIDIA Recorded", "8.9")
    assert (facts["engine"], facts["onnx"]) == (stage.file.record.plan, stage.file.record.onnx.sha256)
    assert facts["flags"] == {"DISTRIBUTIVE_INDEPENDENCE": True, "TF32": False}
    assert facts["batch_sizes"] == [1, 16]


def test_the_flavour_that_compiles_where_it_runs_is_told_to_do_it_at_once(rtx: EngineFile, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = RecordedDriver()
    engine = RecordedEngine(rtx.record, driver)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", recorded_tensorrt("tensorrt_rtx", rtx.record.version, engine))
    with open_engine(rtx, driver=driver):
        assert [config.dynamic_shapes_kernel_specialization_strategy for config in engine.configs] == ["eager"]


class TestRefusals:
    """Each is refused before the engine is deserialised."""

    def refused(self, stage: Stage, file: EngineFile, kind: type[SamegraphError], gpu: Any = GPU) -> str:
        stage.driver.the_gpu = gpu
        with pytest.raises(kind) as caught:
            open_engine(file, driver=stage.driver)
        assert stage.module.deserialised == []
        assert stage.driver.all_given_back
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def changed(self, file: EngineFile, **changes: object) -> EngineFile:
        return dataclasses.replace(file, record=file.record.model_copy(update=changes))

    @pytest.mark.parametrize(
        "damage",
        [lambda plan: plan[:-1], lambda plan: plan[:40], lambda plan: b"", lambda plan: plan[:30] + bytes([plan[30] ^ 1]) + plan[31:]],
        ids=["one byte short", "truncated", "empty", "a flipped byte"],
    )
    def test_a_plan_that_is_not_that_of_the_record(self, damage: Callable[[bytes], bytes], stage: Stage) -> None:
        file = dataclasses.replace(stage.file, plan=damage(stage.file.plan))
        assert "its record says 64 and" in self.refused(stage, file, DamagedError)

    def test_random_bytes_that_the_record_agrees_with(self, stage: Stage) -> None:
        plan = np.random.default_rng(0).bytes(5000)
        file = dataclasses.replace(self.changed(stage.file, plan=sha256_of(plan), plan_size=len(plan)), plan=plan)
        assert "is not an engine of tensorrt: it begins with" in self.refused(stage, file, DamagedError)

    def test_an_engine_of_the_other_flavour_that_the_record_calls_its_own(self, stage: Stage, rtx: EngineFile) -> None:
        file = dataclasses.replace(self.changed(stage.file, plan=rtx.record.plan, plan_size=rtx.record.plan_size), plan=rtx.plan)
        assert "is an engine of tensorrt-rtx, its record says tensorrt" in self.refused(stage, file, DamagedError)

    def test_an_engine_of_another_onnx_file(self, stage: Stage) -> None:
        file = dataclasses.replace(stage.file, onnx_sha256="0" * 64)
        assert "was built from a model.onnx with sha256" in self.refused(stage, file, DamagedError)

    def test_another_version(self, stage: Stage) -> None:
        text = self.refused(stage, self.changed(stage.file, version="11.3.0.99"), NotHereError)
        assert text == (
            "engines/it.plan was built for tensorrt 11.3.0.99 on NVIDIA Recorded (compute capability 8.9), 11.4.0.106 is installed; "
            "build it again: pipeline export BUNDLE --tensorrt --flavour tensorrt --precision float32"
        )

    @pytest.mark.parametrize(
        ("gpus", "capability", "fits"),
        [("same", "8.9", False), ("capability", "8.9", True), ("capability", "8.6", False), ("ampere+", "12.0", True), ("ampere+", "7.5", False)],
    )
    def test_another_gpu(self, gpus: str, capability: str, fits: bool, stage: Stage) -> None:
        other, file = dataclasses.replace(GPU, name="NVIDIA Other", capability=capability), self.changed(stage.file, gpus=gpus)
        if fits:
            stage.driver.the_gpu = other
            open_engine(file, driver=stage.driver).close()
        else:
            assert f"NVIDIA Other (compute capability {capability}); build it again: " in self.refused(stage, file, NotHereError, other)

    @pytest.mark.parametrize(("version", "fits"), [("11.3.0.99", True), ("11.9.0.1", False), ("12.0.0.1", False), ("10.9.0.1", False)])
    def test_a_version_compatible_engine_runs_on_later_versions_of_its_major_one(self, version: str, fits: bool, stage: Stage) -> None:
        file = self.changed(stage.file, version=version, version_compatible=True)
        if fits:
            open_engine(file, driver=stage.driver).close()
        else:
            self.refused(stage, file, NotHereError)


def test_an_engine_that_tensorrt_refuses_repeats_what_it_said(full: EngineFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", recorded_tensorrt("tensorrt", full.record.version, None))
    with pytest.raises(NotHereError, match="TensorRT refuses the engine: recorded: not for this machine; build it again"):
        open_engine(full, driver=RecordedDriver())


def test_an_engine_that_is_not_what_its_record_promises(stage: Stage) -> None:
    stage.engine.tensors = list(reversed(stage.engine.tensors))
    stage.open().close()  # the order does not matter
    stage.engine.tensors = stage.engine.tensors[:1]
    stage.engine.num_io_tensors = 1
    with pytest.raises(DamagedError, match="its record says"):
        stage.open()
