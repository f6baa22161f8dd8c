"""Comparing two bundles: a difference of one bit is found, and only what may differ is left out."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from benchmarks.house import same_bundles
from benchmarks.house.same_bundles import CASES, COMMANDS, Found, Status, compared, config_of, same, table, told
from pipeline.config import parse_config

EPOCH = {"epoch": 1, "test_loss": 0.25, "seconds": 0.5, "images_per_second": 100.0, "peak_memory_bytes": 1000}
VERIFICATION: dict[str, Any] = {
    "verdict": "pass",
    "links": [{"from": "a", "to": "b", "status": "passed", "max_abs": 0.0, "reason": "2 of 3 values have other bits", "place": None}],
    "environment": {"python": "3.11.7", "packages": {"torch": "2.14.1"}, "num_cpus": 2},
    "stages": {"folded graph": {"version": "2.14.1", "threads": 1}},
    "files": {},
}
REPORT = (
    '<meta content="{digest}"><p>2 epochs in 0.42 s of training steps; 7,302 images per second; error 1.5e-06</p>'
    "<dt>packages</dt><dd><dl><dt>torch</dt><dd>2.14.1</dd></dl></dd><dt>num_cpus</dt><dd>2</dd>"
)
Edit = Callable[[dict[str, Any]], None]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def bundle(folder: Path, edit: Edit = lambda parts: None) -> Path:
    """A small bundle of parts that `edit` may change before hashes are taken."""
    parts: dict[str, Any] = {
        "weights": np.array([1.0, 2.0, 3.0], np.float32),
        "epoch": dict(EPOCH),
        "verification": json.loads(json.dumps(VERIFICATION)),
        "report": REPORT,
        "config": "method: {name: czmig}\n",
        "manifest": {"versions": {"torch": "2.14.1"}, "metrics": {"seconds": 0.5, "test_loss": 0.25}},
    }
    edit(parts)
    files = {
        "weights.safetensors": save({"w": parts["weights"]}),
        "training/metrics.jsonl": (json.dumps(parts["epoch"]) + "\n").encode(),
        "training/config.yaml": parts["config"].encode(),
    }
    files["model.onnx"] = b"onnx" + sha256(files["training/config.yaml"]).encode() + files["weights.safetensors"]
    parts["verification"]["files"] = {name: sha256(content) for name, content in files.items() if name != "training/metrics.jsonl"}
    files["verification.json"] = json.dumps(parts["verification"]).encode()
    files["report.html"] = parts["report"].replace("{digest}", sha256(files["verification.json"])).encode()
    entries = {name: {"sha256": sha256(content), "size": len(content)} for name, content in files.items()}
    files["manifest.json"] = json.dumps({**parts["manifest"], "files": entries}).encode()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def found(tmp_path: Path, edit: Edit = lambda parts: None) -> dict[str, Found]:
    each = compared("case", bundle(tmp_path / "before"), bundle(tmp_path / "after", edit))
    return {one.file: one for one in each}


def statuses(tmp_path: Path, edit: Edit) -> dict[str, Status]:
    return {name: each.status for name, each in found(tmp_path, edit).items() if each.status != "equal"}


def test_equal_bundles_are_the_same(tmp_path: Path) -> None:
    each = found(tmp_path)
    assert len(each) == 7
    assert {one.status for one in each.values()} == {"equal"}
    assert same(list(each.values()))


def test_nothing_is_not_the_same(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert not same(compared("case", tmp_path / "empty", tmp_path / "empty"))


def test_the_last_bit_of_a_weight_is_found(tmp_path: Path) -> None:
    def last_bit(parts: dict[str, Any]) -> None:
        parts["weights"].view(np.uint32)[1] ^= 1

    each = found(tmp_path, last_bit)
    assert {name for name, one in each.items() if one.status == "DIFFERS"} == {"weights.safetensors", "model.onnx"}
    assert each["weights.safetensors"].differences[0].startswith("1 bytes differ, first at ")
    assert not same(list(each.values()))
    assert any(line.startswith("DIFFERS: case: weights.safetensors: 1 bytes") for line in told(each.values()))
    assert "| case | model.onnx | DIFFERS |" in table(list(each.values()))


def _other_times(parts: dict[str, Any]) -> None:
    parts["epoch"] |= {"seconds": 0.6, "images_per_second": 90.0, "peak_memory_bytes": 2000}
    parts["manifest"]["metrics"]["seconds"] = 0.6
    parts["report"] = REPORT.replace("0.42", "0.4").replace("7,302", "6,900")


def _other_versions(parts: dict[str, Any]) -> None:
    parts["verification"]["environment"]["packages"]["torch"] = "2.15.0"
    parts["verification"]["stages"]["folded graph"]["version"] = "2.15.0"
    parts["verification"]["environment"]["packages"]["tensorrt-rtx"] = "1.7.1"  # documented: only one tree lists it
    parts["manifest"]["versions"]["torch"] = "2.15.0"
    parts["report"] = REPORT.replace("<dt>torch</dt><dd>2.14.1</dd>", "<dt>tensorrt-rtx</dt><dd>1.7.1</dd><dt>torch</dt><dd>2.15.0</dd>")


def test_times_and_versions_may_differ(tmp_path: Path) -> None:
    varies = "equal but for what varies"
    assert statuses(tmp_path / "times", _other_times) == dict.fromkeys(("training/metrics.jsonl", "manifest.json", "report.html"), varies)
    assert statuses(tmp_path / "versions", _other_versions) == dict.fromkeys(("verification.json", "manifest.json", "report.html"), varies)


def test_wording_may_differ_and_is_told(tmp_path: Path) -> None:
    def reworded(parts: dict[str, Any]) -> None:
        parts["verification"]["links"][0]["reason"] = "other bits in 2 of 3 values"
        parts["report"] = REPORT.replace("images per second", "images per second in the median")

    each = found(tmp_path, reworded)
    assert {each[name].status for name in ("verification.json", "report.html")} == {"equal but for wording"}
    assert same(list(each.values()))
    assert "worded differently:\n  before: 2 of 3 values have other bits\n  after:  other bits in 2 of 3 values" in list(told(each.values()))


@pytest.mark.parametrize(
    ("file", "edit"),
    [
        ("verification.json", lambda parts: parts["verification"]["links"][0].update(reason="3 of 3 values have other bits")),
        ("verification.json", lambda parts: parts["verification"]["links"][0].update(status="not run")),
        ("verification.json", lambda parts: parts["verification"]["links"][0].update(max_abs=0)),  # 0 is not 0.0
        ("verification.json", lambda parts: parts["verification"]["environment"].update(num_cpus=4)),
        ("verification.json", lambda parts: parts["verification"]["environment"]["packages"].update(onnx="1.23.2")),
        ("verification.json", lambda parts: parts["verification"]["links"].append({})),
        ("verification.json", lambda parts: parts.update(verification=dict(reversed(parts["verification"].items())))),  # the order of the keys
        ("training/metrics.jsonl", lambda parts: parts["epoch"].update(test_loss=0.25000000000000006)),
        ("training/metrics.jsonl", lambda parts: parts["epoch"].pop("seconds")),
        ("manifest.json", lambda parts: parts["manifest"]["metrics"].update(test_loss=0.3)),
        ("report.html", lambda parts: parts.update(report=REPORT.replace("1.5e-06", "1.6e-06"))),
        ("report.html", lambda parts: parts.update(report=REPORT.replace("<dd>2</dd>", "<dd>4</dd>"))),
        ("training/config.yaml", lambda parts: parts.update(config="method: {name: czmi}\n")),
        ("training/config.yaml", lambda parts: parts.update(config="method:  {name: czmig}\n")),
    ],
)
def test_what_may_not_differ_is_found(tmp_path: Path, file: str, edit: Edit) -> None:
    each = found(tmp_path, edit)
    assert each[file].status == "DIFFERS"
    assert each[file].differences


def test_a_file_more_or_less_is_found(tmp_path: Path) -> None:
    before, after = bundle(tmp_path / "before"), bundle(tmp_path / "after")
    (after / "labels.txt").write_text("0\n", encoding="utf-8")
    (after / "report.html").unlink()
    each = {one.file: one.differences for one in compared("case", before, after) if one.status == "DIFFERS"}
    assert each == {"labels.txt": ("only after",), "report.html": ("only before",)}


def test_a_hash_in_the_manifest_that_is_not_that_of_the_file_is_found(tmp_path: Path) -> None:
    before, after = bundle(tmp_path / "before"), bundle(tmp_path / "after")
    (after / "manifest.json").write_text((after / "manifest.json").read_text().replace(sha256((after / "model.onnx").read_bytes()), "0" * 64))
    assert {one.file for one in compared("case", before, after) if one.status == "DIFFERS"} == {"manifest.json"}


def test_a_documented_change_of_the_config_may_change_its_hash_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def longer(parts: dict[str, Any]) -> None:
        parts["config"] += "new: 1\n"

    documented = {"config.yaml": {("new",): "a new key"}, "manifest.json": {("files", "training/config.yaml", "size"): "a new key"}}
    monkeypatch.setattr(same_bundles, "DOCUMENTED", documented)
    different = ("training/config.yaml", "model.onnx", "verification.json", "report.html", "manifest.json")
    assert statuses(tmp_path / "config", longer) == dict.fromkeys(different, "equal but for what varies")

    def longer_and_wrong(parts: dict[str, Any]) -> None:
        longer(parts)
        parts["weights"].view(np.uint32)[1] ^= 1

    assert statuses(tmp_path / "weights", longer_and_wrong)["model.onnx"] == "DIFFERS"


def test_the_cases_have_every_method_and_both_ways_to_a_bundle() -> None:
    methods = {parse_config(config_of(case), case.name, ()).method.name for case in CASES if "method" in case.config}
    assert methods == {"batchnorm", "czmi", "equinorm", "fixup", "groupnorm", "mimicnorm", "nonorm", "scaledws", "skipinit", "weightnorm"}
    assert CASES[0].name == "quickstart"  # which uses czmig
    assert {case.command for case in CASES} == COMMANDS.keys()
