"""Planted faults: each is found, with the exit code and the sentence that a user would see."""

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

from deploy.verify.request import BundleRequest
from export.bundle import open_bundle
from export.errors import DamagedError
from pipeline.bundle.contents import stored_samples
from pipeline.bundle.verify_bundle import verify_bundle
from pipeline.cli.console import Console

Run = Callable[..., Done]


@pytest.fixture
def verify(capfd: pytest.CaptureFixture[str], bundle: Path) -> Run:
    return lambda *options: pipeline(capfd, "verify", bundle, *options)


def edit_model(bundle: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(bundle / "model.onnx")
    change(model)
    onnx.save(model, bundle / "model.onnx")
    rehash(bundle)


def edit_tensors(bundle: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = safetensors.torch.load((bundle / name).read_bytes())
    change(tensors)
    (bundle / name).write_bytes(safetensors.torch.save(tensors))
    rehash(bundle)


def initialiser(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(each for each in model.graph.initializer if each.name == name)


def replace(model: onnx.ModelProto, name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    initialiser(model, name).CopyFrom(numpy_helper.from_array(values, name))


def test_the_bundle_passes_as_it_is(verify: Run) -> None:
    done = verify()
    assert done.code == 0
    assert "the outputs are the same" in done.out


def test_a_bias_that_is_off_by_a_thousandth(verify: Run, bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        bias = numpy_helper.to_array(initialiser(model, "network.classifier.bias")).copy()
        bias[3] += 1e-3
        replace(model, "network.classifier.bias", bias)

    edit_model(bundle, change)
    done = verify()
    assert done.code == 3
    assert "folded graph -> ONNX file failed" in done.error
    assert "it begins at Gemm of network.classifier (logits)" in done.error


def test_two_classes_swapped(verify: Run, bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for name in ("network.classifier.weight", "network.classifier.bias"):
            values = numpy_helper.to_array(initialiser(model, name)).copy()
            values[[1, 7]] = values[[7, 1]]
            replace(model, name, values)

    edit_model(bundle, change)
    done = verify()
    assert done.code == 3
    assert "folded graph -> ONNX file failed" in done.error


def test_weights_rounded_through_bfloat16(verify: Run, bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for each in list(model.graph.initializer):
            values = numpy_helper.to_array(each)
            if values.dtype == np.float32 and values.ndim >= 2 and each.name.startswith("network."):
                rounded = torch.from_numpy(values.copy()).to(torch.bfloat16).float().numpy()
                replace(model, each.name, rounded)

    edit_model(bundle, change)
    done = verify()
    assert done.code == 3
    assert "folded graph -> ONNX file failed" in done.error


def test_one_weight_rounded_through_bfloat16_breaks_the_bits_of_the_fold(verify: Run, bundle: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["network.conv1.weight"][0] = tensors["network.conv1.weight"][0].to(torch.bfloat16).float()

    edit_tensors(bundle, "weights.safetensors", change)
    done = verify()
    assert done.code == 3
    assert "evaluation graph -> folded graph failed: required bitwise" in done.error
    assert "it begins at Conv2d of network.conv1 (network_conv1)" in done.error


def test_a_single_bit_of_a_folded_weight(verify: Run, bundle: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        weight = tensors["network.classifier.weight"].view(torch.int32)
        weight[0, 0] ^= 1

    edit_tensors(bundle, "weights.safetensors", change)
    done = verify()
    assert done.code == 3
    assert "evaluation graph -> folded graph failed: required bitwise" in done.error


def test_a_fold_of_other_weights_that_claims_another_device(verify: Run, bundle: Path) -> None:
    """On another kind of device the fold need not have the same bits.

    Its error is still measured from the training weights.
    """

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for tensor in tensors.values():
            tensor.mul_(1.001)

    edit_tensors(bundle, "weights.safetensors", change)
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "device": "cuda:0"}))
    done = verify()
    assert done.code == 3
    assert "evaluation graph -> folded graph failed" in done.error


def test_an_honest_fold_from_another_device_is_within_its_budget(verify: Run, bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "device": "cuda:0"}))
    assert verify().code == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_alike_because_none_is_a_number(verify: Run, bundle: Path, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor], name: str) -> None:
        tensors[name].fill_(value)

    def spoil_model(model: onnx.ModelProto) -> None:
        replace(model, "network.classifier.bias", np.full(10, value, np.float32))

    edit_tensors(bundle, "weights.safetensors", lambda tensors: spoil(tensors, "network.classifier.bias"))
    edit_tensors(bundle, "training/weights.safetensors", lambda tensors: spoil(tensors, "network.classifier.derivation.bias"))
    edit_model(bundle, spoil_model)
    done = verify()
    assert done.code == 3
    assert "NaN or infinite" in done.error


def test_an_operation_that_draws_numbers(verify: Run, bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "quiet"
        model.graph.node.append(onnx.helper.make_node("RandomNormalLike", ["quiet"], ["drawn"], scale=1e-9))
        model.graph.node.append(onnx.helper.make_node("Add", ["quiet", "drawn"], ["logits"]))

    edit_model(bundle, change)
    done = verify()
    assert done.code == 3
    assert "RandomNormalLike" in done.error


@pytest.mark.parametrize("place", ["labels.txt", "manifest", "network"])
def test_a_bundle_that_tells_two_stories(verify: Run, bundle: Path, place: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    if place == "labels.txt":
        labels = (bundle / "labels.txt").read_text().splitlines()
        (bundle / "labels.txt").write_text("\n".join([labels[1], labels[0], *labels[2:]]) + "\n")
        rehash(bundle)
    elif place == "manifest":
        (bundle / "manifest.json").write_text(json.dumps({**manifest, "classes": manifest["classes"][::-1]}))
    else:
        (bundle / "manifest.json").write_text(json.dumps({**manifest, "network": "resnet110"}))
    done = verify()
    assert done.code == 5
    assert "says different things about its" in done.error


def test_metrics_that_are_no_records(verify: Run, bundle: Path) -> None:
    (bundle / "training" / "metrics.jsonl").write_text("[1, 2]\n")
    rehash(bundle)
    done = verify()
    assert done.code == 5
    assert "one JSON object per line" in done.error


def test_an_output_renamed(verify: Run, bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "scores"
        model.graph.output[0].name = "scores"

    edit_model(bundle, change)
    done = verify()
    assert done.code == 3
    assert "folded graph -> ONNX file failed" in done.error
    assert "logits" in done.error


def test_an_output_beside_the_one_that_is_promised(verify: Run, bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(onnx.helper.make_node("Identity", ["logits"], ["more"]))
        model.graph.output.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["batch", 10]))

    edit_model(bundle, change)
    done = verify()
    assert done.code == 3
    assert "more" in done.error


def test_the_output_missing(verify: Run, bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        """The last layer is missing; its input comes out under its name."""
        last = model.graph.node[-1]
        features = last.input[0]
        del model.graph.node[-1]
        model.graph.node.append(onnx.helper.make_node("Identity", [features], ["logits"]))
        model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 64]))

    edit_model(bundle, change)
    assert verify().code == 3


def test_a_graph_exported_in_training_mode(verify: Run, bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        """What an exporter writes if it is given a graph in training mode: a Dropout that drops."""
        last = model.graph.node[-1]
        for name, value in (("ratio", np.float32(0.5)), ("training", np.bool_(True))):
            model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
        dropout = onnx.helper.make_node("Dropout", [last.input[0], "ratio", "training"], ["dropped"], seed=1)
        last.input[0] = "dropped"
        model.graph.node.insert(len(model.graph.node) - 1, dropout)

    edit_model(bundle, change)
    done = verify()
    assert done.code == 3
    assert "folded graph -> ONNX file failed" in done.error


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors", "training/weights.safetensors", "training/config.yaml", "labels.txt"])
def test_a_changed_byte(verify: Run, bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    done = verify()
    assert done.code == 5
    assert name in done.error


def test_a_model_exchanged_after_the_bundle_was_opened_is_not_run(bundle: Path) -> None:
    opened = open_bundle(bundle)
    (bundle / "model.onnx").write_bytes(b"exchanged")
    with pytest.raises(DamagedError, match=r"model\.onnx has"):
        verify_bundle(opened, stored_samples(opened), BundleRequest(folder=opened.folder), Console())


def test_a_model_that_is_no_model(verify: Run, bundle: Path) -> None:
    (bundle / "model.onnx").write_text("not a model")
    rehash(bundle)
    done = verify()
    assert done.code == 5
    assert "model.onnx" in done.error


def test_a_model_that_wants_another_file(verify: Run, bundle: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        tensor = initialiser(model, "network.conv1.weight")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../secret")
        tensor.ClearField("raw_data")

    edit_model(bundle, change)
    done = verify()
    assert done.code == 5
    assert "external data" in done.error


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("images"),
        lambda tensors: tensors.update(images=tensors["images"][:0]),
        lambda tensors: tensors.update(images=tensors["images"].float()),
        lambda tensors: tensors.update(images=tensors["images"][:, :, 1:].contiguous()),
    ],
)
def test_samples_that_would_compare_nothing(verify: Run, bundle: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    edit_tensors(bundle, "training/samples.safetensors", change)
    done = verify()
    assert done.code == 5
    assert "expected uint8, N x 1 x 8 x 8, N at least 1" in done.error


def test_a_config_without_runtimes(verify: Run, bundle: Path) -> None:
    config = bundle / "training" / "config.yaml"
    config.write_text(config.read_text().replace("[onnxruntime-cpu]", "[]"))
    rehash(bundle)
    done = verify()
    assert done.code == 2
    assert "verify: runtimes takes at least one name" in done.error


def test_weights_of_another_network(verify: Run, bundle: Path) -> None:
    edit_tensors(bundle, "training/weights.safetensors", lambda tensors: tensors.pop("network.classifier.derivation.bias"))
    done = verify()
    assert done.code == 5
    assert "does not fit the network" in done.error


def test_training_weights_of_another_epoch(verify: Run, bundle: Path) -> None:
    edit_tensors(bundle, "training/weights.safetensors", lambda tensors: tensors["network.conv1.derivation.weight"].mul_(1.001))
    done = verify()
    assert done.code == 3
    assert "evaluation graph -> folded graph failed" in done.error


@pytest.mark.parametrize("runtime", ["onnxruntime-cuda", "tensorrt"])
def test_a_runtime_that_was_asked_for_and_is_not_here(verify: Run, runtime: str) -> None:
    done = verify("--require", runtime)
    assert done.code == 4
    assert runtime in done.error


def test_a_runtime_that_is_not_here_and_was_not_required_is_said_not_to_have_run(verify: Run, bundle: Path, tmp_path: Path) -> None:
    config = bundle / "training" / "config.yaml"
    config.write_text(config.read_text().replace("[onnxruntime-cpu]", "[onnxruntime-cpu, onnxruntime-cuda]"))
    rehash(bundle)
    done = verify("--report", tmp_path / "report")
    assert done.code == 0
    links = json.loads((tmp_path / "report" / "verification.json").read_bytes())["links"]
    absent = [link for link in links if link["runtime"] == "onnxruntime-cuda"]
    assert [link["to"] for link in absent] == ["onnxruntime-cuda, all optimisations", "exact onnxruntime-cuda, all optimisations"]
    for link in absent:
        assert (link["status"], link["observed"], link["samples"]) == ("not run", None, 0)
        assert link["reason"]


def test_a_bundle_never_names_code_to_import(verify: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "planted.py").write_text("raise SystemExit('code of the bundle ran')")
    config = bundle / "training" / "config.yaml"
    config.write_text(config.read_text().replace("name: small", "name: planted:network"))
    rehash(bundle)
    done = verify()
    assert done.code == 2
    assert "add --network planted:network" in done.error


@pytest.mark.parametrize(
    ("tensor", "change", "message"),
    [
        ("exact", 1e-3, "model.exact.onnx gives other outputs"),
        ("float64", 1e-6, "the float64 outputs are"),
        ("float32", 1e-3, "the float32 outputs are"),
    ],
)
def test_stored_outputs_must_be_those_of_the_files(verify: Run, bundle: Path, tensor: str, change: float, message: str) -> None:
    edit_tensors(bundle, "training/outputs.safetensors", lambda tensors: tensors[tensor].add_(change))
    done = verify()
    assert done.code == 5
    assert message in done.error
