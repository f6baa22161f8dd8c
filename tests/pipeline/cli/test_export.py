"""A float network that was trained elsewhere.

It is folded, put onto the grid, certified, exported and verified like any run.
"""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from commands import Done, pipeline
from PIL import Image

from export.bundle import open_bundle
from pipeline.cli.export import config_of_import
from pipeline.networks import network_by_name

Capture = pytest.CaptureFixture[str]
CLASSES = ("dark", "light", "striped")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", 12), ("test", 6)):
        for shade, name in zip((40, 200, 120), CLASSES, strict=True):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = torch.randint(shade - 40, shade + 40, (16, 16, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A network whose norms have statistics of their own, as training leaves them."""
    torch.manual_seed(0)
    network = network_by_name("small", len(CLASSES), 3)
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(8, 3, 16, 16) * 1.5 + 0.3)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.torch.save({name: value.contiguous() for name, value in network.state_dict().items()}))
    return path


def imported(capfd: Capture, images: Path, weights: Path, out: Path, *more: object) -> Done:
    return pipeline(
        capfd, "export", "--network", "small", "--weights", weights, "--calibrate", images, "--out", out, "--set", "data.batch_size=8", *more
    )


def test_a_network_of_any_origin_is_verified_in_both_forms(tmp_path: Path, capfd: Capture, images: Path, weights: Path) -> None:
    out = tmp_path / "run"
    for _ in range(2):  # an import may be repeated
        done = imported(capfd, images, weights, out)
        assert done.code == 0, done.err
    require_the_outputs_of_the_network_as_it_is_written(out / "bundle" / "model.onnx", weights)
    bundle = open_bundle(out / "bundle")
    assert bundle.manifest.classes == list(CLASSES)
    assert "test_accuracy_at_once" in str(bundle.manifest.metrics["exact"])
    links = json.loads(bundle.read("verification.json"))["links"]
    assert {link["max_ulp"] for link in links if link["from"].startswith("exact") and link["status"] != "not run"} == {0}
    assert {link["status"] for link in links if link["runtime"] != "tensorrt"} == {"passed"}
    assert pipeline(capfd, "verify", out / "bundle").code == 0
    card, page = bundle.read("README.md").decode(), bundle.read("report.html").decode()
    assert card.startswith("# small, trained elsewhere\n")
    assert "Accuracy as it was given: " in card
    assert "epoch" not in card
    assert "- `model.exact.onnx`: the same network on the exact grid, for the same bits in every runtime. Accuracy: " in card
    assert "The network was trained elsewhere; its test accuracy as it was given is " in page
    assert "of training steps" not in page


def require_the_outputs_of_the_network_as_it_is_written(file: Path, weights: Path) -> None:
    import onnxruntime

    network = network_by_name("small", len(CLASSES), 3)
    network.load_state_dict(safetensors.torch.load(weights.read_bytes()))
    pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = network.eval().double()((pixels.double() - 128) / 64)
    session = onnxruntime.InferenceSession(file)
    (found,) = session.run(None, {"image": pixels.numpy()})
    assert (torch.from_numpy(found) - wanted).abs().max() < 1e-5  # float32 against float64, logits of order 1
    assert wanted.std() > 0.1


def test_it_can_be_trained_on_the_grid(tmp_path: Path, capfd: Capture, images: Path, weights: Path) -> None:
    done = imported(capfd, images, weights, tmp_path / "run", "--finetune", 2)
    assert done.code == 0, done.err
    assert "exact: epoch 2/2" in done.err
    assert json.loads((tmp_path / "run" / "bundle" / "manifest.json").read_bytes())["metrics"]["exact"]["epochs"] == 2


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("pickle", 5, "pickles are not read"),
        ("no file", 2, "is not a file"),
        ("other classes", 2, "size mismatch for classifier"),
        ("a tensor too few", 2, "Missing key"),
        ("nothing that it needs", 2, '"conv1.weight", "bn1.weight", "bn1.bias", and 34 more'),
    ],
)
def test_weights_that_do_not_fit_are_one_line(
    tmp_path: Path, capfd: Capture, images: Path, weights: Path, change: str, code: int, words: str
) -> None:
    tensors = safetensors.torch.load(weights.read_bytes())
    match change:
        case "pickle":
            torch.save(tensors, weights)
        case "no file":
            weights.unlink()
        case "other classes":
            weights.write_bytes(safetensors.torch.save(network_by_name("small", 7, 3).state_dict()))
        case "a tensor too few":
            weights.write_bytes(safetensors.torch.save({name: value for name, value in tensors.items() if name != "conv1.weight"}))
        case _:
            weights.write_bytes(safetensors.torch.save({"other": torch.zeros(1)}))
    done = imported(capfd, images, weights, tmp_path / "run")
    assert done.code == code
    assert words in done.error
    assert not (tmp_path / "run").exists()


def test_another_run_is_never_replaced_by_an_import(finished_run: Path, tmp_path: Path, capfd: Capture, images: Path, weights: Path) -> None:
    config = (finished_run / "config.yaml").read_bytes()
    done = imported(capfd, images, weights, finished_run)
    assert done.code == 2
    assert "holds another run" in done.error
    assert (finished_run / "config.yaml").read_bytes() == config


def test_what_belongs_together_is_asked_for(capfd: Capture, images: Path, finished_run: Path) -> None:
    done = pipeline(capfd, "export", "--network", "small", "--calibrate", images)
    assert (done.code, "--weights is missing" in done.error) == (2, True)
    done = pipeline(capfd, "export", finished_run, "--network", "small")
    assert (done.code, "not for a run" in done.error) == (2, True)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--finetune", 1, "--set", "exact.enabled=false"), "--finetune trains on the exact grid, which --set exact.enabled=false switches off"),
        (("--set", "method.name=czmig"), "folded from its own norms, with the method batchnorm"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path: Path, capfd: Capture, images: Path, weights: Path, more: tuple[object, ...], words: str) -> None:
    done = imported(capfd, images, weights, tmp_path / "run", *more)
    assert (done.code, words in done.error) == (2, True), done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [
        ((), (224, 256)),
        (("data.image_size=32",), (32, 37)),
        (("data.image_size=32", "data.resize=32"), (32, 32)),
        (("data.image_size=448",), (448, 512)),
        (("data.image_size=32", "data.root=resized"), (32, 37)),
        (("data.image_size=null",), (None, None)),
    ],
)
def test_images_are_scaled_in_proportion_to_what_is_cut_out(overrides: tuple[str, ...], sizes: tuple[int | None, int | None]) -> None:
    data = config_of_import("torchvision:resnet18", Path("weights"), Path("images"), 0, overrides).data
    assert (data.image_size, data.resize) == sizes
