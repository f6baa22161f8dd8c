import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import relist

from export.bundle import Facts, TensorEntry, open_bundle, write_manifest
from export.errors import DamagedError, UsageError
from export.preprocess import recipe_for

FACTS = Facts(
    network="small",
    method="czmig",
    input=TensorEntry(name="image", dtype="uint8", shape=[None, 1, 8, 8]),
    output=TensorEntry(name="logits", dtype="float32", shape=[None, 10]),
    classes=[str(digit) for digit in range(10)],
    recipe=recipe_for((1, 8, 8)),
    versions={"torch": "2"},
    device="cpu",
    training_precision="float32",
    metrics={"test_accuracy": 0.97},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "training").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"the model")
    (tmp_path / "training" / "config.yaml").write_bytes(b"the config")
    write_manifest(tmp_path, FACTS)
    return tmp_path


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_bundle_reads_back(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle.read("training/config.yaml") == b"the config"
    assert set(bundle.hashes) == {"model.onnx", "training/config.yaml"}
    assert Facts.model_validate(bundle.manifest.model_dump(exclude={"files", "format_version"})) == FACTS
    assert bundle.has("model.onnx")
    assert not bundle.has("manifest.json")


def damage_a_byte(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"the mODel")


def shorten(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"the")


def remove(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def link(folder: Path) -> None:
    (folder / "model.onnx").rename(folder / "elsewhere")
    (folder / "model.onnx").symlink_to(folder / "elsewhere")


def link_the_folder(folder: Path) -> None:
    (folder / "training").rename(folder / "elsewhere")
    (folder / "training").symlink_to(folder / "elsewhere")


def make_a_folder(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (damage_a_byte, "model.onnx has sha256"),
        (shorten, "has 3 bytes, the manifest says 9"),
        (remove, "is listed in the manifest but not there"),
        (link, "is a link"),
        (link_the_folder, "is a link"),
        (make_a_folder, "is not a plain file"),
        (lambda f: (f / "extra").touch(), "extra is not listed"),
        (lambda f: (f / ".DS_Store").symlink_to("manifest.json"), ".DS_Store is not listed"),
        (lambda f: (f / "training" / "evil.py").touch(), "training/evil.py is not listed"),
        (lambda f: edit(f, lambda m: m.update(device="banana")), "at device"),
        (lambda f: edit(f, lambda m: m.update(metrics={"test_accuracy": float("nan")})), "not finite"),
        (lambda f: edit(f, lambda m: m["input"].update(shape=[None, 1, -8, 8])), "at input.shape"),
        (lambda f: (f / "manifest.json").write_bytes(b"{"), "is not a manifest of format 2"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff"), "is not a manifest of format 2"),
        (lambda f: edit(f, lambda m: m.update(format_version=3)), "at format_version"),
        (lambda f: edit(f, lambda m: m.update(unknown=1)), "at unknown"),
        (lambda f: edit(f, lambda m: m.pop("classes")), "at classes"),
        (lambda f: edit(f, lambda m: m.pop("recipe")), "is not a manifest of format 2: at recipe: Field required; export the bundle again"),
        (lambda f: edit(f, lambda m: m["recipe"].update(version=2)), "at recipe: Value error, the recipe has version 2; this code follows version 1"),
        (lambda f: edit(f, lambda m: m["recipe"].update(filter="Lanczos")), "recipe: filter is 'Lanczos'"),
        (lambda f: edit(f, lambda m: m["recipe"].update(height=0)), "recipe: height is 0"),
        (lambda f: edit(f, lambda m: m["recipe"].update(width=9)), "gives squares, got height 8 and width 9"),
        (lambda f: edit(f, lambda m: m["recipe"].update(resize=9)), "goes with resize"),
        (lambda f: edit(f, lambda m: m["recipe"].update(rounding="up")), "recipe: rounding is 'up'"),
        (lambda f: edit(f, lambda m: m["recipe"].pop("luma")), "one of them is missing or unknown: luma"),
        (lambda f: edit(f, lambda m: m.update(recipe="as usual")), "a recipe is a JSON object, got str"),
    ],
)
def test_a_damaged_bundle_is_refused_in_one_line(folder: Path, fault: Callable[[Path], object], message: str) -> None:
    fault(folder)
    with pytest.raises(DamagedError) as caught:
        open_bundle(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../model.onnx", "/etc/passwd", "training/../model.onnx", "a\\b", "a//b", "./a", "a" * 5000, "", "manifest.json", "a\0b"]
)
def test_names_that_lead_elsewhere_are_refused(folder: Path, name: str) -> None:
    def add(manifest: dict[str, object]) -> None:
        entries = manifest["files"]
        assert isinstance(entries, dict)
        entries[name] = entries["model.onnx"]

    edit(folder, add)
    with pytest.raises(DamagedError, match="not a plain name inside the bundle"):
        open_bundle(folder)


def test_a_file_changed_after_opening_is_not_handed_out(folder: Path) -> None:
    bundle = open_bundle(folder)
    damage_a_byte(folder)
    with pytest.raises(DamagedError, match="has sha256"):
        bundle.read("model.onnx")


def test_a_file_that_no_manifest_lists_is_not_handed_out(folder: Path) -> None:
    bundle = open_bundle(folder)
    (folder / "extra").write_bytes(b"")
    with pytest.raises(DamagedError, match="lists no extra"):
        bundle.read("extra")


def test_another_manifest_inside_a_folder_is_a_file_like_any_other(folder: Path) -> None:
    (folder / "training" / "manifest.json").write_text("{}")
    write_manifest(folder, FACTS)
    assert open_bundle(folder).read("training/manifest.json") == b"{}"


def test_what_is_no_bundle_at_all_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"has no manifest\.json"):
        open_bundle(tmp_path)


def test_opening_a_bundle_needs_neither_torch_nor_a_runtime() -> None:
    code = "import sys, export.bundle; sys.exit(bool({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", [".DS_Store", "training/Thumbs.db", "desktop.ini"])
def test_what_a_file_browser_leaves_does_no_harm(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"left by a file browser")
    opened = open_bundle(bundle)
    assert not opened.has(name)
    relist(bundle)
    assert not open_bundle(bundle).has(name)
