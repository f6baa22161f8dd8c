"""Opening any data set: where its images live, its normalisation, and what is refused."""

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import pstdev
from typing import Literal, TypeVar, get_args

import pytest
import torch
from pydantic import ValidationError

from export.errors import DamagedError, UsageError
from pipeline.config.sections import Augment, Data
from pipeline.data import preparation
from pipeline.data.dataset import LabelledImages, Source
from pipeline.data.images import FileImages, MemoryImages

MakeFolder = Callable[..., Path]
CPU = torch.device("cpu")
Item = TypeVar("Item")


def small(root: Path, batch_size: int = 2, residence: Literal["auto", "device", "stream"] = "auto") -> Data:
    return Data(name="imagefolder", root=str(root), batch_size=batch_size, residence=residence, workers=0)


def test_every_name_of_the_config_has_a_reader() -> None:
    names = get_args(Data.model_fields["name"].annotation)
    assert "digits" in names
    assert all(callable(preparation._reader(name)) for name in names)


def test_centred_normalisation_is_exact_on_pixels() -> None:
    normalisation = preparation.open_data(Data(), CPU).normalisation
    assert (normalisation.mean, normalisation.std) == ((128.0,), (64.0,))


def test_dataset_normalisation_is_the_mean_and_deviation_of_the_training_pixels() -> None:
    data = preparation.open_data(Data(normalisation="dataset"), CPU)
    pixels = torch.cat([images for images, _ in data.train.batches(100)]).flatten().tolist()
    assert data.normalisation.mean == (sum(pixels) / len(pixels),)
    assert data.normalisation.std == pytest.approx((pstdev(pixels),), rel=4e-16)  # a square root and a division


def test_given_normalisation_is_scaled_to_raw_pixels() -> None:
    data = preparation.open_data(Data(normalisation=((0.5,), (0.25,))), CPU)
    assert (data.normalisation.mean, data.normalisation.std) == ((127.5,), (63.75,))


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("unit", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
        ("imagenet", (0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)),
        ("cifar100", (0.5071 * 255, 0.4865 * 255, 0.4409 * 255), (0.2673 * 255, 0.2564 * 255, 0.2762 * 255)),
    ],
)
def test_the_normalisations_of_the_papers_have_names(
    image_folder: MakeFolder, name: Literal["unit", "imagenet", "cifar100"], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    options = small(image_folder()).model_copy(update={"normalisation": name})
    found = preparation.open_data(options, CPU).normalisation
    assert (found.mean, found.std) == (mean, std)


def test_unit_is_for_any_channels_and_the_named_ones_are_for_colour() -> None:
    assert preparation.open_data(Data(normalisation="unit"), CPU).normalisation.std == (255.0,)
    with pytest.raises(UsageError, match="has 3 means, the images have 1 channels"):
        preparation.open_data(Data(normalisation="imagenet"), CPU)


def test_a_normalisation_for_other_channels_is_refused() -> None:
    with pytest.raises(UsageError, match="has 3 means, the images have 1 channels"):
        preparation.open_data(Data(normalisation=((0.5,) * 3, (0.25,) * 3)), CPU)


@pytest.mark.parametrize("wrong", [((0.5,), (0.0,)), ((0.5,), (0.1, 0.1)), ((), ())])
def test_a_normalisation_that_cannot_divide_is_refused_by_the_config(
    wrong: tuple[tuple[float, ...], tuple[float, ...]],
) -> None:
    with pytest.raises(ValidationError, match=r"normalisation (takes|needs)"):
        Data(normalisation=wrong)


def test_a_constant_channel_cannot_be_normalised_by_its_deviation(tmp_path: Path, image_folder: MakeFolder) -> None:
    root = image_folder(num=1, classes=("a", "b"))
    (root / "train/b/0.png").write_bytes((root / "train/a/0.png").read_bytes())
    with pytest.raises(UsageError, match="divides by 0"):
        preparation.open_data(small(root).model_copy(update={"normalisation": "dataset"}), CPU)


@pytest.mark.parametrize("residence", ["device", "stream"])
def test_files_give_the_same_batches_wherever_they_live(image_folder: MakeFolder, residence: Literal["device", "stream"]) -> None:
    data = preparation.open_data(small(image_folder(), residence=residence), CPU)
    batches = list(data.test.batches(4))
    assert [len(labels) for _, labels in batches] == [4, 2]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 0, 0, 1, 1, 1]
    pixels = torch.cat([images for images, _ in batches])
    assert pixels.shape == (6, 3, 4, 6)
    assert pixels[:, 1].amax((1, 2)).tolist() == pixels[:, 1].amin((1, 2)).tolist() == [2, 12, 22, 102, 112, 122]
    assert isinstance(data.train.images, MemoryImages if residence == "device" else FileImages)


def test_auto_decides_by_decoded_size(image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_folder()
    decoded = 12 * 3 * 4 * 6
    monkeypatch.setattr(preparation, "RESIDENT_BYTES", decoded)
    assert isinstance(preparation.open_data(small(root), CPU).train.images, MemoryImages)
    monkeypatch.setattr(preparation, "RESIDENT_BYTES", decoded - 1)
    assert isinstance(preparation.open_data(small(root), CPU).train.images, FileImages)


def test_a_set_in_memory_streams_too() -> None:
    here, there = (preparation.open_data(Data(residence=where), CPU) for where in ("device", "stream"))
    assert there.notes == ("1,797 images of 0.1 MiB, sent batch by batch to cpu",)
    for (a, one), (b, other) in zip(here.test.batches(100), there.test.batches(100), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(one, other)


def test_progress_sees_each_loop_over_files(image_folder: MakeFolder) -> None:
    seen: list[tuple[str, int, int]] = []

    def progress(items: Iterable[Item], what: str, total: int) -> Iterable[Item]:
        listed = list(items)
        seen.append((what, total, len(listed)))
        return listed

    preparation.open_data(small(image_folder()), CPU, progress)
    assert seen == [
        ("checking 12 images", 1, 1),
        ("decoding 6 training images", 1, 1),
        ("decoding 6 test images", 1, 1),
    ]


def test_more_than_fits_says_stream(image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_folder()
    options = Data(name="imagefolder", root=str(root), batch_size=2, residence="device", image_size=2**24, workers=0)
    with pytest.raises(UsageError, match=r"GiB of images do not fit on cpu; set data.residence: stream"):
        preparation.open_data(options, CPU)


def test_a_batch_larger_than_the_training_set_is_refused_and_one_for_testing_is_not(image_folder: MakeFolder) -> None:
    root = image_folder()
    with pytest.raises(UsageError, match="batch_size 7 is more than the 6 training images; set it to 6 or less"):
        preparation.open_data(small(root, batch_size=7), CPU)
    assert [len(labels) for _, labels in preparation.open_data(small(root, batch_size=6), CPU).test.batches(1000)] == [6]


def test_one_class_is_refused(image_folder: MakeFolder) -> None:
    with pytest.raises(UsageError, match="imagefolder has one class, only; add at least a second"):
        preparation.open_data(small(image_folder(classes=("only",))), CPU)


def test_padding_that_could_leave_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="crop_padding 8 could leave nothing of 8x8 images; set it to less than 8"):
        preparation.open_data(Data(augment=Augment(crop_padding=8)), CPU)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_out_of_range_is_named(label: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = MemoryImages(torch.zeros((3, 1, 2, 2), dtype=torch.uint8))
    good, bad = (LabelledImages(images, torch.tensor(labels)) for labels in ([0, 1, 1], [0, label, 1]))
    monkeypatch.setattr("pipeline.data.digits.read", lambda *_: Source(("a", "b"), good, bad))
    with pytest.raises(DamagedError, match=f"test image 1 has label {label}, expected 0 to 1"):
        preparation.open_data(Data(batch_size=1), CPU)
