"""Engines from TensorRT-RTX's real parser and builder, which need no GPU.

Covers profile, flags, record, progress, and every way to fail.
"""

import dataclasses
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from engines import RTX, WANTED, Counts, built, one_node, perceptron

from export.errors import NotHereError, UsageError
from export.files import sha256_of
from export.tensorrt import builder
from export.tensorrt.builder import PARTS, Batches, Course, EngineRequest, _Build, engine_from_onnx, monitor_of
from export.tensorrt.record import parsed_record
from export.tensorrt.runtime import FLAVOURS, listening, logger_of

trt: Any = pytest.importorskip("tensorrt_rtx", reason="not run: tensorrt-rtx is not installed")


def test_the_record_says_what_was_built_from_what_by_what(tmp_path: Path) -> None:
    engine = built(tmp_path)
    record = engine.record
    assert (record.plan, record.plan_size) == (sha256_of(engine.plan), len(engine.plan))
    assert (record.onnx.name, record.onnx.sha256) == ("model.onnx", sha256_of(perceptron(tmp_path)))
    assert (record.flavour, record.version, record.precision) == ("rtx", trt.__version__, "float32")
    assert [(each.name, each.dtype, each.shape) for each in record.inputs] == [("image", "uint8", [None, 1, 4, 4])]
    assert [(each.name, each.dtype, each.shape) for each in record.outputs] == [("logits", "float32", [None, 5])]
    shapes = record.profile["image"]
    assert (shapes.least, shapes.best, shapes.most) == ([1, 1, 4, 4], [4, 1, 4, 4], [16, 1, 4, 4])
    assert record.batches == range(1, 17)
    assert record.build_seconds > 0
    assert record.timing_cache is None
    assert parsed_record(record.to_bytes(), "here") == record


def test_what_this_machine_lacks_is_null_in_the_record_and_said_for_the_layers(tmp_path: Path) -> None:
    record = built(tmp_path).record
    assert (record.built_on.gpu, record.built_on.capability, record.built_on.driver, record.built_on.cuda) == (None, None, None, None)
    assert str(record.layers).startswith("not read: ")
    assert "cudaError" in str(record.layers)


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("float16", False), ("exact", False), ("tf32", True)])
def test_tf32_is_off_unless_asked_for_and_read_back(precision: Any, allowed: bool, tmp_path: Path) -> None:
    assert trt.Builder(logger_of(trt)).create_builder_config().get_flag(trt.BuilderFlag.TF32), "its default is on, which is why it must be cleared"
    flags = built(tmp_path, dataclasses.replace(WANTED, precision=precision)).record.flags
    assert flags["TF32"] is allowed
    assert flags["DISTRIBUTIVE_INDEPENDENCE"] is True
    assert set(flags) == set(trt.BuilderFlag.__members__)
    assert [name for name, on in flags.items() if on] == ["DISTRIBUTIVE_INDEPENDENCE", *(["TF32"] if allowed else [])]


@pytest.mark.parametrize("sources", [("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"), ("JIT_CONVOLUTIONS",)])
def test_kernels_come_from_the_sources_that_are_named_and_no_others(
    sources: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources are read back. A source of the default that is not named is left out."""
    assert len(sources) == 1 or sources == builder._DIRECT
    monkeypatch.setattr(builder, "_DIRECT", sources)
    assert built(tmp_path, dataclasses.replace(WANTED, precision="exact")).record.tactic_sources == list(sources)


@pytest.mark.parametrize("accepts", [False, True])
def test_sources_of_kernels_that_do_not_stay_set_end_the_build(accepts: bool) -> None:
    class Keeps:
        """A config that keeps a different source from the one it was given."""

        def set_tactic_sources(self, sources: int) -> bool:
            return accepts

        def get_tactic_sources(self) -> int:
            return 0b111

    with listening(trt) as said, pytest.raises(NotHereError, match="does not let its tactics be chosen"):
        _Build(RTX, trt, said)._allow_direct_tactics(Keeps())  # type: ignore[arg-type]


def test_a_flag_that_does_not_stay_set_ends_the_build() -> None:
    """TensorRT refuses EXCLUDE_LEAN_RUNTIME without VERSION_COMPATIBLE in a message only."""
    with listening(trt) as said:
        build = _Build(RTX, trt, said)
        config = build.builder.create_builder_config()
        with pytest.raises(NotHereError, match=r"does not let EXCLUDE_LEAN_RUNTIME be True: .*kEXCLUDE_LEAN_RUNTIME can only be set if"):
            build._set(config, trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME, True)


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    watcher = Counts()
    engine_from_onnx(RTX, perceptron(tmp_path), "model.onnx", WANTED, watcher)
    assert sum(watcher.steps) == PARTS
    assert len(watcher.steps) > 1
    assert min(watcher.steps) > 0


def test_an_interrupt_during_the_build_is_an_interrupt_after_it(tmp_path: Path) -> None:
    class Impatient:
        def advance(self, steps: int = 1) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine_from_onnx(RTX, perceptron(tmp_path), "model.onnx", WANTED, Impatient())


def test_the_monitor_counts_the_outermost_phase_only() -> None:
    watcher = Counts()
    monitor = monitor_of(trt, Course(watcher))
    monitor.phase_start("build", None, 2)
    monitor.phase_start("inner", "build", 5)
    assert monitor.step_complete("inner", 4)
    assert watcher.steps == []
    monitor.step_complete("build", 0)
    monitor.phase_start("later", None, 7)
    monitor.step_complete("later", 6)
    monitor.phase_finish("build")
    assert watcher.steps == [PARTS // 2, PARTS // 2]


class TestFailures:
    """Each failure is one line that says what happened and what to do."""

    def refused(self, kind: type[Exception], onnx: bytes, wanted: EngineRequest = WANTED) -> str:
        with pytest.raises(kind) as caught:
            engine_from_onnx(RTX, onnx, "model.onnx", wanted, Counts())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_node_that_it_does_not_have(self) -> None:
        text = self.refused(UsageError, one_node("Bernoulli", name="chance"))
        assert text == ("model.onnx: tensorrt-rtx cannot take it: node 0 (Bernoulli, chance): not supported; export only what its parser supports")

    def test_a_node_of_a_foreign_domain_finds_no_plugin(self) -> None:
        assert "node 0 (Foo, odd): creator && " in self.refused(UsageError, one_node("Foo", domain="far.away", name="odd"))

    @pytest.mark.parametrize("content", [b"\x01\x02\x03garbage", b"ONNX" * 100])
    def test_bytes_that_are_no_onnx(self, content: bytes) -> None:
        assert "Failed to parse the ONNX model" in self.refused(UsageError, content)

    def test_an_empty_file_parses_and_is_refused_all_the_same(self) -> None:
        assert self.refused(UsageError, b"") == "model.onnx has 0 inputs and 0 outputs, expected one input and at least one output; export it again"

    @pytest.mark.parametrize("batches", [(0, 1, 1), (2, 1, 4), (1, 5, 4)])
    def test_a_profile_out_of_order(self, batches: tuple[int, int, int]) -> None:
        with pytest.raises(UsageError, match=r"1 <= min <= best <= max, got \d, \d, \d; change export.batch"):
            Batches(*batches)

    def test_a_profile_that_excludes_the_batch_of_the_file(self) -> None:
        """A file whose batch is fixed at 8 cannot be built for 1 to 16."""
        text = self.refused(NotHereError, one_node("Relu", sizes=(8, 4)))
        assert "could not build the engine" in text
        assert "profile" in text

    def test_too_little_memory(self, tmp_path: Path) -> None:
        text = self.refused(NotHereError, convolution(), dataclasses.replace(WANTED, workspace=0))
        assert "requires workspace memory greater than 0" in text
        assert text.endswith("; give it more memory, or a smaller export.batch.max")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"error_on_cache_miss": True}, "times nothing while it builds.*leave out --error-on-cache-miss"),
            ({"version_compatible": True}, "builds no version-compatible engines"),
            ({"gpus": "ampere+"}, "runs on every GPU that it supports anyway"),
        ],
    )
    def test_what_this_flavour_has_no_use_for(self, change: dict[str, Any], words: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=words):
            built(tmp_path, dataclasses.replace(WANTED, **change))

    def test_the_full_tensorrt_without_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(NotHereError, match=r"tensorrt cannot be imported .*; pip install"):
            engine_from_onnx(FLAVOURS["tensorrt"], b"", "model.onnx", WANTED, Counts())

    def test_a_tensorrt_that_is_too_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        old: Any = ModuleType("tensorrt")
        old.__version__ = "10.13.0.35"
        monkeypatch.setitem(sys.modules, "tensorrt", old)
        with pytest.raises(NotHereError, match=r"tensorrt 10\.13\.0\.35 is installed, at least 11\.0 is needed"):
            FLAVOURS["tensorrt"].load()


def convolution() -> bytes:
    """A network that needs scratch memory."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(16, 3, 3, 3)).astype(np.float32)
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["y"])]
    graph = helper.make_graph(nodes, "one", ends[:1], ends[1:], [numpy_helper.from_array(weights, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


class TestTimingCache:
    """TensorRT-RTX times nothing: its cache operations do nothing and say so.

    What runs here is the code's real path through them.
    """

    @pytest.mark.filterwarnings("error")
    def test_rtx_is_not_asked_for_one(self, tmp_path: Path) -> None:
        engine = built(tmp_path)
        assert (engine.cache, engine.record.timing_cache) == (None, None)

    def test_its_own_cache_operations_are_still_without_effect(self) -> None:
        config = trt.Builder(logger_of(trt)).create_builder_config()
        with pytest.warns(DeprecationWarning, match="Timing cache operations are no-ops"):
            assert config.create_timing_cache(b"").queryKeys() == []

    @pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
    @pytest.mark.parametrize("demanding", [False, True])
    def test_a_flavour_that_times_gives_the_cache_back_and_takes_it_again(
        self, demanding: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The steps of the full flavour with RTX's objects.

        Flags are read back, and contents are passed on and recorded.
        """
        timing = dataclasses.replace(RTX, times_tactics=True)
        monkeypatch.setattr("export.tensorrt.builder._gpu_for", lambda flavour: None)
        first = engine_from_onnx(timing, perceptron(tmp_path), "model.onnx", WANTED, Counts())
        assert first.cache
        assert first.record.timing_cache is not None
        assert (first.record.timing_cache.before, first.record.timing_cache.after) == (None, sha256_of(first.cache))
        again = engine_from_onnx(
            timing, perceptron(tmp_path), "model.onnx", dataclasses.replace(WANTED, error_on_cache_miss=demanding), Counts(), first.cache
        )
        assert again.record.timing_cache is not None
        assert again.record.timing_cache.before == sha256_of(first.cache)
        assert again.record.flags["EDITABLE_TIMING_CACHE"] is True
        assert again.record.flags["ERROR_ON_TIMING_CACHE_MISS"] is demanding

    def test_a_flavour_that_times_wants_a_gpu(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def none() -> None:
            raise NotHereError("no GPU")

        monkeypatch.setattr("export.tensorrt.builder.gpu_here", none)
        with pytest.raises(NotHereError, match="builds on the GPU that the engine is for: no GPU"):
            engine_from_onnx(dataclasses.replace(RTX, times_tactics=True), perceptron(tmp_path), "model.onnx", WANTED, Counts())


def test_the_record_in_words(tmp_path: Path) -> None:
    record = built(tmp_path).record
    assert record.rebuild == "pipeline export BUNDLE --tensorrt --flavour rtx --precision float32"
    assert record.built_for == f"tensorrt-rtx {trt.__version__}"
