"""An installed package is complete.

A wheel is built from the sources, installed where there is no checkout, and used from there.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.config.shipped import config_names
from pipeline.reproduction.papers import TABLES

ROOT = Path(__file__).parents[1]
PACKAGES = sysconfig.get_path("purelib")
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "pipeline", "export", "deploy", "configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    _copy_sources(place / "sources")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", place, place / "sources")
    (wheel,) = place.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Yield the bin folder of an environment with the wheel in it.

    Its requirements are taken from the environment of the tests.
    """
    environment = _environment(tmp_path_factory.mktemp("installed"), wheel)
    (_packages_of(environment) / "of_the_tests.pth").write_text(PACKAGES + "\n")  # as a plain folder: an editable samegraph in it stays out
    return environment / "bin"


@pytest.fixture(scope="module")
def without_torch(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Yield the bin folder of an environment with the wheel, its requirements without extras, and
    no more."""
    environment = _environment(tmp_path_factory.mktemp("base"), wheel)
    (own,) = metadata.distributions(name="samegraph", path=[str(_packages_of(environment))])
    for name in _needed(own):
        for top in {file.parts[0] for file in metadata.distribution(name).files or () if file.parts[0] not in ("..", "__pycache__")}:
            (_packages_of(environment) / top).symlink_to(Path(PACKAGES) / top)
    return environment / "bin"


def _environment(place: Path, wheel: Path) -> Path:
    venv.create(place / "venv", with_pip=False)
    _pip("--python", place / "venv" / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    return place / "venv"


def _packages_of(environment: Path) -> Path:
    return next(environment.glob("lib/python*/site-packages"))


def _needed(distribution: metadata.Distribution) -> set[str]:
    """Return the distributions that one needs without its extras, and what those need."""
    found: set[str] = set()
    left = [distribution]
    while left:
        for text in left.pop().requires or ():
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                found.add(name)
                left.append(metadata.distribution(name))
    return found


def _copy_sources(place: Path) -> None:
    place.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, place)


def _pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def run(program: Path, *arguments: object, cwd: Path, code: int = 0) -> str:
    """Return what a program of the environment prints, run outside the checkout.

    Where it fails as it should, return its error.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


@pytest.mark.slow
def test_a_config_is_written_and_planned_and_tables_are_found(installed: Path, tmp_path: Path) -> None:
    imported = run(installed / "python", "-c", "import pipeline; print(pipeline.__file__)", cwd=tmp_path)
    assert Path(imported.strip()).is_relative_to(installed.parent)

    listed = json.loads(run(installed / "pipeline", "init", "--list", "--json", cwd=tmp_path))
    assert tuple(each["name"] for each in listed["configs"]) == config_names()

    run(installed / "pipeline", "init", cwd=tmp_path)
    first = (tmp_path / "quickstart.yaml").read_text().splitlines()[0]
    schema = tmp_path / first.removeprefix("# yaml-language-server: $schema=")
    assert json.loads(schema.read_bytes()) == json.loads((ROOT / "configs" / "schema.json").read_bytes())

    plan = json.loads(run(installed / "pipeline", "train-export", "quickstart.yaml", "--dry-run", "--json", cwd=tmp_path))["plan"]
    assert (plan["run"], plan["network"]["name"]) == ("runs/quickstart", "small")

    tables = json.loads(run(installed / "pipeline", "reproduce", "--list", "--json", cwd=tmp_path))["tables"]
    assert [each["table"] for each in tables] == list(TABLES)
    assert {path.name for path in tmp_path.iterdir()} == {"quickstart.yaml", schema.name}


NO_TORCH = "PyTorch is not installed, pip install 'samegraph[train]'"


@pytest.mark.slow
class TestWithoutTorch:
    def test_the_environment_is_what_the_wheel_asks_for(self, without_torch: Path, tmp_path: Path) -> None:
        _pip("--python", without_torch / "python", "check")
        missing = "import importlib.util as u; print([name for name in ('torch', 'torchvision', 'sklearn', 'openvino') if u.find_spec(name)])"
        assert run(without_torch / "python", "-c", missing, cwd=tmp_path) == "[]\n"

    def test_help_doctor_and_a_starting_config(self, without_torch: Path, tmp_path: Path) -> None:
        assert "verify" in run(without_torch / "pipeline", "--help", cwd=tmp_path)
        found = json.loads(run(without_torch / "pipeline", "doctor", "--json", "--require", "onnxruntime-cpu", cwd=tmp_path))["findings"]
        assert (found["torch"]["here"], found["torch"]["detail"]) == (False, "no module torch")
        run(without_torch / "pipeline", "init", cwd=tmp_path)
        run(without_torch / "pipeline", "reproduce", "--list", cwd=tmp_path)

    def test_a_certificate_and_a_pair_of_files(self, without_torch: Path, tmp_path: Path, finished_run: Path) -> None:
        bundle = finished_run / "bundle"
        assert "every sum is exact" in run(without_torch / "pipeline", "verify", "--certificate", bundle / "model.exact.onnx", cwd=tmp_path)
        pair = ("--reference", bundle / "model.onnx", "--candidate", bundle / "model.onnx", "--samples", "9")
        assert "the outputs are the same, on 9 samples" in run(without_torch / "pipeline", "verify", *pair, cwd=tmp_path)
        other = ("--reference", bundle / "model.onnx", "--candidate", bundle / "model.exact.onnx", "--samples", "9")
        assert "the error against float64" in run(without_torch / "pipeline", "verify", *other, cwd=tmp_path, code=3)

    def test_of_a_bundle_the_links_between_files(self, without_torch: Path, tmp_path: Path, finished_run: Path) -> None:
        bundle, report = finished_run / "bundle", tmp_path / "report"
        told = run(without_torch / "pipeline", "verify", bundle, "--report", report, cwd=tmp_path)
        links = {(link["from"], link["to"]): link for link in json.loads((report / "verification.json").read_bytes())["links"]}
        passed = {f"{before} -> {after}" for (before, after), link in links.items() if link["status"] == "passed"}
        assert passed == {
            "image file -> pixels",
            "ONNX file -> onnxruntime-cpu, all optimisations",
            "exact ONNX file -> exact onnxruntime-cpu, all optimisations",
            "exact ONNX file -> exact ONNX file for TensorRT",
        }
        graphs = [link for ends, link in links.items() if any("graph" in end for end in ends)]
        assert len(graphs) == 6
        assert {link["reason"] for link in graphs} == {NO_TORCH}
        assert f"note: what exists in training only was not looked at: {NO_TORCH}" in told
        assert "certificate: no sum depends on its order" in told

    def test_classes_of_an_image(self, without_torch: Path, tmp_path: Path, finished_run: Path) -> None:
        image = next((finished_run / "bundle" / "training" / "images").glob("*.jpg"))
        told = json.loads(run(without_torch / "pipeline", "predict", finished_run / "bundle", image, "--json", cwd=tmp_path))
        assert told["model"] == "model.exact.onnx"
        hashes = json.loads((finished_run / "bundle" / "training" / "images.json").read_bytes())
        assert told["predictions"][0]["sha256_of_pixels"] == hashes[f"training/images/{image.name}"]

    def test_what_needs_torch_says_so(self, without_torch: Path, tmp_path: Path, finished_run: Path) -> None:
        run(without_torch / "pipeline", "init", cwd=tmp_path)
        needed = "needs PyTorch, which is not installed; pip install 'samegraph[train]'\n"
        for arguments in (["train", "quickstart.yaml"], ["train-export", "quickstart.yaml"], ["compare", finished_run]):
            assert run(without_torch / "pipeline", *arguments, cwd=tmp_path, code=4) == f"error: this command {needed}"
        program = tmp_path / "net.pt2"
        program.write_bytes(b"PK")
        pair = ("--reference", program, "--candidate", program, "--samples", "9")
        assert run(without_torch / "pipeline", "verify", *pair, cwd=tmp_path, code=4) == f"error: {program}, a torch.export program, {needed}"
        assert not (tmp_path / "runs").exists()
