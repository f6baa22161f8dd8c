"""Engines in bundles, with the real builder of TensorRT-RTX.

What a bundle holds, what its chain says, and what must not go wrong.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from commands import Done, pipeline
from onnx import numpy_helper

from export.bundle import Manifest, open_bundle, write_manifest
from export.errors import NotHereError, UsageError
from export.files import sha256_of, sole_use
from export.tensorrt.builder import Engine
from export.tensorrt.record import EngineRecord, Shapes, parsed_record
from export.tensorrt.runtime import FLAVOURS, Gpu
from pipeline import run
from pipeline.bundle import chain, engines
from pipeline.bundle.engines import BuiltEngine, EngineOptions, build_engines, engines_of_a_run
from pipeline.cli.console import Console
from pipeline.config import parse_config
from pipeline.config.sections import Batch
from pipeline.run import _facts
from pipeline.run_request import EngineExportRequest

pytest.importorskip("tensorrt_rtx", reason="not run: tensorrt-rtx is not installed")
ROOT = Path(__file__).parents[3]
Capture = pytest.CaptureFixture[str]
Content = dict[str, bytes]


@pytest.fixture(scope="module")
def with_engines(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with engines in all precisions but TF32, made by the command's own function.

    Do not change it.
    """
    bundle = Path(shutil.copytree(finished_run / "bundle", tmp_path_factory.mktemp("with engines") / "bundle"))
    options = EngineOptions(precisions=("float32", "exact", "float16"))
    outcome = run.carry_out(EngineExportRequest(bundle=bundle, options=options), Console())
    assert outcome.failure is None
    return bundle


@pytest.fixture
def engined(with_engines: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(with_engines, tmp_path / "bundle"))


def content_of(folder: Path) -> Content:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rehash(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    for name, entry in manifest["files"].items():
        data = (bundle / name).read_bytes()
        entry.update(sha256=sha256_of(data), size=len(data))
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_the_bundle_lists_every_engine_with_a_record_that_fits(with_engines: Path) -> None:
    bundle = open_bundle(with_engines)
    names = {"float32-rtx": "model.onnx", "exact-rtx": "model.exact.trt.onnx", "float16-rtx": "model.float16.onnx"}
    assert {name for name in bundle.manifest.files if name.startswith("engines/")} == {
        f"engines/{name}.{end}" for name in names for end in ("plan", "json")
    }
    for name, source in names.items():
        record = parsed_record(bundle.read(f"engines/{name}.json"), name)
        assert (record.plan, record.onnx.name, record.onnx.sha256) == (bundle.hashes[f"engines/{name}.plan"], source, bundle.hashes[source])
        assert record.precision == name.split("-")[0]
        assert record.flags["TF32"] is False
        assert record.batches == range(1, 257)
        assert record.second_build is not None
        assert (record.second_build.bytes_that_differ > 0) == (record.second_build.plan != record.plan)


def test_the_verdict_has_a_link_to_each_and_says_that_it_did_not_run(with_engines: Path) -> None:
    verdict = json.loads((with_engines / "verification.json").read_bytes())
    links = {(link["from"], link["to"]): link for link in verdict["links"]}
    assert links["ONNX file", "float16 ONNX file"]["status"] == "passed"
    wanted = {
        ("ONNX file", "engine float32-rtx"): "budget",
        ("float16 ONNX file", "engine float16-rtx"): "budget",
        ("exact ONNX file for TensorRT", "engine exact-rtx"): "bitwise",
    }
    for ends, required in wanted.items():
        link = links[ends]
        assert (link["runtime"], link["required"], link["status"], link["observed"], link["samples"]) == (
            "tensorrt-rtx",
            required,
            "not run",
            None,
            0,
        )
        assert link["reason"].startswith("no NVIDIA GPU is available")
    assert {name for name in verdict["files"] if name.startswith("engines/")} == {
        "engines/float32-rtx.plan",
        "engines/float16-rtx.plan",
        "engines/exact-rtx.plan",
    }
    checks = [check for check in verdict["invariance"] if check["stage"].startswith("engine ")]
    assert {check["status"] for check in checks} == {"not run"}
    assert sum(check["check"] == "builds" for check in checks) == 3
    assert sum(check["check"] == "profile" for check in checks) == 3


def test_float16_has_a_budget_of_its_own(with_engines: Path) -> None:
    """The budget is 2^13 times as wide as float32's, the ratio of their unit roundoffs.

    A file in float16 would not pass as float32.
    """
    errors = {error["stage"]: error for error in json.loads((with_engines / "verification.json").read_bytes())["errors"]}
    half, single = errors["float16 ONNX file"], errors["ONNX file"]
    assert half["budget"]["max"] == pytest.approx(single["budget"]["max"] * 2**13)
    assert single["budget"]["max"] < half["max"] <= half["budget"]["max"]


def test_batches_are_tried_over_the_whole_profile(with_engines: Path) -> None:
    record = parsed_record((with_engines / "engines" / "exact-rtx.json").read_bytes(), "here")
    assert chain._sizes_over(record) == (1, 2, 4, 8, 16, 32, 64, 128, 255, 256)
    odd = Shapes(least=[3, 1, 8, 8], best=[5, 1, 8, 8], most=[20, 1, 8, 8])
    assert chain._sizes_over(record.model_copy(update={"profile": {"image": odd}})) == (3, 4, 5, 8, 16, 19, 20)


def test_a_bundle_without_engines_says_so(finished_run: Path) -> None:
    links = json.loads((finished_run / "bundle" / "verification.json").read_bytes())["links"]
    absent = [(link["from"], link["to"], link["required"]) for link in links if link["runtime"] == "tensorrt"]
    assert absent == [("ONNX file", "tensorrt float32", "budget"), ("exact ONNX file for TensorRT", "exact tensorrt", "bitwise")]
    assert all(link["status"] == "not run" for link in links if link["runtime"] == "tensorrt")


class TestCommand:
    def test_builds_into_the_bundle(self, bundle: Path, capfd: Capture) -> None:
        done = pipeline(capfd, "export", bundle, "--tensorrt", "--precision", "exact", "--one-build")
        assert done.code == 0, done.err
        assert "engines: exact-rtx" in done.out
        record = parsed_record(open_bundle(bundle).read("engines/exact-rtx.json"), "here")
        assert record.second_build is None
        assert record.precision == "exact"

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["--tensorrt", "--flavour", "tensorrt"], 4, "tensorrt cannot be imported"),
            (["--tensorrt", "--require", "tensorrt-rtx"], 4, "tensorrt-rtx was requested: no NVIDIA GPU is available"),
            (["--tensorrt", "--error-on-cache-miss"], 2, "times nothing while it builds"),
            (["--tensorrt", "--precision", "int8"], 2, "'int8' is not one of"),
            (["--precision", "exact"], 2, "go with --tensorrt"),
            (["--tensorrt", "--weights", "w"], 2, "are for a network trained elsewhere"),
        ],
    )
    def test_what_cannot_be_is_one_line_and_leaves_the_bundle_as_it_was(
        self, arguments: list[str], code: int, words: str, bundle: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        before = content_of(bundle)
        done = pipeline(capfd, "export", bundle, *arguments)
        assert done.code == code
        assert words in done.error
        assert content_of(bundle) == before
        assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]

    def test_engines_that_fail_never_take_the_place_of_the_bundle(self, bundle: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        """A float16 file that is a different function: exit 3, old bundle untouched, new one kept
        as failed."""
        wrong = Path(bundle / "model.onnx").read_bytes()
        monkeypatch.setattr(engines, "float16_onnx", lambda content: scaled(wrong))
        before = content_of(bundle)
        done = pipeline(capfd, "export", bundle, "--tensorrt", "--precision", "float16", "--one-build")
        assert done.code == 3
        assert "ONNX file -> float16 ONNX file failed" in done.error
        assert content_of(bundle) == before
        assert open_bundle(bundle.with_name("bundle-failed")).has("engines/float16-rtx.plan")

    def test_a_kill_during_the_build_leaves_the_old_bundle_and_nothing_else_that_can_be_seen(self, bundle: Path) -> None:
        before, folder = content_of(bundle), bundle.parent
        process = subprocess.Popen([sys.executable, "-m", "pipeline", "export", str(bundle), "--tensorrt", "--one-build"], cwd=ROOT)
        try:
            while not any(folder.glob(".in-work.*/engines/*")):
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.01)
        finally:
            process.kill()
            process.wait()
        assert content_of(bundle) == before
        assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == ["bundle"]
        with sole_use(folder):  # the next run's first step
            assert {path.name for path in folder.iterdir()} == {"bundle", ".lock"}


def scaled(content: bytes) -> bytes:
    """The same network with one layer's weights twice as large."""
    model = onnx.load_model_from_string(content)
    tensor = next(each for each in model.graph.initializer if len(each.dims) == 4)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
    return model.SerializeToString()


class TestDamage:
    """A bundle whose engine is wrong: exit 5 before TensorRT is used, whatever is available."""

    def refused(self, bundle: Path, capfd: Capture) -> Done:
        done = pipeline(capfd, "verify", bundle)
        assert done.code == 5
        assert done.error
        return done

    @pytest.mark.parametrize(
        "damage",
        [lambda plan: plan[:-100], lambda plan: plan[:500] + bytes([plan[500] ^ 4]) + plan[501:], lambda plan: bytes(range(256)) * 20],
        ids=["truncated", "a flipped byte", "other bytes"],
    )
    @pytest.mark.parametrize("hashed", [False, True])
    def test_a_plan(self, damage: Callable[[bytes], bytes], hashed: bool, engined: Path, capfd: Capture) -> None:
        """This is found even if the manifest was made to agree: the record still shows it."""
        path = engined / "engines" / "exact-rtx.plan"
        path.write_bytes(damage(path.read_bytes()))
        if hashed:
            rehash(engined)
        error = self.refused(engined, capfd).error
        assert ("its record says" if hashed else "the manifest says") in error

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"onnx": {"name": "model.onnx", "sha256": "0" * 64}}, "was built from a model.onnx with sha256 0000000000000000"),
            ({"onnx": {"name": "other.onnx", "sha256": "0" * 64}}, "is built from model.onnx, found other.onnx"),
            ({"flavour": "tensorrt"}, "is an engine of tensorrt-rtx, its record says tensorrt"),
            ({"precision": "exact"}, "a exact engine is built from model.exact.trt.onnx"),
            ({"format_version": 2}, "is not the record of an engine: at format_version"),
            ({"surprise": 1}, "is not the record of an engine: at surprise"),
            ({"plan_size": -1}, "is not the record of an engine: at plan_size"),
            ({"version": "newest"}, "is not the record of an engine: at version"),
            ({"profile": {}}, "is not the record of an engine: at the top: Value error, expected a profile of image"),
            ({"profile": {"image": {"least": [2, 1, 8, 8], "best": [1, 1, 8, 8], "most": [4, 1, 8, 8]}}}, "expected least <= best <= most"),
            ({"profile": {"image": {"least": [1], "best": [1], "most": [1]}}}, "the profile does not fit image"),
            ({"inputs": []}, "expected one input and outputs"),
            ({"outputs": [{"name": "logits", "dtype": "float32", "shape": [10]}]}, "expected the batch as the first size"),
        ],
    )
    def test_a_record(self, change: dict[str, Any], words: str, engined: Path, capfd: Capture) -> None:
        path = engined / "engines" / "float32-rtx.json"
        path.write_text(json.dumps({**json.loads(path.read_bytes()), **change}), encoding="utf-8")
        rehash(engined)
        assert words in self.refused(engined, capfd).error

    @pytest.mark.parametrize("content", [b"", b"[]", b"null", b'"engine"', b"{", b"\xff\xfe", b"[" * 100_000, b"{" * 10 + b"NaN"], ids=range(8))
    def test_a_record_that_is_none(self, content: bytes, engined: Path, capfd: Capture) -> None:
        (engined / "engines" / "float32-rtx.json").write_bytes(content)
        rehash(engined)
        assert "is not the record of an engine: at the top: " in self.refused(engined, capfd).error

    def test_a_timing_cache_that_is_not_the_one_of_the_manifest(self, engined: Path, capfd: Capture) -> None:
        cache = engined / "engines" / "tensorrt-nvidia_h100.timings"
        cache.write_bytes(b"timings")
        write_manifest(engined, open_bundle_facts(engined))
        cache.write_bytes(b"others!")
        done = pipeline(capfd, "export", engined, "--tensorrt")
        assert (done.code, "tensorrt-nvidia_h100.timings" in done.error) == (5, True)

    def test_an_engine_without_a_record(self, engined: Path, capfd: Capture) -> None:
        (engined / "engines" / "float32-rtx.json").unlink()
        manifest = open_bundle_facts(engined)
        write_manifest(engined, manifest)
        assert "lists no engines/float32-rtx.json" in self.refused(engined, capfd).error

    def test_an_engine_for_another_version_is_said_and_not_damage(self, engined: Path, capfd: Capture) -> None:
        path = engined / "engines" / "float32-rtx.json"
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "version": "1.5.0.1"}), encoding="utf-8")
        rehash(engined)
        done = pipeline(capfd, "verify", engined)
        assert done.code == 0
        assert "engine float32-rtx: not run: " in done.out
        assert "was built for tensorrt-rtx 1.5.0.1" in done.out
        required = pipeline(capfd, "verify", engined, "--require", "tensorrt-rtx")
        assert required.code == 4
        assert "build it again: pipeline export BUNDLE --tensorrt --flavour rtx --precision float32" in required.error


def open_bundle_facts(bundle: Path) -> Any:
    return _facts(Manifest.model_validate_json((bundle / "manifest.json").read_bytes()))


class TestTimings:
    """The cache of a flavour that times, with a made-up builder.

    It is written next to the engines and given to the next build.
    """

    def test_are_kept_beside_the_engine_and_given_to_the_next_build_but_not_to_the_second_one(
        self, with_engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        record: EngineRecord = parsed_record((with_engines / "engines" / "float32-rtx.json").read_bytes(), "here")
        given: list[bytes | None] = []

        def made_up(flavour: Any, onnx: bytes, name: str, wanted: Any, watcher: Any, cache: bytes | None = None) -> Engine:
            given.append(cache)
            return Engine(b"vtrt", record, b"timings %d" % len(given))

        (tmp_path / "model.onnx").write_bytes(b"onnx")
        monkeypatch.setattr(engines, "engine_from_onnx", made_up)
        monkeypatch.setattr(engines, "building_flavour", lambda asked: dataclasses.replace(FLAVOURS["rtx"], times_tactics=True))
        monkeypatch.setattr(engines, "gpu_here", lambda: Gpu("NVIDIA H100 80GB", "9.0", 1, "1", "13.0"))

        def build(**options: Any) -> list[BuiltEngine]:
            return build_engines(tmp_path, EngineOptions(precisions=("float32",), **options), Batch(), Console())

        build()
        assert (tmp_path / "engines" / "rtx-nvidia_h100_80gb.timings").read_bytes() == b"timings 1"
        (demanding,) = build(error_on_cache_miss=True)
        assert demanding.second is None
        assert given == [None, None, b"timings 1"]
        assert (tmp_path / "engines" / "rtx-nvidia_h100_80gb.timings").read_bytes() == b"timings 3"


class TestOfARun:
    """What a run builds by itself when a GPU and a TensorRT are reported as available."""

    def built(self, monkeypatch: pytest.MonkeyPatch, folder: Path, wanted: str) -> list[str]:
        def fails(folder: Path, options: EngineOptions, batch: Batch, console: Console) -> list[BuiltEngine]:
            if options.precisions == ("float32",):
                raise NotHereError("could not build the engine: no memory")
            return [BuiltEngine("exact", Engine(b"", None, None), None)]  # type: ignore[arg-type]

        (folder / "model.exact.trt.onnx").write_bytes(b"")
        monkeypatch.setattr(engines, "build_engines", fails)
        config = parse_config({"method": {"name": "nonorm"}, "export": {"tensorrt": wanted == "true" or wanted}})
        return [each.name for each in engines_of_a_run(folder, FLAVOURS["tensorrt"], config.export, Console())]

    def test_a_build_that_fails_costs_that_engine_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.built(monkeypatch, tmp_path, "auto") == ["exact"]
        assert "no float32 engine: could not build the engine: no memory" in capsys.readouterr().err

    def test_it_ends_a_run_that_will_not_do_without(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(NotHereError, match="no memory"):
            self.built(monkeypatch, tmp_path, "true")


def test_an_engine_of_the_full_flavour_is_named_after_its_gpu(with_engines: Path) -> None:
    record = parsed_record((with_engines / "engines" / "float32-rtx.json").read_bytes(), "here")
    on = record.built_on.model_copy(update={"gpu": "NVIDIA H100 80GB HBM3", "capability": "9.0"})
    assert engines._name(record.model_copy(update={"flavour": "tensorrt", "built_on": on})) == "float32-tensorrt-nvidia_h100_80gb_hbm3"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch": {"min": 2}}, "export.batch.min"),
        ({"batch": {"max": 16}}, "export.batch.max"),
        ({"batch": {"max": 2**31}}, "export.batch.max: got 2147483648, .* at most 2147483647"),
        ({"batch": {"best": 300}}, "best 300 is above max 256"),
        ({"batch": {"best": 32, "max": 40}}, "export.batch.max 40 excludes verify.batch_size 64"),
        ({"tensorrt": "yes please"}, "export.tensorrt"),
    ],
)
def test_a_config_whose_profile_excludes_what_is_verified_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_config({"method": {"name": "nonorm"}, "export": values})


def test_no_engine_where_a_gpu_and_tensorrt_are_here_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "runnable_flavour", lambda: FLAVOURS["tensorrt"])
    assert chain._why_no_engine() == "there is no tensorrt engine; tensorrt is available, so build one: pipeline export BUNDLE --tensorrt"
