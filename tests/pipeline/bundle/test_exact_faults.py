"""Faults planted into the exact part of a bundle.

Each is found, with the exit code and the link that a user would see.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from bundles import rehash
from commands import Done, pipeline
from onnx import numpy_helper

from deploy.certificate.walk import certificate_of
from export.bundle import json_bytes

Run = Callable[..., Done]
EXACT = "model.exact.onnx"


@pytest.fixture
def verify(capfd: pytest.CaptureFixture[str], bundle: Path) -> Run:
    return lambda *options: pipeline(capfd, "verify", bundle, *options)


def change_integers(path: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    model = onnx.load(path)
    tensor = next(each for each in model.graph.initializer if each.name == name)
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, path)


def add_two(values: np.ndarray) -> None:
    values.reshape(-1)[np.abs(values.reshape(-1)).argmin()] += 2


@pytest.mark.parametrize("name", ["network.stages.1.0.conv1.weight", "network.stages.1.0.conv1.bias", "network.conv1.weight"])
def test_one_integer_of_the_exact_file(verify: Run, bundle: Path, name: str) -> None:
    (bundle / "certificate.json").unlink()  # as someone would do who changes the file
    change_integers(bundle / EXACT, name, add_two)
    rehash(bundle)
    done = verify()
    assert done.code == 3
    assert "exact folded graph -> exact ONNX file failed: required bitwise" in done.error


def test_one_integer_of_the_file_for_tensorrt(verify: Run, bundle: Path) -> None:
    change_integers(bundle / "model.exact.trt.onnx", "network.stages.0.0.conv2.weight", add_two)
    rehash(bundle)
    done = verify()
    assert done.code == 3
    assert "exact ONNX file -> exact ONNX file for TensorRT failed" in done.error


def test_an_odd_weight_has_no_certificate(verify: Run, bundle: Path) -> None:
    def add_one(values: np.ndarray) -> None:
        values.reshape(-1)[0] += 1

    (bundle / "certificate.json").unlink()
    change_integers(bundle / EXACT, "network.stages.1.0.conv1.weight", add_one)
    rehash(bundle)
    done = verify()
    assert done.code == 3
    assert "no certificate" in done.error


@pytest.mark.parametrize(
    ("file", "link"),
    [
        ("weights.exact.safetensors", "exact evaluation graph -> exact folded graph failed"),
        ("training/exact.safetensors", "exact evaluation graph -> exact folded graph failed"),
    ],
)
def test_stored_weights_that_are_not_those_of_the_other_files(verify: Run, bundle: Path, file: str, link: str) -> None:
    tensors = safetensors.torch.load((bundle / file).read_bytes())
    name = next(name for name in tensors if "conv2" in name and name.endswith(("conv2.weight", "direction")))
    changed = tensors[name].flatten()
    changed[: len(changed) // 2] *= -1 if changed.dtype == torch.int8 else -1.0
    tensors[name] = changed.view_as(tensors[name])
    (bundle / file).write_bytes(safetensors.torch.save(tensors))
    rehash(bundle)
    done = verify()
    assert done.code == 3
    assert link in done.error


Tensors = dict[str, torch.Tensor]
NAME = "network.conv1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(NAME), f"{NAME} is not there, expected int8, "),
        (lambda tensors: tensors.update({NAME: tensors[NAME][:2].clone()}), f"{NAME} is int8, 2 x 1 x 3 x 3, expected int8, "),
        (lambda tensors: tensors.update({NAME: tensors[NAME].float()}), f"{NAME} is float32, "),
        (lambda tensors: tensors.update({"more": torch.ones(1)}), "more is float32, 1, expected not there"),
    ],
)
def test_integers_of_another_form(verify: Run, bundle: Path, change: Callable[[Tensors], object], message: str) -> None:
    path = bundle / "weights.exact.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    change(tensors)
    path.write_bytes(safetensors.torch.save(tensors))
    rehash(bundle)
    done = verify()
    assert done.code == 5
    assert message in done.error


@pytest.mark.parametrize("factor", [0.3, 0.0, float("nan")])
def test_a_step_that_is_no_power_of_two(verify: Run, bundle: Path, factor: float) -> None:
    path = bundle / "training" / "exact.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    name = next(name for name in tensors if name.startswith("grid_") and name.endswith(".step"))
    tensors[name] = tensors[name] * factor
    path.write_bytes(safetensors.torch.save(tensors))
    rehash(bundle)
    done = verify()
    assert done.code == 5
    assert "expected a power of two" in done.error


def test_an_integer_with_a_certificate_of_its_own(verify: Run, bundle: Path) -> None:
    change_integers(bundle / EXACT, "network.stages.0.0.conv1.weight", add_two)
    (bundle / "certificate.json").write_bytes(json_bytes(certificate_of(bundle / EXACT).to_json()))
    rehash(bundle)
    done = verify()
    assert done.code == 3
    assert "exact folded graph -> exact ONNX file failed: required bitwise" in done.error


def test_a_certificate_of_another_file(verify: Run, bundle: Path) -> None:
    path = bundle / "certificate.json"
    content = json.loads(path.read_bytes())
    content["least_headroom_bits"] = 9.0
    path.write_text(json.dumps(content))
    rehash(bundle)
    done = verify()
    assert done.code == 5
    assert "is not the certificate of model.exact.onnx" in done.error


def test_a_part_of_the_exact_files_is_missing(verify: Run, bundle: Path) -> None:
    (bundle / "weights.exact.safetensors").unlink()
    rehash(bundle)
    done = verify()
    assert done.code == 5
    assert "lacks weights.exact.safetensors" in done.error


def test_integers_that_were_rounded_on_another_kind_of_device_are_said_not_to_have_run(verify: Run, bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["device"] = "cuda:0"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = verify("--report", tmp_path / "report")
    assert done.code == 0, done.err
    links = json.loads((tmp_path / "report" / "verification.json").read_bytes())["links"]
    told = {
        f"{link['from']} -> {link['to']}": (link["status"], link["reason"])
        for link in links
        if link["from"].startswith("exact") and link["runtime"] != "tensorrt"
    }
    assert [status for status, _ in told.values()] == ["not run", "not run", "passed", "passed", "passed"]
    assert "rounded on cuda:0" in told["exact evaluation graph -> exact folded graph"][1]
